/*
 * Collectives on GPUs by NCCL (docs/decisions/0005): the path `nccl` of offload/cuda/device.h, which
 * see. On the thread that uses the communicator.
 *
 * The results are hora's: an average is a sum that hora's kernel divides, scales are hora's, integers
 * are truncated and saturated as everywhere; every rank gets the same bits. But NCCL adds in an order of its
 * own, so HORA_DETERMINISTIC keeps reductions away from it. Halves are summed as float32, and rounded
 * once, unless HORA_NCCL_HALVES says that NCCL may round at each hop. What NCCL does not have, or does in
 * another way, is not taken: 16 bit integers, bool and bit operations, Adasum, and the minimum and
 * maximum of floats, which lose a NaN.
 *
 * What NCCL cannot tell: whether all members make the same call. The engine has compared them before;
 * of other calls, those that differ end at the deadline.
 */
#ifndef HORA_OFFLOAD_NCCL_NCCL_H
#define HORA_OFFLOAD_NCCL_NCCL_H

#include "offload/cuda/device.h"

extern const hora_gpu_path_t hora_gpu_path_nccl;

/* hora_offload_split and hora_offload_inherit (offload.h). */
hora_status_t hora_nccl_split(hora_comm_t *parent, int color, int key, struct hora_nccl_comm **made_p);
void          hora_nccl_inherit(hora_comm_t *comm, struct hora_nccl_comm *made);

#endif
