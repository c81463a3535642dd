/*
 * The CUDA kernels as far as no GPU is needed: their arithmetic, compiled for the host, beside the
 * CPU kernels bit for bit on random bits; and the plans of their launches. tests/gpu runs the
 * kernels themselves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <kernels/cpu/kernels.h>
#include <kernels/cuda/kernels.h>
#include <stdio.h>
#include <stdlib.h>

#include "reference.h"

#define COUNT  2048
#define PIECES 200
#define INPUTS 9

static const hora_op_t ops[] = {HORA_SUM,  HORA_PRODUCT, HORA_MIN, HORA_MAX,
                                HORA_BAND, HORA_BOR,     HORA_BXOR};

static const hora_element_how_t hows[] = {
    {1.0, 1.0, 1}, {1.0, 1.0, 4}, {1.0, 0.3, 3}, {-1.7, 1.0, 1}, {0.6, 1e10, 200},
};

static _Alignas(64) unsigned char source[INPUTS][COUNT * 8];
static _Alignas(64) unsigned char expected[COUNT * 8];
static _Alignas(64) unsigned char got[COUNT * 8];

/* Random bits, and often values of ordinary size, so that sums do not all become infinite. */
static void make_source(unsigned char *at, hora_dtype_t dtype, uint64_t *state)
{
    for (size_t i = 0; i < COUNT; i++) {
        uint64_t raw = random_u64(state);
        double   value = (double)(int64_t)random_u64(state) * 0x1p-62;
        float    narrow = (float)value;
        bool     ordinary = raw % 4 != 0;
        if (dtype == HORA_BOOL)
            raw &= 1;
        else if (dtype == HORA_FLOAT64 && ordinary)
            memcpy(&raw, &value, sizeof(value));
        else if (dtype == HORA_FLOAT32 && ordinary)
            memcpy(&raw, &narrow, sizeof(narrow));
        else if (dtype == HORA_FLOAT16 && ordinary)
            raw = half_encode(&format_f16, value);
        else if (dtype == HORA_FLOAT8_E4M3 && ordinary)
            raw = eighth_encode(&format_e4m3, value);
        else if (dtype == HORA_FLOAT8_E5M2 && ordinary)
            raw = eighth_encode(&format_e5m2, value);
        else if (dtype == HORA_BFLOAT16 && ordinary)
            raw = half_encode(&format_bf16, value);
        memcpy(at + i * element_sizes[dtype], &raw, element_sizes[dtype]);
    }
}

/* The device's chain for each element, by type. */
#define DEFINE_REDUCE(S, T, A, DTYPE)                                                             \
    static void reduce_##S(const hora_element_how_t *how, hora_op_t op, int nsrc)                 \
    {                                                                                             \
        for (size_t i = 0; i < COUNT; i++) {                                                      \
            T values[INPUTS] = {0};                                                               \
            for (int s = 0; s < nsrc; s++)                                                        \
                values[s] = ((const T *)source[s])[i];                                            \
            ((T *)got)[i] = hora_element_reduce_##S(how, op, values, nsrc);                       \
        }                                                                                         \
    }
HORA_ELEMENT_TYPES(DEFINE_REDUCE)

typedef void (*reduce_fn)(const hora_element_how_t *how, hora_op_t op, int nsrc);
#define REDUCE_ROW(S, T, A, DTYPE) [DTYPE] = reduce_##S,
static const reduce_fn reduces[HORA_DTYPE_COUNT] = {HORA_ELEMENT_TYPES(REDUCE_ROW)};

static void check_reduce(hora_dtype_t dtype, hora_op_t op, const hora_element_how_t *how, int nsrc)
{
    hora_reduce_t cpu = {dtype, op, how->divisor, how->prescale, how->postscale};
    const void   *src[INPUTS];
    void         *dst = expected;
    for (int s = 0; s < nsrc; s++)
        src[s] = source[s];
    hora_kernel_reduce(&cpu, &dst, 1, src, nsrc, COUNT);
    reduces[dtype](how, op, nsrc);
    for (size_t i = 0; i < COUNT; i++)
        if (memcmp(got + i * element_sizes[dtype], expected + i * element_sizes[dtype],
                   element_sizes[dtype]) != 0)
            fail_msg("%s op %d, %d ways, divisor %u scales %g %g: element %zu differs",
                     type_names[dtype], op, nsrc, how->divisor, how->prescale, how->postscale, i);
}

static void test_reduce(void **state)
{
    (void)state;
    uint64_t seed = 7;
    for (int type = 0; type < HORA_DTYPE_COUNT; type++) {
        for (int s = 0; s < INPUTS; s++)
            make_source(source[s], (hora_dtype_t)type, &seed);
        for (size_t o = 0; o < sizeof(ops) / sizeof(ops[0]); o++)
            for (size_t h = 0; h < sizeof(hows) / sizeof(hows[0]); h++)
                for (int nsrc = h == 0 ? 2 : 1; nsrc <= INPUTS; nsrc++)
                    if (supported((hora_dtype_t)type, ops[o]))
                        check_reduce((hora_dtype_t)type, ops[o], &hows[h],
                                     type == HORA_BOOL && nsrc == 1 ? 2 : nsrc);
    }
}

/* ---- Casts ----------------------------------------------------------------------------------- */

#define DEFINE_CAST(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                       \
    static void cast_##FROM##_##TO(double scale)                                                  \
    {                                                                                             \
        for (size_t i = 0; i < COUNT; i++)                                                        \
            ((TTO *)got)[i] = hora_element_cast_##FROM##_##TO(((const TFROM *)source[0])[i],      \
                                                              scale);                             \
    }
HORA_ELEMENT_CASTS(DEFINE_CAST)

typedef struct cast {
    const char *name;
    void (*run)(double scale);
    int from, to; /* types */
} cast_t;
#define CAST_ROW(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                          \
    {#FROM " to " #TO, cast_##FROM##_##TO, type_##FROM, type_##TO},
enum {
    type_f16 = HORA_FLOAT16,
    type_bf16 = HORA_BFLOAT16,
    type_f32 = HORA_FLOAT32,
    type_f64 = HORA_FLOAT64,
    type_e4m3 = HORA_FLOAT8_E4M3,
    type_e5m2 = HORA_FLOAT8_E5M2
};
static const cast_t casts[] = {HORA_ELEMENT_CASTS(CAST_ROW)};

static void test_cast(void **state)
{
    (void)state;
    const double scales[] = {1.0, 0.3, -65536.0, 1e-30};
    uint64_t     seed = 11;
    for (size_t c = 0; c < sizeof(casts) / sizeof(casts[0]); c++) {
        hora_dtype_t from = (hora_dtype_t)casts[c].from, to = (hora_dtype_t)casts[c].to;
        make_source(source[0], from, &seed);
        for (size_t k = from == to; k < 4; k++) {
            hora_kernel_convert(expected, to, source[0], from, COUNT, scales[k]);
            casts[c].run(scales[k]);
            for (size_t i = 0; i < COUNT; i++)
                if (memcmp(got + i * element_sizes[to], expected + i * element_sizes[to],
                           element_sizes[to]) != 0)
                    fail_msg("%s by %g: element %zu differs", casts[c].name, scales[k], i);
        }
    }
}

/* ---- Plans ----------------------------------------------------------------------------------- */

static void test_reduce_plan(void **state)
{
    (void)state;
    const uint64_t     src[2] = {4096, 8192}, odd[2] = {4096, 8196};
    hora_cuda_reduce_t args;
    unsigned           blocks = 99;
    assert_string_equal(hora_cuda_reduce_plan(HORA_FLOAT32, HORA_SUM, &hows[0], src, 1, src, 2, 1000,
                                              100, &args, &blocks),
                        "hora_reduce_f32");
    assert_int_equal(blocks, 1);
    assert_int_equal(args.vector, 1);
    assert_int_equal(args.nsrc, 2);
    assert_true(args.src[1] == 8192 && args.dst[0] == 4096 && args.count == 1000);
    hora_cuda_reduce_plan(HORA_FLOAT32, HORA_SUM, &hows[0], src, 1, odd, 2, (uint64_t)1 << 40, 100,
                          &args, &blocks);
    assert_int_equal(args.vector, 0);
    assert_int_equal(blocks, 400);
    hora_cuda_reduce_plan(HORA_BFLOAT16, HORA_MAX, &hows[0], src, 1, src, 2, 0, 100, &args, &blocks);
    assert_int_equal(blocks, 0);
    assert_string_equal(hora_cuda_reduce_plan(HORA_INT16, HORA_SUM, &hows[0], src, 1, src, 2, 1, 1, &args,
                                              &blocks),
                        "hora_reduce_u16"); /* wraps alike */
    assert_string_equal(hora_cuda_reduce_plan(HORA_INT16, HORA_MIN, &hows[0], src, 1, src, 2, 1, 1, &args,
                                              &blocks),
                        "hora_reduce_i16");
    assert_string_equal(hora_cuda_reduce_plan(HORA_INT16, HORA_SUM, &hows[1], src, 1, src, 2, 1, 1, &args,
                                              &blocks),
                        "hora_reduce_i16"); /* a quotient has a sign */
    assert_string_equal(hora_cuda_reduce_plan(HORA_FLOAT32, HORA_SUM, &hows[0], src, 1, src, 1, 1, 1,
                                              &args, &blocks),
                        "hora_reduce_u32"); /* a copy */
    assert_null(hora_cuda_reduce_plan(HORA_FLOAT32, HORA_BAND, &hows[0], src, 1, src, 2, 1, 1, &args,
                                      &blocks));
    assert_null(hora_cuda_reduce_plan(HORA_FLOAT32, HORA_ADASUM, &hows[0], src, 1, src, 2, 1, 1,
                                      &args, &blocks));
    assert_null(hora_cuda_reduce_plan((hora_dtype_t)99, HORA_SUM, &hows[0], src, 1, src, 2, 1, 1,
                                      &args, &blocks));
    assert_null(hora_cuda_reduce_plan(HORA_INT8, HORA_SUM, &hows[0], src, HORA_CUDA_WAYS + 1, src, 2, 1, 1, &args,
                                      &blocks));
}

/* Runs the plan as the blocks would: every element of every piece is in exactly one chunk. */
static void check_pack(hora_cuda_piece_t *pieces, uint32_t n, const hora_cuda_pack_t *args)
{
    uint64_t *seen = calloc(n + 1, sizeof(*seen));
    assert_non_null(seen);
    for (uint64_t chunk = 0; chunk < args->chunks; chunk++) {
        uint32_t at = hora_cuda_piece_of(pieces, n, chunk);
        uint64_t begin = (chunk - pieces[at].chunk) * args->chunk;
        assert_true(chunk >= pieces[at].chunk);
        assert_true(begin < pieces[at].count);
        assert_true(begin == seen[at]); /* chunks of a piece follow each other */
        seen[at] += pieces[at].count - begin < args->chunk ? pieces[at].count - begin : args->chunk;
    }
    for (uint32_t i = 0; i < n; i++)
        assert_true(seen[i] == pieces[i].count);
    free(seen);
}

static void test_pack_plan(void **state)
{
    (void)state;
    static hora_cuda_piece_t pieces[PIECES];
    hora_cuda_pack_t         args;
    unsigned                 blocks;
    uint64_t                 seed = 3;
    for (int round = 0; round < 50; round++) {
        uint32_t n = 1 + (uint32_t)(random_u64(&seed) % PIECES);
        for (uint32_t i = 0; i < n; i++) {
            uint64_t size = random_u64(&seed) % 20; /* empty, tiny, of all sizes, exact chunks */
            pieces[i].count = size < 4 ? 0 : size < 8 ? size : random_u64(&seed) % ((uint64_t)1 << size);
            if (size == 19)
                pieces[i].count = 8192 * (random_u64(&seed) % 5);
        }
        assert_string_equal(hora_cuda_pack_plan(HORA_FLOAT32, HORA_BFLOAT16, 0.5, pieces, n, 132, &args,
                                                &blocks),
                            "hora_pack_f32_bf16");
        assert_int_equal(args.chunk, 8192);
        assert_true(blocks <= 4 * 132 && (blocks > 0) == (args.chunks > 0));
        check_pack(pieces, n, &args);
    }
}

static void test_pack_names(void **state)
{
    (void)state;
    hora_cuda_piece_t piece = {0, 0, 100, 0};
    hora_cuda_pack_t  args;
    unsigned          blocks;
    assert_string_equal(hora_cuda_pack_plan(HORA_INT64, HORA_INT64, 1.0, &piece, 1, 1, &args, &blocks),
                        "hora_pack_bytes8");
    assert_string_equal(hora_cuda_pack_plan(HORA_FLOAT16, HORA_FLOAT16, 1.0, &piece, 1, 1, &args, &blocks),
                        "hora_pack_bytes2");
    assert_string_equal(hora_cuda_pack_plan(HORA_FLOAT16, HORA_FLOAT16, 2.0, &piece, 1, 1, &args, &blocks),
                        "hora_pack_f16_f16");
    assert_string_equal(hora_cuda_pack_plan(HORA_FLOAT64, HORA_FLOAT16, 1.0, &piece, 1, 1, &args, &blocks),
                        "hora_pack_f64_f16");
    assert_string_equal(hora_cuda_pack_plan(HORA_FLOAT8_E4M3, HORA_FLOAT8_E4M3, 2.0, &piece, 1, 1, &args,
                                            &blocks),
                        "hora_pack_e4m3_e4m3");
    assert_null(hora_cuda_pack_plan(HORA_FLOAT8_E4M3, HORA_FLOAT32, 1.0, &piece, 1, 1, &args, &blocks));
    assert_null(hora_cuda_pack_plan(HORA_INT8, HORA_INT8, 2.0, &piece, 1, 1, &args, &blocks));
    assert_null(hora_cuda_pack_plan(HORA_INT8, HORA_FLOAT32, 1.0, &piece, 1, 1, &args, &blocks));
    assert_null(hora_cuda_pack_plan((hora_dtype_t)77, HORA_FLOAT32, 1.0, &piece, 1, 1, &args, &blocks));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reduce),     cmocka_unit_test(test_cast),
        cmocka_unit_test(test_reduce_plan), cmocka_unit_test(test_pack_plan),
        cmocka_unit_test(test_pack_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
