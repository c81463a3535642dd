/*
 * What happens to buffers before and after a plan: conversion of halves, prescale, unusual
 * overlaps; and collectives of a single rank. Runs on the thread that uses the communicator.
 *
 * Invariant: the caller's input is never written, its output only within the result.
 */
#include "schedule/run.h"

#include <stdlib.h>
#include <string.h>

#define KEEP_BYTES ((size_t)64 << 20) /* memory beyond this is not kept for the next call */
#define ALIGNMENT  64

hora_status_t hora_stage_reserve(uint8_t **mem_p, size_t *room_p, size_t bytes) {
    void *mem;
    if (bytes <= *room_p && (*room_p <= KEEP_BYTES || bytes > KEEP_BYTES))
        return HORA_OK;
    free(*mem_p);
    *mem_p = NULL;
    *room_p = 0;
    if (bytes == 0)
        return HORA_OK;
    if (bytes > SIZE_MAX - ALIGNMENT || posix_memalign(&mem, ALIGNMENT, bytes) != 0)
        return hora_fail(HORA_ERR_NO_MEMORY, "no memory for a work buffer of %zu bytes", bytes);
    memset(mem, 0, bytes < ALIGNMENT ? bytes : ALIGNMENT); /* a barrier sends from it */
    *mem_p = mem;
    *room_p = bytes;
    return HORA_OK;
}

bool hora_stage_overlaps(const hora_coll_t *coll) {
    if (coll->in != coll->out)
        return false;
    switch (coll->kind) {
    case HORA_COLL_REDUCE_SCATTER:
    case HORA_COLL_ALLGATHER:
        return coll->displs[coll->rank] != 0;
    case HORA_COLL_ALLTOALL:
        return true;
    case HORA_COLL_GATHER:
    case HORA_COLL_SCATTER:
        return coll->rank == coll->root && coll->root != 0;
    default:
        return false;
    }
}

/* Block number i of the input and its length; false past the last. */
static bool input_block(const hora_coll_t *coll, int i, size_t *off_p, size_t *count_p) {
    bool blocks = coll->kind == HORA_COLL_REDUCE_SCATTER || coll->kind == HORA_COLL_ALLTOALL;
    *off_p = 0;
    if (blocks) {
        *off_p = i < coll->size ? coll->displs[i] : 0;
        *count_p = i < coll->size ? coll->counts[i] : 0;
        return i < coll->size;
    }
    *count_p = coll->count;
    if (coll->kind == HORA_COLL_ALLGATHER)
        *count_p = coll->counts[coll->rank];
    else if (coll->kind == HORA_COLL_SCATTER)
        *count_p = coll->count * (size_t)coll->size;
    return i == 0;
}

static size_t input_span(const hora_coll_t *coll) {
    size_t span = 0, off, count;
    for (int i = 0; input_block(coll, i, &off, &count); i++)
        if (off + count > span)
            span = off + count;
    return span;
}

/* Brings a block of the input to dst, widened or scaled or as it is. */
static void bring(const hora_exec_t *exec, uint8_t *dst, size_t off, size_t count, double factor) {
    const hora_coll_t *coll = &exec->coll;
    size_t             elem = hora_dtype_size(coll->dtype);
    const void        *src = (const uint8_t *)coll->in + off * elem;
    hora_reduce_t      scale = {coll->dtype, HORA_SUM, 1, factor, 1.0};
    void              *place = dst + off * (exec->widened ? sizeof(float) : elem);
    if (count == 0)
        return;
    if (exec->widened)
        hora_kernel_convert(place, HORA_FLOAT32, src, coll->dtype, count, factor);
    else if (factor != 1.0)
        hora_kernel_reduce(&scale, &place, 1, &src, 1, count);
    else
        memcpy(place, src, count * elem);
}

/* Points inner at the staged input. In float32 the result is made there too, in place. */
static void use_staged(hora_exec_t *exec, uint8_t *staged) {
    hora_coll_t *inner = &exec->inner;
    inner->in = staged;
    if (!exec->widened)
        return;
    inner->dtype = exec->how.dtype = HORA_FLOAT32;
    inner->out = staged;
    if (inner->kind == HORA_COLL_REDUCE_SCATTER)
        inner->out = staged + inner->displs[inner->rank] * sizeof(float);
}

static bool scales_first(const hora_exec_t *exec) {
    return hora_coll_reduces(exec->coll.kind) && !exec->algo->rank_order &&
           exec->coll.prescale != 1.0;
}

bool hora_stage_copies(const hora_exec_t *exec) {
    return hora_select_widens(exec->algo, &exec->coll) || scales_first(exec) ||
           hora_stage_overlaps(&exec->coll);
}

hora_status_t hora_stage_in(hora_exec_t *exec) {
    const hora_coll_t *coll = &exec->coll;
    bool          has_out = coll->kind == HORA_COLL_ALLREDUCE ||
                            (coll->kind == HORA_COLL_REDUCE && coll->rank == coll->root);
    bool          scales = scales_first(exec);
    uint8_t      *staged = coll->out;
    hora_status_t st;
    size_t        off, count;
    exec->inner = *coll;
    exec->widened = hora_select_widens(exec->algo, coll);
    hora_coll_how(coll, &exec->how);
    if (!hora_stage_copies(exec))
        return HORA_OK;
    if (exec->widened || !has_out) {
        size_t elem = exec->widened ? sizeof(float) : hora_dtype_size(coll->dtype);
        st = hora_stage_reserve(&exec->work, &exec->work_room, input_span(coll) * elem);
        if (st != HORA_OK)
            return st;
        staged = exec->work;
    }
    for (int i = 0; input_block(coll, i, &off, &count); i++)
        bring(exec, staged, off, count, scales ? coll->prescale : 1.0);
    use_staged(exec, staged);
    if (scales)
        exec->how.prescale = 1.0;
    return HORA_OK;
}

void hora_stage_out(hora_exec_t *exec) {
    const hora_coll_t *coll = &exec->coll;
    size_t             count = coll->count;
    if (!exec->widened || (coll->kind == HORA_COLL_REDUCE && coll->rank != coll->root))
        return;
    if (coll->kind == HORA_COLL_REDUCE_SCATTER)
        count = coll->counts[coll->rank];
    if (count > 0)
        hora_kernel_convert(coll->out, coll->dtype, exec->inner.out, HORA_FLOAT32, count, 1.0);
}

void hora_stage_alone(const hora_coll_t *coll) {
    size_t         elem = hora_dtype_size(coll->dtype), count = coll->counts ? coll->counts[0]
                                                                             : coll->count;
    const uint8_t *src = coll->in;
    uint8_t       *dst = coll->out;
    if (count == 0 || coll->kind == HORA_COLL_BARRIER)
        return;
    if (coll->kind == HORA_COLL_REDUCE_SCATTER || coll->kind == HORA_COLL_ALLTOALL)
        src += coll->displs[0] * elem;
    if (coll->kind == HORA_COLL_ALLGATHER)
        dst += coll->displs[0] * elem;
    if (coll->kind == HORA_COLL_ALLTOALL)
        dst += coll->other_displs[0] * elem;
    if (hora_coll_reduces(coll->kind) && (coll->prescale != 1.0 || coll->postscale != 1.0)) {
        hora_reduce_t how;
        const void   *in = src;
        void         *out = dst;
        hora_coll_how(coll, &how);
        hora_kernel_reduce(&how, &out, 1, &in, 1, count);
    } else if (src != dst) {
        memmove(dst, src, count * elem);
    }
}
