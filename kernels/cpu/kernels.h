/*
 * CPU kernels: reduce, scale, cast, copy. Arithmetic only: no sockets, no threads, no allocation,
 * no errors (the callers have checked type and operation). Safe from any thread.
 *
 * Bits. A result depends only on the inputs and their order, never on the instruction set, the
 * alignment, or on how a vector was cut: element i is ((in0[i] op in1[i]) op in2[i]) ... in the
 * order given, with no contraction to fused multiply-add. A NaN that was computed is always the
 * quiet one without sign or payload; min counts -0 as less than +0, and so does max. All this
 * holds in the default floating-point environment (nearest even, subnormals not flushed).
 */
#ifndef HORA_KERNELS_CPU_KERNELS_H
#define HORA_KERNELS_CPU_KERNELS_H

#include <hora/hora.h>
#include <stdbool.h>

/* How to reduce. Steps per element: each input is multiplied by prescale; the inputs are combined
 * in order; the result is divided by divisor, then multiplied by postscale; then rounded to dtype
 * once. float16, bfloat16 and float8 do all of it in float32, float32 in float32, float64 in float64;
 * integers combine in wrapping arithmetic, divide truncating toward zero, and go through double
 * (truncating toward zero, saturating; NaN gives 0) only where a scale is not 1. float32 and
 * what is narrower use the scales rounded to float32. bool ignores divisor and scales. */
typedef struct hora_reduce {
    hora_dtype_t dtype;
    hora_op_t    op;        /* not AVERAGE: callers pass SUM and divisor = ranks; not ADASUM */
    uint32_t     divisor;   /* 1: none */
    double       prescale;  /* 1.0: none */
    double       postscale; /* 1.0: none */
} hora_reduce_t;

/* dst[0..ndst-1][i] = reduce over src[0..nsrc-1][i], for i < count. nsrc >= 1, ndst >= 1.
 * A dst may be equal to any src (same address); partial overlap is not allowed. Buffers need only
 * the natural alignment of dtype. nsrc == 1 with a scale is "scale"; without is a copy. */
void hora_kernel_reduce(const hora_reduce_t *how, void *const *dst, int ndst,
                        const void *const *src, int nsrc, size_t count);

/* The same, where another core has written src[far] (-1: none): its lines are asked for before they
 * are needed, more at a time than a core does by itself. The bits do not depend on it. */
void hora_kernel_reduce_far(const hora_reduce_t *how, void *const *dst, int ndst,
                            const void *const *src, int nsrc, size_t count, int far);

/* Copies that go along with a reduction: out[i] = slot[i], slot[i] = in[i], for i < count, but for
 * `gap` elements from gap_at on. gap_at and gap are whole lines of 64 bytes, unless gap is 0. */
typedef struct hora_turn {
    void       *out, *slot;
    const void *in;
    size_t      count, gap_at, gap;
} hora_turn_t;

/* hora_kernel_reduce of n into n, and these copies meanwhile, line by line: while one of them waits
 * for a line of another core, the others go on. n >= 2. What they touch does not overlap, but for
 * dst and src, which may be equal. */
void hora_kernel_reduce_turn(const hora_reduce_t *how, void *const *dst, const void *const *src,
                             int n, const hora_turn_t *turn, size_t count);

/* dst[i] = (dst_dtype)(src[i] * scale), i < count; scale 1.0: none. Among the float types (float8,
 * float16, bfloat16, float32, float64) in any pair, or equal types. The product is taken in float64 if
 * either type is float64, else in float32; then it is rounded to dst_dtype, to nearest even, once.
 * Without a scale a NaN keeps its sign and the payload bits that fit (float8: none). dst == src allowed when the
 * element sizes are equal. */
void hora_kernel_convert(void *dst, hora_dtype_t dst_dtype, const void *src, hora_dtype_t src_dtype,
                         size_t count, double scale);

/* Adasum of two vectors in two steps, for float32 and float64.
 *
 * hora_kernel_dots adds the vectors' dot products to *dots, accumulating in float64. The order of
 * the sum is fixed for a call; calls one after the other give the bits of one call if all but the
 * last have a multiple of HORA_DOTS_BLOCK elements. */
typedef struct hora_dots {
    double aa, ab, bb;
} hora_dots_t;
#define HORA_DOTS_BLOCK 1024
void hora_kernel_dots(hora_dtype_t dtype, const void *a, const void *b, size_t count,
                      hora_dots_t *dots);
/* dst[i] = (a[i] * (1 - ab / 2aa) + b[i] * (1 - ab / 2bb)) * scale, in float64 and rounded once;
 * with aa == 0 or bb == 0 both weights are 1. dst may equal a or b. */
void hora_kernel_adasum(hora_dtype_t dtype, void *dst, const void *a, const void *b, size_t count,
                        const hora_dots_t *dots, double scale);

/* memcpy, with streaming stores where `bytes` is so large that they win (and then with the fence
 * that they need, so that a flag stored after it may announce the data). No overlap. */
void hora_kernel_copy(void *dst, const void *src, size_t bytes);
/* The same with streaming stores, where there are any, whatever `bytes` is: one part of a copy that is
 * so large as a whole. */
void hora_kernel_copy_part(void *dst, const void *src, size_t bytes);

/* memcpy, a line at a time in registers: some KB, for another core to read. No overlap. */
void hora_kernel_put(void *dst, const void *src, size_t bytes);
/* The same of what another core has written, whose lines are asked for as by
 * hora_kernel_reduce_far. */
void hora_kernel_fetch(void *dst, const void *src, size_t bytes);

/* memcpy that also takes src's lines over from the core that wrote them, by writing to each what it holds. That
 * core is quick to write to them again then; nobody else may use src meanwhile. No overlap. */
void hora_kernel_take(void *dst, void *src, size_t bytes);

/* Name of the instruction set in use: "portable", "avx2", "avx512", "neon". */
const char *hora_kernel_isa(void);
/* Forces one (tests; HORA_KERNELS, which the caller reads); false, and no change, if this machine
 * or build lacks it. NULL or "auto": the best. Not thread-safe against running kernels. */
bool hora_kernel_force_isa(const char *name);

#endif
