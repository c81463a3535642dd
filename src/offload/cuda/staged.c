/*
 * Collectives on GPUs through pinned host memory (staged.h): the vector is cut into parts; each is
 * copied out of the GPU, goes through the host's collective, and is copied back, all three at a time
 * for three parts:
 *
 *     stream `out`   out 0 | out 1 | out 2 |       | out 3 |
 *     CPU                  | all 0 | all 1 | all 2 |       | all 3 |
 *     stream `in`                  | in 0  | in 1  | in 2  |       | in 3
 *
 * Cost: max(B / pcie, collective(B)) + two parts' time; each byte crosses PCIe once each way. Reducing
 * on the GPU instead would move every step of a ring over PCIe. Source: hora; the shape is that of
 * every host-staged pipeline (NCCL's proxies, Horovod's CPU operations).
 *
 * Part k has slot k % 3. Stream `out` waits for the slot's last copy in, and the CPU for the event
 * behind its copy out, so a slot is written by one at a time.
 *
 * On the thread that uses the communicator. Invariants: ops are in staged->first .. last, but for one
 * that is waited for at once, before which all others are done; only the first one moves. The host's
 * collectives are started, never run, so that a rank that waits meets one that tests.
 */
#include "offload/cuda/staged.h"

#include "offload/cuda/elements.h"
#include "offload/cuda/parts.h"
#include "offload/cuda/slots.h"
#include "schedule/algos.h"
#include "schedule/exec.h"
#include "schedule/run.h"
#include "transport/event.h"
#include "util/clock.h"

#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hora_staged_op {
    hora_staged_op_t *next;
    hora_comm_t      *comm;
    hora_coll_t       coll;
    hora_gpu_place_t  place;
    hora_staged_frame_t frame; /* begin NULL: none */
    hora_parts_t      parts;
    hora_status_t     status; /* HORA_IN_PROGRESS until done */
    bool              ready;  /* the streams wait for `begin`, and so on */
    bool              queued; /* in staged->first .. last */
    hora_cuda_event_t begin;  /* where the caller's stream was when it was started */
    size_t            turn;   /* of part 0 */
    size_t            out, done; /* parts that are queued to come out, and that are queued to go in */
    hora_exec_t      *exec;   /* of part `done`; NULL: not started */
    uint64_t          since;  /* ns: when a test first found that part still on the GPU; or 0 */
    char              name[64]; /* coll.name, copied */
    size_t            arrays[]; /* of coll, copied: [4 * size] */
};

static hora_staged_t *staged_of(const hora_staged_op_t *op) {
    return op->comm->gpu->staged;
}

static hora_status_t check(const hora_staged_op_t *op, hora_cuda_result_t result) {
    return hora_gpu_check(op->place.gpu, result, hora_coll_name(op->coll.kind));
}

/* ---- One part ------------------------------------------------------------------------------- */

static hora_slot_t *slot_of(const hora_staged_op_t *op, size_t part) {
    return &staged_of(op)->slots[(op->turn + part) % HORA_SLOTS];
}

/* All blocks of a side, between the GPU and `host`, where they lie one after the other. */
static hora_status_t copy_side(const hora_staged_op_t *op, const hora_side_t *side, size_t part,
                               uint8_t *host, bool out) {
    const hora_staged_t *staged = staged_of(op);
    const hora_cuda_t   *cuda = staged->gpu->cuda;
    size_t               elem = hora_dtype_size(op->coll.dtype);
    hora_cuda_result_t   result = HORA_CUDA_SUCCESS;
    for (int b = 0; b < side->n && result == HORA_CUDA_SUCCESS; b++) {
        size_t   bytes = hora_parts_count(&op->parts, side, b, part) * elem;
        uint64_t at = side->at + (hora_side_displ(side, b) + part * op->parts.step) * elem;
        if (bytes == 0)
            continue;
        result = out ? cuda->copy_out(host, at, bytes, staged->out)
                     : cuda->copy_in(at, host, bytes, staged->in);
        host += bytes;
    }
    return check(op, result);
}

static hora_status_t copy_out(hora_staged_op_t *op, size_t part) {
    hora_staged_t     *staged = staged_of(op);
    const hora_cuda_t *cuda = staged->gpu->cuda;
    hora_slot_t       *slot = slot_of(op, part);
    size_t             elem = hora_dtype_size(op->coll.dtype), in, out, room;
    hora_coll_t        coll;
    hora_status_t      st;
    hora_parts_coll(&op->coll, &op->parts, part, staged->lists, &coll, &in, &out, &room);
    st = hora_slot_reserve(staged, slot, room > 0 ? room * elem : 1);
    if (st == HORA_OK && slot->used)
        st = check(op, cuda->stream_wait(staged->out, slot->in, 0));
    if (st == HORA_OK)
        st = copy_side(op, &op->parts.in, part, slot->mem + in * elem, true);
    return st == HORA_OK ? check(op, cuda->event_record(slot->out, staged->out)) : st;
}

static hora_status_t copy_in(hora_staged_op_t *op, size_t part) {
    hora_staged_t     *staged = staged_of(op);
    hora_slot_t       *slot = slot_of(op, part);
    size_t             elem = hora_dtype_size(op->coll.dtype), in, out, room;
    hora_coll_t        coll;
    hora_status_t      st;
    hora_parts_coll(&op->coll, &op->parts, part, staged->lists, &coll, &in, &out, &room);
    st = copy_side(op, &op->parts.out, part, slot->mem + out * elem, false);
    if (st == HORA_OK)
        st = check(op, staged->gpu->cuda->event_record(slot->in, staged->in));
    slot->used = true;
    return st;
}

static hora_status_t start_part(hora_staged_op_t *op, size_t part) {
    hora_staged_t *staged = staged_of(op);
    uint8_t       *mem = slot_of(op, part)->mem;
    size_t         elem = hora_dtype_size(op->coll.dtype), in, out, room;
    hora_coll_t    coll;
    hora_parts_coll(&op->coll, &op->parts, part, staged->lists, &coll, &in, &out, &room);
    coll.in = mem + in * elem;
    coll.out = mem + out * elem;
    return hora_coll_start(op->comm, &coll, &op->exec);
}

/* ---- Before and after ----------------------------------------------------------------------- */

/* Elements from the input's beginning to its end. */
static size_t span_of(const hora_side_t *side) {
    size_t span = 0;
    for (int b = 0; b < side->n; b++)
        if (hora_side_count(side, b) > 0 &&
            hora_side_displ(side, b) + hora_side_count(side, b) > span)
            span = hora_side_displ(side, b) + hora_side_count(side, b);
    return span;
}

/* The output of an early part would overwrite the input of a late one: works on a copy. */
static hora_status_t use_scratch(hora_staged_op_t *op) {
    hora_staged_t *staged = staged_of(op);
    size_t         bytes = span_of(&op->parts.in) * hora_dtype_size(op->coll.dtype);
    uint64_t       scratch;
    hora_status_t  st = hora_scratch_reserve(op->place.gpu, &staged->scratch, bytes, &scratch);
    if (st != HORA_OK || bytes == 0)
        return st;
    st = check(op, staged->gpu->cuda->copy(scratch, op->parts.in.at, bytes, staged->out));
    op->parts.in.at = scratch;
    return st;
}

/* The root of a broadcast has what it sends: that never leaves the GPU. */
static hora_status_t copy_own(hora_staged_op_t *op) {
    const hora_staged_t *staged = staged_of(op);
    uint64_t             in = op->parts.in.at, out = op->parts.out.at;
    size_t               bytes = op->coll.count * hora_dtype_size(op->coll.dtype);
    op->parts.out.n = 0;
    if (in == out || bytes == 0)
        return HORA_OK;
    return check(op, staged->gpu->cuda->copy(out, in, bytes, staged->in));
}

static hora_status_t begin_frame(hora_staged_op_t *op) {
    return op->frame.begin != NULL ? op->frame.begin(&op->frame, op->begin) : HORA_OK;
}

/* The caller's stream may have to be idle before: its output may be in use there, too. */
static hora_status_t get_ready(hora_staged_op_t *op) {
    hora_staged_t     *staged = staged_of(op);
    const hora_cuda_t *cuda = staged->gpu->cuda;
    hora_status_t      st = begin_frame(op);
    if (st == HORA_OK)
        st = check(op, cuda->stream_wait(staged->out, op->begin, 0));
    if (st == HORA_OK)
        st = check(op, cuda->stream_wait(staged->in, op->begin, 0));
    if (st == HORA_OK && hora_stage_overlaps(&op->coll))
        st = use_scratch(op);
    if (st == HORA_OK && op->coll.kind == HORA_COLL_BROADCAST && op->parts.in.n > 0)
        st = copy_own(op);
    op->turn = staged->turn;
    staged->turn += op->parts.n;
    op->ready = true;
    return st;
}

/* What is queued on the caller's stream from now on waits for the results. */
static hora_status_t hand_back(hora_staged_op_t *op) {
    hora_staged_t     *staged = staged_of(op);
    const hora_cuda_t *cuda = staged->gpu->cuda;
    hora_status_t      st = check(op, cuda->event_record(staged->end, staged->in));
    if (st == HORA_OK && op->frame.end != NULL)
        st = op->frame.end(&op->frame, staged->end);
    return st == HORA_OK ? check(op, cuda->stream_wait(op->place.stream, staged->end, 0)) : st;
}

/* ---- Moving on ------------------------------------------------------------------------------ */

/* Has part `done` come out? */
static hora_status_t test_out(hora_staged_op_t *op) {
    const hora_staged_t *staged = staged_of(op);
    hora_cuda_result_t   result = staged->gpu->cuda->event_query(slot_of(op, op->done)->out);
    double               limit = op->coll.timeout > 0 ? op->coll.timeout : op->comm->timeout;
    if (result != HORA_CUDA_NOT_READY) {
        op->since = 0;
        return check(op, result);
    }
    if (op->since == 0)
        op->since = hora_clock_ns();
    if (hora_clock_ns() - op->since <= hora_clock_from_seconds(limit))
        return HORA_IN_PROGRESS;
    return hora_fail(HORA_ERR_TIMEOUT, "%s: waited %.1f s for GPU %d to come to it (HORA_TIMEOUT)",
                     hora_coll_name(op->coll.kind), limit, staged->gpu->ordinal);
}

/* As far as it goes without waiting. */
static hora_status_t advance(hora_staged_op_t *op) {
    hora_status_t st = hora_failure_check(&op->comm->failure);
    if (st == HORA_OK && !op->ready)
        st = get_ready(op);
    while (st == HORA_OK && op->done < op->parts.n) {
        for (; st == HORA_OK && op->out < op->parts.n && op->out < op->done + HORA_SLOTS; op->out++)
            st = copy_out(op, op->out);
        if (st == HORA_OK && op->exec == NULL) {
            st = test_out(op);
            if (st == HORA_OK)
                st = start_part(op, op->done);
        }
        if (st == HORA_OK)
            st = hora_exec_progress(op->exec);
        if (st != HORA_OK)
            return st;
        hora_exec_free(op->exec);
        op->exec = NULL;
        st = copy_in(op, op->done++);
    }
    return st == HORA_OK ? hand_back(op) : st;
}

static void end(hora_staged_op_t *op, hora_status_t status) {
    hora_staged_t *staged = staged_of(op);
    if (status != HORA_OK)
        status = hora_coll_fail(op->comm, status);
    op->status = status;
    hora_exec_free(op->exec);
    op->exec = NULL;
    op->place.gpu->cuda->event_destroy(op->begin);
    if (!op->queued)
        return;
    staged->first = op->next;
    if (staged->first == NULL)
        staged->last = NULL;
    op->queued = false;
}

/* One look at an op before which there is none. */
static hora_status_t nudge(hora_staged_op_t *op) {
    hora_status_t st = advance(op);
    if (st != HORA_IN_PROGRESS)
        end(op, st);
    return op->status;
}

static hora_status_t run_to_end(hora_staged_op_t *op) {
    hora_status_t st;
    while (op->status == HORA_IN_PROGRESS && nudge(op) == HORA_IN_PROGRESS) {
        if (op->exec != NULL)
            st = hora_exec_wait(op->exec);
        else
            st = hora_event_wait(op->comm, op->place.gpu, slot_of(op, op->done)->out,
                                 op->coll.timeout, hora_coll_name(op->coll.kind));
        if (st != HORA_OK)
            end(op, st);
    }
    return op->status;
}

/* ---- One rank ------------------------------------------------------------------------------- */

/* Scales on the way, as the CPU would. */
static hora_status_t scale_own(const hora_staged_op_t *op, uint64_t dst, uint64_t src, size_t count) {
    hora_reduce_t how;
    hora_coll_how(&op->coll, &how);
    hora_element_how_t element = {.prescale = how.prescale, .postscale = how.postscale,
                                  .divisor = how.divisor};
    return hora_elements_scale(&op->place, how.dtype, &element, (const void *)(uintptr_t)src,
                               (void *)(uintptr_t)dst, count);
}

/* Nothing leaves the GPU, and nobody waits: in and out are blocks of this rank's. */
static hora_status_t run_alone(hora_staged_op_t *op) {
    const hora_coll_t *coll = &op->coll;
    const hora_side_t *in = &op->parts.in, *out = &op->parts.out;
    size_t             elem = hora_dtype_size(coll->dtype), count = hora_side_count(in, 0);
    uint64_t           src = in->at + hora_side_displ(in, 0) * elem;
    uint64_t           dst = out->at + hora_side_displ(out, 0) * elem;
    bool scales = hora_coll_reduces(coll->kind) && (coll->prescale != 1.0 || coll->postscale != 1.0);
    if (count == 0)
        return HORA_OK;
    if (scales)
        return scale_own(op, dst, src, count);
    if (src == dst)
        return HORA_OK;
    return check(op, op->place.gpu->cuda->copy(dst, src, count * elem, op->place.stream));
}

/* ---- The doors ------------------------------------------------------------------------------ */

static hora_status_t make(hora_comm_t *comm, const hora_coll_t *coll, const hora_staged_frame_t *frame,
                          hora_staged_op_t *op) {
    struct hora_gpu_comm *gpu = comm->gpu;
    hora_staged_t        *staged;
    hora_status_t         st = HORA_OK;
    *op = (hora_staged_op_t){.comm = comm, .coll = *coll, .place = *coll->gpu,
                             .status = HORA_IN_PROGRESS};
    if (frame != NULL)
        op->frame = *frame;
    if (gpu->staged == NULL) {
        st = hora_staged_create(comm, gpu->gpu, &staged);
        if (st == HORA_OK)
            gpu->staged = staged;
    }
    if (st == HORA_OK)
        st = check(op, gpu->gpu->cuda->event_create(&op->begin, HORA_CUDA_EVENT_NO_TIMING));
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    st = check(op, gpu->gpu->cuda->event_record(op->begin, op->place.stream));
    if (st != HORA_OK)
        end(op, st);
    return st == HORA_OK ? st : op->status;
}

hora_status_t hora_staged_run(hora_comm_t *comm, const hora_coll_t *coll,
                              const hora_staged_frame_t *frame) {
    hora_staged_op_t op;
    hora_status_t    st = hora_staged_settle(comm);
    if (st == HORA_OK)
        st = make(comm, coll, frame, &op);
    if (st != HORA_OK)
        return st;
    hora_parts_cut(coll, comm->gpu->facts[0].chunk, &op.parts);
    return run_to_end(&op);
}

static hora_status_t run(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_staged_op_t op = {.comm = comm, .coll = *coll, .place = *coll->gpu};
    hora_status_t    st;
    if (comm->size > 1)
        return hora_staged_run(comm, coll, NULL);
    hora_parts_cut(coll, SIZE_MAX, &op.parts);
    st = run_alone(&op);
    return st == HORA_OK ? st : hora_coll_fail(comm, st);
}

static hora_status_t start(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p) {
    return comm->size > 1 ? hora_staged_start(comm, coll, NULL, op_p) : run(comm, coll);
}

static const size_t *keep_array(hora_staged_op_t *op, int i, const size_t *array) {
    size_t  n = (size_t)op->comm->size;
    size_t *own = op->arrays + (size_t)i * n;
    if (array == NULL)
        return NULL;
    memcpy(own, array, n * sizeof(*own));
    return own;
}

hora_status_t hora_staged_start(hora_comm_t *comm, const hora_coll_t *coll,
                                const hora_staged_frame_t *frame, hora_staged_op_t **op_p) {
    size_t            bytes = sizeof(hora_staged_op_t) + 4 * (size_t)comm->size * sizeof(size_t);
    hora_staged_op_t *op = malloc(bytes);
    hora_staged_t    *staged;
    hora_status_t     st;
    if (op == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "a request"));
    st = make(comm, coll, frame, op);
    if (st != HORA_OK) {
        free(op);
        return st;
    }
    op->coll.counts = keep_array(op, 0, coll->counts);
    op->coll.displs = keep_array(op, 1, coll->displs);
    op->coll.other_counts = keep_array(op, 2, coll->other_counts);
    op->coll.other_displs = keep_array(op, 3, coll->other_displs);
    op->coll.gpu = &op->place;
    snprintf(op->name, sizeof(op->name), "%s", coll->name != NULL ? coll->name : "");
    op->coll.name = op->frame.coll.name = op->name;
    hora_parts_cut(&op->coll, comm->gpu->facts[0].chunk, &op->parts);
    staged = comm->gpu->staged;
    if (staged->last != NULL)
        staged->last->next = op;
    else
        staged->first = op;
    staged->last = op;
    op->queued = true;
    if (staged->first == op)
        nudge(op);
    *op_p = op;
    return HORA_OK;
}

hora_status_t hora_staged_progress(hora_staged_op_t *op) {
    while (op->status == HORA_IN_PROGRESS)
        if (nudge(staged_of(op)->first) == HORA_IN_PROGRESS)
            return HORA_IN_PROGRESS;
    return op->status == HORA_OK ? HORA_OK : hora_failure_check(&op->comm->failure);
}

hora_status_t hora_staged_wait(hora_staged_op_t *op) {
    while (op->status == HORA_IN_PROGRESS)
        run_to_end(staged_of(op)->first);
    return op->status == HORA_OK ? HORA_OK : hora_failure_check(&op->comm->failure);
}

void hora_staged_free(hora_staged_op_t *op) {
    free(op);
}

hora_status_t hora_staged_settle(hora_comm_t *comm) {
    hora_staged_t *staged = comm->gpu->staged;
    while (staged != NULL && staged->first != NULL)
        run_to_end(staged->first);
    return hora_failure_check(&comm->failure);
}

/* ---- The path ------------------------------------------------------------------------------- */

static const char *obstacle(const hora_comm_t *comm, const hora_gpu_facts_t *facts) {
    (void)comm;
    (void)facts;
    return NULL;
}

static bool takes(const hora_comm_t *comm, const hora_coll_t *coll) {
    (void)comm;
    return coll->kind != HORA_COLL_BARRIER;
}

static void forget(hora_comm_t *comm) {
    if (comm->gpu->staged != NULL)
        hora_staged_destroy(comm->gpu->staged);
    comm->gpu->staged = NULL;
}

const hora_gpu_path_t hora_gpu_path_staged = {
    .name = "staged",
    .obstacle = obstacle,
    .takes = takes,
    .run = run,
    .start = start,
    .forget = forget,
};
