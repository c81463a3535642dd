/*
 * Whose block goes where: what the planners and executors of all kinds but allreduce share. `me` is
 * coll->rank. Pure, any thread.
 */
#ifndef HORA_SCHEDULE_BLOCKS_H
#define HORA_SCHEDULE_BLOCKS_H

#include "schedule/algos.h"

static inline bool hora_blocks_from_root(const hora_coll_t *coll) {
    return 1u << coll->kind & (1u << HORA_COLL_BROADCAST | 1u << HORA_COLL_SCATTER);
}

static inline bool hora_blocks_to_root(const hora_coll_t *coll) {
    return 1u << coll->kind & (1u << HORA_COLL_GATHER | 1u << HORA_COLL_REDUCE);
}

/* Does what is sent go one way, so that who only sends waits for nobody? */
static inline bool hora_blocks_one_way(const hora_coll_t *coll) {
    return hora_blocks_from_root(coll) || hora_blocks_to_root(coll);
}

/* Do I have something for others? */
static inline bool hora_blocks_give(const hora_coll_t *coll) {
    return hora_blocks_from_root(coll) ? coll->rank == coll->root
                                       : !hora_blocks_to_root(coll) || coll->rank != coll->root;
}

/* Do others have something for me? */
static inline bool hora_blocks_take(const hora_coll_t *coll) {
    return hora_blocks_to_root(coll) ? coll->rank == coll->root
                                     : !hora_blocks_from_root(coll) || coll->rank != coll->root;
}

/* Is the block that a rank gives the same for all who take it? */
static inline bool hora_blocks_for_all(const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_ALLREDUCE || coll->kind == HORA_COLL_ALLGATHER ||
           coll->kind == HORA_COLL_BROADCAST || hora_blocks_to_root(coll);
}

/* Does one rank alone copy what another shows in one place? (Sums read it, too, but do not take lines
 * over.) */
static inline bool hora_blocks_one_copies(const hora_coll_t *coll) {
    bool for_one = !hora_blocks_for_all(coll) || coll->size == 2 || coll->kind == HORA_COLL_GATHER;
    return for_one && !hora_coll_reduces(coll->kind);
}

/* Where in my input the block for `to` begins. */
static inline size_t hora_blocks_begin_in(const hora_coll_t *coll, int to) {
    if (coll->kind == HORA_COLL_REDUCE_SCATTER || coll->kind == HORA_COLL_ALLTOALL)
        return coll->displs[to];
    return coll->kind == HORA_COLL_SCATTER ? (size_t)to * coll->count : 0;
}

/* Where in my output the block of `from` begins. */
static inline size_t hora_blocks_begin_out(const hora_coll_t *coll, int from) {
    if (coll->kind == HORA_COLL_ALLGATHER)
        return coll->displs[from];
    if (coll->kind == HORA_COLL_ALLTOALL)
        return coll->other_displs[from];
    return coll->kind == HORA_COLL_GATHER ? (size_t)from * coll->count : 0;
}

/* Length of my block for `to`. */
static inline size_t hora_blocks_count_to(const hora_coll_t *coll, int to) {
    return coll->counts == NULL ? coll->count
                                : coll->counts[coll->kind == HORA_COLL_ALLGATHER ? coll->rank : to];
}

/* Length of the block of `from` for me. */
static inline size_t hora_blocks_count_from(const hora_coll_t *coll, int from) {
    if (coll->kind == HORA_COLL_ALLTOALL)
        return coll->other_counts[from];
    if (coll->kind == HORA_COLL_REDUCE_SCATTER)
        return coll->counts[coll->rank];
    return coll->counts == NULL ? coll->count : coll->counts[from];
}

#endif
