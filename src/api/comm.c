/*
 * Communicators: making, splitting, freeing, aborting, and asking them things. A communicator is made
 * and freed on the thread that calls; abort and status come from any thread.
 *
 * Invariant: every communicator is in world->comms from before its channel is agreed on until it is
 * freed; the world lives as long as that list is not empty.
 */
#include "api/check.h"
#include "api/timeline.h"
#include "bootstrap/bootstrap.h"
#include "offload/cuda/device.h"
#include "offload/offload.h"
#include "schedule/exec.h"
#include "transport/shm/pads.h"
#include "transport/shm/retire.h"
#include "transport/transport.h"
#include "util/fork.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOODBYE_SECONDS 1.0 /* for the others to be through with what is shared with them on a GPU */

/* What each rank says in a split. */
typedef struct ballot {
    int32_t color, key;
} ballot_t;

/* True when it was the last one. */
static bool unlink_comm(hora_comm_t *comm) {
    pthread_mutex_lock(&comm->world->comms_lock);
    struct hora_comm **at = &comm->world->comms;
    while (*at != comm)
        at = &(*at)->next;
    *at = comm->next;
    bool last = comm->world->comms == NULL;
    pthread_mutex_unlock(&comm->world->comms_lock);
    return last;
}

static hora_comm_t *comm_new(hora_world_t *world, int size) {
    hora_comm_t *comm = calloc(1, sizeof(*comm));
    if (comm == NULL)
        return NULL;
    comm->world_ranks = calloc((size_t)size, sizeof(*comm->world_ranks));
    if (comm->world_ranks == NULL) {
        free(comm);
        return NULL;
    }
    comm->world = world;
    comm->size = size;
    comm->timeout = world->settings.timeout;
    comm->tiny_allowed = strcmp(world->settings.algo, "auto") == 0 ||
                         strcmp(world->settings.algo, "oneshot") == 0 ||
                         strcmp(world->settings.algo, "arena") == 0;
    comm->boards_allowed = comm->tiny_allowed && strcmp(world->settings.algo, "arena") != 0;
    return comm;
}

static void comm_delete(hora_comm_t *comm) {
    hora_offload_forget(comm);
    hora_exec_forget(comm);
    hora_hosts_destroy(comm->hosts);
    free(comm->world_ranks);
    free(comm);
}

/* Who is on which host: a host is its index in the world. */
static hora_status_t find_hosts(hora_comm_t *comm) {
    int          *ids = calloc((size_t)comm->size, sizeof(*ids));
    hora_status_t st;
    if (ids == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", comm->size);
    for (int i = 0; i < comm->size; i++)
        ids[i] = hora_comm_peer(comm, i)->cross_rank;
    st = hora_hosts_create(comm->size, ids, comm->world->size, &comm->hosts);
    free(ids);
    return st;
}

/* Local and cross ranks among the members. */
static void place(hora_comm_t *comm) {
    const hora_hosts_t *hosts = comm->hosts;
    comm->local_rank = hosts->number[comm->rank];
    comm->local_size = hora_hosts_size(hosts, hosts->host[comm->rank]);
    comm->cross_rank = comm->cross_size = 0;
    for (int i = 0; i < comm->size; i++)
        if (hosts->number[i] == comm->local_rank) {
            comm->cross_rank += i < comm->rank;
            comm->cross_size++;
        }
}

static bool shares_arena(const hora_comm_t *comm) {
    if (comm->world->arena == NULL || comm->size == 1)
        return false;
    for (int i = 0; i < comm->size; i++)
        if (hora_comm_peer(comm, i)->bell == NULL)
            return false;
    return true;
}

/* Two levels need pads on each host that has several members, and slots of one size. */
static hora_status_t open_host_pads(hora_comm_t *comm) {
    uint64_t      slot = UINT64_MAX;
    hora_status_t st = HORA_OK;
    hora_coll_t   least = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_UINT64, .op = HORA_MIN,
                           .rank = comm->rank, .size = comm->size, .count = 1, .in = &slot,
                           .out = &slot, .prescale = 1.0, .postscale = 1.0,
                           .name = "have all hosts shared memory"};
    if (comm->local_size > 1 && comm->world->arena != NULL)
        st = hora_pads_create(comm, hora_twolevel_slot_bytes(comm->hosts));
    if (comm->local_size > 1 && st == HORA_OK)
        slot = comm->host_pads != NULL ? comm->host_pads->slot_bytes : 0;
    if (st == HORA_OK)
        st = hora_coll_run(comm, &least);
    if (st == HORA_OK)
        comm->host_slot = (size_t)slot;
    memset(comm->chosen, 0, sizeof(comm->chosen)); /* chosen while two levels could not be */
    if (comm->host_pads == NULL)
        return st;
    comm->host_pads->slot_bytes = comm->host_slot;
    if (comm->host_slot == 0) {
        hora_pads_give_up(comm->host_pads);
        comm->host_pads = NULL;
    }
    return st;
}

static hora_status_t comm_open(hora_comm_t *comm) {
    hora_status_t st = find_hosts(comm);
    if (st != HORA_OK)
        return st;
    place(comm);
    if (comm->hosts->count > 1 && comm->hosts->most > 1)
        st = open_host_pads(comm);
    else if (shares_arena(comm))
        st = hora_pads_create(comm, 0);
    comm->opened = st == HORA_OK;
    return st;
}

static hora_status_t read_options(const hora_comm_options_t *options, hora_comm_options_t *own) {
    static const hora_comm_options_t defaults = HORA_COMM_OPTIONS_INIT;
    *own = defaults;
    if (options == NULL)
        return HORA_OK;
    if (options->size < sizeof(size_t))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "comm_create: options->size is not set; use HORA_COMM_OPTIONS_INIT");
    memcpy(own, options, options->size < sizeof(*own) ? options->size : sizeof(*own));
    if ((own->rank < 0) != (own->nranks < 0))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_create: rank is %d and nranks is %d: give "
                         "both or neither (-1)", own->rank, own->nranks);
    if (own->nranks >= 0 && own->rank >= own->nranks)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_create: rank %d of %d ranks", own->rank,
                         own->nranks);
    if (!(own->timeout >= 0) || !(own->start_timeout >= 0))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_create: a timeout is negative");
    return HORA_OK;
}

hora_status_t hora_comm_create(const hora_comm_options_t *options, hora_comm_t **comm_p) {
    hora_comm_options_t own;
    hora_world_t       *world;
    hora_comm_t        *comm;
    hora_status_t       st;
    if (comm_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_create: comm_p is NULL");
    st = read_options(options, &own);
    if (st == HORA_OK)
        st = hora_bootstrap_join(&own, &world);
    if (st != HORA_OK)
        return st;
    comm = comm_new(world, world->size);
    if (comm == NULL) {
        st = hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", world->size);
        goto err_leave;
    }
    comm->rank = world->rank;
    comm->channel = HORA_CHANNEL_WORLD;
    if (own.timeout > 0)
        comm->timeout = own.timeout;
    for (int i = 0; i < comm->size; i++)
        comm->world_ranks[i] = i;
    hora_world_add_comm(comm->world, comm);
    st = comm_open(comm);
    if (st != HORA_OK)
        goto err_unlink;
    hora_timeline_auto(comm);
    *comm_p = comm;
    return HORA_OK;
err_unlink:
    unlink_comm(comm);
    comm_delete(comm);
err_leave:
    hora_bootstrap_leave(world);
    return st;
}

static hora_status_t gather_ballots(hora_comm_t *comm, ballot_t mine, ballot_t *ballots) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    options.name = "comm_split";
    ballots[comm->rank] = mine;
    return hora_allgather(comm, &ballots[comm->rank], ballots, sizeof(mine), HORA_UINT8, &options);
}

/* The members of my color, by key, then by rank. Insertion keeps equal keys in rank order. */
static void choose_members(const hora_comm_t *parent, const ballot_t *ballots, hora_comm_t *comm) {
    int32_t color = ballots[parent->rank].color;
    int    *order = comm->world_ranks;
    int     n = 0;
    for (int i = 0; i < parent->size; i++) {
        int at = n;
        if (ballots[i].color != color)
            continue;
        for (; at > 0 && ballots[order[at - 1]].key > ballots[i].key; at--)
            order[at] = order[at - 1];
        order[at] = i;
        n++;
    }
    for (int i = 0; i < n; i++) {
        if (order[i] == parent->rank)
            comm->rank = i;
        order[i] = parent->world_ranks[order[i]];
    }
}

static bool channel_taken(hora_world_t *world, uint32_t channel) {
    bool taken = false;
    pthread_mutex_lock(&world->comms_lock);
    for (struct hora_comm *comm = world->comms; comm != NULL; comm = comm->next)
        taken |= comm->channel == channel;
    pthread_mutex_unlock(&world->comms_lock);
    return taken;
}

/* A channel that no member of parent uses: a function of the parent and of how many splits it has
 * seen, so that splits of different communicators by different threads need no order among them. */
static hora_status_t agree_on_channel(hora_comm_t *parent, uint32_t *channel_p) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    options.name = "comm_split";
    for (;;) {
        uint64_t mix = ((uint64_t)parent->channel << 32 | ++parent->splits) * 0x9e3779b97f4a7c15ull;
        uint32_t channel = (uint32_t)(mix >> 32) | 1u << 31; /* never that of the world */
        uint8_t  taken = channel_taken(parent->world, channel);
        hora_status_t st = hora_allreduce(parent, &taken, &taken, 1, HORA_UINT8, HORA_MAX, &options);
        if (st != HORA_OK)
            return st;
        if (!taken) {
            *channel_p = channel;
            return HORA_OK;
        }
    }
}

/* A communicator that could not be made here is of no use to its other members. */
static void tell_members(hora_comm_t *comm, hora_status_t status) {
    char text[HORA_FAILURE_TEXT_MAX];
    snprintf(text, sizeof(text), "comm_split: rank %d on host %s: %s", comm->rank,
             hora_comm_peer(comm, comm->rank)->host, hora_last_error());
    hora_world_fail(comm->world, comm->channel, status, comm->world->rank, text);
}

static hora_status_t split(hora_comm_t *parent, const ballot_t *ballots, hora_comm_t **comm_p) {
    ballot_t               mine = ballots[parent->rank];
    int                    size = 0;
    uint32_t               channel;
    struct hora_nccl_comm *made = NULL;
    hora_comm_t           *comm;
    hora_status_t          st = agree_on_channel(parent, &channel);
    if (st != HORA_OK)
        return st;
    for (int i = 0; i < parent->size; i++)
        size += ballots[i].color == mine.color;
    st = hora_offload_split(parent, size > 1 ? mine.color : -1, mine.key, &made);
    if (st != HORA_OK)
        return st;
    *comm_p = NULL;
    if (mine.color < 0)
        return HORA_OK;
    comm = comm_new(parent->world, size);
    if (comm == NULL) {
        hora_offload_inherit(NULL, made);
        return hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", size);
    }
    hora_offload_inherit(comm, made);
    comm->channel = channel;
    comm->timeout = parent->timeout;
    choose_members(parent, ballots, comm);
    hora_world_add_comm(comm->world, comm);
    st = comm_open(comm);
    if (st != HORA_OK) {
        tell_members(comm, st);
        unlink_comm(comm);
        comm_delete(comm);
        return st;
    }
    *comm_p = comm;
    return HORA_OK;
}

hora_status_t hora_comm_split(hora_comm_t *comm, int color, int key, hora_comm_t **comm_p) {
    ballot_t     *ballots;
    hora_status_t st = hora_check_comm(comm, "comm_split");
    if (st != HORA_OK)
        return st;
    if (comm_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_split: comm_p is NULL");
    st = hora_device_settle(comm);
    if (st != HORA_OK)
        return st;
    ballots = calloc((size_t)comm->size, sizeof(*ballots));
    if (ballots == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "comm_split of %d ranks", comm->size);
    st = gather_ballots(comm, (ballot_t){color, key}, ballots);
    if (st == HORA_OK)
        st = split(comm, ballots, comm_p);
    free(ballots);
    return st;
}

hora_status_t hora_comm_free(hora_comm_t *comm) {
    hora_world_t *world;
    if (comm == NULL)
        return HORA_OK;
    if (comm->world->fork_generation != hora_fork_generation)
        return hora_fail(HORA_ERR_UNSUPPORTED, "comm_free: called in the child of a fork");
    world = comm->world;
    hora_pads_give_up(comm->pads);
    hora_pads_give_up(comm->host_pads);
    bool last = unlink_comm(comm);
    comm_delete(comm);
    if (last) {
        hora_retired_settle(world, GOODBYE_SECONDS);
        hora_bootstrap_leave(world);
    }
    return HORA_OK;
}

hora_status_t hora_comm_abort(hora_comm_t *comm, const char *reason) {
    char         text[HORA_FAILURE_TEXT_MAX];
    hora_peer_t *me;
    if (comm == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_abort: comm is NULL");
    me = &comm->world->peers[comm->world->rank];
    snprintf(text, sizeof(text), "rank %d on host %s aborted: %s", comm->world->rank, me->host,
             reason != NULL ? reason : "no reason given");
    hora_world_fail(comm->world,
                    comm->channel == HORA_CHANNEL_WORLD ? HORA_CHANNEL_ALL : comm->channel,
                    HORA_ERR_ABORTED, comm->world->rank, text);
    return HORA_OK;
}

hora_status_t hora_comm_status(hora_comm_t *comm) {
    return hora_check_comm(comm, "comm_status");
}

int hora_comm_rank(const hora_comm_t *comm) {
    return comm->rank;
}

int hora_comm_size(const hora_comm_t *comm) {
    return comm->size;
}

int hora_comm_local_rank(const hora_comm_t *comm) {
    return comm->local_rank;
}

int hora_comm_local_size(const hora_comm_t *comm) {
    return comm->local_size;
}

int hora_comm_cross_rank(const hora_comm_t *comm) {
    return comm->cross_rank;
}

int hora_comm_cross_size(const hora_comm_t *comm) {
    return comm->cross_size;
}

const char *hora_comm_host(const hora_comm_t *comm, int rank) {
    return rank >= 0 && rank < comm->size ? hora_comm_peer(comm, rank)->host : NULL;
}

const char *hora_comm_transport(const hora_comm_t *comm, int rank) {
    hora_link_t *link;
    if (rank < 0 || rank >= comm->size)
        return NULL;
    link = hora_comm_peer(comm, rank)->link;
    return rank == comm->rank || link == NULL ? "self" : link->transport->ops->name;
}
