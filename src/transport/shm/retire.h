/*
 * What a freed communicator leaves behind (retire.c): memory that other members may still use. Any thread.
 */
#ifndef HORA_TRANSPORT_SHM_RETIRE_H
#define HORA_TRANSPORT_SHM_RETIRE_H

#include "transport/comm.h"

/* Frees what has been retired. Any thread, under a lock: it must not come back here. */
typedef void (*hora_retired_fn)(hora_world_t *world, void *what);

/* Frees what is mine once each of `members` (ranks in comm; NULL: the first `size`) has retired its own.
 * All may be freed at once. release NULL: a block of the arena. */
void hora_retire(hora_comm_t *comm, const int *members, int size, hora_retired_fn release, void *what);
/* Frees what every member has retired. */
void hora_retired_sweep(hora_world_t *world);
/* Before the links are closed: waits for the others, some time, and then frees all that does not go with
 * the arena. */
void hora_retired_settle(hora_world_t *world, double seconds);
/* Forgets the rest, when transports and arena are gone. */
void hora_retired_forget(hora_world_t *world);

#endif
