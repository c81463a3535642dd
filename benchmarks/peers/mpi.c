/* Any MPI in the comparison (peer.h); built once with the mpicc of each. */
#include "peer.h"

#include <mpi.h>
#include <stdlib.h>
#include <string.h>

static char version[MPI_MAX_LIBRARY_VERSION_STRING];

void peer_init(int *argc, char ***argv, int *rank_p, int *size_p, const char **version_p) {
    int len;
    MPI_Init(argc, argv);
    MPI_Comm_rank(MPI_COMM_WORLD, rank_p);
    MPI_Comm_size(MPI_COMM_WORLD, size_p);
    MPI_Get_library_version(version, &len);
    version[strcspn(version, ",\n\"\\")] = '\0';
    for (char *c = version; *c != '\0'; c++)
        *c = *c < ' ' ? ' ' : *c;
    *version_p = version;
}

void peer_finish(void) {
    MPI_Finalize();
}

void *peer_alloc(size_t bytes, int shared) {
    void *p = NULL;
    (void)shared;
    if (posix_memalign(&p, 4096, bytes) != 0)
        peer_die("no memory");
    return p;
}

void peer_barrier(void) {
    MPI_Barrier(MPI_COMM_WORLD);
}

void peer_run(peer_op_t op, const float *in, float *out, size_t count) {
    int n = (int)count;
    switch (op) {
    case PEER_ALLREDUCE:
        MPI_Allreduce(MPI_IN_PLACE, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        break;
    case PEER_ALLGATHER:
        MPI_Allgather(in, n, MPI_FLOAT, out, n, MPI_FLOAT, MPI_COMM_WORLD);
        break;
    case PEER_REDUCE_SCATTER:
        MPI_Reduce_scatter_block(in, out, n, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        break;
    case PEER_BROADCAST: MPI_Bcast(out, n, MPI_FLOAT, 0, MPI_COMM_WORLD); break;
    case PEER_ALLTOALL:
        MPI_Alltoall(in, n, MPI_FLOAT, out, n, MPI_FLOAT, MPI_COMM_WORLD);
        break;
    case PEER_MOVE: break;
    }
}
