/*
 * Sending: messages become frames, frames are written to whichever connection takes them. Under
 * world->lock.
 *
 * With one connection a message is one frame. With several, long messages are cut into chunks that
 * any connection takes when it has room, so a slow connection gets less to do rather than holding
 * up the others. Small messages share a system call when several wait. A message gets its number
 * when its first frame is taken; messages are taken in order.
 */
#include "transport/tcp/tcp.h"

#include "transport/wait.h"
#include "util/clock.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define SHORT_SEGMENTS 3 /* longest message that goes back, in segments; see HORA_TCP_SHORT */

/* ---- Send records ---- */

static hora_tcp_send_t *send_new(hora_tcp_link_t *link, hora_xfer_t *xfer) {
    hora_tcp_t      *self = hora_tcp_of(link);
    hora_tcp_send_t *send = self->spare;
    if (send != NULL)
        self->spare = send->next;
    else if ((send = malloc(sizeof(*send))) == NULL)
        return NULL;
    *send = (hora_tcp_send_t){.prev = link->last_send,
                              .xfer = xfer,
                              .buf = xfer->buf,
                              .len = xfer->len,
                              .tag = xfer->tag,
                              .sig = xfer->sig};
    if (link->last_send != NULL)
        link->last_send->next = send;
    else
        link->sends = send;
    link->last_send = send;
    if (link->unassigned == NULL)
        link->unassigned = send;
    return send;
}

void hora_tcp_send_free(hora_tcp_link_t *link, hora_tcp_send_t *send) {
    hora_tcp_t *self = hora_tcp_of(link);
    if (link->unassigned == send)
        link->unassigned = send->next;
    if (send->prev != NULL)
        send->prev->next = send->next;
    else
        link->sends = send->next;
    if (send->next != NULL)
        send->next->prev = send->prev;
    else
        link->last_send = send->prev;
    free(send->own);
    send->next = self->spare;
    self->spare = send;
}

/* ---- Frames ---- */

/* For the receiver, if it is on this host, so that we do not share a core, or it yields to me if we have
 * to; 0: it does not matter. */
static uint32_t core_here(const hora_tcp_link_t *link) {
    hora_world_t *world = link->base.transport->world;
    bool          alone = !world->has_cores && world->crowd_cores == 0;
    if (alone || world->peers[link->base.peer].local < 0)
        return 0;
    hora_apart_note(world);
    return (uint32_t)atomic_load_explicit(&world->bell->core, memory_order_relaxed);
}

/* Short messages go back over the peer's connection, where there is that way. */
static bool goes_back(const hora_tcp_link_t *link, const hora_tcp_send_t *send) {
    return link->out[HORA_TCP_BACK] != NULL && send->len <= link->back_max;
}

static bool may_take(const hora_tcp_out_t *out) {
    const hora_tcp_send_t *send = out->link->unassigned;
    return send != NULL && goes_back(out->link, send) == (out->index == HORA_TCP_BACK);
}

/* Takes the next frame of the oldest message that has one; false: there is none for this connection. */
static bool frame_take(hora_tcp_link_t *link, hora_tcp_out_t *out) {
    hora_tcp_send_t *send = link->unassigned;
    if (!may_take(out))
        return false;
    size_t            left = send->len - send->assigned;
    size_t            most = link->out_count > 1 ? HORA_TCP_CHUNK : HORA_TCP_FRAME_MAX;
    hora_tcp_frame_t *frame = &out->frames[(out->first + out->count++) % HORA_TCP_BATCH];
    if (!send->begun)
        send->number = link->send_number++;
    send->begun = true;
    frame->send = send;
    frame->offset = send->assigned;
    frame->len = (uint32_t)(left < most ? left : most);
    hora_tcp_header_t header = {send->tag, send->number, send->len, frame->offset, frame->len,
                                send->sig, core_here(link)};
    hora_tcp_header_encode(&header, frame->header);
    send->frames++;
    send->assigned += frame->len;
    if (send->assigned == send->len) {
        send->all = true;
        link->unassigned = send->next;
    }
    return true;
}

/* Fills the batch of a connection: one long frame, or several short ones. */
static void frames_take(hora_tcp_out_t *out) {
    size_t bytes = 0;
    for (unsigned i = 0; i < out->count; i++)
        bytes += out->frames[(out->first + i) % HORA_TCP_BATCH].len;
    while (out->count < HORA_TCP_BATCH && bytes < HORA_TCP_BATCH_BYTES) {
        if (!frame_take(out->link, out))
            return;
        bytes += out->frames[(out->first + out->count - 1) % HORA_TCP_BATCH].len;
    }
}

/* Where the rest of a frame is after its first `skip` bytes. */
static void *frame_bytes(const hora_tcp_frame_t *frame, size_t skip) {
    return (void *)(frame->send->buf + (frame->offset + skip - frame->send->base));
}

/* Describes what is left of the batch; returns its number of pieces. */
static int batch_pieces(hora_tcp_out_t *out, struct iovec *pieces) {
    size_t skip = out->sent;
    int    n = 0;
    for (unsigned i = 0; i < out->count; i++) {
        hora_tcp_frame_t *frame = &out->frames[(out->first + i) % HORA_TCP_BATCH];
        if (skip < HORA_TCP_HEADER_SIZE)
            pieces[n++] = (struct iovec){frame->header + skip, HORA_TCP_HEADER_SIZE - skip};
        skip = skip > HORA_TCP_HEADER_SIZE ? skip - HORA_TCP_HEADER_SIZE : 0;
        if (frame->len > 0)
            pieces[n++] = (struct iovec){frame_bytes(frame, skip), frame->len - skip};
        skip = 0;
    }
    return n;
}

static void frame_written(hora_tcp_link_t *link, hora_tcp_frame_t *frame) {
    hora_tcp_send_t *send = frame->send;
    hora_xfer_t     *xfer = send->xfer;
    send->frames--;
    if (xfer != NULL)
        xfer->moved += frame->len;
    if (!send->all || send->frames > 0)
        return;
    hora_tcp_send_free(link, send);
    if (xfer != NULL) {
        xfer->moved = xfer->len;
        xfer->priv = NULL;
        hora_xfer_finish(xfer, HORA_OK);
    }
}

static void batch_advance(hora_tcp_out_t *out, size_t n) {
    out->sent += n;
    while (out->count > 0) {
        hora_tcp_frame_t *frame = &out->frames[out->first];
        size_t            size = HORA_TCP_HEADER_SIZE + (size_t)frame->len;
        if (out->sent < size)
            return;
        out->sent -= size;
        out->first = (out->first + 1) % HORA_TCP_BATCH;
        out->count--;
        frame_written(out->link, frame);
    }
}

/* ---- Connections ---- */

static bool set_blocked(hora_tcp_out_t *out, bool blocked) {
    hora_tcp_t *self = hora_tcp_of(out->link);
    out->blocked = blocked;
    if (blocked)
        hora_tcp_timer_want(self, HORA_TCP_TICK_NS);
    return hora_tcp_conn_watch(self, out->conn) == HORA_OK;
}

void hora_tcp_out_failed(hora_tcp_out_t *out, int err) {
    hora_tcp_link_t *link = out->link;
    hora_tcp_t      *self = hora_tcp_of(link);
    char             text[sizeof(link->text)], address[HORA_TCP_TEXT_MAX];
    int              port;
    hora_tcp_link_lost_text(link, err, text, sizeof(text));
    if (out->connecting && err != 0) {
        hora_tcp_address_text(&link->address.sa, address, &port);
        snprintf(text, sizeof(text),
                 "cannot connect to rank %d on host %s at %s port %d from interface %s (%s); if it "
                 "is alive, open its ports in the firewall or choose another network with "
                 "HORA_INTERFACE",
                 link->base.peer, self->base.world->peers[link->base.peer].host, address, port,
                 self->interface.name, strerror(err));
    }
    hora_tcp_link_fail_sends(link, HORA_ERR_PEER_FAILED, text);
}

static void make_hello(hora_tcp_out_t *out) {
    const hora_tcp_link_t *link = out->link;
    const hora_world_t    *world = link->base.transport->world;
    bool                   back = out->index == HORA_TCP_BACK;
    hora_tcp_hello_t       hello = {HORA_TCP_VERSION, (uint32_t)world->rank, (uint32_t)world->size,
                                    back ? 0 : out->index,
                                    back ? 1 : hora_tcp_of(link)->connections, {0}};
    memcpy(hello.token, link->address.token, sizeof(hello.token));
    hora_tcp_hello_encode(&hello, out->hello);
}

/* The connection stands, or writes again: the hello goes first. */
static bool out_greet(hora_tcp_out_t *out) {
    int       err = 0;
    socklen_t len = sizeof(err);
    if (out->hello_sent == 0) {
        out->opened = hora_clock_ns();
        make_hello(out);
    }
    if (getsockopt(out->conn->source.fd, SOL_SOCKET, SO_ERROR, &err, &len) != 0 || err != 0) {
        hora_tcp_out_failed(out, err != 0 ? err : errno);
        return false;
    }
    ssize_t n = send(out->conn->source.fd, out->hello + out->hello_sent,
                     HORA_TCP_HELLO_SIZE - out->hello_sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN && errno != EINTR) {
        hora_tcp_out_failed(out, errno);
        return false;
    }
    out->hello_sent += n > 0 ? (size_t)n : 0;
    out->connecting = out->hello_sent < HORA_TCP_HELLO_SIZE;
    return true;
}

/* Writes until there is nothing left, no room, or enough for one turn. False: it failed, and the
 * connection is gone. */
static bool out_run(hora_tcp_out_t *out) {
    struct iovec pieces[2 * HORA_TCP_BATCH];
    size_t       written = 0;
    if (out->hello_sent < HORA_TCP_HELLO_SIZE && may_take(out) && !out_greet(out))
        return false;
    while (!out->connecting) {
        frames_take(out);
        if (out->count == 0 || written >= HORA_TCP_BUDGET)
            break;
        struct msghdr msg = {.msg_iov = pieces, .msg_iovlen = (size_t)batch_pieces(out, pieces)};
        ssize_t       n = sendmsg(out->conn->source.fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            hora_tcp_out_failed(out, errno);
            return false;
        }
        written += (size_t)n;
        batch_advance(out, (size_t)n);
    }
    bool waits = out->count > 0 || out->connecting;
    if (out->blocked != waits)
        set_blocked(out, waits);
    return true;
}

void hora_tcp_push(hora_tcp_link_t *link) {
    const hora_tcp_send_t *before;
    do {
        before = link->unassigned;
        for (int i = 0; i < HORA_TCP_WAYS && link->unassigned != NULL; i++)
            if (link->out[i] != NULL && !link->out[i]->blocked && !out_run(link->out[i]))
                return;
    } while (link->unassigned != NULL && link->unassigned != before);
}

/* Nobody sends anything this way: it can only be the end. */
static void out_ended(hora_tcp_out_t *out) {
    char    byte, text[sizeof(out->link->text)];
    ssize_t n = recv(out->conn->source.fd, &byte, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        hora_tcp_out_failed(out, n < 0 ? errno : 0);
        return;
    }
    snprintf(text, sizeof(text), "rank %d on host %s sent bytes where none belong",
             out->link->base.peer,
             out->link->base.transport->world->peers[out->link->base.peer].host);
    hora_tcp_link_fail(out->link, HORA_ERR_PROTOCOL, text);
}

void hora_tcp_out_event(hora_tcp_out_t *out, uint32_t events) {
    if (out->connecting && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) && !out_greet(out))
        return;
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) && !out->connecting &&
        !out->conn->reads) {
        out_ended(out);
        if (!out->conn->writes)
            return;
    }
    if ((events & EPOLLOUT) && !out->connecting && out_run(out))
        hora_tcp_push(out->link);
}

/* This rank cannot make a connection. */
static void out_impossible(hora_tcp_link_t *link, hora_status_t status, int err) {
    hora_tcp_t *self = hora_tcp_of(link);
    char        text[sizeof(link->text)];
    snprintf(text, sizeof(text),
             "cannot make a connection from %s of interface %s to rank %d on host %s (%s)",
             self->interface.text, self->interface.name, link->base.peer,
             self->base.world->peers[link->base.peer].host,
             strerror(err));
    hora_tcp_link_fail_sends(link, status, text);
}

/* A pacing algorithm for long ways, such as bbr, estimates a rate and keeps to it by timers. Bytes
 * that come in bursts over a short way are then late: see "TCP" in docs/performance.md. */
static void set_congestion(const hora_tcp_link_t *link, int fd) {
    const hora_tcp_t *self = hora_tcp_of(link);
    const char       *wish = self->base.world->settings.tcp_congestion;
    char              name[32] = "";
    socklen_t         len = sizeof(name) - 1;
    if (strcmp(wish, "auto") != 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, wish, (socklen_t)strlen(wish));
        return;
    }
    if (!hora_tcp_is_near(&self->interface, &link->address.sa) ||
        getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &len) != 0 ||
        strncmp(name, "bbr", 3) != 0)
        return;
    /* Only root may take what the system does not allow; reno is always there. */
    if (setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "cubic", 5) != 0)
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

/* A socket with its options; -1 and errno. */
static int out_socket(hora_tcp_link_t *link) {
    hora_tcp_t *self = hora_tcp_of(link);
    int         family = link->address.sa.ss_family, one = 1;
    int         size = (int)self->base.world->settings.tcp_buffer;
    int         fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    hora_tcp_tune(fd);
    set_congestion(link, fd);
    if (size > 0)
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
    if (self->base.world->settings.interface[0] == '\0' || self->interface.sa.ss_family != family)
        return fd;
    /* An interface that was asked for is for both directions. */
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&self->interface.sa, self->interface.len) == 0)
        return fd;
    int err = errno;
    close(fd);
    errno = err;
    return -1;
}

static hora_tcp_out_t *out_new(hora_tcp_link_t *link, hora_tcp_conn_t *conn, unsigned index) {
    hora_tcp_out_t *out = calloc(1, sizeof(*out));
    if (out == NULL)
        return NULL;
    out->conn = conn;
    out->link = link;
    out->index = index;
    link->out[index] = out;
    conn->out = out;
    conn->writes = true;
    return out;
}

/* A connection with its halves. Takes fd over, unless it returns NULL: no memory. */
static hora_tcp_out_t *out_make(hora_tcp_link_t *link, int fd, unsigned index) {
    hora_tcp_conn_t *conn = hora_tcp_conn_new(fd);
    hora_tcp_out_t  *out = conn != NULL ? out_new(link, conn, index) : NULL;
    bool             back = index == 0 && link->base.transport->world->rank < link->base.peer;
    if (out == NULL) {
        free(conn);
        return NULL;
    }
    if (back && link->recv_status == HORA_OK &&
        hora_tcp_in_new(link, conn, HORA_TCP_BACK) == NULL) {
        link->out[index] = NULL;
        hora_tcp_conn_free(conn);
        return NULL;
    }
    out->connecting = true;
    out->opened = hora_clock_ns();
    link->out_count = index + 1;
    return out;
}

bool hora_tcp_out_back(hora_tcp_link_t *link, hora_tcp_conn_t *conn) {
    int       segment = 0;
    socklen_t len = sizeof(segment);
    if (link->send_status != HORA_OK || link->out[HORA_TCP_BACK] != NULL ||
        out_new(link, conn, HORA_TCP_BACK) == NULL)
        return false;
    getsockopt(conn->source.fd, IPPROTO_TCP, TCP_MAXSEG, &segment, &len);
    link->back_max = (size_t)segment * SHORT_SEGMENTS;
    if (link->back_max > HORA_TCP_SHORT)
        link->back_max = HORA_TCP_SHORT;
    return true;
}

void hora_tcp_out_close(hora_tcp_out_t *out) {
    out->link->out[out->index] = NULL;
    out->count = 0;
    out->conn->writes = false;
    if (out->connecting && out->conn->reads)
        hora_tcp_in_close(out->conn->in); /* nothing can come over it either */
    else
        hora_tcp_conn_release(hora_tcp_of(out->link), out->conn);
}

/* Begins connection number `index`; it greets once it stands. Failure is in send_status. */
static void out_open(hora_tcp_link_t *link, unsigned index) {
    int             fd = out_socket(link);
    hora_tcp_out_t *out;
    if (fd < 0) {
        out_impossible(link, HORA_ERR_SYSTEM, errno);
        return;
    }
    out = out_make(link, fd, index);
    if (out == NULL) {
        close(fd);
        out_impossible(link, HORA_ERR_NO_MEMORY, ENOMEM);
        return;
    }
    if (connect(fd, (struct sockaddr *)&link->address.sa, link->address.len) != 0 &&
        errno != EINPROGRESS && errno != EINTR)
        hora_tcp_out_failed(out, errno);
    else if (!set_blocked(out, true))
        out_impossible(link, HORA_ERR_SYSTEM, errno);
}

/* ---- The table's entries ---- */

void hora_tcp_send(hora_link_t *base, hora_xfer_t *xfer) {
    hora_tcp_link_t *link = (hora_tcp_link_t *)base;
    hora_tcp_t      *self = hora_tcp_of(link);
    xfer->link = base;
    xfer->next = NULL;
    xfer->priv = NULL;
    xfer->moved = 0;
    xfer->status = HORA_IN_PROGRESS;
    if (link->send_status != HORA_OK) {
        hora_xfer_finish(xfer, hora_fail_again(link->send_status, link->text));
        return;
    }
    hora_tcp_send_t *send = send_new(link, xfer);
    if (send == NULL) {
        hora_xfer_finish(xfer, hora_fail(HORA_ERR_NO_MEMORY, "no memory for a send"));
        return;
    }
    bool opens = link->out_count == 0 && !goes_back(link, send);
    hora_tcp_push(link);
    for (unsigned i = 0; opens && i < self->connections && link->send_status == HORA_OK; i++)
        out_open(link, i); /* the first message that needs them */
}

/* First byte of the message that is not yet written. */
static size_t unwritten(const hora_tcp_link_t *link, const hora_tcp_send_t *send) {
    size_t low = send->assigned;
    for (int c = 0; c < HORA_TCP_WAYS; c++) {
        const hora_tcp_out_t *out = link->out[c];
        for (unsigned i = 0; out != NULL && i < out->count; i++) {
            const hora_tcp_frame_t *f = &out->frames[(out->first + i) % HORA_TCP_BATCH];
            size_t sent = i == 0 ? out->sent : 0;
            size_t done = sent > HORA_TCP_HEADER_SIZE ? sent - HORA_TCP_HEADER_SIZE : 0;
            if (f->send == send && f->offset + done < low)
                low = f->offset + done;
        }
    }
    return low;
}

void hora_tcp_cancel_send(hora_tcp_link_t *link, hora_xfer_t *xfer) {
    hora_tcp_send_t *send = link->sends;
    while (send->xfer != xfer)
        send = send->next;
    hora_xfer_finish(xfer, HORA_ERR_ABORTED);
    send->xfer = NULL;
    if (!send->begun) {
        hora_tcp_send_free(link, send);
        return;
    }
    /* The receiver has been promised the whole message, and its bytes are now the caller's. */
    size_t low = unwritten(link, send);
    if (low == send->len)
        return;
    send->own = malloc(send->len - low);
    if (send->own == NULL) {
        hora_tcp_link_fail(link, HORA_ERR_NO_MEMORY, "no memory to finish a cancelled send");
        return;
    }
    memcpy(send->own, send->buf + (low - send->base), send->len - low);
    send->buf = send->own;
    send->base = low;
}
