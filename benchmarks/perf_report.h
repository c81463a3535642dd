/*
 * What hora-perf prints: nccl-tests' table, a narrower one, JSON, progress. Rank 0's main thread.
 */
#ifndef BENCHMARKS_PERF_REPORT_H
#define BENCHMARKS_PERF_REPORT_H

#include "perf_options.h"

#include <stdio.h>

typedef struct perf_result {
    bool   measured; /* false: the collective has no such form */
    double time;     /* seconds */
    double algbw, busbw; /* GB/s */
    long   wrong;    /* elements, over all ranks; -1: not checked */
} perf_result_t;

typedef struct perf_row {
    size_t        bytes; /* nccl-tests' "size" */
    size_t        count;
    hora_dtype_t  dtype;
    hora_op_t     op;
    int           root; /* -1: none */
    perf_result_t results[2]; /* out of place, in place */
} perf_row_t;

typedef struct perf_report {
    const perf_options_t *options;
    FILE  *json; /* NULL: none */
    int    rows, measured;
    double busbw_sum;
    long   wrong;
    bool   progress; /* standard error is a terminal */
} perf_report_t;

/* pids[r]: process of rank r. Returns false, with a message, if the JSON file cannot be written. */
bool perf_report_begin(perf_report_t *report, const perf_options_t *options, hora_comm_t *comm,
                       const int64_t *pids);
void perf_report_progress(const perf_report_t *report, size_t bytes, bool in_place);
void perf_report_row(perf_report_t *report, const perf_row_t *row);
/* Prints the footer. Returns the exit code. */
int perf_report_end(perf_report_t *report);

#endif
