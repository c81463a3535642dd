/*
 * The part of DLPack's binary interface that hora uses: the tensor descriptors and the table of C
 * functions that an array library publishes as `type(x).__dlpack_c_exchange_api__`.
 *
 * Source: DLPack 1.3, https://github.com/dmlc/dlpack (include/dlpack/dlpack.h), whose layouts are
 * stable within major version 1. Names follow DLPack's; only what is needed is declared.
 */
#ifndef HORA_PYTHON_DLPACK_H
#define HORA_PYTHON_DLPACK_H

#include <stdint.h>

#define HORA_DLPACK_MAJOR 1
#define HORA_DLPACK_MINOR 0 /* what hora's own tensors need */

#define HORA_DL_CPU       1
#define HORA_DL_CUDA      2
#define HORA_DL_CUDA_HOST 3 /* pinned host memory */

enum {
    HORA_DL_INT = 0,
    HORA_DL_UINT = 1,
    HORA_DL_FLOAT = 2,
    HORA_DL_BFLOAT = 4,
    HORA_DL_COMPLEX = 5,
    HORA_DL_BOOL = 6,
    HORA_DL_FLOAT8_E4M3FN = 10,
    HORA_DL_FLOAT8_E5M2 = 12,
};

#define HORA_DL_FLAG_READ_ONLY 1u

typedef struct DLDevice {
    int32_t device_type; /* HORA_DL_...; anything else is refused */
    int32_t device_id;
} DLDevice;

typedef struct DLDataType {
    uint8_t  code;
    uint8_t  bits;
    uint16_t lanes;
} DLDataType;

typedef struct DLTensor {
    void      *data;
    DLDevice   device;
    int32_t    ndim;
    DLDataType dtype;
    int64_t   *shape;
    int64_t   *strides; /* elements; NULL (before DLPack 1.2): contiguous */
    uint64_t   byte_offset;
} DLTensor;

/* In capsules named "dltensor". */
typedef struct DLManagedTensor {
    DLTensor dl_tensor;
    void    *manager_ctx;
    void (*deleter)(struct DLManagedTensor *self);
} DLManagedTensor;

typedef struct DLPackVersion {
    uint32_t major, minor;
} DLPackVersion;

/* In capsules named "dltensor_versioned". */
typedef struct DLManagedTensorVersioned {
    DLPackVersion version;
    void         *manager_ctx;
    void (*deleter)(struct DLManagedTensorVersioned *self);
    uint64_t flags;
    DLTensor dl_tensor;
} DLManagedTensorVersioned;

typedef struct DLPackExchangeAPI {
    DLPackVersion             version;
    struct DLPackExchangeAPI *prev_api;
    void                     *managed_tensor_allocator;
    int (*managed_tensor_from_py_object_no_sync)(void *object, DLManagedTensorVersioned **out);
    int (*managed_tensor_to_py_object_no_sync)(DLManagedTensorVersioned *tensor, void **out);
    int (*dltensor_from_py_object_no_sync)(void *object, DLTensor *out); /* may be NULL */
    int (*current_work_stream)(int device_type, int32_t device_id, void **stream_out);
} DLPackExchangeAPI;

#endif
