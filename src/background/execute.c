/*
 * Execution of one task that the ranks have agreed on, on the caller's buffers (engine.h). The
 * driving thread; every rank executes the same tasks in the same order, on the engine's own
 * communicator. What has an own number of rows on each rank exchanges these first.
 */
#include "background/blocks.h"
#include "background/trace.h"

#include "offload/offload.h"
#include "schedule/exec.h"

#include <stdlib.h>

#define OUTPUT_ALIGNMENT 64

hora_coll_t hora_execute_describe(const hora_engine_t *engine, const hora_work_t *work,
                                  hora_coll_kind_t kind) {
    return (hora_coll_t){.kind = kind,
                         .dtype = (hora_dtype_t)work->sig.dtype,
                         .op = (hora_op_t)work->sig.op,
                         .rank = engine->rank,
                         .size = engine->size,
                         .root = work->sig.root,
                         .count = work->count,
                         .in = work->in,
                         .out = work->out,
                         .prescale = work->sig.prescale,
                         .postscale = work->sig.postscale,
                         .divisor = engine->divisor,
                         .gpu = work->sig.device ? &engine->gpu->place : NULL,
                         .name = work->record->name.text};
}

hora_status_t hora_execute_run(const hora_engine_t *engine, const hora_coll_t *coll) {
    hora_status_t st;
    hora_trace_run(engine, coll);
    if (!hora_offload_try(engine->comm, coll, &st))
        st = hora_coll_run(engine->comm, coll);
    hora_trace_ran(engine);
    return st;
}

/* ---- Allreduce, broadcast ------------------------------------------------------------------- */

static hora_status_t allreduce(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t coll = hora_execute_describe(engine, work, HORA_COLL_ALLREDUCE);
    return hora_execute_run(engine, &coll);
}

static hora_status_t broadcast(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t coll = hora_execute_describe(engine, work, HORA_COLL_BROADCAST);
    if (engine->rank != work->sig.root)
        coll.in = work->out;
    return hora_execute_run(engine, &coll);
}

/* ---- Kinds whose output the engine allocates ------------------------------------------------ */

size_t *hora_execute_list(const hora_engine_t *engine, int i) {
    return engine->blocks + (size_t)i * (size_t)engine->size;
}

/* Elements in a row. */
static size_t row_of(const hora_work_t *work) {
    size_t row = 0;
    hora_shape_count(work->sig.shape, 1, work->sig.ndim, 1, &row);
    return row;
}

hora_status_t hora_execute_lay_out(const hora_engine_t *engine, const hora_work_t *work,
                                   const int64_t *rows, size_t *counts, size_t *displs,
                                   int64_t *total_p) {
    size_t  row = row_of(work), at = 0, bytes;
    int64_t total = 0;
    for (int r = 0; r < engine->size; r++) {
        if (rows[r] < 0 || __builtin_add_overflow(total, rows[r], &total) ||
            __builtin_mul_overflow((size_t)rows[r], row, &counts[r]))
            goto err_rows;
        displs[r] = at;
        if (__builtin_add_overflow(at, counts[r], &at) ||
            __builtin_mul_overflow(at, hora_work_elem_size(work), &bytes) ||
            bytes > PTRDIFF_MAX / 2)
            goto err_rows;
    }
    *total_p = total;
    return HORA_OK;
err_rows:
    return hora_fail(HORA_ERR_PROTOCOL, "%s %s: the ranks' numbers of rows add up to more than "
                     "memory can hold", hora_kind_name(work->sig.kind), work->record->name.text);
}

hora_status_t hora_execute_make_output(const hora_engine_t *engine, hora_work_t *work, int64_t rows) {
    size_t bytes = (size_t)rows * row_of(work) * hora_work_elem_size(work);
    size_t room = (bytes + OUTPUT_ALIGNMENT - 1) & ~(size_t)(OUTPUT_ALIGNMENT - 1);
    work->has_output = true;
    work->out_rows = rows;
    if (bytes > 0 && work->sig.device)
        return hora_block_alloc(engine->comm, engine->gpu, bytes, work->ready, &work->data);
    if (bytes > 0 && (work->data = aligned_alloc(OUTPUT_ALIGNMENT, room)) == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "%s %s: an output of %zu bytes",
                         hora_kind_name(work->sig.kind), work->record->name.text, bytes);
    return HORA_OK;
}

/* counts[r] = 1, displs[r] = r: one number for each rank. */
static void one_each(const hora_engine_t *engine, size_t *counts, size_t *displs) {
    for (int r = 0; r < engine->size; r++) {
        counts[r] = 1;
        displs[r] = (size_t)r;
    }
}

hora_status_t hora_execute_gather(hora_engine_t *engine, hora_work_t *work, const int64_t *rows) {
    hora_coll_t   coll = hora_execute_describe(engine, work, HORA_COLL_ALLGATHER);
    size_t       *counts = hora_execute_list(engine, 0), *displs = hora_execute_list(engine, 1);
    int64_t       total;
    hora_status_t st = hora_execute_lay_out(engine, work, rows, counts, displs, &total);
    hora_trace_phase(engine, "ALLOCATE_OUTPUT");
    if (st == HORA_OK)
        st = hora_execute_make_output(engine, work, total);
    coll.counts = counts;
    coll.displs = displs;
    coll.out = work->data;
    return st == HORA_OK ? hora_execute_run(engine, &coll) : st;
}

static hora_status_t allgather(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t   dims = hora_execute_describe(engine, work, HORA_COLL_ALLGATHER);
    size_t       *counts = hora_execute_list(engine, 0), *displs = hora_execute_list(engine, 1);
    hora_status_t st;
    one_each(engine, counts, displs);
    dims.gpu = NULL;
    dims.dtype = HORA_INT64;
    dims.count = 1;
    dims.in = &work->rows;
    dims.out = engine->rows;
    dims.counts = counts;
    dims.displs = displs;
    st = hora_execute_run(engine, &dims);
    return st == HORA_OK ? hora_execute_gather(engine, work, engine->rows) : st;
}

/* Rows that go to and come from each rank: engine->rows[0 .. size) and, as the result, received. */
static hora_status_t exchange_splits(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t coll = hora_execute_describe(engine, work, HORA_COLL_ALLTOALL);
    size_t     *counts = hora_execute_list(engine, 0), *displs = hora_execute_list(engine, 1);
    work->received = malloc((size_t)engine->size * sizeof(work->received[0]));
    if (work->received == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "alltoall %s", work->record->name.text);
    work->has_output = true;
    for (int r = 0; r < engine->size; r++)
        engine->rows[r] = work->splits != NULL ? work->splits[r] : work->rows / engine->size;
    one_each(engine, counts, displs);
    coll.gpu = NULL;
    coll.dtype = HORA_INT64;
    coll.count = 1;
    coll.in = engine->rows;
    coll.out = work->received;
    coll.counts = coll.other_counts = counts;
    coll.displs = coll.other_displs = displs;
    return hora_execute_run(engine, &coll);
}

static hora_status_t alltoall(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t   coll = hora_execute_describe(engine, work, HORA_COLL_ALLTOALL);
    size_t       *lists[4];
    int64_t       sent, total;
    hora_status_t st = exchange_splits(engine, work);
    for (int i = 0; i < 4; i++)
        lists[i] = hora_execute_list(engine, i);
    if (st == HORA_OK)
        st = hora_execute_lay_out(engine, work, engine->rows, lists[0], lists[1], &sent);
    if (st == HORA_OK)
        st = hora_execute_lay_out(engine, work, work->received, lists[2], lists[3], &total);
    hora_trace_phase(engine, "ALLOCATE_OUTPUT");
    if (st == HORA_OK)
        st = hora_execute_make_output(engine, work, total);
    if (st != HORA_OK)
        return st;
    coll.count = 0;
    coll.counts = lists[0];
    coll.displs = lists[1];
    coll.other_counts = lists[2];
    coll.other_displs = lists[3];
    coll.out = work->data;
    return hora_execute_run(engine, &coll);
}

static hora_status_t reducescatter(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t   coll = hora_execute_describe(engine, work, HORA_COLL_REDUCE_SCATTER);
    size_t       *counts = hora_execute_list(engine, 0), *displs = hora_execute_list(engine, 1);
    int64_t       total;
    hora_status_t st;
    for (int r = 0; r < engine->size; r++)
        engine->rows[r] = (int64_t)hora_part_count((size_t)work->rows, engine->size, r);
    st = hora_execute_lay_out(engine, work, engine->rows, counts, displs, &total);
    hora_trace_phase(engine, "ALLOCATE_OUTPUT");
    if (st == HORA_OK)
        st = hora_execute_make_output(engine, work, engine->rows[engine->rank]);
    coll.counts = counts;
    coll.displs = displs;
    coll.out = work->data;
    return st == HORA_OK ? hora_execute_run(engine, &coll) : st;
}

/* ---- Any kind ------------------------------------------------------------------------------- */

/* A ghost has nothing to send and nowhere to put the result: it uses the fusion buffer. */
static bool must_pack(const hora_engine_t *engine, const hora_work_t *work) {
    switch ((hora_task_kind_t)work->sig.kind) {
    case HORA_TASK_ALLREDUCE:
    case HORA_TASK_REDUCESCATTER:
        return work->is_ghost || hora_ghost_scales_first(engine, work);
    case HORA_TASK_BROADCAST: return work->is_ghost;
    default: return false;
    }
}

/* The only rank has joined, and so have all. */
static void end_join(const hora_work_t *work) {
    *(int32_t *)work->out = 0;
}

hora_status_t hora_execute_one(hora_engine_t *engine, size_t i) {
    hora_work_t *work = engine->batch[i];
    if (must_pack(engine, work))
        return hora_pack_execute(engine, i, i + 1);
    switch ((hora_task_kind_t)work->sig.kind) {
    case HORA_TASK_ALLREDUCE: return allreduce(engine, work);
    case HORA_TASK_ALLGATHER: return allgather(engine, work);
    case HORA_TASK_BROADCAST: return broadcast(engine, work);
    case HORA_TASK_ALLTOALL: return alltoall(engine, work);
    case HORA_TASK_REDUCESCATTER: return reducescatter(engine, work);
    case HORA_TASK_BARRIER: return HORA_OK; /* every rank has enqueued it: that is all it means */
    case HORA_TASK_JOIN: end_join(work); return HORA_OK;
    case HORA_TASK_KIND_COUNT: break;
    }
    return hora_fail(HORA_ERR_INTERNAL, "a task of kind %d", work->sig.kind);
}
