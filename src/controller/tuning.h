/*
 * What autotune may change while an engine runs: values that every rank must have equal at the same
 * point of the order of operations. They come from rank 0 in a TUNE item (message.h).
 */
#ifndef HORA_CONTROLLER_TUNING_H
#define HORA_CONTROLLER_TUNING_H

#include <stdbool.h>
#include <stdint.h>

#define HORA_TUNING_BYTES_MAX ((uint64_t)1 << 40) /* also: no limit */
#define HORA_TUNING_LARGE     ((uint64_t)1 << 18) /* bytes from which `algo` counts */

typedef enum hora_tuning_algo {
    HORA_TUNING_AUTO = 0, /* by the cost model */
    HORA_TUNING_RING = 1,
    HORA_TUNING_DIRECT = 2,
    HORA_TUNING_HALVING = 3,
    HORA_TUNING_ALGO_COUNT = 4
} hora_tuning_algo_t;

typedef struct hora_tuning {
    uint64_t fusion_threshold; /* bytes in a batch, at most; 0: fuse nothing */
    uint64_t pack;             /* bytes packed at a time, at most */
    uint64_t alone;            /* bytes from which a tensor is not packed; at most pack */
    uint64_t oneshot_limit;    /* bytes up to which one synchronisation does, on one host */
    uint32_t algo;             /* hora_tuning_algo_t: large allreduces between hosts */
} hora_tuning_t;

/* Are all values in their range? */
static inline bool hora_tuning_is_sane(const hora_tuning_t *t) {
    return t->fusion_threshold <= HORA_TUNING_BYTES_MAX && t->pack <= HORA_TUNING_BYTES_MAX &&
           t->alone <= t->pack && t->oneshot_limit <= HORA_TUNING_BYTES_MAX &&
           t->algo < HORA_TUNING_ALGO_COUNT;
}

static inline bool hora_tuning_equal(const hora_tuning_t *a, const hora_tuning_t *b) {
    return a->fusion_threshold == b->fusion_threshold && a->pack == b->pack &&
           a->alone == b->alone && a->oneshot_limit == b->oneshot_limit && a->algo == b->algo;
}

/* "auto", "ring", ...; NULL past the last. Static storage. (tune.c) */
const char *hora_tuning_algo_name(uint32_t algo);

#endif
