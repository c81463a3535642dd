/*
 * Matching: pairs the messages that arrive on a link with the receives that were posted for it, by
 * tag, in order. A message that nobody has asked for yet is kept in memory. Used by all transports
 * that see a message's head before its body. Under world->lock.
 */
#ifndef HORA_TRANSPORT_MATCH_H
#define HORA_TRANSPORT_MATCH_H

#include "transport/transport.h"

typedef struct hora_match {
    hora_xfer_t         *posted, **posted_tail;   /* receives without a message, oldest first */
    struct hora_inbound *inbound, **inbound_tail; /* messages without a receive, oldest first */
} hora_match_t;

/* A message that is arriving or has arrived. The transport fills body[0..len). */
typedef struct hora_inbound {
    struct hora_inbound *next;
    hora_xfer_t         *xfer; /* the receive it belongs to; NULL: none yet */
    uint8_t             *body; /* where to put the bytes: xfer->buf, or `kept`; read it anew before
                                * each write. NULL: skip them (cancelled, and no memory) */
    uint8_t             *kept; /* own memory, when it came before its receive; else NULL */
    size_t               len, filled;
    uint64_t             tag;
    uint32_t             sig;
    bool                 whole;
} hora_inbound_t;

void hora_match_init(hora_match_t *match);

/* The head of a message came. *inbound_p: where to put the body. A receive with too little room or
 * another sig fails at once with HORA_ERR_MISMATCH and the body goes to own memory, to be dropped.
 * Errors: HORA_ERR_NO_MEMORY. */
hora_status_t hora_match_arrive(hora_match_t *match, uint64_t tag, uint32_t sig, size_t len,
                                hora_inbound_t **inbound_p);
/* All of the body is in place (filled == len): completes the receive, or keeps the message for the
 * receive to come. inbound is no longer the transport's. */
void hora_match_arrived(hora_match_t *match, hora_inbound_t *inbound);
/* A receive was posted: it takes a waiting message at once, or joins one that is still arriving, or
 * queues. */
void hora_match_post(hora_match_t *match, hora_xfer_t *xfer);
/* Withdraws a receive; if its message is arriving into its buffer, the rest goes to own memory. */
void hora_match_cancel(hora_match_t *match, hora_xfer_t *xfer);
/* The link is dead: fails every posted receive with status; arriving and kept messages that are
 * not whole are dropped, whole ones stay to be received. */
void hora_match_fail(hora_match_t *match, hora_status_t status);
/* Frees everything. */
void hora_match_destroy(hora_match_t *match);

#endif
