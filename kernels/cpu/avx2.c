/*
 * The loops for AVX2 with F16C; any thread, on machines that have both (dispatch.c asks). Compiled
 * with -mavx2 -mf16c: nothing here may run before that.
 */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define LOOPS_NAME  "avx2"
#define LOOPS_TABLE hora_isa_avx2
#define CHUNK       32 /* elements, */
#define VECTORS     4  /* in as many vectors */

typedef __m256 vector_t;

static inline vector_t vector_canonical(vector_t v)
{
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(v, nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
}

static inline void load_f16(const uint16_t *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        v[k] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8 * k)));
    }
}

/* Stores whole vectors: copy_chunk loads them again, and two halves would not be forwarded. */
static inline void store_f16(uint16_t *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        __m128i low = _mm256_cvtps_ph(v[k], _MM_FROUND_TO_NEAREST_INT);
        __m128i high = _mm256_cvtps_ph(v[k + 1], _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256((__m256i *)(p + 8 * k), _mm256_set_m128i(high, low));
    }
}

/* Sixteen elements become a vector of the even ones and one of the odd ones: a float32 holds a
 * bfloat16 in its upper half, so this takes no shuffle, neither here nor in the store. */
static inline void load_bf16(const uint16_t *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        __m256i both = _mm256_loadu_si256((const __m256i *)(p + 8 * k));
        v[k] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
        v[k + 1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(~0xffff)));
    }
}

/* The upper half of each element is v rounded to nearest even; the canonical NaN stays itself. */
static inline __m256i round_bf16(vector_t v)
{
    __m256i bits = _mm256_castps_si256(v);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
}

static inline void store_bf16(uint16_t *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        __m256i even = _mm256_srli_epi32(round_bf16(v[k]), 16);
        __m256i both = _mm256_blend_epi16(even, round_bf16(v[k + 1]), 0xaa);
        _mm256_storeu_si256((__m256i *)(p + 8 * k), both);
    }
}

#include "sums.h"
#include "loops.h"
