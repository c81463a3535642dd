/*
 * The arithmetic of one element that the CPU's loops and the CUDA kernels share; any thread.
 *
 * HORA_INLINE makes them device functions as well, where it is defined so. Branch-free, so that loops
 * over them vectorise.
 */
#ifndef HORA_KERNELS_CPU_ELEMENT_H
#define HORA_KERNELS_CPU_ELEMENT_H

#include "half.h"

/* Which NaN comes out of an addition depends on how the compiler ordered the operands, and its
 * sign on the machine. So every computed NaN is replaced by one. */
HORA_INLINE float canonical_f32(float x)
{
    return x == x ? x : hora_f32_from_bits(0x7fc00000u);
}

HORA_INLINE double canonical_f64(double x)
{
    return x == x ? x : hora_f64_from_bits(0x7ff8000000000000u);
}

/* The smaller integers are promoted to int, which a product of uint16_t would overflow. */
#define DEFINE_WRAPPING(T, S)                                                                     \
    HORA_INLINE T sum_##S(T a, T b) { return (T)(0u + a + b); }                                   \
    HORA_INLINE T product_##S(T a, T b) { return (T)(1u * a * b); }                               \
    HORA_INLINE T band_##S(T a, T b) { return (T)(a & b); }                                       \
    HORA_INLINE T bor_##S(T a, T b) { return (T)(a | b); }                                        \
    HORA_INLINE T bxor_##S(T a, T b) { return (T)(a ^ b); }
DEFINE_WRAPPING(uint8_t, u8)
DEFINE_WRAPPING(uint16_t, u16)
DEFINE_WRAPPING(uint32_t, u32)
DEFINE_WRAPPING(uint64_t, u64)

#define DEFINE_ORDER(T, S)                                                                        \
    HORA_INLINE T min_##S(T a, T b) { return a < b ? a : b; }                                     \
    HORA_INLINE T max_##S(T a, T b) { return a > b ? a : b; }
DEFINE_ORDER(int8_t, i8)
DEFINE_ORDER(int16_t, i16)
DEFINE_ORDER(int32_t, i32)
DEFINE_ORDER(int64_t, i64)
DEFINE_ORDER(uint8_t, u8)
DEFINE_ORDER(uint16_t, u16)
DEFINE_ORDER(uint32_t, u32)
DEFINE_ORDER(uint64_t, u64)

/* -0 is below +0: equal values differ at most in the sign bit, which "or" sets and "and" clears.
 * The first comparison is false if either is NaN and then keeps b; the last line looks after a. */
#define DEFINE_FLOAT(T, S)                                                                        \
    HORA_INLINE T sum_##S(T a, T b) { return a + b; }                                             \
    HORA_INLINE T product_##S(T a, T b) { return a * b; }                                         \
    HORA_INLINE T min_##S(T a, T b)                                                               \
    {                                                                                             \
        T both = hora_##S##_from_bits(hora_##S##_bits(a) | hora_##S##_bits(b));                   \
        T less = a < b ? a : b;                                                                   \
        less = a == b ? both : less;                                                              \
        return a == a ? less : a;                                                                 \
    }                                                                                             \
    HORA_INLINE T max_##S(T a, T b)                                                               \
    {                                                                                             \
        T both = hora_##S##_from_bits(hora_##S##_bits(a) & hora_##S##_bits(b));                   \
        T more = a > b ? a : b;                                                                   \
        more = a == b ? both : more;                                                              \
        return a == a ? more : a;                                                                 \
    }
DEFINE_FLOAT(float, f32)
DEFINE_FLOAT(double, f64)

HORA_INLINE uint8_t or_bool(uint8_t a, uint8_t b) { return (a | b) != 0; }
HORA_INLINE uint8_t and_bool(uint8_t a, uint8_t b) { return (a != 0) & (b != 0); }
HORA_INLINE uint8_t xor_bool(uint8_t a, uint8_t b) { return (a != 0) ^ (b != 0); }

/* Up to 32 bits the limits are exact in double. */
#define DEFINE_SATURATE(S, T, LOW, HIGH)                                                          \
    HORA_INLINE T saturate_##S(double x)                                                          \
    {                                                                                             \
        x = x == x ? x : 0.0;                                                                     \
        x = x < (double)(LOW) ? (double)(LOW) : x;                                                \
        x = x > (double)(HIGH) ? (double)(HIGH) : x;                                              \
        return (T)x;                                                                              \
    }
DEFINE_SATURATE(i8, int8_t, INT8_MIN, INT8_MAX)
DEFINE_SATURATE(i16, int16_t, INT16_MIN, INT16_MAX)
DEFINE_SATURATE(i32, int32_t, INT32_MIN, INT32_MAX)
DEFINE_SATURATE(u8, uint8_t, 0, UINT8_MAX)
DEFINE_SATURATE(u16, uint16_t, 0, UINT16_MAX)
DEFINE_SATURATE(u32, uint32_t, 0, UINT32_MAX)

HORA_INLINE int64_t saturate_i64(double x)
{
    int64_t inside = (int64_t)(x >= -0x1p63 && x < 0x1p63 ? x : 0.0);
    int64_t above = x >= 0x1p63 ? INT64_MAX : inside;
    return x < -0x1p63 ? INT64_MIN : above;
}

HORA_INLINE uint64_t saturate_u64(double x)
{
    uint64_t inside = (uint64_t)(x >= 0.0 && x < 0x1p64 ? x : 0.0);
    return x >= 0x1p64 ? UINT64_MAX : inside;
}

#endif
