/*
 * The communicator API: every rank makes the same calls in the same order.
 *
 *     cc allreduce.c $(pkg-config --cflags --libs hora) -o allreduce
 *     hora run -np 4 ./allreduce          (or torchrun, mpirun, srun)
 */
#include <hora/hora.h>
#include <stdio.h>

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, hora_last_error());
    return 1;
}

int main(void) {
    hora_comm_t *world;
    float x[3] = {1, 2, 3};
    if (hora_comm_create(NULL, &world) != HORA_OK)
        return fail("start");
    int rank = hora_comm_rank(world), size = hora_comm_size(world);
    if (hora_allreduce(world, x, x, 3, HORA_FLOAT32, HORA_SUM, NULL) != HORA_OK)
        return fail("allreduce");
    printf("rank %d of %d on %s: %g %g %g\n", rank, size, hora_comm_host(world, rank), (double)x[0],
           (double)x[1], (double)x[2]);

    /* The same without waiting: start, compute something else, then wait. */
    hora_request_t *request;
    hora_call_options_t start = HORA_CALL_OPTIONS_INIT;
    start.request_p = &request;
    start.name = "mean of the ranks";
    double mean = rank;
    if (hora_allreduce(world, &mean, &mean, 1, HORA_FLOAT64, HORA_AVERAGE, &start) != HORA_OK)
        return fail("allreduce");
    if (hora_request_wait(request) != HORA_OK)
        return fail("allreduce");
    if (mean != (size - 1) / 2.0) {
        fprintf(stderr, "rank %d: the mean of 0 to %d is not %g\n", rank, size - 1, mean);
        return 1;
    }
    return hora_comm_free(world) == HORA_OK ? 0 : fail("end");
}
