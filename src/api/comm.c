/*
 * Communicators: making, splitting, freeing (schedule/comms.h), aborting, and asking them things. A
 * communicator is made and freed on the thread that calls; abort and status come from any thread.
 */
#include "api/check.h"
#include "api/timeline.h"
#include "bootstrap/bootstrap.h"
#include "offload/cuda/device.h"
#include "offload/offload.h"
#include "schedule/comms.h"
#include "transport/shm/retire.h"
#include "transport/transport.h"
#include "util/fork.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOODBYE_SECONDS 1.0 /* for the others to be through with what is shared with them on a GPU */

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
    comm = hora_comm_new(world, world->size);
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
    st = hora_comm_open(comm);
    if (st != HORA_OK)
        goto err_comm;
    hora_timeline_auto(comm);
    *comm_p = comm;
    return HORA_OK;
err_comm:
    hora_comm_close(comm);
err_leave:
    hora_bootstrap_leave(world);
    return st;
}

static hora_status_t make(hora_comm_t *parent, const hora_split_t *split, hora_comm_t **comm_p) {
    struct hora_nccl_comm *made = NULL;
    hora_comm_t           *comm = NULL;
    hora_status_t st = hora_offload_split(parent, split->size > 1 ? split->mine.color : -1, split->mine.key,
                                          &made);
    if (st != HORA_OK)
        return st;
    st = hora_split_make(parent, split, false, &comm);
    hora_offload_inherit(comm, made);
    if (st == HORA_OK)
        *comm_p = comm;
    return st;
}

hora_status_t hora_comm_split(hora_comm_t *comm, int color, int key, hora_comm_t **comm_p) {
    hora_split_t  split;
    hora_status_t st = hora_check_comm(comm, "comm_split");
    if (st != HORA_OK)
        return st;
    if (comm_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_split: comm_p is NULL");
    st = hora_device_settle(comm);
    if (st == HORA_OK)
        st = hora_split_agree(comm, color, key, &split);
    if (st != HORA_OK)
        return st;
    st = make(comm, &split, comm_p);
    hora_split_end(&split);
    return st;
}

hora_status_t hora_comm_free(hora_comm_t *comm) {
    hora_world_t *world;
    if (comm == NULL)
        return HORA_OK;
    if (comm->world->fork_generation != hora_fork_generation)
        return hora_fail(HORA_ERR_UNSUPPORTED, "comm_free: called in the child of a fork");
    world = comm->world;
    hora_offload_forget(comm);
    if (hora_comm_close(comm)) {
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
