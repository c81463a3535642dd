/*
 * Times of the engine, to look at: one small tensor from enqueue to result, and a step of many
 * small ones. `engine_time shm 2`.
 */
#include <stdio.h>
#include <stdlib.h>

#include "tasks.h"

#define STEP 500

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double one(hora_engine_t *engine, tensor_t *t, unsigned flags) {
    double begin = harness_now();
    harness_ok(hora_engine_enqueue(engine, &t->task, 1, flags, &t->handle));
    harness_ok(hora_handle_wait(t->handle));
    hora_handle_release(t->handle);
    return harness_now() - begin;
}

static double step(hora_engine_t *engine, tensor_t *t, unsigned flags) {
    double begin = harness_now();
    for (int i = 0; i < STEP; i++)
        harness_ok(hora_engine_enqueue(engine, &t[i].task, 1, flags, &t[i].handle));
    for (int i = 0; i < STEP; i++) {
        harness_ok(hora_handle_wait(t[i].handle));
        hora_handle_release(t[i].handle);
    }
    return harness_now() - begin;
}

static void show(const char *what, double *times, int n) {
    qsort(times, (size_t)n, sizeof(*times), compare);
    printf("%-36s median %8.1f us, 10 %% %8.1f, 90 %% %8.1f\n", what, times[n / 2] * 1e6,
           times[n / 10] * 1e6, times[n * 9 / 10] * 1e6);
}

static void time_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static tensor_t t[STEP];
    static double   times[4][2000];
    hora_engine_t  *engine;
    char            name[64];
    (void)size, (void)arg;
    harness_ok(hora_engine_create(comm, NULL, &engine));
    for (int i = 0; i < STEP; i++) {
        snprintf(name, sizeof(name), "module.layer.%d.weight", i);
        tensor_make(&t[i], comm, HORA_TASK_ALLREDUCE, HORA_FLOAT32, name, 1, 256);
    }
    for (int i = 0; i < 2000; i++)
        times[0][i] = one(engine, &t[0], HORA_ENQUEUE_WILL_WAIT);
    for (int i = 0; i < 2000; i++)
        times[1][i] = one(engine, &t[0], 0);
    for (int i = 0; i < 200; i++)
        times[2][i] = step(engine, t, HORA_ENQUEUE_WILL_WAIT);
    for (int i = 0; i < 200; i++)
        times[3][i] = step(engine, t, 0);
    if (rank == 0) {
        show("1 KB, will wait", times[0], 2000);
        show("1 KB, background thread woken", times[1], 2000);
        show("500 x 1 KB, will wait", times[2], 200);
        show("500 x 1 KB, background thread woken", times[3], 200);
    }
    harness_ok(hora_engine_free(engine));
}

int main(int argc, char **argv) {
    harness_job_t job = {.main = time_main, .keep_fds = true};
    if (!harness_arguments(argc, argv, &job.transport, &job.nranks))
        return 2;
    return harness_run(&job) != 0;
}
