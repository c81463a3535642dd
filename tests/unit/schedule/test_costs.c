/*
 * What plans send, against the formulas in the heads of the algorithms' files.
 */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static sim_stats_t measure(const hora_algo_t *algo, hora_coll_kind_t kind, int size, size_t count,
                           size_t chunk) {
    sim_case_t  what = {.algo = algo, .kind = kind, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                        .size = size, .count = count, .integers = true, .chunk = chunk,
                        .prescale = 1.0, .postscale = 1.0};
    sim_stats_t stats;
    const char *error = sim_run(&what, &stats);
    if (error[0] != 0)
        fail_msg("%s", error);
    return stats;
}

static int log2_of(int n) {
    return n == 1 ? 0 : 1 + log2_of(n / 2);
}

static void ring__sends_two_blocks_less_than_two_vectors(void **state) {
    (void)state;
    for (int p = 2; p <= 16; p++) {
        size_t      n = (size_t)p * 12;
        sim_stats_t all = measure(&hora_algo_ring, HORA_COLL_ALLREDUCE, p, n, 1000);
        assert_int_equal(all.most_messages, 2 * (p - 1));
        assert_int_equal(all.messages, p * 2 * (p - 1));
        assert_int_equal(all.most_elements, 2 * (p - 1) * 12);
        all = measure(&hora_algo_ring, HORA_COLL_REDUCE_SCATTER, p, 12, 1000);
        assert_int_equal(all.most_elements, (p - 1) * 12);
        all = measure(&hora_algo_ring, HORA_COLL_ALLGATHER, p, 12, 5);
        assert_int_equal(all.most_elements, (p - 1) * 12);
        assert_int_equal(all.most_messages, (p - 1) * 3);
        all = measure(&hora_algo_ring, HORA_COLL_BROADCAST, p, 12, 5);
        assert_int_equal(all.messages, p == 2 ? 1 : (p - 1) * 3);
        assert_int_equal(all.elements, (p - 1) * 12);
        assert_int_equal(all.most_elements, 12);
    }
}

static void doubling__sends_a_vector_per_round(void **state) {
    (void)state;
    for (int p = 2; p <= 33; p++) {
        sim_stats_t all = measure(&hora_algo_doubling, HORA_COLL_ALLREDUCE, p, 50, 1000);
        int         rounds = log2_of(p), extra = p - (1 << rounds);
        assert_int_equal(all.elements, 50 * ((1 << rounds) * rounds + 2 * extra));
        assert_int_equal(all.messages, (1 << rounds) * rounds + 2 * extra);
    }
}

static void barrier__takes_log_p_rounds(void **state) {
    (void)state;
    for (int p = 2; p <= 64; p = p * 3 / 2 + 1) {
        sim_stats_t all = measure(&hora_algo_doubling, HORA_COLL_BARRIER, p, 0, 1);
        assert_int_equal(all.most_messages, hora_log2_ceil(p));
        assert_int_equal(all.messages, p * hora_log2_ceil(p));
    }
}

static void halving__sends_the_rings_bytes_in_few_messages(void **state) {
    (void)state;
    for (int p = 2; p <= 32; p *= 2) {
        size_t      n = (size_t)p * 12;
        sim_stats_t all = measure(&hora_algo_halving, HORA_COLL_ALLREDUCE, p, n, 1000);
        assert_int_equal(all.most_messages, 2 * log2_of(p));
        assert_int_equal(all.most_elements, 2 * (p - 1) * 12);
        assert_int_equal(all.elements, p * 2 * (p - 1) * 12);
    }
}

static void direct__sends_one_message_per_pair_and_way(void **state) {
    (void)state;
    for (int p = 2; p <= 16; p++) {
        size_t      n = (size_t)p * 12;
        sim_stats_t all = measure(&hora_algo_direct, HORA_COLL_ALLREDUCE, p, n, 1000);
        assert_int_equal(all.most_messages, 2 * (p - 1));
        assert_int_equal(all.most_elements, 2 * (p - 1) * 12);
        all = measure(&hora_algo_direct, HORA_COLL_ALLTOALL, p, 12, 1);
        assert_int_equal(all.most_messages, p - 1);
        assert_int_equal(all.elements, p * (p - 1) * 12);
        all = measure(&hora_algo_direct, HORA_COLL_REDUCE, p, 12, 1000);
        assert_int_equal(all.elements, (p - 1) * 12);
    }
}

static void tree__sends_one_vector_per_edge(void **state) {
    (void)state;
    for (int p = 2; p <= 33; p++) {
        sim_stats_t all = measure(&hora_algo_tree, HORA_COLL_BROADCAST, p, 50, 1000);
        assert_int_equal(all.elements, (p - 1) * 50);
        assert_int_equal(all.most_messages, hora_log2_ceil(p));
        all = measure(&hora_algo_tree, HORA_COLL_REDUCE, p, 50, 20);
        assert_int_equal(all.elements, (p - 1) * 50);
        assert_int_equal(all.most_messages, 3);
        all = measure(&hora_algo_tree, HORA_COLL_ALLREDUCE, p, 50, 1000);
        assert_int_equal(all.elements, 2 * (p - 1) * 50);
    }
}

static void plans__of_no_elements_send_nothing(void **state) {
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int kind = 1; kind < HORA_COLL_BARRIER; kind++)
            if ((hora_algo_list[i]->colls & 1u << kind) && !hora_algo_list[i]->needs_arena &&
                !hora_algo_list[i]->two_level)
                assert_int_equal(
                    measure(hora_algo_list[i], (hora_coll_kind_t)kind, 5, 0, 10).messages, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ring__sends_two_blocks_less_than_two_vectors),
        cmocka_unit_test(doubling__sends_a_vector_per_round),
        cmocka_unit_test(barrier__takes_log_p_rounds),
        cmocka_unit_test(halving__sends_the_rings_bytes_in_few_messages),
        cmocka_unit_test(direct__sends_one_message_per_pair_and_way),
        cmocka_unit_test(tree__sends_one_vector_per_edge),
        cmocka_unit_test(plans__of_no_elements_send_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
