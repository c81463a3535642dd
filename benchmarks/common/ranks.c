/*
 * Ranks on this machine: fork, wait with a deadline, kill what is left. Main thread only.
 */
#include "ranks.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct child {
    pid_t pid; /* 0: it has ended */
} child_t;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void random_hex(char *text, size_t bytes) {
    unsigned char raw[64] = {0};
    if (getrandom(raw, bytes, 0) != (ssize_t)bytes) {
        perror("getrandom");
        abort();
    }
    for (size_t i = 0; i < bytes; i++)
        snprintf(text + 2 * i, 3, "%02x", raw[i]);
}

void ranks_rendezvous(char *buf, int size) {
    char hex[2 * 12 + 1];
    random_hex(hex, 12);
    snprintf(buf, (size_t)size, "unix:hora-%s", hex);
}

bool ranks_launched(void) {
    static const char *const variables[] = {"HORA_RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK",
                                            "PMI_RANK",  "PMIX_RANK",  "MV2_COMM_WORLD_RANK",
                                            "JSM_NAMESPACE_RANK"};
    for (size_t i = 0; i < sizeof(variables) / sizeof(variables[0]); i++)
        if (getenv(variables[i]) != NULL)
            return true;
    /* sbatch sets SLURM_PROCID for the batch script too: only srun's steps count as a launcher. */
    return getenv("SLURM_PROCID") != NULL && getenv("SLURM_STEP_NUM_TASKS") != NULL;
}

static void set_number(const char *name, int value) {
    char text[16];
    snprintf(text, sizeof(text), "%d", value);
    setenv(name, text, 1);
}

static void set_environment(int rank, int size) {
    set_number("HORA_RANK", rank);
    set_number("HORA_SIZE", size);
    set_number("HORA_LOCAL_RANK", rank);
    set_number("HORA_LOCAL_SIZE", size);
    set_number("HORA_CROSS_RANK", 0);
    set_number("HORA_CROSS_SIZE", 1);
}

static void run_child(const ranks_job_t *job, int rank, pid_t parent) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(111); /* the parent died before the line above */
    set_environment(rank, job->nranks);
    exit(job->main(rank, job->nranks, job->arg));
}

static void kill_all(const child_t *children, int n) {
    for (int i = 0; i < n; i++)
        if (children[i].pid != 0)
            kill(children[i].pid, SIGKILL);
}

static bool start_children(const ranks_job_t *job, child_t *children) {
    pid_t parent = getpid();
    fflush(NULL); /* or every child writes it again */
    for (int i = 0; i < job->nranks; i++) {
        children[i].pid = fork();
        if (children[i].pid == 0)
            run_child(job, i, parent);
        if (children[i].pid < 0) {
            children[i].pid = 0;
            kill_all(children, i);
            return false;
        }
    }
    return true;
}

/* Takes note of one ended child. Returns true when it had failed. */
static bool note_end(child_t *child, int status, bool late, ranks_end_t *end) {
    child->pid = 0;
    end->code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    end->signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    end->late = late && end->signal == SIGKILL;
    return end->code != 0;
}

static void wait_children(const ranks_job_t *job, child_t *children, ranks_end_t *ends) {
    double limit = job->deadline > 0 ? now() + job->deadline : 1e300;
    bool late = false;
    for (int left = job->nranks; left > 0;) {
        int before = left;
        for (int i = 0; i < job->nranks; i++) {
            int status;
            if (children[i].pid == 0 || waitpid(children[i].pid, &status, WNOHANG) <= 0)
                continue;
            left--;
            if (note_end(&children[i], status, late, &ends[i]) && job->grace > 0 &&
                limit > now() + job->grace)
                limit = now() + job->grace;
        }
        if (!late && now() > limit) {
            kill_all(children, job->nranks);
            late = true;
        }
        if (left == before)
            nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

int ranks_run(const ranks_job_t *job, ranks_end_t *ends) {
    char name[64], secret[2 * 32 + 1];
    child_t *children = calloc((size_t)job->nranks, sizeof(*children));
    ranks_end_t *own = calloc((size_t)job->nranks, sizeof(*own));
    int failed = -1;
    if (children == NULL || own == NULL)
        goto out;
    ranks_rendezvous(name, sizeof(name));
    random_hex(secret, 32);
    setenv("HORA_RENDEZVOUS", name, 1);
    setenv("HORA_SECRET", secret, 1);
    bool started = start_children(job, children);
    int error = errno;
    if (!started) {
        for (int i = 0; i < job->nranks; i++)
            if (children[i].pid != 0)
                waitpid(children[i].pid, NULL, 0);
        errno = error;
        goto out;
    }
    wait_children(job, children, own);
    failed = 0;
    for (int i = 0; i < job->nranks; i++)
        failed += own[i].code != 0;
    if (ends != NULL)
        memcpy(ends, own, (size_t)job->nranks * sizeof(*ends));
out:
    free(children);
    free(own);
    return failed;
}
