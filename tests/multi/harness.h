/*
 * Tests with several ranks: forks them, gives each an environment of its own, collects their ends
 * with a deadline, kills what is left, and looks for file descriptors that a rank left open.
 *
 * The test's own process must never call hora. Checks inside a rank print what they expected and
 * end the rank; harness_run sees the exit code.
 */
#ifndef TESTS_MULTI_HARNESS_H
#define TESTS_MULTI_HARNESS_H

#include <hora/hora.h>
#include <ranks.h>

#include <stdbool.h>

/* What a rank does; returning is success. comm is the communicator of all ranks and is freed by the
 * harness, unless job.bare is set, when comm is NULL. */
typedef void (*harness_main_t)(hora_comm_t *comm, int rank, int size, void *arg);

typedef struct harness_job {
    int            nranks;
    harness_main_t main;
    void          *arg;
    const char    *transport; /* HORA_TRANSPORT; NULL: leave it; "hosts": shm on each of two hosts, which
                                 this machine pretends to be, and tcp between */
    const char    *algo;      /* HORA_ALGO; NULL: leave it */
    double         timeout;   /* HORA_TIMEOUT; 0: 20 seconds */
    double         deadline;  /* seconds until ranks that still run are killed; 0: 50 seconds */
    bool           bare;      /* main makes its communicators itself */
    bool           keep_fds;  /* do not look for leaked file descriptors */
} harness_job_t;

/* Runs the job; returns the number of ranks that failed and prints how. 0: all is well. */
int harness_run(const harness_job_t *job);
/* The same without judging: for tests in which ranks die on purpose. ends has nranks elements. */
int harness_run_ends(const harness_job_t *job, ranks_end_t *ends);

/* In a rank: called when main has returned, before its communicator is freed. NULL: nothing. */
extern void (*harness_at_end)(void);

/* Ends this rank as failed, with a message, unless the condition holds. */
#define harness_check(condition, ...)                                                             \
    ((condition) ? (void)0 : harness_die(__FILE__, __LINE__, #condition, __VA_ARGS__))
/* The same for a call of hora's: the message has the status and hora_last_error(). */
#define harness_ok(call) harness_expect((call), HORA_OK)
#define harness_expect(call, status) harness_status(__FILE__, __LINE__, #call, (call), (status))

void harness_die(const char *file, int line, const char *what, const char *format, ...)
    __attribute__((noreturn, format(printf, 4, 5)));
void harness_status(const char *file, int line, const char *call, hora_status_t got,
                    hora_status_t expected);

/* Reads a test's arguments, TRANSPORT and RANKS. False: they are not that, and the usage was said. */
bool harness_arguments(int argc, char **argv, const char **transport_p, int *nranks_p);

/* The communicator of all ranks, or the end of this rank. */
hora_comm_t *harness_join(void);
/* Number of file descriptors that are open in this process. */
int harness_open_fds(void);
/* Seconds of a clock that never steps. */
double harness_now(void);

#endif
