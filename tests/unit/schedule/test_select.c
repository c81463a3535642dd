/*
 * src/schedule/select.c: which algorithm for which call. A communicator of made-up ranks, whose
 * links are never used.
 */
#include "schedule/algos.h"
#include "schedule/exec.h"
#include "transport/shm/pads.h"
#include "transport/transport.h"
#include "util/log.h"

#include "../capture.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RANKS 64

static hora_transport_ops_t ops;
static hora_transport_t     transport = {.ops = &ops};
static hora_link_t          links[RANKS];
static hora_peer_t          peers[RANKS];
static int                  world_ranks[RANKS];
static hora_world_t         world;
static hora_pads_t          pads = {.slot_bytes = 1u << 20};
static hora_comm_t          comm;
static size_t               counts[RANKS], displs[RANKS];

static int fresh(void **state) {
    (void)state;
    memset(&world, 0, sizeof(world));
    assert_int_equal(hora_settings_load(&world.settings), HORA_OK);
    ops.name = "tcp";
    world.peers = peers;
    for (int i = 0; i < RANKS; i++) {
        world_ranks[i] = i;
        links[i] = (hora_link_t){&transport, i};
        peers[i].link = i == 0 ? NULL : &links[i];
    }
    comm = (hora_comm_t){.world = &world, .size = 4, .world_ranks = world_ranks};
    return 0;
}

static hora_coll_t call(hora_coll_kind_t kind, size_t count) {
    hora_coll_t coll = {.kind = kind, .dtype = HORA_FLOAT32, .op = HORA_SUM, .size = comm.size,
                        .count = count, .prescale = 1.0, .postscale = 1.0};
    for (int i = 0; i < RANKS; i++) {
        counts[i] = count;
        displs[i] = count * (size_t)i;
    }
    if (kind == HORA_COLL_REDUCE_SCATTER || kind == HORA_COLL_ALLGATHER) {
        coll.counts = counts;
        coll.displs = displs;
    }
    return coll;
}

/* The communicators here change in ways in which a real one does not. */
static void forget(void) {
    memset(comm.chosen, 0, sizeof(comm.chosen));
}

static const char *chosen(hora_coll_kind_t kind, size_t count) {
    hora_coll_t coll = call(kind, count);
    forget();
    return hora_select_name(&comm, &coll);
}

static void select__every_kind_has_an_algorithm(void **state) {
    (void)state;
    for (comm.size = 2; comm.size <= RANKS; comm.size++)
        for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
            for (int deterministic = 0; deterministic < 2; deterministic++) {
                hora_coll_t        coll = call((hora_coll_kind_t)kind, 1000);
                const hora_algo_t *algo;
                world.settings.deterministic = deterministic;
                forget();
                algo = hora_select(&comm, &coll);
                assert_non_null(algo);
                assert_true(algo->colls & 1u << kind);
                assert_false(algo->needs_arena);
                if (deterministic && hora_coll_reduces((hora_coll_kind_t)kind))
                    assert_true(algo->rank_order);
            }
}

static void select__goes_by_size(void **state) {
    (void)state;
    comm.size = 16;
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 1), "doubling");
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 20000), "halving");
    assert_string_equal(chosen(HORA_COLL_BROADCAST, 1), "tree");
    assert_string_equal(chosen(HORA_COLL_BROADCAST, 50000000), "ring");
    assert_string_equal(chosen(HORA_COLL_ALLGATHER, 1), "direct");
    assert_string_equal(chosen(HORA_COLL_ALLGATHER, 5000000), "ring");
    comm.size = 13; /* folding costs a vector more */
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 50000000), "ring");
}

static void select__prefers_the_arena(void **state) {
    (void)state;
    comm.pads = &pads;
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 100), "oneshot");
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 1000000), "arena");
    pads.slot_bytes = 300; /* oneshot has no room */
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 100), "arena");
    pads.slot_bytes = 1u << 20;
    comm.tiny_allowed = true;
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 3), "tiny");
    comm.size = 1;
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 3), "self");
}

static void select__does_as_it_is_told_where_that_is_possible(void **state) {
    (void)state;
    strcpy(world.settings.algo, "ring");
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 1), "ring");
    assert_string_equal(chosen(HORA_COLL_GATHER, 1), "direct"); /* has no ring */
    strcpy(world.settings.algo, "arena");
    assert_string_not_equal(chosen(HORA_COLL_ALLREDUCE, 1), "arena"); /* has no pads */
    comm.pads = &pads;
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 1), "arena");
    strcpy(world.settings.algo, "no such thing");
    comm.pads = NULL;
    assert_string_equal(chosen(HORA_COLL_GATHER, 1), "direct");
    strcpy(world.settings.algo, "ring");
    world.settings.deterministic = true;
    assert_string_equal(chosen(HORA_COLL_ALLREDUCE, 1), "direct");
    assert_string_equal(chosen(HORA_COLL_ALLGATHER, 1), "ring"); /* sums nothing */
}

/* Also those that do not apply here are no mistake; other names are (util/settings.def). */
static void select__every_algorithm_can_be_forced(void **state) {
    hora_settings_t settings;
    for (int i = 0; hora_algo_list[i] != NULL; i++) {
        setenv("HORA_ALGO", hora_algo_list[i]->name, 1);
        assert_int_equal(hora_settings_load(&settings), HORA_OK);
        assert_string_equal(settings.algo, hora_algo_list[i]->name);
    }
    unsetenv("HORA_ALGO");
}

static void select__halves_cost_double_where_they_are_widened(void **state) {
    hora_coll_t coll = call(HORA_COLL_ALLREDUCE, 10000000);
    (void)state;
    coll.size = comm.size = 16;
    assert_true(hora_select(&comm, &coll) == &hora_algo_halving);
    coll.dtype = HORA_BFLOAT16;
    assert_true(hora_select(&comm, &coll) == &hora_algo_direct);
    assert_true(hora_select_widens(&hora_algo_ring, &coll));
    assert_false(hora_select_widens(&hora_algo_direct, &coll));
    coll.op = HORA_MAX;
    assert_false(hora_select_widens(&hora_algo_ring, &coll));
    coll.postscale = 0.5;
    assert_true(hora_select_widens(&hora_algo_ring, &coll));
}

static void select__all_members_choose_alike(void **state) {
    static hora_transport_ops_t shm_ops;
    static hora_transport_t     shm = {.ops = &shm_ops};
    size_t                      sizes[] = {1, 1000, 100000, 10000000};
    shm_ops.name = "shm";
    (void)state;
    comm.size = 6; /* hosts of 4 and 2 ranks */
    for (size_t i = 0; i < 4; i++) {
        const char *first = NULL;
        for (int r = 0; r < 6; r++) {
            for (int p = 0; p < 6; p++) {
                links[p].transport = (r < 4) == (p < 4) ? &shm : &transport;
                peers[p].link = p == r ? NULL : &links[p];
            }
            comm.rank = r;
            if (first == NULL)
                first = chosen(HORA_COLL_ALLREDUCE, sizes[i]);
            assert_string_equal(chosen(HORA_COLL_ALLREDUCE, sizes[i]), first);
        }
    }
}

static void signature__changes_with_all_that_matters(void **state) {
    hora_coll_t a = call(HORA_COLL_REDUCE, 10), b = a;
    uint32_t    even;
    (void)state;
    assert_int_equal(hora_coll_sig(&a), hora_coll_sig(&b));
    assert_int_equal(hora_coll_sig(&a) >> 28, HORA_COLL_REDUCE);
    b.root = 1;
    assert_int_not_equal(hora_coll_sig(&a), hora_coll_sig(&b));
    b = a;
    b.count = 11;
    assert_int_not_equal(hora_coll_sig(&a), hora_coll_sig(&b));
    b = a;
    b.rank = 3; /* differs from rank to rank */
    assert_int_equal(hora_coll_sig(&a), hora_coll_sig(&b));
    a = call(HORA_COLL_ALLGATHER, 10);
    even = hora_coll_sig(&a);
    counts[2]++;
    assert_int_not_equal(hora_coll_sig(&a), even);
    assert_int_not_equal(hora_coll_sig_with(5, 1), hora_coll_sig_with(5, 2));
}

/* What is said while a scatter is chosen for. */
static const char *said(char text[CAPTURE_MAX]) {
    capture_t capture = capture_begin();
    chosen(HORA_COLL_SCATTER, 1000);
    return capture_end(capture, text);
}

static void select__tells_of_the_users_calls_only(void **state) {
    char text[CAPTURE_MAX];
    (void)state;
    strcpy(world.settings.algo, "twolevel");
    hora_log_setup("info", true);
    assert_string_equal(said(text), "");
    comm.opened = true;
    assert_non_null(strstr(said(text), "HORA_ALGO=twolevel does not apply to this scatter"));
    assert_string_equal(said(text), "");
    hora_log_setup("error", true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(select__every_kind_has_an_algorithm, fresh),
        cmocka_unit_test_setup(select__goes_by_size, fresh),
        cmocka_unit_test_setup(select__prefers_the_arena, fresh),
        cmocka_unit_test_setup(select__does_as_it_is_told_where_that_is_possible, fresh),
        cmocka_unit_test(select__every_algorithm_can_be_forced),
        cmocka_unit_test_setup(select__halves_cost_double_where_they_are_widened, fresh),
        cmocka_unit_test_setup(select__all_members_choose_alike, fresh),
        cmocka_unit_test_setup(signature__changes_with_all_that_matters, fresh),
        cmocka_unit_test_setup(select__tells_of_the_users_calls_only, fresh),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
