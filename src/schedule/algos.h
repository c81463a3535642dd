/*
 * The algorithms, one file each, and what only the files of this folder share.
 *
 * Cost models: a seconds per message, b per byte on the wire, g per byte reduced; p ranks, n bytes.
 */
#ifndef HORA_SCHEDULE_ALGOS_H
#define HORA_SCHEDULE_ALGOS_H

#include "schedule/plan.h"
#include "transport/comm.h"

#include <kernels/cpu/kernels.h>
#include <stddef.h>

extern const hora_algo_t hora_algo_arena;   /* arena.c */
extern const hora_algo_t hora_algo_oneshot; /* oneshot.c */
extern const hora_algo_t hora_algo_slots;   /* slots.c */
extern const hora_algo_t hora_algo_direct;
extern const hora_algo_t hora_algo_ring;
extern const hora_algo_t hora_algo_doubling;
extern const hora_algo_t hora_algo_halving;
extern const hora_algo_t hora_algo_tree;
extern const hora_algo_t hora_algo_twolevel;
/* Of the operation HORA_ADASUM; not in hora_algo_list. adasum.c */
extern const hora_algo_t hora_algo_adasum;
extern const hora_algo_t hora_algo_adasum_oneshot;

/* Calls so small that a plan would cost more than the call (tiny.c). The same on all members. */
bool hora_tiny_applies(hora_comm_t *comm, const hora_coll_t *coll);
/* Runs it, if it is one. */
bool hora_tiny_try(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p);

/* applies() of algorithms that need nothing beyond `colls`. */
bool hora_algo_always(const hora_coll_t *coll);
/* allreduce, reduce and reduce_scatter. */
static inline bool hora_coll_reduces(hora_coll_kind_t kind) {
    return 1u << kind & (1u << HORA_COLL_ALLREDUCE | 1u << HORA_COLL_REDUCE |
                         1u << HORA_COLL_REDUCE_SCATTER);
}
/* Elements of the whole vector: sum of counts[] where they are set, else of count. */
size_t hora_coll_total(const hora_coll_t *coll);
/* An alltoall whose blocks all have `count` elements, on every member. */
static inline bool hora_coll_is_even(const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_ALLTOALL && coll->count > 0;
}
/* Elements that a member hands in or out at most, the same on all members; 0 is 0 for all. Of an
 * alltoall that is not even, which they cannot know: 0. */
size_t hora_coll_extent(const hora_coll_t *coll);
/* Elements of member `rank`'s input that others may read, from its beginning on. */
size_t hora_coll_shown(const hora_coll_t *coll, int rank);
/* First element and length of rank b's block: by counts[] where they are set, else an even part. */
static inline size_t hora_block_begin(const hora_coll_t *coll, int b) {
    return coll->counts ? coll->displs[b] : hora_part_begin(coll->count, coll->size, b);
}
static inline size_t hora_block_count(const hora_coll_t *coll, int b) {
    return coll->counts ? coll->counts[b] : hora_part_count(coll->count, coll->size, b);
}
size_t hora_block_longest(const hora_coll_t *coll);
/* A chunk that is no longer than the longest block needs less TMP, and cuts at the same places. */
static inline size_t hora_chunk_fit(size_t chunk, size_t longest) {
    return chunk < longest ? chunk : longest > 0 ? longest : 1;
}
/* Length of chunk number i of `count` elements; 0 past the end. */
static inline size_t hora_chunk_count(size_t chunk, size_t count, size_t i) {
    size_t at = i * chunk;
    return at >= count ? 0 : count - at < chunk ? count - at : chunk;
}

/* "allreduce", ...; static storage. */
const char *hora_coll_name(hora_coll_kind_t kind);
/* Smallest k with 2^k >= n. */
int hora_log2_ceil(int n);

/* How the kernels reduce for coll: an average is a sum with a divisor. */
void hora_coll_how(const hora_coll_t *coll, hora_reduce_t *how_p);

/* What all members must agree on, in 32 bits (never 0): kind, operation and type can be read from
 * it, counts and root are hashed. */
uint32_t hora_coll_sig(const hora_coll_t *coll);
/* The same with one more value hashed in. */
uint32_t hora_coll_sig_with(uint32_t sig, uint64_t value);
/* HORA_ERR_MISMATCH as last error, naming both sides: I had `own` (in coll or in the call before), and
 * member `rank` had `theirs`. */
hora_status_t hora_coll_mismatch(hora_comm_t *comm, const hora_coll_t *coll, uint32_t own, int rank,
                                 uint32_t theirs);
/* Ends the communicator, on every member, with this thread's last error, unless it has ended
 * already. Returns the status that it has ended with. */
hora_status_t hora_coll_fail(hora_comm_t *comm, hora_status_t status);

/* ---- select.c ---- */

/* Chooses the algorithm; the same on all members, because it looks only at what is equal on all.
 * Never NULL. */
const hora_algo_t *hora_select(hora_comm_t *comm, const hora_coll_t *coll);
/* May algo run coll? The same on all members. */
bool hora_select_usable(const hora_comm_t *comm, const hora_coll_t *coll, const hora_algo_t *algo);
/* Seconds that it is expected to take. The same on all members. */
double hora_select_cost(hora_comm_t *comm, const hora_coll_t *coll, const hora_algo_t *algo);
/* What would be chosen if nothing had been measured, tuned or forced. */
const hora_algo_t *hora_select_by_formula(hora_comm_t *comm, const hora_coll_t *coll);
/* Must run.c sum the halves of coll as float32, because the algorithm does not sum in rank order
 * and would round at each step? */
bool hora_select_widens(const hora_algo_t *algo, const hora_coll_t *coll);

#endif
