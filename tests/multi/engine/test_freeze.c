/*
 * Steps that repeat until the schedule is frozen, and then everything that thaws it.
 * `test_freeze shm 4`.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "background/engine.h"
#include "tasks.h"

static const char *transport;
static int         nranks;

#define N 30

static void make_step(tensor_t *t, hora_comm_t *comm) {
    static const hora_dtype_t     dtypes[] = {HORA_FLOAT32, HORA_BFLOAT16, HORA_INT32};
    static const hora_task_kind_t kinds[] = {HORA_TASK_BROADCAST, HORA_TASK_REDUCESCATTER};
    char                          name[32];
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof(name), "layer.%d", i);
        tensor_make(&t[i], comm, i % 7 == 6 ? kinds[i / 7 % 2] : HORA_TASK_ALLREDUCE,
                    dtypes[i % 3], name, i % 5, i == 11 ? 40000 : 1 + i);
    }
}

/* One step; shift: the tensor that comes first. */
static void step(hora_engine_t *engine, hora_comm_t *comm, tensor_t *t, int shift, unsigned flags) {
    for (int i = 0; i < N; i++) {
        tensor_fill(&t[(i + shift) % N], comm);
        tensor_enqueue(engine, &t[(i + shift) % N], flags);
        if (i == N / 2 && shift == 0 && flags == 0)
            usleep(500); /* a part is under way before the rest is there */
    }
    for (int i = 0; i < N; i++)
        tensor_finish(&t[i], comm);
}

static void steps(hora_engine_t *engine, hora_comm_t *comm, tensor_t *t, int n) {
    for (int k = 0; k < n; k++)
        step(engine, comm, t, 0, k % 2 ? HORA_ENQUEUE_WILL_WAIT : 0);
}

/* On all ranks: they look before one of them goes on to what thaws it. */
static bool is_frozen(hora_engine_t *engine, hora_comm_t *comm) {
    int32_t is;
    pthread_mutex_lock(&engine->lock);
    is = engine->frozen.reports;
    pthread_mutex_unlock(&engine->lock);
    harness_ok(hora_allreduce(comm, &is, &is, 1, HORA_INT32, HORA_MIN, NULL));
    return is;
}

/* How many steps it takes depends on what thawed it: each thaw doubles the number, and a machine
 * that is slow enough for a stall check thaws too. */
static void steps_until_frozen(hora_engine_t *engine, hora_comm_t *comm, tensor_t *t,
                               bool freezes) {
    int n = 0;
    do {
        steps(engine, comm, t, 4);
        n += 4;
    } while (freezes && n < 1000 && !is_frozen(engine, comm));
    harness_check(is_frozen(engine, comm) == freezes, "frozen after %d steps: %d", n, !freezes);
}

static void mismatch(hora_engine_t *engine, hora_comm_t *comm, tensor_t *t) {
    int last = hora_comm_size(comm) - 1;
    for (int i = 0; i < N; i++) {
        tensor_fill(&t[i], comm);
        if (i == 4 && hora_comm_rank(comm) == last)
            t[i].task.prescale = 2;
        tensor_enqueue(engine, &t[i], 0);
        t[i].task.prescale = 1;
    }
    for (int i = 0; i < N; i++) {
        if (i != 4) {
            tensor_finish(&t[i], comm);
            continue;
        }
        harness_expect(hora_handle_wait(t[i].handle), last > 0 ? HORA_ERR_MISMATCH : HORA_OK);
        hora_handle_release(t[i].handle);
    }
}

static void one_more(hora_engine_t *engine, hora_comm_t *comm, tensor_t *t) {
    tensor_t more;
    tensor_make(&more, comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, "metric", 1, 3);
    tensor_enqueue(engine, &more, 0);
    step(engine, comm, t, 0, 0);
    tensor_finish(&more, comm);
    tensor_free(&more);
}

static void join(hora_engine_t *engine) {
    int32_t        last = -1;
    hora_task_t    task = HORA_TASK_INIT;
    hora_handle_t *handle;
    task.kind = HORA_TASK_JOIN;
    task.out = &last;
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle));
    harness_ok(hora_handle_wait(handle));
    harness_check(last >= 0, "the last: %d", last);
    hora_handle_release(handle);
}

static void rank_main(hora_comm_t *comm, int rank, int size, void *arg) {
    bool           freezes = arg != NULL && size > 1;
    tensor_t      *t = calloc(N, sizeof(*t));
    hora_engine_t *engine;
    unsigned long  frames = 0;
    harness_ok(hora_engine_create(comm, NULL, &engine));
    make_step(t, comm);
    steps_until_frozen(engine, comm, t, freezes);
    steps(engine, comm, t, 20);
    for (int what = 0; what < 5; what++) {
        switch (what) {
        case 0: step(engine, comm, t, 1 + rank, 0); break; /* an order of its own on each rank */
        case 1: mismatch(engine, comm, t); break;
        case 2: one_more(engine, comm, t); break;
        case 3: join(engine); break;
        default:
            if (rank == 0) /* the others wait for more than their stall check */
                usleep(800000);
            step(engine, comm, t, 0, 0);
            break;
        }
        steps_until_frozen(engine, comm, t, freezes);
    }
    if (size > 1)
        frames = hora_control_frames(engine->control);
    for (int k = 0; k < 20; k++)
        step(engine, comm, t, 0, HORA_ENQUEUE_WILL_WAIT);
    if (size > 1 && freezes)
        harness_check(hora_control_frames(engine->control) - frames <= 20 * N, "too many frames");
    for (int i = 0; i < N; i++)
        tensor_free(&t[i]);
    free(t);
    harness_ok(hora_engine_free(engine));
}

static void run(bool freezes) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .transport = transport};
    job.arg = freezes ? &job : NULL;
    setenv("HORA_FREEZE", freezes ? "1" : "0", 1);
    setenv("HORA_STALL_CHECK_TIME_SECONDS", "0.4", 1);
    setenv("HORA_LOG_LEVEL", "error", 1);
    assert_int_equal(harness_run(&job), 0);
    unsetenv("HORA_FREEZE");
    unsetenv("HORA_STALL_CHECK_TIME_SECONDS");
    unsetenv("HORA_LOG_LEVEL");
}

static void freezes_and_thaws(void **state) {
    (void)state;
    run(true);
}

static void the_setting_keeps_it_from_freezing(void **state) {
    (void)state;
    run(false);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(freezes_and_thaws),
        cmocka_unit_test(the_setting_keeps_it_from_freezing),
    };
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
