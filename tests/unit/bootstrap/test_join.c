/*
 * Joining and leaving: numbers of ranks, transports, hosts, repetition without leaks; and every way
 * in which a join must fail, with the text that says so.
 */
#include "ranks.h"

#include "bootstrap/bootstrap.h"
#include "bootstrap/gate.h"
#include "bootstrap/proof.h"
#include "transport/transport.h"
#include "util/clock.h"
#include "util/fork.h"

#include <kernels/cpu/kernels.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__x86_64__)
#define FOREIGN_KERNELS "neon"
#else
#define FOREIGN_KERNELS "avx2"
#endif

/* ---- that it works --------------------------------------------------------------------------- */

static void check_world(hora_world_t *w, int rank, int size) {
    rank_check(w->rank == rank && w->size == size);
    rank_check(w->local_rank == rank && w->local_size == size);
    rank_check(w->cross_rank == 0 && w->cross_size == 1);
    rank_check(w->arena != NULL && w->bell != w->private_bell);
    rank_check(w->ntransports == (size > 1)); /* shm, and no tcp that nobody needs */
    for (int r = 0; r < size; r++) {
        const hora_peer_t *p = &w->peers[r];
        rank_check(p->local == r && p->local_rank == r && p->cross_rank == 0);
        rank_check(p->host[0] != '\0' && (p->pid > 0) == (r != rank) && !p->gone);
        rank_check(p->bell != NULL && p->eventfd >= 0);
        rank_check((p->link == NULL) == (r == rank));
        rank_check(r == rank || strcmp(p->link->transport->ops->name, "shm") == 0);
    }
    rank_check(w->announce != NULL && w->poke != NULL);
    rank_check(holdings_now().threads == 1);
}

static void join_and_leave(int rank, int size, report_t *report) {
    holdings_t    before = holdings_now(), after;
    hora_world_t *w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    check_world(w, rank, size);
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
    after = holdings_now();
    rank_check(after.fds == before.fds && after.threads == before.threads);
}

static void test_join(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 3, 8};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        ranks_run(sizes[i], false, join_and_leave);
        ranks_run(sizes[i], true, join_and_leave);
    }
}

static void join_often(int rank, int size, report_t *report) {
    holdings_t before = {0, 0, 0, 0}, after;
    for (int i = 0; i < 200; i++) {
        hora_world_t *w = ranks_join(rank, size, report);
        rank_check(w != NULL);
        hora_bootstrap_leave(w); /* without meeting: the quick are a joining ahead of the slow */
        if (i == 20)
            before = holdings_now();
    }
    after = holdings_now();
    rank_check(after.fds == before.fds && after.threads == before.threads);
    rank_check(after.arenas == 0);
}

static void test_join_often(void **state) {
    (void)state;
    ranks_run(1, false, join_often);
    ranks_run(3, false, join_often);
    ranks_run(2, true, join_often);
}

/* Ranks 0 and 2 on one pretended host, 1 and 3 on another. */
static void join_hosts(int rank, int size, report_t *report) {
    hora_world_t *w;
    setenv("HORA_HOSTNAME", rank % 2 ? "odd" : "even", 1);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    rank_check(w->local_size == 2 && w->local_rank == rank / 2);
    rank_check(w->cross_size == 2 && w->cross_rank == rank % 2);
    rank_check(w->arena != NULL);
    for (int r = 0; r < size; r++) {
        const hora_peer_t *p = &w->peers[r];
        bool               near = r % 2 == rank % 2;
        rank_check(strcmp(p->host, r % 2 ? "odd" : "even") == 0);
        rank_check(p->cross_rank == r % 2 && p->local_rank == r / 2);
        rank_check(p->local == (near ? r / 2 : -1) && (p->bell != NULL) == near);
        rank_check(r == rank ||
                   strcmp(p->link->transport->ops->name, near ? "shm" : "tcp") == 0);
    }
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_hosts(void **state) {
    (void)state;
    ranks_run(4, true, join_hosts);
    ranks_run(4, false, join_hosts);
}

/* Rank 1 in a process namespace of its own, as in a container: it cannot see rank 0, and rank 0 knows it
 * by its number outside. flag: that number; -1: this user may not make such a namespace. */
static void join_apart(int rank, int size, report_t *report) {
    hora_world_t *w;
    int           how, child = -1;
    if (rank == 1 && unshare(CLONE_NEWPID) == 0 && (child = fork()) != 0) {
        rank_check(child > 0);
        atomic_store(&board->flag, child);
        rank_check(waitpid(child, &how, 0) == child && how == 0);
        _exit(0); /* no process can be made any more, which a look for leaks would have to */
    }
    if (rank == 1 && child < 0)
        atomic_store(&board->flag, -1);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL && w->local_size == 2);
    while (atomic_load(&board->flag) == 0)
        nap(0.001);
    if (atomic_load(&board->flag) > 0)
        rank_check(w->peers[1 - rank].pid == (rank == 0 ? atomic_load(&board->flag) : 0));
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
    if (child == 0)
        _exit(0); /* nor does /proc show the numbers of this namespace */
}

static void test_process_namespaces(void **state) {
    (void)state;
    ranks_run(2, false, join_apart);
    if (atomic_load(&board->flag) < 0)
        skip();
}

static void join_tcp(int rank, int size, report_t *report) {
    hora_world_t *w;
    setenv("HORA_TRANSPORT", "tcp", 1);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    rank_check(w->arena == NULL && w->bell == w->private_bell && w->local_size == size);
    for (int r = 0; r < size; r++) {
        rank_check(w->peers[r].bell == NULL && w->peers[r].eventfd == -1);
        rank_check(r == rank || strcmp(w->peers[r].link->transport->ops->name, "tcp") == 0);
    }
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_forced_tcp(void **state) {
    (void)state;
    ranks_run(1, false, join_tcp);
    ranks_run(3, false, join_tcp);
}

/* Rank 1 may make no files: no arena anywhere on the host, and tcp instead. */
static void join_without_arena(int rank, int size, report_t *report) {
    struct rlimit none = {0, 0};
    hora_world_t *w;
    signal(SIGXFSZ, SIG_IGN);
    if (rank == 1)
        rank_check(setrlimit(RLIMIT_FSIZE, &none) == 0);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    rank_check(w->arena == NULL && w->bell == w->private_bell);
    for (int r = 0; r < size; r++) {
        rank_check(w->peers[r].bell == NULL && w->peers[r].eventfd == -1);
        rank_check(r == rank || strcmp(w->peers[r].link->transport->ops->name, "tcp") == 0);
    }
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_no_arena(void **state) {
    (void)state;
    ranks_run(3, false, join_without_arena);
}

static void join_with_plain_kernels(int rank, int size, report_t *report) {
    hora_world_t *w;
    setenv("HORA_KERNELS", "portable", 1);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL && strcmp(hora_kernel_isa(), "portable") == 0);
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_kernels(void **state) {
    (void)state;
    ranks_run(2, false, join_with_plain_kernels);
}

/* A soft limit that would not do is raised, as far as the hard one goes. */
static void join_with_few_descriptors(int rank, int size, report_t *report) {
    const rlim_t  hard = rank == 0 ? 4096 : 200, want = 256 + 4 * (rlim_t)size;
    struct rlimit few = {100, hard};
    hora_world_t *w;
    rank_check(setrlimit(RLIMIT_NOFILE, &few) == 0);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    rank_check(getrlimit(RLIMIT_NOFILE, &few) == 0 && few.rlim_max == hard);
    rank_check(few.rlim_cur == (rank == 0 ? want : hard));
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

/* Less than what rank 0 could have to poll at worst. */
static void join_with_fewer_descriptors(int rank, int size, report_t *report) {
    struct rlimit few = {32, 32};
    hora_world_t *w;
    rank_check(setrlimit(RLIMIT_NOFILE, &few) == 0);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_few_descriptors(void **state) {
    (void)state;
    ranks_run(2, false, join_with_few_descriptors);
    ranks_run(2, false, join_with_fewer_descriptors);
}

static void join_with_secret(int rank, int size, report_t *report) {
    hora_world_t *w;
    setenv("HORA_SECRET", "open sesame", 1);
    w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_secret(void **state) {
    (void)state;
    ranks_run(3, false, join_with_secret);
    if (hora_proof_available() == HORA_OK)
        ranks_run(3, true, join_with_secret);
}

/* The world is not the child's. */
static void join_and_fork(int rank, int size, report_t *report) {
    hora_world_t *w = ranks_join(rank, size, report);
    int           how;
    rank_check(w != NULL);
    pid_t child = fork();
    if (child == 0) {
        hora_bootstrap_leave(w); /* does nothing */
        _exit(0);
    }
    rank_check(waitpid(child, &how, 0) == child && how == 0);
    ranks_meet(1, size);
    rank_check(atomic_load(&w->failure.raised) == 0 && !w->peers[(rank + 1) % size].gone);
    ranks_meet(2, size);
    hora_bootstrap_leave(w);
}

static void test_fork(void **state) {
    (void)state;
    ranks_run(3, false, join_and_fork);
}

/* ---- that it fails, and says why ------------------------------------------------------------- */

static void only_join(int rank, int size, report_t *report) {
    hora_world_t *w = ranks_join(rank, size, report);
    if (w != NULL)
        hora_bootstrap_leave(w);
}

static void expect(int rank, hora_status_t status, const char *text) {
    const report_t *r = &board->reports[rank];
    if (r->status != (int)status || (text != NULL && strstr(r->text, text) == NULL))
        print_error("rank %d: %s \"%s\", not %s \"%s\"\n", rank, hora_status_name(r->status),
                    r->text, hora_status_name(status), text ? text : "");
    assert_int_equal(r->status, status);
    assert_true(text == NULL || strstr(r->text, text) != NULL);
}

static void missing_rank(bool tcp) {
    int pids[3];
    ranks_prepare(tcp);
    pids[0] = ranks_start(0, 5, only_join);
    pids[1] = ranks_start(1, 5, only_join);
    pids[2] = ranks_start(3, 5, only_join);
    ranks_wait(pids, 3, -1);
    for (int r = 0; r < 4; r += r + 1) { /* 0, 1, 3 */
        expect(r, HORA_ERR_TIMEOUT, "ranks 2 and 4 of 5 did not appear at");
        expect(r, HORA_ERR_TIMEOUT, place);
        assert_true(board->reports[r].seconds > 0.9 && board->reports[r].seconds < 3);
    }
}

static void test_missing(void **state) {
    (void)state;
    int pid;
    start_timeout = 1;
    missing_rank(false);
    missing_rank(true);
    for (int tcp = 0; tcp < 2; tcp++) {
        ranks_prepare(tcp);
        pid = ranks_start(1, 2, only_join);
        ranks_wait(&pid, 1, -1);
        expect(1, HORA_ERR_TIMEOUT, "rank 0 did not appear at");
        expect(1, HORA_ERR_TIMEOUT, "nobody listens there");
    }
    start_timeout = 20;
}

/* Ranks that give different names do not meet, and each says which one is its own. */
static void other_name(int rank, int size, report_t *report) {
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_world_t       *world = NULL;
    options.rank = rank;
    options.nranks = size;
    options.rendezvous = place;
    options.start_timeout = 1;
    options.name = rank == 0 ? "left" : rank == 1 ? "right" : NULL;
    report->status = hora_bootstrap_join(&options, &world);
    snprintf(report->text, sizeof(report->text), "%s", hora_last_error());
}

static void test_other_name(void **state) {
    const char *hint = " copy 0 of libhora in this process: all ranks must load the copies in one "
                       "order and give the same names";
    (void)state;
    for (int tcp = 0; tcp < 2; tcp++) {
        ranks_run(3, tcp, other_name);
        expect(0, HORA_ERR_TIMEOUT, "; this is name \"left\",");
        expect(0, HORA_ERR_TIMEOUT, hint);
        expect(1, HORA_ERR_TIMEOUT, "; this is name \"right\",");
        expect(1, HORA_ERR_TIMEOUT, hint);
        expect(2, HORA_ERR_TIMEOUT, tcp ? "name \"left\", copy 0 of libhora" : "nobody");
        assert_null(strstr(board->reports[2].text, hint));
    }
}

static void wrong_secret(int rank, int size, report_t *report) {
    if (rank == 1)
        setenv("HORA_SECRET", "wrong", 1);
    else if (rank == 2)
        unsetenv("HORA_SECRET");
    only_join(rank, size, report);
}

static void test_wrong_secret(void **state) {
    (void)state;
    start_timeout = 1.5;
    setenv("HORA_SECRET", "right", 1);
    for (int tcp = 0; tcp < (hora_proof_available() == HORA_OK ? 2 : 1); tcp++) {
        ranks_run(4, tcp, wrong_secret);
        expect(0, HORA_ERR_TIMEOUT, "ranks 1 and 2 of 4 did not appear");
        expect(0, HORA_ERR_TIMEOUT, "HORA_SECRET");
        expect(1, HORA_ERR_AUTHENTICATION, "HORA_SECRET");
        expect(2, HORA_ERR_AUTHENTICATION, "HORA_SECRET");
        expect(3, HORA_ERR_TIMEOUT, "ranks 1 and 2 of 4 did not appear");
        for (int r = 0; r < 4; r++) {
            assert_null(strstr(board->reports[r].text, "right"));
            assert_null(strstr(board->reports[r].text, "wrong"));
        }
    }
    unsetenv("HORA_SECRET");
    start_timeout = 20;
}

static void claim_rank_1(int rank, int size, report_t *report) {
    if (rank == 2) {
        nap(0.3);
        rank = 1;
    }
    only_join(rank, size, report);
}

static void test_duplicate(void **state) {
    (void)state;
    ranks_run(3, false, claim_rank_1);
    for (int r = 0; r < 3; r++) {
        expect(r, HORA_ERR_MISMATCH, "two processes say that they are rank 1: one on host");
        assert_true(board->reports[r].seconds < 5);
    }
}

static void claim_size(int rank, int size, report_t *report) {
    if (rank == 2)
        nap(0.3);
    only_join(rank, rank == 2 ? size + 1 : size, report);
}

static void test_other_size(void **state) {
    (void)state;
    ranks_run(3, true, claim_size);
    for (int r = 0; r < 3; r++)
        expect(r, HORA_ERR_MISMATCH, "was started for 4 ranks, rank 0 on host");
}

static void claim_transport(int rank, int size, report_t *report) {
    setenv("HORA_TRANSPORT", rank == 2 ? "tcp" : "auto", 1);
    only_join(rank, size, report);
}

static void test_other_transport(void **state) {
    (void)state;
    ranks_run(3, false, claim_transport);
    for (int r = 0; r < 3; r++)
        expect(r, HORA_ERR_MISMATCH, "\"tcp\"");
}

static void shm_between_hosts(int rank, int size, report_t *report) {
    setenv("HORA_TRANSPORT", "shm", 1);
    setenv("HORA_HOSTNAME", rank == 2 ? "far" : "near", 1);
    only_join(rank, size, report);
}

static void test_shm_between_hosts(void **state) {
    (void)state;
    ranks_run(3, false, shm_between_hosts);
    for (int r = 0; r < 3; r++)
        expect(r, HORA_ERR_UNSUPPORTED, "shm does not reach");
}

/* ---- joining that another thread cancels ---- */

static void *cancel_later(void *flag) {
    nap(0.3);
    __atomic_store_n((volatile int *)flag, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void join_cancelled(int rank, int size, report_t *report) {
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_world_t       *world = NULL;
    volatile int        flag = 0;
    pthread_t           thread;
    holdings_t          before = holdings_now();
    uint64_t            begin = hora_clock_ns();
    options.rank = rank;
    options.nranks = size;
    options.rendezvous = place;
    options.start_timeout = 60;
    options.cancel = &flag;
    rank_check(pthread_create(&thread, NULL, cancel_later, (void *)&flag) == 0);
    report->status = hora_bootstrap_join(&options, &world);
    report->seconds = hora_clock_seconds(hora_clock_ns() - begin);
    snprintf(report->text, sizeof(report->text), "%s", hora_last_error());
    pthread_join(thread, NULL);
    rank_check(world == NULL);
    rank_check(holdings_now().fds == before.fds);
}

/* Rank 0 waits for ranks that never come; rank 1 for a rank 0; ranks 0 and 1 for rank 2. */
static void test_cancel(void **state) {
    static const struct {
        int  first, last;
        bool tcp;
    } present[] = {{0, 0, false}, {1, 1, false}, {1, 1, true}, {0, 1, false}};
    (void)state;
    for (size_t i = 0; i < sizeof(present) / sizeof(present[0]); i++) {
        int pids[3], n = 0;
        ranks_prepare(present[i].tcp);
        for (int r = present[i].first; r <= present[i].last; r++)
            pids[n++] = ranks_start(r, 3, join_cancelled);
        ranks_wait(pids, n, -1);
        for (int r = present[i].first; r <= present[i].last; r++) {
            const report_t *report = &board->reports[r];
            assert_int_equal(report->status, HORA_ERR_ABORTED);
            assert_non_null(strstr(report->text, "cancelled"));
            assert_true(report->seconds < 20);
        }
    }
}

static void join_or_be_cancelled(int rank, int size, report_t *report) {
    if (rank == 1)
        join_cancelled(rank, size, report);
    else
        rank_check(ranks_join(rank, size, report) == NULL);
}

/* Rank 1's joining is cancelled while it waits with rank 0, who takes nobody for dead. */
static void test_cancel_is_told(void **state) {
    int pids[2];
    (void)state;
    ranks_prepare(false);
    for (int r = 0; r < 2; r++)
        pids[r] = ranks_start(r, 3, join_or_be_cancelled);
    ranks_wait(pids, 2, -1);
    expect(0, HORA_ERR_ABORTED, "the joining of rank 1 on host ");
    expect(0, HORA_ERR_ABORTED, "was cancelled");
    expect(1, HORA_ERR_ABORTED, "rank 1 of 3 was cancelled");
}

/* A listener whose queue is full: the kernel answers nobody, as a host that drops packets. */
static int full_listener(int queued[8]) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          len = sizeof(at);
    int                fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, len), 0);
    assert_int_equal(listen(fd, 0), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    for (int i = 0; i < 8; i++) {
        queued[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        connect(queued[i], (struct sockaddr *)&at, len);
    }
    snprintf(place, sizeof(place), "tcp:127.0.0.1:%d", ntohs(at.sin_port));
    return fd;
}

/* The connect alone would last two seconds; a busy machine may be late once, but not three times.
 */
static void test_cancel_of_a_connect(void **state) {
    double soonest = 60;
    (void)state;
    for (int i = 0; i < 3 && soonest > 1.2; i++) {
        int queued[8], pid, listener;
        ranks_prepare(true);
        listener = full_listener(queued);
        pid = ranks_start(1, 2, join_cancelled);
        ranks_wait(&pid, 1, -1);
        expect(1, HORA_ERR_ABORTED, "was cancelled");
        if (board->reports[1].seconds < soonest)
            soonest = board->reports[1].seconds;
        close(listener);
        for (int q = 0; q < 8; q++)
            close(queued[q]);
    }
    assert_true(soonest < 1.2);
}

/* What was wrong before the cancel is not forgotten. */
static void test_cancel_keeps_the_reason(void **state) {
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_world_t       *world = NULL;
    volatile int        flag = 1;
    (void)state;
    options.rank = 0;
    options.nranks = 2;
    options.cancel = &flag;
    options.rendezvous = "tcp:192.0.2.1:4444"; /* no address of this host */
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_ABORTED);
    assert_non_null(strstr(hora_last_error(), "rank 0 of 2 was cancelled"));
    assert_non_null(strstr(hora_last_error(), "192.0.2.1:4444"));
    assert_non_null(strstr(hora_last_error(), "HORA_INTERFACE"));
    options.rank = 1;
    options.rendezvous = "unix:hora-test-nobody";
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_ABORTED);
    assert_non_null(strstr(hora_last_error(), "nobody listens there"));
    assert_null(strstr(hora_last_error(), "within 60 s")); /* it did not wait for so long */
}

static void test_bad_settings(void **state) {
    (void)state;
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_world_t       *world = NULL;
    options.rank = 0;
    options.nranks = 2;
    options.transport = "pigeon";
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "pigeon"));
    options.transport = NULL;
    options.rendezvous = "over there";
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "over there"));
    options.rendezvous = "tcp:192.0.2.1:4444"; /* no address of this host */
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), "192.0.2.1:4444"));
    assert_non_null(strstr(hora_last_error(), "HORA_INTERFACE"));
    options.rendezvous = "tcp:127.0.0.1:4444";
    setenv("HORA_INTERFACE", "nosuch0", 1);
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "nosuch0"));
    unsetenv("HORA_INTERFACE");
    char secret[200];
    memset(secret, 's', sizeof(secret));
    secret[199] = '\0';
    setenv("HORA_SECRET", secret, 1);
    assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_INVALID_ARGUMENT);
    assert_null(strstr(hora_last_error(), "ssss"));
    unsetenv("HORA_SECRET");
    static const char *const bad[][2] = {{"HORA_TIMEOUT", "0"},
                                         {"HORA_START_TIMEOUT", "0"},
                                         {"HORA_NUM_NCCL_STREAMS", "0"},
                                         {"HORA_NUM_NCCL_STREAMS", "9"},
                                         {"HORA_KERNELS", FOREIGN_KERNELS}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        setenv(bad[i][0], bad[i][1], 1);
        assert_int_equal(hora_bootstrap_join(&options, &world), HORA_ERR_INVALID_ARGUMENT);
        assert_non_null(strstr(hora_last_error(), bad[i][0]));
        unsetenv(bad[i][0]);
    }
    assert_null(world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),
        cmocka_unit_test(test_join_often),
        cmocka_unit_test(test_hosts),
        cmocka_unit_test(test_process_namespaces),
        cmocka_unit_test(test_forced_tcp),
        cmocka_unit_test(test_no_arena),
        cmocka_unit_test(test_kernels),
        cmocka_unit_test(test_few_descriptors),
        cmocka_unit_test(test_secret),
        cmocka_unit_test(test_fork),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_other_name),
        cmocka_unit_test(test_wrong_secret),
        cmocka_unit_test(test_duplicate),
        cmocka_unit_test(test_other_size),
        cmocka_unit_test(test_other_transport),
        cmocka_unit_test(test_shm_between_hosts),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_cancel_is_told),
        cmocka_unit_test(test_cancel_of_a_connect),
        cmocka_unit_test(test_cancel_keeps_the_reason),
        cmocka_unit_test(test_bad_settings),
    };
    if (getenv("HORA_LOG_LEVEL") == NULL)
        setenv("HORA_LOG_LEVEL", "off", 1); /* the failures are meant */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
