/*
 * Adasum over one transport with one number of ranks: `test_adasum shm 4`. Values in the communicator
 * API and in the engine, started calls, neutral ranks, and what is refused.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "adasum.h"
#include "harness.h"

static const char *transport;
static int         nranks;

static void run(harness_main_t rank_main) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .transport = transport};
    assert_int_equal(harness_run(&job), 0);
}

/* ---- The communicator API -------------------------------------------------------------------- */

static void values_main(hora_comm_t *comm, int rank, int size, void *arg) {
    (void)rank, (void)size, (void)arg;
    harness_check(adasum_check_all(comm) == 0, "see above");
}

static void values(void **state) {
    (void)state;
    run(values_main);
}

#define STARTED 3
#define LENGTH  20011

static void started_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static float        x[STARTED][LENGTH];
    hora_request_t     *requests[STARTED];
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    (void)arg;
    for (unsigned k = 0; k < STARTED; k++) {
        for (size_t i = 0; i < LENGTH; i++)
            x[k][i] = (float)adasum_value(rank, i, k);
        options.request_p = &requests[k];
        harness_ok(hora_allreduce(comm, x[k], x[k], LENGTH, HORA_FLOAT32, HORA_ADASUM, &options));
    }
    for (int done = 0; rank % 2 && !done;)
        harness_check(hora_request_test(requests[1], &done) >= 0, "%s", hora_last_error());
    for (unsigned k = 0; k < STARTED; k++) {
        harness_ok(hora_request_wait(requests[k]));
        harness_check(adasum_wrong(size, LENGTH, k, HORA_FLOAT32, 1.0, x[k]) == 0, "call %u", k);
    }
}

static void started_calls(void **state) {
    (void)state;
    run(started_main);
}

/* All ranks but one bring zeros: the result is what the one brought, to the bit. */
static void neutral_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static float x[1000];
    (void)arg;
    for (int alone = 0; alone < size; alone++) {
        for (size_t i = 0; i < 1000; i++)
            x[i] = rank == alone ? (float)adasum_value(3, i, 5) : 0;
        harness_ok(hora_allreduce(comm, x, x, 1000, HORA_FLOAT32, HORA_ADASUM, NULL));
        for (size_t i = 0; i < 1000; i++)
            harness_check(x[i] == (float)adasum_value(3, i, 5), "element %zu: %g", i, (double)x[i]);
    }
    x[0] = rank == size - 1 ? NAN : 1;
    x[1] = 1;
    harness_ok(hora_allreduce(comm, x, x, 2, HORA_FLOAT32, HORA_ADASUM, NULL));
    harness_check(isnan(x[0]), "%g", (double)x[0]);
    x[0] = x[1] = rank == 0 ? INFINITY : 1;
    harness_ok(hora_allreduce(comm, x, x, 2, HORA_FLOAT32, HORA_ADASUM, NULL));
    harness_check(!isfinite(x[0]), "%g", (double)x[0]);
}

static void zeros_are_neutral(void **state) {
    (void)state;
    run(neutral_main);
}

static void says(const char *words) {
    harness_check(strstr(hora_last_error(), words) != NULL, "no '%s' in: %s", words,
                  hora_last_error());
}

static void refused_main(hora_comm_t *comm, int rank, int size, void *arg) {
    int32_t        i[64] = {0};
    float          x[64] = {0};
    hora_task_t    task = HORA_TASK_INIT;
    int64_t        shape = size;
    hora_engine_t *engine;
    hora_handle_t *handle;
    (void)rank, (void)arg;
    harness_expect(hora_allreduce(comm, i, i, 2, HORA_INT32, HORA_ADASUM, NULL),
                   HORA_ERR_UNSUPPORTED);
    says("floating-point");
    says("int32");
    harness_expect(hora_reduce(comm, x, x, 2, HORA_FLOAT32, HORA_ADASUM, 0, NULL),
                   HORA_ERR_UNSUPPORTED);
    says("allreduce only");
    harness_expect(hora_reduce_scatter(comm, x, x, 1, HORA_FLOAT32, HORA_ADASUM, NULL),
                   HORA_ERR_UNSUPPORTED);
    harness_ok(hora_engine_create(comm, NULL, &engine));
    task.name = "t";
    task.op = HORA_ADASUM;
    task.ndim = 1;
    task.shape = &shape;
    task.in = x;
    task.kind = HORA_TASK_REDUCESCATTER;
    harness_expect(hora_engine_enqueue(engine, &task, 1, 0, &handle), HORA_ERR_UNSUPPORTED);
    says("allreduce only");
    task.kind = HORA_TASK_ALLREDUCE;
    task.out = x;
    task.dtype = HORA_INT32;
    harness_expect(hora_engine_enqueue(engine, &task, 1, 0, &handle), HORA_ERR_UNSUPPORTED);
    says("floating-point");
    harness_ok(hora_engine_free(engine));
}

static void refused(void **state) {
    (void)state;
    run(refused_main);
}

/* ---- Errors between ranks -------------------------------------------------------------------- */

static void mismatch_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static float x[5000];
    (void)arg;
    hora_status_t st = hora_allreduce(comm, x, x, 5000, HORA_FLOAT32,
                                      rank == size - 1 ? HORA_SUM : HORA_ADASUM, NULL);
    harness_check(st == HORA_ERR_MISMATCH, "%s: %s", hora_status_name(st), hora_last_error());
    says("adasum");
    says("sum");
}

static void death_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static float x[100000];
    double       begin = harness_now();
    (void)size, (void)arg;
    hora_status_t st = hora_barrier(comm, NULL); /* nobody is still joining when rank 1 dies */
    if (rank == 1)
        _exit(7);
    if (st == HORA_OK)
        st = hora_allreduce(comm, x, x, 100000, HORA_FLOAT32, HORA_ADASUM, NULL);
    harness_check(st == HORA_ERR_PEER_FAILED, "%s: %s", hora_status_name(st), hora_last_error());
    harness_check(harness_now() - begin < 15, "after %g s", harness_now() - begin);
}

static void errors_between_ranks(void **state) {
    harness_job_t job = {.nranks = nranks, .main = mismatch_main, .transport = transport};
    ranks_end_t   ends[16];
    (void)state;
    if (nranks == 1)
        skip();
    assert_int_equal(harness_run(&job), 0);
    job.main = death_main;
    assert_int_equal(harness_run_ends(&job, ends), 1);
    assert_int_equal(ends[1].code, 7);
}

/* ---- The engine ------------------------------------------------------------------------------ */

#define TENSORS 40

typedef struct tensors {
    hora_task_t    tasks[TENSORS];
    hora_handle_t *handles[TENSORS];
    int64_t        shapes[TENSORS];
    char           names[TENSORS][32];
    void          *data[TENSORS];
} tensors_t;

static const hora_dtype_t mixed[] = {HORA_FLOAT32, HORA_FLOAT32, HORA_BFLOAT16, HORA_FLOAT32,
                                     HORA_FLOAT64, HORA_FLOAT16};

static void make_tensors(tensors_t *t, int rank, unsigned salt) {
    const hora_task_t init = HORA_TASK_INIT;
    for (int k = 0; k < TENSORS; k++) {
        hora_dtype_t dtype = mixed[k % 6];
        t->shapes[k] = k == 7 ? 90001 : k * 37 % 200;
        t->data[k] = malloc((size_t)t->shapes[k] * hora_dtype_size(dtype) + 1);
        snprintf(t->names[k], sizeof(t->names[k]), "%s.%d", salt % 2 ? "grouped" : "single", k);
        for (size_t i = 0; i < (size_t)t->shapes[k]; i++)
            adasum_put(dtype, t->data[k], i, adasum_value(rank, i, salt + (unsigned)k));
        t->tasks[k] = init;
        t->tasks[k].name = t->names[k];
        t->tasks[k].dtype = dtype;
        t->tasks[k].ndim = 1;
        t->tasks[k].shape = &t->shapes[k];
        t->tasks[k].in = t->tasks[k].out = t->data[k];
        t->tasks[k].op = k % 11 == 10 ? HORA_AVERAGE : HORA_ADASUM;
    }
}

/* An average between the Adasums must not be fused with them. */
static void check_tensors(tensors_t *t, int size, unsigned salt) {
    for (int k = 0; k < TENSORS; k++) {
        hora_dtype_t dtype = t->tasks[k].dtype;
        size_t       count = (size_t)t->shapes[k], wrong = 0;
        if (t->tasks[k].op == HORA_ADASUM)
            wrong = adasum_wrong(size, count, salt + (unsigned)k, dtype, 1.0, t->data[k]);
        for (size_t i = 0; t->tasks[k].op == HORA_AVERAGE && i < count; i++) {
            double mean = 0, got = adasum_get(dtype, t->data[k], i);
            for (int r = 0; r < size; r++)
                mean += adasum_value(r, i, salt + (unsigned)k) / size;
            wrong += !(fabs(got - mean) < 0.02 * (1 + fabs(mean)));
        }
        harness_check(wrong == 0, "%s (%zu x %s): %zu wrong", t->names[k], count,
                      hora_dtype_name(dtype), wrong);
        free(t->data[k]);
    }
}

static void engine_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine;
    static tensors_t t;
    (void)arg;
    harness_ok(hora_engine_create(comm, NULL, &engine));
    for (unsigned round = 0; round < 6; round++) {
        unsigned salt = 100 * round + round % 2;
        size_t   nhandles = round % 2 ? 1 : TENSORS;
        make_tensors(&t, rank, salt);
        if (round % 2)
            harness_ok(hora_engine_enqueue(engine, t.tasks, TENSORS, 0, t.handles));
        for (size_t k = 0; round % 2 == 0 && k < TENSORS; k++) {
            size_t i = rank % 2 ? TENSORS - 1 - k : k; /* each rank in an order of its own */
            harness_ok(hora_engine_enqueue(engine, &t.tasks[i], 1, HORA_ENQUEUE_WILL_WAIT,
                                           &t.handles[i]));
        }
        for (size_t k = 0; k < nhandles; k++) {
            harness_ok(hora_handle_wait(t.handles[k]));
            hora_handle_release(t.handles[k]);
        }
        check_tensors(&t, size, salt);
    }
    harness_ok(hora_engine_free(engine));
}

static void engine_takes_each_tensor_by_itself(void **state) {
    (void)state;
    run(engine_main);
}

int main(int argc, char **argv) {
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),
        cmocka_unit_test(started_calls),
        cmocka_unit_test(zeros_are_neutral),
        cmocka_unit_test(refused),
        cmocka_unit_test(errors_between_ranks),
        cmocka_unit_test(engine_takes_each_tensor_by_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
