/*
 * Jobs with a fault (fault.h). fault_run* are for the test's main thread; the rest is for ranks.
 */
#include "fault.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SLOWNESS 4
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SLOWNESS 4
#endif
#endif
#ifndef SLOWNESS
#define SLOWNESS 1
#endif

#define RUNAWAY 20.0 /* seconds after which a fault that did not come is an error */

fault_board_t *fault_board;

double fault_bound(void) {
    return 1.0 * SLOWNESS;
}

double fault_random(void) {
    static uint64_t state;
    if (state == 0) {
        const char *seed = getenv("FAULT_SEED");
        state = 0x9e3779b97f4a7c15u + (seed != NULL ? strtoull(seed, NULL, 0) : 0);
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (double)(state >> 11) * 0x1p-53;
}

/* ---- What a process has ---------------------------------------------------------------------- */

static int count_entries(const char *path, const char *part) {
    int            n = 0;
    struct dirent *entry;
    DIR           *dir = opendir(path);
    if (dir == NULL)
        return 0;
    while ((entry = readdir(dir)) != NULL)
        n += entry->d_name[0] != '.' && strstr(entry->d_name, part) != NULL;
    closedir(dir);
    return n;
}

static int count_lines(const char *path, const char *part) {
    int   n = 0;
    char  line[1024];
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    while (fgets(line, sizeof(line), file) != NULL)
        n += strstr(line, part) != NULL;
    fclose(file);
    return n;
}

static fault_traces_t count_traces(void) {
    return (fault_traces_t){count_entries("/proc/self/task", ""),
                            count_lines("/proc/self/maps", "memfd:")};
}

static void *say_who(void *path) {
    snprintf(path, 64, "/proc/self/task/%d", (int)gettid());
    return NULL;
}

/* With the first thread a sanitizer starts one of its own, which would look like a trace. */
fault_traces_t fault_traces(void) {
    pthread_t thread;
    char      path[64];
    harness_check(pthread_create(&thread, NULL, say_who, path) == 0, "no thread");
    pthread_join(thread, NULL);
    while (access(path, F_OK) == 0) /* the kernel is still at its end */
        usleep(100);
    return count_traces();
}

void fault_check_traces(const fault_traces_t *before) {
    fault_traces_t after = count_traces();
    /* The kernel may still be at the end of a thread that has been joined. */
    for (int i = 0; i < 500 && after.threads > before->threads; i++, after = count_traces())
        usleep(2000);
    harness_check(after.threads <= before->threads, "%d threads, %d before", after.threads,
                  before->threads);
    harness_check(after.mappings <= before->mappings, "%d mappings of memfds, %d before",
                  after.mappings, before->mappings);
}

/* ---- The victim ------------------------------------------------------------------------------ */

void fault_die(hora_comm_t *comm, fault_how_t how) {
    atomic_store(&fault_board->death, harness_now());
    if (how == FAULT_EXIT)
        _exit(0);
    if (how != FAULT_LEAVE)
        kill(getpid(), SIGKILL);
    harness_ok(hora_comm_free(comm));
    _exit(0);
}

/* Has the kernel kill this process at a moment to come. */
static void arm_timer(double delay) {
    struct sigevent   event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    struct itimerspec when = {.it_value = {0, 1 + (long)(delay * 1e9)}};
    timer_t           timer;
    harness_check(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "%s", strerror(errno));
    atomic_store(&fault_board->death, harness_now() + delay);
    harness_check(timer_settime(timer, 0, &when, NULL) == 0, "%s", strerror(errno));
}

static void be_victim(work_t *w, const fault_case_t *c, hora_comm_t *comm) {
    double begin = harness_now();
    harness_ok(work_begin(w, c->phase, comm));
    if (c->how == FAULT_TIMER)
        arm_timer(c->delay);
    for (; c->how == FAULT_TIMER || (int)w->steps < c->call; w->steps++) {
        harness_ok(c->phase->step(w));
        harness_check(harness_now() - begin < RUNAWAY, "the timer did not fire");
    }
    if (c->how == FAULT_LEAVE)
        work_end(w);
    fault_die(w->comm, c->how);
}

/* ---- The survivors --------------------------------------------------------------------------- */

static void check_text(const char *host, int victim) {
    char who[128] = " on host ";
    if (victim >= 0)
        snprintf(who, sizeof(who), "rank %d on host %s", victim, host);
    harness_check(strstr(hora_last_error(), who) != NULL, "\"%s\" has no \"%s\"",
                  hora_last_error(), who);
}

void fault_check_text(hora_comm_t *comm, int victim) {
    check_text(hora_comm_host(comm, victim), victim);
}

void fault_check_failed(hora_comm_t *comm, int victim, hora_status_t status) {
    char   text[1024];
    float  x = 1, y;
    double begin = harness_now();
    harness_expect(hora_comm_status(comm), status);
    fault_check_text(comm, victim);
    snprintf(text, sizeof(text), "%s", hora_last_error());
    harness_expect(hora_allreduce(comm, &x, &y, 1, HORA_FLOAT32, HORA_SUM, NULL), status);
    harness_check(strcmp(text, hora_last_error()) == 0, "\"%s\", then \"%s\"", text,
                  hora_last_error());
    harness_expect(hora_barrier(comm, NULL), status);
    harness_expect(hora_comm_split(comm, 0, 0, &(hora_comm_t *){NULL}), status);
    harness_check(strcmp(text, hora_last_error()) == 0, "\"%s\", then \"%s\"", text,
                  hora_last_error());
    harness_check(harness_now() - begin < fault_bound() / 4, "%.2f s for three calls that fail",
                  harness_now() - begin);
}

/* Is this the fault, and has it been in time? */
static void check_fault(hora_status_t st, const char *when) {
    double now = harness_now(), death = atomic_load(&fault_board->death);
    harness_check(st == HORA_ERR_PEER_FAILED, "%s: %s: %s", when, hora_status_name(st),
                  hora_last_error());
    harness_check(death != 0, "%s: an error before the fault: %s", when, hora_last_error());
    harness_check(now - death < fault_bound(), "%s: the error took %.2f s", when, now - death);
}

/* Steps until one fails. */
static hora_status_t work_until_fault(work_t *w) {
    double        begin = harness_now();
    hora_status_t st = HORA_OK;
    while ((st = w->phase->step(w)) == HORA_OK) {
        double now = harness_now(), death = atomic_load(&fault_board->death);
        harness_check(death == 0 || now - death < fault_bound(),
                      "step %u: success %.2f s after the fault", w->steps, now - death);
        harness_check(now - begin < RUNAWAY, "step %u: no fault came", w->steps);
        w->steps++;
    }
    return st;
}

static void survive(work_t *w, const fault_case_t *c, hora_comm_t *comm) {
    hora_status_t st = work_begin(w, c->phase, comm);
    if (st == HORA_OK) {
        check_fault(work_until_fault(w), "first");
        fault_check_text(comm, c->victim);
        check_fault(w->phase->step(w), "once more");
    } else {
        check_fault(st, "making the engine");
    }
    fault_check_text(comm, c->victim);
    if (c->how != FAULT_LEAVE || c->phase->kind != COLL_SENDRECV) /* messages are between two */
        fault_check_failed(w->comm, c->victim, HORA_ERR_PEER_FAILED);
    double begin = harness_now();
    work_end(w);
    harness_check(harness_now() - begin < fault_bound(), "freeing took %.2f s",
                  harness_now() - begin);
}

static void case_main(hora_comm_t *none, int rank, int size, void *arg) {
    const fault_case_t *c = arg;
    fault_traces_t      before = fault_traces();
    hora_comm_t        *comm = NULL;
    work_t              w;
    (void)none, (void)size;
    hora_status_t st = hora_comm_create(NULL, &comm);
    if (rank == c->victim) {
        harness_ok(st);
        be_victim(&w, c, comm);
    } else if (st == HORA_OK) {
        survive(&w, c, comm);
    } else { /* the victim was through, and has died since */
        check_fault(st, "the join");
        check_text("", c->victim);
    }
    double begin = harness_now();
    harness_ok(hora_comm_free(comm));
    harness_check(harness_now() - begin < fault_bound(), "leaving took %.2f s",
                  harness_now() - begin);
    fault_check_traces(&before);
}

/* ---- The test's process ---------------------------------------------------------------------- */

static bool ended_well(const ranks_end_t *end, bool victim, fault_how_t how) {
    if (victim && (how == FAULT_KILL || how == FAULT_TIMER))
        return end->signal == SIGKILL && !end->late;
    return end->code == 0;
}

static int check_outside(void) {
    int         complaints = 0;
    const char *rendezvous = getenv("HORA_RENDEZVOUS");
    if (waitpid(-1, NULL, WNOHANG) != -1 || errno != ECHILD) {
        fprintf(stderr, "  a child process is left\n");
        complaints++;
    }
    if (count_entries("/dev/shm", "hora") > 0) {
        fprintf(stderr, "  something of hora is left in /dev/shm\n");
        complaints++;
    }
    if (rendezvous == NULL || count_lines("/proc/net/unix", strchr(rendezvous, ':') + 1) > 0) {
        fprintf(stderr, "  the rendezvous %s is left\n", rendezvous);
        complaints++;
    }
    return complaints;
}

int fault_run_job(const harness_job_t *job, int victim, fault_how_t how, const char *what) {
    ranks_end_t ends[FAULT_RANKS_MAX];
    int         complaints = 0;
    if (fault_board == NULL)
        fault_board = mmap(NULL, sizeof(*fault_board), PROT_READ | PROT_WRITE,
                           MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (fault_board == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    memset((void *)fault_board, 0, sizeof(*fault_board));
    setenv("HORA_LOG_LEVEL", "off", 1); /* the faults are wanted */
    harness_run_ends(job, ends);
    for (int r = 0; r < job->nranks; r++) {
        if (ended_well(&ends[r], r == victim, how))
            continue;
        fprintf(stderr, "  rank %d: exit code %d, signal %d%s\n", r, ends[r].code, ends[r].signal,
                ends[r].late ? ", at the deadline" : "");
        complaints++;
    }
    complaints += check_outside();
    if (complaints > 0)
        fprintf(stderr, "  ^ %s\n", what);
    return complaints;
}

int fault_run(const fault_case_t *c) {
    static const char *const hows[] = {"is killed", "is killed in time", "exits", "leaves"};
    char                     what[256];
    harness_job_t            job = {.nranks = c->nranks, .main = case_main, .arg = (void *)c,
                                    .transport = c->transport, .deadline = 30, .bare = true,
                                    .algo = c->phase->algo != NULL ? c->phase->algo : "auto"};
    snprintf(what, sizeof(what), "%s, %d ranks, %s: rank %d %s after %d calls or %.6f s",
             c->transport, c->nranks, c->phase->name, c->victim, hows[c->how], c->call, c->delay);
    return fault_run_job(&job, c->victim, c->how, what);
}
