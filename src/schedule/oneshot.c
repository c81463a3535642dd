/*
 * One-shot allreduce on one host: everybody shows its whole vector, and everybody reduces all of
 * them, in rank order. Reads n times what it must, but synchronises only once, so it wins while
 * a vector fits into a core's cache.
 *
 *     rank 0   in -> slot0 | slot0+slot1+slot2+slot3 -> out
 *     rank 1   in -> slot1 | slot0+slot1+slot2+slot3 -> out
 *     rank 2   in -> slot2 | slot0+slot1+slot2+slot3 -> out
 *     rank 3   in -> slot3 | slot0+slot1+slot2+slot3 -> out
 *                       (everybody has copied in)
 *
 * Cost: a + (n + 3) N b + (n - 1) N g. Source: DeepSpeed's shared-memory allreduce and vLLM's
 * one-shot use the same shape.
 */
#include "schedule/algos.h"

#include <stdlib.h>

static bool oneshot_applies(const hora_coll_t *coll) {
    return coll->size > 1;
}

static double oneshot_cost(const hora_coll_t *coll, size_t elem_size, double a, double b, double g) {
    double bytes = (double)coll->count * (double)elem_size;
    return a + (coll->size + 3) * bytes * b + (coll->size - 1) * bytes * g;
}

static void oneshot_plan(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    hora_ref_t *src = malloc((size_t)coll->size * sizeof(*src));
    hora_ref_t  out = hora_own(HORA_BUF_OUT, 0);
    if (src == NULL) {
        plan->status = HORA_ERR_NO_MEMORY;
        return;
    }
    for (int r = 0; r < coll->size; r++)
        src[r] = r == coll->rank ? hora_own(HORA_BUF_IN, 0) : hora_of(r, HORA_BUF_SLOT, 0);
    plan->slot = coll->count;
    hora_plan_await(plan, 0);
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_SLOT, 0), coll->count);
    hora_plan_signal(plan, 1);
    hora_plan_await(plan, 1);
    hora_step_t *step = hora_plan_reduce(plan, src, coll->size, &out, 1, coll->count);
    if (step != NULL)
        step->begin = step->finish = true;
    free(src);
}

const hora_algo_t hora_algo_oneshot = {
    .size = sizeof(hora_algo_t),
    .name = "oneshot",
    .colls = 1u << HORA_COLL_ALLREDUCE,
    .rank_order = true,
    .needs_arena = true,
    .small_only = true,
    .applies = oneshot_applies,
    .cost = oneshot_cost,
    .plan = oneshot_plan,
};
