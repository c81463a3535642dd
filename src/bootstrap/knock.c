/*
 * The other ranks at the gate (gate.h), on the joining thread.
 *
 * Rank 0 may not be there yet, and someone else may be: until the proof is sent, whatever goes
 * wrong means "look again", at the next address or a little later. After it only rank 0's word
 * counts.
 */
#include "bootstrap/endpoint.h"
#include "bootstrap/gate.h"
#include "bootstrap/wire.h"
#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAUSE_FIRST_NS    1000000u
#define PAUSE_MOST_NS     20000000u
#define PAUSE_STRANGER_NS 250000000u /* somebody else is there, or our secrets differ */

typedef struct knock {
    hora_meeting_t *meeting;
    hora_star_t    *star;
    uint64_t        deadline;
    char            reason[640]; /* why the last try came to nothing */
    hora_status_t   status;      /* of that reason */
} knock_t;

typedef enum outcome { IN, AGAIN, OUT } outcome_t;

static outcome_t again(knock_t *k, hora_status_t status, const char *reason) {
    k->status = status;
    snprintf(k->reason, sizeof(k->reason), "%.*s", (int)sizeof(k->reason) - 1, reason);
    return AGAIN;
}

/* For good; the text is this thread's last error already. */
static outcome_t out(knock_t *k, hora_status_t status) {
    k->status = status;
    return OUT;
}

static outcome_t heard_failure(knock_t *k, const hora_frame_t *frame) {
    char          text[HORA_FAIL_MAX];
    hora_status_t status;
    uint32_t      flags;
    hora_fail_decode(frame, &status, &flags, text, sizeof(text));
    if (flags & HORA_FAIL_ELSEWHERE)
        return again(k, status, text);
    return out(k, hora_fail(status, "%s", text));
}

/* Says who I am and hears what rank 0 asks. Strangers who answer nothing cost a second. */
static outcome_t greet(knock_t *k, hora_conn_t *conn, const uint8_t *hello, hora_frame_t *frame) {
    const hora_ticket_t *ticket = &k->meeting->ticket;
    uint64_t until = hora_clock_ns() + (ticket->local ? 5000000000u : 1000000000u);
    hora_io_t io = hora_conn_send(conn, HORA_FRAME_HELLO, hello, HORA_HELLO_BYTES, until);
    if (io == HORA_IO_OK)
        io = hora_conn_receive(conn, frame, until);
    if (io == HORA_IO_TIMEOUT)
        return again(k, HORA_ERR_TIMEOUT, "somebody listens there but does not answer");
    if (io == HORA_IO_BAD)
        return again(k, HORA_ERR_PROTOCOL, "what answers there is not hora");
    if (io != HORA_IO_OK)
        return again(k, HORA_ERR_PEER_FAILED, "the connection was closed at once");
    if (frame->type == HORA_FRAME_FAIL)
        return heard_failure(k, frame);
    if (!hora_challenge_check(ticket, hello, frame))
        return again(k, HORA_ERR_AUTHENTICATION, "what answers there did not prove the job's "
                     "secret: set the same HORA_SECRET on all ranks");
    return IN;
}

static outcome_t await_welcome(knock_t *k, hora_conn_t *conn) {
    const hora_meeting_t *m = k->meeting;
    hora_frame_t          frame;
    /* Rank 0 was there before, so its patience ends first, and it says who is missing. */
    uint64_t  until = hora_clock_ns() + hora_clock_from_seconds(m->patience + 5);
    hora_io_t io = hora_conn_receive(conn, &frame, until);
    if (io == HORA_IO_OK && frame.type == HORA_FRAME_FAIL)
        return heard_failure(k, &frame);
    if (io == HORA_IO_OK && frame.type == HORA_FRAME_WELCOME && frame.len < HORA_HOST_MAX) {
        char *host = k->star->hosts[0];
        memcpy(host, frame.payload, frame.len);
        host[frame.len] = '\0';
        hora_text_sanitise(host);
        return IN;
    }
    if (io == HORA_IO_TIMEOUT)
        return out(k, hora_fail(HORA_ERR_TIMEOUT, "rank 0 at %s let this rank in but was silent "
                                "for %g s", m->place.text, m->patience + 5));
    if (io == HORA_IO_END)
        return out(k, hora_fail(HORA_ERR_PEER_FAILED,
                                "rank 0 at %s died while the job was starting", m->place.text));
    return out(k, hora_fail(HORA_ERR_PROTOCOL, "rank 0 at %s sent a malformed message",
                            m->place.text));
}

static outcome_t shake_hands(knock_t *k, hora_conn_t *conn) {
    const hora_ticket_t *ticket = &k->meeting->ticket;
    uint8_t              nonce[HORA_NONCE_BYTES], hello[HORA_HELLO_BYTES], proof[HORA_SECRET_MAX];
    hora_frame_t         frame;
    outcome_t            outcome;
    hora_status_t        st = hora_random_bytes(nonce, sizeof(nonce));
    if (st != HORA_OK)
        return out(k, st);
    hora_hello_encode(ticket, nonce, hello);
    outcome = greet(k, conn, hello, &frame);
    if (outcome != IN)
        return outcome;
    size_t len = hora_proof_encode(ticket, hello, frame.payload, proof);
    if (hora_conn_send(conn, HORA_FRAME_PROOF, proof, len, hora_clock_ns() + 1000000000u) !=
        HORA_IO_OK)
        return again(k, HORA_ERR_PEER_FAILED, "the connection was closed early");
    return await_welcome(k, conn);
}

/* Rank 0 counts on a rank that it has let in; that one must not seem to have died. */
static void say_cancelled(const knock_t *k, hora_conn_t *conn) {
    const hora_ticket_t *ticket = &k->meeting->ticket;
    uint8_t              bytes[HORA_FAIL_MAX];
    char                 text[HORA_HOST_MAX + 64];
    size_t               len;
    snprintf(text, sizeof(text), "the joining of rank %d on host %s was cancelled", ticket->rank,
             ticket->host);
    len = hora_fail_encode(HORA_ERR_ABORTED, 0, text, bytes);
    if (hora_conn_queue(conn, HORA_FRAME_FAIL, bytes, len))
        hora_conn_flush(conn);
}

static outcome_t try_socket(knock_t *k, int fd) {
    hora_conn_t *conn = &k->star->conns[0];
    outcome_t    outcome;
    if (k->meeting->place.local && !hora_unix_same_user(fd)) {
        close(fd);
        return again(k, HORA_ERR_AUTHENTICATION, "a process of another user listens there");
    }
    if (!k->meeting->place.local)
        hora_net_keep(fd);
    hora_conn_init(conn, fd, 0, HORA_FAIL_MAX);
    outcome = shake_hands(k, conn);
    if (outcome == OUT && hora_poll_cancelled())
        say_cancelled(k, conn);
    if (outcome != IN)
        hora_conn_close(conn);
    return outcome;
}

static outcome_t failed_connect(knock_t *k) {
    char text[256];
    if (errno == ECONNREFUSED || errno == ENOENT)
        return again(k, HORA_ERR_TIMEOUT, "nobody listens there");
    snprintf(text, sizeof(text), "cannot connect: %s", strerror(errno));
    return again(k, HORA_ERR_SYSTEM, text);
}

static outcome_t try_local(knock_t *k) {
    int fd = hora_unix_connect(k->meeting->place.name);
    return fd >= 0 ? try_socket(k, fd) : failed_connect(k);
}

/* Tries every address once. A host that drops packets would cost the full time for each port, so
 * the ports after the first are given less. */
static outcome_t try_addresses(knock_t *k) {
    hora_meeting_t  *m = k->meeting;
    hora_endpoint_t *list;
    size_t           count;
    const char      *why;
    outcome_t        outcome = AGAIN;
    hora_status_t    st = hora_net_resolve(&m->place, &list, &count, &why);
    if (st != HORA_OK)
        return out(k, st);
    if (count == 0) {
        char text[400];
        snprintf(text, sizeof(text), "cannot resolve \"%s\": %s", m->place.host, why);
        again(k, HORA_ERR_SYSTEM, text);
    }
    for (size_t i = 0; i < count && outcome == AGAIN && !hora_poll_late(k->deadline); i++) {
        uint64_t until = hora_clock_ns() + (i == 0 ? 2000000000u : 250000000u);
        int      fd = hora_net_connect(&list[i], m->interface,
                                       until < k->deadline ? until : k->deadline);
        if (fd >= 0)
            outcome = try_socket(k, fd);
        else if (i == 0 || errno != ECONNREFUSED)
            outcome = failed_connect(k);
    }
    free(list);
    return outcome;
}

static hora_status_t give_up(const knock_t *k) {
    const hora_meeting_t *m = k->meeting;
    hora_status_t status = k->status == HORA_ERR_AUTHENTICATION ? k->status : HORA_ERR_TIMEOUT;
    return hora_fail(status, "rank 0 did not appear at %s (from %s) within %g s: %s%s%s",
                     m->place.text, m->place.why, hora_gate_waited(m, k->deadline), k->reason,
                     m->place.local ? "; if the ranks are on several hosts or in several "
                                      "containers, set HORA_RENDEZVOUS=tcp:HOST:PORT" : "",
                     m->place.hint);
}

/* In pieces, so that a cancelled joining need not wait for the end. */
static void rest(const knock_t *k, uint64_t pause) {
    uint64_t until = hora_clock_ns() + pause;
    if (until > k->deadline)
        until = k->deadline;
    while (!hora_poll_late(until))
        poll(NULL, 0, hora_poll_timeout(until));
}

hora_status_t hora_gate_knock(hora_meeting_t *meeting, hora_star_t *star) {
    knock_t   k = {meeting, star, 0, "no try was made", HORA_ERR_TIMEOUT};
    uint64_t  pause = PAUSE_FIRST_NS;
    outcome_t outcome = AGAIN;
    k.deadline = hora_clock_ns() + hora_clock_from_seconds(meeting->patience);
    hora_log(HORA_LOG_INFO, "looking for rank 0 at %s (from %s)", meeting->place.text,
             meeting->place.why);
    for (;;) {
        outcome = meeting->place.local ? try_local(&k) : try_addresses(&k);
        if (outcome != AGAIN)
            break;
        if (hora_poll_late(k.deadline))
            return give_up(&k);
        if (k.status == HORA_ERR_AUTHENTICATION || k.status == HORA_ERR_MISMATCH)
            pause = PAUSE_STRANGER_NS;
        rest(&k, pause);
        pause = pause * 3 / 2 < PAUSE_MOST_NS ? pause * 3 / 2 : PAUSE_MOST_NS;
    }
    if (outcome == OUT)
        return k.status;
    star->conns[0].limit = (uint32_t)star->size * (4 + HORA_BLOB_MAX) + HORA_FAIL_MAX;
    return HORA_OK;
}
