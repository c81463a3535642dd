/*
 * Where the ranks of a job meet: a name on one host, or an address of rank 0's host.
 */
#ifndef HORA_BOOTSTRAP_PLACE_H
#define HORA_BOOTSTRAP_PLACE_H

#include "bootstrap/launcher.h"

#define HORA_PLACE_NAME_MAX 100 /* bytes of an abstract unix socket's name, with its counter */

typedef struct hora_place {
    bool     local;                     /* a unix socket on one host; else TCP */
    char     name[HORA_PLACE_NAME_MAX]; /* local: abstract name, without the leading NUL */
    char     host[256];                 /* TCP: name or address */
    int      port, nports;              /* TCP: rank 0 takes the first free one of them */
    uint64_t key;                       /* tells this job, and this joining, from others */
    uint64_t world;                     /* the name of hora_place_name; 0: none */
    char     mark[128];                 /* for messages: which of several worlds, or "" */
    char     text[448];                 /* "unix:NAME" or "tcp:HOST:PORT", and the mark */
    char     hint[256];                 /* which of several worlds this is, to end a message that
                                           somebody is missing; "": nothing to say */
    const char *why;                    /* what settled it. Static storage */
} hora_place_t;

/* Finds it from `rendezvous` ("unix:NAME", "tcp:HOST:PORT", or NULL or "": not said) or from what
 * the launcher left. A job may join several times: hora_place_count then makes each one its own. */
hora_status_t hora_place_find(const hora_env_t *env, const hora_job_t *job, const char *rendezvous,
                              hora_place_t *place_p);

/* Makes it the place of one of several worlds of the job, by a name ("" or NULL: none) and by the
 * number of this copy of the library (copies.h). Before hora_place_count. */
void hora_place_name(hora_place_t *place, const char *name, unsigned copy);

/* Numbers this joining: each rank of the process has joined this world at this place so many
 * times. Every rank of a job joins equally often, so the numbers agree. Any thread. */
hora_status_t hora_place_count(hora_place_t *place, int rank);

#endif
