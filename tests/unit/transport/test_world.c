/*
 * Failures of communicators and of their parts (transport/world.c): who fails with whom, whichever was made
 * first, and what other ranks are told.
 */
#include "transport/comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { WHOLE = 1u << 31 | 5, PART = 1u << 31 | 6, OTHER = 1u << 31 | 7 };

static hora_world_t *world;
static uint32_t      told[8];
static int           ntold;

static void tell(hora_world_t *from, uint32_t channel, hora_status_t status, int rank, const char *text) {
    (void)from, (void)status, (void)rank, (void)text;
    told[ntold++] = channel;
}

static int begin(void **state) {
    (void)state;
    ntold = 0;
    assert_int_equal(hora_world_create(0, 2, &world), HORA_OK);
    world->announce = tell;
    return 0;
}

static int end(void **state) {
    (void)state;
    world->comms = NULL;
    hora_world_destroy(world);
    return 0;
}

static bool has_failed(hora_comm_t *comm, const char *text) {
    return hora_failure_check(&comm->failure) != HORA_OK && strcmp(hora_last_error(), text) == 0;
}

static void whole_and_parts_fail_together(void **state) {
    hora_comm_t whole = {.world = world, .channel = WHOLE};
    hora_comm_t part = {.world = world, .channel = PART, .whole = WHOLE};
    hora_comm_t other = {.world = world, .channel = OTHER};
    (void)state;
    hora_world_add_comm(world, &whole);
    hora_world_add_comm(world, &other);
    hora_world_add_comm(world, &part);
    assert_int_equal(hora_failure_check(&part.failure), HORA_OK);
    hora_world_fail(world, hora_comm_family(&part), HORA_ERR_TIMEOUT, 1, "too late");
    assert_true(has_failed(&whole, "too late") && has_failed(&part, "too late"));
    assert_int_equal(hora_failure_check(&other.failure), HORA_OK);
    hora_world_fail(world, hora_comm_family(&whole), HORA_ERR_ABORTED, 1, "again");
    assert_int_equal(ntold, 1);
    assert_int_equal(told[0], WHOLE);
}

/* Another rank fails while this one is about to make the part. */
static void a_late_part_fails_at_once(void **state) {
    hora_comm_t whole = {.world = world, .channel = WHOLE};
    hora_comm_t part = {.world = world, .channel = PART, .whole = WHOLE};
    hora_comm_t other = {.world = world, .channel = OTHER};
    (void)state;
    hora_world_add_comm(world, &whole);
    hora_world_raise(world, WHOLE, HORA_ERR_NO_MEMORY, 1, "no room");
    hora_world_add_comm(world, &part);
    hora_world_add_comm(world, &other);
    assert_true(has_failed(&part, "no room"));
    assert_int_equal(hora_failure_check(&other.failure), HORA_OK);
}

/* ... or before there is a whole. */
static void a_failure_that_is_early(void **state) {
    hora_comm_t whole = {.world = world, .channel = WHOLE};
    (void)state;
    hora_world_raise(world, WHOLE, HORA_ERR_ABORTED, 1, "enough");
    hora_world_add_comm(world, &whole);
    assert_true(has_failed(&whole, "enough"));
}

/* A part's members have the whole's ranks in messages. */
static void names(void **state) {
    int         ranks[] = {1, 3};
    hora_comm_t whole = {.channel = WHOLE, .size = 4};
    hora_comm_t part = {.channel = PART, .whole = WHOLE, .size = 2, .names = ranks};
    (void)state;
    assert_int_equal(hora_comm_name(&whole, 1), 1);
    assert_int_equal(hora_comm_name(&part, 1), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(whole_and_parts_fail_together, begin, end),
        cmocka_unit_test_setup_teardown(a_late_part_fails_at_once, begin, end),
        cmocka_unit_test_setup_teardown(a_failure_that_is_early, begin, end),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
