/*
 * src/transport/apart.c: a rank whose core another rank uses moves, and is not bound afterwards.
 * The other rank is a bell that says where it was.
 */
#include "transport/wait.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sched.h>
#include <string.h>
#include <time.h>

static hora_bell_t  other;
static hora_world_t *world;
static hora_comm_t  comm;
static int          ranks[2] = {0, 1};

static int make(void **state) {
    (void)state;
    assert_int_equal(hora_world_create(0, 2, &world), HORA_OK);
    memset(&comm, 0, sizeof(comm));
    comm.world = world;
    comm.size = 2;
    comm.world_ranks = ranks;
    world->peers[1].bell = &other;
    nanosleep(&(struct timespec){0, 2000000}, NULL); /* one move in a millisecond is enough */
    return 0;
}

static int unmake(void **state) {
    (void)state;
    world->peers[1].bell = NULL;
    hora_world_destroy(world);
    return 0;
}

static void need_two_cores(void) {
    cpu_set_t set;
    assert_int_equal(sched_getaffinity(0, sizeof(set), &set), 0);
    if (CPU_COUNT(&set) < 2)
        skip();
}

/* The scheduler may bring this thread back at any time, so once in some tries is enough. */
static bool moves(int awaited) {
    for (int i = 0; i < 20; i++) {
        int here = sched_getcpu() + 1;
        atomic_store(&other.core, here);
        hora_apart_look(&comm, awaited);
        if (atomic_load(&world->bell->core) != here)
            return true;
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    return false;
}

static void look__moves_away_from_the_awaited(void **state) {
    cpu_set_t before, after;
    (void)state;
    need_two_cores();
    sched_getaffinity(0, sizeof(before), &before);
    assert_true(moves(1));
    sched_getaffinity(0, sizeof(after), &after);
    assert_true(CPU_EQUAL(&before, &after));
    assert_true(moves(-1));
}

static void look__stays_where_it_is_alone(void **state) {
    cpu_set_t one, before;
    int       here = sched_getcpu();
    (void)state;
    sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&one);
    CPU_SET(here, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    atomic_store(&other.core, here + 2);
    assert_true(hora_apart_look(&comm, 1));
    assert_int_equal(atomic_load(&world->bell->core), here + 1);
    atomic_store(&other.core, 0); /* unknown */
    assert_true(hora_apart_look(&comm, 1));
    atomic_store(&other.core, here + 1); /* here, but there is nowhere to go */
    assert_false(hora_apart_look(&comm, -1));
    assert_int_equal(sched_getcpu(), here);
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

static void look__takes_no_peer_on_another_host(void **state) {
    (void)state;
    world->peers[1].bell = NULL;
    hora_apart_look(&comm, 1);
    hora_apart_look(&comm, -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(look__moves_away_from_the_awaited, make, unmake),
        cmocka_unit_test_setup_teardown(look__stays_where_it_is_alone, make, unmake),
        cmocka_unit_test_setup_teardown(look__takes_no_peer_on_another_host, make, unmake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
