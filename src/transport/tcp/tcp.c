/*
 * The TCP transport: its table, its life, and the event loop. Under world->lock, called by
 * whichever thread waits; no thread of its own. Nothing here blocks but open (resolver) and close
 * (flush).
 */
#include "transport/tcp/tcp.h"

#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define EVENTS_MAX 64
#define FLUSH_NS   1000000000u
/* An idle connection to a host that has vanished ends after IDLE + INTERVAL * PROBES seconds. Busy
 * ones are looked after by hora_tcp_link_tick: TCP_USER_TIMEOUT would also end a connection whose
 * receiver just does not read for a while. */
#define KEEPALIVE_IDLE     4
#define KEEPALIVE_INTERVAL 2
#define KEEPALIVE_PROBES   3

hora_status_t hora_tcp_watch(hora_tcp_t *self, hora_tcp_source_t *source, uint32_t events) {
    struct epoll_event ev = {.events = events, .data.ptr = source};
    bool               known = source->events != UINT32_MAX;
    if (source->events == events)
        return HORA_OK;
    if (epoll_ctl(self->epoll, known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, source->fd, &ev) != 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot watch a socket");
    source->events = events;
    return HORA_OK;
}

void hora_tcp_unwatch(hora_tcp_t *self, hora_tcp_source_t *source) {
    epoll_ctl(self->epoll, EPOLL_CTL_DEL, source->fd, NULL);
    source->events = UINT32_MAX;
}

static void clear_graves(hora_tcp_t *self) {
    while (self->graves != NULL) {
        hora_tcp_source_t *source = self->graves;
        self->graves = source->buried;
        hora_tcp_conn_free((hora_tcp_conn_t *)source);
    }
}

void hora_tcp_tune(int fd) {
    int one = 1, idle = KEEPALIVE_IDLE, interval = KEEPALIVE_INTERVAL, probes = KEEPALIVE_PROBES;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

static void timer_set(hora_tcp_t *self, uint64_t period) {
    struct itimerspec when = {
        .it_value = {(time_t)(period / 1000000000u), (long)(period % 1000000000u)}};
    timerfd_settime(self->timer.fd, 0, &when, NULL);
    self->timer_period = period;
}

void hora_tcp_timer_want(hora_tcp_t *self, uint64_t period) {
    if (self->timer_period == 0 || period < self->timer_period)
        timer_set(self, period);
}

/* Looks at all deadlines and sets the timer for the next. */
static void tick(hora_tcp_t *self) {
    uint64_t now = hora_clock_ns(), expirations, want, next = 0;
    ssize_t  ignored = read(self->timer.fd, &expirations, sizeof(expirations));
    (void)ignored;
    self->timer_period = 0;
    if (self->deaf) {
        self->deaf = false;
        hora_tcp_watch(self, &self->listener, EPOLLIN);
    }
    if (hora_tcp_strangers_tick(self, now))
        next = HORA_TCP_TICK_NS;
    for (int i = 0; i < self->base.world->size; i++) {
        want = self->links[i] != NULL ? hora_tcp_link_tick(self->links[i], now) : 0;
        if (want != 0 && (next == 0 || want < next))
            next = want;
    }
    if (next != 0)
        hora_tcp_timer_want(self, next);
}

static void conn_event(hora_tcp_conn_t *conn, uint32_t events) {
    bool established = conn->out == NULL || !conn->out->connecting;
    if (conn->reads && established && (events & ~(uint32_t)EPOLLOUT) != 0)
        hora_tcp_in_event(conn->in, events);
    if (conn->writes)
        hora_tcp_out_event(conn->out, events);
}

static void dispatch(hora_tcp_t *self, hora_tcp_source_t *source, uint32_t events) {
    if (source->fd < 0)
        return; /* closed by an earlier event of this turn */
    switch (source->kind) {
    case HORA_TCP_LISTENER:
        hora_tcp_accept(self);
        break;
    case HORA_TCP_TIMER:
        tick(self);
        break;
    case HORA_TCP_STRANGER:
        hora_tcp_stranger_event(self, (hora_tcp_stranger_t *)source);
        break;
    case HORA_TCP_CONN:
        conn_event((hora_tcp_conn_t *)source, events);
        break;
    }
}

/* A read costs no more than to ask epoll whether to read. Not while something waits to be written.
 * Not for a long message that has not begun to come: a look takes the socket from who delivers. */
static bool may_look(const hora_xfer_t *awaited) {
    const hora_tcp_link_t *link = (const hora_tcp_link_t *)awaited->link;
    bool                   soon = awaited->len <= HORA_TCP_SHORT || awaited->priv != NULL;
    return soon && link->latest != NULL && link->in_count <= 1 && link->stalled == 0 &&
           link->sends == NULL;
}

static unsigned tcp_progress(hora_transport_t *base, const hora_xfer_t *awaited) {
    hora_tcp_t        *self = (hora_tcp_t *)base;
    struct epoll_event events[EVENTS_MAX];
    int                n;
    if (awaited != NULL && may_look(awaited)) {
        n = hora_tcp_look((hora_tcp_link_t *)awaited->link);
    } else {
        n = epoll_wait(self->epoll, events, EVENTS_MAX, 0);
        for (int i = 0; i < n; i++)
            dispatch(self, events[i].data.ptr, events[i].events);
    }
    if (self->graves != NULL)
        clear_graves(self);
    return n > 0 ? (unsigned)n : 0;
}

static int tcp_fd(hora_transport_t *base) {
    return ((hora_tcp_t *)base)->epoll;
}

static bool tcp_probe(hora_backend_t *backend) {
    char list[sizeof(backend->detail) - 16];
    hora_tcp_interface_list(list, sizeof(list));
    snprintf(backend->detail, sizeof(backend->detail), "interfaces: %s", list);
    backend->remedy[0] = '\0';
    return true;
}

/* Frees all but the links; every part may be missing. */
static void destroy(hora_tcp_t *self) {
    for (int i = 0; self->strangers != NULL && i < self->stranger_count; i++)
        if (self->strangers[i].source.fd >= 0)
            close(self->strangers[i].source.fd);
    if (self->listener.fd >= 0)
        close(self->listener.fd);
    if (self->timer.fd >= 0)
        close(self->timer.fd);
    if (self->epoll >= 0)
        close(self->epoll);
    clear_graves(self);
    while (self->spare != NULL) {
        hora_tcp_send_t *next = self->spare->next;
        free(self->spare);
        self->spare = next;
    }
    free(self->strangers);
    free(self->links);
    free(self->left);
    free(self);
}

/* A quarter of the machine's memory, at least 256 MiB, may hold messages that nobody asked for. */
static size_t unexpected_max(void) {
    long   pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    size_t least = (size_t)256 << 20;
    size_t quarter = pages > 0 && page > 0 ? (size_t)pages / 4 * (size_t)page : 0;
    return quarter > least ? quarter : least;
}

static hora_tcp_t *allocate(hora_world_t *world) {
    hora_tcp_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return NULL;
    self->base.ops = &hora_transport_tcp;
    self->base.world = world;
    self->epoll = -1;
    self->listener = (hora_tcp_source_t){HORA_TCP_LISTENER, -1, UINT32_MAX, NULL};
    self->timer = (hora_tcp_source_t){HORA_TCP_TIMER, -1, UINT32_MAX, NULL};
    self->connections = (unsigned)world->settings.tcp_connections;
    self->unexpected_max = unexpected_max();
    self->stranger_count = HORA_TCP_STRANGERS_MAX + (world->size - 1) * (int)self->connections;
    self->strangers = calloc((size_t)self->stranger_count, sizeof(*self->strangers));
    self->links = calloc((size_t)world->size, sizeof(hora_tcp_link_t *));
    self->left = calloc((size_t)world->size, sizeof(bool));
    if (self->links == NULL || self->left == NULL || self->strangers == NULL) {
        destroy(self);
        return NULL;
    }
    for (int i = 0; i < self->stranger_count; i++)
        self->strangers[i].source = (hora_tcp_source_t){HORA_TCP_STRANGER, -1, UINT32_MAX, NULL};
    return self;
}

static hora_status_t open_descriptors(hora_tcp_t *self) {
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (self->epoll < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot make an epoll descriptor");
    self->timer.fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (self->timer.fd < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "cannot make a timer");
    if (getrandom(self->address.token, HORA_TCP_TOKEN_SIZE, 0) != HORA_TCP_TOKEN_SIZE)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "no random numbers");
    return hora_tcp_watch(self, &self->timer, EPOLLIN);
}

static hora_status_t tcp_open(hora_world_t *world, hora_transport_t **self_p) {
    int64_t       connections = world->settings.tcp_connections;
    hora_tcp_t   *self;
    hora_status_t st;
    if (connections < 1 || connections > HORA_TCP_CONNECTIONS_MAX)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "HORA_TCP_CONNECTIONS=%lld is not in 1 to %d",
                         (long long)connections, HORA_TCP_CONNECTIONS_MAX);
    self = allocate(world);
    if (self == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "no memory for the tcp transport");
    st = open_descriptors(self);
    if (st == HORA_OK)
        st = hora_tcp_interface_choose(world, &self->interface);
    if (st == HORA_OK)
        st = hora_tcp_listen(self);
    if (st != HORA_OK) {
        destroy(self);
        return st;
    }
    *self_p = &self->base;
    return HORA_OK;
}

static bool sends_pending(const hora_tcp_t *self) {
    for (int i = 0; i < self->base.world->size; i++)
        if (self->links[i] != NULL && self->links[i]->sends != NULL)
            return true;
    return false;
}

static void flush(hora_tcp_t *self) {
    uint64_t deadline = hora_clock_ns() + FLUSH_NS, now;
    while (sends_pending(self) && (now = hora_clock_ns()) < deadline) {
        struct pollfd p = {.fd = self->epoll, .events = POLLIN};
        poll(&p, 1, (int)((deadline - now) / 1000000u) + 1);
        tcp_progress(&self->base, NULL);
    }
}

static void tcp_close(hora_transport_t *base) {
    hora_tcp_t *self = (hora_tcp_t *)base;
    flush(self);
    hora_tcp_take_leave(self);
    for (int i = 0; i < base->world->size; i++)
        if (self->links[i] != NULL)
            hora_tcp_link_free(self->links[i], HORA_ERR_SHUT_DOWN);
    destroy(self);
}

static hora_status_t tcp_address(hora_transport_t *base, void *buf, size_t *len_p) {
    hora_tcp_t *self = (hora_tcp_t *)base;
    if (*len_p < HORA_TCP_ADDRESS_SIZE)
        return hora_fail(HORA_ERR_INTERNAL, "no room for a tcp address");
    hora_tcp_address_encode(&self->address, buf);
    *len_p = HORA_TCP_ADDRESS_SIZE;
    return HORA_OK;
}

/* A loopback address is only good on the host where it was made, or where this rank has nothing
 * else either (several "hosts" on one machine). */
static bool tcp_reachable(hora_transport_t *base, int peer, const void *addr, size_t len) {
    hora_tcp_t        *self = (hora_tcp_t *)base;
    hora_tcp_address_t address;
    if (peer < 0 || peer >= base->world->size || peer == base->world->rank || self->left[peer] ||
        !hora_tcp_address_decode(addr, len, &address))
        return false;
    return !hora_tcp_is_loopback(&address.sa) || base->world->peers[peer].local >= 0 ||
           self->interface.loopback;
}

static hora_status_t tcp_connect(hora_transport_t *base, int peer, const void *addr, size_t len,
                                 hora_link_t **link_p) {
    hora_tcp_t        *self = (hora_tcp_t *)base;
    hora_tcp_address_t address;
    if (!tcp_reachable(base, peer, addr, len) || !hora_tcp_address_decode(addr, len, &address))
        return hora_fail(HORA_ERR_PROTOCOL, "the tcp address of rank %d is malformed or of no use",
                         peer);
    hora_tcp_link_t *link = hora_tcp_link_get(self, peer);
    if (link == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "no memory for the link to rank %d", peer);
    if (address.sa.ss_family == AF_INET6) {
        struct sockaddr_in6 *to = (struct sockaddr_in6 *)&address.sa;
        if (IN6_IS_ADDR_LINKLOCAL(&to->sin6_addr)) /* means nothing without an interface: mine */
            to->sin6_scope_id = if_nametoindex(self->interface.name);
    }
    link->address = address;
    *link_p = &link->base;
    return HORA_OK;
}

static void tcp_recv(hora_link_t *base, hora_xfer_t *xfer) {
    hora_tcp_link_t *link = (hora_tcp_link_t *)base;
    xfer->link = base;
    hora_match_post(&link->match, xfer);
    if (xfer->status != HORA_IN_PROGRESS)
        return;
    if (link->recv_status != HORA_OK) {
        hora_match_cancel(&link->match, xfer);
        hora_xfer_finish(xfer, hora_fail_again(link->recv_status, link->text));
    } else if (link->stalled > 0) {
        hora_tcp_resume(link);
    }
}

static void tcp_cancel(hora_link_t *base, hora_xfer_t *xfer) {
    hora_tcp_link_t *link = (hora_tcp_link_t *)base;
    hora_tcp_send_t *send = link->sends;
    if (xfer->status != HORA_IN_PROGRESS)
        return;
    while (send != NULL && send->xfer != xfer)
        send = send->next;
    if (send != NULL)
        hora_tcp_cancel_send(link, xfer);
    else
        hora_match_cancel(&link->match, xfer);
}

static void tcp_disconnect(hora_link_t *base) {
    hora_tcp_link_t *link = (hora_tcp_link_t *)base;
    hora_tcp_t      *self = hora_tcp_of(link);
    self->left[base->peer] = true;
    hora_tcp_link_free(link, HORA_ERR_SHUT_DOWN);
    clear_graves(self);
}

const hora_transport_ops_t hora_transport_tcp = {
    .size = sizeof(hora_transport_ops_t),
    .name = "tcp",
    .probe = tcp_probe,
    .open = tcp_open,
    .close = tcp_close,
    .address = tcp_address,
    .reachable = tcp_reachable,
    .connect = tcp_connect,
    .send = hora_tcp_send,
    .recv = tcp_recv,
    .cancel = tcp_cancel,
    .progress = tcp_progress,
    .fd = tcp_fd,
    .disconnect = tcp_disconnect,
};
