/*
 * Which offload the setting asks for (offload.h). On the calling thread.
 */
#include "offload/offload.h"

#include "offload/cuda/device.h"
#include "offload/mpi/mpi.h"
#include "offload/nccl/nccl.h"

#include <string.h>

bool hora_offload_try(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p) {
    const char *offload = comm->world->settings.offload;
    if (coll->gpu != NULL) {
        *status_p = hora_device_run(comm, coll);
        return true;
    }
    return offload[0] == 'm' && strcmp(offload, "mpi") == 0 && /* every call passes here */
           hora_offload_mpi(comm, coll, status_p);
}

hora_status_t hora_offload_split(hora_comm_t *parent, int color, int key,
                                 struct hora_nccl_comm **made_p) {
    return hora_nccl_split(parent, color, key, made_p);
}

void hora_offload_inherit(hora_comm_t *comm, struct hora_nccl_comm *made) {
    hora_nccl_inherit(comm, made);
}

void hora_offload_forget(hora_comm_t *comm) {
    if (comm->offload != NULL)
        hora_offload_mpi_forget(comm);
    if (comm->gpu != NULL)
        hora_device_forget(comm);
    if (comm->inherited != NULL)
        hora_offload_inherit(NULL, comm->inherited);
}
