/*
 * Rank 0 at the gate (gate.h), on the joining thread: several handshakes at once, so that nobody
 * waits for a silent stranger.
 *
 * A stranger costs at most one of PENDING_MAX places for PENDING_NS, 256 bytes, and is closed. When
 * all places are taken, the one that has been silent longest makes room; a rank of the job says
 * what it has to say at once, and looks for us again when it was turned away too early.
 */
#include "bootstrap/gate.h"

#include "bootstrap/endpoint.h"
#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PENDING_MAX  64
#define PENDING_NS   5000000000u
#define EVICT_NS     100000000u /* a place is kept for so long at least */
#define STRANGER_MAX 116u       /* payload of a frame before the proof */
#define TEXT_MAX     1600       /* why the job cannot start; less than HORA_FAIL_MAX */

typedef struct visitor {
    hora_conn_t  conn; /* fd -1: the place is free */
    uint64_t     since;
    bool         challenged; /* said hello; its proof is awaited */
    hora_hello_t hello;
    uint8_t      nonce[HORA_NONCE_BYTES];
} visitor_t;

typedef struct gate {
    const hora_meeting_t *meeting;
    hora_star_t          *star;
    int                   listener;
    visitor_t             visitors[PENDING_MAX];
    uint8_t              *here; /* [size]: 1: this rank has come */
    int                   missing;
    struct pollfd        *fds; /* [1 + PENDING_MAX + size], the first are in use */
    int                  *places; /* [size]: where a rank's connection is among them; 0: nowhere */
    int                   refused;
    char                  last_refusal[512];
    hora_status_t         status; /* not HORA_OK: the job cannot start */
    char                  text[TEXT_MAX];
} gate_t;

static void end_job(gate_t *gate, hora_status_t status, const char *text) {
    if (gate->status != HORA_OK)
        return;
    gate->status = status;
    snprintf(gate->text, sizeof(gate->text), "%s", text);
}

/* Says why, once, without waiting, and closes. */
static void turn_away(visitor_t *v, hora_status_t status, uint32_t flags, const char *text) {
    uint8_t bytes[HORA_FAIL_MAX];
    size_t  len = hora_fail_encode(status, flags, text, bytes);
    if (hora_conn_queue(&v->conn, HORA_FRAME_FAIL, bytes, len))
        hora_conn_flush(&v->conn);
    hora_conn_close(&v->conn);
}

static void refuse(gate_t *gate, visitor_t *v, hora_status_t status, uint32_t flags,
                   const char *text) {
    hora_log(HORA_LOG_INFO, "refused a connection at %s: %s", gate->meeting->place.text, text);
    gate->refused++;
    snprintf(gate->last_refusal, sizeof(gate->last_refusal), "%s", text);
    turn_away(v, status, flags, text);
}

static bool check_duplicate(gate_t *gate, visitor_t *v) {
    char      text[512];
    const int rank = v->hello.rank;
    if (!gate->here[rank])
        return true;
    snprintf(text, sizeof(text), "two processes say that they are rank %d: one on host %s, one on "
             "host %s", rank, gate->star->hosts[rank], v->hello.host);
    turn_away(v, HORA_ERR_MISMATCH, 0, text);
    end_job(gate, HORA_ERR_MISMATCH, text);
    return false;
}

static void admit(gate_t *gate, visitor_t *v) {
    int rank = v->hello.rank;
    if (!check_duplicate(gate, v))
        return;
    hora_conn_t *conn = &gate->star->conns[rank];
    *conn = v->conn;
    conn->rank = rank;
    conn->limit = HORA_FAIL_MAX + HORA_BLOB_MAX;
    memset(&v->conn, 0, sizeof(v->conn));
    v->conn.fd = -1;
    snprintf(gate->star->hosts[rank], HORA_HOST_MAX, "%s", v->hello.host);
    gate->here[rank] = 1;
    gate->missing--;
    if (!gate->meeting->place.local)
        hora_net_keep(conn->fd);
    hora_log(HORA_LOG_DEBUG, "rank %d on host %s is here; %d missing", rank, v->hello.host,
             gate->missing);
}

static void answer_hello(gate_t *gate, visitor_t *v, const hora_frame_t *frame) {
    const hora_ticket_t *ticket = &gate->meeting->ticket;
    uint8_t              bytes[HORA_CHALLENGE_BYTES];
    char                 text[512];
    hora_status_t        status = HORA_ERR_PROTOCOL;
    if (!hora_hello_decode(frame, &v->hello)) {
        refuse(gate, v, HORA_ERR_PROTOCOL, HORA_FAIL_ELSEWHERE, "a malformed greeting");
        return;
    }
    switch (hora_hello_judge(ticket, &v->hello, &status, text, sizeof(text))) {
    case HORA_VERDICT_OK: break;
    case HORA_VERDICT_STRANGER: refuse(gate, v, status, HORA_FAIL_ELSEWHERE, text); return;
    case HORA_VERDICT_REFUSED: refuse(gate, v, status, 0, text); return;
    case HORA_VERDICT_FATAL:
        turn_away(v, status, 0, text);
        end_job(gate, status, text);
        return;
    }
    status = hora_random_bytes(v->nonce, sizeof(v->nonce));
    if (status != HORA_OK) {
        end_job(gate, status, hora_last_error());
        return;
    }
    hora_challenge_encode(ticket, &v->hello, v->nonce, bytes);
    v->challenged = true;
    if (!hora_conn_queue(&v->conn, HORA_FRAME_CHALLENGE, bytes, sizeof(bytes)) ||
        !hora_conn_flush(&v->conn))
        hora_conn_close(&v->conn);
}

static void answer_proof(gate_t *gate, visitor_t *v, const hora_frame_t *frame) {
    char text[512];
    if (hora_proof_check(&gate->meeting->ticket, &v->hello, v->nonce, frame)) {
        admit(gate, v);
        return;
    }
    snprintf(text, sizeof(text), "rank %d on host %s did not prove the job's secret to rank 0 on "
             "host %s: set the same HORA_SECRET on all ranks", v->hello.rank, v->hello.host,
             gate->meeting->ticket.host);
    refuse(gate, v, HORA_ERR_AUTHENTICATION, 0, text);
}

/* One that leaves after the challenge did not like rank 0's proof. */
static void departed(gate_t *gate, visitor_t *v) {
    char text[256];
    snprintf(text, sizeof(text), "rank %d on host %s went away before its proof: does it have "
             "another HORA_SECRET?", v->hello.rank, v->hello.host);
    if (v->challenged)
        refuse(gate, v, HORA_ERR_AUTHENTICATION, 0, text);
    else
        hora_conn_close(&v->conn);
}

static void hear(gate_t *gate, visitor_t *v) {
    hora_frame_t frame;
    switch (hora_conn_read(&v->conn, &frame)) {
    case HORA_READ_NOTHING: return;
    case HORA_READ_END: departed(gate, v); return;
    case HORA_READ_BAD:
        refuse(gate, v, HORA_ERR_PROTOCOL, HORA_FAIL_ELSEWHERE, "not hora's handshake");
        return;
    case HORA_READ_FRAME: break;
    }
    if (v->challenged)
        answer_proof(gate, v, &frame);
    else
        answer_hello(gate, v, &frame);
}

/* A rank that was admitted says nothing until all are there, unless why it leaves: an
 * event is its end. */
static void hear_admitted(gate_t *gate, int rank) {
    char          text[TEXT_MAX];
    uint32_t      flags;
    hora_frame_t  frame;
    hora_conn_t  *conn = &gate->star->conns[rank];
    hora_read_t   got = hora_conn_read(conn, &frame);
    hora_status_t status = HORA_ERR_PEER_FAILED;
    if (got == HORA_READ_NOTHING)
        return;
    snprintf(text, sizeof(text), "rank %d on host %s died while the job was starting", rank,
             gate->star->hosts[rank]);
    if (got == HORA_READ_FRAME && frame.type == HORA_FRAME_FAIL)
        hora_fail_decode(&frame, &status, &flags, text, sizeof(text));
    hora_conn_close(conn);
    end_job(gate, status, text);
}

/* ---- visitors come and go -------------------------------------------------------------------- */

static visitor_t *free_place(gate_t *gate, uint64_t now) {
    visitor_t *oldest = NULL;
    for (int i = 0; i < PENDING_MAX; i++) {
        visitor_t *v = &gate->visitors[i];
        if (v->conn.fd < 0)
            return v;
        if (oldest == NULL || v->since < oldest->since)
            oldest = v;
    }
    if (now - oldest->since < EVICT_NS)
        return NULL;
    hora_conn_close(&oldest->conn);
    return oldest;
}

static void expire(gate_t *gate, uint64_t now) {
    for (int i = 0; i < PENDING_MAX; i++) {
        visitor_t *v = &gate->visitors[i];
        if (v->conn.fd >= 0 && now - v->since >= PENDING_NS)
            refuse(gate, v, HORA_ERR_TIMEOUT, HORA_FAIL_ELSEWHERE, "silent for 5 s");
    }
}

static void end_by_system(gate_t *gate, int error, const char *what) {
    char text[512];
    snprintf(text, sizeof(text), "rank 0 on host %s cannot %s: %s", gate->meeting->ticket.host,
             what, strerror(error));
    end_job(gate, HORA_ERR_SYSTEM, text);
}

/* Out of descriptors? Visitors leave in time; where there are none, it will not get better. */
static void check_descriptors(gate_t *gate, int error) {
    if (error != EMFILE && error != ENFILE)
        return; /* nobody is there, or not any more */
    for (int i = 0; i < PENDING_MAX; i++)
        if (gate->visitors[i].conn.fd >= 0)
            return;
    end_by_system(gate, error, "let another rank in (ulimit -n)");
}

static void accept_some(gate_t *gate) {
    for (int i = 0; i < PENDING_MAX; i++) {
        uint64_t   now = hora_clock_ns();
        visitor_t *v = free_place(gate, now);
        int        fd;
        if (v == NULL)
            return;
        fd = accept4(gate->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0) {
            check_descriptors(gate, errno);
            return;
        }
        memset(v, 0, sizeof(*v));
        hora_conn_init(&v->conn, fd, -1, STRANGER_MAX);
        v->since = now;
        if (gate->meeting->place.local && !hora_unix_same_user(fd))
            refuse(gate, v, HORA_ERR_AUTHENTICATION, 0,
                   "a process of another user, who may not join this job");
    }
}

static bool crowded(const gate_t *gate) {
    for (int i = 0; i < PENDING_MAX; i++)
        if (gate->visitors[i].conn.fd < 0)
            return false;
    return true;
}

/* Appends a descriptor, should it be one: poll takes no more entries than `ulimit -n` says. Returns
 * its place, 0 if it has none. */
static int poll_too(gate_t *gate, int *n, int fd) {
    if (fd < 0)
        return 0;
    gate->fds[*n] = (struct pollfd){fd, POLLIN, 0};
    return (*n)++;
}

/* One round of waiting and answering. */
static void attend(gate_t *gate, uint64_t deadline) {
    struct pollfd *fds = gate->fds;
    const int      size = gate->star->size;
    uint64_t       until = deadline;
    bool           full = crowded(gate);
    int            n = 1, visitors[PENDING_MAX];
    fds[0] = (struct pollfd){full ? -1 : gate->listener, POLLIN, 0};
    for (int i = 0; i < PENDING_MAX; i++) {
        const visitor_t *v = &gate->visitors[i];
        uint64_t         end = v->since + (full ? EVICT_NS : PENDING_NS);
        visitors[i] = poll_too(gate, &n, v->conn.fd);
        if (v->conn.fd >= 0 && end < until)
            until = end;
    }
    for (int r = 0; r < size; r++)
        gate->places[r] = poll_too(gate, &n, gate->star->conns[r].fd);
    if (poll(fds, (nfds_t)n, hora_poll_timeout(until)) < 0) {
        if (errno != EINTR)
            end_by_system(gate, errno, "poll for the other ranks");
        return;
    }
    for (int i = 0; i < PENDING_MAX; i++)
        if (visitors[i] > 0 && fds[visitors[i]].revents)
            hear(gate, &gate->visitors[i]);
    for (int r = 0; r < size; r++)
        if (gate->places[r] > 0 && fds[gate->places[r]].revents)
            hear_admitted(gate, r);
    expire(gate, hora_clock_ns());
    if (full || fds[0].revents)
        accept_some(gate);
}

double hora_gate_waited(const hora_meeting_t *meeting, uint64_t deadline) {
    uint64_t now = hora_clock_ns();
    double   waited = meeting->patience;
    if (now < deadline)
        waited -= hora_clock_seconds(deadline - now);
    return (double)(int64_t)(waited * 100 + 0.5) / 100;
}

static void end_by_deadline(gate_t *gate, uint64_t deadline) {
    const hora_meeting_t *m = gate->meeting;
    char                  ranks[256], refusals[640] = "";
    char                  text[TEXT_MAX];
    bool                  cancelled = hora_poll_cancelled();
    hora_ranks_write(gate->here, gate->star->size, 0, ranks, sizeof(ranks));
    if (gate->refused > 0)
        snprintf(refusals, sizeof(refusals), "; %d connection%s refused, the last: %s",
                 gate->refused, gate->refused == 1 ? " was" : "s were", gate->last_refusal);
    snprintf(text, sizeof(text), "%srank%s %s of %d did not appear at %s on host %s within %g s%s%s",
             cancelled ? "rank 0's joining was cancelled: " : "", gate->missing == 1 ? "" : "s", ranks,
             gate->star->size, m->place.text, m->ticket.host,
             hora_gate_waited(m, deadline), refusals, m->place.hint);
    end_job(gate, cancelled ? HORA_ERR_ABORTED : HORA_ERR_TIMEOUT, text);
}

static hora_status_t welcome(gate_t *gate, uint64_t deadline) {
    const char *host = gate->meeting->ticket.host;
    for (int r = 1; r < gate->star->size && gate->status == HORA_OK; r++)
        if (hora_conn_send(&gate->star->conns[r], HORA_FRAME_WELCOME, host, strlen(host),
                           deadline) != HORA_IO_OK)
            hear_admitted(gate, r);
    return gate->status;
}

static hora_status_t open_gate(gate_t *gate, hora_meeting_t *meeting, hora_star_t *star,
                               uint64_t deadline) {
    hora_place_t *place = &meeting->place;
    gate->meeting = meeting;
    gate->star = star;
    gate->listener = -1;
    for (int i = 0; i < PENDING_MAX; i++)
        gate->visitors[i].conn.fd = -1;
    gate->here = calloc((size_t)star->size, 1);
    gate->fds = calloc((size_t)(1 + PENDING_MAX + star->size), sizeof(*gate->fds));
    gate->places = calloc((size_t)star->size, sizeof(*gate->places));
    if (gate->here == NULL || gate->fds == NULL || gate->places == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a rendezvous of %d ranks", star->size);
    gate->here[0] = 1;
    gate->missing = star->size - 1;
    if (!place->local)
        return hora_net_listen(place, meeting->interface, meeting->wide, deadline,
                               &gate->listener);
    gate->listener = hora_unix_listen(place->name, SOMAXCONN);
    while (gate->listener < 0 && errno == EADDRINUSE && !hora_poll_late(deadline)) {
        usleep(5000);
        gate->listener = hora_unix_listen(place->name, SOMAXCONN);
    }
    if (gate->listener < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "rank 0 cannot listen at %s (from %s)",
                               place->text, place->why);
    return HORA_OK;
}

static void close_gate(gate_t *gate) {
    for (int i = 0; i < PENDING_MAX; i++)
        hora_conn_close(&gate->visitors[i].conn);
    if (gate->listener >= 0)
        close(gate->listener);
    free(gate->here);
    free(gate->fds);
    free(gate->places);
    free(gate);
}

hora_status_t hora_gate_keep(hora_meeting_t *meeting, hora_star_t *star) {
    uint64_t      deadline = hora_clock_ns() + hora_clock_from_seconds(meeting->patience);
    gate_t       *gate = calloc(1, sizeof(*gate));
    hora_status_t st;
    if (gate == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a rendezvous of %d ranks", star->size);
    st = open_gate(gate, meeting, star, deadline);
    if (st != HORA_OK) {
        close_gate(gate);
        return st;
    }
    hora_log(HORA_LOG_INFO, "waiting for %d ranks at %s (from %s)", gate->missing,
             meeting->place.text, meeting->place.why);
    while (gate->status == HORA_OK && gate->missing > 0) {
        if (hora_poll_late(deadline))
            end_by_deadline(gate, deadline);
        else
            attend(gate, deadline);
    }
    if (gate->status == HORA_OK)
        welcome(gate, hora_clock_ns() + 5000000000u);
    st = gate->status;
    if (st != HORA_OK) {
        hora_star_fail(star, st, gate->text);
        hora_fail(st, "%s", gate->text);
    }
    close_gate(gate);
    return st;
}
