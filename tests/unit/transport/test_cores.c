/*
 * src/transport/cores.c: what counts as a core for each rank. A made-up machine with 16 cores, in place of
 * the C library's functions.
 */
#include "transport/wait.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

#define CORES 16
#define RANKS 4

/* Process 100 + r, and 0, which is this one, may use the cores [first, first + count). */
static struct {
    int first, count;
} bound[RANKS];

int sched_getaffinity(pid_t pid, size_t size, cpu_set_t *set) {
    int rank = pid == 0 ? 0 : pid - 100;
    if (rank < 0 || rank >= RANKS || bound[rank].count == 0) {
        errno = ESRCH;
        return -1;
    }
    memset(set, 0, size);
    for (int i = 0; i < bound[rank].count; i++)
        CPU_SET(bound[rank].first + i, set);
    return 0;
}

long __sysconf(int name); /* glibc's own name for it */

long sysconf(int name) {
    return name == _SC_NPROCESSORS_ONLN ? CORES : __sysconf(name); /* the sanitizers ask, too */
}

/* Of rank 0 and `others` more on its host. */
static int count(int others) {
    hora_peer_t  peers[RANKS];
    hora_world_t world = {.size = RANKS, .peers = peers};
    memset(peers, 0, sizeof(peers));
    for (int r = 0; r < RANKS; r++) {
        peers[r].local = r <= others ? r : -1;
        peers[r].pid = 100 + r;
    }
    return hora_cpu_count_host(&world);
}

static void bind_rank(int rank, int first, int cores) {
    bound[rank].first = first;
    bound[rank].count = cores;
}

static void need_no_quota(void) {
    for (int r = 0; r < RANKS; r++)
        bind_rank(r, 0, CORES);
    if (count(3) != CORES)
        skip();
}

static void count__joins_what_all_may_use(void **state) {
    (void)state;
    need_no_quota();
    for (int r = 0; r < RANKS; r++) /* two on each socket */
        bind_rank(r, r / 2 * 8, 8);
    assert_int_equal(count(0), 8);
    assert_int_equal(count(1), 8);
    assert_int_equal(count(3), 16);
    for (int r = 0; r < RANKS; r++) /* one on each core */
        bind_rank(r, r, 1);
    assert_int_equal(count(3), 4);
    for (int r = 0; r < RANKS; r++) /* all on one core */
        bind_rank(r, 5, 1);
    assert_int_equal(count(3), 1);
}

static void count__takes_ranks_that_it_cannot_see_for_one_core_each(void **state) {
    (void)state;
    need_no_quota();
    bind_rank(0, 0, 1);
    for (int r = 1; r < RANKS; r++)
        bind_rank(r, 0, 0);
    assert_int_equal(count(3), 4);
    bind_rank(0, 0, CORES);
    assert_int_equal(count(3), CORES);
    bind_rank(0, 0, 0); /* not even its own: a machine with more cores than a mask has room for */
    assert_int_equal(count(3), CORES);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(count__joins_what_all_may_use),
        cmocka_unit_test(count__takes_ranks_that_it_cannot_see_for_one_core_each),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
