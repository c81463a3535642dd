/*
 * What hora-perf prints. Rank 0's main thread. The columns are nccl-tests', to the character, so
 * that scripts which read its tables read ours.
 */
#include "perf_report.h"

#include "common/text.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- Begin --------------------------------------------------------------------------------- */

static void print_ranks(hora_comm_t *comm, const int64_t *pids) {
    printf("# Using ranks\n");
    for (int r = 0; r < hora_comm_size(comm); r++)
        printf("#  Rank %2d Group %2d Pid %6d on %10s via %s\n", r, 0, (int)pids[r],
               hora_comm_host(comm, r), hora_comm_transport(comm, r));
}

static void print_banner(const perf_options_t *o, hora_comm_t *comm) {
    char step[64];
    if (o->factor > 1)
        snprintf(step, sizeof(step), "%g(factor)", o->factor);
    else
        snprintf(step, sizeof(step), "%zu(bytes)", o->step_bytes);
    printf("# hora-perf %s: %s, ranks %d, memory: %s\n", hora_version(), coll_name(o->kind),
           hora_comm_size(comm), o->cuda ? "GPU" : o->arena ? "arena" : "ordinary");
    printf("# minBytes %zu maxBytes %zu step: %s warmup iters: %d iters: %d validation: %d\n",
           o->min_bytes, o->max_bytes, step, o->warmup, o->iters, o->check);
    printf("# time: median over the iters of the average over the ranks; before each call the "
           "buffers are rewritten and a barrier is passed\n#\n");
}

static void print_header(const perf_options_t *o) {
    if (o->table) {
        printf("#  size     type  redop |   time(us)  GB/s  busbw | in place  GB/s  busbw | wrong\n");
        return;
    }
    printf("#\n");
    printf("# %10s  %12s  %8s  %6s  %6s           out-of-place                       in-place        "
           "  \n", "", "", "", "", "");
    printf("# %10s  %12s  %8s  %6s  %6s  %7s  %6s  %6s  %6s  %7s  %6s  %6s  %6s\n", "size", "count",
           "type", "redop", "root", "time", "algbw", "busbw", "#wrong", "time", "algbw", "busbw",
           "#wrong");
    printf("# %10s  %12s  %8s  %6s  %6s  %7s  %6s  %6s  %6s  %7s  %6s  %6s  %6s\n", "(B)",
           "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)", "", "(us)", "(GB/s)", "(GB/s)", "");
}

static void json_begin(perf_report_t *report, hora_comm_t *comm) {
    const perf_options_t *o = report->options;
    fprintf(report->json, "{\"version\": \"%s\", \"collective\": \"%s\", \"ranks\": %d, ",
            hora_version(), coll_name(o->kind), hora_comm_size(comm));
    fprintf(report->json, "\"iters\": %d, \"warmup\": %d, \"arena\": %s, \"device\": \"%s\", ",
            o->iters, o->warmup, o->arena ? "true" : "false", o->cuda ? "cuda" : "cpu");
    fputs("\"transports\": [", report->json);
    for (int r = 0; r < hora_comm_size(comm); r++) {
        fputs(r > 0 ? ", " : "", report->json);
        text_json(report->json, hora_comm_transport(comm, r));
    }
    fprintf(report->json, "],\n \"rows\": [");
}

bool perf_report_begin(perf_report_t *report, const perf_options_t *options, hora_comm_t *comm,
                       const int64_t *pids) {
    memset(report, 0, sizeof(*report));
    report->options = options;
    report->progress = isatty(STDERR_FILENO) && !isatty(STDOUT_FILENO);
    if (options->json != NULL) {
        bool standard = strcmp(options->json, "-") == 0;
        report->json = standard ? stdout : fopen(options->json, "w");
        if (report->json == NULL) {
            fprintf(stderr, "hora-perf: %s: %s\n", options->json, strerror(errno));
            return false;
        }
        json_begin(report, comm);
    }
    if (report->json == stdout)
        return true;
    print_banner(options, comm);
    print_ranks(comm, pids);
    print_header(options);
    fflush(stdout);
    return true;
}

void perf_report_progress(const perf_report_t *report, size_t bytes, bool in_place) {
    char size[16];
    if (!report->progress)
        return;
    text_bytes(size, sizeof(size), (double)bytes);
    fprintf(stderr, "\r%s %s, %s ...\033[K", coll_name(report->options->kind), size,
            in_place ? "in place" : "out of place");
}

/* ---- Rows ---------------------------------------------------------------------------------- */

/* `value` in `width` characters with as many of two decimals as there is room for. */
static void print_fixed(char *buf, size_t size, double value, int width) {
    int digits = 0;
    for (double power = 1; value >= power; power *= 10)
        digits++;
    int decimals = digits < width - 2 ? 2 : digits < width - 1 ? 1 : 0;
    snprintf(buf, size, "%*.*f", width, decimals, value);
}

static void print_result(const perf_result_t *r) {
    char time[32], algbw[32], busbw[32];
    if (!r->measured) {
        printf("  %7s  %6s  %6s  %6s", "N/A", "N/A", "N/A", "N/A");
        return;
    }
    print_fixed(time, sizeof(time), r->time * 1e6, 7);
    print_fixed(algbw, sizeof(algbw), r->algbw, 6);
    print_fixed(busbw, sizeof(busbw), r->busbw, 6);
    if (r->wrong < 0)
        printf("  %7s  %6s  %6s  %6s", time, algbw, busbw, "N/A");
    else
        printf("  %7s  %6s  %6s  %6g", time, algbw, busbw, (double)r->wrong);
}

static void print_row(const perf_row_t *row) {
    char root[16];
    snprintf(root, sizeof(root), "%d", row->root);
    printf("%12zu  %12zu  %8s  %6s  %6s", row->bytes, row->count, text_dtype_name(row->dtype),
           text_op_name(row->op), root);
    print_result(&row->results[0]);
    print_result(&row->results[1]);
    printf("\n");
}

static void print_row_for_people(const perf_row_t *row) {
    char size[16];
    long wrong = 0;
    text_bytes(size, sizeof(size), (double)row->bytes);
    printf("%7s %8s %6s ", size, text_dtype_name(row->dtype), text_op_name(row->op));
    for (int i = 0; i < 2; i++) {
        const perf_result_t *r = &row->results[i];
        if (r->measured)
            printf("| %*.1f %5.2f %6.2f ", i == 0 ? 10 : 8, r->time * 1e6, r->algbw, r->busbw);
        else
            printf("| %*s %5s %6s ", i == 0 ? 10 : 8, "-", "-", "-");
        wrong += r->wrong > 0 ? r->wrong : 0;
    }
    if (row->results[0].wrong < 0)
        printf("| %5s\n", "-");
    else
        printf("| %5ld\n", wrong);
}

static void json_result(FILE *file, const char *name, const perf_result_t *r) {
    if (!r->measured) {
        fprintf(file, ", \"%s\": null", name);
        return;
    }
    fprintf(file, ", \"%s\": {\"time_us\": %.3f, \"algbw\": %.6g, \"busbw\": %.6g, \"wrong\": ", name,
            r->time * 1e6, r->algbw, r->busbw);
    if (r->wrong < 0)
        fprintf(file, "null}");
    else
        fprintf(file, "%ld}", r->wrong);
}

static void json_row(perf_report_t *report, const perf_row_t *row) {
    fprintf(report->json, "%s\n  {\"size\": %zu, \"count\": %zu, \"type\": \"%s\", \"redop\": \"%s\", "
            "\"root\": %d", report->rows > 0 ? "," : "", row->bytes, row->count,
            text_dtype_name(row->dtype), text_op_name(row->op), row->root);
    json_result(report->json, "out_of_place", &row->results[0]);
    json_result(report->json, "in_place", &row->results[1]);
    fprintf(report->json, "}");
}

void perf_report_row(perf_report_t *report, const perf_row_t *row) {
    if (report->progress)
        fprintf(stderr, "\r\033[K");
    if (report->json != NULL)
        json_row(report, row);
    if (report->json != stdout && report->options->table)
        print_row_for_people(row);
    else if (report->json != stdout)
        print_row(row);
    fflush(stdout);
    report->rows++;
    for (int i = 0; i < 2; i++) {
        if (!row->results[i].measured)
            continue;
        report->measured++;
        report->busbw_sum += row->results[i].busbw;
        report->wrong += row->results[i].wrong > 0 ? row->results[i].wrong : 0;
    }
}

int perf_report_end(perf_report_t *report) {
    double average = report->measured > 0 ? report->busbw_sum / report->measured : 0;
    if (report->json != NULL) {
        fprintf(report->json, "\n ],\n \"wrong\": %ld, \"avg_bus_bandwidth\": %.6g}\n", report->wrong,
                average);
        if (report->json != stdout && fclose(report->json) != 0) {
            fprintf(stderr, "hora-perf: %s: %s\n", report->options->json, strerror(errno));
            return 1;
        }
    }
    if (report->json != stdout) {
        printf("# Out of bounds values : %ld %s\n", report->wrong,
               report->wrong == 0 ? "OK" : "FAILED");
        printf("# Avg bus bandwidth    : %g \n#\n", average);
    }
    return report->wrong != 0;
}
