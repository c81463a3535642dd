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
    long   calls;
    double seconds;
} check_round_t;

/* The results of one rank; the parent reads them even when the rank has died. */
typedef struct check_rank {
    int           rank, size;
    long          calls, failures; /* over all transports */
    char          doing[128];      /* the call that is being made */
    char          texts[CHECK_TEXTS][CHECK_TEXT_MAX];
    check_round_t rounds[CHECK_ROUNDS]; /* of the last transport */
} check_rank_t;

/* Checks one transport: a communicator for each algorithm (or only `only`, if not NULL), and every
 * case on it. own_rendezvous: the ranks were forked here, so that each communicator may meet at a
 * name of its own. Returns the exit code of the rank: 0 if all is well. */
int check_transport(const char *transport, const char *only, bool own_rendezvous,
                    check_rank_t *result);

void check_print_round(const check_rank_t *rank, int round, const char *transport);

#endif
