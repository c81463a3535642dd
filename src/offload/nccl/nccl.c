/*
 * Collectives by NCCL (nccl.h). On the thread that uses the communicator, with the GPU's context
 * current.
 *
 *     in --[cast, prescale]--> src --[NCCL]--> dst --[divide, postscale, cast]--> out
 *
 * What is in brackets is left out where it would change nothing; then src is in and dst is out. src and
 * dst are otherwise memory of the communicator's, or out where that may be written before. Blocks that are
 * not equal, but for a longer last one, or do not lie one after the other, go as a group of reductions or
 * broadcasts, one a block.
 */
#include "offload/nccl/nccl.h"

#include "offload/cuda/elements.h"
#include "offload/nccl/comm.h"
#include "schedule/algos.h"
#include "schedule/run.h"
#include "util/log.h"

#include <kernels/cuda/kernels.h>
#include <stdio.h>
#include <string.h>

typedef struct call {
    hora_nccl_comm_t  *self;
    const hora_coll_t *coll;
    hora_gpu_place_t   place;
    hora_nccl_op_t    *op;
    const char        *src;
    char              *dst;
    hora_dtype_t       dtype; /* of src and dst: float32 for halves that are cast */
    size_t             unit;  /* bytes of an element of src and dst */
    int                code;  /* of dtype, for NCCL */
} call_t;

static const int8_t codes[HORA_DTYPE_COUNT] = {
    [HORA_BOOL] = -1,
    [HORA_INT8] = HORA_NCCL_INT8,
    [HORA_INT16] = -1,
    [HORA_INT32] = HORA_NCCL_INT32,
    [HORA_INT64] = HORA_NCCL_INT64,
    [HORA_UINT8] = HORA_NCCL_UINT8,
    [HORA_UINT16] = -1,
    [HORA_UINT32] = HORA_NCCL_UINT32,
    [HORA_UINT64] = HORA_NCCL_UINT64,
    [HORA_FLOAT16] = HORA_NCCL_FLOAT16,
    [HORA_BFLOAT16] = HORA_NCCL_BFLOAT16,
    [HORA_FLOAT32] = HORA_NCCL_FLOAT32,
    [HORA_FLOAT64] = HORA_NCCL_FLOAT64,
    [HORA_FLOAT8_E4M3] = -1,
    [HORA_FLOAT8_E5M2] = -1,
};

static int op_code(hora_op_t op) {
    switch (op) {
    case HORA_PRODUCT: return HORA_NCCL_PRODUCT;
    case HORA_MIN: return HORA_NCCL_MIN_OP;
    case HORA_MAX: return HORA_NCCL_MAX;
    default: return HORA_NCCL_SUM;
    }
}

/* ---- hora's kernels around NCCL ----------------------------------------------------------------- */

/* How the inputs are prepared, and how the results are finished. */
static hora_element_how_t how_before(const hora_coll_t *coll) {
    return (hora_element_how_t){coll->prescale, 1.0, 1};
}

static hora_element_how_t how_after(const hora_coll_t *coll) {
    hora_reduce_t how;
    hora_coll_how(coll, &how);
    return (hora_element_how_t){1.0, how.postscale, how.divisor};
}

/* to = from, in another type. which: the piece of the operation that says so to the kernel. */
static hora_status_t cast(const call_t *c, int which, const void *from, hora_dtype_t from_type,
                          void *to, hora_dtype_t to_type, size_t count) {
    const hora_cuda_t *cuda = c->place.gpu->cuda;
    if (c->op->pieces == NULL) {
        hora_cuda_result_t result = cuda->host_alloc((void **)&c->op->pieces,
                                                     2 * sizeof(*c->op->pieces), 0);
        if (result != HORA_CUDA_SUCCESS)
            return hora_cuda_fail(cuda, result, "pinned memory for a cast");
    }
    return hora_elements_cast(&c->place, &c->op->pieces[which], from, from_type, to, to_type, count);
}

/* Halves of two ranks are rounded once in any case. */
static bool widens(const hora_comm_t *comm, const hora_coll_t *coll) {
    hora_element_how_t before = how_before(coll), after = how_after(coll);
    bool once = coll->size == 2 && hora_element_is_plain(&before) && hora_element_is_plain(&after);
    return hora_dtype_is_half(coll->dtype) && !once && !comm->gpu->facts[0].halves;
}

/* Elements from the first on that this rank's input spans, all blocks included. */
static size_t input_span(const hora_coll_t *coll) {
    size_t end = 0;
    if (coll->kind == HORA_COLL_ALLGATHER)
        return coll->counts[coll->rank];
    if (coll->kind != HORA_COLL_REDUCE_SCATTER)
        return coll->kind == HORA_COLL_SCATTER ? coll->count * (size_t)coll->size : coll->count;
    for (int r = 0; r < coll->size; r++)
        if (coll->counts[r] > 0 && coll->displs[r] + coll->counts[r] > end)
            end = coll->displs[r] + coll->counts[r];
    return end;
}

static size_t result_count(const hora_coll_t *coll) {
    if (coll->kind == HORA_COLL_REDUCE_SCATTER)
        return coll->counts[coll->rank];
    return coll->kind == HORA_COLL_REDUCE && coll->rank != coll->root ? 0 : coll->count;
}

/* Where NCCL finds the inputs and puts the results of a reduction. */
static hora_status_t prepare(call_t *c) {
    const hora_coll_t *coll = c->coll;
    hora_element_how_t how = how_before(coll);
    bool               wide = widens(c->self->owner, coll);
    bool               own = coll->kind == HORA_COLL_ALLREDUCE && !wide; /* out may be written now */
    size_t             span = input_span(coll), mine;
    uint64_t           work = (uintptr_t)coll->out;
    hora_status_t      st = HORA_OK;
    if (!wide && hora_element_is_plain(&how))
        return HORA_OK;
    c->dtype = wide ? HORA_FLOAT32 : coll->dtype;
    c->code = codes[c->dtype];
    c->unit = hora_dtype_size(c->dtype);
    if (!own)
        st = hora_nccl_work(c->self, span * c->unit, &work);
    if (st == HORA_OK && wide)
        st = cast(c, 0, coll->in, coll->dtype, (void *)(uintptr_t)work, HORA_FLOAT32, span);
    if (st == HORA_OK && !hora_element_is_plain(&how))
        st = hora_elements_scale(&c->place, c->dtype, &how, wide ? (void *)(uintptr_t)work : coll->in,
                                 (void *)(uintptr_t)work, span);
    c->src = (const char *)(uintptr_t)work;
    mine = coll->kind == HORA_COLL_REDUCE_SCATTER ? coll->displs[coll->rank] * c->unit : 0;
    if (wide)
        c->dst = (char *)(uintptr_t)work + mine;
    return st;
}

/* The results would lie over input that NCCL is still to read: it reads a copy. */
static hora_status_t move_input(call_t *c) {
    const hora_coll_t *coll = c->coll;
    size_t             bytes = input_span(coll) * c->unit;
    uint64_t           work;
    hora_cuda_result_t result;
    hora_status_t      st;
    if (c->src != coll->in || bytes == 0 || !hora_stage_overlaps(coll))
        return HORA_OK;
    st = hora_nccl_work(c->self, bytes, &work);
    if (st != HORA_OK)
        return st;
    c->src = (const char *)(uintptr_t)work;
    result = c->place.gpu->cuda->copy(work, (uintptr_t)coll->in, bytes, c->place.stream);
    return result == HORA_CUDA_SUCCESS
               ? HORA_OK : hora_cuda_fail(c->place.gpu->cuda, result, "copying the input");
}

static hora_status_t finish(call_t *c) {
    const hora_coll_t *coll = c->coll;
    hora_element_how_t how = how_after(coll);
    size_t             count = result_count(coll);
    hora_status_t      st = HORA_OK;
    if (!hora_element_is_plain(&how))
        st = hora_elements_scale(&c->place, c->dtype, &how, c->dst, c->dst, count);
    if (st == HORA_OK && c->dtype != coll->dtype)
        st = cast(c, 1, c->dst, c->dtype, coll->out, coll->dtype, count);
    return st;
}

/* ---- What NCCL is asked -------------------------------------------------------------------------- */

/* Are all blocks of one size, one after the other, but that the last one may be longer, by *rest_p? */
static bool is_packed(const hora_coll_t *coll, size_t *rest_p) {
    size_t block = coll->counts[0], last = coll->counts[coll->size - 1];
    for (int r = 0; r < coll->size; r++)
        if (coll->displs[r] != (size_t)r * block || (coll->counts[r] != block && r < coll->size - 1))
            return false;
    *rest_p = last - block;
    return last == block || (block > 0 && last > block);
}

static hora_nccl_result_t ask_reduce_scatter(const call_t *c) {
    const hora_nccl_library_t *nccl = c->self->nccl;
    const hora_coll_t         *coll = c->coll;
    int                        op = op_code(coll->op);
    hora_nccl_result_t         result = HORA_NCCL_SUCCESS;
    int                        last = coll->size - 1;
    size_t                     block = coll->counts[0] * c->unit, rest;
    if (is_packed(coll, &rest)) {
        result = nccl->reduce_scatter(c->src, c->dst, coll->counts[0], c->code, op, c->self->handle,
                                      c->place.stream);
        if (rest > 0 && hora_nccl_went(result))
            result = nccl->reduce(c->src + (size_t)coll->size * block,
                                  coll->rank == last ? c->dst + block : NULL, rest, c->code, op, last,
                                  c->self->handle, c->place.stream);
        return result;
    }
    for (int r = 0; r < coll->size && hora_nccl_went(result); r++) {
        const char *from = c->src + coll->displs[r] * c->unit;
        if (coll->counts[r] > 0)
            result = nccl->reduce(from, r == coll->rank ? c->dst : NULL, coll->counts[r], c->code, op, r,
                                  c->self->handle, c->place.stream);
    }
    return result;
}

static hora_nccl_result_t ask_allgather(const call_t *c) {
    const hora_nccl_library_t *nccl = c->self->nccl;
    const hora_coll_t         *coll = c->coll;
    hora_nccl_result_t         result = HORA_NCCL_SUCCESS;
    int                        last = coll->size - 1;
    size_t                     block = coll->counts[0] * c->unit, rest;
    char                      *end = c->dst + (size_t)coll->size * block;
    if (is_packed(coll, &rest)) {
        result = nccl->allgather(c->src, c->dst, block, HORA_NCCL_INT8, c->self->handle,
                                 c->place.stream);
        if (rest > 0 && hora_nccl_went(result))
            result = nccl->broadcast(coll->rank == last ? c->src + block : end, end, rest * c->unit,
                                     HORA_NCCL_INT8, last, c->self->handle, c->place.stream);
        return result;
    }
    for (int r = 0; r < coll->size && hora_nccl_went(result); r++) {
        char       *to = c->dst + coll->displs[r] * c->unit;
        const char *from = r == coll->rank ? c->src : to;
        if (coll->counts[r] > 0)
            result = nccl->broadcast(from, to, coll->counts[r] * c->unit, HORA_NCCL_INT8, r,
                                     c->self->handle, c->place.stream);
    }
    return result;
}

/* One message each way between this rank and `peer`; 0 bytes: none. To itself it is a copy. */
static hora_nccl_result_t ask_exchange(const call_t *c, int peer, const char *from, size_t sent,
                                       char *to, size_t received) {
    const hora_nccl_library_t *nccl = c->self->nccl;
    hora_nccl_result_t         result = HORA_NCCL_SUCCESS;
    if (sent > 0)
        result = nccl->send(from, sent, HORA_NCCL_INT8, peer, c->self->handle, c->place.stream);
    if (hora_nccl_went(result) && received > 0)
        result = nccl->recv(to, received, HORA_NCCL_INT8, peer, c->self->handle, c->place.stream);
    return result;
}

static hora_nccl_result_t ask_alltoall(const call_t *c) {
    const hora_coll_t *coll = c->coll;
    hora_nccl_result_t result = HORA_NCCL_SUCCESS;
    for (int r = 0; r < coll->size && hora_nccl_went(result); r++)
        if (r != coll->rank)
            result = ask_exchange(c, r, c->src + coll->displs[r] * c->unit, coll->counts[r] * c->unit,
                                  c->dst + coll->other_displs[r] * c->unit,
                                  coll->other_counts[r] * c->unit);
    return result;
}

/* gather and scatter: blocks of equal size between the root and the others. */
static hora_nccl_result_t ask_rooted(const call_t *c) {
    const hora_coll_t *coll = c->coll;
    bool               gathers = coll->kind == HORA_COLL_GATHER, at_root = coll->rank == coll->root;
    size_t             bytes = coll->count * c->unit;
    hora_nccl_result_t result = HORA_NCCL_SUCCESS;
    if (!at_root)
        return ask_exchange(c, coll->root, c->src, gathers ? bytes : 0, c->dst, gathers ? 0 : bytes);
    for (int r = 0; r < coll->size && hora_nccl_went(result); r++)
        if (r != coll->rank)
            result = ask_exchange(c, r, c->src + (size_t)r * bytes, gathers ? 0 : bytes,
                                  c->dst + (size_t)r * bytes, gathers ? bytes : 0);
    return result;
}

static hora_nccl_result_t ask(const call_t *c) {
    const hora_nccl_library_t *nccl = c->self->nccl;
    const hora_coll_t         *coll = c->coll;
    hora_nccl_handle_t         handle = c->self->handle;
    hora_cuda_stream_t         stream = c->place.stream;
    bool                       at_root = coll->rank == coll->root;
    switch (coll->kind) {
    case HORA_COLL_ALLREDUCE:
        return nccl->allreduce(c->src, c->dst, coll->count, c->code, op_code(coll->op), handle, stream);
    case HORA_COLL_REDUCE:
        return nccl->reduce(c->src, at_root ? c->dst : NULL, coll->count, c->code, op_code(coll->op),
                            coll->root, handle, stream);
    case HORA_COLL_REDUCE_SCATTER: return ask_reduce_scatter(c);
    case HORA_COLL_ALLGATHER: return ask_allgather(c);
    case HORA_COLL_BROADCAST:
        return nccl->broadcast(at_root ? c->src : c->dst, c->dst, coll->count * c->unit, HORA_NCCL_INT8,
                               coll->root, handle, stream);
    case HORA_COLL_ALLTOALL: return ask_alltoall(c);
    default: return ask_rooted(c);
    }
}

/* All that NCCL is asked goes as one group: it fails, or is done, as one. */
static hora_status_t call_nccl(call_t *c) {
    const hora_nccl_library_t *nccl = c->self->nccl;
    hora_nccl_result_t         result, ended;
    hora_nccl_enter(c->self);
    result = nccl->group_start();
    if (hora_nccl_went(result)) {
        result = ask(c);
        ended = nccl->group_end(); /* in any case, or this thread stays in the group */
        if (hora_nccl_went(result))
            result = ended;
    }
    return hora_nccl_leave(c->self, result, c->op);
}

/* The block that a rank sends to itself, where that is no matter for NCCL. */
static hora_status_t copy_own_block(const call_t *c) {
    const hora_coll_t *coll = c->coll;
    size_t             from = 0, to = 0, bytes = coll->count * c->unit;
    hora_cuda_result_t result;
    if (coll->kind == HORA_COLL_ALLTOALL) {
        from = coll->displs[coll->rank] * c->unit;
        to = coll->other_displs[coll->rank] * c->unit;
        bytes = coll->counts[coll->rank] * c->unit;
    } else if ((coll->kind != HORA_COLL_GATHER && coll->kind != HORA_COLL_SCATTER) ||
               coll->rank != coll->root) {
        return HORA_OK;
    } else if (coll->kind == HORA_COLL_GATHER) {
        to = (size_t)coll->rank * bytes;
    } else {
        from = (size_t)coll->rank * bytes;
    }
    if (bytes == 0 || c->src + from == c->dst + to)
        return HORA_OK;
    result = c->place.gpu->cuda->copy((uintptr_t)(c->dst + to), (uintptr_t)(c->src + from), bytes,
                                      c->place.stream);
    return result == HORA_CUDA_SUCCESS
               ? HORA_OK : hora_cuda_fail(c->place.gpu->cuda, result, "copying a rank's own block");
}

/* ---- The path ------------------------------------------------------------------------------------ */

static void set_op(call_t *c) {
    const hora_coll_t *coll = c->coll;
    bool               named = coll->name != NULL && coll->name[0] != '\0';
    c->op->timeout = coll->timeout > 0 ? coll->timeout : c->self->owner->timeout;
    snprintf(c->op->what, sizeof(c->op->what), "%s%s%.80s%s", hora_coll_name(coll->kind),
             named ? " '" : "", named ? coll->name : "", named ? "'" : "");
}

static hora_status_t run_guarded(hora_nccl_comm_t *self, const hora_coll_t *coll) {
    call_t        c = {.self = self, .coll = coll, .place = *coll->gpu, .src = coll->in,
                       .dst = coll->out, .dtype = coll->dtype, .unit = hora_dtype_size(coll->dtype),
                       .code = codes[coll->dtype]};
    bool          reduces = hora_coll_reduces(coll->kind);
    hora_status_t st = hora_nccl_op_begin(self, c.place.stream, &c.op);
    if (st != HORA_OK)
        return st;
    set_op(&c);
    if (reduces)
        st = prepare(&c);
    if (st == HORA_OK)
        st = move_input(&c);
    if (st == HORA_OK)
        st = call_nccl(&c);
    if (st == HORA_OK)
        st = reduces ? finish(&c) : copy_own_block(&c);
    return hora_nccl_op_end(self, c.op, st);
}

static void nccl_describe(const hora_comm_t *comm, const hora_gpu_place_t *place,
                          hora_gpu_facts_t *facts) {
    const hora_nccl_library_t *nccl;
    (void)place;
    facts->halves = comm->world->settings.nccl_halves;
    if (hora_nccl_open(comm->world->settings.nccl_library, &nccl) == HORA_OK)
        facts->nccl = nccl->version;
}

static const char *nccl_obstacle(const hora_comm_t *comm, const hora_gpu_facts_t *facts) {
    bool forced = strcmp(facts[0].setting, "nccl") == 0;
    for (int r = 0; r < comm->size; r++)
        if (facts[r].nccl == 0)
            return "not every rank has NCCL 2.14.3 or later";
    for (int r = 1; r < comm->size; r++)
        if (facts[r].nccl != facts[0].nccl)
            return "the ranks have different versions of NCCL";
    if (!forced && !hora_gpu_facts_apart(facts, comm->size))
        return "ranks share a GPU, which NCCL does not allow";
    return NULL;
}

static bool nccl_takes(const hora_comm_t *comm, const hora_coll_t *coll) {
    bool extreme = coll->op == HORA_MIN || coll->op == HORA_MAX;
    if (comm->size == 1)
        return false;
    if (coll->kind == HORA_COLL_BARRIER || !hora_coll_reduces(coll->kind))
        return coll->kind != HORA_COLL_BARRIER;
    if (codes[coll->dtype] < 0 || coll->op == HORA_ADASUM || coll->op >= HORA_BAND)
        return false;
    return !(hora_dtype_is_float(coll->dtype) && (extreme || comm->world->settings.deterministic));
}

static hora_status_t nccl_prepare(hora_comm_t *comm, const char **obstacle_p) {
    const hora_nccl_library_t *nccl;
    hora_nccl_comm_t          *made = NULL;
    hora_status_t              st;
    comm->gpu->nccl_tried = true;
    if (comm->size == 1)
        return HORA_OK;
    st = hora_nccl_open(comm->world->settings.nccl_library, &nccl);
    if (st == HORA_OK)
        st = hora_nccl_comm_create(comm, comm->gpu->gpu, nccl, &made);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    comm->gpu->nccl = made;
    if (made == NULL)
        *obstacle_p = "NCCL could not make a communicator";
    return HORA_OK;
}

static hora_status_t nccl_run(hora_comm_t *comm, const hora_coll_t *coll) {
    if (coll->kind != HORA_COLL_ALLTOALL && hora_coll_extent(coll) == 0)
        return HORA_OK;
    return run_guarded(comm->gpu->nccl, coll);
}

static void nccl_forget(hora_comm_t *comm) {
    if (comm->gpu->nccl != NULL)
        hora_nccl_comm_free(comm->gpu->nccl);
    comm->gpu->nccl = NULL;
}

const hora_gpu_path_t hora_gpu_path_nccl = {
    .name = "nccl", .describe = nccl_describe, .obstacle = nccl_obstacle, .prepare = nccl_prepare,
    .takes = nccl_takes, .run = nccl_run, .forget = nccl_forget,
};

/* ---- Splitting a communicator -------------------------------------------------------------------- */

hora_status_t hora_nccl_split(hora_comm_t *parent, int color, int key, hora_nccl_comm_t **made_p) {
    hora_nccl_comm_t *self = parent->gpu != NULL ? parent->gpu->nccl : NULL, *made = NULL;
    hora_status_t     st = HORA_OK;
    if (self != NULL && self->nccl->split != NULL) {
        st = hora_gpu_enter(self->gpu);
        if (st != HORA_OK)
            return hora_coll_fail(parent, st);
        st = hora_nccl_comm_split(self, color, key, &made);
        hora_gpu_leave(self->gpu);
    }
    if (st == HORA_OK)
        *made_p = made;
    return st;
}

void hora_nccl_inherit(hora_comm_t *comm, hora_nccl_comm_t *made) {
    if (comm != NULL && made != NULL) {
        hora_nccl_comm_adopt(made, comm);
        comm->inherited = made;
    } else if (made != NULL && hora_gpu_enter(made->gpu) == HORA_OK) {
        hora_gpu_t *gpu = made->gpu;
        hora_nccl_comm_free(made);
        hora_gpu_leave(gpu);
    }
}
