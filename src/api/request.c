/*
 * Requests, and point to point, which is a request that is waited for at once. On the calling thread.
 * A request holds a collective in host memory (exec), one on a GPU, or a transfer.
 */
#include "api/request.h"

#include "api/check.h"
#include "offload/cuda/device.h"
#include "transport/p2p.h"
#include "transport/wait.h"
#include "util/clock.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct hora_request {
    hora_comm_t *comm;
    bool         on_gpu;
    hora_gpu_place_t  place;
    hora_staged_op_t *op; /* on a GPU; NULL: all is queued there */
    hora_exec_t *exec; /* NULL, and not on a GPU: a transfer */
    hora_xfer_t  xfer;
    const char  *what; /* "send" or "recv" */
    int          peer;
    double       timeout;
    uint64_t     start, gone; /* ns: first test; when the peer was first seen to have left; or 0 */
};

hora_status_t hora_request_start(hora_comm_t *comm, const hora_coll_t *coll,
                                 hora_request_t **request_p) {
    hora_request_t *request = calloc(1, sizeof(*request));
    hora_status_t   st;
    if (request == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a request");
    request->comm = comm;
    request->on_gpu = coll->gpu != NULL;
    if (request->on_gpu)
        request->place = *coll->gpu;
    st = request->on_gpu ? hora_device_start(comm, coll, &request->op)
                         : hora_coll_start(comm, coll, &request->exec);
    if (st != HORA_OK) {
        free(request);
        return st;
    }
    *request_p = request;
    return HORA_OK;
}

/* A transfer's status is written by whichever thread made progress, so its text is made here. */
static hora_status_t describe(const hora_request_t *request, hora_status_t st) {
    hora_peer_t *peer = hora_comm_peer(request->comm, request->peer);
    if (st >= 0 || st == HORA_ERR_TIMEOUT)
        return st;
    hora_status_t failure = hora_failure_check(&request->comm->failure);
    if (failure == HORA_OK && st == HORA_ERR_PEER_FAILED)
        failure = hora_wait_cause(request->comm, request->peer, request->what);
    if (failure != HORA_OK)
        return failure;
    return hora_fail(st, "%s with rank %d on host %s: %s%s", request->what, request->peer, peer->host,
                     hora_status_message(st),
                     st == HORA_ERR_MISMATCH ? " (bytes sent and asked for differ)" : "");
}

/* For who polls: has the communicator failed, the peer left, or the deadline passed? */
static hora_status_t check_stuck(hora_request_t *request) {
    hora_comm_t  *comm = request->comm;
    double        timeout = request->timeout > 0 ? request->timeout : comm->timeout;
    hora_status_t st = hora_failure_check(&comm->failure);
    if (st == HORA_OK)
        st = hora_wait_check_gone(comm, request->peer, &request->gone, request->what);
    if (st != HORA_OK)
        return st;
    if (request->start == 0)
        request->start = hora_clock_ns();
    if (hora_clock_ns() - request->start < hora_clock_from_seconds(timeout))
        return HORA_IN_PROGRESS;
    return hora_fail(HORA_ERR_TIMEOUT, "%s: waited %.1f s for rank %d on host %s (HORA_TIMEOUT)",
                     request->what, timeout, request->peer,
                     hora_comm_peer(comm, request->peer)->host);
}

static hora_status_t test_xfer(hora_request_t *request) {
    hora_status_t st = hora_p2p_test(request->comm->world, &request->xfer);
    if (st != HORA_IN_PROGRESS)
        return describe(request, st);
    st = check_stuck(request);
    if (st != HORA_IN_PROGRESS)
        hora_p2p_cancel(request->comm->world, &request->xfer);
    return st;
}

static hora_status_t wait_xfer(hora_request_t *request) {
    hora_status_t st = hora_p2p_wait(request->comm, &request->xfer, request->timeout,
                                     request->what);
    return st == HORA_ERR_PEER_FAILED ? st : describe(request, st); /* else it has its text */
}

hora_status_t hora_request_test(hora_request_t *request, int *done_p) {
    hora_status_t st;
    if (request == NULL || done_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "request_test: %s is NULL",
                         request == NULL ? "request" : "done_p");
    if (request->on_gpu)
        st = request->op != NULL ? hora_device_progress(request->comm, request->op) : HORA_OK;
    else
        st = request->exec != NULL ? hora_exec_progress(request->exec) : test_xfer(request);
    *done_p = st != HORA_IN_PROGRESS;
    return st == HORA_IN_PROGRESS ? HORA_OK : st;
}

hora_status_t hora_request_wait(hora_request_t *request) {
    hora_status_t st;
    if (request == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "request_wait: request is NULL");
    if (request->on_gpu) {
        st = request->op != NULL ? hora_device_wait(request->comm, request->op) : HORA_OK;
        if (st != HORA_OK)
            hora_device_drain_call(request->comm, &request->place);
    } else if (request->exec != NULL) {
        st = hora_exec_wait(request->exec);
        hora_exec_free(request->exec);
    } else {
        st = wait_xfer(request);
    }
    free(request);
    return st;
}

typedef struct message {
    void        *buf;
    size_t       count;
    hora_dtype_t dtype;
    int          peer, tag;
    bool         sends;
} message_t;

static hora_status_t check_message(hora_comm_t *comm, const message_t *message, const char *what) {
    hora_status_t st = hora_check_comm(comm, what);
    if (st == HORA_OK)
        st = hora_check_dtype(message->dtype, what);
    if (st == HORA_OK)
        st = hora_check_buffer(message->buf, message->count, message->dtype,
                               message->sends ? "in" : "out", what);
    if (st == HORA_OK)
        st = hora_check_rank(comm, message->peer, "peer", what);
    if (st == HORA_OK && (message->tag < 0 || message->tag == INT_MAX))
        st = hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s: tag %d is not between 0 and 2^31 - 2", what,
                       message->tag);
    return st;
}

static void start_message(hora_request_t *request, const message_t *message) {
    hora_comm_t *comm = request->comm;
    request->peer = message->peer;
    request->xfer.buf = message->buf;
    request->xfer.len = message->count * hora_dtype_size(message->dtype);
    request->xfer.tag = hora_tag_user(comm->channel, message->tag);
    (message->sends ? hora_p2p_send : hora_p2p_recv)(comm->world, comm->world_ranks[message->peer],
                                                     &request->xfer);
}

static hora_status_t transfer(hora_comm_t *comm, const message_t *message,
                              const hora_call_options_t *user_options) {
    hora_call_options_t options;
    hora_request_t      local, *request = &local;
    const char         *what = message->sends ? "send" : "recv";
    hora_status_t       st = check_message(comm, message, what);
    if (st == HORA_OK)
        st = hora_check_options(user_options, what, &options);
    if (st == HORA_OK && options.device >= 0)
        st = hora_fail(HORA_ERR_UNSUPPORTED, "%s: from one rank to another only in host memory, not "
                       "on a GPU", what);
    if (st != HORA_OK)
        return st;
    if (options.request_p != NULL && (request = malloc(sizeof(*request))) == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a request");
    memset(request, 0, sizeof(*request));
    request->comm = comm;
    request->what = what;
    request->timeout = options.timeout;
    start_message(request, message);
    if (options.request_p == NULL)
        return wait_xfer(request);
    *options.request_p = request;
    return HORA_OK;
}

hora_status_t hora_send(hora_comm_t *comm, const void *in, size_t count, hora_dtype_t dtype,
                        int peer, int tag, const hora_call_options_t *options) {
    message_t message = {(void *)(uintptr_t)in, count, dtype, peer, tag, true};
    return transfer(comm, &message, options);
}

hora_status_t hora_recv(hora_comm_t *comm, void *out, size_t count, hora_dtype_t dtype, int peer,
                        int tag, const hora_call_options_t *options) {
    message_t message = {out, count, dtype, peer, tag, false};
    return transfer(comm, &message, options);
}
