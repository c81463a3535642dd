/*
 * What rank 0 does in a step of the engine, for any number of ranks: the real coordinator
 * (src/controller) takes real frames of simulated ranks, which all report the same tensors. One
 * thread; only the time of the measured calls depends on the machine.
 */
#ifndef BENCHMARKS_SCALE_CONTROL_H
#define BENCHMARKS_SCALE_CONTROL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum scale_step {
    SCALE_COLD,   /* names and signatures: the first step */
    SCALE_WARM,   /* ids of names that are known */
    SCALE_FROZEN, /* one position */
    SCALE_STEPS
} scale_step_t;

typedef struct scale_control {
    double in[SCALE_STEPS], out[SCALE_STEPS]; /* bytes of one rank's frame to rank 0; and back */
    double seconds[SCALE_STEPS];              /* of rank 0's processor, without the network */
    double find_seconds; /* to find p - 1 frames that have come among the posted receives */
    size_t memory;       /* bytes that rank 0 has for the frames of the ranks */
} scale_control_t;

/* Every rank reports `tensors` tensors at once. False: no memory, or the coordinator refuses. */
bool scale_control_measure(int size, int tensors, scale_control_t *control_p);

/* Microseconds of rank 0's processor per small frame received and sent over TCP, measured on
 * loopback with `connections` at a time. Negative: no sockets. */
double scale_frame_us(int connections);

#endif
