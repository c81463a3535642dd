/*
 * A program that uses MPI itself, as mpi4py's users do: hora must take MPI as it finds it, keep out of
 * the program's messages, and leave MPI_Finalize to it. Built by run.py with each mpicc. Argument:
 * "threads" (MPI_Init_thread: works) or "single" (MPI_Init: refused, with words).
 */
#include <hora/hora.h>

#include <mpi.h>
#include <stdio.h>
#include <string.h>

static int fail(int line) {
    fprintf(stderr, "FAIL line %d: %s\n", line, hora_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
    return 1;
}

/* Messages of the program's own that any receive would take are in flight all the time. */
static int work(int rank, int size) {
    hora_comm_t *comm;
    float        x[3] = {1, 2, 3};
    int          mine = rank, theirs = -1;
    MPI_Request  requests[2];
    MPI_Irecv(&theirs, 1, MPI_INT, MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_WORLD, &requests[0]);
    if (hora_comm_create(NULL, &comm) != HORA_OK)
        return fail(__LINE__);
    if (size > 1 && strcmp(hora_comm_transport(comm, !rank), "mpi") != 0)
        return fail(__LINE__);
    if (hora_allreduce(comm, x, x, 3, HORA_FLOAT32, HORA_SUM, NULL) != HORA_OK || x[2] != 3 * size)
        return fail(__LINE__);
    MPI_Isend(&mine, 1, MPI_INT, (rank + 1) % size, 1, MPI_COMM_WORLD, &requests[1]);
    MPI_Waitall(2, requests, MPI_STATUSES_IGNORE);
    if (theirs != (rank + size - 1) % size)
        return fail(__LINE__);
    MPI_Allreduce(MPI_IN_PLACE, x, 3, MPI_FLOAT, MPI_MAX, MPI_COMM_WORLD);
    return hora_comm_free(comm) == HORA_OK ? 0 : fail(__LINE__);
}

int main(int argc, char **argv) {
    int          single = argc > 1 && strcmp(argv[1], "single") == 0, level, rank, size;
    hora_comm_t *comm;
    if (single)
        MPI_Init_thread(&argc, &argv, MPI_THREAD_SINGLE, &level);
    else
        MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (single && (hora_comm_create(NULL, &comm) != HORA_ERR_UNSUPPORTED ||
                   strstr(hora_last_error(), "MPI_THREAD_MULTIPLE") == NULL))
        return fail(__LINE__);
    for (int i = 0; !single && i < 3; i++)
        if (work(rank, size) != 0)
            return 1;
    MPI_Finalize();
    if (rank == 0)
        printf("PASS embedded\n");
    return 0;
}
