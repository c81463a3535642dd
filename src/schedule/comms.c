/*
 * Communicators: made, split, taken apart (comms.h). On the calling thread.
 *
 * Invariant: every communicator is in world->comms from before its channel is first used until it is
 * closed; the world lives as long as that list is not empty.
 */
#include "schedule/comms.h"

#include "schedule/exec.h"
#include "transport/shm/pads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

hora_comm_t *hora_comm_new(hora_world_t *world, int size) {
    hora_comm_t *comm = calloc(1, sizeof(*comm));
    const char  *algo = world->settings.algo;
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
    comm->tiny_allowed = strcmp(algo, "auto") == 0 || strcmp(algo, "oneshot") == 0 ||
                         strcmp(algo, "arena") == 0;
    comm->boards_allowed = comm->tiny_allowed && strcmp(algo, "arena") != 0;
    return comm;
}

static void comm_delete(hora_comm_t *comm) {
    hora_exec_forget(comm);
    hora_hosts_destroy(comm->hosts);
    free(comm->names);
    free(comm->world_ranks);
    free(comm);
}

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

bool hora_comm_close(hora_comm_t *comm) {
    hora_pads_give_up(comm->pads);
    hora_pads_give_up(comm->host_pads);
    bool last = unlink_comm(comm);
    comm_delete(comm);
    return last;
}

/* ---- Opening ------------------------------------------------------------------------------------ */

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

static hora_status_t share_memory(hora_comm_t *comm) {
    hora_status_t st = find_hosts(comm);
    if (st != HORA_OK)
        return st;
    place(comm);
    if (comm->hosts->count > 1 && comm->hosts->most > 1)
        return open_host_pads(comm);
    return shares_arena(comm) ? hora_pads_create(comm, 0) : HORA_OK;
}

hora_status_t hora_comm_open(hora_comm_t *comm) {
    hora_status_t st;
    hora_world_add_comm(comm->world, comm);
    st = share_memory(comm);
    comm->opened = st == HORA_OK;
    return st;
}

/* ---- Splitting ---------------------------------------------------------------------------------- */

static hora_coll_t vote(const hora_comm_t *comm, hora_coll_kind_t kind, void *data, size_t count) {
    return (hora_coll_t){.kind = kind, .dtype = HORA_UINT8, .op = HORA_MAX, .rank = comm->rank,
                         .size = comm->size, .count = count, .in = data, .out = data,
                         .prescale = 1.0, .postscale = 1.0, .name = "comm_split"};
}

static hora_status_t gather_ballots(hora_comm_t *comm, hora_ballot_t *ballots) {
    size_t       *lists = malloc(2 * (size_t)comm->size * sizeof(*lists));
    hora_coll_t   coll = vote(comm, HORA_COLL_ALLGATHER, ballots, sizeof(*ballots));
    hora_status_t st;
    if (lists == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "comm_split of %d ranks", comm->size);
    for (int i = 0; i < comm->size; i++) {
        lists[i] = sizeof(*ballots);
        lists[comm->size + i] = (size_t)i * sizeof(*ballots);
    }
    coll.in = &ballots[comm->rank];
    coll.counts = lists;
    coll.displs = lists + comm->size;
    st = hora_coll_run(comm, &coll);
    free(lists);
    return st;
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
    for (;;) {
        uint64_t mix = ((uint64_t)parent->channel << 32 | ++parent->splits) * 0x9e3779b97f4a7c15ull;
        uint32_t channel = (uint32_t)(mix >> 32) | 1u << 31; /* never that of the world */
        uint8_t  taken = channel_taken(parent->world, channel);
        hora_coll_t   coll = vote(parent, HORA_COLL_ALLREDUCE, &taken, 1);
        hora_status_t st = hora_coll_run(parent, &coll);
        if (st != HORA_OK)
            return st;
        if (!taken) {
            *channel_p = channel;
            return HORA_OK;
        }
    }
}

hora_status_t hora_split_agree(hora_comm_t *parent, int color, int key, hora_split_t *split_p) {
    hora_split_t  split = {.mine = {color, key}};
    hora_status_t st;
    split.ballots = calloc((size_t)parent->size, sizeof(*split.ballots));
    if (split.ballots == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "comm_split of %d ranks", parent->size);
    split.ballots[parent->rank] = split.mine;
    st = gather_ballots(parent, split.ballots);
    if (st == HORA_OK)
        st = agree_on_channel(parent, &split.channel);
    if (st != HORA_OK) {
        free(split.ballots);
        return st;
    }
    for (int i = 0; i < parent->size; i++)
        split.size += split.ballots[i].color == color;
    *split_p = split;
    return HORA_OK;
}

void hora_split_end(hora_split_t *split) {
    free(split->ballots);
}

/* The members of my color, as ranks of the parent: by key, then by rank. Insertion keeps equal keys in
 * rank order. */
static void choose_members(const hora_comm_t *parent, const hora_split_t *split, int *order) {
    int n = 0;
    for (int i = 0; i < parent->size; i++) {
        int at = n;
        if (split->ballots[i].color != split->mine.color)
            continue;
        for (; at > 0 && split->ballots[order[at - 1]].key > split->ballots[i].key; at--)
            order[at] = order[at - 1];
        order[at] = i;
        n++;
    }
}

static bool fill(const hora_comm_t *parent, const hora_split_t *split, bool part, hora_comm_t *comm) {
    int *order = comm->world_ranks;
    choose_members(parent, split, order);
    if (part) {
        comm->whole = hora_comm_family(parent);
        comm->names = malloc((size_t)comm->size * sizeof(*comm->names));
        if (comm->names == NULL)
            return false;
    }
    for (int i = 0; i < comm->size; i++) {
        if (order[i] == parent->rank)
            comm->rank = i;
        if (part)
            comm->names[i] = hora_comm_name(parent, order[i]);
        order[i] = parent->world_ranks[order[i]];
    }
    comm->channel = split->channel;
    comm->timeout = parent->timeout;
    return true;
}

/* A communicator that could not be made here is of no use to its other members. It must be in world->comms
 * still: of one that this rank does not know it tells nobody. */
static void tell_members(const hora_comm_t *parent, uint32_t channel, hora_status_t status) {
    char text[HORA_FAILURE_TEXT_MAX];
    snprintf(text, sizeof(text), "comm_split: rank %d on host %s: %s",
             hora_comm_name(parent, parent->rank), hora_comm_peer(parent, parent->rank)->host,
             hora_last_error());
    hora_world_fail(parent->world, channel, status, parent->world->rank, text);
}

hora_status_t hora_split_make(hora_comm_t *parent, const hora_split_t *split, bool part,
                              hora_comm_t **comm_p) {
    hora_comm_t  *comm;
    hora_status_t st;
    if (split->mine.color < 0) {
        *comm_p = NULL;
        return HORA_OK;
    }
    comm = hora_comm_new(parent->world, split->size);
    if (comm == NULL || !fill(parent, split, part, comm)) {
        if (comm != NULL)
            comm_delete(comm);
        return hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", split->size);
    }
    st = hora_comm_open(comm);
    if (st != HORA_OK) {
        tell_members(parent, hora_comm_family(comm), st);
        hora_comm_close(comm);
        return st;
    }
    *comm_p = comm;
    return HORA_OK;
}
