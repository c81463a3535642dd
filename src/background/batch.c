/*
 * A batch: tasks that the ranks have agreed to execute together (engine.h). The driving thread.
 *
 * Several tasks in a batch are of one kind and type, and may be packed. How much of it is packed at
 * a time is a matter of caches, and depends only on what is equal on every rank. Allgathers first
 * exchange, for the whole batch, how many rows each rank brings.
 */
#include "background/trace.h"

#include <stdlib.h>

#define GATHER_LINKS ((size_t)32 << 20) /* bytes of allgathers packed at a time over links */
#define PACK_GPU     ((size_t)128 << 20) /* bytes packed at a time on a GPU */

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

/* ---- Pieces --------------------------------------------------------------------------------- */

/* Makes room in engine->lens and engine->all_rows for the batch. */
static hora_status_t reserve_lens(hora_engine_t *engine) {
    size_t   need = engine->nbatch * (size_t)engine->size;
    size_t  *lens;
    int64_t *all_rows;
    if (need <= engine->lens_room)
        return HORA_OK;
    lens = realloc(engine->lens, 2 * need * sizeof(*lens));
    if (lens != NULL)
        engine->lens = lens;
    all_rows = realloc(engine->all_rows, 2 * need * sizeof(*all_rows));
    if (all_rows != NULL)
        engine->all_rows = all_rows;
    if (lens == NULL || all_rows == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a batch of %zu tensors", engine->nbatch);
    engine->lens_room = 2 * need;
    return HORA_OK;
}

/* all_rows[r * nbatch + i]: rows that rank r brings to task i. */
static hora_status_t exchange_rows(hora_engine_t *engine) {
    size_t      n = engine->nbatch;
    int64_t    *mine = engine->all_rows + (size_t)engine->rank * n;
    size_t     *counts = hora_execute_list(engine, 0), *displs = hora_execute_list(engine, 1);
    hora_coll_t coll = hora_execute_describe(engine, engine->batch[0], HORA_COLL_ALLGATHER);
    for (size_t i = 0; i < n; i++)
        mine[i] = engine->batch[i]->rows;
    for (int r = 0; r < engine->size; r++) {
        counts[r] = n;
        displs[r] = (size_t)r * n;
    }
    coll.gpu = NULL;
    coll.dtype = HORA_INT64;
    coll.count = n;
    coll.in = mine;
    coll.out = engine->all_rows;
    coll.counts = counts;
    coll.displs = displs;
    return hora_execute_run(engine, &coll);
}

/* Rows of task i, by rank: engine->rows. */
static void pick_rows(hora_engine_t *engine, size_t i) {
    for (int r = 0; r < engine->size; r++)
        engine->rows[r] = engine->all_rows[(size_t)r * engine->nbatch + i];
}

/* lens[] and the size of an allgather; what the rows come to is checked here. */
static hora_status_t measure_gather(hora_engine_t *engine, size_t i) {
    hora_work_t  *work = engine->batch[i];
    size_t       *counts = hora_execute_list(engine, 0), *displs = hora_execute_list(engine, 1);
    size_t       *lens = engine->lens + i * (size_t)engine->size;
    int64_t       total;
    hora_status_t st;
    pick_rows(engine, i);
    st = hora_execute_lay_out(engine, work, engine->rows, counts, displs, &total);
    if (st != HORA_OK)
        return st;
    engine->pieces[i].bytes = 0;
    for (int r = 0; r < engine->size; r++) {
        lens[r] = counts[r] * hora_work_elem_size(work);
        engine->pieces[i].bytes += lens[r];
    }
    work->out_rows = total;
    return HORA_OK;
}

static hora_status_t measure(hora_engine_t *engine) {
    bool          gathers = engine->batch[0]->sig.kind == HORA_TASK_ALLGATHER;
    hora_status_t st = gathers ? exchange_rows(engine) : HORA_OK;
    for (size_t i = 0; st == HORA_OK && i < engine->nbatch; i++) {
        const hora_work_t *work = engine->batch[i];
        engine->pieces[i] = (hora_piece_t){.bytes = work->count * hora_work_elem_size(work)};
        if (gathers)
            st = measure_gather(engine, i);
    }
    return st;
}

/* ---- Execution ------------------------------------------------------------------------------ */

static hora_status_t execute_alone(hora_engine_t *engine, size_t i) {
    hora_work_t *work = engine->batch[i];
    hora_trace_select(engine, i, i + 1, false);
    if (work->sig.kind != HORA_TASK_ALLGATHER)
        return hora_execute_one(engine, i);
    pick_rows(engine, i);
    return hora_execute_gather(engine, work, engine->rows);
}

/* Over shared memory a pack that stays in the cache costs little more than the operation itself,
 * and a large tensor goes best from where it lies. On a GPU packing is cheaper than one more operation. */
static size_t pack_limit(const hora_engine_t *engine) {
    if (engine->batch[0]->sig.device)
        return PACK_GPU;
    if (engine->batch[0]->sig.kind == HORA_TASK_ALLGATHER && engine->comm->pads == NULL)
        return GATHER_LINKS;
    return engine->tuning.pack;
}

static hora_status_t execute_many(hora_engine_t *engine) {
    size_t        pack = pack_limit(engine), alone = engine->tuning.alone;
    hora_piece_t *pieces = engine->pieces;
    hora_status_t st = check_batch(engine);
    if (alone > pack || engine->batch[0]->sig.device)
        alone = pack;
    if (st == HORA_OK)
        st = measure(engine);
    for (size_t i = 0, to; st == HORA_OK && i < engine->nbatch; i = to) {
        size_t bytes = pieces[i].bytes;
        to = i + 1;
        while (bytes < alone && to < engine->nbatch && pieces[to].bytes < alone &&
               pieces[to].bytes <= pack - bytes) /* bytes < alone <= pack, or it was added */
            bytes += pieces[to++].bytes;
        st = to > i + 1 ? hora_pack_execute(engine, i, to) : execute_alone(engine, i);
    }
    return st;
}

/* done: behind the batch's work on a GPU; or NULL. */
static void end_locked(hora_engine_t *engine, hora_work_t *work, hora_mark_t *done) {
    hora_handle_t *handle = work->handle;
    if (done != NULL) {
        hora_mark_drop(engine->gpu, handle->mark);
        handle->mark = hora_mark_hold(engine->gpu, done);
    }
    hora_work_end_locked(engine, work, HORA_OK, NULL);
}

hora_status_t hora_batch_execute(hora_engine_t *engine) {
    hora_mark_t  *done;
    hora_status_t st = reserve_lens(engine);
    hora_trace_started(engine);
    if (st == HORA_OK)
        st = hora_device_batch_begin(engine);
    if (st == HORA_OK)
        st = engine->nbatch == 1 ? hora_execute_one(engine, 0) : execute_many(engine);
    st = hora_device_batch_end(engine, st, &done);
    if (st != HORA_OK)
        return st;
    pthread_mutex_lock(&engine->lock);
    for (size_t i = 0; i < engine->nbatch; i++)
        if (!engine->batch[i]->is_ghost)
            end_locked(engine, engine->batch[i], done);
    engine->nbatch = 0;
    hora_ghosts_free_locked(engine);
    pthread_mutex_unlock(&engine->lock);
    if (done != NULL)
        hora_mark_drop(engine->gpu, done);
    return HORA_OK;
}
