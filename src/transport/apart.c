/*
 * Keeps the ranks of a host on cores of their own (wait.h). On the waiting thread.
 *
 * A scheduler that wakes a rank likes to put it on the core of the rank that woke it, and leaves it
 * there while the other cores are busy with other work. Two ranks on one core cannot wait for each
 * other quickly: one spins while the other could run, and every call takes two time slices. So a
 * rank that has waited for some microseconds looks where the awaited one was last. If that is here,
 * it moves: it excludes this core from its affinity mask, which moves it at once, and puts the mask
 * back. Nothing is bound: the scheduler may move it again.
 *
 * Seen on a 2-core machine with a load of 10: 8 B between 2 ranks took 270 us without this and 0.5 us
 * with the ranks bound to a core each.
 *
 * Where there are fewer cores than ranks, ranks move to even out their number on the cores, and a
 * waiting rank knows who takes turns with it: see wait.c.
 */
#include "transport/wait.h"

#include "util/clock.h"
#include "util/log.h"

#include <errno.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

#define MOVE_NS   1000000 /* at most one move in this time: a move costs some microseconds */
#define SPREAD_NS 200000  /* between looks at where all ranks are, where they take turns */

#define SPREAD_LOOKS 8   /* waits that share one look at the clock for that */

static _Thread_local uint64_t moved_at, spread_at;
static _Thread_local unsigned looks;

/* My core, numbered from 1; 0: unknown. */
static int core_here(void) {
    int cpu = sched_getcpu();
    return cpu >= 0 ? cpu + 1 : 0;
}

/* Where a rank of this host was last; 0: unknown. */
static int core_of(const hora_peer_t *peer) {
    const atomic_int *core = peer->bell != NULL ? &peer->bell->core : &peer->core;
    return atomic_load_explicit(core, memory_order_relaxed);
}

static bool is_at(const hora_comm_t *comm, int rank, int core) {
    return rank != comm->rank && core_of(hora_comm_peer(comm, rank)) == core;
}

/* Is a rank here that this thread waits for? awaited -1: it may be any. */
static bool is_shared(const hora_comm_t *comm, int awaited, int core) {
    if (awaited >= 0)
        return is_at(comm, awaited, core);
    for (int r = 0; r < comm->size; r++)
        if (is_at(comm, r, core))
            return true;
    return false;
}

/* The allowed cores without this one and, if any are left then, without those of others. */
static bool choose(const hora_comm_t *comm, int core, const cpu_set_t *allowed, cpu_set_t *rest) {
    cpu_set_t free;
    *rest = *allowed;
    CPU_CLR(core - 1, rest);
    free = *rest;
    for (int r = 0; r < comm->size; r++) {
        int other = core_of(hora_comm_peer(comm, r));
        if (r != comm->rank && other > 0 && other <= CPU_SETSIZE)
            CPU_CLR(other - 1, &free);
    }
    if (CPU_COUNT(&free) > 0)
        *rest = free;
    return CPU_COUNT(rest) > 0;
}

/* It can fail only if the cores of this process were changed from outside in this very moment: a
 * cpuset. Then the thread is left on the other cores, which is worth a word. */
static void put_back(const cpu_set_t *allowed) {
    static atomic_flag warned = ATOMIC_FLAG_INIT;
    if (sched_setaffinity(0, sizeof(*allowed), allowed) == 0 ||
        sched_setaffinity(0, sizeof(*allowed), allowed) == 0)
        return;
    int err = errno;
    if (!atomic_flag_test_and_set(&warned))
        hora_log(HORA_LOG_WARNING, "a waiting thread moved to another core and could not get its "
                 "cores back (errno %d): it stays off one of them; HORA_SPIN_US=0 keeps threads "
                 "from moving", err);
}

/* True when this thread may now be elsewhere. */
static bool move_to(const cpu_set_t *rest, const cpu_set_t *allowed) {
    if (sched_setaffinity(0, sizeof(*rest), rest) != 0)
        return false;
    put_back(allowed);
    return true;
}

static bool move(const hora_comm_t *comm, int core) {
    cpu_set_t allowed, rest;
    return core <= CPU_SETSIZE && sched_getaffinity(0, sizeof(allowed), &allowed) == 0 &&
           choose(comm, core, &allowed, &rest) && move_to(&rest, &allowed);
}

/* ---- fewer cores than ranks ---- */

/* The allowed cores with the fewest ranks, if they have at least two fewer than this one. */
static bool choose_emptier(const int *ranks, int core, const cpu_set_t *allowed, cpu_set_t *rest) {
    int least = ranks[core - 1] - 2;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, allowed) && ranks[i] < least)
            least = ranks[i];
    CPU_ZERO(rest);
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, allowed) && ranks[i] <= least)
            CPU_SET(i, rest);
    return CPU_COUNT(rest) > 0;
}

/* Moves if this core has more than its share of the ranks. */
static bool even_out(const hora_comm_t *comm, int core) {
    int       ranks[CPU_SETSIZE] = {0};
    cpu_set_t allowed, rest;
    ranks[core - 1] = 1;
    for (int r = 0; r < comm->size; r++) {
        int other = core_of(hora_comm_peer(comm, r));
        if (r != comm->rank && other > 0 && other <= CPU_SETSIZE)
            ranks[other - 1]++;
    }
    return (ranks[core - 1] - 1) * comm->world->crowd_cores >= comm->world->local_size &&
           sched_getaffinity(0, sizeof(allowed), &allowed) == 0 &&
           choose_emptier(ranks, core, &allowed, &rest) && move_to(&rest, &allowed);
}

/* A call takes as long as the fullest core does. */
static void spread(const hora_comm_t *comm, int core) {
    uint64_t now;
    if (++looks % SPREAD_LOOKS != 1 || core > CPU_SETSIZE)
        return;
    now = hora_clock_ns();
    if (now - spread_at < SPREAD_NS || now - moved_at < MOVE_NS)
        return;
    spread_at = now;
    if (!even_out(comm, core))
        return;
    moved_at = now;
    hora_apart_note(comm->world);
}

bool hora_apart_takes_turns(const hora_comm_t *comm, int rank) {
    return comm->world->crowd_cores > 0 &&
           is_at(comm, rank, atomic_load_explicit(&comm->world->bell->core, memory_order_relaxed));
}

/* What the kernel says that the rank's process has run. Its other threads count, too. */
static uint64_t processor_time(const hora_peer_t *peer) {
    struct timespec t;
    clockid_t       clock;
    if (peer->pid <= 0 || clock_getcpuclockid(peer->pid, &clock) != 0 ||
        clock_gettime(clock, &t) != 0)
        return 0;
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t hora_apart_worked(const hora_comm_t *comm, bool ask) {
    uint64_t ns = 0;
    for (int r = 0; r < comm->size; r++) {
        const hora_peer_t *peer = hora_comm_peer(comm, r);
        if (!hora_apart_takes_turns(comm, r))
            continue;
        if (peer->bell != NULL)
            ns += atomic_load_explicit(&peer->bell->ran, memory_order_relaxed);
        else if (ask)
            ns += processor_time(peer);
    }
    return ns;
}

/* ---- the doors ---- */

void hora_apart_note(hora_world_t *world) {
    int core = core_here();
    if (core != atomic_load_explicit(&world->bell->core, memory_order_relaxed))
        atomic_store_explicit(&world->bell->core, core, memory_order_relaxed);
}

bool hora_apart_look(const hora_comm_t *comm, int awaited) {
    int      core = core_here();
    uint64_t now;
    hora_apart_note(comm->world);
    if (core > 0 && comm->world->crowd_cores > 0 && comm->local_size == comm->world->local_size) {
        spread(comm, core);
        core = atomic_load_explicit(&comm->world->bell->core, memory_order_relaxed);
    }
    if (core == 0 || !is_shared(comm, awaited, core))
        return true;
    if (comm->world->crowd_cores > 0)
        return false;
    now = hora_clock_ns();
    if (now - moved_at < MOVE_NS || !move(comm, core))
        return false;
    moved_at = now;
    hora_apart_note(comm->world);
    return true;
}
