/*
 * Blocks of the arena that a freed communicator leaves behind. Other members may still read them, so
 * each member tells each other with one byte that it is through, and a block is freed when all have.
 * Any thread; world->retired_lock guards the list.
 */
#include "transport/shm/retire.h"

#include "transport/p2p.h"
#include "transport/shm/arena.h"

#include <limits.h>
#include <stdlib.h>

typedef struct hora_retired {
    struct hora_retired *next;
    void                *own;
    int                  nxfers;
    uint8_t              bye;
    hora_xfer_t          xfers[];
} hora_retired_t;

static bool all_done(hora_world_t *world, hora_retired_t *retired) {
    for (int i = 0; i < retired->nxfers; i++)
        if (hora_p2p_test(world, &retired->xfers[i]) == HORA_IN_PROGRESS)
            return false;
    return true;
}

void hora_retired_sweep(hora_world_t *world) {
    pthread_mutex_lock(&world->retired_lock);
    for (hora_retired_t **at = &world->retired; *at != NULL;) {
        hora_retired_t *retired = *at;
        if (!all_done(world, retired)) {
            at = &retired->next;
            continue;
        }
        *at = retired->next;
        hora_arena_free(world->arena, retired->own);
        free(retired);
    }
    pthread_mutex_unlock(&world->retired_lock);
}

static void say_bye(hora_comm_t *comm, const int *members, int size, hora_retired_t *retired) {
    for (int i = 0; i < 2 * size; i++) {
        int          peer = members[i / 2];
        hora_xfer_t *xfer = &retired->xfers[retired->nxfers];
        if (peer == comm->rank)
            continue;
        retired->nxfers++;
        xfer->buf = &retired->bye;
        xfer->len = 1;
        xfer->tag = hora_tag_user(comm->channel, INT_MAX);
        (i % 2 ? hora_p2p_send : hora_p2p_recv)(comm->world, comm->world_ranks[peer], xfer);
    }
}

void hora_retire(hora_comm_t *comm, const int *members, int size, void *block) {
    hora_world_t   *world = comm->world;
    size_t          n = 2 * (size_t)size;
    hora_retired_t *retired = calloc(1, sizeof(*retired) + n * sizeof(retired->xfers[0]));
    if (retired == NULL)
        return; /* then the block goes with the arena */
    retired->own = block;
    say_bye(comm, members, size, retired);
    pthread_mutex_lock(&world->retired_lock);
    retired->next = world->retired;
    world->retired = retired;
    pthread_mutex_unlock(&world->retired_lock);
    hora_retired_sweep(world);
}

void hora_retired_forget(hora_world_t *world) {
    for (hora_retired_t *next; world->retired != NULL; world->retired = next) {
        next = world->retired->next;
        free(world->retired);
    }
}
