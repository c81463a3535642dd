/*
 * All algorithms. Constant.
 */
#include "schedule/algos.h"

/* select.c takes the cheapest that applies; the first of those that cost the same. */
const hora_algo_t *const hora_algo_list[] = {
    &hora_algo_oneshot, &hora_algo_arena,   &hora_algo_slots,    &hora_algo_direct,
    &hora_algo_ring,    &hora_algo_halving, &hora_algo_doubling, &hora_algo_tree,
    &hora_algo_twolevel, NULL,
};
