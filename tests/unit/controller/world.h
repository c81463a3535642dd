/*
 * A world of simulated ranks round one coordinator, in one process: frames wait in queues until a
 * test moves them, so every order of arrival can be tried.
 */
#ifndef TESTS_UNIT_CONTROLLER_WORLD_H
#define TESTS_UNIT_CONTROLLER_WORLD_H

#include "controller/coordinator.h"

#define TENSORS 96 /* names "t0" .. "t95" */
#define JOIN    (-1)

typedef struct frame {
    struct frame *next;
    size_t        len;
    uint8_t       buf[];
} frame_t;

typedef struct channel {
    frame_t *first, **tail;
} channel_t;

/* What a rank knows of a tensor. */
typedef struct tensor {
    bool             queued, sent, late; /* enqueued; reported; failed before it was enqueued */
    uint32_t         id, sent_id;
    hora_signature_t sig, id_sig;
    int              executed, failed; /* so often */
    int              ghosts;           /* so often executed because the rank had joined */
    hora_status_t    status;           /* of the last failure */
    char             text[HORA_TEXT_MAX + 1];
} tensor_t;

/* What a rank knows of the frozen schedule. */
typedef struct frozen {
    bool     reports; /* by position */
    int      n;       /* 0: none */
    uint32_t ids[TENSORS], epoch;
    size_t   threshold;
    uint64_t reported;
    int      freezes, advances, declines; /* so often */
} frozen_t;

typedef struct rank {
    tensor_t  tensors[TENSORS];
    int       queue[TENSORS + 1], nqueue; /* enqueued, not sent; JOIN: a join */
    uint32_t  errors_seen;
    channel_t to, from; /* frames on their way to and from this rank */
    int      *order;    /* tensors executed, -1 after each batch */
    size_t    norder, order_room;
    int       stalls;   /* notes about stalls of tensors in flight here */
    int       resent;
    frozen_t  frozen;
    size_t    bytes_sent;
    bool      joined;
    int       joins, join_failed, last; /* of the joins that ended */
    uint32_t  resends_seen;
} rank_t;

typedef struct world {
    int                 size;
    hora_coordinator_t *coordinator;
    rank_t             *ranks;
    uint64_t            now;
} world_t;

world_t *world_new(int size, size_t threshold, size_t capacity);
world_t *world_new_active(int size, size_t threshold, size_t capacity, bool average_active);
void     world_free(world_t *w);

/* Whether coordinators freeze, from the next world_new on. */
extern bool world_freezes;
/* After this time a join fails, in worlds that are made from now on; 0: never. */
extern uint64_t world_join_limit;
/* What averages are divided by while some ranks have joined: -1 unless a batch said it. */
extern int world_divisor;

/* An allreduce of float32, `count` elements. */
hora_signature_t allreduce_of(int64_t count);

/* Fails at once, as on a rank, when the tensor is late. */
void rank_enqueue(world_t *w, int rank, int tensor, const hora_signature_t *sig);
/* The rank enqueues a join; nothing more until it ends. */
void rank_join(world_t *w, int rank);
/* Puts what is queued into frames of at most `most` reports (0: as many as fit). */
void rank_send(world_t *w, int rank, int most);
/* The coordinator takes one frame of the rank; false: there is none. */
bool rank_feed(world_t *w, int rank);
/* What the coordinator has to say goes to all ranks. Returns the number of frames. */
int world_speak(world_t *w);
/* The rank takes one frame; false: there is none. */
bool rank_listen(world_t *w, int rank);
/* All of it until nothing moves. */
void world_settle(world_t *w);
/* All ranks executed the same batches in the same order. */
void world_check_order(const world_t *w);

#endif
