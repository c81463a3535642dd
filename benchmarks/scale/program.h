/*
 * Plans of several ranks as one program for the simulator (simulate.c): what each rank does, and
 * every message once, known to its sender and its receiver.
 */
#ifndef BENCHMARKS_SCALE_PROGRAM_H
#define BENCHMARKS_SCALE_PROGRAM_H

#include "simulate.h"

typedef enum scale_op_kind {
    SCALE_SEND, /* message */
    SCALE_LEFT, /* wait until the message has left */
    SCALE_CAME, /* wait until it has come */
    SCALE_WORK, /* bytes to be summed or copied */
    SCALE_SIGNAL, /* phase `message` */
    SCALE_AWAIT   /* wait until all ranks of the host have signalled it */
} scale_op_kind_t;

typedef struct scale_op {
    uint8_t  kind;
    uint32_t channel;
    uint32_t message; /* before scale_program_link: its number in the channel */
    uint64_t bytes;
} scale_op_t;

typedef struct scale_message {
    uint64_t bytes;
    double   left, came; /* seconds; came < 0: not yet */
    int32_t  to;
    int32_t  depth;   /* of the chain that ends with it */
    bool     inside;  /* a host */
    bool     awaited; /* by `to`, which sleeps */
} scale_message_t;

/* Messages from one rank to another one, in order. In an orbit, the other one may stand for many. */
typedef struct scale_channel {
    uint64_t key;
    uint32_t sends, recvs, first; /* first: its first message */
    uint64_t sent, received;      /* bytes times number, summed */
    int32_t  to;
    bool     inside;
} scale_channel_t;

typedef struct scale_program {
    int              ranks; /* whose plans these are: all, or one host's */
    bool             orbit;
    scale_op_t      *ops;
    size_t           nops, room;
    size_t          *begin; /* [ranks + 1] where each rank's ops begin */
    scale_message_t *messages;
    size_t           nmessages;
    scale_channel_t *channels;
    uint32_t        *slots; /* [nslots] hashed by key: index of the channel + 1 */
    size_t           nchannels, channels_room, nslots;
} scale_program_t;

/* Ranks of host 0. */
static inline int scale_host(const scale_case_t *what) {
    return what->net.host < what->size ? what->net.host : what->size;
}

/* Emits the plan of a rank. The time is returned. */
double scale_emit(const scale_case_t *what, int rank, hora_plan_t *plan);
/* Does this vector take the rings of two levels? A short one takes another way (twolevel.c). */
bool scale_is_ringed(const scale_case_t *what);

/* Room for the plans of `ranks` ranks. False: no memory. */
bool scale_program_init(scale_program_t *program, int ranks, bool orbit);
void scale_program_free(scale_program_t *program);
/* Appends the next rank's plan. False: no memory. */
bool scale_program_add(scale_program_t *program, const scale_case_t *what, int rank,
                       const hora_plan_t *plan);
/* After the last plan: pairs sends with receives. Returns NULL, or what is wrong. */
const char *scale_program_link(scale_program_t *program);

/* Which rank of the orbit stands for `peer`, and what renumbering takes it there (simulate.h). back:
 * the opposite one, for what peer sends here. */
int scale_orbit_of(const scale_case_t *what, int peer, bool back, int *shift_p);
/* Is the plan of `rank` that of its stand-in, with the peers renumbered? */
bool scale_orbit_check(const scale_case_t *what, int rank);

/* Seconds until the slowest rank is done, and the longest chain; -1: they wait for each other. */
double scale_program_run(scale_program_t *program, const scale_net_t *net, int *rounds_p);

#endif
