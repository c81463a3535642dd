/*
 * The loops for AVX-512 (F, BW, VL, DQ); any thread, on machines that have all of them (dispatch.c
 * asks). Compiled with those flags: nothing here may run before that.
 */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

#define LOOPS_NAME  "avx512"
#define LOOPS_TABLE hora_isa_avx512
#define CHUNK       64 /* elements, */
#define VECTORS     4  /* in as many vectors */

typedef __m512 vector_t;

static inline vector_t vector_canonical(vector_t v)
{
    __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan);
}

static inline void load_f16(const uint16_t *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        v[k] = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p + 16 * k)));
    }
}

static inline void store_f16(uint16_t *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        __m256i half = _mm512_cvtps_ph(v[k], _MM_FROUND_TO_NEAREST_INT);
        _mm256_storeu_si256((__m256i *)(p + 16 * k), half);
    }
}

/* Thirty-two elements become a vector of the even ones and one of the odd ones: a float32 holds a
 * bfloat16 in its upper half, so this takes no shuffle, neither here nor in the store. */
static inline void load_bf16(const uint16_t *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        __m512i both = _mm512_loadu_si512(p + 16 * k);
        v[k] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        v[k + 1] = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(~0xffff)));
    }
}

/* The upper half of each element is v rounded to nearest even; the canonical NaN stays itself. */
static inline __m512i round_bf16(vector_t v)
{
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
}

static inline void store_bf16(uint16_t *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        __m512i even = _mm512_srli_epi32(round_bf16(v[k]), 16);
        __m512i both = _mm512_mask_blend_epi16(0xaaaaaaaau, even, round_bf16(v[k + 1]));
        _mm512_storeu_si512(p + 16 * k, both);
    }
}

#include "sums.h"
#include "loops.h"
