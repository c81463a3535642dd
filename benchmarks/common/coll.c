/*
 * Every collective as one object. Data of a collective that moves blocks: rank s's block for rank d
 * holds elements d*count, d*count+1, ... of s's pattern, so that a block from the wrong rank, or of
 * the wrong rank, shows.
 */
#include "coll.h"

#include <stdlib.h>
#include <string.h>

static const char *const names[COLL_KIND_COUNT] = {
    [COLL_ALLREDUCE] = "allreduce",
    [COLL_REDUCE] = "reduce",
    [COLL_REDUCE_SCATTER] = "reduce_scatter",
    [COLL_ALLGATHER] = "allgather",
    [COLL_BROADCAST] = "broadcast",
    [COLL_ALLTOALL] = "alltoall",
    [COLL_GATHER] = "gather",
    [COLL_SCATTER] = "scatter",
    [COLL_SENDRECV] = "sendrecv",
    [COLL_REDUCE_SCATTERV] = "reduce_scatterv",
    [COLL_ALLGATHERV] = "allgatherv",
    [COLL_ALLTOALLV] = "alltoallv",
};

const char *coll_name(coll_kind_t kind) {
    return names[kind];
}

coll_kind_t coll_find(const char *name) {
    int kind = 0;
    while (kind < COLL_KIND_COUNT && strcmp(names[kind], name) != 0)
        kind++;
    return (coll_kind_t)kind;
}

bool coll_reduces(coll_kind_t kind) {
    return kind == COLL_ALLREDUCE || kind == COLL_REDUCE || kind == COLL_REDUCE_SCATTER ||
           kind == COLL_REDUCE_SCATTERV;
}

bool coll_takes(coll_kind_t kind, hora_dtype_t dtype, hora_op_t op) {
    return coll_reduces(kind) && hora_op_supported(dtype, op) &&
           (op != HORA_ADASUM || kind == COLL_ALLREDUCE);
}

bool coll_has_root(coll_kind_t kind) {
    return kind == COLL_REDUCE || kind == COLL_BROADCAST || kind == COLL_GATHER ||
           kind == COLL_SCATTER;
}

bool coll_can_be_in_place(coll_kind_t kind) {
    return kind != COLL_SENDRECV && kind != COLL_ALLTOALL && kind != COLL_ALLTOALLV &&
           kind != COLL_GATHER && kind != COLL_SCATTER;
}

/* ---- Shapes -------------------------------------------------------------------------------- */

/* Length of the block that goes from rank s to rank d in the v forms. */
static size_t v_count(const coll_t *c, int s, int d) {
    int k = c->kind == COLL_ALLTOALLV ? s + 2 * d : d;
    return k % 4 == 1 ? 0 : c->count + (size_t)(k % 4);
}

/* Fills counts[0..size) and displs with the blocks that this rank sends (or all ranks share), the
 * second halves with what it receives. A gap of one element lies before every block. */
static void make_blocks(coll_t *c) {
    size_t sent = 0, received = 0;
    for (int r = 0; r < c->size; r++) {
        c->counts[r] = v_count(c, c->rank, r);
        c->displs[r] = ++sent;
        sent += c->counts[r];
        c->counts[c->size + r] = v_count(c, r, c->rank);
        c->displs[c->size + r] = ++received;
        received += c->counts[c->size + r];
    }
}

static size_t blocks_end(const coll_t *c, int half) {
    int last = (half + 1) * c->size - 1;
    return c->displs[last] + c->counts[last];
}

static void make_counts(coll_t *c) {
    size_t all = c->count * (size_t)c->size, one = c->count;
    bool root = c->rank == c->root;
    switch (c->kind) {
    case COLL_REDUCE:
        c->in_count = one, c->out_count = root ? one : 0;
        break;
    case COLL_BROADCAST:
        c->in_count = root ? one : 0, c->out_count = one;
        break;
    case COLL_REDUCE_SCATTER:
        c->in_count = all, c->out_count = one;
        break;
    case COLL_ALLGATHER:
        c->in_count = one, c->out_count = all;
        break;
    case COLL_ALLTOALL:
        c->in_count = all, c->out_count = all;
        break;
    case COLL_GATHER:
        c->in_count = one, c->out_count = root ? all : 0;
        break;
    case COLL_SCATTER:
        c->in_count = root ? all : 0, c->out_count = one;
        break;
    case COLL_REDUCE_SCATTERV:
        c->in_count = blocks_end(c, 0), c->out_count = c->counts[c->rank];
        break;
    case COLL_ALLGATHERV:
        c->in_count = c->counts[c->rank], c->out_count = blocks_end(c, 0);
        break;
    case COLL_ALLTOALLV:
        c->in_count = blocks_end(c, 0), c->out_count = blocks_end(c, 1);
        break;
    default:
        c->in_count = one, c->out_count = one;
        break;
    }
}

bool coll_init(coll_t *c, coll_kind_t kind, hora_dtype_t dtype, hora_op_t op, size_t count) {
    memset(c, 0, sizeof(*c));
    c->kind = kind;
    c->dtype = dtype;
    c->op = coll_reduces(kind) ? op : PATTERN_MOVE;
    c->count = count;
    return hora_dtype_size(dtype) != 0;
}

bool coll_place(coll_t *c, int rank, int size, int root, bool in_place, unsigned salt) {
    if (size != c->size) {
        coll_destroy(c);
        c->counts = calloc((size_t)size * 2, sizeof(*c->counts));
        c->displs = calloc((size_t)size * 2, sizeof(*c->displs));
        if (c->counts == NULL || c->displs == NULL)
            return false;
    }
    c->rank = rank;
    c->size = size;
    c->root = root;
    c->in_place = in_place && coll_can_be_in_place(c->kind);
    c->salt = salt;
    make_blocks(c);
    make_counts(c);
    size_t need = c->in_count > c->out_count ? c->in_count : c->out_count;
    pattern_input(&c->input, c->dtype, c->op, rank, size, salt, need);
    return true;
}

void coll_destroy(coll_t *c) {
    free(c->counts);
    free(c->displs);
    c->counts = c->displs = NULL;
    c->size = 0;
}

size_t coll_bytes_in(const coll_t *c) {
    return c->in_count * hora_dtype_size(c->dtype);
}

size_t coll_bytes_out(const coll_t *c) {
    size_t longer = c->out_count;
    if (c->in_place && c->in_count > longer)
        longer = c->in_count;
    return longer * hora_dtype_size(c->dtype) + COLL_GUARD;
}

/* ---- Places -------------------------------------------------------------------------------- */

static size_t in_offset(const coll_t *c) {
    if (!c->in_place)
        return 0;
    if (c->kind == COLL_ALLGATHER)
        return (size_t)c->rank * c->count;
    return c->kind == COLL_ALLGATHERV ? c->displs[c->rank] : 0;
}

static size_t out_offset(const coll_t *c) {
    if (!c->in_place)
        return 0;
    if (c->kind == COLL_REDUCE_SCATTER)
        return (size_t)c->rank * c->count;
    return c->kind == COLL_REDUCE_SCATTERV ? c->displs[c->rank] : 0;
}

static unsigned char *in_at(const coll_t *c) {
    unsigned char *memory = c->in_place ? c->out_memory : c->in_memory;
    return memory + in_offset(c) * hora_dtype_size(c->dtype);
}

static unsigned char *out_at(const coll_t *c) {
    return c->out_memory + out_offset(c) * hora_dtype_size(c->dtype);
}

void coll_write(coll_t *c) {
    memset(c->out_memory, 0x5a, coll_bytes_out(c));
    pattern_fill(&c->input, in_at(c), 0, c->in_count);
}

/* ---- Calling ------------------------------------------------------------------------------- */

static hora_status_t call_sendrecv(coll_t *c, hora_comm_t *comm,
                                   const hora_call_options_t *options) {
    hora_request_t *request;
    hora_call_options_t start = HORA_CALL_OPTIONS_INIT;
    int next = (c->rank + 1) % c->size, before = (c->rank + c->size - 1) % c->size;
    if (options != NULL)
        start = *options;
    start.request_p = &request;
    hora_status_t st = hora_recv(comm, out_at(c), c->count, c->dtype, before, 7, &start);
    if (st != HORA_OK)
        return st;
    start.request_p = NULL;
    st = hora_send(comm, in_at(c), c->count, c->dtype, next, 7, &start);
    hora_status_t received = hora_request_wait(request);
    return st != HORA_OK ? st : received;
}

static hora_status_t call_v(coll_t *c, hora_comm_t *comm, const hora_call_options_t *options) {
    hora_blocks_t in = {in_at(c), c->counts, c->displs};
    hora_blocks_t out = {out_at(c), c->counts, c->displs};
    hora_blocks_t received = {out_at(c), c->counts + c->size, c->displs + c->size};
    if (c->kind == COLL_REDUCE_SCATTERV)
        return hora_reduce_scatterv(comm, &in, out_at(c), c->dtype, c->op, options);
    if (c->kind == COLL_ALLGATHERV)
        return hora_allgatherv(comm, in_at(c), &out, c->dtype, options);
    return hora_alltoallv(comm, &in, &received, c->dtype, options);
}

hora_status_t coll_call(coll_t *c, hora_comm_t *comm, const hora_call_options_t *o) {
    bool root = c->rank == c->root;
    void *in = in_at(c), *out = out_at(c);
    switch (c->kind) {
    case COLL_ALLREDUCE:
        return hora_allreduce(comm, in, out, c->count, c->dtype, c->op, o);
    case COLL_REDUCE:
        return hora_reduce(comm, in, root ? out : NULL, c->count, c->dtype, c->op, c->root, o);
    case COLL_REDUCE_SCATTER:
        return hora_reduce_scatter(comm, in, out, c->count, c->dtype, c->op, o);
    case COLL_ALLGATHER:
        return hora_allgather(comm, in, out, c->count, c->dtype, o);
    case COLL_BROADCAST:
        return hora_broadcast(comm, root ? in : NULL, out, c->count, c->dtype, c->root, o);
    case COLL_ALLTOALL:
        return hora_alltoall(comm, in, out, c->count, c->dtype, o);
    case COLL_GATHER:
        return hora_gather(comm, in, root ? out : NULL, c->count, c->dtype, c->root, o);
    case COLL_SCATTER:
        return hora_scatter(comm, root ? in : NULL, out, c->count, c->dtype, c->root, o);
    case COLL_SENDRECV:
        return call_sendrecv(c, comm, o);
    default:
        return call_v(c, comm, o);
    }
}

/* ---- Checking ------------------------------------------------------------------------------ */

/* Wrong elements of `n` at element `at` of the output that should be elements first, ... of what
 * rank s put in. */
static size_t wrong_from(const coll_t *c, int s, size_t at, size_t first, size_t n) {
    pattern_t p;
    if (n == 0)
        return 0;
    pattern_input(&p, c->dtype, c->op, s, c->size, c->salt, first + n);
    return pattern_wrong(&p, out_at(c) + at * p.elem_size, first, n);
}

static size_t wrong_reduced(const coll_t *c, size_t first, size_t n) {
    pattern_t p;
    if (n == 0)
        return 0;
    pattern_result(&p, c->dtype, c->op, c->size, c->salt, first + n);
    return pattern_wrong(&p, out_at(c), first, n);
}

static size_t wrong_blocks(const coll_t *c) {
    size_t wrong = 0, me = (size_t)c->rank, n = c->count;
    for (int s = 0; s < c->size; s++) {
        size_t from = (size_t)s, *counts = c->counts, *displs = c->displs;
        if (c->kind == COLL_ALLTOALL)
            wrong += wrong_from(c, s, from * n, me * n, n);
        else if (c->kind == COLL_ALLGATHERV)
            wrong += wrong_from(c, s, displs[s], 0, counts[s]);
        else
            wrong += wrong_from(c, s, from * n, 0, n);
    }
    return wrong;
}

/* Where rank s begins the block for this rank in its own input: see make_blocks. */
static size_t v_first(const coll_t *c, int s) {
    size_t first = 1;
    for (int r = 0; r < c->rank; r++)
        first += v_count(c, s, r) + 1;
    return first;
}

static size_t wrong_alltoallv(const coll_t *c) {
    size_t wrong = 0;
    for (int s = 0; s < c->size; s++)
        wrong += wrong_from(c, s, c->displs[c->size + s], v_first(c, s), c->counts[c->size + s]);
    return wrong;
}

static size_t wrong_output(const coll_t *c) {
    bool root = c->rank == c->root;
    switch (c->kind) {
    case COLL_ALLREDUCE:
        return wrong_reduced(c, 0, c->count);
    case COLL_REDUCE:
        return root ? wrong_reduced(c, 0, c->count) : 0;
    case COLL_REDUCE_SCATTER:
        return wrong_reduced(c, (size_t)c->rank * c->count, c->count);
    case COLL_REDUCE_SCATTERV:
        return wrong_reduced(c, c->displs[c->rank], c->counts[c->rank]);
    case COLL_BROADCAST:
        return wrong_from(c, c->root, 0, 0, c->count);
    case COLL_SCATTER:
        return wrong_from(c, c->root, 0, (size_t)c->rank * c->count, c->count);
    case COLL_SENDRECV:
        return wrong_from(c, (c->rank + c->size - 1) % c->size, 0, 0, c->count);
    case COLL_GATHER:
        return root ? wrong_blocks(c) : 0;
    case COLL_ALLTOALLV:
        return wrong_alltoallv(c);
    default:
        return wrong_blocks(c);
    }
}

size_t coll_wrong(coll_t *c) {
    size_t wrong = wrong_output(c);
    if (!c->in_place)
        wrong += pattern_wrong(&c->input, in_at(c), 0, c->in_count);
    const unsigned char *guard = c->out_memory + coll_bytes_out(c) - COLL_GUARD;
    for (int i = 0; i < COLL_GUARD; i++)
        if (guard[i] != 0x5a)
            return wrong + 1;
    return wrong;
}
