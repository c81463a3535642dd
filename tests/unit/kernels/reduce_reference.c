/*
 * The serial reduction and its data (reduce_reference.h). Any thread.
 */
#include "reduce_reference.h"

#include "reference.h"

static bool is_float(hora_dtype_t dtype)
{
    return dtype >= HORA_FLOAT16;
}

/* ---- Reducing -------------------------------------------------------------------------------- */

typedef __int128 wide_t; /* holds every integer type, and products of two after a wrap */

static wide_t read_integer(const void *p, hora_dtype_t dtype)
{
    uint64_t raw = 0;
    size_t   bits = element_sizes[dtype] * 8;
    memcpy(&raw, p, element_sizes[dtype]);
    bool negative = dtype >= HORA_INT8 && dtype <= HORA_INT64 && (raw >> (bits - 1)) != 0;
    return negative ? (wide_t)raw - ((wide_t)1 << bits) : (wide_t)raw;
}

static wide_t wrap(wide_t value, hora_dtype_t dtype)
{
    uint64_t raw = (uint64_t)value;
    return read_integer(&raw, dtype);
}

static wide_t scale_integer(wide_t value, double scale, hora_dtype_t dtype)
{
    int    bits = (int)element_sizes[dtype] * 8;
    bool   is_signed = dtype <= HORA_INT64;
    wide_t low = is_signed ? -((wide_t)1 << (bits - 1)) : 0;
    wide_t high = ((wide_t)1 << (is_signed ? bits - 1 : bits)) - 1;
    double product = is_signed ? (double)(int64_t)value : (double)(uint64_t)value;
    product = trunc(product * scale);
    if (product <= (double)low) {
        return low;
    }
    return product >= (double)high ? high : (wide_t)product;
}

static wide_t combine_integer(wide_t a, wide_t b, hora_op_t op, hora_dtype_t dtype)
{
    switch (op) {
    case HORA_SUM:
        return wrap(a + b, dtype);
    case HORA_PRODUCT:
        return wrap((wide_t)((unsigned __int128)a * (unsigned __int128)b), dtype);
    case HORA_MIN:
        return a < b ? a : b;
    case HORA_MAX:
        return a > b ? a : b;
    case HORA_BAND:
        return a & b;
    case HORA_BOR:
        return a | b;
    default:
        return a ^ b;
    }
}

static wide_t combine_bool(wide_t a, wide_t b, hora_op_t op)
{
    if (op == HORA_SUM || op == HORA_MAX || op == HORA_BOR) {
        return a || b;
    }
    return op == HORA_BXOR ? a != b : a && b;
}

static void reduce_integer(const hora_reduce_t *how, const void *const *src, int nsrc, size_t at,
                           void *out)
{
    bool   is_bool = how->dtype == HORA_BOOL;
    wide_t sum = 0;
    for (int s = 0; s < nsrc; s++) {
        wide_t value = read_integer((const char *)src[s] + at, how->dtype);
        if (how->prescale != 1.0 && !is_bool) {
            value = scale_integer(value, how->prescale, how->dtype);
        }
        if (s == 0) {
            sum = value;
        } else {
            sum = is_bool ? combine_bool(sum, value, how->op)
                          : combine_integer(sum, value, how->op, how->dtype);
        }
    }
    if (!is_bool) {
        sum /= how->divisor;
        sum = how->postscale != 1.0 ? scale_integer(sum, how->postscale, how->dtype) : sum;
    }
    uint64_t raw = (uint64_t)sum;
    memcpy(out, &raw, element_sizes[how->dtype]); /* little endian */
}

/* One step in the precision of the type; volatile, so that nothing is kept wider or contracted. */
static double rounded(hora_dtype_t dtype, double value)
{
    volatile float narrow = (float)value;
    return dtype == HORA_FLOAT64 ? value : (double)narrow;
}

static double combine_float(double a, double b, hora_op_t op)
{
    if (isnan(a) || isnan(b)) {
        return NAN;
    }
    switch (op) {
    case HORA_SUM:
        return a + b;
    case HORA_PRODUCT:
        return a * b;
    case HORA_MIN:
        return a < b || (a == b && signbit(a)) ? a : b;
    default:
        return a > b || (a == b && !signbit(a)) ? a : b;
    }
}

static double read_float(const void *p, hora_dtype_t dtype)
{
    uint16_t half = 0;
    float    narrow;
    double   wide;
    memcpy(&half, p, element_sizes[dtype] < 2 ? 1 : sizeof(half));
    switch (dtype) {
    case HORA_FLOAT16:
        return half_decode(&format_f16, half);
    case HORA_BFLOAT16:
        return half_decode(&format_bf16, half);
    case HORA_FLOAT8_E4M3:
        return eighth_decode(&format_e4m3, *(const uint8_t *)p);
    case HORA_FLOAT8_E5M2:
        return eighth_decode(&format_e5m2, *(const uint8_t *)p);
    case HORA_FLOAT32:
        memcpy(&narrow, p, sizeof(narrow));
        return narrow;
    default:
        memcpy(&wide, p, sizeof(wide));
        return wide;
    }
}

static void write_float(void *p, hora_dtype_t dtype, double value)
{
    uint16_t half = 0;
    uint32_t nan32 = 0x7fc00000u;
    uint64_t nan64 = 0x7ff8000000000000u;
    float    narrow = (float)value;
    switch (dtype) {
    case HORA_FLOAT16:
    case HORA_BFLOAT16:
        half = half_encode(dtype == HORA_FLOAT16 ? &format_f16 : &format_bf16, value);
        memcpy(p, &half, sizeof(half));
        break;
    case HORA_FLOAT8_E4M3:
        *(uint8_t *)p = eighth_encode(&format_e4m3, value);
        break;
    case HORA_FLOAT8_E5M2:
        *(uint8_t *)p = eighth_encode(&format_e5m2, value);
        break;
    case HORA_FLOAT32:
        memcpy(p, isnan(value) ? (void *)&nan32 : (void *)&narrow, sizeof(narrow));
        break;
    default:
        memcpy(p, isnan(value) ? (void *)&nan64 : (void *)&value, sizeof(value));
        break;
    }
}

/* Rounding a double sum, product or quotient of two floats to float gives what float arithmetic
 * gives: double has more than twice the digits. */
static void reduce_float(const hora_reduce_t *how, const void *const *src, int nsrc, size_t at,
                         void *out)
{
    hora_dtype_t dtype = how->dtype;
    double       sum = 0.0;
    for (int s = 0; s < nsrc; s++) {
        double value = read_float((const char *)src[s] + at, dtype);
        if (how->prescale != 1.0) {
            value = rounded(dtype, value * rounded(dtype, how->prescale));
        }
        sum = s == 0 ? value : rounded(dtype, combine_float(sum, value, how->op));
    }
    if (how->divisor != 1) {
        sum = rounded(dtype, sum / how->divisor);
    }
    if (how->postscale != 1.0) {
        sum = rounded(dtype, sum * rounded(dtype, how->postscale));
    }
    write_float(out, dtype, sum);
}

void reference_reduce(const hora_reduce_t *how, const void *const *src, int nsrc, void *out,
                      size_t count)
{
    size_t size = element_sizes[how->dtype];
    bool   copy = nsrc == 1 && how->prescale == 1.0 && how->divisor == 1 && how->postscale == 1.0;
    for (size_t at = 0; at < count * size; at += size) {
        if (copy) {
            memcpy((char *)out + at, (const char *)src[0] + at, size);
        } else if (is_float(how->dtype)) {
            reduce_float(how, src, nsrc, at, (char *)out + at);
        } else {
            reduce_integer(how, src, nsrc, at, (char *)out + at);
        }
    }
}

/* ---- Data ------------------------------------------------------------------------------------ */

static const double special_values[] = {0.0, -0.0, INFINITY, -INFINITY, 1.0, -1.0, 65504.0,
                                        65519.0, 1e-7, -3e-8, 1e-40, 3e38, -2e-308, 5e-324};

static void make_float(void *p, hora_dtype_t dtype, uint64_t *state)
{
    uint64_t raw = random_u64(state);
    unsigned kind = raw % 16;
    if (kind == 0) { /* any bits at all: NaN with payloads, huge, subnormal */
        raw = random_u64(state);
        memcpy(p, &raw, element_sizes[dtype]);
    } else if (kind == 1) {
        size_t which = (raw >> 8) % (sizeof(special_values) / sizeof(special_values[0]));
        write_float(p, dtype, special_values[which]);
    } else {
        double fraction = (double)(int64_t)random_u64(state) * 0x1p-62;
        write_float(p, dtype, ldexp(fraction, (int)(raw >> 8) % 5));
    }
}

void reference_fill(hora_dtype_t dtype, uint64_t *state, void *out, size_t count)
{
    size_t size = element_sizes[dtype];
    for (size_t i = 0; i < count; i++) {
        unsigned char *p = (unsigned char *)out + i * size;
        if (is_float(dtype)) {
            make_float(p, dtype, state);
        } else {
            uint64_t raw = random_u64(state);
            raw = dtype == HORA_BOOL ? raw & 1 : raw;
            memcpy(p, &raw, size);
        }
    }
}
