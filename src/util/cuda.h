/*
 * The CUDA driver, opened at run time: no CUDA header is needed to build, and no toolkit to run. Any
 * thread. The functions are CUDA's driver API, whose documentation says what they do; handles are
 * opaque, device pointers are uint64_t.
 */
#ifndef HORA_UTIL_CUDA_H
#define HORA_UTIL_CUDA_H

#include "util/status.h"

#include <stddef.h>
#include <stdint.h>

#define HORA_CUDA_SUCCESS         0
#define HORA_CUDA_OUT_OF_MEMORY   2
#define HORA_CUDA_NO_DEVICE       100
#define HORA_CUDA_NOT_READY       600
#define HORA_CUDA_DRIVER_MIN      12000 /* 12.0, as cuDriverGetVersion counts */

/* Values of CUdevice_attribute and of CUpointer_attribute that hora asks for. */
#define HORA_CUDA_PROCESSORS           16
#define HORA_CUDA_CAPABILITY_MAJOR     75
#define HORA_CUDA_CAPABILITY_MINOR     76
#define HORA_CUDA_IPC_EVENTS           125
#define HORA_CUDA_POINTER_MEMORY_TYPE  2 /* 1: host, 2: device */
#define HORA_CUDA_POINTER_ID           7 /* of its allocation, no other's in this process: uint64_t */
#define HORA_CUDA_POINTER_ORDINAL      9
#define HORA_CUDA_POINTER_IPC_CAPABLE  10 /* unsigned: another process can open its allocation */
#define HORA_CUDA_POINTER_START        11 /* of its allocation: uint64_t */
#define HORA_CUDA_POINTER_BYTES        12 /* of its allocation: size_t */

#define HORA_CUDA_CAPTURE_RELAXED      2 /* CU_STREAM_CAPTURE_MODE_RELAXED */

/* Flags of stream_create, event_create and ipc_memory_open. */
#define HORA_CUDA_STREAM_NON_BLOCKING 1 /* waits for no default stream */
#define HORA_CUDA_EVENT_NO_TIMING     2
#define HORA_CUDA_EVENT_INTERPROCESS  4 /* with NO_TIMING */
#define HORA_CUDA_IPC_PEER_ACCESS     1 /* also to another GPU's memory; CUDA takes no other value */

typedef int   hora_cuda_result_t; /* CUresult */
typedef int   hora_cuda_device_t; /* CUdevice */
typedef void *hora_cuda_context_t;
typedef void *hora_cuda_module_t;
typedef void *hora_cuda_function_t;
typedef void *hora_cuda_stream_t;
typedef void *hora_cuda_event_t;
typedef struct hora_cuda_bytes64 {
    char at[64]; /* CUipcMemHandle, CUipcEventHandle */
} hora_cuda_bytes64_t;

/* X(member, symbol, parameters); every one is required. There is no cuStreamSynchronize: a wait of the
 * host's has a deadline, so it asks stream_query. What frees may wait for all queued work. */
#define HORA_CUDA_FUNCTIONS(X)                                                                    \
    X(init, cuInit, (unsigned flags))                                                             \
    X(driver_version, cuDriverGetVersion, (int *version_p))                                       \
    X(error_name, cuGetErrorName, (hora_cuda_result_t result, const char **name_p))               \
    X(error_text, cuGetErrorString, (hora_cuda_result_t result, const char **text_p))             \
    X(device_count, cuDeviceGetCount, (int *count_p))                                             \
    X(device, cuDeviceGet, (hora_cuda_device_t *device_p, int ordinal))                           \
    X(device_name, cuDeviceGetName, (char *name, int room, hora_cuda_device_t device))            \
    X(device_memory, cuDeviceTotalMem_v2, (size_t *bytes_p, hora_cuda_device_t device))           \
    X(device_uuid, cuDeviceGetUuid_v2, (uint8_t *uuid16, hora_cuda_device_t device))              \
    X(device_attribute, cuDeviceGetAttribute,                                                     \
      (int *value_p, int attribute, hora_cuda_device_t device))                                   \
    X(context_retain, cuDevicePrimaryCtxRetain,                                                   \
      (hora_cuda_context_t *context_p, hora_cuda_device_t device))                                \
    X(context_release, cuDevicePrimaryCtxRelease_v2, (hora_cuda_device_t device))                 \
    X(context_push, cuCtxPushCurrent_v2, (hora_cuda_context_t context))                           \
    X(context_pop, cuCtxPopCurrent_v2, (hora_cuda_context_t *context_p))                          \
    X(pointer_attribute, cuPointerGetAttribute, (void *value_p, int attribute, uint64_t pointer)) \
    X(module_load, cuModuleLoadData, (hora_cuda_module_t *module_p, const void *image))           \
    X(module_unload, cuModuleUnload, (hora_cuda_module_t module))                                 \
    X(module_function, cuModuleGetFunction,                                                       \
      (hora_cuda_function_t *function_p, hora_cuda_module_t module, const char *name))            \
    X(launch, cuLaunchKernel,                                                                     \
      (hora_cuda_function_t function, unsigned grid_x, unsigned grid_y, unsigned grid_z,          \
       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,               \
       hora_cuda_stream_t stream, void **parameters, void **extra))                               \
    X(alloc, cuMemAlloc_v2, (uint64_t *pointer_p, size_t bytes))                                  \
    X(free, cuMemFree_v2, (uint64_t pointer))                                                     \
    X(host_alloc, cuMemHostAlloc, (void **pointer_p, size_t bytes, unsigned flags))               \
    X(host_free, cuMemFreeHost, (void *pointer))                                                  \
    X(host_register, cuMemHostRegister_v2, (void *pointer, size_t bytes, unsigned flags))         \
    X(host_unregister, cuMemHostUnregister, (void *pointer))                                      \
    X(copy_in, cuMemcpyHtoDAsync_v2,                                                              \
      (uint64_t dst, const void *src, size_t bytes, hora_cuda_stream_t stream))                   \
    X(copy_out, cuMemcpyDtoHAsync_v2,                                                             \
      (void *dst, uint64_t src, size_t bytes, hora_cuda_stream_t stream))                         \
    X(copy, cuMemcpyDtoDAsync_v2,                                                                 \
      (uint64_t dst, uint64_t src, size_t bytes, hora_cuda_stream_t stream))                      \
    X(memset, cuMemsetD8Async,                                                                    \
      (uint64_t at, unsigned char value, size_t bytes, hora_cuda_stream_t stream))                \
    X(stream_create, cuStreamCreateWithPriority,                                                  \
      (hora_cuda_stream_t * stream_p, unsigned flags, int priority))                              \
    X(stream_destroy, cuStreamDestroy_v2, (hora_cuda_stream_t stream))                            \
    X(capture_mode, cuThreadExchangeStreamCaptureMode, (int *mode_p))                             \
    X(stream_query, cuStreamQuery, (hora_cuda_stream_t stream))                                   \
    X(stream_wait, cuStreamWaitEvent,                                                             \
      (hora_cuda_stream_t stream, hora_cuda_event_t event, unsigned flags))                       \
    X(event_create, cuEventCreate, (hora_cuda_event_t * event_p, unsigned flags))                 \
    X(event_destroy, cuEventDestroy_v2, (hora_cuda_event_t event))                                \
    X(event_record, cuEventRecord, (hora_cuda_event_t event, hora_cuda_stream_t stream))          \
    X(event_query, cuEventQuery, (hora_cuda_event_t event))                                       \
    X(ipc_memory, cuIpcGetMemHandle, (hora_cuda_bytes64_t * handle_p, uint64_t pointer))          \
    X(ipc_memory_open, cuIpcOpenMemHandle_v2,                                                     \
      (uint64_t * pointer_p, hora_cuda_bytes64_t handle, unsigned flags))                         \
    X(ipc_memory_close, cuIpcCloseMemHandle, (uint64_t pointer))                                  \
    X(ipc_event, cuIpcGetEventHandle, (hora_cuda_bytes64_t * handle_p, hora_cuda_event_t event))  \
    X(ipc_event_open, cuIpcOpenEventHandle,                                                       \
      (hora_cuda_event_t * event_p, hora_cuda_bytes64_t handle))

#define HORA_CUDA_MEMBER(member, symbol, parameters) hora_cuda_result_t(*member) parameters;
typedef struct hora_cuda {
    HORA_CUDA_FUNCTIONS(HORA_CUDA_MEMBER)
    int version; /* of the driver: 12040 is 12.4 */
    int devices; /* at least 1 */
} hora_cuda_t;

/* Opens the driver, at the first call that succeeds; later ones only hand it out. Never unloaded.
 * HORA_ERR_UNSUPPORTED: no driver, one that is too old or lacks a function, or no GPU; the text says
 * which, with the remedy. library: setting HORA_CUDA_LIBRARY, "": libcuda.so.1. */
hora_status_t hora_cuda_open(const char *library, const hora_cuda_t **cuda_p);

/* A failed call's result as an error: out of memory is HORA_ERR_NO_MEMORY, all others
 * HORA_ERR_SYSTEM. The text begins with `what`, and has CUDA's name and words for the result. */
hora_status_t hora_cuda_fail(const hora_cuda_t *cuda, hora_cuda_result_t result, const char *what);

/* For `hora info`: driver and GPUs, or why not. Asks no context. */
bool hora_cuda_probe(hora_backend_t *backend);

#endif
