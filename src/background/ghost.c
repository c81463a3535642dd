/*
 * Ghosts: tasks that other ranks execute and this one does not have, because it has joined. It
 * takes part all the same, since the collective needs it, with input that changes nothing, and what comes
 * out is thrown away (engine.h). The driving thread.
 */
#include "background/engine.h"

#include <stdlib.h>

hora_status_t hora_ghost_make(hora_engine_t *engine, hora_record_t *record, hora_work_t **work_p) {
    hora_work_t *work = calloc(1, sizeof(*work));
    if (work == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "%s %s, while this rank has joined",
                         hora_kind_name(record->sig.kind), record->name.text);
    work->record = record;
    work->sig = record->sig;
    work->is_ghost = true;
    work->rows = work->sig.ndim > 0 ? work->sig.shape[0] : 1; /* none where each brings its own */
    hora_shape_count(work->sig.shape, 0, work->sig.ndim, 1, &work->count);
    work->next = engine->ghosts;
    engine->ghosts = work;
    *work_p = work;
    return HORA_OK;
}

void hora_ghosts_free_locked(hora_engine_t *engine) {
    for (hora_work_t *work = engine->ghosts, *next; work != NULL; work = next) {
        next = work->next;
        work->record->has_ghost = false;
        hora_record_drop_locked(engine, work->record);
        hora_work_free_output(engine, work);
        free(work);
    }
    engine->ghosts = NULL;
}

/* Before these a scale would change what the ghosts have put in: each rank scales its own. */
bool hora_ghost_scales_first(const hora_engine_t *engine, const hora_work_t *work) {
    const hora_signature_t *sig = &work->sig;
    bool                    sums = sig->op == HORA_SUM || sig->op == HORA_AVERAGE ||
                sig->op == HORA_ADASUM;
    return engine->divisor != 0 && sig->prescale != 1.0 && !sums;
}

/* ---- Input that changes nothing ------------------------------------------------------------- */

typedef union value {
    uint8_t  bytes[8];
    int8_t   i8;
    int16_t  i16;
    int32_t  i32;
    int64_t  i64;
    uint16_t half;
    float    f32;
    double   f64;
} value_t;

#define ONE_F16  0x3c00
#define ONE_BF16 0x3f80
#define INF_F16  0x7c00
#define INF_BF16 0x7f80
#define SIGN_16  0x8000
#define MAX_E4M3 0x7e /* 448; there is no infinity */
#define INF_E5M2 0x7c
#define SIGN_8   0x80

static value_t one_of(hora_dtype_t dtype) {
    value_t v = {{0}};
    switch (dtype) {
    case HORA_FLOAT16: v.half = ONE_F16; break;
    case HORA_BFLOAT16: v.half = ONE_BF16; break;
    case HORA_FLOAT32: v.f32 = 1.0f; break;
    case HORA_FLOAT64: v.f64 = 1.0; break;
    case HORA_INT16:
    case HORA_UINT16: v.i16 = 1; break;
    case HORA_INT32:
    case HORA_UINT32: v.i32 = 1; break;
    case HORA_INT64:
    case HORA_UINT64: v.i64 = 1; break;
    default: v.bytes[0] = 1; break;
    }
    return v;
}

/* The greatest value, or with `least` the least. */
static value_t extreme_of(hora_dtype_t dtype, bool least) {
    value_t v = {{0}};
    switch (dtype) {
    case HORA_BOOL: v.bytes[0] = !least; break;
    case HORA_INT8: v.i8 = least ? INT8_MIN : INT8_MAX; break;
    case HORA_INT16: v.i16 = least ? INT16_MIN : INT16_MAX; break;
    case HORA_INT32: v.i32 = least ? INT32_MIN : INT32_MAX; break;
    case HORA_INT64: v.i64 = least ? INT64_MIN : INT64_MAX; break;
    case HORA_FLOAT16: v.half = least ? INF_F16 | SIGN_16 : INF_F16; break;
    case HORA_BFLOAT16: v.half = least ? INF_BF16 | SIGN_16 : INF_BF16; break;
    case HORA_FLOAT8_E4M3: v.bytes[0] = least ? MAX_E4M3 | SIGN_8 : MAX_E4M3; break;
    case HORA_FLOAT8_E5M2: v.bytes[0] = least ? INF_E5M2 | SIGN_8 : INF_E5M2; break;
    case HORA_FLOAT32: v.f32 = least ? -__builtin_inff() : __builtin_inff(); break;
    case HORA_FLOAT64: v.f64 = least ? -__builtin_inf() : __builtin_inf(); break;
    default: memset(v.bytes, least ? 0 : 0xff, sizeof(v.bytes)); break; /* unsigned */
    }
    return v;
}

static value_t neutral_of(hora_dtype_t dtype, hora_op_t op) {
    value_t zero = {{0}}, ones;
    memset(ones.bytes, 0xff, sizeof(ones.bytes));
    switch (op) {
    case HORA_PRODUCT: return one_of(dtype);
    case HORA_MIN: return extreme_of(dtype, false);
    case HORA_MAX: return extreme_of(dtype, true);
    case HORA_BAND: return dtype == HORA_BOOL ? one_of(dtype) : ones;
    default: return zero;
    }
}

void hora_ghost_fill(void *dst, hora_dtype_t dtype, hora_op_t op, size_t count) {
    value_t v = neutral_of(dtype, op);
    size_t  size = hora_dtype_size(dtype);
    for (size_t i = 0; i < count; i++)
        memcpy((uint8_t *)dst + i * size, v.bytes, size);
}
