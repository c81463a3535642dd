/*
 * What a reduction gives, element by element and source by source, in the order of the sources; and
 * random data with every kind of value. Written without a look at the kernels' loops. Any thread.
 */
#ifndef HORA_TESTS_KERNELS_REDUCE_REFERENCE_H
#define HORA_TESTS_KERNELS_REDUCE_REFERENCE_H

#include <kernels/cpu/kernels.h>
#include <stdint.h>

/* out[i] = how, over src[0..nsrc-1][i] in this order, i < count; bit for bit what kernels.h says. */
void reference_reduce(const hora_reduce_t *how, const void *const *src, int nsrc, void *out,
                      size_t count);

/* Fills out with random elements: integers of any value; floats near 1, special values, and any bits
 * at all (NaN with payloads, subnormals). *state is the seed, and moves on. */
void reference_fill(hora_dtype_t dtype, uint64_t *state, void *out, size_t count);

#endif
