/*
 * All algorithms. Constant.
 */
#include "schedule/algos.h"

/* Those that need the arena come first: select.c takes the first that applies. Of the others it
 * takes the cheapest. */
const hora_algo_t *const hora_algo_list[] = {
    &hora_algo_oneshot, &hora_algo_arena,   &hora_algo_direct, &hora_algo_ring,
    &hora_algo_halving, &hora_algo_doubling, &hora_algo_tree,   NULL,
};
