/*
 * Executing a collective. The one door from above (api, controller, background) into schedules.
 *
 * Operations on one communicator run strictly in the order they were started. They move on inside
 * hora_exec_progress of any later one, on the calling thread.
 */
#ifndef HORA_SCHEDULE_EXEC_H
#define HORA_SCHEDULE_EXEC_H

#include "schedule/plan.h"
#include "transport/comm.h"

typedef struct hora_exec hora_exec_t;

/* Runs a collective to its end. The caller has checked the arguments. On an error between ranks
 * (peer died, mismatch, timeout) the communicator has failed, on every rank, before it returns. */
hora_status_t hora_coll_run(hora_comm_t *comm, const hora_coll_t *coll);

/* Starts one without blocking; coll and the arrays in it are copied. The caller frees *exec_p. */
hora_status_t hora_coll_start(hora_comm_t *comm, const hora_coll_t *coll, hora_exec_t **exec_p);
/* HORA_IN_PROGRESS, or the final status. Never blocks. */
hora_status_t hora_exec_progress(hora_exec_t *exec);
/* Blocks until the end; returns the final status. */
hora_status_t hora_exec_wait(hora_exec_t *exec);
/* Cancels it if it is not done (the communicator must then have failed), and frees it. */
void hora_exec_free(hora_exec_t *exec);

/* Frees what comm keeps for later calls. The last thing that is done with comm before it is freed;
 * no operation may be in flight. */
void hora_exec_forget(hora_comm_t *comm);

/* What a half-slot of the pads should hold for two levels. */
size_t hora_twolevel_slot_bytes(const hora_hosts_t *hosts);

/* Name of the algorithm that would be chosen, for info and perf. Static storage. */
const char *hora_select_name(hora_comm_t *comm, const hora_coll_t *coll);

#endif
