/*
 * Autotune: which values of hora_tuning_t are the fastest for what a job really does. Pure code:
 * tensors and times in, values out. Used by rank 0's driving thread, through the coordinator.
 *
 * A sample is some steps with one setting; its score is bytes per microsecond. A step ends when a
 * tensor comes again. After each change one step is left out.
 *
 * The search changes one value at a time, beginning with the defaults. A contender is compared with
 * the champion in pairs of samples that lie side by side in time, in changing order, so that load
 * that comes and goes, and a job that slows down, hit both alike. It must win by the median of the
 * pairs' ratios. What has come out at the end must beat the defaults again, in more pairs; else the
 * defaults stay. So noise may cost a gain, but it makes nothing slower.
 */
#ifndef HORA_CONTROLLER_TUNE_H
#define HORA_CONTROLLER_TUNE_H

#include "controller/tuning.h"
#include "util/status.h"

#include <stddef.h>

typedef struct hora_tune hora_tune_t;

typedef enum hora_tune_phase {
    HORA_TUNE_WARMUP,
    HORA_TUNE_SEARCH,
    HORA_TUNE_FINAL, /* the best against the defaults */
    HORA_TUNE_DONE
} hora_tune_phase_t;

/* A sample that has been taken, or, with phase DONE, the end. */
typedef struct hora_tune_row {
    hora_tune_phase_t    phase;
    bool                 contender; /* else the champion (DONE: something beats the defaults) */
    const hora_tuning_t *tuning;
    double               bytes, us;
    double               gain; /* DONE: median ratio to the defaults; 1 when these stay */
    unsigned             number;
} hora_tune_row_t;

typedef struct hora_tune_options {
    hora_tuning_t defaults;
    bool          shared;         /* all ranks on one host, with an arena */
    bool          fixed_threshold, fixed_oneshot, fixed_algo; /* the user has set them */
    int           warmup;         /* samples that do not count */
    int           steps;          /* in a sample, at least */
    int           most;           /* contenders, at most */
    uint64_t      sample_ns;      /* of a sample, at least */
    const hora_tuning_t *loaded;  /* an earlier result: used as it is, nothing is searched. Or NULL */
    uint64_t    (*clock)(void *arg); /* ns */
    void         (*note)(void *arg, const hora_tune_row_t *row); /* may be NULL */
    void         *arg;
} hora_tune_options_t;

/* Kept by the caller for each tensor; zero at first. */
typedef struct hora_tune_mark {
    uint32_t sample, count;
} hora_tune_mark_t;

hora_status_t hora_tune_create(const hora_tune_options_t *options, hora_tune_t **tune_p);
void hora_tune_destroy(hora_tune_t *tune); /* NULL is allowed */

/* A tensor is about to be executed. */
void hora_tune_tensor(hora_tune_t *tune, hora_tune_mark_t *mark, size_t bytes);
/* The same, without tensors: takes a sample for what is current. For tests and for hora_tune_tensor. */
void hora_tune_sample(hora_tune_t *tune, double bytes, double us);

const hora_tuning_t *hora_tune_current(const hora_tune_t *tune);
hora_tune_phase_t    hora_tune_phase(const hora_tune_t *tune);
/* True once after each change of hora_tune_current: the ranks must be told. */
bool hora_tune_take_news(hora_tune_t *tune);

#endif
