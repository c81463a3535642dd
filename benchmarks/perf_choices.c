/*
 * What hora-perf --algorithms prints: for each collective the ranges of sizes that one algorithm
 * takes, with the times expected at both ends; as JSON, for every size all algorithms that could.
 */
#include "perf_choices.h"

#include "common/text.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CHOICES_MAX 16

static const char *const collectives[] = {"allreduce", "reduce_scatter", "allgather", "broadcast",
                                          "alltoall", "reduce", "gather", "scatter"};
#define COLLECTIVES (sizeof(collectives) / sizeof(collectives[0]))

/* What carries bytes to the farthest member. */
static const char *wire(hora_comm_t *comm) {
    const char *name = hora_comm_transport(comm, 0);
    for (int r = 1; r < hora_comm_size(comm); r++)
        if (strcmp(hora_comm_transport(comm, r), "self") != 0 && strcmp(name, "tcp") != 0)
            name = hora_comm_transport(comm, r);
    return name;
}

static void print_size(size_t bytes) {
    static const char *const units[] = {"B ", "KB", "MB", "GB"};
    int                      unit = 0;
    for (; bytes >= 1024 && bytes % 1024 == 0 && unit < 3; unit++)
        bytes /= 1024;
    printf("%6zu %s", bytes, units[unit]);
}

static void print_range(const char *collective, size_t from, size_t to, const hora_choice_t *first,
                        const hora_choice_t *last) {
    printf("%-15s ", collective);
    print_size(from);
    printf(" .. ");
    print_size(to);
    printf("  %-10s %10.2f .. %.2f\n", first->algorithm, first->seconds * 1e6, last->seconds * 1e6);
}

static void print_collective(hora_comm_t *comm, const char *collective, size_t max_bytes) {
    hora_choice_t first = {NULL, 0}, last = {NULL, 0}, now;
    size_t        from = 0, to = 0;
    for (size_t bytes = 8; bytes <= max_bytes; bytes *= 2) {
        if (hora_comm_choices(comm, collective, bytes, &now, 1) == 0)
            return;
        if (first.algorithm != NULL && strcmp(now.algorithm, first.algorithm) != 0) {
            print_range(collective, from, to, &first, &last);
            first.algorithm = NULL;
        }
        if (first.algorithm == NULL) {
            first = now;
            from = bytes;
        }
        last = now;
        to = bytes;
    }
    if (first.algorithm != NULL)
        print_range(collective, from, to, &first, &last);
}

static void print_text(hora_comm_t *comm, size_t max_bytes) {
    printf("# %d ranks, %s; expected times: %s\n", hora_comm_size(comm), wire(comm),
           hora_comm_costs(comm));
    printf("# bytes: of the vector (allreduce, reduce, broadcast), or of all blocks on a rank; "
           "float32\n# %-13s %9s    %9s  %-10s %s\n", "collective", "from", "to", "algorithm",
           "expected us");
    for (size_t i = 0; i < COLLECTIVES; i++)
        print_collective(comm, collectives[i], max_bytes);
}

static void json_sizes(FILE *out, hora_comm_t *comm, const char *collective, size_t max_bytes) {
    for (size_t bytes = 8; bytes <= max_bytes; bytes *= 2) {
        hora_choice_t choices[CHOICES_MAX];
        int           n = hora_comm_choices(comm, collective, bytes, choices, CHOICES_MAX);
        fprintf(out, "%s\n  {\"bytes\": %zu, \"algorithms\": [", bytes > 8 ? "," : "", bytes);
        for (int i = 0; i < n && i < CHOICES_MAX; i++)
            fprintf(out, "%s{\"name\": \"%s\", \"us\": %.3f}", i > 0 ? ", " : "",
                    choices[i].algorithm, choices[i].seconds * 1e6);
        fprintf(out, "]}");
    }
}

static void print_json(FILE *out, hora_comm_t *comm, size_t max_bytes) {
    fprintf(out, "{\"ranks\": %d, \"transport\": \"%s\", \"costs\": ", hora_comm_size(comm),
            wire(comm));
    text_json(out, hora_comm_costs(comm));
    fprintf(out, ", \"collectives\": {");
    for (size_t i = 0; i < COLLECTIVES; i++) {
        fprintf(out, "%s\n \"%s\": [", i > 0 ? "," : "", collectives[i]);
        json_sizes(out, comm, collectives[i], max_bytes);
        fprintf(out, "]");
    }
    fprintf(out, "}}\n");
}

/* Where --json says; NULL with a message. */
static FILE *open_json(const char *path) {
    FILE *out = strcmp(path, "-") == 0 ? stdout : fopen(path, "w");
    if (out == NULL)
        fprintf(stderr, "hora-perf: %s: %s\n", path, strerror(errno));
    return out;
}

static int close_json(FILE *out) {
    return out == stdout || fclose(out) == 0 ? 0 : 1;
}

int perf_choices(hora_comm_t *comm, const perf_options_t *options) {
    FILE *out;
    if (options->json == NULL) {
        print_text(comm, options->max_bytes);
        return 0;
    }
    out = open_json(options->json);
    if (out == NULL)
        return 1;
    print_json(out, comm, options->max_bytes);
    return close_json(out);
}

static int report_calibration(hora_comm_t *comm, const perf_options_t *options, const char *path) {
    FILE *out;
    if (options->json == NULL) {
        printf("# written to %s; jobs with %d ranks here choose by it (hora info --algorithms)\n", path,
               hora_comm_size(comm));
        return 0;
    }
    out = open_json(options->json);
    if (out == NULL)
        return 1;
    fprintf(out, "{\"ranks\": %d, \"transport\": \"%s\", \"file\": ", hora_comm_size(comm), wire(comm));
    text_json(out, path);
    fprintf(out, "}\n");
    return close_json(out);
}

int perf_calibrate(hora_comm_t *comm, const perf_options_t *options) {
    char path[512];
    int  rank = hora_comm_rank(comm);
    if (rank == 0 && options->json == NULL) {
        printf("# measuring every algorithm between %d ranks, some seconds ...\n", hora_comm_size(comm));
        fflush(stdout);
    }
    if (hora_comm_calibrate(comm, path, sizeof(path)) != HORA_OK) {
        fprintf(stderr, "hora-perf: rank %d: %s\n", rank, hora_last_error());
        return 1;
    }
    return rank == 0 ? report_calibration(comm, options, path) : 0;
}
