/* hora in the comparison (peer.h): private buffers, or hora_alloc's where `shared`. */
#include "peer.h"

#include <hora/hora.h>
#include <stdlib.h>

static hora_comm_t *comm;

static void must(hora_status_t status) {
    if (status != HORA_OK)
        peer_die(hora_last_error());
}

void peer_init(int *argc, char ***argv, int *rank_p, int *size_p, const char **version_p) {
    (void)argc;
    (void)argv;
    must(hora_comm_create(NULL, &comm));
    *rank_p = hora_comm_rank(comm);
    *size_p = hora_comm_size(comm);
    *version_p = hora_version();
}

void peer_finish(void) {
    hora_comm_free(comm);
}

void *peer_alloc(size_t bytes, int shared) {
    void *p = NULL;
    if (shared)
        must(hora_alloc(comm, bytes, &p));
    else if (posix_memalign(&p, 4096, bytes) != 0)
        peer_die("no memory");
    return p;
}

void peer_barrier(void) {
    must(hora_barrier(comm, NULL));
}

void peer_run(peer_op_t op, const float *in, float *out, size_t count) {
    switch (op) {
    case PEER_ALLREDUCE:
        must(hora_allreduce(comm, out, out, count, HORA_FLOAT32, HORA_SUM, NULL));
        break;
    case PEER_ALLGATHER: must(hora_allgather(comm, in, out, count, HORA_FLOAT32, NULL)); break;
    case PEER_REDUCE_SCATTER:
        must(hora_reduce_scatter(comm, in, out, count, HORA_FLOAT32, HORA_SUM, NULL));
        break;
    case PEER_BROADCAST:
        must(hora_broadcast(comm, out, out, count, HORA_FLOAT32, 0, NULL));
        break;
    case PEER_ALLTOALL: must(hora_alltoall(comm, in, out, count, HORA_FLOAT32, NULL)); break;
    case PEER_MOVE: break;
    }
}
