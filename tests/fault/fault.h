/*
 * Tests in which a rank dies, leaves, stops or errs. A job of a few ranks does the same step again
 * and again until the fault comes; then each survivor checks what it got, how soon, and that
 * nothing is left of hora in its process. The test's own process checks what is left outside.
 */
#ifndef TESTS_FAULT_FAULT_H
#define TESTS_FAULT_FAULT_H

#include <hora/hora.h>

#include "harness.h"
#include "work.h"

#include <stdatomic.h>

#define FAULT_RANKS_MAX 16

/* How the victim goes. */
typedef enum fault_how {
    FAULT_KILL,  /* SIGKILL, between two of its calls */
    FAULT_TIMER, /* SIGKILL at some moment, most likely inside of a call */
    FAULT_EXIT,  /* _exit(0) without a goodbye */
    FAULT_LEAVE  /* frees its communicator in order while the others go on */
} fault_how_t;

typedef struct fault_case {
    const char   *transport;
    int           nranks, victim;
    fault_how_t   how;
    int           call;  /* KILL, EXIT, LEAVE: how many calls the victim makes before */
    double        delay; /* TIMER: seconds after its first call begins */
    const phase_t *phase;
} fault_case_t;

/* Runs the job of a case. Returns the number of ranks that did not do as they should, after saying
 * which, and what the case was. Test's main thread only. */
int fault_run(const fault_case_t *c);
/* Runs any job in which rank `victim` (-1: none) dies, and checks that nothing is left. Returns the
 * number of complaints. */
int fault_run_job(const harness_job_t *job, int victim, fault_how_t how, const char *what);

/* ---- For ranks ---- */

/* What all ranks of the job share. */
typedef struct fault_board {
    _Atomic double death; /* harness_now() of the fault; 0: not yet */
    _Atomic int    pids[FAULT_RANKS_MAX];
    _Atomic int    go; /* of the test's own use */
} fault_board_t;
extern fault_board_t *fault_board;

/* Seconds within which a survivor must know: 1, or more where a sanitizer slows everything. */
double fault_bound(void);
/* A number in [0, 1): the next of the test's sequence. FAULT_SEED in the environment changes it. */
double fault_random(void);

/* Takes note of the moment, and goes. LEAVE does not return either: it ends the process well. */
void fault_die(hora_comm_t *comm, fault_how_t how) __attribute__((noreturn));
/* Checks that hora_last_error() names rank `victim` and its host; -1: some rank. */
void fault_check_text(hora_comm_t *comm, int victim);
/* Checks that comm is of no use any more, says so at once, always with the same words. */
void fault_check_failed(hora_comm_t *comm, int victim, hora_status_t status);
/* What a process has; to be equal before hora_comm_create and after hora_comm_free. */
typedef struct fault_traces {
    int threads, mappings;
} fault_traces_t;
fault_traces_t fault_traces(void);
void           fault_check_traces(const fault_traces_t *before);

#endif
