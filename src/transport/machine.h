/*
 * Where we are, in words: for files that hold what was measured. Any thread.
 */
#ifndef HORA_TRANSPORT_MACHINE_H
#define HORA_TRANSPORT_MACHINE_H

#include "transport/world.h"

/* The slowest kind of link between ranks of the job: "shm" (with an arena for all), "shm links",
 * "tcp", "mpi". Once the links are open. Static storage. */
const char *hora_machine_wire(const hora_world_t *world);
/* Architecture, cores, processor; without quotes, backslashes and control characters. */
void hora_machine_describe(char *text, size_t size);

#endif
