/*
 * The kernels of Adasum: dot products and weighted sum against plain loops, on every instruction set
 * with the same bits; cut vectors; zeros, NaN and infinities.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <kernels/cpu/kernels.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#define COUNT 5003

static float  a32[COUNT], b32[COUNT], out32[COUNT], first32[COUNT];
static double a64[COUNT], b64[COUNT], out64[COUNT], first64[COUNT];

static const char *const isas[] = {"portable", "avx2", "avx512", "neon"};

static int prepare(void **state)
{
    uint32_t seed = 12345;
    (void)state;
    for (size_t i = 0; i < COUNT; i++) {
        seed = seed * 1664525u + 1013904223u;
        a32[i] = (float)((int32_t)seed >> 8) / 65536.0f;
        seed = seed * 1664525u + 1013904223u;
        b32[i] = (float)((int32_t)seed >> 8) / 65536.0f + a32[i] / 3;
        a64[i] = a32[i] * 1.0000000001;
        b64[i] = b32[i] * 0.9999999999;
    }
    return 0;
}

static hora_dots_t dots_of(hora_dtype_t dtype, const void *a, const void *b, size_t count)
{
    hora_dots_t dots = {0, 0, 0};
    hora_kernel_dots(dtype, a, b, count, &dots);
    return dots;
}

static void close_to(double got, double want, double scale)
{
    if (!(fabs(got - want) <= 1e-13 * scale)) {
        fail_msg("%.17g is not near %.17g", got, want);
    }
}

static void dots__are_those_of_plain_loops(void **state)
{
    static const size_t counts[] = {0, 1, 2, 15, 16, 17, 1023, 1024, 1025, COUNT};
    (void)state;
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        long double aa = 0, ab = 0, bb = 0;
        for (size_t i = 0; i < counts[c]; i++) {
            aa += (long double)a64[i] * a64[i];
            ab += (long double)a64[i] * b64[i];
            bb += (long double)b64[i] * b64[i];
        }
        hora_dots_t dots = dots_of(HORA_FLOAT64, a64, b64, counts[c]);
        close_to(dots.aa, (double)aa, (double)aa);
        close_to(dots.ab, (double)ab, (double)(aa + bb));
        close_to(dots.bb, (double)bb, (double)bb);
    }
}

/* float32 products are exact in float64, where a float32 accumulator would lose half the digits. */
static void dots__accumulate_in_float64(void **state)
{
    double aa = 0;
    (void)state;
    for (size_t i = 0; i < COUNT; i++) {
        out32[i] = i == 0 ? 1e7f : 1.0f;
        aa += (double)out32[i] * out32[i];
    }
    assert_true(dots_of(HORA_FLOAT32, out32, out32, COUNT).aa == aa);
    assert_true(aa == 1e14 + (COUNT - 1));
}

static void dots__do_not_depend_on_cuts_at_blocks(void **state)
{
    hora_dots_t whole = dots_of(HORA_FLOAT32, a32, b32, COUNT), cut = {0, 0, 0};
    (void)state;
    for (size_t i = 0; i < COUNT; i += 2 * HORA_DOTS_BLOCK) {
        size_t n = COUNT - i < 2 * HORA_DOTS_BLOCK ? COUNT - i : 2 * HORA_DOTS_BLOCK;
        hora_kernel_dots(HORA_FLOAT32, a32 + i, b32 + i, n, &cut);
    }
    assert_memory_equal(&cut, &whole, sizeof(whole));
}

static void adasum__has_the_same_bits_on_every_instruction_set(void **state)
{
    hora_dots_t first[2] = {{0, 0, 0}, {0, 0, 0}};
    int         seen = 0;
    (void)state;
    for (size_t k = 0; k < sizeof(isas) / sizeof(isas[0]); k++) {
        if (!hora_kernel_force_isa(isas[k])) {
            continue;
        }
        /* one element further: alignment */
        hora_dots_t d32 = dots_of(HORA_FLOAT32, a32 + 1, b32 + 1, COUNT - 1);
        hora_dots_t d64 = dots_of(HORA_FLOAT64, a64 + 1, b64 + 1, COUNT - 1);
        hora_kernel_adasum(HORA_FLOAT32, out32, a32 + 1, b32 + 1, COUNT - 1, &d32, 0.3);
        hora_kernel_adasum(HORA_FLOAT64, out64, a64 + 1, b64 + 1, COUNT - 1, &d64, 1.0);
        if (seen++ == 0) {
            first[0] = d32;
            first[1] = d64;
            memcpy(first32, out32, sizeof(out32));
            memcpy(first64, out64, sizeof(out64));
        }
        assert_memory_equal(&d32, &first[0], sizeof(d32));
        assert_memory_equal(&d64, &first[1], sizeof(d64));
        assert_memory_equal(out32, first32, (COUNT - 1) * sizeof(float));
        assert_memory_equal(out64, first64, (COUNT - 1) * sizeof(double));
    }
    assert_true(seen > 0);
    hora_kernel_force_isa("auto");
}

static void adasum__is_the_formula(void **state)
{
    hora_dots_t d = dots_of(HORA_FLOAT64, a64, b64, COUNT);
    double      wa = 1 - d.ab / (2 * d.aa), wb = 1 - d.ab / (2 * d.bb);
    (void)state;
    memcpy(out64, a64, sizeof(a64));
    hora_kernel_adasum(HORA_FLOAT64, out64, out64, b64, COUNT, &d, 1.0); /* in place */
    for (size_t i = 0; i < COUNT; i++) {
        close_to(out64[i], wa * a64[i] + wb * b64[i], fabs(a64[i]) + fabs(b64[i]));
    }
    memcpy(out32, b32, sizeof(b32));
    d = dots_of(HORA_FLOAT32, a32, b32, COUNT);
    wa = 1 - d.ab / (2 * d.aa), wb = 1 - d.ab / (2 * d.bb);
    hora_kernel_adasum(HORA_FLOAT32, out32, a32, out32, COUNT, &d, 2.0);
    for (size_t i = 0; i < COUNT; i++) {
        double want = 2 * (wa * a32[i] + wb * b32[i]);
        if (!(fabs(out32[i] - want) <= 6e-8 * fabs(want) + 1e-30)) { /* rounded once */
            fail_msg("element %zu: %.9g, not %.17g", i, (double)out32[i], want);
        }
    }
}

static void adasum__of_equal_vectors_is_the_vector_and_of_orthogonal_ones_the_sum(void **state)
{
    const float left[4] = {3, 0, -2, 0}, right[4] = {0, 5, 0, 7}, sum[4] = {3, 5, -2, 7};
    float       out[4];
    hora_dots_t d = dots_of(HORA_FLOAT32, left, left, 4);
    (void)state;
    hora_kernel_adasum(HORA_FLOAT32, out, left, left, 4, &d, 1.0);
    assert_memory_equal(out, left, sizeof(out));
    d = dots_of(HORA_FLOAT32, left, right, 4);
    hora_kernel_adasum(HORA_FLOAT32, out, left, right, 4, &d, 1.0);
    assert_memory_equal(out, sum, sizeof(out));
}

static void adasum__takes_zeros_as_neutral_and_lets_nan_and_infinity_through(void **state)
{
    static const float zero[3] = {0, 0, 0}, some[3] = {1.5f, -2, 1e-30f};
    const float        nan_in[3] = {1, NAN, 2}, inf_in[3] = {1, INFINITY, 2};
    float              out[3];
    hora_dots_t        d = dots_of(HORA_FLOAT32, zero, some, 3);
    (void)state;
    hora_kernel_adasum(HORA_FLOAT32, out, zero, some, 3, &d, 1.0);
    assert_memory_equal(out, some, sizeof(out));
    d = dots_of(HORA_FLOAT32, some, zero, 3);
    hora_kernel_adasum(HORA_FLOAT32, out, some, zero, 3, &d, 1.0);
    assert_memory_equal(out, some, sizeof(out));
    d = dots_of(HORA_FLOAT32, zero, zero, 3);
    hora_kernel_adasum(HORA_FLOAT32, out, zero, zero, 3, &d, 1.0);
    assert_memory_equal(out, zero, sizeof(out));
    d = dots_of(HORA_FLOAT32, zero, inf_in, 3); /* 0 times infinity in ab: still neutral */
    hora_kernel_adasum(HORA_FLOAT32, out, zero, inf_in, 3, &d, 1.0);
    assert_memory_equal(out, inf_in, sizeof(out));
    d = dots_of(HORA_FLOAT32, some, nan_in, 3);
    hora_kernel_adasum(HORA_FLOAT32, out, some, nan_in, 3, &d, 1.0);
    assert_true(isnan(out[0]) && isnan(out[1]) && isnan(out[2]));
    d = dots_of(HORA_FLOAT32, inf_in, some, 3);
    hora_kernel_adasum(HORA_FLOAT32, out, inf_in, some, 3, &d, 1.0);
    assert_false(isfinite(out[1]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dots__are_those_of_plain_loops),
        cmocka_unit_test(dots__accumulate_in_float64),
        cmocka_unit_test(dots__do_not_depend_on_cuts_at_blocks),
        cmocka_unit_test(adasum__has_the_same_bits_on_every_instruction_set),
        cmocka_unit_test(adasum__is_the_formula),
        cmocka_unit_test(adasum__of_equal_vectors_is_the_vector_and_of_orthogonal_ones_the_sum),
        cmocka_unit_test(adasum__takes_zeros_as_neutral_and_lets_nan_and_infinity_through),
    };
    return cmocka_run_group_tests(tests, prepare, NULL);
}
