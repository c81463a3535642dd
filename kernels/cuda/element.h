/*
 * The arithmetic of one element, for the device and, from the same source, for the host; any thread.
 *
 * For each type S: its memory type T and the type A in which it is accumulated (float for the
 * halves), and load, combine, scale, divide and store. hora_element_reduce_S is the whole chain of
 * kernels/cpu/kernels.h (prescale, combine in order, divide, postscale, round once), with the same
 * bits. The kernels in reduce.cuh are made of these parts; the unit test runs them on the host beside
 * the CPU kernels. Must be compiled without contraction to fused multiply-add.
 */
#ifndef HORA_KERNELS_CUDA_ELEMENT_H
#define HORA_KERNELS_CUDA_ELEMENT_H

#if defined(__CUDACC__)
#define HORA_INLINE static __host__ __device__ __forceinline__
#else
#define HORA_INLINE static inline
#endif

#include "../cpu/element.h"
#include "../cpu/float8.h"

#include <hora/hora.h>

/* The steps beside the combination; 1, 1.0 and 1.0 leave theirs out. */
typedef struct hora_element_how {
    double   prescale;
    double   postscale;
    uint32_t divisor;
} hora_element_how_t;

/* ---- Half types ------------------------------------------------------------------------------ */

/* The device has instructions, whose NaN differs from the CPU kernels' (a NaN is replaced below). */
#if defined(__CUDA_ARCH__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>

HORA_INLINE float hora_element_load_f16(uint16_t x)
{
    return __half2float(__ushort_as_half(x));
}

HORA_INLINE uint16_t hora_element_store_f16(float x)
{
    return x == x ? __half_as_ushort(__float2half_rn(x)) : (uint16_t)0x7e00u;
}

HORA_INLINE uint16_t hora_element_store_bf16(float x)
{
    return x == x ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : (uint16_t)0x7fc0u;
}
#else
HORA_INLINE float hora_element_load_f16(uint16_t x)
{
    return hora_f16_to_f32(x);
}

HORA_INLINE uint16_t hora_element_store_f16(float x)
{
    return x == x ? hora_f16_from_f32(x) : (uint16_t)0x7e00u;
}

HORA_INLINE uint16_t hora_element_store_bf16(float x)
{
    return x == x ? hora_bf16_from_f32(x) : (uint16_t)0x7fc0u;
}
#endif

HORA_INLINE float hora_element_load_bf16(uint16_t x)
{
    return hora_bf16_to_f32(x);
}

/* The CPU's arithmetic: no instructions that all devices have. A computed NaN has no sign. */
HORA_INLINE float hora_element_load_e4m3(uint8_t x)
{
    return hora_e4m3_to_f32(x);
}

HORA_INLINE uint8_t hora_element_store_e4m3(float x)
{
    return hora_e4m3_from_f32(canonical_f32(x));
}

HORA_INLINE float hora_element_load_e5m2(uint8_t x)
{
    return hora_e5m2_to_f32(x);
}

HORA_INLINE uint8_t hora_element_store_e5m2(float x)
{
    return hora_e5m2_from_f32(canonical_f32(x));
}

/* ---- Floating point -------------------------------------------------------------------------- */

#define HORA_ELEMENT_FLOAT(S, T)                                                                  \
    HORA_INLINE T hora_element_combine_##S(hora_op_t op, T a, T b)                                \
    {                                                                                             \
        switch (op) {                                                                             \
        case HORA_PRODUCT: return product_##S(a, b);                                              \
        case HORA_MIN: return min_##S(a, b);                                                      \
        case HORA_MAX: return max_##S(a, b);                                                      \
        default: return sum_##S(a, b);                                                            \
        }                                                                                         \
    }                                                                                             \
    HORA_INLINE T hora_element_scale_##S(T a, double scale)                                       \
    {                                                                                             \
        return a * (T)scale;                                                                      \
    }                                                                                             \
    HORA_INLINE T hora_element_divide_##S(T a, uint32_t divisor)                                  \
    {                                                                                             \
        return a / (T)divisor;                                                                    \
    }
HORA_ELEMENT_FLOAT(f32, float)
HORA_ELEMENT_FLOAT(f64, double)

/* The halves are float32 between load and store. */
#define HORA_ELEMENT_HALF(S)                                                                      \
    HORA_INLINE float hora_element_combine_##S(hora_op_t op, float a, float b)                    \
    {                                                                                             \
        return hora_element_combine_f32(op, a, b);                                                \
    }                                                                                             \
    HORA_INLINE float hora_element_scale_##S(float a, double scale)                               \
    {                                                                                             \
        return hora_element_scale_f32(a, scale);                                                  \
    }                                                                                             \
    HORA_INLINE float hora_element_divide_##S(float a, uint32_t divisor)                          \
    {                                                                                             \
        return hora_element_divide_f32(a, divisor);                                               \
    }
HORA_ELEMENT_HALF(f16)
HORA_ELEMENT_HALF(bf16)
HORA_ELEMENT_HALF(e4m3)
HORA_ELEMENT_HALF(e5m2)

/* ---- Integers -------------------------------------------------------------------------------- */

/* Sums, products and bits are those of U, unsigned and as wide, so that they wrap. W: signed as T, and
 * wide enough for a uint32_t. */
#define HORA_ELEMENT_INTEGER(S, T, U, W)                                                          \
    HORA_INLINE T hora_element_combine_##S(hora_op_t op, T a, T b)                                \
    {                                                                                             \
        switch (op) {                                                                             \
        case HORA_PRODUCT: return (T)product_##U(a, b);                                           \
        case HORA_MIN: return min_##S(a, b);                                                      \
        case HORA_MAX: return max_##S(a, b);                                                      \
        case HORA_BAND: return (T)band_##U(a, b);                                                 \
        case HORA_BOR: return (T)bor_##U(a, b);                                                   \
        case HORA_BXOR: return (T)bxor_##U(a, b);                                                 \
        default: return (T)sum_##U(a, b);                                                         \
        }                                                                                         \
    }                                                                                             \
    HORA_INLINE T hora_element_scale_##S(T a, double scale)                                       \
    {                                                                                             \
        return saturate_##S((double)a * scale);                                                   \
    }                                                                                             \
    HORA_INLINE T hora_element_divide_##S(T a, uint32_t divisor)                                  \
    {                                                                                             \
        return (T)((W)a / (W)divisor);                                                            \
    }
HORA_ELEMENT_INTEGER(i8, int8_t, u8, int64_t)
HORA_ELEMENT_INTEGER(i16, int16_t, u16, int64_t)
HORA_ELEMENT_INTEGER(i32, int32_t, u32, int64_t)
HORA_ELEMENT_INTEGER(i64, int64_t, u64, int64_t)
HORA_ELEMENT_INTEGER(u8, uint8_t, u8, uint32_t)
HORA_ELEMENT_INTEGER(u16, uint16_t, u16, uint32_t)
HORA_ELEMENT_INTEGER(u32, uint32_t, u32, uint32_t)
HORA_ELEMENT_INTEGER(u64, uint64_t, u64, uint64_t)

/* bool counts no ranks and has no scale. */
HORA_INLINE uint8_t hora_element_combine_bool(hora_op_t op, uint8_t a, uint8_t b)
{
    switch (op) {
    case HORA_PRODUCT:
    case HORA_MIN:
    case HORA_BAND: return and_bool(a, b);
    case HORA_BXOR: return xor_bool(a, b);
    default: return or_bool(a, b);
    }
}

HORA_INLINE uint8_t hora_element_scale_bool(uint8_t a, double scale)
{
    (void)scale;
    return a;
}

HORA_INLINE uint8_t hora_element_divide_bool(uint8_t a, uint32_t divisor)
{
    (void)divisor;
    return a;
}

/* ---- Load and store of all others ------------------------------------------------------------ */

#define HORA_ELEMENT_PLAIN(S, T, CANONICAL)                                                       \
    HORA_INLINE T hora_element_load_##S(T x)                                                      \
    {                                                                                             \
        return x;                                                                                 \
    }                                                                                             \
    HORA_INLINE T hora_element_store_##S(T x)                                                     \
    {                                                                                             \
        return CANONICAL(x);                                                                      \
    }
#define HORA_ELEMENT_SAME(x) (x)
HORA_ELEMENT_PLAIN(bool, uint8_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(i8, int8_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(i16, int16_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(i32, int32_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(i64, int64_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(u8, uint8_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(u16, uint16_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(u32, uint32_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(u64, uint64_t, HORA_ELEMENT_SAME)
HORA_ELEMENT_PLAIN(f32, float, canonical_f32)
HORA_ELEMENT_PLAIN(f64, double, canonical_f64)

/* ---- The whole chain ------------------------------------------------------------------------- */

/* X(S, T, A, dtype) for every type. */
#define HORA_ELEMENT_TYPES(X)                                                                     \
    X(bool, uint8_t, uint8_t, HORA_BOOL)                                                          \
    X(i8, int8_t, int8_t, HORA_INT8)                                                              \
    X(i16, int16_t, int16_t, HORA_INT16)                                                          \
    X(i32, int32_t, int32_t, HORA_INT32)                                                          \
    X(i64, int64_t, int64_t, HORA_INT64)                                                          \
    X(u8, uint8_t, uint8_t, HORA_UINT8)                                                           \
    X(u16, uint16_t, uint16_t, HORA_UINT16)                                                       \
    X(u32, uint32_t, uint32_t, HORA_UINT32)                                                       \
    X(u64, uint64_t, uint64_t, HORA_UINT64)                                                       \
    X(f16, uint16_t, float, HORA_FLOAT16)                                                         \
    X(bf16, uint16_t, float, HORA_BFLOAT16)                                                       \
    X(f32, float, float, HORA_FLOAT32)                                                            \
    X(f64, double, double, HORA_FLOAT64)                                                          \
    X(e4m3, uint8_t, float, HORA_FLOAT8_E4M3)                                                     \
    X(e5m2, uint8_t, float, HORA_FLOAT8_E5M2)

/* n >= 1 values of one element, in order. One value without any scale is a copy instead, which
 * keeps a NaN's bits: the callers see to it. */
#define HORA_ELEMENT_REDUCE(S, T, A, DTYPE)                                                       \
    HORA_INLINE A hora_element_in_##S(T x, const hora_element_how_t *how)                         \
    {                                                                                             \
        A a = hora_element_load_##S(x);                                                           \
        return how->prescale != 1.0 ? hora_element_scale_##S(a, how->prescale) : a;               \
    }                                                                                             \
    HORA_INLINE T hora_element_out_##S(A a, const hora_element_how_t *how)                        \
    {                                                                                             \
        a = how->divisor != 1 ? hora_element_divide_##S(a, how->divisor) : a;                     \
        a = how->postscale != 1.0 ? hora_element_scale_##S(a, how->postscale) : a;                \
        return hora_element_store_##S(a);                                                         \
    }                                                                                             \
    HORA_INLINE T hora_element_reduce_##S(const hora_element_how_t *how, hora_op_t op,            \
                                          const T *values, int n)                                 \
    {                                                                                             \
        A sum = hora_element_in_##S(values[0], how);                                              \
        for (int i = 1; i < n; i++) {                                                             \
            sum = hora_element_combine_##S(op, sum, hora_element_in_##S(values[i], how));         \
        }                                                                                         \
        return hora_element_out_##S(sum, how);                                                    \
    }
HORA_ELEMENT_TYPES(HORA_ELEMENT_REDUCE)

/* ---- Casts between the float types ----------------------------------------------------------- */

/* As hora_kernel_convert: the product in float64 if either type is float64, else in float32, and
 * rounded once. Without a scale a NaN keeps its sign and the payload bits that fit, which the
 * device's instructions do not do: a NaN goes by integers. */
HORA_INLINE double hora_element_f64_from_f32(float x)
{
    uint64_t bits = hora_f32_bits(x);
    uint64_t nan = (bits & 0x80000000u) << 32 | 0x7ff8000000000000u | (bits & 0x003fffffu) << 29;
    return x == x ? (double)x : hora_f64_from_bits(nan);
}

HORA_INLINE uint32_t hora_element_nan_f32(double x)
{
    uint64_t bits = hora_f64_bits(x);
    return (uint32_t)(bits >> 32 & 0x80000000u) | 0x7fc00000u | (uint32_t)(bits >> 29 & 0x003fffffu);
}

HORA_INLINE float hora_element_f32_from_f64(double x)
{
    return x == x ? (float)x : hora_f32_from_bits(hora_element_nan_f32(x));
}

HORA_INLINE float hora_element_odd_from_f64(double x)
{
    return x == x ? hora_f32_from_f64_odd(x) : hora_f32_from_bits(hora_element_nan_f32(x));
}

HORA_INLINE float hora_element_f32_from_f16(uint16_t x)
{
    return (x & 0x7fffu) <= 0x7c00u ? hora_element_load_f16(x) : hora_f16_to_f32(x);
}

HORA_INLINE uint16_t hora_element_f16_from_f32(float x)
{
    return x == x ? hora_element_store_f16(x) : hora_f16_from_f32(x);
}

HORA_INLINE uint16_t hora_element_bf16_from_f32(float x)
{
    return x == x ? hora_element_store_bf16(x) : hora_bf16_from_f32(x);
}

#define HORA_ELEMENT_TO_F64(x)  hora_element_f64_from_f32(x)
#define HORA_ELEMENT_F16_F64(x) hora_element_f64_from_f32(hora_element_f32_from_f16(x))
#define HORA_ELEMENT_B16_F64(x) hora_element_f64_from_f32(hora_bf16_to_f32(x))
#define HORA_ELEMENT_F64_F16(x) hora_element_f16_from_f32(hora_element_odd_from_f64(x))
#define HORA_ELEMENT_F64_B16(x) hora_element_bf16_from_f32(hora_element_odd_from_f64(x))

#define HORA_ELEMENT_CAST(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                 \
    HORA_INLINE TTO hora_element_cast_##FROM##_##TO(TFROM x, double scale)                        \
    {                                                                                             \
        hora_element_##P##_t wide = WIDEN(x);                                                     \
        if (scale != 1.0) {                                                                       \
            wide = canonical_##P(hora_element_scale_##P(wide, scale));                            \
        }                                                                                         \
        return NARROW(wide);                                                                      \
    }
typedef float  hora_element_f32_t;
typedef double hora_element_f64_t;

/* float8 is only scaled. X(FROM, TO, their memory types, the product's type, the way to it, the way from it) */
#define HORA_ELEMENT_CASTS(X)                                                                     \
    X(f16, f16, uint16_t, uint16_t, f32, hora_element_f32_from_f16, hora_element_f16_from_f32)    \
    X(f16, bf16, uint16_t, uint16_t, f32, hora_element_f32_from_f16, hora_element_bf16_from_f32)  \
    X(f16, f32, uint16_t, float, f32, hora_element_f32_from_f16, HORA_ELEMENT_SAME)               \
    X(f16, f64, uint16_t, double, f64, HORA_ELEMENT_F16_F64, HORA_ELEMENT_SAME)                   \
    X(bf16, f16, uint16_t, uint16_t, f32, hora_bf16_to_f32, hora_element_f16_from_f32)            \
    X(bf16, bf16, uint16_t, uint16_t, f32, hora_bf16_to_f32, hora_element_bf16_from_f32)          \
    X(bf16, f32, uint16_t, float, f32, hora_bf16_to_f32, HORA_ELEMENT_SAME)                       \
    X(bf16, f64, uint16_t, double, f64, HORA_ELEMENT_B16_F64, HORA_ELEMENT_SAME)                  \
    X(f32, f16, float, uint16_t, f32, HORA_ELEMENT_SAME, hora_element_f16_from_f32)               \
    X(f32, bf16, float, uint16_t, f32, HORA_ELEMENT_SAME, hora_element_bf16_from_f32)             \
    X(f32, f32, float, float, f32, HORA_ELEMENT_SAME, HORA_ELEMENT_SAME)                          \
    X(f32, f64, float, double, f64, HORA_ELEMENT_TO_F64, HORA_ELEMENT_SAME)                       \
    X(f64, f16, double, uint16_t, f64, HORA_ELEMENT_SAME, HORA_ELEMENT_F64_F16)                   \
    X(f64, bf16, double, uint16_t, f64, HORA_ELEMENT_SAME, HORA_ELEMENT_F64_B16)                  \
    X(f64, f32, double, float, f64, HORA_ELEMENT_SAME, hora_element_f32_from_f64)                 \
    X(f64, f64, double, double, f64, HORA_ELEMENT_SAME, HORA_ELEMENT_SAME)                        \
    X(e4m3, e4m3, uint8_t, uint8_t, f32, hora_e4m3_to_f32, hora_e4m3_from_f32)                    \
    X(e5m2, e5m2, uint8_t, uint8_t, f32, hora_e5m2_to_f32, hora_e5m2_from_f32)
HORA_ELEMENT_CASTS(HORA_ELEMENT_CAST)

#endif
