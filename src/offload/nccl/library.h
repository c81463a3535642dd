/*
 * NCCL, opened at run time: no NCCL header is needed to build. Any thread. The functions are NCCL's,
 * whose documentation says what they do; what is declared here is of its binary interface as it has
 * been since 2.14.3, and no more of it than hora calls.
 */
#ifndef HORA_OFFLOAD_NCCL_LIBRARY_H
#define HORA_OFFLOAD_NCCL_LIBRARY_H

#include "util/cuda.h"
#include "util/status.h"

#include <stddef.h>

#define HORA_NCCL_MIN 21403 /* 2.14.3, as ncclGetVersion counts; non-blocking communicators */

/* Values of ncclResult_t. */
#define HORA_NCCL_SUCCESS       0
#define HORA_NCCL_CUDA_ERROR    1
#define HORA_NCCL_SYSTEM_ERROR  2
#define HORA_NCCL_INTERNAL      3
#define HORA_NCCL_BAD_ARGUMENT  4
#define HORA_NCCL_BAD_USAGE     5
#define HORA_NCCL_REMOTE_ERROR  6
#define HORA_NCCL_IN_PROGRESS   7
#define HORA_NCCL_TIMEOUT       8 /* since 2.31 */

/* Values of ncclDataType_t and of ncclRedOp_t. */
#define HORA_NCCL_INT8     0
#define HORA_NCCL_UINT8    1
#define HORA_NCCL_INT32    2
#define HORA_NCCL_UINT32   3
#define HORA_NCCL_INT64    4
#define HORA_NCCL_UINT64   5
#define HORA_NCCL_FLOAT16  6
#define HORA_NCCL_FLOAT32  7
#define HORA_NCCL_FLOAT64  8
#define HORA_NCCL_BFLOAT16 9
#define HORA_NCCL_SUM      0
#define HORA_NCCL_PRODUCT  1
#define HORA_NCCL_MAX      2
#define HORA_NCCL_MIN_OP   3

#define HORA_NCCL_NO_COLOR (-1) /* in a split: takes part, and gets no communicator */

typedef int   hora_nccl_result_t; /* ncclResult_t */
typedef void *hora_nccl_handle_t; /* ncclComm_t */
typedef struct hora_nccl_id {
    char at[128]; /* ncclUniqueId */
} hora_nccl_id_t;

/* ncclConfig_t of 2.14. NCCL takes `size` bytes, and leaves at their defaults those members that came
 * after `version`; so the version must be the one of these members, whatever is loaded. */
typedef struct hora_nccl_config {
    size_t   size;
    unsigned magic;
    unsigned version;
    int      blocking;
} hora_nccl_config_t;
#define HORA_NCCL_CONFIG {sizeof(hora_nccl_config_t), 0xcafebeef, HORA_NCCL_MIN, 0}

/* X(member, symbol, parameters): those that 2.14.3 has. */
#define HORA_NCCL_FUNCTIONS(X)                                                                    \
    X(get_version, ncclGetVersion, (int *version_p))                                              \
    X(get_id, ncclGetUniqueId, (hora_nccl_id_t * id_p))                                           \
    X(init, ncclCommInitRankConfig,                                                               \
      (hora_nccl_handle_t * comm_p, int size, hora_nccl_id_t id, int rank,                          \
       hora_nccl_config_t *config))                                                               \
    X(finalize, ncclCommFinalize, (hora_nccl_handle_t comm))                                        \
    X(destroy, ncclCommDestroy, (hora_nccl_handle_t comm))                                          \
    X(abort, ncclCommAbort, (hora_nccl_handle_t comm))                                              \
    X(async_error, ncclCommGetAsyncError, (hora_nccl_handle_t comm, hora_nccl_result_t * error_p))  \
    X(group_start, ncclGroupStart, (void))                                                        \
    X(group_end, ncclGroupEnd, (void))                                                            \
    X(allreduce, ncclAllReduce,                                                                   \
      (const void *in, void *out, size_t count, int dtype, int op, hora_nccl_handle_t comm,         \
       hora_cuda_stream_t stream))                                                                \
    X(reduce, ncclReduce,                                                                         \
      (const void *in, void *out, size_t count, int dtype, int op, int root,                      \
       hora_nccl_handle_t comm, hora_cuda_stream_t stream))                                         \
    X(reduce_scatter, ncclReduceScatter,                                                          \
      (const void *in, void *out, size_t block, int dtype, int op, hora_nccl_handle_t comm,         \
       hora_cuda_stream_t stream))                                                                \
    X(allgather, ncclAllGather,                                                                   \
      (const void *in, void *out, size_t block, int dtype, hora_nccl_handle_t comm,                 \
       hora_cuda_stream_t stream))                                                                \
    X(broadcast, ncclBroadcast,                                                                   \
      (const void *in, void *out, size_t count, int dtype, int root, hora_nccl_handle_t comm,       \
       hora_cuda_stream_t stream))                                                                \
    X(send, ncclSend,                                                                             \
      (const void *in, size_t count, int dtype, int peer, hora_nccl_handle_t comm,                  \
       hora_cuda_stream_t stream))                                                                \
    X(recv, ncclRecv,                                                                             \
      (void *out, size_t count, int dtype, int peer, hora_nccl_handle_t comm,                       \
       hora_cuda_stream_t stream))

/* Those of later versions: NULL where the library is older. */
#define HORA_NCCL_NEWER(X)                                                                        \
    X(split, ncclCommSplit, /* 2.18 */                                                            \
      (hora_nccl_handle_t comm, int color, int key, hora_nccl_handle_t *comm_p,                       \
       hora_nccl_config_t *config))

#define HORA_NCCL_MEMBER(member, symbol, parameters) hora_nccl_result_t(*member) parameters;
typedef struct hora_nccl_library {
    HORA_NCCL_FUNCTIONS(HORA_NCCL_MEMBER)
    HORA_NCCL_NEWER(HORA_NCCL_MEMBER)
    const char *(*error_text)(hora_nccl_result_t result);
    const char *(*last_error)(hora_nccl_handle_t comm); /* NULL: of any */
    int  version;                                     /* 22809 is 2.28.9 */
    char path[256];                                   /* of the file */
} hora_nccl_library_t;

/* Has a call done what it was to do, or does NCCL go on with it? */
static inline bool hora_nccl_went(hora_nccl_result_t result) {
    return result == HORA_NCCL_SUCCESS || result == HORA_NCCL_IN_PROGRESS;
}

/* Opens NCCL, at the first call that succeeds; later ones only hand it out. Never unloaded. The first
 * of: the copy that this process has loaded already (torch's: two copies in one process get in each
 * other's way), the file `path`, the one of the wheel nvidia-nccl beside hora's own wheel,
 * libnccl.so.2 wherever the loader finds it. HORA_ERR_UNSUPPORTED: none, or one that is too old;
 * the text says which. path: setting HORA_NCCL_LIBRARY, "": none. */
hora_status_t hora_nccl_open(const char *path, const hora_nccl_library_t **nccl_p);

/* "2.28.9". Static storage per thread. */
const char *hora_nccl_version_text(int version);

/* For `hora info`: version and file, or why not. */
bool hora_nccl_probe(hora_backend_t *backend);

#endif
