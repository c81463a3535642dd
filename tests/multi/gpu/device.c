/*
 * Buffers on a GPU for tests (device.h). Any thread; what is given back is kept for the next, because
 * freeing waits for the whole GPU.
 */
#include "device.h"

#include "util/gpu.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define LIMIT 20.0 /* seconds for all that is queued */
#define BLOCK ((size_t)4 << 20) /* of device memory; buffers are parts of it, as torch's are */
#define ALIGN ((size_t)512)

typedef struct kept {
    struct kept    *next;
    device_buffer_t b;
} kept_t;

typedef struct block {
    struct block *next;
    uint64_t      at;
    size_t        bytes, used;
} block_t;

static hora_gpu_t     *gpu;
static block_t        *blocks; /* the first one has room, perhaps */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static kept_t         *buffers;

static void must(hora_cuda_result_t result, const char *what) {
    harness_check(result == HORA_CUDA_SUCCESS, "%s: CUDA result %d", what, result);
}

/* What was kept is given back, so that nothing is left open. A GPU that is lost takes nothing. */
static void end(void) {
    bool entered = hora_gpu_enter(gpu) == HORA_OK;
    while (buffers != NULL) {
        kept_t *kept = buffers;
        buffers = kept->next;
        if (entered)
            must(gpu->cuda->host_free(kept->b.host), "freeing pinned memory");
        free(kept);
    }
    while (blocks != NULL) {
        block_t *block = blocks;
        blocks = block->next;
        if (entered)
            must(gpu->cuda->free(block->at), "freeing device memory");
        free(block);
    }
    if (entered)
        hora_gpu_leave(gpu);
}

/* In the GPU's context, under the lock. */
static uint64_t take_part(size_t bytes) {
    block_t *block = blocks;
    size_t   more = (bytes / ALIGN + 1) * ALIGN;
    if (block == NULL || block->bytes - block->used < more) {
        block = malloc(sizeof(*block));
        harness_check(block != NULL, "%s", "memory");
        *block = (block_t){.next = blocks, .bytes = (more + BLOCK - 1) / BLOCK * BLOCK};
        must(gpu->cuda->alloc(&block->at, block->bytes), "device memory");
        blocks = block;
    }
    block->used += more;
    return block->at + block->used - more;
}

void device_begin(void) {
    if (gpu == NULL)
        harness_ok(hora_gpu_get(getenv("HORA_CUDA_LIBRARY"), 0, &gpu));
    harness_at_end = end;
}

void *device_stream(void) {
    hora_cuda_stream_t stream;
    harness_ok(hora_gpu_enter(gpu));
    must(gpu->cuda->stream_create(&stream, HORA_CUDA_STREAM_NON_BLOCKING, 0), "a stream");
    hora_gpu_leave(gpu);
    return stream;
}

static bool reuse(device_buffer_t *b, size_t bytes) {
    kept_t **at = &buffers, *kept;
    pthread_mutex_lock(&lock);
    while (*at != NULL && (*at)->b.bytes != bytes)
        at = &(*at)->next;
    kept = *at;
    if (kept != NULL) {
        *at = kept->next;
        *b = kept->b;
        free(kept);
    }
    pthread_mutex_unlock(&lock);
    return kept != NULL;
}

void device_make(device_buffer_t *b, size_t bytes) {
    uint64_t at;
    void    *host;
    if (reuse(b, bytes))
        return;
    harness_ok(hora_gpu_enter(gpu));
    pthread_mutex_lock(&lock);
    at = take_part(bytes);
    pthread_mutex_unlock(&lock);
    must(gpu->cuda->host_alloc(&host, bytes > 0 ? bytes : 1, 0), "pinned memory");
    hora_gpu_leave(gpu);
    *b = (device_buffer_t){(void *)(uintptr_t)at, host, bytes};
}

void device_destroy(device_buffer_t *b) {
    kept_t *kept = malloc(sizeof(*kept));
    harness_check(kept != NULL, "%s", "memory");
    pthread_mutex_lock(&lock);
    *kept = (kept_t){buffers, *b};
    buffers = kept;
    pthread_mutex_unlock(&lock);
}

void device_put(const device_buffer_t *b, void *stream) {
    if (b->bytes == 0)
        return;
    harness_ok(hora_gpu_enter(gpu));
    must(gpu->cuda->copy_in((uint64_t)(uintptr_t)b->at, b->host, b->bytes, stream), "a copy in");
    hora_gpu_leave(gpu);
}

void device_get_from(const void *at, void *pinned, size_t bytes, void *stream) {
    if (bytes == 0)
        return;
    harness_ok(hora_gpu_enter(gpu));
    must(gpu->cuda->copy_out(pinned, (uint64_t)(uintptr_t)at, bytes, stream), "a copy out");
    hora_gpu_leave(gpu);
}

void device_get(const device_buffer_t *b, void *stream) {
    device_get_from(b->at, b->host, b->bytes, stream);
}

void *device_alloc(size_t bytes) {
    uint64_t at;
    harness_ok(hora_gpu_enter(gpu));
    must(gpu->cuda->alloc(&at, bytes), "device memory");
    hora_gpu_leave(gpu);
    return (void *)(uintptr_t)at;
}

void device_free(void *at) {
    harness_ok(hora_gpu_enter(gpu));
    must(gpu->cuda->free((uint64_t)(uintptr_t)at), "freeing device memory");
    hora_gpu_leave(gpu);
}

void device_put_to(void *at, const void *pinned, size_t bytes, void *stream) {
    harness_ok(hora_gpu_enter(gpu));
    must(gpu->cuda->copy_in((uint64_t)(uintptr_t)at, pinned, bytes, stream), "a copy in");
    hora_gpu_leave(gpu);
}

bool device_is_idle(void *stream) {
    int result;
    harness_ok(hora_gpu_enter(gpu));
    result = gpu->cuda->stream_query(stream);
    hora_gpu_leave(gpu);
    return result != HORA_CUDA_NOT_READY;
}

void device_finish(void *stream) {
    struct timespec nap = {0, 20000};
    double          begin = harness_now();
    int             result;
    harness_ok(hora_gpu_enter(gpu));
    while ((result = gpu->cuda->stream_query(stream)) == HORA_CUDA_NOT_READY) {
        harness_check(harness_now() - begin < LIMIT, "%s", "the GPU does not come to it");
        nanosleep(&nap, NULL);
    }
    must(result, "work on the GPU");
    hora_gpu_leave(gpu);
}
