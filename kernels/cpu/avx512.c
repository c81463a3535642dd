/*
 * The loops for AVX-512 (F, BW, VL, DQ) with F16C, sixteen half elements at a time; any thread, on
 * machines that have all of them (dispatch.c asks). Nothing here may be called before that.
 */
#include <immintrin.h>

#include "half.h"

#define LANES       16
#define LOOPS_NAME  "avx512"
#define LOOPS_TABLE hora_isa_avx512

typedef __m512 lanes_t;

static inline lanes_t lanes_load_f16(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

static inline lanes_t lanes_load_bf16(const uint16_t *p)
{
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void lanes_store_f16(uint16_t *p, lanes_t v)
{
    __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((__m256i *)p, half);
}

static inline void lanes_store_bf16(uint16_t *p, lanes_t v)
{
    __m512i   bits = _mm512_castps_si512(v);
    __m512i   last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i   up = _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff));
    __m512i   rounded = _mm512_add_epi32(bits, up);
    __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    __m512i   kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x00400000));
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

static inline lanes_t lanes_canonical(lanes_t v)
{
    __m512 nan = _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000));
    return _mm512_mask_mov_ps(v, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), nan);
}

static inline float one_load_f16(const uint16_t *p)
{
    return _cvtsh_ss(*p);
}

static inline float one_load_bf16(const uint16_t *p)
{
    return hora_bf16_to_f32(*p);
}

static inline void one_store_f16(uint16_t *p, float v)
{
    *p = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

static inline void one_store_bf16(uint16_t *p, float v)
{
    *p = hora_bf16_from_f32(v);
}

#include "loops.h"
