/*
 * Who am I? The rank and the size of the job from the variables of whatever started it.
 */
#ifndef HORA_BOOTSTRAP_LAUNCHER_H
#define HORA_BOOTSTRAP_LAUNCHER_H

#include "util/status.h"

/* getenv, or a table in a test. */
typedef struct hora_env {
    const char *(*get)(void *arg, const char *name);
    void *arg;
} hora_env_t;

/* The environment of this process. */
hora_env_t hora_env_process(void);
/* Value of a variable; NULL when it is not set or empty. */
const char *hora_env_get(const hora_env_t *env, const char *name);

typedef enum hora_family {
    HORA_FAMILY_ALONE, /* no variables: a job of one rank */
    HORA_FAMILY_OPTIONS,
    HORA_FAMILY_HORA,
    HORA_FAMILY_HOROVOD,
    HORA_FAMILY_TORCHRUN,
    HORA_FAMILY_OPENMPI,
    HORA_FAMILY_MPICH,
    HORA_FAMILY_PALS,
    HORA_FAMILY_MVAPICH2,
    HORA_FAMILY_SLURM,
    HORA_FAMILY_JSRUN
} hora_family_t;

typedef struct hora_job {
    hora_family_t family;
    const char   *name; /* of the family, for messages. Static storage */
    int           rank, size;
    int           local_rank; /* -1: not known */
    int           local_size; /* 0: not known */
} hora_job_t;

/* Finds one complete family of variables; never takes the rank from one and the size from another.
 * rank and nranks are the caller's options: both given (>= 0) they win, both -1 they say nothing.
 * HORA_ERR_INVALID_ARGUMENT names the variable and its value. */
hora_status_t hora_launcher_detect(const hora_env_t *env, int rank, int nranks, hora_job_t *job_p);

/* The number for `node` in Slurm's short form, e.g. "2(x3),1" has 2, 2, 2, 1. 0: there is none, or
 * the text is malformed. */
int hora_slurm_tasks_on_node(const char *text, int node);
/* The first host of a Slurm list, e.g. "n[07-09,11],m1" -> "n07". False if it is malformed or does
 * not fit. */
bool hora_slurm_first_host(const char *list, char *host, size_t size);

#endif
