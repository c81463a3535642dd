/*
 * Blocks of the arena that a freed communicator leaves behind (retire.c). Any thread.
 */
#ifndef HORA_TRANSPORT_SHM_RETIRE_H
#define HORA_TRANSPORT_SHM_RETIRE_H

#include "transport/comm.h"

/* Frees my block once each of `members`, ranks in comm, has retired its own. All may be freed at once. */
void hora_retire(hora_comm_t *comm, const int *members, int size, void *block);
/* Frees the blocks that every member has retired. */
void hora_retired_sweep(hora_world_t *world);
/* Forgets the rest, when transports and arena are gone. */
void hora_retired_forget(hora_world_t *world);

#endif
