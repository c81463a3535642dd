/*
 * The coordinator: learns from every rank which tasks are ready there, checks that the ranks agree,
 * and says in one order what all of them execute. Pure code: requests in, response frames out; it
 * neither waits nor sends. Runs on rank 0 of an engine's communicator, by the driving thread.
 *
 * A round of a name begins with its first report and ends when every rank has reported it (and, in
 * a group, every task of the group): then it is executed. Or it fails, on every rank, as soon as two
 * reports differ, a rank has left, or the wait was too long. A rank that had not reported a failed
 * round keeps the error for its own next task of that name, so each rank sees each failure once.
 * The coordinator must then not take that task for the next round: requests carry the number of
 * errors that their rank had seen, and older ones are dropped.
 *
 * The join is a round as well: whoever has reported it counts as ready in every other round. When
 * all have, or when it fails, the ranks hear it after everything that was complete before, so none
 * reports anything new while a batch is under way in which it takes part without a task. A rank may
 * join while an id that it sent is unknown here; so a join says how many RESENDs its rank has
 * answered, and only the one that has answered all of them counts.
 */
#ifndef HORA_CONTROLLER_COORDINATOR_H
#define HORA_CONTROLLER_COORDINATOR_H

#include "controller/message.h"

#define HORA_CACHE_MAX 65536 /* names that have an id at one time */

typedef struct hora_coordinator hora_coordinator_t;

typedef struct hora_coordinator_options {
    int         size;             /* ranks */
    size_t      fusion_threshold; /* bytes; 0: fuse nothing */
    size_t      cache_capacity;   /* ids, 1 .. HORA_CACHE_MAX */
    uint64_t    stall_check_ns;   /* between two warnings of one tensor; 0: no warnings */
    uint64_t    stall_limit_ns;   /* a tensor that has waited so long fails */
    uint64_t    join_limit_ns;    /* and so does a join; 0: it waits for ever */
    bool        freeze;           /* a sequence that repeats is frozen (freeze.c) */
    bool        average_active;   /* averages are divided by the ranks that have not joined */
    const char *(*host)(const void *arg, int rank); /* host name of a rank, for texts */
    const void *host_arg;
    struct hora_tune *tune; /* chooses the threshold, and more for the ranks; NULL: nothing does */
    const struct hora_timeline_source *trace; /* NULL: no timeline */
} hora_coordinator_options_t;

hora_status_t hora_coordinator_create(const hora_coordinator_options_t *options,
                                      hora_coordinator_t **coordinator_p);
void hora_coordinator_destroy(hora_coordinator_t *c); /* NULL is allowed */

/* A request frame came from `rank`. HORA_ERR_PROTOCOL: it is malformed (the text says how), and the
 * engine cannot go on. now: hora_clock_ns. */
hora_status_t hora_coordinator_feed(hora_coordinator_t *c, int rank, const void *buf, size_t len,
                                    uint64_t now);

/* The same, item by item, for rank 0's own requests. acked: errors that the rank has processed. */
hora_status_t hora_coordinator_full(hora_coordinator_t *c, int rank, uint32_t acked, uint64_t hash,
                                    const char *name, size_t name_len,
                                    const hora_signature_t *sig);
hora_status_t hora_coordinator_cached(hora_coordinator_t *c, int rank, uint32_t acked, uint32_t id);
/* The rank has joined; resends: RESEND items that it has processed. Until every rank has, it counts
 * as ready for everything, and must report nothing. */
hora_status_t hora_coordinator_join(hora_coordinator_t *c, int rank, uint32_t acked,
                                    uint32_t resends);
/* The rank has read the frozen schedule number `epoch`, and is ready up to that position, or
 * HORA_FREEZE_DECLINED. */
hora_status_t hora_coordinator_progress(hora_coordinator_t *c, int rank, uint32_t acked,
                                        uint32_t epoch, uint64_t upto);
void hora_coordinator_waited(hora_coordinator_t *c, const char *name, size_t name_len,
                             uint64_t waited_ns, uint64_t now);
/* The rank will report nothing more: whatever waits for it fails, now and later. */
void hora_coordinator_left(hora_coordinator_t *c, int rank);
bool hora_coordinator_has_left(const hora_coordinator_t *c, int rank);

/* Is there something to say? To be called when everything that has arrived was fed. */
bool hora_coordinator_has_frame(hora_coordinator_t *c);
/* Writes the next response frame, for all ranks, into buf[HORA_FRAME_MAX]; returns its length, or 0
 * when there is nothing to say. */
size_t hora_coordinator_next_frame(hora_coordinator_t *c, uint8_t *buf);

#endif
