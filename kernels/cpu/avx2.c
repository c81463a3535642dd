/*
 * The loops for AVX2 with F16C, eight half elements at a time; any thread, on machines that have
 * both (dispatch.c asks). Compiled with -mavx2 -mf16c: nothing here may be called before that.
 */
#include <immintrin.h>

#include "half.h"

#define LANES       8
#define LOOPS_NAME  "avx2"
#define LOOPS_TABLE hora_isa_avx2

typedef __m256 lanes_t;

static inline lanes_t lanes_load_f16(const uint16_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}

static inline lanes_t lanes_load_bf16(const uint16_t *p)
{
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

static inline void lanes_store_f16(uint16_t *p, lanes_t v)
{
    __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128((__m128i *)p, half);
}

static inline void lanes_store_bf16(uint16_t *p, lanes_t v)
{
    __m256i bits = _mm256_castps_si256(v);
    __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff));
    __m256i rounded = _mm256_add_epi32(bits, up);
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    __m256i half = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    __m128i low = _mm256_castsi256_si128(half);
    __m128i high = _mm256_extracti128_si256(half, 1);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi32(low, high));
}

static inline lanes_t lanes_canonical(lanes_t v)
{
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(v, nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
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
