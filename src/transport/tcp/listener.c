/*
 * The listener: takes connections in and lets those stay that say the right word. Under
 * world->lock.
 *
 * A stranger gets HORA_TCP_HELLO_SIZE bytes and five seconds. Their number is limited to what the
 * job may be opening at once and HORA_TCP_STRANGERS_MAX more; the oldest goes for a new one, so
 * silent ones keep nobody out.
 */
#include "transport/tcp/tcp.h"

#include "util/bytes.h"
#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ACCEPTS_PER_TURN 64

static hora_status_t bind_and_listen(hora_tcp_t *self, int fd) {
    hora_world_t *world = self->base.world;
    int           size = (int)world->settings.tcp_buffer;
    int           backlog = world->size < 256 ? 4096 : 16 * world->size;
    socklen_t     len = self->interface.len;
    const char   *wish = world->settings.tcp_congestion;
    if (strcmp(wish, "auto") != 0 &&
        setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, wish, (socklen_t)strlen(wish)) != 0)
        return hora_fail_errno(HORA_ERR_INVALID_ARGUMENT, errno, "HORA_TCP_CONGESTION=%s: this "
                               "system does not have it, or does not let this user use it", wish);
    /* Before listen: the window's scale is agreed when a connection is opened. */
    if (size > 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
    if (bind(fd, (struct sockaddr *)&self->interface.sa, len) != 0 || listen(fd, backlog) != 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot listen on %s of interface %s",
                               self->interface.text, self->interface.name);
    len = sizeof(self->address.sa);
    if (getsockname(fd, (struct sockaddr *)&self->address.sa, &len) != 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot tell the listening port");
    self->address.len = len;
    return HORA_OK;
}

hora_status_t hora_tcp_listen(hora_tcp_t *self) {
    char text[HORA_TCP_TEXT_MAX];
    int  port;
    self->listener.fd =
        socket(self->interface.sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (self->listener.fd < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot make a listening socket");
    hora_status_t st = bind_and_listen(self, self->listener.fd);
    if (st != HORA_OK)
        return st;
    hora_tcp_address_text(&self->address.sa, text, &port);
    hora_log(HORA_LOG_DEBUG, "tcp: listening on %s port %d of interface %s", text, port,
             self->interface.name);
    return hora_tcp_watch(self, &self->listener, EPOLLIN);
}

static void stranger_drop(hora_tcp_stranger_t *stranger, const char *why) {
    hora_log(HORA_LOG_DEBUG, "tcp: a connection was turned away: %s", why);
    close(stranger->source.fd);
    stranger->source.fd = -1;
    stranger->source.events = UINT32_MAX;
}

const char *hora_tcp_hello_fault(const hora_tcp_t *self, const uint8_t *bytes,
                                 hora_tcp_hello_t *hello) {
    const hora_world_t *world = self->base.world;
    if (!hora_tcp_hello_decode(bytes, hello))
        return "it did not say hello";
    if (!hora_bytes_equal(hello->token, self->address.token, HORA_TCP_TOKEN_SIZE))
        return "wrong token";
    if (hello->version != HORA_TCP_VERSION)
        return "another version of hora";
    if (hello->size != (uint32_t)world->size || hello->rank >= hello->size ||
        hello->rank == (uint32_t)world->rank || self->left[hello->rank])
        return "no such rank";
    if (hello->count < 1 || hello->count > HORA_TCP_CONNECTIONS_MAX || hello->index >= hello->count)
        return "no such connection";
    return NULL;
}

/* The descriptor stays the stranger's. */
static void adopt_failed(hora_tcp_link_t *link, hora_tcp_conn_t *conn) {
    if (conn->in != NULL) {
        link->in[conn->in->index] = NULL;
        link->in_open--;
    }
    hora_tcp_link_ended(link);
    hora_tcp_conn_free(conn);
}

/* Makes a connection out of a stranger; takes its descriptor over if it returns NULL. */
static const char *adopt(hora_tcp_t *self, int fd, const hora_tcp_hello_t *hello) {
    hora_tcp_link_t *link = hora_tcp_link_get(self, (int)hello->rank);
    if (link == NULL)
        return "no memory";
    bool more = link->in_count == 0 ||
                (link->in_count == hello->count && link->in_seen < link->in_count);
    if (!more || link->recv_status != HORA_OK || link->in[hello->index] != NULL)
        return "that connection is not awaited";
    hora_tcp_conn_t *conn = hora_tcp_conn_new(fd);
    if (conn == NULL)
        return "no memory";
    hora_tcp_in_t *in = hora_tcp_in_new(link, conn, hello->index);
    if (in == NULL || hora_tcp_conn_watch(self, conn) != HORA_OK) {
        adopt_failed(link, conn);
        return "no memory, or it cannot be watched";
    }
    hora_tcp_tune(fd);
    link->in_count = hello->count;
    link->in_seen++;
    hora_log(HORA_LOG_DEBUG, "tcp: rank %d opened connection %u of %u", link->base.peer,
             hello->index + 1, hello->count);
    hora_tcp_in_event(in, EPOLLIN);
    /* Without memory all goes over connections of my own. */
    if (conn->reads && hello->index == 0 && hello->rank < (uint32_t)self->base.world->rank &&
        hora_tcp_out_back(link, conn))
        hora_tcp_push(link);
    return NULL;
}

void hora_tcp_stranger_event(hora_tcp_t *self, hora_tcp_stranger_t *stranger) {
    hora_tcp_hello_t hello;
    ssize_t          n = recv(stranger->source.fd, stranger->hello + stranger->got,
                              HORA_TCP_HELLO_SIZE - stranger->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        stranger_drop(stranger, "it closed");
        return;
    }
    stranger->got += (size_t)n;
    if (stranger->got < HORA_TCP_HELLO_SIZE)
        return;
    const char *fault = hora_tcp_hello_fault(self, stranger->hello, &hello);
    int         fd = stranger->source.fd;
    if (fault == NULL && stranger->source.events != UINT32_MAX)
        epoll_ctl(self->epoll, EPOLL_CTL_DEL, fd, NULL);
    if (fault == NULL)
        fault = adopt(self, fd, &hello);
    if (fault != NULL) {
        stranger_drop(stranger, fault);
        return;
    }
    stranger->source.fd = -1;
    stranger->source.events = UINT32_MAX;
}

/* A free place, or that of the oldest stranger. */
static hora_tcp_stranger_t *stranger_place(hora_tcp_t *self) {
    hora_tcp_stranger_t *oldest = &self->strangers[0];
    for (int i = 0; i < self->stranger_count; i++) {
        hora_tcp_stranger_t *s = &self->strangers[i];
        if (s->source.fd < 0)
            return s;
        if (s->since < oldest->since)
            oldest = s;
    }
    stranger_drop(oldest, "too many strangers");
    return oldest;
}

static void welcome(hora_tcp_t *self, int fd) {
    hora_tcp_stranger_t guest = {.source = {HORA_TCP_STRANGER, fd, UINT32_MAX, NULL}};
    hora_tcp_stranger_event(self, &guest);
    if (guest.source.fd < 0)
        return; /* adopted or turned away */
    guest.since = hora_clock_ns();
    hora_tcp_stranger_t *place = stranger_place(self);
    *place = guest;
    if (hora_tcp_watch(self, &place->source, EPOLLIN) != HORA_OK)
        stranger_drop(place, "it cannot be watched");
    else
        hora_tcp_timer_want(self, HORA_TCP_TICK_NS);
}

void hora_tcp_accept(hora_tcp_t *self) {
    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(self->listener.fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            welcome(self, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* It would stay readable for ever: look away for a second. */
            hora_log(HORA_LOG_WARNING, "tcp: cannot take a connection in: %s", strerror(errno));
            self->deaf = true;
            hora_tcp_watch(self, &self->listener, 0);
            hora_tcp_timer_want(self, HORA_TCP_TICK_NS);
            return;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

bool hora_tcp_strangers_tick(hora_tcp_t *self, uint64_t now) {
    bool left = false;
    for (int i = 0; i < self->stranger_count; i++) {
        hora_tcp_stranger_t *s = &self->strangers[i];
        if (s->source.fd >= 0 && now - s->since >= HORA_TCP_STRANGER_NS)
            stranger_drop(s, "it was silent");
        left |= s->source.fd >= 0;
    }
    return left;
}
