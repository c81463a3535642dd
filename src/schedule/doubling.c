/*
 * Recursive doubling: few messages, many bytes; and the dissemination barrier. Planner: pure, any
 * thread.
 *
 * Four ranks, allreduce (each line: who exchanges whole vectors; [..] whose sum it is afterwards):
 *
 *     round 0:  0 <-> 1   [01] [01]     2 <-> 3   [23] [23]
 *     round 1:  0 <-> 2,  1 <-> 3       [0123] everywhere
 *
 * Cost: lg p (a + nb + ng); when p is no power of two, 2a + 2nb + ng more (fold.h). The same sum is
 * computed on many ranks: the lower ranks' part is always the first operand, so bits are equal.
 *
 * Barrier: in round k every rank sends to rank + 2^k and hears from rank - 2^k; lg p rounds.
 *
 * Sources: R. Thakur, R. Rabenseifner, W. Gropp, Optimization of collective communication
 * operations in MPICH, IJHPCA 19(1), 2005; D. Hensgen, R. Finkel, U. Manber, Two algorithms for
 * barrier synchronization, IJPP 17(1), 1988.
 */
#include "schedule/algos.h"
#include "schedule/fold.h"

static void plan_allreduce(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                           hora_plan_t *plan) {
    hora_fold_t fold = hora_fold_init(coll, hint, plan);
    if (!hora_fold_enter(&fold))
        return;
    for (int mask = 1; mask < fold.ranks; mask *= 2) {
        int peer = hora_fold_rank(&fold, fold.number ^ mask);
        hora_fold_exchange(&fold, peer, 0, coll->count, 0, coll->count, mask * 2 == fold.ranks);
        fold.acc = HORA_BUF_OUT;
    }
    hora_fold_leave(&fold);
}

/* One element each way; what it holds does not matter. TMP: [0] sent, [1 + k] received. */
static void plan_barrier(const hora_coll_t *coll, hora_plan_t *plan) {
    int size = coll->size;
    plan->tmp = 1;
    for (int step = 1; step < size; step *= 2) {
        uint32_t xfer = hora_plan_recv(plan, (coll->rank - step + size) % size, HORA_BUF_TMP,
                                       plan->tmp++, 1);
        hora_plan_send(plan, (coll->rank + step) % size, HORA_BUF_TMP, 0, 1);
        hora_plan_wait(plan, xfer);
    }
}

static void plan_doubling(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                          hora_plan_t *plan) {
    if (coll->kind == HORA_COLL_BARRIER)
        plan_barrier(coll, plan);
    else
        plan_allreduce(coll, hint, plan);
}

static double cost_doubling(const hora_coll_t *coll, size_t elem_size, double a, double b,
                            double g) {
    double n = (double)coll->count * (double)elem_size;
    int    rounds = hora_log2_ceil(coll->size + 1) - 1; /* lg p rounded down */
    bool   folds = coll->size != 1 << rounds;
    if (coll->kind == HORA_COLL_BARRIER)
        return hora_log2_ceil(coll->size) * a;
    return rounds * (a + n * (b + g)) + (folds ? 2 * a + 2 * n * b + n * g : 0);
}

const hora_algo_t hora_algo_doubling = {
    .size = sizeof(hora_algo_t),
    .name = "doubling",
    .colls = 1u << HORA_COLL_ALLREDUCE | 1u << HORA_COLL_BARRIER,
    .applies = hora_algo_always,
    .cost = cost_doubling,
    .plan = plan_doubling,
};
