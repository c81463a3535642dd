/*
 * Offloads: a whole collective done by another library. On the calling thread.
 *
 * A collective handed to MPI has MPI's manners: it has no deadline, it does not notice that ranks
 * disagree, and it may add in any order. So that is only done when the setting `offload` asks. What is
 * on GPUs always goes through here (cuda/device.h).
 */
#ifndef HORA_OFFLOAD_OFFLOAD_H
#define HORA_OFFLOAD_OFFLOAD_H

#include "schedule/plan.h"
#include "transport/comm.h"

/* Does a blocking collective elsewhere: true, and its status in *status_p. False: it is in host
 * memory, and it is not asked for or nobody can, and hora should do it. All members decide alike, so all must call
 * this, for the same collectives; operations that were started on comm before are completed
 * first. Calls on one communicator come one at a time. */
bool hora_offload_try(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p);

/* As part of hora_comm_split: splits what the members of `parent` have in another library, if that is
 * quicker than to make it anew. Collective. *made_p: for the new communicator's hora_offload_inherit; NULL:
 * nothing. An error: the parent has failed. */
hora_status_t hora_offload_split(hora_comm_t *parent, int color, int key,
                                 struct hora_nccl_comm **made_p);
/* Gives it to the new communicator; NULL: there is none, and it is freed. */
void hora_offload_inherit(hora_comm_t *comm, struct hora_nccl_comm *made);

/* Frees what hora_offload_try keeps in comm. Before the world is left. */
void hora_offload_forget(hora_comm_t *comm);

#endif
