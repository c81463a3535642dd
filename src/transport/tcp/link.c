/*
 * Links: made when a rank is connected to or says hello, whichever is first; how they fail. Under
 * world->lock.
 *
 * The two directions fail apart: a rank that leaves in order closes all connections, and what it sent
 * before must still arrive although nothing can be sent to it.
 */
#include "transport/tcp/tcp.h"

#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

hora_tcp_link_t *hora_tcp_link_get(hora_tcp_t *self, int peer) {
    hora_tcp_link_t *link = self->links[peer];
    if (link != NULL)
        return link;
    link = calloc(1, sizeof(*link));
    if (link == NULL)
        return NULL;
    link->base.transport = &self->base;
    link->base.peer = peer;
    hora_match_init(&link->match);
    self->links[peer] = link;
    return link;
}

void hora_tcp_link_lost_text(const hora_tcp_link_t *link, int err, char *text, size_t size) {
    hora_peer_t *peer = &link->base.transport->world->peers[link->base.peer];
    if (err == 0 && atomic_load(&peer->gone))
        snprintf(text, size, "rank %d on host %s has left", link->base.peer, peer->host);
    else
        snprintf(text, size, "connection to rank %d on host %s was lost (%s)", link->base.peer,
                 peer->host, err == 0 ? "closed by the other side" : strerror(err));
}

static bool receives_pending(const hora_match_t *match) {
    if (match->posted != NULL)
        return true;
    for (const hora_inbound_t *in = match->inbound; in != NULL; in = in->next)
        if (in->xfer != NULL)
            return true;
    return false;
}

static bool sends_pending(const hora_tcp_link_t *link) {
    for (const hora_tcp_send_t *send = link->sends; send != NULL; send = send->next)
        if (send->xfer != NULL)
            return true;
    return false;
}

/* Keeps the first reason, and records it where it hurts somebody. */
static void note(hora_tcp_link_t *link, hora_status_t status, const char *text, bool pending) {
    if (link->send_status == HORA_OK && link->recv_status == HORA_OK)
        snprintf(link->text, sizeof(link->text), "%s", text);
    if (pending)
        hora_fail(status, "%s", text);
    else
        hora_log(HORA_LOG_DEBUG, "tcp: %s", text);
}

void hora_tcp_in_close(hora_tcp_in_t *in) {
    hora_tcp_link_t *link = in->link;
    link->in[in->index] = NULL;
    if (link->latest == in)
        link->latest = NULL;
    link->in_open--;
    link->stalled -= in->stalled;
    in->conn->reads = false;
    hora_tcp_conn_release(hora_tcp_of(link), in->conn);
}

static void free_parts(hora_tcp_link_t *link) {
    while (link->parts != NULL) {
        hora_tcp_part_t *next = link->parts->next;
        free(link->parts);
        link->parts = next;
    }
}

void hora_tcp_link_fail_receives(hora_tcp_link_t *link, hora_status_t status, const char *text) {
    if (link->recv_status != HORA_OK)
        return;
    note(link, status, text, receives_pending(&link->match));
    link->recv_status = status;
    for (int i = 0; i < HORA_TCP_WAYS; i++)
        if (link->in[i] != NULL)
            hora_tcp_in_close(link->in[i]);
    link->paused = 0;
    hora_match_fail(&link->match, status);
    free_parts(link);
}

void hora_tcp_link_fail_sends(hora_tcp_link_t *link, hora_status_t status, const char *text) {
    if (link->send_status != HORA_OK)
        return;
    note(link, status, text, sends_pending(link));
    link->send_status = status;
    for (int i = 0; i < HORA_TCP_WAYS; i++)
        if (link->out[i] != NULL)
            hora_tcp_out_close(link->out[i]);
    while (link->sends != NULL) {
        if (link->sends->xfer != NULL)
            hora_xfer_finish(link->sends->xfer, status);
        hora_tcp_send_free(link, link->sends);
    }
    hora_tcp_link_ended(link);
}

void hora_tcp_link_ended(hora_tcp_link_t *link) {
    if (link->in_open > 0 || link->dying || link->recv_status != HORA_OK)
        return;
    link->ended = hora_clock_ns();
    hora_tcp_timer_want(hora_tcp_of(link), HORA_TCP_END_NS);
}

void hora_tcp_link_fail(hora_tcp_link_t *link, hora_status_t status, const char *text) {
    char copy[sizeof(link->text)];
    if (link->dying)
        return;
    snprintf(copy, sizeof(copy), "%s", text);
    link->dying = true;
    if (status == HORA_ERR_PEER_FAILED)
        hora_tcp_drain(link);
    hora_tcp_link_fail_receives(link, status, copy);
    hora_tcp_link_fail_sends(link, status, copy);
    link->dying = false;
}

void hora_tcp_link_free(hora_tcp_link_t *link, hora_status_t status) {
    hora_tcp_t *self = hora_tcp_of(link);
    link->dying = true;
    hora_tcp_link_fail_receives(link, status, "the link was closed");
    hora_tcp_link_fail_sends(link, status, "the link was closed");
    hora_match_destroy(&link->match);
    self->links[link->base.peer] = NULL;
    free(link);
}

/* Has the peer's kernel stopped to answer? A receiver that just does not read still answers. */
static bool silent(int fd) {
    struct tcp_info info;
    socklen_t       len = sizeof(info);
    memset(&info, 0, sizeof(info));
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) != 0)
        return false;
    return info.tcpi_last_ack_recv >= HORA_TCP_SILENT_NS / 1000000u &&
           ((info.tcpi_unacked > 0 && info.tcpi_retransmits >= 2) || info.tcpi_probes >= 4);
}

/* Looks at one outgoing connection; false: it failed, and all with it. */
static bool out_tick(hora_tcp_link_t *link, hora_tcp_out_t *out, uint64_t now) {
    double limit = link->base.transport->world->settings.start_timeout;
    if (out->connecting && (double)(now - out->opened) * 1e-9 > limit) {
        hora_tcp_out_failed(out, ETIMEDOUT);
        return false;
    }
    if (out->blocked && !out->connecting && silent(out->conn->source.fd)) {
        char text[sizeof(link->text)];
        hora_tcp_link_lost_text(link, EHOSTUNREACH, text, sizeof(text));
        hora_tcp_link_fail(link, HORA_ERR_PEER_FAILED, text);
        return false;
    }
    return true;
}

/* True: it may still be that a connection comes. */
static bool end_tick(hora_tcp_link_t *link, uint64_t now) {
    hora_status_t status = link->send_status != HORA_OK ? link->send_status : HORA_ERR_PEER_FAILED;
    char          text[sizeof(link->text)];
    if (link->ended == 0 || link->recv_status != HORA_OK)
        return false;
    if (now - link->ended < HORA_TCP_END_NS)
        return true;
    if (link->send_status != HORA_OK)
        snprintf(text, sizeof(text), "%s", link->text);
    else
        hora_tcp_link_lost_text(link, 0, text, sizeof(text));
    hora_tcp_link_fail_receives(link, status, text);
    return false;
}

uint64_t hora_tcp_link_tick(hora_tcp_link_t *link, uint64_t now) {
    uint64_t want = end_tick(link, now) ? HORA_TCP_END_NS : 0;
    for (int i = 0; i < HORA_TCP_WAYS && link->send_status == HORA_OK; i++) {
        if (link->out[i] == NULL || !link->out[i]->blocked)
            continue;
        if (!out_tick(link, link->out[i], now))
            break;
        want = want != 0 ? want : HORA_TCP_TICK_NS;
    }
    if (link->paused != 0 && now - link->paused >= HORA_TCP_PAUSE_NS) {
        link->force = true;
        hora_tcp_resume(link);
    }
    return link->paused != 0 ? HORA_TCP_PAUSE_NS : want;
}
