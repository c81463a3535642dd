/*
 * Bootstrap: finds the ranks of the job, checks that they belong to it, links up; then watches
 * them. Runs on the calling thread; leaves one thread behind, the watch, which sleeps in the kernel
 * until a rank dies, leaves, or reports a failure.
 */
#ifndef HORA_BOOTSTRAP_BOOTSTRAP_H
#define HORA_BOOTSTRAP_BOOTSTRAP_H

#include "transport/world.h"

/* Joins the job: returns a world with peers, arena, transports and links ready and the watch
 * running. options is not NULL. Errors name the phase, the rendezvous, and what is missing. */
hora_status_t hora_bootstrap_join(const hora_comm_options_t *options, hora_world_t **world_p);

/* Has reductions use the instruction set that HORA_KERNELS names; for the whole process, and before any
 * of its threads reduces. HORA_ERR_INVALID_ARGUMENT: this machine does not have it. */
hora_status_t hora_bootstrap_kernels(const hora_settings_t *settings);

/* Says goodbye to the other ranks, stops the watch, closes links and frees the world. */
void hora_bootstrap_leave(hora_world_t *world);

#endif
