/*
 * The engine when all ranks do what they should: every kind and type, orders that differ, groups,
 * names that come again with other shapes, many threads, nobody waiting. `test_engine shm 4`.
 */
#include <pthread.h>
#include <setjmp.h>
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

static hora_engine_t *engine_of(hora_comm_t *comm, int64_t threshold) {
    hora_engine_options_t options = HORA_ENGINE_OPTIONS_INIT;
    hora_engine_t        *engine;
    options.fusion_threshold = threshold;
    harness_ok(hora_engine_create(comm, &options, &engine));
    return engine;
}

static void shuffle(size_t *order, size_t n, unsigned seed) {
    for (size_t i = 0; i < n; i++)
        order[i] = i;
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)rand_r(&seed) % i, k = order[i - 1];
        order[i - 1] = order[j];
        order[j] = k;
    }
}

/* ---- Kinds and types ----------------------------------------------------------------------- */

/* Rows that each rank brings or gets; some have none. */
static void uneven(tensor_t *t, int size, int64_t rows) {
    for (int r = 0; r < size; r++)
        t->splits[r] = (rows + r) % 4;
}

static void make_kind(tensor_t *t, hora_comm_t *comm, hora_task_kind_t kind, hora_dtype_t dtype,
                      const char *name, int64_t rows, int64_t row) {
    int      size = hora_comm_size(comm), rank = hora_comm_rank(comm);
    tensor_t lists = {0};
    uneven(&lists, size, rows);
    if (kind == HORA_TASK_ALLGATHER)
        rows = lists.splits[rank];
    if (kind == HORA_TASK_ALLTOALL)
        for (int r = rows = 0; r < size; r++)
            rows += lists.splits[r];
    tensor_make(t, comm, kind, dtype, name, rows, row);
    memcpy(t->splits, lists.splits, sizeof(t->splits));
    if (kind == HORA_TASK_ALLTOALL) {
        t->task.nsplits = size;
        t->task.splits = t->splits;
    }
    if (kind == HORA_TASK_BROADCAST)
        t->task.root = (int)(rows % size);
    if (kind == HORA_TASK_REDUCESCATTER && dtype == HORA_BOOL)
        t->task.op = HORA_MAX;
}

static void kinds_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    char           name[64];
    (void)rank, (void)size, (void)arg;
    for (int kind = 0; kind <= HORA_TASK_BARRIER; kind++)
        for (int dtype = 0; dtype < HORA_DTYPE_COUNT; dtype++)
            for (int64_t rows = 0; rows < 8; rows += 3) {
                tensor_t t;
                snprintf(name, sizeof(name), "%d.%d", kind, dtype);
                make_kind(&t, comm, (hora_task_kind_t)kind, (hora_dtype_t)dtype, name, rows, 5);
                tensor_enqueue(engine, &t, rows == 3 ? 0 : HORA_ENQUEUE_WILL_WAIT);
                tensor_finish(&t, comm);
                tensor_free(&t);
            }
    harness_ok(hora_engine_free(engine));
}

static void kinds_and_types(void **state) {
    (void)state;
    run(kinds_main);
}

/* ---- Orders -------------------------------------------------------------------------------- */

#ifndef MANY
#define MANY 300 /* fewer where each takes long */
#endif

static void make_many(tensor_t *many, hora_comm_t *comm) {
    static const hora_dtype_t dtypes[] = {HORA_FLOAT32, HORA_FLOAT64, HORA_BFLOAT16, HORA_INT32};
    char name[64];
    for (int i = 0; i < MANY; i++) {
        hora_task_kind_t kind = i % 10 == 9 ? (hora_task_kind_t)(i / 10 % HORA_TASK_JOIN)
                                            : HORA_TASK_ALLREDUCE;
        snprintf(name, sizeof(name), "layer.%d.weight", i);
        make_kind(&many[i], comm, kind, dtypes[i % 4], name, i % 7, 1 + i % 13);
    }
}

static void orders_main(hora_comm_t *comm, int rank, int size, void *arg) {
    tensor_t      *many = calloc(MANY, sizeof(*many));
    size_t         order[MANY];
    hora_engine_t *engine = engine_of(comm, *(int64_t *)arg);
    (void)size;
    make_many(many, comm);
    for (unsigned round = 0; round < 6; round++) {
        shuffle(order, MANY, 100 * round + (unsigned)rank);
        for (size_t i = 0; i < MANY; i++) {
            tensor_fill(&many[order[i]], comm);
            tensor_enqueue(engine, &many[order[i]], round % 2 ? HORA_ENQUEUE_WILL_WAIT : 0);
        }
        shuffle(order, MANY, 7 * round + (unsigned)rank);
        for (size_t i = 0; i < MANY; i++)
            tensor_finish(&many[order[i]], comm);
    }
    for (size_t i = 0; i < MANY; i++)
        tensor_free(&many[i]);
    free(many);
    harness_ok(hora_engine_free(engine));
}

static void orders_differ(void **state) {
    int64_t       thresholds[] = {0, -1, 100, 4096};
    harness_job_t job = {.nranks = nranks, .main = orders_main, .transport = transport};
    (void)state;
    for (size_t i = 0; i < sizeof(thresholds) / sizeof(thresholds[0]); i++) {
        job.arg = &thresholds[i];
        assert_int_equal(harness_run(&job), 0);
    }
}

/* ---- Fusion -------------------------------------------------------------------------------- */

#define FUSED 60

/* Tensors of one kind that are packed, some that are too large for it, and some that are empty. */
static void fused_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const hora_task_kind_t kinds[] = {HORA_TASK_BROADCAST, HORA_TASK_REDUCESCATTER,
                                             HORA_TASK_ALLGATHER, HORA_TASK_ALLREDUCE};
    static const hora_dtype_t     dtypes[] = {HORA_FLOAT32, HORA_UINT8, HORA_FLOAT64};
    hora_engine_t *engine = engine_of(comm, *(int64_t *)arg);
    tensor_t      *t = calloc(FUSED, sizeof(*t));
    char           name[64];
    (void)size;
    for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
        for (int i = 0; i < FUSED; i++) {
            snprintf(name, sizeof(name), "fused.%d", i);
            make_kind(&t[i], comm, kinds[k], dtypes[i / 20], name, i % 9,
                      i % 20 == 7 ? 30000 : i % 20 == 13 ? 9000 : 1 + i * 5 % 19);
            if (kinds[k] == HORA_TASK_BROADCAST)
                t[i].task.root = i % 3 ? 0 : size - 1;
        }
        for (int round = 0; round < 3; round++) {
            for (int i = 0; i < FUSED; i++) {
                tensor_fill(&t[(i + rank) % FUSED], comm);
                tensor_enqueue(engine, &t[(i + rank) % FUSED], HORA_ENQUEUE_WILL_WAIT);
            }
            for (int i = 0; i < FUSED; i++)
                tensor_finish(&t[i], comm);
        }
        for (int i = 0; i < FUSED; i++)
            tensor_free(&t[i]);
    }
    free(t);
    harness_ok(hora_engine_free(engine));
}

static void every_kind_fuses(void **state) {
    int64_t       thresholds[] = {0, -1, 3000};
    harness_job_t job = {.nranks = nranks, .main = fused_main, .transport = transport};
    (void)state;
    for (size_t i = 0; i < sizeof(thresholds) / sizeof(thresholds[0]); i++) {
        job.arg = &thresholds[i];
        assert_int_equal(harness_run(&job), 0);
    }
}

/* ---- Groups -------------------------------------------------------------------------------- */

#define GROUP 20

static void groups_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    tensor_t       t[3][GROUP];
    hora_task_t    tasks[GROUP];
    hora_handle_t *handles[3];
    char           name[64];
    (void)size, (void)arg;
    for (int round = 0; round < 3; round++) {
        for (int g = 0; g < 3; g++) {
            int group = (g + rank + round) % 3; /* groups come in other orders on each rank */
            for (int i = 0; i < GROUP; i++) {
                int k = (i + rank) % GROUP; /* and so do the tensors in them */
                snprintf(name, sizeof(name), "g%d.%d", group, k);
                tensor_make(&t[group][i], comm, HORA_TASK_ALLREDUCE,
                            k % 3 ? HORA_FLOAT32 : HORA_FLOAT16, name, 1 + k % 4, 3);
                tasks[i] = t[group][i].task;
            }
            harness_ok(hora_engine_enqueue(engine, tasks, GROUP, 0, &handles[group]));
        }
        for (int group = 0; group < 3; group++) {
            harness_ok(hora_handle_wait(handles[group]));
            for (int i = 0; i < GROUP; i++) {
                tensor_check(&t[group][i], comm, handles[group], (size_t)i);
                tensor_free(&t[group][i]);
            }
            hora_handle_release(handles[group]);
        }
    }
    harness_ok(hora_engine_free(engine));
}

static void groups(void **state) {
    (void)state;
    run(groups_main);
}

/* ---- Names that come again ----------------------------------------------------------------- */

static void changes_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    (void)rank, (void)size, (void)arg;
    for (int i = 0; i < 60; i++) {
        tensor_t t;
        make_kind(&t, comm, i % 5 == 4 ? HORA_TASK_BROADCAST : HORA_TASK_ALLREDUCE,
                  i % 3 ? HORA_FLOAT32 : HORA_INT64, "same", i / 4 % 3, 2 + i / 8);
        t.task.prescale = i % 7 == 6 && t.task.kind == HORA_TASK_ALLREDUCE ? 1.0 : t.task.prescale;
        tensor_enqueue(engine, &t, 0);
        tensor_finish(&t, comm);
        tensor_free(&t);
    }
    harness_ok(hora_engine_free(engine));
}

static void parameters_change(void **state) {
    (void)state;
    run(changes_main);
}

#define LONG_NAMES 1500

/* The first round's requests and responses need several frames. */
static void long_names_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    tensor_t      *t = calloc(LONG_NAMES, sizeof(*t));
    char           name[128];
    (void)rank, (void)size, (void)arg;
    for (int i = 0; i < LONG_NAMES; i++) {
        snprintf(name, sizeof(name), "%090d", i);
        tensor_make(&t[i], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, 1, 1 + i % 5);
    }
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < LONG_NAMES; i++) {
            tensor_fill(&t[i], comm);
            tensor_enqueue(engine, &t[i], HORA_ENQUEUE_WILL_WAIT);
        }
        for (int i = 0; i < LONG_NAMES; i++)
            tensor_finish(&t[i], comm);
    }
    for (int i = 0; i < LONG_NAMES; i++)
        tensor_free(&t[i]);
    free(t);
    harness_ok(hora_engine_free(engine));
}

static void names_fill_many_frames(void **state) {
    (void)state;
    run(long_names_main);
}

/* ---- Threads ------------------------------------------------------------------------------- */

typedef struct worker {
    pthread_t      thread;
    hora_engine_t *engine;
    hora_comm_t   *comm;
    int            number;
} worker_t;

static void *work(void *arg) {
    worker_t *w = arg;
    tensor_t  t[8];
    char      name[64];
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < 8; i++) {
            snprintf(name, sizeof(name), "thread.%d.%d", w->number, i);
            tensor_make(&t[i], w->comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, i % 3, 17);
            tensor_enqueue(w->engine, &t[i], (round + i) % 2 ? HORA_ENQUEUE_WILL_WAIT : 0);
        }
        for (int i = 7; i >= 0; i--) {
            tensor_finish(&t[i], w->comm);
            tensor_free(&t[i]);
        }
    }
    return NULL;
}

static void threads_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    worker_t       workers[5];
    (void)rank, (void)size, (void)arg;
    for (int i = 0; i < 5; i++) {
        workers[i] = (worker_t){.engine = engine, .comm = comm, .number = i};
        harness_check(pthread_create(&workers[i].thread, NULL, work, &workers[i]) == 0, "thread");
    }
    for (int i = 0; i < 5; i++)
        pthread_join(workers[i].thread, NULL);
    harness_ok(hora_engine_free(engine));
}

static void many_threads(void **state) {
    (void)state;
    run(threads_main);
}

/* ---- Nobody waits -------------------------------------------------------------------------- */

static void poll_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    tensor_t       t[10];
    char           name[64];
    (void)size, (void)arg;
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 10; i++) {
            snprintf(name, sizeof(name), "poll.%d", i);
            tensor_make(&t[i], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, 3, 4);
            tensor_enqueue(engine, &t[i], 0);
            if (i == rank)
                usleep(3000);
        }
        double until = harness_now() + 10;
        for (int i = 0; i < 10; i++) {
            while (!hora_handle_poll(t[i].handle)) {
                harness_check(harness_now() < until, "%s is not done", t[i].name);
                usleep(100);
            }
            tensor_finish(&t[i], comm);
            tensor_free(&t[i]);
        }
    }
    harness_ok(hora_engine_free(engine));
}

static void background_thread_works(void **state) {
    (void)state;
    run(poll_main);
}

static void released_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    float          x[50];
    int64_t        shape = 1;
    (void)rank, (void)arg;
    for (int i = 0; i < 50; i++) {
        hora_task_t    task = HORA_TASK_INIT;
        hora_handle_t *handle;
        char           name[64];
        snprintf(name, sizeof(name), "released.%d", i);
        x[i] = 1;
        task.name = name;
        task.ndim = 1;
        task.shape = &shape;
        task.in = task.out = &x[i];
        harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle));
        hora_handle_release(handle);
    }
    engine_must_work(engine, comm, "later", 10);
    /* The order of execution is the coordinator's: all 50 need not be over, but a barrier that is
     * enqueued when they are gives the proof. */
    for (int i = 0; i < 50; i++)
        for (double until = harness_now() + 10; *(volatile float *)&x[i] != (float)size;)
            harness_check(harness_now() < until, "released.%d was not done", i);
    harness_ok(hora_engine_free(engine));
}

static void handles_released_early(void **state) {
    (void)state;
    run(released_main);
}

/* ---- Several engines, handles that outlive theirs ------------------------------------------ */

static void engines_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *a = engine_of(comm, 0), *b = engine_of(comm, 1000);
    tensor_t       t[2];
    (void)rank, (void)size, (void)arg;
    for (int round = 0; round < 10; round++) {
        tensor_make(&t[0], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "x", 3, 100);
        tensor_make(&t[1], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT64, "x", 5, 100);
        tensor_enqueue(a, &t[0], 0);
        tensor_enqueue(b, &t[1], 0);
        tensor_finish(&t[1], comm);
        tensor_finish(&t[0], comm);
        tensor_free(&t[0]);
        tensor_free(&t[1]);
    }
    harness_ok(hora_engine_free(a));
    tensor_make(&t[0], comm, HORA_TASK_ALLGATHER, HORA_FLOAT32, "y", 1, 4);
    for (int r = 0; r < size; r++)
        t[0].splits[r] = 1;
    tensor_enqueue(b, &t[0], 0);
    harness_ok(hora_handle_wait(t[0].handle));
    engine_must_work(b, comm, "z", 3); /* nobody leaves while another still executes y */
    harness_ok(hora_engine_free(b));
    tensor_finish(&t[0], comm);
    tensor_free(&t[0]);
}

static void several_engines(void **state) {
    (void)state;
    run(engines_main);
}

/* ---- Arguments ----------------------------------------------------------------------------- */

static void refuse(hora_engine_t *engine, const hora_task_t *task, hora_status_t status) {
    hora_handle_t *handle = (hora_handle_t *)task;
    harness_expect(hora_engine_enqueue(engine, task, 1, 0, &handle), status);
    harness_check(handle == (hora_handle_t *)task, "the handle was written in spite of an error");
}

static void arguments_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm, 0);
    float          x[4] = {0};
    int64_t        shape[2] = {2, 2}, negative[2] = {2, -1}, splits[64] = {1};
    hora_task_t    good = HORA_TASK_INIT, t;
    (void)rank, (void)arg;
    good.name = "argument";
    good.ndim = 2;
    good.shape = shape;
    good.in = good.out = x;
#define REFUSE(status, change) (t = good, change, refuse(engine, &t, status))
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.name = NULL);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.name = "");
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.size = 0);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.kind = HORA_TASK_KIND_COUNT);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.dtype = HORA_DTYPE_COUNT);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.op = HORA_OP_COUNT);
    REFUSE(HORA_ERR_UNSUPPORTED, t.op = HORA_BXOR);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.ndim = HORA_MAX_DIMS + 1);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.shape = negative);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.shape = NULL);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.in = NULL);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.out = NULL);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, t.out = x + 1);
    REFUSE(HORA_ERR_INVALID_ARGUMENT, (t.kind = HORA_TASK_BROADCAST, t.root = size));
    REFUSE(HORA_ERR_INVALID_ARGUMENT, (t.kind = HORA_TASK_BROADCAST, t.root = -1));
    REFUSE(HORA_ERR_INVALID_ARGUMENT, (t.kind = HORA_TASK_BROADCAST, t.out = NULL));
    harness_check(strstr(hora_last_error(), "out is NULL") != NULL, "another argument was named");
    REFUSE(HORA_ERR_INVALID_ARGUMENT, (t.kind = HORA_TASK_ALLGATHER, t.ndim = 0));
    REFUSE(HORA_ERR_INVALID_ARGUMENT, (t.kind = HORA_TASK_REDUCESCATTER, t.ndim = 0));
    REFUSE(HORA_ERR_INVALID_ARGUMENT,
           (t.kind = HORA_TASK_ALLTOALL, t.nsplits = size + 1, t.splits = splits));
    REFUSE(HORA_ERR_INVALID_ARGUMENT,
           (t.kind = HORA_TASK_ALLTOALL, t.nsplits = size, t.splits = splits));
#undef REFUSE
    engine_must_work(engine, comm, "argument", 4);
    harness_ok(hora_engine_free(engine));
}

static void bad_arguments(void **state) {
    (void)state;
    run(arguments_main);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kinds_and_types),
        cmocka_unit_test(orders_differ),
        cmocka_unit_test(every_kind_fuses),
        cmocka_unit_test(groups),
        cmocka_unit_test(parameters_change),
        cmocka_unit_test(names_fill_many_frames),
        cmocka_unit_test(many_threads),
        cmocka_unit_test(background_thread_works),
        cmocka_unit_test(handles_released_early),
        cmocka_unit_test(several_engines),
        cmocka_unit_test(bad_arguments),
    };
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
