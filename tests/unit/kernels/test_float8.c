/*
 * float8 on the CPU, with every instruction set, and with the CUDA kernels' arithmetic: all 256 values,
 * every boundary between them, random float32 and float64, and all 65536 sums, against arithmetic that
 * tries all values for the nearest (reference.h).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <kernels/cpu/kernels.h>
#include <kernels/cuda/kernels.h>

#include "reference.h"

#define ALL    256
#define PAIRS  65536
#define RANDOM 20000

static uint8_t all[ALL], narrow[PAIRS], left[PAIRS], right[PAIRS];
static float   wide[PAIRS];
static double  wider[PAIRS];

static const format_t *format_of(hora_dtype_t dtype)
{
    return dtype == HORA_FLOAT8_E4M3 ? &format_e4m3 : &format_e5m2;
}

static void for_each_isa(void (*check)(hora_dtype_t dtype))
{
    for (size_t k = 0; k < ISA_COUNT; k++) {
        if (hora_kernel_force_isa(isa_names[k])) {
            check(HORA_FLOAT8_E4M3);
            check(HORA_FLOAT8_E5M2);
        }
    }
    hora_kernel_force_isa(NULL);
}

/* A NaN that was not computed keeps its sign. */
static uint8_t expected(hora_dtype_t dtype, double value)
{
    return isnan(value) && signbit(value) ? 0xff : eighth_encode(format_of(dtype), value);
}

static void check_values(hora_dtype_t dtype)
{
    hora_kernel_convert(wide, HORA_FLOAT32, all, dtype, ALL, 1.0);
    hora_kernel_convert(wider, HORA_FLOAT64, all, dtype, ALL, 1.0);
    hora_kernel_convert(narrow, dtype, wide, HORA_FLOAT32, ALL, 1.0);
    for (int x = 0; x < ALL; x++) {
        double value = eighth_decode(format_of(dtype), (uint8_t)x);
        assert_true(isnan(value) ? isnan(wide[x]) && isnan(wider[x])
                                 : wide[x] == value && wider[x] == value);
        assert_int_equal(signbit(wide[x]) != 0, x >> 7);
        assert_int_equal(narrow[x], isnan(value) ? x | 0x7f : x);
    }
}

static void test_values(void **state)
{
    (void)state;
    for_each_isa(check_values);
}

/* Half way between neighbours and a little beside, and beyond the greatest value. */
static void check_boundaries(hora_dtype_t dtype)
{
    int n = 0;
    for (int x = 0; x < ALL; x++) {
        double a = eighth_decode(format_of(dtype), (uint8_t)x);
        double b = eighth_decode(format_of(dtype), (uint8_t)(x + 1));
        double middle = isfinite(a) && isfinite(b) ? (a + b) / 2 : dtype == HORA_FLOAT8_E4M3 ? 464 : 61440;
        for (int side = -1; side <= 1; side++) {
            wide[n] = side == 0 ? (float)middle : nextafterf((float)middle, side * INFINITY);
            wider[n++] = side == 0 ? middle : nextafter(middle, side * (double)INFINITY);
        }
    }
    hora_kernel_convert(narrow, dtype, wide, HORA_FLOAT32, (size_t)n, 1.0);
    for (int i = 0; i < n; i++) {
        assert_int_equal(narrow[i], expected(dtype, wide[i]));
    }
    hora_kernel_convert(narrow, dtype, wider, HORA_FLOAT64, (size_t)n, 1.0);
    for (int i = 0; i < n; i++) {
        assert_int_equal(narrow[i], expected(dtype, wider[i]));
    }
}

static void test_boundaries(void **state)
{
    (void)state;
    for_each_isa(check_boundaries);
}

static void check_random(hora_dtype_t dtype)
{
    uint64_t seed = 5;
    for (int i = 0; i < RANDOM; i++) {
        uint64_t bits = random_u64(&seed);
        wide[i] = i % 2 ? f32_from_bits((uint32_t)bits) : ldexpf((float)(int32_t)bits, (int)(bits >> 40) % 44 - 50);
    }
    hora_kernel_convert(narrow, dtype, wide, HORA_FLOAT32, RANDOM, 1.0);
    for (int i = 0; i < RANDOM; i++) {
        assert_int_equal(narrow[i], expected(dtype, wide[i]));
    }
}

static void test_random(void **state)
{
    (void)state;
    for_each_isa(check_random);
}

/* Rounded to float32 first, as the widened values are added there. */
static void check_sums(hora_dtype_t dtype)
{
    hora_reduce_t      how = {dtype, HORA_SUM, 1, 1.0, 1.0};
    hora_element_how_t plain = {1.0, 1.0, 1};
    const void        *src[2] = {left, right};
    void              *dst = narrow;
    hora_kernel_reduce(&how, &dst, 1, src, 2, PAIRS);
    for (int i = 0; i < PAIRS; i++) {
        uint8_t        pair[2] = {left[i], right[i]};
        volatile float sum = (float)(eighth_decode(format_of(dtype), left[i]) +
                                     eighth_decode(format_of(dtype), right[i]));
        assert_int_equal(narrow[i], eighth_encode(format_of(dtype), sum));
        assert_int_equal(narrow[i], dtype == HORA_FLOAT8_E4M3
                                        ? hora_element_reduce_e4m3(&plain, HORA_SUM, pair, 2)
                                        : hora_element_reduce_e5m2(&plain, HORA_SUM, pair, 2));
    }
}

static void test_sums(void **state)
{
    (void)state;
    for_each_isa(check_sums);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values), cmocka_unit_test(test_boundaries),
        cmocka_unit_test(test_random), cmocka_unit_test(test_sums),
    };
    for (int i = 0; i < PAIRS; i++) {
        left[i] = (uint8_t)i;
        right[i] = (uint8_t)(i >> 8);
        all[i % ALL] = (uint8_t)i;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
