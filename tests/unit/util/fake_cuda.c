/*
 * libcuda.so.1 without a GPU (fake_cuda.h). FAKE_VERSION: what the driver says it is; FAKE_DEVICES:
 * how many GPUs it sees; FAKE_LACKS: without cuStreamQuery.
 */
#include "fake_cuda.h"

#include "util/cuda.h"

#include <stdio.h>
#include <string.h>

#ifndef FAKE_VERSION
#define FAKE_VERSION 12040
#endif
#ifndef FAKE_DEVICES
#define FAKE_DEVICES 2
#endif

__attribute__((visibility("default"))) fake_cuda_t fake_cuda;

static int called(const char *symbol) {
    if (fake_cuda.ncalls < FAKE_CALLS_MAX)
        fake_cuda.calls[fake_cuda.ncalls++] = symbol;
    if (fake_cuda.fails != NULL && strcmp(fake_cuda.fails, symbol) == 0)
        return fake_cuda.result;
    return HORA_CUDA_SUCCESS;
}

/* What each does beside being called. */
#define FAKE(symbol, parameters, effect)                                                          \
    __attribute__((visibility("default"))) int symbol parameters;                                 \
    int symbol parameters {                                                                       \
        int result = called(#symbol);                                                             \
        if (result == HORA_CUDA_SUCCESS)                                                          \
            effect;                                                                               \
        return result;                                                                            \
    }

FAKE(cuInit, (unsigned flags), (void)flags)
FAKE(cuDriverGetVersion, (int *version_p), *version_p = FAKE_VERSION)
FAKE(cuDeviceGetCount, (int *count_p), *count_p = FAKE_DEVICES)
FAKE(cuDeviceGet, (int *device_p, int ordinal), *device_p = ordinal)
FAKE(cuDeviceGetName, (char *name, int room, int device), snprintf(name, (size_t)room, "Fake GPU"))
FAKE(cuDeviceTotalMem_v2, (size_t *bytes_p, int device), *bytes_p = (size_t)3 << 30)
FAKE(cuDeviceGetUuid_v2, (uint8_t *uuid16, int device), memset(uuid16, 7, 16))
FAKE(cuDeviceGetAttribute, (int *value_p, int attribute, int device), *value_p = 9)
FAKE(cuDevicePrimaryCtxRetain, (void **context_p, int device),
     (*context_p = &fake_cuda, fake_cuda.retained++))
FAKE(cuDevicePrimaryCtxRelease_v2, (int device), fake_cuda.retained--)
FAKE(cuCtxPushCurrent_v2, (void *context), fake_cuda.depth++)
FAKE(cuCtxPopCurrent_v2, (void **context_p), fake_cuda.depth--)
FAKE(cuPointerGetAttribute, (void *value_p, int attribute, uint64_t pointer), (void)pointer)
FAKE(cuModuleLoadData, (void **module_p, const void *image),
     (*module_p = &fake_cuda, fake_cuda.loaded++))
FAKE(cuModuleUnload, (void *module), fake_cuda.loaded--)
FAKE(cuModuleGetFunction, (void **function_p, void *module, const char *name),
     *function_p = (void *)(uintptr_t)name)
FAKE(cuLaunchKernel,
     (void *function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
      unsigned shared, void *stream, void **parameters, void **extra),
     (fake_cuda.launches++, fake_cuda.blocks = x))
FAKE(cuMemAlloc_v2, (uint64_t *pointer_p, size_t bytes), *pointer_p = 4096)
FAKE(cuMemFree_v2, (uint64_t pointer), (void)pointer)
FAKE(cuMemHostAlloc, (void **pointer_p, size_t bytes, unsigned flags), *pointer_p = &fake_cuda)
FAKE(cuMemFreeHost, (void *pointer), (void)pointer)
FAKE(cuMemcpyHtoDAsync_v2, (uint64_t dst, const void *src, size_t bytes, void *stream), (void)dst)
FAKE(cuMemcpyDtoHAsync_v2, (void *dst, uint64_t src, size_t bytes, void *stream), (void)dst)
FAKE(cuMemcpyDtoDAsync_v2, (uint64_t dst, uint64_t src, size_t bytes, void *stream), (void)dst)
FAKE(cuStreamCreateWithPriority, (void **stream_p, unsigned flags, int priority),
     *stream_p = &fake_cuda)
FAKE(cuStreamDestroy_v2, (void *stream), (void)stream)
#ifndef FAKE_LACKS
FAKE(cuStreamQuery, (void *stream), (void)stream)
#endif
FAKE(cuStreamWaitEvent, (void *stream, void *event, unsigned flags), (void)event)
FAKE(cuEventCreate, (void **event_p, unsigned flags), *event_p = &fake_cuda)
FAKE(cuEventDestroy_v2, (void *event), (void)event)
FAKE(cuEventRecord, (void *event, void *stream), (void)event)
FAKE(cuEventQuery, (void *event), (void)event)
FAKE(cuIpcGetMemHandle, (void *handle_p, uint64_t pointer), (void)pointer)
FAKE(cuIpcOpenMemHandle_v2, (uint64_t *pointer_p, hora_cuda_bytes64_t handle, unsigned flags),
     *pointer_p = 4096)
FAKE(cuIpcCloseMemHandle, (uint64_t pointer), (void)pointer)
FAKE(cuIpcGetEventHandle, (void *handle_p, void *event), (void)event)
FAKE(cuIpcOpenEventHandle, (void **event_p, hora_cuda_bytes64_t handle), *event_p = &fake_cuda)

__attribute__((visibility("default"))) int cuGetErrorName(int result, const char **name_p);
int cuGetErrorName(int result, const char **name_p) {
    *name_p = result == HORA_CUDA_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_FAKE";
    return result == 12345 ? 1 : HORA_CUDA_SUCCESS;
}

__attribute__((visibility("default"))) int cuGetErrorString(int result, const char **text_p);
int cuGetErrorString(int result, const char **text_p) {
    *text_p = result == HORA_CUDA_OUT_OF_MEMORY ? "out of memory" : "it failed";
    return result == 12345 ? 1 : HORA_CUDA_SUCCESS;
}
