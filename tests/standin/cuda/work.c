/*
 * The stand-in's copies and kernels (standin.h): what streams do. The kernels are the functions of
 * kernels/cuda/element.h, compiled for the host. Copies' addresses are looked up when they are
 * queued, kernels' when they run: a wrong one then makes all later calls fail, as on a GPU. Any
 * thread.
 */
#include "standin.h"

#include <kernels/cuda/kernels.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- Copies ---------------------------------------------------------------------------------- */

typedef struct copy {
    void       *dst;
    const void *src;
    void       *held; /* freed after it, or NULL */
    size_t      bytes;
} copy_t;

static void run_copy(void *args) {
    const copy_t *copy = args;
    if (!standin_is_lost())
        memmove(copy->dst, copy->src, copy->bytes);
    free(copy->held);
}

/* Pageable memory is read before the call returns, as CUDA may do, not later. */
EXPORT int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t bytes, hora_cuda_stream_t stream);
int cuMemcpyHtoDAsync_v2(uint64_t dst, const void *src, size_t bytes, hora_cuda_stream_t stream) {
    int    gpu, result = standin_enter_gpu("cuMemcpyHtoDAsync_v2", &gpu);
    copy_t copy = {.src = src, .bytes = bytes};
    if (result != HORA_CUDA_SUCCESS || bytes == 0)
        return result;
    copy.dst = standin_memory(dst, bytes, gpu);
    if (copy.dst == NULL)
        return STANDIN_INVALID;
    if (!standin_pinned(src, bytes)) {
        copy.held = malloc(bytes);
        if (copy.held == NULL)
            return HORA_CUDA_OUT_OF_MEMORY;
        copy.src = memcpy(copy.held, src, bytes);
    }
    return standin_queue(gpu, stream, run_copy, &copy, sizeof(copy));
}

/* Into pageable memory it blocks until it is done, as CUDA does. */
EXPORT int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t bytes, hora_cuda_stream_t stream);
int cuMemcpyDtoHAsync_v2(void *dst, uint64_t src, size_t bytes, hora_cuda_stream_t stream) {
    int    gpu, result = standin_enter_gpu("cuMemcpyDtoHAsync_v2", &gpu);
    copy_t copy = {.dst = dst, .bytes = bytes};
    if (result != HORA_CUDA_SUCCESS || bytes == 0)
        return result;
    copy.src = standin_memory(src, bytes, gpu);
    if (copy.src == NULL)
        return STANDIN_INVALID;
    result = standin_queue(gpu, stream, run_copy, &copy, sizeof(copy));
    if (result == HORA_CUDA_SUCCESS && !standin_pinned(dst, bytes))
        result = standin_wait(gpu, stream);
    return result;
}

EXPORT int cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t bytes, hora_cuda_stream_t stream);
int cuMemcpyDtoDAsync_v2(uint64_t dst, uint64_t src, size_t bytes, hora_cuda_stream_t stream) {
    int    gpu, result = standin_enter_gpu("cuMemcpyDtoDAsync_v2", &gpu);
    copy_t copy = {.bytes = bytes};
    if (result != HORA_CUDA_SUCCESS || bytes == 0)
        return result;
    copy.dst = standin_memory(dst, bytes, -1);
    copy.src = standin_memory(src, bytes, -1);
    if (copy.dst == NULL || copy.src == NULL)
        return STANDIN_INVALID;
    return standin_queue(gpu, stream, run_copy, &copy, sizeof(copy));
}

typedef struct fill {
    void  *at;
    size_t bytes;
    int    value;
} fill_t;

static void run_fill(void *args) {
    const fill_t *fill = args;
    memset(fill->at, fill->value, fill->bytes);
}

EXPORT int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, hora_cuda_stream_t stream);
int cuMemsetD8Async(uint64_t at, unsigned char value, size_t bytes, hora_cuda_stream_t stream) {
    int    gpu, result = standin_enter_gpu("cuMemsetD8Async", &gpu);
    fill_t fill = {.bytes = bytes, .value = value};
    if (result != HORA_CUDA_SUCCESS || bytes == 0)
        return result;
    fill.at = standin_memory(at, bytes, gpu);
    if (fill.at == NULL)
        return STANDIN_INVALID;
    return standin_queue(gpu, stream, run_fill, &fill, sizeof(fill));
}

/* ---- Kernels --------------------------------------------------------------------------------- */

/* A kernel's address; wrong ones are remembered in *result. */
static void *place(uint64_t at, uint64_t count, size_t size, int gpu, int *result) {
    void *real = standin_memory(at, (size_t)count * size, gpu);
    if (count == 0)
        return NULL;
    if (real == NULL)
        *result = STANDIN_ADDRESS;
    else if (at % size != 0)
        *result = STANDIN_MISALIGNED;
    return real;
}

/* Places of a reduction, looked up; `vector` promises multiples of 16. */
typedef struct places {
    void *src[HORA_CUDA_WAYS], *dst[HORA_CUDA_WAYS];
} places_t;

static int look_up(const hora_cuda_reduce_t *job, size_t size, int gpu, places_t *at) {
    int result = HORA_CUDA_SUCCESS;
    for (int i = 0; i < job->nsrc; i++)
        at->src[i] = place(job->src[i], job->count, job->vector ? 1 : size, gpu, &result);
    for (int i = 0; i < job->ndst; i++)
        at->dst[i] = place(job->dst[i], job->count, job->vector ? 1 : size, gpu, &result);
    for (int i = 0; job->vector && i < job->nsrc; i++)
        result = job->src[i] % 16 != 0 ? STANDIN_MISALIGNED : result;
    for (int i = 0; job->vector && i < job->ndst; i++)
        result = job->dst[i] % 16 != 0 ? STANDIN_MISALIGNED : result;
    return result;
}

/* One source and no scale is a copy of bits, as in reduce.cuh. */
#define DEFINE_REDUCE(S, T, A, DTYPE)                                                             \
    static int reduce_##S(const void *args, int gpu) {                                            \
        const hora_cuda_reduce_t *job = args;                                                     \
        bool     copy = job->nsrc == 1 && job->how.prescale == 1.0 && job->how.divisor == 1 &&    \
                        job->how.postscale == 1.0;                                                \
        places_t at;                                                                              \
        int      result = look_up(job, sizeof(T), gpu, &at);                                      \
        for (uint64_t i = 0; result == HORA_CUDA_SUCCESS && i < job->count; i++) {                \
            T values[HORA_CUDA_WAYS] = {0}, out;                                                  \
            for (int s = 0; s < job->nsrc; s++)                                                   \
                values[s] = ((const T *)at.src[s])[i];                                            \
            out = copy ? values[0] : hora_element_reduce_##S(&job->how, (hora_op_t)job->op,       \
                                                             values, job->nsrc);                  \
            for (int d = 0; d < job->ndst; d++)                                                   \
                ((T *)at.dst[d])[i] = out;                                                        \
        }                                                                                         \
        return result;                                                                            \
    }
HORA_ELEMENT_TYPES(DEFINE_REDUCE)

typedef void (*move_fn)(const void *src, void *dst, uint64_t count, double scale);

#define DEFINE_CAST(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                       \
    static void move_##FROM##_##TO(const void *src, void *dst, uint64_t count, double scale) {    \
        for (uint64_t i = 0; i < count; i++)                                                      \
            ((TTO *)dst)[i] = hora_element_cast_##FROM##_##TO(((const TFROM *)src)[i], scale);    \
    }
HORA_ELEMENT_CASTS(DEFINE_CAST)

#define DEFINE_SAME(N)                                                                            \
    static void move_bytes##N(const void *src, void *dst, uint64_t count, double scale) {         \
        memmove(dst, src, count * N);                                                             \
    }
DEFINE_SAME(1)
DEFINE_SAME(2)
DEFINE_SAME(4)
DEFINE_SAME(8)

static int pack(const hora_cuda_pack_t *job, int gpu, size_t from, size_t to, move_fn move) {
    int                      result = HORA_CUDA_SUCCESS;
    const hora_cuda_piece_t *pieces = place(job->pieces, job->npieces * sizeof(*pieces), 1, gpu, &result);
    for (uint32_t i = 0; result == HORA_CUDA_SUCCESS && i < job->npieces; i++) {
        void *src = place(pieces[i].src, pieces[i].count, from, gpu, &result);
        void *dst = place(pieces[i].dst, pieces[i].count, to, gpu, &result);
        if (result == HORA_CUDA_SUCCESS && pieces[i].count > 0)
            move(src, dst, pieces[i].count, job->scale);
    }
    return result;
}

#define DEFINE_PACK(NAME, FROM, TO)                                                               \
    static int pack_##NAME(const void *args, int gpu) {                                           \
        return pack(args, gpu, FROM, TO, move_##NAME);                                            \
    }
#define DEFINE_CAST_PACK(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                  \
    DEFINE_PACK(FROM##_##TO, sizeof(TFROM), sizeof(TTO))
HORA_ELEMENT_CASTS(DEFINE_CAST_PACK)
DEFINE_PACK(bytes1, 1, 1)
DEFINE_PACK(bytes2, 2, 2)
DEFINE_PACK(bytes4, 4, 4)
DEFINE_PACK(bytes8, 8, 8)

typedef struct kernel {
    const char *name;
    size_t      bytes; /* of its argument */
    int (*run)(const void *args, int gpu);
} kernel_t;

#define REDUCE_ROW(S, T, A, DTYPE) {"hora_reduce_" #S, sizeof(hora_cuda_reduce_t), reduce_##S},
#define PACK_ROW(NAME)             {"hora_pack_" #NAME, sizeof(hora_cuda_pack_t), pack_##NAME},
#define CAST_ROW(FROM, TO, TFROM, TTO, P, WIDEN, NARROW) PACK_ROW(FROM##_##TO)
static const kernel_t kernels[] = {
    HORA_ELEMENT_TYPES(REDUCE_ROW) HORA_ELEMENT_CASTS(CAST_ROW) PACK_ROW(bytes1) PACK_ROW(bytes2)
    PACK_ROW(bytes4) PACK_ROW(bytes8)};

EXPORT int cuModuleLoadData(hora_cuda_module_t *module_p, const void *image);
int cuModuleLoadData(hora_cuda_module_t *module_p, const void *image) {
    int gpu, result = standin_enter_gpu("cuModuleLoadData", &gpu);
    if (result == HORA_CUDA_SUCCESS) {
        *module_p = (void *)(uintptr_t)kernels;
        standin_count(&cuda_standin.loaded, 1);
    }
    return result;
}

EXPORT int cuModuleUnload(hora_cuda_module_t module);
int cuModuleUnload(hora_cuda_module_t module) {
    int gpu, result = standin_enter_gpu("cuModuleUnload", &gpu);
    if (result == HORA_CUDA_SUCCESS)
        standin_count(&cuda_standin.loaded, -1);
    return result;
}

EXPORT int cuModuleGetFunction(hora_cuda_function_t *function_p, hora_cuda_module_t module,
                               const char *name);
int cuModuleGetFunction(hora_cuda_function_t *function_p, hora_cuda_module_t module, const char *name) {
    int gpu, result = standin_enter_gpu("cuModuleGetFunction", &gpu);
    if (result != HORA_CUDA_SUCCESS)
        return result;
    for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++)
        if (strcmp(kernels[i].name, name) == 0) {
            *function_p = (void *)(uintptr_t)&kernels[i];
            return result;
        }
    return STANDIN_NOT_FOUND;
}

typedef struct launch {
    const kernel_t *kernel;
    int             gpu;
    union {
        hora_cuda_reduce_t reduce;
        hora_cuda_pack_t   pack;
    } args;
} launch_t;

static void run_kernel(void *args) {
    const launch_t *launch = args;
    int             result = launch->kernel->run(&launch->args, launch->gpu);
    atomic_fetch_add(&cuda_standin.ran, 1);
    if (result == HORA_CUDA_SUCCESS)
        return;
    fprintf(stderr, "cuda stand-in: %s on GPU %d: %s address\n", launch->kernel->name, launch->gpu,
            result == STANDIN_ADDRESS ? "illegal" : "misaligned");
    standin_lose(result);
}

EXPORT int cuLaunchKernel(hora_cuda_function_t function, unsigned grid_x, unsigned grid_y,
                          unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                          unsigned shared, hora_cuda_stream_t stream, void **parameters, void **extra);
int cuLaunchKernel(hora_cuda_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                   hora_cuda_stream_t stream, void **parameters, void **extra) {
    int      gpu, result = standin_enter_gpu("cuLaunchKernel", &gpu);
    launch_t launch = {.kernel = function, .gpu = gpu};
    if (result != HORA_CUDA_SUCCESS)
        return result;
    if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x != HORA_CUDA_THREADS || block_y != 1 ||
        block_z != 1 || shared != 0 || extra != NULL)
        return STANDIN_INVALID;
    memcpy(&launch.args, parameters[0], launch.kernel->bytes);
    standin_count(&cuda_standin.launches, 1);
    __atomic_store_n(&cuda_standin.blocks, grid_x, __ATOMIC_RELAXED);
    return standin_queue(gpu, stream, run_kernel, &launch, sizeof(launch));
}

/* ---- Functions of the host, on a stream: for the stand-in of NCCL ----------------------------- */

typedef struct host_call {
    void (*function)(void *data);
    void *data;
} host_call_t;

static void run_host_call(void *args) {
    const host_call_t *call = args;
    call->function(call->data);
}

EXPORT int cuLaunchHostFunc(hora_cuda_stream_t stream, void (*function)(void *data), void *data);
int cuLaunchHostFunc(hora_cuda_stream_t stream, void (*function)(void *data), void *data) {
    int         gpu, result = standin_enter_gpu("cuLaunchHostFunc", &gpu);
    host_call_t call = {function, data};
    return result != HORA_CUDA_SUCCESS ? result
                                       : standin_queue(gpu, stream, run_host_call, &call, sizeof(call));
}
