/*
 * Tasks that are executed as one, packed into the fusion buffer (engine.h). The driving thread.
 *
 * What a rank sends lies in one piece, and so does what it gets: blocks for, or from, each rank
 * follow each other by rank, then by task. The collective works in place. Ghosts (ghost.c) always
 * come here: the fusion buffer is what they send and get.
 */
#include "background/trace.h"

#include <kernels/cpu/kernels.h>

typedef struct pack {
    hora_engine_t *engine;
    hora_fusion_t *fusion; /* the engine's, or its one on a GPU */
    hora_work_t  **works;  /* [n] */
    hora_piece_t  *pieces; /* [n] */
    size_t         n;
    size_t        *lens;   /* [n * nblocks] */
    int            nblocks; /* 1, or one for each rank */
    size_t         elem_size;
    size_t        *counts, *displs; /* [nblocks], of all tasks together; elements */
    size_t         count;
} pack_t;

static hora_coll_t describe(const pack_t *p, hora_coll_kind_t kind) {
    hora_coll_t coll = hora_execute_describe(p->engine, p->works[0], kind);
    coll.in = coll.out = p->fusion->data;
    coll.count = p->count;
    if (hora_ghost_scales_first(p->engine, p->works[0]))
        coll.prescale = 1.0;
    return coll;
}

/* Adds the blocks up and makes room for them. */
static hora_status_t reserve(pack_t *p) {
    for (int b = 0; b < p->nblocks; b++) {
        p->displs[b] = p->count;
        p->counts[b] = 0;
        for (size_t i = 0; i < p->n; i++)
            p->counts[b] += p->lens[i * (size_t)p->nblocks + (size_t)b] / p->elem_size;
        p->count += p->counts[b];
    }
    if (p->count * p->elem_size > p->fusion->bytes)
        hora_trace_phase(p->engine, "INIT_FUSION_BUFFER");
    return hora_fusion_reserve(p->fusion, p->count * p->elem_size,
                               p->engine->fusion_threshold);
}

/* Bytes of the fusion buffer that belong to ghosts. */
static hora_status_t fill(const pack_t *p, uint8_t *at, size_t bytes) {
    const hora_signature_t *sig = &p->works[0]->sig;
    uint8_t                 pattern[HORA_FUSION_PATTERN];
    size_t                  period = sizeof(pattern) / p->elem_size;
    if (p->fusion->gpu == NULL) {
        hora_ghost_fill(at, (hora_dtype_t)sig->dtype, (hora_op_t)sig->op, bytes / p->elem_size);
        return HORA_OK;
    }
    hora_ghost_fill(pattern, (hora_dtype_t)sig->dtype, (hora_op_t)sig->op, period);
    return hora_fusion_gpu_fill(p->fusion->gpu, at, pattern, period * p->elem_size, bytes);
}

/* Ghosts that lie beside each other at once. */
static hora_status_t fill_ghosts(const pack_t *p) {
    uint8_t      *at = p->fusion->data, *begin = at;
    hora_status_t st = HORA_OK;
    for (int b = 0; b < p->nblocks; b++)
        for (size_t i = 0; i < p->n && st == HORA_OK; i++) {
            size_t len = p->lens[i * (size_t)p->nblocks + (size_t)b];
            if (!p->works[i]->is_ghost) {
                st = fill(p, begin, (size_t)(at - begin));
                begin = at + len;
            }
            at += len;
        }
    return st == HORA_OK ? fill(p, begin, (size_t)(at - begin)) : st;
}

static hora_status_t scale_all(const pack_t *p) {
    const hora_signature_t *sig = &p->works[0]->sig;
    void                   *data = p->fusion->data;
    const void             *src = data;
    hora_reduce_t how = {(hora_dtype_t)sig->dtype, HORA_SUM, 1, sig->prescale, 1.0};
    if (p->fusion->gpu != NULL)
        return hora_device_scale(p->engine->gpu, how.dtype, how.prescale, p->count);
    hora_kernel_reduce(&how, &data, 1, &src, 1, p->count);
    return HORA_OK;
}

/* What this rank contributes to a reduction. */
static hora_status_t pack_input(const pack_t *p) {
    hora_status_t st;
    hora_trace_phase(p->engine, "MEMCPY_IN_FUSION_BUFFER");
    st = hora_fusion_pack_blocks(p->fusion, p->pieces, p->n, p->lens, p->nblocks);
    if (st != HORA_OK || p->engine->divisor == 0)
        return st;
    if (hora_ghost_scales_first(p->engine, p->works[0]))
        st = scale_all(p);
    return st == HORA_OK ? fill_ghosts(p) : st;
}

/* ---- By kind -------------------------------------------------------------------------------- */

static void set_whole_pieces(pack_t *p) {
    for (size_t i = 0; i < p->n; i++) {
        p->lens[i] = p->works[i]->count * p->elem_size;
        p->pieces[i] = (hora_piece_t){p->works[i]->in, p->works[i]->out, p->lens[i], 0};
    }
}

static hora_status_t allreduce(pack_t *p) {
    hora_coll_t   coll;
    hora_status_t st;
    set_whole_pieces(p);
    st = reserve(p);
    if (st != HORA_OK)
        return st;
    st = pack_input(p);
    coll = describe(p, HORA_COLL_ALLREDUCE);
    if (st == HORA_OK)
        st = hora_execute_run(p->engine, &coll);
    return st == HORA_OK ? hora_fusion_unpack(p->fusion, 0, p->pieces, p->n) : st;
}

static hora_status_t broadcast(pack_t *p) {
    bool          is_root = p->engine->rank == p->works[0]->sig.root;
    hora_coll_t   coll;
    hora_status_t st;
    set_whole_pieces(p);
    st = reserve(p);
    if (st != HORA_OK)
        return st;
    for (size_t i = 0; i < p->n; i++) {
        if (!is_root)
            p->pieces[i].in = NULL;
        else if (p->pieces[i].in == p->pieces[i].out)
            p->pieces[i].out = NULL;
    }
    hora_trace_phase(p->engine, "MEMCPY_IN_FUSION_BUFFER");
    st = hora_fusion_pack(p->fusion, 0, p->pieces, p->n);
    coll = describe(p, HORA_COLL_BROADCAST);
    if (st == HORA_OK)
        st = hora_execute_run(p->engine, &coll);
    return st == HORA_OK ? hora_fusion_unpack(p->fusion, 0, p->pieces, p->n) : st;
}

static void cut_rows(pack_t *p) {
    for (size_t i = 0; i < p->n; i++) {
        const hora_work_t *work = p->works[i];
        size_t             rows = (size_t)work->rows, row = rows > 0 ? work->count / rows : 0;
        for (int b = 0; b < p->nblocks; b++)
            p->lens[i * (size_t)p->nblocks + (size_t)b] =
                hora_part_count(rows, p->nblocks, b) * row * p->elem_size;
        p->pieces[i] = (hora_piece_t){work->in, NULL, work->count * p->elem_size, 0};
    }
}

/* Only this rank's block of each task is of use, and to a ghost not even that. */
static hora_status_t make_scattered(pack_t *p) {
    int           rank = p->engine->rank;
    hora_status_t st = HORA_OK;
    hora_trace_phase(p->engine, "ALLOCATE_OUTPUT");
    for (size_t i = 0; i < p->n && st == HORA_OK; i++) {
        hora_work_t *work = p->works[i];
        p->pieces[i] = (hora_piece_t){
            .bytes = p->lens[i * (size_t)p->nblocks + (size_t)rank]};
        if (work->is_ghost)
            continue;
        st = hora_execute_make_output(
            p->engine, work, (int64_t)hora_part_count((size_t)work->rows, p->nblocks, rank));
        p->pieces[i].out = work->data;
    }
    return st;
}

static hora_status_t reducescatter(pack_t *p) {
    hora_coll_t   coll;
    size_t        mine;
    hora_status_t st;
    cut_rows(p);
    st = reserve(p);
    if (st != HORA_OK)
        return st;
    st = pack_input(p);
    if (st == HORA_OK)
        st = make_scattered(p);
    mine = p->displs[p->engine->rank] * p->elem_size;
    coll = describe(p, HORA_COLL_REDUCE_SCATTER);
    coll.counts = p->counts;
    coll.displs = p->displs;
    coll.out = p->fusion->data + mine;
    if (st == HORA_OK)
        st = hora_execute_run(p->engine, &coll);
    return st == HORA_OK ? hora_fusion_unpack(p->fusion, mine, p->pieces, p->n) : st;
}

static hora_status_t allgather(pack_t *p) {
    size_t        mine;
    hora_coll_t   coll;
    hora_status_t st = reserve(p);
    hora_trace_phase(p->engine, "ALLOCATE_OUTPUT");
    for (size_t i = 0; i < p->n && st == HORA_OK; i++) {
        hora_work_t *work = p->works[i];
        st = hora_execute_make_output(p->engine, work, work->out_rows);
        p->pieces[i] = (hora_piece_t){work->in, NULL, work->count * p->elem_size, 0};
    }
    if (st != HORA_OK)
        return st;
    mine = p->displs[p->engine->rank] * p->elem_size;
    hora_trace_phase(p->engine, "MEMCPY_IN_FUSION_BUFFER");
    st = hora_fusion_pack(p->fusion, mine, p->pieces, p->n);
    coll = describe(p, HORA_COLL_ALLGATHER);
    coll.count = p->counts[p->engine->rank];
    coll.counts = p->counts;
    coll.displs = p->displs;
    coll.in = p->fusion->data + mine;
    if (st == HORA_OK)
        st = hora_execute_run(p->engine, &coll);
    for (size_t i = 0; i < p->n; i++)
        p->pieces[i] = (hora_piece_t){.out = p->works[i]->data};
    if (st != HORA_OK)
        return st;
    return hora_fusion_unpack_blocks(p->fusion, p->pieces, p->n, p->lens, p->nblocks);
}

hora_status_t hora_pack_execute(hora_engine_t *engine, size_t from, size_t to) {
    int    kind = engine->batch[from]->sig.kind;
    bool   by_rank = kind == HORA_TASK_REDUCESCATTER || kind == HORA_TASK_ALLGATHER;
    pack_t p = {.engine = engine,
                .fusion = engine->batch[from]->sig.device ? &engine->gpu->lane->fusion : &engine->fusion,
                .works = engine->batch + from,
                .pieces = engine->pieces + from,
                .n = to - from,
                .lens = engine->lens + from * (size_t)engine->size,
                .nblocks = by_rank ? engine->size : 1,
                .elem_size = hora_work_elem_size(engine->batch[from]),
                .counts = hora_execute_list(engine, 0),
                .displs = hora_execute_list(engine, 1)};
    hora_status_t st;
    hora_trace_select(engine, from, to, true);
    switch ((hora_task_kind_t)kind) {
    case HORA_TASK_ALLREDUCE: st = allreduce(&p); break;
    case HORA_TASK_BROADCAST: st = broadcast(&p); break;
    case HORA_TASK_REDUCESCATTER: st = reducescatter(&p); break;
    case HORA_TASK_ALLGATHER: st = allgather(&p); break;
    default: st = hora_fail(HORA_ERR_INTERNAL, "tasks of kind %d were packed", kind); break;
    }
    hora_trace_phase(engine, NULL);
    return st;
}
