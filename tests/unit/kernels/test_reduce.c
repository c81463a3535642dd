/*
 * hora_kernel_reduce against a plain reference, bit for bit: every type, operation and instruction
 * set, many numbers of sources, destinations and elements, alignments, aliasing and scales.
 *
 * All instruction sets are compared with the same reference, hence with each other.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "reference.h"

#define COUNT_MAX 4097
#define NSRC_MAX  9
#define NDST_MAX  3
#define GUARD     64 /* bytes after a buffer that must stay as they are */
#define BUFFER    ((COUNT_MAX + 1) * 8 + GUARD)
#define FILL      0xa5

static const size_t   counts[] = {0, 1, 7, 63, 64, 65, 1000, COUNT_MAX};
static const hora_op_t ops[] = {HORA_SUM,  HORA_PRODUCT, HORA_MIN, HORA_MAX,
                                HORA_BAND, HORA_BOR,     HORA_BXOR};

static const hora_reduce_t scalings[] = {
    {.divisor = 1, .prescale = 1.0, .postscale = 1.0},
    {.divisor = 4, .prescale = 1.0, .postscale = 1.0},
    {.divisor = 3, .prescale = 1.0, .postscale = 0.3},
    {.divisor = 1, .prescale = -1.7, .postscale = 1.0},
    {.divisor = 200, .prescale = 0.6, .postscale = 1e10},
};

/* pristine: never given to a kernel. source, target: what the kernels work on. */
static _Alignas(64) unsigned char pristine[NSRC_MAX][BUFFER];
static _Alignas(64) unsigned char source[NSRC_MAX][BUFFER];
static _Alignas(64) unsigned char target[NDST_MAX][BUFFER];
static _Alignas(64) unsigned char expected[BUFFER];

static bool is_float(hora_dtype_t dtype)
{
    return dtype >= HORA_FLOAT16;
}

static bool supported(hora_dtype_t dtype, hora_op_t op)
{
    return !is_float(dtype) || op < HORA_BAND;
}

/* ---- Reference ------------------------------------------------------------------------------- */

typedef __int128 wide_t; /* holds every integer type, and products of two after a wrap */

static wide_t read_integer(const void *p, hora_dtype_t dtype)
{
    uint64_t raw = 0;
    size_t   bits = element_sizes[dtype] * 8;
    memcpy(&raw, p, element_sizes[dtype]);
    bool negative = dtype >= HORA_INT8 && dtype <= HORA_INT64 && (raw >> (bits - 1)) != 0;
    return negative ? (wide_t)raw - ((wide_t)1 << bits) : (wide_t)raw;
}

static wide_t wrap(wide_t value, hora_dtype_t dtype)
{
    uint64_t raw = (uint64_t)value;
    return read_integer(&raw, dtype);
}

static wide_t scale_integer(wide_t value, double scale, hora_dtype_t dtype)
{
    int    bits = (int)element_sizes[dtype] * 8;
    bool   is_signed = dtype <= HORA_INT64;
    wide_t low = is_signed ? -((wide_t)1 << (bits - 1)) : 0;
    wide_t high = ((wide_t)1 << (is_signed ? bits - 1 : bits)) - 1;
    double product = is_signed ? (double)(int64_t)value : (double)(uint64_t)value;
    product = trunc(product * scale);
    if (product <= (double)low) {
        return low;
    }
    return product >= (double)high ? high : (wide_t)product;
}

static wide_t combine_integer(wide_t a, wide_t b, hora_op_t op, hora_dtype_t dtype)
{
    switch (op) {
    case HORA_SUM:
        return wrap(a + b, dtype);
    case HORA_PRODUCT:
        return wrap((wide_t)((unsigned __int128)a * (unsigned __int128)b), dtype);
    case HORA_MIN:
        return a < b ? a : b;
    case HORA_MAX:
        return a > b ? a : b;
    case HORA_BAND:
        return a & b;
    case HORA_BOR:
        return a | b;
    default:
        return a ^ b;
    }
}

static wide_t combine_bool(wide_t a, wide_t b, hora_op_t op)
{
    if (op == HORA_SUM || op == HORA_MAX || op == HORA_BOR) {
        return a || b;
    }
    return op == HORA_BXOR ? a != b : a && b;
}

static void reference_integer(const hora_reduce_t *how, int nsrc, size_t i, unsigned char *out)
{
    size_t size = element_sizes[how->dtype];
    bool   is_bool = how->dtype == HORA_BOOL;
    wide_t sum = 0;
    for (int s = 0; s < nsrc; s++) {
        wide_t value = read_integer(pristine[s] + i * size, how->dtype);
        if (how->prescale != 1.0 && !is_bool) {
            value = scale_integer(value, how->prescale, how->dtype);
        }
        if (s == 0) {
            sum = value;
        } else {
            sum = is_bool ? combine_bool(sum, value, how->op)
                          : combine_integer(sum, value, how->op, how->dtype);
        }
    }
    if (!is_bool) {
        sum /= how->divisor;
        sum = how->postscale != 1.0 ? scale_integer(sum, how->postscale, how->dtype) : sum;
    }
    uint64_t raw = (uint64_t)sum;
    memcpy(out, &raw, size); /* little endian */
}

/* One step in the precision of the type; volatile, so that nothing is kept wider or contracted. */
static double rounded(hora_dtype_t dtype, double value)
{
    volatile float narrow = (float)value;
    return dtype == HORA_FLOAT64 ? value : (double)narrow;
}

static double combine_float(double a, double b, hora_op_t op)
{
    if (isnan(a) || isnan(b)) {
        return NAN;
    }
    switch (op) {
    case HORA_SUM:
        return a + b;
    case HORA_PRODUCT:
        return a * b;
    case HORA_MIN:
        return a < b || (a == b && signbit(a)) ? a : b;
    default:
        return a > b || (a == b && !signbit(a)) ? a : b;
    }
}

static double read_float(const void *p, hora_dtype_t dtype)
{
    uint16_t half;
    float    narrow;
    double   wide;
    memcpy(&half, p, sizeof(half));
    switch (dtype) {
    case HORA_FLOAT16:
        return half_decode(&format_f16, half);
    case HORA_BFLOAT16:
        return half_decode(&format_bf16, half);
    case HORA_FLOAT32:
        memcpy(&narrow, p, sizeof(narrow));
        return narrow;
    default:
        memcpy(&wide, p, sizeof(wide));
        return wide;
    }
}

static void write_float(void *p, hora_dtype_t dtype, double value)
{
    uint16_t half = 0;
    uint32_t nan32 = 0x7fc00000u;
    uint64_t nan64 = 0x7ff8000000000000u;
    float    narrow = (float)value;
    switch (dtype) {
    case HORA_FLOAT16:
    case HORA_BFLOAT16:
        half = half_encode(dtype == HORA_FLOAT16 ? &format_f16 : &format_bf16, value);
        memcpy(p, &half, sizeof(half));
        break;
    case HORA_FLOAT32:
        memcpy(p, isnan(value) ? (void *)&nan32 : (void *)&narrow, sizeof(narrow));
        break;
    default:
        memcpy(p, isnan(value) ? (void *)&nan64 : (void *)&value, sizeof(value));
        break;
    }
}

/* Rounding a double sum, product or quotient of two floats to float gives what float arithmetic
 * gives: double has more than twice the digits. */
static void reference_float(const hora_reduce_t *how, int nsrc, size_t i, unsigned char *out)
{
    size_t       size = element_sizes[how->dtype];
    hora_dtype_t dtype = how->dtype;
    double       sum = 0.0;
    for (int s = 0; s < nsrc; s++) {
        double value = read_float(pristine[s] + i * size, dtype);
        if (how->prescale != 1.0) {
            value = rounded(dtype, value * rounded(dtype, how->prescale));
        }
        sum = s == 0 ? value : rounded(dtype, combine_float(sum, value, how->op));
    }
    if (how->divisor != 1) {
        sum = rounded(dtype, sum / how->divisor);
    }
    if (how->postscale != 1.0) {
        sum = rounded(dtype, sum * rounded(dtype, how->postscale));
    }
    write_float(out, dtype, sum);
}

static void make_expected(const hora_reduce_t *how, int nsrc)
{
    size_t size = element_sizes[how->dtype];
    bool   copy = nsrc == 1 && how->prescale == 1.0 && how->divisor == 1 && how->postscale == 1.0;
    for (size_t i = 0; i < COUNT_MAX; i++) {
        if (copy) {
            memcpy(expected + i * size, pristine[0] + i * size, size);
        } else if (is_float(how->dtype)) {
            reference_float(how, nsrc, i, expected + i * size);
        } else {
            reference_integer(how, nsrc, i, expected + i * size);
        }
    }
}

/* ---- Data ------------------------------------------------------------------------------------ */

static const double special_values[] = {0.0, -0.0, INFINITY, -INFINITY, 1.0, -1.0, 65504.0,
                                        65519.0, 1e-7, -3e-8, 1e-40, 3e38, -2e-308, 5e-324};

static void make_float(void *p, hora_dtype_t dtype, uint64_t *state)
{
    uint64_t raw = random_u64(state);
    unsigned kind = raw % 16;
    if (kind == 0) { /* any bits at all: NaN with payloads, huge, subnormal */
        raw = random_u64(state);
        memcpy(p, &raw, element_sizes[dtype]);
    } else if (kind == 1) {
        size_t which = (raw >> 8) % (sizeof(special_values) / sizeof(special_values[0]));
        write_float(p, dtype, special_values[which]);
    } else {
        double fraction = (double)(int64_t)random_u64(state) * 0x1p-62;
        write_float(p, dtype, ldexp(fraction, (int)(raw >> 8) % 5));
    }
}

static void make_sources(hora_dtype_t dtype)
{
    uint64_t state = 1000u + dtype;
    size_t   size = element_sizes[dtype];
    for (int s = 0; s < NSRC_MAX; s++) {
        for (size_t i = 0; i < COUNT_MAX; i++) {
            unsigned char *p = pristine[s] + i * size;
            if (is_float(dtype)) {
                make_float(p, dtype, &state);
            } else {
                uint64_t raw = random_u64(&state);
                raw = dtype == HORA_BOOL ? raw & 1 : raw;
                memcpy(p, &raw, size);
            }
        }
    }
}

/* ---- Cases ----------------------------------------------------------------------------------- */

typedef struct layout {
    int    nsrc;
    int    ndst;
    size_t count;
    size_t shift;   /* bytes that every other buffer is moved from its alignment */
    bool   aliased; /* destinations are sources, as far as there are any */
} layout_t;

static void check_case(const hora_reduce_t *how, const layout_t *layout)
{
    const void *src[NSRC_MAX];
    void       *dst[NDST_MAX];
    size_t      bytes = layout->count * element_sizes[how->dtype];
    for (int s = 0; s < layout->nsrc; s++) {
        unsigned char *at = source[s] + (s % 2 == 0 ? layout->shift : 0);
        memcpy(at, pristine[s], bytes);
        memset(at + bytes, FILL, GUARD);
        src[s] = at;
    }
    for (int d = 0; d < layout->ndst; d++) {
        bool shared = layout->aliased && d < layout->nsrc;
        dst[d] = shared ? (void *)(uintptr_t)src[layout->nsrc - 1 - d]
                        : target[d] + (d % 2 == 0 ? 0 : layout->shift);
        memset(shared ? target[d] : dst[d], FILL, bytes + GUARD);
    }
    hora_kernel_reduce(how, dst, layout->ndst, src, layout->nsrc, layout->count);
    unsigned char guard[GUARD];
    memset(guard, FILL, GUARD);
    int untouched = layout->aliased ? layout->nsrc - layout->ndst : layout->nsrc;
    for (int s = 0; s < untouched; s++) {
        assert_true(memcmp(src[s], pristine[s], bytes) == 0);
    }
    for (int d = 0; d < layout->ndst; d++) {
        if (memcmp(dst[d], expected, bytes) != 0 ||
            memcmp((char *)dst[d] + bytes, guard, GUARD) != 0) {
            fail_msg("%s %s op %d: nsrc %d dst %d/%d count %zu shift %zu aliased %d divisor %u "
                     "prescale %g postscale %g",
                     hora_kernel_isa(), type_names[how->dtype], how->op, layout->nsrc, d,
                     layout->ndst, layout->count, layout->shift, layout->aliased, how->divisor,
                     how->prescale, how->postscale);
        }
    }
}

static void check_layouts(const hora_reduce_t *how, int nsrc)
{
    layout_t layout = {.nsrc = nsrc};
    for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++) {
        layout.count = counts[c];
        for (layout.ndst = 1; layout.ndst <= NDST_MAX; layout.ndst++) {
            for (int variant = 0; variant < 4; variant++) {
                layout.shift = variant % 2 * element_sizes[how->dtype];
                layout.aliased = variant / 2 == 1;
                check_case(how, &layout);
            }
        }
    }
}

static void check_operation(hora_dtype_t dtype, hora_op_t op, const hora_reduce_t *scaling)
{
    hora_reduce_t how = *scaling;
    how.dtype = dtype;
    how.op = op;
    for (int nsrc = 1; nsrc <= NSRC_MAX; nsrc++) {
        make_expected(&how, nsrc);
        for (size_t k = 0; k < ISA_COUNT; k++) {
            if (hora_kernel_force_isa(isa_names[k])) {
                check_layouts(&how, nsrc);
            }
        }
    }
}

static void test_type(void **state)
{
    hora_dtype_t dtype = *(const hora_dtype_t *)*state;
    make_sources(dtype);
    for (size_t o = 0; o < sizeof(ops) / sizeof(ops[0]); o++) {
        for (size_t k = 0; k < sizeof(scalings) / sizeof(scalings[0]); k++) {
            /* Scales are a step of their own; trying them with one more operation is enough. */
            bool wanted = k == 0 || ops[o] == HORA_SUM || ops[o] == HORA_MIN;
            if (wanted && supported(dtype, ops[o])) {
                check_operation(dtype, ops[o], &scalings[k]);
            }
        }
    }
    hora_kernel_force_isa(NULL);
}

/* Nothing beyond the last element is read or written: the next page is not there. */
static void check_page_end(const hora_reduce_t *how, unsigned char *const *page_ends)
{
    for (size_t count = 1; count <= 130; count++) {
        size_t      bytes = count * element_sizes[how->dtype];
        const void *src[3] = {page_ends[0] - bytes, page_ends[1] - bytes, page_ends[2] - bytes};
        void       *dst[2] = {page_ends[0] - bytes, page_ends[3] - bytes};
        for (int s = 0; s < 3; s++) {
            memcpy((void *)(uintptr_t)src[s], pristine[s], bytes);
        }
        hora_kernel_reduce(how, dst, 2, src, 3, count);
        assert_true(memcmp(dst[0], expected, bytes) == 0);
        assert_true(memcmp(dst[1], expected, bytes) == 0);
    }
}

static void test_page_end(void **state)
{
    (void)state;
    const size_t   page = 65536; /* a multiple of every page size */
    unsigned char *ends[4];
    for (int b = 0; b < 4; b++) {
        unsigned char *map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        assert_true(map != MAP_FAILED);
        assert_int_equal(mprotect(map + page, page, PROT_NONE), 0);
        ends[b] = map + page;
    }
    for (int type = 0; type < HORA_DTYPE_COUNT; type++) {
        make_sources((hora_dtype_t)type);
        for (size_t k = 0; k < ISA_COUNT * 2; k++) {
            hora_reduce_t how = scalings[k % 2 * 2];
            how.dtype = (hora_dtype_t)type;
            how.op = k % 2 == 0 ? HORA_SUM : HORA_MAX;
            make_expected(&how, 3);
            if (hora_kernel_force_isa(isa_names[k / 2])) {
                check_page_end(&how, ends);
            }
        }
    }
    hora_kernel_force_isa(NULL);
    for (int b = 0; b < 4; b++) {
        munmap(ends[b] - page, 2 * page);
    }
}

/* The bits do not depend on where a vector is cut. */
static void test_cut(void **state)
{
    (void)state;
    static unsigned char whole[BUFFER];
    static unsigned char parts[BUFFER];
    const size_t         cut = 1234;
    for (int type = HORA_FLOAT16; type <= HORA_FLOAT64; type++) {
        hora_reduce_t how = scalings[4];
        size_t        size = element_sizes[type];
        how.dtype = (hora_dtype_t)type;
        how.op = HORA_SUM;
        make_sources(how.dtype);
        const void *front[NSRC_MAX];
        const void *back[NSRC_MAX];
        for (int s = 0; s < NSRC_MAX; s++) {
            front[s] = pristine[s];
            back[s] = pristine[s] + cut * size;
        }
        void *out = whole;
        hora_kernel_reduce(&how, &out, 1, front, NSRC_MAX, COUNT_MAX);
        out = parts + cut * size;
        hora_kernel_reduce(&how, &out, 1, back, NSRC_MAX, COUNT_MAX - cut);
        out = parts;
        hora_kernel_reduce(&how, &out, 1, front, NSRC_MAX, cut);
        assert_memory_equal(whole, parts, COUNT_MAX * size);
    }
}

/* A count of zero touches nothing, not even pointers. */
static void test_nothing(void **state)
{
    (void)state;
    void         *dst[2] = {NULL, NULL};
    const void   *src[2] = {NULL, NULL};
    hora_reduce_t how = scalings[0];
    for (int type = 0; type < HORA_DTYPE_COUNT; type++) {
        how.dtype = (hora_dtype_t)type;
        how.op = HORA_SUM;
        hora_kernel_reduce(&how, dst, 1, src, 1, 0);
        hora_kernel_reduce(&how, dst, 2, src, 2, 0);
        how.divisor = 3;
        hora_kernel_reduce(&how, dst, 2, src, 2, 0);
        how.divisor = 1;
    }
}

static void test_isa(void **state)
{
    (void)state;
    assert_false(hora_kernel_force_isa("abacus"));
    assert_true(hora_kernel_force_isa("portable"));
    assert_string_equal(hora_kernel_isa(), "portable");
    assert_false(hora_kernel_force_isa("abacus"));
    assert_string_equal(hora_kernel_isa(), "portable");
    assert_true(hora_kernel_force_isa("auto"));
    const char *best = hora_kernel_isa();
    assert_true(hora_kernel_force_isa("portable"));
    assert_true(hora_kernel_force_isa(NULL));
    assert_string_equal(hora_kernel_isa(), best);
}

int main(void)
{
    static hora_dtype_t     types[HORA_DTYPE_COUNT];
    const struct CMUnitTest others[] = {
        cmocka_unit_test(test_page_end),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_nothing),
        cmocka_unit_test(test_isa),
    };
    struct CMUnitTest tests[HORA_DTYPE_COUNT + sizeof(others) / sizeof(others[0])];
    for (int t = 0; t < HORA_DTYPE_COUNT; t++) {
        types[t] = (hora_dtype_t)t;
        tests[t] = (struct CMUnitTest){type_names[t], test_type, NULL, NULL, &types[t]};
    }
    memcpy(tests + HORA_DTYPE_COUNT, others, sizeof(others));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
