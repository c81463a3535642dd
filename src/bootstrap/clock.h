/*
 * How far rank 0's clock is ahead of this one: a few questions over the control connection, as NTP
 * asks them. On the watch thread. For timelines of ranks on several hosts; the ranks of one host
 * share a clock.
 *
 *     rank r                      rank 0       offset = t0 - (t1 + t2) / 2, and it is wrong by no
 *     t1: CLOCK  t1            ->              more than (t2 - t1) / 2, whatever each way took. Of
 *                  <-  CLOCK  t1, t0           several answers the one that came soonest counts.
 *     t2
 */
#ifndef HORA_BOOTSTRAP_CLOCK_H
#define HORA_BOOTSTRAP_CLOCK_H

#include "bootstrap/conn.h"
#include "transport/world.h"

#define HORA_CLOCK_BYTES 16u /* of the longer payload */

typedef struct hora_probe {
    int      left;   /* questions still to be asked; 0: none is under way */
    int64_t  offset; /* ns; of the best answer so far */
    uint64_t error;  /* ns; UINT64_MAX: there was none */
} hora_probe_t;

/* Begins anew. Send the question that it writes; returns the length. */
size_t hora_probe_begin(hora_probe_t *probe, uint8_t bytes_p[HORA_CLOCK_BYTES]);
/* A CLOCK frame has come. Returns the length of what to send back (0: nothing), or -1 if the frame
 * is malformed. The timeline is told when the last answer is there. */
int hora_probe_heard(hora_probe_t *probe, hora_world_t *world, const hora_frame_t *frame,
                     uint8_t bytes_p[HORA_CLOCK_BYTES]);

#endif
