/*
 * Adasum against a plain float64 tree, for every type, many counts, in and out of place, with and
 * without scales. For a communicator of any transport; no cmocka, so that mpirun can start it.
 */
#ifndef TESTS_MULTI_ADASUM_H
#define TESTS_MULTI_ADASUM_H

#include <hora/hora.h>

/* Value i that rank `rank` brings: correlated between ranks, so that every weight differs from 1. */
double adasum_value(int rank, size_t i, unsigned salt);
/* The result over `size` ranks. result: count elements. */
void adasum_reference(int size, size_t count, unsigned salt, hora_dtype_t dtype, double scale,
                      double *result);
/* Element i of a buffer, and how to set it. float16, bfloat16, float32, float64. */
double adasum_get(hora_dtype_t dtype, const void *buf, size_t i);
void   adasum_put(hora_dtype_t dtype, void *buf, size_t i, double value);
/* Elements that are not near the reference. */
size_t adasum_wrong(int size, size_t count, unsigned salt, hora_dtype_t dtype, double scale,
                    const void *got);

/* Runs everything; collective. 0: all is well; else the first fault has been printed. */
int adasum_check_all(hora_comm_t *comm);

#endif
