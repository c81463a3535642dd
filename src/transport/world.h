/*
 * The world: every rank of the job as this process sees it, the links to them, and how a waiting
 * thread sleeps and is woken. One per hora_comm_create; communicators share it by reference.
 *
 * Threads. The bootstrap fills it on one thread; afterwards rank, size, peers (but for `gone`) and
 * settings never change. `lock` guards all links and transports (see p2p.h). `comms_lock` guards
 * the list of communicators. The watch thread raises failures and rings bells, nothing else.
 */
#ifndef HORA_TRANSPORT_WORLD_H
#define HORA_TRANSPORT_WORLD_H

#include "util/failure.h"
#include "util/settings.h"
#include "util/timeline.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

#define HORA_HOST_MAX       64
#define HORA_TRANSPORTS_MAX 4
#define HORA_EARLY_MAX      8
#define HORA_CHANNEL_ALL    0u /* a failure of the whole job */
#define HORA_CHANNEL_WORLD  1u /* the communicator of all ranks; splits have channels >= 2^31 */

typedef struct hora_arena      hora_arena_t;
typedef struct hora_link       hora_link_t;      /* transport.h */
typedef struct hora_transport  hora_transport_t; /* transport.h */
typedef struct hora_world      hora_world_t;

/* What a rank waits on when it sleeps. Lives in the rank's arena (all local ranks map it), or in
 * private memory where there is no arena. */
typedef struct hora_bell {
    _Alignas(128) atomic_uint value; /* futex word; grows with each ring that found a sleeper */
    atomic_uint waiting; /* low 16 bits: threads asleep on the futex; high 16: in poll(eventfd) */
    atomic_int  core;    /* where the rank was last, from 1; 0: unknown. Written when it changes */
    _Alignas(128) _Atomic uint64_t ran; /* ns that it worked between its yields, where ranks share cores */
} hora_bell_t;

typedef struct hora_peer {
    char         host[HORA_HOST_MAX];
    pid_t        pid;        /* of a rank of my host, in my process namespace; 0: unknown */
    int          local;      /* index among the ranks of my host, in rank order; -1: elsewhere */
    int          local_rank; /* its index on its own host */
    int          cross_rank; /* index of its host, by first rank */
    atomic_int   core;       /* where it was last, from 1, if it is on my host and messages have told;
                                0: unknown. Ranks with a bell tell by that */
    atomic_int   gone;       /* 1: it left in order (goodbye); nothing more will come from it */
    hora_link_t *link;       /* what carries bytes to it; NULL for myself */
    hora_bell_t *bell;       /* NULL unless it shares my arena group */
    int          eventfd;    /* to wake it in poll; -1 unless bell */
} hora_peer_t;

struct hora_world {
    int               rank, size;
    int               local_rank, local_size, cross_rank, cross_size;
    hora_peer_t      *peers; /* [size] */
    hora_settings_t   settings;
    unsigned          fork_generation; /* at the join (util/fork.h) */
    hora_arena_t     *arena;  /* NULL: no shared memory */
    hora_bell_t      *bell;   /* my own: in the arena, else private_bell; never NULL */
    hora_bell_t      *private_bell;
    int               eventfd;
    int               spin_turns; /* turns of a waiter before it yields or sleeps (wait.c) */
    int               look_turns; /* turns before it looks who shares its core (apart.c) */
    int               link_turns; /* of a waiter, that take as long as a look that is a system call */
    bool              has_cores;  /* one for each rank of this host */
    int               crowd_cores; /* fewer than the ranks of this host, who take turns on them; 0: not so */
    hora_transport_t *transports[HORA_TRANSPORTS_MAX];
    int               ntransports;
    pthread_mutex_t   lock;       /* links and transports */
    struct hora_match *self;      /* messages to myself */
    pthread_mutex_t   comms_lock;
    struct hora_comm *comms;      /* linked by ->next; under comms_lock */
    pthread_mutex_t   retired_lock;
    struct hora_retired *retired; /* what freed communicators left (shm/retire.c); under its lock */
    hora_failure_t    failure;    /* of the whole job */
    struct {
        uint32_t      channel; /* 0: unused */
        hora_status_t status;
        int           rank;
        char          text[HORA_FAILURE_TEXT_MAX];
    } early[HORA_EARLY_MAX];   /* failures of communicators not made here yet; under comms_lock */
    unsigned          early_count;
    int               crowd;      /* ranks per core on rank 0's host, in percent; equal on all ranks */
    struct hora_costs *costs;     /* measured times of algorithms, equal on all ranks; NULL: none */
    void             *bootstrap;  /* the bootstrap's own */
    /* Tells the other ranks of a failure that was found here; set by the bootstrap. Any thread. */
    void (*announce)(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                     const char *text);
    /* Asks another rank's watch to call its `poked`, which must be quick; set by the bootstrap.
     * The engine uses it to have a sleeping coordinator look at its messages. Any thread. */
    void (*poke)(hora_world_t *world, int rank);
    void (*poked)(hora_world_t *world, void *arg); /* under poke_lock, on the watch thread */
    void           *poked_arg;
    pthread_mutex_t poke_lock; /* guards poked and poked_arg */
    /* Begins to measure how far rank 0's clock is ahead of this one; the timeline is told. NULL: one
     * host. Set by the bootstrap. Any thread. */
    void (*sync_clock)(hora_world_t *world);
    hora_timeline_t timeline;
    _Atomic(void *) tuned; /* the engine on all ranks that autotune may tune; NULL: none */
};

/* An empty world of `size` ranks with mutexes, a private bell and an eventfd; the bootstrap fills in
 * the rest. Peers have no link, no bell, and are not local. */
hora_status_t hora_world_create(int rank, int size, hora_world_t **world_p);
/* Frees what hora_world_create made. Transports and arena are gone already. NULL is allowed. */
void hora_world_destroy(hora_world_t *world);

/* Raises a failure on the communicator of `channel` and its parts (HORA_CHANNEL_ALL: on all, and for
 * ever), wakes every sleeping thread of this process, logs the text once. Does not tell other ranks. Any
 * thread. */
void hora_world_raise(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                      const char *text);
/* The same, and tells the other ranks, unless it had been raised before. */
void hora_world_fail(hora_world_t *world, uint32_t channel, hora_status_t status, int rank,
                     const char *text);
/* Adds a communicator to world->comms; it fails at once if the job, or its family, has failed. */
void hora_world_add_comm(hora_world_t *world, struct hora_comm *comm);
/* Marks a rank as having left in order and wakes sleeping threads, who check whom they wait for. */
void hora_world_set_gone(hora_world_t *world, int rank);

/* Wakes threads that sleep on the bell. Call it after publishing (release) what they wait for. The
 * fence orders that publication before the look at `waiting`. */
void hora_bell_wake(hora_bell_t *bell, int eventfd);
static inline void hora_bell_ring(hora_bell_t *bell, int eventfd) {
    atomic_thread_fence(memory_order_seq_cst);
    if (__builtin_expect(atomic_load_explicit(&bell->waiting, memory_order_relaxed) != 0, 0))
        hora_bell_wake(bell, eventfd);
}

#endif
