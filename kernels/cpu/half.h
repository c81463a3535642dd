/*
 * float16 and bfloat16 to float32 and back, in integer arithmetic; any thread.
 *
 * Branch-free, so that loops over them vectorise. They give the bits of the hardware conversions
 * (F16C, FCVT): nearest even, subnormals kept, NaN made quiet with its upper payload bits kept.
 */
#ifndef HORA_KERNELS_CPU_HALF_H
#define HORA_KERNELS_CPU_HALF_H

#include <stdint.h>
#include <string.h>

#ifndef HORA_INLINE /* kernels/cuda compiles these for the device as well */
#define HORA_INLINE static inline
#endif

HORA_INLINE uint32_t hora_f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

HORA_INLINE float hora_f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

HORA_INLINE uint64_t hora_f64_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

HORA_INLINE double hora_f64_from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* Appends zero bits; the only conversion that leaves a signalling NaN as it is. */
HORA_INLINE float hora_bf16_to_f32(uint16_t half)
{
    return hora_f32_from_bits((uint32_t)half << 16);
}

HORA_INLINE uint16_t hora_bf16_from_f32(float value)
{
    uint32_t bits = hora_f32_bits(value);
    uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    uint32_t quiet = bits | 0x00400000u;
    uint32_t kept = (bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded;
    return (uint16_t)(kept >> 16);
}

/* The bits of a float32 for a magnitude of a narrower format that is shifted to where float32 has its
 * fraction; `bias`: by how much its exponents are less. Infinities and NaN are the caller's. */
HORA_INLINE uint32_t hora_widen_magnitude(uint32_t magnitude, uint32_t bias)
{
    const uint32_t first_normal = (bias + 1) << 23;
    /* A subnormal is put below the leading one of the first normal, which the subtraction takes off. */
    float    lifted = hora_f32_from_bits(magnitude + first_normal);
    uint32_t subnormal = hora_f32_bits(lifted - hora_f32_from_bits(first_normal));
    return magnitude < 0x00800000u ? subnormal : magnitude + (bias << 23);
}

/* A float32's magnitude in a narrower format, to nearest even; `bits`: by how much its fraction is
 * shorter. What is too large for it, and NaN, are the caller's. */
HORA_INLINE uint32_t hora_narrow_magnitude(uint32_t magnitude, uint32_t bias, uint32_t bits)
{
    /* Added to this, a subnormal is rounded: the sum's last bit is worth as much as the format's. */
    const uint32_t magic = (bias + 1 + bits) << 23;
    const uint32_t below_half = (1u << (bits - 1)) - 1;
    float          sum = hora_f32_from_bits(magnitude) + hora_f32_from_bits(magic);
    uint32_t       subnormal = hora_f32_bits(sum) - magic;
    uint32_t       odd = (magnitude >> bits) & 1u;
    uint32_t       normal = (magnitude - (bias << 23) + below_half + odd) >> bits;
    return magnitude < (bias + 1) << 23 ? subnormal : normal;
}

HORA_INLINE float hora_f16_to_f32(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t magnitude = (uint32_t)(half & 0x7fffu) << 13;
    uint32_t special = magnitude | 0x7f800000u | (magnitude > 0x0f800000u ? 0x00400000u : 0);
    uint32_t bits = hora_widen_magnitude(magnitude, 112);
    bits = magnitude >= 0x0f800000u ? special : bits;
    return hora_f32_from_bits(bits | sign);
}

HORA_INLINE uint16_t hora_f16_from_f32(float value)
{
    uint32_t bits = hora_f32_bits(value);
    uint32_t sign = (bits >> 16) & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t nan = 0x7e00u | ((magnitude >> 13) & 0x03ffu);
    uint32_t half = hora_narrow_magnitude(magnitude, 112, 13);
    half = magnitude >= (143u << 23) ? 0x7c00u : half;
    half = magnitude > 0x7f800000u ? nan : half;
    return (uint16_t)(half | sign);
}

/* value in float32, rounded to odd. */
HORA_INLINE float hora_f32_from_f64_odd(double value)
{
    float    nearest = (float)value;
    double   back = (double)nearest;
    uint32_t bits = hora_f32_bits(nearest);
    uint64_t back_magnitude = hora_f64_bits(back) & 0x7fffffffffffffffu;
    uint64_t magnitude = hora_f64_bits(value) & 0x7fffffffffffffffu;
    uint32_t inexact = back != value && value == value;
    uint32_t too_far = inexact && back_magnitude > magnitude;
    return hora_f32_from_bits((bits - too_far) | inexact);
}

#endif
