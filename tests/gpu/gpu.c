/* See gpu.h. One thread. */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define WAIT_SECONDS 60.0

void gpu_must(const gpu_test_t *t, hora_cuda_result_t result, const char *what) {
    if (result == HORA_CUDA_SUCCESS)
        return;
    gpu_must_status(hora_cuda_fail(t->cuda, result, what), what);
}

void gpu_must_status(hora_status_t status, const char *what) {
    if (status == HORA_OK)
        return;
    fprintf(stderr, "%s: %s\n", what, hora_last_error());
    exit(1);
}

void gpu_begin(gpu_test_t *t) {
    const char *library = getenv("HORA_CUDA_LIBRARY");
    *t = (gpu_test_t){0};
    if (hora_cuda_open(library != NULL ? library : "", &t->cuda) != HORA_OK ||
        hora_gpu_open(t->cuda, 0, &t->gpu) != HORA_OK) {
        printf("%s\n", hora_last_error());
        exit(77);
    }
    gpu_must_status(hora_gpu_enter(&t->gpu), "entering the GPU's context");
    gpu_must(t, t->cuda->device_memory(&t->memory, t->gpu.device), "asking for the memory");
    gpu_must(t, t->cuda->stream_create(&t->stream, 1, 0), "making a stream");
}

void gpu_end(gpu_test_t *t) {
    t->cuda->stream_destroy(t->stream);
    hora_gpu_leave(&t->gpu);
    hora_gpu_close(&t->gpu);
}

uint64_t gpu_alloc(const gpu_test_t *t, size_t bytes) {
    uint64_t at = 0;
    gpu_must(t, t->cuda->alloc(&at, bytes), "allocating device memory");
    return at;
}

void gpu_free(const gpu_test_t *t, uint64_t at) {
    gpu_must(t, t->cuda->free(at), "freeing device memory");
}

double gpu_seconds(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

void gpu_wait(const gpu_test_t *t) {
    double             end = gpu_seconds() + WAIT_SECONDS;
    hora_cuda_result_t result;
    while ((result = t->cuda->stream_query(t->stream)) == HORA_CUDA_NOT_READY)
        if (gpu_seconds() > end) {
            fprintf(stderr, "the GPU has not finished within %.0f s\n", WAIT_SECONDS);
            exit(1);
        }
    gpu_must(t, result, "a kernel");
}

void gpu_put(const gpu_test_t *t, uint64_t dst, const void *src, size_t bytes) {
    if (bytes > 0)
        gpu_must(t, t->cuda->copy_in(dst, src, bytes, t->stream), "copying to the device");
    gpu_wait(t);
}

void gpu_get(const gpu_test_t *t, void *dst, uint64_t src, size_t bytes) {
    if (bytes > 0)
        gpu_must(t, t->cuda->copy_out(dst, src, bytes, t->stream), "copying from the device");
    gpu_wait(t);
}
