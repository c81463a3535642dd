/*
 * Inputs and expected results of the simulator, by the plainest loops.
 */
#include "sim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint32_t scramble(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ x >> 16;
}

/* Element i of the vector of `rank`. */
static double value(const sim_case_t *what, int rank, int call, size_t i) {
    uint32_t r = scramble((uint32_t)i * 2654435761u + (uint32_t)rank * 40503u +
                          (uint32_t)call * 977u + what->seed);
    if (what->integers)
        return (double)(r % 13) - 6;
    return ((double)(r >> 8) / (1 << 23) - 1.0) * (double)(1 << (r & 7));
}

static void put(hora_dtype_t dtype, void *base, size_t i, double x) {
    float narrow = (float)x;
    switch (dtype) {
    case HORA_FLOAT64:
        ((double *)base)[i] = x;
        break;
    case HORA_INT32:
        ((int32_t *)base)[i] = (int32_t)x;
        break;
    case HORA_BFLOAT16:
        hora_kernel_convert((uint16_t *)base + i, HORA_BFLOAT16, &narrow, HORA_FLOAT32, 1, 1.0);
        break;
    case HORA_UINT8:
        ((uint8_t *)base)[i] = (uint8_t)(int)x;
        break;
    default:
        ((float *)base)[i] = narrow;
    }
}

static double get(hora_dtype_t dtype, const void *base, size_t i) {
    float wide;
    switch (dtype) {
    case HORA_FLOAT64:
        return ((const double *)base)[i];
    case HORA_INT32:
        return ((const int32_t *)base)[i];
    case HORA_BFLOAT16:
        hora_kernel_convert(&wide, HORA_FLOAT32, (const uint16_t *)base + i, HORA_BFLOAT16, 1, 1.0);
        return wide;
    case HORA_UINT8:
        return ((const uint8_t *)base)[i];
    default:
        return ((const float *)base)[i];
    }
}

static size_t *array(int size) {
    return calloc((size_t)size, sizeof(size_t));
}

/* Elements that i sends to j in an alltoall. */
static size_t pair_count(const sim_case_t *what, int i, int j) {
    return what->uneven ? ((size_t)i * 3 + (size_t)j * 5) % (what->count + 1) : what->count;
}

/* Uneven blocks lie in the opposite order, with gaps of one element. Returns the span. */
static size_t lay_out(const sim_case_t *what, const size_t *counts, size_t *displs) {
    size_t at = 0;
    for (int i = 0; i < what->size; i++) {
        int r = what->uneven ? what->size - 1 - i : i;
        displs[r] = at;
        at += counts[r] + what->uneven;
    }
    return at;
}

static void layout_blocks(const sim_case_t *what, int rank, sim_layout_t *l) {
    size_t span;
    l->counts = array(what->size);
    l->displs = array(what->size);
    for (int r = 0; r < what->size; r++)
        l->counts[r] = what->uneven ? (what->count * (size_t)(r + 1) * 7 + (size_t)r) %
                                          (what->count + 1)
                                    : what->count;
    span = lay_out(what, l->counts, l->displs);
    if (what->kind == HORA_COLL_REDUCE_SCATTER) {
        l->in = span;
        l->out = l->counts[rank];
        l->out_at_in = l->displs[rank];
    } else {
        l->in = l->counts[rank];
        l->out = span;
        l->in_at_out = l->displs[rank];
    }
}

static void layout_alltoall(const sim_case_t *what, int rank, sim_layout_t *l) {
    l->counts = array(what->size);
    l->displs = array(what->size);
    l->other_counts = array(what->size);
    l->other_displs = array(what->size);
    for (int r = 0; r < what->size; r++) {
        l->counts[r] = pair_count(what, rank, r);
        l->other_counts[r] = pair_count(what, r, rank);
    }
    l->in = lay_out(what, l->counts, l->displs);
    l->out = lay_out(what, l->other_counts, l->other_displs);
}

void sim_layout_make(const sim_case_t *what, int rank, sim_layout_t *layout_p) {
    sim_layout_t l = {0};
    size_t       all = what->count * (size_t)what->size, at = what->count * (size_t)rank;
    bool         root = rank == what->root;
    switch (what->kind) {
    case HORA_COLL_ALLREDUCE:
        l.in = l.out = what->count;
        break;
    case HORA_COLL_REDUCE:
        l.in = what->count;
        l.out = root ? what->count : 0;
        break;
    case HORA_COLL_BROADCAST:
        l.in = root ? what->count : 0;
        l.out = what->count;
        break;
    case HORA_COLL_GATHER:
        l.in = what->count;
        l.out = root ? all : 0;
        l.in_at_out = root ? at : 0;
        break;
    case HORA_COLL_SCATTER:
        l.in = root ? all : 0;
        l.out = what->count;
        l.out_at_in = root ? at : 0;
        break;
    case HORA_COLL_ALLTOALL:
        layout_alltoall(what, rank, &l);
        break;
    case HORA_COLL_REDUCE_SCATTER:
    case HORA_COLL_ALLGATHER:
        layout_blocks(what, rank, &l);
        break;
    default:
        break;
    }
    *layout_p = l;
}

void sim_layout_free(sim_layout_t *layout) {
    free(layout->counts);
    free(layout->displs);
    free(layout->other_counts);
    free(layout->other_displs);
}

void sim_fill(const sim_case_t *what, const sim_layout_t *layout, int rank, int call, void *in) {
    for (size_t i = 0; i < layout->in; i++)
        put(what->dtype, in, i, value(what, rank, call, i));
}

/* The input as it was rounded to the type. */
static double input(const sim_case_t *what, int rank, int call, size_t i) {
    double stored[1];
    put(what->dtype, stored, 0, value(what, rank, call, i));
    return get(what->dtype, stored, 0);
}

static double combine(hora_op_t op, double a, double b) {
    if (op == HORA_MAX)
        return a > b ? a : b;
    if (op == HORA_MIN)
        return a < b ? a : b;
    return a + b;
}

/* In float32 for float32 and bfloat16, in rank order; whole numbers are exact in double. */
static double reduced(const sim_case_t *what, int call, size_t i) {
    bool   single = what->dtype == HORA_FLOAT32 || what->dtype == HORA_BFLOAT16;
    double acc = 0;
    for (int r = 0; r < what->size; r++) {
        double x = input(what, r, call, i);
        if (what->prescale != 1.0)
            x = single ? (float)x * (float)what->prescale : x * what->prescale;
        acc = r == 0 ? x : combine(what->op, acc, x);
        if (single)
            acc = (float)acc;
    }
    if (what->op == HORA_AVERAGE)
        acc = what->dtype == HORA_INT32 ? (double)((int64_t)acc / what->size)
              : single                  ? (float)acc / (float)what->size
                                        : acc / what->size;
    if (what->postscale != 1.0)
        acc = single ? (float)acc * (float)what->postscale : acc * what->postscale;
    return acc;
}

/* ---- Adasum: the tree over the ranks in float64 ---- */

static double dot(const double *a, const double *b, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* a = adasum(a, b) */
static void adasum(double *a, const double *b, size_t n) {
    double ab = dot(a, b, n), aa = dot(a, a, n), bb = dot(b, b, n);
    double wa = aa > 0 && bb > 0 ? 1 - ab / (2 * aa) : 1, wb = aa > 0 && bb > 0 ? 1 - ab / (2 * bb) : 1;
    for (size_t i = 0; i < n; i++)
        a[i] = wa * a[i] + wb * b[i];
}

static void expect_adasum(const sim_case_t *what, int call, double *want) {
    size_t  n = what->count, ranks = 1, size = (size_t)what->size, live = 0;
    double *all = calloc(size * n + 1, sizeof(*all));
    for (size_t r = 0; r < size; r++)
        for (size_t i = 0; i < n; i++)
            all[r * n + i] = input(what, (int)r, call, i);
    while (2 * ranks <= size)
        ranks *= 2;
    for (size_t r = 0; r < size; live++) { /* the first size - ranks pairs are joined first */
        size_t extra = size - ranks;
        if (r < 2 * extra)
            adasum(all + r * n, all + (r + 1) * n, n);
        memmove(all + live * n, all + r * n, n * sizeof(*all));
        r += r < 2 * extra ? 2 : 1;
    }
    for (size_t step = 1; step < ranks; step *= 2)
        for (size_t r = 0; r < ranks; r += 2 * step)
            adasum(all + r * n, all + (r + step) * n, n);
    for (size_t i = 0; i < n; i++)
        want[i] = all[i] * what->postscale;
    free(all);
}

static void expect_at(const sim_case_t *what, void *want, uint8_t *mask, size_t i, double x) {
    put(what->dtype, want, i, x);
    mask[i] = 1;
}

static void expect_gathered(const sim_case_t *what, const sim_layout_t *l, int rank, int call,
                            void *want, uint8_t *mask) {
    for (int r = 0; r < what->size; r++) {
        size_t count = what->count, at = (size_t)r * count, from = 0;
        if (what->kind == HORA_COLL_ALLTOALL) {
            sim_layout_t theirs;
            sim_layout_make(what, r, &theirs);
            from = theirs.displs[rank];
            count = l->other_counts[r];
            at = l->other_displs[r];
            sim_layout_free(&theirs);
        } else if (what->kind == HORA_COLL_ALLGATHER) {
            count = l->counts[r];
            at = l->displs[r];
        }
        for (size_t i = 0; i < count; i++)
            expect_at(what, want, mask, at + i, input(what, r, call, from + i));
    }
}

void sim_expect(const sim_case_t *what, const sim_layout_t *layout, int rank, int call, void *want,
                uint8_t *mask) {
    size_t from = what->kind == HORA_COLL_REDUCE_SCATTER ? layout->displs[rank]
                  : what->kind == HORA_COLL_SCATTER      ? (size_t)rank * what->count
                                                         : 0;
    memset(mask, 0, layout->out);
    if (layout->out == 0)
        return;
    if (what->op == HORA_ADASUM) {
        double *result = calloc(layout->out, sizeof(*result));
        expect_adasum(what, call, result);
        for (size_t i = 0; i < layout->out; i++)
            expect_at(what, want, mask, i, result[i]);
        free(result);
        return;
    }
    switch (what->kind) {
    case HORA_COLL_ALLREDUCE:
    case HORA_COLL_REDUCE:
    case HORA_COLL_REDUCE_SCATTER:
        for (size_t i = 0; i < layout->out; i++)
            expect_at(what, want, mask, i, reduced(what, call, from + i));
        break;
    case HORA_COLL_BROADCAST:
    case HORA_COLL_SCATTER:
        for (size_t i = 0; i < layout->out; i++)
            expect_at(what, want, mask, i, input(what, what->root, call, from + i));
        break;
    default:
        expect_gathered(what, layout, rank, call, want, mask);
    }
}

bool sim_close(const sim_case_t *what, const void *got, const void *want) {
    size_t elem = hora_dtype_size(what->dtype);
    double a, b, scale = 128.0 * what->size * what->prescale * what->postscale;
    if (memcmp(got, want, elem) == 0)
        return true;
    if (!hora_coll_reduces(what->kind) || what->algo->rank_order || what->integers)
        return false;
    a = get(what->dtype, got, 0);
    b = get(what->dtype, want, 0);
    return fabs(a - b) <= scale * (what->dtype == HORA_FLOAT64 ? 1e-13 : 3e-6);
}
