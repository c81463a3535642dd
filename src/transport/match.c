/*
 * Matching of arriving messages with posted receives. Under world->lock.
 *
 * Invariants:
 *   - A tag is never in both queues: a posted receive and a message that still wants one would have
 *     been paired.
 *   - match->inbound holds every message that the transport or a later receive may still need:
 *     arriving ones (xfer set, or dropped, or neither) and whole ones without a receive. So failing
 *     a link finds the receives whose message is half there. xfer->priv points at that message.
 *   - Who writes: only the transport, into body. body is xfer->buf, or kept; a cancelled receive
 *     moves it from the one to the other, so a transport must read body anew before each write.
 */
#include "transport/match.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the queue needs beyond the part that transports see. */
typedef struct entry {
    hora_inbound_t   pub;  /* first: the pointers are the same */
    hora_inbound_t **here; /* the pointer that leads to me */
    bool             drop; /* nobody wants the body: forget it when it is whole */
} entry_t;

static entry_t *entry_of(hora_inbound_t *inbound) {
    return (entry_t *)inbound;
}

void hora_match_init(hora_match_t *match) {
    match->posted = NULL;
    match->posted_tail = &match->posted;
    match->inbound = NULL;
    match->inbound_tail = &match->inbound;
}

static void inbound_append(hora_match_t *match, entry_t *e) {
    e->pub.next = NULL;
    e->here = match->inbound_tail;
    *e->here = &e->pub;
    match->inbound_tail = &e->pub.next;
}

/* Unlinks and frees. */
static void inbound_free(hora_match_t *match, hora_inbound_t *inbound) {
    entry_t *e = entry_of(inbound);
    *e->here = inbound->next;
    if (inbound->next != NULL)
        entry_of(inbound->next)->here = e->here;
    else
        match->inbound_tail = e->here;
    if (inbound->kept != (uint8_t *)(e + 1))
        free(inbound->kept);
    free(e);
}

/* Unlinks the receive that *here points to. */
static void posted_unlink(hora_match_t *match, hora_xfer_t **here) {
    hora_xfer_t *xfer = *here;
    *here = xfer->next;
    if (xfer->next == NULL)
        match->posted_tail = here;
    xfer->next = NULL;
}

static void xfer_finish(hora_xfer_t *xfer, hora_status_t status) {
    xfer->priv = NULL;
    hora_xfer_finish(xfer, status);
}

static bool fits(const hora_xfer_t *xfer, size_t len) {
    return len == xfer->len || (len < xfer->len && (xfer->flags & HORA_XFER_ANY_LENGTH));
}

static bool same_sig(const hora_xfer_t *xfer, uint32_t sig) {
    return sig == 0 || xfer->sig == 0 || sig == xfer->sig;
}

/* "rank 3 on host b": who sent what this receive takes. */
static void name_sender(const hora_xfer_t *xfer, char *text, size_t size) {
    if (xfer->link == NULL) {
        snprintf(text, size, "this rank");
        return;
    }
    int rank = xfer->link->peer;
    snprintf(text, size, "rank %d on host %s", rank,
             xfer->link->transport->world->peers[rank].host);
}

/* Ends a receive whose message is of another length or collective, with words. */
static void mismatch(hora_xfer_t *xfer, uint32_t sig, size_t len) {
    char sender[HORA_HOST_MAX + 32];
    name_sender(xfer, sender, sizeof(sender));
    if (!same_sig(xfer, sig))
        hora_fail(HORA_ERR_MISMATCH,
                  "%s is in another operation than the receiver (signature %08x against %08x, "
                  "%zu bytes against %zu)",
                  sender, sig, xfer->sig, len, xfer->len);
    else
        hora_fail(HORA_ERR_MISMATCH, "%s sent %zu bytes where %s%zu were expected", sender, len,
                  xfer->flags & HORA_XFER_ANY_LENGTH ? "at most " : "", xfer->len);
    xfer->sig = sig != 0 ? sig : xfer->sig; /* so that the caller can name both sides */
    xfer->moved = len;
    xfer_finish(xfer, HORA_ERR_MISMATCH);
}

/* The pointer to the oldest posted receive of this tag; to NULL if there is none. */
static hora_xfer_t **posted_find(hora_match_t *match, uint64_t tag) {
    hora_xfer_t **here = &match->posted;
    while (*here != NULL && (*here)->tag != tag)
        here = &(*here)->next;
    return here;
}

hora_status_t hora_match_arrive(hora_match_t *match, uint64_t tag, uint32_t sig, size_t len,
                                hora_inbound_t **inbound_p) {
    hora_xfer_t **here = posted_find(match, tag);
    hora_xfer_t  *xfer = *here;
    bool          wanted = xfer != NULL && fits(xfer, len) && same_sig(xfer, sig);
    size_t        room = wanted ? 0 : len;
    entry_t      *e = room <= PTRDIFF_MAX - sizeof(*e) ? malloc(sizeof(*e) + room) : NULL;
    if (e == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "no memory for a message of %zu bytes", len);
    memset(e, 0, sizeof(*e));
    e->pub.tag = tag;
    e->pub.sig = sig;
    e->pub.len = len;
    if (!wanted)
        e->pub.kept = (uint8_t *)(e + 1);
    if (xfer != NULL) {
        posted_unlink(match, here);
        e->drop = !wanted;
        if (!wanted)
            mismatch(xfer, sig, len);
    }
    if (wanted) {
        e->pub.xfer = xfer;
        xfer->priv = &e->pub;
    }
    e->pub.body = wanted ? xfer->buf : e->pub.kept;
    inbound_append(match, e);
    *inbound_p = &e->pub;
    return HORA_OK;
}

/* Gives a whole message to its receive. */
static void deliver(hora_match_t *match, hora_inbound_t *inbound) {
    hora_xfer_t *xfer = inbound->xfer;
    if (inbound->body != xfer->buf && inbound->len > 0)
        memcpy(xfer->buf, inbound->body, inbound->len);
    xfer->moved = inbound->len;
    inbound_free(match, inbound);
    xfer_finish(xfer, HORA_OK);
}

void hora_match_arrived(hora_match_t *match, hora_inbound_t *inbound) {
    inbound->whole = true;
    if (inbound->xfer != NULL)
        deliver(match, inbound);
    else if (entry_of(inbound)->drop)
        inbound_free(match, inbound);
}

void hora_match_post(hora_match_t *match, hora_xfer_t *xfer) {
    hora_inbound_t *inbound = match->inbound;
    xfer->status = HORA_IN_PROGRESS;
    xfer->next = NULL;
    xfer->priv = NULL;
    xfer->moved = 0;
    while (inbound != NULL &&
           (inbound->tag != xfer->tag || inbound->xfer != NULL || entry_of(inbound)->drop))
        inbound = inbound->next;
    if (inbound == NULL) {
        *match->posted_tail = xfer;
        match->posted_tail = &xfer->next;
        return;
    }
    if (!fits(xfer, inbound->len) || !same_sig(xfer, inbound->sig)) {
        mismatch(xfer, inbound->sig, inbound->len);
        entry_of(inbound)->drop = true;
        if (inbound->whole)
            inbound_free(match, inbound);
        return;
    }
    inbound->xfer = xfer;
    xfer->priv = inbound;
    if (inbound->whole)
        deliver(match, inbound);
    else if (inbound->filled == 0)
        inbound->body = xfer->buf; /* nothing is in kept yet: spare the copy */
}

/* Takes a message away from its receive: the rest of the body goes where nobody looks. */
static void divert(hora_match_t *match, hora_inbound_t *inbound) {
    inbound->xfer = NULL;
    entry_of(inbound)->drop = true;
    if (inbound->kept == NULL && inbound->len > 0)
        inbound->kept = malloc(inbound->len);
    inbound->body = inbound->kept; /* NULL without memory: the transport skips the bytes */
}

void hora_match_cancel(hora_match_t *match, hora_xfer_t *xfer) {
    if (xfer->status != HORA_IN_PROGRESS)
        return;
    if (xfer->priv != NULL) {
        divert(match, xfer->priv);
    } else {
        hora_xfer_t **here = &match->posted;
        while (*here != NULL && *here != xfer)
            here = &(*here)->next;
        if (*here != NULL)
            posted_unlink(match, here);
    }
    xfer_finish(xfer, HORA_ERR_ABORTED);
}

void hora_match_fail(hora_match_t *match, hora_status_t status) {
    hora_inbound_t *next;
    while (match->posted != NULL) {
        hora_xfer_t *xfer = match->posted;
        posted_unlink(match, &match->posted);
        xfer_finish(xfer, status);
    }
    for (hora_inbound_t *inbound = match->inbound; inbound != NULL; inbound = next) {
        next = inbound->next;
        if (inbound->whole)
            continue;
        if (inbound->xfer != NULL)
            xfer_finish(inbound->xfer, status);
        inbound_free(match, inbound);
    }
}

void hora_match_destroy(hora_match_t *match) {
    hora_match_fail(match, HORA_ERR_SHUT_DOWN);
    while (match->inbound != NULL)
        inbound_free(match, match->inbound);
}
