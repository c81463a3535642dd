/*
 * The timeline that the settings ask for.
 */
#ifndef HORA_API_TIMELINE_H
#define HORA_API_TIMELINE_H

#include "util/status.h"

/* Begins to record if HORA_TIMELINE names a file. An error is logged and goes no further. */
void hora_timeline_auto(hora_comm_t *comm);

#endif
