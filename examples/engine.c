/*
 * The engine: named tensors, enqueued in any order on each rank, as gradients become ready.
 *
 *     cc engine.c $(pkg-config --cflags --libs hora) -o engine
 *     hora run -np 3 ./engine
 */
#include <hora/hora.h>
#include <stdio.h>

#define TENSORS 8
#define ROWS    100

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, hora_last_error());
    return 1;
}

/* Enqueues tensor `i`; the engine fuses what is ready on all ranks into one operation. */
static hora_status_t enqueue(hora_engine_t *engine, int i, float *gradient,
                             hora_handle_t **handle_p) {
    char name[32];
    int64_t shape[1] = {ROWS};
    hora_task_t task = HORA_TASK_INIT;
    snprintf(name, sizeof(name), "gradient.%d", i);
    task.name = name; /* equal on all ranks; this is how they find each other */
    task.op = HORA_AVERAGE;
    task.ndim = 1;
    task.shape = shape;
    task.in = gradient;
    task.out = gradient;
    return hora_engine_enqueue(engine, &task, 1, 0, handle_p);
}

int main(void) {
    static float gradients[TENSORS][ROWS];
    hora_handle_t *handles[TENSORS];
    hora_comm_t *world;
    hora_engine_t *engine;
    if (hora_comm_create(NULL, &world) != HORA_OK)
        return fail("start");
    if (hora_engine_create(world, NULL, &engine) != HORA_OK)
        return fail("engine");
    int rank = hora_comm_rank(world), size = hora_comm_size(world);
    for (int k = 0; k < TENSORS; k++) {
        int i = (k * 3 + rank) % TENSORS; /* another order on each rank */
        for (int row = 0; row < ROWS; row++)
            gradients[i][row] = (float)(rank + i);
        if (enqueue(engine, i, gradients[i], &handles[i]) != HORA_OK)
            return fail("enqueue");
    }
    for (int i = 0; i < TENSORS; i++) {
        if (hora_handle_wait(handles[i]) != HORA_OK)
            return fail("wait");
        hora_handle_release(handles[i]);
        float expected = (float)(size - 1) / 2 + (float)i;
        if (gradients[i][ROWS - 1] != expected) {
            fprintf(stderr, "rank %d: gradient %d is %g, not %g\n", rank, i,
                    (double)gradients[i][ROWS - 1], (double)expected);
            return 1;
        }
    }
    if (rank == 0)
        printf("%d gradients, averaged over %d ranks\n", TENSORS, size);
    if (hora_engine_free(engine) != HORA_OK)
        return fail("engine");
    return hora_comm_free(world) == HORA_OK ? 0 : fail("end");
}
