/*
 * Tables and JSON of hora-scale. One thread.
 */
#ifndef BENCHMARKS_SCALE_REPORT_H
#define BENCHMARKS_SCALE_REPORT_H

#include "control.h"
#include "simulate.h"
#include "start.h"

#include <stdio.h>

#define SCALE_ALGOS_MAX 8
#define SCALE_LIST_MAX  32

typedef struct scale_options {
    int                sizes[SCALE_LIST_MAX], nsizes; /* ranks */
    size_t             bytes[SCALE_LIST_MAX];
    int                nbytes;
    const hora_algo_t *algos[SCALE_ALGOS_MAX];
    int                nalgos;
    size_t             chunk; /* bytes */
    int                tensors;
    uint64_t           most_messages;
    int                joins[SCALE_LIST_MAX], njoins;
    scale_net_t        nets[2]; /* one rank per host; several */
    bool               schedules, controller, start;
    const char        *json;
} scale_options_t;

/* [net][bytes][size][algo] */
typedef scale_result_t scale_results_t[2][SCALE_LIST_MAX][SCALE_LIST_MAX][SCALE_ALGOS_MAX];

void scale_print_schedules(const scale_options_t *o, scale_results_t *results);
void scale_print_plans(const scale_options_t *o, scale_results_t *results);
/* base: of up to 64 ranks, for the tree. */
void scale_print_controller(const scale_options_t *o, const scale_control_t *controls,
                            const scale_control_t *base, double frame_us);
void scale_print_start(const scale_options_t *o, const scale_start_t *starts,
                       const scale_join_t *joins);
/* Writes everything that was measured; NULLs were not. */
void scale_write_json(FILE *file, const scale_options_t *o, scale_results_t *results,
                      const scale_control_t *controls, double frame_us, const scale_start_t *starts,
                      const scale_join_t *joins);

#endif
