/*
 * Receiving: frames come in over any of a link's connections and are put together in the receivers'
 * buffers. Under world->lock.
 *
 * Small messages are read together through a connection's buffer; the body of a long one goes from
 * the kernel to where it belongs. A connection whose next frame cannot be taken yet is stalled: it
 * keeps the header and is not read, so TCP holds the sender back. There are two reasons:
 *   - an earlier message's head is still to come on another connection;
 *   - the message is long and nobody receives from this rank now. That spares a copy, and memory,
 *     when a receive is about to be posted; if none is for a while (HORA_TCP_PAUSE_NS), the message
 *     is taken into own memory, so that two ranks which both send first do not wait for ever.
 */
#include "transport/tcp/tcp.h"

#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#define DRAIN_BYTES ((size_t)64 << 20) /* more than a socket holds */

typedef enum verdict {
    GO_ON,  /* there may be more at once */
    STALL,  /* the next frame must wait */
    SHORT,  /* the kernel gave less than it was asked for: there is hardly more now */
    EMPTY,  /* all used up, or nothing there */
    CLOSED, /* by the peer, at the end */
    BROKEN, /* errno says how */
    FAILED  /* and dealt with: the connection is gone */
} verdict_t;

/* ---- Which message does a frame belong to? ---- */

static verdict_t protocol_error(hora_tcp_in_t *in, const char *what) {
    hora_tcp_link_t *link = in->link;
    char             text[sizeof(link->text)];
    snprintf(text, sizeof(text), "malformed message from rank %d on host %s: %s", link->base.peer,
             link->base.transport->world->peers[link->base.peer].host, what);
    hora_tcp_in_close(in); /* not to be drained */
    hora_tcp_link_fail(link, HORA_ERR_PROTOCOL, text);
    return FAILED;
}

/* Over a connection of my own the peer says hello, too, before anything else. */
static verdict_t greet(hora_tcp_in_t *in) {
    hora_tcp_hello_t hello;
    if (hora_tcp_hello_fault(hora_tcp_of(in->link), in->buf + in->begin, &hello) != NULL ||
        hello.rank != (uint32_t)in->link->base.peer)
        return protocol_error(in, "no hello where one belongs");
    in->begin += HORA_TCP_HELLO_SIZE;
    in->greeted = true;
    return GO_ON;
}

static bool is_wanted(const hora_tcp_link_t *link, uint64_t tag) {
    for (const hora_xfer_t *x = link->match.posted; x != NULL; x = x->next)
        if (x->tag == tag)
            return true;
    return false;
}

/* Counts anew the bytes that all links keep without a receive. */
static void count_unexpected(hora_tcp_t *self) {
    self->unexpected = 0;
    for (int i = 0; i < self->base.world->size; i++) {
        const hora_inbound_t *in = self->links[i] != NULL ? self->links[i]->match.inbound : NULL;
        for (; in != NULL; in = in->next)
            if (in->kept != NULL)
                self->unexpected += in->len;
    }
}

/* Is there no room for a message that nobody asked for? */
static bool is_full(hora_tcp_t *self, uint64_t len) {
    if (len <= self->unexpected_max && self->unexpected <= self->unexpected_max - len)
        return false;
    count_unexpected(self);
    return len > self->unexpected_max || self->unexpected > self->unexpected_max - len;
}

/* Decides about a message without a receive; GO_ON: into own memory. */
static verdict_t unexpected_head(hora_tcp_in_t *in, const hora_tcp_header_t *h) {
    hora_tcp_link_t *link = in->link;
    hora_tcp_t      *self = hora_tcp_of(link);
    if (h->total > HORA_TCP_PAUSE_MIN && link->match.posted == NULL && !link->force) {
        if (link->paused == 0)
            link->paused = hora_clock_ns();
        hora_tcp_timer_want(self, HORA_TCP_PAUSE_NS);
        return STALL;
    }
    if (!is_full(self, h->total)) {
        self->unexpected += h->total;
        return GO_ON;
    }
    if (link->match.posted == NULL) {
        link->paused = 0; /* until a receive is posted, however long that takes */
        link->force = false;
        return STALL;
    }
    /* Another message is waited for that may be behind this one. */
    char text[sizeof(link->text)];
    snprintf(text, sizeof(text),
             "rank %d on host %s sent a message of %llu bytes that nobody receives, and %zu bytes "
             "of such messages are kept already",
             link->base.peer, self->base.world->peers[link->base.peer].host,
             (unsigned long long)h->total, self->unexpected);
    hora_tcp_in_close(in);
    hora_tcp_link_fail(link, HORA_ERR_NO_MEMORY, text);
    return FAILED;
}

static verdict_t no_memory(hora_tcp_in_t *in) {
    char text[sizeof(in->link->text)];
    snprintf(text, sizeof(text), "no memory for a message from rank %d", in->link->base.peer);
    hora_tcp_link_t *link = in->link;
    hora_tcp_in_close(in);
    hora_tcp_link_fail(link, HORA_ERR_NO_MEMORY, text);
    return FAILED;
}

/* The first frame of the message whose turn it is. */
static verdict_t head(hora_tcp_in_t *in, const hora_tcp_header_t *h) {
    hora_tcp_link_t *link = in->link;
    hora_tcp_part_t *part = NULL;
    bool             wanted = is_wanted(link, h->tag);
    if (!wanted) {
        verdict_t verdict = unexpected_head(in, h);
        if (verdict != GO_ON)
            return verdict;
    }
    if (h->len < h->total && (part = malloc(sizeof(*part))) == NULL)
        return no_memory(in);
    if (hora_match_arrive(&link->match, h->tag, h->sig, (size_t)h->total, &in->inbound) !=
        HORA_OK) {
        free(part);
        return no_memory(in);
    }
    if (wanted && in->inbound->xfer == NULL)
        in->inbound->body = NULL; /* a mismatch: skip it, however long it is */
    link->recv_number++;
    link->paused = 0;
    link->force = false;
    link->resume |= link->stalled > 0;
    if (part != NULL) {
        *part = (hora_tcp_part_t){link->parts, h->number, in->inbound, h->len};
        link->parts = part;
    }
    return GO_ON;
}

/* A further frame of a message that has begun. */
static verdict_t further(hora_tcp_in_t *in, const hora_tcp_header_t *h) {
    hora_tcp_part_t *part = in->link->parts;
    while (part != NULL && part->number != h->number)
        part = part->next;
    if (part == NULL || part->inbound->tag != h->tag || part->inbound->len != h->total ||
        h->len > part->inbound->len - part->claimed)
        return protocol_error(in, "a piece of no known message");
    part->claimed += h->len;
    in->inbound = part->inbound;
    return GO_ON;
}

static void part_done(hora_tcp_link_t *link, const hora_inbound_t *inbound) {
    hora_tcp_part_t **here = &link->parts;
    while (*here != NULL && (*here)->inbound != inbound)
        here = &(*here)->next;
    if (*here != NULL) {
        hora_tcp_part_t *part = *here;
        *here = part->next;
        free(part);
    }
}

static void note_core(hora_tcp_link_t *link, uint32_t core) {
    hora_peer_t *peer = &link->base.transport->world->peers[link->base.peer];
    if (peer->local >= 0 && core != 0)
        atomic_store_explicit(&peer->core, (int)core, memory_order_relaxed);
}

static verdict_t begin_frame(hora_tcp_in_t *in) {
    hora_tcp_header_t h;
    verdict_t         verdict;
    if (!hora_tcp_header_decode(in->buf + in->begin, &h))
        return protocol_error(in, "impossible header");
    if (h.number < in->link->recv_number)
        verdict = further(in, &h);
    else if (h.number == in->link->recv_number)
        verdict = head(in, &h);
    else if (in->link->in_count > 1 || in->link->in[HORA_TCP_BACK] != NULL)
        verdict = STALL;
    else
        verdict = protocol_error(in, "a message is missing");
    if (verdict != GO_ON)
        return verdict;
    note_core(in->link, h.core);
    in->begin += HORA_TCP_HEADER_SIZE;
    in->offset = (size_t)h.offset;
    in->left = h.len;
    in->more = h.len < h.total && in->inbound->len - in->inbound->filled > h.len;
    return GO_ON;
}

/* ---- Bytes ---- */

/* n bytes of the frame are in place. */
static void advance(hora_tcp_in_t *in, size_t n) {
    hora_inbound_t *inbound = in->inbound;
    in->offset += n;
    in->left -= n;
    inbound->filled += n;
    if (inbound->xfer != NULL && inbound->body == inbound->xfer->buf)
        inbound->xfer->moved = inbound->filled;
    if (in->left > 0)
        return;
    in->inbound = NULL;
    if (inbound->filled == inbound->len) {
        if (in->link->parts != NULL)
            part_done(in->link, inbound);
        hora_match_arrived(&in->link->match, inbound);
    }
}

/* Uses up what is in the buffer; EMPTY: more is needed. */
static verdict_t use_buffer(hora_tcp_in_t *in) {
    for (;;) {
        if (in->inbound == NULL) {
            size_t need = in->greeted ? HORA_TCP_HEADER_SIZE : HORA_TCP_HELLO_SIZE;
            if (in->end - in->begin < need)
                return EMPTY;
            verdict_t verdict = in->greeted ? begin_frame(in) : greet(in);
            if (verdict == GO_ON && in->inbound == NULL)
                continue;
            if (verdict != GO_ON)
                return verdict;
        }
        size_t have = in->end - in->begin;
        size_t n = have < in->left ? have : in->left;
        if (n > 0 && in->inbound->body != NULL)
            memcpy(in->inbound->body + in->offset, in->buf + in->begin, n);
        in->begin += n;
        advance(in, n);
        if (in->inbound != NULL)
            return EMPTY;
    }
}

/* Between frames: is a long message the next that is waited for? */
static bool expects_long(const hora_tcp_in_t *in) {
    const hora_xfer_t *x = in->link->match.posted;
    while (x != NULL && (x->flags & HORA_XFER_ANY_LENGTH))
        x = x->next;
    return x != NULL && x->len > HORA_TCP_SHORT && in->inbound == NULL && in->greeted;
}

/* How much to read beyond the frame that is arriving. The buffer costs a copy, so where long frames
 * follow one another it is offered little more than the next header, and before the first one no more
 * than its header. */
static size_t lookahead(const hora_tcp_in_t *in, size_t direct) {
    if (direct == 0 && in->end < HORA_TCP_HEADER_SIZE && expects_long(in))
        return HORA_TCP_HEADER_SIZE - in->end;
    if (direct == 0)
        return HORA_TCP_BUFFER - in->end;
    if (direct < in->left)
        return 0;
    return in->more ? HORA_TCP_HEADER_SIZE
                    : in->inbound->len > HORA_TCP_PAUSE_MIN ? HORA_TCP_LOOKAHEAD : HORA_TCP_BUFFER;
}

/* One read: the rest of the frame to its place, what follows to the buffer. */
static verdict_t fill(hora_tcp_in_t *in, size_t *budget) {
    struct iovec  pieces[2];
    struct msghdr msg = {.msg_iov = pieces};
    size_t        direct = in->inbound != NULL && in->inbound->body != NULL ? in->left : 0;
    memmove(in->buf, in->buf + in->begin, in->end - in->begin);
    in->end -= in->begin;
    in->begin = 0;
    if (direct > HORA_TCP_BUDGET)
        direct = HORA_TCP_BUDGET;
    size_t room = lookahead(in, direct);
    if (direct > 0)
        pieces[msg.msg_iovlen++] = (struct iovec){in->inbound->body + in->offset, direct};
    if (room > 0)
        pieces[msg.msg_iovlen++] = (struct iovec){in->buf + in->end, room};
    /* Short messages come here with one piece; recv copies no descriptions. */
    ssize_t got = direct == 0 ? recv(in->conn->source.fd, in->buf + in->end, room, MSG_DONTWAIT)
                              : recvmsg(in->conn->source.fd, &msg, MSG_DONTWAIT);
    if (got < 0)
        return errno == EINTR ? GO_ON : errno == EAGAIN ? EMPTY : BROKEN;
    if (got == 0)
        return CLOSED;
    size_t n = (size_t)got;
    *budget -= n < *budget ? n : *budget;
    in->end += n > direct ? n - direct : 0;
    if (direct > 0)
        advance(in, n < direct ? n : direct);
    return n < direct + room ? SHORT : GO_ON;
}

/* Reads and uses until there is nothing more now, or the budget is spent. `whole`: on to the very
 * end, because nobody will tell when there is more. */
static verdict_t in_run(hora_tcp_in_t *in, size_t *budget, bool whole) {
    verdict_t filled = GO_ON;
    for (;;) {
        verdict_t used = use_buffer(in);
        if (used != EMPTY || *budget == 0 || (filled == SHORT && !whole))
            return used;
        filled = fill(in, budget);
        if (filled != GO_ON && filled != SHORT)
            return filled;
    }
}

/* ---- Life of a connection ---- */

hora_tcp_in_t *hora_tcp_in_new(hora_tcp_link_t *link, hora_tcp_conn_t *conn, unsigned index) {
    hora_tcp_in_t *in = malloc(sizeof(*in));
    if (in == NULL)
        return NULL;
    memset(in, 0, offsetof(hora_tcp_in_t, buf));
    in->conn = conn;
    in->link = link;
    in->index = index;
    in->greeted = index != HORA_TCP_BACK;
    link->in[index] = in;
    link->in_open++;
    link->ended = 0;
    conn->in = in;
    conn->reads = true;
    return in;
}

static void set_stalled(hora_tcp_in_t *in, bool stalled) {
    if (in->stalled == stalled)
        return;
    in->stalled = stalled;
    in->link->stalled += stalled ? 1u : -1u;
    hora_tcp_conn_watch(hora_tcp_of(in->link), in->conn);
}

/* The peer closed it (err 0) or it broke. A reset between messages is no more than an end: it is what
 * comes of sending to a rank that has left, and what that one sent over others still counts. */
static void in_ended(hora_tcp_in_t *in, int err) {
    hora_tcp_link_t *link = in->link;
    bool             broke = err != 0 && err != ECONNRESET && err != EPIPE;
    bool             amid = broke || in->inbound != NULL || in->end > in->begin;
    char             text[sizeof(link->text)];
    hora_tcp_link_lost_text(link, err, text, sizeof(text));
    hora_tcp_in_close(in);
    if (link->dying)
        return;
    if (amid) {
        hora_tcp_link_fail(link, HORA_ERR_PEER_FAILED, text);
        return;
    }
    hora_tcp_link_ended(link);
}

/* Runs one connection and does what came out of it. True: bytes were read. */
static bool service(hora_tcp_in_t *in, size_t budget, bool whole) {
    int       err;
    size_t    left = budget;
    verdict_t verdict = in_run(in, &left, whole);
    err = errno;
    if (left < budget && in->conn->reads)
        in->link->latest = in;
    if (verdict == STALL)
        set_stalled(in, true);
    else if (verdict == CLOSED)
        in_ended(in, 0);
    else if (verdict == BROKEN)
        in_ended(in, err);
    return left < budget;
}

void hora_tcp_resume(hora_tcp_link_t *link) {
    do {
        link->resume = false;
        for (int i = 0; i < HORA_TCP_WAYS; i++) {
            hora_tcp_in_t *in = link->in[i];
            if (in == NULL || !in->stalled)
                continue;
            set_stalled(in, false);
            service(in, HORA_TCP_BUDGET, false);
        }
    } while (link->resume && link->stalled > 0);
}

void hora_tcp_drain(hora_tcp_link_t *link) {
    for (int i = 0; i < HORA_TCP_WAYS; i++)
        if (link->in[i] != NULL && !link->in[i]->stalled)
            service(link->in[i], DRAIN_BYTES, true);
    if (link->stalled > 0)
        hora_tcp_resume(link);
}

/* A stalled connection has ended, both ways: what is in it must not be lost. */
static void stalled_ended(hora_tcp_in_t *in) {
    hora_tcp_link_t *link = in->link;
    int              err = 0;
    socklen_t        len = sizeof(err);
    getsockopt(in->conn->source.fd, SOL_SOCKET, SO_ERROR, &err, &len);
    if (err == 0) {
        hora_tcp_unwatch(hora_tcp_of(link), &in->conn->source); /* it can wait until it is resumed */
        return;
    }
    link->force = true;
    hora_tcp_resume(link);
    if (in->conn->reads && in->stalled)
        in_ended(in, err);
}

void hora_tcp_in_event(hora_tcp_in_t *in, uint32_t events) {
    hora_tcp_link_t *link = in->link;
    if (in->stalled && (events & (EPOLLERR | EPOLLHUP))) {
        stalled_ended(in);
        return;
    }
    if (in->stalled)
        return;
    service(in, HORA_TCP_BUDGET, false);
    if (link->resume && link->stalled > 0)
        hora_tcp_resume(link);
}

bool hora_tcp_look(hora_tcp_link_t *link) {
    bool came = service(link->latest, HORA_TCP_BUDGET, false);
    if (link->resume && link->stalled > 0)
        hora_tcp_resume(link);
    return came;
}
