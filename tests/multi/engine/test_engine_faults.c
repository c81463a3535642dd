/*
 * The engine when ranks disagree, dawdle, leave or die: each rank gets an error that names both
 * sides, soon, and the next operation works. `test_engine_faults shm 4`.
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

static void expect_text(const char *a, const char *b) {
    harness_check(strstr(hora_last_error(), a) != NULL && strstr(hora_last_error(), b) != NULL,
                  "\"%s\" has no \"%s\" or no \"%s\"", hora_last_error(), a, b);
}

/* ---- Mismatches ---------------------------------------------------------------------------- */

typedef void (*change_t)(tensor_t *t);

static void change_kind(tensor_t *t) { t->task.kind = HORA_TASK_BROADCAST; }
static void change_dtype(tensor_t *t) { t->task.dtype = HORA_INT32; }
static void change_op(tensor_t *t) { t->task.op = HORA_MAX; }
static void change_shape(tensor_t *t) { t->shape[0] = 2, t->shape[1] = 6; }
static void change_ndim(tensor_t *t) { t->task.ndim = 1, t->shape[0] = 12; }
static void change_prescale(tensor_t *t) { t->task.prescale = 0.5; }
static void change_postscale(tensor_t *t) { t->task.postscale = 0.5; }
static void change_root(tensor_t *t) { t->task.root = 1; }
static void change_row(tensor_t *t) { t->shape[1] = 2; }

static const struct {
    const char      *what;
    hora_task_kind_t kind;
    change_t         change;
    const char      *mine, *other; /* in the text */
} mismatches[] = {
    {"kind", HORA_TASK_ALLREDUCE, change_kind, "allreduce", "broadcast"},
    {"dtype", HORA_TASK_ALLREDUCE, change_dtype, "float32", "int32"},
    {"op", HORA_TASK_ALLREDUCE, change_op, "sum", "max"},
    {"shape", HORA_TASK_ALLREDUCE, change_shape, "[3, 4]", "[2, 6]"},
    {"ndim", HORA_TASK_ALLREDUCE, change_ndim, "[3, 4]", "[12]"},
    {"prescale", HORA_TASK_ALLREDUCE, change_prescale, "prescale 1 ", "prescale 0.5"},
    {"postscale", HORA_TASK_REDUCESCATTER, change_postscale, "postscale 1", "postscale 0.5"},
    {"root", HORA_TASK_BROADCAST, change_root, "root rank 0", "root rank 1"},
    {"row", HORA_TASK_ALLGATHER, change_row, "[*, 4]", "[*, 2]"},
    {"dtype", HORA_TASK_ALLTOALL, change_dtype, "float32", "int32"},
};

static void mismatch_once(hora_comm_t *comm, hora_engine_t *engine, size_t m, int culprit,
                          unsigned flags) {
    int      rank = hora_comm_rank(comm);
    char     name[64], who[32];
    double   begin = harness_now();
    tensor_t t;
    snprintf(name, sizeof(name), "grad.%s", mismatches[m].what);
    snprintf(who, sizeof(who), "rank %d (", culprit);
    tensor_make(&t, comm, mismatches[m].kind, HORA_FLOAT32, name, 3, 4);
    if (t.task.kind == HORA_TASK_ALLTOALL) {
        t.task.nsplits = hora_comm_size(comm);
        t.task.splits = t.splits;
        t.splits[0] = 3;
    }
    if (rank == culprit) {
        mismatches[m].change(&t);
        t.task.out = t.out;
    }
    tensor_enqueue(engine, &t, flags);
    harness_expect(hora_handle_wait(t.handle), HORA_ERR_MISMATCH);
    expect_text(name, who);
    if (nranks == 2) /* with more, the first two that differ are named */
        expect_text(mismatches[m].mine, mismatches[m].other);
    hora_handle_release(t.handle);
    tensor_free(&t);
    harness_check(harness_now() - begin < 1.0, "%s took %.1f s", name, harness_now() - begin);
    engine_must_work(engine, comm, name, 7);
    engine_must_work(engine, comm, name, 7);
}

static void mismatch_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    (void)rank, (void)arg;
    for (size_t m = 0; m < sizeof(mismatches) / sizeof(mismatches[0]); m++)
        for (int culprit = 0; culprit < size; culprit++)
            mismatch_once(comm, engine, m, culprit, culprit % 2 ? 0 : HORA_ENQUEUE_WILL_WAIT);
    harness_ok(hora_engine_free(engine));
}

static void every_mismatch(void **state) {
    (void)state;
    run(mismatch_main);
}

/* Rank 0 has a group of three; the others have two of these in a group and the third alone. */
static void group_mismatch_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    tensor_t       t[3];
    hora_task_t    tasks[3];
    hora_handle_t *handles[2] = {NULL, NULL};
    (void)size, (void)arg;
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < 3; i++) {
            char name[8] = {(char)('a' + i), '\0'};
            tensor_make(&t[i], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, 3, 4);
            tasks[i] = t[i].task;
        }
        if (rank == 0) {
            harness_ok(hora_engine_enqueue(engine, tasks, 3, 0, &handles[0]));
            harness_expect(hora_handle_wait(handles[0]), HORA_ERR_MISMATCH);
            expect_text("group of 3", "group");
        } else if (rank % 2) { /* one after the other: the second is failed before it is there */
            harness_ok(hora_engine_enqueue(engine, tasks, 2, 0, &handles[0]));
            harness_expect(hora_handle_wait(handles[0]), HORA_ERR_MISMATCH);
            harness_ok(hora_engine_enqueue(engine, &tasks[2], 1, 0, &handles[1]));
            harness_expect(hora_handle_wait(handles[1]), HORA_ERR_MISMATCH);
        } else {
            harness_ok(hora_engine_enqueue(engine, tasks, 2, 0, &handles[0]));
            harness_ok(hora_engine_enqueue(engine, &tasks[2], 1, 0, &handles[1]));
            harness_expect(hora_handle_wait(handles[1]), HORA_ERR_MISMATCH);
            harness_expect(hora_handle_wait(handles[0]), HORA_ERR_MISMATCH);
        }
        hora_handle_release(handles[0]);
        if (rank != 0)
            hora_handle_release(handles[1]);
        harness_ok(hora_engine_enqueue(engine, tasks, 3, 0, &handles[0]));
        harness_ok(hora_handle_wait(handles[0]));
        for (size_t i = 0; i < 3; i++) {
            tensor_check(&t[i], comm, handles[0], i);
            tensor_free(&t[i]);
        }
        hora_handle_release(handles[0]);
        engine_must_work(engine, comm, "after", 5);
    }
    harness_ok(hora_engine_free(engine));
}

static void groups_differ(void **state) {
    (void)state;
    run(group_mismatch_main);
}

static void duplicate_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    tensor_t       t;
    hora_task_t    pair[2];
    hora_handle_t *other;
    (void)rank, (void)size, (void)arg;
    tensor_make(&t, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "twice", 3, 4);
    pair[0] = pair[1] = t.task;
    harness_expect(hora_engine_enqueue(engine, pair, 2, 0, &other), HORA_ERR_DUPLICATE_NAME);
    expect_text("twice", "in flight");
    tensor_enqueue(engine, &t, HORA_ENQUEUE_WILL_WAIT);
    harness_expect(hora_engine_enqueue(engine, pair, 1, 0, &other), HORA_ERR_DUPLICATE_NAME);
    tensor_finish(&t, comm);
    tensor_fill(&t, comm);
    tensor_enqueue(engine, &t, 0);
    tensor_finish(&t, comm);
    tensor_free(&t);
    harness_ok(hora_engine_free(engine));
}

static void duplicate_names(void **state) {
    (void)state;
    run(duplicate_main);
}

/* ---- Dawdling ------------------------------------------------------------------------------ */

/* Rank `late` comes after the others have given up; it learns so at once. */
static void stall(hora_comm_t *comm, hora_engine_t *engine, int late) {
    int      rank = hora_comm_rank(comm);
    char     who[32];
    double   begin = harness_now();
    tensor_t t;
    snprintf(who, sizeof(who), "rank %d (", late);
    tensor_make(&t, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "slow", 3, 4);
    if (rank == late)
        usleep(2500000);
    tensor_enqueue(engine, &t, rank % 2 ? 0 : HORA_ENQUEUE_WILL_WAIT);
    harness_expect(hora_handle_wait(t.handle), HORA_ERR_TIMEOUT);
    expect_text("slow", who);
    /* They learn it in time although nobody drives on a late rank 0: they poke it. */
    harness_check(harness_now() - begin < (rank == late ? 3.0 : 2.0), "it took %.1f s",
                  harness_now() - begin);
    harness_check(rank == late || harness_now() - begin > 0.69, "too soon");
    hora_handle_release(t.handle);
    tensor_free(&t);
    /* Whoever was early waits for the late one here. */
    harness_ok(hora_barrier(comm, NULL));
    engine_must_work(engine, comm, "slow", 5);
}

static void stall_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    (void)rank, (void)arg;
    engine_must_work(engine, comm, "slow", 5);
    stall(comm, engine, 0); /* the coordinator itself, which then sleeps */
    stall(comm, engine, size - 1);
    harness_ok(hora_engine_free(engine));
}

static void stalls_end(void **state) {
    (void)state;
    setenv("HORA_STALL_CHECK_TIME_SECONDS", "0.3", 1);
    setenv("HORA_STALL_SHUTDOWN_TIME_SECONDS", "0.7", 1);
    setenv("HORA_LOG_LEVEL", "error", 1);
    run(stall_main);
    unsetenv("HORA_STALL_CHECK_TIME_SECONDS");
    unsetenv("HORA_STALL_SHUTDOWN_TIME_SECONDS");
    unsetenv("HORA_LOG_LEVEL");
}

/* ---- Creation ------------------------------------------------------------------------------- */

/* A stack that no machine has room for, for threads that say nothing of theirs: the engine's. */
static void set_stacks(size_t bytes) {
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    harness_check(pthread_attr_setstacksize(&attr, bytes) == 0 &&
                      pthread_setattr_default_np(&attr) == 0,
                  "a default stack of %zu bytes", bytes);
    pthread_attr_destroy(&attr);
}

/* Rank `culprit` gives nowhere to put it, or cannot start its engine's thread. */
static void create_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine;
    (void)arg;
    for (int culprit = 0; culprit < size; culprit++) {
        char   who[32];
        double begin = harness_now();
        snprintf(who, sizeof(who), "rank %d ", culprit);
        harness_expect(hora_engine_create(comm, NULL, rank == culprit ? NULL : &engine),
                       rank == culprit ? HORA_ERR_INVALID_ARGUMENT : HORA_ERR_PEER_FAILED);
        expect_text("engine_p is NULL", rank == culprit ? "" : who);
        if (rank == culprit)
            set_stacks((size_t)1 << 50);
        harness_expect(hora_engine_create(comm, NULL, &engine),
                       rank == culprit ? HORA_ERR_SYSTEM : HORA_ERR_PEER_FAILED);
        expect_text("thread", rank == culprit ? "" : who);
        harness_check(harness_now() - begin < 1.0, "it took %.1f s", harness_now() - begin);
        if (rank == culprit)
            set_stacks((size_t)1 << 20);
    }
    engine = engine_of(comm);
    engine_must_work(engine, comm, "after", 5);
    harness_ok(hora_engine_free(engine));
}

static void creation_fails_on_all(void **state) {
    (void)state;
    run(create_main);
}

/* ---- Leaving and dying --------------------------------------------------------------------- */

/* Rank *arg frees its engine in order while the others want something of it. */
static void leave_main(hora_comm_t *comm, int rank, int size, void *arg) {
    int            leaver = *(int *)arg < 0 ? size - 1 : *(int *)arg;
    hora_engine_t *engine = engine_of(comm);
    char           who[32];
    (void)size;
    snprintf(who, sizeof(who), "rank %d ", leaver);
    engine_must_work(engine, comm, "first", 5);
    if (rank == leaver) {
        usleep(20000);
    } else {
        for (int i = 0; i < 3; i++) {
            double   begin = harness_now();
            tensor_t t;
            tensor_make(&t, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, i ? "more" : "first", 1, 5);
            tensor_enqueue(engine, &t, i == 1 ? 0 : HORA_ENQUEUE_WILL_WAIT);
            hora_status_t st = hora_handle_wait(t.handle);
            harness_check(st == HORA_ERR_PEER_FAILED || st == HORA_ERR_SHUT_DOWN, "%s: %s",
                          hora_status_name(st), hora_last_error());
            /* After the first, rank 0 may be through and have freed its engine too. */
            expect_text(t.name, i > 0 && st == HORA_ERR_SHUT_DOWN ? "rank 0 " : who);
            harness_check(harness_now() - begin < 1.0, "it took %.1f s", harness_now() - begin);
            hora_handle_release(t.handle);
            tensor_free(&t);
        }
    }
    harness_ok(hora_engine_free(engine));
    /* The communicator it was made from goes on. */
    harness_ok(hora_barrier(comm, NULL));
}

static void a_rank_leaves(void **state) {
    int           leavers[] = {0, -1};
    harness_job_t job = {.nranks = nranks, .main = leave_main, .transport = transport};
    (void)state;
    for (int i = 0; i < 2; i++) {
        job.arg = &leavers[i];
        assert_int_equal(harness_run(&job), 0);
    }
}

static void shut_down_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine = engine_of(comm);
    tensor_t       t;
    (void)size, (void)arg;
    tensor_make(&t, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "orphan", 1, 5);
    if (rank == 0) { /* nobody else enqueues it */
        tensor_enqueue(engine, &t, 0);
        usleep(20000);
    } else {
        usleep(60000);
    }
    harness_ok(hora_engine_free(engine));
    if (rank == 0) {
        harness_expect(hora_handle_wait(t.handle), HORA_ERR_SHUT_DOWN);
        expect_text("orphan", "rank 0");
        hora_handle_release(t.handle);
    }
    tensor_free(&t);
}

static void freed_with_tasks_in_flight(void **state) {
    (void)state;
    setenv("HORA_LOG_LEVEL", "off", 1);
    run(shut_down_main);
    unsetenv("HORA_LOG_LEVEL");
}

static void die_main(hora_comm_t *comm, int rank, int size, void *arg) {
    int            victim = *(int *)arg < 0 ? size - 1 : *(int *)arg;
    hora_engine_t *engine = engine_of(comm);
    char           who[32];
    double         begin;
    tensor_t       t;
    snprintf(who, sizeof(who), "rank %d ", victim);
    engine_must_work(engine, comm, "first", 5);
    tensor_make(&t, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "doomed", 1, 5);
    if (rank == victim) {
        usleep(50000);
        raise(SIGKILL);
    }
    begin = harness_now();
    for (int i = 0; i < 2; i++) {
        tensor_enqueue(engine, &t, rank % 2 ? 0 : HORA_ENQUEUE_WILL_WAIT);
        harness_expect(hora_handle_wait(t.handle), HORA_ERR_PEER_FAILED);
        expect_text("doomed", who);
        hora_handle_release(t.handle);
    }
    harness_check(harness_now() - begin < 1.5, "it took %.1f s", harness_now() - begin);
    tensor_free(&t);
    harness_ok(hora_engine_free(engine));
}

static void a_rank_dies(void **state) {
    int           victims[] = {0, -1};
    ranks_end_t   ends[64];
    harness_job_t job = {.nranks = nranks, .main = die_main, .transport = transport};
    (void)state;
    setenv("HORA_LOG_LEVEL", "off", 1);
    for (int i = 0; i < 2; i++) {
        job.arg = &victims[i];
        harness_run_ends(&job, ends);
        for (int r = 0; r < nranks; r++)
            if (r != (victims[i] < 0 ? nranks - 1 : victims[i]))
                assert_int_equal(ends[r].code, 0);
    }
    unsetenv("HORA_LOG_LEVEL");
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_mismatch),
        cmocka_unit_test(groups_differ),
        cmocka_unit_test(duplicate_names),
        cmocka_unit_test(stalls_end),
        cmocka_unit_test(creation_fails_on_all),
        cmocka_unit_test(a_rank_leaves),
        cmocka_unit_test(freed_with_tasks_in_flight),
        cmocka_unit_test(a_rank_dies),
    };
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
