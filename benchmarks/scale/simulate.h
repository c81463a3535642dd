/*
 * Runs emitted plans against a model of a network: when would every rank be done? No bytes move;
 * tests/unit/schedule/sim.c is the simulator that checks results. One thread; no state.
 *
 * The model. A message of n bytes from rank s to rank d:
 *   - issuing it takes s's processor a/4;
 *   - it leaves by an output of rate 1/b, one message after the other, and begins to arrive 3a/4
 *     after it began to leave;
 *   - it comes in by an input of rate 1/b, one after the other, in the order of arrival.
 * So a message alone takes a + nb, and m messages that one rank sends at once a + (m-1)a/4 + mnb:
 * the a, b of the formulas in the heads of src/schedule's files. A rank that sums k sources of n
 * bytes works for (k-1) n g. A message may arrive before its receive is posted.
 * Ranks 8i .. 8i+7 (with host = 8) are a host: between them, a and b are those of shared memory and
 * each rank has an output and an input; to other hosts, the ranks of a host share one of each.
 * Where ranks of a host meet in shared memory (SIGNAL, AWAIT), the last one to come is seen by the
 * others an a of shared memory later; a copy of n bytes there, as any copy, is work of n g.
 *
 * Three ways, by cost:
 *   FULL     the plans of all ranks are emitted and run.
 *   ORBIT    the plans of one host's ranks are, and stand for all: where the plan of each rank is
 *            that of rank 0 with its peers renumbered (ring, direct: shifted; halving, doubling of
 *            2^k ranks: exclusive or; two levels: by hosts), what comes from a peer comes when I send the same to the
 *            opposite peer. The renumbering is compared with real plans of other ranks. Counts are
 *            rounded up to a multiple of the ranks (two levels: and of cache lines), so that all
 *            blocks are equal: an upper bound, high by less than an element (a line) per block. Not
 *            for halving with fewer elements than ranks.
 *            Messages that ask for one host's output at the same instant go in any order, and in
 *            each host in another one; so with halving and doubling the time is off by a few per
 *            cent where hosts have several ranks.
 *   FORMULA  the plans of some ranks are emitted and counted, none is run; the time is the
 *            algorithm's own cost().
 * In all of them every emitted plan is compared with the formula for its rank (formulas.h).
 */
#ifndef BENCHMARKS_SCALE_SIMULATE_H
#define BENCHMARKS_SCALE_SIMULATE_H

#include "schedule/algos.h"

/* Seconds per message, per byte, per byte reduced. */
typedef struct scale_net {
    int    host;              /* ranks per host; 1: no two ranks share one */
    double a, b;              /* between hosts */
    double inside_a, inside_b; /* within one */
    double g;
} scale_net_t;

/* SCALE_NONE: the algorithm does not apply: two levels on one host, or where no two ranks share one. */
typedef enum scale_way { SCALE_AUTO, SCALE_FULL, SCALE_ORBIT, SCALE_FORMULA, SCALE_NONE } scale_way_t;

/* One allreduce. */
typedef struct scale_case {
    const hora_algo_t *algo;
    int                size;
    size_t             count, elem, chunk; /* elements; bytes of one; elements */
    scale_net_t        net;
    const hora_hosts_t *hosts; /* of two levels; scale_simulate makes it */
    scale_way_t        way;
    uint64_t           most_messages; /* AUTO: FULL up to so many of all ranks together, or five
                                         times as many where there is no orbit */
} scale_case_t;

/* What one rank's plan does. Transfers of one message each, bytes. */
typedef struct scale_load {
    uint64_t messages, sent, received, reduced;
} scale_load_t;

typedef struct scale_result {
    scale_way_t  way;
    double       seconds;   /* of the slowest rank */
    double       formula;   /* cost() */
    int          rounds;    /* messages in the longest chain, each sent after the one before came;
                               0: not run */
    scale_load_t most;      /* of the ranks whose plans were emitted */
    uint64_t     between;   /* bytes that a host sends to others; 0: not run */
    int          plans;     /* that were */
    size_t       steps, plan_bytes, tmp_bytes; /* the largest of these plans */
    double       plan_seconds;                 /* the slowest to emit */
    char         error[256]; /* "": all formulas hold */
} scale_result_t;

/* False without memory. */
bool scale_simulate(const scale_case_t *what, scale_result_t *result_p);

/* Can ORBIT stand for the case? */
bool scale_has_orbit(const scale_case_t *what);

#endif
