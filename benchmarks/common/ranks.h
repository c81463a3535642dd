/*
 * Ranks on this machine: forks N processes that find each other, runs a function in each, and takes
 * them all away again. For the benchmarks, hora-check and the tests. Main thread only.
 *
 * The calling process must not have used hora before: nothing of hora survives a fork.
 */
#ifndef BENCHMARKS_COMMON_RANKS_H
#define BENCHMARKS_COMMON_RANKS_H

#include <stdbool.h>

/* What a rank does. The value that it returns (0 to 255) is the exit code of its process. */
typedef int (*ranks_main_t)(int rank, int size, void *arg);

typedef struct ranks_job {
    int          nranks;
    ranks_main_t main;
    void        *arg;      /* for main; each process has its own copy of what it points to */
    double       deadline; /* seconds until what still runs is killed; 0: none */
    double       grace;    /* seconds that the others have after one has failed; 0: the deadline */
} ranks_job_t;

/* How one rank ended. */
typedef struct ranks_end {
    int  code;   /* exit code; -1 if a signal ended it */
    int  signal; /* that signal, else 0 */
    bool late;   /* it was killed here, at the deadline or after the grace */
} ranks_end_t;

/* Runs the job in forked processes, with HORA_RANK, HORA_SIZE and their kin, a HORA_RENDEZVOUS of
 * its own and a fresh HORA_SECRET; the rest of the environment stays. The ranks die with the caller.
 * Returns how many ranks did not end with 0, or -1 (errno) if they could not be started. ends may be
 * NULL, else it has nranks elements. */
int ranks_run(const ranks_job_t *job, ranks_end_t *ends);

/* True when a launcher (hora run, torchrun, mpirun, srun, ...) has made this process a rank. */
bool ranks_launched(void);

/* Writes a rendezvous name that nobody else uses, "unix:hora-...", into buf. */
void ranks_rendezvous(char *buf, int size);

#endif
