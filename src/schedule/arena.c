/*
 * Allreduce in the arena: the push. Each rank owns a part of the vector; it reads that part from
 * every rank's buffer, reduces in rank order, and stores the result into every rank's buffer.
 *
 *     buffers     part 0        part 1        part 2        part 3
 *     of rank 0   rank 0 reads  rank 1 reads  rank 2 reads  rank 3 reads
 *     of rank 1   all four and  all four and  all four and  all four and
 *     of rank 2   stores into   stores into   stores into   stores into
 *     of rank 3   all four      all four      all four      all four
 *
 * When every rank's buffers lie in the arena that is all: 2 N bytes moved per rank, the lower bound,
 * and every line is read and then written by one core. Cost: 2 a + 2 N b + (n - 1)/n N g.
 *
 * A long vector is divided so piece by piece, and the last piece goes first. Who made the vector
 * wrote its end last, and who uses the result begins at its beginning: both are then in the cache.
 *
 * Private buffers pass through slots, chunk by chunk: copy in what others own, push, copy out what
 * others own; one's own part is read and written where it lies. Moves (6 - 4/n) N bytes per rank. A
 * rank does all three in one round and tells the others once; a round begins when all have finished
 * the one before. Chunk k goes line by line to where chunk k - 2 comes out, and meanwhile k - 1 is
 * reduced: some of it waits for lines of other cores, some for those of a larger cache, so that
 * together they take less time.
 *
 *     round          0        1        2        3        4
 *     copies out                       chunk 0  chunk 1  chunk 2
 *     copies in      chunk 0  chunk 1  chunk 2
 *     reduces                 chunk 0  chunk 1  chunk 2
 *
 * Source: hora; the shape of a two-phase shared
 * reduction is common (DeepSpeed, MPI shared-memory modules), which pull the results instead.
 */
#include "schedule/algos.h"

#include <stdlib.h>

#define REGIONS 2 /* of a slot, in turn */
/* Of a long vector, so many chunks, because who copies the first one in or the last one out has
 * nothing else to do meanwhile; as far as they are neither too short nor too long (chunk_of). */
#define CHUNKS     8
#define LINE_BYTES 64
/* A rank's part of a piece of a shared vector, in chunks: many pages, because the prefetchers run
 * past its end into lines that another core works on. */
#define PART_CHUNKS 2

/* What all steps of one plan have in common. */
typedef struct push {
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    hora_ref_t        *src, *dst; /* [size] scratch */
    size_t             line;      /* elements per cache line */
    size_t             chunk, chunks;
} push_t;

/* Parts are whole cache lines, so that no line is written by two cores. */
static size_t part_begin(const push_t *push, size_t count, int rank) {
    size_t lines = (count + push->line - 1) / push->line;
    size_t begin = hora_part_begin(lines, push->coll->size, rank) * push->line;
    return begin < count ? begin : count;
}

static void emit_reduce(push_t *push, size_t count) {
    hora_step_t *step = hora_plan_reduce(push->plan, push->src, push->coll->size, push->dst,
                                         push->coll->size, count);
    if (step != NULL)
        step->begin = step->finish = true;
}

/* Where chunk k, as they follow in time, lies in the vector: from the last one to the first. */
static size_t chunk_at(const push_t *push, size_t k) {
    return (push->chunks - 1 - k) * push->chunk;
}

static size_t chunk_count(const push_t *push, size_t k) {
    size_t left = push->coll->count - chunk_at(push, k);
    return left < push->chunk ? left : push->chunk;
}

static void cut(push_t *push, size_t chunk) {
    push->chunk = chunk;
    push->chunks = (push->coll->count + chunk - 1) / chunk;
}

/* Every buffer is in the arena. */
static void plan_shared(push_t *push) {
    const hora_coll_t *coll = push->coll;
    cut(push, push->chunk * PART_CHUNKS * (size_t)coll->size);
    for (size_t k = 0; k < push->chunks; k++) {
        size_t at = chunk_at(push, k), count = chunk_count(push, k);
        size_t begin = part_begin(push, count, coll->rank);
        size_t end = part_begin(push, count, coll->rank + 1);
        for (int r = 0; r < coll->size; r++) {
            push->src[r] = hora_of(r, HORA_BUF_IN, at + begin);
            push->dst[r] = hora_of(r, HORA_BUF_OUT, at + begin);
        }
        emit_reduce(push, end - begin);
    }
    hora_plan_signal(push->plan, 1);
    hora_plan_await(push->plan, 1);
}

/* Copies the parts of chunk k that other ranks own, in or out. */
static void emit_copies(push_t *push, size_t k, bool in) {
    size_t count = chunk_count(push, k), at = chunk_at(push, k);
    size_t slot = k % REGIONS * push->chunk;
    size_t begin = part_begin(push, count, push->coll->rank);
    size_t end = part_begin(push, count, push->coll->rank + 1);
    size_t from[2] = {0, end}, to[2] = {begin, count};
    for (int i = 0; i < 2; i++) {
        hora_ref_t user = hora_own(in ? HORA_BUF_IN : HORA_BUF_OUT, at + from[i]);
        hora_ref_t mine = hora_own(HORA_BUF_SLOT, slot + from[i]);
        if (to[i] > from[i])
            hora_plan_copy(push->plan, in ? user : mine, in ? mine : user, to[i] - from[i]);
    }
}

static void emit_push(push_t *push, size_t k) {
    const hora_coll_t *coll = push->coll;
    size_t count = chunk_count(push, k), slot = k % REGIONS * push->chunk;
    size_t begin = part_begin(push, count, coll->rank);
    size_t end = part_begin(push, count, coll->rank + 1);
    for (int r = 0; r < coll->size; r++)
        push->src[r] = push->dst[r] = hora_of(r, HORA_BUF_SLOT, slot + begin);
    push->src[coll->rank] = hora_own(HORA_BUF_IN, chunk_at(push, k) + begin);
    push->dst[coll->rank] = hora_own(HORA_BUF_OUT, chunk_at(push, k) + begin);
    emit_reduce(push, end - begin);
}

/* Two ranks begin the sooner the shorter the chunks are. More of them take turns on the cores, or
 * wait for more ranks, with each chunk: theirs are as long as a slot has room for. */
static size_t chunk_of(const push_t *push, size_t slot) {
    bool   two = push->coll->size == 2;
    size_t least = (two ? push->chunk / 2 : push->chunk) / push->line * push->line;
    size_t most = two ? push->chunk : slot / REGIONS / push->line * push->line;
    size_t share = push->coll->count / CHUNKS / push->line * push->line;
    if (push->coll->count <= (two ? push->chunk : slot))
        return push->coll->count;
    if (least == 0 || most < least)
        return push->chunk;
    return share < least ? least : share > most ? most : share;
}

/* Chunk k - 2 out, chunk k in, chunk k - 1 reduced; those that there are. */
static void emit_round(push_t *push, size_t k) {
    hora_plan_t *plan = push->plan;
    size_t       first = plan->nsteps, chunks = push->chunks, parts;
    if (k >= 2)
        emit_copies(push, k - 2, false);
    parts = plan->nsteps - first;
    if (k < chunks)
        emit_copies(push, k, true);
    if (k >= 1 && k <= chunks)
        emit_push(push, k - 1);
    if (plan->status == HORA_OK && k >= 2 && k < chunks && plan->nsteps - first == 2 * parts + 1 &&
        chunk_count(push, k - 2) == push->chunk) /* all are whole then, and lie alike in a region */
        plan->steps[first].turn = (uint8_t)parts;
}

static void plan_private(push_t *push, size_t slot) {
    cut(push, chunk_of(push, slot));
    push->plan->slot = (push->chunks < REGIONS ? push->chunks : REGIONS) * push->chunk;
    push->plan->stays = true;
    hora_plan_await(push->plan, 0);
    for (size_t k = 0; k < push->chunks + 2; k++) {
        if (k > 0)
            hora_plan_await(push->plan, (uint32_t)k);
        emit_round(push, k);
        if (k <= push->chunks)
            hora_plan_signal(push->plan, (uint32_t)k + 1);
    }
}

static bool arena_applies(const hora_coll_t *coll) {
    return coll->size > 1;
}

static double arena_cost(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double bytes = (double)coll->count * (double)elem_size, n = coll->size;
    return 2 * a + (6 - 4 / n) * bytes * b + (n - 1) / n * bytes * g;
}

static void arena_plan(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    push_t push = {.coll = coll, .plan = plan, .line = LINE_BYTES / hint->elem_size};
    push.chunk = hint->chunk / push.line * push.line;
    if (push.chunk == 0)
        push.chunk = push.line;
    push.src = malloc(2 * (size_t)coll->size * sizeof(*push.src));
    push.dst = push.src + coll->size;
    if (push.src == NULL)
        plan->status = HORA_ERR_NO_MEMORY;
    else if (hint->shared_in_out)
        plan_shared(&push);
    else if (coll->count > 0)
        plan_private(&push, hint->slot);
    free(push.src);
}

const hora_algo_t hora_algo_arena = {
    .size = sizeof(hora_algo_t),
    .name = "arena",
    .colls = 1u << HORA_COLL_ALLREDUCE,
    .rank_order = true,
    .needs_arena = true,
    .applies = arena_applies,
    .cost = arena_cost,
    .plan = arena_plan,
};
