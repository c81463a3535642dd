/*
 * hora-perf's command line: nccl-tests' letters where it has one. Main thread.
 */
#ifndef BENCHMARKS_PERF_OPTIONS_H
#define BENCHMARKS_PERF_OPTIONS_H

#include "common/coll.h"

typedef struct perf_options {
    coll_kind_t kind;
    size_t      min_bytes, max_bytes;
    size_t      step_bytes; /* used when factor is 1 */
    double      factor;
    int         iters, warmup;
    bool        check;
    hora_dtype_t dtype; /* HORA_DTYPE_COUNT: all */
    hora_op_t    op;    /* HORA_OP_COUNT: all */
    int          root;  /* -1: all */
    int          nranks; /* ranks to fork; 0: a launcher has made them */
    bool         arena;
    bool         cuda; /* buffers on GPUs */
    bool         table; /* for people: sizes with units, one line of units */
    bool         choices, calibrate; /* --algorithms, --calibrate: no table */
    const char  *json;  /* file to write; NULL: none */
} perf_options_t;

/* Reads the command line. Prints what is wrong, or the help, and returns false; *code_p is then
 * what to exit with. */
bool perf_options_read(int argc, char **argv, perf_options_t *options_p, int *code_p);

#endif
