/*
 * hora-perf --algorithms: which algorithm does what on this communicator; and --calibrate. Main thread.
 */
#ifndef BENCHMARKS_PERF_CHOICES_H
#define BENCHMARKS_PERF_CHOICES_H

#include "perf_options.h"

/* Rank 0: prints it, or writes options->json. Returns the exit code. */
int perf_choices(hora_comm_t *comm, const perf_options_t *options);
/* All ranks. Where the times were written goes to standard output, or into options->json. */
int perf_calibrate(hora_comm_t *comm, const perf_options_t *options);

#endif
