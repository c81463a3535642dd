/*
 * Requests: operations that were started and not waited for. A request belongs to one thread.
 */
#ifndef HORA_API_REQUEST_H
#define HORA_API_REQUEST_H

#include "schedule/exec.h"

/* Starts a checked collective; *request_p is freed by hora_request_wait. */
hora_status_t hora_request_start(hora_comm_t *comm, const hora_coll_t *coll,
                                 hora_request_t **request_p);

#endif
