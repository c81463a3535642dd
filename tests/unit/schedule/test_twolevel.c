/*
 * src/schedule/twolevel.c in the simulator: hosts of equal and unequal sizes, ranks of a host next to
 * each other and not; and what hosts send to each other.
 */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#define LEN(a)    (sizeof(a) / sizeof((a)[0]))
#define HOSTS_MAX 16

/* Ranks of each host; 0 ends the list. */
typedef struct shape {
    int  ranks[HOSTS_MAX];
    bool mixed; /* ranks are dealt out to the hosts in turn */
} shape_t;

static const shape_t shapes[] = {
    {{2, 2}, false},       {{2, 2}, true},    {{1, 3}, false},          {{3, 1}, true},
    {{4, 4}, false},       {{1, 2, 3}, true}, {{2, 2, 2}, false},       {{5, 2, 2, 3}, true},
    {{4, 4, 4, 4}, false}, {{8, 8}, true},    {{2, 1, 1, 1, 1}, false}, {{2, 2, 2, 2, 2, 2, 2}, false},
};
static const shape_t big[] = {
    {{16, 16, 16, 16}, false},
    {{32, 32}, false},
    {{4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4}, false},
    {{7, 9, 2, 14, 5}, true},
};

static int size_of(const shape_t *shape) {
    int size = 0;
    for (int h = 0; h < HOSTS_MAX; h++)
        size += shape->ranks[h];
    return size;
}

static hora_hosts_t *make_hosts(const shape_t *shape) {
    int           left[HOSTS_MAX], ids[HOSTS_MAX * HOSTS_MAX], size = size_of(shape), h = 0;
    hora_hosts_t *hosts;
    memcpy(left, shape->ranks, sizeof(left));
    for (int i = 0; i < size; i++, h += shape->mixed) {
        while (left[h % HOSTS_MAX] == 0)
            h++;
        ids[i] = h % HOSTS_MAX;
        left[h % HOSTS_MAX]--;
    }
    assert_int_equal(hora_hosts_create(size, ids, HOSTS_MAX, &hosts), HORA_OK);
    return hosts;
}

static sim_case_t basic(const shape_t *shape, size_t count, unsigned seed) {
    return (sim_case_t){.algo = &hora_algo_twolevel, .kind = HORA_COLL_ALLREDUCE,
                        .dtype = HORA_FLOAT32, .op = HORA_SUM, .size = size_of(shape),
                        .count = count, .chunk = 1000, .slot = count > 0 ? count : 1,
                        .prescale = 1.0, .postscale = 1.0, .seed = seed, .calls = 3};
}

/* The vector does not fit into a slot of `lines` cache lines per piece, so it takes the rings. */
static sim_case_t rings(const shape_t *shape, size_t count, size_t lines, unsigned seed) {
    sim_case_t    what = basic(shape, count, seed);
    hora_hosts_t *hosts = make_hosts(shape);
    what.slot = 4 * ((size_t)hosts->least + 1) * 16 * lines;
    hora_hosts_destroy(hosts);
    assert_true(what.slot < count);
    return what;
}

static sim_stats_t must_pass(const shape_t *shape, sim_case_t what) {
    hora_hosts_t *hosts = make_hosts(shape);
    sim_stats_t   stats;
    what.hosts = hosts;
    const char *error = sim_run(&what, &stats);
    hora_hosts_destroy(hosts);
    if (error[0] != 0)
        fail_msg("%s", error);
    return stats;
}

static void hosts__are_numbered_by_their_first_members(void **state) {
    static const int ids[] = {7, 3, 7, 0, 3, 7};
    hora_hosts_t    *hosts;
    (void)state;
    assert_int_equal(hora_hosts_create(6, ids, 8, &hosts), HORA_OK);
    assert_int_equal(hosts->count, 3);
    assert_int_equal(hosts->least, 1);
    assert_int_equal(hosts->most, 3);
    assert_int_equal(hora_hosts_member(hosts, 0, 2), 5);
    assert_int_equal(hora_hosts_member(hosts, 1, 1), 4);
    assert_int_equal(hora_hosts_size(hosts, 2), 1);
    assert_int_equal(hosts->host[4], 1);
    assert_int_equal(hosts->number[4], 1);
    hora_hosts_destroy(hosts);
}

/* Pieces as short as they can be: many columns, short ones, empty ones. */
static void twolevel__sums_long_vectors_in_many_pieces(void **state) {
    static const size_t counts[] = {1001, 1600, 3777};
    (void)state;
    for (size_t s = 0; s < LEN(shapes); s++)
        for (size_t c = 0; c < LEN(counts); c++) {
            sim_case_t what = rings(&shapes[s], counts[c], 1 + c % 2, (unsigned)(s * 3 + c));
            what.in_place = (s + c) % 2 == 0;
            must_pass(&shapes[s], what);
        }
}

static void twolevel__sums_short_vectors(void **state) {
    static const size_t counts[] = {0, 1, 2, 7, 64, 1000, 4099};
    (void)state;
    for (size_t s = 0; s < LEN(shapes); s++)
        for (size_t c = 0; c < LEN(counts); c++) {
            sim_case_t what = basic(&shapes[s], counts[c], (unsigned)(s * 7 + c));
            what.in_place = (s + c) % 2 == 0;
            must_pass(&shapes[s], what);
        }
}

static void twolevel__sums_on_64_ranks(void **state) {
    (void)state;
    for (size_t s = 0; s < LEN(big); s++) {
        must_pass(&big[s], basic(&big[s], 300, (unsigned)s));
        sim_case_t what = rings(&big[s], 2300, 1, (unsigned)s);
        what.calls = 1;
        must_pass(&big[s], what);
    }
}

static void twolevel__pushes_into_shared_buffers(void **state) {
    (void)state;
    for (size_t s = 0; s < 8; s++) {
        sim_case_t what = rings(&shapes[s], 1900, 1, (unsigned)s);
        what.shared = true;
        what.in_place = s % 2 == 0;
        must_pass(&shapes[s], what);
    }
}

static void twolevel__takes_every_type_and_operation(void **state) {
    static const hora_dtype_t dtypes[] = {HORA_FLOAT32, HORA_FLOAT64, HORA_INT32};
    static const hora_op_t    ops[] = {HORA_SUM, HORA_AVERAGE, HORA_MAX, HORA_MIN};
    (void)state;
    for (size_t d = 0; d < LEN(dtypes); d++)
        for (size_t o = 0; o < LEN(ops); o++)
            for (size_t s = 0; s < 6; s += 1 + d) {
                sim_case_t what = s % 2 ? basic(&shapes[s], 100, (unsigned)o)
                                        : rings(&shapes[s], 1100, 1, (unsigned)o);
                what.dtype = dtypes[d];
                what.op = ops[o];
                what.integers = dtypes[d] == HORA_INT32;
                what.postscale = what.integers ? 1.0 : 1.7;
                must_pass(&shapes[s], what);
            }
}

static void twolevel__survives_many_interleavings(void **state) {
    (void)state;
    for (unsigned seed = 0; seed < 40; seed++) {
        const shape_t *shape = &shapes[seed % 7];
        sim_case_t     what = seed % 3 == 0 ? basic(shape, 40, seed) : rings(shape, 900, 1, seed);
        what.in_place = seed % 2 == 0;
        must_pass(shape, what);
    }
}

/* 2(h-1)/h N, the bytes of a ring over the hosts, whatever the ranks on them. */
static void twolevel__sends_between_hosts_what_a_ring_over_hosts_sends(void **state) {
    (void)state;
    for (size_t s = 0; s < LEN(shapes) + LEN(big); s++) {
        const shape_t *shape = s < LEN(shapes) ? &shapes[s] : &big[s - LEN(shapes)];
        hora_hosts_t  *hosts = make_hosts(shape);
        size_t         h = (size_t)hosts->count, n = h * (size_t)hosts->least * 16 * 3;
        hora_hosts_destroy(hosts);
        sim_case_t what = basic(shape, n, 1);
        what.calls = 1;
        assert_int_equal(must_pass(shape, what).most_between, 2 * (h - 1) * n / h);
        for (n *= 3; n < 1100;)
            n *= 2;
        what = rings(shape, n, 1, 1);
        what.calls = 1;
        assert_int_equal(must_pass(shape, what).most_between, 2 * (h - 1) * n / h);
        what.count = n + 1; /* parts are whole cache lines */
        assert_true(must_pass(shape, what).most_between <=
                    2 * (h - 1) * (n / h + 16));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hosts__are_numbered_by_their_first_members),
        cmocka_unit_test(twolevel__sums_long_vectors_in_many_pieces),
        cmocka_unit_test(twolevel__sums_short_vectors),
        cmocka_unit_test(twolevel__sums_on_64_ranks),
        cmocka_unit_test(twolevel__pushes_into_shared_buffers),
        cmocka_unit_test(twolevel__takes_every_type_and_operation),
        cmocka_unit_test(twolevel__survives_many_interleavings),
        cmocka_unit_test(twolevel__sends_between_hosts_what_a_ring_over_hosts_sends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
