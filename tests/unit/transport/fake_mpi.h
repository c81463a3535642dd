/*
 * A fake MPI plug-in with two ranks in one process, and the knobs to make it misbehave.
 */
#ifndef TESTS_UNIT_TRANSPORT_FAKE_MPI_H
#define TESTS_UNIT_TRANSPORT_FAKE_MPI_H

#include <stdbool.h>
#include <stddef.h>

typedef struct fake_mpi {
    int  next_rank;   /* that the next init gets */
    int  size;        /* of the job that init reports */
    bool never_ready; /* groups */
    bool fail_send, fail_test; /* from now on */
    bool hold_bodies; /* messages with a tag above 1 do not arrive, and cannot be cancelled */
    bool corrupt;     /* flips a byte of the next message */
    int  calls;       /* of send, recv, cancel and test */
    int  closed[3];   /* group_close calls, by hora_mpi_end_t */
} fake_mpi_t;

#endif
