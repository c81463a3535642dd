/*
 * Many ranks: plans of thousands of them against the formulas in the heads of the algorithms' files,
 * and the simulator of benchmarks/scale, which runs them against a model of a network.
 */
#include "formulas.h"
#include "program.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static const hora_algo_t *const algos[] = {&hora_algo_ring, &hora_algo_direct, &hora_algo_halving,
                                           &hora_algo_doubling, &hora_algo_tree};
#define ALGOS (sizeof(algos) / sizeof(algos[0]))

static scale_case_t case_of(const hora_algo_t *algo, int size, size_t count) {
    return (scale_case_t){.algo = algo, .size = size, .count = count, .elem = 4, .chunk = 4096,
                          .net = {1, 8e-6, 1e-9, 1e-6, 5e-10, 1e-10}, .way = SCALE_FULL};
}

static scale_result_t simulate(const scale_case_t *what) {
    scale_result_t result;
    assert_true(scale_simulate(what, &result));
    if (result.error[0] != '\0')
        fail_msg("%s, %d ranks, %zu elements: %s", what->algo->name, what->size, what->count,
                 result.error);
    return result;
}

/* Every rank's messages, bytes and sums, and the rounds; also with fewer elements than ranks. */
static void all_formulas_hold(void **state) {
    static const size_t counts[] = {1, 2, 7, 60, 4096, 50001};
    (void)state;
    for (size_t a = 0; a < ALGOS; a++)
        for (int size = 2; size <= 300; size += size < 20 ? 1 : 35)
            for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
                scale_case_t what = case_of(algos[a], size, counts[i]);
                simulate(&what);
            }
}

/* Where nothing is uneven or cut, the model's time is the algorithm's own cost. */
static void costs_are_what_the_model_says(void **state) {
    (void)state;
    for (int size = 2; size <= 64; size *= 2) {
        const hora_algo_t *const exact[] = {&hora_algo_ring, &hora_algo_halving,
                                            &hora_algo_doubling};
        for (size_t a = 0; a < 3; a++) {
            scale_case_t   what = case_of(exact[a], size, 64 * 50);
            scale_result_t r = simulate(&what);
            assert_true(r.seconds > 0.999 * r.formula && r.seconds < 1.001 * r.formula);
        }
    }
}

static void an_orbit_takes_as_long_as_all_ranks(void **state) {
    (void)state;
    for (size_t a = 0; a <= ALGOS; a++)
        for (int host = 1; host <= 8; host *= 2)
            for (int size = 8; size <= 128; size *= 2) {
                const hora_algo_t *algo = a < ALGOS ? algos[a] : &hora_algo_twolevel;
                scale_case_t       what = case_of(algo, size, 128 * 208); /* whole lines */
                scale_result_t     full, orbit;
                bool   ties = algo == &hora_algo_halving || algo == &hora_algo_doubling ||
                              algo->two_level;
                double off = host > 1 && ties ? 0.12 : 1e-6; /* simulate.h says why */
                what.net.host = host;
                if (!scale_has_orbit(&what) || (algo->two_level && (host == 1 || host == size)))
                    continue;
                full = simulate(&what);
                what.way = SCALE_ORBIT;
                orbit = simulate(&what);
                assert_int_equal(orbit.rounds, full.rounds);
                assert_true(orbit.seconds > (1 - off) * full.seconds);
                assert_true(orbit.seconds < (1 + off) * full.seconds);
            }
}

/* Two levels on hosts of equal and of unequal sizes; short vectors go another way than long ones. */
static void two_levels_hold(void **state) {
    static const size_t counts[] = {1, 60, 16384, 16400, 50001, 300000};
    static const int    locals[] = {2, 3, 8};
    (void)state;
    for (size_t l = 0; l < 3; l++)
        for (int size = locals[l] + 1; size <= 80; size += size < 20 ? 1 : 17)
            for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
                scale_case_t what = case_of(&hora_algo_twolevel, size, counts[i]);
                what.chunk = i % 2 ? 4096 : 65536;
                what.net.host = locals[l];
                assert_int_equal(simulate(&what).way, SCALE_FULL);
            }
}

/* What a ring over the hosts would send, whatever the ranks of a host; a ring over all ranks sends more. */
static void a_host_sends_what_a_ring_over_hosts_does(void **state) {
    (void)state;
    for (int locals = 2; locals <= 8; locals *= 2)
        for (int hosts = 2; hosts <= 16; hosts *= 2) {
            size_t       count = 16 * 8 * 16 * 50; /* whole lines */
            scale_case_t two = case_of(&hora_algo_twolevel, locals * hosts, count);
            scale_case_t ring = case_of(&hora_algo_ring, locals * hosts, count);
            two.net.host = ring.net.host = locals;
            assert_int_equal(simulate(&two).between, 2 * (hosts - 1) * count * 4 / hosts);
            assert_true(simulate(&two).between < simulate(&ring).between);
        }
}

static void two_levels_need_several_hosts_of_several_ranks(void **state) {
    (void)state;
    for (int host = 1; host <= 8; host += 7) {
        scale_case_t what = case_of(&hora_algo_twolevel, 8, 50000);
        what.net.host = host;
        assert_int_equal(simulate(&what).way, SCALE_NONE);
    }
}

/* Some ranks of 65,536 and of 65,535. */
static void plans_of_many_ranks_hold(void **state) {
    static const int sizes[] = {40000, 65535, 65536};
    (void)state;
    for (size_t a = 0; a < ALGOS; a++)
        for (size_t i = 0; i < 3; i++) {
            scale_case_t what = case_of(algos[a], sizes[i], 100000);
            what.way = SCALE_FORMULA;
            simulate(&what);
        }
}

/* A plan that does not do what the formula says is found. */
static void plan_less(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    size_t first = 0;
    hora_algo_ring.plan(coll, hint, plan);
    while (plan->steps[first].kind != HORA_STEP_SEND)
        first++;
    plan->steps[first].count -= coll->rank == 1;
}

static void a_wrong_plan_is_found(void **state) {
    hora_algo_t    less = hora_algo_ring;
    scale_case_t   what = case_of(&less, 5, 500);
    scale_result_t result;
    (void)state;
    less.plan = plan_less;
    assert_true(scale_simulate(&what, &result));
    assert_string_not_equal(result.error, "");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_formulas_hold),
        cmocka_unit_test(costs_are_what_the_model_says),
        cmocka_unit_test(an_orbit_takes_as_long_as_all_ranks),
        cmocka_unit_test(two_levels_hold),
        cmocka_unit_test(a_host_sends_what_a_ring_over_hosts_does),
        cmocka_unit_test(two_levels_need_several_hosts_of_several_ranks),
        cmocka_unit_test(plans_of_many_ranks_hold),
        cmocka_unit_test(a_wrong_plan_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
