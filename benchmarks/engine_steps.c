/*
 * Equal steps of the engine, for benchmarks/callgrind to count instructions in: each enqueues its
 * tensors, waits for them in order and releases the handles. Forks its ranks. Main thread.
 *
 *     hora-engine-steps RANKS TENSORS STEPS WARM
 *
 * The first WARM steps are outside counted_steps, so that names have ids and, unless HORA_FREEZE=0,
 * the schedule is frozen. Tensors are of 1 KB.
 */
#include <hora/hora.h>

#include "common/ranks.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#define TENSORS_MAX 1000
#define FLOATS      256

typedef struct steps {
    hora_engine_t *engine;
    int            tensors, steps, warm;
} steps_t;

static float          data[TENSORS_MAX][FLOATS];
static char           names[TENSORS_MAX][32];
static hora_handle_t *handles[TENSORS_MAX];

static void ok(hora_status_t status) {
    if (status == HORA_OK)
        return;
    fprintf(stderr, "hora-engine-steps: %s\n", hora_last_error());
    exit(1);
}

static void step(const steps_t *s) {
    int64_t     shape = FLOATS;
    hora_task_t task = HORA_TASK_INIT;
    task.kind = HORA_TASK_ALLREDUCE;
    task.dtype = HORA_FLOAT32;
    task.op = HORA_SUM;
    task.ndim = 1;
    task.shape = &shape;
    for (int i = 0; i < s->tensors; i++) {
        task.name = names[i];
        task.in = task.out = data[i];
        ok(hora_engine_enqueue(s->engine, &task, 1, HORA_ENQUEUE_WILL_WAIT, &handles[i]));
    }
    for (int i = 0; i < s->tensors; i++) {
        ok(hora_handle_wait(handles[i]));
        hora_handle_release(handles[i]);
    }
}

/* A function of its own: callgrind collects inside it (--toggle-collect). */
__attribute__((noinline)) void counted_steps(const steps_t *s);
void counted_steps(const steps_t *s) {
    for (int i = 0; i < s->steps; i++)
        step(s);
}

static int rank_main(int rank, int size, void *arg) {
    steps_t     *s = arg;
    hora_comm_t *comm;
    (void)rank, (void)size;
    for (int i = 0; i < s->tensors; i++)
        snprintf(names[i], sizeof(names[i]), "module.layer.%d.weight", i);
    ok(hora_comm_create(NULL, &comm));
    ok(hora_engine_create(comm, NULL, &s->engine));
    for (int i = 0; i < s->warm; i++)
        step(s);
    counted_steps(s);
    ok(hora_engine_free(s->engine));
    ok(hora_comm_free(comm));
    return 0;
}

static bool read_number(const char *text, int least, int most, int *number_p) {
    char *end;
    long  number = strtol(text, &end, 10);
    *number_p = (int)number;
    return *text != '\0' && *end == '\0' && number >= least && number <= most;
}

int main(int argc, char **argv) {
    steps_t     s = {0};
    ranks_job_t job = {.main = rank_main, .arg = &s, .deadline = 300};
    if (argc != 5 || !read_number(argv[1], 1, 64, &job.nranks) ||
        !read_number(argv[2], 1, TENSORS_MAX, &s.tensors) ||
        !read_number(argv[3], 1, 1000000, &s.steps) || !read_number(argv[4], 0, 1000000, &s.warm)) {
        fprintf(stderr, "usage: hora-engine-steps RANKS TENSORS STEPS WARM\n");
        return 2;
    }
    return ranks_run(&job, NULL) != 0;
}
