/*
 * GPUs on several hosts: the path hierarchical, on the stand-ins, with one machine that pretends to be two
 * hosts: `test_gpu_hosts CUDA NCCL OTHER-NCCL`, where the last one is of another version. What all
 * collectives compute is test_gpu_comm's; here are the bits, the choice of the path, and what goes wrong.
 */
#include <dlfcn.h>
#include <kernels/cpu/kernels.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "nccl_sum.h"
#include "pattern.h"
#include "standin.h"
#include "util/status.h"

#define RANKS 8

static char **libraries; /* from 1 */

/* ---- In a rank ----------------------------------------------------------------------------- */

static hora_comm_t *join(int rank) {
    char gpu[16];
    snprintf(gpu, sizeof(gpu), "%d", rank);
    setenv("CUDA_VISIBLE_DEVICES", gpu, 1);
    return harness_join();
}

static void allgather_is_right(hora_comm_t *comm, device_buffer_t *b, void *stream) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    int                 n = hora_comm_size(comm), *x = (int *)(void *)b->host;
    options.device = 0;
    options.stream = stream;
    x[hora_comm_rank(comm)] = 7 + hora_comm_rank(comm);
    device_put(b, stream);
    harness_ok(hora_allgather(comm, (int *)b->at + hora_comm_rank(comm), b->at, 1, HORA_INT32, &options));
    device_finish(stream);
    device_get(b, stream);
    device_finish(stream);
    for (int r = 0; r < n; r++)
        harness_check(x[r] == 7 + r, "block %d is %d", r, x[r]);
}

/* ---- Bits ---------------------------------------------------------------------------------- */

/* One allreduce, and what is expected: the inputs scaled one by one, summed on each host in rank order,
 * then host by host (two: in any order), divided, scaled, and, if they are halves, rounded once. */
typedef struct bits {
    hora_dtype_t  dtype, wide;
    hora_op_t     op;
    size_t        count;
    double        prescale, postscale;
    unsigned char inputs[RANKS][NCCL_COUNT * 8], expected[NCCL_COUNT * 8], scaled[RANKS][NCCL_COUNT * 8];
    unsigned char sums[2][NCCL_COUNT * 8];
} bits_t;

static void fill(bits_t *w, int size) {
    size_t elem = hora_dtype_size(w->dtype);
    bool   sums = w->op == HORA_SUM || w->op == HORA_AVERAGE;
    for (int r = 0; r < size; r++)
        for (size_t i = 0; i < w->count; i++) {
            double x = (double)((i * 7919 + (size_t)r * 104729) % 10007) / 97;
            pattern_encode(w->dtype, sums ? x - (hora_dtype_is_float(w->dtype) ? 40 : 0)
                                          : 1 + (double)((i + (size_t)r) % 5), w->inputs[r] + i * elem);
        }
}

static void expect(bits_t *w, int size) {
    bool          average = w->op == HORA_AVERAGE;
    hora_op_t     op = average ? HORA_SUM : w->op;
    hora_reduce_t first = {w->wide, HORA_SUM, 1, w->prescale, 1.0}, inside = {w->wide, op, 1, 1.0, 1.0};
    hora_reduce_t between = {w->wide, op, average ? (uint32_t)size : 1, 1.0, w->postscale};
    const void   *hosts[2] = {w->sums[0], w->sums[1]};
    void         *out = w->scaled[0];
    for (int r = 0; r < size; r++) {
        const void *from = w->inputs[r];
        void       *to = w->scaled[r];
        if (w->wide != w->dtype) {
            hora_kernel_convert(to, w->wide, from, w->dtype, w->count, 1.0);
            from = to;
        }
        hora_kernel_reduce(&first, &to, 1, &from, 1, w->count);
    }
    for (int h = 0; h < 2; h++) { /* as harness.c divides them */
        const void *members[RANKS];
        int         n = 0;
        void       *sum = w->sums[h];
        for (int r = 0; r < size; r++)
            if ((2 * r < size) == (h == 0))
                members[n++] = w->scaled[r];
        hora_kernel_reduce(&inside, &sum, 1, members, n, w->count);
    }
    hora_kernel_reduce(&between, &out, 1, hosts, 2, w->count);
    if (w->wide != w->dtype)
        hora_kernel_convert(w->expected, w->dtype, out, w->wide, w->count, 1.0);
    else
        memcpy(w->expected, out, w->count * hora_dtype_size(w->dtype));
}

/* started: two requests of the same, which end in the other order. */
static void compare(hora_comm_t *comm, const bits_t *w, bool in_place, bool started, void *stream) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    size_t              bytes = w->count * hora_dtype_size(w->dtype);
    hora_request_t     *requests[2];
    device_buffer_t     in[2], out[2];
    options.device = 0;
    options.stream = stream;
    options.prescale = w->prescale;
    options.postscale = w->postscale;
    for (int i = 0; i <= started; i++) {
        device_make(&in[i], bytes);
        device_make(&out[i], bytes);
        memcpy(in[i].host, w->inputs[hora_comm_rank(comm)], bytes);
        device_put(&in[i], stream);
        options.request_p = started ? &requests[i] : NULL;
        harness_ok(hora_allreduce(comm, in[i].at, in_place ? in[i].at : out[i].at, w->count, w->dtype,
                                  w->op, &options));
    }
    for (int i = started; i >= 0; i--) {
        if (started)
            harness_ok(hora_request_wait(requests[i]));
        device_finish(stream);
        device_get(in_place ? &in[i] : &out[i], stream);
        device_finish(stream);
        harness_check(memcmp(in_place ? in[i].host : out[i].host, w->expected, bytes) == 0,
                      "%s of %zu %s%s, scaled by %g and %g", hora_op_name(w->op), w->count,
                      hora_dtype_name(w->dtype), in_place ? ", in place" : "", w->prescale, w->postscale);
        device_destroy(&in[i]);
        device_destroy(&out[i]);
    }
}

static bool by_nccl(hora_dtype_t dtype, hora_op_t op) {
    bool extreme = op == HORA_MIN || op == HORA_MAX;
    if (op == HORA_ADASUM || op >= HORA_BAND || (extreme && hora_dtype_is_float(dtype)))
        return false;
    return dtype != HORA_BOOL && dtype != HORA_INT16 && dtype != HORA_UINT16 &&
           dtype != HORA_FLOAT8_E4M3 && dtype != HORA_FLOAT8_E5M2;
}

/* What host memory gives: the same for integers; for floats in an order of its own. */
static void compare_with_cpu(hora_comm_t *comm, const bits_t *w) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    unsigned char      *out = malloc(NCCL_COUNT * 8);
    options.prescale = w->prescale;
    options.postscale = w->postscale;
    harness_ok(hora_allreduce(comm, w->inputs[hora_comm_rank(comm)], out, w->count, w->dtype, w->op,
                              &options));
    harness_check(memcmp(out, w->expected, w->count * hora_dtype_size(w->dtype)) == 0, "%s of %s",
                  hora_op_name(w->op), hora_dtype_name(w->dtype));
    free(out);
}

static void every_type(hora_comm_t *comm, bits_t *w, void *stream) {
    static const size_t sizes[] = {1, 33, NCCL_COUNT};
    int                 calls = 0;
    for (int d = 0; d < HORA_DTYPE_COUNT; d++)
        for (int op = 0; op < HORA_OP_COUNT; op++) {
            bool scales = (d + op) % 2;
            if (!by_nccl((hora_dtype_t)d, (hora_op_t)op))
                continue;
            w->dtype = w->wide = (hora_dtype_t)d;
            if (hora_dtype_is_half(w->dtype))
                w->wide = HORA_FLOAT32;
            w->op = (hora_op_t)op;
            w->count = sizes[calls++ % 3];
            w->prescale = scales ? 0.3 : 1.0;
            w->postscale = scales ? 1.7 : 1.0;
            fill(w, hora_comm_size(comm));
            expect(w, hora_comm_size(comm));
            compare(comm, w, op % 2, calls % 5 == 0, stream);
            if (!hora_dtype_is_float(w->dtype) && !scales)
                compare_with_cpu(comm, w);
        }
}

/* A GPU that has no room for twice as much memory as before has some for what is needed. */
static void full_gpu(hora_comm_t *comm, void *stream) {
    static const size_t sizes[] = {2 * NCCL_COUNT + 1000, 2 * NCCL_COUNT + 2000};
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    cuda_standin_t     *cuda = dlsym(dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD),
                                     "cuda_standin");
    device_buffer_t     b;
    options.device = 0;
    options.stream = stream;
    device_make(&b, sizes[1] * 2);
    memset(b.host, 0, b.bytes);
    device_put(&b, stream);
    for (int i = 0; i < 2; i++) {
        cuda->nth = 1;
        cuda->result = HORA_CUDA_OUT_OF_MEMORY;
        cuda->fails = i == 1 ? "cuMemAlloc_v2" : NULL;
        harness_ok(hora_allreduce(comm, b.at, b.at, sizes[i], HORA_FLOAT16, HORA_SUM, &options));
    }
    harness_check(cuda->fails == NULL, "%s", "no memory was asked for");
    device_finish(stream);
    device_destroy(&b);
}

static void bits_main(hora_comm_t *unused, int rank, int size, void *arg) {
    hora_comm_t *comm = join(rank);
    bits_t      *w = calloc(1, sizeof(*w));
    int          local = hora_comm_local_size(comm);
    (void)unused, (void)size, (void)arg;
    device_begin();
    every_type(comm, w, device_stream());
    full_gpu(comm, device_stream());
    harness_check((atomic_load(&nccl_counts()->groups) > 50) == (local > 1) &&
                      atomic_load(&nccl_counts()->allreduces) == 0,
                  "%d groups, %d allreduces by NCCL", atomic_load(&nccl_counts()->groups),
                  atomic_load(&nccl_counts()->allreduces));
    free(w);
    harness_ok(hora_comm_free(comm));
    harness_check(atomic_load(&nccl_counts()->aborts) == 0, "%d aborts", atomic_load(&nccl_counts()->aborts));
}

/* ---- The choice ---------------------------------------------------------------------------- */

/* arg: what is special; the path that is to be found is seen by what NCCL was asked. */
static void choice_main(hora_comm_t *unused, int rank, int size, void *arg) {
    const char     *what = arg;
    bool            versions = strcmp(what, "versions") == 0, asked = strcmp(what, "asked") == 0;
    bool            flat = strcmp(what, "flat") == 0, fails = strcmp(what, "fails") == 0;
    bool            mixed = strcmp(what, "mixed") == 0;
    device_buffer_t b;
    hora_comm_t    *comm, *part;
    void           *stream;
    (void)unused;
    if ((versions && rank >= 2) || (mixed && rank % 2))
        setenv("HORA_NCCL_LIBRARY", libraries[3], 1);
    if (asked)
        setenv("HOROVOD_HIERARCHICAL_ALLREDUCE", "1", 1);
    if (fails && rank == 3)
        setenv("HORA_STANDIN_NCCL", "init-error", 1);
    comm = join(rank);
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    nccl_sum_is_right(comm, &b, stream);
    nccl_sum_is_right(comm, &b, stream);
    allgather_is_right(comm, &b, stream);
    harness_check(atomic_load(&nccl_counts()->groups) == (flat ? 3 : asked ? 5 : versions ? 4 : 0) &&
                      atomic_load(&nccl_counts()->allreduces) == (flat ? 2 : 0) &&
                      atomic_load(&nccl_counts()->inits) <= (asked || fails ? 2 : 1),
                  "%s: %d groups, %d allreduces, %d communicators by NCCL", what,
                  atomic_load(&nccl_counts()->groups), atomic_load(&nccl_counts()->allreduces),
                  atomic_load(&nccl_counts()->inits));
    harness_ok(hora_comm_split(comm, rank != 1 && !fails ? 0 : -1, size - rank, &part));
    if (part != NULL) /* hosts of 1 and of 2 ranks, in another order */
        nccl_sum_is_right(part, &b, stream);
    harness_ok(hora_comm_free(part));
    device_destroy(&b);
    harness_ok(hora_comm_free(comm));
}

/* arg: the error when the path is asked for and cannot be. */
static void forced_main(hora_comm_t *unused, int rank, int size, void *arg) {
    device_buffer_t b;
    hora_comm_t    *comm;
    (void)unused, (void)size;
    if (strstr(arg, "every host") != NULL && rank == 3)
        setenv("HORA_STANDIN_NCCL", "init-error", 1);
    comm = join(rank);
    device_begin();
    device_make(&b, NCCL_COUNT * 4);
    harness_expect(nccl_queue_sum(comm, &b, NULL), HORA_ERR_UNSUPPORTED);
    harness_check(strstr(hora_last_error(), arg) != NULL, "%s", hora_last_error());
    harness_ok(hora_barrier(comm, NULL)); /* nothing has failed */
    device_destroy(&b);
    harness_ok(hora_comm_free(comm));
}

/* ---- What goes wrong ----------------------------------------------------------------------- */

typedef struct fault_case {
    const char   *words, *cuda; /* HORA_STANDIN_NCCL and HORA_STANDIN_FAIL on rank 3; NULL: none */
    hora_status_t status;
    const char   *text;         /* in every rank's error */
    void        (*act)(hora_comm_t *comm, int rank); /* after the first call; NULL: nothing */
} fault_case_t;

static void die(hora_comm_t *comm, int rank) {
    (void)comm;
    if (rank == 3)
        kill(getpid(), SIGKILL);
}

static void stay_away(hora_comm_t *comm, int rank) {
    double start = harness_now();
    while (rank == 3 && hora_comm_status(comm) == HORA_OK && harness_now() - start < 5)
        usleep(10000);
}

static void give_up(hora_comm_t *comm, int rank) {
    if (rank == 3)
        harness_ok(hora_comm_abort(comm, "enough"));
}

static void fault_main(hora_comm_t *unused, int rank, int size, void *arg) {
    const fault_case_t *c = arg;
    hora_comm_t        *comm;
    hora_status_t       st = HORA_OK;
    device_buffer_t     b;
    void               *stream;
    double              start;
    (void)unused, (void)size;
    if (rank == 3 && c->words != NULL)
        setenv("HORA_STANDIN_NCCL", c->words, 1);
    if (rank == 3 && c->cuda != NULL)
        setenv("HORA_STANDIN_FAIL", c->cuda, 1);
    comm = join(rank);
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    if (c->act != NULL) {
        nccl_sum_is_right(comm, &b, stream);
        hora_barrier(comm, NULL); /* all have got that far; the last to come out may find a failure */
        c->act(comm, rank);
    }
    start = harness_now();
    while (st == HORA_OK && harness_now() - start < 5) {
        st = nccl_queue_sum(comm, &b, stream);
        usleep(10000);
    }
    harness_check(st == c->status && strstr(hora_last_error(), c->text) != NULL && harness_now() - start < 3,
                  "%s: %s, after %.1f s", hora_status_name(st), hora_last_error(), harness_now() - start);
    harness_expect(nccl_queue_sum(comm, &b, stream), c->status);
    if (c->cuda == NULL || rank != 3)
        device_finish(stream); /* nothing is left waiting there */
    harness_ok(hora_comm_free(comm));
}

/* ---- Tests --------------------------------------------------------------------------------- */

static void run(int nranks, harness_main_t rank_main, const void *arg, double timeout) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = (void *)(uintptr_t)arg,
                         .transport = "hosts", .bare = true, .keep_fds = true, .timeout = timeout,
                         .deadline = 30};
    assert_int_equal(harness_run(&job), 0);
}

static void bits(void **state) {
    (void)state;
    setenv("HORA_GPU_PATH", "hierarchical", 1);
    run(4, bits_main, NULL, 10);
    run(3, bits_main, NULL, 10); /* hosts of 2 and of 1 */
    run(5, bits_main, NULL, 10); /* of 3 and of 2 */
}

static void choices(void **state) {
    static const char *const cases[] = {"versions", "asked", "flat", "fails", "mixed"};
    (void)state;
    setenv("HORA_GPU_PATH", "auto", 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        run(4, choice_main, cases[i], 10);
}

static void cannot_be(void **state) {
    (void)state;
    setenv("HORA_GPU_PATH", "hierarchical", 1);
    run(4, forced_main, "NCCL could not make a communicator on every host", 10);
    run(2, forced_main, "no host has several ranks", 10);
}

static void faults(void **state) {
    static const fault_case_t cases[] = {
        {NULL, NULL, HORA_ERR_PEER_FAILED, "rank 3 on host", die},
        {NULL, NULL, HORA_ERR_TIMEOUT, "HORA_TIMEOUT", stay_away},
        {NULL, NULL, HORA_ERR_ABORTED, "enough", give_up},
        {"no-memory", NULL, HORA_ERR_NO_MEMORY, "by NCCL", NULL},
        {"hangs", NULL, HORA_ERR_TIMEOUT, "HORA_TIMEOUT", NULL},
        {NULL, "cuMemcpyHtoDAsync_v2:2:719:lost", HORA_ERR_SYSTEM, "allreduce", NULL},
    };
    (void)state;
    setenv("HORA_GPU_PATH", "hierarchical", 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        harness_job_t job = {.nranks = 4, .main = fault_main, .arg = (void *)(uintptr_t)&cases[i],
                             .transport = "hosts", .bare = true, .keep_fds = true, .deadline = 30,
                             .timeout = cases[i].status == HORA_ERR_TIMEOUT ? 0.8 : 4};
        ranks_end_t   ends[4];
        bool          dies = cases[i].act == die;
        assert_int_equal(harness_run_ends(&job, ends), dies);
        assert_int_equal(ends[3].signal, dies ? SIGKILL : 0);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits), cmocka_unit_test(choices), cmocka_unit_test(cannot_be),
        cmocka_unit_test(faults),
    };
    if (argc != 4) {
        fprintf(stderr, "usage: %s CUDA NCCL OTHER-NCCL\n", argv[0]);
        return 2;
    }
    libraries = argv;
    setenv("HORA_CUDA_LIBRARY", argv[1], 1);
    setenv("HORA_NCCL_LIBRARY", argv[2], 1);
    setenv("HORA_START_TIMEOUT", "1", 1); /* a rank whose NCCL fails is waited for so long */
    setenv("HORA_STANDIN_DELAY_US", "100", 1);
    setenv("HORA_STANDIN_GPUS", "5", 1);
    setenv("HORA_GPU_CHUNK", "4k", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
