/*
 * Point to point over whatever carries it (p2p.h). Any thread; every transport runs under
 * world->lock, taken here and nowhere else. A message to oneself is matched like any other, on a
 * match list of the world's own.
 */
#include "transport/p2p.h"

#include "transport/match.h"
#include "transport/wait.h"

#include <string.h>

static void start_failed(hora_xfer_t *xfer, hora_status_t status) {
    xfer->link = NULL;
    xfer->status = status;
}

/* To oneself: the whole message is there at once. */
static void send_to_self(hora_world_t *world, hora_xfer_t *xfer) {
    hora_inbound_t *inbound;
    xfer->link = NULL;
    xfer->status = hora_match_arrive(world->self, xfer->tag, xfer->sig, xfer->len, &inbound);
    if (xfer->status != HORA_OK)
        return;
    if (xfer->len > 0)
        memcpy(inbound->body, xfer->buf, xfer->len);
    inbound->filled = xfer->moved = xfer->len;
    hora_match_arrived(world->self, inbound);
}

void hora_p2p_send(hora_world_t *world, int peer, hora_xfer_t *xfer) {
    hora_link_t *link = world->peers[peer].link;
    xfer->moved = 0;
    pthread_mutex_lock(&world->lock);
    if (peer == world->rank)
        send_to_self(world, xfer);
    else if (link != NULL)
        link->transport->ops->send(link, xfer);
    else
        start_failed(xfer, hora_fail(HORA_ERR_INTERNAL, "no link to rank %d", peer));
    pthread_mutex_unlock(&world->lock);
}

void hora_p2p_recv(hora_world_t *world, int peer, hora_xfer_t *xfer) {
    hora_link_t *link = world->peers[peer].link;
    xfer->moved = 0;
    pthread_mutex_lock(&world->lock);
    if (peer == world->rank) {
        xfer->link = NULL;
        hora_match_post(world->self, xfer);
    } else if (link != NULL) {
        link->transport->ops->recv(link, xfer);
    } else {
        start_failed(xfer, hora_fail(HORA_ERR_INTERNAL, "no link to rank %d", peer));
    }
    pthread_mutex_unlock(&world->lock);
}

/* What was moved on may be what another thread of this process sleeps for. */
static unsigned wake_others(hora_world_t *world, unsigned events) {
    if (events == 0)
        return 0;
    atomic_thread_fence(memory_order_seq_cst);
    if (hora_others_sleep(world))
        hora_bell_wake(world->bell, world->eventfd);
    return events;
}

static unsigned progress_all(hora_world_t *world) {
    unsigned events = 0;
    for (int i = 0; i < world->ntransports; i++)
        events += world->transports[i]->ops->progress(world->transports[i], NULL);
    return wake_others(world, events);
}

unsigned hora_p2p_progress(hora_world_t *world) {
    pthread_mutex_lock(&world->lock);
    unsigned events = progress_all(world);
    pthread_mutex_unlock(&world->lock);
    return events;
}

unsigned hora_p2p_look(hora_world_t *world, const hora_xfer_t *xfer) {
    hora_transport_t *transport;
    unsigned          events = 0;
    pthread_mutex_lock(&world->lock);
    if (!hora_xfer_done(xfer) && xfer->link != NULL) {
        transport = xfer->link->transport;
        events = wake_others(world, transport->ops->progress(transport, xfer));
    }
    pthread_mutex_unlock(&world->lock);
    return events;
}

hora_status_t hora_p2p_test(hora_world_t *world, hora_xfer_t *xfer) {
    pthread_mutex_lock(&world->lock);
    if (xfer->status == HORA_IN_PROGRESS)
        progress_all(world);
    hora_status_t st = xfer->status;
    pthread_mutex_unlock(&world->lock);
    return st;
}

static int find_done(hora_xfer_t *const *xfers, int n, int first) {
    for (int k = 0, i = first; k < n; k++, i = i + 1 < n ? i + 1 : 0)
        if (xfers[i] != NULL && xfers[i]->status != HORA_IN_PROGRESS)
            return i;
    return -1;
}

int hora_p2p_test_any(hora_world_t *world, hora_xfer_t *const *xfers, int n, int first,
                      hora_status_t *status_p) {
    pthread_mutex_lock(&world->lock);
    int i = find_done(xfers, n, first);
    if (i < 0 && progress_all(world) > 0)
        i = find_done(xfers, n, first);
    if (i >= 0)
        *status_p = xfers[i]->status;
    pthread_mutex_unlock(&world->lock);
    return i;
}

void hora_p2p_cancel(hora_world_t *world, hora_xfer_t *xfer) {
    pthread_mutex_lock(&world->lock);
    if (xfer->status == HORA_IN_PROGRESS) {
        if (xfer->link != NULL)
            xfer->link->transport->ops->cancel(xfer->link, xfer);
        else
            hora_match_cancel(world->self, xfer);
    }
    pthread_mutex_unlock(&world->lock);
}

hora_status_t hora_p2p_wait(hora_comm_t *comm, hora_xfer_t *xfer, double timeout, const char *what) {
    hora_waiter_t w;
    hora_status_t st = HORA_OK, done = HORA_IN_PROGRESS;
    int           awaited = -1;
    for (int i = 0; xfer->link != NULL && i < comm->size; i++)
        if (comm->world_ranks[i] == xfer->link->peer)
            awaited = i;
    hora_waiter_begin(&w, comm, timeout, what);
    while (st == HORA_OK && (done = hora_p2p_test(comm->world, xfer)) == HORA_IN_PROGRESS)
        st = hora_waiter_turn(&w, awaited);
    hora_waiter_end(&w);
    if (st == HORA_OK && done == HORA_ERR_PEER_FAILED && awaited >= 0) {
        st = hora_wait_cause(comm, awaited, what);
        return st != HORA_OK ? st
                             : hora_fail(done, "%s: the link to rank %d on host %s has broken", what,
                                         awaited, hora_comm_peer(comm, awaited)->host);
    }
    if (st == HORA_OK)
        return done;
    hora_p2p_cancel(comm->world, xfer);
    return st;
}
