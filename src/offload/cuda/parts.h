/*
 * A collective cut into parts: part number p has elements [p * step, (p + 1) * step) of each block, in
 * host memory one after the other. Pure code.
 *
 *     block 0: [part 0][part 1][..]     part 0 in a slot: [of block 0][of block 1][of block 2]
 *     block 1: [part 0][pa]             part 1 in a slot: [of block 0][of block 1]
 *     block 2: [p]
 *
 * Step and number of parts are equal on all members.
 */
#ifndef HORA_OFFLOAD_CUDA_PARTS_H
#define HORA_OFFLOAD_CUDA_PARTS_H

#include "schedule/plan.h"

/* What a rank hands in, or gets: blocks of a buffer on a GPU. Counts and offsets in elements. */
typedef struct hora_side {
    uint64_t      at;     /* device pointer */
    int           n;      /* blocks; 0: this rank has none */
    size_t        count;  /* of each block, one after the other, where counts is NULL */
    const size_t *counts, *displs; /* [n], the collective's own; or NULL */
} hora_side_t;

typedef struct hora_parts {
    hora_side_t in, out;
    size_t      step, n;
} hora_parts_t;

/* Elements of block b that are in part p; and before it in the block's buffer. */
static inline size_t hora_side_count(const hora_side_t *side, int b) {
    return side->counts != NULL ? side->counts[b] : side->count;
}
static inline size_t hora_side_displ(const hora_side_t *side, int b) {
    return side->counts != NULL ? side->displs[b] : (size_t)b * side->count;
}

/* bytes: of a part on the rank that has most of it, roughly; at least an element of each block. */
void hora_parts_cut(const hora_coll_t *coll, size_t bytes, hora_parts_t *parts_p);
/* The host's collective for part p. lists: [4 * size], for its counts. Its buffers are where the input
 * and the output of this rank begin, in elements from the slot's beginning; *room_p: elements of the
 * slot that it needs, which no later part exceeds. */
void hora_parts_coll(const hora_coll_t *coll, const hora_parts_t *parts, size_t p, size_t *lists,
                     hora_coll_t *part_p, size_t *in_p, size_t *out_p, size_t *room_p);
/* Elements of block b in part p. */
size_t hora_parts_count(const hora_parts_t *parts, const hora_side_t *side, int b, size_t p);

#endif
