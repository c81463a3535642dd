/*
 * Tasks whose results are known (tasks.h). Values are small whole numbers, exact in every type
 * (sums as float8 are rounded once), and
 * depend on rank and index, so a block in the wrong place is noticed.
 */
#include "tasks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The value of element i that rank `rank` contributes; at most 2, so that 60 ranks fit int8. */
static int value(int rank, size_t i) {
    return (int)((i * 7 + (size_t)rank * 3) % 3);
}

static uint16_t to_bfloat16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return (uint16_t)(bits >> 16); /* exact for small whole numbers */
}

static uint16_t to_float16(int v) {
    int e = 0;
    if (v == 0)
        return 0;
    if (v < 0)
        return to_float16(-v) | 0x8000;
    while (v >> (e + 1))
        e++;
    return (uint16_t)((e + 15) << 10 | ((v << (10 - e)) & 0x3ff));
}

/* The nearest, the even one of two: float8 has 3 or 4 binary digits. */
static uint8_t to_float8(int v, int fraction, int bias) {
    int e = 0, shift, digits;
    if (v == 0)
        return 0;
    if (v < 0)
        return to_float8(-v, fraction, bias) | 0x80;
    while (v >> (e + 1))
        e++;
    shift = e - fraction;
    digits = shift <= 0 ? v << -shift : v >> shift;
    if (shift > 0) {
        int rest = v & ((1 << shift) - 1), half = 1 << (shift - 1);
        digits += rest > half || (rest == half && digits % 2 != 0);
    }
    return (uint8_t)(((e + bias) << fraction) + digits - (1 << fraction));
}

void element_put(void *buf, hora_dtype_t dtype, size_t i, int v) {
    switch (dtype) {
    case HORA_BOOL: ((uint8_t *)buf)[i] = v != 0; break;
    case HORA_INT8:
    case HORA_UINT8: ((uint8_t *)buf)[i] = (uint8_t)v; break;
    case HORA_INT16:
    case HORA_UINT16: ((uint16_t *)buf)[i] = (uint16_t)v; break;
    case HORA_INT32:
    case HORA_UINT32: ((uint32_t *)buf)[i] = (uint32_t)v; break;
    case HORA_INT64:
    case HORA_UINT64: ((uint64_t *)buf)[i] = (uint64_t)v; break;
    case HORA_FLOAT16: ((uint16_t *)buf)[i] = to_float16(v); break;
    case HORA_BFLOAT16: ((uint16_t *)buf)[i] = to_bfloat16((float)v); break;
    case HORA_FLOAT32: ((float *)buf)[i] = (float)v; break;
    case HORA_FLOAT64: ((double *)buf)[i] = v; break;
    case HORA_FLOAT8_E4M3: ((uint8_t *)buf)[i] = to_float8(v, 3, 7); break;
    case HORA_FLOAT8_E5M2: ((uint8_t *)buf)[i] = to_float8(v, 2, 15); break;
    default: abort();
    }
}

static void expect(const tensor_t *t, const void *buf, size_t i, int v) {
    size_t  size = hora_dtype_size(t->task.dtype);
    uint8_t want[8] = {0};
    element_put(want, t->task.dtype, 0, v);
    harness_check(memcmp(want, (const char *)buf + i * size, size) == 0,
                  "%s, %s: element %zu is not %d", t->name, hora_dtype_name(t->task.dtype), i, v);
}

__attribute__((weak)) void tensor_push(tensor_t *t) {
    (void)t;
}

__attribute__((weak)) void tensor_pull(tensor_t *t, hora_handle_t *handle) {
    (void)t, (void)handle;
}

__attribute__((weak)) void tensor_pull_output(tensor_t *t, hora_handle_t *handle, hora_output_t *output) {
    (void)t, (void)handle, (void)output;
}

__attribute__((weak)) void tensor_drop(tensor_t *t) {
    (void)t;
}

static bool has_out(const tensor_t *t) {
    return t->task.kind == HORA_TASK_ALLREDUCE || t->task.kind == HORA_TASK_BROADCAST;
}

void tensor_fill(tensor_t *t, hora_comm_t *comm) {
    size_t size = hora_dtype_size(t->task.dtype);
    for (size_t i = 0; i < t->count; i++)
        element_put(t->in, t->task.dtype, i, value(hora_comm_rank(comm), i));
    if (t->out != t->in)
        memset(t->out, 0x55, t->count * size);
    tensor_push(t);
}

void tensor_make(tensor_t *t, hora_comm_t *comm, hora_task_kind_t kind, hora_dtype_t dtype,
                 const char *name, int64_t rows, int64_t row) {
    hora_task_t init = HORA_TASK_INIT;
    size_t      bytes = (size_t)(rows * row) * hora_dtype_size(dtype);
    memset(t, 0, sizeof(*t));
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->task = init;
    t->task.kind = kind;
    t->task.name = t->name;
    t->task.dtype = dtype;
    t->task.ndim = 2;
    t->task.shape = t->shape;
    t->shape[0] = rows;
    t->shape[1] = row;
    t->count = (size_t)(rows * row);
    t->in = malloc(bytes + 1);
    t->out = has_out(t) && rows % 2 == 0 ? t->in : malloc(bytes + 1); /* half of them in place */
    t->task.in = t->in;
    t->task.out = has_out(t) ? t->out : NULL;
    tensor_fill(t, comm);
}

void tensor_free(tensor_t *t) {
    tensor_drop(t);
    if (t->out != t->in)
        free(t->out);
    free(t->in);
}

void tensor_enqueue(hora_engine_t *engine, tensor_t *t, unsigned flags) {
    harness_ok(hora_engine_enqueue(engine, &t->task, 1, flags, &t->handle));
}

static int reduced(const tensor_t *t, int size, size_t i) {
    int sum = 0, most = 0;
    for (int r = 0; r < size; r++) {
        sum += value(r, i);
        most = value(r, i) > most ? value(r, i) : most;
    }
    return t->task.op == HORA_MAX || t->task.dtype == HORA_BOOL ? most : sum;
}

static void check_allgather(tensor_t *t, int size, const hora_output_t *o) {
    /* Ranks bring rows0 + rank rows where rows0 is what rank 0 has; see the tests. */
    size_t row = (size_t)t->shape[1], at = 0;
    for (int r = 0; r < size; r++) {
        size_t count = (size_t)t->splits[r] * row;
        for (size_t i = 0; i < count; i++)
            expect(t, o->data, at + i, value(r, i));
        at += count;
    }
    harness_check((size_t)o->shape[0] * row == at, "%s: %lld rows", t->name,
                  (long long)o->shape[0]);
}

/* Every rank sends splits[r] rows to rank r; equal lists on all ranks. */
static void check_alltoall(tensor_t *t, int rank, int size, const hora_output_t *o) {
    size_t row = (size_t)t->shape[1], before = 0, at = 0;
    size_t count = (size_t)t->splits[rank] * row;
    for (int r = 0; r < rank; r++)
        before += (size_t)t->splits[r] * row;
    for (int r = 0; r < size; r++, at += count) {
        harness_check(o->received_splits[r] == t->splits[rank], "%s: %lld rows from %d", t->name,
                      (long long)o->received_splits[r], r);
        for (size_t i = 0; i < count; i++)
            expect(t, o->data, at + i, value(r, before + i));
    }
}

static void check_reducescatter(tensor_t *t, int rank, int size, const hora_output_t *o) {
    size_t rows = (size_t)t->shape[0], row = (size_t)t->shape[1], n = (size_t)size;
    size_t mine = rows / n + ((size_t)rank < rows % n);
    size_t first = rows / n * (size_t)rank + ((size_t)rank < rows % n ? (size_t)rank : rows % n);
    harness_check(o->shape[0] == (int64_t)mine, "%s: %lld rows", t->name, (long long)o->shape[0]);
    for (size_t i = 0; i < mine * row; i++)
        expect(t, o->data, i, reduced(t, size, first * row + i));
}

void tensor_check(tensor_t *t, hora_comm_t *comm, hora_handle_t *handle, size_t index) {
    int           rank = hora_comm_rank(comm), size = hora_comm_size(comm);
    hora_output_t o = HORA_OUTPUT_INIT;
    if (t->task.kind == HORA_TASK_BARRIER)
        return;
    if (has_out(t)) {
        tensor_pull(t, handle);
        for (size_t i = 0; i < t->count; i++)
            expect(t, t->out, i,
                   t->task.kind == HORA_TASK_BROADCAST ? value(t->task.root, i)
                                                       : reduced(t, size, i));
        harness_expect(hora_handle_output(handle, index, &o), HORA_ERR_INVALID_ARGUMENT);
        return;
    }
    harness_ok(hora_handle_output(handle, index, &o));
    tensor_pull_output(t, handle, &o);
    harness_check(o.ndim == 2 && o.shape[1] == t->shape[1], "%s: %d dimensions", t->name, o.ndim);
    if (t->task.kind == HORA_TASK_ALLGATHER)
        check_allgather(t, size, &o);
    else if (t->task.kind == HORA_TASK_ALLTOALL)
        check_alltoall(t, rank, size, &o);
    else
        check_reducescatter(t, rank, size, &o);
    harness_expect(hora_handle_output(handle, index, &o), HORA_ERR_INVALID_ARGUMENT);
    hora_output_free(&o);
}

void tensor_finish(tensor_t *t, hora_comm_t *comm) {
    harness_ok(hora_handle_wait(t->handle));
    harness_check(hora_handle_poll(t->handle) == 1, "%s: not done after wait", t->name);
    tensor_check(t, comm, t->handle, 0);
    hora_handle_release(t->handle);
    t->handle = NULL;
}

void engine_must_work(hora_engine_t *engine, hora_comm_t *comm, const char *name, int64_t count) {
    tensor_t t;
    tensor_make(&t, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, 1, count);
    tensor_enqueue(engine, &t, HORA_ENQUEUE_WILL_WAIT);
    tensor_finish(&t, comm);
    tensor_free(&t);
}
