/*
 * One GPU of this process: its primary context, which torch uses too, and hora's kernels on it. The
 * functions enter the context and leave it again, so that the caller's current one does not change.
 * Any thread; one stream is given work by one thread at a time.
 */
#ifndef HORA_UTIL_GPU_H
#define HORA_UTIL_GPU_H

#include "util/cuda.h"

#include <kernels/cuda/kernels.h>

#define HORA_GPU_KERNELS 37 /* of the image: hora_cuda_kernel_name */

typedef struct hora_gpu_kernel {
    const char          *name; /* static storage: from kernels/cuda/plan.c */
    hora_cuda_function_t function;
} hora_gpu_kernel_t;

typedef struct hora_gpu {
    const hora_cuda_t  *cuda;
    hora_cuda_device_t  device;
    hora_cuda_context_t context;
    hora_cuda_module_t  module;
    int                 ordinal;
    int                 processors;
    char                name[96];
    hora_gpu_kernel_t   kernels[HORA_GPU_KERNELS];
    int                 nkernels;
} hora_gpu_t;

/* CUDA gives memory to other processes in such blocks, which smaller allocations share. */
#define HORA_GPU_BLOCK ((size_t)2 << 20)

/* How much to allocate for `bytes` that other processes may use: from a block on, whole ones. */
static inline size_t hora_gpu_whole_blocks(size_t bytes) {
    size_t over = bytes % HORA_GPU_BLOCK;
    return bytes < HORA_GPU_BLOCK || over == 0 || bytes > SIZE_MAX - HORA_GPU_BLOCK
               ? bytes
               : bytes - over + HORA_GPU_BLOCK;
}

/* Where work is queued. */
typedef struct hora_gpu_place {
    hora_gpu_t        *gpu;
    hora_cuda_stream_t stream; /* NULL: the default stream */
} hora_gpu_place_t;

/* Opens GPU number `ordinal`, as CUDA counts the visible ones. All kernels are loaded at once: a
 * lazy load in the middle of a step could wait for a kernel that waits for us. HORA_ERR_UNSUPPORTED:
 * built without nvcc, or the driver cannot use this build's device code. */
hora_status_t hora_gpu_open(const hora_cuda_t *cuda, int ordinal, hora_gpu_t *gpu_p);
/* Gives it back. Nothing of ours may be in flight on it. */
void hora_gpu_close(hora_gpu_t *gpu);

/* This process's one hora_gpu_t for GPU number `ordinal`: opened at the first call that succeeds, kept
 * until the process ends, never closed. library: as hora_cuda_open. A child of a fork has none:
 * HORA_ERR_UNSUPPORTED. */
hora_status_t hora_gpu_get(const char *library, int ordinal, hora_gpu_t **gpu_p);

/* HORA_OK, or the failed call's error (hora_cuda_fail): the text begins with `what`, and names the GPU. */
hora_status_t hora_gpu_check(const hora_gpu_t *gpu, hora_cuda_result_t result, const char *what);

/* Makes the GPU's context current until hora_gpu_leave; they nest. */
hora_status_t hora_gpu_enter(const hora_gpu_t *gpu);
void          hora_gpu_leave(const hora_gpu_t *gpu);

/* Gives memory of GPU number `ordinal` back, which hora_gpu_get has opened. May wait for all that is
 * queued there. */
void hora_gpu_free(int ordinal, void *at);

/* Queues a kernel of HORA_CUDA_THREADS threads per block on the stream; returns at once. args: its
 * one parameter, copied. blocks 0: nothing is to be done, and HORA_OK. */
hora_status_t hora_gpu_launch(const hora_gpu_t *gpu, const char *kernel, unsigned blocks,
                              void *args, hora_cuda_stream_t stream);

#endif
