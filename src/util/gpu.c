/*
 * A GPU and hora's kernels on it (gpu.h). Any thread.
 */
#include "util/gpu.h"

#include "util/fork.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ORDINALS 64 /* more than one process sees */

static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the three below */
static hora_gpu_t     *all[ORDINALS];
static bool            any; /* of them is open */
static unsigned        generation; /* of the process that opened them (fork.h) */

static hora_status_t fail(const hora_gpu_t *gpu, hora_cuda_result_t result, const char *what) {
    char text[192];
    snprintf(text, sizeof(text), "%s on GPU %d (%s)", what, gpu->ordinal, gpu->name);
    return hora_cuda_fail(gpu->cuda, result, text);
}

hora_status_t hora_gpu_check(const hora_gpu_t *gpu, hora_cuda_result_t result, const char *what) {
    return result == HORA_CUDA_SUCCESS ? HORA_OK : fail(gpu, result, what);
}

hora_status_t hora_gpu_enter(const hora_gpu_t *gpu) {
    hora_cuda_result_t result = gpu->cuda->context_push(gpu->context);
    return hora_gpu_check(gpu, result, "entering the context");
}

void hora_gpu_leave(const hora_gpu_t *gpu) {
    hora_cuda_context_t left;
    gpu->cuda->context_pop(&left);
}

/* Device, name, context. */
static hora_status_t open_context(hora_gpu_t *gpu) {
    const hora_cuda_t *cuda = gpu->cuda;
    hora_cuda_result_t result = cuda->device(&gpu->device, gpu->ordinal);
    if (result != HORA_CUDA_SUCCESS)
        return fail(gpu, result, "looking it up");
    if (cuda->device_name(gpu->name, sizeof(gpu->name), gpu->device) != HORA_CUDA_SUCCESS)
        snprintf(gpu->name, sizeof(gpu->name), "unnamed");
    result = cuda->device_attribute(&gpu->processors, HORA_CUDA_PROCESSORS, gpu->device);
    if (result != HORA_CUDA_SUCCESS)
        return fail(gpu, result, "asking for its multiprocessors");
    result = cuda->context_retain(&gpu->context, gpu->device);
    return hora_gpu_check(gpu, result, "making a context");
}

/* CUDA loads a kernel only when it is asked for it (CUDA_MODULE_LOADING, lazy since 12.2), and
 * may then wait for all that runs: for a kernel of NCCL's, say, that waits for this rank. So all
 * are asked for here. In the context. */
static hora_status_t find_all(hora_gpu_t *gpu) {
    const char *name;
    while (gpu->nkernels < HORA_GPU_KERNELS &&
           (name = hora_cuda_kernel_name(gpu->nkernels)) != NULL) {
        hora_gpu_kernel_t *kernel = &gpu->kernels[gpu->nkernels++];
        hora_cuda_result_t result;
        kernel->name = name;
        result = gpu->cuda->module_function(&kernel->function, gpu->module, name);
        if (result != HORA_CUDA_SUCCESS)
            return fail(gpu, result, name);
    }
    return HORA_OK;
}

/* Names are the literals of plan.c, so the pointers are compared first. */
static hora_cuda_function_t find(const hora_gpu_t *gpu, const char *name) {
    for (int i = 0; i < gpu->nkernels; i++)
        if (gpu->kernels[i].name == name || strcmp(gpu->kernels[i].name, name) == 0)
            return gpu->kernels[i].function;
    return NULL;
}

static hora_status_t load_kernels(hora_gpu_t *gpu) {
    char               why[256]; /* hora_fail writes over the text that hora_last_error returns */
    hora_cuda_result_t result;
    hora_status_t      st = hora_gpu_enter(gpu);
    if (st != HORA_OK)
        return st;
    result = gpu->cuda->module_load(&gpu->module, hora_cuda_image);
    if (result == HORA_CUDA_SUCCESS) {
        st = find_all(gpu);
        if (st != HORA_OK)
            gpu->cuda->module_unload(gpu->module);
    }
    hora_gpu_leave(gpu);
    if (result == HORA_CUDA_SUCCESS)
        return st;
    st = fail(gpu, result, "loading hora's kernels");
    if (st == HORA_ERR_NO_MEMORY)
        return st;
    if (hora_cuda_image_bytes == 0)
        return hora_fail(HORA_ERR_UNSUPPORTED, "this build has no CUDA kernels: build hora with "
                         "nvcc on PATH");
    snprintf(why, sizeof(why), "%.255s", hora_last_error());
    return hora_fail(HORA_ERR_UNSUPPORTED, "%s; this build's device code is newer than the driver: "
                     "update the driver, or build hora with an older nvcc", why);
}

hora_status_t hora_gpu_open(const hora_cuda_t *cuda, int ordinal, hora_gpu_t *gpu_p) {
    hora_gpu_t    gpu = {.cuda = cuda, .ordinal = ordinal, .name = "?"};
    hora_status_t st;
    st = open_context(&gpu);
    if (st != HORA_OK)
        return st;
    st = load_kernels(&gpu);
    if (st != HORA_OK)
        goto err_context;
    *gpu_p = gpu;
    return HORA_OK;

err_context:
    cuda->context_release(gpu.device);
    return st;
}

void hora_gpu_close(hora_gpu_t *gpu) {
    if (hora_gpu_enter(gpu) == HORA_OK) {
        gpu->cuda->module_unload(gpu->module);
        hora_gpu_leave(gpu);
    }
    gpu->cuda->context_release(gpu->device);
    *gpu = (hora_gpu_t){0};
}

/* The caller holds all_lock. */
static hora_status_t open_one(const char *library, int ordinal) {
    const hora_cuda_t *cuda;
    hora_gpu_t        *gpu;
    hora_status_t      st = hora_cuda_open(library, &cuda);
    if (st != HORA_OK)
        return st;
    if (ordinal < 0 || ordinal >= cuda->devices || ordinal >= ORDINALS)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "there is no GPU number %d: %d are visible", ordinal,
                         cuda->devices);
    gpu = calloc(1, sizeof(*gpu));
    if (gpu == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "out of memory for GPU %d", ordinal);
    st = hora_gpu_open(cuda, ordinal, gpu);
    if (st != HORA_OK)
        goto err_gpu;
    hora_fork_watch();
    generation = hora_fork_generation;
    any = true;
    all[ordinal] = gpu;
    return HORA_OK;

err_gpu:
    free(gpu);
    return st;
}

hora_status_t hora_gpu_get(const char *library, int ordinal, hora_gpu_t **gpu_p) {
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&all_lock);
    if (any && generation != hora_fork_generation)
        st = hora_fail(HORA_ERR_UNSUPPORTED, "CUDA cannot be used after a fork, once the parent used it");
    else if (ordinal < 0 || ordinal >= ORDINALS || all[ordinal] == NULL)
        st = open_one(library, ordinal);
    if (st == HORA_OK)
        *gpu_p = all[ordinal];
    pthread_mutex_unlock(&all_lock);
    return st;
}

void hora_gpu_free(int ordinal, void *at) {
    hora_gpu_t *gpu;
    if (hora_gpu_get("", ordinal, &gpu) != HORA_OK || hora_gpu_enter(gpu) != HORA_OK)
        return; /* the GPU is lost, and its memory with it */
    gpu->cuda->free((uint64_t)(uintptr_t)at);
    hora_gpu_leave(gpu);
}

hora_status_t hora_gpu_launch(const hora_gpu_t *gpu, const char *kernel, unsigned blocks,
                              void *args, hora_cuda_stream_t stream) {
    void                *parameters[1] = {args};
    hora_cuda_function_t function = find(gpu, kernel);
    hora_cuda_result_t   result;
    hora_status_t        st;
    if (blocks == 0)
        return HORA_OK;
    if (function == NULL)
        return hora_fail(HORA_ERR_INTERNAL, "there is no kernel %s", kernel);
    st = hora_gpu_enter(gpu);
    if (st != HORA_OK)
        return st;
    result = gpu->cuda->launch(function, blocks, 1, 1, HORA_CUDA_THREADS, 1, 1, 0, stream,
                               parameters, NULL);
    hora_gpu_leave(gpu);
    return hora_gpu_check(gpu, result, kernel);
}
