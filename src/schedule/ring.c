/*
 * Ring algorithms: every rank sends to its right neighbour and receives from its left one only.
 * Planner: pure, any thread.
 *
 * Four ranks, block b of rank r is rb; allreduce is the two halves one after the other:
 *
 *   reduce-scatter        step 0         step 1          step 2       (rank r ends with block r)
 *     0 -> 1 sends          03             3+02            2+3+01
 *     1 -> 2                10             0+13            3+0+12
 *     2 -> 3                21             1+20            0+1+23
 *     3 -> 0                32             2+31            1+2+30
 *   allgather: rank r sends block r, then block r-1, then r-2; each is passed on unchanged.
 *
 * Blocks travel in chunks, and LEAD receives are always posted ahead, so that the sum of one chunk
 * overlaps with the transfer of the next.
 *
 * Cost: 2(p-1)a + 2(p-1)/p nb + (p-1)/p ng. Each block is summed along one chain, once, so every
 * rank receives the same bits, but in an order that depends on the block.
 * Broadcast is the same neighbour stream, from root round to the rank before it:
 * (p-1)a + nb + (p-2) chunk b. Of two ranks nobody passes anything on, so that it is one chunk.
 *
 * Source: P. Patarasuk, X. Yuan, Bandwidth optimal all-reduce algorithms for clusters of
 * workstations, JPDC 69(2), 2009; the ring of MPICH and of Baidu's and Horovod's allreduce.
 */
#include "schedule/algos.h"

#include <stdlib.h>

#define LEAD 2 /* receives posted ahead */
/* Chunks in one where nobody passes them on, so that more of them would only cost messages. Not
 * the whole: what comes before its receive is posted takes memory of its own. */
#define ALONE 16

typedef struct ring {
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    size_t             chunk;
    int                left, right;
    uint32_t          *sent; /* reduce-scatter sends in order; the allgather reuses their places */
    size_t             slots; /* reduce-scatter: chunks in TMP */
    uint32_t          *slot_recvs, *slot_sends; /* [slots] the transfers that use them */
} ring_t;

/* Walks the chunks of blocks first, first-1, first-2, ..., `steps` of them. */
typedef struct cursor {
    int    first, steps, step;
    size_t at;         /* in the block of `step` */
    size_t off, count; /* the chunk, after cursor_next */
    int    its_step;
} cursor_t;

static cursor_t cursor_at(const ring_t *ring, int first, int steps) {
    int size = ring->coll->size;
    return (cursor_t){.first = (first + 2 * size) % size, .steps = steps};
}

static bool cursor_next(const ring_t *ring, cursor_t *c) {
    const hora_coll_t *coll = ring->coll;
    while (c->step < c->steps) {
        int    block = (c->first - c->step + coll->size) % coll->size;
        size_t left = hora_block_count(coll, block) - c->at;
        if (left > 0) {
            c->off = hora_block_begin(coll, block) + c->at;
            c->count = left < ring->chunk ? left : ring->chunk;
            c->its_step = c->step;
            c->at += c->count;
            return true;
        }
        c->step++;
        c->at = 0;
    }
    return false;
}

static size_t cursor_length(const ring_t *ring, cursor_t c) {
    size_t n = 0;
    while (cursor_next(ring, &c))
        n++;
    return n;
}

/* ---- allgather half ---- */

typedef struct gather {
    cursor_t post; /* the next receive to be posted */
    size_t   posted;
    uint32_t xfers[LEAD + 1];
} gather_t;

static gather_t gather_at_start(const ring_t *ring) {
    return (gather_t){.post = cursor_at(ring, ring->coll->rank - 1, ring->coll->size - 1)};
}

/* In place, the chunk that comes in may still be on its way out as a partial sum. */
static void gather_post(ring_t *ring, gather_t *g) {
    if (!cursor_next(ring, &g->post))
        return;
    if (ring->sent != NULL)
        hora_plan_wait(ring->plan, ring->sent[g->posted]);
    g->xfers[g->posted % (LEAD + 1)] =
        hora_plan_recv(ring->plan, ring->left, HORA_BUF_OUT, g->post.off, g->post.count);
    g->posted++;
}

/* Receives every block but my own into OUT, passing on what the right neighbour lacks. */
static void gather_run(ring_t *ring, gather_t *g) {
    int      size = ring->coll->size;
    cursor_t c = cursor_at(ring, ring->coll->rank - 1, size - 1);
    for (size_t i = 0; cursor_next(ring, &c); i++) {
        while (g->posted <= i + LEAD && g->post.step < g->post.steps)
            gather_post(ring, g);
        hora_plan_wait(ring->plan, g->xfers[i % (LEAD + 1)]);
        if (c.its_step < size - 2)
            hora_plan_send(ring->plan, ring->right, HORA_BUF_OUT, c.off, c.count);
    }
}

/* ---- reduce-scatter half ---- */

/* Where the sum of a chunk goes: OUT has the whole vector (allreduce), or only my block. */
static hora_ref_t sum_place(const ring_t *ring, const cursor_t *c, size_t slot) {
    const hora_coll_t *coll = ring->coll;
    if (coll->kind == HORA_COLL_ALLREDUCE)
        return hora_own(HORA_BUF_OUT, c->off);
    if (c->its_step == coll->size - 2)
        return hora_own(HORA_BUF_OUT, c->off - hora_block_begin(coll, coll->rank));
    return hora_own(HORA_BUF_TMP, slot * ring->chunk);
}

/* Leaves my block's sum in OUT. With g, my block is sent on at once and the first receives of the
 * allgather are posted. */
static void scatter_run(ring_t *ring, gather_t *g) {
    hora_plan_t       *plan = ring->plan;
    const hora_coll_t *coll = ring->coll;
    cursor_t           own = cursor_at(ring, coll->rank - 1, 1);
    cursor_t           c = cursor_at(ring, coll->rank - 2, coll->size - 1), post = c;
    size_t             items = cursor_length(ring, c), posted = 0, nsent = 0;
    while (cursor_next(ring, &own))
        ring->sent[nsent++] =
            hora_plan_send(plan, ring->right, HORA_BUF_IN, own.off, own.count);
    for (size_t i = 0; cursor_next(ring, &c); i++) {
        size_t     slot = i % ring->slots;
        bool       last = c.its_step == coll->size - 2;
        hora_ref_t sum;
        for (; posted <= i + LEAD && cursor_next(ring, &post); posted++) {
            size_t next = posted % ring->slots;
            hora_plan_wait(plan, ring->slot_sends[next]);
            ring->slot_recvs[next] = hora_plan_recv(plan, ring->left, HORA_BUF_TMP,
                                                    next * ring->chunk, post.count);
        }
        if (g != NULL && i + LEAD >= items && g->posted < nsent)
            gather_post(ring, g);
        hora_plan_wait(plan, ring->slot_recvs[slot]);
        sum = sum_place(ring, &c, slot);
        hora_plan_combine(plan, hora_own(HORA_BUF_TMP, slot * ring->chunk),
                          hora_own(HORA_BUF_IN, c.off), sum, c.count, last);
        if (!last)
            ring->sent[nsent++] = hora_plan_send(plan, ring->right, (hora_buf_t)sum.buf, sum.off,
                                                 c.count);
        else if (g != NULL)
            hora_plan_send(plan, ring->right, HORA_BUF_OUT, c.off, c.count);
        ring->slot_sends[slot] =
            !last && sum.buf == HORA_BUF_TMP ? ring->sent[nsent - 1] : HORA_NO_XFER;
    }
    plan->tmp = ring->slots * ring->chunk;
}

/* Sums that stay in TMP until they are sent fill a whole block's chunks: the right neighbour takes
 * them only after the block before. With fewer slots the ring would wait for itself. */
static size_t slots_needed(const ring_t *ring) {
    size_t longest = hora_block_longest(ring->coll);
    if (ring->coll->kind == HORA_COLL_ALLREDUCE)
        return LEAD + 1;
    return (longest + ring->chunk - 1) / ring->chunk + LEAD + 1;
}

static void plan_reduction(ring_t *ring) {
    const hora_coll_t *coll = ring->coll;
    gather_t           g = gather_at_start(ring);
    size_t             nsends = cursor_length(ring, g.post);
    ring->slots = slots_needed(ring);
    ring->sent = malloc((nsends + 2 * ring->slots) * sizeof(*ring->sent));
    if (ring->sent == NULL) {
        ring->plan->status = HORA_ERR_NO_MEMORY;
        return;
    }
    ring->slot_recvs = ring->sent + nsends;
    ring->slot_sends = ring->slot_recvs + ring->slots;
    for (size_t i = 0; i < ring->slots; i++)
        ring->slot_sends[i] = HORA_NO_XFER;
    if (coll->kind == HORA_COLL_ALLREDUCE) {
        scatter_run(ring, &g);
        gather_run(ring, &g);
    } else {
        scatter_run(ring, NULL);
    }
    free(ring->sent);
}

static void plan_allgather(ring_t *ring) {
    const hora_coll_t *coll = ring->coll;
    gather_t           g = gather_at_start(ring);
    cursor_t           own = cursor_at(ring, coll->rank, 1);
    size_t             begin = hora_block_begin(coll, coll->rank);
    for (int i = 0; i < LEAD; i++)
        gather_post(ring, &g);
    while (cursor_next(ring, &own))
        hora_plan_send(ring->plan, ring->right, HORA_BUF_IN, own.off - begin, own.count);
    hora_plan_copy(ring->plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_OUT, begin),
                   hora_block_count(coll, coll->rank));
    gather_run(ring, &g);
}

/* ---- broadcast ---- */

static void plan_broadcast(ring_t *ring) {
    const hora_coll_t *coll = ring->coll;
    hora_plan_t       *plan = ring->plan;
    size_t             count = coll->count, posted = 0;
    bool               is_root = coll->rank == coll->root;
    uint32_t           recvs[LEAD + 1];
    for (size_t at = 0, i = 0; at < count; at += ring->chunk, i++) {
        size_t n = count - at < ring->chunk ? count - at : ring->chunk;
        for (; !is_root && posted <= i + LEAD && posted * ring->chunk < count; posted++) {
            size_t off = posted * ring->chunk, left = count - off;
            recvs[posted % (LEAD + 1)] = hora_plan_recv(plan, ring->left, HORA_BUF_OUT, off,
                                                        left < ring->chunk ? left : ring->chunk);
        }
        if (!is_root)
            hora_plan_wait(plan, recvs[i % (LEAD + 1)]);
        if (ring->right != coll->root)
            hora_plan_send(plan, ring->right, is_root ? HORA_BUF_IN : HORA_BUF_OUT, at, n);
    }
    if (is_root)
        hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_OUT, 0), count);
}

static void plan_ring(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    size_t longest = coll->kind == HORA_COLL_BROADCAST ? coll->count : hora_block_longest(coll);
    bool   passes_on = coll->kind != HORA_COLL_BROADCAST || coll->size > 2;
    size_t chunk = passes_on ? hint->chunk : ALONE * hint->chunk;
    ring_t ring = {.coll = coll, .plan = plan, .chunk = hora_chunk_fit(chunk, longest)};
    ring.left = (coll->rank + coll->size - 1) % coll->size;
    ring.right = (coll->rank + 1) % coll->size;
    if (coll->kind == HORA_COLL_BROADCAST)
        plan_broadcast(&ring);
    else if (coll->kind == HORA_COLL_ALLGATHER)
        plan_allgather(&ring);
    else
        plan_reduction(&ring);
}

static double cost_ring(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double p = coll->size, n = (double)hora_coll_total(coll) * (double)elem_size;
    double share = n * (p - 1) / p, chunk = n < 262144.0 ? n : 262144.0;
    if (coll->kind == HORA_COLL_BROADCAST)
        return (p - 1) * a + n * b + (p - 2) * chunk * b;
    if (coll->kind == HORA_COLL_ALLREDUCE)
        return 2 * (p - 1) * a + 2 * share * b + share * g;
    return (p - 1) * a + share * b + (coll->kind == HORA_COLL_REDUCE_SCATTER ? share * g : 0);
}

const hora_algo_t hora_algo_ring = {
    .size = sizeof(hora_algo_t),
    .name = "ring",
    .colls = 1u << HORA_COLL_ALLREDUCE | 1u << HORA_COLL_REDUCE_SCATTER |
             1u << HORA_COLL_ALLGATHER | 1u << HORA_COLL_BROADCAST,
    .applies = hora_algo_always,
    .cost = cost_ring,
    .plan = plan_ring,
};
