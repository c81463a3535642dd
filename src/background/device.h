/*
 * Tensors on a GPU: what the engine has for them, and when they wait for what (docs/decisions/0005).
 *
 *     caller's stream   ...work | ready                            .. waits for `done` | work ...
 *                                   |                              |
 *     engine's stream              waits | pack | collective | unpack | done
 *
 * `ready` is recorded as the task is enqueued, `done` at the end of the batch; both are marks, events
 * that are shared and used again. Nothing here blocks but the driver's waits in src/offload and src/fusion.
 *
 * Lanes. The engine has HORA_NUM_NCCL_STREAMS streams, each with a fusion buffer, which batches take in
 * turn. So one is packed, or unpacked, while the collective of another one runs:
 *
 *     lane 0   waits | begun | pack 0 | collective 0 | unpack 0 | done 0
 *     lane 1                   waits | begun | pack 1 |           collective 1 | unpack 1 | done 1
 *
 * Collectives stay one after the other, in the order on which the ranks have agreed: they are on one
 * communicator, and each waits for the one before (src/offload does that wherever the stream changes).
 * Several communicators at once, as Horovod has them, can wait for each other crosswise on GPUs where their
 * kernels do not all fit, which NCCL's documentation warns of. A batch begins behind the beginning of the
 * one before, and so behind all that the engine has waited for until then; and its end is behind the end of
 * the one before, so the last mark of a handle stands for all of its tasks.
 *
 * Any thread: marks, under `lock`, and the engine's GPU once it is made. The rest is the driver's.
 */
#ifndef HORA_BACKGROUND_DEVICE_H
#define HORA_BACKGROUND_DEVICE_H

#include "background/background.h"
#include "fusion/fusion.h"
#include "util/gpu.h"
#include "util/settings.h"

#include <pthread.h>

typedef struct hora_mark {
    struct hora_mark  *next; /* of the unused ones, or of the late ones */
    hora_cuda_event_t  event;
    hora_cuda_stream_t stream; /* on which it was recorded */
    uint64_t           number; /* of the engine's marks, from 1: given before it was recorded */
    int                refs;   /* under lock */
} hora_mark_t;

typedef struct hora_lane {
    hora_cuda_stream_t stream;
    hora_fusion_gpu_t *moves;
    hora_fusion_t      fusion;
    hora_cuda_event_t  begun; /* of its last batch, where there are several lanes */
} hora_lane_t;

typedef struct hora_engine_gpu {
    hora_gpu_place_t   place;  /* driver: its stream is that of `lane` */
    hora_lane_t        lanes[HORA_STREAMS_MAX]; /* driver */
    int                nlanes;
    hora_lane_t       *lane;   /* driver: whose turn it is, or was */
    hora_mark_t       *last;   /* driver: behind the last batch, where there are several lanes; or NULL */
    bool               entered; /* driver: a batch on the GPU is being executed */
    int                capture_mode; /* driver: the thread's own, meanwhile */
    _Atomic uint64_t   marks;   /* made so far */
    pthread_mutex_t    lock;
    hora_mark_t       *unused;
    hora_mark_t       *late;    /* for which the stream is to wait before the next batch (blocks.h) */
    bool               idle;    /* the driver has stopped, and nothing is queued any more */
} hora_engine_gpu_t;

/* The engine's GPU; the first call makes it, and all must be for one. Any thread, without engine->lock. */
hora_status_t hora_engine_gpu_get(hora_engine_t *engine, int ordinal, hora_engine_gpu_t **gpu_p);
/* Frees what the driver used, if there is anything; marks stay. The communicator is still there. */
void hora_engine_gpu_stop(hora_engine_t *engine);
/* Frees the rest. NULL is allowed. */
void hora_engine_gpu_destroy(hora_engine_gpu_t *gpu);

/* Records where the streams of the tasks that are on a GPU are now: marks_p[i] for tasks[i], NULL for
 * one in host memory. Each must be dropped. Without engine->lock. */
hora_status_t hora_marks_record(hora_engine_t *engine, const hora_task_t *tasks, size_t ntasks,
                                hora_mark_t **marks_p);
/* With or without engine->lock, both; NULL is allowed to drop. Returns the mark. */
hora_mark_t *hora_mark_hold(hora_engine_gpu_t *gpu, hora_mark_t *mark);
void hora_mark_drop(hora_engine_gpu_t *gpu, hora_mark_t *mark);

/* Driver. Around the execution of engine->batch: its GPU's context is current in between, and its
 * stream waits for the tasks. Nothing to do, and HORA_OK, for a batch in host memory. */
hora_status_t hora_device_batch_begin(hora_engine_t *engine);
/* *done_p: a mark behind all that was queued, to be dropped; NULL in host memory, and on an error: then it
 * waits a moment for what is queued. Call it if begin was called, whatever came of it. */
hora_status_t hora_device_batch_end(hora_engine_t *engine, hora_status_t status, hora_mark_t **done_p);

/* Makes a mark on the stream, for which the next batch waits, if there is freed memory that was read on
 * it. In the GPU's context. */
hora_status_t hora_device_mark_reader(hora_engine_gpu_t *gpu, hora_cuda_stream_t stream);
/* Driver: multiplies the fusion buffer's elements by the tasks' prescale. */
hora_status_t hora_device_scale(hora_engine_gpu_t *gpu, hora_dtype_t dtype, double factor,
                                size_t count);

#endif
