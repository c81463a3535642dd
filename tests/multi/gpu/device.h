/*
 * Buffers on a GPU for tests with several ranks, and a stream that brings data to them and away. On
 * the stand-in, a wait that is missing shows up as wrong data. A rank has one GPU.
 */
#ifndef TESTS_MULTI_GPU_DEVICE_H
#define TESTS_MULTI_GPU_DEVICE_H

#include "harness.h"

#include <stdbool.h>
#include <stddef.h>

/* A buffer on the GPU, and a pinned one of the same length on the host. */
typedef struct device_buffer {
    void         *at;   /* device memory */
    unsigned char *host;
    size_t        bytes;
} device_buffer_t;

/* Uses GPU 0 from now on; the process must not have used CUDA before. */
void  device_begin(void);
/* A stream of the caller's. Freed with the process. */
void *device_stream(void);

void device_make(device_buffer_t *b, size_t bytes);
/* Keeps it for the next one of that length, until the rank ends. */
void device_destroy(device_buffer_t *b);
/* Queues b->host for the GPU, and the GPU's content for b->host. */
void device_put(const device_buffer_t *b, void *stream);
void device_get(const device_buffer_t *b, void *stream);
/* The same for memory that somebody else allocated. */
void device_get_from(const void *at, void *pinned, size_t bytes, void *stream);
/* An allocation of its own, and its end. */
void *device_alloc(size_t bytes);
void  device_free(void *at);
/* Queues `bytes` of pinned memory for any memory on the GPU. */
void  device_put_to(void *at, const void *pinned, size_t bytes, void *stream);
/* Is all done that was queued on the stream? */
bool  device_is_idle(void *stream);
/* Blocks until all that was queued on the stream is done. */
void device_finish(void *stream);

#endif
