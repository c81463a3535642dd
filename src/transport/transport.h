/*
 * A transport moves bytes between two ranks. One folder each, behind one table of functions; all
 * of them are in list.c. Every function is called with world->lock held, and none of them blocks,
 * but for open, connect and close, which may take milliseconds.
 */
#ifndef HORA_TRANSPORT_TRANSPORT_H
#define HORA_TRANSPORT_TRANSPORT_H

#include "transport/world.h"

#define HORA_ADDRESS_MAX 512 /* bytes of a transport's address blob */

#define HORA_FD_BELL (-2) /* fd(): whatever progress could do comes with a ring of my bell */

#define HORA_XFER_ANY_LENGTH 1u /* receive: a shorter message is fine; `moved` has its length */

/* One posted send or receive of contiguous bytes. Owned by the caller; the transport holds it from
 * send/recv until status is no longer HORA_IN_PROGRESS, or cancel returns. */
typedef struct hora_xfer {
    struct hora_xfer *next;   /* transport's */
    hora_link_t      *link;   /* set by send/recv */
    void             *buf;    /* const for sends */
    size_t            len;    /* bytes to send; or room */
    size_t            moved;  /* bytes done so far; at the end, the message's length */
    uint64_t          tag;    /* sends and receives of one pair match by tag, in order */
    uint32_t          sig;    /* what collective this belongs to; compared when both are not 0.
                                 After HORA_ERR_MISMATCH, a receive has the sender's */
    uint32_t          flags;
    hora_status_t     status; /* HORA_IN_PROGRESS until done */
    void             *priv;   /* transport's */
} hora_xfer_t;

/* Ends a transfer. Under world->lock; threads that wait may look without it. */
static inline void hora_xfer_finish(hora_xfer_t *xfer, hora_status_t status) {
    __atomic_store_n(&xfer->status, status, __ATOMIC_RELEASE);
}
/* Has it ended? Without the lock, and without progress. */
static inline bool hora_xfer_done(const hora_xfer_t *xfer) {
    return __atomic_load_n(&xfer->status, __ATOMIC_ACQUIRE) != HORA_IN_PROGRESS;
}

/* Tags: a communicator's channel, then either a collective's number or a user's tag. */
static inline uint64_t hora_tag_collective(uint32_t channel, uint64_t seq) {
    return ((uint64_t)channel << 32) | 0x80000000u | (uint32_t)(seq & 0x7fffffffu);
}
static inline uint64_t hora_tag_user(uint32_t channel, int tag) {
    return ((uint64_t)channel << 32) | (uint32_t)tag;
}

typedef struct hora_transport_ops {
    size_t      size; /* sizeof(*this); slots are only ever appended */
    const char *name; /* folder name and HORA_TRANSPORT value */
    /* Fills detail and remedy of *backend and says whether it can be used on this machine. */
    bool (*probe)(hora_backend_t *backend);
    hora_status_t (*open)(hora_world_t *world, hora_transport_t **self_p);
    /* Sends what is still queued (up to about a second), then closes everything. */
    void (*close)(hora_transport_t *self);
    /* My address blob for the others: *len_p is the room on entry (HORA_ADDRESS_MAX), bytes used on
     * return. */
    hora_status_t (*address)(hora_transport_t *self, void *buf, size_t *len_p);
    /* Can this transport reach world rank `peer`, whose blob is addr[0..len)? Never trusts addr. */
    bool (*reachable)(hora_transport_t *self, int peer, const void *addr, size_t len);
    hora_status_t (*connect)(hora_transport_t *self, int peer, const void *addr, size_t len,
                             hora_link_t **link_p);
    /* Queue a transfer. Errors are reported in xfer->status only. */
    void (*send)(hora_link_t *link, hora_xfer_t *xfer);
    void (*recv)(hora_link_t *link, hora_xfer_t *xfer);
    /* Withdraws it: afterwards the transport never touches xfer or its buffer again. */
    void (*cancel)(hora_link_t *link, hora_xfer_t *xfer);
    /* Moves everything on that can be moved now; returns the number of events (0: nothing). With
     * `awaited`, a transfer of this transport's, it may look for that one only, where it is quicker. */
    unsigned (*progress)(hora_transport_t *self, const hora_xfer_t *awaited);
    /* A descriptor that polls readable when progress has something to do; -1: none, poll me;
     * HORA_FD_BELL. Without the lock. */
    int (*fd)(hora_transport_t *self);
    void (*disconnect)(hora_link_t *link); /* fails queued transfers; frees the link */
} hora_transport_ops_t;

/* First member of each transport's own struct. */
struct hora_transport {
    const hora_transport_ops_t *ops;
    hora_world_t               *world;
};

/* First member of each transport's own link struct. */
struct hora_link {
    hora_transport_t *transport;
    int               peer; /* world rank */
};

/* All transports, ending with NULL, best first: shm, tcp, mpi. */
extern const hora_transport_ops_t *const hora_transport_list[];
extern const hora_transport_ops_t        hora_transport_shm;
extern const hora_transport_ops_t        hora_transport_tcp;
extern const hora_transport_ops_t        hora_transport_mpi; /* loads the plug-in */

#endif
