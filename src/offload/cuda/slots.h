/*
 * What the staged path keeps for a communicator: streams, events, and pinned memory in slots. On the
 * thread that uses the communicator, with the GPU's context current.
 */
#ifndef HORA_OFFLOAD_CUDA_SLOTS_H
#define HORA_OFFLOAD_CUDA_SLOTS_H

#include "offload/cuda/device.h"

#define HORA_SCRATCHES 48 /* each twice as long as the one before */
#define HORA_SLOTS 3 /* one on its way out of the GPU, one with the CPU, one on its way in */

/* Memory on the GPU that grows. At least doubled, if the GPU has so much, so that the outgrown blocks together
 * are no longer than the one in use, the last. They are not freed before the end: CUDA might wait for all
 * queued work, without a deadline. */
typedef struct hora_scratch {
    uint64_t at[HORA_SCRATCHES];
    int      n;
    size_t   bytes; /* of the last one */
} hora_scratch_t;

typedef struct hora_slot {
    uint8_t          *mem;  /* 64-byte aligned, pinned */
    size_t            room; /* bytes */
    void             *base; /* what was allocated: mem lies in it */
    bool              in_arena;
    bool              used; /* `in` was recorded */
    hora_cuda_event_t out;  /* the input of the slot's last part has come out */
    hora_cuda_event_t in;   /* its output has gone in */
} hora_slot_t;

typedef struct hora_staged {
    hora_comm_t       *comm;
    hora_gpu_t        *gpu;
    hora_cuda_stream_t out, in; /* copies out of the GPU, and into it */
    hora_cuda_event_t  end;
    hora_slot_t        slots[HORA_SLOTS];
    size_t             turn;   /* parts ever: part number `turn` goes to slot turn % HORA_SLOTS */
    size_t            *lists;  /* [4 * size] */
    hora_scratch_t     scratch; /* for input that output would overwrite */
    hora_staged_op_t *first, *last; /* in flight, in the order of their start */
} hora_staged_t;

hora_status_t hora_staged_create(hora_comm_t *comm, hora_gpu_t *gpu, hora_staged_t **staged_p);
/* Waits for the copies that are queued, `seconds` on each stream at most. False: they are not done. */
bool          hora_staged_drain(const hora_staged_t *staged, double seconds);
/* Waits for the copies that are queued, some seconds at most; what they still use then is not freed. */
void          hora_staged_destroy(hora_staged_t *staged);
/* Makes slot->room at least `bytes`; its content is lost. */
hora_status_t hora_slot_reserve(hora_staged_t *staged, hora_slot_t *slot, size_t bytes);

/* *at_p: at least `bytes` of it; what it held before may be lost. */
hora_status_t hora_scratch_reserve(hora_gpu_t *gpu, hora_scratch_t *scratch, size_t bytes,
                                   uint64_t *at_p);
void          hora_scratch_free(hora_gpu_t *gpu, hora_scratch_t *scratch);

#endif
