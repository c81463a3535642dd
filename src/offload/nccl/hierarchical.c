/*
 * NCCL inside each host and hora between the hosts (hierarchical.h). On the thread that uses the
 * communicator, with the GPU's context current.
 *
 * The vector is cut into lanes, one for each rank of the smallest host. Number k of each host has lane k,
 * and all lanes go over the network at the same time, each a staged allreduce (cuda/staged.c) of its own,
 * in which copies out of the GPU, hora's collective and copies into it overlap. Two hosts of two ranks,
 * lanes A and B (aA: what rank a has there):
 *
 *                   host 0: a          b             host 1: c          d
 *     NCCL          aA+bA              aB+bB                 cA+dA      cB+dB      reduce_scatter
 *     hora          a and c: (aA+bA)+(cA+dA)                 b and d: (aB+bB)+(cB+dB)
 *     NCCL          a: A -> b          b: B -> a             c: A -> d  d: B -> c  allgather
 *
 * A broadcast goes round its root's host first, then by all lanes, then round the other hosts. Ranks of
 * larger hosts that have no lane only take part in NCCL's steps.
 *
 * Cost for N bytes, h hosts, l lanes: NCCL's (l-1)/l N twice, and of N/l bytes a copy each way over PCIe and
 * 2(h-1)/h N/l over the network, for each rank. Source: Horovod's NCCLHierarchicalAllreduce, with a lane
 * for each rank, as in H. Mikami et al., Massively distributed SGD, 2018 (2D-torus allreduce).
 *
 * What NCCL and the kernels do is queued on a stream of the path's own, so that NCCL's steps come in one
 * order on all ranks of a host, and the work memory is used by one call at a time: the order in which the
 * lane's staged ops begin and end, or for a rank without a lane the order of the calls.
 */
#include "offload/nccl/hierarchical.h"

#include "offload/cuda/elements.h"
#include "offload/cuda/slots.h"
#include "offload/cuda/staged.h"
#include "offload/nccl/nccl.h"
#include "schedule/algos.h"
#include "schedule/comms.h"
#include "transport/event.h"
#include "util/log.h"

#include <stdlib.h>
#include <string.h>

#define LINE_BYTES      64
#define CASTS           4   /* queued at a time: two for each call */
#define GOODBYE_SECONDS 5.0 /* for work that is queued when the communicator is freed */

/* What a cast's kernel reads while it runs. */
typedef struct cast {
    hora_cuda_piece_t *piece; /* pinned */
    hora_cuda_event_t  ran;
    bool               used;  /* `ran` was recorded */
} cast_t;

struct hora_hierarchy {
    hora_comm_t      *local, *lane; /* parts: my host's members; those with my number; NULL: none */
    int               host, number, lanes;
    hora_gpu_place_t  place;   /* the path's own stream */
    hora_cuda_event_t turn;
    size_t           *counts, *displs; /* [local->size] of the current call's lanes; 0 for who has none */
    hora_scratch_t    scratch;
    cast_t            casts[CASTS];
    hora_cuda_piece_t *pieces; /* [CASTS] */
    unsigned          ncasts;  /* ever */
};

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
        result = cuda->host_alloc((void **)&self->pieces, CASTS * sizeof(*self->pieces), 0);
    for (int i = 0; i < CASTS && result == HORA_CUDA_SUCCESS; i++) {
        self->casts[i].piece = &self->pieces[i];
        result = cuda->event_create(&self->casts[i].ran, HORA_CUDA_EVENT_NO_TIMING);
    }
    return check(self, result, "making a stream and events");
}

static void free_queues(hora_hierarchy_t *self) {
    const hora_cuda_t *cuda = self->place.gpu->cuda;
    for (int i = 0; i < CASTS; i++)
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

/* ---- One call: its steps -------------------------------------------------------------------------- */

/* Halves that are reduced as float32. */
static bool widens(const hora_comm_t *comm, const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_ALLREDUCE && hora_dtype_is_half(coll->dtype) &&
           !comm->gpu->facts[0].halves;
}

static hora_dtype_t type_between(const hora_comm_t *comm, const hora_coll_t *coll) {
    return widens(comm, coll) ? HORA_FLOAT32 : coll->dtype;
}

/* Lanes of whole cache lines; the last one has the rest. */
static void cut(hora_hierarchy_t *self, const hora_coll_t *coll) {
    size_t line = LINE_BYTES / hora_dtype_size(coll->dtype);
    size_t block = coll->count / (size_t)self->lanes / line * line, last = (size_t)self->lanes - 1;
    for (int i = 0; i < self->local->size; i++) {
        size_t k = (size_t)i;
        self->counts[i] = k < last ? block : k == last ? coll->count - last * block : 0;
        self->displs[i] = k <= last ? k * block : coll->count;
    }
}

/* A step on this host. */
static hora_coll_t inside(const hora_hierarchy_t *self, const hora_coll_t *coll, hora_coll_kind_t kind,
                          hora_dtype_t dtype, const void *in, void *out) {
    return (hora_coll_t){.kind = kind, .dtype = dtype,
                         .op = coll->op == HORA_AVERAGE ? HORA_SUM : coll->op,
                         .rank = self->local->rank, .size = self->local->size, .count = coll->count,
                         .in = in, .out = out, .counts = self->counts, .displs = self->displs,
                         .prescale = 1.0, .postscale = 1.0, .timeout = coll->timeout,
                         .gpu = &self->place, .name = coll->name};
}

static hora_status_t copy(const hora_hierarchy_t *self, void *to, const void *from, size_t bytes) {
    if (to == from || bytes == 0)
        return HORA_OK;
    return check(self, self->place.gpu->cuda->copy((uintptr_t)to, (uintptr_t)from, bytes,
                                                   self->place.stream), "copying the input");
}

/* A rank with a lane never waits here: its last call but one has ended on the GPU. */
static hora_status_t cast(hora_comm_t *comm, hora_hierarchy_t *self, const void *from,
                          hora_dtype_t from_type, void *to, hora_dtype_t to_type, size_t count) {
    cast_t       *slot = &self->casts[self->ncasts++ % CASTS];
    hora_gpu_t   *gpu = self->place.gpu;
    hora_status_t st = HORA_OK;
    if (slot->used)
        st = hora_event_wait(comm, gpu, slot->ran, 0, "casting");
    if (st == HORA_OK)
        st = hora_elements_cast(&self->place, slot->piece, from, from_type, to, to_type, count);
    slot->used = true;
    return st == HORA_OK ? check(self, gpu->cuda->event_record(slot->ran, self->place.stream), "casting")
                         : st;
}

/* Where the sums of a call are made: its output, or float32 for halves. */
static char *place_of_sums(const hora_staged_frame_t *frame) {
    return widens(frame->whole, &frame->coll) ? frame->work : frame->coll.out;
}

/* in -> this rank's lane of the host's sum. */
static hora_status_t reduce_inside(const hora_staged_frame_t *frame, hora_hierarchy_t *self) {
    const hora_coll_t *coll = &frame->coll;
    hora_element_how_t how = {coll->prescale, 1.0, 1};
    hora_dtype_t       dtype = type_between(frame->whole, coll);
    size_t             unit = hora_dtype_size(dtype);
    char              *at = place_of_sums(frame);
    const void        *src = coll->in;
    hora_status_t      st = HORA_OK;
    if (dtype != coll->dtype) {
        st = cast(frame->whole, self, src, coll->dtype, at, dtype, coll->count);
        src = at;
    }
    if (st == HORA_OK && !hora_element_is_plain(&how)) {
        st = hora_elements_scale(&self->place, dtype, &how, src, at, coll->count);
        src = at;
    }
    if (st != HORA_OK)
        return st;
    if (self->local->size == 1)
        return copy(self, at, src, coll->count * unit);
    hora_coll_t step = inside(self, coll, HORA_COLL_REDUCE_SCATTER, dtype, src,
                              at + self->displs[self->number] * unit);
    return hora_gpu_path_nccl.run(self->local, &step);
}

/* To all ranks of the root's host. */
static hora_status_t broadcast_inside(const hora_staged_frame_t *frame, hora_hierarchy_t *self) {
    const hora_coll_t  *coll = &frame->coll;
    const hora_hosts_t *hosts = frame->whole->hosts;
    if (hosts->host[coll->root] != self->host)
        return HORA_OK;
    if (self->local->size == 1)
        return copy(self, coll->out, coll->in, coll->count * hora_dtype_size(coll->dtype));
    hora_coll_t step = inside(self, coll, HORA_COLL_BROADCAST, coll->dtype, coll->in, coll->out);
    step.root = hosts->number[coll->root];
    step.counts = step.displs = NULL;
    return hora_gpu_path_nccl.run(self->local, &step);
}

/* Every lane of the result is there on one rank of this host. */
static hora_status_t gather_inside(const hora_staged_frame_t *frame, hora_hierarchy_t *self) {
    const hora_coll_t *coll = &frame->coll;
    size_t             first = self->displs[self->number], count = self->counts[self->number];
    char              *mine = (char *)coll->out + first * hora_dtype_size(coll->dtype);
    hora_dtype_t       dtype = type_between(frame->whole, coll);
    hora_status_t      st = HORA_OK;
    if (dtype != coll->dtype && count > 0)
        st = cast(frame->whole, self, place_of_sums(frame) + first * hora_dtype_size(dtype), dtype, mine,
                  coll->dtype, count);
    if (st != HORA_OK || self->local->size == 1)
        return st;
    if (coll->kind == HORA_COLL_BROADCAST && frame->whole->hosts->host[coll->root] == self->host)
        return HORA_OK;
    hora_coll_t step = inside(self, coll, HORA_COLL_ALLGATHER, coll->dtype, mine, coll->out);
    return hora_gpu_path_nccl.run(self->local, &step);
}

static hora_status_t queue_between(const hora_staged_frame_t *frame, hora_cuda_event_t event,
                                   hora_status_t (*step)(const hora_staged_frame_t *frame,
                                                         hora_hierarchy_t *self)) {
    hora_hierarchy_t  *self = frame->whole->gpu->levels;
    const hora_cuda_t *cuda = self->place.gpu->cuda;
    const char        *what = hora_coll_name(frame->coll.kind);
    hora_status_t      st = check(self, cuda->stream_wait(self->place.stream, event, 0), what);
    cut(self, &frame->coll);
    if (st == HORA_OK)
        st = step(frame, self);
    return st == HORA_OK ? check(self, cuda->event_record(event, self->place.stream), what) : st;
}

static hora_status_t begin(const hora_staged_frame_t *frame, hora_cuda_event_t event) {
    return queue_between(frame, event, frame->coll.kind == HORA_COLL_ALLREDUCE ? reduce_inside
                                                                               : broadcast_inside);
}

static hora_status_t end(const hora_staged_frame_t *frame, hora_cuda_event_t event) {
    return queue_between(frame, event, gather_inside);
}

/* ---- One call ------------------------------------------------------------------------------------ */

/* This rank's step between the hosts, in place. */
static hora_coll_t between(const hora_staged_frame_t *frame, const hora_hierarchy_t *self) {
    const hora_coll_t *whole = &frame->coll;
    hora_coll_t        coll = *whole;
    coll.rank = self->lane->rank;
    coll.size = self->lane->size;
    coll.root = frame->whole->hosts->host[whole->root];
    coll.dtype = type_between(frame->whole, whole);
    coll.count = self->counts[self->number];
    coll.in = coll.out = place_of_sums(frame) + self->displs[self->number] * hora_dtype_size(coll.dtype);
    coll.prescale = 1.0;
    coll.divisor = whole->divisor != 0 ? whole->divisor : (uint32_t)whole->size;
    return coll;
}

/* Without a lane there is nothing to wait for on the host. */
static hora_status_t run_beside(const hora_staged_frame_t *frame, const hora_hierarchy_t *self,
                                hora_cuda_stream_t stream) {
    const hora_cuda_t *cuda = self->place.gpu->cuda;
    const char        *what = hora_coll_name(frame->coll.kind);
    hora_status_t      st = check(self, cuda->event_record(self->turn, stream), what);
    if (st == HORA_OK)
        st = begin(frame, self->turn);
    if (st == HORA_OK)
        st = end(frame, self->turn);
    if (st == HORA_OK)
        st = check(self, cuda->stream_wait(stream, self->turn, 0), what);
    return st == HORA_OK ? st : hora_coll_fail(frame->whole, st);
}

static hora_status_t reserve(hora_hierarchy_t *self, hora_staged_frame_t *frame) {
    uint64_t      at;
    hora_status_t st;
    if (!widens(frame->whole, &frame->coll))
        return HORA_OK;
    st = hora_scratch_reserve(self->place.gpu, &self->scratch, frame->coll.count * sizeof(float), &at);
    if (st != HORA_OK)
        return hora_coll_fail(frame->whole, st);
    frame->work = (void *)(uintptr_t)at;
    return HORA_OK;
}

/* op_p NULL: to its end. */
static hora_status_t go(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p) {
    hora_hierarchy_t   *self = comm->gpu->levels;
    hora_staged_frame_t frame = {.begin = begin, .end = end, .whole = comm, .coll = *coll};
    hora_coll_t         step;
    hora_status_t       st;
    if (coll->count == 0)
        return HORA_OK;
    st = reserve(self, &frame);
    if (st != HORA_OK)
        return st;
    cut(self, coll);
    if (self->lane == NULL)
        return run_beside(&frame, self, coll->gpu->stream);
    step = between(&frame, self);
    return op_p != NULL ? hora_staged_start(self->lane, &step, &frame, op_p)
                        : hora_staged_run(self->lane, &step, &frame);
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
    return is_own(comm, coll) ? go(comm, coll, NULL) : run_flat(comm, coll);
}

static hora_status_t start(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p) {
    return is_own(comm, coll) ? go(comm, coll, op_p) : run_flat(comm, coll);
}

const hora_gpu_path_t hora_gpu_path_hierarchical = {
    .name = "hierarchical", .obstacle = obstacle, .prepare = prepare, .takes = takes, .run = run,
    .start = start, .forget = forget,
};
