/*
 * Executes the plans of all ranks of a collective in one process, one step of a random rank at a
 * time, over message queues and shared slots in memory. Fails on
 *   - wrong results, input that was changed, output beside the result that was changed;
 *   - deadlock, and messages that nobody received or of another length than expected;
 *   - places outside of their buffer;
 *   - touching what a transfer that was not waited for is using;
 *   - touching memory of a rank on another host;
 *   - two ranks touching the same shared element without a signal between them, if one writes
 *     (vector clocks: found whatever the interleaving).
 * A message is buffered or handed over late, at random, so a plan may rely on neither.
 */
#ifndef HORA_TESTS_SCHEDULE_SIM_H
#define HORA_TESTS_SCHEDULE_SIM_H

#include "schedule/algos.h"

typedef struct sim_case {
    const hora_algo_t *algo;
    hora_coll_kind_t   kind;
    hora_dtype_t       dtype;
    hora_op_t          op;
    int                size, root;
    const hora_hosts_t *hosts;   /* NULL: all on one host, with slots for all */
    size_t             count;
    bool               uneven;   /* v kinds: blocks of different sizes, with gaps, out of order */
    bool               in_place; /* where plan.h has a form for it */
    bool               shared;   /* hint->shared_in_out */
    bool               integers; /* small whole numbers: exact in any order */
    size_t             chunk;    /* elements */
    size_t             slot;     /* elements of a half-slot */
    double             prescale, postscale;
    int                calls;    /* so often, one after the other; 0: once */
    unsigned           seed;
} sim_case_t;

typedef struct sim_stats {
    size_t messages, elements;           /* all ranks together */
    size_t most_messages, most_elements; /* of the rank that sends most */
    size_t most_between; /* elements that a host sends to others, at most; with hosts */
} sim_stats_t;

/* "" if all is well, else what went wrong. Static storage. stats_p may be NULL. */
const char *sim_run(const sim_case_t *what, sim_stats_t *stats_p);

/* ---- sim_data.c: inputs and expected results ---- */

typedef struct sim_layout {
    size_t *counts, *displs;             /* [size]; NULL for kinds without blocks */
    size_t *other_counts, *other_displs; /* alltoall: of this rank */
    size_t  in, out;                     /* elements of this rank's buffers */
    size_t  in_at_out;                   /* in place: IN is OUT + this (or OUT is IN + out_at_in) */
    size_t  out_at_in;
} sim_layout_t;

void sim_layout_make(const sim_case_t *what, int rank, sim_layout_t *layout_p);
void sim_layout_free(sim_layout_t *layout);
/* Fills the input of a rank for call number `call`. */
void sim_fill(const sim_case_t *what, const sim_layout_t *layout, int rank, int call, void *in);
/* Elements of the result of rank that must be as in want (mask 1); the others must be unchanged. */
void sim_expect(const sim_case_t *what, const sim_layout_t *layout, int rank, int call, void *want,
                uint8_t *mask);
/* Is got as good as want? Bit for bit where the algorithm promises that; else close. */
bool sim_close(const sim_case_t *what, const void *got, const void *want);

#endif
