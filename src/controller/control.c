/*
 * Control messages on their way (control.h). Only the driving thread of the engine runs it; other
 * threads' progress may complete its transfers meanwhile (p2p.h).
 *
 * Receives are posted before anything can come. Rank 0 has one for each other rank. The others have
 * two, so that the next frame has a place while this one is being executed.
 */
#include "controller/control.h"

#include "transport/p2p.h"
#include "transport/wait.h"

#include <stdlib.h>

#define CONTROL_TAG 0

struct hora_outgoing {
    hora_outgoing_t *next;
    int              npeers;
    uint8_t         *buf;
    struct {
        hora_xfer_t xfer;
        int         rank;
    } peers[];
};

typedef struct hora_incoming {
    hora_xfer_t xfer;
    int         rank;
    uint8_t    *buf;
} hora_incoming_t;

struct hora_control {
    hora_comm_t     *comm;
    int              nincoming;
    hora_incoming_t *incoming;
    hora_xfer_t    **posted;  /* [nincoming]; NULL: being read, or forgotten */
    int              next;    /* rank 0: where to look first; else: which of the two receives the
                                 next frame */
    hora_outgoing_t *sending; /* in flight */
    hora_outgoing_t *idle;
    bool            *left;    /* [size] */
    atomic_ulong     nframes; /* sent; written by the driver */
};

static int peer_of(const hora_control_t *control, int rank) {
    return control->comm->world_ranks[rank];
}

static void post(hora_control_t *control, int i) {
    hora_incoming_t *in = &control->incoming[i];
    in->xfer = (hora_xfer_t){.buf = in->buf,
                             .len = HORA_FRAME_MAX,
                             .tag = hora_tag_user(control->comm->channel, CONTROL_TAG),
                             .flags = HORA_XFER_ANY_LENGTH,
                             .status = HORA_IN_PROGRESS};
    hora_p2p_recv(control->comm->world, peer_of(control, in->rank), &in->xfer);
    control->posted[i] = &in->xfer;
}

hora_status_t hora_control_create(hora_comm_t *comm, hora_control_t **control_p) {
    hora_control_t *control = calloc(1, sizeof(*control));
    int             n = comm->rank == 0 ? comm->size - 1 : 2;
    if (control == NULL)
        goto err_none;
    control->comm = comm;
    control->incoming = calloc((size_t)n, sizeof(*control->incoming));
    control->posted = calloc((size_t)n, sizeof(*control->posted));
    control->left = calloc((size_t)comm->size, sizeof(*control->left));
    if (control->incoming == NULL || control->posted == NULL || control->left == NULL)
        goto err_free;
    for (; control->nincoming < n; control->nincoming++) {
        hora_incoming_t *in = &control->incoming[control->nincoming];
        in->rank = comm->rank == 0 ? control->nincoming + 1 : 0;
        in->buf = malloc(HORA_FRAME_MAX);
        if (in->buf == NULL)
            goto err_free;
        post(control, control->nincoming);
    }
    *control_p = control;
    return HORA_OK;
err_free:
    hora_control_destroy(control);
err_none:
    return hora_fail(HORA_ERR_NO_MEMORY, "the engine's control messages");
}

static void free_outgoing(hora_outgoing_t *list) {
    for (hora_outgoing_t *next; list != NULL; list = next) {
        next = list->next;
        free(list->buf);
        free(list);
    }
}

void hora_control_destroy(hora_control_t *control) {
    if (control == NULL)
        return;
    for (int i = 0; i < control->nincoming; i++) {
        if (control->posted[i] != NULL)
            hora_p2p_cancel(control->comm->world, control->posted[i]);
        free(control->incoming[i].buf);
    }
    for (hora_outgoing_t *out = control->sending; out != NULL; out = out->next)
        for (int i = 0; i < out->npeers; i++)
            hora_p2p_cancel(control->comm->world, &out->peers[i].xfer);
    free_outgoing(control->sending);
    free_outgoing(control->idle);
    free(control->incoming);
    free(control->posted);
    free(control->left);
    free(control);
}

/* ---- Sending -------------------------------------------------------------------------------- */

static bool is_sent(hora_control_t *control, hora_outgoing_t *out) {
    while (out->npeers > 0) {
        hora_xfer_t *xfer = &out->peers[out->npeers - 1].xfer;
        if (hora_p2p_test(control->comm->world, xfer) == HORA_IN_PROGRESS)
            return false;
        out->npeers--; /* a send that failed: the watch, or the next receive, finds out why */
    }
    return true;
}

static void reap(hora_control_t *control) {
    for (hora_outgoing_t **p = &control->sending, *out; (out = *p) != NULL;) {
        if (!is_sent(control, out)) {
            p = &out->next;
            continue;
        }
        *p = out->next;
        out->next = control->idle;
        control->idle = out;
    }
}

hora_status_t hora_control_prepare(hora_control_t *control, hora_outgoing_t **out_p) {
    size_t           npeers = control->comm->rank == 0 ? (size_t)control->comm->size - 1 : 1;
    hora_outgoing_t *out;
    reap(control);
    out = control->idle;
    if (out != NULL) {
        control->idle = out->next;
        *out_p = out;
        return HORA_OK;
    }
    out = calloc(1, sizeof(*out) + npeers * sizeof(out->peers[0]));
    if (out != NULL)
        out->buf = malloc(HORA_FRAME_MAX);
    if (out == NULL || out->buf == NULL) {
        free(out);
        return hora_fail(HORA_ERR_NO_MEMORY, "a control message");
    }
    *out_p = out;
    return HORA_OK;
}

unsigned long hora_control_frames(const hora_control_t *control) {
    return atomic_load_explicit(&control->nframes, memory_order_relaxed);
}

uint8_t *hora_outgoing_buf(hora_outgoing_t *out) {
    return out->buf;
}

static void send_to(hora_control_t *control, hora_outgoing_t *out, size_t len, int rank) {
    hora_xfer_t *xfer = &out->peers[out->npeers].xfer;
    out->peers[out->npeers++].rank = rank;
    *xfer = (hora_xfer_t){.buf = out->buf,
                          .len = len,
                          .tag = hora_tag_user(control->comm->channel, CONTROL_TAG),
                          .status = HORA_IN_PROGRESS};
    hora_p2p_send(control->comm->world, peer_of(control, rank), xfer);
}

void hora_control_send(hora_control_t *control, hora_outgoing_t *out, size_t len) {
    out->npeers = 0;
    atomic_fetch_add_explicit(&control->nframes, 1, memory_order_relaxed);
    out->next = control->sending;
    control->sending = out;
    if (control->comm->rank != 0) {
        send_to(control, out, len, 0);
        return;
    }
    for (int r = 1; r < control->comm->size; r++)
        if (!control->left[r])
            send_to(control, out, len, r);
}

static bool is_gone(const hora_control_t *control, int rank) {
    return control->left[rank] || atomic_load(&hora_comm_peer(control->comm, rank)->gone);
}

static hora_status_t flush_frame(hora_control_t *control, hora_outgoing_t *out, double timeout) {
    while (!is_sent(control, out)) {
        int           rank = out->peers[out->npeers - 1].rank;
        hora_xfer_t  *xfer = &out->peers[out->npeers - 1].xfer;
        hora_status_t st;
        if (is_gone(control, rank)) {
            hora_p2p_cancel(control->comm->world, xfer);
        } else {
            st = hora_p2p_wait(control->comm, xfer, timeout, "engine, control message");
            if (st != HORA_OK && !is_gone(control, rank))
                return st;
        }
        out->npeers--;
    }
    return HORA_OK;
}

hora_status_t hora_control_flush(hora_control_t *control, double timeout) {
    hora_status_t st = HORA_OK;
    for (hora_outgoing_t *out = control->sending; out != NULL && st == HORA_OK; out = out->next)
        st = flush_frame(control, out, timeout);
    return st;
}

/* ---- Receiving ------------------------------------------------------------------------------ */

static hora_status_t link_failed(hora_control_t *control, int rank, hora_status_t status) {
    hora_status_t st = hora_wait_cause(control->comm, rank, "engine, control message");
    if (st != HORA_OK)
        return st;
    return hora_fail(status, "engine, control message from rank %d on host %s: %s", rank,
                     hora_comm_peer(control->comm, rank)->host, hora_status_message(status));
}

hora_status_t hora_control_receive(hora_control_t *control, int *from_p, const uint8_t **buf_p,
                                   size_t *len_p) {
    hora_status_t    st = HORA_IN_PROGRESS;
    hora_incoming_t *in;
    int              i = 0;
    if (control->comm->rank == 0) {
        i = hora_p2p_test_any(control->comm->world, control->posted, control->nincoming,
                              control->next, &st);
    } else if (control->posted[control->next] != NULL) {
        i = control->next;
        st = hora_p2p_test(control->comm->world, control->posted[i]);
    }
    if (st == HORA_IN_PROGRESS)
        return st;
    in = &control->incoming[i];
    control->posted[i] = NULL;
    if (control->comm->rank == 0)
        control->next = i + 1 < control->nincoming ? i + 1 : 0;
    *from_p = in->rank;
    if (st != HORA_OK)
        return link_failed(control, in->rank, st);
    *buf_p = in->buf;
    *len_p = in->xfer.moved;
    return HORA_OK;
}

void hora_control_release(hora_control_t *control, int from) {
    if (control->comm->rank == 0) {
        post(control, from - 1);
        return;
    }
    post(control, control->next);
    control->next ^= 1;
}

void hora_control_forget(hora_control_t *control, int rank) {
    control->left[rank] = true;
    if (control->comm->rank != 0 || rank == 0 || control->posted[rank - 1] == NULL)
        return;
    hora_p2p_cancel(control->comm->world, control->posted[rank - 1]);
    control->posted[rank - 1] = NULL;
}
