/*
 * Collectives on GPUs (docs/decisions/0005): what the ranks of a communicator know of each other's
 * GPUs, and the path that they take, which they agree on at the first one. On the thread that uses
 * the communicator.
 *
 * Invariants: a rank's collectives on one communicator are on one GPU. A path's answers depend only on
 * what is equal on all members (the facts, the collective without its pointers), so all take the same
 * one. A collective is done when its work is queued: what it does on the GPU waits for what was queued
 * on coll->gpu->stream before, and what is queued there later waits for it.
 */
#ifndef HORA_OFFLOAD_CUDA_DEVICE_H
#define HORA_OFFLOAD_CUDA_DEVICE_H

#include "schedule/plan.h"
#include "transport/comm.h"
#include "util/gpu.h"

/* One that was started, and is not done until it has been through the host (staged.c). */
typedef struct hora_staged_op hora_staged_op_t;

/* What a rank says of itself at the first collective on a GPU. Travels as it is between the ranks of
 * a job; a path believes it only as far as it has checked it. */
typedef struct hora_gpu_facts {
    uint8_t  uuid[16]; /* of the GPU: equal ones are one GPU */
    char     setting[16]; /* HORA_GPU_PATH, cut off; rank 0's counts */
    uint64_t chunk;    /* HORA_GPU_CHUNK; rank 0's counts */
    int32_t  nccl;     /* ncclGetVersion; 0: it has none that can be used */
    int32_t  halves;   /* HORA_NCCL_HALVES; rank 0's counts */
    int32_t  levels;   /* HORA_HIERARCHICAL_ALLREDUCE; rank 0's counts */
    int32_t  ipc;      /* 1: other processes of the host can open its GPU's events */
    int32_t  mpi;      /* 1: HORA_OFFLOAD=mpi; rank 0's counts */
} hora_gpu_facts_t;

/* One way to do collectives on GPUs. Each function runs with the GPU's context current. */
typedef struct hora_gpu_path {
    const char *name; /* as in HORA_GPU_PATH */
    /* Fills in what the path needs to know of this rank; NULL: nothing. Cannot fail: what is missing
     * stays 0. */
    void (*describe)(const hora_comm_t *comm, const hora_gpu_place_t *place,
                     hora_gpu_facts_t *facts);
    /* NULL if these members can go this way, else why not, for people. Static storage. */
    const char *(*obstacle)(const hora_comm_t *comm, const hora_gpu_facts_t *facts);
    /* What cannot be told by the facts, and everything that is made once: all members call it together,
     * and succeed together. *obstacle_p as above. An error: the communicator has failed. NULL: nothing. */
    hora_status_t (*prepare)(hora_comm_t *comm, const char **obstacle_p);
    /* Can it do this one? By kind, type, operation, counts and scales only. Others are staged. */
    bool (*takes)(const hora_comm_t *comm, const hora_coll_t *coll);
    /* Does it. On an error the communicator has failed, on every rank, before it returns. */
    hora_status_t (*run)(hora_comm_t *comm, const hora_coll_t *coll);
    /* Starts it, where that is something else; NULL: run queues all. *op_p is NULL before. */
    hora_status_t (*start)(hora_comm_t *comm, const hora_coll_t *coll, hora_staged_op_t **op_p);
    /* Frees what it keeps in comm->gpu, if anything. */
    void (*forget)(hora_comm_t *comm);
} hora_gpu_path_t;

/* comm->gpu */
struct hora_gpu_comm {
    hora_gpu_t             *gpu;
    hora_gpu_facts_t       *facts; /* [size], equal on all members */
    const hora_gpu_path_t  *path;
    void                   *mpi, *nccl, *levels, *ipc, *staged; /* each path's own */
    bool                    nccl_tried; /* nccl's prepare was called */
    bool                    drained; /* after its failure */
};

/* Does a collective of which coll->gpu is set, by the path that the members have agreed on; at the
 * first one, agrees. */
hora_status_t hora_device_run(hora_comm_t *comm, const hora_coll_t *coll);
/* Starts one; ops of one communicator move on in the order of their start. *op_p NULL: all of its work is
 * queued already. */
hora_status_t hora_device_start(hora_comm_t *comm, const hora_coll_t *coll,
                                hora_staged_op_t **op_p);
/* HORA_IN_PROGRESS, or the final status. Never blocks. */
hora_status_t hora_device_progress(hora_comm_t *comm, hora_staged_op_t *op);
/* Blocks until the end, frees it, returns the final status. */
hora_status_t hora_device_wait(hora_comm_t *comm, hora_staged_op_t *op);
/* Waits for all that were started. Before a collective on the communicator that is not on GPUs. */
hora_status_t hora_device_settle(hora_comm_t *comm);
#define HORA_DRAIN_SECONDS 0.5 /* for what is queued when an operation has failed, on each stream */
/* After a failure, in the context of place's GPU: waits until nothing that comm has queued, there or on
 * streams of its own, uses its callers' buffers. False: something still may, after HORA_DRAIN_SECONDS, or
 * another rank's leader (ipc.h), which cannot be asked. */
bool hora_device_drain(hora_comm_t *comm, const hora_gpu_place_t *place);
/* The same for a call of the user's that has ended in an error, which stays this thread's last error: if
 * the communicator has failed, the first time. Logs if something may still use the buffers. place: the
 * call's. */
void hora_device_drain_call(hora_comm_t *comm, const hora_gpu_place_t *place);
/* Frees comm->gpu. */
void hora_device_forget(hora_comm_t *comm);

/* For a path that has made `part` (transport/comm.h) of the members of `whole`: its part->gpu, by which it
 * takes `path`. HORA_ERR_NO_MEMORY: both have failed. */
hora_status_t hora_device_lend(hora_comm_t *whole, hora_comm_t *part, const hora_gpu_path_t *path);
/* For paths: all[i] = member i's `mine`, `bytes` long, through host memory; all[] is [size]. */
hora_status_t hora_device_exchange(hora_comm_t *comm, const void *mine, void *all, size_t bytes,
                                   double timeout, const char *name);

/* Are the GPUs of all members different ones? */
bool hora_gpu_facts_apart(const hora_gpu_facts_t *facts, int size);

#endif
