/*
 * What a freed communicator leaves behind (retire.h). Other members may still read it, so each member tells
 * each other with one byte that it is through, and what is left is freed when all have. Any thread;
 * world->retired_lock guards the list.
 */
#include "transport/shm/retire.h"

#include "transport/p2p.h"
#include "transport/shm/arena.h"
#include "util/clock.h"

#include <limits.h>
#include <stdlib.h>
#include <time.h>

typedef struct hora_retired {
    struct hora_retired *next;
    hora_retired_fn      release; /* NULL: own is a block of the arena, or was released */
    void                *own;     /* NULL: was released */
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

static void release(hora_world_t *world, hora_retired_t *retired) {
    if (retired->release != NULL)
        retired->release(world, retired->own);
    else if (retired->own != NULL)
        hora_arena_free(world->arena, retired->own);
    retired->release = NULL;
    retired->own = NULL;
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
        release(world, retired);
        free(retired);
    }
    pthread_mutex_unlock(&world->retired_lock);
}

static bool any_waits(hora_world_t *world) {
    bool any = false;
    pthread_mutex_lock(&world->retired_lock);
    for (const hora_retired_t *r = world->retired; r != NULL; r = r->next)
        any = any || r->release != NULL;
    pthread_mutex_unlock(&world->retired_lock);
    return any;
}

/* The bytes to and from the others stay until the links are closed. */
void hora_retired_settle(hora_world_t *world, double seconds) {
    struct timespec nap = {0, 100000};
    uint64_t        end = hora_clock_ns() + hora_clock_from_seconds(seconds);
    while (any_waits(world) && hora_clock_ns() < end) {
        hora_retired_sweep(world);
        nanosleep(&nap, NULL);
    }
    pthread_mutex_lock(&world->retired_lock);
    for (hora_retired_t *r = world->retired; r != NULL; r = r->next)
        if (r->release != NULL)
            release(world, r);
    pthread_mutex_unlock(&world->retired_lock);
}

static void say_bye(hora_comm_t *comm, const int *members, int size, hora_retired_t *retired) {
    for (int i = 0; i < 2 * size; i++) {
        int          peer = members != NULL ? members[i / 2] : i / 2;
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

void hora_retire(hora_comm_t *comm, const int *members, int size, hora_retired_fn release, void *what) {
    hora_world_t   *world = comm->world;
    size_t          n = 2 * (size_t)size;
    hora_retired_t *retired = calloc(1, sizeof(*retired) + n * sizeof(retired->xfers[0]));
    if (retired == NULL)
        return; /* then it goes with the arena, or the process */
    retired->release = release;
    retired->own = what;
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
