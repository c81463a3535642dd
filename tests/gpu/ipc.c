/*
 * Ranks that share one GPU, by CUDA's IPC (src/offload/cuda/ipc.h): results beside the CPU's, then an
 * allreduce beside the bound, which is every buffer moved once in and once out at the rate at which the
 * device copies its own memory in the same run.
 *
 *     hora-gpu-ipc [--most MB] [--json FILE]     longest buffer to measure, default 256
 *
 * Forks 2, 4 and 8 ranks, which have a thread each; the parent does not use CUDA. Ends with 77 and the
 * reason where there is no GPU. Works on the stand-in, too (HORA_CUDA_LIBRARY), whose rates mean nothing.
 */
#include "gpu.h"

#include <hora/hora.h>
#include <kernels/cpu/kernels.h>
#include <ranks.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define NO_GPU    77
#define ROUNDS    7
#define RANKS_MAX 8
#define COUNT     100003 /* elements of a check */
#define SIZES     4

/* What rank 0 has measured, for the parent; in shared memory. */
typedef struct measured {
    double copy[SIZES]; /* bytes read and written per second */
    double call[SIZES]; /* seconds; of a median round */
} measured_t;

typedef struct rank {
    gpu_test_t   t;
    hora_comm_t *comm;
    int          rank, size;
} rank_t;

static size_t most = (size_t)256 << 20;

static const size_t sizes[SIZES] = {(size_t)1 << 20, (size_t)16 << 20, (size_t)64 << 20, (size_t)256 << 20};

/* One element: ordinary values, by rank and place. */
static float value(int rank, size_t i) {
    return (float)((i * 7919 + (size_t)rank * 104729) % 10007) / 97.0f - 40.0f;
}

static void narrow(void *at, hora_dtype_t dtype, int rank) {
    float wide[1024];
    for (size_t begin = 0; begin < COUNT; begin += 1024) {
        size_t n = COUNT - begin < 1024 ? COUNT - begin : 1024;
        for (size_t i = 0; i < n; i++)
            wide[i] = value(rank, begin + i);
        hora_kernel_convert((char *)at + begin * hora_dtype_size(dtype), dtype, wide, HORA_FLOAT32, n, 1.0);
    }
}

static void check_type(const rank_t *r, uint64_t at, hora_dtype_t dtype, hora_op_t op) {
    static unsigned char inputs[RANKS_MAX][COUNT * 8], want[COUNT * 8], got[COUNT * 8];
    hora_call_options_t  options = HORA_CALL_OPTIONS_INIT;
    size_t               bytes = COUNT * hora_dtype_size(dtype);
    const void          *src[RANKS_MAX];
    void                *dst = want, *buffer = (void *)(uintptr_t)at;
    hora_reduce_t        how = {dtype, op == HORA_AVERAGE ? HORA_SUM : op,
                                op == HORA_AVERAGE ? (uint32_t)r->size : 1, 1.0, 1.0};
    for (int i = 0; i < r->size; i++) {
        narrow(inputs[i], dtype, i);
        src[i] = inputs[i];
    }
    hora_kernel_reduce(&how, &dst, 1, src, r->size, COUNT);
    gpu_put(&r->t, at, inputs[r->rank], bytes);
    options.device = 0;
    options.stream = r->t.stream;
    gpu_must_status(hora_allreduce(r->comm, buffer, buffer, COUNT, dtype, op, &options), "allreduce");
    gpu_get(&r->t, got, at, bytes);
    if (memcmp(want, got, bytes) != 0) {
        fprintf(stderr, "%d ranks: %s of %s differs from the CPU's\n", r->size, hora_op_name(op),
                hora_dtype_name(dtype));
        exit(1);
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Rank 0 alone; the others wait. */
static double copy_rate(const rank_t *r, uint64_t to, uint64_t from, size_t bytes) {
    double seconds[ROUNDS], begin;
    int    calls = bytes > (size_t)32 << 20 ? 5 : 50;
    for (int k = 0; k < ROUNDS; k++) {
        begin = gpu_seconds();
        for (int i = 0; i < calls; i++)
            gpu_must(&r->t, r->t.cuda->copy(to, from, bytes, r->t.stream), "copying");
        gpu_wait(&r->t);
        seconds[k] = (gpu_seconds() - begin) / calls;
    }
    qsort(seconds, ROUNDS, sizeof(double), by_value);
    return 2.0 * (double)bytes / seconds[ROUNDS / 2];
}

/* From when all ranks are there until all have their results. */
static double call_seconds(const rank_t *r, uint64_t out, uint64_t in, size_t bytes) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    double              seconds[ROUNDS], begin;
    int                 calls = bytes > (size_t)32 << 20 ? 3 : 10;
    options.device = 0;
    options.stream = r->t.stream;
    for (int k = 0; k <= ROUNDS; k++) { /* the first one opens memory */
        gpu_must_status(hora_barrier(r->comm, NULL), "barrier");
        begin = gpu_seconds();
        for (int i = 0; i < calls; i++)
            gpu_must_status(hora_allreduce(r->comm, (void *)(uintptr_t)in, (void *)(uintptr_t)out, bytes / 4,
                                           HORA_FLOAT32, HORA_SUM, &options), "allreduce");
        gpu_wait(&r->t);
        gpu_must_status(hora_barrier(r->comm, NULL), "barrier");
        if (k > 0)
            seconds[k - 1] = (gpu_seconds() - begin) / calls;
    }
    qsort(seconds, ROUNDS, sizeof(double), by_value);
    return seconds[ROUNDS / 2];
}

static void measure(const rank_t *r, uint64_t in, uint64_t out, measured_t *measured) {
    for (int s = 0; s < SIZES && sizes[s] <= most; s++) {
        size_t bytes = sizes[s];
        gpu_must(&r->t, r->t.cuda->memset(in, 0, bytes, r->t.stream), "clearing");
        gpu_wait(&r->t);
        gpu_must_status(hora_barrier(r->comm, NULL), "barrier");
        if (r->rank == 0)
            measured->copy[s] = copy_rate(r, out, in, bytes);
        double seconds = call_seconds(r, out, in, bytes);
        if (r->rank == 0)
            measured->call[s] = seconds;
    }
}

static int rank_main(int rank, int size, void *arg) {
    static const hora_op_t ops[] = {HORA_SUM, HORA_AVERAGE, HORA_MIN, HORA_MAX};
    measured_t            *measured = arg;
    rank_t                 r = {.rank = rank, .size = size};
    uint64_t               in, out;
    gpu_begin(&r.t);
    while (most * 3 * (size_t)size > r.t.memory)
        most /= 2;
    in = gpu_alloc(&r.t, hora_gpu_whole_blocks(most > COUNT * 8 ? most : COUNT * 8));
    out = gpu_alloc(&r.t, hora_gpu_whole_blocks(most)); /* others have both open until the end */
    gpu_must_status(hora_comm_create(NULL, &r.comm), "joining");
    for (int d = HORA_FLOAT16; d < HORA_DTYPE_COUNT; d++)
        for (int op = 0; op < 4; op++)
            check_type(&r, in, (hora_dtype_t)d, ops[op]);
    measure(&r, in, out, measured);
    gpu_must_status(hora_barrier(r.comm, NULL), "barrier");
    hora_comm_free(r.comm);
    gpu_free(&r.t, in);
    gpu_free(&r.t, out);
    gpu_end(&r.t);
    return 0;
}

static void report(const measured_t *measured, int ranks, FILE *json) {
    for (int s = 0; s < SIZES; s++) {
        const measured_t *m = measured;
        double            moved = 2.0 * (double)sizes[s] * ranks;
        if (m->call[s] <= 0)
            continue;
        printf("%2d ranks, allreduce of %4zu MB each %10.1f us %10.1f GB/s %7.1f%% of the bound\n", ranks,
               sizes[s] >> 20, m->call[s] * 1e6, moved / m->call[s] / 1e9,
               100.0 * moved / m->call[s] / m->copy[s]);
        if (json != NULL)
            fprintf(json, "{\"ranks\": %d, \"bytes\": %zu, \"us\": %.2f, \"of_bound\": %.4f}\n", ranks,
                    sizes[s], m->call[s] * 1e6, moved / m->call[s] / m->copy[s]);
    }
}

int main(int argc, char **argv) {
    FILE       *json = NULL;
    measured_t *measured = mmap(NULL, sizeof(*measured) * (RANKS_MAX + 1), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bool        good = measured != MAP_FAILED;
    for (int i = 1; i < argc && good; i++) {
        bool more = i + 1 < argc;
        if (more && strcmp(argv[i], "--most") == 0)
            most = (size_t)atoi(argv[++i]) << 20;
        else
            good = more && strcmp(argv[i], "--json") == 0 && (json = fopen(argv[++i], "w")) != NULL;
    }
    if (!good) {
        printf("usage: hora-gpu-ipc [--most MB] [--json FILE]\n");
        return argc == 2 && strcmp(argv[1], "--help") == 0 ? 0 : 2;
    }
    setenv("HORA_GPU_PATH", "ipc", 1);
    for (int ranks = 2; ranks <= RANKS_MAX; ranks *= 2) {
        ranks_end_t ends[RANKS_MAX];
        ranks_job_t job = {.nranks = ranks, .main = rank_main, .arg = &measured[ranks], .deadline = 100,
                           .grace = 10};
        if (ranks_run(&job, ends) != 0) {
            printf("%d ranks on one GPU: rank 0 ended with %d\n", ranks, ends[0].code);
            return ends[0].code == NO_GPU ? NO_GPU : 1;
        }
    }
    printf("every type and operation has the CPU's bits, with 2, 4 and 8 ranks on one GPU\n");
    for (int ranks = 2; ranks <= RANKS_MAX; ranks *= 2)
        report(&measured[ranks], ranks, json);
    if (json != NULL)
        fclose(json);
    return 0;
}
