/*
 * All transports, best first: the bootstrap gives each pair of ranks the first that reaches.
 */
#include "transport/transport.h"

const hora_transport_ops_t *const hora_transport_list[] = {
    &hora_transport_shm,
    &hora_transport_tcp,
    &hora_transport_mpi,
    NULL,
};
