/*
 * Adasum between ranks that mpirun has started; over MPI where HORA_TRANSPORT says so.
 */
#include "adasum.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(void) {
    const char  *wanted = getenv("EXPECT_TRANSPORT");
    hora_comm_t *world;
    if (hora_comm_create(NULL, &world) != HORA_OK) {
        fprintf(stderr, "%s\n", hora_last_error());
        return 1;
    }
    int  rank = hora_comm_rank(world), size = hora_comm_size(world);
    bool other = wanted != NULL && strcmp(hora_comm_transport(world, (rank + 1) % size), wanted) != 0;
    if (other || adasum_check_all(world) != 0)
        return 1;
    if (rank == 0)
        printf("PASS adasum, %d ranks\n", size);
    return hora_comm_free(world) != HORA_OK;
}
