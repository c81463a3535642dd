/*
 * hora-perf's command line. Main thread.
 */
#include "perf_options.h"

#include "common/ranks.h"
#include "common/text.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: hora-perf [options]\n"
    "\n"
    "Measures a collective and prints nccl-tests' table. Forks its own ranks (-np), or takes part\n"
    "as one rank under hora run, torchrun, mpirun or srun.\n"
    "\n"
    "  --coll NAME       allreduce, allgather, reduce_scatter, broadcast, alltoall, reduce, gather,\n"
    "                    scatter or sendrecv (allreduce)\n"
    "  -np N, --np N     fork N ranks on this machine (2, unless a launcher started this)\n"
    "  -b SIZE           smallest size in bytes; K, M, G are binary (8)\n"
    "  -e SIZE           largest size (64M)\n"
    "  -f FACTOR         each size is FACTOR times the one before (4)\n"
    "  -i SIZE           ... or SIZE more than the one before (used with -f 1)\n"
    "  -n N              timed calls per size (20)\n"
    "  -w N              calls before these (5)\n"
    "  -c 0|1            compare results with an exact reference (1)\n"
    "  -d TYPE           float, half, bfloat16, double, int8, uint8, ... or all (float)\n"
    "  -o OP             sum, prod, min, max, avg, adasum, band, bor, bxor or all (sum)\n"
    "  -r RANK           root; -1: each in turn (0)\n"
    "  --arena           buffers from hora_alloc (default: ordinary memory)\n"
    "  --device NAME     cuda: buffers on GPUs, which the ranks of a host take in turn; cpu (cpu)\n"
    "  --table           a narrower table for people, sizes with units\n"
    "  --algorithms      measure nothing; print which algorithm does what here, and the time that it\n"
    "                    is expected to take (-e, --json, -np)\n"
    "  --calibrate       measure each algorithm, and keep the times in a file by which later jobs\n"
    "                    with as many ranks here choose among them (HORA_ALGO_TIMES; --json)\n"
    "  --json FILE       write the results as JSON too; - is standard output\n"
    "  -h, --help        this text\n"
    "\n"
    "On a GPU, a call's time ends when its work there has run. HORA_GPU_PATH chooses the way.\n"
    "time: the median over the timed calls of the average over the ranks. Every call is preceded by\n"
    "a rewrite of the buffers and a barrier, which are not timed. algbw: size/time, GB = 1e9 bytes;\n"
    "busbw: algbw times a factor that makes it comparable with the hardware's peak (nccl-tests).\n"
    "Exit code 1 if a result is wrong, 2 for a wrong option.\n";

enum {
    OPTION_COLL = 256, OPTION_NP, OPTION_ARENA, OPTION_DEVICE, OPTION_TABLE, OPTION_JSON,
    OPTION_ALGORITHMS, OPTION_CALIBRATE
};

static const struct option long_options[] = {
    {"coll", required_argument, NULL, OPTION_COLL}, {"np", required_argument, NULL, OPTION_NP},
    {"arena", no_argument, NULL, OPTION_ARENA},     {"device", required_argument, NULL, OPTION_DEVICE},
    {"table", no_argument, NULL, OPTION_TABLE},
    {"json", required_argument, NULL, OPTION_JSON}, {"algorithms", no_argument, NULL, OPTION_ALGORITHMS},
    {"calibrate", no_argument, NULL, OPTION_CALIBRATE}, {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static bool read_int(const char *text, int min, int *value_p) {
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end != '\0' || value < min || value > 1 << 30)
        return false;
    *value_p = (int)value;
    return true;
}

static bool read_factor(const char *text, double *factor_p) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end != '\0' || !(value >= 1))
        return false;
    *factor_p = value;
    return true;
}

static bool read_coll(const char *text, coll_kind_t *kind_p) {
    char name[32];
    snprintf(name, sizeof(name), "%s", text);
    for (char *c = name; *c != '\0'; c++)
        *c = *c == '-' ? '_' : *c;
    if (strncmp(name, "all_", 4) == 0) /* nccl-tests: all_reduce, all_gather */
        memmove(name + 3, name + 4, strlen(name + 4) + 1);
    *kind_p = coll_find(name);
    return *kind_p <= COLL_SENDRECV;
}

static bool read_dtype(const char *text, hora_dtype_t *dtype_p) {
    if (strcmp(text, "all") == 0)
        return *dtype_p = HORA_DTYPE_COUNT, true;
    return text_dtype(text, dtype_p);
}

static bool read_op(const char *text, hora_op_t *op_p) {
    if (strcmp(text, "all") == 0)
        return *op_p = HORA_OP_COUNT, true;
    return text_op(text, op_p);
}

static bool read_option(int option, const char *arg, perf_options_t *o) {
    int flag;
    switch (option) {
    case OPTION_COLL:
        return read_coll(arg, &o->kind);
    case OPTION_NP:
        return read_int(arg, 1, &o->nranks) && o->nranks <= 1024;
    case OPTION_ARENA:
        return o->arena = true;
    case OPTION_DEVICE:
        o->cuda = strcmp(arg, "cuda") == 0;
        return o->cuda || strcmp(arg, "cpu") == 0;
    case OPTION_TABLE:
        return o->table = true;
    case OPTION_ALGORITHMS:
        return o->choices = true;
    case OPTION_CALIBRATE:
        return o->calibrate = true;
    case OPTION_JSON:
        return (o->json = arg) != NULL;
    case 'b':
        return text_size(arg, &o->min_bytes);
    case 'e':
        return text_size(arg, &o->max_bytes);
    case 'i':
        return text_size(arg, &o->step_bytes);
    case 'f':
        return read_factor(arg, &o->factor);
    case 'n':
        return read_int(arg, 1, &o->iters);
    case 'w':
        return read_int(arg, 0, &o->warmup);
    case 'c':
        return read_int(arg, 0, &flag) && (o->check = flag != 0, true);
    case 'd':
        return read_dtype(arg, &o->dtype);
    case 'o':
        return read_op(arg, &o->op);
    case 'r':
        return read_int(arg, -1, &o->root);
    default:
        return false;
    }
}

/* As --help writes it. */
static const char *option_name(int option) {
    static char letter[] = "-?";
    for (int i = 0; long_options[i].name != NULL; i++)
        if (long_options[i].val == option)
            return long_options[i].name;
    letter[1] = (char)option;
    return letter;
}

static bool agree(const perf_options_t *o) {
    if (o->max_bytes < o->min_bytes)
        return fprintf(stderr, "hora-perf: -e is smaller than -b\n"), false;
    if (o->factor == 1 && o->step_bytes == 0)
        return fprintf(stderr, "hora-perf: -f 1 needs a step, -i\n"), false;
    if (o->arena && o->cuda)
        return fprintf(stderr, "hora-perf: --arena is host memory; leave it or --device out\n"), false;
    if (o->nranks > 0 && o->root >= o->nranks)
        return fprintf(stderr, "hora-perf: root %d of %d ranks\n", o->root, o->nranks), false;
    if (o->op == HORA_OP_COUNT || o->dtype == HORA_DTYPE_COUNT || !coll_reduces(o->kind))
        return true;
    if (!coll_takes(o->kind, o->dtype, o->op))
        return fprintf(stderr, "hora-perf: no %s of %s\n", text_op_name(o->op),
                       text_dtype_name(o->dtype)),
               false;
    return true;
}

bool perf_options_read(int argc, char **argv, perf_options_t *options_p, int *code_p) {
    perf_options_t o = {.kind = COLL_ALLREDUCE,
                        .min_bytes = 8,
                        .max_bytes = 64 << 20,
                        .step_bytes = 1 << 20,
                        .factor = 4,
                        .iters = 20,
                        .warmup = 5,
                        .check = true,
                        .dtype = HORA_FLOAT32,
                        .op = HORA_SUM};
    int option;
    *code_p = 2;
    while ((option = getopt_long_only(argc, argv, "b:e:i:f:n:w:c:d:o:r:h", long_options, NULL)) != -1) {
        if (option == 'h') {
            fputs(help, stdout);
            return *code_p = 0, false;
        }
        if (!read_option(option, optarg, &o)) {
            if (option != '?')
                fprintf(stderr, "hora-perf: bad value '%s' of %s%s; see hora-perf --help\n", optarg,
                        option > 255 ? "--" : "", option_name(option));
            return false;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "hora-perf: what is '%s'? See hora-perf --help\n", argv[optind]);
        return false;
    }
    if (o.nranks > 0 && ranks_launched()) {
        fprintf(stderr, "hora-perf: -np makes ranks, and a launcher has made this process one; "
                        "leave one of them out\n");
        return false;
    }
    if (o.nranks == 0 && !ranks_launched())
        o.nranks = 2;
    if (!agree(&o))
        return false;
    *options_p = o;
    return true;
}
