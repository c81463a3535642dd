/*
 * hora-perf: how fast a collective is here, in nccl-tests' terms, over the public C ABI only.
 *
 * Every rank runs measure() in step; rank 0 prints. The times of single calls are averaged over the
 * ranks call by call (nccl-tests' way), and the median over the calls is what is reported: one call
 * that the scheduler of a busy machine has delayed must not decide.
 */
#include "common/coll.h"
#include "common/gpu.h"
#include "common/ranks.h"
#include "perf_choices.h"
#include "perf_options.h"
#include "perf_report.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct bench {
    const perf_options_t *options;
    hora_comm_t          *comm;
    int                   rank, size;
    perf_report_t         report;
    double               *times; /* [iters] */
    unsigned              salt;
    gpu_t                 gpu;
    gpu_mirror_t         *mirror; /* of the buffers that are measured; NULL: they are in host memory */
} bench_t;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof(*values), compare_doubles);
    return n % 2 != 0 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* ---- Sizes, as nccl-tests counts them ------------------------------------------------------ */

static bool is_per_block(coll_kind_t kind) {
    return kind == COLL_ALLGATHER || kind == COLL_REDUCE_SCATTER || kind == COLL_ALLTOALL ||
           kind == COLL_GATHER || kind == COLL_SCATTER;
}

/* Elements of a call whose whole size is `bytes`; blocks are cut down to multiples of 16 bytes. */
static size_t count_of(coll_kind_t kind, size_t bytes, size_t elem_size, int size) {
    size_t count = bytes / elem_size;
    if (is_per_block(kind))
        count = count / (size_t)size / (16 / elem_size) * (16 / elem_size);
    return count;
}

static double busbw_factor(coll_kind_t kind, int n) {
    if (kind == COLL_ALLREDUCE)
        return 2.0 * (n - 1) / n;
    return is_per_block(kind) ? (double)(n - 1) / n : 1.0;
}

static size_t next_size(const perf_options_t *o, size_t bytes) {
    if (o->factor == 1)
        return bytes + o->step_bytes;
    size_t next = (size_t)((double)bytes * o->factor);
    return next > bytes ? next : bytes + 1;
}

/* ---- Measuring ----------------------------------------------------------------------------- */

static hora_status_t get_memory(bench_t *b, size_t bytes, unsigned char **memory_p) {
    void *memory;
    if (b->options->arena) {
        hora_status_t st = hora_alloc(b->comm, bytes, &memory);
        if (st == HORA_OK)
            *memory_p = memory;
        return st;
    }
    if (posix_memalign(&memory, 4096, bytes) != 0) {
        fprintf(stderr, "hora-perf: no memory for %zu bytes\n", bytes);
        return HORA_ERR_NO_MEMORY;
    }
    *memory_p = memory;
    return HORA_OK;
}

static void put_memory(bench_t *b, void *memory) {
    if (b->options->arena)
        hora_free(b->comm, memory);
    else
        free(memory);
}

static hora_status_t call(bench_t *b, coll_t *c) {
    return b->mirror != NULL ? gpu_mirror_call(b->mirror, c, b->comm)
                             : coll_call(c, b->comm, NULL);
}

/* One call: buffers written, barrier, the call itself. Only the call is timed. */
static hora_status_t timed_call(bench_t *b, coll_t *c, double *time_p) {
    if (b->mirror == NULL)
        coll_write(c);
    else if (!gpu_mirror_put(b->mirror, c))
        return HORA_ERR_SYSTEM;
    hora_status_t st = hora_barrier(b->comm, NULL);
    if (st != HORA_OK)
        return st;
    double begin = now();
    st = call(b, c);
    *time_p = now() - begin;
    return st;
}

static hora_status_t run_calls(bench_t *b, coll_t *c) {
    const perf_options_t *o = b->options;
    hora_status_t st = HORA_OK;
    for (int i = -o->warmup; i < o->iters && st == HORA_OK; i++) {
        double time = 0;
        st = timed_call(b, c, &time);
        if (i >= 0)
            b->times[i] = time;
    }
    if (st == HORA_OK && b->mirror != NULL && !gpu_mirror_get(b->mirror, c))
        return HORA_ERR_SYSTEM;
    return st;
}

static hora_status_t run_calls_on_gpu(bench_t *b, coll_t *c) {
    gpu_mirror_t mirror;
    if (!gpu_mirror_open(&mirror, &b->gpu, coll_bytes_in(c), coll_bytes_out(c)))
        return HORA_ERR_NO_MEMORY;
    coll_write(c); /* once: it is copied to the GPU before each call */
    b->mirror = &mirror;
    hora_status_t st = run_calls(b, c);
    b->mirror = NULL;
    gpu_mirror_close(&mirror);
    return st;
}

/* Brings the ranks' times and wrong elements together. */
static hora_status_t gather_result(bench_t *b, coll_t *c, perf_result_t *result) {
    const perf_options_t *o = b->options;
    int64_t wrong = o->check ? (int64_t)coll_wrong(c) : 0;
    hora_status_t st = hora_allreduce(b->comm, b->times, b->times, (size_t)o->iters, HORA_FLOAT64,
                                      HORA_AVERAGE, NULL);
    if (st == HORA_OK)
        st = hora_allreduce(b->comm, &wrong, &wrong, 1, HORA_INT64, HORA_SUM, NULL);
    if (st != HORA_OK)
        return st;
    double bytes = (double)c->count * (double)hora_dtype_size(c->dtype);
    if (is_per_block(c->kind))
        bytes *= b->size;
    result->measured = true;
    result->wrong = o->check ? (long)wrong : -1;
    result->time = median(b->times, o->iters);
    result->algbw = bytes / result->time / 1e9;
    result->busbw = result->algbw * busbw_factor(c->kind, b->size);
    return HORA_OK;
}

static hora_status_t measure_place(bench_t *b, coll_t *c, int root, bool in_place,
                                   perf_result_t *result) {
    if (in_place && !coll_can_be_in_place(c->kind))
        return HORA_OK;
    if (!coll_place(c, b->rank, b->size, root, in_place, ++b->salt))
        return HORA_ERR_NO_MEMORY;
    hora_status_t st = get_memory(b, coll_bytes_in(c) + 64, &c->in_memory);
    if (st != HORA_OK)
        return st;
    st = get_memory(b, coll_bytes_out(c), &c->out_memory);
    if (st != HORA_OK)
        goto out_in;
    st = b->options->cuda ? run_calls_on_gpu(b, c) : run_calls(b, c);
    if (st == HORA_OK)
        st = gather_result(b, c, result);
    put_memory(b, c->out_memory);
out_in:
    put_memory(b, c->in_memory);
    return st;
}

static hora_status_t measure_size(bench_t *b, hora_dtype_t dtype, hora_op_t op, int root,
                                  size_t bytes) {
    coll_t c;
    size_t elem_size = hora_dtype_size(dtype);
    size_t count = count_of(b->options->kind, bytes, elem_size, b->size);
    size_t whole = is_per_block(b->options->kind) ? count * (size_t)b->size : count;
    coll_init(&c, b->options->kind, dtype, op, count);
    perf_row_t row = {.bytes = whole * elem_size, .count = count, .dtype = dtype, .op = c.op};
    row.root = coll_has_root(c.kind) ? root : -1;
    hora_status_t st = HORA_OK;
    for (int place = 0; place < 2 && st == HORA_OK; place++) {
        if (b->rank == 0)
            perf_report_progress(&b->report, row.bytes, place == 1);
        st = measure_place(b, &c, root, place == 1, &row.results[place]);
    }
    if (b->rank == 0 && st == HORA_OK)
        perf_report_row(&b->report, &row);
    coll_destroy(&c);
    return st;
}

static hora_status_t measure_sizes(bench_t *b, hora_dtype_t dtype, hora_op_t op, int root) {
    const perf_options_t *o = b->options;
    hora_status_t st = HORA_OK;
    for (size_t n = o->min_bytes; n <= o->max_bytes && st == HORA_OK; n = next_size(o, n))
        st = measure_size(b, dtype, op, root, n);
    return st;
}

static bool is_wanted(const perf_options_t *o, int dtype, int op) {
    if (o->dtype != HORA_DTYPE_COUNT && (int)o->dtype != dtype)
        return false;
    if (!coll_reduces(o->kind))
        return op == HORA_SUM; /* once */
    if (o->op != HORA_OP_COUNT && (int)o->op != op)
        return false;
    return coll_takes(o->kind, (hora_dtype_t)dtype, (hora_op_t)op);
}

static hora_status_t measure_all(bench_t *b) {
    const perf_options_t *o = b->options;
    bool every_root = o->root < 0 && coll_has_root(o->kind);
    int first = every_root || !coll_has_root(o->kind) ? 0 : o->root;
    int last = every_root ? b->size - 1 : first;
    for (int root = first; root <= last; root++)
        for (int dtype = 0; dtype < HORA_DTYPE_COUNT; dtype++)
            for (int op = 0; op < HORA_OP_COUNT; op++) {
                if (!is_wanted(o, dtype, op))
                    continue;
                hora_status_t st = measure_sizes(b, (hora_dtype_t)dtype, (hora_op_t)op, root);
                if (st != HORA_OK)
                    return st;
            }
    return HORA_OK;
}

/* ---- A rank -------------------------------------------------------------------------------- */

static int fail(const bench_t *b, const char *what) {
    fprintf(stderr, "hora-perf: rank %d: %s: %s\n", b->rank, what, gpu_text(&b->gpu));
    return 1;
}

/* The ranks end together if one has no GPU. */
static bool open_gpu(bench_t *b) {
    int64_t good = gpu_open(&b->gpu, hora_comm_local_rank(b->comm)), all = good;
    if (hora_allreduce(b->comm, &good, &all, 1, HORA_INT64, HORA_MIN, NULL) != HORA_OK)
        return fail(b, "start"), false;
    if (!good)
        fail(b, "--device cuda");
    return all != 0;
}

static int run_bench(bench_t *b) {
    int64_t pid = getpid(), *pids = calloc((size_t)b->size, sizeof(*pids));
    b->times = calloc((size_t)b->options->iters, sizeof(*b->times));
    int code = 1;
    if (b->options->cuda && !open_gpu(b))
        return free(pids), free(b->times), 1;
    if (pids == NULL || b->times == NULL)
        fprintf(stderr, "hora-perf: out of memory\n");
    else if (hora_allgather(b->comm, &pid, pids, 1, HORA_INT64, NULL) != HORA_OK)
        fail(b, "allgather");
    else if (b->rank == 0 && !perf_report_begin(&b->report, b->options, b->comm, pids))
        hora_comm_abort(b->comm, "rank 0 cannot write its report");
    else if (measure_all(b) != HORA_OK)
        fail(b, coll_name(b->options->kind));
    else
        code = b->rank == 0 ? perf_report_end(&b->report) : 0;
    free(b->times);
    free(pids);
    return code;
}

static int rank_main(int rank, int size, void *arg) {
    bench_t b = {.options = arg, .rank = rank, .size = size};
    if (hora_comm_create(NULL, &b.comm) != HORA_OK)
        return fail(&b, "start");
    b.rank = hora_comm_rank(b.comm);
    b.size = hora_comm_size(b.comm);
    int code = 2;
    if (b.options->calibrate)
        code = perf_calibrate(b.comm, b.options);
    else if (b.options->choices)
        code = b.rank == 0 ? perf_choices(b.comm, b.options) : 0;
    else if (b.options->root < b.size)
        code = run_bench(&b);
    else if (b.rank == 0)
        fprintf(stderr, "hora-perf: root %d of %d ranks\n", b.options->root, b.size);
    if (hora_comm_free(b.comm) != HORA_OK)
        return fail(&b, "end");
    return code;
}

int main(int argc, char **argv) {
    perf_options_t options;
    int code;
    if (!perf_options_read(argc, argv, &options, &code))
        return code;
    if (options.nranks == 0)
        return rank_main(-1, -1, &options);
    ranks_job_t job = {.nranks = options.nranks, .main = rank_main, .arg = &options, .grace = 10};
    ranks_end_t *ends = calloc((size_t)options.nranks, sizeof(*ends));
    int failed = ends != NULL ? ranks_run(&job, ends) : -1;
    if (failed < 0)
        perror("hora-perf: ranks could not be started");
    for (int r = 0; r < options.nranks && failed > 0; r++)
        if (ends[r].signal != 0)
            fprintf(stderr, "hora-perf: rank %d %s (signal %d)\n", r,
                    ends[r].late ? "was ended, after another had failed," : "died", ends[r].signal);
    free(ends);
    return failed != 0;
}
