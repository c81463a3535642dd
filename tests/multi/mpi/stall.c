/*
 * A rank that comes late, over MPI: the others wait, and say for what; run.py reads their log, and the
 * timeline that they have recorded meanwhile.
 */
#include <hora/hora.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int reduce(hora_engine_t *engine, const char *name) {
    float          x[4] = {1, 2, 3, 4};
    int64_t        shape[1] = {4};
    hora_task_t    task = HORA_TASK_INIT;
    hora_handle_t *handle;
    hora_status_t  st;
    task.name = name;
    task.ndim = 1;
    task.shape = shape;
    task.in = task.out = x;
    st = hora_engine_enqueue(engine, &task, 1, HORA_ENQUEUE_WILL_WAIT, &handle);
    if (st != HORA_OK)
        return st;
    st = hora_handle_wait(handle);
    hora_handle_release(handle);
    return st;
}

int main(void) {
    hora_comm_t   *world;
    hora_engine_t *engine;
    if (hora_comm_create(NULL, &world) != HORA_OK ||
        hora_engine_create(world, NULL, &engine) != HORA_OK) {
        fprintf(stderr, "%s\n", hora_last_error());
        return 1;
    }
    int rank = hora_comm_rank(world), size = hora_comm_size(world);
    if (strcmp(hora_comm_transport(world, (rank + 1) % size), "mpi") != 0 ||
        reduce(engine, "first") != HORA_OK)
        return 1;
    if (rank == 1)
        usleep(1500000);
    if (reduce(engine, "late.tensor") != HORA_OK) {
        fprintf(stderr, "%s\n", hora_last_error());
        return 1;
    }
    if (rank == 0)
        printf("PASS stall, %d ranks\n", size);
    return hora_engine_free(engine) != HORA_OK || hora_comm_free(world) != HORA_OK;
}
