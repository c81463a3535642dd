/*
 * src/schedule/costs.c and costs_file.c: measured times, on their way to the other ranks, in files, and
 * as predictions. A world of made-up ranks.
 */
#include "schedule/algos.h"
#include "schedule/costs.h"
#include "transport/transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RANKS 4

static hora_transport_ops_t ops = {.name = "tcp"};
static hora_transport_t     transport = {.ops = &ops};
static hora_link_t          links[RANKS];
static hora_peer_t          peers[RANKS];
static int                  world_ranks[RANKS] = {0, 1, 2, 3};
static hora_world_t         world;
static hora_comm_t          comm;
static hora_costs_t         costs;
static char                 path[] = "/tmp/hora-times-XXXXXX";
static int                  ring;

static int fresh(void **state) {
    (void)state;
    free(world.costs);
    memset(&world, 0, sizeof(world));
    assert_int_equal(hora_settings_load(&world.settings), HORA_OK);
    snprintf(world.settings.algo_times, sizeof(world.settings.algo_times), "%s", path);
    world.size = RANKS;
    world.peers = peers;
    for (int i = 0; i < RANKS; i++) {
        links[i] = (hora_link_t){&transport, i};
        peers[i].link = i == 0 ? NULL : &links[i];
        snprintf(peers[i].host, sizeof(peers[i].host), "here");
    }
    comm = (hora_comm_t){.world = &world, .size = RANKS, .world_ranks = world_ranks};
    for (ring = 0; hora_algo_list[ring] != &hora_algo_ring;)
        ring++;
    memset(&costs, 0, sizeof(costs));
    for (int point = 0; point < HORA_COSTS_POINTS; point++)
        costs.ns[HORA_COLL_ALLREDUCE][ring][point] = 1000 + 100 * (uint32_t)point;
    return 0;
}

static double predict(size_t count) {
    hora_coll_t coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                        .size = RANKS, .count = count, .prescale = 1.0, .postscale = 1.0};
    return hora_costs_predict(&comm, &hora_algo_ring, &coll, 4) * 1e9;
}

static bool near(double a, double b) {
    return a > b * 0.999999 && a < b * 1.000001;
}

static void predict__goes_by_times_where_there_are_some(void **state) {
    double formula = predict(256);
    (void)state;
    world.costs = &costs;
    assert_true(near(predict(1), 1000));
    assert_true(near(predict(4), 1000));   /* 16 B */
    assert_true(near(predict(16), 1100));  /* 64 B */
    assert_true(near(predict(40), 1150));  /* half way to 256 B */
    assert_true(near(predict((16 << 20) / 4), 2000));
    assert_true(near(predict((48 << 20) / 4), 6000));
    comm.size = 2; /* not the ranks that were measured */
    assert_false(near(predict(256), 1300));
    comm.size = RANKS;
    costs.ns[HORA_COLL_ALLREDUCE][ring][3] = 0; /* not at 1 KB */
    assert_true(near(predict(256), formula));
    world.costs = NULL;
}

static void by_formula__is_what_no_times_would_choose(void **state) {
    hora_coll_t        coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                               .size = RANKS, .count = 16, .prescale = 1.0, .postscale = 1.0};
    const hora_algo_t *known = hora_select_by_formula(&comm, &coll);
    (void)state;
    assert_ptr_equal(known, hora_select(&comm, &coll));
    assert_ptr_not_equal(known, &hora_algo_ring);
    world.costs = &costs;
    costs.ns[HORA_COLL_ALLREDUCE][ring][1] = 1; /* at 64 B, the fastest by far */
    memset(comm.chosen, 0, sizeof(comm.chosen));
    assert_ptr_equal(hora_select(&comm, &coll), &hora_algo_ring);
    assert_ptr_equal(hora_select_by_formula(&comm, &coll), known);
    world.costs = NULL;
}

static void times__reach_the_other_ranks(void **state) {
    uint8_t bytes[2048];
    size_t  len;
    (void)state;
    world.crowd = 250;
    world.costs = &costs;
    len = hora_costs_encode(&world, bytes, sizeof(bytes));
    world.costs = NULL;
    world.crowd = 0;
    assert_int_equal(hora_costs_decode(&world, bytes, len), HORA_OK);
    assert_int_equal(world.crowd, 250);
    assert_memory_equal(world.costs->ns, costs.ns, sizeof(costs.ns));
    free(world.costs);
    world.costs = NULL;
    for (size_t cut = 0; cut < len; cut++)
        if (cut != 4)
            assert_int_equal(hora_costs_decode(&world, bytes, cut), HORA_ERR_PROTOCOL);
    bytes[4] = HORA_COLL_KIND_COUNT;
    assert_int_equal(hora_costs_decode(&world, bytes, len), HORA_ERR_PROTOCOL);
    bytes[4] = HORA_COLL_ALLREDUCE;
    bytes[5] = HORA_COSTS_ALGOS;
    assert_int_equal(hora_costs_decode(&world, bytes, len), HORA_ERR_PROTOCOL);
    assert_null(world.costs);
}

static void times__that_do_not_fit_count_nowhere(void **state) {
    uint8_t bytes[2048];
    (void)state;
    world.costs = malloc(sizeof(costs));
    memset(world.costs, 1, sizeof(costs));
    assert_int_equal(hora_costs_encode(&world, bytes, sizeof(bytes)), 4);
    assert_null(world.costs);
}

/* Host of each rank. */
static void lay_out(const char *hosts) {
    for (int r = 0; r < RANKS; r++)
        peers[r].cross_rank = hosts[r] - '0';
}

static bool is_taken(void) {
    bool taken;
    hora_costs_load(&world);
    taken = world.costs != NULL;
    free(world.costs);
    world.costs = NULL;
    return taken;
}

/* The folder's file has a name of its own for each placement, so that none overwrites the other's. */
static void path__differs_where_ranks_lie_otherwise(void **state) {
    char paths[3][512];
    (void)state;
    strcpy(world.settings.algo_times, "auto");
    setenv("XDG_CACHE_HOME", "/nowhere", 1);
    for (int i = 0; i < 3; i++) {
        lay_out(i == 0 ? "0011" : i == 1 ? "0001" : "0101");
        assert_int_equal(hora_costs_path(&world, paths[i], sizeof(paths[i])), HORA_OK);
    }
    lay_out("0000");
    unsetenv("XDG_CACHE_HOME");
    assert_string_not_equal(paths[0], paths[1]);
    assert_string_not_equal(paths[0], paths[2]);
    assert_string_not_equal(paths[1], paths[2]);
}

static void file__is_read_where_it_was_made(void **state) {
    (void)state;
    assert_int_equal(hora_costs_save(&world, &costs, path), HORA_OK);
    hora_costs_load(&world);
    assert_non_null(world.costs);
    assert_memory_equal(world.costs->ns, costs.ns, sizeof(costs.ns));
    fresh(NULL);
    world.size = 3;
    hora_costs_load(&world);
    assert_null(world.costs);
    fresh(NULL);
    ops.name = "mpi";
    hora_costs_load(&world);
    ops.name = "tcp";
    assert_null(world.costs);
    peers[3].cross_rank = 1; /* another host */
    hora_costs_load(&world);
    peers[3].cross_rank = 0;
    assert_null(world.costs);
    lay_out("0011");
    assert_int_equal(hora_costs_save(&world, &costs, path), HORA_OK);
    assert_true(is_taken());
    lay_out("0001"); /* as many hosts */
    assert_false(is_taken());
    lay_out("0101");
    assert_false(is_taken());
    lay_out("0000");
    strcpy(world.settings.algo_times, "none");
    hora_costs_load(&world);
    assert_null(world.costs);
}

static void file__that_cannot_be_written_is_an_error(void **state) {
    char unwritten[64] = "";
    (void)state;
    assert_int_equal(hora_costs_save(&world, &costs, "/proc/no/such/file"), HORA_ERR_SYSTEM);
    strcpy(world.settings.algo_times, "/proc/no/such/file");
    assert_int_equal(hora_costs_prepare(&world, unwritten, sizeof(unwritten)), HORA_ERR_SYSTEM);
    assert_string_equal(unwritten, "");
}

static void write_text(const char *text, size_t len) {
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fwrite(text, 1, len, file), len);
    fclose(file);
}

/* The file with `from` replaced by `to`: is it still taken? */
static bool is_taken_with(const char *text, const char *from, const char *to) {
    char        changed[8192];
    const char *at = strstr(text, from);
    assert_non_null(at);
    snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_text(changed, strlen(changed));
    return is_taken();
}

static void file__that_is_damaged_is_not_used(void **state) {
    char   text[4096];
    size_t len;
    FILE  *file;
    (void)state;
    assert_int_equal(hora_costs_save(&world, &costs, path), HORA_OK);
    file = fopen(path, "r");
    len = fread(text, 1, sizeof(text) - 1, file);
    text[len] = '\0';
    fclose(file);
    assert_true(is_taken_with(text, "ring 1000", "ring 1001"));
    assert_false(is_taken_with(text, "ring 1000", "rang 1000"));
    assert_false(is_taken_with(text, "ring 1000", "ring"));
    assert_false(is_taken_with(text, "ring 1000", "ring -5"));
    assert_false(is_taken_with(text, "ring 1000", "ring 99999999999"));
    assert_false(is_taken_with(text, "ring 1000", "oneshot ring 1000"));
    assert_false(is_taken_with(text, "\"version\": 2", "\"version\": 1"));
    assert_false(is_taken_with(text, "\"barrier\": \"\"", "\"barrier\": \"ring\""));
    for (size_t cut = 0; cut + 2 < len; cut += 7) {
        write_text(text, cut);
        hora_costs_load(&world);
        assert_null(world.costs);
    }
}

static int make_file(void **state) {
    (void)state;
    setenv("HORA_LOG_LEVEL", "error", 1);
    return close(mkstemp(path));
}

static int remove_file(void **state) {
    (void)state;
    free(world.costs);
    return unlink(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(predict__goes_by_times_where_there_are_some, fresh),
        cmocka_unit_test_setup(by_formula__is_what_no_times_would_choose, fresh),
        cmocka_unit_test_setup(times__reach_the_other_ranks, fresh),
        cmocka_unit_test_setup(times__that_do_not_fit_count_nowhere, fresh),
        cmocka_unit_test_setup(path__differs_where_ranks_lie_otherwise, fresh),
        cmocka_unit_test_setup(file__is_read_where_it_was_made, fresh),
        cmocka_unit_test_setup(file__that_is_damaged_is_not_used, fresh),
        cmocka_unit_test_setup(file__that_cannot_be_written_is_an_error, fresh),
    };
    return cmocka_run_group_tests(tests, make_file, remove_file);
}
