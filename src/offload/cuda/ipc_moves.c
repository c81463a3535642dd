/*
 * What a leader queues for a collective (ipc.h): reductions and copies between all members' buffers. On
 * the thread that uses the communicator, with its GPU's context current.
 *
 * Each kind's transfers are cut between the leaders so that no two write the same bytes, and a buffer that
 * is both read and written (in place) is so by the same kernel only, at the same elements.
 */
#include "offload/cuda/ipc.h"

#define SLICE 256 /* elements, a multiple of which all slices but the last are: they stay aligned */

enum { COUNTS, DISPLS, OTHER_COUNTS, OTHER_DISPLS };

/* What one launch does. */
typedef struct move {
    uint64_t src[HORA_CUDA_WAYS], dst[HORA_CUDA_WAYS];
    int      nsrc, ndst;
    uint64_t count;
} move_t;

static int my_gpu(const hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    return self->members[coll->rank].gpu;
}

static uint64_t place(uint64_t base, const hora_coll_t *coll, uint64_t first) {
    return base + first * hora_dtype_size(coll->dtype);
}

static hora_status_t launch(const hora_gpu_ipc_t *self, const hora_coll_t *coll, const move_t *m,
                            hora_op_t op, const hora_element_how_t *how) {
    hora_cuda_reduce_t args;
    unsigned           blocks;
    const char        *kernel;
    if (m->count == 0)
        return HORA_OK;
    kernel = hora_cuda_reduce_plan(coll->dtype, op, how, m->dst, m->ndst, m->src, m->nsrc, m->count,
                                   self->gpu->processors, &args, &blocks);
    if (kernel == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "no GPU kernel for %s of %s", hora_op_name(op),
                         hora_dtype_name(coll->dtype));
    return hora_gpu_launch(self->gpu, kernel, blocks, &args, coll->gpu->stream);
}

static hora_status_t copy(const hora_gpu_ipc_t *self, const hora_coll_t *coll, const move_t *m) {
    const hora_element_how_t how = {1.0, 1.0, 1};
    return launch(self, coll, m, HORA_SUM, &how);
}

/* All members' elements from `first` on, in rank order, into m->dst. */
static hora_status_t reduce(const hora_gpu_ipc_t *self, const hora_coll_t *coll, move_t *m,
                            const uint64_t *firsts) {
    bool                     average = coll->op == HORA_AVERAGE;
    uint32_t                 all = coll->divisor != 0 ? coll->divisor : (uint32_t)coll->size;
    const hora_element_how_t how = {coll->prescale, coll->postscale, average ? all : 1};
    m->nsrc = coll->size;
    for (int r = 0; r < coll->size; r++)
        m->src[r] = place(self->in[r], coll, firsts[r]);
    return launch(self, coll, m, average ? HORA_SUM : coll->op, &how);
}

/* This leader's slice of a vector that all leaders share. */
static uint64_t my_slice(const hora_gpu_ipc_t *self, const hora_coll_t *coll, uint64_t *count_p) {
    uint64_t n = (uint64_t)self->ngpus, me = (uint64_t)my_gpu(self, coll);
    uint64_t each = (coll->count / n + SLICE - 1) / SLICE * SLICE;
    uint64_t begin = me * each < coll->count ? me * each : coll->count;
    uint64_t left = coll->count - begin;
    *count_p = me == n - 1 || left < each ? left : each;
    return begin;
}

/* ---- The kinds --------------------------------------------------------------------------------- */

/* root -1: everybody gets the result. */
static hora_status_t reduce_vector(const hora_gpu_ipc_t *self, const hora_coll_t *coll, int root) {
    uint64_t firsts[HORA_CUDA_WAYS], begin;
    move_t   m;
    begin = my_slice(self, coll, &m.count);
    m.ndst = root < 0 ? coll->size : 1;
    for (int r = 0; r < coll->size; r++)
        firsts[r] = begin;
    for (int d = 0; d < m.ndst; d++)
        m.dst[d] = place(self->out[root < 0 ? d : root], coll, begin);
    return reduce(self, coll, &m, firsts);
}

static hora_status_t reduce_scatter(const hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    uint64_t      firsts[HORA_CUDA_WAYS];
    hora_status_t st = HORA_OK;
    for (int b = 0; b < coll->size && st == HORA_OK; b++) {
        move_t m = {.ndst = 1, .count = hora_ipc_row(self, coll->size, b, COUNTS)[b]};
        if (self->members[b].gpu != my_gpu(self, coll))
            continue;
        m.dst[0] = self->out[b];
        for (int r = 0; r < coll->size; r++)
            firsts[r] = hora_ipc_row(self, coll->size, r, DISPLS)[b];
        st = reduce(self, coll, &m, firsts);
    }
    return st;
}

static hora_status_t allgather(const hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    hora_status_t st = HORA_OK;
    for (int b = 0; b < coll->size && st == HORA_OK; b++) {
        move_t m = {.nsrc = 1, .ndst = coll->size, .src = {self->in[b]},
                    .count = hora_ipc_row(self, coll->size, b, COUNTS)[b]};
        if (self->members[b].gpu != my_gpu(self, coll))
            continue;
        for (int r = 0; r < coll->size; r++)
            m.dst[r] = place(self->out[r], coll, hora_ipc_row(self, coll->size, r, DISPLS)[b]);
        st = copy(self, coll, &m);
    }
    return st;
}

static hora_status_t broadcast(const hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    move_t   m = {.nsrc = 1, .ndst = coll->size};
    uint64_t begin = my_slice(self, coll, &m.count);
    m.src[0] = place(self->in[coll->root], coll, begin);
    for (int r = 0; r < coll->size; r++)
        m.dst[r] = place(self->out[r], coll, begin);
    return copy(self, coll, &m);
}

static hora_status_t alltoall(const hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    hora_status_t st = HORA_OK;
    int           n = coll->size;
    for (int i = 0; i < n && st == HORA_OK; i++)
        for (int j = 0; j < n && st == HORA_OK && self->members[i].gpu == my_gpu(self, coll); j++) {
            move_t m = {.nsrc = 1, .ndst = 1, .count = hora_ipc_row(self, n, i, COUNTS)[j]};
            m.src[0] = place(self->in[i], coll, hora_ipc_row(self, n, i, DISPLS)[j]);
            m.dst[0] = place(self->out[j], coll, hora_ipc_row(self, n, j, OTHER_DISPLS)[i]);
            st = copy(self, coll, &m);
        }
    return st;
}

hora_status_t hora_ipc_move(const hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    switch (coll->kind) {
    case HORA_COLL_ALLREDUCE: return reduce_vector(self, coll, -1);
    case HORA_COLL_REDUCE: return reduce_vector(self, coll, coll->root);
    case HORA_COLL_REDUCE_SCATTER: return reduce_scatter(self, coll);
    case HORA_COLL_ALLGATHER: return allgather(self, coll);
    case HORA_COLL_BROADCAST: return broadcast(self, coll);
    case HORA_COLL_ALLTOALL: return alltoall(self, coll);
    default: return hora_fail(HORA_ERR_INTERNAL, "ipc: collective %d", (int)coll->kind);
    }
}
