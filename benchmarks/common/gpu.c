/*
 * A little of the CUDA driver for the benchmarks (gpu.h). The declarations are the driver API's.
 */
#include "gpu.h"

#include <dlfcn.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NOT_READY 600 /* CUDA_ERROR_NOT_READY */
#define BLOCK     ((size_t)2 << 20)

/* X(member, symbol, parameters) */
#define FUNCTIONS(X)                                                                              \
    X(init, cuInit, (unsigned flags))                                                             \
    X(error_text, cuGetErrorString, (int result, const char **text_p))                            \
    X(device_count, cuDeviceGetCount, (int *count_p))                                             \
    X(device, cuDeviceGet, (int *device_p, int ordinal))                                          \
    X(device_name, cuDeviceGetName, (char *name, int room, int device))                           \
    X(context_retain, cuDevicePrimaryCtxRetain, (void **context_p, int device))                   \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (int device))                                \
    X(context_push, cuCtxPushCurrent_v2, (void *context))                                         \
    X(context_pop, cuCtxPopCurrent_v2, (void **context_p))                                        \
    X(alloc, cuMemAlloc_v2, (uint64_t * pointer_p, size_t bytes))                                 \
    X(free, cuMemFree_v2, (uint64_t pointer))                                                     \
    X(copy_in, cuMemcpyHtoDAsync_v2, (uint64_t dst, const void *src, size_t bytes, void *stream)) \
    X(copy_out, cuMemcpyDtoHAsync_v2, (void *dst, uint64_t src, size_t bytes, void *stream))      \
    X(stream_create, cuStreamCreateWithPriority, (void **stream_p, unsigned flags, int priority)) \
    X(stream_destroy, cuStreamDestroy_v2, (void *stream))                                         \
    X(stream_query, cuStreamQuery, (void *stream))

#define MEMBER(member, symbol, parameters) int(*member) parameters;
static struct {
    FUNCTIONS(MEMBER)
} cuda;

#define ROW(member, symbol, parameters) {#symbol, &cuda.member},
static const struct {
    const char *name;
    void       *function;
} rows[] = {FUNCTIONS(ROW)};

static bool fail(gpu_t *gpu, const char *what, const char *why) {
    snprintf(gpu->error, sizeof(gpu->error), "%s: %.180s", what, why);
    return false;
}

static bool good(gpu_t *gpu, int result, const char *what) {
    const char *text = NULL;
    if (result == 0)
        return true;
    cuda.error_text(result, &text);
    return fail(gpu, what, text != NULL ? text : "an unknown error");
}

const char *gpu_text(const gpu_t *gpu) {
    return gpu->error[0] != '\0' ? gpu->error : hora_last_error();
}

/* ---- Opening ------------------------------------------------------------------------------- */

static bool load(gpu_t *gpu) {
    const char *setting = getenv("HORA_CUDA_LIBRARY");
    const char *path = setting != NULL && setting[0] != '\0' ? setting : "libcuda.so.1";
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return fail(gpu, "no CUDA driver here (install NVIDIA's, or leave --device cuda out)", dlerror());
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        void *function = dlsym(library, rows[i].name);
        if (function == NULL)
            return fail(gpu, "the CUDA driver is too old: it has no", rows[i].name);
        memcpy(rows[i].function, &function, sizeof(function));
    }
    return true;
}

static bool choose(gpu_t *gpu, int local_rank) {
    int result = cuda.init(0);
    if (result == 0)
        result = cuda.device_count(&gpu->count);
    if (!good(gpu, result, "no GPU can be used (CUDA_VISIBLE_DEVICES, the container's access to it)"))
        return false;
    if (gpu->count < 1)
        return fail(gpu, "no GPU", "none is visible (CUDA_VISIBLE_DEVICES, the container's access)");
    gpu->ordinal = local_rank % gpu->count;
    return good(gpu, cuda.device(&gpu->device, gpu->ordinal), "looking the GPU up") &&
           good(gpu, cuda.device_name(gpu->name, sizeof(gpu->name), gpu->device), "asking its name");
}

bool gpu_open(gpu_t *gpu, int local_rank) {
    memset(gpu, 0, sizeof(*gpu));
    if (!load(gpu) || !choose(gpu, local_rank) ||
        !good(gpu, cuda.context_retain(&gpu->context, gpu->device), "making a context"))
        return false;
    if (good(gpu, cuda.context_push(gpu->context), "entering the context") &&
        good(gpu, cuda.stream_create(&gpu->stream, 1 /* non-blocking */, 0), "making a stream"))
        return true;
    cuda.context_release(gpu->device);
    return false;
}

void gpu_close(gpu_t *gpu) {
    void *context;
    cuda.stream_destroy(gpu->stream);
    cuda.context_pop(&context);
    cuda.context_release(gpu->device);
}

/* ---- Mirrors ------------------------------------------------------------------------------- */

static bool finish(gpu_t *gpu) {
    int result;
    while ((result = cuda.stream_query(gpu->stream)) == NOT_READY)
        sched_yield();
    return good(gpu, result, "running work on the GPU");
}

/* Whole blocks, which other processes can open: other allocations share blocks. */
static bool get_memory(gpu_t *gpu, size_t bytes, unsigned char **memory_p) {
    uint64_t pointer = 0;
    size_t   all = (bytes / BLOCK + 1) * BLOCK;
    if (!good(gpu, cuda.alloc(&pointer, all), "memory on the GPU"))
        return false;
    *memory_p = (unsigned char *)(uintptr_t)pointer;
    return true;
}

static void put_memory(void *memory) {
    cuda.free((uint64_t)(uintptr_t)memory);
}

bool gpu_mirror_open(gpu_mirror_t *mirror, gpu_t *gpu, size_t in_bytes, size_t out_bytes) {
    *mirror = (gpu_mirror_t){.gpu = gpu, .in_bytes = in_bytes, .out_bytes = out_bytes};
    if (!get_memory(gpu, in_bytes, &mirror->in))
        return false;
    if (get_memory(gpu, out_bytes, &mirror->out))
        return true;
    put_memory(mirror->in);
    return false;
}

void gpu_mirror_close(gpu_mirror_t *mirror) {
    put_memory(mirror->in);
    put_memory(mirror->out);
}

bool gpu_mirror_put(gpu_mirror_t *m, const coll_t *c) {
    size_t in = c->in_place ? 0 : coll_bytes_in(c), out = coll_bytes_out(c);
    int    result = 0;
    if (in > m->in_bytes || out > m->out_bytes)
        return fail(m->gpu, "a copy to the GPU", "the call is larger than its mirror");
    if (in > 0)
        result = cuda.copy_in((uint64_t)(uintptr_t)m->in, c->in_memory, in, m->gpu->stream);
    if (result == 0)
        result = cuda.copy_in((uint64_t)(uintptr_t)m->out, c->out_memory, out, m->gpu->stream);
    return good(m->gpu, result, "a copy to the GPU") && finish(m->gpu);
}

hora_status_t gpu_mirror_call(gpu_mirror_t *m, coll_t *c, hora_comm_t *comm) {
    unsigned char *in = c->in_memory, *out = c->out_memory;
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    options.device = m->gpu->ordinal;
    options.stream = m->gpu->stream;
    c->in_memory = m->in;
    c->out_memory = m->out;
    hora_status_t st = coll_call(c, comm, &options);
    c->in_memory = in;
    c->out_memory = out;
    return st == HORA_OK && !finish(m->gpu) ? HORA_ERR_SYSTEM : st;
}

bool gpu_mirror_get(gpu_mirror_t *m, coll_t *c) {
    size_t in = c->in_place ? 0 : coll_bytes_in(c), out = coll_bytes_out(c);
    int    result = 0;
    if (in > 0)
        result = cuda.copy_out(c->in_memory, (uint64_t)(uintptr_t)m->in, in, m->gpu->stream);
    if (result == 0)
        result = cuda.copy_out(c->out_memory, (uint64_t)(uintptr_t)m->out, out, m->gpu->stream);
    return good(m->gpu, result, "a copy from the GPU") && finish(m->gpu);
}
