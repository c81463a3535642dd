/*
 * The loops for aarch64, whose baseline has NEON and the float16 conversions; any thread.
 */
#include <arm_neon.h>
#include <stddef.h>
#include <stdint.h>

#define LOOPS_NAME  "neon"
#define LOOPS_TABLE hora_isa_neon
#define CHUNK       16 /* elements, */
#define VECTORS     4  /* in as many vectors */

typedef float32x4_t vector_t;

static inline vector_t vector_canonical(vector_t v)
{
    float32x4_t nan = vreinterpretq_f32_u32(vdupq_n_u32(0x7fc00000u));
    return vbslq_f32(vceqq_f32(v, v), v, nan);
}

static inline void load_f16(const uint16_t *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        v[k] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * k)));
    }
}

/* Stores whole vectors: copy_chunk loads them again, and two halves might not be forwarded. */
static inline void store_f16(uint16_t *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        uint16x4_t low = vreinterpret_u16_f16(vcvt_f16_f32(v[k]));
        uint16x4_t high = vreinterpret_u16_f16(vcvt_f16_f32(v[k + 1]));
        vst1q_u16(p + 4 * k, vcombine_u16(low, high));
    }
}

static inline void load_bf16(const uint16_t *p, vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k++) {
        v[k] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * k), 16));
    }
}

/* v rounded to nearest even; the canonical NaN stays itself. */
static inline uint16x4_t round_bf16(vector_t v)
{
    uint32x4_t bits = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd), 16);
}

static inline void store_bf16(uint16_t *p, const vector_t *v)
{
    for (size_t k = 0; k < VECTORS; k += 2) {
        vst1q_u16(p + 4 * k, vcombine_u16(round_bf16(v[k]), round_bf16(v[k + 1])));
    }
}

#include "sums.h"
#include "loops.h"
