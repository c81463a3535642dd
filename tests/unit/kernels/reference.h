/*
 * What the kernel tests compare with: half types by way of exact arithmetic in double, and data
 * with every kind of value. Written without a look at the kernels' bit tricks.
 */
#ifndef HORA_TESTS_KERNELS_REFERENCE_H
#define HORA_TESTS_KERNELS_REFERENCE_H

#include <hora/hora.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* A binary float format with `fraction` explicit bits and the exponents of its normal numbers. */
typedef struct format {
    int fraction;
    int exponent_min; /* of 2^e in the smallest normal number */
    int exponent_max;
} format_t;

static const format_t format_f16 = {10, -14, 15};
static const format_t format_bf16 = {7, -126, 127};

static inline uint16_t exponent_field(const format_t *format, int exponent)
{
    return (uint16_t)((exponent - format->exponent_min + 1) << format->fraction);
}

/* float8, with sign, exponent and fraction as their names say. e4m3 has no infinity: its greatest
 * exponent has numbers, but for the last one, which is NaN; what is beyond 448 becomes that. */
static const format_t format_e4m3 = {3, -6, 8};
static const format_t format_e5m2 = {2, -14, 15};

static inline double eighth_decode(const format_t *format, uint8_t x)
{
    int    field = (x & 0x7f) >> format->fraction, fraction = (x & 0x7f) & ((1 << format->fraction) - 1);
    double sign = x & 0x80 ? -1.0 : 1.0;
    if ((x & 0x7f) == 0x7f || (format->fraction == 2 && field == 31 && fraction != 0)) {
        return (double)NAN;
    }
    if (format->fraction == 2 && field == 31) {
        return sign * INFINITY;
    }
    return sign * (field == 0 ? ldexp(fraction, format->exponent_min - format->fraction)
                              : ldexp(fraction + (1 << format->fraction),
                                      field - 1 + format->exponent_min - format->fraction));
}

/* The nearest of all 256 values, the even one of two; by trying them. */
static inline uint8_t eighth_encode(const format_t *format, double value)
{
    static double values[2][128];
    double       *of = values[format->fraction == 3];
    uint8_t       sign = signbit(value) ? 0x80 : 0, best = 0;
    double        least = INFINITY;
    if (isnan(value)) {
        return 0x7f;
    }
    if (format->fraction == 3 ? fabs(value) > 448.0 : fabs(value) >= 61440.0) {
        return (uint8_t)(sign | (format->fraction == 3 ? 0x7e : 0x7c));
    }
    for (int x = 0; of[1] == 0.0 && x < 128; x++) {
        of[127 - x] = eighth_decode(format, (uint8_t)(127 - x));
    }
    for (int x = 0; x < (format->fraction == 3 ? 0x7f : 0x7c); x++) {
        double distance = fabs(of[x] - fabs(value));
        if (distance < least || (distance == least && x % 2 == 0)) {
            least = distance;
            best = (uint8_t)x;
        }
    }
    return sign | best;
}

/* Nearest, ties to even. A NaN becomes the quiet NaN without sign or payload. */
static inline uint16_t half_encode(const format_t *format, double value)
{
    uint16_t infinity = exponent_field(format, format->exponent_max + 1);
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    if (isnan(value)) {
        return (uint16_t)(infinity | 1u << (format->fraction - 1));
    }
    if (isinf(value) || value == 0.0) {
        return value == 0.0 ? sign : infinity | sign;
    }
    int exponent;
    frexp(value, &exponent);
    exponent = exponent - 1 < format->exponent_min ? format->exponent_min : exponent - 1;
    double units = nearbyint(ldexp(fabs(value), format->fraction - exponent));
    if (ldexp(units, exponent - format->fraction) >= ldexp(1.0, format->exponent_max + 1)) {
        return infinity | sign;
    }
    /* Below 2^fraction units: a subnormal. Rounding up to 2^(fraction+1) runs into the exponent. */
    int field = exponent_field(format, exponent) - (1 << format->fraction) + (int)units;
    return (uint16_t)(field | sign);
}

static inline double half_decode(const format_t *format, uint16_t half)
{
    int    magnitude = half & 0x7fff;
    int    field = magnitude >> format->fraction;
    int    fraction = magnitude & ((1 << format->fraction) - 1);
    double sign = half & 0x8000 ? -1.0 : 1.0;
    if (field == exponent_field(format, format->exponent_max + 1) >> format->fraction) {
        return fraction != 0 ? (double)NAN : sign * INFINITY;
    }
    int    hidden = field == 0 ? 0 : 1 << format->fraction;
    int    exponent = (field == 0 ? 1 : field) - 1 + format->exponent_min - format->fraction;
    return sign * ldexp(hidden + fraction, exponent);
}

static inline float f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static inline uint32_t f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* The instruction sets to try; those that the machine lacks are left out by the callers. */
static const char *const isa_names[] = {"portable", "neon", "avx2", "avx512"};
#define ISA_COUNT (sizeof(isa_names) / sizeof(isa_names[0]))

static const size_t element_sizes[HORA_DTYPE_COUNT] = {1, 1, 2, 4, 8, 1, 2, 4,
                                                       8, 2, 2, 4, 8, 1, 1};
static inline bool supported(hora_dtype_t dtype, hora_op_t op)
{
    return dtype >= HORA_FLOAT8_E4M3 ? op == HORA_SUM || op == HORA_MIN || op == HORA_MAX
                                     : dtype < HORA_FLOAT16 || op < HORA_BAND;
}

static const char *const type_names[HORA_DTYPE_COUNT] = {
    "bool",   "int8",   "int16",   "int32",    "int64",   "uint8",  "uint16",
    "uint32", "uint64", "float16", "bfloat16", "float32", "float64",
    "float8_e4m3", "float8_e5m2"};

#endif
