/*
 * Autotune against the defaults: the gradients of a training step through the engine, first until
 * autotune has come to an end, then with the defaults and with its result in turn. Forks its ranks;
 * rank 0 prints. Main thread.
 *
 * The two are compared in one process, in blocks of steps that lie side by side, so that other load
 * on the machine hits both. What counts is the median of the blocks' ratios. Where the search has kept
 * the defaults, both are the same, and the ratios show the noise.
 */
#include <hora/hora.h>

#include "common/ranks.h"

#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TENSORS_MAX 512
#define BLOCKS_MAX  1000

static const char help[] =
    "usage: hora-autotune [options]\n"
    "\n"
    "Lets autotune search on a synthetic training step, then measures its result beside the\n"
    "defaults. Prints a table.\n"
    "\n"
    "  --np LIST         numbers of ranks (2,4)\n"
    "  --load NAME       resnet50 (161 gradients, 102 MB), small (500 x 1 KB) or all (all)\n"
    "  --transport NAME  shm, tcp or mpi (shm)\n"
    "  --blocks N        pairs of blocks that are compared (40)\n"
    "  --steps N         steps in a block (0: what takes about 0.2 s)\n"
    "  --json FILE       write the results as JSON too\n"
    "  -h, --help        this text\n";

typedef struct options {
    const char *np, *load, *transport, *json;
    int         blocks, steps;
} options_t;

typedef struct job {
    const options_t *options;
    const char      *load;
    char             folder[64], cache[96];
    FILE            *json; /* NULL: none */
} job_t;

typedef struct step {
    hora_comm_t   *comm;
    hora_engine_t *engine;
} step_t;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void ok(hora_status_t status) {
    if (status == HORA_OK)
        return;
    fprintf(stderr, "hora-autotune: %s\n", hora_last_error());
    exit(1);
}

/* ---- Loads ------------------------------------------------------------------------------------- */

static int64_t       counts[TENSORS_MAX];
static char          names[TENSORS_MAX][24];
static float        *data[TENSORS_MAX];
static hora_handle_t *handles[TENSORS_MAX];
static int           ntensors;
static double        nbytes;

static void add(int64_t count) {
    counts[ntensors] = count;
    snprintf(names[ntensors], sizeof(names[ntensors]), "gradient.%d", ntensors);
    ntensors++;
}

static void add_convolution(int64_t weights, int64_t channels) {
    add(weights);
    add(channels); /* batch normalisation: weight, bias */
    add(channels);
}

/* In the order of the model; He et al., 2015. */
static void make_resnet50(void) {
    static const int blocks[] = {3, 4, 6, 3};
    int64_t          in = 64;
    add_convolution(3 * 64 * 49, 64);
    for (int layer = 0; layer < 4; layer++) {
        int64_t width = 64 << layer;
        for (int block = 0; block < blocks[layer]; block++) {
            add_convolution(in * width, width);
            add_convolution(width * width * 9, width);
            add_convolution(width * 4 * width, 4 * width);
            if (block == 0)
                add_convolution(in * 4 * width, 4 * width);
            in = 4 * width;
        }
    }
    add(2048 * 1000);
    add(1000);
}

static void make_load(const char *load) {
    ntensors = 0;
    nbytes = 0;
    if (strcmp(load, "resnet50") == 0)
        make_resnet50();
    else
        for (int i = 0; i < 500; i++)
            add(256);
    for (int i = 0; i < ntensors; i++) {
        data[i] = malloc((size_t)counts[i] * sizeof(float));
        for (int64_t k = 0; k < counts[i]; k++)
            data[i][k] = 1.0f;
        nbytes += (double)counts[i] * sizeof(float);
    }
}

/* ---- Steps ------------------------------------------------------------------------------------- */

/* Gradients become ready from the last layer to the first. */
static void run_step(const step_t *s) {
    const hora_task_t init = HORA_TASK_INIT;
    for (int i = ntensors - 1; i >= 0; i--) {
        hora_task_t task = init;
        task.name = names[i];
        task.ndim = 1;
        task.shape = &counts[i];
        task.in = task.out = data[i];
        task.op = HORA_AVERAGE;
        ok(hora_engine_enqueue(s->engine, &task, 1, 0, &handles[i]));
    }
    for (int i = 0; i < ntensors; i++) {
        ok(hora_handle_wait(handles[i]));
        hora_handle_release(handles[i]);
    }
}

static double run_block(const step_t *s, int steps) {
    double begin;
    ok(hora_barrier(s->comm, NULL));
    begin = now();
    for (int i = 0; i < steps; i++)
        run_step(s);
    return (now() - begin) / steps;
}

static step_t open_step(const char *transport) {
    step_t s;
    setenv("HORA_TRANSPORT", transport, 1);
    ok(hora_comm_create(NULL, &s.comm));
    ok(hora_engine_create(s.comm, NULL, &s.engine));
    return s;
}

static void close_step(const step_t *s) {
    ok(hora_engine_free(s->engine));
    ok(hora_barrier(s->comm, NULL));
    ok(hora_comm_free(s->comm));
}

static bool agree(const step_t *s, int32_t mine) {
    ok(hora_broadcast(s->comm, &mine, &mine, 1, HORA_INT32, 0, NULL));
    return mine != 0;
}

/* Until the search is over. Returns the number of steps. */
static int search(const job_t *job, int rank) {
    int    steps = 0;
    step_t s;
    setenv("HORA_AUTOTUNE", "1", 1);
    setenv("HORA_AUTOTUNE_STEPS_PER_SAMPLE", "3", 0); /* all steps are alike here */
    setenv("HORA_AUTOTUNE_CACHE", job->cache, 1);
    s = open_step(job->options->transport);
    do {
        for (int i = 0; i < 5; i++, steps++)
            run_step(&s);
    } while (!agree(&s, rank == 0 && access(job->cache, R_OK) == 0) && steps < 100000);
    close_step(&s);
    unsetenv("HORA_AUTOTUNE");
    return steps;
}

/* ---- Results ----------------------------------------------------------------------------------- */

typedef struct result {
    int    ranks, search_steps, blocks, steps;
    double search_s;
    double times[2][BLOCKS_MAX]; /* of a step, seconds: defaults, tuned */
    double ratios[BLOCKS_MAX];   /* speed of tuned over defaults */
} result_t;

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts. */
static double quantile(double *values, int n, double q) {
    qsort(values, (size_t)n, sizeof(*values), by_value);
    return values[(int)(q * (n - 1) + 0.5)];
}

/* The cache's text, an object in JSON; "null" if there is none. */
static void read_cache(const char *path, char *text, size_t size) {
    FILE  *file = fopen(path, "r");
    size_t n = file != NULL ? fread(text, 1, size - 1, file) : 0;
    if (file != NULL)
        fclose(file);
    while (n > 0 && text[n - 1] == '\n')
        n--;
    text[n] = '\0';
    if (n == 0)
        snprintf(text, size, "null");
}

static void report(const job_t *job, result_t *r) {
    char   chosen[8192];
    double low = quantile(r->ratios, r->blocks, 0.1), mid = quantile(r->ratios, r->blocks, 0.5);
    double high = quantile(r->ratios, r->blocks, 0.9);
    double plain = quantile(r->times[0], r->blocks, 0.5) * 1e3;
    double tuned = quantile(r->times[1], r->blocks, 0.5) * 1e3;
    read_cache(job->cache, chosen, sizeof(chosen));
    printf("%-9s %5d  %-5s %7d %8.1f %10.3f %10.3f %8.3f  %.3f .. %.3f  %s\n", job->load, r->ranks,
           job->options->transport, r->search_steps, r->search_s, plain, tuned, mid, low, high,
           strstr(chosen, "\"gain_permille\": 1000,") != NULL ? "defaults" : "others");
    fflush(stdout);
    if (job->json == NULL)
        return;
    fprintf(job->json,
            "{\"load\": \"%s\", \"tensors\": %d, \"bytes\": %.0f, \"ranks\": %d, "
            "\"transport\": \"%s\", \"search_steps\": %d, \"search_s\": %.2f, \"blocks\": %d, "
            "\"steps_per_block\": %d, \"default_ms\": %.4f, \"tuned_ms\": %.4f, "
            "\"speedup_median\": %.4f, \"speedup_p10\": %.4f, \"speedup_p90\": %.4f, \"chosen\": %s}",
            job->load, ntensors, nbytes, r->ranks, job->options->transport, r->search_steps,
            r->search_s, r->blocks, r->steps, plain, tuned, mid, low, high, chosen);
    fflush(job->json);
}

/* Defaults and result in turn: d t t d d t t d ... */
static void compare(const job_t *job, result_t *r) {
    step_t steps[2];
    double once;
    unsetenv("HORA_AUTOTUNE_CACHE");
    steps[0] = open_step(job->options->transport);
    setenv("HORA_AUTOTUNE_CACHE", job->cache, 1);
    steps[1] = open_step(job->options->transport);
    for (int i = 0; i < 6; i++)
        run_block(&steps[i % 2], 2);
    once = run_block(&steps[0], 3);
    r->steps = job->options->steps > 0 ? job->options->steps : (int)(0.2 / once) + 1;
    ok(hora_broadcast(steps[0].comm, &r->steps, &r->steps, 1, HORA_INT32, 0, NULL));
    for (int b = 0; b < r->blocks; b++) {
        for (int i = 0; i < 2; i++)
            r->times[(b + i) % 2][b] = run_block(&steps[(b + i) % 2], r->steps);
        r->ratios[b] = r->times[0][b] / r->times[1][b];
    }
    close_step(&steps[1]);
    close_step(&steps[0]);
}

static int rank_main(int rank, int size, void *arg) {
    const job_t    *job = arg;
    static result_t r;
    double          begin = now();
    make_load(job->load);
    r.ranks = size;
    r.blocks = job->options->blocks;
    r.search_steps = search(job, rank);
    r.search_s = now() - begin;
    compare(job, &r);
    for (int i = 0; i < ntensors; i++)
        if (data[i][0] != 1.0f || data[i][counts[i] - 1] != 1.0f)
            return fprintf(stderr, "hora-autotune: wrong result in %s\n", names[i]), 1;
    if (rank == 0)
        report(job, &r);
    return 0;
}

/* ---- The command ------------------------------------------------------------------------------- */

static int run_job(const options_t *options, const char *load, int ranks, FILE *json) {
    job_t       job = {.options = options, .load = load, .json = json};
    ranks_job_t job_of_ranks = {.nranks = ranks, .main = rank_main, .arg = &job, .grace = 5};
    int         failed;
    snprintf(job.folder, sizeof(job.folder), "/tmp/hora-autotune-XXXXXX");
    if (mkdtemp(job.folder) == NULL)
        return perror("hora-autotune"), 1;
    snprintf(job.cache, sizeof(job.cache), "%s/cache.json", job.folder);
    failed = ranks_run(&job_of_ranks, NULL);
    unlink(job.cache);
    rmdir(job.folder);
    return failed;
}

static int run_all(const options_t *o, FILE *json) {
    static const char *const loads[] = {"resnet50", "small"};
    int                      failed = 0, done = 0;
    printf("%-9s %5s  %-5s %7s %8s %10s %10s %8s  %s\n", "load", "ranks", "over", "search", "search",
           "default", "tuned", "speed-up", "10 % .. 90 %    chosen");
    printf("%-9s %5s  %-5s %7s %8s %10s %10s %8s\n", "", "", "", "steps", "s", "ms/step", "ms/step",
           "median");
    fflush(stdout);
    for (size_t i = 0; i < 2; i++)
        for (const char *np = o->np; *np != '\0' && failed == 0;) {
            char *end;
            long  ranks = strtol(np, &end, 10);
            if (ranks < 2 || ranks > 256)
                return fprintf(stderr, "hora-autotune: --np takes numbers from 2 on\n"), 2;
            np = *end == ',' ? end + 1 : end;
            if (strcmp(o->load, "all") != 0 && strcmp(o->load, loads[i]) != 0)
                continue;
            if (json != NULL)
                fprintf(json, done++ > 0 ? ",\n " : "");
            if (json != NULL)
                fflush(json);
            failed = run_job(o, loads[i], (int)ranks, json);
        }
    return failed != 0;
}

static bool read_options(int argc, char **argv, options_t *o, int *code_p) {
    static const struct option longs[] = {
        {"np", required_argument, NULL, 'n'},     {"load", required_argument, NULL, 'l'},
        {"transport", required_argument, NULL, 't'}, {"blocks", required_argument, NULL, 'b'},
        {"steps", required_argument, NULL, 's'},  {"json", required_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0}};
    int option;
    *code_p = 2;
    while ((option = getopt_long(argc, argv, "h", longs, NULL)) != -1) {
        switch (option) {
        case 'n': o->np = optarg; break;
        case 'l': o->load = optarg; break;
        case 't': o->transport = optarg; break;
        case 'b': o->blocks = atoi(optarg); break;
        case 's': o->steps = atoi(optarg); break;
        case 'j': o->json = optarg; break;
        case 'h': fputs(help, stdout); *code_p = 0; return false;
        default: return false;
        }
    }
    if (o->blocks < 1 || o->blocks > BLOCKS_MAX || o->steps < 0 || optind < argc) {
        fprintf(stderr, "hora-autotune: --blocks takes 1 to %d; see --help\n", BLOCKS_MAX);
        return false;
    }
    if (strcmp(o->load, "all") == 0 || strcmp(o->load, "small") == 0 ||
        strcmp(o->load, "resnet50") == 0)
        return true;
    fprintf(stderr, "hora-autotune: --load takes resnet50, small or all\n");
    return false;
}

int main(int argc, char **argv) {
    options_t options = {.np = "2,4", .load = "all", .transport = "shm", .blocks = 40};
    FILE     *json = NULL;
    int       code;
    if (!read_options(argc, argv, &options, &code))
        return code;
    if (options.json != NULL && (json = fopen(options.json, "w")) == NULL)
        return perror(options.json), 2;
    if (json != NULL)
        fprintf(json, "{\"benchmark\": \"autotune\", \"hora\": \"%s\", \"cores\": %ld, \"rows\": [\n ",
                hora_version(), sysconf(_SC_NPROCESSORS_ONLN));
    if (json != NULL)
        fflush(json);
    code = run_all(&options, json);
    if (json != NULL) {
        fprintf(json, "\n]}\n");
        fclose(json);
    }
    return code;
}
