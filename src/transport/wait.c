/*
 * Waiting (wait.h). Runs on the waiting thread. Three stages, each only when the one before did not
 * help: spin (in wait.h), yield, sleep. A rank that shares its core with compute threads loses a whole
 * time slice (milliseconds) in a yield, because only a wake-up pre-empts; so a yield that took too long
 * sends this thread to sleep for its next waits. Spins and yields together last longer than it takes a
 * sleeping rank to wake: else one late rank would make the others sleep, and be late, in turn.
 *
 * Where ranks take turns on the cores, a rank yields at once to one that it waits for and that shares
 * its core. For one on another core it spins as long as ranks take to change there, and then yields.
 * Time in which a rank of its core worked is not lost: the ranks, or the kernel, say how long they have.
 *
 * A kernel that shares out the cores by session (sched_autogroup) or by container hands a yielded core on
 * only within that share. Between ranks of different ones, a yield often changes nothing; where others
 * compute, it changes nothing until a time slice has gone to them. So a thread that has lost several is
 * wary for its next waits: after a yield in vain it sleeps, and a wake-up pre-empts who computes.
 *
 * A sleep is cut into slices: at each slice's end the deadline is looked at. Everything else that ends
 * a wait rings the bell.
 */
#include "transport/wait.h"

#include "transport/p2p.h"
#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define YIELD_NS          200000  /* how long a wait yields in vain before it sleeps */
#define YIELD_MOST_NS     100000000 /* whatever the ranks beside it say */
#define SLOW_YIELD_NS     200000  /* a yield that took so long gave the core to a compute thread */
#define DOUBT_NS          20000   /* where memory is not shared: lost until the kernel is asked */
#define DOUBT_WAITS       1000    /* and waits that ask it after a slow yield */
#define SLEEP_MODE_WAITS  16      /* waits that then go to sleep at once */
#define WARY_WAITS        10000   /* and waits that then go to sleep after a yield in vain */
#define VAIN_NS           1000    /* to another process and back takes longer */
#define LOSSES            3       /* slow yields that make wary, each so soon after the one before: */
#define LOSSES_NS         50000000
#define SLICE_NS          50000000
#define CAUSE_SECONDS     0.5     /* from a broken link to the news of why it broke */
#define GONE_GRACE_NS     1200000000
#define POLL_ONLY_NS      50000   /* nap when a transport cannot wake us */

#define PATIENT_SPINS     32      /* pauses of a thread that must leave its core to others */
#define LOOK_TURNS        16      /* yields between looks at the transports */

static _Thread_local int      sleep_mode; /* waits left that skip the yields */
static _Thread_local int      wary;       /* waits left that yield in vain only once */
static _Thread_local int      doubts;     /* waits left that ask the kernel who has worked */
static _Thread_local int      losses;
static _Thread_local uint64_t lost_at;    /* ns: the last slow yield */
static _Thread_local bool     patient;    /* spins hardly and never yields */
static _Thread_local uint64_t running_since; /* ns: when this thread last came back from a yield */
static _Thread_local unsigned announced;  /* this thread's share of its bell's `waiting` */

void hora_waiter_begin(hora_waiter_t *w, hora_comm_t *comm, double timeout, const char *what) {
    memset(w, 0, sizeof(*w));
    w->comm = comm;
    w->what = what;
    w->timeout = timeout > 0 ? timeout : comm->timeout;
    w->quick = patient ? comm->world->spin_turns : comm->world->look_turns;
    if (patient && comm->world->spin_turns > PATIENT_SPINS)
        w->turns = comm->world->spin_turns - PATIENT_SPINS;
}

void hora_wait_patiently(void) {
    patient = true;
}

/* The futex is quicker, but only the bell wakes it. */
static bool needs_poll(const hora_world_t *world) {
    for (int i = 0; i < world->ntransports; i++)
        if (world->transports[i]->ops->fd(world->transports[i]) != HORA_FD_BELL)
            return true;
    return false;
}

static void announce(hora_waiter_t *w) {
    hora_world_t *world = w->comm->world;
    hora_bell_t  *bell = world->bell;
    w->polls = needs_poll(world);
    w->bell = atomic_load(&bell->value);
    announced += w->polls ? 0x10000u : 1u;
    atomic_fetch_add(&bell->waiting, w->polls ? 0x10000u : 1u);
    atomic_thread_fence(memory_order_seq_cst); /* before the caller looks at its condition again */
    w->announced = true;
}

static void retract(hora_waiter_t *w) {
    announced -= w->polls ? 0x10000u : 1u;
    atomic_fetch_sub(&w->comm->world->bell->waiting, w->polls ? 0x10000u : 1u);
    w->announced = false;
}

bool hora_others_sleep(const hora_world_t *world) {
    unsigned waiting = atomic_load(&world->bell->waiting);
    return waiting != 0 && waiting != announced;
}

void hora_waiter_end(hora_waiter_t *w) {
    if (w->announced)
        retract(w);
}

static void sleep_on_futex(hora_bell_t *bell, unsigned value) {
    struct timespec slice = {0, SLICE_NS};
    syscall(SYS_futex, &bell->value, FUTEX_WAIT, value, &slice, NULL, 0);
}

static void sleep_in_poll(hora_world_t *world, unsigned seen) {
    struct pollfd   fds[HORA_TRANSPORTS_MAX + 1] = {{.fd = world->eventfd, .events = POLLIN}};
    struct timespec slice = {0, SLICE_NS};
    nfds_t          n = 1;
    for (int i = 0; i < world->ntransports; i++) {
        int fd = world->transports[i]->ops->fd(world->transports[i]);
        if (fd >= 0)
            fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
        else if (fd == -1)
            slice.tv_nsec = POLL_ONLY_NS;
    }
    if (atomic_load(&world->bell->value) != seen)
        return;
    if (ppoll(fds, n, &slice, NULL) > 0 && fds[0].revents) {
        uint64_t ignored;
        ssize_t  n_read = read(world->eventfd, &ignored, sizeof(ignored));
        (void)n_read; /* another thread may have taken it; `seen` is for those who come too late */
    }
}

/* Shared memory shows at once what was written. A goodbye may overtake data on a connection, which
 * the leaving rank goes on flushing for a second. */
static uint64_t grace_of(const hora_peer_t *peer) {
    bool shared = peer->link == NULL || peer->link->transport->ops == &hora_transport_shm;
    return shared ? 0 : GONE_GRACE_NS;
}

static hora_status_t fail_gone(const hora_comm_t *comm, int rank, const char *what) {
    return hora_fail(HORA_ERR_PEER_FAILED, "%s: rank %d on host %s has left the job, but this rank "
                     "still waits for it", what, hora_comm_name(comm, rank),
                     hora_comm_peer(comm, rank)->host);
}

hora_status_t hora_wait_check_gone(const hora_comm_t *comm, int rank, uint64_t *since_p,
                                   const char *what) {
    hora_peer_t *peer = hora_comm_peer(comm, rank);
    if (!atomic_load(&peer->gone))
        return HORA_OK;
    if (*since_p == 0) {
        *since_p = hora_clock_ns();
        return HORA_OK;
    }
    if (hora_clock_ns() - *since_p < grace_of(peer))
        return HORA_OK;
    return fail_gone(comm, rank, what);
}

static hora_status_t check_time(hora_waiter_t *w, int awaited) {
    char   who[HORA_HOST_MAX + 40] = "other ranks";
    double waited = hora_clock_seconds(w->last - w->start);
    double warn = w->comm->world->settings.stall_check_time;
    bool   warns = !w->comm->world->settings.stall_check_disable && !w->warned && waited >= warn;
    if (waited < w->timeout && !warns)
        return HORA_OK;
    if (awaited >= 0)
        snprintf(who, sizeof(who), "rank %d on host %s", hora_comm_name(w->comm, awaited),
                 hora_comm_peer(w->comm, awaited)->host);
    if (waited >= w->timeout)
        return hora_fail(HORA_ERR_TIMEOUT, "%s: waited %.1f s for %s (HORA_TIMEOUT)", w->what, waited,
                         who);
    w->warned = true;
    hora_log(HORA_LOG_WARNING, "%s: waiting for %s since %.0f s", w->what, who, waited);
    return HORA_OK;
}

/* To those who take turns with this thread, before it lets them. */
static void say_worked(hora_world_t *world, uint64_t now) {
    if (running_since > 0)
        atomic_fetch_add_explicit(&world->bell->ran, now - running_since, memory_order_relaxed);
}

/* Yields. Returns the nanoseconds since `now` in which no rank worked, as far as is known. Where
 * ranks share no memory, a slow yield only makes it ask the kernel from then on. */
static uint64_t yield(hora_waiter_t *w, uint64_t now) {
    hora_world_t *world = w->comm->world;
    uint64_t      begin, worked, lost;
    bool          fresh = w->yields++ == 0; /* then `now` is */
    bool          asks = world->arena != NULL || doubts > 0 || w->lost > DOUBT_NS;
    if (world->crowd_cores == 0) {
        sched_yield();
        w->last = hora_clock_ns();
        return w->last - now;
    }
    begin = fresh ? now : hora_clock_ns();
    say_worked(world, begin);
    worked = hora_apart_worked(w->comm, asks);
    sched_yield();
    w->last = running_since = hora_clock_ns();
    w->vain = w->last - begin < VAIN_NS;
    w->turns = w->quick = 0; /* look again who is where, and spin for who is elsewhere */
    worked = hora_apart_worked(w->comm, asks) - worked;
    lost = worked < w->last - now ? w->last - now - worked : 0;
    if (asks || lost <= SLOW_YIELD_NS)
        return lost;
    doubts = DOUBT_WAITS;
    return 0;
}

static void note_loss(uint64_t now) {
    losses = now - lost_at < LOSSES_NS ? losses + 1 : 1;
    lost_at = now;
    sleep_mode = SLEEP_MODE_WAITS;
    if (losses >= LOSSES)
        wary = WARY_WAITS;
}

static void yield_or_announce(hora_waiter_t *w, uint64_t now) {
    uint64_t lost;
    bool     enough = (w->vain && wary > 0) || w->lost > YIELD_NS || now - w->start > YIELD_MOST_NS;
    if (w->yields == 0 && wary > 0)
        wary--;
    if (w->yields == 0 && doubts > 0)
        doubts--;
    if (patient || sleep_mode > 0 || enough) {
        if (sleep_mode > 0)
            sleep_mode--;
        announce(w);
        return;
    }
    lost = yield(w, now);
    w->lost += lost;
    if (lost > SLOW_YIELD_NS)
        note_loss(w->last);
}

hora_status_t hora_waiter_slow_turn(hora_waiter_t *w, int awaited) {
    hora_status_t st = hora_failure_check(&w->comm->failure);
    if (st != HORA_OK)
        return st;
    if (w->quick < w->comm->world->spin_turns) {
        w->quick = w->comm->world->spin_turns;
        if (!hora_apart_look(w->comm, awaited))
            w->turns = w->quick;
        return HORA_OK;
    }
    if (awaited >= 0)
        st = hora_wait_check_gone(w->comm, awaited, &w->gone, w->what);
    if (st != HORA_OK)
        return st;
    if (w->start == 0)
        w->start = w->last = hora_clock_ns();
    /* Another rank may need a message of mine, of another operation, before it comes here. */
    if ((w->announced || w->yields % LOOK_TURNS == LOOK_TURNS - 1) &&
        hora_p2p_progress(w->comm->world) > 0)
        return HORA_OK; /* it may have been what the caller waits for */
    if (!w->announced) {
        yield_or_announce(w, w->last);
        return HORA_OK;
    }
    if (w->comm->world->crowd_cores > 0)
        say_worked(w->comm->world, hora_clock_ns());
    if (w->polls)
        sleep_in_poll(w->comm->world, w->bell);
    else
        sleep_on_futex(w->comm->world->bell, w->bell);
    retract(w);
    announce(w);
    w->last = running_since = hora_clock_ns();
    return check_time(w, awaited);
}

hora_status_t hora_wait_cause(hora_comm_t *comm, int rank, const char *what) {
    hora_waiter_t w;
    hora_status_t st;
    hora_waiter_begin(&w, comm, CAUSE_SECONDS, what);
    while ((st = hora_waiter_turn(&w, -1)) == HORA_OK)
        if (atomic_load(&hora_comm_peer(comm, rank)->gone)) { /* nothing more will come */
            st = hora_failure_check(&comm->failure); /* why it left, which was told before */
            st = st != HORA_OK ? st : fail_gone(comm, rank, what);
            break;
        }
    hora_waiter_end(&w);
    return st == HORA_ERR_TIMEOUT ? HORA_OK : st;
}
