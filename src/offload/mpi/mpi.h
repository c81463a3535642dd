/*
 * hora_allreduce by MPI_Allreduce, to compare with. See offload.h; on the calling thread.
 */
#ifndef HORA_OFFLOAD_MPI_MPI_H
#define HORA_OFFLOAD_MPI_MPI_H

#include "schedule/plan.h"
#include "transport/comm.h"

/* As hora_offload_try, once the setting is known to be "mpi". */
bool hora_offload_mpi(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p);
void hora_offload_mpi_forget(hora_comm_t *comm);

#endif
