/*
 * A NCCL communicator of the members of one of hora's, and what watches over it: NCCL itself waits
 * without end, on the host and on the GPU.
 *
 * Threads. The communicator is used by the thread that uses hora's. One thread per process, the guard
 * (guard.c), looks at all communicators that have work on the GPU: has it ended, has its time run out,
 * does NCCL report an error, has hora's communicator failed? In each of the last three cases hora's
 * communicator fails, on every rank, and NCCL's is aborted, which ends its kernels. An abort can block,
 * so it has a thread of its own, which nobody waits for longer than HORA_NCCL_PATIENCE.
 * `lock` is held around calls of NCCL; the guard never waits for it.
 */
#ifndef HORA_OFFLOAD_NCCL_COMM_H
#define HORA_OFFLOAD_NCCL_COMM_H

#include "offload/nccl/library.h"
#include "transport/comm.h"
#include "util/gpu.h"

#include <pthread.h>

#define HORA_NCCL_PATIENCE 5.0 /* seconds that freeing one waits for NCCL, if HORA_TIMEOUT is not less, before
                                  it is left behind */

#define HORA_NCCL_CUT_OFF 1u /* the thread is, and the guard has aborted the communicator under it */

typedef struct hora_nccl_ending hora_nccl_ending_t; /* guard.c */

/* A collective that is queued on a stream. */
typedef struct hora_nccl_op {
    struct hora_nccl_op *next;
    hora_cuda_event_t    begin, end; /* recorded before and behind it */
    uint64_t             since;      /* ns: when it was seen to have begun; 0: it was not */
    double               timeout;    /* seconds from there */
    hora_cuda_piece_t   *pieces;     /* [2], pinned, for casts; NULL: not needed yet */
    char                 what[112];
} hora_nccl_op_t;

typedef struct hora_nccl_comm {
    const hora_nccl_library_t *nccl;
    hora_gpu_t                *gpu;
    hora_comm_t               *owner;
    hora_nccl_handle_t         handle;
    struct hora_nccl_comm     *next; /* in the guard's list; under its lock */
    pthread_mutex_t            lock; /* calls of NCCL; the three lists; suspected */
    hora_nccl_op_t            *first, *last; /* queued and not seen to have ended, in order */
    hora_nccl_op_t            *spare;
    uint64_t                   suspected; /* ns: when NCCL first reported an error; 0: it has not */
    _Atomic uint64_t           calling;   /* ns: since when a thread is inside NCCL; 0: none is; or
                                             HORA_NCCL_CUT_OFF */
    _Atomic(hora_nccl_ending_t *) ending; /* NULL: none has begun. Then the handle is not used any more */
    hora_cuda_stream_t         stream;    /* of the latest operation */
    struct hora_nccl_block    *work;      /* device memory for copies of inputs, largest first */
    struct hora_nccl_comm     *half; /* what a split that failed was to make, or NULL: NCCL may
                                        still write its handle, until this one has ended */
} hora_nccl_comm_t;

/* ---- comm.c: on the thread that uses the owner; the GPU's context is current ---- */

/* Makes one of the owner's members. Collective. HORA_OK and *self_p NULL: NCCL could not, on some
 * rank, and all know; rank 0 has logged why. An error: the owner has failed. */
hora_status_t hora_nccl_comm_create(hora_comm_t *owner, hora_gpu_t *gpu,
                                    const hora_nccl_library_t *nccl, hora_nccl_comm_t **self_p);
/* Splits one, as hora_comm_split does its owner (color < 0: this rank gets none, NULL). Collective over
 * the owner; the library has nccl->split. The new one is the parent's owner's until it is adopted. An error:
 * the owner has failed. */
hora_status_t hora_nccl_comm_split(hora_nccl_comm_t *parent, int color, int key,
                                   hora_nccl_comm_t **self_p);
void          hora_nccl_comm_adopt(hora_nccl_comm_t *self, hora_comm_t *owner);
/* Frees it; waits for NCCL up to HORA_NCCL_PATIENCE. */
void hora_nccl_comm_free(hora_nccl_comm_t *self);

/* Begins an operation on the stream: takes the lock, and records where it begins. */
hora_status_t hora_nccl_op_begin(hora_nccl_comm_t *self, hora_cuda_stream_t stream,
                                 hora_nccl_op_t **op_p);
/* Around one call, or one group of calls, of NCCL: leave waits until NCCL has done with `result`, which
 * the call returned, what it does on the host. */
void          hora_nccl_enter(hora_nccl_comm_t *self);
hora_status_t hora_nccl_leave(hora_nccl_comm_t *self, hora_nccl_result_t result,
                              const hora_nccl_op_t *op);
/* Ends what op_begin has begun: puts it under guard, or, if st is an error, fails the owner and aborts.
 * Returns st, or the error that the owner has failed with. Gives the lock back. */
hora_status_t hora_nccl_op_end(hora_nccl_comm_t *self, hora_nccl_op_t *op, hora_status_t st);

/* Device memory of at least `bytes` until the next call, for work on the same stream. */
hora_status_t hora_nccl_work(hora_nccl_comm_t *self, size_t bytes, uint64_t *memory_p);

/* ---- guard.c: any thread ---- */

hora_status_t hora_nccl_guard_add(hora_nccl_comm_t *self);
void          hora_nccl_guard_remove(hora_nccl_comm_t *self);
void          hora_nccl_guard_wake(void);
/* Takes operations that have ended from the front of the list. An error: the GPU's. Under the lock. */
hora_status_t hora_nccl_reap(hora_nccl_comm_t *self);
/* Begins to abort it, unless that has begun; does not wait. */
void hora_nccl_abort(hora_nccl_comm_t *self);
double hora_nccl_patience(const hora_nccl_comm_t *self);
/* Ends it, in order if it is finalized, else by an abort, and waits so long for that. False: it has not
 * ended, and perhaps never will. */
bool hora_nccl_end(hora_nccl_comm_t *self, bool finalized);

/* A result of NCCL's as an error of hora's: "allreduce by NCCL: ...". */
hora_status_t hora_nccl_fail(const hora_nccl_comm_t *self, hora_nccl_result_t result,
                             const char *what);

#endif
