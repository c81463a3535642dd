/*
 * What each algorithm's allreduce sends and sums, rank by rank, in closed form: the formulas in the
 * heads of src/schedule's files, for any count and chunk. Pure; any thread.
 */
#ifndef BENCHMARKS_SCALE_FORMULAS_H
#define BENCHMARKS_SCALE_FORMULAS_H

#include "simulate.h"

bool scale_has_formula(const hora_algo_t *algo);
/* False: there is no formula for that algorithm. Two levels need what->hosts. */
bool scale_formula(const scale_case_t *what, int rank, scale_load_t *load_p);
/* Messages in the longest chain, where no vector is cut into chunks and no rank's block is empty;
 * 0: no formula. */
int scale_formula_rounds(const scale_case_t *what);

#endif
