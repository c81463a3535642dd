/*
 * What hora-check runs over one transport, inside one rank.
 */
#ifndef BENCHMARKS_CHECK_CASES_H
#define BENCHMARKS_CHECK_CASES_H

#include <stdbool.h>

#define CHECK_TEXTS    8
#define CHECK_TEXT_MAX 512
#define CHECK_ROUNDS   9 /* one for each algorithm */

typedef struct check_round {
    char   name[16]; /* of the algorithm or the path */
    long   calls;
    double seconds;
    char   why[200]; /* a path that was asked for does not do this here: why; else "" */
} check_round_t;

/* The results of one rank; the parent reads them even when the rank has died. */
typedef struct check_rank {
    int           rank, size;
    long          calls, failures; /* over all transports */
    char          doing[128];      /* the call that is being made */
    char          texts[CHECK_TEXTS][CHECK_TEXT_MAX];
    check_round_t rounds[CHECK_ROUNDS]; /* of the last transport */
} check_rank_t;

/* What is checked over one transport. */
typedef struct check_job {
    const char *transport;
    const char *only; /* this algorithm (or path) alone; NULL: each */
    bool        own_rendezvous; /* the ranks were forked here: each communicator meets at a name of its own */
    bool        mpirun; /* an MPI's launcher has made the ranks */
    bool        cuda; /* on GPUs: paths (HORA_GPU_PATH) take the place of algorithms */
} check_job_t;

/* Checks one transport: a communicator for each algorithm, and every case on it. Returns the exit code
 * of the rank: 0 if all is well. */
int check_transport(const check_job_t *job, check_rank_t *result);

void check_print_round(const check_round_t *round, const char *transport);

#endif
