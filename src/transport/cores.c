/*
 * How many cores this process may use, and so how long a waiting rank may spin. Runs once, on the
 * thread that joins the job.
 */
#include "transport/wait.h"

#include "util/clock.h"

#include <sched.h>
#include <stdio.h>
#include <unistd.h>

#define SPIN_NS_DEFAULT 50000 /* with a core per rank: longer than a sleeping rank takes to wake */
#define LOOK_NS         2000  /* a call between ranks that have a core each is over by then */
#define SPINS_SHARED    20    /* pauses before the first yield when ranks share cores */

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

/* That this process may use: affinity mask and cgroup quota; at least 1. */
static int own_cores(void) {
    cpu_set_t set;
    int       cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    int       quota = cgroup_cores();
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        cores = CPU_COUNT(&set);
    if (quota > 0 && quota < cores)
        cores = quota;
    return cores > 0 ? cores : 1;
}

/* A launcher that binds ranks gives each one its own, as a rule;
 * where it has not, the ranks find out while they wait (apart.c). */
int hora_cpu_count_host(void) {
    cpu_set_t set;
    int       online = (int)sysconf(_SC_NPROCESSORS_ONLN), quota = cgroup_cores();
    bool      bound = sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) == 1;
    if (!bound)
        return own_cores();
    return quota > 0 && quota < online ? quota : online;
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
    bool   enough = world->local_size <= hora_cpu_count_host();
    world->has_cores = world->local_size > 1 && enough;
    if (spin_ns < 0 && !enough) {
        world->spin_turns = world->look_turns = SPINS_SHARED;
        return;
    }
    if (spin_ns < 0)
        spin_ns = SPIN_NS_DEFAULT;
    world->spin_turns = world->look_turns = (int)(spin_ns / pause);
    if (world->has_cores && spin_ns > LOOK_NS)
        world->look_turns = (int)(LOOK_NS / pause);
}
