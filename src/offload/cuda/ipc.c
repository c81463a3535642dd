/*
 * The path by CUDA's IPC (ipc.h): what the members agree on, and one call. On the thread that uses the
 * communicator, with its GPU's context current.
 */
#include "offload/cuda/ipc.h"

#include "schedule/algos.h"
#include "schedule/exec.h"
#include "schedule/run.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNED(bytes) (((bytes) + 255) / 256 * 256)

enum { COUNTS, DISPLS, OTHER_COUNTS, OTHER_DISPLS };

/* What must be the same call on all members. */
typedef struct said {
    uint64_t count, counts; /* counts: a hash of the blocks' */
    double   prescale, postscale;
    uint32_t kind, dtype, op, root, divisor, zero;
} said_t;

/* What a member shows at each call. */
typedef struct hora_ipc_note {
    said_t            said;
    hora_ipc_region_t in, out;
    uint64_t          plain; /* 1: its blocks are where `said` lets everybody expect them */
} hora_ipc_note_t;

/* What a member shows once. */
typedef struct card {
    uint64_t            process;
    uint64_t            ready_at, done_at; /* the events in that process */
    hora_cuda_bytes64_t ready, done;
    hora_ipc_region_t   stage;
    int32_t             good; /* it has all of this */
    int32_t             zero;
} card_t;

/* ---- Who can ------------------------------------------------------------------------------------ */

static void describe(const hora_comm_t *comm, const hora_gpu_place_t *place, hora_gpu_facts_t *facts) {
    const hora_cuda_t *cuda = place->gpu->cuda;
    int                value = 0;
    (void)comm;
    facts->ipc = cuda->device_attribute(&value, HORA_CUDA_IPC_EVENTS, place->gpu->device) ==
                     HORA_CUDA_SUCCESS && value == 1;
}

static const char *obstacle(const hora_comm_t *comm, const hora_gpu_facts_t *facts) {
    if (comm->size > HORA_CUDA_WAYS)
        return "more ranks than a kernel has inputs";
    if (comm->local_size != comm->size)
        return "ranks on several hosts";
    for (int i = 0; i < comm->size; i++)
        if (facts[i].ipc != 1)
            return "a GPU's driver has no interprocess events";
    return NULL;
}

static bool takes(const hora_comm_t *comm, const hora_coll_t *coll) {
    (void)comm;
    switch (coll->kind) {
    case HORA_COLL_ALLREDUCE:
    case HORA_COLL_REDUCE:
    case HORA_COLL_REDUCE_SCATTER: return coll->op != HORA_ADASUM;
    case HORA_COLL_ALLGATHER:
    case HORA_COLL_BROADCAST:
    case HORA_COLL_ALLTOALL: return true;
    default: return false;
    }
}

/* ---- Getting ready ------------------------------------------------------------------------------ */

static void free_self(hora_gpu_ipc_t *self) {
    free(self->members);
    free(self->leaders);
    free(self->notes);
    free(self->layouts);
    free(self->in);
    free(self->out);
    free(self);
}

static hora_gpu_ipc_t *new_self(hora_gpu_t *gpu, size_t n) {
    hora_gpu_ipc_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return NULL;
    self->gpu = gpu;
    self->members = calloc(n, sizeof(*self->members));
    self->leaders = calloc(n, sizeof(*self->leaders));
    self->notes = calloc(n, sizeof(*self->notes));
    self->layouts = calloc(n * n * HORA_IPC_ROWS, sizeof(*self->layouts));
    self->in = calloc(n, sizeof(*self->in));
    self->out = calloc(n, sizeof(*self->out));
    if (self->members != NULL && self->leaders != NULL && self->notes != NULL &&
        self->layouts != NULL && self->in != NULL && self->out != NULL)
        return self;
    free_self(self);
    return NULL;
}

/* Ranks with one GPU have one number, in the order of their first ranks. */
static void number_gpus(const hora_comm_t *comm, hora_gpu_ipc_t *self) {
    const hora_gpu_facts_t *facts = comm->gpu->facts;
    for (int i = 0; i < comm->size; i++) {
        int g = 0;
        while (g < self->ngpus && memcmp(facts[i].uuid, facts[self->leaders[g]].uuid,
                                         sizeof(facts[i].uuid)) != 0)
            g++;
        if (g == self->ngpus)
            self->leaders[self->ngpus++] = i;
        self->members[i].gpu = g;
    }
}

static bool leads(const hora_comm_t *comm, const hora_gpu_ipc_t *self) {
    return self->leaders[self->members[comm->rank].gpu] == comm->rank;
}

static bool make_card(const hora_comm_t *comm, hora_gpu_ipc_t *self, card_t *card) {
    const unsigned     flags = HORA_CUDA_EVENT_INTERPROCESS | HORA_CUDA_EVENT_NO_TIMING;
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_ipc_member_t *me = &self->members[comm->rank];
    me->opened = true;
    card->process = hora_ipc_process();
    card->good = cuda->event_create(&me->ready, flags) == HORA_CUDA_SUCCESS &&
                 cuda->event_create(&me->done, flags) == HORA_CUDA_SUCCESS &&
                 cuda->event_create(&self->end, HORA_CUDA_EVENT_NO_TIMING) == HORA_CUDA_SUCCESS &&
                 cuda->ipc_event(&card->ready, me->ready) == HORA_CUDA_SUCCESS &&
                 cuda->ipc_event(&card->done, me->done) == HORA_CUDA_SUCCESS &&
                 hora_ipc_reserve(self, 1) == HORA_OK &&
                 hora_ipc_show(self, self->stages[0], 1, &card->stage);
    card->ready_at = (uint64_t)(uintptr_t)me->ready;
    card->done_at = (uint64_t)(uintptr_t)me->done;
    return card->good != 0;
}

/* Opens what a member has shown; a leader's memory must reach it, too. */
static bool open_card(hora_comm_t *comm, hora_gpu_ipc_t *self, int rank, const card_t *card) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_ipc_member_t *member = &self->members[rank];
    hora_gpu_place_t   place = {self->gpu, NULL};
    hora_coll_t        nothing = {.gpu = &place};
    uint64_t           at;
    member->process = card->process;
    if (rank == comm->rank)
        return true;
    if (card->process == hora_ipc_process()) {
        member->ready = (hora_cuda_event_t)(uintptr_t)card->ready_at;
        member->done = (hora_cuda_event_t)(uintptr_t)card->done_at;
        return member->gpu == self->members[comm->rank].gpu;
    }
    member->opened = true;
    return cuda->ipc_event_open(&member->ready, card->ready) == HORA_CUDA_SUCCESS &&
           cuda->ipc_event_open(&member->done, card->done) == HORA_CUDA_SUCCESS &&
           (!leads(comm, self) || hora_ipc_find(comm, &nothing, rank, &card->stage, &at) == HORA_OK);
}

/* *all_p: whether all members say yes. */
static hora_status_t agree(hora_comm_t *comm, bool yes, bool *all_p) {
    int32_t     vote = yes;
    hora_coll_t coll = {
        .kind = HORA_COLL_ALLREDUCE, .dtype = HORA_INT32, .op = HORA_MIN, .rank = comm->rank,
        .size = comm->size, .count = 1, .in = &vote, .out = &vote, .prescale = 1.0,
        .postscale = 1.0, .staged = true, .name = "GPUs: can all open each other's memory",
    };
    hora_status_t st = hora_coll_run(comm, &coll);
    if (st == HORA_OK)
        *all_p = vote != 0;
    return st;
}

static hora_status_t introduce(hora_comm_t *comm, hora_gpu_ipc_t *self, bool *all_p) {
    card_t        mine = {0}, *cards = calloc((size_t)comm->size, sizeof(*cards));
    bool          good;
    hora_status_t st;
    if (cards == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "the GPUs of %d ranks",
                                              comm->size));
    good = make_card(comm, self, &mine);
    st = hora_device_exchange(comm, &mine, cards, sizeof(mine), 0, "GPUs: events and memory");
    for (int i = 0; i < comm->size && st == HORA_OK && good; i++)
        good = cards[i].good == 1 && open_card(comm, self, i, &cards[i]);
    if (!good)
        hora_log(HORA_LOG_DEBUG, "GPUs: no IPC on rank %d: %s", comm->rank, hora_last_error());
    if (st == HORA_OK)
        st = agree(comm, good, all_p);
    free(cards);
    return st;
}

static void forget(hora_comm_t *comm) {
    hora_gpu_ipc_t *self = comm->gpu->ipc;
    if (self == NULL)
        return;
    hora_ipc_drop(comm, self);
    free_self(self);
    comm->gpu->ipc = NULL;
}

static hora_status_t prepare(hora_comm_t *comm, const char **obstacle_p) {
    hora_gpu_ipc_t *self;
    bool            all = false;
    hora_status_t   st;
    if (comm->gpu->ipc != NULL)
        return HORA_OK;
    self = new_self(comm->gpu->gpu, (size_t)comm->size);
    if (self == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "the GPUs of %d ranks",
                                              comm->size));
    comm->gpu->ipc = self;
    number_gpus(comm, self);
    st = introduce(comm, self, &all);
    if (st == HORA_OK && !all)
        *obstacle_p = "not all GPUs can open each other's memory and events";
    if (st != HORA_OK || !all)
        forget(comm);
    return st;
}

/* ---- One call: what this rank says of it ---------------------------------------------------------- */

static bool has_blocks(hora_coll_kind_t kind) {
    return kind == HORA_COLL_REDUCE_SCATTER || kind == HORA_COLL_ALLGATHER ||
           kind == HORA_COLL_ALLTOALL;
}

static bool follow_each_other(const size_t *counts, const size_t *displs, int n) {
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        if (displs[i] != at)
            return false;
        at += counts[i];
    }
    return true;
}

/* An even alltoall has the same count everywhere; the other kinds' counts are equal on all members. */
static bool is_plain(const hora_coll_t *coll) {
    bool exchanges = coll->kind == HORA_COLL_ALLTOALL;
    if (!has_blocks(coll->kind))
        return true;
    return follow_each_other(coll->counts, coll->displs, coll->size) &&
           (!exchanges || (coll->count > 0 &&
                           follow_each_other(coll->other_counts, coll->other_displs, coll->size)));
}

static void fill_row(uint64_t *row, const size_t *values, int n) {
    for (int i = 0; i < n; i++)
        row[i] = values != NULL ? values[i] : 0;
}

static void fill_layout(const hora_gpu_ipc_t *self, const hora_coll_t *coll, int rank) {
    fill_row(hora_ipc_row(self, coll->size, rank, COUNTS), coll->counts, coll->size);
    fill_row(hora_ipc_row(self, coll->size, rank, DISPLS), coll->displs, coll->size);
    fill_row(hora_ipc_row(self, coll->size, rank, OTHER_COUNTS), coll->other_counts, coll->size);
    fill_row(hora_ipc_row(self, coll->size, rank, OTHER_DISPLS), coll->other_displs, coll->size);
}

static said_t say(const hora_coll_t *coll) {
    said_t said = {.count = coll->count, .counts = 14695981039346656037u, .prescale = coll->prescale,
                   .postscale = coll->postscale, .kind = (uint32_t)coll->kind,
                   .dtype = (uint32_t)coll->dtype, .op = (uint32_t)coll->op,
                   .root = (uint32_t)coll->root, .divisor = coll->divisor};
    bool equal = coll->kind == HORA_COLL_REDUCE_SCATTER || coll->kind == HORA_COLL_ALLGATHER;
    if (equal) /* then `count` is this rank's own affair */
        said.count = 0;
    for (int i = 0; equal && i < coll->size; i++)
        said.counts = (said.counts ^ coll->counts[i]) * 1099511628211u;
    return said;
}

/* Elements from a buffer's begin to the end of its last block. */
static size_t extent(const size_t *counts, const size_t *displs, int n) {
    size_t end = 0;
    for (int i = 0; i < n; i++)
        if (counts[i] > 0 && displs[i] + counts[i] > end)
            end = displs[i] + counts[i];
    return end;
}

static void measure(const hora_coll_t *coll, size_t *in_p, size_t *out_p) {
    size_t mine = coll->counts != NULL ? coll->counts[coll->rank] : coll->count;
    bool   root = coll->rank == coll->root;
    *in_p = *out_p = coll->count;
    switch (coll->kind) {
    case HORA_COLL_REDUCE: *out_p = root ? coll->count : 0; break;
    case HORA_COLL_BROADCAST: *in_p = root ? coll->count : 0; break;
    case HORA_COLL_REDUCE_SCATTER:
        *in_p = extent(coll->counts, coll->displs, coll->size);
        *out_p = mine;
        break;
    case HORA_COLL_ALLGATHER:
        *in_p = mine;
        *out_p = extent(coll->counts, coll->displs, coll->size);
        break;
    case HORA_COLL_ALLTOALL:
        *in_p = extent(coll->counts, coll->displs, coll->size);
        *out_p = extent(coll->other_counts, coll->other_displs, coll->size);
        break;
    default: break;
    }
    *in_p *= hora_dtype_size(coll->dtype);
    *out_p *= hora_dtype_size(coll->dtype);
}

/* ---- One call: this rank's buffers ------------------------------------------------------------------ */

/* Which of them go through the staging buffer, and where they are there. */
typedef struct buffers {
    size_t   in_bytes, out_bytes;
    uint64_t staged_in, staged_out; /* 0: not staged */
} buffers_t;

static hora_status_t fail_cuda(const hora_gpu_ipc_t *self, hora_cuda_result_t result) {
    return result == HORA_CUDA_SUCCESS
               ? HORA_OK
               : hora_cuda_fail(self->gpu->cuda, result, "a collective on a GPU");
}

/* Shows the buffers, or parts of the staging buffer: for those that others cannot open, and for input
 * that the output lies over, where one leader would write before another has read. */
static hora_status_t show(hora_gpu_ipc_t *self, const hora_coll_t *coll, hora_ipc_note_t *note,
                          buffers_t *b) {
    uint64_t      in = (uint64_t)(uintptr_t)coll->in, out = (uint64_t)(uintptr_t)coll->out;
    bool          in_stays, out_stays;
    size_t        need = 0;
    hora_status_t st;
    measure(coll, &b->in_bytes, &b->out_bytes);
    in_stays = b->in_bytes == 0 || (!hora_stage_overlaps(coll) &&
                                    hora_ipc_show(self, in, b->in_bytes, &note->in));
    out_stays = b->out_bytes == 0 || hora_ipc_show(self, out, b->out_bytes, &note->out);
    need = (in_stays ? 0 : ALIGNED(b->in_bytes)) + (out_stays ? 0 : b->out_bytes);
    if (need == 0)
        return HORA_OK;
    st = hora_ipc_reserve(self, need);
    if (st != HORA_OK)
        return st;
    b->staged_in = in_stays ? 0 : self->stages[self->nstages - 1];
    b->staged_out = out_stays ? 0 : self->stages[self->nstages - 1] +
                                        (in_stays ? 0 : ALIGNED(b->in_bytes));
    if ((!in_stays && !hora_ipc_show(self, b->staged_in, b->in_bytes, &note->in)) ||
        (!out_stays && !hora_ipc_show(self, b->staged_out, b->out_bytes, &note->out)))
        return hora_fail(HORA_ERR_SYSTEM, "the staging buffer cannot be shown to the other ranks");
    return HORA_OK;
}

/* After the call before, which has the staging buffer: copies the input where others find it, and records
 * that it is there. */
static hora_status_t put_in(const hora_comm_t *comm, hora_gpu_ipc_t *self, const hora_coll_t *coll,
                            const buffers_t *b) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_cuda_stream_t stream = coll->gpu->stream;
    hora_cuda_result_t result = cuda->stream_wait(stream, self->end, 0);
    if (result == HORA_CUDA_SUCCESS && b->staged_in != 0)
        result = cuda->copy(b->staged_in, (uint64_t)(uintptr_t)coll->in, b->in_bytes, stream);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->event_record(self->members[comm->rank].ready, stream);
    return fail_cuda(self, result);
}

/* Blocks may have gaps between them, which stay as they are. */
static hora_cuda_result_t copy_blocks(const hora_gpu_ipc_t *self, const hora_coll_t *coll,
                                      const buffers_t *b, const size_t *counts,
                                      const size_t *displs) {
    size_t             elem = hora_dtype_size(coll->dtype);
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    for (int i = 0; i < coll->size && result == HORA_CUDA_SUCCESS; i++)
        if (counts[i] > 0)
            result = self->gpu->cuda->copy((uint64_t)(uintptr_t)coll->out + displs[i] * elem,
                                           b->staged_out + displs[i] * elem, counts[i] * elem,
                                           coll->gpu->stream);
    return result;
}

static hora_status_t take_out(hora_gpu_ipc_t *self, const hora_coll_t *coll, const buffers_t *b) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    if (b->staged_out != 0 && coll->kind == HORA_COLL_ALLGATHER)
        result = copy_blocks(self, coll, b, coll->counts, coll->displs);
    else if (b->staged_out != 0 && coll->kind == HORA_COLL_ALLTOALL)
        result = copy_blocks(self, coll, b, coll->other_counts, coll->other_displs);
    else if (b->staged_out != 0)
        result = cuda->copy((uint64_t)(uintptr_t)coll->out, b->staged_out, b->out_bytes,
                            coll->gpu->stream);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->event_record(self->end, coll->gpu->stream);
    return fail_cuda(self, result);
}

/* ---- One call: what the others say ------------------------------------------------------------------ */

static void describe_call(const said_t *said, char *text, size_t room) {
    snprintf(text, room, "%s of %llu %s (%s, root %u)", hora_coll_name((hora_coll_kind_t)said->kind),
             (unsigned long long)said->count, hora_dtype_name((hora_dtype_t)said->dtype),
             hora_op_name((hora_op_t)said->op), said->root);
}

/* All members compare the same notes, so all find the same. */
static hora_status_t compare(const hora_comm_t *comm, const hora_ipc_note_t *notes) {
    char first[128], other[128];
    for (int i = 1; i < comm->size; i++) {
        if (memcmp(&notes[i].said, &notes[0].said, sizeof(notes[i].said)) == 0)
            continue;
        describe_call(&notes[0].said, first, sizeof(first));
        describe_call(&notes[i].said, other, sizeof(other));
        return hora_fail(HORA_ERR_MISMATCH, "operations do not match: on a GPU rank 0 called %s, rank %d "
                         "called %s%s", first, i, other, strcmp(first, other) == 0
                         ? ", but with different blocks or scales" : "");
    }
    return HORA_OK;
}

static hora_status_t exchange_layouts(hora_comm_t *comm, const hora_gpu_ipc_t *self,
                                      const hora_coll_t *coll) {
    size_t        row = (size_t)comm->size * HORA_IPC_ROWS;
    bool          plain = true;
    uint64_t     *mine;
    hora_status_t st;
    if (!has_blocks(coll->kind))
        return HORA_OK;
    for (int i = 0; i < comm->size; i++)
        plain = plain && self->notes[i].plain == 1;
    for (int i = 0; i < comm->size; i++)
        fill_layout(self, coll, i); /* if all are plain, mine is everybody's */
    if (plain)
        return HORA_OK;
    mine = malloc(row * sizeof(*mine));
    if (mine == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a collective on GPUs");
    memcpy(mine, self->layouts, row * sizeof(*mine));
    st = hora_device_exchange(comm, mine, self->layouts, row * sizeof(*mine), coll->timeout,
                              "GPUs: blocks");
    free(mine);
    return st;
}

static bool fits(const hora_ipc_region_t *region, const hora_coll_t *coll, uint64_t first,
                 uint64_t count) {
    uint64_t room = region->bytes / hora_dtype_size(coll->dtype);
    return count == 0 || (first <= room && count <= room - first);
}

/* Does all that the leaders will do lie within the buffers of member r? */
static bool is_within(const hora_gpu_ipc_t *self, const hora_coll_t *coll, int r) {
    const hora_ipc_region_t *in = &self->notes[r].in, *out = &self->notes[r].out;
    const uint64_t          *counts = hora_ipc_row(self, coll->size, r, COUNTS);
    const uint64_t          *displs = hora_ipc_row(self, coll->size, r, DISPLS);
    const uint64_t          *others = hora_ipc_row(self, coll->size, r, OTHER_COUNTS);
    const uint64_t          *places = hora_ipc_row(self, coll->size, r, OTHER_DISPLS);
    bool                     good = true;
    switch (coll->kind) {
    case HORA_COLL_REDUCE_SCATTER: good = fits(out, coll, 0, counts[r]); break;
    case HORA_COLL_ALLGATHER: good = fits(in, coll, 0, counts[r]); break;
    case HORA_COLL_ALLTOALL: break;
    case HORA_COLL_REDUCE:
        return fits(in, coll, 0, coll->count) && (r != coll->root || fits(out, coll, 0, coll->count));
    case HORA_COLL_BROADCAST:
        return fits(out, coll, 0, coll->count) && (r != coll->root || fits(in, coll, 0, coll->count));
    default: return fits(in, coll, 0, coll->count) && fits(out, coll, 0, coll->count);
    }
    for (int i = 0; i < coll->size && good; i++)
        good = coll->kind == HORA_COLL_ALLTOALL
                   ? fits(in, coll, displs[i], counts[i]) && fits(out, coll, places[i], others[i]) &&
                         counts[i] == hora_ipc_row(self, coll->size, i, OTHER_COUNTS)[r]
                   : fits(coll->kind == HORA_COLL_ALLGATHER ? out : in, coll, displs[i], counts[i]);
    return good;
}

/* For the messages of the hosts' meetings. */
static const char *name_call(hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    snprintf(self->name, sizeof(self->name), "%s%s%.40s on a GPU", hora_coll_name(coll->kind),
             coll->name != NULL ? " " : "", coll->name != NULL ? coll->name : "");
    return self->name;
}

static hora_status_t meet(hora_comm_t *comm, hora_gpu_ipc_t *self, const hora_coll_t *coll,
                          const hora_ipc_note_t *mine) {
    hora_status_t st = hora_device_exchange(comm, mine, self->notes, sizeof(*mine), coll->timeout,
                                            name_call(self, coll));
    if (st == HORA_OK)
        st = compare(comm, self->notes);
    if (st == HORA_OK)
        st = exchange_layouts(comm, self, coll);
    for (int r = 0; r < comm->size && st == HORA_OK; r++)
        if (!is_within(self, coll, r))
            st = hora_fail(HORA_ERR_MISMATCH, "%s on a GPU: the blocks of rank %d do not match the other "
                           "ranks' or its buffers", hora_coll_name(coll->kind), r);
    return st;
}

/* ---- One call: moving --------------------------------------------------------------------------------- */

static hora_status_t lead(hora_comm_t *comm, hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    hora_status_t      st = HORA_OK;
    for (int r = 0; r < comm->size && st == HORA_OK; r++) {
        st = hora_ipc_find(comm, coll, r, &self->notes[r].in, &self->in[r]);
        if (st == HORA_OK)
            st = hora_ipc_find(comm, coll, r, &self->notes[r].out, &self->out[r]);
    }
    for (int r = 0; r < comm->size && st == HORA_OK && result == HORA_CUDA_SUCCESS; r++)
        if (r != comm->rank)
            result = cuda->stream_wait(coll->gpu->stream, self->members[r].ready, 0);
    if (st == HORA_OK && result == HORA_CUDA_SUCCESS)
        st = hora_ipc_move(self, coll);
    if (st == HORA_OK && result == HORA_CUDA_SUCCESS)
        result = cuda->event_record(self->members[comm->rank].done, coll->gpu->stream);
    return st == HORA_OK ? fail_cuda(self, result) : st;
}

/* Once the hosts have met, every leader has recorded. */
static hora_status_t wait_for_leaders(hora_comm_t *comm, hora_gpu_ipc_t *self,
                                      const hora_coll_t *coll) {
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    hora_coll_t        barrier = {.kind = HORA_COLL_BARRIER, .dtype = HORA_UINT8, .op = HORA_SUM,
                                  .rank = comm->rank, .size = comm->size, .prescale = 1.0,
                                  .postscale = 1.0, .timeout = coll->timeout, .staged = true,
                                  .name = self->name};
    hora_status_t      st = hora_coll_run(comm, &barrier);
    for (int g = 0; g < self->ngpus && st == HORA_OK && result == HORA_CUDA_SUCCESS; g++)
        if (self->leaders[g] != comm->rank)
            result = self->gpu->cuda->stream_wait(coll->gpu->stream,
                                                  self->members[self->leaders[g]].done, 0);
    return st == HORA_OK ? fail_cuda(self, result) : st;
}

/* There is nobody to show anything to. */
static hora_status_t run_alone(hora_gpu_ipc_t *self, const hora_coll_t *coll) {
    self->in[0] = (uint64_t)(uintptr_t)coll->in;
    self->out[0] = (uint64_t)(uintptr_t)coll->out;
    if (has_blocks(coll->kind))
        fill_layout(self, coll, 0);
    return hora_ipc_move(self, coll);
}

static hora_status_t run(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_gpu_ipc_t *self = comm->gpu->ipc;
    hora_ipc_note_t mine = {.said = say(coll), .plain = is_plain(coll)};
    buffers_t       b = {0};
    hora_status_t   st;
    self->calls++;
    if (comm->size == 1)
        return run_alone(self, coll);
    st = show(self, coll, &mine, &b);
    if (st == HORA_OK)
        st = put_in(comm, self, coll, &b);
    self->exposed = st == HORA_OK; /* and stays so if this call fails now */
    if (st == HORA_OK)
        st = meet(comm, self, coll, &mine);
    if (st == HORA_OK && leads(comm, self))
        st = lead(comm, self, coll);
    if (st == HORA_OK)
        st = wait_for_leaders(comm, self, coll);
    if (st == HORA_OK) {
        self->exposed = false;
        st = take_out(self, coll, &b);
    }
    if (self->exposed) /* `end` is after what a failed call has queued, too */
        self->gpu->cuda->event_record(self->end, coll->gpu->stream);
    return st == HORA_OK ? HORA_OK : hora_coll_fail(comm, st);
}

const hora_gpu_path_t hora_gpu_path_ipc = {
    .name = "ipc", .describe = describe, .obstacle = obstacle, .prepare = prepare, .takes = takes,
    .run = run, .forget = forget,
};
