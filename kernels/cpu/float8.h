/*
 * float8 e4m3 (torch.float8_e4m3fn: no infinity) and e5m2 to float32 and back, in integer arithmetic;
 * any thread. Branch-free, so that loops over them vectorise; HORA_INLINE as in half.h.
 *
 * They give the bits of torch's casts (2.13): nearest even, subnormals kept; what is beyond e4m3's
 * greatest value, 448, becomes that, infinity too; e5m2 has infinities, from 61440 on. A NaN keeps its
 * sign alone.
 */
#ifndef HORA_KERNELS_CPU_FLOAT8_H
#define HORA_KERNELS_CPU_FLOAT8_H

#include "half.h"

HORA_INLINE float hora_e4m3_to_f32(uint8_t x)
{
    uint32_t sign = (uint32_t)(x & 0x80u) << 24;
    uint32_t magnitude = (uint32_t)(x & 0x7fu) << 20;
    uint32_t bits = hora_widen_magnitude(magnitude, 120);
    bits = magnitude == 0x07f00000u ? 0x7fc00000u : bits;
    return hora_f32_from_bits(bits | sign);
}

HORA_INLINE uint8_t hora_e4m3_from_f32(float value)
{
    uint32_t bits = hora_f32_bits(value);
    uint32_t sign = (bits >> 24) & 0x80u;
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t narrow = hora_narrow_magnitude(magnitude, 120, 20);
    narrow = magnitude > 0x43e00000u ? 0x7eu : narrow; /* 448 */
    narrow = magnitude > 0x7f800000u ? 0x7fu : narrow;
    return (uint8_t)(narrow | sign);
}

/* The upper half of a float16. */
HORA_INLINE float hora_e5m2_to_f32(uint8_t x)
{
    return hora_f16_to_f32((uint16_t)(x << 8));
}

HORA_INLINE uint8_t hora_e5m2_from_f32(float value)
{
    uint32_t bits = hora_f32_bits(value);
    uint32_t sign = (bits >> 24) & 0x80u;
    uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t narrow = hora_narrow_magnitude(magnitude, 112, 21);
    narrow = magnitude >= (143u << 23) ? 0x7cu : narrow;
    narrow = magnitude > 0x7f800000u ? 0x7fu : narrow;
    return (uint8_t)(narrow | sign);
}

#endif
