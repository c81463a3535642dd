/*
 * Memory in the arena for the user: hora_alloc and hora_free. Any thread.
 */
#include "transport/comm.h"
#include "transport/shm/arena.h"

#include <stdlib.h>

static bool in_arena(const hora_comm_t *comm, const void *ptr) {
    uint64_t offset;
    return comm->world->arena != NULL && hora_arena_offset(comm->world->arena, ptr, 0, &offset);
}

hora_status_t hora_alloc(hora_comm_t *comm, size_t bytes, void **ptr_p) {
    if (comm == NULL || ptr_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "alloc: %s is NULL", comm ? "ptr_p" : "comm");
    if (comm->world->arena != NULL)
        return hora_arena_lend(comm->world->arena, bytes, ptr_p);
    if (posix_memalign(ptr_p, 64, bytes ? bytes : 1) != 0)
        return hora_fail(HORA_ERR_NO_MEMORY, "alloc of %zu bytes", bytes);
    return HORA_OK;
}

hora_status_t hora_free(hora_comm_t *comm, void *ptr) {
    if (comm == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "free: comm is NULL");
    if (ptr == NULL)
        return HORA_OK;
    if (in_arena(comm, ptr))
        return hora_arena_take_back(comm->world->arena, ptr);
    if (comm->world->arena != NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "free: pointer %p was not allocated by hora_alloc",
                         ptr);
    free(ptr);
    return HORA_OK;
}
