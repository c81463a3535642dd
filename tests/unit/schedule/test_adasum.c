/*
 * src/schedule/adasum.c: the plan in the simulator against the tree in float64, for numbers of
 * ranks up to 64 and counts below and above them; and that chunks do not show in the bits.
 */
#include "sim.h"
#include "team.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static sim_case_t basic(int size, size_t count) {
    return (sim_case_t){.algo = &hora_algo_adasum, .kind = HORA_COLL_ALLREDUCE,
                        .dtype = HORA_FLOAT32, .op = HORA_ADASUM, .size = size, .count = count,
                        .chunk = 1024, .prescale = 1.0, .postscale = 1.0,
                        .seed = (unsigned)(size * 131 + (int)count)};
}

static void must_pass(const sim_case_t *what) {
    const char *error = sim_run(what, NULL);
    if (error[0] != 0)
        fail_msg("%s", error);
}

static void plan__agrees_with_the_tree_for_every_size_and_count(void **state) {
    static const int    sizes[] = {2, 3, 4, 5, 6, 7, 8, 13, 16, 31, 33, 64};
    static const size_t counts[] = {0, 1, 2, 3, 7, 63, 64, 1000, 5003};
    unsigned            turn = 0;
    (void)state;
    for (size_t s = 0; s < LEN(sizes); s++)
        for (size_t c = 0; c < LEN(counts); c++, turn++) {
            sim_case_t what = basic(sizes[s], counts[c]);
            what.dtype = turn % 2 ? HORA_FLOAT64 : HORA_FLOAT32;
            what.in_place = turn % 3 == 1;
            what.calls = turn % 4 == 0 ? 2 : 1;
            what.postscale = turn % 5 == 0 ? 0.25 : 1.0;
            must_pass(&what);
        }
}

static void plan__pipelines_long_vectors(void **state) {
    (void)state;
    for (int size = 2; size <= 9; size++)
        for (int place = 0; place < 2; place++) {
            sim_case_t what = basic(size, 40009);
            what.in_place = place == 1;
            what.chunk = 700; /* becomes 1024 */
            must_pass(&what);
        }
}

static void oneshot__agrees_with_the_tree(void **state) {
    static const size_t counts[] = {0, 1, 2, 5, 100, 1500};
    unsigned            turn = 0;
    (void)state;
    for (int size = 2; size <= 17; size++)
        for (size_t c = 0; c < LEN(counts); c++, turn++) {
            sim_case_t what = basic(size, counts[c]);
            what.algo = &hora_algo_adasum_oneshot;
            what.dtype = turn % 2 ? HORA_FLOAT64 : HORA_FLOAT32;
            what.in_place = turn % 3 == 1;
            what.calls = 3;
            what.slot = counts[c] + 1;
            what.postscale = turn % 5 == 0 ? 0.25 : 1.0;
            must_pass(&what);
        }
}

static void plan__sends_what_halving_sends(void **state) {
    sim_case_t  what = basic(8, 8000), wide = basic(6, 6000);
    sim_stats_t stats;
    (void)state;
    assert_string_equal(sim_run(&what, &stats), "");
    /* 7/8 of the vector there and back, and 1 + 2 + 3 sets of dot products, by every rank */
    assert_int_equal(stats.most_elements, 2 * 7000 + 6 * 6);
    assert_string_equal(sim_run(&wide, &stats), "");
    assert_int_equal(stats.most_elements, 2 * 4500 + 3 * 6 + 6000); /* and the result to a partner */
}

/* ---- over real links ---- */

#define LONG 50021 /* too long for one shot */

typedef struct bits {
    hora_dtype_t dtype;
    size_t       count;
    double       result[TEAM_MAX][LONG];
} bits_t;

static void fill(hora_dtype_t dtype, void *vector, int rank) {
    for (size_t i = 0; i < LONG; i++) {
        float x = (float)sin((double)i * 0.37 + rank * rank) * (float)(1 + i % 5);
        if (dtype == HORA_FLOAT64)
            ((double *)vector)[i] = x;
        else
            hora_kernel_convert((char *)vector + i * hora_dtype_size(dtype), dtype, &x, HORA_FLOAT32,
                                1, 1.0);
    }
}

static void run_once(member_t *m) {
    bits_t     *bits = (bits_t *)(uintptr_t)m->arg;
    void       *out = bits->result[m->rank];
    hora_coll_t coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = bits->dtype, .op = HORA_ADASUM,
                        .rank = m->rank, .size = m->size, .count = bits->count, .in = out, .out = out,
                        .prescale = 1.0, .postscale = 1.0};
    fill(bits->dtype, out, m->rank);
    if (hora_coll_run(m->comm, &coll) != HORA_OK)
        team_complain(m, "%s", hora_last_error());
}

static void bits__do_not_depend_on_chunk_pads_or_plan(void **state) {
    static const hora_dtype_t dtypes[] = {HORA_FLOAT16, HORA_BFLOAT16, HORA_FLOAT32, HORA_FLOAT64};
    bits_t                   *first = malloc(sizeof(*first)), *other = malloc(sizeof(*other));
    (void)state;
    for (size_t d = 0; d < LEN(dtypes); d++)
        for (int size = 2; size <= 7; size++) {
            size_t count = size % 2 ? LONG : 3001, bytes = count * hora_dtype_size(dtypes[d]);
            team_t team = {.size = size, .pads = true, .arg = first, .deterministic = true};
            first->dtype = other->dtype = dtypes[d];
            first->count = other->count = count;
            team_run(&team, run_once);
            for (size_t chunk = 1000; chunk < 1000000; chunk *= 30) {
                team_t again = {.size = size, .pads = chunk > 1000, .arg = other, .chunk = chunk,
                                .algo = "ring"};
                team_run(&again, run_once);
                for (int r = 0; r < size; r++)
                    assert_memory_equal(other->result[r], first->result[0], bytes);
            }
        }
    free(first);
    free(other);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan__agrees_with_the_tree_for_every_size_and_count),
        cmocka_unit_test(plan__pipelines_long_vectors),
        cmocka_unit_test(oneshot__agrees_with_the_tree),
        cmocka_unit_test(plan__sends_what_halving_sends),
        cmocka_unit_test(bits__do_not_depend_on_chunk_pads_or_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
