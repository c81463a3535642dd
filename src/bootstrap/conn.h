/*
 * A control connection: frames over a stream socket that never blocks. One thread at a time.
 *
 *     magic (4)  version (2)  type (2)  length of the payload (4)  payload
 *
 * A read never takes more than the frame at hand, so a connection can change hands between frames.
 */
#ifndef HORA_BOOTSTRAP_CONN_H
#define HORA_BOOTSTRAP_CONN_H

#include "util/status.h"

#define HORA_FRAME_HEAD      12u
#define HORA_FRAME_VERSION   1u
#define HORA_CONN_BACKLOG    (64u << 10) /* most bytes that wait to be sent by hora_conn_queue */

typedef enum hora_frame_type {
    /* The first three keep their number and their first fields in all versions. */
    HORA_FRAME_HELLO = 1,  /* who asks to be let in */
    HORA_FRAME_FAIL = 2,   /* why it failed: status, flags, text */
    HORA_FRAME_CHALLENGE = 3,
    HORA_FRAME_PROOF = 4,
    HORA_FRAME_WELCOME = 5, /* all ranks are there: rank 0's host */
    HORA_FRAME_BLOB = 6,    /* one rank's part of an allgather */
    HORA_FRAME_BLOBS = 7,   /* all parts */
    HORA_FRAME_ABORT = 8,   /* channel, status, rank, text */
    HORA_FRAME_GOODBYE = 9, /* rank */
    HORA_FRAME_POKE = 10,   /* rank */
    HORA_FRAME_CLOCK = 11   /* a question, or its answer (clock.h) */
} hora_frame_type_t;

typedef struct hora_frame {
    uint16_t version;
    uint16_t type;
    uint32_t len;
    uint8_t *payload; /* in the connection; until its next read */
} hora_frame_t;

typedef struct hora_conn {
    int      fd;    /* -1: closed */
    int      rank;  /* world rank at the other end; -1: not known */
    uint32_t limit; /* longest payload that is believed */
    bool     taken; /* the frame in `in` was handed out */
    uint8_t *in, *out;
    size_t   in_len, in_room, out_off, out_len, out_room;
} hora_conn_t;

/* Takes fd over and makes it non-blocking. */
void hora_conn_init(hora_conn_t *conn, int fd, int rank, uint32_t limit);
/* Closes the socket and frees the buffers; keeps the rank. A closed one is allowed. */
void hora_conn_close(hora_conn_t *conn);

typedef enum hora_read {
    HORA_READ_FRAME,
    HORA_READ_NOTHING, /* nothing more for now */
    HORA_READ_END,     /* the other side closed it, or it broke: errno, 0 for an orderly end */
    HORA_READ_BAD      /* not our frames */
} hora_read_t;

/* Reads on; never blocks. */
hora_read_t hora_conn_read(hora_conn_t *conn, hora_frame_t *frame_p);

/* Puts a frame in the queue. False (and nothing queued) when the other side reads nothing, or for
 * want of memory. Call flush. */
bool hora_conn_queue(hora_conn_t *conn, uint16_t type, const void *payload, size_t len);
/* Sends what can be sent; never blocks. False: the connection broke. */
bool hora_conn_flush(hora_conn_t *conn);
static inline bool hora_conn_pending(const hora_conn_t *conn) {
    return conn->out_len > conn->out_off;
}

typedef enum hora_io {
    HORA_IO_OK,
    HORA_IO_END,
    HORA_IO_BAD,
    HORA_IO_TIMEOUT
} hora_io_t;

/* The same, waiting until it is done or hora_clock_ns() reaches the deadline. A frame of any
 * length. */
hora_io_t hora_conn_send(hora_conn_t *conn, uint16_t type, const void *payload, size_t len,
                         uint64_t deadline);
hora_io_t hora_conn_receive(hora_conn_t *conn, hora_frame_t *frame_p, uint64_t deadline);

/* Milliseconds for poll() until a deadline, rounded up, at most an hour. Who polls asks
 * hora_poll_late whether the deadline has come. */
int  hora_poll_timeout(uint64_t deadline);
bool hora_poll_late(uint64_t deadline);

/* From here on every deadline of this thread has come as soon as *flag is not zero. NULL: as usual. */
void hora_poll_arm(const volatile int *flag);
bool hora_poll_cancelled(void); /* its flag says so */

#endif
