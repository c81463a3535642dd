/*
 * What an engine costs while nothing happens: no frames, and next to no CPU time, on ranks that do
 * nothing and on ranks that wait for one that is late. CPU time does not depend on how loaded the
 * machine is, but for wake-ups. `test_idle shm 4`.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

#include "background/engine.h"
#include "harness.h"

static const char *transport;
static int         nranks;

#define SECONDS 1.0
#define CPU_MAX 0.05 /* of that; spinning takes all of it */

typedef struct use {
    double        cpu;
    unsigned long frames;
} use_t;

static double seconds_of(struct timeval t) {
    return (double)t.tv_sec + (double)t.tv_usec * 1e-6;
}

static use_t use_now(const hora_engine_t *engine) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return (use_t){seconds_of(r.ru_utime) + seconds_of(r.ru_stime),
                   engine->control != NULL ? hora_control_frames(engine->control) : 0};
}

static void expect_use(const hora_engine_t *engine, use_t before, unsigned long frames,
                       const char *when) {
    use_t now = use_now(engine);
    if (getenv("SHOW") != NULL)
        fprintf(stderr, "%s: %.1f ms, %lu frames\n", when, (now.cpu - before.cpu) * 1e3,
                now.frames - before.frames);
    harness_check(now.frames - before.frames <= frames, "%s: %lu frames", when,
                  now.frames - before.frames);
    harness_check(now.cpu - before.cpu < CPU_MAX * SECONDS, "%s: %.1f ms of CPU time", when,
                  (now.cpu - before.cpu) * 1e3);
}

static hora_handle_t *enqueue(hora_engine_t *engine, hora_task_kind_t kind, void *out,
                              unsigned flags) {
    hora_task_t    task = HORA_TASK_INIT;
    hora_handle_t *handle;
    task.kind = kind;
    task.name = "x";
    task.in = task.out = out;
    harness_ok(hora_engine_enqueue(engine, &task, 1, flags, &handle));
    return handle;
}

static void finish(hora_handle_t *handle) {
    harness_ok(hora_handle_wait(handle));
    hora_handle_release(handle);
}

static void work(hora_engine_t *engine) {
    float x = 1;
    for (int i = 0; i < 20; i++)
        finish(enqueue(engine, HORA_TASK_ALLREDUCE, &x, i % 2 ? HORA_ENQUEUE_WILL_WAIT : 0));
}

static void pass(double seconds) {
    usleep((useconds_t)(seconds * 1e6));
}

/* Nobody has anything to do. */
static void idle(hora_engine_t *engine) {
    work(engine);
    pass(0.1); /* the last waits are over everywhere */
    use_t before = use_now(engine);
    pass(SECONDS);
    expect_use(engine, before, 0, "idle");
}

/* All but one wait for it; waits: in hora_handle_wait, else nobody does. */
static void one_is_late(hora_engine_t *engine, hora_comm_t *comm, int late, bool waits) {
    int   rank = hora_comm_rank(comm);
    float x = 1;
    harness_ok(hora_barrier(comm, NULL));
    pass(0.1);
    use_t before = use_now(engine);
    if (rank == late)
        pass(SECONDS);
    hora_handle_t *handle =
        enqueue(engine, HORA_TASK_ALLREDUCE, &x, waits ? HORA_ENQUEUE_WILL_WAIT : 0);
    if (!waits)
        pass(SECONDS);
    finish(handle);
    expect_use(engine, before, 1, rank == late ? "late" : waits ? "waiting" : "in flight");
}

static void joined(hora_engine_t *engine, hora_comm_t *comm, int late) {
    int32_t last;
    harness_ok(hora_barrier(comm, NULL));
    pass(0.1);
    use_t before = use_now(engine);
    if (hora_comm_rank(comm) == late)
        pass(SECONDS);
    finish(enqueue(engine, HORA_TASK_JOIN, &last, HORA_ENQUEUE_WILL_WAIT));
    expect_use(engine, before, 1, "joined");
    harness_check(last == late, "rank %d joined last", last);
}

static void rank_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t *engine;
    (void)rank, (void)arg;
    harness_ok(hora_engine_create(comm, NULL, &engine));
    idle(engine);
    one_is_late(engine, comm, 0, true);
    one_is_late(engine, comm, size - 1, true);
    one_is_late(engine, comm, size - 1, false);
    joined(engine, comm, 0);
    joined(engine, comm, size - 1);
    idle(engine);
    harness_ok(hora_engine_free(engine));
}

static void nothing_costs_nothing(void **state) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .transport = transport};
    (void)state;
    assert_int_equal(harness_run(&job), 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_costs_nothing)};
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
