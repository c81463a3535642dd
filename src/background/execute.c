/*
 * Execution of the tasks that the ranks have agreed on (engine.h). The driving thread; every rank
 * executes the same batches in the same order, on the engine's own communicator.
 *
 * Several tasks in a batch are allreduces of one kind, fused. A task alone runs on the caller's
 * buffers. What has an own number of rows on each rank exchanges these first.
 */
#include "background/engine.h"

#include "offload/offload.h"
#include "schedule/exec.h"

#include <stdlib.h>

#define OUTPUT_ALIGNMENT 64

/* Bytes packed at a time, and bytes from which a tensor is not packed at all. */
#define PACK_SHARED  ((size_t)1 << 20)
#define ALONE_SHARED ((size_t)256 << 10)
#define ALONE_LINKS  ((size_t)8 << 20)

hora_status_t hora_batch_add(hora_engine_t *engine, hora_work_t *work) {
    if (engine->nbatch == engine->batch_room) {
        size_t        room = engine->batch_room ? 2 * engine->batch_room : 64;
        hora_work_t **batch = realloc(engine->batch, room * sizeof(*batch));
        hora_piece_t *pieces = realloc(engine->pieces, room * sizeof(*pieces));
        if (batch != NULL)
            engine->batch = batch;
        if (pieces != NULL)
            engine->pieces = pieces;
        if (batch == NULL || pieces == NULL)
            return hora_fail(HORA_ERR_NO_MEMORY, "a batch of %zu tensors", room);
        engine->batch_room = room;
    }
    engine->batch[engine->nbatch++] = work;
    return HORA_OK;
}

static hora_coll_t describe(const hora_engine_t *engine, const hora_work_t *work,
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
                         .name = work->record->name.text};
}

static hora_status_t run(const hora_engine_t *engine, const hora_coll_t *coll) {
    hora_status_t st;
    if (hora_offload_try(engine->comm, coll, &st))
        return st;
    return hora_coll_run(engine->comm, coll);
}

static size_t elem_size(const hora_work_t *work) {
    return hora_dtype_size((hora_dtype_t)work->sig.dtype);
}

/* ---- Allreduce, broadcast ------------------------------------------------------------------- */

static hora_status_t allreduce(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t coll = describe(engine, work, HORA_COLL_ALLREDUCE);
    return run(engine, &coll);
}

static size_t bytes_of(const hora_work_t *work) {
    return work->count * elem_size(work);
}

/* Packs tasks [from, to) of the batch, `bytes` in all, into the fusion buffer; reduces; unpacks. */
static hora_status_t fuse(hora_engine_t *engine, size_t from, size_t to, size_t bytes) {
    hora_coll_t   coll = describe(engine, engine->batch[from], HORA_COLL_ALLREDUCE);
    hora_status_t st;
    for (size_t i = from; i < to; i++) {
        const hora_work_t *work = engine->batch[i];
        engine->pieces[i - from] = (hora_piece_t){work->in, work->out, bytes_of(work)};
    }
    st = hora_fusion_reserve(&engine->fusion, bytes, engine->fusion_threshold);
    if (st != HORA_OK)
        return st;
    hora_fusion_pack(&engine->fusion, engine->pieces, to - from);
    coll.count = bytes / elem_size(engine->batch[from]);
    coll.in = coll.out = engine->fusion.data;
    st = run(engine, &coll);
    if (st == HORA_OK)
        hora_fusion_unpack(&engine->fusion, engine->pieces, to - from);
    return st;
}

static hora_status_t check_batch(const hora_engine_t *engine) {
    const hora_work_t *first = engine->batch[0];
    for (size_t i = 1; i < engine->nbatch; i++) {
        const hora_work_t *work = engine->batch[i];
        if (!hora_signature_fuses(&first->sig, &work->sig))
            return hora_fail(HORA_ERR_PROTOCOL, "rank 0 on host %s fused %s with %s, which differ",
                             hora_comm_peer(engine->comm, 0)->host, first->record->name.text,
                             work->record->name.text);
    }
    return HORA_OK;
}

/* A batch is what may be packed together; how much of it is packed at a time is a matter of caches,
 * the same on every rank. Over shared memory a pack that stays in the cache costs little more than
 * the reduction itself, and a large tensor goes best from where it lies. */
static hora_status_t fuse_batch(hora_engine_t *engine) {
    size_t        pack = engine->comm->pads != NULL ? PACK_SHARED : SIZE_MAX; /* rank 0's threshold */
    size_t        alone = engine->comm->pads != NULL ? ALONE_SHARED : ALONE_LINKS;
    hora_status_t st = check_batch(engine);
    for (size_t i = 0, to; st == HORA_OK && i < engine->nbatch; i = to) {
        size_t bytes = bytes_of(engine->batch[i]);
        to = i + 1;
        if (bytes >= alone) {
            st = allreduce(engine, engine->batch[i]);
            continue;
        }
        while (to < engine->nbatch && bytes_of(engine->batch[to]) < alone &&
               bytes_of(engine->batch[to]) <= pack - bytes) /* bytes < alone <= pack */
            bytes += bytes_of(engine->batch[to++]);
        st = fuse(engine, i, to, bytes);
    }
    return st;
}

static hora_status_t broadcast(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t coll = describe(engine, work, HORA_COLL_BROADCAST);
    if (engine->rank != work->sig.root)
        coll.in = work->out;
    return run(engine, &coll);
}

/* ---- Kinds whose output the engine allocates ------------------------------------------------ */

static size_t *block_list(const hora_engine_t *engine, int i) {
    return engine->blocks + (size_t)i * (size_t)engine->size;
}

/* Elements in a row. */
static size_t row_of(const hora_work_t *work) {
    size_t row = 0;
    hora_shape_count(work->sig.shape, 1, work->sig.ndim, 1, &row);
    return row;
}

/* Turns numbers of rows, which may come from other ranks, into counts and offsets of blocks. */
static hora_status_t lay_out(const hora_engine_t *engine, const hora_work_t *work,
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
            __builtin_mul_overflow(at, elem_size(work), &bytes) || bytes > PTRDIFF_MAX / 2)
            goto err_rows;
    }
    *total_p = total;
    return HORA_OK;
err_rows:
    return hora_fail(HORA_ERR_PROTOCOL, "%s %s: the ranks' numbers of rows add up to more than "
                     "memory can hold", hora_kind_name(work->sig.kind), work->record->name.text);
}

static hora_status_t make_output(hora_work_t *work, int64_t rows) {
    size_t bytes = (size_t)rows * row_of(work) * elem_size(work);
    size_t room = (bytes + OUTPUT_ALIGNMENT - 1) & ~(size_t)(OUTPUT_ALIGNMENT - 1);
    work->has_output = true;
    work->out_rows = rows;
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

static hora_status_t allgather(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t   coll = describe(engine, work, HORA_COLL_ALLGATHER), dims = coll;
    size_t       *counts = block_list(engine, 0), *displs = block_list(engine, 1);
    int64_t       total;
    hora_status_t st;
    one_each(engine, counts, displs);
    dims.dtype = HORA_INT64;
    dims.count = 1;
    dims.in = &work->rows;
    dims.out = engine->rows;
    coll.counts = dims.counts = counts;
    coll.displs = dims.displs = displs;
    st = run(engine, &dims);
    if (st == HORA_OK)
        st = lay_out(engine, work, engine->rows, counts, displs, &total);
    if (st == HORA_OK)
        st = make_output(work, total);
    coll.out = work->data;
    return st == HORA_OK ? run(engine, &coll) : st;
}

/* Rows that go to and come from each rank: engine->rows[0 .. size) and, as the result, received. */
static hora_status_t exchange_splits(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t coll = describe(engine, work, HORA_COLL_ALLTOALL);
    size_t     *counts = block_list(engine, 0), *displs = block_list(engine, 1);
    work->received = malloc((size_t)engine->size * sizeof(work->received[0]));
    if (work->received == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "alltoall %s", work->record->name.text);
    work->has_output = true;
    for (int r = 0; r < engine->size; r++)
        engine->rows[r] = work->splits != NULL ? work->splits[r] : work->rows / engine->size;
    one_each(engine, counts, displs);
    coll.dtype = HORA_INT64;
    coll.count = 1;
    coll.in = engine->rows;
    coll.out = work->received;
    coll.counts = coll.other_counts = counts;
    coll.displs = coll.other_displs = displs;
    return run(engine, &coll);
}

static hora_status_t alltoall(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t   coll = describe(engine, work, HORA_COLL_ALLTOALL);
    size_t       *lists[4];
    int64_t       sent, total;
    hora_status_t st = exchange_splits(engine, work);
    for (int i = 0; i < 4; i++)
        lists[i] = block_list(engine, i);
    if (st == HORA_OK)
        st = lay_out(engine, work, engine->rows, lists[0], lists[1], &sent);
    if (st == HORA_OK)
        st = lay_out(engine, work, work->received, lists[2], lists[3], &total);
    if (st == HORA_OK)
        st = make_output(work, total);
    if (st != HORA_OK)
        return st;
    coll.counts = lists[0];
    coll.displs = lists[1];
    coll.other_counts = lists[2];
    coll.other_displs = lists[3];
    coll.out = work->data;
    return run(engine, &coll);
}

static hora_status_t reducescatter(hora_engine_t *engine, hora_work_t *work) {
    hora_coll_t   coll = describe(engine, work, HORA_COLL_REDUCE_SCATTER);
    size_t       *counts = block_list(engine, 0), *displs = block_list(engine, 1);
    int64_t       total;
    hora_status_t st;
    for (int r = 0; r < engine->size; r++)
        engine->rows[r] = (int64_t)hora_part_count((size_t)work->rows, engine->size, r);
    st = lay_out(engine, work, engine->rows, counts, displs, &total);
    if (st == HORA_OK)
        st = make_output(work, engine->rows[engine->rank]);
    coll.counts = counts;
    coll.displs = displs;
    coll.out = work->data;
    return st == HORA_OK ? run(engine, &coll) : st;
}

/* ---- The batch ------------------------------------------------------------------------------ */

static hora_status_t execute_one(hora_engine_t *engine, hora_work_t *work) {
    switch ((hora_task_kind_t)work->sig.kind) {
    case HORA_TASK_ALLREDUCE: return allreduce(engine, work);
    case HORA_TASK_ALLGATHER: return allgather(engine, work);
    case HORA_TASK_BROADCAST: return broadcast(engine, work);
    case HORA_TASK_ALLTOALL: return alltoall(engine, work);
    case HORA_TASK_REDUCESCATTER: return reducescatter(engine, work);
    case HORA_TASK_BARRIER: return HORA_OK; /* every rank has enqueued it: that is all it means */
    case HORA_TASK_KIND_COUNT: break;
    }
    return hora_fail(HORA_ERR_INTERNAL, "a task of kind %d", work->sig.kind);
}

hora_status_t hora_batch_execute(hora_engine_t *engine) {
    hora_status_t st = engine->nbatch == 1 ? execute_one(engine, engine->batch[0])
                                          : fuse_batch(engine);
    if (st != HORA_OK)
        return st;
    pthread_mutex_lock(&engine->lock);
    for (size_t i = 0; i < engine->nbatch; i++)
        hora_work_end_locked(engine, engine->batch[i], HORA_OK, NULL);
    engine->nbatch = 0;
    pthread_mutex_unlock(&engine->lock);
    return HORA_OK;
}
