/*
 * Collectives on GPUs of one host, where a process opens the others' device memory
 * (docs/decisions/0005): the path `ipc` of device.h. On the thread that uses the communicator, with its
 * GPU's context current.
 *
 *     rank 0            rank 1            rank 2            rank 3         all on one GPU
 *     record ready      record ready      record ready      record ready
 *     ----------- hosts exchange notes: where in and out lie, what is called -----------
 *     wait for all 4
 *     one kernel: every in, in rank order -> every out
 *     record done
 *     ----------- hosts meet: what there is to wait for has been recorded --------------
 *                       wait for done     wait for done     wait for done
 *
 * A GPU's leader is its first rank. With several GPUs each leader reduces its slice of the vector, or
 * moves the blocks of its GPU's ranks, and stores into every out. So with one GPU every byte is read
 * once and stored once. No kernel waits for another, and no host for a GPU: a wait for an event covers
 * its last record, which the meetings of the hosts have brought about before (and the next one comes
 * after them). A call's stream waits for the end of the call before, which may have been on another one.
 * Sums are in rank order, in one kernel: the CPU's bits.
 *
 * Memory that another process cannot open (of CUDA's virtual memory management: torch's expandable
 * segments, cudaMallocAsync), or that is not in an allocation of a multiple of 2 MB (ipc_memory.c
 * says why), goes through a staging buffer that can be.
 */
#ifndef HORA_OFFLOAD_CUDA_IPC_H
#define HORA_OFFLOAD_CUDA_IPC_H

#include "offload/cuda/device.h"

#define HORA_IPC_MAPPINGS 16 /* of one member's allocations that are open at a time */
#define HORA_IPC_STAGES   48 /* each twice as long as the one before */
#define HORA_IPC_ROWS     4  /* of a layout: counts, displs, other_counts, other_displs, in elements */

extern const hora_gpu_path_t hora_gpu_path_ipc;

/* ---- ipc_memory.c: what the members show each other -------------------------------------------- */

/* Part of an allocation; travels. */
typedef struct hora_ipc_region {
    uint64_t            id;     /* of the allocation, among those of its process; 0: there is no region */
    uint64_t            start;  /* of the allocation, in its process */
    uint64_t            length; /* of the allocation */
    uint64_t            offset; /* of the region in it */
    uint64_t            bytes;  /* of the region */
    hora_cuda_bytes64_t handle; /* of the allocation */
} hora_ipc_region_t;

struct hora_ipc_opened;

/* An allocation of a member, as this process sees it. */
typedef struct hora_ipc_mapping {
    struct hora_ipc_opened *opened; /* NULL: none */
    uint64_t                used;   /* call in which it was last needed */
} hora_ipc_mapping_t;

typedef struct hora_ipc_member {
    uint64_t            process; /* equal ones are one process */
    int                 gpu;    /* number among the GPUs of the communicator */
    bool                opened; /* ready and done are this process's views of its events */
    hora_cuda_event_t   ready;  /* in is complete, and out may be written */
    hora_cuda_event_t   done;   /* a leader's: its part of the call */
    hora_ipc_mapping_t  mappings[HORA_IPC_MAPPINGS];
} hora_ipc_member_t;

/* An allocation of this process that it has shown before. */
typedef struct hora_ipc_shown {
    uint64_t            id, start, used;
    hora_cuda_bytes64_t handle;
} hora_ipc_shown_t;

/* comm->gpu->ipc */
typedef struct hora_gpu_ipc {
    hora_gpu_t         *gpu;
    hora_ipc_member_t  *members;  /* [size] */
    int                *leaders;  /* [ngpus], ranks */
    int                 ngpus;
    uint64_t            calls;
    char                name[80]; /* of the current call */
    bool                exposed;  /* in a call: leaders may be about to queue what uses this rank's buffers,
                                     for which coll's stream does not wait yet */
    hora_cuda_event_t   end;      /* of the last call on this rank, on that call's stream; covers
                                     all calls before */
    uint64_t            stages[HORA_IPC_STAGES]; /* staging buffers, the last one in use; others may have
                                                    the outgrown ones open */
    int                 nstages;
    size_t              stage_room;
    hora_ipc_shown_t    shown[HORA_IPC_MAPPINGS];
    struct hora_ipc_note *notes;  /* [size], of the current call */
    uint64_t           *layouts;  /* [size][HORA_IPC_ROWS][size] of the current call, members' blocks */
    uint64_t           *in, *out; /* [size], device addresses in the current call; 0: none */
} hora_gpu_ipc_t;

/* The process that this is, for hora_ipc_member_t. */
uint64_t hora_ipc_process(void);
/* What to show of [at, at + bytes), false: its allocation cannot be opened by others. */
bool hora_ipc_show(hora_gpu_ipc_t *self, uint64_t at, size_t bytes, hora_ipc_region_t *region_p);
/* Where this process finds a region of member `rank`. HORA_ERR_SYSTEM: it cannot be opened;
 * HORA_ERR_PROTOCOL: it is not within its allocation. To close another one may take waits for coll's stream,
 * for what failed communicators have left, and for another thread, with coll's deadline each. */
hora_status_t hora_ipc_find(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                            const hora_ipc_region_t *region, uint64_t *at_p);
/* Makes the staging buffer `bytes` long at least; its contents are lost. */
hora_status_t hora_ipc_reserve(hora_gpu_ipc_t *self, size_t bytes);
static inline bool hora_ipc_is_exposed(const hora_gpu_ipc_t *self) {
    return self->exposed;
}

/* Frees everything; but the memory only if the communicator has not failed, and this rank's last call ends
 * within seconds: else queued work may never end, for which CUDA would wait here. What the others may have
 * open goes once they have dropped theirs, too. */
void hora_ipc_drop(hora_comm_t *comm, hora_gpu_ipc_t *self);

/* ---- ipc_moves.c: what a leader queues --------------------------------------------------------- */

/* A row of member `rank`'s layout. */
static inline uint64_t *hora_ipc_row(const hora_gpu_ipc_t *self, int size, int rank, int row) {
    return self->layouts + ((size_t)rank * HORA_IPC_ROWS + (size_t)row) * (size_t)size;
}

/* The part of the call that is this rank's as a leader, on coll's stream: self->in, ->out and, for the
 * kinds that have blocks, ->layouts are set. */
hora_status_t hora_ipc_move(const hora_gpu_ipc_t *self, const hora_coll_t *coll);

#endif
