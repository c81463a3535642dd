/*
 * Direct algorithms: every rank talks to every other one; one hop, sums in rank order 0 .. p-1.
 * Planner: pure, any thread.
 *
 * Four ranks, block b of rank r is rb; allreduce:
 *
 *     exchange     rank 1 receives 01 from 0, 21 from 2, 31 from 3 (and sends 10, 12, 13)
 *     sum          rank 1 computes 01 + 11 + 21 + 31, in this order, in one pass
 *     exchange     rank 1 sends the sum to 0, 2, 3 and receives theirs
 *
 * Blocks travel in chunks; chunk c + 1 is in flight while chunk c is summed. Because the order of a
 * sum is the ranks' order, the bits depend on nothing else: not on count, chunk or transport.
 *
 * Cost: 2a' + 2(p-1)/p nb' + (p-1)/p ng, where a' = a + (p-2) a/4 (messages overlap, but each must
 * be issued) and b' = 1.15 b for p > 2 (many senders to one receiver get in each other's way).
 *
 * Source: the pairwise exchange reduce-scatter of Thakur, Rabenseifner, Gropp, IJHPCA 19(1), 2005,
 * without its rounds; alltoall is their pairwise exchange; gather and scatter are linear.
 */
#include "schedule/algos.h"

#include <stdlib.h>

#define WINDOW 8 /* alltoall: pairs of transfers in flight */

typedef struct direct {
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    size_t             chunk;
    hora_ref_t        *src;      /* [size], sources of a sum */
    uint32_t          *recvs[2]; /* [size], of an even and an odd chunk */
    uint32_t          *sends[2]; /* [size] */
} direct_t;

static int peer_at(const hora_coll_t *coll, int distance) {
    return (coll->rank + distance + coll->size) % coll->size;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Where chunk number `parity` from rank r is received. */
static size_t slot_of(const direct_t *d, int r, size_t parity) {
    size_t others = (size_t)d->coll->size - 1;
    size_t index = (size_t)(r < d->coll->rank ? r : r - 1);
    return (parity * others + index) * d->chunk;
}

/* Receives chunk c of the block that I sum up (`count` long) from all others. */
static void post_receives(direct_t *d, size_t c, size_t count) {
    for (int i = 1; i < d->coll->size; i++) {
        int r = peer_at(d->coll, -i);
        d->recvs[c % 2][r] = hora_plan_recv(d->plan, r, HORA_BUF_TMP, slot_of(d, r, c % 2),
                                            hora_chunk_count(d->chunk, count, c));
    }
}

/* Sends chunk c of each other rank's block to that rank. */
static void post_sends(direct_t *d, size_t c) {
    for (int i = 1; i < d->coll->size; i++) {
        int r = peer_at(d->coll, i);
        d->sends[c % 2][r] =
            hora_plan_send(d->plan, r, HORA_BUF_IN, hora_block_begin(d->coll, r) + c * d->chunk,
                           hora_chunk_count(d->chunk, hora_block_count(d->coll, r), c));
    }
}

static void wait_all(direct_t *d, const uint32_t *xfers) {
    for (int i = 1; i < d->coll->size; i++) {
        int r = peer_at(d->coll, -i);
        hora_plan_wait(d->plan, xfers[r]);
    }
}

/* Sums chunk c, mine at IN + in, into OUT + out. */
static void sum_chunk(direct_t *d, size_t c, size_t in, size_t out, size_t count) {
    hora_ref_t   dst = hora_own(HORA_BUF_OUT, out);
    hora_step_t *step;
    for (int r = 0; r < d->coll->size; r++)
        d->src[r] = r == d->coll->rank ? hora_own(HORA_BUF_IN, in)
                                       : hora_own(HORA_BUF_TMP, slot_of(d, r, c % 2));
    step = hora_plan_reduce(d->plan, d->src, d->coll->size, &dst, 1, count);
    if (step != NULL)
        step->begin = step->finish = true;
}

/* Allreduce, after the receives of chunk c: the second exchange. In place, what comes in
 * overwrites what was sent in the first one. */
static void post_gather(direct_t *d, size_t c) {
    wait_all(d, d->sends[c % 2]);
    for (int i = 1; i < d->coll->size; i++) {
        int r = peer_at(d->coll, -i);
        hora_plan_recv(d->plan, r, HORA_BUF_OUT, hora_block_begin(d->coll, r) + c * d->chunk,
                       hora_chunk_count(d->chunk, hora_block_count(d->coll, r), c));
    }
}

/* allreduce and reduce_scatter */
static void plan_scattered(direct_t *d) {
    const hora_coll_t *coll = d->coll;
    size_t longest = hora_block_longest(coll), count = hora_block_count(coll, coll->rank);
    size_t begin = hora_block_begin(coll, coll->rank);
    size_t rounds = (longest + d->chunk - 1) / d->chunk;
    bool   all = coll->kind == HORA_COLL_ALLREDUCE;
    for (size_t c = 0; c < rounds; c++) {
        size_t at = c * d->chunk, n = hora_chunk_count(d->chunk, count, c);
        for (size_t next = c == 0 ? 0 : c + 1; next <= c + 1; next++) {
            post_receives(d, next, count);
            post_sends(d, next);
        }
        wait_all(d, d->recvs[c % 2]);
        if (all)
            post_gather(d, c);
        sum_chunk(d, c, begin + at, all ? begin + at : at, n);
        for (int i = 1; all && i < coll->size; i++)
            hora_plan_send(d->plan, peer_at(coll, i), HORA_BUF_OUT, begin + at, n);
    }
}

static void plan_reduce(direct_t *d) {
    const hora_coll_t *coll = d->coll;
    size_t             rounds = (coll->count + d->chunk - 1) / d->chunk;
    for (size_t c = 0; c < rounds; c++) {
        size_t at = c * d->chunk, n = hora_chunk_count(d->chunk, coll->count, c);
        if (coll->rank != coll->root) {
            hora_plan_send(d->plan, coll->root, HORA_BUF_IN, at, n);
            continue;
        }
        for (size_t next = c == 0 ? 0 : c + 1; next <= c + 1; next++)
            post_receives(d, next, coll->count);
        wait_all(d, d->recvs[c % 2]);
        sum_chunk(d, c, at, at, n);
    }
}

static void plan_sums(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    size_t    size = (size_t)coll->size;
    bool      reduce = coll->kind == HORA_COLL_REDUCE;
    direct_t  d = {.coll = coll, .plan = plan};
    uint32_t *xfers = malloc(4 * size * sizeof(*xfers));
    d.src = malloc(size * sizeof(*d.src));
    if (xfers == NULL || d.src == NULL) {
        plan->status = HORA_ERR_NO_MEMORY;
        goto err_free;
    }
    for (size_t i = 0; i < 2; i++) {
        d.recvs[i] = xfers + i * size;
        d.sends[i] = xfers + (2 + i) * size;
    }
    d.chunk = hora_chunk_fit(hint->chunk, reduce ? coll->count : hora_block_longest(coll));
    if (!reduce || coll->rank == coll->root)
        plan->tmp = 2 * (size - 1) * d.chunk;
    if (reduce)
        plan_reduce(&d);
    else
        plan_scattered(&d);
err_free:
    free(d.src);
    free(xfers);
}

/* ---- without sums ---- */

static void plan_allgather(const hora_coll_t *coll, hora_plan_t *plan) {
    size_t count = coll->counts[coll->rank];
    for (int i = 1; i < coll->size; i++) {
        int r = peer_at(coll, -i);
        hora_plan_recv(plan, r, HORA_BUF_OUT, coll->displs[r], coll->counts[r]);
    }
    for (int i = 1; i < coll->size; i++)
        hora_plan_send(plan, peer_at(coll, i), HORA_BUF_IN, 0, count);
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_OUT, coll->displs[coll->rank]),
                   count);
}

static void plan_alltoall(const hora_coll_t *coll, hora_plan_t *plan) {
    uint32_t recvs[WINDOW], sends[WINDOW];
    int      me = coll->rank;
    for (int i = 1; i < coll->size; i++) {
        int from = peer_at(coll, -i), to = peer_at(coll, i), slot = i % WINDOW;
        if (i > WINDOW) {
            hora_plan_wait(plan, recvs[slot]);
            hora_plan_wait(plan, sends[slot]);
        }
        recvs[slot] = hora_plan_recv(plan, from, HORA_BUF_OUT, coll->other_displs[from],
                                     coll->other_counts[from]);
        sends[slot] = hora_plan_send(plan, to, HORA_BUF_IN, coll->displs[to], coll->counts[to]);
    }
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, coll->displs[me]),
                   hora_own(HORA_BUF_OUT, coll->other_displs[me]),
                   least(coll->counts[me], coll->other_counts[me]));
}

static void plan_gather(const hora_coll_t *coll, hora_plan_t *plan) {
    if (coll->rank != coll->root) {
        hora_plan_send(plan, coll->root, HORA_BUF_IN, 0, coll->count);
        return;
    }
    for (int i = 1; i < coll->size; i++) {
        int r = peer_at(coll, i);
        hora_plan_recv(plan, r, HORA_BUF_OUT, (size_t)r * coll->count, coll->count);
    }
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0),
                   hora_own(HORA_BUF_OUT, (size_t)coll->rank * coll->count), coll->count);
}

static void plan_scatter(const hora_coll_t *coll, hora_plan_t *plan) {
    if (coll->rank != coll->root) {
        hora_plan_recv(plan, coll->root, HORA_BUF_OUT, 0, coll->count);
        return;
    }
    for (int i = 1; i < coll->size; i++) {
        int r = peer_at(coll, i);
        hora_plan_send(plan, r, HORA_BUF_IN, (size_t)r * coll->count, coll->count);
    }
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, (size_t)coll->rank * coll->count),
                   hora_own(HORA_BUF_OUT, 0), coll->count);
}

static void plan_direct(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    switch (coll->kind) {
    case HORA_COLL_ALLGATHER:
        plan_allgather(coll, plan);
        break;
    case HORA_COLL_ALLTOALL:
        plan_alltoall(coll, plan);
        break;
    case HORA_COLL_GATHER:
        plan_gather(coll, plan);
        break;
    case HORA_COLL_SCATTER:
        plan_scatter(coll, plan);
        break;
    default:
        plan_sums(coll, hint, plan);
    }
}

static double cost_direct(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double p = coll->size, n = (double)hora_coll_total(coll) * (double)elem_size;
    double issue = a + (p - 2) * a / 4, share = n * (p - 1) / p;
    double crowded = p > 2 ? 1.15 * b : b;
    switch (coll->kind) {
    case HORA_COLL_ALLREDUCE:
        return 2 * issue + 2 * share * crowded + share * g;
    case HORA_COLL_REDUCE_SCATTER:
        return issue + share * crowded + share * g;
    case HORA_COLL_REDUCE:
        return issue + (p - 1) * n * (crowded + g);
    case HORA_COLL_GATHER:
    case HORA_COLL_SCATTER:
        return issue + (p - 1) * n * crowded;
    default:
        return issue + share * crowded;
    }
}

const hora_algo_t hora_algo_direct = {
    .size = sizeof(hora_algo_t),
    .name = "direct",
    .colls = 1u << HORA_COLL_ALLREDUCE | 1u << HORA_COLL_REDUCE | 1u << HORA_COLL_REDUCE_SCATTER |
             1u << HORA_COLL_ALLGATHER | 1u << HORA_COLL_ALLTOALL | 1u << HORA_COLL_GATHER |
             1u << HORA_COLL_SCATTER,
    .rank_order = true,
    .applies = hora_algo_always,
    .cost = cost_direct,
    .plan = plan_direct,
};
