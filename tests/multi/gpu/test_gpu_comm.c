/*
 * The communicator API on a GPU, on the stand-in with its delays: `test_gpu_comm shm 3 STANDIN ipc 2`:
 * by the path ipc (or staged), on 2 GPUs, which the ranks share in turn. Every collective, type and
 * operation, blocking and started; and its errors. By nccl or hierarchical with one more argument, NCCL's
 * stand-in.
 */
#include <coll.h>
#include <dlfcn.h>
#include <kernels/cpu/kernels.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "device.h"
#include "standin.h"

#define LENGTH(array) ((int)(sizeof(array) / sizeof((array)[0])))

static const char *transport;
static int         nranks, ngpus;
static bool        by_ipc;

/* ---- In a rank ----------------------------------------------------------------------------- */

/* A rank sees one GPU, which others may see, too. */
static void start(int rank) {
    char visible[16];
    snprintf(visible, sizeof(visible), "%d", rank % ngpus);
    setenv("CUDA_VISIBLE_DEVICES", visible, 1);
    device_begin();
}

/* A call with its buffers on the GPU. */
typedef struct gpu_call {
    coll_t          coll;
    device_buffer_t in, out;
    hora_request_t *request;
} gpu_call_t;

static void describe(const gpu_call_t *call, hora_status_t st, size_t wrong) {
    const coll_t *c = &call->coll;
    harness_check(st == HORA_OK && wrong == 0, "%s %s %s, count %zu, root %d%s: %s, %zu wrong",
                  coll_name(c->kind), hora_dtype_name(c->dtype), hora_op_name(c->op), c->count,
                  c->root, c->in_place ? ", in place" : "",
                  st == HORA_OK ? "ok" : hora_last_error(), wrong);
}

/* Queues the input for the GPU, and calls: what comes first on the stream must come first. */
static void begin(gpu_call_t *call, hora_comm_t *comm, void *stream, bool starts) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    coll_t             *c = &call->coll;
    options.device = 0;
    options.stream = stream;
    options.request_p = starts ? &call->request : NULL;
    call->request = NULL;
    device_make(&call->in, coll_bytes_in(c));
    device_make(&call->out, coll_bytes_out(c));
    c->in_memory = call->in.host;
    c->out_memory = call->out.host;
    coll_write(c);
    device_put(&call->in, stream);
    device_put(&call->out, stream);
    c->in_memory = call->in.at;
    c->out_memory = call->out.at;
    describe(call, coll_call(c, comm, &options), 0);
}

static void end(gpu_call_t *call, void *stream) {
    coll_t *c = &call->coll;
    if (call->request != NULL)
        describe(call, hora_request_wait(call->request), 0);
    device_finish(stream); /* the pinned memory is read until then */
    memset(call->in.host, 0xa5, call->in.bytes);
    memset(call->out.host, 0xa5, call->out.bytes);
    device_get(&call->in, stream);
    device_get(&call->out, stream);
    device_finish(stream);
    c->in_memory = call->in.host;
    c->out_memory = call->out.host;
    describe(call, HORA_OK, coll_wrong(c));
    device_destroy(&call->in);
    device_destroy(&call->out);
    coll_destroy(c);
}

static void place(gpu_call_t *call, hora_comm_t *comm, coll_kind_t kind, hora_dtype_t dtype,
                  hora_op_t op, size_t count, bool in_place) {
    static unsigned salt;
    int size = hora_comm_size(comm);
    harness_check(coll_init(&call->coll, kind, dtype, op, count), "%s", "memory");
    salt++;
    harness_check(coll_place(&call->coll, hora_comm_rank(comm), size, (int)(salt % (unsigned)size),
                             in_place, salt), "%s", "memory");
}

static void one(hora_comm_t *comm, coll_kind_t kind, hora_dtype_t dtype, hora_op_t op, size_t count,
                bool in_place, void *stream) {
    gpu_call_t call;
    place(&call, comm, kind, dtype, op, count, in_place);
    begin(&call, comm, stream, false);
    end(&call, stream);
}

static bool is_here(coll_kind_t kind) {
    return kind != COLL_SENDRECV;
}

/* Parts are of 4 KB: counts with one, several, and uneven ones. */
static void kinds_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const size_t counts[] = {0, 1, 61, 5003};
    void               *stream;
    (void)rank, (void)size, (void)arg;
    start(rank);
    stream = device_stream();
    for (int kind = 0; kind < COLL_KIND_COUNT; kind++)
        for (int i = 0; i < LENGTH(counts) && is_here((coll_kind_t)kind); i++)
            for (int in_place = 0; in_place <= coll_can_be_in_place((coll_kind_t)kind); in_place++)
                one(comm, (coll_kind_t)kind, i % 2 ? HORA_FLOAT32 : HORA_INT16, HORA_SUM, counts[i],
                    in_place, i == 2 ? NULL : stream);
    harness_ok(hora_barrier(comm, NULL));
}

static void types_main(hora_comm_t *comm, int rank, int size, void *arg) {
    void *stream;
    (void)rank, (void)size, (void)arg;
    start(rank);
    stream = device_stream();
    for (int d = 0; d < HORA_DTYPE_COUNT; d++)
        for (int op = 0; op < HORA_OP_COUNT; op++)
            if (coll_takes(COLL_ALLREDUCE, (hora_dtype_t)d, (hora_op_t)op))
                one(comm, op % 2 || op == HORA_ADASUM ? COLL_ALLREDUCE : COLL_REDUCE_SCATTER,
                    (hora_dtype_t)d, (hora_op_t)op, 1237, (d + op) % 2, stream);
    harness_ok(hora_barrier(comm, NULL));
}

/* Requests in flight at once, waited for in another order; host calls between. */
static void requests_main(hora_comm_t *comm, int rank, int size, void *arg) {
    gpu_call_t calls[COLL_KIND_COUNT];
    float      x = (float)rank;
    void      *stream;
    int        done = 0;
    (void)arg;
    start(rank);
    stream = device_stream();
    for (int kind = 0; kind < COLL_KIND_COUNT; kind++)
        if (is_here((coll_kind_t)kind)) {
            place(&calls[kind], comm, (coll_kind_t)kind, HORA_FLOAT64, HORA_SUM, 700, false);
            begin(&calls[kind], comm, stream, true);
        }
    while (!done)
        harness_ok(hora_request_test(calls[COLL_REDUCE].request, &done));
    harness_ok(hora_allreduce(comm, &x, &x, 1, HORA_FLOAT32, HORA_SUM, NULL));
    harness_check(x == (float)(size * (size - 1) / 2), "%g", x);
    for (int kind = COLL_KIND_COUNT - 1; kind >= 0; kind--)
        if (is_here((coll_kind_t)kind))
            end(&calls[kind], stream);
}

/* Values that round, scaled before and after: what the CPU gives for them in rank order. */
#define BITS 3000
typedef struct bits {
    hora_dtype_t        dtype;
    size_t              elem;
    int                 rank, size;
    hora_call_options_t options; /* on the GPU */
    unsigned char       inputs[8][BITS * 8], expected[BITS * 8];
} bits_t;

static void expect_bits(bits_t *w) {
    const hora_reduce_t how = {w->dtype, HORA_SUM, (uint32_t)w->size, w->options.prescale,
                               w->options.postscale};
    const void         *src[8];
    void               *dst = w->expected;
    w->elem = hora_dtype_size(w->dtype);
    for (int r = 0; r < w->size; r++) {
        for (size_t i = 0; i < BITS; i++)
            pattern_encode(w->dtype, (double)((i * 7919 + (size_t)r * 104729) % 10007) / 97 - 40,
                           w->inputs[r] + i * w->elem);
        src[r] = w->inputs[r];
    }
    hora_kernel_reduce(&how, &dst, 1, src, w->size, BITS);
}

/* [first, first + count) of the average of all. */
static void average(hora_comm_t *comm, bits_t *w, coll_kind_t kind, bool in_place) {
    size_t          part = BITS / (size_t)w->size, first = 0, count = BITS;
    int             root = 1 % w->size;
    device_buffer_t in, out;
    unsigned char  *to;
    device_make(&in, BITS * w->elem);
    device_make(&out, BITS * w->elem);
    memcpy(in.host, w->inputs[w->rank], BITS * w->elem);
    device_put(&in, w->options.stream);
    if (kind == COLL_REDUCE_SCATTER)
        first = (size_t)w->rank * part, count = part;
    to = (unsigned char *)(in_place ? in.at : out.at) + first * w->elem;
    if (kind == COLL_ALLREDUCE)
        harness_ok(hora_allreduce(comm, in.at, to, BITS, w->dtype, HORA_AVERAGE, &w->options));
    else if (kind == COLL_REDUCE)
        harness_ok(hora_reduce(comm, in.at, to, BITS, w->dtype, HORA_AVERAGE, root, &w->options));
    else
        harness_ok(hora_reduce_scatter(comm, in.at, to, part, w->dtype, HORA_AVERAGE, &w->options));
    device_finish(w->options.stream);
    device_get(in_place ? &in : &out, w->options.stream);
    device_finish(w->options.stream);
    to = (in_place ? in.host : out.host) + first * w->elem;
    harness_check((kind == COLL_REDUCE && w->rank != root) ||
                      memcmp(w->expected + first * w->elem, to, count * w->elem) == 0,
                  "%s of %s%s", coll_name(kind), hora_dtype_name(w->dtype), in_place ? ", in place" : "");
    device_destroy(&in);
    device_destroy(&out);
}

static void bits_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const hora_dtype_t types[] = {HORA_FLOAT16, HORA_BFLOAT16, HORA_FLOAT32, HORA_FLOAT64,
                                         HORA_INT32};
    static const coll_kind_t  kinds[] = {COLL_ALLREDUCE, COLL_REDUCE, COLL_REDUCE_SCATTER};
    hora_call_options_t       options = HORA_CALL_OPTIONS_INIT;
    bits_t                   *w = calloc(1, sizeof(*w));
    (void)arg;
    start(rank);
    options.prescale = 0.3;
    options.postscale = 1.7;
    options.device = 0;
    options.stream = device_stream();
    w->options = options;
    w->rank = rank;
    w->size = size;
    for (int t = 0; t < LENGTH(types); t++) {
        w->dtype = types[t];
        expect_bits(w);
        for (int k = 0; k < LENGTH(kinds); k++)
            for (int in_place = 0; in_place < 2; in_place++)
                average(comm, w, kinds[k], in_place);
    }
    free(w);
}

/* in == out where that is not in place: the output lies over input that others are still to get. */
static void one_over(hora_comm_t *comm, coll_kind_t kind, float *x, size_t n, const device_buffer_t *b,
                     hora_call_options_t *options) {
    int    rank = hora_comm_rank(comm), size = hora_comm_size(comm), root = size - 1;
    size_t count = n / (size_t)size, from = 0, len = n;
    for (size_t i = 0; i < n; i++) /* what scatter and reduce_scatter give is the same on all */
        x[i] = (float)(kind == COLL_ALLGATHER || kind == COLL_GATHER ? (size_t)rank * count + i : i);
    device_put(b, options->stream);
    if (kind == COLL_ALLGATHER)
        harness_ok(hora_allgather(comm, b->at, b->at, count, HORA_FLOAT32, options));
    else if (kind == COLL_REDUCE_SCATTER)
        harness_ok(hora_reduce_scatter(comm, b->at, b->at, count, HORA_FLOAT32, HORA_AVERAGE, options));
    else if (kind == COLL_GATHER)
        harness_ok(hora_gather(comm, b->at, b->at, count, HORA_FLOAT32, root, options));
    else
        harness_ok(hora_scatter(comm, b->at, b->at, count, HORA_FLOAT32, root, options));
    device_finish(options->stream);
    device_get(b, options->stream);
    device_finish(options->stream);
    if (kind == COLL_REDUCE_SCATTER || kind == COLL_SCATTER) {
        from = (size_t)rank * count;
        len = count;
    }
    for (size_t i = 0; i < len && (kind != COLL_GATHER || rank == root); i++)
        harness_check(x[i] == (float)(from + i), "%s: element %zu is %g, not %zu", coll_name(kind), i,
                      x[i], from + i);
}

static void over_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const coll_kind_t kinds[] = {COLL_ALLGATHER, COLL_REDUCE_SCATTER, COLL_GATHER,
                                        COLL_SCATTER};
    hora_call_options_t      options = HORA_CALL_OPTIONS_INIT;
    size_t                   n = 2501 * (size_t)size;
    device_buffer_t          b;
    (void)arg;
    start(rank);
    options.device = 0;
    options.stream = device_stream();
    device_make(&b, n * sizeof(float));
    for (int i = 0; i < LENGTH(kinds); i++)
        one_over(comm, kinds[i], (float *)b.host, n, &b, &options);
    device_destroy(&b);
    harness_ok(hora_barrier(comm, NULL));
}

static void expect_text(hora_status_t got, hora_status_t status, const char *text) {
    harness_check(got == status && strstr(hora_last_error(), text) != NULL, "%s (%s), not %s (%s)",
                  hora_status_name(got), hora_last_error(), hora_status_name(status), text);
}

/* What only this rank sees leaves the communicator usable. */
static void arguments_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    float               x = 1;
    (void)arg;
    start(rank);
    options.device = 7;
    expect_text(hora_allreduce(comm, &x, &x, 1, HORA_FLOAT32, HORA_SUM, &options),
                HORA_ERR_INVALID_ARGUMENT, "no GPU number 7");
    options.device = 0;
    expect_text(hora_send(comm, &x, 1, HORA_FLOAT32, rank, 0, &options), HORA_ERR_UNSUPPORTED,
                "only in host memory");
    harness_ok(hora_barrier(comm, &options));
    harness_ok(hora_allreduce(comm, &x, &x, 1, HORA_FLOAT32, HORA_SUM, NULL));
    harness_check(x == (float)size, "%g", x);
}

/* A rank that passes host memory: all find out. */
static void mixed_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    device_buffer_t     b;
    hora_status_t       st;
    float               x = 1;
    (void)size, (void)arg;
    start(rank);
    device_make(&b, sizeof(x));
    options.device = 0;
    st = hora_allreduce(comm, b.at, b.at, 1, HORA_FLOAT32, HORA_SUM, &options);
    if (st == HORA_OK) /* else the others are in the next call already */
        st = rank == 0 ? hora_allreduce(comm, &x, &x, 1, HORA_FLOAT32, HORA_SUM, NULL)
                       : hora_allreduce(comm, b.at, b.at, 1, HORA_FLOAT32, HORA_SUM, &options);
    expect_text(st, HORA_ERR_MISMATCH, by_ipc ? "do not match" : "on a GPU");
    device_destroy(&b);
}

/* The first leader dies with work queued: the others are told at their next call, and can end, though
 * what waits on their streams for its events stays there. */
static void death_main(hora_comm_t *unused, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    hora_comm_t        *comm = harness_join();
    hora_status_t       st = HORA_OK;
    device_buffer_t     b;
    (void)unused, (void)size, (void)arg;
    start(rank);
    device_make(&b, 40000);
    options.device = 0;
    for (int i = 0; i < 3; i++)
        harness_ok(hora_allreduce(comm, b.at, b.at, 10000, HORA_FLOAT32, HORA_SUM, &options));
    if (rank == 0)
        _exit(9);
    for (int i = 0; i < 3 && st == HORA_OK; i++)
        st = hora_allreduce(comm, b.at, b.at, 10000, HORA_FLOAT32, HORA_SUM, &options);
    harness_expect(st, HORA_ERR_PEER_FAILED);
    hora_comm_free(comm);
    _exit(0);
}

/* One rank's driver refuses: all get the error, with the rank that it is about. */
static void refused_main(hora_comm_t *unused, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    device_buffer_t     b;
    hora_comm_t        *comm;
    const char        **what = arg;
    (void)unused;
    if (rank == size - 1)
        setenv("HORA_STANDIN_FAIL", what[0], 1);
    comm = harness_join();
    start(rank);
    device_make(&b, 40000);
    options.device = 0;
    for (int i = 0; i < 3; i++) {
        hora_status_t st = hora_allreduce(comm, b.at, b.at, 10000, HORA_FLOAT32, HORA_SUM, &options);
        if (st == HORA_OK && i < 2)
            continue;
        harness_check((st == HORA_ERR_NO_MEMORY || st == HORA_ERR_SYSTEM ||
                       st == HORA_ERR_UNSUPPORTED) &&
                          strstr(hora_last_error(), what[1]) != NULL,
                      "%s: %s", hora_status_name(st), hora_last_error());
        break;
    }
    hora_comm_free(comm);
}

/* Rank 0's GPU takes seconds over everything: that ends at the call's deadline, on every rank. */
static void slow_main(hora_comm_t *unused, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    device_buffer_t     b;
    hora_comm_t        *comm;
    hora_status_t       st = HORA_OK;
    double              begin;
    (void)unused, (void)size, (void)arg;
    setenv("HORA_STANDIN_DELAY_US", rank == 0 ? "1000000" : "0", 1);
    comm = harness_join();
    start(rank);
    device_make(&b, 4);
    options.device = 0;
    options.timeout = rank == 0 ? 0.2 : 0;
    begin = harness_now();
    for (int i = 0; i < 50 && st == HORA_OK; i++)
        st = hora_allreduce(comm, b.at, b.at, 1, HORA_FLOAT32, HORA_SUM, &options);
    expect_text(st, HORA_ERR_TIMEOUT, "for GPU 0 to come to it");
    harness_check(harness_now() - begin < 10, "%s", "too late");
    hora_comm_free(comm);
}

static cuda_standin_t *standin_of(void) {
    return dlsym(dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD), "cuda_standin");
}

/* A call comes after the one before, on whichever stream that was. */
static void streams_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    cuda_standin_t     *standin;
    device_buffer_t     a, b;
    void               *first, *second;
    (void)size, (void)arg;
    start(rank);
    standin = standin_of();
    first = device_stream();
    second = device_stream();
    device_make(&a, 4096);
    device_make(&b, 4096);
    options.device = 0;
    options.stream = second;
    harness_ok(hora_allreduce(comm, b.at, b.at, 1024, HORA_INT32, HORA_SUM, &options));
    device_finish(second);
    standin->held = first;
    options.stream = first;
    harness_ok(hora_allreduce(comm, a.at, a.at, 1024, HORA_INT32, HORA_SUM, &options));
    options.stream = second;
    harness_ok(hora_allreduce(comm, b.at, b.at, 1024, HORA_INT32, HORA_SUM, &options));
    usleep(50000);
    harness_check(!device_is_idle(second), "%s", "the second call is done before the first");
    harness_ok(hora_barrier(comm, NULL));
    standin->held = NULL;
    device_finish(second);
    device_finish(first);
    device_destroy(&a);
    device_destroy(&b);
}

/* The last rank is slow to wait for the leader, who frees the communicator meanwhile. */
static void early_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    hora_comm_t        *other;
    device_buffer_t     b;
    int32_t             one = 1;
    (void)arg;
    start(rank);
    device_make(&b, sizeof(one));
    memcpy(b.host, &one, sizeof(one));
    options.device = 0;
    options.stream = device_stream();
    harness_ok(hora_comm_split(comm, 0, rank, &other));
    device_put(&b, options.stream);
    if (rank == size - 1)
        standin_of()->slow = "cuStreamWaitEvent";
    harness_ok(hora_allreduce(other, b.at, b.at, 1, HORA_INT32, HORA_SUM, &options));
    harness_ok(hora_comm_free(other));
    device_get(&b, options.stream);
    device_finish(options.stream);
    harness_check(memcmp(b.host, &size, sizeof(size)) == 0, "%s", "a wrong sum");
    device_destroy(&b);
}

/* A sum of ones at the end of the memory. */
static void sum_at(hora_comm_t *comm, char *at, size_t bytes, device_buffer_t *pinned) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    int32_t             one = 1, *got = (int32_t *)(void *)pinned->host;
    int                 size = hora_comm_size(comm);
    static void        *stream;
    at += bytes - sizeof(one);
    options.device = 0;
    options.stream = stream = stream != NULL ? stream : device_stream();
    memcpy(got, &one, sizeof(one));
    device_put_to(at, got, sizeof(one), stream);
    harness_ok(hora_allreduce(comm, at, at, 1, HORA_INT32, HORA_SUM, &options));
    device_get_from(at, got, sizeof(one), stream);
    device_finish(stream);
    harness_check(*got == size, "%d where %d was expected", *got, size);
}

/* Memory that others have open, in two communicators, is freed, and lies in other allocations. */
static void freed_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const size_t bytes[] = {4u << 20, 8u << 20, 2u << 20, 6u << 20};
    device_buffer_t     pinned;
    hora_comm_t        *comms[2] = {comm, NULL};
    (void)size, (void)arg;
    start(rank);
    device_make(&pinned, sizeof(int32_t));
    harness_ok(hora_comm_split(comm, 0, rank, &comms[1]));
    for (size_t turn = 0; turn < 2 * sizeof(bytes) / sizeof(bytes[0]); turn++) {
        size_t each = bytes[turn % 4];
        char  *a = device_alloc(each), *b = device_alloc(each);
        for (int c = 0; c < 2; c++) {
            sum_at(comms[(size_t)c ^ (turn & 1)], a, each, &pinned);
            sum_at(comms[c], b, each, &pinned);
        }
        harness_ok(hora_barrier(comm, NULL));
        device_free(b);
        device_free(a);
    }
    device_destroy(&pinned);
    harness_ok(hora_comm_free(comms[1]));
}

/* One sum in each allocation, on a stream: opening the last ones closes the first. */
static hora_status_t sum_all(hora_comm_t *comm, void **at, int n, void *stream, double timeout) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    hora_status_t       st = HORA_OK;
    options.device = 0;
    options.stream = stream;
    options.timeout = timeout;
    for (int i = 0; i < n && st == HORA_OK; i++)
        st = hora_allreduce(comm, at[i], at[i], 100, HORA_INT32, HORA_SUM, &options);
    return st;
}

/* One communicator fails while its work cannot end. Another one that has to close memory fails at
 * its deadline, not in CUDA; and once the work has ended, a third one finds what both have left. */
static void unfinished_main(hora_comm_t *comm, int rank, int size, void *arg) {
    void        *at[20], *other, *held, *stream;
    hora_comm_t *comms[3];
    double       begin;
    (void)size, (void)arg;
    start(rank);
    held = device_stream();
    stream = device_stream();
    for (int i = 0; i < LENGTH(at); i++)
        at[i] = device_alloc((size_t)2 << 20);
    other = device_alloc((size_t)2 << 20);
    for (int i = 0; i < LENGTH(comms); i++)
        harness_ok(hora_comm_split(comm, 0, rank, &comms[i]));
    standin_of()->held = held;
    harness_ok(sum_all(comms[0], &other, 1, held, 0));
    harness_ok(hora_barrier(comm, NULL));
    harness_ok(hora_comm_abort(comms[0], "a test"));
    hora_comm_free(comms[0]);
    begin = harness_now();
    expect_text(sum_all(comms[1], at, LENGTH(at), stream, rank == 0 ? 0.3 : 0), HORA_ERR_TIMEOUT,
                "has left on the GPU");
    harness_check(harness_now() - begin < 5, "%s", "too late");
    hora_comm_free(comms[1]);
    harness_ok(hora_barrier(comm, NULL));
    standin_of()->held = NULL;
    harness_ok(sum_all(comms[2], at, LENGTH(at), stream, 0));
    device_finish(stream);
    harness_ok(hora_comm_free(comms[2]));
}

/* ---- Tests --------------------------------------------------------------------------------- */

static void run(harness_main_t rank_main, void *arg) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = arg, .transport = transport};
    assert_int_equal(harness_run(&job), 0);
}

/* After a failure work may be queued that never ends, so what it uses is left to the process's end. */
static void run_to_failure(harness_main_t rank_main, void *arg, bool bare) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = arg, .transport = transport,
                         .bare = bare, .keep_fds = true};
    assert_int_equal(harness_run(&job), 0);
}

static void every_kind(void **state) {
    (void)state;
    run(kinds_main, NULL);
}

static void every_type_and_operation(void **state) {
    (void)state;
    run(types_main, NULL);
}

static void requests(void **state) {
    (void)state;
    run(requests_main, NULL);
}

static void output_over_input(void **state) {
    (void)state;
    run(over_main, NULL);
}

static void bits_of_the_cpu(void **state) {
    (void)state;
    if (strcmp(getenv("HORA_GPU_PATH"), "hierarchical") == 0)
        return; /* in an order of its own: test_gpu_hosts */
    /* NCCL's stand-in adds in rank order; it is not asked to where that is what is wanted. */
    setenv("HORA_DETERMINISTIC", strcmp(getenv("HORA_GPU_PATH"), "nccl") == 0 ? "0" : "1", 1);
    run(bits_main, NULL);
    unsetenv("HORA_DETERMINISTIC");
}

static void wrong_arguments(void **state) {
    (void)state;
    run(arguments_main, NULL);
}

static void host_memory_on_one_rank(void **state) {
    (void)state;
    if (nranks > 1)
        run_to_failure(mixed_main, NULL, false);
}

static void a_driver_that_fails(void **state) {
    static const char *cases[][2] = {
        {"cuMemHostAlloc:2:2", "pinned host memory"}, /* where no arena can be pinned */
        {"cuStreamCreateWithPriority:1:2", "making streams"},
        {"cuMemcpyHtoDAsync_v2:2:719:lost", "allreduce"},
        {"cuEventQuery:3:700:lost", "allreduce"},
    };
    (void)state;
    for (int i = strcmp(transport, "tcp") == 0 ? 0 : 1; i < LENGTH(cases) && nranks > 1; i++)
        run_to_failure(refused_main, cases[i], true);
}

static void a_gpu_that_does_not_come(void **state) {
    (void)state;
    if (nranks == 2)
        run_to_failure(slow_main, NULL, true);
}

static void a_leader_that_frees_early(void **state) {
    (void)state;
    if (nranks > 1)
        run(early_main, NULL);
}

static void streams_that_change(void **state) {
    (void)state;
    if (nranks > 1)
        run(streams_main, NULL);
}

/* While it gets ready, and in the first call and the second; on a rank that leads, or not. */
static void a_driver_that_fails_by_ipc(void **state) {
    static const char *cases[][2] = {
        {"cuIpcGetMemHandle:1:1", "not all GPUs can open"},
        {"cuIpcOpenEventHandle:1:1", "not all GPUs can open"},
        {"cuEventRecord:2:700:lost", "on a GPU"},
        {"cuStreamWaitEvent:1:719:lost", "on a GPU"},
    };
    (void)state;
    for (int i = 0; i < LENGTH(cases) && nranks > 1; i++)
        run_to_failure(refused_main, cases[i], true);
}

static void a_leader_that_dies(void **state) {
    harness_job_t job = {.nranks = nranks, .main = death_main, .transport = transport, .bare = true,
                         .deadline = 10};
    ranks_end_t   ends[8];
    (void)state;
    if (nranks == 1)
        return;
    harness_run_ends(&job, ends);
    for (int r = 0; r < nranks; r++)
        assert_int_equal(ends[r].code, r == 0 ? 9 : 0);
}

static void memory_that_is_freed(void **state) {
    (void)state;
    run(freed_main, NULL);
}

static void work_that_does_not_end(void **state) {
    (void)state;
    if (nranks > 1)
        run_to_failure(unfinished_main, NULL, false);
}

/* Memory that only its own process can use is staged. */
static void private_memory(void **state) {
    (void)state;
    setenv("HORA_STANDIN_IPC_MOST", "3000000", 1);
    run(kinds_main, NULL);
    unsetenv("HORA_STANDIN_IPC_MOST");
}

int main(int argc, char **argv) {
    const struct CMUnitTest common[] = {
        cmocka_unit_test(every_kind),
        cmocka_unit_test(every_type_and_operation),
        cmocka_unit_test(requests),
        cmocka_unit_test(output_over_input),
        cmocka_unit_test(bits_of_the_cpu),
        cmocka_unit_test(wrong_arguments),
        cmocka_unit_test(host_memory_on_one_rank),
    };
    const struct CMUnitTest staged[] = {
        cmocka_unit_test(a_driver_that_fails),
        cmocka_unit_test(a_gpu_that_does_not_come),
    };
    const struct CMUnitTest ipc[] = {
        cmocka_unit_test(private_memory), cmocka_unit_test(memory_that_is_freed),
        cmocka_unit_test(streams_that_change),
        cmocka_unit_test(a_leader_that_frees_early),
        cmocka_unit_test(a_driver_that_fails_by_ipc),
        cmocka_unit_test(a_leader_that_dies),
        cmocka_unit_test(work_that_does_not_end),
    };
    /* NCCL does not find out who passes what, and its errors are test_gpu_nccl's. */
    const struct CMUnitTest by_nccl[] = {
        cmocka_unit_test(every_kind),
        cmocka_unit_test(every_type_and_operation),
        cmocka_unit_test(requests),
        cmocka_unit_test(output_over_input),
        cmocka_unit_test(bits_of_the_cpu),
        cmocka_unit_test(wrong_arguments),
    };
    if (argc < 6 || argc > 7 || !harness_arguments(3, argv, &transport, &nranks) ||
        (ngpus = atoi(argv[5])) < 1) {
        fprintf(stderr, "usage: %s TRANSPORT RANKS STANDIN staged|ipc|nccl|hierarchical GPUS [NCCL]\n", argv[0]);
        return 2;
    }
    by_ipc = strcmp(argv[4], "ipc") == 0;
    setenv("HORA_CUDA_LIBRARY", argv[3], 1);
    setenv("HORA_STANDIN_DELAY_US", "200", 1);
    setenv("HORA_STANDIN_GPUS", argv[5], 1);
    setenv("HORA_GPU_CHUNK", "4k", 1);
    setenv("HORA_GPU_PATH", argv[4], 1);
    setenv("HORA_NCCL_LIBRARY", argc == 7 ? argv[6] : "", 1);
    if (argc == 7)
        return cmocka_run_group_tests(by_nccl, NULL, NULL);
    return cmocka_run_group_tests(common, NULL, NULL) +
           (by_ipc ? cmocka_run_group_tests(ipc, NULL, NULL)
                   : cmocka_run_group_tests(staged, NULL, NULL));
}
