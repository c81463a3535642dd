/*
 * Time that never steps backwards. Any thread.
 */
#ifndef HORA_UTIL_CLOCK_H
#define HORA_UTIL_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds since some fixed moment. */
static inline uint64_t hora_clock_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline double hora_clock_seconds(uint64_t ns) {
    return (double)ns * 1e-9;
}

/* Nanoseconds in `seconds`; capped at about 292 years, so that sums with a clock do not wrap. */
static inline uint64_t hora_clock_from_seconds(double seconds) {
    return seconds >= 9.2e9 ? UINT64_MAX / 2 : seconds <= 0 ? 0 : (uint64_t)(seconds * 1e9);
}

#endif
