/*
 * What one instruction set offers: a table of inner loops. Private to kernels/cpu.
 *
 * loops.h is compiled once per instruction set and fills one table; reduce.c and convert.c drive
 * the loops and know no instruction set. Every table gives the same bits.
 */
#ifndef HORA_KERNELS_CPU_ISA_H
#define HORA_KERNELS_CPU_ISA_H

#include "kernels.h"

#define HORA_COMBINE_MAX 4 /* most inputs of one hora_combine_fn */

/* out[i] = in[0][i] op .. op in[ways-1][i]; 2 <= ways <= HORA_COMBINE_MAX. out may equal any in.
 * A NaN result is the one quiet NaN with sign and payload 0. */
typedef void (*hora_combine_fn)(void *out, const void *const *in, int ways, size_t count);
/* out[i] = in[i] * scale, in == out allowed. Floats: in their own precision, NaN as above.
 * Integers: through double, truncated toward zero, saturated, NaN to 0. */
typedef void (*hora_scale_fn)(void *out, const void *in, size_t count, double scale);
/* out[i] = in[i] / divisor, in == out allowed; integers truncate toward zero. */
typedef void (*hora_divide_fn)(void *out, const void *in, size_t count, uint32_t divisor);
/* out[i] = (type)in[i]; no overlap. Rounds to nearest even. A NaN stays one, keeps its sign
 * and as many of its upper payload bits as fit, and is made quiet (but not by bfloat16 to float32,
 * which only appends zero bits). */
typedef void (*hora_cast_fn)(void *out, const void *in, size_t count);

/* The whole of hora_kernel_reduce_far for how->op SUM, in one pass; far: that source, or NULL. */
typedef void (*hora_sum_fn)(const hora_reduce_t *how, void *const *dst, int ndst,
                            const void *const *src, int nsrc, size_t count, const void *far);

/* The whole of hora_kernel_reduce_turn for how->op SUM of float32. */
typedef void (*hora_turn_fn)(const hora_reduce_t *how, void *const *dst, const void *const *src,
                             int n, const hora_turn_t *turn, size_t count);

/* memcpy; far: of what another core has written. */
typedef void (*hora_copy_fn)(void *dst, const void *src, size_t bytes, bool far);

/* dots[0..2] += a.a, a.b, b.b, in the order that dots.h describes. */
typedef void (*hora_dots_fn)(const void *a, const void *b, size_t count, double *dots);
/* out[i] = (a[i] * weights[0] + b[i] * weights[1]) * scale; out may equal a or b. NaN as above. */
typedef void (*hora_blend_fn)(void *out, const void *a, const void *b, const double *weights,
                              double scale, size_t count);

typedef struct hora_isa {
    const char     *name;
    hora_sum_fn     sum[HORA_DTYPE_COUNT]; /* float32 and the half types; NULL: use combine */
    hora_turn_fn    turn_f32;
    hora_copy_fn    copy;
    /* NULL: no such operation, or a half or float8 type, which is widened and combined as float32. */
    hora_combine_fn combine[HORA_DTYPE_COUNT][HORA_OP_COUNT];
    hora_scale_fn   scale[HORA_DTYPE_COUNT];  /* NULL: bool, half and float8 types */
    hora_divide_fn  divide[HORA_DTYPE_COUNT]; /* NULL: as scale */
    hora_cast_fn    widen[HORA_DTYPE_COUNT];  /* half and float8 types to float32; NULL: others */
    hora_cast_fn    narrow[HORA_DTYPE_COUNT]; /* float32 to half and float8 types; NULL: others */
    hora_dots_fn    dots[HORA_DTYPE_COUNT];   /* float32 and float64; NULL for the others */
    hora_blend_fn   blend[HORA_DTYPE_COUNT];  /* likewise */
    hora_cast_fn    f32_to_f64;
    hora_cast_fn    f64_to_f32;
    /* To odd: inexact results get an odd last bit, so that a second rounding, to a half type, is
     * correct. */
    hora_cast_fn    f64_to_f32_odd;
} hora_isa_t;

extern const hora_isa_t hora_isa_portable;
#if defined(__x86_64__)
extern const hora_isa_t hora_isa_avx2;
extern const hora_isa_t hora_isa_avx512;
#elif defined(__aarch64__)
extern const hora_isa_t hora_isa_neon;
#endif

/* The table in use; chosen on the first call. Any thread. */
const hora_isa_t *hora_isa_current(void);

#define HORA_LINE 64
/* How far ahead lines of another core are fetched: 96 of them. More gain nothing, and 32 gain less
 * where such a line takes 100 ns (docs/performance.md). */
#define HORA_AHEAD ((size_t)96 * HORA_LINE)

/* Asks for lines into the cache of level 2: of those a core waits for more at a time than of those
 * into level 1. */
static inline void hora_fetch(const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += HORA_LINE) {
        __builtin_prefetch((const char *)from + i, 0, 2);
    }
}

/* The same for the first lines of `bytes`; the others are fetched on the way. */
static inline void hora_fetch_first(const void *from, size_t bytes)
{
    hora_fetch(from, bytes < HORA_AHEAD ? bytes : HORA_AHEAD);
}

/* Bytes of one element. hora_dtype_size lives in libhora, which these files do not need. */
static inline size_t hora_element_size(hora_dtype_t dtype)
{
    static const unsigned char sizes[HORA_DTYPE_COUNT] = {1, 1, 2, 4, 8, 1, 2, 4,
                                                          8, 2, 2, 4, 8, 1, 1};
    return sizes[dtype];
}

#endif
