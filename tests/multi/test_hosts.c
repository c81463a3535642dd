/*
 * A communicator over two hosts, which this machine pretends to be: shared memory on each, tcp between.
 * Who is where, splits, disagreement, deaths. The sums themselves: `test_collectives hosts 5`.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "harness.h"

#define RANKS 5
#define LONG  200000 /* elements that take the rings */

static void run(harness_main_t rank_main) {
    harness_job_t job = {.nranks = RANKS, .main = rank_main, .transport = "hosts", .algo = "twolevel",
                         .timeout = 10};
    assert_int_equal(harness_run(&job), 0);
}

/* Sums `count` times rank + 1 over comm. */
static void sum(hora_comm_t *comm, size_t count) {
    int      rank = hora_comm_rank(comm), size = hora_comm_size(comm);
    int32_t *x = malloc((count + 1) * sizeof(*x));
    for (size_t i = 0; i < count; i++)
        x[i] = rank + 1 + (int32_t)i;
    harness_ok(hora_allreduce(comm, x, x, count, HORA_INT32, HORA_SUM, NULL));
    for (size_t i = 0; i < count; i++)
        harness_check(x[i] == size * (size + 1) / 2 + size * (int32_t)i, "element %zu is %d", i, x[i]);
    free(x);
}

static void who_main(hora_comm_t *comm, int rank, int size, void *arg) {
    bool here = rank < 3;
    (void)size, (void)arg;
    harness_check(hora_comm_local_size(comm) == (here ? 3 : 2), "%d", hora_comm_local_size(comm));
    harness_check(hora_comm_local_rank(comm) == (here ? rank : rank - 3), "%d",
                  hora_comm_local_rank(comm));
    harness_check(hora_comm_cross_size(comm) == (rank == 2 ? 1 : 2), "%d",
                  hora_comm_cross_size(comm));
    for (int r = 0; r < RANKS; r++)
        harness_check(r == rank || strcmp(hora_comm_transport(comm, r),
                                          (r < 3) == here ? "shm" : "tcp") == 0,
                      "%s to rank %d", hora_comm_transport(comm, r), r);
    sum(comm, 1);
    sum(comm, LONG);
}

static void members_know_who_is_where(void **state) {
    (void)state;
    run(who_main);
}

/* Over both hosts in another order, on one host, a host of one rank; in turn with the whole. */
static void split_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const int colors[3][RANKS] = {{0, 0, 0, 0, 0}, {0, 0, 0, 1, 1}, {0, 1, 1, 1, 1}};
    (void)arg;
    for (int i = 0; i < 3; i++) {
        hora_comm_t *part;
        harness_ok(hora_comm_split(comm, colors[i][rank], i == 0 ? rank * 3 % size : 0, &part));
        for (size_t n = 1; n <= LONG; n *= 199) {
            sum(part, n);
            sum(comm, n);
        }
        harness_ok(hora_comm_free(part));
    }
    sum(comm, LONG);
}

static void splits_have_levels_of_their_own(void **state) {
    (void)state;
    run(split_main);
}

/* Rank `arg` does something else; all are told so. */
static void mismatch_main(hora_comm_t *comm, int rank, int size, void *arg) {
    float        *x = calloc(LONG, sizeof(*x));
    hora_status_t st = hora_barrier(comm, NULL); /* all have the communicator, all others may go on */
    (void)size;
    if (st == HORA_OK && rank == *(int *)arg)
        st = hora_broadcast(comm, x, x, LONG, HORA_FLOAT32, 0, NULL);
    else if (st == HORA_OK)
        st = hora_allreduce(comm, x, x, LONG, HORA_FLOAT32, HORA_SUM, NULL);
    harness_expect(st, HORA_ERR_MISMATCH);
    free(x);
}

static void another_call_is_an_error_on_all(void **state) {
    (void)state;
    for (int rank = 0; rank < RANKS; rank += 2) {
        harness_job_t job = {.nranks = RANKS, .main = mismatch_main, .arg = &rank,
                             .transport = "hosts", .algo = "twolevel", .timeout = 10};
        double        start = harness_now();
        assert_int_equal(harness_run(&job), 0);
        assert_true(harness_now() - start < 8); /* found, not timed out */
    }
}

static void death_main(hora_comm_t *comm, int rank, int size, void *arg) {
    float        *x = calloc(LONG, sizeof(*x));
    hora_status_t st = HORA_OK;
    (void)size;
    for (int i = 0; st == HORA_OK; i++) {
        if (i == 3 && rank == *(int *)arg)
            raise(SIGKILL);
        st = hora_allreduce(comm, x, x, LONG, HORA_FLOAT32, HORA_SUM, NULL);
    }
    harness_expect(st, HORA_ERR_PEER_FAILED);
    free(x);
}

static void a_death_is_an_error_on_all(void **state) {
    (void)state;
    for (int dead = 0; dead < RANKS; dead += 2) {
        ranks_end_t   ends[RANKS];
        harness_job_t job = {.nranks = RANKS, .main = death_main, .arg = &dead, .transport = "hosts",
                             .algo = "twolevel", .timeout = 20, .keep_fds = true};
        double        start = harness_now();
        assert_int_equal(harness_run_ends(&job, ends), 1);
        assert_int_equal(ends[dead].signal, SIGKILL);
        assert_true(harness_now() - start < 8);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(members_know_who_is_where),
        cmocka_unit_test(splits_have_levels_of_their_own),
        cmocka_unit_test(another_call_is_an_error_on_all),
        cmocka_unit_test(a_death_is_an_error_on_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
