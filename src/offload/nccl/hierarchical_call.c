/*
 * One call by NCCL inside each host and by hora between the hosts (hierarchical.h). On the thread that uses
 * the communicator, with the GPU's context current.
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
#include "offload/cuda/staged.h"
#include "offload/nccl/nccl.h"
#include "schedule/algos.h"
#include "transport/event.h"

#define LINE_BYTES 64

static hora_status_t check(const hora_hierarchy_t *self, hora_cuda_result_t result, const char *what) {
    return hora_gpu_check(self->place.gpu, result, what);
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
    hora_cast_t  *slot = &self->casts[self->ncasts++ % HORA_CASTS];
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

hora_status_t hora_hierarchy_run(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p) {
    hora_hierarchy_t   *self = comm->gpu->levels;
    hora_staged_frame_t frame = {.begin = begin, .end = end, .whole = comm, .coll = *coll};
    hora_coll_t         step;
    hora_status_t       st;
    if (coll->count == 0)
        return HORA_OK;
    frame.coll.gpu = NULL; /* the caller's; each step has its own */
    st = reserve(self, &frame);
    if (st != HORA_OK)
        return st;
    cut(self, coll);
    if (self->lane == NULL)
        return run_beside(&frame, self, coll->gpu->stream);
    step = between(&frame, self);
    step.gpu = coll->gpu;
    return op_p != NULL ? hora_staged_start(self->lane, &step, &frame, op_p)
                        : hora_staged_run(self->lane, &step, &frame);
}
