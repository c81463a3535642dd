/*
 * Which path the collectives of a communicator take on GPUs (device.h). On the thread that uses the
 * communicator.
 */
#include "offload/cuda/device.h"

#include "offload/cuda/ipc.h"
#include "offload/cuda/slots.h"
#include "offload/cuda/staged.h"
#include "offload/mpi/mpi.h"
#include "offload/nccl/nccl.h"
#include "schedule/algos.h"
#include "schedule/exec.h"
#include "transport/event.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the order in which they are tried; NULL at the end. */
static const hora_gpu_path_t *const paths[] = {&hora_gpu_path_mpi, &hora_gpu_path_nccl,
                                               &hora_gpu_path_ipc, &hora_gpu_path_staged, NULL};

bool hora_gpu_facts_apart(const hora_gpu_facts_t *facts, int size) {
    for (int i = 0; i < size; i++)
        for (int j = 0; j < i; j++)
            if (memcmp(facts[i].uuid, facts[j].uuid, sizeof(facts[i].uuid)) == 0)
                return false;
    return true;
}

/* ---- Agreeing ------------------------------------------------------------------------------- */

static hora_status_t describe(const hora_comm_t *comm, const hora_gpu_place_t *place,
                              hora_gpu_facts_t *facts) {
    const hora_settings_t *settings = &comm->world->settings;
    hora_gpu_t            *gpu = place->gpu;
    hora_status_t          st = hora_gpu_check(gpu, gpu->cuda->device_uuid(facts->uuid, gpu->device),
                                               "asking for the UUID");
    if (st != HORA_OK)
        return st;
    snprintf(facts->setting, sizeof(facts->setting), "%.15s", settings->gpu_path);
    facts->chunk = settings->gpu_chunk;
    for (int i = 0; paths[i] != NULL; i++)
        if (paths[i]->describe != NULL)
            paths[i]->describe(comm, place, facts);
    return HORA_OK;
}

hora_status_t hora_device_exchange(hora_comm_t *comm, const void *mine, void *all, size_t bytes,
                                   double timeout, const char *name) {
    size_t       *lists = malloc(2 * (size_t)comm->size * sizeof(*lists));
    hora_status_t st;
    if (lists == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "the GPUs of %d ranks",
                                              comm->size));
    for (int i = 0; i < comm->size; i++) {
        lists[i] = bytes;
        lists[comm->size + i] = (size_t)i * bytes;
    }
    hora_coll_t coll = {
        .kind = HORA_COLL_ALLGATHER, .dtype = HORA_UINT8, .op = HORA_SUM, .rank = comm->rank,
        .size = comm->size, .count = bytes, .in = mine, .out = all, .counts = lists,
        .displs = lists + comm->size, .prescale = 1.0, .postscale = 1.0, .timeout = timeout,
        .staged = true, .name = name,
    };
    st = hora_coll_run(comm, &coll);
    free(lists);
    return st;
}

static const hora_gpu_path_t *find_path(const char *name) {
    for (int i = 0; paths[i] != NULL; i++)
        if (strcmp(paths[i]->name, name) == 0)
            return paths[i];
    return NULL;
}

/* Can all members go this way? What the facts do not tell, they try together. */
static hora_status_t try_path(hora_comm_t *comm, const hora_gpu_path_t *path,
                              const hora_gpu_facts_t *facts, const char **obstacle_p) {
    hora_status_t st = HORA_OK;
    *obstacle_p = path->obstacle(comm, facts);
    if (*obstacle_p == NULL && path->prepare != NULL)
        st = path->prepare(comm, obstacle_p);
    if (*obstacle_p != NULL && comm->rank == 0)
        hora_log(HORA_LOG_DEBUG, "GPUs: not by %s: %s", path->name, *obstacle_p);
    return st;
}

/* Sets comm->gpu->path, the same on all members, or all fail. */
static hora_status_t choose(hora_comm_t *comm) {
    const hora_gpu_facts_t *facts = comm->gpu->facts;
    const char            *setting = facts[0].setting, *obstacle = "there is no path";
    const hora_gpu_path_t *path = NULL;
    bool                   is_auto = strcmp(setting, "auto") == 0;
    hora_status_t          st = HORA_OK;
    if (!is_auto && (path = find_path(setting)) == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_GPU_PATH=%s: auto, mpi, nccl, ipc or "
                         "staged",
                         setting);
    if (!is_auto)
        st = try_path(comm, path, facts, &obstacle);
    for (int i = 0; is_auto && st == HORA_OK && obstacle != NULL && paths[i] != NULL; i++) {
        path = paths[i];
        st = try_path(comm, path, facts, &obstacle);
    }
    if (st != HORA_OK)
        return st;
    if (obstacle != NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "collectives on GPUs (HORA_GPU_PATH=%s): %s", setting,
                         obstacle);
    comm->gpu->path = path;
    if (comm->rank == 0)
        hora_log(HORA_LOG_INFO, "GPUs: collectives of %d ranks by %s", comm->size, path->name);
    return HORA_OK;
}

static hora_status_t agree(hora_comm_t *comm, const hora_gpu_place_t *place) {
    hora_gpu_facts_t *facts = comm->gpu->facts, mine = {{0}};
    hora_status_t     st = describe(comm, place, &mine);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    st = hora_device_exchange(comm, &mine, facts, sizeof(mine), 0, "the first one on GPUs");
    facts[0].setting[sizeof(facts[0].setting) - 1] = '\0'; /* another process wrote it */
    return st == HORA_OK ? choose(comm) : st;
}

static hora_status_t get_ready(hora_comm_t *comm, const hora_gpu_place_t *place) {
    struct hora_gpu_comm *self;
    hora_status_t         st;
    if (comm->gpu != NULL)
        return HORA_OK;
    self = calloc(1, sizeof(*self));
    if (self != NULL)
        self->facts = calloc((size_t)comm->size, sizeof(*self->facts));
    if (self == NULL || self->facts == NULL) {
        free(self);
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "the GPUs of %d ranks",
                                              comm->size));
    }
    self->gpu = place->gpu;
    comm->gpu = self;
    st = agree(comm, place);
    if (st != HORA_OK) {
        free(self->facts);
        free(self);
        comm->gpu = NULL;
    }
    return st;
}

/* ---- The door ------------------------------------------------------------------------------- */

/* op_p: start it only, where that differs; may be NULL. */
static hora_status_t run(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p) {
    const hora_gpu_path_t *path;
    hora_status_t          st = get_ready(comm, coll->gpu);
    if (st != HORA_OK)
        return st;
    if (coll->gpu->gpu != comm->gpu->gpu)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: buffers on GPU %d, but this communicator's "
                         "first ones were on GPU %d: make another communicator",
                         hora_coll_name(coll->kind), coll->gpu->gpu->ordinal, comm->gpu->gpu->ordinal);
    path = comm->gpu->path;
    if (!path->takes(comm, coll))
        path = &hora_gpu_path_staged;
    if (path == &hora_gpu_path_staged && op_p != NULL && comm->size > 1)
        return hora_staged_start(comm, coll, op_p);
    st = hora_staged_settle(comm);
    return st == HORA_OK ? path->run(comm, coll) : st;
}

/* This rank cannot take part, and the others shall not wait for it. */
static hora_status_t fail_entering(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t st) {
    bool named = coll->name != NULL && coll->name[0] != '\0';
    char cause[256];
    snprintf(cause, sizeof(cause), "%s", hora_last_error());
    return hora_coll_fail(comm, hora_fail(st, "%s%s%.80s%s: %s", hora_coll_name(coll->kind),
                                          named ? " '" : "", named ? coll->name : "",
                                          named ? "'" : "", cause));
}

static hora_status_t enter_and_run(hora_comm_t *comm, const hora_coll_t *coll,
                                   hora_staged_op_t **op_p) {
    hora_status_t st = hora_failure_check(&comm->failure);
    if (st != HORA_OK)
        return st;
    st = hora_gpu_enter(coll->gpu->gpu);
    if (st != HORA_OK)
        return fail_entering(comm, coll, st);
    st = run(comm, coll, op_p);
    hora_gpu_leave(coll->gpu->gpu);
    return st;
}

hora_status_t hora_device_run(hora_comm_t *comm, const hora_coll_t *coll) {
    return enter_and_run(comm, coll, NULL);
}

hora_status_t hora_device_start(hora_comm_t *comm, const hora_coll_t *coll,
                                hora_staged_op_t **op_p) {
    *op_p = NULL;
    return enter_and_run(comm, coll, op_p);
}

/* In the context of the communicator's GPU. */
static hora_status_t within(hora_comm_t *comm, hora_status_t (*move)(hora_staged_op_t *op),
                            hora_staged_op_t *op) {
    hora_status_t st = hora_gpu_enter(comm->gpu->gpu);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    st = move(op);
    hora_gpu_leave(comm->gpu->gpu);
    return st;
}

hora_status_t hora_device_progress(hora_comm_t *comm, hora_staged_op_t *op) {
    return within(comm, hora_staged_progress, op);
}

hora_status_t hora_device_wait(hora_comm_t *comm, hora_staged_op_t *op) {
    hora_status_t st = within(comm, hora_staged_wait, op);
    hora_staged_free(op);
    return st;
}

hora_status_t hora_device_settle(hora_comm_t *comm) {
    hora_status_t st = HORA_OK;
    if (comm->gpu == NULL || comm->gpu->staged == NULL)
        return HORA_OK;
    st = hora_gpu_enter(comm->gpu->gpu);
    if (st != HORA_OK)
        return st;
    st = hora_staged_settle(comm);
    hora_gpu_leave(comm->gpu->gpu);
    return st;
}

bool hora_device_drain(hora_comm_t *comm, const hora_gpu_place_t *place) {
    const struct hora_gpu_comm *self = comm->gpu;
    if (!hora_event_drain(comm->world, place->gpu, place->stream, HORA_DRAIN_SECONDS))
        return false;
    return self == NULL || ((self->staged == NULL || hora_staged_drain(self->staged, HORA_DRAIN_SECONDS)) &&
                            (self->ipc == NULL || !hora_ipc_is_exposed(self->ipc)));
}

void hora_device_drain_call(hora_comm_t *comm, const hora_gpu_place_t *place) {
    bool lost;
    if (comm->gpu == NULL || comm->gpu->drained || atomic_load(&comm->failure.raised) == HORA_OK)
        return;
    comm->gpu->drained = true;
    lost = place->gpu->cuda->context_push(place->gpu->context) != HORA_CUDA_SUCCESS;
    if (!lost && !hora_device_drain(comm, place))
        hora_log(HORA_LOG_WARNING, "GPU %d may still use the buffers of operations that have failed",
                 place->gpu->ordinal);
    if (!lost)
        hora_gpu_leave(place->gpu);
}

void hora_device_forget(hora_comm_t *comm) {
    struct hora_gpu_comm *self = comm->gpu;
    bool                  entered = hora_gpu_enter(self->gpu) == HORA_OK; /* else the GPU is lost */
    for (int i = 0; paths[i] != NULL; i++)
        paths[i]->forget(comm);
    if (entered)
        hora_gpu_leave(self->gpu);
    free(self->facts);
    free(self);
    comm->gpu = NULL;
}
