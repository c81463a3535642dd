/*
 * The watch (watch.h). One thread; everything in hora_watch but the commands is its own.
 *
 *              rank 0             Each rank keeps a connection to rank 0, and one to each rank of
 *            /   |    \           its host. What a rank has to say it tells rank 0, who tells all,
 *      rank 1 rank 2  rank 3      and its neighbours, who then know it even when rank 0 has left or
 *        \______/                 is dead.
 *
 * A connection that ends without a goodbye means that the rank is dead. What it said before counts
 * first, so when a rank dies of another's death the first death is the one that is reported.
 *
 * Why before that. A rank that hears of a failure may leave at once, and its goodbye may overtake the
 * news on its way to others, who would take the departure for the cause. So a rank says why it
 * leaves, before the goodbye, on each connection.
 *
 * Sends never block: a rank that does not read gets what fits, and loses the rest. Receivers sort
 * out what comes twice: each rank dies or leaves once, and a communicator fails once.
 *
 * fork(): the child would hold the connections open when this process dies, and nobody would see
 * it. So a handler closes them in the child. It needs the list of watches, which a fork therefore
 * locks.
 */
#include "bootstrap/watch.h"

#include "bootstrap/clock.h"
#include "bootstrap/handshake.h"
#include "bootstrap/wire.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define FRAME_MAX   (16u + 2 + HORA_FAILURE_TEXT_MAX)
#define STACK_BYTES (512u << 10)
#define GOODBYE_NS  1000000000u

enum { ALIVE, GONE, DEAD };

/* What other threads ask of the watch. */
typedef struct command {
    struct command *next;
    uint16_t        type; /* ABORT, POKE or CLOCK */
    int             rank; /* POKE: whom */
    uint32_t        len;
    uint8_t         bytes[FRAME_MAX];
} command_t;

struct hora_watch {
    hora_world_t   *world;
    hora_star_t     star;
    hora_local_t    local;
    uint8_t        *state; /* [size] */
    hora_conn_t   **conns; /* [nconns]: those of star, then those of local; closed ones stay */
    int             nconns, nstar;
    struct pollfd  *fds; /* [nconns + 1] */
    int             wake; /* eventfd: there are commands */
    uint8_t         why[FRAME_MAX]; /* ABORT: the first failure of the job, else the latest one */
    uint32_t        why_len, why_channel;
    hora_probe_t    probe;
    pthread_t       thread;
    pthread_mutex_t lock; /* guards the three below */
    command_t      *first, **last;
    bool            leaving;
    hora_watch_t   *next; /* in the list of all watches */
};

static hora_watch_t   *watches;
static pthread_mutex_t watches_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- speaking -------------------------------------------------------------------------------- */

static void say(hora_conn_t *conn, uint16_t type, const void *bytes, size_t len) {
    if (conn->fd < 0)
        return;
    if (!hora_conn_queue(conn, type, bytes, len))
        hora_log(HORA_LOG_DEBUG, "rank %d does not read its messages", conn->rank);
    hora_conn_flush(conn); /* if it broke, the next read says so */
}

/* To all who may need it but rank `except` (-1: none): rank 0 reaches everyone; the others tell it
 * and, in case it is not there any more, their neighbours. */
static void tell(hora_watch_t *w, uint16_t type, const void *bytes, size_t len, int except) {
    int n = w->world->rank == 0 ? w->nstar : w->nconns;
    for (int i = 0; i < n; i++)
        if (w->conns[i]->rank != except)
            say(w->conns[i], type, bytes, len);
}

static size_t abort_encode(uint8_t *bytes, uint32_t channel, hora_status_t status, int rank,
                           const char *text) {
    hora_wire_t w = hora_wire_over(bytes, FRAME_MAX);
    hora_wire_put_u32(&w, channel);
    hora_wire_put_u32(&w, (uint32_t)status);
    hora_wire_put_u32(&w, (uint32_t)rank);
    hora_wire_put_text(&w, text);
    return w.off;
}

/* Keeps a failure that was found or heard here, for the goodbye. */
static void remember(hora_watch_t *w, const uint8_t *bytes, size_t len) {
    hora_wire_t wire = hora_wire_over((uint8_t *)(uintptr_t)bytes, len);
    if (len > sizeof(w->why) || (w->why_len > 0 && w->why_channel == HORA_CHANNEL_ALL))
        return;
    w->why_channel = hora_wire_get_u32(&wire);
    w->why_len = (uint32_t)len;
    memcpy(w->why, bytes, len);
}

static size_t rank_encode(uint8_t *bytes, int rank) {
    hora_wire_t w = hora_wire_over(bytes, 4);
    hora_wire_put_u32(&w, (uint32_t)rank);
    return w.off;
}

/* ---- what happened to a rank ----------------------------------------------------------------- */

static void rank_died(hora_watch_t *w, int rank, const char *how) {
    char    text[256];
    uint8_t bytes[FRAME_MAX];
    if (w->state[rank] != ALIVE)
        return;
    w->state[rank] = DEAD;
    snprintf(text, sizeof(text), "rank %d on host %s %s", rank, w->world->peers[rank].host, how);
    size_t len = abort_encode(bytes, HORA_CHANNEL_ALL, HORA_ERR_PEER_FAILED, rank, text);
    remember(w, bytes, len);
    tell(w, HORA_FRAME_ABORT, bytes, len, rank);
    hora_world_raise(w->world, HORA_CHANNEL_ALL, HORA_ERR_PEER_FAILED, rank, text);
}

/* Every rank hears it from rank 0, and neighbours hear it from the rank itself. */
static void rank_left(hora_watch_t *w, int rank) {
    uint8_t bytes[4];
    if (w->state[rank] != ALIVE)
        return;
    w->state[rank] = GONE;
    if (w->world->rank == 0)
        tell(w, HORA_FRAME_GOODBYE, bytes, rank_encode(bytes, rank), rank);
    hora_world_set_gone(w->world, rank);
}

static void poked(hora_world_t *world) {
    pthread_mutex_lock(&world->poke_lock);
    if (world->poked != NULL)
        world->poked(world, world->poked_arg);
    pthread_mutex_unlock(&world->poke_lock);
}

static hora_conn_t *way_to(hora_watch_t *w, int rank) {
    for (int i = w->nconns - 1; i >= 0; i--) /* the neighbours first */
        if (w->conns[i]->rank == rank && w->conns[i]->fd >= 0)
            return w->conns[i];
    return w->world->rank != 0 ? w->conns[0] : NULL;
}

static void poke(hora_watch_t *w, int rank) {
    uint8_t bytes[4];
    if (rank == w->world->rank) {
        poked(w->world);
        return;
    }
    hora_conn_t *conn = way_to(w, rank);
    if (conn != NULL)
        say(conn, HORA_FRAME_POKE, bytes, rank_encode(bytes, rank));
}

/* ---- hearing --------------------------------------------------------------------------------- */

static bool heard_abort(hora_watch_t *w, hora_conn_t *conn, const hora_frame_t *frame) {
    hora_wire_t wire = hora_wire_over(frame->payload, frame->len);
    char        text[HORA_FAILURE_TEXT_MAX];
    uint32_t    channel = hora_wire_get_u32(&wire);
    int32_t     status = hora_wire_get_i32(&wire);
    int32_t     rank = hora_wire_get_i32(&wire);
    hora_wire_get_text(&wire, text, sizeof(text));
    if (wire.bad || status >= HORA_OK || status < HORA_ERR_INTERNAL || rank < -1 ||
        rank >= w->world->size)
        return false;
    if (frame->len == w->why_len && memcmp(frame->payload, w->why, w->why_len) == 0)
        return true; /* known */
    if (status == HORA_ERR_PEER_FAILED && rank >= 0 && channel == HORA_CHANNEL_ALL) {
        if (w->state[rank] == DEAD)
            return true; /* known */
        w->state[rank] = DEAD; /* or cut off from the others, if it is me: then I must stop too */
    }
    remember(w, frame->payload, frame->len);
    if (w->world->rank == 0)
        tell(w, frame->type, frame->payload, frame->len, conn->rank);
    hora_world_raise(w->world, channel, (hora_status_t)status, rank, text);
    return true;
}

static bool heard_rank(hora_watch_t *w, hora_conn_t *conn, const hora_frame_t *frame) {
    hora_wire_t wire = hora_wire_over(frame->payload, frame->len);
    int32_t     rank = hora_wire_get_i32(&wire);
    if (wire.bad || rank < 0 || rank >= w->world->size)
        return false;
    if (frame->type == HORA_FRAME_GOODBYE) {
        if (rank != conn->rank && conn->rank != 0)
            return false; /* each rank speaks for itself, rank 0 for all */
        if (rank != w->world->rank)
            rank_left(w, rank);
    } else if (rank == w->world->rank || w->world->rank == 0) {
        poke(w, rank);
    }
    return true;
}

static void ask_clock(hora_watch_t *w) {
    uint8_t bytes[HORA_CLOCK_BYTES];
    say(w->conns[0], HORA_FRAME_CLOCK, bytes, hora_probe_begin(&w->probe, bytes));
}

static bool heard_clock(hora_watch_t *w, hora_conn_t *conn, const hora_frame_t *frame) {
    uint8_t bytes[HORA_CLOCK_BYTES];
    int     len = hora_probe_heard(&w->probe, w->world, frame, bytes);
    if (len > 0)
        say(conn, HORA_FRAME_CLOCK, bytes, (size_t)len);
    return len >= 0 && (w->world->rank == 0 || conn->rank == 0);
}

static bool heard(hora_watch_t *w, hora_conn_t *conn, const hora_frame_t *frame) {
    switch (frame->type) {
    case HORA_FRAME_ABORT: return heard_abort(w, conn, frame);
    case HORA_FRAME_GOODBYE:
    case HORA_FRAME_POKE: return heard_rank(w, conn, frame);
    case HORA_FRAME_CLOCK: return heard_clock(w, conn, frame);
    default: return false;
    }
}

static void listen_to(hora_watch_t *w, hora_conn_t *conn) {
    for (;;) {
        hora_frame_t frame;
        const char  *how = "sent a malformed message";
        switch (hora_conn_read(conn, &frame)) {
        case HORA_READ_NOTHING: return;
        case HORA_READ_FRAME:
            if (heard(w, conn, &frame))
                continue;
            break;
        case HORA_READ_BAD: break;
        case HORA_READ_END:
            how = errno == ETIMEDOUT || errno == EHOSTUNREACH || errno == ENETUNREACH
                      ? "cannot be reached any more" : "died";
            break;
        }
        hora_conn_close(conn);
        rank_died(w, conn->rank, how);
        return;
    }
}

/* ---- the thread ------------------------------------------------------------------------------ */

static bool take_commands(hora_watch_t *w, command_t **list_p) {
    uint64_t count;
    ssize_t  ignored = read(w->wake, &count, sizeof(count));
    (void)ignored; /* nothing there: another round took them */
    pthread_mutex_lock(&w->lock);
    *list_p = w->first;
    w->first = NULL;
    w->last = &w->first;
    bool leaving = w->leaving;
    pthread_mutex_unlock(&w->lock);
    return leaving;
}

/* True: time to leave. */
static bool obey(hora_watch_t *w) {
    command_t *list;
    bool       leaving = take_commands(w, &list);
    while (list != NULL) {
        command_t *c = list;
        list = c->next;
        if (c->type == HORA_FRAME_POKE) {
            poke(w, c->rank);
        } else if (c->type == HORA_FRAME_CLOCK) {
            ask_clock(w);
        } else {
            remember(w, c->bytes, c->len);
            tell(w, c->type, c->bytes, c->len, -1);
        }
        free(c);
    }
    return leaving;
}

static void fill_fds(hora_watch_t *w) {
    w->fds[w->nconns] = (struct pollfd){w->wake, POLLIN, 0};
    for (int i = 0; i < w->nconns; i++) {
        short events = hora_conn_pending(w->conns[i]) ? POLLIN | POLLOUT : POLLIN;
        w->fds[i] = (struct pollfd){w->conns[i]->fd, events, 0};
    }
}

/* Until everybody has it, or for a second. */
static void say_goodbye(hora_watch_t *w) {
    uint8_t  bytes[4];
    size_t   len = rank_encode(bytes, w->world->rank);
    uint64_t deadline = hora_clock_ns() + GOODBYE_NS;
    bool     pending = true;
    for (int i = 0; i < w->nconns; i++) {
        if (w->why_len > 0)
            say(w->conns[i], HORA_FRAME_ABORT, w->why, w->why_len);
        say(w->conns[i], HORA_FRAME_GOODBYE, bytes, len);
    }
    while (pending && hora_clock_ns() < deadline) {
        pending = false;
        for (int i = 0; i < w->nconns; i++) {
            hora_conn_t *conn = w->conns[i];
            bool         more = hora_conn_pending(conn) && hora_conn_flush(conn) &&
                        hora_conn_pending(conn);
            w->fds[i] = (struct pollfd){more ? conn->fd : -1, POLLOUT, 0};
            pending |= more;
        }
        if (pending)
            poll(w->fds, (nfds_t)w->nconns, hora_poll_timeout(deadline));
    }
}

static void *watch_main(void *arg) {
    hora_watch_t *w = arg;
    for (;;) {
        fill_fds(w);
        if (poll(w->fds, (nfds_t)w->nconns + 1, -1) < 0)
            continue; /* EINTR, or no memory for a moment */
        for (int i = 0; i < w->nconns; i++) {
            hora_conn_t *conn = w->conns[i];
            if (w->fds[i].fd < 0 || conn->fd < 0)
                continue;
            if (w->fds[i].revents & POLLOUT)
                hora_conn_flush(conn);
            if (w->fds[i].revents & ~POLLOUT)
                listen_to(w, conn);
        }
        if (w->fds[w->nconns].revents && obey(w))
            break;
    }
    say_goodbye(w);
    return NULL;
}

/* ---- what other threads call ----------------------------------------------------------------- */

static void order(hora_watch_t *w, command_t *c) {
    uint64_t one = 1;
    pthread_mutex_lock(&w->lock);
    if (c != NULL) {
        *w->last = c;
        w->last = &c->next;
    } else {
        w->leaving = true;
    }
    pthread_mutex_unlock(&w->lock);
    ssize_t ignored = write(w->wake, &one, sizeof(one));
    (void)ignored; /* full: a wake-up is pending anyway */
}

static hora_watch_t *watch_of(hora_world_t *world) {
    return world->bootstrap;
}

static void watch_announce(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                           const char *text) {
    command_t *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        hora_log(HORA_LOG_ERROR, "no memory to tell the other ranks: %s", text);
        return;
    }
    c->type = HORA_FRAME_ABORT;
    c->len = (uint32_t)abort_encode(c->bytes, channel, status, rank, text);
    order(watch_of(world), c);
}

static void watch_poke(hora_world_t *world, int rank) {
    command_t *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return; /* it was only a reminder */
    c->type = HORA_FRAME_POKE;
    c->rank = rank;
    order(watch_of(world), c);
}

/* On a rank other than 0. */
static void watch_sync_clock(hora_world_t *world) {
    command_t *c = calloc(1, sizeof(*c));
    if (c == NULL)
        return; /* the timeline goes without */
    c->type = HORA_FRAME_CLOCK;
    order(watch_of(world), c);
}

/* ---- fork ------------------------------------------------------------------------------------ */

static void before_fork(void) {
    pthread_mutex_lock(&watches_lock);
}

static void after_fork(void) {
    pthread_mutex_unlock(&watches_lock);
}

/* The numbers stay in the structs, which the child never uses; so a descriptor is closed once. */
static void in_child(void) {
    for (hora_watch_t *w = watches; w != NULL; w = w->next)
        for (int i = 0; i < w->nconns; i++)
            if (w->conns[i]->fd >= 0)
                close(w->conns[i]->fd);
    watches = NULL;
    pthread_mutex_unlock(&watches_lock);
}

static void install_fork_handlers(void) {
    pthread_atfork(before_fork, after_fork, in_child);
}

static void enlist(hora_watch_t *w) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, install_fork_handlers);
    pthread_mutex_lock(&watches_lock);
    w->next = watches;
    watches = w;
    pthread_mutex_unlock(&watches_lock);
}

static void delist(hora_watch_t *w) {
    pthread_mutex_lock(&watches_lock);
    for (hora_watch_t **at = &watches; *at != NULL; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    pthread_mutex_unlock(&watches_lock);
}

/* ---- beginning and end ----------------------------------------------------------------------- */

static void watch_free(hora_watch_t *w) {
    command_t *list = w->first;
    while (list != NULL) {
        command_t *c = list;
        list = c->next;
        free(c);
    }
    if (w->wake >= 0)
        close(w->wake);
    pthread_mutex_destroy(&w->lock);
    free(w->state);
    free(w->conns);
    free(w->fds);
    free(w);
}

static hora_status_t watch_new(hora_world_t *world, const hora_star_t *star,
                               const hora_local_t *local, hora_watch_t **watch_p) {
    hora_watch_t *w = calloc(1, sizeof(*w));
    if (w == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "the watch");
    w->world = world;
    w->last = &w->first;
    w->nstar = hora_star_conns(star);
    w->nconns = w->nstar + local->nconns;
    w->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->state = calloc((size_t)world->size, 1);
    w->conns = calloc((size_t)w->nconns + 1, sizeof(hora_conn_t *));
    w->fds = calloc((size_t)w->nconns + 1, sizeof(*w->fds));
    pthread_mutex_init(&w->lock, NULL);
    if (w->wake >= 0 && w->state != NULL && w->conns != NULL && w->fds != NULL) {
        *watch_p = w;
        return HORA_OK;
    }
    hora_status_t st = w->wake < 0 ? hora_fail_errno(HORA_ERR_SYSTEM, errno, "eventfd of the watch")
                                   : hora_fail(HORA_ERR_NO_MEMORY, "the watch");
    watch_free(w);
    return st;
}

hora_status_t hora_watch_start(hora_world_t *world, hora_star_t *star, hora_local_t *local,
                               hora_watch_t **watch_p) {
    hora_watch_t *w = NULL;
    hora_status_t st = watch_new(world, star, local, &w);
    if (st != HORA_OK)
        return st;
    w->star = *star;
    w->local = *local;
    for (int i = 0; i < w->nconns; i++) {
        w->conns[i] = i < w->nstar ? &w->star.conns[i] : &w->local.conns[i - w->nstar];
        w->conns[i]->limit = FRAME_MAX;
    }
    world->bootstrap = w;
    world->announce = watch_announce;
    world->poke = watch_poke;
    world->sync_clock = world->rank > 0 ? watch_sync_clock : NULL;
    enlist(w);
    st = hora_thread_spawn("hora-watch", STACK_BYTES, watch_main, w, "starting the watch thread",
                           &w->thread);
    if (st != HORA_OK) {
        delist(w);
        watch_free(w);
        return st;
    }
    memset(star, 0, sizeof(*star));
    memset(local, 0, sizeof(*local));
    local->listener = -1;
    *watch_p = w;
    return HORA_OK;
}

void hora_watch_stop(hora_watch_t *w) {
    if (w == NULL)
        return;
    order(w, NULL);
    pthread_join(w->thread, NULL);
    delist(w); /* before the descriptors are closed, and their numbers used again */
    hora_star_destroy(&w->star);
    hora_local_close(&w->local);
    watch_free(w);
}
