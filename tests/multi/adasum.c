/*
 * The reference and the sweep (adasum.h). Any thread.
 */
#include "adasum.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Values ---------------------------------------------------------------------------------- */

double adasum_value(int rank, size_t i, unsigned salt) {
    double common = sin(0.11 * (double)i + salt), own = cos(0.7 * (double)i * (rank + 1) + salt);
    return (common + 0.6 * own) * (1 + rank % 3);
}

static uint16_t to_half(hora_dtype_t dtype, float value) {
    uint32_t bits, sign, cut = dtype == HORA_BFLOAT16 ? 16 : 13;
    memcpy(&bits, &value, sizeof(bits));
    bits += ((1u << (cut - 1)) - 1) + (bits >> cut & 1); /* to nearest even */
    if (dtype == HORA_BFLOAT16)
        return (uint16_t)(bits >> 16);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits < 113u << 23) /* these values have no use for subnormals */
        return (uint16_t)sign;
    return (uint16_t)(sign | (bits - (112u << 23)) >> 13);
}

static float from_half(hora_dtype_t dtype, uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float    value;
    if (dtype == HORA_FLOAT16)
        bits = (bits & 0x80000000u) |
               ((half & 0x7c00) ? ((uint32_t)(half & 0x7fff) << 13) + (112u << 23) : 0);
    memcpy(&value, &bits, sizeof(value));
    return value;
}

double adasum_get(hora_dtype_t dtype, const void *buf, size_t i) {
    if (dtype == HORA_FLOAT64)
        return ((const double *)buf)[i];
    if (dtype == HORA_FLOAT32)
        return (double)((const float *)buf)[i];
    return (double)from_half(dtype, ((const uint16_t *)buf)[i]);
}

void adasum_put(hora_dtype_t dtype, void *buf, size_t i, double value) {
    if (dtype == HORA_FLOAT64)
        ((double *)buf)[i] = value;
    else if (dtype == HORA_FLOAT32)
        ((float *)buf)[i] = (float)value;
    else
        ((uint16_t *)buf)[i] = to_half(dtype, (float)value);
}

/* ---- The tree -------------------------------------------------------------------------------- */

/* a = adasum(a, b) */
static void combine(double *a, const double *b, size_t n) {
    double aa = 0, ab = 0, bb = 0, wa = 1, wb = 1;
    for (size_t i = 0; i < n; i++) {
        aa += a[i] * a[i];
        ab += a[i] * b[i];
        bb += b[i] * b[i];
    }
    if (aa > 0 && bb > 0) {
        wa = 1 - ab / (2 * aa);
        wb = 1 - ab / (2 * bb);
    }
    for (size_t i = 0; i < n; i++)
        a[i] = wa * a[i] + wb * b[i];
}

/* Vectors side by side; the first 2 * extra are joined in pairs, then neighbours, level by level. */
static void reduce(double *all, int size, size_t n) {
    int power = 1, extra, live = 0;
    while (2 * power <= size)
        power *= 2;
    extra = size - power;
    for (int r = 0; r < size; live++) {
        bool pair = r < 2 * extra;
        if (pair)
            combine(all + (size_t)r * n, all + (size_t)(r + 1) * n, n);
        memmove(all + (size_t)live * n, all + (size_t)r * n, n * sizeof(*all));
        r += pair ? 2 : 1;
    }
    for (; live > 1; live /= 2)
        for (int i = 0; i < live / 2; i++) {
            combine(all + (size_t)(2 * i) * n, all + (size_t)(2 * i + 1) * n, n);
            memmove(all + (size_t)i * n, all + (size_t)(2 * i) * n, n * sizeof(*all));
        }
}

void adasum_reference(int size, size_t count, unsigned salt, hora_dtype_t dtype, double scale,
                      double *result) {
    double *all = malloc(((size_t)size * count + 1) * sizeof(*all));
    for (int r = 0; r < size; r++)
        for (size_t i = 0; i < count; i++) {
            double cell;
            adasum_put(dtype, &cell, 0, adasum_value(r, i, salt));
            all[(size_t)r * count + i] = adasum_get(dtype, &cell, 0);
        }
    reduce(all, size, count);
    for (size_t i = 0; i < count; i++)
        result[i] = all[i] * scale;
    free(all);
}

/* A few roundings: to the type at each level; for halves once. */
static double tolerance(hora_dtype_t dtype) {
    switch (dtype) {
    case HORA_FLOAT64: return 1e-12;
    case HORA_FLOAT32: return 1e-6;
    case HORA_FLOAT16: return 1.0 / 2000;
    default: return 1.0 / 250;
    }
}

size_t adasum_wrong(int size, size_t count, unsigned salt, hora_dtype_t dtype, double scale,
                    const void *got) {
    double *want = malloc((count + 1) * sizeof(*want));
    size_t  wrong = 0;
    adasum_reference(size, count, salt, dtype, scale, want);
    for (size_t i = 0; i < count; i++)
        wrong += !(fabs(adasum_get(dtype, got, i) - want[i]) <=
                   tolerance(dtype) * (fabs(want[i]) + 0.25 * fabs(scale)));
    free(want);
    return wrong;
}

/* ---- The sweep ------------------------------------------------------------------------------- */

/* Do all ranks have the same bits? */
static bool is_equal_everywhere(hora_comm_t *comm, const void *buf, size_t bytes) {
    int      size = hora_comm_size(comm);
    uint64_t hash = 1469598103934665603u, *all = malloc((size_t)size * sizeof(*all));
    bool     equal;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ ((const uint8_t *)buf)[i]) * 1099511628211u;
    equal = hora_allgather(comm, &hash, all, 1, HORA_UINT64, NULL) == HORA_OK;
    for (int r = 0; equal && r < size; r++)
        equal = all[r] == hash;
    free(all);
    return equal;
}

static int check_one(hora_comm_t *comm, hora_dtype_t dtype, size_t count, bool in_place,
                     bool scaled, unsigned salt) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    size_t              bytes = count * hora_dtype_size(dtype), wrong;
    char               *in = malloc(bytes + 1), *out = in_place ? in : malloc(bytes + 1);
    int                 faults = 0;
    options.prescale = scaled ? 0.5 : 1.0;
    options.postscale = scaled ? 4.0 : 1.0;
    for (size_t i = 0; i < count; i++)
        adasum_put(dtype, in, i, adasum_value(hora_comm_rank(comm), i, salt));
    if (hora_allreduce(comm, in, out, count, dtype, HORA_ADASUM, &options) != HORA_OK) {
        printf("rank %d: %s\n", hora_comm_rank(comm), hora_last_error());
        faults = 1;
    } else {
        wrong = adasum_wrong(hora_comm_size(comm), count, salt, dtype, scaled ? 2.0 : 1.0, out);
        if (wrong > 0 || !is_equal_everywhere(comm, out, bytes)) {
            printf("rank %d: %s, count %zu%s%s: %zu wrong, or bits that differ between ranks\n",
                   hora_comm_rank(comm), hora_dtype_name(dtype), count,
                   in_place ? ", in place" : "", scaled ? ", scaled" : "", wrong);
            faults = 1;
        }
    }
    free(in);
    if (!in_place)
        free(out);
    return faults;
}

int adasum_check_all(hora_comm_t *comm) {
    static const hora_dtype_t dtypes[] = {HORA_FLOAT16, HORA_BFLOAT16, HORA_FLOAT32, HORA_FLOAT64};
    static const size_t       counts[] = {0, 1, 2, 3, 7, 64, 1001, 4099, 70001};
    unsigned                  salt = 0;
    for (size_t d = 0; d < sizeof(dtypes) / sizeof(dtypes[0]); d++)
        for (size_t c = 0; c < sizeof(counts) / sizeof(counts[0]); c++)
            for (int way = 0; way < 4; way++)
                if (check_one(comm, dtypes[d], counts[c], way % 2, way / 2, ++salt) != 0)
                    return 1;
    return 0;
}
