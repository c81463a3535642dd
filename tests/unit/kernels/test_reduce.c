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

#include "reduce_reference.h"
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

static void make_expected(const hora_reduce_t *how, int nsrc)
{
    const void *src[NSRC_MAX];
    for (int s = 0; s < nsrc; s++) {
        src[s] = pristine[s];
    }
    reference_reduce(how, src, nsrc, expected, COUNT_MAX);
}

static void make_sources(hora_dtype_t dtype)
{
    uint64_t state = 1000u + dtype;
    for (int s = 0; s < NSRC_MAX; s++) {
        reference_fill(dtype, &state, pristine[s], COUNT_MAX);
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
    int far = layout->aliased ? layout->nsrc - 1 : layout->shift > 0 ? 0 : -1; /* changes no bits */
    hora_kernel_reduce_far(how, dst, layout->ndst, src, layout->nsrc, layout->count, far);
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
    for (int type = HORA_FLOAT16; type < HORA_DTYPE_COUNT; type++) {
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

/* Are [from, to) of the out and the slot as a turn leaves them, or untouched? */
static void check_turned(size_t from, size_t to, bool turned)
{
    unsigned char untouched[64];
    memset(untouched, FILL, sizeof(untouched));
    assert_memory_equal(target[1] + from, (turned ? pristine[1] : pristine[2]) + from, to - from);
    for (size_t at = from; at < to; at += sizeof(untouched)) {
        size_t some = to - at < sizeof(untouched) ? to - at : sizeof(untouched);
        assert_memory_equal(target[0] + at, turned ? pristine[2] + at : untouched, some);
    }
}

/* n into n, in place, while a vector but for a gap comes out of a slot and another one goes in. */
static void check_turn(const hora_reduce_t *how, int n, size_t count, size_t gap_at, size_t gap)
{
    size_t      size = element_sizes[how->dtype], bytes = count * size;
    size_t      sums = count / (size_t)n; /* one more or less than the gap, or none is copied */
    const void *src[NSRC_MAX] = {NULL};
    void       *dst[NSRC_MAX] = {NULL};
    hora_turn_t turn = {.out = target[0], .slot = target[1], .in = pristine[1], .count = count,
                        .gap_at = gap_at, .gap = gap};
    for (int s = 0; s < n; s++) {
        memcpy(source[s], pristine[s], bytes + GUARD);
        src[s] = source[s];
        dst[s] = source[(s + 1) % n];
    }
    memset(target[0], FILL, bytes + GUARD);
    memcpy(target[1], pristine[2], bytes + GUARD);
    hora_kernel_reduce_turn(how, dst, src, n, &turn, sums);
    for (int s = 0; s < n; s++) {
        assert_memory_equal(source[s], expected, sums * size);
        assert_memory_equal(source[s] + sums * size, pristine[s] + sums * size,
                            bytes - sums * size + GUARD);
    }
    check_turned(0, gap_at * size, true);
    check_turned(gap_at * size, (gap_at + gap) * size, false);
    check_turned((gap_at + gap) * size, bytes, true);
    check_turned(bytes, bytes + GUARD, false);
}

/* Without a gap, and with one at the beginning, within, and at the end. */
static void check_turns(const hora_reduce_t *how, int n, size_t count)
{
    size_t line = 64 / element_sizes[how->dtype], lines = count / line;
    size_t gap = lines / (size_t)n * line;
    check_turn(how, n, count, count, 0);
    if (gap > 0) {
        check_turn(how, n, count, 0, gap);
        check_turn(how, n, count, gap, gap);
        check_turn(how, n, count, lines * line - gap, gap);
    }
}

static void test_turn(void **state)
{
    static const int ranks[] = {2, 3, 4, 8};
    (void)state;
    for (hora_dtype_t dtype = 0; dtype < HORA_DTYPE_COUNT; dtype++) {
        make_sources(dtype);
        for (size_t i = 0; i < 8 * sizeof(counts) / sizeof(counts[0]); i++) {
            hora_reduce_t how = scalings[i % 2 == 0 || dtype == HORA_BOOL ? 0 : 2];
            how.dtype = dtype;
            how.op = HORA_SUM;
            make_expected(&how, ranks[i / 2 % 4]);
            for (size_t k = 0; k < ISA_COUNT; k++) {
                if (hora_kernel_force_isa(isa_names[k])) {
                    check_turns(&how, ranks[i / 2 % 4], counts[i / 8]);
                }
            }
        }
    }
    assert_true(hora_kernel_force_isa("auto"));
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
        cmocka_unit_test(test_turn),
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
