/*
 * The copies of a turn (kernels.h) by themselves: for types that have no loop of their own, and
 * what such a loop leaves over. Any thread.
 */
#ifndef HORA_KERNELS_CPU_TURN_H
#define HORA_KERNELS_CPU_TURN_H

#include "kernels.h"

#include <string.h>

#define TURN_LINE 64

/* out = slot, slot = in. */
static inline void turn_bytes(uint8_t *out, uint8_t *slot, const uint8_t *in, size_t bytes)
{
    uint8_t line[TURN_LINE];
    size_t  lines = bytes / TURN_LINE * TURN_LINE;
    for (size_t at = 0; at < lines; at += TURN_LINE) {
        memcpy(line, slot + at, TURN_LINE); /* of a constant length: no call */
        memcpy(slot + at, in + at, TURN_LINE);
        memcpy(out + at, line, TURN_LINE);
    }
    memcpy(out + lines, slot + lines, bytes - lines);
    memcpy(slot + lines, in + lines, bytes - lines);
}

/* What is left of a turn's copies from element `at` on; size: bytes of an element. */
static inline void turn_rest(const hora_turn_t *turn, size_t at, size_t size)
{
    uint8_t       *out = turn->out, *slot = turn->slot;
    const uint8_t *in = turn->in;
    if (at <= turn->gap_at && turn->gap > 0) {
        turn_bytes(out + at * size, slot + at * size, in + at * size, (turn->gap_at - at) * size);
        at = turn->gap_at + turn->gap;
    }
    if (at < turn->count) {
        turn_bytes(out + at * size, slot + at * size, in + at * size, (turn->count - at) * size);
    }
}

#endif
