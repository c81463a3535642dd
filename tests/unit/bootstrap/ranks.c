/*
 * Forked ranks for the tests of the bootstrap (ranks.h).
 */
#include "ranks.h"

#include "bootstrap/bootstrap.h"
#include "util/clock.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern void __lsan_do_leak_check(void) __attribute__((weak)); /* in a build with AddressSanitizer */

board_t *board;
char     place[128];
double   start_timeout = 20;

void nap(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

static int free_port(void) {
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          len = sizeof(sa);
    int                fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    close(fd);
    return ntohs(sa.sin_port);
}

void ranks_prepare(bool tcp) {
    static int run;
    if (board == NULL)
        board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                     0);
    assert_ptr_not_equal(board, MAP_FAILED);
    memset(board, 0, sizeof(*board));
    if (tcp)
        snprintf(place, sizeof(place), "tcp:127.0.0.1:%d", free_port());
    else
        snprintf(place, sizeof(place), "unix:hora-test-%d-%d", (int)getpid(), run++);
}

int ranks_start(int rank, int size, rank_fn fn) {
    report_t  *report = &board->reports[rank];
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(60);
        fn(rank, size, report);
        report->done = 1;
        if (__lsan_do_leak_check != NULL)
            __lsan_do_leak_check(); /* _exit would skip it */
        fflush(NULL);
        _exit(0);
    }
    assert_true(pid > 0);
    return pid;
}

void ranks_wait(const int *pids, int count, int killed) {
    int bad = 0;
    for (int i = 0; i < count; i++) {
        int how;
        assert_int_equal(waitpid(pids[i], &how, 0), pids[i]);
        bool fine = i == killed ? WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL
                                : WIFEXITED(how) && WEXITSTATUS(how) == 0;
        if (!fine) {
            fprintf(stderr, "process %d of the test ended with %#x\n", i, how);
            bad++;
        }
    }
    assert_int_equal(bad, 0);
}

void ranks_run(int size, bool tcp, rank_fn fn) {
    int pids[RANKS_MAX];
    ranks_prepare(tcp);
    for (int r = 0; r < size; r++)
        pids[r] = ranks_start(r, size, fn);
    ranks_wait(pids, size, -1);
}

hora_world_t *ranks_join(int rank, int size, report_t *report) {
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_world_t       *world = NULL;
    uint64_t            begin = hora_clock_ns();
    options.rank = rank;
    options.nranks = size;
    options.rendezvous = place;
    options.start_timeout = start_timeout;
    report->status = hora_bootstrap_join(&options, &world);
    report->seconds = hora_clock_seconds(hora_clock_ns() - begin);
    if (report->status != HORA_OK)
        snprintf(report->text, sizeof(report->text), "%s", hora_last_error());
    return world;
}

void ranks_meet(int nth, int count) {
    atomic_fetch_add(&board->stage, 1);
    while (atomic_load(&board->stage) < nth * count)
        nap(0.0005);
}

void ranks_await_failure(hora_world_t *world, double seconds, report_t *report) {
    uint64_t begin = hora_clock_ns(), end = begin + hora_clock_from_seconds(seconds);
    while (atomic_load(&world->failure.raised) == 0 && hora_clock_ns() < end)
        nap(0.001);
    report->seconds = hora_clock_seconds(hora_clock_ns() - begin);
    report->status = hora_failure_check(&world->failure);
    report->value = world->failure.rank;
    snprintf(report->text, sizeof(report->text), "%s", world->failure.text);
}

static int count_entries(const char *path) {
    int  n = 0;
    DIR *dir = opendir(path);
    while (dir != NULL && readdir(dir) != NULL)
        n++;
    if (dir != NULL)
        closedir(dir);
    return n;
}

/* Sanitizers have threads of their own, so threads are told by their names. */
static void count_threads(holdings_t *h) {
    char           path[300], line[256];
    struct dirent *entry;
    DIR           *dir = opendir("/proc/self/task");
    while (dir != NULL && (entry = readdir(dir)) != NULL) {
        int  sleeps = 0;
        bool ours = false;
        snprintf(path, sizeof(path), "/proc/self/task/%s/status", entry->d_name);
        FILE *status = fopen(path, "re");
        while (status != NULL && fgets(line, sizeof(line), status) != NULL) {
            ours |= strncmp(line, "Name:\thora-", 11) == 0;
            sscanf(line, "voluntary_ctxt_switches: %d", &sleeps);
        }
        if (status != NULL)
            fclose(status);
        h->threads += ours;
        h->sleeps += ours ? sleeps : 0;
    }
    if (dir != NULL)
        closedir(dir);
}

holdings_t holdings_now(void) {
    holdings_t h = {count_entries("/proc/self/fd"), 0, 0, 0};
    char       line[512];
    FILE      *maps = fopen("/proc/self/maps", "re");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL)
        h.arenas += strstr(line, "memfd:hora") != NULL;
    if (maps != NULL)
        fclose(maps);
    count_threads(&h);
    return h;
}

void rank_give_up(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: a rank's check failed: %s (%s)\n", file, line, what, hora_last_error());
    _exit(1);
}
