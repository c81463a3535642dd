/*
 * Failures of the job or of one communicator, and waking the threads that wait. Any thread; called
 * most of all by the watch. Lock order: comms_lock is never held while a link or a bell is touched.
 */
#include "transport/world.h"

#include "transport/comm.h"
#include "transport/match.h"
#include "transport/shm/retire.h"
#include "util/fork.h"
#include "util/log.h"

#include <errno.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

static hora_status_t allocate(hora_world_t *world, int size) {
    world->peers = calloc((size_t)size, sizeof(*world->peers));
    world->self = calloc(1, sizeof(*world->self));
    world->bell = aligned_alloc(_Alignof(hora_bell_t), sizeof(*world->bell));
    world->private_bell = world->bell;
    world->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (world->peers == NULL || world->self == NULL || world->bell == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a world of %d ranks", size);
    if (world->eventfd < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "eventfd");
    return HORA_OK;
}

hora_status_t hora_world_create(int rank, int size, hora_world_t **world_p) {
    hora_world_t *world = calloc(1, sizeof(*world));
    hora_status_t st;
    if (world == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a world of %d ranks", size);
    world->eventfd = -1;
    hora_timeline_init(&world->timeline);
    pthread_mutex_init(&world->lock, NULL);
    pthread_mutex_init(&world->comms_lock, NULL);
    pthread_mutex_init(&world->poke_lock, NULL);
    pthread_mutex_init(&world->retired_lock, NULL);
    st = allocate(world, size);
    if (st != HORA_OK) {
        hora_world_destroy(world);
        return st;
    }
    world->rank = rank;
    world->size = size;
    hora_fork_watch();
    world->fork_generation = hora_fork_generation;
    atomic_init(&world->bell->value, 0);
    atomic_init(&world->bell->waiting, 0);
    hora_match_init(world->self);
    for (int i = 0; i < size; i++) {
        world->peers[i].local = -1;
        world->peers[i].eventfd = -1;
    }
    *world_p = world;
    return HORA_OK;
}

void hora_world_destroy(hora_world_t *world) {
    if (world == NULL)
        return;
    hora_timeline_destroy(&world->timeline);
    if (world->self != NULL)
        hora_match_destroy(world->self);
    if (world->eventfd >= 0)
        close(world->eventfd);
    pthread_mutex_destroy(&world->lock);
    pthread_mutex_destroy(&world->comms_lock);
    pthread_mutex_destroy(&world->poke_lock);
    pthread_mutex_destroy(&world->retired_lock);
    hora_retired_forget(world);
    free(world->costs);
    free(world->self);
    free(world->peers);
    free(world->private_bell);
    free(world);
}

void hora_bell_wake(hora_bell_t *bell, int eventfd) {
    unsigned waiting = atomic_load(&bell->waiting);
    atomic_fetch_add(&bell->value, 1);
    if (waiting & 0xffff)
        syscall(SYS_futex, &bell->value, FUTEX_WAKE, 0x7fffffff, NULL, NULL, 0);
    if (waiting >> 16 && eventfd >= 0) {
        uint64_t one = 1;
        ssize_t  ignored = write(eventfd, &one, sizeof(one)); /* full: a wake-up is pending anyway */
        (void)ignored;
    }
}

/* Another member was quicker and its communicator has failed already. */
static void keep_early_locked(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                              const char *text) {
    unsigned i = world->early_count++ % HORA_EARLY_MAX;
    world->early[i].channel = channel;
    world->early[i].status = status;
    world->early[i].rank = rank;
    snprintf(world->early[i].text, sizeof(world->early[i].text), "%s", text);
}

static void share_failure(hora_comm_t *comm, const hora_comm_t *other) {
    int status = atomic_load(&other->failure.raised);
    if (status != 0 && hora_comm_family(comm) == hora_comm_family(other))
        hora_failure_raise(&comm->failure, status, other->failure.rank, other->failure.text);
}

void hora_world_add_comm(hora_world_t *world, struct hora_comm *comm) {
    pthread_mutex_lock(&world->comms_lock);
    for (struct hora_comm *other = world->comms; other != NULL; other = other->next)
        share_failure(comm, other);
    comm->next = world->comms;
    world->comms = comm;
    if (atomic_load(&world->failure.raised) != 0)
        hora_failure_raise(&comm->failure, atomic_load(&world->failure.raised), world->failure.rank,
                           world->failure.text);
    for (int i = 0; i < HORA_EARLY_MAX; i++)
        if (world->early[i].channel == hora_comm_family(comm))
            hora_failure_raise(&comm->failure, world->early[i].status, world->early[i].rank,
                               world->early[i].text);
    pthread_mutex_unlock(&world->comms_lock);
}

static bool raise_on_comms(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                           const char *text) {
    bool first = false, found = channel == HORA_CHANNEL_ALL;
    pthread_mutex_lock(&world->comms_lock);
    for (struct hora_comm *comm = world->comms; comm != NULL; comm = comm->next)
        if (channel == HORA_CHANNEL_ALL || hora_comm_family(comm) == channel) {
            first |= hora_failure_raise(&comm->failure, status, rank, text);
            found = true;
        }
    if (!found)
        keep_early_locked(world, channel, status, rank, text);
    pthread_mutex_unlock(&world->comms_lock);
    return first;
}

static bool raise_failure(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                          const char *text) {
    bool first = false;
    if (channel == HORA_CHANNEL_ALL)
        first = hora_failure_raise(&world->failure, status, rank, text);
    first |= raise_on_comms(world, channel, status, rank, text);
    if (first)
        hora_log(HORA_LOG_ERROR, "%s", text);
    hora_bell_ring(world->bell, world->eventfd);
    return first;
}

void hora_world_raise(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                      const char *text) {
    raise_failure(world, channel, status, rank, text);
}

void hora_world_fail(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                     const char *text) {
    if (raise_failure(world, channel, status, rank, text) && world->announce != NULL)
        world->announce(world, channel, status, rank, text);
}

void hora_world_set_gone(hora_world_t *world, int rank) {
    atomic_store(&world->peers[rank].gone, 1);
    hora_log(HORA_LOG_DEBUG, "rank %d on host %s has left", rank, world->peers[rank].host);
    hora_bell_ring(world->bell, world->eventfd);
}
