/*
 * Which path the collectives of a communicator take on GPUs (device.h). On the thread that uses the
 * communicator.
 */
#include "offload/cuda/device.h"

#include "offload/cuda/ipc.h"
#include "offload/cuda/slots.h"
#include "offload/cuda/staged.h"
#include "offload/mpi/mpi.h"
#include "offload/nccl/hierarchical.h"
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
                                               &hora_gpu_path_hierarchical,
                                               &hora_gpu_path_ipc, &hora_gpu_path_staged, NULL};

/* With HORA_HIERARCHICAL_ALLREDUCE. */
static const hora_gpu_path_t *const levels_first[] = {&hora_gpu_path_mpi, &hora_gpu_path_hierarchical,
                                                      &hora_gpu_path_nccl, &hora_gpu_path_ipc,
                                                      &hora_gpu_path_staged, NULL};

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
    facts->levels = settings->hierarchical_allreduce;
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

/* The first that can. *why_p: what NCCL lacks, if it was tried before. */
static hora_status_t find_first(hora_comm_t *comm, const hora_gpu_facts_t *facts,
                                const hora_gpu_path_t **path_p, const char **why_p) {
    const hora_gpu_path_t *const *order = facts[0].levels ? levels_first : paths;
    const char                   *obstacle = "";
    hora_status_t                 st = HORA_OK;
    for (int i = 0; st == HORA_OK && obstacle != NULL && order[i] != NULL; i++) {
        *path_p = order[i]; /* the last one always can */
        st = try_path(comm, order[i], facts, &obstacle);
        if (order[i] == &hora_gpu_path_nccl)
            *why_p = obstacle;
    }
    return st;
}

/* The one that HORA_GPU_PATH asks for, or an error. */
static hora_status_t find_forced(hora_comm_t *comm, const hora_gpu_facts_t *facts,
                                 const hora_gpu_path_t **path_p) {
    const char   *setting = facts[0].setting, *obstacle;
    hora_status_t st;
    *path_p = find_path(setting);
    if (*path_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_GPU_PATH=%s: auto, mpi, nccl, hierarchical, "
                         "ipc or staged", setting);
    st = try_path(comm, *path_p, facts, &obstacle);
    if (st == HORA_OK && obstacle != NULL)
        st = hora_fail(HORA_ERR_UNSUPPORTED, "collectives on GPUs (HORA_GPU_PATH=%s): %s", setting,
                       obstacle);
    return st;
}

/* Sets comm->gpu->path, the same on all members, or all fail. */
static hora_status_t choose(hora_comm_t *comm) {
    const hora_gpu_facts_t *facts = comm->gpu->facts;
    const hora_gpu_path_t  *path;
    const char             *why = NULL;
    hora_status_t           st = strcmp(facts[0].setting, "auto") == 0
                                     ? find_first(comm, facts, &path, &why)
                                     : find_forced(comm, facts, &path);
    if (st != HORA_OK)
        return st;
    comm->gpu->path = path;
    if (comm->rank == 0)
        hora_log(HORA_LOG_INFO, "GPUs: collectives of %d ranks by %s%s%s%s", comm->size, path->name,
                 why != NULL ? " (not by nccl: " : "", why != NULL ? why : "", why != NULL ? ")" : "");
    return HORA_OK;
}

static hora_status_t agree(hora_comm_t *comm, const hora_gpu_place_t *place) {
    hora_gpu_facts_t *facts = comm->gpu->facts, mine = {.chunk = 0};
    hora_status_t     st = describe(comm, place, &mine);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    st = hora_device_exchange(comm, &mine, facts, sizeof(mine), 0, "the first one on GPUs");
    facts[0].setting[sizeof(facts[0].setting) - 1] = '\0'; /* another process wrote it */
    return st == HORA_OK ? choose(comm) : st;
}

/* Sets comm->gpu, of which path and facts are still to be found. */
static hora_status_t create(hora_comm_t *comm, hora_gpu_t *gpu) {
    struct hora_gpu_comm *self = calloc(1, sizeof(*self));
    if (self != NULL)
        self->facts = calloc((size_t)comm->size, sizeof(*self->facts));
    if (self == NULL || self->facts == NULL) {
        free(self);
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "the GPUs of %d ranks",
                                              comm->size));
    }
    self->gpu = gpu;
    comm->gpu = self;
    return HORA_OK;
}

static hora_status_t get_ready(hora_comm_t *comm, const hora_gpu_place_t *place) {
    hora_status_t st;
    if (comm->gpu != NULL)
        return HORA_OK;
    st = create(comm, place->gpu);
    if (st == HORA_OK)
        st = agree(comm, place);
    if (st != HORA_OK && comm->gpu != NULL) {
        free(comm->gpu->facts);
        free(comm->gpu);
        comm->gpu = NULL;
    }
    return st;
}

hora_status_t hora_device_lend(hora_comm_t *whole, hora_comm_t *part, const hora_gpu_path_t *path) {
    const hora_gpu_facts_t *facts = whole->gpu->facts;
    hora_status_t           st = create(part, whole->gpu->gpu);
    if (st != HORA_OK)
        return st;
    for (int i = 0; i < part->size; i++) {
        part->gpu->facts[i] = facts[part->names[i]];
        part->gpu->facts[i].chunk = facts[0].chunk;
        part->gpu->facts[i].halves = facts[0].halves;
    }
    part->gpu->path = path;
    return HORA_OK;
}

/* ---- The door ------------------------------------------------------------------------------- */

/* Waits for all that were started, but by path `but`, whose own wait for each other. */
static hora_status_t settle(hora_comm_t *comm, const hora_gpu_path_t *but) {
    hora_comm_t  *lane = hora_hierarchy_lane(comm);
    hora_status_t st = HORA_OK;
    if (but != &hora_gpu_path_staged)
        st = hora_staged_settle(comm);
    if (st == HORA_OK && but != &hora_gpu_path_hierarchical && lane != NULL)
        st = hora_staged_settle(lane);
    return st;
}

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
    if (path->start == NULL)
        op_p = NULL;
    st = settle(comm, op_p != NULL ? path : NULL);
    if (st != HORA_OK)
        return st;
    return op_p != NULL ? path->start(comm, coll, op_p) : path->run(comm, coll);
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
    if (comm->gpu == NULL || (comm->gpu->staged == NULL && comm->gpu->levels == NULL))
        return HORA_OK;
    st = hora_gpu_enter(comm->gpu->gpu);
    if (st != HORA_OK)
        return st;
    st = settle(comm, NULL);
    hora_gpu_leave(comm->gpu->gpu);
    return st;
}

bool hora_device_drain(hora_comm_t *comm, const hora_gpu_place_t *place) {
    const struct hora_gpu_comm *self = comm->gpu;
    if (!hora_event_drain(comm->world, place->gpu, place->stream, HORA_DRAIN_SECONDS))
        return false;
    return self == NULL || ((self->staged == NULL || hora_staged_drain(self->staged, HORA_DRAIN_SECONDS)) &&
                            (self->levels == NULL || hora_hierarchy_drain(self->levels)) &&
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
