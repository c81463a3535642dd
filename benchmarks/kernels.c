/*
 * Measures the CPU kernels on one thread: reduce and copy, for each instruction set of the machine.
 *
 * Prints one line per case: gigabytes per second that the kernel reads and writes, (nsrc + ndst) *
 * bytes / time, the median of several rounds. The destinations are the first sources, as in a
 * push reduction between the ranks of a host. memcpy stands beside copy for comparison.
 */
#include <getopt.h>
#include <hora/hora.h>
#include <kernels/cpu/kernels.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BUFFERS 8
#define ROUNDS  7

typedef struct settings {
    const char *isa; /* NULL: every one */
    size_t      bytes; /* of a buffer; 0: a range */
    double      seconds; /* per case */
} settings_t;

typedef struct measured {
    const char   *label;
    hora_dtype_t  dtype;
    size_t        element;
    int           nsrc;
    int           ndst;
    uint32_t      divisor;
} measured_t;

static const measured_t reductions[] = {
    {"float32 sum", HORA_FLOAT32, 4, 2, 1, 1},   {"float32 sum", HORA_FLOAT32, 4, 2, 2, 1},
    {"float32 sum", HORA_FLOAT32, 4, 4, 4, 1},   {"float32 sum", HORA_FLOAT32, 4, 8, 8, 1},
    {"float32 average", HORA_FLOAT32, 4, 2, 2, 2},
    {"float32 average", HORA_FLOAT32, 4, 3, 3, 3},
    {"bfloat16 sum", HORA_BFLOAT16, 2, 2, 1, 1}, {"bfloat16 sum", HORA_BFLOAT16, 2, 2, 2, 1},
    {"bfloat16 sum", HORA_BFLOAT16, 2, 4, 4, 1}, {"bfloat16 sum", HORA_BFLOAT16, 2, 8, 8, 1},
    {"bfloat16 average", HORA_BFLOAT16, 2, 2, 2, 2},
    {"float16 sum", HORA_FLOAT16, 2, 2, 2, 1},   {"float16 sum", HORA_FLOAT16, 2, 8, 8, 1},
};

static void *buffers[BUFFERS];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_reduce(const void *context, size_t bytes)
{
    const measured_t *what = context;
    hora_reduce_t     how = {.dtype = what->dtype, .op = HORA_SUM, .divisor = what->divisor,
                             .prescale = 1.0, .postscale = 1.0};
    hora_kernel_reduce(&how, buffers, what->ndst, (const void *const *)buffers, what->nsrc,
                       bytes / what->element);
}

static void run_copy(const void *context, size_t bytes)
{
    (void)context;
    hora_kernel_copy(buffers[0], buffers[1], bytes);
}

static void run_memcpy(const void *context, size_t bytes)
{
    (void)context;
    memcpy(buffers[0], buffers[1], bytes);
    __asm__ volatile("" ::: "memory");
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median seconds of one call. */
static double measure(void (*run)(const void *, size_t), const void *context, size_t bytes,
                      double seconds)
{
    double begin = now();
    int    calls = 0;
    do {
        run(context, bytes);
        calls++;
    } while (now() - begin < seconds / (ROUNDS + 1));
    double times[ROUNDS];
    for (int r = 0; r < ROUNDS; r++) {
        begin = now();
        for (int c = 0; c < calls; c++) {
            run(context, bytes);
        }
        times[r] = (now() - begin) / calls;
    }
    qsort(times, ROUNDS, sizeof(times[0]), compare_doubles);
    return times[ROUNDS / 2];
}

static void print_line(const char *label, int nsrc, int ndst, size_t bytes, double seconds)
{
    double moved = (double)(nsrc + ndst) * (double)bytes;
    printf("%-9s %-17s %4d %4d %10zu %8.1f\n", hora_kernel_isa(), label, nsrc, ndst, bytes,
           1e-9 * moved / seconds);
}

static void measure_size(const settings_t *settings, size_t bytes)
{
    for (size_t i = 0; i < sizeof(reductions) / sizeof(reductions[0]); i++) {
        const measured_t *what = &reductions[i];
        double            time = measure(run_reduce, what, bytes, settings->seconds);
        print_line(what->label, what->nsrc, what->ndst, bytes, time);
    }
    print_line("copy", 1, 1, bytes, measure(run_copy, NULL, bytes, settings->seconds));
    print_line("memcpy", 1, 1, bytes, measure(run_memcpy, NULL, bytes, settings->seconds));
}

static void measure_isa(const settings_t *settings)
{
    static const size_t sizes[] = {16u << 10, 256u << 10, 4u << 20, 64u << 20};
    if (settings->bytes != 0) {
        measure_size(settings, settings->bytes);
        return;
    }
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        measure_size(settings, sizes[i]);
    }
}

/* Zeros: they stay so however often they are summed. */
static bool make_buffers(size_t bytes)
{
    for (int b = 0; b < BUFFERS; b++) {
        buffers[b] = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
        if (buffers[b] == NULL) {
            return false;
        }
        memset(buffers[b], 0, bytes);
    }
    return true;
}

static void print_usage(const char *program)
{
    printf("usage: %s [--isa NAME] [--bytes N] [--seconds S]\n"
           "Measures hora's CPU kernels on one thread.\n"
           "  --isa NAME     portable, avx2, avx512 or neon; default: each that the machine has\n"
           "  --bytes N      size of one buffer; default: 16 KiB, 256 KiB, 4 MiB and 64 MiB\n"
           "  --seconds S    time for each line; default 0.2\n"
           "Columns: bytes of one buffer; GB/s = (nsrc + ndst) * bytes / time, the median.\n",
           program);
}

static int parse(int argc, char **argv, settings_t *settings)
{
    static const struct option options[] = {{"isa", required_argument, NULL, 'i'},
                                            {"bytes", required_argument, NULL, 'b'},
                                            {"seconds", required_argument, NULL, 's'},
                                            {"help", no_argument, NULL, 'h'},
                                            {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1) {
        switch (option) {
        case 'i':
            settings->isa = optarg;
            break;
        case 'b':
            settings->bytes = strtoull(optarg, NULL, 0);
            break;
        case 's':
            settings->seconds = strtod(optarg, NULL);
            break;
        case 'h':
            print_usage(argv[0]);
            exit(0);
        default:
            return 2;
        }
    }
    return optind == argc ? 0 : 2;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"portable", "neon", "avx2", "avx512"};
    settings_t               settings = {.seconds = 0.2};
    if (parse(argc, argv, &settings) != 0) {
        fprintf(stderr, "try '%s --help'\n", argv[0]);
        return 2;
    }
    if (settings.isa != NULL && !hora_kernel_force_isa(settings.isa)) {
        fprintf(stderr, "%s: this machine or build has no kernels for '%s'\n", argv[0],
                settings.isa);
        return 1;
    }
    if (!make_buffers(settings.bytes != 0 ? settings.bytes : 64u << 20)) {
        fprintf(stderr, "%s: out of memory\n", argv[0]);
        return 1;
    }
    printf("%-9s %-17s %4s %4s %10s %8s\n", "isa", "kernel", "nsrc", "ndst", "bytes", "GB/s");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        bool wanted = settings.isa == NULL || strcmp(settings.isa, names[i]) == 0;
        if (wanted && hora_kernel_force_isa(names[i])) {
            measure_isa(&settings);
        }
    }
    return 0;
}
