/*
 * Ranks as forked processes, for tests of the bootstrap: each runs one function and leaves a report
 * in shared memory. A rank that hangs is ended by its alarm, and the test fails.
 */
#ifndef TESTS_BOOTSTRAP_RANKS_H
#define TESTS_BOOTSTRAP_RANKS_H

#include "transport/world.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#define RANKS_MAX 16

typedef struct report {
    int    status;  /* of the join, or whatever the function says */
    char   text[2048];
    double seconds;
    int    value;
    int    done; /* the function returned */
} report_t;

typedef struct board {
    atomic_int stage; /* for the ranks to meet, see ranks_meet */
    atomic_int flag;
    report_t   reports[RANKS_MAX];
} board_t;

extern board_t *board;          /* shared by the test and its ranks */
extern char     place[128];     /* the rendezvous, anew for each run */
extern double   start_timeout;  /* of ranks_join; 20 unless a test sets it */

typedef void (*rank_fn)(int rank, int size, report_t *report);

/* Chooses a place and clears the board. tcp: a free loopback port. */
void ranks_prepare(bool tcp);
/* Starts one rank; returns its process number. */
int ranks_start(int rank, int size, rank_fn fn);
/* Waits for the processes; killed: index of the one that must die of SIGKILL, or -1. The others
 * must have returned from their function. */
void ranks_wait(const int *pids, int count, int killed);
/* prepare, start all, wait. */
void ranks_run(int size, bool tcp, rank_fn fn);

/* Joins, and reports status, text and seconds. NULL if it failed. */
hora_world_t *ranks_join(int rank, int size, report_t *report);
/* All `count` callers wait for each other: the n-th meeting of the run. */
void ranks_meet(int nth, int count);
/* Waits up to `seconds` for the world's failure; reports it. */
void ranks_await_failure(hora_world_t *world, double seconds, report_t *report);

/* Descriptors, mapped arenas, and hora's threads of this process; and how often those slept. */
typedef struct holdings {
    int fds, arenas, threads, sleeps;
} holdings_t;
holdings_t holdings_now(void);

void nap(double seconds);

/* In a rank: a failed check ends it, and the test with it. */
#define rank_check(condition)                                                                     \
    do {                                                                                          \
        if (!(condition))                                                                         \
            rank_give_up(__FILE__, __LINE__, #condition);                                         \
    } while (0)
void rank_give_up(const char *file, int line, const char *what) __attribute__((noreturn));

#endif
