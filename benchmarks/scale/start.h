/*
 * What it takes to start a job, and what each rank then holds, by the number of ranks. Bytes and
 * memory follow from the real encoders and structs; times of one rank's own work are measured; joins
 * of some ranks on this machine are measured, to be extrapolated from. One thread, but for the joins.
 */
#ifndef BENCHMARKS_SCALE_START_H
#define BENCHMARKS_SCALE_START_H

#include <stdbool.h>
#include <stddef.h>

typedef struct scale_start {
    double roster;         /* bytes of what rank 0 sends to each rank */
    double sent;           /* bytes that it sends to all */
    double handshake;      /* bytes between rank 0 and one rank before that */
    double descriptors;    /* of rank 0 with an engine over TCP */
    double rank_memory;    /* bytes of each rank: peers, links, communicator */
    double root_memory;    /* bytes that rank 0 has beside that, during the roster */
    double root_buffers;   /* bytes of its TCP receive buffers with an engine */
    double roster_seconds; /* each rank's own work to find who is on which host */
    double select_seconds; /* to choose an algorithm in each call of a collective over TCP */
} scale_start_t;

/* Open in rank 0 after a step of an engine over TCP: its own, the star, a neighbour's each, and TCP
 * connections both ways. */
static inline double scale_descriptors(int size, int host) {
    return 5 + 3.0 * (size - 1) + (host < size ? host : size) - 1;
}

/* host: ranks of a host. False: no memory. */
bool scale_start_measure(int size, int host, scale_start_t *start_p);

typedef struct scale_join {
    double wall, cpu;   /* seconds of the slowest rank's join; of rank 0's processor */
    int    descriptors; /* open in rank 0 after a step of an engine */
} scale_join_t;

/* Joins `size` ranks on this machine over TCP, runs a step of an engine, and leaves. Forks. False: a
 * rank failed. */
bool scale_join_measure(int size, scale_join_t *join_p);

#endif
