/*
 * A sum of integers on a GPU, by whatever path is set, and what the stand-in for NCCL has counted in this
 * process. For ranks.
 */
#ifndef HORA_TESTS_NCCL_SUM_H
#define HORA_TESTS_NCCL_SUM_H

#include "device.h"
#include "nccl.h"

#define NCCL_COUNT 3001 /* elements */

/* Of the library that HORA_NCCL_LIBRARY names, which must be loaded. */
const nccl_standin_t *nccl_counts(void);
/* Queues an allreduce 'grad' of b, in place. */
hora_status_t nccl_queue_sum(hora_comm_t *comm, device_buffer_t *b, void *stream);
/* Fills b, queues that, waits and checks the result. */
void nccl_sum_is_right(hora_comm_t *comm, device_buffer_t *b, void *stream);

#endif
