/*
 * Collectives on one host, other than allreduce: who has something to tell copies it into its slot,
 * who needs it copies it out, or reduces straight out of the slots. Planner: pure, any thread.
 *
 *     allgather        slots            alltoall              slots
 *     rank 0  0 ->   [ 0 ]  -> 1 2 3    rank 0  01 02 03 ->  [ 01 02 03 ]  -> 1, 2, 3
 *     rank 1  1 ->   [ 1 ]  -> 0 2 3    rank 1  10 12 13 ->  [ 10 12 13 ]  -> 0, 2, 3
 *     rank 2  2 ->   [ 2 ]  -> 0 1 3    rank 2  20 21 23 ->  [ 20 21 23 ]  -> 0, 1, 3
 *     rank 3  3 ->   [ 3 ]  -> 0 1 2    rank 3  30 31 32 ->  [ 30 31 32 ]  -> 0, 1, 2
 *
 * broadcast and scatter are the first lines of these two, gather and reduce go the other way;
 * reduce_scatter is alltoall with a sum, in rank order, instead of copies out. What is a rank's own
 * goes from input to output directly.
 *
 * Blocks go in rounds of `piece` elements, through R regions of the slot in turn. Round k:
 *
 *     put        k into region k % R
 *     signal     k + 1: "my round k is there, and I have got all up to round k - 1"
 *     await      k + 1 of those who put (all ranks, or the root)
 *     get        k
 *
 * A region is free for round k when those who read it have signalled k - R + 2. Where everybody puts
 * and gets, each has awaited signal k of all in round k - 1, and two regions do. Else who only puts
 * awaits it: the root of a broadcast may run R rounds ahead, so that it copies in while the others copy
 * out, in pieces of a size for that. With one round it waits for nobody: that this half of the slot is
 * free it knows by awaiting phase 0, the last of the call before.
 *
 * A line that another rank has read is slow to write (pads.h). Two ranks that both put and get change
 * slots whenever they use a region again, so that each writes where it has read last. Else, where one
 * rank alone reads what is put, it takes the lines over (hora_kernel_take); where several do, what is put
 * is streamed.
 *
 *     round          0          2          4        (region 0; 1 in between)
 *     rank 0 puts    slot 0     slot 1     slot 0   and gets from the other one
 *     rank 1 puts    slot 1     slot 0     slot 1
 *
 * When all inputs lie in the arena (hint->shared_in_out) nothing is put: each gets what it needs from
 * where it lies, and who was read waits until all have.
 *
 * Cost: a + (3 - 1/n) N b for allgather and alltoall, where N is what a rank gets, a + 2 N b for
 * broadcast; without slots a + N b. Source: hora; the shape is that of any shared-memory collective
 * with a bounce buffer (MPICH release_gather, Open MPI coll/sm).
 */
#include "schedule/blocks.h"

#include <stdlib.h>

#define REGIONS      2
#define REGIONS_MAX  (HORA_PLAN_LEAD - 2) /* one phase is the meeting's, one the next call's first */
#define ONE_WAY_BYTES 32768 /* of a region where some only put and others only get */
#define LINE_BYTES 64
#define STREAM_BYTES ((size_t)32 << 20)
#define RANKS_MAX  256 /* the smallest slot still has a line for each */

typedef struct slots {
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    hora_ref_t        *src;   /* [size], of a sum */
    size_t             piece; /* elements of a block that go in one round */
    size_t             regions;
    bool               shared;
    bool               turns;  /* two ranks change slots */
    bool               stream; /* the outputs together are larger than the caches */
} slots_t;

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* No block of any rank is longer; the same on all ranks. */
static size_t longest(const hora_coll_t *coll, const hora_plan_hint_t *hint) {
    if (coll->kind == HORA_COLL_ALLTOALL)
        return hora_coll_is_even(coll) ? coll->count : hint->longest;
    return coll->counts == NULL ? coll->count : hora_block_longest(coll);
}

/* ---- a round ---- */

/* Where in the slot of `from` round k of its block for `to` lies. */
static size_t place(const slots_t *s, int from, int to, size_t k) {
    size_t lanes = hora_blocks_for_all(s->coll) ? 1 : (size_t)s->coll->size - 1;
    size_t lane = hora_blocks_for_all(s->coll) ? 0 : (size_t)(to < from ? to : to - 1);
    return (k % s->regions * lanes + lane) * s->piece;
}

/* In whose slot `from` puts round k. */
static int slot_of(const slots_t *s, int from, size_t k) {
    return s->turns && k / s->regions % 2 == 1 ? 1 - from : from;
}

static void put_one(const slots_t *s, int to, size_t k) {
    int          me = s->coll->rank;
    size_t       begin = hora_blocks_begin_in(s->coll, to) + k * s->piece;
    hora_ref_t   slot = hora_of(slot_of(s, me, k), HORA_BUF_SLOT, place(s, me, to, k));
    size_t       count = hora_chunk_count(s->piece, hora_blocks_count_to(s->coll, to), k);
    hora_step_t *step = hora_plan_copy(s->plan, hora_own(HORA_BUF_IN, begin), slot, count);
    if (step != NULL)
        step->stream = !s->turns && !hora_blocks_one_copies(s->coll);
}

static void put(const slots_t *s, size_t k) {
    int me = s->coll->rank, size = s->coll->size;
    if (hora_blocks_for_all(s->coll))
        put_one(s, (me + 1) % size, k);
    for (int i = 1; i < size && !hora_blocks_for_all(s->coll); i++)
        put_one(s, (me + i) % size, k);
}

/* Round k of what `from` has for me. */
static hora_ref_t source(const slots_t *s, int from, size_t k) {
    int    me = s->coll->rank;
    size_t in = hora_blocks_begin_in(s->coll, me) + k * s->piece;
    if (from == me)
        return hora_own(HORA_BUF_IN, in);
    return s->shared ? hora_of(from, HORA_BUF_IN, in)
                     : hora_of(slot_of(s, from, k), HORA_BUF_SLOT, place(s, from, me, k));
}

static void get_one(const slots_t *s, int from, size_t k) {
    size_t       begin = hora_blocks_begin_out(s->coll, from) + k * s->piece;
    size_t       count = hora_chunk_count(s->piece, hora_blocks_count_from(s->coll, from), k);
    hora_step_t *step = hora_plan_copy(s->plan, source(s, from, k), hora_own(HORA_BUF_OUT, begin),
                                       count);
    if (step == NULL)
        return;
    step->stream = s->stream;
    step->take = step->src.buf == HORA_BUF_SLOT && !s->turns && hora_blocks_one_copies(s->coll);
}

static void get_sum(const slots_t *s, size_t k) {
    const hora_coll_t *coll = s->coll;
    hora_ref_t         out = hora_own(HORA_BUF_OUT, k * s->piece);
    hora_step_t       *step;
    for (int r = 0; r < coll->size; r++)
        s->src[r] = source(s, r, k);
    step = hora_plan_reduce(s->plan, s->src, coll->size, &out, 1,
                            hora_chunk_count(s->piece, hora_blocks_count_from(coll, coll->rank),
                                             k));
    if (step != NULL)
        step->begin = step->finish = true;
}

static void get(const slots_t *s, size_t k) {
    const hora_coll_t *coll = s->coll;
    if (hora_coll_reduces(coll->kind))
        get_sum(s, k);
    else if (hora_blocks_from_root(coll))
        get_one(s, coll->root, k);
    else
        for (int i = 1; i < coll->size; i++)
            get_one(s, (coll->rank + i) % coll->size, k);
}

/* My own block, where I have one. */
static void keep(const slots_t *s, size_t k) {
    const hora_coll_t *coll = s->coll;
    if (!hora_coll_reduces(coll->kind) && (!hora_blocks_one_way(coll) || coll->rank == coll->root))
        get_one(s, coll->rank, k);
}

/* ---- the plans ---- */

static void plan_rounds(slots_t *s, size_t rounds) {
    const hora_coll_t *coll = s->coll;
    int                sources = hora_blocks_from_root(coll) ? coll->root : HORA_ALL_RANKS;
    int                readers = hora_blocks_to_root(coll) ? coll->root : HORA_ALL_RANKS;
    if (hora_blocks_give(coll) && rounds > 0)
        hora_plan_await(s->plan, 0);
    for (size_t k = 0; k < rounds && s->plan->status == HORA_OK; k++) {
        uint32_t phase = (uint32_t)k + 1;
        if (hora_blocks_give(coll) && !hora_blocks_take(coll) && k >= s->regions)
            hora_plan_await_rank(s->plan, (uint32_t)(k + 2 - s->regions), readers);
        if (hora_blocks_give(coll))
            put(s, k);
        hora_plan_signal(s->plan, phase);
        keep(s, k);
        if (!hora_blocks_take(coll))
            continue;
        hora_plan_await_rank(s->plan, phase, sources);
        get(s, k);
    }
}

static void plan_shared(slots_t *s) {
    const hora_coll_t *coll = s->coll;
    int                readers = hora_blocks_to_root(coll) ? coll->root : HORA_ALL_RANKS;
    if (hora_blocks_take(coll))
        get(s, 0);
    keep(s, 0);
    hora_plan_signal(s->plan, 1);
    if (hora_blocks_give(coll))
        hora_plan_await_rank(s->plan, 1, readers);
}

/* No longer than `piece`, and so that the rounds are even in number. */
static size_t even_piece(size_t piece, size_t most, size_t line) {
    size_t rounds = (most + piece - 1) / piece;
    rounds += rounds % 2;
    piece = (most + rounds - 1) / rounds;
    return (piece + line - 1) / line * line;
}

/* How much goes in a round, and through how many regions. Ranks that change slots take each region equally
 * often, if it is more than one, or they would not know which one they have read last. */
static void cut(slots_t *s, const hora_plan_hint_t *hint, size_t lanes, size_t most) {
    bool   one_way = hora_blocks_one_way(s->coll);
    size_t line = LINE_BYTES / hint->elem_size;
    size_t region = least(hint->chunk, hint->slot / REGIONS);
    if (one_way)
        region = least(region, ONE_WAY_BYTES / hint->elem_size);
    s->piece = region / lanes / line * line;
    if (s->piece == 0)
        s->piece = line;
    s->turns = !one_way && s->coll->size == 2;
    s->piece = least(s->piece, most);
    if (s->turns && most > s->piece)
        s->piece = even_piece(s->piece, most, line);
    s->regions = one_way ? least(hint->slot / lanes / s->piece, REGIONS_MAX) : REGIONS;
}

static void slots_plan(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    slots_t s = {.coll = coll, .plan = plan, .shared = hint->shared_in_out};
    size_t  lanes = hora_blocks_for_all(coll) ? 1 : (size_t)coll->size - 1;
    size_t  most = longest(coll, hint);
    size_t  blocks = coll->counts != NULL ? (size_t)coll->size : 1; /* that a rank gets */
    s.stream = most * hint->elem_size * (size_t)coll->size * blocks >= STREAM_BYTES;
    s.piece = most;
    s.src = malloc((size_t)coll->size * sizeof(*s.src));
    if (s.src == NULL) {
        plan->status = HORA_ERR_NO_MEMORY;
    } else if (s.shared) {
        plan_shared(&s);
    } else if (most > 0) {
        size_t rounds;
        cut(&s, hint, lanes, most);
        rounds = (most + s.piece - 1) / s.piece;
        plan->slot = least(rounds, s.regions) * lanes * s.piece;
        plan->turns = s.turns && (rounds + 1) / REGIONS % 2 == 1;
        plan_rounds(&s, rounds);
    }
    free(s.src);
}

static bool slots_applies(const hora_coll_t *coll) {
    return coll->size > 1 && coll->size <= RANKS_MAX;
}

static double slots_cost(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double bytes = (double)hora_coll_total(coll) * (double)elem_size, n = coll->size;
    double reduced = hora_coll_reduces(coll->kind) ? (n - 1) / n * bytes * g : 0;
    double copies = coll->kind == HORA_COLL_BROADCAST ? 2 : 3 - 1 / n;
    return a + copies * bytes * b + reduced;
}

const hora_algo_t hora_algo_slots = {
    .size = sizeof(hora_algo_t),
    .name = "slots",
    .colls = 1u << HORA_COLL_REDUCE | 1u << HORA_COLL_REDUCE_SCATTER | 1u << HORA_COLL_ALLGATHER |
             1u << HORA_COLL_BROADCAST | 1u << HORA_COLL_ALLTOALL | 1u << HORA_COLL_GATHER |
             1u << HORA_COLL_SCATTER,
    .rank_order = true,
    .needs_arena = true,
    .applies = slots_applies,
    .cost = slots_cost,
    .plan = slots_plan,
};
