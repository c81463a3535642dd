/*
 * Recursive halving and doubling (Rabenseifner): the ring's bytes in 2 lg p messages. Planner:
 * pure, any thread.
 *
 * Four ranks, a vector of quarters ABCD (each line: what a rank sends, what it is left with):
 *
 *     halving   0 -> 1: CD  1 -> 0: AB    2 -> 3: CD  3 -> 2: AB
 *               0: AB[01]   1: CD[01]     2: AB[23]   3: CD[23]
 *               0 -> 2: B   2 -> 0: A     1 -> 3: D   3 -> 1: C
 *               0: A[0123]  2: B[0123]    1: C[0123]  3: D[0123]
 *     doubling  the same exchanges in reverse order, of what is complete.
 *
 * Cost: 2 lg p a + 2(p-1)/p nb + (p-1)/p ng; when p is no power of two, 2a + 2nb + ng more
 * (fold.h). Every element is summed on one rank only, so bits are equal.
 *
 * Source: R. Rabenseifner, Optimization of collective reduction operations, ICCS 2004; as in MPICH.
 */
#include "schedule/algos.h"
#include "schedule/fold.h"

#define ROUNDS_MAX 31

typedef struct span {
    size_t at, count;
} span_t;

/* Quarters first .. last-1 of `parts`. */
static span_t span_of(const hora_coll_t *coll, int parts, int first, int last) {
    size_t at = hora_part_begin(coll->count, parts, first);
    size_t end = last < parts ? hora_part_begin(coll->count, parts, last) : coll->count;
    return (span_t){at, end - at};
}

static void plan_halving(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                         hora_plan_t *plan) {
    hora_fold_t fold = hora_fold_init(coll, hint, plan);
    span_t      sent[ROUNDS_MAX], kept[ROUNDS_MAX];
    int         round = 0, first = 0, last = fold.ranks;
    if (!hora_fold_enter(&fold))
        return;
    for (int mask = 1; mask < fold.ranks; mask *= 2, round++) {
        int  number = fold.number ^ mask, middle = (first + last) / 2;
        bool low = fold.number < number;
        kept[round] = low ? span_of(coll, fold.ranks, first, middle)
                          : span_of(coll, fold.ranks, middle, last);
        sent[round] = low ? span_of(coll, fold.ranks, middle, last)
                          : span_of(coll, fold.ranks, first, middle);
        hora_fold_exchange(&fold, hora_fold_rank(&fold, number), sent[round].at,
                           sent[round].count, kept[round].at, kept[round].count,
                           mask * 2 == fold.ranks);
        fold.acc = HORA_BUF_OUT;
        *(low ? &last : &first) = middle;
    }
    for (int mask = fold.ranks / 2; mask >= 1; mask /= 2) {
        int      peer = hora_fold_rank(&fold, fold.number ^ mask);
        uint32_t xfer;
        round--;
        xfer = hora_plan_recv(plan, peer, HORA_BUF_OUT, sent[round].at, sent[round].count);
        hora_plan_send(plan, peer, HORA_BUF_OUT, kept[round].at, kept[round].count);
        hora_plan_wait(plan, xfer);
    }
    hora_fold_leave(&fold);
}

static double cost_halving(const hora_coll_t *coll, size_t elem_size, double a, double b,
                           double g) {
    double n = (double)coll->count * (double)elem_size, share;
    int    rounds = hora_log2_ceil(coll->size + 1) - 1;
    bool   folds = coll->size != 1 << rounds;
    share = n * (1.0 - 1.0 / (1 << rounds));
    return 2 * rounds * a + 2 * share * b + share * g + (folds ? 2 * a + 2 * n * b + n * g : 0);
}

const hora_algo_t hora_algo_halving = {
    .size = sizeof(hora_algo_t),
    .name = "halving",
    .colls = 1u << HORA_COLL_ALLREDUCE,
    .applies = hora_algo_always,
    .cost = cost_halving,
    .plan = plan_halving,
};
