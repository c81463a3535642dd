/*
 * Every collective as one object: how much memory it needs, how to fill it, call it and check it.
 * hora-perf, hora-check and the tests are loops over these. One thread per object.
 */
#ifndef BENCHMARKS_COMMON_COLL_H
#define BENCHMARKS_COMMON_COLL_H

#include "pattern.h"

#include <stdbool.h>

typedef enum coll_kind {
    COLL_ALLREDUCE,
    COLL_REDUCE,
    COLL_REDUCE_SCATTER,
    COLL_ALLGATHER,
    COLL_BROADCAST,
    COLL_ALLTOALL,
    COLL_GATHER,
    COLL_SCATTER,
    COLL_SENDRECV, /* to the next rank, from the one before */
    COLL_REDUCE_SCATTERV,
    COLL_ALLGATHERV,
    COLL_ALLTOALLV,
    COLL_KIND_COUNT
} coll_kind_t;

/* Bytes behind the output that no collective may touch. */
#define COLL_GUARD 64

typedef struct coll {
    coll_kind_t  kind;
    hora_dtype_t dtype;
    hora_op_t    op; /* PATTERN_MOVE unless coll_reduces(kind) */
    int          rank, size, root;
    size_t       count; /* of a block, see coll_block */
    bool         in_place;
    unsigned     salt;
    size_t       in_count, out_count; /* elements of `in` and `out` here; 0 where they are ignored */
    /* Memory of the caller: at least coll_bytes_in and coll_bytes_out bytes. In place, only the
     * longer of both is used. */
    unsigned char *in_memory, *out_memory;
    pattern_t      input;
    size_t        *counts, *displs; /* v forms: [2 * size], the second half for the receive side */
} coll_t;

const char *coll_name(coll_kind_t kind);
/* COLL_KIND_COUNT if there is none of that name. */
coll_kind_t coll_find(const char *name);
bool coll_reduces(coll_kind_t kind);
/* The kind reduces, and this type with this operation. */
bool coll_takes(coll_kind_t kind, hora_dtype_t dtype, hora_op_t op);
bool coll_has_root(coll_kind_t kind);
bool coll_can_be_in_place(coll_kind_t kind);

/* Describes a call. count: elements per rank and block (allreduce, reduce, broadcast, sendrecv: of
 * the whole vector; v forms: rank r's block has a length near to it, some have none). op is ignored
 * unless the kind reduces. Returns false if memory is short. Free with coll_destroy. */
bool coll_init(coll_t *c, coll_kind_t kind, hora_dtype_t dtype, hora_op_t op, size_t count);
/* Sets whose call it is; before coll_bytes and all below. */
bool coll_place(coll_t *c, int rank, int size, int root, bool in_place, unsigned salt);
void coll_destroy(coll_t *c);

size_t coll_bytes_in(const coll_t *c);
size_t coll_bytes_out(const coll_t *c); /* with the guard */

/* Writes the input, and rubbish into the output. */
void coll_write(coll_t *c);
/* Makes the call; blocks unless options say else. COLL_SENDRECV always blocks. */
hora_status_t coll_call(coll_t *c, hora_comm_t *comm, const hora_call_options_t *options);
/* Wrong elements on this rank: in the output, in an input that should not have changed, in the
 * guard. Counts are exact but for the guard, which counts as one. */
size_t coll_wrong(coll_t *c);

#endif
