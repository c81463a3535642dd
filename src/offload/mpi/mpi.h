/*
 * hora_allreduce by MPI_Allreduce: in host memory to compare with; on GPUs (gpu.c), where the MPI takes
 * their memory. See offload.h; on the calling thread.
 */
#ifndef HORA_OFFLOAD_MPI_MPI_H
#define HORA_OFFLOAD_MPI_MPI_H

#include "offload/cuda/device.h"
#include "schedule/plan.h"
#include "transport/comm.h"

/* As hora_offload_try, once the setting is known to be "mpi". */
bool hora_offload_mpi(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p);
void hora_offload_mpi_forget(hora_comm_t *comm);

/* The path `mpi` of offload/cuda/device.h, which see. */
extern const hora_gpu_path_t hora_gpu_path_mpi;

/* ---- What both share ---- */

/* Would MPI give hora's own results? Depends on nothing that could differ between ranks. */
bool hora_offload_mpi_suits(const hora_comm_t *comm, const hora_coll_t *coll);
/* Makes what comm->offload keeps, if it is not there. All members call it together. comm->offload->mpi
 * NULL: not all have MPI. */
hora_status_t hora_offload_mpi_prepare(hora_comm_t *comm);
/* Has comm->offload MPI's communicator on every member, and does MPI take pointers to GPUs' memory there?
 * As the last call, together. */
hora_status_t hora_offload_mpi_cuda(hora_comm_t *comm, bool *has_mpi_p, bool *all_p);
/* coll->out = the reduction of `in` by op, which MPI has; blocks. Before it, comm has nothing in flight. An
 * error: the communicator has failed. */
hora_status_t hora_offload_mpi_reduce(hora_comm_t *comm, const hora_coll_t *coll, const void *in,
                                      hora_op_t op);

#endif
