/*
 * The ranks of one host meet (local.h). Runs on the thread that joins.
 *
 * Each rank listens at an abstract socket with a random name of its own, which it told in its
 * roster card. It connects to the local ranks below it and is called by those above it. Each side
 * of each socket sends one offer, with its eventfd and, if it has one, the memfd of its arena:
 *
 *     rank 2 -- offer + 2 fds --> rank 0        rank 0 -- offer + 2 fds --> rank 2
 *
 * Whoever calls must run under the same user. A stranger who is silent is left alone.
 */
#include "bootstrap/local.h"

#include "bootstrap/endpoint.h"
#include "bootstrap/handshake.h"
#include "bootstrap/wire.h"
#include "transport/shm/arena.h"
#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define OFFER_BYTES    24u
#define OFFER_MAGIC    0x6c726f68u /* "horl" */
#define STRANGERS_MAX  32
#define FRAME_LIMIT    1024u /* of the watch's frames, later */
#define REASON_MAX     512

typedef struct seat {
    int  rank;     /* the peer; -1: a caller who has not said who he is */
    int  fd;       /* -1: not connected */
    bool received; /* its offer has come */
    int  eventfd, memfd;
} seat_t;

typedef struct table {
    hora_world_t *world;
    hora_local_t *local;
    uint64_t      key;
    int           own_memfd; /* -1: I have no arena to offer */
    int           npeers, nseats;
    seat_t       *seats; /* [npeers] of peers in rank order, then STRANGERS_MAX of callers */
    struct pollfd *fds;
} table_t;

hora_status_t hora_local_open(hora_local_t *local) {
    uint8_t       random[16];
    hora_status_t st;
    memset(local, 0, sizeof(*local));
    local->listener = -1;
    st = hora_random_bytes(random, sizeof(random));
    if (st != HORA_OK)
        return st;
    size_t len = (size_t)snprintf(local->name, sizeof(local->name), "hora-local-");
    for (size_t i = 0; i < sizeof(random); i++)
        len += (size_t)snprintf(local->name + len, sizeof(local->name) - len, "%02x", random[i]);
    local->listener = hora_unix_listen(local->name, SOMAXCONN);
    if (local->listener < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "listening for the ranks of this host");
    return HORA_OK;
}

void hora_local_close(hora_local_t *local) {
    if (local->listener >= 0)
        close(local->listener);
    for (int i = 0; i < local->nconns; i++)
        hora_conn_close(&local->conns[i]);
    free(local->conns);
    memset(local, 0, sizeof(*local));
    local->listener = -1;
}

/* ---- offers ---------------------------------------------------------------------------------- */

static bool send_offer(const table_t *t, int fd) {
    uint8_t       bytes[OFFER_BYTES] = {0};
    hora_wire_t   w = hora_wire_over(bytes, sizeof(bytes));
    int           nfds = t->own_memfd >= 0 ? 2 : 1;
    int           fds[2] = {t->world->eventfd, t->own_memfd};
    struct iovec  iov = {bytes, sizeof(bytes)};
    union {
        char           bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                         .msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int))};
    ssize_t       n;
    hora_wire_put_u32(&w, OFFER_MAGIC);
    hora_wire_put_u16(&w, HORA_FRAME_VERSION);
    hora_wire_put_u16(&w, (uint16_t)nfds);
    hora_wire_put_u64(&w, t->key);
    hora_wire_put_u32(&w, (uint32_t)t->world->rank);
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
    memcpy(CMSG_DATA(c), fds, (size_t)nfds * sizeof(int));
    do /* the socket's buffer is empty, so it does not block */
        n = sendmsg(fd, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(bytes);
}

/* Keeps the first `room` descriptors of a message and closes the rest. Returns how many came. */
static int take_descriptors(struct msghdr *msg, int *fds, int room) {
    int count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++, count++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
            if (count < room)
                fds[count] = fd;
            else
                close(fd);
        }
    }
    return count;
}

static bool offer_fits(const table_t *t, const uint8_t *bytes, int nfds, int *rank_p) {
    hora_wire_t w = hora_wire_over(bytes, OFFER_BYTES);
    bool        fits = hora_wire_get_u32(&w) == OFFER_MAGIC;
    fits &= hora_wire_get_u16(&w) == HORA_FRAME_VERSION;
    fits &= hora_wire_get_u16(&w) == nfds && (nfds == 1 || nfds == 2);
    fits &= hora_wire_get_u64(&w) == t->key;
    *rank_p = hora_wire_get_i32(&w);
    return fits && *rank_p >= 0 && *rank_p < t->world->size &&
           t->world->peers[*rank_p].local >= 0 && *rank_p != t->world->rank;
}

/* 1: received into *seat; 0: nothing yet; -1: no offer will come. */
static int receive_offer(const table_t *t, seat_t *seat, int *rank_p) {
    uint8_t       bytes[OFFER_BYTES];
    struct iovec  iov = {bytes, sizeof(bytes)};
    int           fds[2] = {-1, -1};
    union {
        char           bytes[CMSG_SPACE(2 * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.bytes,
                         .msg_controllen = sizeof(control.bytes)};
    ssize_t       n = recvmsg(seat->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    int nfds = n > 0 ? take_descriptors(&msg, fds, 2) : 0;
    if (n == (ssize_t)sizeof(bytes) && !(msg.msg_flags & MSG_CTRUNC) &&
        offer_fits(t, bytes, nfds, rank_p)) {
        seat->eventfd = fds[0];
        seat->memfd = fds[1];
        seat->received = true;
        return 1;
    }
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return -1;
}

/* ---- meeting --------------------------------------------------------------------------------- */

static void empty_seat(seat_t *seat) {
    if (seat->fd >= 0)
        close(seat->fd);
    if (seat->eventfd >= 0)
        close(seat->eventfd);
    if (seat->memfd >= 0)
        close(seat->memfd);
    seat->fd = seat->eventfd = seat->memfd = -1;
    seat->received = false;
}

static hora_status_t lost(const table_t *t, int rank, const char *what) {
    return hora_fail(HORA_ERR_PEER_FAILED, "rank %d on host %s %s while the ranks of the host were "
                     "linking up", rank, t->world->peers[rank].host, what);
}

/* Connects to a rank below me. It listened before it told anybody its name. */
static hora_status_t call(table_t *t, seat_t *seat, const char *name, uint64_t deadline) {
    for (;;) {
        seat->fd = hora_unix_connect(name);
        if (seat->fd >= 0)
            break;
        if (errno != EAGAIN || hora_poll_late(deadline))
            return hora_fail_errno(HORA_ERR_PEER_FAILED, errno, "cannot connect to rank %d on host "
                                   "%s at unix:%s", seat->rank, t->world->peers[seat->rank].host,
                                   name);
        usleep(1000); /* its queue is full */
    }
    if (!hora_unix_same_user(seat->fd))
        return hora_fail(HORA_ERR_AUTHENTICATION, "the socket of rank %d on host %s belongs to "
                         "another user", seat->rank, t->world->peers[seat->rank].host);
    return send_offer(t, seat->fd) ? HORA_OK : lost(t, seat->rank, "left");
}

static void answer_door(table_t *t) {
    for (int i = t->npeers; i < t->nseats; i++) {
        seat_t *seat = &t->seats[i];
        if (seat->fd >= 0)
            continue;
        seat->fd = accept4(t->local->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (seat->fd < 0)
            return;
        if (!hora_unix_same_user(seat->fd))
            empty_seat(seat);
    }
}

/* A caller has said who he is: he gets his own seat and my offer. */
static hora_status_t seat_caller(table_t *t, seat_t *caller, int rank) {
    for (int i = 0; i < t->npeers; i++) {
        seat_t *seat = &t->seats[i];
        if (seat->rank != rank || seat->fd >= 0 || rank < t->world->rank)
            continue;
        *seat = *caller;
        seat->rank = rank;
        caller->fd = caller->eventfd = caller->memfd = -1;
        caller->received = false;
        return send_offer(t, seat->fd) ? HORA_OK : lost(t, rank, "left");
    }
    empty_seat(caller);
    return HORA_OK;
}

static hora_status_t hear(table_t *t, seat_t *seat) {
    int rank, got = receive_offer(t, seat, &rank);
    if (got == 0)
        return HORA_OK;
    if (seat->rank < 0 && got > 0)
        return seat_caller(t, seat, rank);
    if (seat->rank < 0) {
        empty_seat(seat); /* a stranger */
        return HORA_OK;
    }
    if (got < 0)
        return lost(t, seat->rank, "left");
    return rank == seat->rank ? HORA_OK : lost(t, seat->rank, "sent a malformed message");
}

static int offers_missing(const table_t *t) {
    int missing = 0;
    for (int i = 0; i < t->npeers; i++)
        missing += !t->seats[i].received;
    return missing;
}

static hora_status_t too_late(const table_t *t, double patience) {
    for (int i = 0; i < t->npeers; i++)
        if (!t->seats[i].received)
            return hora_fail(HORA_ERR_TIMEOUT, "no answer from rank %d on host %s within %g s "
                             "while the ranks of the host were linking up", t->seats[i].rank,
                             t->world->peers[t->seats[i].rank].host, patience);
    return HORA_OK;
}

static hora_status_t meet(table_t *t, const hora_card_t *cards, double patience) {
    uint64_t      deadline = hora_clock_ns() + hora_clock_from_seconds(patience);
    hora_status_t st = HORA_OK;
    for (int i = 0; i < t->npeers && st == HORA_OK; i++)
        if (t->seats[i].rank < t->world->rank)
            st = call(t, &t->seats[i], cards[t->seats[i].rank].socket, deadline);
    while (st == HORA_OK && offers_missing(t) > 0) {
        int used = 0; /* poll takes no more entries than `ulimit -n` says */
        t->fds[0] = (struct pollfd){t->local->listener, POLLIN, 0};
        for (int i = 0; i < t->nseats; i++) {
            t->fds[1 + i] = (struct pollfd){t->seats[i].received ? -1 : t->seats[i].fd, POLLIN, 0};
            used = t->fds[1 + i].fd >= 0 ? i + 1 : used;
        }
        int n = poll(t->fds, (nfds_t)used + 1, hora_poll_timeout(deadline));
        if (n < 0 && errno != EINTR)
            return hora_fail_errno(HORA_ERR_SYSTEM, errno, "poll while linking up");
        if (n == 0 && hora_poll_late(deadline))
            return too_late(t, patience);
        for (int i = 0; i < used && n > 0 && st == HORA_OK; i++)
            if (t->fds[1 + i].fd >= 0 && t->fds[1 + i].revents)
                st = hear(t, &t->seats[i]);
        if (n > 0 && t->fds[0].revents)
            answer_door(t);
    }
    return st;
}

/* ---- arenas ---------------------------------------------------------------------------------- */

static void say(char *reason, const char *format, const char *text) {
    if (reason[0] == '\0')
        snprintf(reason, REASON_MAX, format, text);
}

static void make_arena(table_t *t, char *reason) {
    hora_world_t *world = t->world;
    if (hora_arena_create(world, world->local_rank, world->local_size, world->settings.arena_size,
                          &world->arena, &t->own_memfd) != HORA_OK) {
        world->arena = NULL;
        t->own_memfd = -1;
        say(reason, "%s", hora_last_error());
    }
}

/* Maps the arenas of the others and takes their bells. */
static void map_arenas(table_t *t, char *reason) {
    hora_world_t *world = t->world;
    for (int i = 0; i < t->npeers && reason[0] == '\0'; i++) {
        seat_t      *seat = &t->seats[i];
        hora_peer_t *peer = &world->peers[seat->rank];
        int          memfd = seat->memfd;
        seat->memfd = -1; /* the arena's from here on */
        if (memfd < 0) {
            say(reason, "rank %s offers none", "of this host");
        } else if (hora_arena_map(world->arena, peer->local, memfd) != HORA_OK) {
            say(reason, "%s", hora_last_error());
        } else {
            peer->bell = hora_arena_bell(world->arena, peer->local);
            peer->eventfd = seat->eventfd;
            seat->eventfd = -1;
        }
    }
    if (reason[0] == '\0') {
        world->bell = hora_arena_bell(world->arena, world->local_rank);
        world->peers[world->rank].bell = world->bell;
        world->peers[world->rank].eventfd = world->eventfd;
    }
}

void hora_local_unshare(hora_world_t *world) {
    for (int r = 0; r < world->size; r++) {
        hora_peer_t *peer = &world->peers[r];
        if (peer->eventfd >= 0 && r != world->rank)
            close(peer->eventfd);
        peer->eventfd = -1;
        peer->bell = NULL;
    }
    world->bell = world->private_bell;
    hora_arena_destroy(world->arena);
    world->arena = NULL;
}

/* All ranks of the host have all arenas, or none uses any. */
static hora_status_t agree(table_t *t, hora_star_t *star, bool share, const char *reason) {
    hora_world_t *world = t->world;
    hora_blob_t  *blobs = NULL;
    hora_status_t st = hora_star_allgather(star, reason, strlen(reason), "shared memory", &blobs);
    if (st != HORA_OK)
        return st;
    for (int r = 0; r < world->size && share; r++) {
        char text[REASON_MAX];
        if (world->peers[r].local < 0 || blobs[r].len == 0)
            continue;
        snprintf(text, sizeof(text), "%.*s", (int)blobs[r].len, (const char *)blobs[r].bytes);
        hora_text_sanitise(text);
        /* One rank of the host speaks for all. */
        hora_log(world->local_rank == 0 ? HORA_LOG_WARNING : HORA_LOG_INFO,
                 "no shared memory on host %s, which makes it slower (rank %d: %s)",
                 world->peers[r].host, r, text);
        hora_local_unshare(world);
        share = false;
    }
    free(blobs);
    return HORA_OK;
}

static hora_status_t table_init(table_t *t, hora_local_t *local, hora_world_t *world,
                                uint64_t key) {
    memset(t, 0, sizeof(*t));
    t->world = world;
    t->local = local;
    t->key = key;
    t->own_memfd = -1;
    t->npeers = world->local_size - 1;
    t->nseats = t->npeers + STRANGERS_MAX;
    t->seats = calloc((size_t)t->nseats, sizeof(*t->seats));
    t->fds = calloc((size_t)t->nseats + 1, sizeof(*t->fds));
    local->conns = calloc((size_t)t->npeers + 1, sizeof(*local->conns));
    if (t->seats == NULL || t->fds == NULL || local->conns == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "linking up %d ranks", world->local_size);
    for (int i = 0; i < t->nseats; i++)
        t->seats[i] = (seat_t){-1, -1, false, -1, -1};
    for (int r = 0, i = 0; r < world->size; r++)
        if (world->peers[r].local >= 0 && r != world->rank)
            t->seats[i++].rank = r;
    return HORA_OK;
}

static void table_free(table_t *t) {
    for (int i = 0; t->seats != NULL && i < t->nseats; i++)
        empty_seat(&t->seats[i]);
    free(t->seats);
    free(t->fds);
}

/* The sockets outlive the exchange: the watch has them next. What a rank would say of its process is
 * its number in its own container, where it may be any other process's here; the kernel knows better. */
static void keep_sockets(table_t *t) {
    for (int i = 0; i < t->npeers; i++) {
        t->world->peers[t->seats[i].rank].pid = hora_unix_process(t->seats[i].fd);
        hora_conn_init(&t->local->conns[i], t->seats[i].fd, t->seats[i].rank, FRAME_LIMIT);
        t->seats[i].fd = -1;
        t->local->nconns++;
    }
}

hora_status_t hora_local_exchange(hora_local_t *local, hora_world_t *world, hora_star_t *star,
                                  const hora_card_t *cards, uint64_t key, bool share) {
    char          reason[REASON_MAX] = "";
    table_t       t;
    hora_status_t st = table_init(&t, local, world, key);
    if (st == HORA_OK && share)
        make_arena(&t, reason);
    if (st == HORA_OK && t.npeers > 0)
        st = meet(&t, cards, star->patience);
    if (st == HORA_OK && share && reason[0] == '\0')
        map_arenas(&t, reason);
    if (st == HORA_OK && world->size > 1)
        st = agree(&t, star, share, reason);
    else if (st == HORA_OK && reason[0] != '\0')
        hora_log(HORA_LOG_WARNING, "no shared memory: %s", reason);
    if (st == HORA_OK)
        keep_sockets(&t);
    else
        hora_local_unshare(world);
    table_free(&t);
    if (local->listener >= 0)
        close(local->listener);
    local->listener = -1;
    return st;
}
