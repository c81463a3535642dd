/*
 * src/transport/apart.c: a rank whose core another rank uses moves, and is not bound afterwards.
 * The other rank is a bell, or messages, that say where it was.
 */
#include "transport/wait.h"
#include "util/log.h"

#include "../capture.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

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
        atomic_store(world->peers[1].bell != NULL ? &other.core : &world->peers[1].core, here);
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

/* One that shares no memory. */
static void look__moves_away_from_the_sender(void **state) {
    (void)state;
    need_two_cores();
    world->peers[1].bell = NULL;
    assert_true(moves(1));
    assert_true(moves(-1));
}

/* ---- Masks that cannot be put back: in place of the C library's function ---- */

static int refused_from, refused_to, calls; /* calls by number, from 0 */

int sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set) {
    int call = calls++;
    if (call >= refused_from && call < refused_to) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_sched_setaffinity, pid, size, set);
}

/* One move of which the calls first .. end - 1 are refused; what it says. */
static const char *move_refused(int first, int end, char text[CAPTURE_MAX]) {
    capture_t capture = capture_begin();
    refused_from = first;
    refused_to = end;
    calls = 0;
    nanosleep(&(struct timespec){0, 2000000}, NULL);
    for (int i = 0; i < 1000 && calls == 0; i++) { /* the scheduler may be quicker */
        atomic_store(&other.core, sched_getcpu() + 1);
        hora_apart_look(&comm, 1);
    }
    refused_from = refused_to = 0;
    return capture_end(capture, text);
}

static void look__tries_twice_to_be_free_again(void **state) {
    cpu_set_t before, after;
    char      text[CAPTURE_MAX];
    (void)state;
    need_two_cores();
    hora_log_setup("warning", true);
    sched_getaffinity(0, sizeof(before), &before);
    assert_string_equal(move_refused(1, 2, text), "");
    assert_int_equal(calls, 3);
    sched_getaffinity(0, sizeof(after), &after);
    assert_true(CPU_EQUAL(&before, &after));
    assert_non_null(strstr(move_refused(1, 3, text), "could not get its cores back"));
    assert_int_equal(calls, 3);
    sched_getaffinity(0, sizeof(after), &after);
    assert_true(CPU_COUNT(&after) < CPU_COUNT(&before)); /* or the refusal was not tested */
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
    assert_string_equal(move_refused(1, 3, text), ""); /* once is enough */
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
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

/* ---- Four ranks that take turns on two cores ---- */

static hora_bell_t crowd_bells[3];
static int         crowd_ranks[4] = {0, 1, 2, 3};

static int make_crowd(void **state) {
    (void)state;
    assert_int_equal(hora_world_create(0, 4, &world), HORA_OK);
    memset(&comm, 0, sizeof(comm));
    comm.world = world;
    comm.size = comm.local_size = world->local_size = 4;
    comm.world_ranks = crowd_ranks;
    world->crowd_cores = 2;
    for (int r = 1; r < 4; r++)
        world->peers[r].bell = &crowd_bells[r - 1];
    nanosleep(&(struct timespec){0, 2000000}, NULL);
    return 0;
}

static int unmake_crowd(void **state) {
    (void)state;
    for (int r = 1; r < 4; r++)
        world->peers[r].bell = NULL;
    hora_world_destroy(world);
    return 0;
}

/* Where the other three were, from 1. */
static void place(int first, int second, int third) {
    int cores[3] = {first, second, third};
    for (int i = 0; i < 3; i++)
        atomic_store(&crowd_bells[i].core, cores[i]);
}

static void look_in_crowd__leaves_the_fuller_core(void **state) {
    cpu_set_t before, after;
    bool      moved = false;
    (void)state;
    need_two_cores();
    sched_getaffinity(0, sizeof(before), &before);
    for (int i = 0; i < 20 && !moved; i++) { /* the scheduler may bring this thread back at any time */
        int here = sched_getcpu() + 1;
        place(here, here, CPU_SETSIZE);
        hora_apart_look(&comm, 3);
        moved = atomic_load(&world->bell->core) != here;
        nanosleep(&(struct timespec){0, 2000000}, NULL);
    }
    assert_true(moved);
    sched_getaffinity(0, sizeof(after), &after);
    assert_true(CPU_EQUAL(&before, &after));
}

static void look_in_crowd__stays_where_it_is_even(void **state) {
    cpu_set_t one, before;
    int       here = sched_getcpu() + 1, elsewhere = here == 1 ? 2 : 1;
    (void)state;
    sched_getaffinity(0, sizeof(before), &before);
    CPU_ZERO(&one);
    CPU_SET(here - 1, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    calls = 0;
    place(here, elsewhere, elsewhere);
    assert_false(hora_apart_look(&comm, 1)); /* it takes turns with this one: to be yielded to */
    assert_true(hora_apart_look(&comm, 2));
    assert_int_equal(calls, 0);
    assert_true(hora_apart_takes_turns(&comm, 1));
    assert_false(hora_apart_takes_turns(&comm, 2));
    assert_false(hora_apart_takes_turns(&comm, 0));
    for (int i = 0; i < 3; i++)
        atomic_store(&crowd_bells[i].ran, 10 + i);
    assert_int_equal(hora_apart_worked(&comm, false), 10);
    place(here, here, elsewhere);
    assert_int_equal(hora_apart_worked(&comm, true), 21);
    world->crowd_cores = 0;
    assert_false(hora_apart_takes_turns(&comm, 1));
    assert_int_equal(sched_setaffinity(0, sizeof(before), &before), 0);
}

/* Of one that shares no memory the kernel knows it, if it shows the process. */
static void worked__is_processor_time_without_a_bell(void **state) {
    uint64_t before;
    clock_t  start = clock();
    (void)state;
    hora_apart_note(world);
    place(0, 0, 0);
    world->peers[1].bell = NULL;
    atomic_store(&world->peers[1].core, atomic_load(&world->bell->core));
    assert_int_equal(hora_apart_worked(&comm, true), 0);
    world->peers[1].pid = getpid();
    assert_int_equal(hora_apart_worked(&comm, false), 0);
    before = hora_apart_worked(&comm, true);
    assert_true(before > 0);
    while (clock() - start < CLOCKS_PER_SEC / 200)
        ;
    assert_true(hora_apart_worked(&comm, true) - before >= 2000000);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(look__moves_away_from_the_awaited, make, unmake),
        cmocka_unit_test_setup_teardown(look__moves_away_from_the_sender, make, unmake),
        cmocka_unit_test_setup_teardown(look__tries_twice_to_be_free_again, make, unmake),
        cmocka_unit_test_setup_teardown(look__stays_where_it_is_alone, make, unmake),
        cmocka_unit_test_setup_teardown(look__takes_no_peer_on_another_host, make, unmake),
        cmocka_unit_test_setup_teardown(look_in_crowd__leaves_the_fuller_core, make_crowd, unmake_crowd),
        cmocka_unit_test_setup_teardown(look_in_crowd__stays_where_it_is_even, make_crowd, unmake_crowd),
        cmocka_unit_test_setup_teardown(worked__is_processor_time_without_a_bell, make_crowd,
                                        unmake_crowd),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
