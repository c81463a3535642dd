/*
 * A stand-in for the CUDA driver that runs on the CPU: for tests only, never installed, loaded through
 * HORA_CUDA_LIBRARY. It computes: the kernels of kernels/cuda run from the same source, compiled for
 * the host, on streams that are threads.
 *
 * It is stricter than a GPU where a GPU's leniency hides errors:
 * - Device memory faults when the host touches it (memory.c).
 * - Every stream is a thread of its own, the default stream too and without its implied waits; with
 *   delays, a wait that is missing shows up as a wrong result (stream.c).
 * - Calls that take a current context fail without one, and after a fork all calls fail.
 * - Another process's event that it has destroyed is refused, where CUDA does anything.
 * - Another process's memory is not opened while something is open that lay in the same 2 MB there.
 * - Freeing waits for all queued work, as CUDA may; work that never ends aborts the process then.
 *
 * Environment, read at the first call:
 *   HORA_STANDIN_GPUS=2          GPUs of this machine, default 1; CUDA_VISIBLE_DEVICES (numbers) applies
 *   HORA_STANDIN_IPC_MOST=1000   no other process can open larger allocations, so they say
 *   HORA_STANDIN_NO_PEERS=1      no GPU can open another one's memory
 *   HORA_STANDIN_VERSION=11080   what the driver says it is, default 12040
 *   HORA_STANDIN_DELAY_US=500    each piece of queued work waits up to this long first, at random
 *   HORA_STANDIN_FAIL=cuMemAlloc_v2:3:2        the third call (0: each) returns 2
 *   HORA_STANDIN_FAIL=cuLaunchKernel:5:719:lost   ... and from then on all calls return it
 * A test in the same process sets `cuda_standin` (dlsym) instead.
 */
#ifndef HORA_TESTS_CUDA_STANDIN_H
#define HORA_TESTS_CUDA_STANDIN_H

#include "util/cuda.h"

#include <stdatomic.h>

#define STANDIN_GPUS_MAX    8
#define STANDIN_MEMORY      ((size_t)3 << 30) /* of a GPU, for each process */
#define STANDIN_CALLS_MAX   64
#define STANDIN_INVALID     1   /* CUDA_ERROR_INVALID_VALUE */
#define STANDIN_FORKED      3   /* CUDA_ERROR_NOT_INITIALIZED */
#define STANDIN_NO_CONTEXT  201 /* CUDA_ERROR_INVALID_CONTEXT */
#define STANDIN_MAPPED      208 /* CUDA_ERROR_ALREADY_MAPPED */
#define STANDIN_PEER        217 /* CUDA_ERROR_PEER_ACCESS_UNSUPPORTED */
#define STANDIN_HANDLE      400 /* CUDA_ERROR_INVALID_HANDLE */
#define STANDIN_NOT_FOUND   500 /* CUDA_ERROR_NOT_FOUND */
#define STANDIN_ADDRESS     700 /* CUDA_ERROR_ILLEGAL_ADDRESS, of a kernel */
#define STANDIN_REGISTERED  712 /* CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED */
#define STANDIN_UNKNOWN     713 /* CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED */
#define STANDIN_CAPTURE     900 /* CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED */
#define STANDIN_MISALIGNED  716 /* CUDA_ERROR_MISALIGNED_ADDRESS, of a kernel */

/* What a test may look at, and the failure that it may ask for. Written under a lock by the calls. */
typedef struct cuda_standin {
    const char *fails;  /* the symbol that fails, NULL: none */
    int         nth;    /* at its call of this number from now, 1 the next; 0: at each */
    int         result; /* with this result */
    bool        lost;   /* and all calls after it, as when the GPU has gone */
    int         depth;  /* contexts entered and not left, of all threads */
    int         retained;
    int         loaded; /* modules */
    int         launches;
    unsigned    blocks; /* of the last launch */
    atomic_int  ran;    /* launches that have been run */
    long        live;   /* allocations, pinned and opened ones counted in */
    bool        captures; /* as if a thread captured a graph in the global mode: calls that this forbids
                             fail, in threads that are not in the relaxed mode */
    int         spoils;   /* how many have */
    const char *slow;   /* calls of this symbol take 50 ms more */
    void *_Atomic held; /* this stream begins no work until it is NULL again */
    const char *calls[STANDIN_CALLS_MAX]; /* symbols, in order */
    int         ncalls;
} cuda_standin_t;

/* ---- Between the files; any thread ----------------------------------------------------------- */

#define EXPORT __attribute__((visibility("default")))

extern cuda_standin_t cuda_standin;

/* The start of a call: its result if it is to fail, else HORA_CUDA_SUCCESS. */
int standin_enter(const char *symbol);
/* The same for a call that needs a context; its GPU's number, as this process counts. */
int standin_enter_gpu(const char *symbol, int *gpu_p);
/* An error of queued work: all later calls return it. */
void standin_lose(int result);
/* Then what is still queued copies nothing: the host's memory may be gone, too. */
bool standin_is_lost(void);
/* Adds to a counter of cuda_standin. */
void standin_count(int *counter, int by);
int  standin_gpus(void);
int  standin_physical(int gpu); /* the machine's number of it */

/* The host's address of device or pinned memory, NULL where [at, at + bytes) is no such memory, or
 * lies on a GPU that `gpu` (-1: the driver itself) has no access to. bytes 0: any address in it. For the
 * stand-in of NCCL, too. */
EXPORT void *standin_memory(uint64_t at, size_t bytes, int gpu);
/* Whether the host's memory is pinned: all of it. */
bool standin_pinned(const void *at, size_t bytes);
/* Opens another process's file; -1 where it is gone. */
int standin_take(int pid, int fd);

/* Queues work on a stream (NULL: the GPU's default one); args are copied. */
typedef void (*standin_work_fn)(void *args);
int standin_queue(int gpu, hora_cuda_stream_t stream, standin_work_fn work, const void *args,
                  size_t bytes);
/* Until all that was queued before is done. */
int  standin_wait(int gpu, hora_cuda_stream_t stream);
void standin_wait_all(const char *symbol);

#endif
