/*
 * The mpi transport, moving bytes: send, receive, cancel and progress. See internal.h for how a
 * message travels and who owns buffers. All of it under world->lock; nothing blocks but cancel,
 * which may for up to WITHDRAW_SECONDS.
 */
#include "transport/mpi/internal.h"
#include "util/clock.h"
#include "util/log.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#define BATCH  32 /* ended transfers per look */
#define ROUNDS 8  /* looks per progress, while they find something */

static mpi_packet_t *abandoned; /* MPI may still touch them: kept for ever */

static void fail_op(mpi_transport_t *self, mpi_op_t *op) {
    if (op->kind == OP_BODY_SEND) {
        hora_xfer_finish(op->xfer, self->dead);
    } else if (op->kind == OP_PACKET_SEND || op->kind == OP_PACKET_RECV) {
        op->packet->next = abandoned;
        abandoned = op->packet;
    }
    op->kind = OP_NONE;
}

void hora_mpi_die(mpi_transport_t *self, hora_status_t status, const mpi_link_t *link,
                  const char *text) {
    const hora_peer_t *peer = link != NULL ? &self->base.world->peers[link->base.peer] : NULL;
    if (self->dead != HORA_OK)
        return;
    if (peer != NULL)
        self->dead = hora_fail(status, "mpi: rank %d on host %s: %s", link->base.peer, peer->host,
                               text);
    else
        self->dead = hora_fail(status, "mpi: %s", text);
    for (int slot = 0; slot < self->nops; slot++)
        fail_op(self, &self->ops[slot]);
    for (mpi_link_t *each = self->links; each != NULL; each = each->next)
        hora_match_fail(&each->match, self->dead);
}

/* Remembers what a slot is for. */
static bool set_op(mpi_transport_t *self, int slot, mpi_op_t op) {
    if (slot < 0) {
        hora_mpi_die(self, HORA_ERR_PEER_FAILED, op.link, self->plugin->error());
        return false;
    }
    if (slot >= self->nops) {
        int       nops = slot + 64;
        mpi_op_t *ops = realloc(self->ops, (size_t)nops * sizeof(*ops));
        if (ops == NULL) {
            hora_mpi_die(self, HORA_ERR_NO_MEMORY, op.link, "no memory for a transfer");
            return false;
        }
        memset(ops + self->nops, 0, (size_t)(nops - self->nops) * sizeof(*ops));
        self->ops = ops;
        self->nops = nops;
    }
    self->ops[slot] = op;
    return true;
}

static mpi_packet_t *take_packet(mpi_transport_t *self) {
    mpi_packet_t *packet = self->spare;
    if (packet != NULL)
        self->spare = packet->next;
    else
        packet = malloc(sizeof(*packet));
    return packet;
}

static void give_packet(mpi_transport_t *self, mpi_packet_t *packet) {
    packet->next = self->spare;
    self->spare = packet;
}

static size_t part_after(const mpi_transport_t *self, size_t done, size_t len) {
    return len - done < self->part ? len - done : self->part;
}

/* ---- Sending --------------------------------------------------------------------------------- */

static bool send_packet(mpi_transport_t *self, mpi_link_t *link, mpi_packet_t *packet,
                        size_t body) {
    mpi_op_t op = {.kind = OP_PACKET_SEND, .link = link, .packet = packet};
    int      slot = self->plugin->send(self->group, packet, sizeof(packet->head) + body,
                                       link->mpi_rank, TAG_PACKET);
    if (slot < 0)
        give_packet(self, packet); /* MPI did not take it */
    return set_op(self, slot, op);
}

static void send_part(mpi_transport_t *self, mpi_link_t *link, hora_xfer_t *xfer, int tag) {
    mpi_op_t       op = {.kind = OP_BODY_SEND, .link = link, .xfer = xfer, .tag = tag};
    const uint8_t *from = (const uint8_t *)xfer->buf + xfer->moved;
    op.bytes = part_after(self, xfer->moved, xfer->len);
    if (!set_op(self, self->plugin->send(self->group, from, op.bytes, link->mpi_rank, tag), op))
        hora_xfer_finish(xfer, self->dead);
}

static int next_body_tag(const mpi_transport_t *self, mpi_link_t *link) {
    uint32_t tags = (uint32_t)(self->info.tag_max - TAG_BODY);
    return TAG_BODY + (int)(link->bodies++ % tags);
}

void hora_mpi_send(hora_link_t *base, hora_xfer_t *xfer) {
    mpi_link_t      *link = (mpi_link_t *)base;
    mpi_transport_t *self = (mpi_transport_t *)base->transport;
    mpi_packet_t    *packet = self->dead == HORA_OK ? take_packet(self) : NULL;
    bool             small = xfer->len <= PACKET_BODY;
    xfer->link = base;
    xfer->moved = 0;
    hora_xfer_finish(xfer, self->dead);
    if (self->dead != HORA_OK)
        return;
    if (packet == NULL) {
        hora_xfer_finish(xfer, hora_fail(HORA_ERR_NO_MEMORY, "a message to rank %d", base->peer));
        return;
    }
    packet->head = (mpi_head_t){HEAD_MAGIC, HEAD_MESSAGE, xfer->tag, xfer->len, xfer->sig, 0};
    if (!small)
        packet->head.body_tag = (uint32_t)next_body_tag(self, link);
    else if (xfer->len > 0)
        memcpy(packet->body, xfer->buf, xfer->len);
    if (!send_packet(self, link, packet, small ? xfer->len : 0)) {
        hora_xfer_finish(xfer, self->dead);
    } else if (small) {
        xfer->moved = xfer->len;
        hora_xfer_finish(xfer, HORA_OK);
    } else {
        xfer->status = HORA_IN_PROGRESS;
        send_part(self, link, xfer, (int)packet->head.body_tag);
    }
}

void hora_mpi_send_farewell(mpi_transport_t *self, mpi_link_t *link) {
    mpi_packet_t *packet = take_packet(self);
    if (packet == NULL)
        return; /* the peer waits for it in vain, but not for long */
    packet->head = (mpi_head_t){.magic = HEAD_MAGIC, .kind = HEAD_FAREWELL};
    send_packet(self, link, packet, 0);
}

static void sent_part(mpi_transport_t *self, mpi_op_t op) {
    hora_xfer_t *xfer = op.xfer;
    xfer->moved += op.bytes;
    if (xfer->moved == xfer->len)
        hora_xfer_finish(xfer, HORA_OK);
    else
        send_part(self, op.link, xfer, op.tag);
}

/* ---- Receiving ------------------------------------------------------------------------------- */

void hora_mpi_recv(hora_link_t *base, hora_xfer_t *xfer) {
    mpi_link_t      *link = (mpi_link_t *)base;
    mpi_transport_t *self = (mpi_transport_t *)base->transport;
    xfer->link = base;
    hora_match_post(&link->match, xfer);
    if (self->dead != HORA_OK && xfer->status == HORA_IN_PROGRESS) {
        hora_match_cancel(&link->match, xfer);
        hora_xfer_finish(xfer, self->dead);
    }
}

static void post_listen(mpi_transport_t *self, mpi_link_t *link, mpi_packet_t *packet) {
    mpi_op_t op = {.kind = OP_PACKET_RECV, .link = link, .packet = packet};
    int slot = self->plugin->recv(self->group, packet, PACKET_BYTES, link->mpi_rank, TAG_PACKET);
    set_op(self, slot, op);
}

void hora_mpi_listen(mpi_transport_t *self, mpi_link_t *link) {
    mpi_packet_t *packet = take_packet(self);
    if (packet == NULL)
        hora_mpi_die(self, HORA_ERR_NO_MEMORY, link, "no memory for a packet");
    else
        post_listen(self, link, packet);
}

/* The inbound message is gone when this dies. */
static void recv_part(mpi_transport_t *self, mpi_link_t *link, hora_inbound_t *inbound, int tag) {
    mpi_op_t op = {.kind = OP_BODY_RECV, .link = link, .inbound = inbound, .tag = tag};
    if (inbound->body == NULL) {
        hora_mpi_die(self, HORA_ERR_NO_MEMORY, link, "no memory for a message that was withdrawn");
        return;
    }
    op.to = inbound->body + inbound->filled;
    op.bytes = part_after(self, inbound->filled, inbound->len);
    set_op(self, self->plugin->recv(self->group, op.to, op.bytes, link->mpi_rank, tag), op);
}

/* False: the packet cannot come from hora on this MPI job. */
static bool is_sound(const mpi_transport_t *self, const mpi_head_t *head, size_t bytes) {
    if (bytes < sizeof(*head) || head->magic != HEAD_MAGIC)
        return false;
    if (head->kind == HEAD_FAREWELL)
        return bytes == sizeof(*head);
    if (head->kind != HEAD_MESSAGE)
        return false;
    if (head->body_tag == 0)
        return head->len == bytes - sizeof(*head);
    return head->len > PACKET_BODY && head->len <= SIZE_MAX / 2 && bytes == sizeof(*head) &&
           head->body_tag >= TAG_BODY && head->body_tag < (uint32_t)self->info.tag_max;
}

static void take_message(mpi_transport_t *self, mpi_link_t *link, const mpi_packet_t *packet) {
    const mpi_head_t *head = &packet->head;
    hora_inbound_t   *inbound;
    hora_status_t     st;
    st = hora_match_arrive(&link->match, head->tag, head->sig, (size_t)head->len, &inbound);
    if (st != HORA_OK) {
        hora_mpi_die(self, HORA_ERR_NO_MEMORY, link, "no memory for a message");
        return;
    }
    if (head->body_tag != 0) {
        recv_part(self, link, inbound, (int)head->body_tag);
        return;
    }
    if (inbound->len > 0)
        memcpy(inbound->body, packet->body, inbound->len);
    inbound->filled = inbound->len;
    hora_match_arrived(&link->match, inbound);
}

static void took_packet(mpi_transport_t *self, mpi_op_t op, const hora_mpi_done_t *done) {
    mpi_link_t *link = op.link;
    if (link == NULL || done->cancelled) {
        give_packet(self, op.packet);
        return;
    }
    if (!is_sound(self, &op.packet->head, done->bytes)) {
        give_packet(self, op.packet);
        hora_mpi_die(self, HORA_ERR_PROTOCOL, link, "malformed message");
        return;
    }
    if (op.packet->head.kind == HEAD_FAREWELL) {
        link->farewell = true;
        give_packet(self, op.packet);
        return;
    }
    take_message(self, link, op.packet);
    if (self->dead == HORA_OK)
        post_listen(self, link, op.packet);
    else
        give_packet(self, op.packet);
}

static void took_part(mpi_transport_t *self, mpi_op_t op, const hora_mpi_done_t *done) {
    hora_inbound_t *inbound = op.inbound;
    if (!done->cancelled && done->bytes != op.bytes) {
        hora_mpi_die(self, HORA_ERR_PROTOCOL, op.link, "a message's body has the wrong length");
        return;
    }
    if (done->cancelled && op.link->closing) {
        self->parted = true;
        return;
    }
    if (!done->cancelled) {
        uint8_t *want = inbound->body + inbound->filled;
        if (want != op.to)
            memcpy(want, op.to, op.bytes);
        inbound->filled += op.bytes;
    }
    if (inbound->filled == inbound->len) {
        hora_match_arrived(&op.link->match, inbound);
        return;
    }
    if (op.withdrawn && inbound->xfer != NULL)
        hora_match_cancel(&op.link->match, inbound->xfer); /* now the rest goes to own memory */
    recv_part(self, op.link, inbound, op.tag);
}

/* ---- Progress and cancel --------------------------------------------------------------------- */

static void ended(mpi_transport_t *self, mpi_op_t op, const hora_mpi_done_t *done) {
    if (done->failed)
        hora_mpi_die(self, HORA_ERR_PEER_FAILED, op.link, self->plugin->error());
    if (self->dead != HORA_OK) {
        fail_op(self, &op);
        return;
    }
    switch (op.kind) {
    case OP_PACKET_SEND: give_packet(self, op.packet); break;
    case OP_PACKET_RECV: took_packet(self, op, done); break;
    case OP_BODY_SEND: sent_part(self, op); break;
    case OP_BODY_RECV: took_part(self, op, done); break;
    case OP_NONE: break;
    }
}

/* Slots that test has reported are used again by what starts while we handle the first of them, so
 * all are put aside before that. */
static unsigned look(mpi_transport_t *self) {
    hora_mpi_done_t done[BATCH];
    mpi_op_t        ops[BATCH];
    int             n = self->plugin->test(self->group, done, BATCH);
    if (n < 0) {
        hora_mpi_die(self, HORA_ERR_PEER_FAILED, NULL, self->plugin->error());
        return 0;
    }
    for (int i = 0; i < n; i++) {
        ops[i] = self->ops[done[i].slot];
        self->ops[done[i].slot].kind = OP_NONE;
    }
    for (int i = 0; i < n; i++)
        ended(self, ops[i], &done[i]);
    return (unsigned)n;
}

unsigned hora_mpi_progress(hora_transport_t *transport, const hora_xfer_t *awaited) {
    (void)awaited;
    mpi_transport_t *self = (mpi_transport_t *)transport;
    unsigned         events = 0, n = 1;
    for (int round = 0; round < ROUNDS && n > 0 && self->dead == HORA_OK; round++)
        events += n = look(self);
    return events;
}

static bool in_use(const mpi_transport_t *self, const mpi_link_t *link, unsigned mask) {
    for (int slot = 0; slot < self->nops; slot++) {
        const mpi_op_t *op = &self->ops[slot];
        if (op->kind != OP_NONE && (mask & (1u << op->kind)) != 0 &&
            (link == NULL || op->link == link))
            return true;
    }
    return false;
}

bool hora_mpi_settle(mpi_transport_t *self, const mpi_link_t *link, unsigned mask, double seconds) {
    uint64_t end = hora_clock_ns() + hora_clock_from_seconds(seconds);
    while (self->dead == HORA_OK && in_use(self, link, mask)) {
        if (hora_mpi_progress(&self->base, NULL) > 0)
            continue;
        if (hora_clock_ns() > end)
            return false;
        sched_yield();
    }
    return self->dead == HORA_OK;
}

/* The slot in which MPI holds the transfer's buffer, or -1. */
static int slot_of(const mpi_transport_t *self, const hora_xfer_t *xfer) {
    for (int slot = 0; slot < self->nops; slot++) {
        const mpi_op_t *op = &self->ops[slot];
        if (op->kind == OP_BODY_SEND && op->xfer == xfer)
            return slot;
        if (op->kind == OP_BODY_RECV && op->inbound->xfer == xfer &&
            op->to == (uint8_t *)xfer->buf + op->inbound->filled)
            return slot;
    }
    return -1;
}

static void withdraw(mpi_transport_t *self, hora_xfer_t *xfer, int slot) {
    uint64_t    end = hora_clock_ns() + hora_clock_from_seconds(WITHDRAW_SECONDS);
    mpi_link_t *link = self->ops[slot].link;
    if (self->ops[slot].kind == OP_BODY_RECV) {
        self->ops[slot].withdrawn = true;
        if (self->plugin->cancel(self->group, slot) != 0)
            hora_mpi_die(self, HORA_ERR_PEER_FAILED, link, self->plugin->error());
    }
    while (self->dead == HORA_OK && slot_of(self, xfer) >= 0) {
        if (hora_mpi_progress(&self->base, NULL) > 0)
            continue;
        if (hora_clock_ns() > end)
            hora_mpi_die(self, HORA_ERR_PEER_FAILED, link,
                         "a transfer could not be withdrawn, so MPI is not used any more");
        sched_yield();
    }
}

void hora_mpi_cancel(hora_link_t *base, hora_xfer_t *xfer) {
    mpi_link_t      *link = (mpi_link_t *)base;
    mpi_transport_t *self = (mpi_transport_t *)base->transport;
    int              slot = self->dead == HORA_OK ? slot_of(self, xfer) : -1;
    bool             sends = slot >= 0 && self->ops[slot].kind == OP_BODY_SEND;
    if (slot >= 0)
        withdraw(self, xfer, slot);
    else if (xfer->status == HORA_IN_PROGRESS)
        hora_match_cancel(&link->match, xfer);
    if (sends && xfer->status == HORA_IN_PROGRESS)
        hora_xfer_finish(xfer, HORA_ERR_ABORTED);
}
