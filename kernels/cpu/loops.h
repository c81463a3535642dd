/*
 * The inner loops, written once and compiled once per instruction set; any thread.
 *
 * Plain loops, which the compiler vectorises for the flags of the including file. That file has
 * included sums.h before and defines LOOPS_NAME and LOOPS_TABLE, name and symbol of the table at
 * the end.
 *
 * An output may be one of the inputs. Iteration i touches only elements i, so there is no
 * dependency from one iteration to another, which VECTORISE states; restrict would be untrue.
 */
#ifndef HORA_KERNELS_CPU_LOOPS_H
#define HORA_KERNELS_CPU_LOOPS_H

#include "element.h"
#include "float8.h"
#include "isa.h"
#include "sums.h"

#if defined(__clang__)
#define VECTORISE _Pragma("clang loop vectorize(assume_safety)")
#else
#define VECTORISE _Pragma("GCC ivdep")
#endif

#define IDENTITY(x) (x)

/* ---- Combine --------------------------------------------------------------------------------- */

#define DEFINE_COMBINE(OP, S, T, FINAL)                                                           \
    static void combine_##OP##_##S(void *out, const void *const *in, int ways, size_t count)      \
    {                                                                                             \
        T       *o = out;                                                                         \
        const T *a = in[0];                                                                       \
        const T *b = in[1];                                                                       \
        const T *c = in[ways - 2];                                                                \
        const T *d = in[ways - 1];                                                                \
        if (ways == 2) {                                                                          \
            VECTORISE                                                                             \
            for (size_t i = 0; i < count; i++) {                                                  \
                o[i] = FINAL(OP##_##S(a[i], b[i]));                                               \
            }                                                                                     \
        } else if (ways == 3) {                                                                   \
            VECTORISE                                                                             \
            for (size_t i = 0; i < count; i++) {                                                  \
                o[i] = FINAL(OP##_##S(OP##_##S(a[i], b[i]), d[i]));                               \
            }                                                                                     \
        } else {                                                                                  \
            VECTORISE                                                                             \
            for (size_t i = 0; i < count; i++) {                                                  \
                o[i] = FINAL(OP##_##S(OP##_##S(OP##_##S(a[i], b[i]), c[i]), d[i]));               \
            }                                                                                     \
        }                                                                                         \
    }

#define DEFINE_COMBINE_WRAPPING(S, T)                                                             \
    DEFINE_COMBINE(sum, S, T, IDENTITY)                                                           \
    DEFINE_COMBINE(product, S, T, IDENTITY)                                                       \
    DEFINE_COMBINE(band, S, T, IDENTITY)                                                          \
    DEFINE_COMBINE(bor, S, T, IDENTITY)                                                           \
    DEFINE_COMBINE(bxor, S, T, IDENTITY)
DEFINE_COMBINE_WRAPPING(u8, uint8_t)
DEFINE_COMBINE_WRAPPING(u16, uint16_t)
DEFINE_COMBINE_WRAPPING(u32, uint32_t)
DEFINE_COMBINE_WRAPPING(u64, uint64_t)

#define DEFINE_COMBINE_ORDER(S, T, FINAL)                                                         \
    DEFINE_COMBINE(min, S, T, FINAL)                                                              \
    DEFINE_COMBINE(max, S, T, FINAL)
DEFINE_COMBINE_ORDER(i8, int8_t, IDENTITY)
DEFINE_COMBINE_ORDER(i16, int16_t, IDENTITY)
DEFINE_COMBINE_ORDER(i32, int32_t, IDENTITY)
DEFINE_COMBINE_ORDER(i64, int64_t, IDENTITY)
DEFINE_COMBINE_ORDER(u8, uint8_t, IDENTITY)
DEFINE_COMBINE_ORDER(u16, uint16_t, IDENTITY)
DEFINE_COMBINE_ORDER(u32, uint32_t, IDENTITY)
DEFINE_COMBINE_ORDER(u64, uint64_t, IDENTITY)
DEFINE_COMBINE_ORDER(f32, float, canonical_f32)
DEFINE_COMBINE_ORDER(f64, double, canonical_f64)

DEFINE_COMBINE(sum, f32, float, canonical_f32)
DEFINE_COMBINE(sum, f64, double, canonical_f64)
DEFINE_COMBINE(product, f32, float, canonical_f32)
DEFINE_COMBINE(product, f64, double, canonical_f64)

DEFINE_COMBINE(or, bool, uint8_t, IDENTITY)
DEFINE_COMBINE(and, bool, uint8_t, IDENTITY)
DEFINE_COMBINE(xor, bool, uint8_t, IDENTITY)

/* ---- Scale and divide ------------------------------------------------------------------------ */

#define DEFINE_SCALE_INTEGER(S, T)                                                                \
    static void scale_##S(void *out, const void *in, size_t count, double scale)                  \
    {                                                                                             \
        T       *o = out;                                                                         \
        const T *a = in;                                                                          \
        VECTORISE                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                      \
            o[i] = saturate_##S((double)a[i] * scale);                                            \
        }                                                                                         \
    }

/* W: double where it holds the type. Its quotient is then exact enough: n/d differs from the next
 * integer by at least 1/d, which is more than half a unit in the last place. */
#define DEFINE_DIVIDE_INTEGER(S, T, W)                                                            \
    static void divide_##S(void *out, const void *in, size_t count, uint32_t divisor)             \
    {                                                                                             \
        T       *o = out;                                                                         \
        const T *a = in;                                                                          \
        VECTORISE                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                      \
            o[i] = (T)((W)a[i] / (W)divisor);                                                     \
        }                                                                                         \
    }

#define DEFINE_FINISH_INTEGER(S, T, W)                                                            \
    DEFINE_SCALE_INTEGER(S, T)                                                                    \
    DEFINE_DIVIDE_INTEGER(S, T, W)
DEFINE_FINISH_INTEGER(i8, int8_t, double)
DEFINE_FINISH_INTEGER(i16, int16_t, double)
DEFINE_FINISH_INTEGER(i32, int32_t, double)
DEFINE_FINISH_INTEGER(i64, int64_t, int64_t)
DEFINE_FINISH_INTEGER(u8, uint8_t, double)
DEFINE_FINISH_INTEGER(u16, uint16_t, double)
DEFINE_FINISH_INTEGER(u32, uint32_t, double)
DEFINE_FINISH_INTEGER(u64, uint64_t, uint64_t)

#define DEFINE_FINISH_FLOAT(S, T)                                                                 \
    static void scale_##S(void *out, const void *in, size_t count, double scale)                  \
    {                                                                                             \
        T       *o = out;                                                                         \
        const T *a = in;                                                                          \
        const T  factor = (T)scale;                                                               \
        VECTORISE                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                      \
            o[i] = canonical_##S(a[i] * factor);                                                  \
        }                                                                                         \
    }                                                                                             \
    static void divide_##S(void *out, const void *in, size_t count, uint32_t divisor)             \
    {                                                                                             \
        T       *o = out;                                                                         \
        const T *a = in;                                                                          \
        const T  by = (T)divisor;                                                                 \
        if (is_power_of_two(divisor)) {                                                           \
            scale_##S(out, in, count, 1.0 / divisor); /* exact, so the same bits */               \
            return;                                                                               \
        }                                                                                         \
        VECTORISE                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                      \
            o[i] = canonical_##S(a[i] / by);                                                      \
        }                                                                                         \
    }
DEFINE_FINISH_FLOAT(f32, float)
DEFINE_FINISH_FLOAT(f64, double)

/* ---- Casts ----------------------------------------------------------------------------------- */

#define DEFINE_CAST(NAME, TO, FROM, EXPRESSION)                                                   \
    static void cast_##NAME(void *out, const void *in, size_t count)                              \
    {                                                                                             \
        TO         *o = out;                                                                      \
        const FROM *a = in;                                                                       \
        VECTORISE                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                      \
            o[i] = EXPRESSION(a[i]);                                                              \
        }                                                                                         \
    }
DEFINE_CAST(bf16_to_f32, float, uint16_t, hora_bf16_to_f32)
DEFINE_CAST(f32_to_bf16, uint16_t, float, hora_bf16_from_f32)
DEFINE_CAST(e4m3_to_f32, float, uint8_t, hora_e4m3_to_f32)
DEFINE_CAST(f32_to_e4m3, uint8_t, float, hora_e4m3_from_f32)
DEFINE_CAST(e5m2_to_f32, float, uint8_t, hora_e5m2_to_f32)
DEFINE_CAST(f32_to_e5m2, uint8_t, float, hora_e5m2_from_f32)
DEFINE_CAST(f32_to_f64, double, float, (double))
DEFINE_CAST(f64_to_f32, float, double, (float))
DEFINE_CAST(f64_to_f32_odd, float, double, hora_f32_from_f64_odd)

/* float16 goes by chunks, for the conversions of the instruction set. */
static void cast_f16_to_f32(void *out, const void *in, size_t count)
{
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t   length = count - i < CHUNK ? count - i : CHUNK;
        vector_t v[VECTORS];
        load_some_f16((const uint16_t *)in + i, length, v);
        store_some_f32((float *)out + i, length, v);
    }
}

static void cast_f32_to_f16(void *out, const void *in, size_t count)
{
    for (size_t i = 0; i < count; i += CHUNK) {
        size_t   length = count - i < CHUNK ? count - i : CHUNK;
        vector_t v[VECTORS];
        load_some_f32((const float *)in + i, length, v);
        store_some_f16((uint16_t *)out + i, length, v);
    }
}

#include "dots.h"

/* ---- Table ----------------------------------------------------------------------------------- */

#define INTEGER_ROW(S, U)                                                                         \
    {                                                                                             \
        [HORA_SUM] = combine_sum_##U, [HORA_PRODUCT] = combine_product_##U,                       \
        [HORA_MIN] = combine_min_##S, [HORA_MAX] = combine_max_##S,                               \
        [HORA_BAND] = combine_band_##U, [HORA_BOR] = combine_bor_##U,                             \
        [HORA_BXOR] = combine_bxor_##U                                                            \
    }
#define FLOAT_ROW(S)                                                                              \
    {                                                                                             \
        [HORA_SUM] = combine_sum_##S, [HORA_PRODUCT] = combine_product_##S,                       \
        [HORA_MIN] = combine_min_##S, [HORA_MAX] = combine_max_##S                                \
    }
#define BOOL_ROW                                                                                  \
    {                                                                                             \
        [HORA_SUM] = combine_or_bool, [HORA_PRODUCT] = combine_and_bool,                          \
        [HORA_MIN] = combine_and_bool, [HORA_MAX] = combine_or_bool,                              \
        [HORA_BAND] = combine_and_bool, [HORA_BOR] = combine_or_bool,                             \
        [HORA_BXOR] = combine_xor_bool                                                            \
    }
/* One function for each type that counts. */
#define FINISH_ROW(WHAT)                                                                          \
    {                                                                                             \
        [HORA_INT8] = WHAT##_i8, [HORA_INT16] = WHAT##_i16, [HORA_INT32] = WHAT##_i32,            \
        [HORA_INT64] = WHAT##_i64, [HORA_UINT8] = WHAT##_u8, [HORA_UINT16] = WHAT##_u16,          \
        [HORA_UINT32] = WHAT##_u32, [HORA_UINT64] = WHAT##_u64, [HORA_FLOAT32] = WHAT##_f32,      \
        [HORA_FLOAT64] = WHAT##_f64                                                               \
    }

const hora_isa_t LOOPS_TABLE = {
    .name = LOOPS_NAME,
    .combine = {
        [HORA_BOOL] = BOOL_ROW,
        [HORA_INT8] = INTEGER_ROW(i8, u8),
        [HORA_INT16] = INTEGER_ROW(i16, u16),
        [HORA_INT32] = INTEGER_ROW(i32, u32),
        [HORA_INT64] = INTEGER_ROW(i64, u64),
        [HORA_UINT8] = INTEGER_ROW(u8, u8),
        [HORA_UINT16] = INTEGER_ROW(u16, u16),
        [HORA_UINT32] = INTEGER_ROW(u32, u32),
        [HORA_UINT64] = INTEGER_ROW(u64, u64),
        [HORA_FLOAT32] = FLOAT_ROW(f32),
        [HORA_FLOAT64] = FLOAT_ROW(f64),
    },
    .scale = FINISH_ROW(scale),
    .divide = FINISH_ROW(divide),
    .sum = {[HORA_FLOAT16] = reduce_sum_f16,
            [HORA_BFLOAT16] = reduce_sum_bf16,
            [HORA_FLOAT32] = reduce_f32},
    .turn_f32 = turn_f32,
    .copy = copy_lines,
    .widen = {[HORA_FLOAT16] = cast_f16_to_f32,
              [HORA_BFLOAT16] = cast_bf16_to_f32,
              [HORA_FLOAT8_E4M3] = cast_e4m3_to_f32,
              [HORA_FLOAT8_E5M2] = cast_e5m2_to_f32},
    .narrow = {[HORA_FLOAT16] = cast_f32_to_f16,
               [HORA_BFLOAT16] = cast_f32_to_bf16,
               [HORA_FLOAT8_E4M3] = cast_f32_to_e4m3,
               [HORA_FLOAT8_E5M2] = cast_f32_to_e5m2},
    .dots = {[HORA_FLOAT32] = dots_f32, [HORA_FLOAT64] = dots_f64},
    .blend = {[HORA_FLOAT32] = blend_f32, [HORA_FLOAT64] = blend_f64},
    .f32_to_f64 = cast_f32_to_f64,
    .f64_to_f32 = cast_f64_to_f32,
    .f64_to_f32_odd = cast_f64_to_f32_odd,
};

#endif
