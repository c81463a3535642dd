/*
 * Allgathers over the star (star.h), on the joining thread.
 *
 * Rank 0 collects from all at once, so that whatever goes wrong at any rank is known at once, then
 * sends everybody everything. A frame BLOBS is, for each rank, a length (32 bits) and the bytes.
 */
#include "bootstrap/star.h"

#include "bootstrap/handshake.h"
#include "bootstrap/wire.h"
#include "util/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

hora_status_t hora_star_init(hora_star_t *star, int rank, int size, double patience) {
    memset(star, 0, sizeof(*star));
    star->rank = rank;
    star->size = size;
    star->patience = patience;
    size_t n = (size_t)hora_star_conns(star);
    star->conns = calloc(n + 1, sizeof(*star->conns));
    star->hosts = calloc(n + 1, sizeof(*star->hosts));
    if (star->conns == NULL || star->hosts == NULL) {
        free(star->conns);
        free(star->hosts);
        memset(star, 0, sizeof(*star));
        return hora_fail(HORA_ERR_NO_MEMORY, "connections to %d ranks", size);
    }
    for (size_t i = 0; i < n; i++) {
        star->conns[i].fd = -1;
        star->conns[i].rank = (int)i;
        snprintf(star->hosts[i], HORA_HOST_MAX, "(unknown)");
    }
    return HORA_OK;
}

void hora_star_destroy(hora_star_t *star) {
    for (int i = 0; star->conns != NULL && i < hora_star_conns(star); i++)
        hora_conn_close(&star->conns[i]);
    free(star->conns);
    free(star->hosts);
    star->conns = NULL;
    star->hosts = NULL;
}

void hora_ranks_write(const uint8_t *flags, int size, uint8_t value, char *text, size_t room) {
    int    total = 0, written = 0;
    size_t len = 0;
    for (int r = 0; r < size; r++)
        total += flags[r] == value;
    text[0] = '\0';
    for (int r = 0; r < size && written < 16 && len + 32 < room; r++)
        if (flags[r] == value) {
            written++;
            len += (size_t)snprintf(text + len, room - len, "%s%d",
                                    written == 1 ? "" : written == total ? " and " : ", ", r);
        }
    if (written < total)
        snprintf(text + len, room - len, " and %d more", total - written);
}

void hora_star_fail(hora_star_t *star, hora_status_t status, const char *text) {
    uint8_t  bytes[HORA_FAIL_MAX];
    size_t   len = hora_fail_encode(status, 0, text, bytes);
    uint64_t deadline = hora_clock_ns() + 200000000;
    star->failed = true;
    for (int i = 0; star->conns != NULL && i < hora_star_conns(star); i++)
        if (star->conns[i].fd >= 0)
            hora_conn_send(&star->conns[i], HORA_FRAME_FAIL, bytes, len, deadline);
}

/* Rank 0 passes a failure on, then has it itself. */
static hora_status_t spread(hora_star_t *star, hora_status_t status, const char *text) {
    star->failed = true;
    if (star->rank == 0)
        hora_star_fail(star, status, text);
    return hora_fail(status, "%s", text);
}

static hora_status_t lost(hora_star_t *star, int i, const char *phase, const char *how) {
    char text[512];
    snprintf(text, sizeof(text), "rank %d on host %s %s while the job was starting (%s)", i,
             star->hosts[i], how, phase);
    hora_conn_close(&star->conns[i]);
    return spread(star, HORA_ERR_PEER_FAILED, text);
}

static hora_status_t unexpected(hora_star_t *star, int i, const hora_frame_t *frame,
                                const char *phase) {
    char          text[HORA_FAIL_MAX];
    hora_status_t status;
    uint32_t      flags;
    if (frame->type != HORA_FRAME_FAIL)
        return lost(star, i, phase, "sent a malformed message");
    hora_fail_decode(frame, &status, &flags, text, sizeof(text));
    hora_conn_close(&star->conns[i]); /* it has said all; and it need not hear it again */
    return spread(star, status, text);
}

/* ---- rank 0 ---------------------------------------------------------------------------------- */

typedef struct parts {
    uint8_t *bytes; /* [size][HORA_BLOB_MAX] */
    size_t  *lens;
    uint8_t *have; /* 1: it has come */
    struct pollfd *fds;
} parts_t;

static void parts_free(parts_t *parts) {
    free(parts->bytes);
    free(parts->lens);
    free(parts->have);
    free(parts->fds);
}

static hora_status_t parts_init(parts_t *parts, int size) {
    size_t n = (size_t)size;
    parts->bytes = malloc(n * HORA_BLOB_MAX);
    parts->lens = calloc(n, sizeof(*parts->lens));
    parts->have = calloc(n, 1);
    parts->fds = calloc(n, sizeof(*parts->fds));
    if (parts->bytes != NULL && parts->lens != NULL && parts->have != NULL && parts->fds != NULL)
        return HORA_OK;
    parts_free(parts);
    return hora_fail(HORA_ERR_NO_MEMORY, "addresses of %d ranks", size);
}

static hora_status_t take_part(hora_star_t *star, parts_t *parts, int i, const char *phase) {
    hora_frame_t frame;
    switch (hora_conn_read(&star->conns[i], &frame)) {
    case HORA_READ_NOTHING: return HORA_OK;
    case HORA_READ_END: return lost(star, i, phase, "died");
    case HORA_READ_BAD: return lost(star, i, phase, "sent a malformed message");
    case HORA_READ_FRAME: break;
    }
    if (frame.type != HORA_FRAME_BLOB || frame.len > HORA_BLOB_MAX)
        return unexpected(star, i, &frame, phase);
    memcpy(parts->bytes + (size_t)i * HORA_BLOB_MAX, frame.payload, frame.len);
    parts->lens[i] = frame.len;
    parts->have[i] = 1;
    return HORA_OK;
}

static hora_status_t late(hora_star_t *star, const parts_t *parts, const char *phase) {
    char ranks[256], text[512];
    hora_ranks_write(parts->have, star->size, 0, ranks, sizeof(ranks));
    snprintf(text, sizeof(text),
             "no answer from rank %s within %g s while the job was starting (%s)",
             ranks, star->patience, phase);
    return spread(star, HORA_ERR_TIMEOUT, text);
}

static hora_status_t collect(hora_star_t *star, parts_t *parts, const char *phase,
                             uint64_t deadline) {
    for (;;) {
        int waiting = 0;
        for (int i = 1; i < star->size; i++) {
            parts->fds[i] = (struct pollfd){parts->have[i] ? -1 : star->conns[i].fd, POLLIN, 0};
            waiting += !parts->have[i];
        }
        if (waiting == 0)
            return HORA_OK;
        int n = poll(parts->fds + 1, (nfds_t)star->size - 1, hora_poll_timeout(deadline));
        if (n < 0 && errno != EINTR)
            return hora_fail_errno(HORA_ERR_SYSTEM, errno, "poll while the job was starting");
        if (n == 0 && hora_poll_late(deadline))
            return late(star, parts, phase);
        for (int i = 1; n > 0 && i < star->size; i++)
            if (parts->fds[i].fd >= 0 && parts->fds[i].revents) {
                hora_status_t st = take_part(star, parts, i, phase);
                if (st != HORA_OK)
                    return st;
            }
    }
}

/* Many may be slow to read: each gets what it takes, and nobody waits for another. */
static hora_status_t distribute(hora_star_t *star, const uint8_t *all, size_t len,
                                const char *phase, uint64_t deadline) {
    for (int i = 1; i < star->size; i++) {
        hora_io_t io = hora_conn_send(&star->conns[i], HORA_FRAME_BLOBS, all, len, deadline);
        if (io != HORA_IO_OK)
            return lost(star, i, phase, io == HORA_IO_TIMEOUT ? "did not answer" : "died");
    }
    return HORA_OK;
}

static hora_status_t gather_and_send(hora_star_t *star, const void *blob, size_t len,
                                     const char *phase, uint8_t **all_p, size_t *len_p) {
    parts_t       parts;
    uint64_t      deadline = hora_clock_ns() + hora_clock_from_seconds(star->patience);
    size_t        total = 0;
    hora_status_t st = parts_init(&parts, star->size);
    if (st != HORA_OK)
        return st;
    memcpy(parts.bytes, blob, len);
    parts.lens[0] = len;
    parts.have[0] = 1;
    st = collect(star, &parts, phase, deadline);
    for (int i = 0; i < star->size; i++)
        total += 4 + parts.lens[i];
    uint8_t *all = st == HORA_OK ? malloc(total) : NULL;
    if (st == HORA_OK && all == NULL)
        st = hora_fail(HORA_ERR_NO_MEMORY, "addresses of %d ranks", star->size);
    if (st == HORA_OK) {
        hora_wire_t w = hora_wire_over(all, total);
        for (int i = 0; i < star->size; i++) {
            hora_wire_put_u32(&w, (uint32_t)parts.lens[i]);
            hora_wire_put_bytes(&w, parts.bytes + (size_t)i * HORA_BLOB_MAX, parts.lens[i]);
        }
        st = distribute(star, all, total, phase, deadline);
    }
    parts_free(&parts);
    if (st != HORA_OK) {
        free(all);
        return st;
    }
    *all_p = all;
    *len_p = total;
    return HORA_OK;
}

/* ---- the others ------------------------------------------------------------------------------ */

/* Rank 0 finds out first who is late or dead, and says so; hence the longer patience here. */
static hora_status_t send_and_receive(hora_star_t *star, const void *blob, size_t len,
                                      const char *phase, uint8_t **all_p, size_t *len_p) {
    uint64_t deadline = hora_clock_ns() + hora_clock_from_seconds(star->patience + 5);
    hora_conn_t *conn = &star->conns[0];
    hora_frame_t frame = {0};
    /* A send that fails still leaves rank 0's last words to be read. */
    hora_conn_send(conn, HORA_FRAME_BLOB, blob, len, deadline);
    hora_io_t io = hora_conn_receive(conn, &frame, deadline);
    if (io == HORA_IO_TIMEOUT)
        return hora_fail(HORA_ERR_TIMEOUT, "no answer from rank 0 on host %s within %g s while the "
                         "job was starting (%s)", star->hosts[0], star->patience + 5, phase);
    if (io != HORA_IO_OK)
        return lost(star, 0, phase, io == HORA_IO_BAD ? "sent a malformed message" : "died");
    if (frame.type != HORA_FRAME_BLOBS)
        return unexpected(star, 0, &frame, phase);
    uint8_t *all = malloc((size_t)frame.len + 1);
    if (all == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "addresses of %d ranks", star->size);
    memcpy(all, frame.payload, frame.len);
    *all_p = all;
    *len_p = frame.len;
    return HORA_OK;
}

/* One allocation: the table, then the bytes. */
static hora_status_t split(const hora_star_t *star, const uint8_t *all, size_t len,
                           const char *phase, hora_blob_t **blobs_p) {
    size_t       table = (size_t)star->size * sizeof(hora_blob_t);
    hora_blob_t *blobs = malloc(table + len);
    uint8_t     *copy = (uint8_t *)blobs + table;
    if (blobs == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "addresses of %d ranks", star->size);
    memcpy(copy, all, len);
    hora_wire_t w = hora_wire_over(copy, len);
    for (int i = 0; i < star->size; i++) {
        blobs[i].len = hora_wire_get_u32(&w);
        blobs[i].bytes = hora_wire_take(&w, blobs[i].len);
        w.bad |= blobs[i].len > HORA_BLOB_MAX;
    }
    if (w.bad || w.off != w.limit) {
        free(blobs);
        return hora_fail(HORA_ERR_PROTOCOL, "malformed message from rank 0 on host %s while the "
                         "job was starting (%s)", star->rank == 0 ? "(this)" : star->hosts[0],
                         phase);
    }
    *blobs_p = blobs;
    return HORA_OK;
}

hora_status_t hora_star_allgather(hora_star_t *star, const void *blob, size_t len,
                                  const char *phase, hora_blob_t **blobs_p) {
    uint8_t      *all = NULL;
    size_t        all_len = 0;
    hora_status_t st;
    if (len > HORA_BLOB_MAX)
        return hora_fail(HORA_ERR_INTERNAL, "a blob of %zu bytes (%s)", len, phase);
    if (star->rank == 0)
        st = gather_and_send(star, blob, len, phase, &all, &all_len);
    else
        st = send_and_receive(star, blob, len, phase, &all, &all_len);
    if (st != HORA_OK)
        return st;
    st = split(star, all, all_len, phase, blobs_p);
    free(all);
    return st;
}
