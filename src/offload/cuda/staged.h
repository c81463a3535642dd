/*
 * Collectives on GPUs through pinned host memory (staged.c): works between any GPUs, over any transport,
 * with any algorithm of src/schedule. On the thread that uses the communicator, with the GPU's context
 * current.
 */
#ifndef HORA_OFFLOAD_CUDA_STAGED_H
#define HORA_OFFLOAD_CUDA_STAGED_H

#include "offload/cuda/device.h"

extern const hora_gpu_path_t hora_gpu_path_staged;

/* What is queued on the GPU around an op that is one step of a collective of a larger communicator (nccl/
 * hierarchical.c): before its first part comes out, and behind its last. Each waits on a stream of its own
 * for the event, queues there, and records the event anew behind that. On an error the op fails. */
typedef struct hora_staged_frame {
    hora_status_t (*begin)(const struct hora_staged_frame *frame, hora_cuda_event_t event);
    hora_status_t (*end)(const struct hora_staged_frame *frame, hora_cuda_event_t event);
    hora_comm_t  *whole;
    hora_coll_t   coll; /* the whole's; its name is copied, it has no arrays, and its gpu is NULL */
    void         *work; /* device memory of the frame's */
} hora_staged_frame_t;

/* Does one to its end, after those that were started. frame: NULL, or copied, as coll. */
hora_status_t hora_staged_run(hora_comm_t *comm, const hora_coll_t *coll,
                              const hora_staged_frame_t *frame);
/* Starts one without blocking; coll and the arrays in it are copied. Ops of one communicator move on
 * in the order of their start. The caller frees *op_p. */
hora_status_t hora_staged_start(hora_comm_t *comm, const hora_coll_t *coll,
                                const hora_staged_frame_t *frame, hora_staged_op_t **op_p);
/* HORA_IN_PROGRESS, or the final status. Waits only where a slot has to grow, or for a frame's
 * steps. */
hora_status_t hora_staged_progress(hora_staged_op_t *op);
/* Blocks until the end; returns the final status. */
hora_status_t hora_staged_wait(hora_staged_op_t *op);
void          hora_staged_free(hora_staged_op_t *op);
/* Waits for all that were started. */
hora_status_t hora_staged_settle(hora_comm_t *comm);

#endif
