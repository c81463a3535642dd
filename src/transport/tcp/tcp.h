/*
 * The TCP transport's own structures. Everything here is under world->lock.
 *
 * Whoever sends opens `count` connections to the receiver's listener, on the first send, so two ranks
 * never meet half-way. These carry messages one way, but for the first one that the lower rank opens:
 * the higher one sends its short messages back over it, because an acknowledgement that rides on a
 * message costs nothing. (Long ones it does not: two streams that share a socket get in each other's
 * way.) All sockets are non-blocking and watched by one level-triggered epoll descriptor, which is what
 * sleeping threads poll.
 *
 *   out:  sends (oldest first) --frames--> out[0..count), out[BACK] --> the peer's in[0..count), in[BACK]
 *   in :  in[0..in_count), in[BACK] --frames--> parts (messages in several frames) --> match
 *
 *   the lower rank's out[0] and in[BACK] are one connection, as are the higher one's in[0] and out[BACK]
 *
 * A connection that ends is taken from its link and buried: freed when no event fetched from epoll
 * can point at it any more.
 */
#ifndef HORA_TRANSPORT_TCP_TCP_H
#define HORA_TRANSPORT_TCP_TCP_H

#include "transport/match.h"
#include "transport/tcp/interface.h"
#include "transport/tcp/wire.h"
#include "transport/transport.h"

#include <sys/epoll.h>

#define HORA_TCP_STRANGERS_MAX 64 /* beside the connections that the job itself may be opening */
#define HORA_TCP_STRANGER_NS   5000000000u /* a connection must say hello within this time */
#define HORA_TCP_SILENT_NS     10000000000u /* bytes unacknowledged for so long: the peer is dead */
#define HORA_TCP_BATCH         16          /* frames in one system call */
#define HORA_TCP_BATCH_BYTES   ((size_t)256 << 10)
#define HORA_TCP_CHUNK         ((size_t)512 << 10) /* frame size where a message is striped */
#define HORA_TCP_BUDGET        ((size_t)4 << 20) /* bytes per connection and turn */
#define HORA_TCP_BUFFER        ((size_t)64 << 10) /* receive buffer of a connection */
#define HORA_TCP_LOOKAHEAD     ((size_t)4 << 10) /* read beyond the end of a long frame */
#define HORA_TCP_PAUSE_MIN     HORA_TCP_BUFFER /* longer messages may be left in the kernel ... */
#define HORA_TCP_PAUSE_NS      50000000u /* ... for so long, while nobody receives from the peer */
#define HORA_TCP_TICK_NS       1000000000u
#define HORA_TCP_END_NS        100000000u /* from the end of all connections to that of receives */
#define HORA_TCP_BACK          HORA_TCP_CONNECTIONS_MAX /* index of the way back */
#define HORA_TCP_WAYS          (HORA_TCP_CONNECTIONS_MAX + 1)
#define HORA_TCP_SHORT         ((size_t)16 << 10) /* longest that may go back, or is looked for */

typedef struct hora_tcp      hora_tcp_t;
typedef struct hora_tcp_link hora_tcp_link_t;

typedef enum hora_tcp_kind {
    HORA_TCP_LISTENER,
    HORA_TCP_TIMER,
    HORA_TCP_STRANGER, /* accepted; has not said hello */
    HORA_TCP_CONN
} hora_tcp_kind_t;

/* What an epoll event points at; first member of each kind's struct. */
typedef struct hora_tcp_source {
    hora_tcp_kind_t         kind;
    int                     fd;     /* -1: closed; ignore */
    uint32_t                events; /* that epoll watches */
    struct hora_tcp_source *buried; /* next in self->graves */
} hora_tcp_source_t;

/* A connection: one half or both. Its halves are freed with it. */
typedef struct hora_tcp_conn {
    hora_tcp_source_t    source;
    struct hora_tcp_out *out; /* NULL: there never was one */
    struct hora_tcp_in  *in;
    bool                 writes, reads; /* these halves still live */
} hora_tcp_conn_t;

typedef struct hora_tcp_stranger {
    hora_tcp_source_t source;
    uint64_t          since;
    size_t            got;
    uint8_t           hello[HORA_TCP_HELLO_SIZE];
} hora_tcp_stranger_t;

/* A send that is not yet wholly written. */
typedef struct hora_tcp_send {
    struct hora_tcp_send *next, *prev; /* in link->sends */
    hora_xfer_t          *xfer;        /* NULL: cancelled; the rest is in `own` */
    const uint8_t        *buf;         /* of the message's byte number `base` */
    uint8_t              *own;
    size_t                base, len;
    size_t                assigned;  /* bytes given to connections so far */
    bool                  begun, all; /* has a number; no frame is left to assign */
    unsigned              frames;    /* assigned and not wholly written */
    uint64_t              number, tag;
    uint32_t              sig;
} hora_tcp_send_t;

typedef struct hora_tcp_frame {
    hora_tcp_send_t *send;
    size_t           offset; /* in the message */
    uint32_t         len;
    uint8_t          header[HORA_TCP_HEADER_SIZE];
} hora_tcp_frame_t;

typedef struct hora_tcp_out {
    hora_tcp_conn_t  *conn;
    hora_tcp_link_t  *link;
    unsigned          index;
    bool              connecting, blocked; /* waits for EPOLLOUT */
    uint64_t          opened;              /* when */
    size_t            hello_sent;
    uint8_t           hello[HORA_TCP_HELLO_SIZE];
    unsigned          first, count; /* frames[first .. first + count) wait to be written */
    size_t            sent;         /* bytes of frames[first] written, header included */
    hora_tcp_frame_t  frames[HORA_TCP_BATCH];
} hora_tcp_out_t;

/* A message in several frames, not all of which have begun. */
typedef struct hora_tcp_part {
    struct hora_tcp_part *next;
    uint64_t              number;
    hora_inbound_t       *inbound;
    size_t                claimed; /* bytes of the frames that have begun */
} hora_tcp_part_t;

typedef struct hora_tcp_in {
    hora_tcp_conn_t  *conn;
    hora_tcp_link_t  *link;
    unsigned          index;
    bool              greeted; /* the peer has said hello on it */
    bool              stalled; /* the next frame must wait; not watched for input */
    hora_inbound_t   *inbound; /* of the frame that is arriving; NULL: between frames */
    size_t            offset, left; /* of that frame: next byte in the message, bytes to come */
    bool              more;         /* more frames of that message follow, on some connection */
    size_t            begin, end;   /* bytes read and not yet used: buf[begin .. end) */
    uint8_t           buf[HORA_TCP_BUFFER];
} hora_tcp_in_t;

struct hora_tcp_link {
    hora_link_t        base;
    hora_tcp_address_t address;
    hora_match_t       match;

    hora_tcp_send_t *sends, *last_send; /* oldest first */
    hora_tcp_send_t *unassigned;        /* first of them with bytes not yet given to a connection */
    uint64_t         send_number;       /* of the next message */
    hora_tcp_out_t  *out[HORA_TCP_WAYS];
    unsigned         out_count; /* that I have opened; 0: not yet */
    size_t           back_max;  /* bytes of the longest message for out[BACK] */
    hora_status_t    send_status; /* HORA_OK, or why no more can be sent */

    hora_tcp_in_t   *in[HORA_TCP_WAYS];
    hora_tcp_in_t   *latest;    /* that brought bytes; NULL: none, or gone */
    unsigned         in_count;  /* that the peer opens; 0: not known yet */
    unsigned         in_seen;   /* of those */
    unsigned         in_open;   /* halves that live */
    unsigned         stalled;   /* connections among them */
    uint64_t         ended;     /* when the last of them ended; 0: one lives, or none ever did */
    uint64_t         recv_number; /* of the next message head */
    hora_tcp_part_t *parts;
    uint64_t         paused; /* since when a long message waits for its receive; 0: none does */
    bool             force;  /* let the next long message into own memory */
    bool             resume; /* stalled connections should be tried again */
    bool             dying;  /* being failed: no recursion */
    hora_status_t    recv_status;

    char text[512]; /* why, when one of the two is not HORA_OK */
};

struct hora_tcp {
    hora_transport_t     base;
    int                  epoll;
    hora_tcp_source_t    listener, timer;
    uint64_t             timer_period; /* ns; 0: not armed */
    bool                 deaf;         /* out of descriptors: the listener is not watched */
    hora_tcp_interface_t interface;
    hora_tcp_address_t   address; /* mine */
    unsigned             connections;
    size_t               unexpected;     /* bytes kept without a receive, or more; see is_full */
    size_t               unexpected_max;
    hora_tcp_source_t   *graves;
    hora_tcp_send_t     *spare; /* send records to use again */
    hora_tcp_link_t    **links; /* [size]; NULL: none yet */
    bool                *left;  /* [size]: disconnected; never again */
    hora_tcp_stranger_t *strangers; /* [stranger_count] */
    int                  stranger_count;
};

/* tcp.c */
/* Changes what epoll watches; 0 stops watching but for errors. */
hora_status_t hora_tcp_watch(hora_tcp_t *self, hora_tcp_source_t *source, uint32_t events);
/* Stops watching for anything, until it is watched again. */
void hora_tcp_unwatch(hora_tcp_t *self, hora_tcp_source_t *source);
/* Makes sure that the timer fires within `period` ns. */
void hora_tcp_timer_want(hora_tcp_t *self, uint64_t period);
/* Options that both ends of a connection have. */
void hora_tcp_tune(int fd);

/* conn.c */
/* A connection over fd, with neither half. NULL: no memory. */
hora_tcp_conn_t *hora_tcp_conn_new(int fd);
/* Watches it for what its halves need. */
hora_status_t hora_tcp_conn_watch(hora_tcp_t *self, hora_tcp_conn_t *conn);
/* One half has ended: closes the connection and buries it if the other one has, too. */
void hora_tcp_conn_release(hora_tcp_t *self, hora_tcp_conn_t *conn);
/* Frees one that was never watched; not its descriptor. */
void hora_tcp_conn_free(hora_tcp_conn_t *conn);
/* Before all are closed. A connection that is closed while it holds bytes that nobody has read, or that
 * bytes come to afterwards, is reset, and what has not arrived at the other side by then never does. So
 * this waits until the other kernels have acknowledged all, a second at most, and drops what nobody
 * will read. No connection ends before what went over the others has arrived. */
void hora_tcp_take_leave(hora_tcp_t *self);

/* link.c */
/* The link to a rank, made if need be. NULL: no memory. */
hora_tcp_link_t *hora_tcp_link_get(hora_tcp_t *self, int peer);
/* Fails pending transfers, closes connections and frees the link. */
void hora_tcp_link_free(hora_tcp_link_t *link, hora_status_t status);
/* No more can be sent: closes the outgoing connections and fails pending sends. The text says why;
 * it is logged and recorded unless nothing was pending. Receives fail too, if nothing comes that
 * could bring them (hora_tcp_link_ended). */
void hora_tcp_link_fail_sends(hora_tcp_link_t *link, hora_status_t status, const char *text);
/* Nothing more will come: the same for receives. */
void hora_tcp_link_fail_receives(hora_tcp_link_t *link, hora_status_t status, const char *text);
/* If no connection is open that could bring anything: receives fail in HORA_TCP_END_NS, unless the peer
 * says hello on another one before. Connections keep no order among each other, so one that was closed
 * last may end first. */
void hora_tcp_link_ended(hora_tcp_link_t *link);
/* Both, after what is still in the kernel has been taken. */
void hora_tcp_link_fail(hora_tcp_link_t *link, hora_status_t status, const char *text);
/* "connection to rank 1 on host b was lost (reason)", or "has left". err: errno, or 0: closed. */
void hora_tcp_link_lost_text(const hora_tcp_link_t *link, int err, char *text, size_t size);
/* Deadlines: connections that do not come about, silent peers, pauses. Returns how soon it wants to
 * be called again; 0: no need. */
uint64_t hora_tcp_link_tick(hora_tcp_link_t *link, uint64_t now);

/* listener.c */
hora_status_t hora_tcp_listen(hora_tcp_t *self);
void          hora_tcp_accept(hora_tcp_t *self);
void          hora_tcp_stranger_event(hora_tcp_t *self, hora_tcp_stranger_t *stranger);
/* Says why a hello is not good enough; NULL: it is. */
const char *hora_tcp_hello_fault(const hora_tcp_t *self, const uint8_t *bytes,
                                 hora_tcp_hello_t *hello);
/* Drops strangers that were silent too long; true: some are left. */
bool hora_tcp_strangers_tick(hora_tcp_t *self, uint64_t now);

/* send.c */
void hora_tcp_send(hora_link_t *base, hora_xfer_t *xfer);
void hora_tcp_cancel_send(hora_tcp_link_t *link, hora_xfer_t *xfer);
/* The connection is no good any more, or never was: fails the link's sends. */
void hora_tcp_out_failed(hora_tcp_out_t *out, int err);
/* Ends this half. */
void hora_tcp_out_close(hora_tcp_out_t *out);
/* The peer's first connection stands: opens the way back. False: no memory. */
bool hora_tcp_out_back(hora_tcp_link_t *link, hora_tcp_conn_t *conn);
/* Writes what waits, wherever there is room. */
void hora_tcp_push(hora_tcp_link_t *link);
void hora_tcp_out_event(hora_tcp_out_t *out, uint32_t events);
/* Unlinks and frees a send. */
void hora_tcp_send_free(hora_tcp_link_t *link, hora_tcp_send_t *send);

/* receive.c */
/* A half for reading, counted as open, that watches nothing yet. NULL: no memory. */
hora_tcp_in_t *hora_tcp_in_new(hora_tcp_link_t *link, hora_tcp_conn_t *conn, unsigned index);
void hora_tcp_in_event(hora_tcp_in_t *in, uint32_t events);
/* Reads from where the link's last bytes came, without asking epoll first. True: there were some. */
bool hora_tcp_look(hora_tcp_link_t *link);
/* Tries stalled connections again. */
void hora_tcp_resume(hora_tcp_link_t *link);
/* Takes in everything that the kernel has for this link. */
void hora_tcp_drain(hora_tcp_link_t *link);
/* Ends this half. */
void hora_tcp_in_close(hora_tcp_in_t *in);

static inline hora_tcp_t *hora_tcp_of(const hora_tcp_link_t *link) {
    return (hora_tcp_t *)link->base.transport;
}

#endif
