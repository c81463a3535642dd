/*
 * What the GPU tests share: a GPU, a stream, and errors that end the program with what failed. One
 * thread. Nothing here needs a network, cmocka or the toolkit at run time.
 */
#ifndef HORA_TESTS_GPU_H
#define HORA_TESTS_GPU_H

#include "util/gpu.h"

#include <stddef.h>
#include <stdint.h>

typedef struct gpu_test {
    const hora_cuda_t *cuda;
    hora_gpu_t         gpu;
    hora_cuda_stream_t stream;
    size_t             memory; /* bytes of the device */
} gpu_test_t;

/* Opens GPU 0 and enters its context; exits with 77 and the reason where there is none. */
void gpu_begin(gpu_test_t *t);
void gpu_end(gpu_test_t *t);

/* Ends the program if `result` is an error. */
void gpu_must(const gpu_test_t *t, hora_cuda_result_t result, const char *what);
void gpu_must_status(hora_status_t status, const char *what);

uint64_t gpu_alloc(const gpu_test_t *t, size_t bytes);
void     gpu_free(const gpu_test_t *t, uint64_t at);
/* Waits until the stream is empty, a minute at most. */
void gpu_wait(const gpu_test_t *t);
void gpu_put(const gpu_test_t *t, uint64_t dst, const void *src, size_t bytes);
void gpu_get(const gpu_test_t *t, void *dst, uint64_t src, size_t bytes);

double gpu_seconds(void);

/* In measure.c: prints the rates of the kernels beside the device's copy, as a table and, if json is
 * not NULL, into that file. most: bytes of the longest tensor; below 1 GB once each only. */
void gpu_measure(const gpu_test_t *t, size_t most, const char *json);

#endif
