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
#include "turn.h"

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

/* memcpy line by line; far: what another core has written, fetched ahead. */
static void copy_lines(void *dst, const void *src, size_t bytes, bool far)
{
    char       *to = dst;
    const char *from = src;
    size_t      whole = bytes - bytes % HORA_LINE, fetching = 0, i = 0;
    if (far) {
        fetching = bytes > HORA_AHEAD ? (bytes - HORA_AHEAD) / HORA_LINE * HORA_LINE : 0;
        hora_fetch_first(from, bytes);
    }
    for (; i < fetching; i += HORA_LINE) {
        hora_fetch(from + i + HORA_AHEAD, 1);
        copy_chunk(to + i, from + i, HORA_LINE);
    }
    for (; i < whole; i += HORA_LINE) {
        copy_chunk(to + i, from + i, HORA_LINE);
    }
    if (i < bytes) {
        memcpy(to + i, from + i, bytes - i);
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

/* The push of two ranks, a and b into x and y (or NULL), and copies that go along, where there is a
 * slot: out[i] = slot[i], slot[i] = in[i]. */
typedef struct two_f32 {
    const float *a, *b;
    float       *x, *y;
    const float *far; /* a or b, or NULL */
    float       *out, *slot;
    const float *in;
} two_f32_t;

/* A vector, from i on. A vector at a time: a line that another core has changed is then stored to as
 * soon as it is here, which was up to 25 % faster than a chunk at a time. */
ALWAYS_INLINE void sum_two_vector(const hora_reduce_t *how, const two_f32_t *two, size_t i,
                                  bool scaled)
{
    float    prescale = (float)how->prescale;
    vector_t v = *(const loose_vector_t *)(two->a + i);
    vector_t w = *(const loose_vector_t *)(two->b + i);
    if (two->slot != NULL) {
        vector_t s = *(const loose_vector_t *)(two->slot + i);
        vector_t t = *(const loose_vector_t *)(two->in + i);
        *(loose_vector_t *)(two->out + i) = s;
        *(loose_vector_t *)(two->slot + i) = t;
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
    *(loose_vector_t *)(two->x + i) = v;
    if (two->y != NULL) {
        *(loose_vector_t *)(two->y + i) = v;
    }
}

/* Lines from begin to end, where `ahead`, fetching others. */
ALWAYS_INLINE void sum_two_lines(const hora_reduce_t *how, const two_f32_t *two, size_t begin,
                                 size_t end, bool scaled, bool ahead)
{
    const size_t line = HORA_LINE / sizeof(float), vector = sizeof(vector_t) / sizeof(float);
    for (size_t i = begin; i < end; i += line) {
        if (ahead) {
            hora_fetch((const char *)(two->far + i) + HORA_AHEAD, 1);
        }
        for (size_t k = 0; k < line; k += vector) {
            sum_two_vector(how, two, i + k, scaled);
        }
    }
}

/* As far as whole lines go; returns how far. */
ALWAYS_INLINE size_t sum_two_f32(const hora_reduce_t *how, const two_f32_t *two, size_t count,
                                 bool scaled)
{
    const size_t line = HORA_LINE / sizeof(float), ahead = HORA_AHEAD / sizeof(float);
    size_t       whole = count - count % line, fetching = 0;
    if (two->far != NULL) {
        fetching = whole > ahead ? whole - ahead : 0;
        hora_fetch_first(two->far, count * sizeof(float));
        sum_two_lines(how, two, 0, fetching, scaled, true);
    }
    sum_two_lines(how, two, fetching, whole, scaled, false);
    return whole;
}

ALWAYS_INLINE size_t sum_two_all(const hora_reduce_t *how, const two_f32_t *two, size_t count)
{
    const hora_reduce_t kept = *how; /* that no store here can change */
    return is_plain(how) ? sum_two_f32(&kept, two, count, false)
                         : sum_two_f32(&kept, two, count, true);
}

/* Element i of n vectors, and of as many as fit into a vector_t, summed into all of dst. */
ALWAYS_INLINE void sum_vector_f32(const hora_reduce_t *how, void *const *dst,
                                  const void *const *src, int n, size_t i, bool scaled)
{
    float    prescale = (float)how->prescale;
    vector_t v = *(const loose_vector_t *)((const float *)src[0] + i);
    if (scaled) {
        v = v * prescale;
    }
    for (int s = 1; s < n; s++) {
        vector_t w = *(const loose_vector_t *)((const float *)src[s] + i);
        if (scaled) {
            w = w * prescale;
        }
        v = v + w;
    }
    if (scaled) {
        chunk_finish(&v, 1, how);
    }
    v = vector_canonical(v);
    for (int d = 0; d < n; d++) {
        *(loose_vector_t *)((float *)dst[d] + i) = v;
    }
}

/* For each vector of the sum n - 1 of the turn: of n equal parts, one is summed here and the others
 * are copied. As far as whole vectors of both go; returns how far in the sum, and *at_p in the
 * turn. */
ALWAYS_INLINE size_t sum_and_turn_f32(const hora_reduce_t *how, void *const *dst,
                                      const void *const *src, int n, const hora_turn_t *turn,
                                      size_t count, bool scaled, size_t *at_p)
{
    const size_t step = sizeof(vector_t) / sizeof(float);
    size_t       copies = (turn->count - turn->gap) / step / (size_t)(n - 1);
    size_t       whole = (copies < count / step ? copies : count / step) * step;
    size_t       gap_at = turn->gap > 0 ? turn->gap_at : turn->count, gap = turn->gap, at = 0;
    float       *out = turn->out, *slot = turn->slot;
    const float *in = turn->in;
    for (size_t i = 0; i < whole; i += step) {
        for (int k = 1; k < n; k++, at += step) {
            vector_t s, t;
            at += at == gap_at ? gap : 0;
            s = *(const loose_vector_t *)(slot + at);
            t = *(const loose_vector_t *)(in + at);
            *(loose_vector_t *)(out + at) = s;
            *(loose_vector_t *)(slot + at) = t;
        }
        sum_vector_f32(how, dst, src, n, i, scaled);
    }
    *at_p = at;
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
                                   const void *const *src, int nsrc, size_t count, bool scaled,   \
                                   const T *far)                                                  \
    {                                                                                             \
        const size_t ahead = HORA_AHEAD / sizeof(T);                                              \
        size_t       whole = count - count % CHUNK;                                               \
        if (far != NULL) {                                                                        \
            hora_fetch_first(far, count * sizeof(T));                                             \
        }                                                                                         \
        for (size_t begin = 0; begin < whole; begin += CHUNK) {                                   \
            if (far != NULL && begin + ahead < count) {                                           \
                hora_fetch(far + begin + ahead, CHUNK * sizeof(T));                               \
            }                                                                                     \
            sum_chunk_##S(how, dst, ndst, src, nsrc, begin, CHUNK, scaled);                       \
        }                                                                                         \
        if (whole < count) {                                                                      \
            sum_chunk_##S(how, dst, ndst, src, nsrc, whole, count - whole, scaled);               \
        }                                                                                         \
    }                                                                                             \
    static void reduce_sum_##S(const hora_reduce_t *how, void *const *dst, int ndst,              \
                               const void *const *src, int nsrc, size_t count,                    \
                               const void *far)                                                   \
    {                                                                                             \
        if (is_plain(how)) {                                                                      \
            sum_all_##S(how, dst, ndst, src, nsrc, count, false, far);                            \
        } else {                                                                                  \
            sum_all_##S(how, dst, ndst, src, nsrc, count, true, far);                             \
        }                                                                                         \
    }

DEFINE_SUM(f16, uint16_t)
DEFINE_SUM(bf16, uint16_t)
DEFINE_SUM(f32, float)

/* Of some vectors into others, from element `begin` on. */
static void sum_rest_f32(const hora_reduce_t *how, void *const *dst, int ndst,
                         const void *const *src, int nsrc, size_t begin, size_t count)
{
    for (; begin < count; begin += CHUNK) {
        size_t length = count - begin < CHUNK ? count - begin : CHUNK;
        sum_chunk_f32(how, dst, ndst, src, nsrc, begin, length, !is_plain(how));
    }
}

/* Two sources into one or two destinations go the quick way, and what is left of them the general
 * one. */
static void reduce_f32(const hora_reduce_t *how, void *const *dst, int ndst, const void *const *src,
                       int nsrc, size_t count, const void *far)
{
    size_t done;
    if (nsrc != 2 || ndst > 2) {
        reduce_sum_f32(how, dst, ndst, src, nsrc, count, far);
        return;
    }
    if (ndst == 2) {
        two_f32_t two = {.a = src[0], .b = src[1], .x = dst[0], .y = dst[1], .far = far};
        done = sum_two_all(how, &two, count);
    } else {
        two_f32_t two = {.a = src[0], .b = src[1], .x = dst[0], .far = far};
        done = sum_two_all(how, &two, count);
    }
    sum_rest_f32(how, dst, ndst, src, 2, done, count);
}

/* Two ranks' parts are the halves of a chunk: the copies have a gap before or behind them. */
static void turn_two_f32(const hora_reduce_t *how, void *const *dst, const void *const *src,
                         const hora_turn_t *turn, size_t count)
{
    size_t      skip = turn->gap_at == 0 ? turn->gap : 0, copies = turn->count - turn->gap;
    size_t      both = count < copies ? count : copies, done;
    hora_turn_t one = {.out = (float *)turn->out + skip, .slot = (float *)turn->slot + skip,
                       .in = (const float *)turn->in + skip, .count = copies, .gap_at = copies};
    two_f32_t   two = {.a = src[0], .b = src[1], .x = dst[0], .y = dst[1],
                       .out = one.out, .slot = one.slot, .in = one.in};
    done = sum_two_all(how, &two, both);
    turn_rest(&one, done, sizeof(float));
    sum_rest_f32(how, dst, 2, src, 2, done, count);
}

/* n is constant for the number of ranks that is most frequent where they share cores. */
static void turn_f32(const hora_reduce_t *how, void *const *dst, const void *const *src, int n,
                     const hora_turn_t *turn, size_t count)
{
    bool   plain = is_plain(how);
    size_t done, at;
    if (n == 2 && (turn->gap_at == 0 || turn->gap_at + turn->gap == turn->count)) {
        turn_two_f32(how, dst, src, turn, count);
        return;
    }
    if (n == 4) {
        done = plain ? sum_and_turn_f32(how, dst, src, 4, turn, count, false, &at)
                     : sum_and_turn_f32(how, dst, src, 4, turn, count, true, &at);
    } else {
        done = plain ? sum_and_turn_f32(how, dst, src, n, turn, count, false, &at)
                     : sum_and_turn_f32(how, dst, src, n, turn, count, true, &at);
    }
    turn_rest(turn, at, sizeof(float));
    sum_rest_f32(how, dst, n, src, n, done, count);
}

#endif
