/*
 * The inner loops of Adasum (adasum.c): three dot products in one pass, and the weighted sum.
 * Included by loops.h, so compiled once per instruction set; any thread.
 *
 * Bits. The dot products are summed in float64, in an order that depends on the count alone: blocks
 * of HORA_DOTS_BLOCK elements one after the other; in a block, element i goes to lane i % 16; the
 * lanes are added in a fixed tree. Vectors of eight float64 are what the compiler splits up where
 * the machine has shorter ones; that changes no order.
 */
#ifndef HORA_KERNELS_CPU_DOTS_H
#define HORA_KERNELS_CPU_DOTS_H

#include "isa.h"

#define DOTS_WIDTH 8               /* lanes of a vector */
#define DOTS_LANES (2 * DOTS_WIDTH) /* two vectors: additions overlap */

typedef double dots_wide_t __attribute__((vector_size(DOTS_WIDTH * sizeof(double))));
typedef float  dots_f32_t __attribute__((vector_size(DOTS_WIDTH * sizeof(float))));
typedef double dots_f64_t __attribute__((vector_size(DOTS_WIDTH * sizeof(double))));

typedef struct dots_lanes {
    dots_wide_t aa[2], ab[2], bb[2];
} dots_lanes_t;

static inline double dots_fold(const dots_wide_t *lanes)
{
    dots_wide_t sum = lanes[0] + lanes[1];
    return ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

/* A block's last elements are followed by zeros, which add nothing. */
#define DEFINE_DOTS(S, T)                                                                         \
    static inline void dots_step_##S(dots_lanes_t *lanes, const T *a, const T *b)                 \
    {                                                                                             \
        for (int k = 0; k < 2; k++) {                                                             \
            dots_##S##_t u, v;                                                                    \
            memcpy(&u, a + k * DOTS_WIDTH, sizeof(u));                                            \
            memcpy(&v, b + k * DOTS_WIDTH, sizeof(v));                                            \
            dots_wide_t x = __builtin_convertvector(u, dots_wide_t);                              \
            dots_wide_t y = __builtin_convertvector(v, dots_wide_t);                              \
            lanes->aa[k] += x * x;                                                                \
            lanes->ab[k] += x * y;                                                                \
            lanes->bb[k] += y * y;                                                                \
        }                                                                                         \
    }                                                                                             \
    static void dots_##S(const void *left, const void *right, size_t count, double *dots)         \
    {                                                                                             \
        for (size_t begin = 0; begin < count; begin += HORA_DOTS_BLOCK) {                         \
            const T     *a = (const T *)left + begin;                                             \
            const T     *b = (const T *)right + begin;                                            \
            size_t       n = count - begin < HORA_DOTS_BLOCK ? count - begin : HORA_DOTS_BLOCK;   \
            size_t       whole = n / DOTS_LANES * DOTS_LANES;                                     \
            dots_lanes_t lanes;                                                                   \
            memset(&lanes, 0, sizeof(lanes));                                                     \
            for (size_t i = 0; i < whole; i += DOTS_LANES) {                                      \
                dots_step_##S(&lanes, a + i, b + i);                                              \
            }                                                                                     \
            if (whole < n) {                                                                      \
                T u[DOTS_LANES] = {0}, v[DOTS_LANES] = {0};                                       \
                memcpy(u, a + whole, (n - whole) * sizeof(T));                                    \
                memcpy(v, b + whole, (n - whole) * sizeof(T));                                    \
                dots_step_##S(&lanes, u, v);                                                      \
            }                                                                                     \
            dots[0] += dots_fold(lanes.aa);                                                       \
            dots[1] += dots_fold(lanes.ab);                                                       \
            dots[2] += dots_fold(lanes.bb);                                                       \
        }                                                                                         \
    }
DEFINE_DOTS(f32, float)
DEFINE_DOTS(f64, double)

#define DEFINE_BLEND(S, T)                                                                        \
    static void blend_##S(void *out, const void *left, const void *right, const double *weights,  \
                          double scale, size_t count)                                             \
    {                                                                                             \
        T           *o = out;                                                                     \
        const T     *a = left;                                                                    \
        const T     *b = right;                                                                   \
        const double wa = weights[0], wb = weights[1];                                            \
        if (scale == 1.0) {                                                                       \
            VECTORISE                                                                             \
            for (size_t i = 0; i < count; i++) {                                                  \
                o[i] = canonical_##S((T)((double)a[i] * wa + (double)b[i] * wb));                 \
            }                                                                                     \
            return;                                                                               \
        }                                                                                         \
        VECTORISE                                                                                 \
        for (size_t i = 0; i < count; i++) {                                                      \
            o[i] = canonical_##S((T)(((double)a[i] * wa + (double)b[i] * wb) * scale));           \
        }                                                                                         \
    }
DEFINE_BLEND(f32, float)
DEFINE_BLEND(f64, double)

#endif
