/*
 * Control connections (conn.h). Invariants: the magic and the length are checked before a payload
 * is read, and memory for it grows only with bytes that have come.
 */
#include "bootstrap/conn.h"

#include "bootstrap/wire.h"
#include "util/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define MAGIC     0x61726f68u /* "hora" */
#define IN_FIRST  512u
#define CANCEL_MS 20u /* how often a joining that can be cancelled looks */

void hora_conn_init(hora_conn_t *conn, int fd, int rank, uint32_t limit) {
    *conn = (hora_conn_t){.fd = fd, .rank = rank, .limit = limit};
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void hora_conn_close(hora_conn_t *conn) {
    int fd = conn->fd, rank = conn->rank;
    conn->fd = -1; /* first: a child forked right now closes what it finds here */
    if (fd >= 0)
        close(fd);
    free(conn->in);
    free(conn->out);
    *conn = (hora_conn_t){.fd = -1, .rank = rank};
}

static bool grow(uint8_t **buf, size_t *room, size_t need) {
    size_t   more = *room > 0 ? *room : IN_FIRST;
    uint8_t *bigger;
    if (need <= *room)
        return true;
    while (more < need)
        more *= 2;
    bigger = realloc(*buf, more);
    if (bigger == NULL)
        return false;
    *buf = bigger;
    *room = more;
    return true;
}

/* Reads until in_len == want. A claimed length costs memory only as its bytes arrive. */
static hora_read_t read_until(hora_conn_t *conn, size_t want) {
    while (conn->in_len < want) {
        size_t  step = want - conn->in_len < (64u << 10) ? want - conn->in_len : 64u << 10;
        ssize_t n;
        if (!grow(&conn->in, &conn->in_room, conn->in_len + step)) {
            errno = ENOMEM;
            return HORA_READ_END;
        }
        n = recv(conn->fd, conn->in + conn->in_len, step, MSG_DONTWAIT);
        if (n > 0)
            conn->in_len += (size_t)n;
        else if (n == 0) {
            errno = 0;
            return HORA_READ_END;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return HORA_READ_NOTHING;
        else if (errno != EINTR)
            return HORA_READ_END;
    }
    return HORA_READ_FRAME;
}

hora_read_t hora_conn_read(hora_conn_t *conn, hora_frame_t *frame_p) {
    hora_read_t  got;
    hora_frame_t frame;
    hora_wire_t  w;
    if (conn->fd < 0) {
        errno = EBADF;
        return HORA_READ_END;
    }
    if (conn->taken) {
        conn->taken = false;
        conn->in_len = 0;
    }
    if (conn->in_len < HORA_FRAME_HEAD) {
        got = read_until(conn, HORA_FRAME_HEAD);
        if (got != HORA_READ_FRAME)
            return got;
    }
    w = hora_wire_over(conn->in, HORA_FRAME_HEAD);
    if (hora_wire_get_u32(&w) != MAGIC)
        return HORA_READ_BAD;
    frame.version = hora_wire_get_u16(&w);
    frame.type = hora_wire_get_u16(&w);
    frame.len = hora_wire_get_u32(&w);
    if (frame.len > conn->limit ||
        (frame.version != HORA_FRAME_VERSION && frame.type > HORA_FRAME_FAIL))
        return HORA_READ_BAD;
    got = read_until(conn, HORA_FRAME_HEAD + (size_t)frame.len);
    if (got != HORA_READ_FRAME)
        return got;
    conn->taken = true;
    frame.payload = conn->in + HORA_FRAME_HEAD;
    *frame_p = frame;
    return HORA_READ_FRAME;
}

static bool append(hora_conn_t *conn, uint16_t type, const void *payload, size_t len) {
    hora_wire_t w;
    if (conn->out_off == conn->out_len)
        conn->out_off = conn->out_len = 0;
    if (!grow(&conn->out, &conn->out_room, conn->out_len + HORA_FRAME_HEAD + len))
        return false;
    w = hora_wire_over(conn->out + conn->out_len, HORA_FRAME_HEAD + len);
    hora_wire_put_u32(&w, MAGIC);
    hora_wire_put_u16(&w, HORA_FRAME_VERSION);
    hora_wire_put_u16(&w, type);
    hora_wire_put_u32(&w, (uint32_t)len);
    hora_wire_put_bytes(&w, payload, len);
    conn->out_len += HORA_FRAME_HEAD + len;
    return true;
}

bool hora_conn_queue(hora_conn_t *conn, uint16_t type, const void *payload, size_t len) {
    if (conn->fd < 0 || conn->out_len + len > HORA_CONN_BACKLOG)
        return false;
    return append(conn, type, payload, len);
}

bool hora_conn_flush(hora_conn_t *conn) {
    while (hora_conn_pending(conn)) {
        ssize_t n = send(conn->fd, conn->out + conn->out_off, conn->out_len - conn->out_off,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0)
            conn->out_off += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return true;
        else if (errno != EINTR)
            return false;
    }
    return true;
}

static _Thread_local const volatile int *cancel;

void hora_poll_arm(const volatile int *flag) {
    cancel = flag;
}

bool hora_poll_cancelled(void) {
    return cancel != NULL && __atomic_load_n(cancel, __ATOMIC_RELAXED) != 0;
}

bool hora_poll_late(uint64_t deadline) {
    return hora_poll_cancelled() || hora_clock_ns() >= deadline;
}

int hora_poll_timeout(uint64_t deadline) {
    uint64_t now = hora_clock_ns(), most = cancel != NULL ? CANCEL_MS : 3600000;
    bool     late = deadline <= now || hora_poll_cancelled();
    uint64_t left = late ? 0 : (deadline - now + 999999) / 1000000;
    return left > most ? (int)most : (int)left;
}

/* False at the deadline. */
static bool wait_for(int fd, short events, uint64_t deadline) {
    struct pollfd p = {fd, events, 0};
    for (;;) {
        int n = poll(&p, 1, hora_poll_timeout(deadline));
        if (n > 0)
            return true;
        if (n == 0 && hora_poll_late(deadline))
            return false;
        if (n < 0 && errno != EINTR)
            return true; /* the read or write says what is wrong */
    }
}

hora_io_t hora_conn_send(hora_conn_t *conn, uint16_t type, const void *payload, size_t len,
                         uint64_t deadline) {
    if (conn->fd < 0 || !append(conn, type, payload, len)) {
        errno = conn->fd < 0 ? EBADF : ENOMEM;
        return HORA_IO_END;
    }
    while (hora_conn_flush(conn)) {
        if (!hora_conn_pending(conn))
            return HORA_IO_OK;
        if (!wait_for(conn->fd, POLLOUT, deadline))
            return HORA_IO_TIMEOUT;
    }
    return HORA_IO_END;
}

hora_io_t hora_conn_receive(hora_conn_t *conn, hora_frame_t *frame_p, uint64_t deadline) {
    for (;;) {
        switch (hora_conn_read(conn, frame_p)) {
        case HORA_READ_FRAME: return HORA_IO_OK;
        case HORA_READ_END: return HORA_IO_END;
        case HORA_READ_BAD: return HORA_IO_BAD;
        case HORA_READ_NOTHING: break;
        }
        if (!wait_for(conn->fd, POLLIN, deadline))
            return HORA_IO_TIMEOUT;
    }
}
