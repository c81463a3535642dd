/*
 * A communicator as schedules and transports see it: members, channel, failure, shared pads.
 * Made and freed by schedule/comms.c; used by one thread at a time, except `failure`, which any thread
 * may raise or check.
 *
 * A communicator may be a part of another one, made by src/offload for steps of its collectives. Then all
 * of them, the whole and its parts, on every rank, fail together.
 */
#ifndef HORA_TRANSPORT_COMM_H
#define HORA_TRANSPORT_COMM_H

#include "transport/hosts.h"
#include "transport/world.h"

#define HORA_CHOICES 32 /* remembered by a communicator */

struct hora_algo;
struct hora_exec;
struct hora_offload;
struct hora_gpu_comm;
struct hora_nccl_comm;

/* What src/schedule/select.c has chosen before. */
typedef struct hora_chosen {
    uint64_t                what; /* 0: empty */
    size_t                  bytes;
    const struct hora_algo *algo;
} hora_chosen_t;
typedef struct hora_pads hora_pads_t; /* shm/pads.h */

struct hora_comm {
    hora_world_t      *world;
    struct hora_comm  *next;         /* in world->comms */
    int                rank, size;   /* mine; members */
    int               *world_ranks;  /* [size] */
    int               *names;        /* [size] of a part: ranks in the whole, which messages tell; else NULL */
    int                local_rank, local_size, cross_rank, cross_size;
    uint32_t           channel;      /* equal on all members; unique among a rank's communicators */
    uint32_t           whole;        /* of a part: the whole's channel; else 0 */
    uint32_t           splits;       /* splits tried; equal on all members between calls */
    bool               tiny_allowed; /* HORA_ALGO leaves the tiny path (schedule/tiny.c) open */
    bool               boards_allowed; /* and its boards */
    bool               opened;       /* what is called now is the user's */
    size_t             tuned_oneshot; /* bytes; 0: settings.oneshot_limit. Equal on all members */
    const char        *tuned_algo;   /* for large allreduces over links; NULL: by the model. Equal */
    size_t             tuned_large;  /* bytes from which it counts */
    int                wire;         /* what its bytes go by (schedule/costs.c); 0: not known yet */
    hora_chosen_t      chosen[HORA_CHOICES];
    const struct hora_algo *forced;  /* in a calibration: this one where it can; else NULL. Equal */
    uint64_t           seq;          /* collectives begun; equal on all members between calls */
    double             timeout;      /* seconds */
    hora_failure_t     failure;
    hora_hosts_t      *hosts;        /* where the members are */
    hora_pads_t       *pads;         /* shared-memory flags and slots; NULL: members not all local */
    hora_pads_t       *host_pads;    /* those of the members on my host, where there are several hosts */
    size_t             host_slot;    /* bytes of their half-slots; 0: not every host with several members
                                        has such pads. Equal on all members */
    struct hora_exec  *first, *last; /* operations in flight, in order (src/schedule) */
    struct hora_exec  *idle;         /* finished executions, kept for the next calls */
    struct hora_offload *offload;    /* what src/offload keeps; NULL: nothing */
    struct hora_nccl_comm *inherited; /* NCCL's, split off the parent's when this one was; NULL: none, on
                                         all members, or taken up by `gpu` */
    struct hora_gpu_comm *gpu;       /* of collectives on GPUs (src/offload/cuda); NULL: none yet */
};

static inline size_t hora_comm_oneshot_limit(const hora_comm_t *comm) {
    return comm->tuned_oneshot > 0 ? comm->tuned_oneshot : comm->world->settings.oneshot_limit;
}

/* Who is where, if two levels are possible; else NULL. */
static inline const hora_hosts_t *hora_comm_levels(const hora_comm_t *comm) {
    return comm->host_slot > 0 ? comm->hosts : NULL;
}

/* The channel with which it fails. */
static inline uint32_t hora_comm_family(const hora_comm_t *comm) {
    return comm->whole != 0 ? comm->whole : comm->channel;
}

/* What messages call member `rank`. */
static inline int hora_comm_name(const hora_comm_t *comm, int rank) {
    return comm->names != NULL ? comm->names[rank] : rank;
}

static inline hora_peer_t *hora_comm_peer(const hora_comm_t *comm, int rank) {
    return &comm->world->peers[comm->world_ranks[rank]];
}

#endif
