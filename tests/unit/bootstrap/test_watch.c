/*
 * Deaths, departures, aborts and pokes as the other ranks see them; ranks that die in the middle of
 * a join; strangers at the gate.
 */
#include "ranks.h"

#include "bootstrap/bootstrap.h"
#include "bootstrap/handshake.h"
#include "bootstrap/place.h"
#include "util/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static int  victim;
static bool two_hosts, with_child;

static hora_world_t *join(int rank, int size, report_t *report) {
    if (two_hosts)
        setenv("HORA_HOSTNAME", rank % 2 ? "odd" : "even", 1);
    hora_world_t *w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    return w;
}

/* ---- death ----------------------------------------------------------------------------------- */

static void see_death(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    ranks_meet(1, size);
    if (rank == victim) {
        /* A child that lives on must not keep the death a secret. */
        if (with_child && fork() == 0) {
            nap(3);
            _exit(0);
        }
        kill(getpid(), SIGKILL);
    }
    ranks_await_failure(w, 5, report);
    hora_bootstrap_leave(w);
}

static void kill_each(int size, bool tcp) {
    for (victim = 0; victim < size; victim++) {
        int pids[RANKS_MAX];
        ranks_prepare(tcp);
        for (int r = 0; r < size; r++)
            pids[r] = ranks_start(r, size, see_death);
        ranks_wait(pids, size, victim);
        for (int r = 0; r < size; r++) {
            const report_t *report = &board->reports[r];
            char            text[64];
            if (r == victim)
                continue;
            snprintf(text, sizeof(text), "rank %d on host %s", victim,
                     !two_hosts ? "" : victim % 2 ? "odd died" : "even died");
            assert_int_equal(report->status, HORA_ERR_PEER_FAILED);
            assert_int_equal(report->value, victim);
            assert_non_null(strstr(report->text, text));
            assert_non_null(strstr(report->text, " died"));
            assert_true(report->seconds < 1);
        }
    }
}

static void test_death(void **state) {
    (void)state;
    kill_each(2, false);
    kill_each(3, false);
    kill_each(8, false);
}

static void test_death_between_hosts(void **state) {
    (void)state;
    two_hosts = true;
    kill_each(4, true);
    two_hosts = false;
}

static void test_death_with_children(void **state) {
    (void)state;
    with_child = true;
    kill_each(3, false);
    two_hosts = true;
    kill_each(2, true);
    two_hosts = with_child = false;
}

/* ---- departure ------------------------------------------------------------------------------- */

static bool await_gone(hora_world_t *w, int rank) {
    for (int i = 0; i < 1000 && !atomic_load(&w->peers[rank].gone); i++)
        nap(0.001);
    return atomic_load(&w->peers[rank].gone);
}

/* One after the other, and nobody takes it for a death. */
static void leave_in_turn(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    bool          backwards = victim != 0;
    for (int turn = 0; turn < size; turn++) {
        int leaver = backwards ? size - 1 - turn : turn;
        if (leaver == rank)
            break;
        rank_check(await_gone(w, leaver));
    }
    rank_check(atomic_load(&w->failure.raised) == 0);
    hora_bootstrap_leave(w);
}

static void test_leaving(void **state) {
    (void)state;
    for (victim = 0; victim < 2; victim++)
        ranks_run(4, false, leave_in_turn);
    two_hosts = true;
    victim = 1;
    ranks_run(4, true, leave_in_turn);
    two_hosts = false;
}

/* Rank 0, over whom all news goes, has left; then rank 2 dies. */
static void die_without_rank_0(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    ranks_meet(1, size);
    if (rank != 0) {
        rank_check(await_gone(w, 0));
        atomic_fetch_add(&board->flag, 1);
        while (atomic_load(&board->flag) < size - 1)
            nap(0.001);
        if (rank == 2)
            kill(getpid(), SIGKILL);
        ranks_await_failure(w, 5, report);
    }
    hora_bootstrap_leave(w);
}

static void test_death_without_rank_0(void **state) {
    (void)state;
    int pids[4];
    ranks_prepare(false);
    for (int r = 0; r < 4; r++)
        pids[r] = ranks_start(r, 4, die_without_rank_0);
    ranks_wait(pids, 4, 2);
    for (int r = 1; r < 4; r += 2) {
        assert_int_equal(board->reports[r].status, HORA_ERR_PEER_FAILED);
        assert_int_equal(board->reports[r].value, 2);
        assert_true(board->reports[r].seconds < 1);
    }
}

/* ---- aborts and pokes ------------------------------------------------------------------------ */

static void hear_abort(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    ranks_meet(1, size);
    if (rank == 3)
        hora_world_fail(w, HORA_CHANNEL_ALL, HORA_ERR_ABORTED, 3,
                        "rank 3 aborted: bad\n\x1b[31mnews");
    ranks_await_failure(w, 5, report);
    ranks_meet(2, size);
    hora_bootstrap_leave(w);
}

static void test_abort(void **state) {
    (void)state;
    for (int hosts = 0; hosts < 2; hosts++) {
        two_hosts = hosts;
        ranks_run(4, hosts, hear_abort);
        for (int r = 0; r < 4; r++) {
            assert_int_equal(board->reports[r].status, HORA_ERR_ABORTED);
            assert_int_equal(board->reports[r].value, 3);
            assert_true(board->reports[r].seconds < 1);
            if (r != 3)
                assert_string_equal(board->reports[r].text, "rank 3 aborted: bad??[31mnews");
        }
    }
    two_hosts = false;
}

static void count_poke(hora_world_t *world, void *arg) {
    (void)world;
    atomic_fetch_add((atomic_int *)arg, 1);
}

/* Everybody pokes everybody, also itself, and rank 3 on the other host. */
static void hear_pokes(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    atomic_int    pokes = 0;
    pthread_mutex_lock(&w->poke_lock);
    w->poked = count_poke;
    w->poked_arg = &pokes;
    pthread_mutex_unlock(&w->poke_lock);
    ranks_meet(1, size);
    for (int r = 0; r < size; r++)
        w->poke(w, r);
    for (int i = 0; i < 2000 && atomic_load(&pokes) < size; i++)
        nap(0.001);
    ranks_meet(2, size);
    nap(0.02);
    rank_check(atomic_load(&pokes) == size);
    pthread_mutex_lock(&w->poke_lock);
    w->poked = NULL;
    pthread_mutex_unlock(&w->poke_lock);
    hora_bootstrap_leave(w);
}

static void test_poke(void **state) {
    (void)state;
    ranks_run(1, false, hear_pokes);
    two_hosts = true;
    ranks_run(4, true, hear_pokes);
    two_hosts = false;
}

/* A stopped rank reads nothing: the others go on, and their memory does not grow. */
static void speak_to_the_deaf(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    ranks_meet(1, size);
    if (rank == 1) {
        kill(getppid(), SIGUSR1);
        raise(SIGSTOP);
    } else {
        nap(0.1);
        for (int i = 0; i < 200000; i++)
            w->poke(w, 1);
        nap(0.2);
        kill(w->peers[1].pid, SIGCONT);
        rank_check(atomic_load(&w->failure.raised) == 0);
    }
    ranks_meet(2, size);
    rank_check(atomic_load(&w->failure.raised) == 0);
    ranks_meet(3, size);
    hora_bootstrap_leave(w);
}

static void test_deaf(void **state) {
    (void)state;
    signal(SIGUSR1, SIG_IGN);
    ranks_run(2, false, speak_to_the_deaf);
}

/* The watch sleeps: no processor time while nothing happens. On a busy machine its thread may still
 * be starting when the first look is taken, hence several. */
static void stay_idle(int rank, int size, report_t *report) {
    hora_world_t *w = join(rank, size, report);
    bool          idle = false;
    int           threads = 0;
    ranks_meet(1, size);
    for (int i = 0; i < 10 && !idle; i++) {
        holdings_t before = holdings_now(), after;
        nap(0.3);
        after = holdings_now();
        threads = after.threads;
        idle = after.sleeps == before.sleeps && before.threads == threads;
    }
    ranks_meet(2, size);
    rank_check(idle && threads == 1);
    hora_bootstrap_leave(w);
}

static void test_idle(void **state) {
    (void)state;
    ranks_run(3, false, stay_idle);
}

/* ---- death in the middle of a join ----------------------------------------------------------- */

static double delay;

static void *strike(void *arg) {
    (void)arg;
    nap(delay);
    kill(getpid(), SIGKILL);
    return NULL;
}

static void die_joining(int rank, int size, report_t *report) {
    pthread_t thread;
    ranks_meet(1, size);
    if (rank == victim) {
        pthread_create(&thread, NULL, strike, NULL);
        ranks_join(rank, size, report);
        for (;;)
            pause();
    }
    hora_world_t *w = ranks_join(rank, size, report);
    if (w == NULL)
        return;
    ranks_await_failure(w, 5, report);
    hora_bootstrap_leave(w);
}

/* Whenever it dies, the others know within a moment of the last who may not: rank 0's patience. */
static void test_death_joining(void **state) {
    (void)state;
    int pids[3];
    start_timeout = 1.5;
    for (int i = 0; i < 30; i++) {
        victim = i % 3;
        delay = i * 0.0002;
        ranks_prepare(i % 2);
        for (int r = 0; r < 3; r++)
            pids[r] = ranks_start(r, 3, die_joining);
        ranks_wait(pids, 3, victim);
        for (int r = 0; r < 3; r++) {
            const report_t *report = &board->reports[r];
            if (r == victim)
                continue;
            if (report->status != HORA_ERR_PEER_FAILED && report->status != HORA_ERR_TIMEOUT)
                print_error("delay %g, victim %d, rank %d: %s\n", delay, victim, r, report->text);
            assert_true(report->status == HORA_ERR_PEER_FAILED ||
                        report->status == HORA_ERR_TIMEOUT);
            assert_true(report->seconds < 4);
        }
    }
    start_timeout = 20;
}

/* ---- strangers ------------------------------------------------------------------------------- */

static int call_gate(void) {
    if (strncmp(place, "tcp:", 4) == 0) {
        struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                 .sin_port = htons((uint16_t)atoi(strrchr(place, ':') + 1))};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0)
            return fd;
        close(fd);
        return -1;
    }
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    int len = snprintf(sa.sun_path + 1, sizeof(sa.sun_path) - 1, "%s.0", place + 5);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (struct sockaddr *)&sa,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)len)) == 0)
        return fd;
    close(fd);
    return -1;
}

/* Says something that is not right, or nothing. */
static void misbehave(int fd, int how) {
    static const uint8_t huge[] = {'h', 'o', 'r', 'a', 1, 0, 1, 0, 255, 255, 255, 255, 1, 2, 3};
    uint8_t              noise[400];
    hora_conn_t          conn;
    hora_ticket_t        ticket = {.key = 1, .rank = 1, .size = 2, .secret = "", .host = "evil"};
    ssize_t              ignored = 0;
    switch (how % 5) {
    case 0: return;
    case 1:
        memset(noise, how, sizeof(noise));
        ignored = send(fd, noise, sizeof(noise), MSG_NOSIGNAL);
        break;
    case 2: ignored = send(fd, huge, sizeof(huge), MSG_NOSIGNAL); break;
    case 3: /* a whole greeting, of another job */
        hora_conn_init(&conn, fd, -1, 64);
        hora_hello_encode(&ticket, noise, noise + 100);
        if (hora_conn_queue(&conn, HORA_FRAME_HELLO, noise + 100, HORA_HELLO_BYTES))
            hora_conn_flush(&conn);
        conn.fd = -1; /* the caller's */
        hora_conn_close(&conn);
        break;
    case 4: ignored = send(fd, huge, 3, MSG_NOSIGNAL); break;
    }
    (void)ignored;
}

static void join_among_strangers(int rank, int size, report_t *report) {
    if (rank == 1)
        while (atomic_load(&board->flag) == 0)
            nap(0.001);
    hora_world_t *w = ranks_join(rank, size, report);
    rank_check(w != NULL);
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_strangers(void **state) {
    (void)state;
    for (int tcp = 0; tcp < 2; tcp++) {
        int pids[2], fds[200], count = 0;
        ranks_prepare(tcp);
        for (int r = 0; r < 2; r++)
            pids[r] = ranks_start(r, 2, join_among_strangers);
        for (int tries = 0; count < 200 && tries < 5000; tries++) {
            fds[count] = call_gate();
            if (fds[count] >= 0)
                misbehave(fds[count], count), count++;
            else
                nap(0.001);
        }
        assert_int_equal(count, 200);
        atomic_store(&board->flag, 1); /* now the right one */
        ranks_wait(pids, 2, -1);
        assert_true(board->reports[1].seconds < 1.5);
        for (int i = 0; i < count; i++)
            close(fds[i]);
    }
}

/* Somebody else has the first ports after MASTER_PORT, and says nothing. */
static void join_by_master(int rank, int size, report_t *report) {
    char text[16];
    snprintf(text, sizeof(text), "%d", rank);
    setenv("RANK", text, 1);
    setenv("WORLD_SIZE", "2", 1);
    setenv("LOCAL_RANK", "0", 1);
    setenv("LOCAL_WORLD_SIZE", "1", 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_world_t       *w = NULL;
    uint64_t            begin = hora_clock_ns();
    report->status = hora_bootstrap_join(&options, &w);
    report->seconds = hora_clock_seconds(hora_clock_ns() - begin);
    rank_check(w != NULL);
    ranks_meet(1, size);
    hora_bootstrap_leave(w);
}

static void test_master_ports(void **state) {
    (void)state;
    int  pids[2], squatters[2];
    char text[16];
    ranks_prepare(true);
    int port = atoi(strrchr(place, ':') + 1);
    for (int i = 0; i < 2; i++) {
        struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                                 .sin_port = htons((uint16_t)(port + 1 + i))};
        squatters[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (bind(squatters[i], (struct sockaddr *)&sa, sizeof(sa)) != 0 ||
            listen(squatters[i], 5) != 0)
            skip(); /* taken already, by somebody else */
    }
    snprintf(text, sizeof(text), "%d", port);
    setenv("MASTER_PORT", text, 1);
    for (int r = 0; r < 2; r++)
        pids[r] = ranks_start(r, 2, join_by_master);
    ranks_wait(pids, 2, -1);
    assert_true(board->reports[1].seconds < 6);
    unsetenv("MASTER_PORT");
    for (int i = 0; i < 2; i++)
        close(squatters[i]);
}

/* ---- ranks as threads ------------------------------------------------------------------------ */

static void *thread_rank(void *arg) {
    int           rank = *(int *)arg;
    report_t      report;
    hora_world_t *w;
    for (int i = 0; i < 10; i++) {
        w = ranks_join(rank, 4, &report);
        rank_check(w != NULL);
        if (i == 9 && rank == 2)
            hora_world_fail(w, HORA_CHANNEL_ALL, HORA_ERR_ABORTED, 2, "the end");
        if (i == 9)
            ranks_await_failure(w, 5, &report);
        hora_bootstrap_leave(w);
    }
    rank_check(report.status == HORA_ERR_ABORTED);
    return NULL;
}

static void test_threads(void **state) {
    (void)state;
    pthread_t threads[4];
    int       ranks[4];
    ranks_prepare(false);
    for (int r = 0; r < 4; r++) {
        ranks[r] = r;
        pthread_create(&threads[r], NULL, thread_rank, &ranks[r]);
    }
    for (int r = 0; r < 4; r++)
        pthread_join(threads[r], NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_death),
        cmocka_unit_test(test_death_between_hosts),
        cmocka_unit_test(test_death_with_children),
        cmocka_unit_test(test_leaving),
        cmocka_unit_test(test_death_without_rank_0),
        cmocka_unit_test(test_abort),
        cmocka_unit_test(test_poke),
        cmocka_unit_test(test_deaf),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_death_joining),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_master_ports),
        cmocka_unit_test(test_threads),
    };
    if (getenv("HORA_LOG_LEVEL") == NULL)
        setenv("HORA_LOG_LEVEL", "off", 1); /* the failures are meant */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
