/*
 * The path hierarchical (hierarchical.h): what is made for it, and what it leaves to NCCL alone. On the
 * thread that uses the communicator, with the GPU's context current.
 */
#include "offload/nccl/hierarchical.h"

#include "offload/cuda/staged.h"
#include "offload/nccl/nccl.h"
#include "schedule/algos.h"
#include "schedule/comms.h"
#include "transport/event.h"
#include "util/log.h"

#include <stdlib.h>
#include <string.h>

#define GOODBYE_SECONDS 5.0 /* for work that is queued when the communicator is freed */

hora_comm_t *hora_hierarchy_lane(const hora_comm_t *comm) {
    const hora_hierarchy_t *self = comm->gpu->levels;
    return self != NULL ? self->lane : NULL;
}

static hora_status_t check(const hora_hierarchy_t *self, hora_cuda_result_t result, const char *what) {
    return hora_gpu_check(self->place.gpu, result, what);
}

/* ---- Making it -------------------------------------------------------------------------------- */

/* Two ranks of one host: may NCCL connect them? */
static const char *pair_obstacle(const hora_gpu_facts_t *a, const hora_gpu_facts_t *b, bool forced) {
    if (a->nccl == 0 || b->nccl == 0)
        return "not every rank has NCCL 2.14.3 or later";
    if (a->nccl != b->nccl)
        return "ranks of one host have different versions of NCCL";
    if (!forced && memcmp(a->uuid, b->uuid, sizeof(a->uuid)) == 0)
        return "ranks share a GPU, which NCCL does not allow";
    return NULL;
}

static const char *obstacle(const hora_comm_t *comm, const hora_gpu_facts_t *facts) {
    const hora_hosts_t *hosts = comm->hosts;
    bool                forced = strcmp(facts[0].setting, hora_gpu_path_hierarchical.name) == 0;
    if (hosts->count == 1)
        return "all ranks are on one host";
    if (hosts->most == 1)
        return "no host has several ranks";
    for (int i = 0; i < comm->size; i++)
        for (int j = 0; j < i; j++) {
            const char *found = hosts->host[i] == hosts->host[j]
                                    ? pair_obstacle(&facts[i], &facts[j], forced) : NULL;
            if (found != NULL)
                return found;
        }
    return NULL;
}

/* All members call it together. *part_p NULL: color is below 0. */
static hora_status_t make_part(hora_comm_t *comm, int color, int key, const hora_gpu_path_t *path,
                               hora_comm_t **part_p) {
    hora_split_t  split;
    hora_status_t st = hora_split_agree(comm, color, key, &split);
    if (st != HORA_OK)
        return st;
    st = hora_split_make(comm, &split, true, part_p);
    hora_split_end(&split);
    return st == HORA_OK && *part_p != NULL ? hora_device_lend(comm, *part_p, path) : st;
}

static hora_status_t make_parts(hora_comm_t *comm, hora_hierarchy_t *self) {
    bool          has_lane = self->number < self->lanes;
    hora_status_t st = make_part(comm, self->host, 0, &hora_gpu_path_nccl, &self->local);
    if (st == HORA_OK) /* a lane's ranks are the hosts' numbers */
        st = make_part(comm, has_lane ? self->number : -1, self->host, &hora_gpu_path_staged, &self->lane);
    if (st != HORA_OK)
        return st;
    self->counts = calloc(2 * (size_t)self->local->size, sizeof(*self->counts));
    self->displs = self->counts + self->local->size;
    return self->counts != NULL ? HORA_OK : hora_fail(HORA_ERR_NO_MEMORY, "a host's ranks");
}

static hora_status_t make_queues(hora_hierarchy_t *self) {
    const hora_cuda_t *cuda = self->place.gpu->cuda;
    hora_cuda_result_t result = cuda->stream_create(&self->place.stream, HORA_CUDA_STREAM_NON_BLOCKING, 0);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->event_create(&self->turn, HORA_CUDA_EVENT_NO_TIMING);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->host_alloc((void **)&self->pieces, HORA_CASTS * sizeof(*self->pieces), 0);
    for (int i = 0; i < HORA_CASTS && result == HORA_CUDA_SUCCESS; i++) {
        self->casts[i].piece = &self->pieces[i];
        result = cuda->event_create(&self->casts[i].ran, HORA_CUDA_EVENT_NO_TIMING);
    }
    return check(self, result, "making a stream and events");
}

static void free_queues(hora_hierarchy_t *self) {
    const hora_cuda_t *cuda = self->place.gpu->cuda;
    for (int i = 0; i < HORA_CASTS; i++)
        if (self->casts[i].ran != NULL)
            cuda->event_destroy(self->casts[i].ran);
    if (self->pieces != NULL)
        cuda->host_free(self->pieces);
    if (self->turn != NULL)
        cuda->event_destroy(self->turn);
    if (self->place.stream != NULL)
        cuda->stream_destroy(self->place.stream);
    hora_scratch_free(self->place.gpu, &self->scratch);
}

bool hora_hierarchy_drain(const hora_hierarchy_t *self) {
    const hora_staged_t *staged = self->lane != NULL ? self->lane->gpu->staged : NULL;
    return hora_event_drain(self->local->world, self->place.gpu, self->place.stream, HORA_DRAIN_SECONDS) &&
           (staged == NULL || hora_staged_drain(staged, HORA_DRAIN_SECONDS));
}

static void drop_part(hora_comm_t *part) {
    if (part == NULL)
        return;
    if (part->gpu != NULL)
        hora_device_forget(part);
    hora_comm_close(part);
}

/* NCCL's communicator first, whose end is the end of what it has queued. */
static void forget(hora_comm_t *comm) {
    hora_hierarchy_t *self = comm->gpu->levels;
    if (self == NULL)
        return;
    drop_part(self->local);
    if (self->place.stream == NULL ||
        hora_event_drain(comm->world, self->place.gpu, self->place.stream, GOODBYE_SECONDS))
        free_queues(self);
    else
        hora_log(HORA_LOG_WARNING, "GPU %d is still busy with a communicator: its memory is not freed",
                 self->place.gpu->ordinal);
    drop_part(self->lane);
    free(self->counts);
    free(self);
    comm->gpu->levels = NULL;
}

/* *all_p: every host has its communicator of NCCL's; another one may still be waiting for it. */
static hora_status_t vote(hora_comm_t *comm, bool mine, bool *all_p) {
    uint8_t       vote = mine, *votes = malloc((size_t)comm->size);
    hora_status_t st;
    if (votes == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "votes of %d ranks", comm->size));
    st = hora_device_exchange(comm, &vote, votes, 1,
                              comm->timeout + comm->world->settings.start_timeout,
                              "has every host its NCCL communicator");
    *all_p = st == HORA_OK;
    for (int i = 0; i < comm->size && st == HORA_OK; i++)
        *all_p = *all_p && votes[i] == 1;
    free(votes);
    return st;
}

static hora_status_t join_inside(hora_comm_t *comm, hora_hierarchy_t *self, const char **obstacle_p) {
    const char   *why = NULL;
    bool          all = true;
    hora_status_t st = hora_gpu_path_nccl.prepare(self->local, &why);
    if (st == HORA_OK)
        st = vote(comm, why == NULL, &all);
    if (st == HORA_OK && !all)
        *obstacle_p = "NCCL could not make a communicator on every host";
    return st;
}

static hora_status_t prepare(hora_comm_t *comm, const char **obstacle_p) {
    hora_hierarchy_t *self = calloc(1, sizeof(*self));
    hora_status_t     st;
    if (self == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "collectives on GPUs"));
    comm->gpu->levels = self;
    self->place.gpu = comm->gpu->gpu;
    self->host = comm->hosts->host[comm->rank];
    self->number = comm->hosts->number[comm->rank];
    self->lanes = comm->hosts->least;
    st = make_parts(comm, self);
    if (st == HORA_OK)
        st = make_queues(self);
    if (st != HORA_OK)
        st = hora_coll_fail(comm, st);
    if (st == HORA_OK)
        st = join_inside(comm, self, obstacle_p);
    if (st != HORA_OK || *obstacle_p != NULL)
        forget(comm);
    return st;
}

/* ---- By NCCL alone --------------------------------------------------------------------------------- */

static bool is_own(const hora_comm_t *comm, const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_BROADCAST ||
           (coll->kind == HORA_COLL_ALLREDUCE && hora_gpu_path_nccl.takes(comm, coll));
}

/* Its communicator of all members is made when it is first needed. */
static bool has_flat(const hora_comm_t *comm) {
    return comm->gpu->nccl != NULL ||
           (!comm->gpu->nccl_tried && hora_gpu_path_nccl.obstacle(comm, comm->gpu->facts) == NULL);
}

/* One of NCCL's communicators works at a time: the streams wait for each other. */
static hora_status_t pass(hora_hierarchy_t *self, hora_cuda_stream_t from, hora_cuda_stream_t to) {
    const hora_cuda_t *cuda = self->place.gpu->cuda;
    hora_status_t      st = check(self, cuda->event_record(self->turn, from), "changing streams");
    return st == HORA_OK ? check(self, cuda->stream_wait(to, self->turn, 0), "changing streams") : st;
}

static hora_status_t run_flat(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_hierarchy_t  *self = comm->gpu->levels;
    hora_cuda_stream_t stream = coll->gpu->stream;
    const char        *why = NULL;
    hora_status_t      st = self->lane != NULL ? hora_staged_settle(self->lane) : HORA_OK;
    if (st == HORA_OK && comm->gpu->nccl == NULL)
        st = hora_gpu_path_nccl.prepare(comm, &why);
    if (st != HORA_OK)
        return st;
    if (why != NULL)
        return hora_gpu_path_staged.run(comm, coll);
    st = pass(self, self->place.stream, stream);
    if (st == HORA_OK)
        st = hora_gpu_path_nccl.run(comm, coll);
    if (st == HORA_OK)
        st = pass(self, stream, self->place.stream);
    return st == HORA_OK ? st : hora_coll_fail(comm, st);
}

/* ---- The path ---------------------------------------------------------------------------------------- */

static bool takes(const hora_comm_t *comm, const hora_coll_t *coll) {
    return is_own(comm, coll) || (has_flat(comm) && hora_gpu_path_nccl.takes(comm, coll));
}

static hora_status_t run(hora_comm_t *comm, const hora_coll_t *coll) {
    return is_own(comm, coll) ? hora_hierarchy_run(comm, coll, NULL) : run_flat(comm, coll);
}

static hora_status_t start(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p) {
    return is_own(comm, coll) ? hora_hierarchy_run(comm, coll, op_p) : run_flat(comm, coll);
}

const hora_gpu_path_t hora_gpu_path_hierarchical = {
    .name = "hierarchical", .obstacle = obstacle, .prepare = prepare, .takes = takes, .run = run,
    .start = start, .forget = forget,
};
