/*
 * A stand-in for NCCL that runs on the CPU, beside the CUDA driver's (../cuda): for tests only, never
 * installed, loaded through HORA_NCCL_LIBRARY. It computes: what is queued runs on the stand-in's
 * streams, and the ranks of this machine, processes, pass each other the bytes through a file in
 * memory. Every communicator is non-blocking: calls answer ncclInProgress, and must be asked again.
 *
 * Environment, read when a communicator is made: HORA_STANDIN_NCCL, some of these words, on the rank
 * HORA_STANDIN_NCCL_RANK, or on all:
 *   init-error    the communicator cannot be made
 *   init-never    ... is never ready
 *   split-never   a split never ends
 *   no-memory     a collective fails: no memory on the GPU
 *   hangs         what is queued never ends
 *   reports       ... and an error is reported
 *   call-blocks   ncclGroupEnd does not return until the communicator is aborted
 *   abort-blocks  ncclCommAbort never returns
 */
#ifndef HORA_TESTS_NCCL_STANDIN_H
#define HORA_TESTS_NCCL_STANDIN_H

#include <stdatomic.h>

/* How often something was done, in this process. */
typedef struct nccl_standin {
    atomic_int inits, splits, aborts, destroys, groups, allreduces;
} nccl_standin_t;

#endif
