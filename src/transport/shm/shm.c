/*
 * The shm transport: point to point through mailboxes in the arenas. (Collectives on one host mostly
 * go through pads.c instead.) A message is a 32-byte head and its body, in one stream per
 * direction; it is cut where the ring is full and goes on with the next progress.
 *
 * Threads: all of it under world->lock. Invariants: a link's sends go out in the order of its queue;
 * `inbound` is the one message whose body is not complete yet.
 */
#include "transport/match.h"
#include "transport/shm/arena.h"
#include "transport/shm/mailbox.h"
#include "transport/transport.h"
#include "transport/wait.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct head {
    uint64_t tag, len;
    uint32_t sig, magic;
    uint64_t pad;
} head_t;
#define HEAD_MAGIC 0x686f7261u

typedef struct shm_link {
    hora_link_t        base;
    struct shm_link   *next;
    hora_mailbox_end_t out, in;
    hora_xfer_t       *sends, **sends_tail;
    bool               head_sent; /* of the first send */
    bool               broken;    /* nothing can be sent any more: a message was cut off */
    hora_match_t       match;
    hora_inbound_t    *inbound;
    hora_status_t      dead; /* HORA_OK, or why nothing more is read from it */
} shm_link_t;

typedef struct shm_transport {
    hora_transport_t base;
    shm_link_t      *links;
} shm_transport_t;

static bool shm_probe(hora_backend_t *backend) {
    int fd = memfd_create("hora-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) {
        snprintf(backend->detail, sizeof(backend->detail), "memfd_create is not permitted here");
        snprintf(backend->remedy, sizeof(backend->remedy), "allow memfd_create in the sandbox's "
                 "system call filter (Linux 3.17 or later)");
        return false;
    }
    close(fd);
    snprintf(backend->detail, sizeof(backend->detail), "memfd arena, push reduction");
    return true;
}

static hora_status_t shm_start(hora_world_t *world, hora_transport_t **self_p) {
    shm_transport_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "shm transport");
    self->base.ops = &hora_transport_shm;
    self->base.world = world;
    *self_p = &self->base;
    return HORA_OK;
}

static hora_status_t shm_address(hora_transport_t *self, void *buf, size_t *len_p) {
    (void)self;
    (void)buf;
    *len_p = 0; /* the arena's memfd was passed by the bootstrap */
    return HORA_OK;
}

static bool shm_reachable(hora_transport_t *self, int peer, const void *addr, size_t len) {
    hora_world_t *world = self->world;
    return world->arena != NULL && peer != world->rank && world->peers[peer].local >= 0;
}

static hora_status_t shm_connect(hora_transport_t *transport, int peer, const void *addr, size_t len,
                                 hora_link_t **link_p) {
    shm_transport_t *self = (shm_transport_t *)transport;
    hora_world_t    *world = transport->world;
    shm_link_t      *link = calloc(1, sizeof(*link));
    size_t           bytes;
    void            *box;
    if (link == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "shm link to rank %d", peer);
    link->base.transport = transport;
    link->base.peer = peer;
    link->sends_tail = &link->sends;
    hora_match_init(&link->match);
    box = hora_arena_mailbox(world->arena, world->peers[world->rank].local,
                             world->peers[peer].local, &bytes);
    hora_mailbox_open(&link->out, box, bytes);
    box = hora_arena_mailbox(world->arena, world->peers[peer].local,
                             world->peers[world->rank].local, &bytes);
    hora_mailbox_open(&link->in, box, bytes);
    link->next = self->links;
    self->links = link;
    *link_p = &link->base;
    return HORA_OK;
}

static void ring_peer(shm_link_t *link) {
    hora_peer_t *peer = &link->base.transport->world->peers[link->base.peer];
    if (link->base.transport->world->has_cores)
        hora_apart_note(link->base.transport->world);
    hora_bell_ring(peer->bell, peer->eventfd);
}

/* Writes as much of the first send as there is room for. True when it is out. */
static bool write_first(shm_link_t *link) {
    hora_xfer_t *xfer = link->sends;
    size_t       room = hora_mailbox_room(&link->out), n;
    if (!link->head_sent) {
        head_t head = {xfer->tag, xfer->len, xfer->sig, HEAD_MAGIC, 0};
        if (room < sizeof(head))
            return false;
        hora_mailbox_put(&link->out, &head, sizeof(head));
        room -= sizeof(head);
        link->head_sent = true;
    }
    n = xfer->len - xfer->moved < room ? xfer->len - xfer->moved : room;
    hora_mailbox_put(&link->out, (uint8_t *)xfer->buf + xfer->moved, n);
    xfer->moved += n;
    return xfer->moved == xfer->len;
}

static void pop_send(shm_link_t *link, hora_status_t status) {
    hora_xfer_t *xfer = link->sends;
    link->sends = xfer->next;
    if (link->sends == NULL)
        link->sends_tail = &link->sends;
    link->head_sent = false;
    bool own = xfer->priv == link; /* the rest of a cancelled send, in memory of our own */
    hora_xfer_finish(xfer, status);
    if (own)
        free(xfer);
}

static unsigned flush(shm_link_t *link) {
    uint64_t before = link->out.mine;
    unsigned done = 0;
    while (link->broken && link->sends != NULL)
        pop_send(link, link->dead);
    while (link->sends != NULL && write_first(link)) {
        pop_send(link, HORA_OK);
        done++;
    }
    if (link->out.mine == before)
        return 0;
    hora_mailbox_publish(&link->out);
    ring_peer(link);
    return done + 1;
}

static void shm_send(hora_link_t *base, hora_xfer_t *xfer) {
    shm_link_t *link = (shm_link_t *)base;
    xfer->link = base;
    xfer->next = NULL;
    xfer->priv = NULL;
    xfer->moved = 0;
    if (link->broken) {
        hora_xfer_finish(xfer, link->dead);
        return;
    }
    xfer->status = HORA_IN_PROGRESS;
    *link->sends_tail = xfer;
    link->sends_tail = &xfer->next;
    if (link->sends == xfer)
        flush(link);
}

static void shm_recv(hora_link_t *base, hora_xfer_t *xfer) {
    shm_link_t *link = (shm_link_t *)base;
    xfer->link = base;
    hora_match_post(&link->match, xfer);
    if (link->dead != HORA_OK && !hora_xfer_done(xfer)) {
        hora_match_cancel(&link->match, xfer);
        hora_xfer_finish(xfer, link->dead);
    }
}

static void give_up(shm_link_t *link, const char *why) {
    hora_peer_t *peer = &link->base.transport->world->peers[link->base.peer];
    link->dead = hora_fail(HORA_ERR_PROTOCOL, "shared memory from rank %d on host %s: %s",
                           link->base.peer, peer->host, why);
    hora_match_fail(&link->match, link->dead); /* drops what was arriving, too */
    link->inbound = NULL;
}

/* Reads the next head. True when a message has begun. */
static bool read_head(shm_link_t *link, size_t ready) {
    head_t head;
    if (ready < sizeof(head))
        return false;
    hora_mailbox_take(&link->in, &head, sizeof(head));
    if (head.magic != HEAD_MAGIC) {
        give_up(link, "malformed message");
        return false;
    }
    if (hora_match_arrive(&link->match, head.tag, head.sig, (size_t)head.len, &link->inbound) !=
        HORA_OK) {
        give_up(link, "no memory for a message");
        return false;
    }
    return true;
}

static bool read_some(shm_link_t *link) {
    size_t          ready = hora_mailbox_ready(&link->in), n;
    hora_inbound_t *inbound;
    if (ready == SIZE_MAX) {
        give_up(link, "impossible counter");
        return false;
    }
    if (link->inbound == NULL) {
        if (!read_head(link, ready))
            return false;
        ready -= sizeof(head_t);
    } else if (ready == 0) {
        return false;
    }
    inbound = link->inbound;
    n = inbound->len - inbound->filled < ready ? inbound->len - inbound->filled : ready;
    if (inbound->body != NULL)
        hora_mailbox_take(&link->in, inbound->body + inbound->filled, n);
    else
        hora_mailbox_skip(&link->in, n); /* cancelled, and no memory to keep it in */
    inbound->filled += n;
    if (inbound->filled == inbound->len) {
        link->inbound = NULL;
        hora_match_arrived(&link->match, inbound);
    }
    return true;
}

static unsigned drain(shm_link_t *link) {
    uint64_t before = link->in.mine;
    if (link->dead != HORA_OK)
        return 0;
    while (link->dead == HORA_OK && read_some(link))
        ;
    if (link->in.mine == before)
        return 0;
    hora_mailbox_release(&link->in);
    ring_peer(link);
    return 1;
}

static unsigned shm_progress(hora_transport_t *transport, const hora_xfer_t *awaited) {
    unsigned events = 0;
    (void)awaited;
    for (shm_link_t *link = ((shm_transport_t *)transport)->links; link; link = link->next) {
        if (link->sends != NULL)
            events += flush(link);
        events += drain(link);
    }
    return events;
}

/* The stream must stay whole: what is left of a send that has begun goes out of our own memory. */
static hora_xfer_t *keep_rest(shm_link_t *link, const hora_xfer_t *xfer) {
    size_t       rest = xfer->len - xfer->moved;
    hora_xfer_t *copy = malloc(sizeof(*copy) + rest);
    if (copy == NULL)
        return NULL;
    *copy = *xfer;
    copy->priv = link;
    copy->buf = (uint8_t *)(copy + 1) - xfer->moved;
    memcpy(copy + 1, (uint8_t *)xfer->buf + xfer->moved, rest);
    return copy;
}

static bool cancel_send(shm_link_t *link, hora_xfer_t *xfer) {
    for (hora_xfer_t **at = &link->sends; *at != NULL; at = &(*at)->next) {
        if (*at != xfer)
            continue;
        hora_xfer_t *next = xfer->next;
        if (xfer == link->sends && link->head_sent) {
            hora_xfer_t *copy = keep_rest(link, xfer);
            if (copy == NULL) {
                give_up(link, "no memory to finish a cancelled send");
                link->broken = true;
            } else {
                next = copy;
            }
        }
        *at = next;
        for (link->sends_tail = &link->sends; *link->sends_tail != NULL;)
            link->sends_tail = &(*link->sends_tail)->next;
        hora_xfer_finish(xfer, HORA_ERR_ABORTED);
        return true;
    }
    return false;
}

static void shm_cancel(hora_link_t *base, hora_xfer_t *xfer) {
    shm_link_t *link = (shm_link_t *)base;
    if (!cancel_send(link, xfer))
        hora_match_cancel(&link->match, xfer);
}

static int shm_fd(hora_transport_t *self) {
    return HORA_FD_BELL;
}

static void shm_disconnect(hora_link_t *base) {
    shm_link_t  *link = (shm_link_t *)base;
    shm_link_t **at = &((shm_transport_t *)base->transport)->links;
    while (link->sends != NULL)
        pop_send(link, HORA_ERR_SHUT_DOWN);
    if (link->inbound != NULL && link->inbound->xfer != NULL)
        hora_xfer_finish(link->inbound->xfer, HORA_ERR_SHUT_DOWN);
    hora_match_fail(&link->match, HORA_ERR_SHUT_DOWN);
    hora_match_destroy(&link->match);
    while (*at != link)
        at = &(*at)->next;
    *at = link->next;
    free(link);
}

static void shm_close(hora_transport_t *transport) {
    shm_transport_t *self = (shm_transport_t *)transport;
    while (self->links != NULL)
        shm_disconnect(&self->links->base);
    free(self);
}

const hora_transport_ops_t hora_transport_shm = {
    .size = sizeof(hora_transport_ops_t),
    .name = "shm",
    .probe = shm_probe,
    .open = shm_start,
    .close = shm_close,
    .address = shm_address,
    .reachable = shm_reachable,
    .connect = shm_connect,
    .send = shm_send,
    .recv = shm_recv,
    .cancel = shm_cancel,
    .progress = shm_progress,
    .fd = shm_fd,
    .disconnect = shm_disconnect,
};
