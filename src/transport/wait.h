/*
 * Waiting that adapts: spin a little when there are cores to spare, then yield, then sleep until
 * a bell rings; and on every slow turn look at the failure flag, at whether the awaited rank has
 * left, and at the deadline. Used like this:
 *
 *     hora_waiter_t w;
 *     hora_waiter_begin(&w, comm, timeout, "allreduce");
 *     while (!condition) {
 *         st = hora_waiter_turn(&w, rank_that_would_make_it_true);
 *         if (st != HORA_OK) break;
 *     }
 *     hora_waiter_end(&w);
 *
 * The condition must be checked after every turn: a turn that is about to sleep first announces
 * itself and returns, so that the check in between closes the race with the bell.
 * A waiter belongs to one thread.
 */
#ifndef HORA_TRANSPORT_WAIT_H
#define HORA_TRANSPORT_WAIT_H

#include "transport/comm.h"

typedef struct hora_waiter {
    hora_comm_t *comm;
    const char  *what;     /* operation and phase, for messages */
    double       timeout;  /* seconds; 0: the communicator's */
    int          turns;
    int          quick;    /* turns that only spin */
    unsigned     yields;
    bool         vain;     /* the last one let no other process run; where ranks take turns */
    bool         announced; /* counted in bell->waiting */
    bool         polls;     /* sleeps in poll(eventfd, ...) rather than on the futex */
    unsigned     bell;      /* value seen when announced */
    uint64_t     start, last; /* ns; 0: not read yet */
    uint64_t     lost;     /* ns in which it yielded, and no rank on its core worked */
    bool         warned;      /* the stall warning was written */
    uint64_t     gone;        /* ns: when the awaited rank was first seen to have left; 0: it has not */
} hora_waiter_t;

void hora_waiter_begin(hora_waiter_t *w, hora_comm_t *comm, double timeout, const char *what);
/* awaited: rank in comm that this waits for, or -1 (several). Returns HORA_OK to go on, or the
 * communicator's failure, HORA_ERR_PEER_FAILED when the awaited rank has left, HORA_ERR_TIMEOUT. */
hora_status_t hora_waiter_slow_turn(hora_waiter_t *w, int awaited);
void          hora_waiter_end(hora_waiter_t *w);

/* The link to `rank` of comm has broken, and this rank may not have heard why: that it left, or that
 * a third rank died and `rank` ended for it. That news is on its way, and is what the user needs to
 * know; this waits for it, for half a second at most. Returns the error that says it, or HORA_OK when
 * nothing came. */
hora_status_t hora_wait_cause(hora_comm_t *comm, int rank, const char *what);

#if defined(__x86_64__) || defined(__i386__)
static inline void hora_cpu_relax(void) {
    __builtin_ia32_pause();
}
#elif defined(__aarch64__)
static inline void hora_cpu_relax(void) {
    __asm__ __volatile__("yield");
}
#else
static inline void hora_cpu_relax(void) {
}
#endif

/* From now on this thread goes to sleep soon when it waits: it works beside threads that compute. */
void hora_wait_patiently(void);
/* A rank that is waited for: HORA_OK, or HORA_ERR_PEER_FAILED once it has left the job and what it sent
 * before must have arrived. *since_p: 0 at first. To be called again and again, the condition being
 * checked in between. */
hora_status_t hora_wait_check_gone(const hora_comm_t *comm, int rank, uint64_t *since_p,
                                   const char *what);
/* Does a thread of this process, other than the caller, sleep on the world's bell? */
bool hora_others_sleep(const hora_world_t *world);

/* The coming turn follows a system call, which takes longer than a turn that only spins. */
static inline void hora_waiter_looked(hora_waiter_t *w) {
    if (w->turns < w->quick)
        w->turns += w->comm->world->link_turns;
}

static inline hora_status_t hora_waiter_turn(hora_waiter_t *w, int awaited) {
    if (__builtin_expect(++w->turns <= w->quick, 1)) {
        hora_cpu_relax();
        return HORA_OK;
    }
    return hora_waiter_slow_turn(w, awaited);
}

/* Cores that the ranks of this host may use together, by their affinity and my cgroup's quota; at
 * least 1. Needs the peers' pids. */
int hora_cpu_count_host(const hora_world_t *world);
/* Says where this rank is, before it wakes others (apart.c). A few nanoseconds. */
void hora_apart_note(hora_world_t *world);
/* Moves this thread to another core if the awaited rank (-1: any) was last on this one; where there are
 * fewer cores than ranks, if another core has fewer of them. False: it shares its core with the awaited
 * rank, so that spinning would only keep that one waiting. */
bool hora_apart_look(const hora_comm_t *comm, int awaited);
/* Does a rank take turns with this one on a core, as far as is known? Then it is to be waited for first:
 * it cannot come before this one yields. Always false where each rank has a core. */
bool hora_apart_takes_turns(const hora_comm_t *comm, int rank);
/* Nanoseconds that the ranks who take turns with this one have worked, by what they say (bell->ran)
 * or, where they share no memory with it and `ask`, by the kernel: some system calls. */
uint64_t hora_apart_worked(const hora_comm_t *comm, bool ask);

/* Sets world->spin_turns and its like from the cores, the local ranks and HORA_SPIN_US. */
void hora_wait_setup(hora_world_t *world);

#endif
