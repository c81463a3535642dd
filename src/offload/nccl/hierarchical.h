/*
 * Collectives on GPUs over several hosts: NCCL inside each host, hora between the hosts, through pinned
 * memory (docs/decisions/0005): the path `hierarchical` of offload/cuda/device.h, which see. On the thread
 * that uses the communicator, with the GPU's context current.
 *
 * It does the allreduces that NCCL would do (nccl.h says which) and broadcasts. The other collectives go
 * by NCCL alone where it reaches from host to host, else they are staged.
 *
 * Bits: equal on all ranks. A sum is made on each host, in NCCL's order, then over the hosts, in the order
 * of hora's algorithm. Scales, divisor and rounding happen once: inputs are scaled on their GPU, and the
 * sum over the hosts divides and scales. Halves are float32 all the way, and rounded before they are
 * spread over the host, unless HORA_NCCL_HALVES says that they may be rounded at each hop.
 */
#ifndef HORA_OFFLOAD_NCCL_HIERARCHICAL_H
#define HORA_OFFLOAD_NCCL_HIERARCHICAL_H

#include "offload/cuda/slots.h"

#define HORA_CASTS 4 /* queued at a time: two for each call */

extern const hora_gpu_path_t hora_gpu_path_hierarchical;

/* What a cast's kernel reads while it runs. */
typedef struct hora_cast {
    hora_cuda_piece_t *piece; /* pinned */
    hora_cuda_event_t  ran;
    bool               used;  /* `ran` was recorded */
} hora_cast_t;

/* comm->gpu->levels */
typedef struct hora_hierarchy {
    hora_comm_t      *local, *lane; /* parts: my host's members; those with my number; NULL: none */
    int               host, number, lanes;
    hora_gpu_place_t  place;   /* the path's own stream */
    hora_cuda_event_t turn;
    size_t           *counts, *displs; /* [local->size] of the current call's lanes; 0 for who has none */
    hora_scratch_t    scratch;
    hora_cast_t       casts[HORA_CASTS];
    hora_cuda_piece_t *pieces; /* [HORA_CASTS] */
    unsigned          ncasts;  /* ever */
} hora_hierarchy_t;

/* The members with this rank's number on their hosts, whose staged ops are steps of comm's collectives; NULL:
 * comm goes another way, or this rank has no lane. comm->gpu is set. */
hora_comm_t *hora_hierarchy_lane(const hora_comm_t *comm);
/* hora_device_drain's part: what the path has queued on streams of its own. */
bool hora_hierarchy_drain(const hora_hierarchy_t *self);

/* ---- hierarchical_call.c ---- */

/* Does an allreduce or a broadcast; op_p not NULL: starts it, which may leave *op_p NULL. */
hora_status_t hora_hierarchy_run(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p);

#endif
