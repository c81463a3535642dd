/*
 * Adasum, allreduce only: recursive vector halving with distance doubling. Planner: pure, any thread.
 *
 * adasum(a, b) = a (1 - a.b / 2|a|^2) + b (1 - a.b / 2|b|^2): the sum where gradients are orthogonal,
 * their average where they are equal. It is combined in a binary tree; level k joins the sums of 2^k
 * ranks each, so the weights need dot products of vectors that are spread over 2^(k+1) ranks. Four
 * ranks, a vector of quarters ABCD (each line: what a rank sends, what it is left with):
 *
 *     halving   0 -> 1: CD  1 -> 0: AB    2 -> 3: CD  3 -> 2: AB
 *     dots      0 <-> 1                   2 <-> 3               three float64, summed
 *               0: AB[01]   1: CD[01]     2: AB[23]   3: CD[23]
 *               0 -> 2: B   2 -> 0: A     1 -> 3: D   3 -> 1: C
 *     dots      0 <-> 1, 2 <-> 3, then 0 <-> 2, 1 <-> 3
 *               0: A[0123]  2: B[0123]    1: C[0123]  3: D[0123]
 *     doubling  the same exchanges in reverse order, of what is complete.
 *
 * When the number of ranks is no power of two, pairs are combined first on one of them (fold.h). So the
 * tree for 6 ranks is ((0 1)(2 3))(4 5), for 5 ranks ((0 1) 2)(3 4). The lower ranks are always a.
 *
 * Every element is computed on one rank, and the partial dot products are added in a tree that is
 * the same on all; nothing depends on chunks or wires. So the bits are equal everywhere. A block of
 * dot products is never cut, which is why chunks are multiples of HORA_DOTS_BLOCK.
 *
 * In TMP: own dot products, those that come, then what the other rank sent of its vector.
 *
 * Small vectors on one host go through the slots instead: everybody shows its own, and everybody
 * computes the whole tree, with the same partial dot products, and so with the same bits.
 *
 * Cost: lg p (lg p + 5)/2 a + 2(p-1)/p nb + 3(p-1)/p ng; when p is no power of two, 2a + 2nb + 3ng
 * more. Source: Maleki, Musuvathi, Mytkowicz, Saarikivi, Xu, Eksarevskiy, Ekanayake, Barsoum, "Scaling
 * Distributed Training with Adaptive Summation", 2020 (arXiv 2006.02924); the order of the ranks as
 * in Horovod.
 */
#include "schedule/algos.h"
#include "schedule/fold.h"

#include <stdlib.h>

#define ROUNDS_MAX 31
#define LEAD       4 /* chunks in flight before the one that is being read */
#define LINE       64 /* bytes of TMP for a set of dot products */

typedef struct span {
    size_t at, count;
} span_t;

typedef struct adasum {
    hora_fold_t        fold;
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    size_t             chunk;
    size_t             dots;                 /* elements of a hora_dots_t */
    size_t             own, incoming, other; /* places in TMP */
} adasum_t;

static span_t span_of(const hora_coll_t *coll, int parts, int first, int last) {
    size_t at = hora_part_begin(coll->count, parts, first);
    size_t end = last < parts ? hora_part_begin(coll->count, parts, last) : coll->count;
    return (span_t){at, end - at};
}

/* Step on chunk [at, +count) of the part that this rank keeps, which begins at `kept`. */
static void take_dots(adasum_t *s, bool low, size_t kept, size_t at, size_t count, bool begin) {
    hora_ref_t mine = hora_own(s->fold.acc, kept + at);
    hora_ref_t theirs = hora_own(HORA_BUF_TMP, s->other + at);
    hora_plan_dots(s->plan, low ? mine : theirs, low ? theirs : mine,
                   hora_own(HORA_BUF_TMP, s->own), count, begin);
}

/* Brings the peer's vector for `kept` into TMP, gives it `sent` of mine, takes the dot products. low:
 * mine is a, the peer's is b. */
static void exchange(adasum_t *s, int peer, bool low, span_t sent, span_t kept) {
    hora_plan_t *plan = s->plan;
    size_t       chunk = s->chunk, posted = 0, given = 0;
    uint32_t     recvs[LEAD + 1], sends[LEAD + 1];
    for (size_t i = 0; i * chunk < sent.count || i * chunk < kept.count; i++) {
        for (; posted <= i + LEAD; posted++)
            recvs[posted % (LEAD + 1)] =
                hora_plan_recv(plan, peer, HORA_BUF_TMP, s->other + posted * chunk,
                               hora_chunk_count(chunk, kept.count, posted));
        for (; given <= i + LEAD; given++)
            sends[given % (LEAD + 1)] = hora_plan_send(plan, peer, s->fold.acc,
                                                       sent.at + given * chunk,
                                                       hora_chunk_count(chunk, sent.count, given));
        hora_plan_wait(plan, recvs[i % (LEAD + 1)]);
        if (i == 0 || i * chunk < kept.count) /* an empty part has dot products too: zeros */
            take_dots(s, low, kept.at, i * chunk, hora_chunk_count(chunk, kept.count, i), i == 0);
        hora_plan_wait(plan, sends[i % (LEAD + 1)]);
    }
    if (sent.count == 0 && kept.count == 0)
        take_dots(s, low, kept.at, 0, 0, true);
}

/* Sums the dot products over the ranks of one tree, whose numbers differ in the bits below 2 * mask. */
static void share_dots(adasum_t *s, int mask) {
    for (int bit = 1; bit <= mask; bit *= 2) {
        int      peer = hora_fold_rank(&s->fold, s->fold.number ^ bit);
        uint32_t recv = hora_plan_recv(s->plan, peer, HORA_BUF_TMP, s->incoming, s->dots);
        uint32_t send = hora_plan_send(s->plan, peer, HORA_BUF_TMP, s->own, s->dots);
        hora_plan_wait(s->plan, recv);
        hora_plan_wait(s->plan, send);
        hora_plan_add_dots(s->plan, hora_own(HORA_BUF_TMP, s->incoming),
                           hora_own(HORA_BUF_TMP, s->own));
    }
}

static void blend(adasum_t *s, bool low, span_t kept, bool finish) {
    hora_ref_t mine = hora_own(s->fold.acc, kept.at), theirs = hora_own(HORA_BUF_TMP, s->other);
    hora_plan_blend(s->plan, low ? mine : theirs, low ? theirs : mine,
                    hora_own(HORA_BUF_TMP, s->own), hora_own(HORA_BUF_OUT, kept.at), kept.count,
                    finish);
}

/* False: this rank gives its vector away and has got the result. */
static bool enter(adasum_t *s) {
    const hora_coll_t *coll = s->coll;
    span_t             none = {0, 0}, all = {0, coll->count};
    uint32_t           sends[LEAD + 1];
    if (coll->rank >= 2 * s->fold.extra)
        return true;
    if (coll->rank % 2) {
        exchange(s, coll->rank - 1, false, none, all);
        blend(s, false, all, false);
        s->fold.acc = HORA_BUF_OUT;
        return true;
    }
    for (int i = 0; i <= LEAD; i++)
        sends[i] = HORA_NO_XFER;
    for (size_t i = 0; i * s->chunk < coll->count; i++) {
        hora_plan_wait(s->plan, sends[i % (LEAD + 1)]);
        sends[i % (LEAD + 1)] = hora_plan_send(s->plan, coll->rank + 1, HORA_BUF_IN, i * s->chunk,
                                               hora_chunk_count(s->chunk, coll->count, i));
    }
    for (int i = 0; i <= LEAD; i++) /* in place, the result comes to where they are sent from */
        hora_plan_wait(s->plan, sends[i]);
    hora_plan_recv(s->plan, coll->rank + 1, HORA_BUF_OUT, 0, coll->count);
    return false;
}

static void climb(adasum_t *s) {
    int    ranks = s->fold.ranks, first = 0, last = ranks, round = 0;
    span_t sent[ROUNDS_MAX], kept[ROUNDS_MAX];
    for (int mask = 1; mask < ranks; mask *= 2, round++) {
        int  number = s->fold.number ^ mask, middle = (first + last) / 2;
        bool low = s->fold.number < number;
        kept[round] = low ? span_of(s->coll, ranks, first, middle)
                          : span_of(s->coll, ranks, middle, last);
        sent[round] = low ? span_of(s->coll, ranks, middle, last)
                          : span_of(s->coll, ranks, first, middle);
        exchange(s, hora_fold_rank(&s->fold, number), low, sent[round], kept[round]);
        share_dots(s, mask);
        blend(s, low, kept[round], mask * 2 == ranks);
        s->fold.acc = HORA_BUF_OUT;
        *(low ? &last : &first) = middle;
    }
    for (int mask = ranks / 2; mask >= 1; mask /= 2) {
        int      peer = hora_fold_rank(&s->fold, s->fold.number ^ mask);
        uint32_t xfer;
        round--;
        xfer = hora_plan_recv(s->plan, peer, HORA_BUF_OUT, sent[round].at, sent[round].count);
        hora_plan_send(s->plan, peer, HORA_BUF_OUT, kept[round].at, kept[round].count);
        hora_plan_wait(s->plan, xfer);
    }
}

/* Elements that this rank receives of another's vector at most: all of it, or a half. */
static size_t most_received(const adasum_t *s) {
    if (s->fold.number < 0)
        return 0;
    if (s->coll->rank < 2 * s->fold.extra)
        return s->coll->count;
    return span_of(s->coll, s->fold.ranks, 0, s->fold.ranks / 2).count;
}

static void plan_adasum(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    adasum_t s = {.fold = hora_fold_init(coll, hint, plan), .coll = coll, .plan = plan};
    size_t   line = LINE / hint->elem_size;
    s.chunk = (hint->chunk + HORA_DOTS_BLOCK - 1) / HORA_DOTS_BLOCK * HORA_DOTS_BLOCK;
    s.dots = sizeof(hora_dots_t) / hint->elem_size;
    s.incoming = line;
    s.other = 2 * line;
    plan->tmp = s.other + most_received(&s);
    if (coll->count == 0 || !enter(&s))
        return;
    climb(&s);
    hora_fold_leave(&s.fold);
}

static double cost_adasum(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double n = (double)coll->count * (double)elem_size;
    int    rounds = hora_log2_ceil(coll->size + 1) - 1;
    double share = n * (1.0 - 1.0 / (1 << rounds));
    bool   folds = coll->size != 1 << rounds;
    return rounds * (rounds + 5) / 2 * a + 2 * share * b + 3 * share * g +
           (folds ? 2 * a + 2 * n * b + 3 * n * g : 0);
}

/* ---- By one synchronisation, on one host ------------------------------------------------------ */

typedef struct oneshot {
    adasum_t    s;
    size_t      line;    /* elements from one set of dot products to the next */
    hora_ref_t *vectors; /* [ranks], by number; of what has been combined so far */
} oneshot_t;

/* The part that rank `number` keeps after the exchange with number ^ mask. */
static span_t kept_by(const oneshot_t *o, int number, int mask) {
    int first = 0, last = o->s.fold.ranks;
    for (int bit = 1; bit <= mask; bit *= 2)
        *(number & bit ? &first : &last) = (first + last) / 2;
    return span_of(o->s.coll, o->s.fold.ranks, first, last);
}

static hora_ref_t dots_at(const oneshot_t *o, int i) {
    return hora_own(HORA_BUF_TMP, (size_t)i * o->line);
}

static hora_ref_t behind(hora_ref_t ref, size_t off) {
    ref.off += off;
    return ref;
}

/* Combines the vectors of numbers low and low + mask, by the dot products that 2 * mask ranks would
 * take; into the place of vector `low`, which is in TMP from then on. */
static void combine(oneshot_t *o, int low, int mask) {
    hora_plan_t *plan = o->s.plan;
    hora_ref_t   a = o->vectors[low], b = o->vectors[low + mask];
    bool         last = mask * 2 == o->s.fold.ranks;
    for (int i = 0; i < 2 * mask; i++) {
        span_t part = kept_by(o, low + i, mask);
        hora_plan_dots(plan, behind(a, part.at), behind(b, part.at), dots_at(o, i), part.count, true);
    }
    for (int bit = 1; bit <= mask; bit *= 2)
        for (int i = 0; i < 2 * mask; i += 2 * bit)
            hora_plan_add_dots(plan, dots_at(o, i + bit), dots_at(o, i));
    o->vectors[low] = last ? hora_own(HORA_BUF_OUT, 0)
                           : hora_own(HORA_BUF_TMP, o->s.other + (size_t)low * o->s.coll->count);
    hora_plan_blend(plan, a, b, dots_at(o, 0), o->vectors[low], o->s.coll->count, last);
}

static hora_ref_t shown_by(const hora_coll_t *coll, int rank) {
    return rank == coll->rank ? hora_own(HORA_BUF_IN, 0) : hora_of(rank, HORA_BUF_SLOT, 0);
}

/* The vectors by number: of one rank, or of a pair. */
static void begin_vectors(oneshot_t *o) {
    const hora_coll_t *coll = o->s.coll;
    for (int i = 0; i < o->s.fold.ranks; i++) {
        int        rank = hora_fold_rank(&o->s.fold, i);
        hora_ref_t own = shown_by(coll, rank);
        o->vectors[i] = own;
        if (i >= o->s.fold.extra)
            continue;
        o->vectors[i] = hora_own(HORA_BUF_TMP, o->s.other + (size_t)i * coll->count);
        hora_plan_dots(o->s.plan, shown_by(coll, rank - 1), own, dots_at(o, 0), coll->count, true);
        hora_plan_blend(o->s.plan, shown_by(coll, rank - 1), own, dots_at(o, 0), o->vectors[i],
                        coll->count, false);
    }
}

static void plan_oneshot(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    oneshot_t o = {.s = {.fold = hora_fold_init(coll, hint, plan), .coll = coll, .plan = plan}};
    int       ranks = o.s.fold.ranks;
    o.line = LINE / hint->elem_size;
    o.s.other = (size_t)ranks * o.line;
    plan->tmp = o.s.other + (size_t)ranks * coll->count;
    plan->slot = coll->count;
    o.vectors = malloc((size_t)ranks * sizeof(*o.vectors));
    if (o.vectors == NULL) {
        plan->status = HORA_ERR_NO_MEMORY;
        return;
    }
    hora_plan_await(plan, 0);
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_SLOT, 0), coll->count);
    hora_plan_signal(plan, 1);
    hora_plan_await(plan, 1);
    begin_vectors(&o);
    for (int mask = 1; mask < ranks; mask *= 2)
        for (int low = 0; low < ranks; low += 2 * mask)
            combine(&o, low, mask);
    free(o.vectors);
}

static double cost_oneshot(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double n = (double)coll->count * (double)elem_size;
    return a + (coll->size + 3) * n * b + 3 * (coll->size - 1) * n * g;
}

/* ---- The algorithms ---------------------------------------------------------------------------- */

/* Not in hora_algo_list: they are no other ways to a sum. select.c takes them for the operation. */
const hora_algo_t hora_algo_adasum = {
    .size = sizeof(hora_algo_t),
    .name = "adasum",
    .colls = 1u << HORA_COLL_ALLREDUCE,
    .applies = hora_algo_always,
    .cost = cost_adasum,
    .plan = plan_adasum,
};

const hora_algo_t hora_algo_adasum_oneshot = {
    .size = sizeof(hora_algo_t),
    .name = "adasum, oneshot",
    .colls = 1u << HORA_COLL_ALLREDUCE,
    .needs_arena = true,
    .small_only = true,
    .applies = hora_algo_always,
    .cost = cost_oneshot,
    .plan = plan_oneshot,
};
