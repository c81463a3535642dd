/*
 * Communicators beyond the plain collectives: requests in flight, split, point to point, scaling,
 * memory, disagreement, abort, timeouts. `test_comm shm 4`.
 */
#include <coll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "harness.h"

static const char *transport;
static int nranks;

static void run(harness_main_t rank_main, double timeout) {
    harness_job_t job = {
        .nranks = nranks, .main = rank_main, .transport = transport, .timeout = timeout};
    assert_int_equal(harness_run(&job), 0);
}

static void sum_of_ranks(hora_comm_t *comm, int expected) {
    int32_t x = hora_comm_rank(comm) + 1, y = 0;
    harness_ok(hora_allreduce(comm, &x, &y, 1, HORA_INT32, HORA_SUM, NULL));
    harness_check(y == expected, "%d where %d was expected", y, expected);
}

static int triangle(int n) {
    return n * (n + 1) / 2;
}

/* ---- Who and where ------------------------------------------------------------------------- */

static void identity_main(hora_comm_t *comm, int rank, int size, void *arg) {
    (void)arg;
    harness_check(hora_comm_rank(comm) == rank, "%d", hora_comm_rank(comm));
    harness_check(hora_comm_size(comm) == size, "%d", hora_comm_size(comm));
    harness_check(hora_comm_local_rank(comm) == rank, "%d", hora_comm_local_rank(comm));
    harness_check(hora_comm_local_size(comm) == size, "%d", hora_comm_local_size(comm));
    harness_check(hora_comm_cross_rank(comm) == 0, "%d", hora_comm_cross_rank(comm));
    harness_check(hora_comm_cross_size(comm) == 1, "%d", hora_comm_cross_size(comm));
    harness_check(hora_comm_host(comm, size) == NULL, "a host for no rank");
    harness_check(hora_comm_host(comm, -1) == NULL, "a host for no rank");
    harness_check(hora_comm_transport(comm, size) == NULL, "a transport for no rank");
    for (int r = 0; r < size; r++) {
        const char *expected = r == rank ? "self" : transport;
        const char *got = hora_comm_transport(comm, r);
        harness_check(got != NULL && strcmp(got, expected) == 0, "rank %d: %s", r, got);
        harness_check(hora_comm_host(comm, r)[0] != '\0', "no host name of rank %d", r);
    }
    harness_ok(hora_comm_status(comm));
}

static void identity(void **state) {
    (void)state;
    run(identity_main, 0);
}

static void create_again_main(hora_comm_t *none, int rank, int size, void *arg) {
    (void)none, (void)rank, (void)arg;
    for (int i = 0; i < 3; i++) {
        hora_comm_t *comm = harness_join();
        sum_of_ranks(comm, triangle(size));
        harness_ok(hora_comm_free(comm));
    }
}

static void create_and_free_again(void **state) {
    (void)state;
    harness_job_t job = {
        .nranks = nranks, .main = create_again_main, .transport = transport, .bare = true};
    assert_int_equal(harness_run(&job), 0);
}

static void two_worlds_main(hora_comm_t *comm, int rank, int size, void *arg) {
    (void)rank, (void)arg;
    hora_comm_t *other = harness_join();
    sum_of_ranks(other, triangle(size));
    sum_of_ranks(comm, triangle(size));
    harness_ok(hora_comm_free(other));
    sum_of_ranks(comm, triangle(size));
}

static void two_worlds(void **state) {
    (void)state;
    run(two_worlds_main, 0);
}

/* ---- Requests ------------------------------------------------------------------------------ */

#define IN_FLIGHT 12

static void requests_main(hora_comm_t *comm, int rank, int size, void *arg) {
    coll_t colls[IN_FLIGHT];
    hora_request_t *requests[IN_FLIGHT];
    (void)arg;
    for (int i = 0; i < IN_FLIGHT; i++) {
        coll_t *c = &colls[i];
        hora_call_options_t start = HORA_CALL_OPTIONS_INIT;
        start.request_p = &requests[i];
        coll_kind_t kind = (coll_kind_t)(i % COLL_SENDRECV);
        coll_init(c, kind, HORA_FLOAT32, HORA_SUM, (size_t)(i * 2011 + 1));
        harness_check(coll_place(c, rank, size, i % size, i >= COLL_SENDRECV, (unsigned)i), "memory");
        c->in_memory = malloc(coll_bytes_in(c) + 1);
        c->out_memory = malloc(coll_bytes_out(c));
        coll_write(c);
        harness_ok(coll_call(c, comm, &start));
    }
    for (int k = 0; k < IN_FLIGHT; k++) {
        int i = IN_FLIGHT - 1 - k; /* the last one first: the others move on inside it */
        int done = 0;
        while (!done)
            harness_ok(hora_request_test(requests[i], &done));
        harness_ok(hora_request_wait(requests[i]));
    }
    for (int i = 0; i < IN_FLIGHT; i++) {
        harness_check(coll_wrong(&colls[i]) == 0, "%s", coll_name(colls[i].kind));
        free(colls[i].in_memory);
        free(colls[i].out_memory);
        coll_destroy(&colls[i]);
    }
    sum_of_ranks(comm, triangle(size));
}

static void requests_in_flight(void **state) {
    (void)state;
    run(requests_main, 0);
}

static void request_then_block_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_request_t *request, *barrier;
    hora_call_options_t start = HORA_CALL_OPTIONS_INIT;
    int64_t x = rank + 1, y = 0;
    (void)arg;
    start.request_p = &request;
    harness_ok(hora_allreduce(comm, &x, &y, 1, HORA_INT64, HORA_SUM, &start));
    start.request_p = &barrier;
    harness_ok(hora_barrier(comm, &start));
    sum_of_ranks(comm, triangle(size));
    harness_ok(hora_request_wait(request));
    harness_ok(hora_request_wait(barrier));
    harness_check(y == triangle(size), "%lld", (long long)y);
}

static void request_then_blocking_call(void **state) {
    (void)state;
    run(request_then_block_main, 0);
}

/* ---- Split --------------------------------------------------------------------------------- */

static void split_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_comm_t *half = NULL, *back = NULL, *none = (hora_comm_t *)&half;
    int half_size = (size + (rank % 2 == 0)) / 2;
    (void)arg;
    harness_ok(hora_comm_split(comm, rank % 2, rank, &half));
    harness_check(hora_comm_size(half) == half_size, "%d", hora_comm_size(half));
    harness_check(hora_comm_rank(half) == rank / 2, "%d", hora_comm_rank(half));
    sum_of_ranks(half, triangle(half_size));
    harness_ok(hora_comm_split(comm, 7, -rank, &back)); /* the order reversed */
    harness_check(hora_comm_rank(back) == size - 1 - rank, "%d", hora_comm_rank(back));
    int32_t x = rank, y = -1;
    harness_ok(hora_broadcast(back, &x, &y, 1, HORA_INT32, 0, NULL));
    harness_check(y == size - 1, "%d", y);
    harness_ok(hora_comm_split(comm, rank == 0 ? -1 : 0, 0, &none));
    harness_check((none == NULL) == (rank == 0), "a communicator for a negative color");
    if (none != NULL)
        sum_of_ranks(none, triangle(size - 1));
    harness_ok(hora_comm_free(none));
    sum_of_ranks(half, triangle(half_size));
    harness_ok(hora_comm_free(half));
    sum_of_ranks(back, triangle(size));
    harness_ok(hora_comm_free(back));
    sum_of_ranks(comm, triangle(size));
}

static void split(void **state) {
    (void)state;
    run(split_main, 0);
}

static void many_splits_main(hora_comm_t *comm, int rank, int size, void *arg) {
    (void)arg, (void)rank;
    for (int i = 0; i < 100; i++) {
        hora_comm_t *copy;
        harness_ok(hora_comm_split(comm, 0, 0, &copy));
        sum_of_ranks(copy, triangle(size));
        harness_ok(hora_comm_free(copy));
    }
}

static void split_a_hundred_times(void **state) {
    (void)state;
    run(many_splits_main, 0);
}

/* ---- Point to point ------------------------------------------------------------------------ */

#define MESSAGES 20

/* Everybody sends everybody messages of growing length; receives are asked for in another order of
 * tags than they were sent in. */
static void messages_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static int32_t out[MESSAGES][5000], in[MESSAGES][5000];
    (void)arg;
    for (int step = 1; step < size; step++) {
        int to = (rank + step) % size, from = (rank + size - step) % size;
        hora_request_t *sends[MESSAGES], *recvs[MESSAGES];
        hora_call_options_t start = HORA_CALL_OPTIONS_INIT;
        for (int m = 0; m < MESSAGES; m++) {
            for (int i = 0; i < m * 250; i++)
                out[m][i] = rank * 1000000 + m * 10000 + i;
            start.request_p = &sends[m];
            harness_ok(hora_send(comm, out[m], (size_t)(m * 250), HORA_INT32, to, m, &start));
        }
        for (int m = MESSAGES - 1; m >= 0; m--) {
            start.request_p = &recvs[m];
            harness_ok(hora_recv(comm, in[m], (size_t)(m * 250), HORA_INT32, from, m, &start));
        }
        for (int m = 0; m < MESSAGES; m++) {
            harness_ok(hora_request_wait(sends[m]));
            harness_ok(hora_request_wait(recvs[m]));
            for (int i = 0; i < m * 250; i++)
                harness_check(in[m][i] == from * 1000000 + m * 10000 + i, "message %d, [%d] = %d", m,
                              i, in[m][i]);
        }
    }
}

static void messages(void **state) {
    (void)state;
    run(messages_main, 0);
}

static void large_message_main(hora_comm_t *comm, int rank, int size, void *arg) {
    size_t n = 3000001;
    double *x = malloc(n * sizeof(*x));
    (void)arg;
    for (size_t i = 0; i < n; i++)
        x[i] = rank == 0 ? (double)i : -1;
    for (int hop = 0; hop + 1 < size; hop++) { /* along the chain of ranks */
        if (rank == hop)
            harness_ok(hora_send(comm, x, n, HORA_FLOAT64, hop + 1, 0, NULL));
        if (rank == hop + 1)
            harness_ok(hora_recv(comm, x, n, HORA_FLOAT64, hop, 0, NULL));
    }
    for (size_t i = 0; i < n; i++)
        harness_check(x[i] == (double)i, "[%zu] = %g", i, x[i]);
    free(x);
}

static void large_message(void **state) {
    (void)state;
    run(large_message_main, 0);
}

/* ---- Scaling, memory ----------------------------------------------------------------------- */

static void scaling_main(hora_comm_t *comm, int rank, int size, void *arg) {
    float x[1000], y[1000];
    hora_call_options_t scaled = HORA_CALL_OPTIONS_INIT;
    (void)arg;
    scaled.prescale = 0.5;
    scaled.postscale = 4.0;
    for (int i = 0; i < 1000; i++)
        x[i] = (float)(rank + i);
    harness_ok(hora_allreduce(comm, x, y, 1000, HORA_FLOAT32, HORA_SUM, &scaled));
    for (int i = 0; i < 1000; i++) {
        float expected = 2.0f * (float)(size * i + size * (size - 1) / 2);
        harness_check(y[i] == expected, "[%d] = %g, not %g", i, (double)y[i], (double)expected);
    }
    harness_ok(hora_allreduce(comm, x, x, 1000, HORA_FLOAT32, HORA_MAX, &scaled));
    for (int i = 0; i < 1000; i++)
        harness_check(x[i] == 2.0f * (float)(size - 1 + i), "[%d] = %g", i, (double)x[i]);
}

static void scaling(void **state) {
    (void)state;
    run(scaling_main, 0);
}

static void memory_main(hora_comm_t *comm, int rank, int size, void *arg) {
    void *blocks[64];
    (void)arg;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 64; i++) {
            size_t bytes = (size_t)(1 + i * i * 97);
            harness_ok(hora_alloc(comm, bytes, &blocks[i]));
            harness_check((uintptr_t)blocks[i] % 64 == 0, "%p", blocks[i]);
            memset(blocks[i], i, bytes);
        }
        for (int i = 0; i < 64; i++)
            for (size_t k = 0; k < (size_t)(1 + i * i * 97); k++)
                harness_check(((unsigned char *)blocks[i])[k] == i, "block %d overlaps", i);
        for (int i = 0; i < 64; i++)
            harness_ok(hora_free(comm, blocks[(i * 37 + rank) % 64]));
    }
    harness_ok(hora_free(comm, NULL));
    sum_of_ranks(comm, triangle(size));
}

static void memory(void **state) {
    (void)state;
    run(memory_main, 0);
}

/* ---- Errors -------------------------------------------------------------------------------- */

static void arguments_main(hora_comm_t *comm, int rank, int size, void *arg) {
    float x[4] = {1, 2, 3, 4}, y[4];
    (void)arg, (void)rank;
    hora_status_t invalid = HORA_ERR_INVALID_ARGUMENT;
    harness_expect(hora_allreduce(NULL, x, y, 4, HORA_FLOAT32, HORA_SUM, NULL), invalid);
    harness_expect(hora_allreduce(comm, NULL, y, 4, HORA_FLOAT32, HORA_SUM, NULL), invalid);
    harness_expect(hora_allreduce(comm, x, NULL, 4, HORA_FLOAT32, HORA_SUM, NULL), invalid);
    harness_expect(hora_allreduce(comm, x, y, 4, (hora_dtype_t)99, HORA_SUM, NULL), invalid);
    harness_expect(hora_allreduce(comm, x, y, 4, HORA_FLOAT32, (hora_op_t)99, NULL), invalid);
    harness_expect(hora_broadcast(comm, x, y, 4, HORA_FLOAT32, size, NULL), invalid);
    harness_expect(hora_broadcast(comm, x, y, 4, HORA_FLOAT32, -1, NULL), invalid);
    harness_expect(hora_send(comm, x, 4, HORA_FLOAT32, size, 0, NULL), invalid);
    harness_expect(hora_recv(comm, x, 4, HORA_FLOAT32, 0, -1, NULL), invalid);
    harness_expect(hora_allreduce(comm, x, y, SIZE_MAX / 2, HORA_FLOAT32, HORA_SUM, NULL), invalid);
    harness_check(hora_last_error()[0] != '\0', "no text");
    sum_of_ranks(comm, triangle(size)); /* nothing of all this was seen by the others */
}

static void invalid_arguments(void **state) {
    (void)state;
    run(arguments_main, 0);
}

/* A call on which the ranks disagree. */
typedef struct mismatch {
    hora_status_t (*call)(hora_comm_t *comm, int rank, int size);
} mismatch_t;

/* It must be found; the communicator then is of no more use, and says so. A rank that is still in
 * comm_create when the others find it hears of it there. */
static void mismatch_main(hora_comm_t *none, int rank, int size, void *arg) {
    const mismatch_t *mismatch = arg;
    hora_comm_t      *comm = NULL;
    double            begin = harness_now();
    hora_status_t     st = hora_comm_create(NULL, &comm);
    (void)none;
    if (st == HORA_OK && size > 1)
        st = mismatch->call(comm, rank, size);
    harness_check(st == (size > 1 ? HORA_ERR_MISMATCH : HORA_OK), "%s: %s", hora_status_name(st),
                  hora_last_error());
    harness_check(harness_now() - begin < 10, "it took %g s", harness_now() - begin);
    harness_ok(hora_comm_free(comm));
}

static void run_mismatch(hora_status_t (*call)(hora_comm_t *comm, int rank, int size)) {
    mismatch_t    mismatch = {call};
    harness_job_t job = {.nranks = nranks, .main = mismatch_main, .arg = &mismatch, .bare = true,
                         .transport = transport};
    assert_int_equal(harness_run(&job), 0);
}

static hora_status_t call_with_other_count(hora_comm_t *comm, int rank, int size) {
    static float x[10000], y[10000];
    size_t       count = rank == size - 1 ? 9999 : 10000;
    return hora_allreduce(comm, x, y, count, HORA_FLOAT32, HORA_SUM, NULL);
}

static void mismatched_counts(void **state) {
    (void)state;
    run_mismatch(call_with_other_count);
}

/* Rank 0 sends the last rank fewer elements than that one expects. */
static hora_status_t call_with_other_blocks(hora_comm_t *comm, int rank, int size) {
    static float  x[8 * 20], y[8 * 20];
    size_t        in[8], out[8], displs[8];
    hora_blocks_t from = {.data = x, .counts = in, .displs = displs};
    hora_blocks_t to = {.data = y, .counts = out, .displs = displs};
    for (int r = 0; r < size; r++) {
        in[r] = out[r] = (size_t)(10 + rank + r);
        displs[r] = 20 * (size_t)r;
    }
    if (rank == 0)
        in[size - 1]--;
    return hora_alltoallv(comm, &from, &to, HORA_FLOAT32, NULL);
}

static void mismatched_blocks(void **state) {
    (void)state;
    if (strcmp(transport, "shm") == 0 && nranks <= 8) /* by links, only the receiver finds out */
        run_mismatch(call_with_other_blocks);
}

static hora_status_t call_with_other_type(hora_comm_t *comm, int rank, int size) {
    int32_t      x[16] = {0}, y[16];
    hora_dtype_t dtype = rank == 0 ? HORA_FLOAT32 : HORA_INT32;
    (void)size;
    return hora_allreduce(comm, x, y, 16, dtype, HORA_SUM, NULL);
}

static void mismatched_types(void **state) {
    (void)state;
    run_mismatch(call_with_other_type);
}

static void abort_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_comm_t *other;
    float x = 1, y;
    (void)arg;
    harness_ok(hora_comm_split(comm, 0, 0, &other));
    if (rank == size - 1) {
        usleep(100000);
        harness_ok(hora_comm_abort(other, "the test says so"));
    }
    harness_expect(hora_allreduce(other, &x, &y, 1, HORA_FLOAT32, HORA_SUM, NULL),
                   HORA_ERR_ABORTED);
    harness_check(strstr(hora_last_error(), "the test says so") != NULL, "%s", hora_last_error());
    harness_expect(hora_barrier(other, NULL), HORA_ERR_ABORTED);
    harness_expect(hora_comm_status(other), HORA_ERR_ABORTED);
    harness_ok(hora_comm_free(other));
    sum_of_ranks(comm, triangle(size)); /* only that one communicator was aborted */
}

static void abort_reaches_every_rank(void **state) {
    (void)state;
    run(abort_main, 0);
}

static void timeout_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_call_options_t brief = HORA_CALL_OPTIONS_INIT;
    (void)arg;
    if (size == 1)
        return;
    brief.timeout = 0.3;
    double begin = harness_now();
    if (rank != 0) {
        hora_status_t st = hora_barrier(comm, &brief);
        harness_check(st == HORA_ERR_TIMEOUT || st == HORA_ERR_PEER_FAILED, "%s: %s",
                      hora_status_name(st), hora_last_error());
        harness_check(harness_now() - begin < 3, "%g s", harness_now() - begin);
    } else {
        usleep(1500000);
        harness_check(hora_barrier(comm, NULL) != HORA_OK, "a barrier that others gave up");
    }
}

static void timeout(void **state) {
    (void)state;
    run(timeout_main, 0);
}

int main(int argc, char **argv) {
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity),
        cmocka_unit_test(create_and_free_again),
        cmocka_unit_test(two_worlds),
        cmocka_unit_test(requests_in_flight),
        cmocka_unit_test(request_then_blocking_call),
        cmocka_unit_test(split),
        cmocka_unit_test(split_a_hundred_times),
        cmocka_unit_test(messages),
        cmocka_unit_test(large_message),
        cmocka_unit_test(scaling),
        cmocka_unit_test(memory),
        cmocka_unit_test(invalid_arguments),
        cmocka_unit_test(mismatched_counts),
        cmocka_unit_test(mismatched_types),
        cmocka_unit_test(mismatched_blocks),
        cmocka_unit_test(abort_reaches_every_rank),
        cmocka_unit_test(timeout),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
