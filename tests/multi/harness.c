/*
 * Tests with several ranks. harness_run is for the test's main thread; the checks are for ranks.
 */
#include "harness.h"

#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_CHECK = 1, EXIT_LEAK = 3 };

static int this_rank = -1;
void (*harness_at_end)(void);

double harness_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int harness_open_fds(void) {
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    if (dir == NULL)
        return -1;
    while (readdir(dir) != NULL)
        n++;
    closedir(dir);
    return n - 3; /* ".", ".." and the directory's own */
}

static void list_fds(void) {
    char path[64], target[256];
    for (int fd = 0; fd < 1024; fd++) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ssize_t n = readlink(path, target, sizeof(target) - 1);
        if (n >= 0)
            fprintf(stderr, "    %d -> %.*s\n", fd, (int)n, target);
    }
}

void harness_die(const char *file, int line, const char *what, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    fprintf(stderr, "rank %d: %s:%d: %s: %s\n", this_rank, file, line, what, text);
    fflush(NULL);
    _exit(EXIT_CHECK); /* without a goodbye: the others must not wait for this rank */
}

void harness_status(const char *file, int line, const char *call, hora_status_t got,
                    hora_status_t expected) {
    if (got != expected)
        harness_die(file, line, call, "%s where %s was expected: %s", hora_status_name(got),
                    hora_status_name(expected), hora_last_error());
}

hora_comm_t *harness_join(void) {
    hora_comm_t *comm = NULL;
    harness_ok(hora_comm_create(NULL, &comm));
    return comm;
}

/* Half of the ranks, rounded up, say that they are on one host, the others on another. */
static void pretend_hosts(int rank, int size) {
    setenv("HORA_TRANSPORT", "auto", 1);
    setenv("HORA_HOSTNAME", 2 * rank < size ? "host-a" : "host-b", 1);
}

static int rank_main(int rank, int size, void *arg) {
    const harness_job_t *job = arg;
    this_rank = rank;
    if (job->transport != NULL && strcmp(job->transport, "hosts") == 0)
        pretend_hosts(rank, size);
    int before = harness_open_fds();
    hora_comm_t *comm = job->bare ? NULL : harness_join();
    job->main(comm, rank, size, job->arg);
    if (harness_at_end != NULL)
        harness_at_end();
    harness_ok(hora_comm_free(comm));
    int after = harness_open_fds();
    if (after > before && !job->keep_fds) {
        fprintf(stderr, "rank %d: %d file descriptors were left open:\n", rank, after - before);
        list_fds();
        return EXIT_LEAK;
    }
    return 0;
}

static void set_or_keep(const char *name, const char *value) {
    if (value != NULL)
        setenv(name, value, 1);
}

int harness_run_ends(const harness_job_t *job, ranks_end_t *ends) {
    char timeout[32];
    harness_job_t copy = *job;
    ranks_job_t ranks = {.nranks = job->nranks,
                         .main = rank_main,
                         .arg = &copy,
                         .deadline = job->deadline > 0 ? job->deadline : 50};
    snprintf(timeout, sizeof(timeout), "%g", job->timeout > 0 ? job->timeout : 20);
    set_or_keep("HORA_TIMEOUT", timeout);
    set_or_keep("HORA_TRANSPORT", job->transport);
    set_or_keep("HORA_ALGO", job->algo);
    int failed = ranks_run(&ranks, ends);
    if (failed < 0) {
        perror("ranks could not be started");
        exit(1);
    }
    return failed;
}

static void print_end(int rank, const ranks_end_t *end) {
    if (end->late)
        fprintf(stderr, "rank %d was still running at the deadline\n", rank);
    else if (end->signal != 0)
        fprintf(stderr, "rank %d died of signal %d (%s)\n", rank, end->signal,
                strsignal(end->signal));
    else if (end->code != 0)
        fprintf(stderr, "rank %d ended with exit code %d\n", rank, end->code);
}

int harness_run(const harness_job_t *job) {
    ranks_end_t ends[256];
    if (job->nranks > (int)(sizeof(ends) / sizeof(ends[0])))
        return job->nranks;
    int failed = harness_run_ends(job, ends);
    for (int r = 0; r < job->nranks; r++)
        print_end(r, &ends[r]);
    return failed;
}

bool harness_arguments(int argc, char **argv, const char **transport_p, int *nranks_p) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s TRANSPORT RANKS\n", argv[0]);
        return false;
    }
    *transport_p = argv[1];
    *nranks_p = atoi(argv[2]);
    return true;
}
