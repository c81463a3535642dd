/*
 * hora_kernel_convert against exact arithmetic: all 65536 values of each half type, every rounding
 * boundary between them, random float32 and float64, scales, tails; and hora_kernel_copy.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <stdlib.h>

#include "reference.h"

#define HALVES 65536

static uint16_t all_halves[HALVES];
static float    wide_f32[HALVES];
static double   wide_f64[HALVES];
static uint16_t narrow[HALVES];

static const format_t *format_of(hora_dtype_t dtype)
{
    return dtype == HORA_FLOAT16 ? &format_f16 : &format_bf16;
}

static void for_each_isa(void (*check)(hora_dtype_t half))
{
    for (size_t k = 0; k < ISA_COUNT; k++) {
        if (hora_kernel_force_isa(isa_names[k])) {
            check(HORA_FLOAT16);
            check(HORA_BFLOAT16);
        }
    }
    hora_kernel_force_isa(NULL);
}

static void convert(void *dst, hora_dtype_t to, const void *src, hora_dtype_t from, size_t count)
{
    hora_kernel_convert(dst, to, src, from, count, 1.0);
}

/* A half NaN in float32 as the hardware does it: sign and payload kept on top, and made quiet,
 * which bfloat16 is not: its bits only move. */
static uint32_t widened_nan(hora_dtype_t half, uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000) << 16;
    if (half == HORA_BFLOAT16) {
        return (uint32_t)bits << 16;
    }
    return sign | 0x7fc00000u | (uint32_t)(bits & 0x3ff) << 13;
}

/* And back. */
static uint16_t narrowed_nan(hora_dtype_t half, uint32_t bits)
{
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (half == HORA_BFLOAT16) {
        return (uint16_t)(bits >> 16 | 0x40);
    }
    return (uint16_t)(sign | 0x7e00 | (bits >> 13 & 0x3ff));
}

static uint16_t expected_half(hora_dtype_t half, float value)
{
    return isnan(value) ? narrowed_nan(half, f32_bits(value)) : half_encode(format_of(half), value);
}

/* ---- Half types ------------------------------------------------------------------------------ */

static void check_exhaustive(hora_dtype_t half)
{
    convert(wide_f32, HORA_FLOAT32, all_halves, half, HALVES);
    convert(wide_f64, HORA_FLOAT64, all_halves, half, HALVES);
    for (unsigned h = 0; h < HALVES; h++) {
        double   value = half_decode(format_of(half), (uint16_t)h);
        uint32_t bits = isnan(value) ? widened_nan(half, (uint16_t)h) : f32_bits((float)value);
        assert_int_equal(f32_bits(wide_f32[h]), bits);
        assert_true(wide_f64[h] == value || (isnan(wide_f64[h]) && isnan(value)));
        assert_int_equal(signbit(wide_f64[h]) != 0, h >> 15);
    }
    convert(narrow, half, wide_f32, HORA_FLOAT32, HALVES);
    for (unsigned h = 0; h < HALVES; h++) {
        assert_int_equal(narrow[h], expected_half(half, wide_f32[h]));
        assert_true(isnan(wide_f32[h]) || narrow[h] == h);
    }
    convert(narrow, half, wide_f64, HORA_FLOAT64, HALVES);
    for (unsigned h = 0; h < HALVES; h++) {
        assert_int_equal(narrow[h], expected_half(half, wide_f32[h]));
    }
}

static void test_exhaustive(void **state)
{
    (void)state;
    for_each_isa(check_exhaustive);
}

/* Halfway between two neighbours, and a little to either side: in float32 by one unit in its last
 * place, in float64 by so little that going through float32 would round twice. */
static void check_boundaries(hora_dtype_t half)
{
    static const int offsets[] = {-1, 0, 1};
    const format_t  *format = format_of(half);
    for (size_t o = 0; o < 3; o++) {
        for (unsigned h = 0; h < HALVES; h++) {
            double a = half_decode(format, (uint16_t)h);
            double b = half_decode(format, (uint16_t)(h + 1));
            double middle = (a + b) / 2;
            bool   usable = isfinite(middle) && middle != 0.0;
            double step = usable ? copysign(1.0, middle) * offsets[o] : 0.0;
            wide_f32[h] = nextafterf((float)middle, step == 0.0 ? (float)middle
                                                                : (float)(step * INFINITY));
            wide_f64[h] = nextafter(middle, step == 0.0 ? middle : step * (double)INFINITY);
        }
        convert(narrow, half, wide_f32, HORA_FLOAT32, HALVES);
        for (unsigned h = 0; h < HALVES; h++) {
            assert_int_equal(narrow[h], expected_half(half, wide_f32[h]));
        }
        convert(narrow, half, wide_f64, HORA_FLOAT64, HALVES);
        for (unsigned h = 0; h < HALVES; h++) {
            uint16_t expected = isnan(wide_f64[h]) ? narrow[h] : half_encode(format, wide_f64[h]);
            assert_int_equal(narrow[h], expected);
        }
    }
}

static void test_boundaries(void **state)
{
    (void)state;
    for_each_isa(check_boundaries);
}

/* Any bits at all. */
static void check_random(hora_dtype_t half)
{
    uint64_t state = 7;
    for (int round = 0; round < 8; round++) {
        for (size_t i = 0; i < HALVES; i++) {
            uint64_t bits = random_u64(&state);
            wide_f32[i] = f32_from_bits((uint32_t)bits);
            /* Exponents near those that the half types have, or few would be finite. */
            wide_f64[i] = ldexp((double)(int64_t)random_u64(&state), (int)(bits >> 40) % 300 - 200);
        }
        convert(narrow, half, wide_f32, HORA_FLOAT32, HALVES);
        for (size_t i = 0; i < HALVES; i++) {
            assert_int_equal(narrow[i], expected_half(half, wide_f32[i]));
        }
        convert(narrow, half, wide_f64, HORA_FLOAT64, HALVES);
        for (size_t i = 0; i < HALVES; i++) {
            assert_int_equal(narrow[i], half_encode(format_of(half), wide_f64[i]));
        }
        convert(wide_f32, HORA_FLOAT32, wide_f64, HORA_FLOAT64, HALVES);
        for (size_t i = 0; i < HALVES; i++) {
            assert_int_equal(f32_bits(wide_f32[i]), f32_bits((float)wide_f64[i]));
        }
    }
}

static void test_random(void **state)
{
    (void)state;
    for_each_isa(check_random);
}

/* From one half type to the other, in place. */
static void check_other_half(hora_dtype_t half)
{
    hora_dtype_t other = half == HORA_FLOAT16 ? HORA_BFLOAT16 : HORA_FLOAT16;
    memcpy(narrow, all_halves, sizeof(narrow));
    convert(narrow, other, narrow, half, HALVES);
    for (unsigned h = 0; h < HALVES; h++) {
        double value = half_decode(format_of(half), (uint16_t)h);
        if (isnan(value)) {
            assert_int_equal(narrow[h], narrowed_nan(other, widened_nan(half, (uint16_t)h)));
        } else {
            assert_int_equal(narrow[h], half_encode(format_of(other), value));
        }
    }
}

static void test_other_half(void **state)
{
    (void)state;
    for_each_isa(check_other_half);
}

/* ---- Scales, tails --------------------------------------------------------------------------- */

static void check_scale(hora_dtype_t half)
{
    const double    scale = -0.3;
    const format_t *format = format_of(half);
    const float     scale_f32 = (float)scale;
    hora_kernel_convert(wide_f32, HORA_FLOAT32, all_halves, half, HALVES, scale);
    hora_kernel_convert(wide_f64, HORA_FLOAT64, all_halves, half, HALVES, scale);
    hora_kernel_convert(narrow, half, all_halves, half, HALVES, scale);
    for (unsigned h = 0; h < HALVES; h++) {
        double         value = half_decode(format, (uint16_t)h);
        volatile float product = (float)value * scale_f32;
        if (isnan(value)) {
            assert_int_equal(f32_bits(wide_f32[h]), 0x7fc00000);
        } else {
            assert_int_equal(f32_bits(wide_f32[h]), f32_bits(product));
            assert_true(wide_f64[h] == value * scale);
        }
        assert_int_equal(narrow[h], half_encode(format, product));
    }
    for (unsigned h = 0; h < HALVES; h++) {
        wide_f64[h] = half_decode(format, (uint16_t)h);
    }
    hora_kernel_convert(narrow, half, wide_f64, HORA_FLOAT64, HALVES, scale);
    for (unsigned h = 0; h < HALVES; h++) {
        assert_int_equal(narrow[h], half_encode(format, wide_f64[h] * scale));
    }
}

static void test_scale(void **state)
{
    (void)state;
    for_each_isa(check_scale);
}

/* Every short length, unaligned: the results are those of the long run, and nothing else is
 * written. */
static void check_tails(hora_dtype_t half)
{
    enum { LONGEST = 200 };
    const uint16_t *in = all_halves + 0x3c01;
    static float    whole[LONGEST];
    float           part[LONGEST + 2];
    uint16_t        back[LONGEST + 2];
    convert(whole, HORA_FLOAT32, in, half, LONGEST);
    for (size_t count = 0; count <= LONGEST; count++) {
        memset(part, 0xa5, sizeof(part));
        memset(back, 0xa5, sizeof(back));
        convert(part + 1, HORA_FLOAT32, in, half, count);
        assert_memory_equal(part + 1, whole, count * sizeof(float));
        assert_int_equal(f32_bits(part[0]), 0xa5a5a5a5);
        assert_int_equal(f32_bits(part[count + 1]), 0xa5a5a5a5);
        convert(back + 1, half, part + 1, HORA_FLOAT32, count);
        assert_memory_equal(back + 1, in, count * sizeof(uint16_t));
        assert_int_equal(back[0], 0xa5a5);
        assert_int_equal(back[count + 1], 0xa5a5);
    }
}

static void test_tails(void **state)
{
    (void)state;
    for_each_isa(check_tails);
}

static void test_equal_types(void **state)
{
    (void)state;
    int8_t  small[5] = {-128, -5, 0, 77, 127};
    int8_t  scaled[5] = {-128, -7, 0, 115, 127};
    int64_t large[3] = {INT64_MAX, INT64_MIN, 3};
    int64_t doubled[3] = {INT64_MAX, INT64_MIN, 6};
    uint8_t bools[2] = {0, 1};
    hora_kernel_convert(small, HORA_INT8, small, HORA_INT8, 5, 1.5);
    assert_memory_equal(small, scaled, sizeof(small));
    hora_kernel_convert(large, HORA_INT64, large, HORA_INT64, 3, 2.0);
    assert_memory_equal(large, doubled, sizeof(large));
    hora_kernel_convert(bools, HORA_BOOL, bools, HORA_BOOL, 2, 5.0);
    assert_int_equal(bools[0] + 2 * bools[1], 2);
    uint32_t nan = 0xff812345u; /* a copy keeps even a signalling NaN */
    uint32_t copied = 0;
    hora_kernel_convert(&copied, HORA_FLOAT32, &nan, HORA_FLOAT32, 1, 1.0);
    assert_int_equal(copied, nan);
}

/* ---- Copy ------------------------------------------------------------------------------------ */

static void check_copy(unsigned char *to, const unsigned char *from, size_t bytes)
{
    memset(to - 1, 0xa5, bytes + 2);
    hora_kernel_copy(to, from, bytes);
    assert_true(memcmp(to, from, bytes) == 0);
    assert_int_equal(to[-1], 0xa5);
    assert_int_equal(to[bytes], 0xa5);
}

static void test_copy(void **state)
{
    (void)state;
    const size_t   limit = (size_t)16 << 20;
    const size_t   sizes[] = {0, 1, 63, 4097, limit - 1, limit, limit + 1, limit + 127};
    unsigned char *from = malloc(limit + 512);
    unsigned char *to = malloc(limit + 512);
    uint64_t       seed = 3;
    assert_true(from != NULL && to != NULL);
    for (size_t i = 0; i < limit + 512; i += 8) {
        uint64_t bits = random_u64(&seed);
        memcpy(from + i, &bits, sizeof(bits));
    }
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        check_copy(to + 64, from, sizes[s]);
        check_copy(to + 65, from + 3, sizes[s]);
        check_copy(to + 127, from + 64, sizes[s]);
    }
    hora_kernel_copy(NULL, NULL, 0);
    free(to);
    free(from);
}

/* Lengths on both sides of what is fetched ahead, from memory of exactly that length. */
static void test_fetch(void **state)
{
    (void)state;
    const size_t  sizes[] = {1, 63, 64, 65, 6143, 6144, 6145, 6300, 20000};
    unsigned char to[20003];
    for (size_t k = 0; k < 8 * sizeof(sizes) / sizeof(sizes[0]); k++) {
        const char    *isas[] = {"portable", "avx2", "avx512", "neon"};
        size_t         bytes = sizes[k / 8];
        unsigned char *from = malloc(bytes);
        assert_non_null(from);
        for (size_t i = 0; i < bytes; i++) {
            from[i] = (unsigned char)(i * 7 + i / 64 + k);
        }
        memset(to, 0xa5, sizeof(to));
        hora_kernel_force_isa(isas[k % 4]);
        (k % 8 < 4 ? hora_kernel_fetch : hora_kernel_put)(to + 1, from, bytes);
        assert_memory_equal(to + 1, from, bytes);
        assert_int_equal(to[0], 0xa5);
        assert_int_equal(to[bytes + 1], 0xa5);
        free(from);
    }
    hora_kernel_fetch(NULL, NULL, 0);
    assert_true(hora_kernel_force_isa("auto"));
}

/* From memory of exactly that length, at every place in a line: what lies beside it may be another's. */
static void test_take(void **state)
{
    (void)state;
    const size_t  sizes[] = {0, 1, 7, 63, 64, 65, 127, 128, 1000};
    unsigned char to[1002], before[1000];
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        for (size_t off = 0; off < 64; off += s % 2 ? 1 : 9) {
            unsigned char *block = aligned_alloc(64, 1152), *from = block + off;
            assert_non_null(block);
            memset(block, 0x11, 1152);
            for (size_t i = 0; i < sizes[s]; i++) {
                from[i] = before[i] = (unsigned char)(i * 7 + off);
            }
            memset(to, 0xa5, sizeof(to));
            hora_kernel_take(to + 1, from, sizes[s]);
            assert_memory_equal(to + 1, before, sizes[s]);
            assert_memory_equal(from, before, sizes[s]);
            assert_int_equal(to[0], 0xa5);
            assert_int_equal(to[sizes[s] + 1], 0xa5);
            free(block);
        }
    }
    unsigned char *exact = malloc(100); /* the sanitizers watch its ends */
    assert_non_null(exact);
    memset(exact, 3, 100);
    hora_kernel_take(to, exact, 100);
    free(exact);
    hora_kernel_take(NULL, NULL, 0);
}

int main(void)
{
    for (unsigned h = 0; h < HALVES; h++) {
        all_halves[h] = (uint16_t)h;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exhaustive), cmocka_unit_test(test_boundaries),
        cmocka_unit_test(test_random),     cmocka_unit_test(test_other_half),
        cmocka_unit_test(test_scale),      cmocka_unit_test(test_tails),
        cmocka_unit_test(test_equal_types), cmocka_unit_test(test_copy),
        cmocka_unit_test(test_fetch),
        cmocka_unit_test(test_take),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
