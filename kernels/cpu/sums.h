/*
 * Sums of float32 and the half types in one pass over memory; any thread. Compiled once per
 * instruction set, like loops.h.
 *
 * A chunk of CHUNK elements, widened to float32 and kept in registers, is gathered from every
 * source, finished and stored to every destination before the next one. So each source is read
 * once, each destination written once, and a destination may be a source. A last, partial chunk is
 * padded and goes the same way.
 *
 * The instruction set's file includes this after it has defined
 *     vector_t                        a GNU vector of float
 *     vector_canonical(v)             v with each NaN replaced by the quiet one without sign
 *     load_{f16,bf16}(p, v)           CHUNK elements, widened, into vector_t v[VECTORS]
 *     store_{f16,bf16}(p, v)          the way back, in the same order of elements. bf16 may order
 *                                     them as it likes, and need not handle any other NaN
 */
#ifndef HORA_KERNELS_CPU_SUMS_H
#define HORA_KERNELS_CPU_SUMS_H

#include "half.h"
#include "isa.h"

#include <string.h>

#define ALWAYS_INLINE static inline __attribute__((always_inline))

static inline bool is_power_of_two(uint32_t value)
{
    return (value & (value - 1)) == 0;
}

static inline bool is_plain(const hora_reduce_t *how)
{
    return how->prescale == 1.0 && how->divisor == 1 && how->postscale == 1.0;
}

/* A vector anywhere in memory. */
typedef vector_t loose_vector_t __attribute__((aligned(1), may_alias));

ALWAYS_INLINE void load_f32(const float *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        v[k] = ((const loose_vector_t *)p)[k];
    }
}

ALWAYS_INLINE void store_f32(float *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        ((loose_vector_t *)p)[k] = v[k];
    }
}

/* memcpy of one chunk; `bytes` is a constant, and memcpy itself would be called as a function. */
ALWAYS_INLINE void copy_chunk(void *to, const void *from, size_t bytes)
{
    for (size_t k = 0; k < bytes / sizeof(vector_t); k++) {
        ((loose_vector_t *)to)[k] = ((const loose_vector_t *)from)[k];
    }
}

/* By a power of two, a multiplication gives the same bits sooner. */
ALWAYS_INLINE void chunk_finish(vector_t *v, size_t vectors, const hora_reduce_t *how)
{
    float divisor = (float)how->divisor;
    float postscale = (float)how->postscale;
    if (is_power_of_two(how->divisor)) {
        for (size_t k = 0; k < vectors; k++) {
            v[k] = v[k] * (1.0f / divisor) * postscale;
        }
    } else {
        for (size_t k = 0; k < vectors; k++) {
            v[k] = v[k] / divisor * postscale;
        }
    }
}

/* The push of two ranks, a and b into x and y, and a turn (or NULL), as far as whole vectors go; returns how
 * far. A vector at a time: a line that another core has changed is then stored to as soon as it is here, which
 * was up to 25 % faster than a chunk at a time. */
ALWAYS_INLINE size_t sum_two_f32(const hora_reduce_t *how, float *x, float *y, const float *a,
                                 const float *b, size_t count, bool scaled,
                                 const hora_turn_t *turn)
{
    float  prescale = (float)how->prescale;
    float *out = turn != NULL ? turn->out : NULL, *slot = turn != NULL ? turn->slot : NULL;
    const float *in = turn != NULL ? turn->in : NULL;
    size_t whole = count - count % (sizeof(vector_t) / sizeof(float));
    for (size_t i = 0; i < whole; i += sizeof(vector_t) / sizeof(float)) {
        vector_t v = *(const loose_vector_t *)(a + i);
        vector_t w = *(const loose_vector_t *)(b + i);
        if (turn != NULL) {
            vector_t s = *(const loose_vector_t *)(slot + i);
            vector_t t = *(const loose_vector_t *)(in + i);
            *(loose_vector_t *)(out + i) = s;
            *(loose_vector_t *)(slot + i) = t;
        }
        if (scaled) {
            v = v * prescale;
            w = w * prescale;
        }
        v = v + w;
        if (scaled) {
            chunk_finish(&v, 1, how);
        }
        v = vector_canonical(v);
        *(loose_vector_t *)(x + i) = v;
        *(loose_vector_t *)(y + i) = v;
    }
    return whole;
}

/* The first `length` elements at p; the others are zero. */
#define DEFINE_PARTIAL(S, T)                                                                      \
    ALWAYS_INLINE void load_some_##S(const T *p, size_t length, vector_t *v)                      \
    {                                                                                             \
        if (length == CHUNK) {                                                                    \
            load_##S(p, v);                                                                       \
        } else {                                                                                  \
            T padded[CHUNK] = {0};                                                                \
            memcpy(padded, p, length * sizeof(T));                                                \
            load_##S(padded, v);                                                                  \
        }                                                                                         \
    }                                                                                             \
    ALWAYS_INLINE void store_some_##S(T *p, size_t length, const vector_t *v)                     \
    {                                                                                             \
        if (length == CHUNK) {                                                                    \
            store_##S(p, v);                                                                      \
        } else {                                                                                  \
            T padded[CHUNK];                                                                      \
            store_##S(padded, v);                                                                 \
            memcpy(p, padded, length * sizeof(T));                                                \
        }                                                                                         \
    }

/* One chunk, from begin on. length is constant in the main loop, and `scaled`, whether there is
 * more to do than to add, is constant everywhere: so neither costs a branch there. */
#define DEFINE_SUM(S, T)                                                                          \
    DEFINE_PARTIAL(S, T)                                                                          \
    ALWAYS_INLINE void sum_chunk_##S(const hora_reduce_t *how, void *const *dst, int ndst,        \
                                     const void *const *src, int nsrc, size_t begin,              \
                                     size_t length, bool scaled)                                  \
    {                                                                                             \
        vector_t sum[VECTORS];                                                                    \
        vector_t v[VECTORS];                                                                      \
        float    prescale = (float)how->prescale;                                                 \
        load_some_##S((const T *)src[0] + begin, length, sum);                                    \
        for (size_t k = 0; scaled && k < VECTORS; k++) {                                          \
            sum[k] = sum[k] * prescale;                                                           \
        }                                                                                         \
        for (int s = 1; s < nsrc; s++) {                                                          \
            load_some_##S((const T *)src[s] + begin, length, v);                                  \
            for (size_t k = 0; k < VECTORS; k++) {                                                \
                if (scaled) {                                                                     \
                    v[k] = v[k] * prescale;                                                       \
                }                                                                                 \
                sum[k] = sum[k] + v[k];                                                           \
            }                                                                                     \
        }                                                                                         \
        if (scaled) {                                                                             \
            chunk_finish(sum, VECTORS, how);                                                      \
        }                                                                                         \
        for (size_t k = 0; k < VECTORS; k++) {                                                    \
            sum[k] = vector_canonical(sum[k]);                                                    \
        }                                                                                         \
        T *first = (T *)dst[0] + begin;                                                           \
        store_some_##S(first, length, sum);                                                       \
        for (int d = 1; d < ndst; d++) {                                                          \
            if (length == CHUNK) {                                                                \
                copy_chunk((T *)dst[d] + begin, first, CHUNK * sizeof(T));                        \
            } else {                                                                              \
                memcpy((T *)dst[d] + begin, first, length * sizeof(T));                           \
            }                                                                                     \
        }                                                                                         \
    }                                                                                             \
    ALWAYS_INLINE void sum_all_##S(const hora_reduce_t *how, void *const *dst, int ndst,          \
                                   const void *const *src, int nsrc, size_t count, bool scaled)   \
    {                                                                                             \
        size_t whole = count - count % CHUNK;                                                     \
        for (size_t begin = 0; begin < whole; begin += CHUNK) {                                   \
            sum_chunk_##S(how, dst, ndst, src, nsrc, begin, CHUNK, scaled);                       \
        }                                                                                         \
        if (whole < count) {                                                                      \
            sum_chunk_##S(how, dst, ndst, src, nsrc, whole, count - whole, scaled);               \
        }                                                                                         \
    }                                                                                             \
    static void reduce_sum_##S(const hora_reduce_t *how, void *const *dst, int ndst,              \
                               const void *const *src, int nsrc, size_t count)                    \
    {                                                                                             \
        if (is_plain(how)) {                                                                      \
            sum_all_##S(how, dst, ndst, src, nsrc, count, false);                                 \
        } else {                                                                                  \
            sum_all_##S(how, dst, ndst, src, nsrc, count, true);                                  \
        }                                                                                         \
    }

DEFINE_SUM(f16, uint16_t)
DEFINE_SUM(bf16, uint16_t)
DEFINE_SUM(f32, float)

/* Two sources and two destinations go the quick way, and what is left of them the general one. */
static void reduce_f32(const hora_reduce_t *how, void *const *dst, int ndst, const void *const *src,
                    int nsrc, size_t count)
{
    size_t done;
    if (nsrc != 2 || ndst != 2) {
        reduce_sum_f32(how, dst, ndst, src, nsrc, count);
        return;
    }
    done = is_plain(how) ? sum_two_f32(how, dst[0], dst[1], src[0], src[1], count, false, NULL)
                         : sum_two_f32(how, dst[0], dst[1], src[0], src[1], count, true, NULL);
    if (done < count) {
        const void *in[2] = {(const float *)src[0] + done, (const float *)src[1] + done};
        void       *out[2] = {(float *)dst[0] + done, (float *)dst[1] + done};
        reduce_sum_f32(how, out, 2, in, 2, count - done);
    }
}

static void turn_f32(const hora_reduce_t *how, void *const *dst, const void *const *src,
                     const hora_turn_t *turn, size_t count)
{
    size_t done, left;
    done = is_plain(how) ? sum_two_f32(how, dst[0], dst[1], src[0], src[1], count, false, turn)
                         : sum_two_f32(how, dst[0], dst[1], src[0], src[1], count, true, turn);
    left = (count - done) * sizeof(float);
    if (left > 0) {
        const void *in[2] = {(const float *)src[0] + done, (const float *)src[1] + done};
        void       *out[2] = {(float *)dst[0] + done, (float *)dst[1] + done};
        reduce_sum_f32(how, out, 2, in, 2, count - done);
        memcpy((float *)turn->out + done, (const float *)turn->slot + done, left);
        memcpy((float *)turn->slot + done, (const float *)turn->in + done, left);
    }
}

#endif
