/*
 * Test data whose result is known exactly, whatever the order of the sums.
 *
 * The data of one rank repeats every PATTERN_PERIOD elements (a prime, so that a chunk put into the
 * wrong place shows), which makes filling and checking of large buffers as fast as memcpy. Numbers
 * are small integers, so sums and products are exact in every type. Any thread.
 */
#ifndef BENCHMARKS_COMMON_PATTERN_H
#define BENCHMARKS_COMMON_PATTERN_H

#include <hora/hora.h>

#define PATTERN_PERIOD 1021

/* Instead of an operation: arbitrary bits (NaN patterns too), for collectives that only move. */
#define PATTERN_MOVE ((hora_op_t)HORA_OP_COUNT)

typedef struct pattern {
    size_t        elem_size;
    unsigned char cells[PATTERN_PERIOD * 8];
} pattern_t;

/* What rank `rank` of `size` puts in. `need`: how many elements will be asked for, at most. */
void pattern_input(pattern_t *p, hora_dtype_t dtype, hora_op_t op, int rank, int size,
                   unsigned salt, size_t need);
/* What the reduction over all ranks gives, bit for bit. */
void pattern_result(pattern_t *p, hora_dtype_t dtype, hora_op_t op, int size, unsigned salt,
                    size_t need);

/* Writes elements first, first+1, ... of the pattern. */
void pattern_fill(const pattern_t *p, void *dst, size_t first, size_t count);
/* Number of elements in buf that are not elements first, first+1, ... of the pattern. */
size_t pattern_wrong(const pattern_t *p, const void *buf, size_t first, size_t count);

/* One number as an element of the type, rounded to nearest even. */
void pattern_encode(hora_dtype_t dtype, double value, void *cell);

#endif
