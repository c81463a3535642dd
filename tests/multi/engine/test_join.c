/*
 * Ranks that run out of data at different times and join. `test_join shm 4`.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tasks.h"

static const char *transport;
static int         nranks;

static void run(harness_main_t rank_main) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .transport = transport};
    assert_int_equal(harness_run(&job), 0);
}

static hora_engine_t *engine_of(hora_comm_t *comm) {
    hora_engine_t *engine;
    harness_ok(hora_engine_create(comm, NULL, &engine));
    return engine;
}

static hora_handle_t *enqueue(hora_engine_t *engine, const hora_task_t *task, unsigned flags) {
    hora_handle_t *handle;
    harness_ok(hora_engine_enqueue(engine, task, 1, flags, &handle));
    return handle;
}

static void finish(hora_handle_t *handle) {
    harness_ok(hora_handle_wait(handle));
    hora_handle_release(handle);
}

static hora_handle_t *start_join(hora_engine_t *engine, int32_t *last, unsigned flags) {
    hora_task_t task = HORA_TASK_INIT;
    task.kind = HORA_TASK_JOIN;
    task.out = last;
    *last = -1;
    return enqueue(engine, &task, flags);
}

static int join(hora_engine_t *engine, unsigned flags) {
    int32_t last;
    finish(start_join(engine, &last, flags));
    return last;
}

static void expect_text(const char *a, const char *b) {
    harness_check(strstr(hora_last_error(), a) != NULL && strstr(hora_last_error(), b) != NULL,
                  "\"%s\" has no \"%s\" or no \"%s\"", hora_last_error(), a, b);
}

/* ---- Every operation ------------------------------------------------------------------------ */

/* Rank r does rounds 0 .. rounds_of(r) - 1 of an epoch; all ranks another number. */
static int rounds_of(int rank, int epoch, int size) {
    return 1 + (rank + epoch) % size;
}

/* In this round these ranks take part. */
typedef struct round {
    int size, rank, epoch, number, root, active;
    int divisor;
} round_t;

static bool is_active(const round_t *round, int rank) {
    return rounds_of(rank, round->epoch, round->size) > round->number;
}

static round_t round_of(int rank, int size, int epoch, int number, bool by_active) {
    round_t round = {.size = size, .rank = rank, .epoch = epoch, .number = number};
    for (int r = 0; r < size; r++) {
        round.active += is_active(&round, r);
        if (rounds_of(r, epoch, size) == size)
            round.root = r; /* the one that does most, and joins last */
    }
    round.divisor = by_active ? round.active : size;
    return round;
}

#define COUNT 11

/* What rank r brings; small, so that sums and products fit every type. */
static int value(int rank, int i, hora_op_t op) {
    return op == HORA_PRODUCT ? 1 + (rank % 4 == i % 4) : 1 + (i * 7 + rank * 3) % 3;
}

static int expected(const round_t *round, int i, hora_op_t op, hora_dtype_t dtype, int scale) {
    int  v = 0;
    bool first = true;
    for (int r = 0; r < round->size; r++) {
        int x = value(r, i, op) * scale;
        if (!is_active(round, r))
            continue;
        if (first)
            v = x;
        else if (op == HORA_PRODUCT)
            v *= x;
        else if (op == HORA_MIN)
            v = x < v ? x : v;
        else if (op == HORA_MAX)
            v = x > v ? x : v;
        else
            v += x;
        first = false;
    }
    if (dtype == HORA_BOOL)
        return 1;
    return op == HORA_AVERAGE ? v / round->divisor : v;
}

static void expect_element(const char *name, hora_dtype_t dtype, const void *buf, size_t i, int v) {
    uint8_t want[8] = {0};
    size_t  size = hora_dtype_size(dtype);
    element_put(want, dtype, 0, v);
    harness_check(memcmp(want, (const char *)buf + i * size, size) == 0,
                  "%s, %s: element %zu is not %d", name, hora_dtype_name(dtype), i, v);
}

/* One allreduce or reducescatter of COUNT elements. */
typedef struct reduction {
    hora_dtype_t   dtype;
    hora_op_t      op;
    int            scale;
    bool           scatters;
    char           name[64];
    uint64_t       in[COUNT], out[COUNT];
    hora_handle_t *handle;
} reduction_t;

static const hora_op_t ops[] = {HORA_AVERAGE, HORA_SUM, HORA_MIN, HORA_MAX, HORA_PRODUCT};

static bool is_float(hora_dtype_t dtype) {
    return dtype >= HORA_FLOAT16;
}

/* Averages that are no whole numbers would need the rounding of each type. */
static bool fits(const round_t *round, hora_dtype_t dtype, hora_op_t op) {
    if (!hora_op_supported(dtype, op))
        return false;
    return op != HORA_AVERAGE || !is_float(dtype) || round->divisor == 1;
}

static void start_reduction(hora_engine_t *engine, const round_t *round, reduction_t *x,
                            unsigned flags) {
    int64_t     shape = COUNT;
    hora_task_t task = HORA_TASK_INIT;
    for (int i = 0; i < COUNT; i++)
        element_put(x->in, x->dtype, (size_t)i, value(round->rank, i, x->op));
    task.kind = x->scatters ? HORA_TASK_REDUCESCATTER : HORA_TASK_ALLREDUCE;
    snprintf(x->name, sizeof(x->name), "%d.%d.%d.%d", x->scatters, x->dtype, x->op, x->scale);
    task.name = x->name;
    task.dtype = x->dtype;
    task.op = x->op;
    task.prescale = x->scale;
    task.ndim = 1;
    task.shape = &shape;
    task.in = x->in;
    task.out = x->scatters ? NULL : x->out;
    x->handle = enqueue(engine, &task, flags);
}

static void check_reduction(const round_t *round, reduction_t *x) {
    hora_output_t o = HORA_OUTPUT_INIT;
    const void   *out = x->out;
    int           rows = COUNT, first = 0;
    harness_ok(hora_handle_wait(x->handle));
    if (x->scatters) {
        harness_ok(hora_handle_output(x->handle, 0, &o));
        out = o.data;
        rows = COUNT / round->size + (round->rank < COUNT % round->size);
        for (int r = 0; r < round->rank; r++)
            first += COUNT / round->size + (r < COUNT % round->size);
        harness_check(o.shape[0] == rows, "%s: %lld rows", x->name, (long long)o.shape[0]);
    }
    for (int i = 0; i < rows; i++)
        expect_element(x->name, x->dtype, out, (size_t)i,
                       expected(round, first + i, x->op, x->dtype, x->scale));
    hora_output_free(&o);
    hora_handle_release(x->handle);
}

#define REDUCTIONS (2 * 2 * 5 * HORA_DTYPE_COUNT)

static int list_reductions(const round_t *round, reduction_t *list) {
    static const int scales[] = {1, -2};
    int              n = 0;
    for (int i = 0; i < 2; i++)
        for (int scatters = 0; scatters < 2; scatters++)
            for (size_t k = 0; k < 5; k++)
                for (int dtype = 0; dtype < HORA_DTYPE_COUNT; dtype++) {
                    if (!fits(round, (hora_dtype_t)dtype, ops[k]) ||
                        (scales[i] != 1 && !is_float((hora_dtype_t)dtype)))
                        continue;
                    list[n++] = (reduction_t){.dtype = (hora_dtype_t)dtype,
                                              .op = ops[k],
                                              .scale = scales[i],
                                              .scatters = scatters};
                }
    return n;
}

static void reductions(hora_engine_t *engine, const round_t *round, unsigned flags) {
    reduction_t *list = calloc(REDUCTIONS, sizeof(*list));
    int          n = list_reductions(round, list);
    for (int k = 0; k < n; k++)
        start_reduction(engine, round, &list[(k + round->rank) % n], flags);
    for (int k = 0; k < n; k++)
        check_reduction(round, &list[k]);
    free(list);
}

/* Rank r brings r + 1 rows of 3 to gather, and one row for each rank to exchange. */
static void movements(hora_engine_t *engine, const round_t *round) {
    int32_t        in[64 * 3], cast[2] = {0, 0};
    int64_t        shape[2] = {round->rank + 1, 3};
    hora_task_t    task = HORA_TASK_INIT;
    hora_output_t  o = HORA_OUTPUT_INIT;
    hora_handle_t *handles[4];
    int            at = 0;
    for (int i = 0; i < 64 * 3; i++)
        in[i] = 1000 * round->rank + i;
    task.dtype = HORA_INT32;
    task.ndim = 2;
    task.shape = shape;
    task.in = in;
    task.kind = HORA_TASK_ALLGATHER;
    task.name = "gather";
    handles[0] = enqueue(engine, &task, 0);
    shape[0] = round->size;
    task.kind = HORA_TASK_ALLTOALL;
    task.name = "exchange";
    handles[1] = enqueue(engine, &task, 0);
    shape[0] = 2;
    task.ndim = 1;
    task.kind = HORA_TASK_BROADCAST;
    task.name = "cast";
    task.root = round->root;
    task.out = cast;
    handles[2] = enqueue(engine, &task, 0);
    task.kind = HORA_TASK_BARRIER;
    task.name = "barrier";
    handles[3] = enqueue(engine, &task, 0);
    finish(handles[3]);
    finish(handles[2]);
    harness_check(cast[0] == 1000 * round->root && cast[1] == cast[0] + 1, "cast: %d", cast[0]);
    harness_ok(hora_handle_wait(handles[0]));
    harness_ok(hora_handle_output(handles[0], 0, &o));
    for (int r = 0; r < round->size; r++)
        for (int i = 0; i < (r + 1) * 3 && is_active(round, r); i++)
            harness_check(((int32_t *)o.data)[at++] == 1000 * r + i, "gather: element %d", at);
    harness_check(o.shape[0] * 3 == at, "gather: %lld rows", (long long)o.shape[0]);
    hora_output_free(&o);
    hora_handle_release(handles[0]);
    harness_ok(hora_handle_wait(handles[1]));
    harness_ok(hora_handle_output(handles[1], 0, &o));
    harness_check(o.shape[0] == round->active, "exchange: %lld rows", (long long)o.shape[0]);
    at = 0;
    for (int r = 0; r < round->size; r++) {
        harness_check(o.received_splits[r] == is_active(round, r), "exchange: splits[%d]", r);
        for (int i = 0; i < 3 && is_active(round, r); i++)
            harness_check(((int32_t *)o.data)[at++] == 1000 * r + 3 * round->rank + i,
                          "exchange: element %d", at);
    }
    hora_output_free(&o);
    hora_handle_release(handles[1]);
}

/* Tensors too large to be packed, a group, and a batch of more bytes than are packed at a time. */
static void large_ones(hora_engine_t *engine, const round_t *round) {
    enum { N = 300000, GROUP = 5 };
    float         *x = malloc(GROUP * N * sizeof(float));
    int64_t        shape = N;
    hora_task_t    tasks[GROUP];
    hora_task_t    init = HORA_TASK_INIT;
    char           names[GROUP][8];
    hora_handle_t *handle;
    for (int i = 0; i < GROUP * N; i++)
        x[i] = (float)(round->rank + i % 5);
    for (int i = 0; i < GROUP; i++) {
        snprintf(names[i], sizeof(names[i]), "g%d", i);
        tasks[i] = init;
        tasks[i].name = names[i];
        tasks[i].ndim = 1;
        tasks[i].shape = &shape;
        tasks[i].in = tasks[i].out = x + i * N;
    }
    shape = round->number % 2 ? N : N / 5;
    harness_ok(hora_engine_enqueue(engine, tasks, GROUP, 0, &handle));
    finish(handle);
    for (int i = 0; i < GROUP; i++)
        for (int k = 0; k < shape; k += 97) {
            int sum = 0;
            for (int r = 0; r < round->size; r++)
                sum += is_active(round, r) ? r + (i * N + k) % 5 : 0;
            harness_check(x[i * N + k] == (float)sum, "g%d: element %d is %g", i, k, x[i * N + k]);
        }
    free(x);
}

static void epochs_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    bool           by_active = arg != NULL;
    for (int epoch = 0; epoch < size + 1; epoch++) {
        unsigned flags = epoch % 2 ? HORA_ENQUEUE_WILL_WAIT : 0;
        for (int i = 0; i < rounds_of(rank, epoch, size); i++) {
            round_t round = round_of(rank, size, epoch, i, by_active);
            reductions(engine, &round, flags);
            movements(engine, &round);
            large_ones(engine, &round);
        }
        round_t round = round_of(rank, size, epoch, 0, false);
        int     last = join(engine, flags);
        harness_check(last == round.root, "rank %d joined last", last);
        engine_must_work(engine, comm, "all", 7);
    }
    harness_ok(hora_engine_free(engine));
}

static void every_operation(void **state) {
    harness_job_t job = {.nranks = nranks, .main = epochs_main, .transport = transport};
    (void)state;
    for (int by_active = 0; by_active < 2; by_active++) {
        setenv("HORA_JOIN_AVERAGE", by_active ? "active" : "size", 1);
        job.arg = by_active ? &job : NULL;
        assert_int_equal(harness_run(&job), 0);
    }
    unsetenv("HORA_JOIN_AVERAGE");
}

/* ---- Tasks in flight ------------------------------------------------------------------------ */

#define MANY 40

/* A rank joins while its own tasks are in flight, and enqueues the next ones before it is over. */
static void in_flight_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    tensor_t       t[2][MANY];
    char           name[32];
    (void)size, (void)arg;
    for (int epoch = 0; epoch < 8; epoch++) {
        int32_t        last;
        hora_handle_t *handle, *other;
        hora_task_t    second = HORA_TASK_INIT;
        for (int when = 0; when < 2; when++)
            for (int i = 0; i < MANY; i++) {
                snprintf(name, sizeof(name), "flight.%d.%d", epoch % 3 ? 0 : when, i);
                tensor_make(&t[when][i], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, 1, 1 + i);
            }
        for (int i = 0; i < MANY; i++)
            tensor_enqueue(engine, &t[0][(i + rank) % MANY], 0);
        if (rank == epoch % size)
            usleep(10000);
        handle = start_join(engine, &last, 0);
        second.kind = HORA_TASK_JOIN;
        second.out = &last;
        harness_check(hora_handle_poll(handle) ||
                          hora_engine_enqueue(engine, &second, 1, 0, &other) ==
                              HORA_ERR_DUPLICATE_NAME ||
                          hora_handle_poll(handle),
                      "a second join at one time");
        for (int i = 0; i < MANY; i++)
            if (epoch % 3 == 0) /* other names: those before are in flight */
                tensor_enqueue(engine, &t[1][i], 0);
        if (epoch % 2)
            finish(handle);
        for (int i = 0; i < MANY; i++)
            tensor_finish(&t[0][i], comm);
        for (int i = 0; i < MANY; i++)
            if (epoch % 3 == 0)
                tensor_finish(&t[1][i], comm);
        if (epoch % 2 == 0)
            finish(handle);
        harness_check(last >= 0 && last < size, "rank %d joined last", last);
        for (int i = 0; i < MANY; i++) {
            tensor_free(&t[0][i]);
            tensor_free(&t[1][i]);
        }
    }
    harness_ok(hora_engine_free(engine));
}

static void tasks_are_in_flight(void **state) {
    (void)state;
    run(in_flight_main);
}

/* ---- Errors meanwhile ----------------------------------------------------------------------- */

static void errors_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    (void)arg;
    for (int joiner = 0; joiner < size; joiner++) {
        tensor_t cast, odd;
        bool     joins = rank == joiner;
        tensor_make(&cast, comm, HORA_TASK_BROADCAST, HORA_FLOAT32, "cast", 2, 3);
        tensor_make(&odd, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "odd", 3, 1 + rank);
        cast.task.root = joiner;
        if (!joins) {
            tensor_enqueue(engine, &cast, joiner % 2 ? HORA_ENQUEUE_WILL_WAIT : 0);
            harness_expect(hora_handle_wait(cast.handle), HORA_ERR_MISMATCH);
            expect_text("cast", "has joined");
            hora_handle_release(cast.handle);
            if (size > 2) {
                tensor_enqueue(engine, &odd, 0);
                harness_expect(hora_handle_wait(odd.handle), HORA_ERR_MISMATCH);
                hora_handle_release(odd.handle);
            }
        }
        join(engine, 0);
        tensor_fill(&cast, comm);
        tensor_enqueue(engine, &cast, 0); /* with the root as well */
        tensor_finish(&cast, comm);
        engine_must_work(engine, comm, "odd", 4);
        tensor_free(&cast);
        tensor_free(&odd);
    }
    harness_ok(hora_engine_free(engine));
}

static void errors_between_the_others(void **state) {
    (void)state;
    if (nranks == 1)
        return;
    run(errors_main);
}

/* The others go on without rank 0 for longer than a join may wait for nothing. Then one of them
 * stops, and does not join either. */
static void stall_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    int            idle = size - 1;
    int32_t        last;
    hora_handle_t *handle;
    (void)arg;
    for (int i = 0; i < 15 && rank != 0; i++) {
        float       x = 1;
        hora_task_t task = HORA_TASK_INIT;
        usleep(100000);
        task.name = "alive";
        task.in = task.out = &x;
        finish(enqueue(engine, &task, 0));
        harness_check(x == (float)(size - 1), "alive: %g", x);
    }
    if (rank == idle)
        usleep(2500000);
    handle = start_join(engine, &last, 0);
    harness_expect(hora_handle_wait(handle), HORA_ERR_TIMEOUT);
    expect_text("join", "waited");
    hora_handle_release(handle);
    harness_ok(hora_barrier(comm, NULL));
    harness_check(join(engine, 0) >= 0, "the next join");
    engine_must_work(engine, comm, "alive", 5);
    harness_ok(hora_engine_free(engine));
}

static void a_join_ends_when_nothing_goes_on(void **state) {
    (void)state;
    if (nranks == 1)
        return;
    setenv("HORA_STALL_CHECK_TIME_SECONDS", "0.4", 1);
    setenv("HORA_STALL_SHUTDOWN_TIME_SECONDS", "1", 1);
    setenv("HORA_LOG_LEVEL", "error", 1);
    run(stall_main);
    unsetenv("HORA_STALL_CHECK_TIME_SECONDS");
    unsetenv("HORA_STALL_SHUTDOWN_TIME_SECONDS");
    unsetenv("HORA_LOG_LEVEL");
}

/* The late rank computes for longer than an operation may take. */
static void patience_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    (void)arg;
    for (int late = 0; late < size; late += size - 1) {
        if (rank == late)
            usleep(2500000);
        harness_check(join(engine, late ? 0 : HORA_ENQUEUE_WILL_WAIT) == late, "the last rank");
        engine_must_work(engine, comm, "patient", 5);
    }
    harness_ok(hora_engine_free(engine));
}

static void a_join_waits_for_who_computes(void **state) {
    harness_job_t job = {
        .nranks = nranks, .main = patience_main, .transport = transport, .timeout = 1};
    (void)state;
    if (nranks == 1)
        return;
    assert_int_equal(harness_run(&job), 0);
}

/* ---- Leaving and dying ---------------------------------------------------------------------- */

typedef struct end {
    int  victim; /* -1: the last */
    bool dies;   /* else it frees its engine */
    bool joined; /* before */
} end_t;

/* The others work with the victim's ghost until there is none. */
static hora_status_t work_until_it_fails(hora_engine_t *engine) {
    hora_status_t st = HORA_OK;
    while (st == HORA_OK) {
        float          x = 1;
        hora_handle_t *handle;
        hora_task_t    task = HORA_TASK_INIT;
        task.name = "join us";
        task.in = task.out = &x;
        handle = enqueue(engine, &task, 0);
        st = hora_handle_wait(handle);
        hora_handle_release(handle);
    }
    return st;
}

static hora_status_t join_that_fails(hora_engine_t *engine, unsigned flags) {
    int32_t        last;
    hora_handle_t *handle = start_join(engine, &last, flags);
    hora_status_t  st = hora_handle_wait(handle);
    hora_handle_release(handle);
    return st;
}

static void end_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const end_t   *end = arg;
    int            victim = end->victim < 0 ? size - 1 : end->victim;
    hora_engine_t *engine = engine_of(comm);
    int32_t        last;
    double         begin;
    char           who[32];
    hora_status_t  st;
    snprintf(who, sizeof(who), "rank %d ", victim);
    engine_must_work(engine, comm, "first", 5);
    if (rank == victim) {
        if (end->joined)
            start_join(engine, &last, 0); /* never released: the process ends */
        usleep(50000);
        if (end->dies)
            raise(SIGKILL);
        harness_ok(hora_engine_free(engine));
        harness_ok(hora_barrier(comm, NULL));
        return;
    }
    begin = harness_now();
    st = end->joined ? work_until_it_fails(engine)
                     : join_that_fails(engine, rank % 2 ? 0 : HORA_ENQUEUE_WILL_WAIT);
    harness_check(st == HORA_ERR_PEER_FAILED || st == HORA_ERR_SHUT_DOWN, "%s: %s",
                  hora_status_name(st), hora_last_error());
    /* Rank 0 may be through, and have freed its engine too. */
    expect_text("join", st == HORA_ERR_SHUT_DOWN ? "rank " : who);
    harness_check(harness_now() - begin < 5, "it took %.1f s", harness_now() - begin);
    harness_ok(hora_engine_free(engine));
    if (!end->dies)
        harness_ok(hora_barrier(comm, NULL));
}

static void a_rank_ends_meanwhile(void **state) {
    static const end_t ends[] = {{0, false, false}, {-1, false, false}, {0, true, false},
                                 {-1, true, false}, {0, true, true},    {-1, true, true}};
    (void)state;
    if (nranks == 1)
        return;
    setenv("HORA_LOG_LEVEL", "off", 1);
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
        end_t         end = ends[i];
        ranks_end_t   codes[64];
        harness_job_t job = {
            .nranks = nranks, .main = end_main, .transport = transport, .arg = &end};
        int victim = end.victim < 0 ? nranks - 1 : end.victim;
        harness_run_ends(&job, codes);
        for (int r = 0; r < nranks; r++)
            if (r != victim || !end.dies)
                assert_int_equal(codes[r].code, 0);
    }
    unsetenv("HORA_LOG_LEVEL");
}

/* ---- Arguments ------------------------------------------------------------------------------ */

/* A task that is called as joins are in messages, beside a join. */
static void names_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    float          x = 3;
    int32_t        last;
    hora_task_t    task = HORA_TASK_INIT;
    hora_handle_t *handle, *joining;
    (void)arg;
    task.name = "of all ranks";
    task.in = task.out = &x;
    handle = rank == 0 ? enqueue(engine, &task, 0) : NULL;
    joining = start_join(engine, &last, 0);
    if (rank == 0)
        finish(handle);
    harness_check(x == 3, "%g", x); /* the others bring nothing */
    finish(joining);
    x = 1;
    finish(enqueue(engine, &task, 0));
    harness_check(x == (float)size, "%g", x);
    harness_ok(hora_engine_free(engine));
}

static void a_task_may_be_called_so(void **state) {
    (void)state;
    run(names_main);
}

static void arguments_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    hora_task_t    pair[2] = {HORA_TASK_INIT, HORA_TASK_INIT};
    hora_handle_t *handle;
    int32_t        last = -1;
    (void)rank, (void)arg;
    pair[0].kind = HORA_TASK_JOIN;
    harness_expect(hora_engine_enqueue(engine, pair, 1, 0, &handle), HORA_ERR_INVALID_ARGUMENT);
    pair[0].out = &last;
    pair[1].name = "barrier";
    pair[1].kind = HORA_TASK_BARRIER;
    harness_expect(hora_engine_enqueue(engine, pair, 2, 0, &handle), HORA_ERR_INVALID_ARGUMENT);
    last = join(engine, 0);
    harness_check(last >= 0 && last < size && (size > 1 || last == 0), "rank %d", last);
    harness_ok(hora_engine_free(engine));
}

static void arguments(void **state) {
    (void)state;
    run(arguments_main);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_operation),
        cmocka_unit_test(tasks_are_in_flight),
        cmocka_unit_test(errors_between_the_others),
        cmocka_unit_test(a_join_ends_when_nothing_goes_on),
        cmocka_unit_test(a_join_waits_for_who_computes),
        cmocka_unit_test(a_rank_ends_meanwhile),
        cmocka_unit_test(a_task_may_be_called_so),
        cmocka_unit_test(arguments),
    };
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
