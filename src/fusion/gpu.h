/*
 * What a fusion buffer on a GPU has beside the buffer: lists of pieces that one kernel moves. On the
 * engine's driving thread, with the GPU's context current. All work is queued on one stream, in order.
 */
#ifndef HORA_FUSION_GPU_H
#define HORA_FUSION_GPU_H

#include "transport/comm.h"
#include "util/gpu.h"

typedef struct hora_fusion_gpu hora_fusion_gpu_t;

/* comm: whose failure and deadline end waiting. HORA_ERR_NO_MEMORY. */
hora_status_t hora_fusion_gpu_create(hora_comm_t *comm, const hora_gpu_place_t *place,
                                     hora_fusion_gpu_t **gpu_p);
/* Nothing may be queued any more that uses it. NULL is allowed. */
void hora_fusion_gpu_destroy(hora_fusion_gpu_t *gpu);

/* Device memory, which stays until hora_fusion_gpu_destroy: freeing it earlier would wait for all that
 * is queued on the GPU. */
hora_status_t hora_fusion_gpu_alloc(hora_fusion_gpu_t *gpu, size_t bytes, void **at_p);

/* Moves up to `room` pieces in one launch: begin, add, queue. Waits if the lists of the last moves are
 * still being read. */
hora_status_t hora_fusion_gpu_begin(hora_fusion_gpu_t *gpu, size_t room);
void          hora_fusion_gpu_add(hora_fusion_gpu_t *gpu, void *to, const void *from, size_t bytes);
hora_status_t hora_fusion_gpu_queue(hora_fusion_gpu_t *gpu);

/* Repeats a pattern of `period` bytes, at most HORA_FUSION_PATTERN, over `bytes` at `to`. */
#define HORA_FUSION_PATTERN 4096
hora_status_t hora_fusion_gpu_fill(hora_fusion_gpu_t *gpu, void *to, const void *pattern, size_t period,
                                   size_t bytes);

#endif
