/*
 * Test data whose result is known exactly. Any thread; no state.
 *
 * A number is kept in a double: sums of at most a few hundred small integers are exact there, and
 * so is the one division of an average after rounding, because these quotients never lie half way
 * between two values of a narrower type.
 */
#include "pattern.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

static uint64_t mix(unsigned salt, int rank, size_t i) {
    uint64_t x = (uint64_t)salt << 40 ^ (uint64_t)(unsigned)rank << 24 ^ (uint64_t)i;
    x = (x ^ x >> 31) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9u;
    return x ^ x >> 32;
}

static bool is_float(hora_dtype_t dtype) {
    return dtype >= HORA_FLOAT16 && dtype < HORA_DTYPE_COUNT;
}

static bool is_unsigned(hora_dtype_t dtype) {
    return dtype >= HORA_UINT8 && dtype <= HORA_UINT64;
}

static bool is_bitwise(hora_op_t op) {
    return op == HORA_BAND || op == HORA_BOR || op == HORA_BXOR || op == PATTERN_MOVE;
}

/* ---- Encoding ------------------------------------------------------------------------------ */

/* A floating-point number with `digits` binary digits (the leading one included), as its bits. For
 * zero and numbers in the normal range. */
static uint64_t encode_float(double value, int digits, int exponent_bits) {
    uint64_t sign = signbit(value) ? 1 : 0;
    int exponent = 0, bias = (1 << (exponent_bits - 1)) - 1;
    double m = frexp(fabs(value), &exponent); /* 0.5 <= m < 1 */
    if (m == 0.0)
        return sign << (digits - 1 + exponent_bits);
    uint64_t whole = (uint64_t)nearbyint(ldexp(m, digits));
    uint64_t biased = (uint64_t)(exponent - 1 + bias);
    /* Adding, not or-ing: a mantissa that was rounded up to a power of two carries over. */
    return (sign << (digits - 1 + exponent_bits)) +
           (biased << (digits - 1)) + (whole - ((uint64_t)1 << (digits - 1)));
}

static void store(void *cell, const void *value, size_t size) {
    memcpy(cell, value, size);
}

void pattern_encode(hora_dtype_t dtype, double value, void *cell) {
    uint64_t bits;
    float single = (float)value;
    switch (dtype) {
    case HORA_FLOAT16:
        bits = encode_float(value, 11, 5);
        break;
    case HORA_BFLOAT16:
        bits = encode_float(value, 8, 8);
        break;
    case HORA_FLOAT8_E4M3:
        bits = encode_float(value, 4, 4);
        break;
    case HORA_FLOAT8_E5M2:
        bits = encode_float(value, 3, 5);
        break;
    case HORA_FLOAT32:
        store(cell, &single, sizeof(single));
        return;
    case HORA_FLOAT64:
        store(cell, &value, sizeof(value));
        return;
    default:
        bits = (uint64_t)(int64_t)value;
        break;
    }
    /* Integers, halves and float8: the low bytes, on either kind of machine. */
    uint8_t b8 = (uint8_t)bits;
    uint16_t b16 = (uint16_t)bits;
    uint32_t b32 = (uint32_t)bits;
    size_t size = hora_dtype_size(dtype);
    const void *part = size == 1   ? (const void *)&b8
                       : size == 2 ? (const void *)&b16
                       : size == 4 ? (const void *)&b32
                                   : (const void *)&bits;
    store(cell, part, size);
}

/* ---- Numbers ------------------------------------------------------------------------------- */

/* Rare ones under "or", rare zeros under "and": else almost every result would be the same. */
static double bool_number(hora_op_t op, uint64_t h, int size) {
    bool rare = (h >> 8) % (unsigned)(size + 1) == 0;
    if (op == HORA_PRODUCT || op == HORA_MIN || op == HORA_BAND)
        return rare ? 0 : 1;
    if (op == HORA_BXOR || op == PATTERN_MOVE)
        return (double)(h & 1);
    return rare ? 1 : 0;
}

static double factor(hora_dtype_t dtype, uint64_t h, int rank, int size, size_t i) {
    /* At most six twos, so that the product fits into an int8. */
    bool may_be_two = ((size_t)rank + i) % (size_t)size < 6;
    if (may_be_two && h % 3 == 0)
        return 2;
    return !is_unsigned(dtype) && h % 3 == 1 ? -1 : 1;
}

/* Which vector a rank brings to an Adasum. Ranks that are combined first bring the same one, of which
 * half and half is taken; all others bring vectors that are orthogonal, as they have their numbers at
 * different places. So the result is exact. */
static int adasum_owner(int rank, int size) {
    int power = 1, extra;
    while (2 * power <= size)
        power *= 2;
    extra = size - power;
    if (extra == 0)
        return rank / 2;
    return rank < 2 * extra ? rank / 2 : rank - extra;
}

static double adasum_number(unsigned salt, int owner, int size, size_t i) {
    int owners = adasum_owner(size - 1, size) + 1;
    if ((int)(i % (size_t)owners) != owner)
        return 0;
    return (double)((mix(salt, owner, i) >> 7) % 201) - 100;
}

static double number(hora_dtype_t dtype, hora_op_t op, unsigned salt, int rank, int size,
                     size_t i) {
    uint64_t h = mix(salt, rank, i);
    if (op == HORA_ADASUM)
        return adasum_number(salt, adasum_owner(rank, size), size, i);
    if (dtype == HORA_BOOL)
        return bool_number(op, h, size);
    if (op == HORA_PRODUCT)
        return factor(dtype, h >> 7, rank, size, i);
    uint64_t span = 100;
    if (op == HORA_SUM || op == HORA_AVERAGE)
        span = size > 60 ? 1 : size > 17 ? 2 : 7; /* sums fit into an int8 up to 127 ranks */
    if (is_unsigned(dtype))
        return (double)((h >> 7) % (span + 1));
    return (double)((h >> 7) % (2 * span + 1)) - (double)span;
}

static double combine(hora_op_t op, double a, double b) {
    switch (op) {
    case HORA_PRODUCT:
        return a * b;
    case HORA_MIN:
        return b < a ? b : a;
    case HORA_MAX:
        return b > a ? b : a;
    default:
        return a + b;
    }
}

static double result_number(hora_dtype_t dtype, hora_op_t op, unsigned salt, int size, size_t i) {
    double acc = number(dtype, op, salt, 0, size, i);
    if (op == HORA_ADASUM)
        return adasum_number(salt, (int)(i % (size_t)(adasum_owner(size - 1, size) + 1)), size, i);
    for (int r = 1; r < size; r++)
        acc = combine(op, acc, number(dtype, op, salt, r, size, i));
    if (dtype == HORA_BOOL && op == HORA_SUM)
        return acc > 0;
    if (op == HORA_AVERAGE)
        acc = is_float(dtype) ? acc / size : trunc(acc / size);
    return acc;
}

/* ---- Bits ---------------------------------------------------------------------------------- */

static uint64_t bits(hora_dtype_t dtype, hora_op_t op, unsigned salt, int rank, int size,
                     size_t i) {
    uint64_t h = mix(salt, rank, i);
    return dtype == HORA_BOOL ? (uint64_t)bool_number(op, h, size) : h;
}

static uint64_t result_bits(hora_dtype_t dtype, hora_op_t op, unsigned salt, int size, size_t i) {
    uint64_t acc = bits(dtype, op, salt, 0, size, i);
    for (int r = 1; r < size; r++) {
        uint64_t b = bits(dtype, op, salt, r, size, i);
        acc = op == HORA_BAND ? acc & b : op == HORA_BOR ? acc | b : acc ^ b;
    }
    return acc;
}

/* ---- Patterns ------------------------------------------------------------------------------ */

static size_t begin_cells(pattern_t *p, hora_dtype_t dtype, size_t need) {
    p->elem_size = hora_dtype_size(dtype);
    return need < PATTERN_PERIOD ? need : PATTERN_PERIOD;
}

void pattern_input(pattern_t *p, hora_dtype_t dtype, hora_op_t op, int rank, int size,
                   unsigned salt, size_t need) {
    size_t n = begin_cells(p, dtype, need);
    for (size_t i = 0; i < n; i++) {
        unsigned char *cell = p->cells + i * p->elem_size;
        uint64_t raw;
        if (!is_bitwise(op)) {
            pattern_encode(dtype, number(dtype, op, salt, rank, size, i), cell);
            continue;
        }
        raw = bits(dtype, op, salt, rank, size, i);
        store(cell, &raw, p->elem_size); /* any of its bytes will do, as long as all agree */
    }
}

void pattern_result(pattern_t *p, hora_dtype_t dtype, hora_op_t op, int size, unsigned salt,
                    size_t need) {
    size_t n = begin_cells(p, dtype, need);
    for (size_t i = 0; i < n; i++) {
        unsigned char *cell = p->cells + i * p->elem_size;
        uint64_t raw;
        if (!is_bitwise(op)) {
            pattern_encode(dtype, result_number(dtype, op, salt, size, i), cell);
            continue;
        }
        raw = result_bits(dtype, op, salt, size, i);
        store(cell, &raw, p->elem_size);
    }
}

void pattern_fill(const pattern_t *p, void *dst, size_t first, size_t count) {
    unsigned char *to = dst;
    for (size_t at = first % PATTERN_PERIOD; count > 0; at = 0) {
        size_t n = PATTERN_PERIOD - at < count ? PATTERN_PERIOD - at : count;
        memcpy(to, p->cells + at * p->elem_size, n * p->elem_size);
        to += n * p->elem_size;
        count -= n;
    }
}

static size_t count_wrong(const unsigned char *a, const unsigned char *b, size_t n, size_t size) {
    size_t wrong = 0;
    for (size_t i = 0; i < n; i++)
        wrong += memcmp(a + i * size, b + i * size, size) != 0;
    return wrong;
}

size_t pattern_wrong(const pattern_t *p, const void *buf, size_t first, size_t count) {
    const unsigned char *from = buf;
    size_t wrong = 0;
    for (size_t at = first % PATTERN_PERIOD; count > 0; at = 0) {
        size_t n = PATTERN_PERIOD - at < count ? PATTERN_PERIOD - at : count;
        const unsigned char *cells = p->cells + at * p->elem_size;
        if (memcmp(from, cells, n * p->elem_size) != 0)
            wrong += count_wrong(from, cells, n, p->elem_size);
        from += n * p->elem_size;
        count -= n;
    }
    return wrong;
}
