/*
 * Connections: a socket with a half for writing, for reading, or both. Under world->lock.
 *
 * A half that has ended stays in memory with its connection, which is closed when neither half lives.
 */
#include "transport/tcp/tcp.h"

#include "util/clock.h"

#include <linux/sockios.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LEAVE_NS   1000000000u
#define DROPS      64
#define DROP_BYTES ((size_t)1 << 20)

hora_tcp_conn_t *hora_tcp_conn_new(int fd) {
    hora_tcp_conn_t *conn = calloc(1, sizeof(*conn));
    if (conn != NULL)
        conn->source = (hora_tcp_source_t){HORA_TCP_CONN, fd, UINT32_MAX, NULL};
    return conn;
}

void hora_tcp_conn_free(hora_tcp_conn_t *conn) {
    free(conn->out);
    free(conn->in);
    free(conn);
}

hora_status_t hora_tcp_conn_watch(hora_tcp_t *self, hora_tcp_conn_t *conn) {
    uint32_t events = 0;
    if (conn->reads && !conn->in->stalled)
        events |= EPOLLIN;
    if (conn->writes && !conn->reads)
        events |= EPOLLIN | EPOLLRDHUP; /* nothing comes but the end */
    if (conn->writes && conn->out->blocked)
        events |= EPOLLOUT;
    return hora_tcp_watch(self, &conn->source, events);
}

void hora_tcp_conn_release(hora_tcp_t *self, hora_tcp_conn_t *conn) {
    hora_tcp_source_t *source = &conn->source;
    if (source->fd < 0)
        return;
    if (conn->reads) {
        shutdown(source->fd, SHUT_WR); /* the peer shall know that nothing more comes */
        hora_tcp_conn_watch(self, conn);
        return;
    }
    if (conn->writes) {
        hora_tcp_conn_watch(self, conn);
        return;
    }
    /* A forked child may hold it open, too: close alone would tell nobody. */
    epoll_ctl(self->epoll, EPOLL_CTL_DEL, source->fd, NULL);
    shutdown(source->fd, SHUT_RDWR);
    close(source->fd);
    source->fd = -1;
    source->buried = self->graves;
    self->graves = source;
}

/* ---- The end of all ---- */

/* The connection that carries messages both ways; NULL: none. */
static hora_tcp_conn_t *both_ways(const hora_tcp_link_t *link) {
    if (link == NULL)
        return NULL;
    if (link->out[HORA_TCP_BACK] != NULL)
        return link->out[HORA_TCP_BACK]->conn;
    return link->in[HORA_TCP_BACK] != NULL ? link->in[HORA_TCP_BACK]->conn : NULL;
}

/* Is there something that the other kernel has not acknowledged, and may? */
static bool is_under_way(int fd) {
    struct pollfd p = {.fd = fd};
    int           left = 0;
    if (poll(&p, 1, 0) > 0 && (p.revents & (POLLERR | POLLHUP)))
        return false; /* reset, or the other side leaves, too */
    return ioctl(fd, SIOCOUTQ, &left) == 0 && left > 0;
}

static bool has_arrived(const hora_tcp_link_t *link) {
    for (int i = 0; link != NULL && i < HORA_TCP_WAYS; i++)
        if (link->out[i] != NULL && is_under_way(link->out[i]->conn->source.fd))
            return false;
    return true;
}

static void await_arrival(const hora_tcp_t *self, uint64_t deadline) {
    int i = 0;
    while (i < self->base.world->size && hora_clock_ns() < deadline)
        if (has_arrived(self->links[i]))
            i++;
        else
            poll(NULL, 0, 1);
}

void hora_tcp_take_leave(hora_tcp_t *self) {
    uint64_t deadline = hora_clock_ns() + LEAVE_NS;
    await_arrival(self, deadline);
    for (int i = 0; i < self->base.world->size; i++) {
        hora_tcp_conn_t *conn = both_ways(self->links[i]);
        if (conn != NULL)
            shutdown(conn->source.fd, SHUT_WR);
    }
    await_arrival(self, deadline);
    for (int i = 0; i < self->base.world->size; i++) {
        hora_tcp_conn_t *conn = both_ways(self->links[i]);
        for (int n = 0; conn != NULL && n < DROPS; n++)
            if (recv(conn->source.fd, NULL, DROP_BYTES, MSG_DONTWAIT | MSG_TRUNC) <= 0)
                break;
    }
}
