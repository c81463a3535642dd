/*
 * How many cores the ranks of this host may use together, and so how long a waiting rank may spin. Runs
 * once, on the thread that joins the job.
 */
#include "transport/wait.h"

#include "util/clock.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#define SPIN_NS_DEFAULT 50000 /* with a core per rank: longer than a sleeping rank takes to wake */
#define LINK_NS         300   /* a look at a link in vain that is a system call */
#define LOOK_NS         2000  /* a call between ranks that have a core each is over by then */
#define CROWD_SPIN_NS   3000  /* where ranks take turns: longer than the other core takes to change them */

static int quota_from(const char *path, const char *format, long *quota_p, long *period_p) {
    FILE *f = fopen(path, "re");
    int   n;
    if (f == NULL)
        return 0;
    n = period_p != NULL ? fscanf(f, format, quota_p, period_p) : fscanf(f, format, quota_p);
    fclose(f);
    return n;
}

/* Whole cores of the cgroup's quota, at least 1; 0: no quota. */
static int cgroup_cores(void) {
    long quota = 0, period = 0;
    if (quota_from("/sys/fs/cgroup/cpu.max", "%ld %ld", &quota, &period) == 2 && period > 0)
        return quota < period ? 1 : (int)(quota / period);
    if (quota_from("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "%ld", &quota, NULL) == 1 && quota > 0 &&
        quota_from("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "%ld", &period, NULL) == 1 && period > 0)
        return quota < period ? 1 : (int)(quota / period);
    return 0;
}

static int at_most(int cores, int limit) {
    return limit > 0 && limit < cores ? limit : cores;
}

/* A rank that is bound counts with the cores that it is bound to: all of one socket's ranks may use that
 * socket. One that the kernel does not show is in another container, with a quota of its own, and counts
 * as a core of its own. Where ranks share a core after all, they find out while they wait (apart.c). */
int hora_cpu_count_host(const hora_world_t *world) {
    cpu_set_t own, all, one;
    int       online = (int)sysconf(_SC_NPROCESSORS_ONLN), unseen = 0, cores;
    if (online < 1)
        online = 1;
    if (sched_getaffinity(0, sizeof(own), &own) != 0)
        return at_most(online, cgroup_cores());
    all = own;
    for (int r = 0; r < world->size; r++) {
        if (world->peers[r].local < 0 || r == world->rank)
            continue;
        if (world->peers[r].pid > 0 &&
            sched_getaffinity(world->peers[r].pid, sizeof(one), &one) == 0)
            CPU_OR(&all, &all, &one);
        else
            unseen++;
    }
    cores = at_most(CPU_COUNT(&all), cgroup_cores()) + unseen;
    return at_most(cores > 0 ? cores : 1, online);
}

/* Nanoseconds that one pause takes here (a few on some machines, over a hundred on others). */
static double pause_ns(void) {
    uint64_t start = hora_clock_ns();
    for (int i = 0; i < 1000; i++)
        hora_cpu_relax();
    return (double)(hora_clock_ns() - start) / 1000 + 0.5;
}

void hora_wait_setup(hora_world_t *world) {
    double spin_ns = (double)world->settings.spin_us * 1000, pause = pause_ns();
    int    cores = hora_cpu_count_host(world);
    bool   enough = world->local_size <= cores;
    world->has_cores = world->local_size > 1 && enough;
    world->crowd_cores = enough ? 0 : cores;
    if (spin_ns < 0)
        spin_ns = enough ? SPIN_NS_DEFAULT : CROWD_SPIN_NS;
    world->spin_turns = world->look_turns = (int)(spin_ns / pause);
    world->link_turns = (int)(LINK_NS / pause);
    if (!enough)
        world->look_turns = 0;
    else if (world->has_cores && spin_ns > LOOK_NS)
        world->look_turns = (int)(LOOK_NS / pause);
}
