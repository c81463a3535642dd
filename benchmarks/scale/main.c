/*
 * hora-scale: how hora would do with 2 to 65,536 ranks. Simulates the emitted schedules, drives the
 * real coordinator, and adds up what a start costs. One thread; only the joins use other processes.
 */
#include "formulas.h"
#include "report.h"

#include "common/text.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: hora-scale [options] [schedules] [controller] [start]\n"
    "\n"
    "What allreduce, the engine's controller and the start of a job cost at any number of ranks:\n"
    "  schedules   runs the emitted plans against a model of a network, and compares messages,\n"
    "              bytes and rounds with the formulas (exit code 1 if one does not hold)\n"
    "  controller  rank 0's work per step: a first step, a warm cache, the frozen schedule\n"
    "  start       bytes, descriptors, memory and time to start a job\n"
    "All three, if none is named. docs/scale.md reads the tables.\n"
    "\n"
    "  --ranks LIST        numbers of ranks (2, 4, ... 65536, and 3, 1000, 65535)\n"
    "  --sizes LIST        bytes, such as 8,64K,25M (8,64K,25M,1G)\n"
    "  --algorithms LIST   all that have a formula\n"
    "  --host N            ranks per host in the second network (8)\n"
    "  --alpha US          between hosts: microseconds per message (25)\n"
    "  --rate GB/S         and bandwidth of a network card, each way (2)\n"
    "  --inside-alpha US   within a host: microseconds per message (1.5)\n"
    "  --inside-rate GB/S  and bandwidth of a rank, each way (6)\n"
    "  --reduce-rate GB/S  bytes that a rank reduces (12)\n"
    "  --chunk BYTES       chunk where a plan is pipelined (256K)\n"
    "  --most N            most messages of all ranks that are simulated one by one (400000)\n"
    "  --tensors N         tensors in a step of the engine, 1 to 500 (161)\n"
    "  --joins LIST        ranks to start on this machine, or none (8,16,32,64)\n"
    "  --json FILE         write everything as JSON too\n"
    "  -h, --help          this text\n";

enum { SIZES = 256, BYTES, ALGOS, HOST, ALPHA, RATE, INSIDE_ALPHA, INSIDE_RATE, REDUCE_RATE, CHUNK,
       MOST, TENSORS, JOINS, JSON };

static const struct option longs[] = {
    {"ranks", required_argument, NULL, SIZES},
    {"sizes", required_argument, NULL, BYTES},
    {"algorithms", required_argument, NULL, ALGOS},
    {"host", required_argument, NULL, HOST},
    {"alpha", required_argument, NULL, ALPHA},
    {"rate", required_argument, NULL, RATE},
    {"inside-alpha", required_argument, NULL, INSIDE_ALPHA},
    {"inside-rate", required_argument, NULL, INSIDE_RATE},
    {"reduce-rate", required_argument, NULL, REDUCE_RATE},
    {"chunk", required_argument, NULL, CHUNK},
    {"most", required_argument, NULL, MOST},
    {"tensors", required_argument, NULL, TENSORS},
    {"joins", required_argument, NULL, JOINS},
    {"json", required_argument, NULL, JSON},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0}};

/* ---- Options -------------------------------------------------------------------------------- */

static bool parse_ranks(const char *text, int *list, int *n_p) {
    *n_p = 0;
    while (*text != '\0' && *n_p < SCALE_LIST_MAX) {
        char *end;
        long  value = strtol(text, &end, 10);
        if (end == text || value < 2 || value > 65536 || (*end != '\0' && *end != ','))
            return false;
        list[(*n_p)++] = (int)value;
        text = *end == ',' ? end + 1 : end;
    }
    return *text == '\0';
}

static bool parse_bytes(char *text, scale_options_t *o) {
    char *save;
    o->nbytes = 0;
    for (char *word = strtok_r(text, ",", &save); word != NULL && o->nbytes < SCALE_LIST_MAX;
         word = strtok_r(NULL, ",", &save))
        if (!text_size(word, &o->bytes[o->nbytes]) || o->bytes[o->nbytes++] < sizeof(float))
            return false;
    return o->nbytes > 0;
}

/* Those that have a formula. */
static bool add_algo(scale_options_t *o, const char *name) {
    for (int i = 0; hora_algo_list[i] != NULL; i++) {
        if (name != NULL && strcmp(name, hora_algo_list[i]->name) != 0)
            continue;
        if (scale_has_formula(hora_algo_list[i]) && o->nalgos < SCALE_ALGOS_MAX)
            o->algos[o->nalgos++] = hora_algo_list[i];
        else if (name != NULL)
            return false;
        if (name != NULL)
            return true;
    }
    return name == NULL;
}

static bool parse_algos(char *text, scale_options_t *o) {
    char *save;
    o->nalgos = 0;
    for (char *word = strtok_r(text, ",", &save); word != NULL; word = strtok_r(NULL, ",", &save))
        if (!add_algo(o, word))
            return false;
    return o->nalgos > 0;
}

static bool parse_number(const char *text, double least, double most, double *value_p) {
    char *end;
    *value_p = strtod(text, &end);
    return end != text && *end == '\0' && *value_p >= least && *value_p <= most;
}

static bool parse_option(scale_options_t *o, int option, char *text) {
    double v = 0;
    bool   fine = true;
    switch (option) {
    case SIZES: return parse_ranks(text, o->sizes, &o->nsizes) && o->nsizes > 0;
    case JOINS:
        o->njoins = 0;
        return strcmp(text, "none") == 0 || parse_ranks(text, o->joins, &o->njoins);
    case BYTES: return parse_bytes(text, o);
    case ALGOS: return parse_algos(text, o);
    case CHUNK: return text_size(text, &o->chunk) && o->chunk >= sizeof(float);
    case JSON: o->json = text; return true;
    case HOST: fine = parse_number(text, 1, 1024, &v), o->nets[1].host = (int)v; break;
    case ALPHA: fine = parse_number(text, 0, 1e9, &v), o->nets[0].a = v * 1e-6; break;
    case RATE: fine = parse_number(text, 1e-6, 1e9, &v), o->nets[0].b = 1e-9 / v; break;
    case INSIDE_ALPHA: fine = parse_number(text, 0, 1e9, &v), o->nets[0].inside_a = v * 1e-6; break;
    case INSIDE_RATE:
        fine = parse_number(text, 1e-6, 1e9, &v), o->nets[0].inside_b = 1e-9 / v;
        break;
    case REDUCE_RATE: fine = parse_number(text, 1e-6, 1e9, &v), o->nets[0].g = 1e-9 / v; break;
    case MOST: fine = parse_number(text, 0, 1e8, &v), o->most_messages = (uint64_t)v; break;
    case TENSORS: fine = parse_number(text, 1, 500, &v), o->tensors = (int)v; break;
    default: return false;
    }
    return fine;
}

static bool parse_part(scale_options_t *o, const char *word) {
    if (strcmp(word, "schedules") == 0)
        return o->schedules = true;
    if (strcmp(word, "controller") == 0)
        return o->controller = true;
    return strcmp(word, "start") == 0 && (o->start = true);
}

/* False: *code_p is the exit code. */
static bool read_options(int argc, char **argv, scale_options_t *o, int *code_p) {
    int option, host;
    *code_p = 2;
    while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            *code_p = 0;
            return false;
        }
        if (!parse_option(o, option, optarg)) {
            fprintf(stderr, "hora-scale: a wrong option or value; see --help\n");
            return false;
        }
    }
    for (; optind < argc; optind++)
        if (!parse_part(o, argv[optind])) {
            fprintf(stderr, "hora-scale: %s is none of schedules, controller, start\n",
                    argv[optind]);
            return false;
        }
    if (!o->schedules && !o->controller && !o->start)
        o->schedules = o->controller = o->start = true;
    if (o->nalgos == 0)
        add_algo(o, NULL);
    host = o->nets[1].host;
    o->nets[1] = o->nets[0];
    o->nets[1].host = host;
    return true;
}

/* ---- Parts ---------------------------------------------------------------------------------- */

/* Returns how many formulas do not hold; -1: no memory. */
static int run_schedules(const scale_options_t *o, scale_results_t *results) {
    int wrong = 0, plans = 0, cases = 0;
    for (int net = 0; net < 2; net++)
        for (int b = 0; b < o->nbytes; b++)
            for (int s = 0; s < o->nsizes; s++)
                for (int a = 0; a < o->nalgos; a++) {
                    scale_result_t *r = &(*results)[net][b][s][a];
                    scale_case_t what = {.algo = o->algos[a], .size = o->sizes[s],
                                         .count = o->bytes[b] / sizeof(float),
                                         .elem = sizeof(float), .chunk = o->chunk / sizeof(float),
                                         .net = o->nets[net], .most_messages = o->most_messages};
                    if (!scale_simulate(&what, r))
                        return fprintf(stderr, "hora-scale: no memory\n"), -1;
                    if (r->error[0] != '\0')
                        fprintf(stderr, "hora-scale: %s, %d ranks, %zu bytes: %s\n",
                                o->algos[a]->name, o->sizes[s], o->bytes[b], r->error);
                    wrong += r->error[0] != '\0';
                    plans += r->plans;
                    cases += r->way != SCALE_NONE;
                }
    scale_print_schedules(o, results);
    scale_print_plans(o, results);
    printf("\n%d plans of %d cases were compared with the formulas: %d cases differ.\n", plans, cases,
           wrong);
    fflush(stdout);
    return wrong;
}

static bool run_controller(const scale_options_t *o, scale_control_t *controls, double *frame_us_p) {
    scale_control_t base;
    bool            fine = scale_control_measure(64, o->tensors, &base);
    *frame_us_p = scale_frame_us(63);
    for (int s = 0; fine && s < o->nsizes; s++)
        fine = scale_control_measure(o->sizes[s], o->tensors, &controls[s]);
    if (!fine || *frame_us_p < 0)
        return fprintf(stderr, "hora-scale: the controller could not be measured\n"), false;
    scale_print_controller(o, controls, &base, *frame_us_p);
    fflush(stdout);
    return true;
}

static bool run_start(const scale_options_t *o, scale_start_t *starts, scale_join_t *joins) {
    bool fine = true;
    for (int i = 0; fine && i < o->njoins; i++)
        fine = scale_join_measure(o->joins[i], &joins[i]);
    for (int s = 0; fine && s < o->nsizes; s++)
        fine = scale_start_measure(o->sizes[s], o->nets[1].host, &starts[s]);
    if (!fine)
        return fprintf(stderr, "hora-scale: the start could not be measured\n"), false;
    scale_print_start(o, starts, joins);
    return true;
}

int main(int argc, char **argv) {
    static scale_results_t results;
    static scale_control_t controls[SCALE_LIST_MAX];
    static scale_start_t   starts[SCALE_LIST_MAX];
    static scale_join_t    joins[SCALE_LIST_MAX];
    scale_options_t o = {
        .sizes = {2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1024, 2048, 4096, 8192, 16384, 32768,
                  65535, 65536}, .nsizes = 19,
        .bytes = {8, (size_t)64 << 10, (size_t)25 << 20, (size_t)1 << 30}, .nbytes = 4,
        .chunk = (size_t)256 << 10, .tensors = 161, .most_messages = 400000,
        .joins = {8, 16, 32, 64}, .njoins = 4,
        .nets = {{1, 25e-6, 1 / 2e9, 1.5e-6, 1 / 6e9, 1 / 12e9}, {.host = 8}}};
    double frame_us = 0;
    int    code, wrong = 0;
    FILE  *json = NULL;
    if (!read_options(argc, argv, &o, &code))
        return code;
    if (o.json != NULL && (json = fopen(o.json, "w")) == NULL)
        return perror(o.json), 2;
    if (o.start && !run_start(&o, starts, joins)) /* first: it forks */
        return 1;
    if (o.schedules && (wrong = run_schedules(&o, &results)) < 0)
        return 1;
    if (o.controller && !run_controller(&o, controls, &frame_us))
        return 1;
    if (json != NULL) {
        scale_write_json(json, &o, &results, controls, frame_us, starts, joins);
        if (fclose(json) != 0)
            return perror(o.json), 1;
    }
    return wrong != 0;
}
