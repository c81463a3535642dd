/*
 * Memory on a GPU for hora-perf and hora-check: just enough of the CUDA driver, which is opened at run
 * time, by each rank for itself (never before a fork). One thread per object.
 */
#ifndef BENCHMARKS_COMMON_GPU_H
#define BENCHMARKS_COMMON_GPU_H

#include "coll.h"

#include <stdbool.h>

typedef struct gpu {
    int   ordinal; /* as CUDA counts the visible ones */
    int   count;   /* of the visible ones */
    void *stream;  /* CUstream */
    void *context;
    int   device;  /* CUdevice */
    char  name[96];
    char  error[256]; /* what has failed, with the remedy; "": nothing */
} gpu_t;

/* Opens the GPU of a rank: the ranks of a host take the visible ones in turn. */
bool gpu_open(gpu_t *gpu, int local_rank);
void gpu_close(gpu_t *gpu);
/* What has failed last: on the GPU, or else in hora. */
const char *gpu_text(const gpu_t *gpu);

/* A call's memory on the GPU, beside the host memory in which it is written and checked. */
typedef struct gpu_mirror {
    gpu_t         *gpu;
    unsigned char *in, *out;
    size_t         in_bytes, out_bytes;
} gpu_mirror_t;

/* For calls of up to so many bytes. Free with gpu_mirror_close. */
bool gpu_mirror_open(gpu_mirror_t *mirror, gpu_t *gpu, size_t in_bytes, size_t out_bytes);
void gpu_mirror_close(gpu_mirror_t *mirror);

/* Copies what coll_write has written to the GPU. */
bool gpu_mirror_put(gpu_mirror_t *mirror, const coll_t *c);
/* Makes the call on the GPU's memory, and waits until its work there has run. gpu_text says why it
 * failed. */
hora_status_t gpu_mirror_call(gpu_mirror_t *mirror, coll_t *c, hora_comm_t *comm);
/* Copies everything back, for coll_wrong. */
bool gpu_mirror_get(gpu_mirror_t *mirror, coll_t *c);

#endif
