/*
 * One library in the comparison (benchmarks/compare): what its file must provide. main.c does the
 * rest. Everything is called on the main thread; an error ends the process with peer_die.
 */
#ifndef HORA_BENCHMARKS_PEER_H
#define HORA_BENCHMARKS_PEER_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum peer_op {
    PEER_ALLREDUCE,      /* count floats, in place in `out`, sum */
    PEER_ALLGATHER,      /* count floats of each rank from `in`; size * count in `out` */
    PEER_REDUCE_SCATTER, /* size * count floats in `in`; count in `out` */
    PEER_BROADCAST,      /* count floats in `out`, from rank 0 */
    PEER_ALLTOALL,       /* size blocks of count floats from `in` to `out` */
    PEER_MOVE            /* main.c's own: `out`, by one cache line, without the library */
} peer_op_t;

/* Joins the job. version_p: static storage. */
void  peer_init(int *argc, char ***argv, int *rank_p, int *size_p, const char **version_p);
void  peer_finish(void);
/* shared: from the library's own allocator, if it has one; else as always. Page-aligned. */
void *peer_alloc(size_t bytes, int shared);
void  peer_barrier(void);
void  peer_run(peer_op_t op, const float *in, float *out, size_t count);
/* Says why and ends the process (main.c). */
void  peer_die(const char *what) __attribute__((noreturn));

#ifdef __cplusplus
}
#endif

#endif
