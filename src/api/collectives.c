/*
 * The collectives of the communicator API: check the arguments, describe the operation, run it or start
 * it. On the calling thread. Everything that two collectives have in common is in begin, block_lists
 * and finish.
 */
#include "api/check.h"
#include "api/request.h"
#include "offload/cuda/device.h"
#include "offload/offload.h"
#include "schedule/algos.h"
#include "schedule/exec.h"

#include <stdlib.h>

#define FEW_RANKS   16
#define SURELY_FITS ((size_t)1 << 36) /* elements of a block, whatever the number of ranks */

/* A call on its way: what is asked, with the checked options. */
typedef struct call {
    hora_comm_t        *comm;
    hora_coll_t         coll;
    hora_call_options_t options;
    hora_gpu_place_t    place; /* on a GPU */
    const char         *what;
    size_t             *lists; /* counts and offsets made up here; NULL: none yet */
    size_t              few[4 * FEW_RANKS]; /* where they are; of more ranks freed by finish */
} call_t;

static hora_status_t set_place(call_t *call) {
    hora_status_t st = hora_gpu_get(call->comm->world->settings.cuda_library, call->options.device,
                                    &call->place.gpu);
    call->place.stream = call->options.stream;
    call->coll.gpu = &call->place;
    return st;
}

/* The communicator has failed since the last call. This one's stream may have what that has queued. */
static void drain_earlier(call_t *call, const hora_call_options_t *options) {
    if (options != NULL && hora_check_options(options, call->what, &call->options) == HORA_OK &&
        call->options.device >= 0 && set_place(call) == HORA_OK)
        hora_device_drain_call(call->comm, &call->place);
}

static hora_status_t begin(call_t *call, hora_comm_t *comm, hora_coll_kind_t kind,
                           hora_dtype_t dtype, const hora_call_options_t *options) {
    hora_status_t st;
    call->what = hora_coll_name(kind);
    call->comm = comm;
    call->lists = NULL;
    st = hora_check_comm(comm, call->what);
    if (st != HORA_OK && comm != NULL && comm->gpu != NULL) {
        drain_earlier(call, options);
        st = hora_check_comm(comm, call->what); /* whatever its words were meanwhile */
    }
    if (st == HORA_OK)
        st = hora_check_dtype(dtype, call->what);
    if (st == HORA_OK)
        st = hora_check_options(options, call->what, &call->options);
    if (st != HORA_OK)
        return st;
    /* Every member by name: a struct that is partly left out is cleared as a whole first, slowly. */
    call->coll = (hora_coll_t){
        .kind = kind, .dtype = dtype, .op = HORA_SUM, .rank = comm->rank, .size = comm->size,
        .root = 0, .count = 0, .in = NULL, .out = NULL, .counts = NULL, .displs = NULL,
        .other_counts = NULL, .other_displs = NULL, .prescale = call->options.prescale,
        .postscale = call->options.postscale, .timeout = call->options.timeout, .divisor = 0,
        .gpu = NULL, .staged = false, .name = call->options.name,
    };
    return call->options.device < 0 ? HORA_OK : set_place(call);
}

static hora_status_t set_buffers(call_t *call, const void *in, size_t in_count, void *out,
                                 size_t out_count) {
    hora_status_t st = hora_check_buffer(in, in_count, call->coll.dtype, "in", call->what);
    if (st == HORA_OK)
        st = hora_check_buffer(out, out_count, call->coll.dtype, "out", call->what);
    call->coll.in = in;
    call->coll.out = out;
    return st;
}

static hora_status_t check_apart(call_t *call, size_t in_count, size_t out_count) {
    size_t size;
    if (call->coll.in == call->coll.out)
        return HORA_OK;
    size = hora_dtype_size(call->coll.dtype);
    return hora_check_overlap(call->coll.in, in_count * size, call->coll.out, out_count * size,
                              call->what);
}

/* Offsets of blocks that lie one after the other; equal blocks where counts is NULL. */
static hora_status_t block_lists(call_t *call, const size_t *counts, const size_t *displs,
                                 const size_t **counts_p, const size_t **displs_p, size_t *end_p) {
    size_t  n = (size_t)call->comm->size, at = 0, end = 0;
    bool    first = call->lists == NULL;
    size_t *list;
    if (first)
        call->lists = n <= FEW_RANKS ? call->few : calloc(4 * n, sizeof(size_t));
    if (call->lists == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "%s of %zu blocks", call->what, n);
    list = call->lists + (first ? 0 : 2 * n);
    for (size_t i = 0; i < n; i++) {
        size_t count = counts != NULL ? counts[i] : call->coll.count;
        bool   fits = count <= SURELY_FITS || count <= SIZE_MAX / 16 / n;
        if (!fits || (displs != NULL && displs[i] > SIZE_MAX / 32))
            return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: block %zu has %zu elements", call->what,
                             i, count);
        list[i] = count;
        list[n + i] = displs != NULL ? displs[i] : at;
        at += count;
        if (count > 0 && list[n + i] + count > end)
            end = list[n + i] + count;
    }
    *counts_p = list;
    *displs_p = list + n;
    *end_p = end;
    return HORA_OK;
}

static hora_status_t execute(call_t *call) {
    hora_status_t st;
    if (call->coll.gpu == NULL && call->comm->gpu != NULL) {
        st = hora_device_settle(call->comm);
        if (st != HORA_OK)
            return st;
    }
    if (call->options.request_p != NULL)
        return hora_request_start(call->comm, &call->coll, call->options.request_p);
    if (hora_offload_try(call->comm, &call->coll, &st))
        return st;
    return hora_coll_run(call->comm, &call->coll);
}

static hora_status_t finish(call_t *call, hora_status_t st) {
    if (st == HORA_OK)
        st = execute(call);
    if (st != HORA_OK && call->coll.gpu != NULL)
        hora_device_drain_call(call->comm, &call->place);
    if (call->lists != call->few)
        free(call->lists);
    return st;
}

static hora_status_t set_op(call_t *call, hora_op_t op) {
    call->coll.op = op;
    if (call->coll.kind == HORA_COLL_ALLREDUCE)
        return hora_check_op(call->coll.dtype, op, call->what);
    return hora_check_plain_op(call->coll.dtype, op, call->what);
}

static hora_status_t set_root(call_t *call, int root) {
    call->coll.root = root;
    return hora_check_rank(call->comm, root, "root", call->what);
}

hora_status_t hora_allreduce(hora_comm_t *comm, const void *in, void *out, size_t count,
                             hora_dtype_t dtype, hora_op_t op, const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_ALLREDUCE, dtype, options);
    if (st != HORA_OK)
        return st;
    call.coll.count = count;
    st = set_op(&call, op);
    if (st == HORA_OK)
        st = set_buffers(&call, in, count, out, count);
    if (st == HORA_OK)
        st = check_apart(&call, count, count);
    return finish(&call, st);
}

hora_status_t hora_reduce(hora_comm_t *comm, const void *in, void *out, size_t count,
                          hora_dtype_t dtype, hora_op_t op, int root,
                          const hora_call_options_t *options) {
    call_t        call;
    size_t        out_count;
    hora_status_t st = begin(&call, comm, HORA_COLL_REDUCE, dtype, options);
    if (st != HORA_OK)
        return st;
    call.coll.count = count;
    out_count = root == comm->rank ? count : 0;
    st = set_op(&call, op);
    if (st == HORA_OK)
        st = set_root(&call, root);
    if (st == HORA_OK)
        st = set_buffers(&call, in, count, out, out_count);
    if (st == HORA_OK)
        st = check_apart(&call, count, out_count);
    return finish(&call, st);
}

static hora_status_t reduce_scatter(call_t *call, const hora_blocks_t *in, void *out, hora_op_t op) {
    size_t        end, mine;
    hora_status_t st = set_op(call, op);
    if (st == HORA_OK)
        st = block_lists(call, in->counts, in->displs, &call->coll.counts, &call->coll.displs, &end);
    if (st != HORA_OK)
        return finish(call, st);
    mine = call->coll.counts[call->comm->rank];
    st = set_buffers(call, in->data, end, out, mine);
    if (st == HORA_OK && (char *)out != (char *)in->data + call->coll.displs[call->comm->rank] *
                                                               hora_dtype_size(call->coll.dtype))
        st = check_apart(call, end, mine);
    return finish(call, st);
}

hora_status_t hora_reduce_scatter(hora_comm_t *comm, const void *in, void *out, size_t count,
                                  hora_dtype_t dtype, hora_op_t op,
                                  const hora_call_options_t *options) {
    call_t        call;
    hora_blocks_t blocks = {(void *)(uintptr_t)in, NULL, NULL};
    hora_status_t st = begin(&call, comm, HORA_COLL_REDUCE_SCATTER, dtype, options);
    if (st != HORA_OK)
        return st;
    call.coll.count = count;
    return reduce_scatter(&call, &blocks, out, op);
}

static hora_status_t check_blocks(const hora_blocks_t *blocks, const char *argument,
                                  const char *what) {
    if (blocks != NULL && blocks->counts != NULL)
        return HORA_OK;
    return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: %s%s is NULL", what, argument,
                     blocks == NULL ? "" : "->counts");
}

hora_status_t hora_reduce_scatterv(hora_comm_t *comm, const hora_blocks_t *in, void *out,
                                   hora_dtype_t dtype, hora_op_t op,
                                   const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_REDUCE_SCATTER, dtype, options);
    if (st == HORA_OK)
        st = check_blocks(in, "in", "reduce_scatterv");
    return st != HORA_OK ? st : reduce_scatter(&call, in, out, op);
}

static hora_status_t allgather(call_t *call, const void *in, const hora_blocks_t *out) {
    size_t        end, mine;
    hora_status_t st = block_lists(call, out->counts, out->displs, &call->coll.counts,
                                   &call->coll.displs, &end);
    if (st != HORA_OK)
        return finish(call, st);
    mine = call->coll.counts[call->comm->rank];
    st = set_buffers(call, in, mine, out->data, end);
    if (st == HORA_OK && (char *)in != (char *)out->data + call->coll.displs[call->comm->rank] *
                                                               hora_dtype_size(call->coll.dtype))
        st = check_apart(call, mine, end);
    return finish(call, st);
}

hora_status_t hora_allgather(hora_comm_t *comm, const void *in, void *out, size_t count,
                             hora_dtype_t dtype, const hora_call_options_t *options) {
    call_t        call;
    hora_blocks_t blocks = {out, NULL, NULL};
    hora_status_t st = begin(&call, comm, HORA_COLL_ALLGATHER, dtype, options);
    if (st != HORA_OK)
        return st;
    call.coll.count = count;
    return allgather(&call, in, &blocks);
}

hora_status_t hora_allgatherv(hora_comm_t *comm, const void *in, const hora_blocks_t *out,
                              hora_dtype_t dtype, const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_ALLGATHER, dtype, options);
    if (st == HORA_OK)
        st = check_blocks(out, "out", "allgatherv");
    return st != HORA_OK ? st : allgather(&call, in, out);
}

hora_status_t hora_broadcast(hora_comm_t *comm, const void *in, void *out, size_t count,
                             hora_dtype_t dtype, int root, const hora_call_options_t *options) {
    call_t        call;
    bool          sends;
    hora_status_t st = begin(&call, comm, HORA_COLL_BROADCAST, dtype, options);
    if (st != HORA_OK)
        return st;
    call.coll.count = count;
    sends = root == comm->rank;
    st = set_root(&call, root);
    if (st == HORA_OK)
        st = set_buffers(&call, in, sends ? count : 0, out, count);
    if (st == HORA_OK)
        st = check_apart(&call, sends ? count : 0, count);
    return finish(&call, st);
}

static hora_status_t alltoall(call_t *call, const hora_blocks_t *in, const hora_blocks_t *out) {
    size_t        in_end, out_end;
    hora_status_t st = block_lists(call, in->counts, in->displs, &call->coll.counts,
                                   &call->coll.displs, &in_end);
    if (st == HORA_OK)
        st = block_lists(call, out->counts, out->displs, &call->coll.other_counts,
                         &call->coll.other_displs, &out_end);
    if (st == HORA_OK)
        st = set_buffers(call, in->data, in_end, out->data, out_end);
    if (st == HORA_OK && call->coll.counts[call->comm->rank] != call->coll.other_counts[call->comm->rank])
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "alltoall: rank %d sends itself %zu elements but "
                       "expects %zu", call->comm->rank, call->coll.counts[call->comm->rank],
                       call->coll.other_counts[call->comm->rank]);
    if (st == HORA_OK && in->data == out->data && in_end > 0)
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "alltoall: in place is not possible; give another "
                       "out");
    if (st == HORA_OK)
        st = check_apart(call, in_end, out_end);
    return finish(call, st);
}

hora_status_t hora_alltoall(hora_comm_t *comm, const void *in, void *out, size_t count,
                            hora_dtype_t dtype, const hora_call_options_t *options) {
    call_t        call;
    hora_blocks_t send = {(void *)(uintptr_t)in, NULL, NULL}, recv = {out, NULL, NULL};
    hora_status_t st = begin(&call, comm, HORA_COLL_ALLTOALL, dtype, options);
    if (st != HORA_OK)
        return st;
    call.coll.count = count;
    return alltoall(&call, &send, &recv);
}

hora_status_t hora_alltoallv(hora_comm_t *comm, const hora_blocks_t *in, const hora_blocks_t *out,
                             hora_dtype_t dtype, const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_ALLTOALL, dtype, options);
    if (st == HORA_OK)
        st = check_blocks(in, "in", "alltoallv");
    if (st == HORA_OK)
        st = check_blocks(out, "out", "alltoallv");
    return st != HORA_OK ? st : alltoall(&call, in, out);
}

/* gather and scatter: the root's buffer has size blocks, everyone's other buffer has one. */
static hora_status_t rooted(call_t *call, const void *in, void *out, size_t count, int root) {
    bool          gathers = call->coll.kind == HORA_COLL_GATHER, at_root = root == call->comm->rank;
    size_t        all = at_root ? count * (size_t)call->comm->size : 0;
    hora_status_t st = set_root(call, root);
    call->coll.count = count;
    if (st == HORA_OK && count > SIZE_MAX / 16 / (size_t)call->comm->size)
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: count %zu is too large", call->what, count);
    if (st == HORA_OK)
        st = set_buffers(call, in, gathers ? count : all, out, gathers ? all : count);
    return finish(call, st);
}

hora_status_t hora_gather(hora_comm_t *comm, const void *in, void *out, size_t count,
                          hora_dtype_t dtype, int root, const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_GATHER, dtype, options);
    return st != HORA_OK ? st : rooted(&call, in, out, count, root);
}

hora_status_t hora_scatter(hora_comm_t *comm, const void *in, void *out, size_t count,
                           hora_dtype_t dtype, int root, const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_SCATTER, dtype, options);
    return st != HORA_OK ? st : rooted(&call, in, out, count, root);
}

hora_status_t hora_barrier(hora_comm_t *comm, const hora_call_options_t *options) {
    call_t        call;
    hora_status_t st = begin(&call, comm, HORA_COLL_BARRIER, HORA_UINT8, options);
    call.coll.gpu = NULL; /* it is one of the hosts */
    return st != HORA_OK ? st : finish(&call, HORA_OK);
}
