/*
 * Autotune's files: the log of samples (CSV) and the cache of a result (JSON). Rank 0's driving
 * thread, and the thread that creates the engine.
 *
 * A file that cannot be read or written is a warning in the log, never an error: tuning is no
 * reason to end a job.
 */
#ifndef HORA_CONTROLLER_TUNE_FILE_H
#define HORA_CONTROLLER_TUNE_FILE_H

#include "controller/tune.h"

#include <stdio.h>

/* Where a result counts. A cache made elsewhere is not used. */
typedef struct hora_tune_place {
    int           ranks, hosts;
    char          wire[16];     /* "shm", "tcp", "mpi": what carries the bytes */
    char          machine[160]; /* of rank 0: architecture, cores, processor */
    hora_tuning_t defaults;     /* what the result was compared with */
} hora_tune_place_t;

/* Reads `path`. False: there is none, or it is damaged or made elsewhere (then a warning says why). */
bool hora_tune_load(const char *path, const hora_tune_place_t *place, hora_tuning_t *tuning_p);
/* Writes `path`, in one go. gain: how many times faster than the defaults. False after a warning. */
bool hora_tune_save(const char *path, const hora_tune_place_t *place, const hora_tuning_t *tuning,
                    double gain);

/* Opens the log and writes its first line. NULL after a warning. */
FILE *hora_tune_log_open(const char *path);
/* A line for a row; the file is readable at every moment. */
void  hora_tune_log_row(FILE *file, const hora_tune_row_t *row);

#endif
