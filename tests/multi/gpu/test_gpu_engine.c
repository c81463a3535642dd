/*
 * The engine with tensors on a GPU, on the stand-in with its delays: `test_gpu_engine shm 3 STANDIN`.
 * Each tensor is there twice, on the GPU and in host memory, and both results have the same bits; and
 * what goes wrong.
 */
#include <pattern.h>
#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "device.h"
#include "standin.h"

static const char *transport;
static int         nranks;

static hora_engine_t *engine_of(hora_comm_t *comm) {
    hora_engine_t *engine;
    harness_ok(hora_engine_create(comm, NULL, &engine));
    return engine;
}

static void expect_text(hora_status_t got, hora_status_t status, const char *text) {
    harness_check(got == status && strstr(hora_last_error(), text) != NULL, "%s (%s), not %s (%s)",
                  hora_status_name(got), hora_last_error(), hora_status_name(status), text);
}

/* ---- Pairs --------------------------------------------------------------------------------- */

/* One tensor twice: h.NAME in host memory, g.NAME on the GPU. */
typedef struct pair {
    char            names[2][32];
    hora_task_t     task;
    int64_t         shape[2];
    device_buffer_t in, out;   /* out.at == in.at in place */
    unsigned char  *host_in, *host_out;
    size_t          bytes;
    void           *stream;
    hora_handle_t  *handles[2];
} pair_t;

static bool gives_output(const pair_t *p) {
    return p->task.kind != HORA_TASK_ALLREDUCE && p->task.kind != HORA_TASK_BROADCAST;
}

/* Values that round in every order of sums but one. */
static void fill(pair_t *p, int rank, unsigned salt) {
    size_t elem = hora_dtype_size(p->task.dtype);
    for (size_t i = 0; i < p->bytes / elem; i++)
        pattern_encode(p->task.dtype,
                       p->task.dtype == HORA_BOOL
                           ? (double)((i + (size_t)rank) % 3 == 0)
                           : (double)((i * 7919 + (size_t)rank * 104729 + salt) % 1013) / 97 + 1,
                       p->host_in + i * elem);
}

static void make(pair_t *p, int number, hora_task_kind_t kind, hora_dtype_t dtype, hora_op_t op,
                 double scale, int64_t rows, void *stream) {
    hora_task_t init = HORA_TASK_INIT;
    bool        in_place = number % 2 == 0;
    memset(p, 0, sizeof(*p));
    p->task = init;
    snprintf(p->names[0], sizeof(p->names[0]), "h.%d", number);
    snprintf(p->names[1], sizeof(p->names[1]), "g.%d", number);
    p->shape[0] = rows;
    p->shape[1] = 1 + number % 5;
    p->bytes = (size_t)(rows * p->shape[1]) * hora_dtype_size(dtype);
    p->task.kind = kind;
    p->task.dtype = dtype;
    p->task.op = op;
    p->task.prescale = p->task.postscale = scale;
    p->task.ndim = 2;
    p->task.shape = p->shape;
    p->stream = stream;
    device_make(&p->in, p->bytes);
    p->out = p->in;
    if (!in_place)
        device_make(&p->out, p->bytes);
    p->host_in = malloc(p->bytes + 1);
    p->host_out = in_place ? p->host_in : malloc(p->bytes + 1);
}

static void start(pair_t *p, hora_engine_t *engine, int rank, unsigned salt) {
    hora_task_t host = p->task, gpu = p->task;
    fill(p, rank, salt);
    device_finish(p->stream);
    memcpy(p->in.host, p->host_in, p->bytes);
    device_put(&p->in, p->stream);
    host.name = p->names[0];
    host.in = p->host_in;
    host.out = gives_output(p) ? NULL : p->host_out;
    gpu.name = p->names[1];
    gpu.in = p->in.at;
    gpu.out = gives_output(p) ? NULL : p->out.at;
    gpu.device = 0;
    gpu.stream = p->stream;
    for (int i = 0; i < 2; i++) /* each rank begins with another one */
        harness_ok(hora_engine_enqueue(engine, (i + rank) % 2 ? &gpu : &host, 1, 0,
                                       &p->handles[(i + rank) % 2]));
}

static void expect_equal(const pair_t *p, const void *host, const void *gpu, size_t bytes) {
    const unsigned char *a = host, *b = gpu;
    size_t               i = 0;
    while (i < bytes && a[i] == b[i])
        i++;
    harness_check(i == bytes, "%s: kind %d, %s, %s: byte %zu of %zu is %d on the host, %d on the GPU",
                  p->names[1], p->task.kind, hora_dtype_name(p->task.dtype),
                  hora_op_name(p->task.op), i, bytes, a[i], b[i]);
}

static void finish_outputs(pair_t *p) {
    hora_output_t   host = HORA_OUTPUT_INIT, gpu = HORA_OUTPUT_INIT;
    device_buffer_t b;
    size_t          bytes = hora_dtype_size(p->task.dtype);
    harness_ok(hora_handle_output(p->handles[0], 0, &host));
    harness_ok(hora_handle_output(p->handles[1], 0, &gpu));
    harness_check(host.device == -1 && gpu.device == 0 && host.shape[0] == gpu.shape[0], "%s: %lld rows",
                  p->names[1], (long long)gpu.shape[0]);
    bytes *= (size_t)(gpu.shape[0] * gpu.shape[1]);
    device_make(&b, bytes);
    device_get_from(gpu.data, b.host, bytes, p->stream);
    device_finish(p->stream);
    expect_equal(p, host.data, b.host, bytes);
    device_destroy(&b);
    hora_output_free(&host);
    hora_output_free(&gpu);
}

static void finish(pair_t *p) {
    harness_ok(hora_handle_wait(p->handles[0]));
    harness_ok(hora_handle_wait(p->handles[1]));
    harness_ok(hora_handle_stream_wait(p->handles[0], 0, p->stream)); /* nothing to wait for */
    harness_ok(hora_handle_stream_wait(p->handles[1], 0, p->stream));
    if (gives_output(p)) {
        finish_outputs(p);
    } else {
        device_get(&p->out, p->stream);
        device_finish(p->stream);
        expect_equal(p, p->host_out, p->out.host, p->bytes);
    }
    hora_handle_release(p->handles[0]);
    hora_handle_release(p->handles[1]);
}

static void drop(pair_t *p) {
    if (p->out.at != p->in.at)
        device_destroy(&p->out);
    device_destroy(&p->in);
    if (p->host_out != p->host_in)
        free(p->host_out);
    free(p->host_in);
}

/* ---- Every kind, type and operation --------------------------------------------------------- */

#define PAIRS_MAX 512

static int list_pairs(pair_t *list, int size, void **streams) {
    int n = 0;
    for (int dtype = 0; dtype < HORA_DTYPE_COUNT; dtype++)
        for (int op = 0; op < HORA_OP_COUNT; op++)
            for (int scatters = 0; scatters < 2; scatters++) {
                double scale = (dtype + op) % 2 && dtype >= HORA_FLOAT16 ? 0.37 : 1.0;
                if (hora_op_supported((hora_dtype_t)dtype, (hora_op_t)op) &&
                    !(scatters && (op == HORA_ADASUM || op > HORA_PRODUCT))) {
                    make(&list[n], n, scatters ? HORA_TASK_REDUCESCATTER : HORA_TASK_ALLREDUCE,
                         (hora_dtype_t)dtype, (hora_op_t)op, scale, n * 7 % 61, streams[n % 3]);
                    n++;
                }
            }
    for (int dtype = 0; dtype < HORA_DTYPE_COUNT; dtype += 2)
        for (int kind = HORA_TASK_ALLGATHER; kind <= HORA_TASK_ALLTOALL; kind++) {
            make(&list[n], n, (hora_task_kind_t)kind, (hora_dtype_t)dtype, HORA_SUM, 1.0,
                 kind == HORA_TASK_ALLTOALL ? size * (n % 4) : n % 9, streams[n % 3]);
            list[n].task.root = size - 1; /* the last one to join */
            n++;
        }
    return n;
}

/* Rank r takes part in r + 1 rounds and then joins, or in as many as all. */
static void pairs_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static pair_t  list[PAIRS_MAX];
    hora_engine_t *engine = engine_of(comm);
    void          *streams[3] = {NULL};
    hora_task_t    join = HORA_TASK_INIT;
    hora_handle_t *handle;
    bool           joins = arg != NULL;
    int32_t        last = -1;
    int            n;
    device_begin();
    streams[1] = device_stream();
    streams[2] = device_stream();
    n = list_pairs(list, size, streams);
    for (int round = 0; round < (joins ? rank : 3); round++) {
        for (int i = 0; i < n; i++)
            start(&list[(i * 37 + rank * 11) % n], engine, rank, (unsigned)round);
        for (int i = 0; i < n; i++)
            finish(&list[i]);
    }
    join.kind = HORA_TASK_JOIN;
    join.out = &last;
    harness_ok(hora_engine_enqueue(engine, &join, 1, 0, &handle));
    harness_ok(hora_handle_wait(handle));
    hora_handle_release(handle);
    for (int i = 0; i < n; i++)
        drop(&list[i]);
    harness_ok(hora_engine_free(engine));
}

/* ---- Results that are freed ----------------------------------------------------------------- */

#define GATHERED 4096 /* bytes of each rank */

static cuda_standin_t *standin_of(void) {
    void *library = dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    harness_check(library != NULL, "%s", "the stand-in is not there");
    return dlsym(library, "cuda_standin");
}

static hora_handle_t *enqueue_gather(hora_engine_t *engine, int number, const device_buffer_t *b,
                                     void *stream) {
    hora_task_t    task = HORA_TASK_INIT;
    int64_t        shape = GATHERED;
    char           name[16];
    hora_handle_t *handle;
    snprintf(name, sizeof(name), "%d", number);
    task.name = name;
    task.kind = HORA_TASK_ALLGATHER;
    task.dtype = HORA_UINT8;
    task.ndim = 1;
    task.shape = &shape;
    task.in = b->at;
    task.device = 0;
    task.stream = stream;
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle));
    return handle;
}

static hora_handle_t *start_gather(hora_engine_t *engine, int number, const device_buffer_t *b,
                                   int value, void *stream) {
    device_finish(stream);
    memset(b->host, value, GATHERED);
    device_put(b, stream);
    return enqueue_gather(engine, number, b, stream);
}

/* Its result, which `reader` (and the task's stream) may read. */
static hora_output_t end_gather(hora_handle_t *handle, void *reader) {
    hora_output_t o = HORA_OUTPUT_INIT;
    harness_ok(hora_handle_wait(handle));
    harness_ok(hora_handle_stream_wait(handle, 0, reader));
    harness_ok(hora_handle_output(handle, 0, &o));
    hora_handle_release(handle);
    return o;
}

/* Memory that is freed while a stream has it still to read is not waited for. It is given again only
 * to what comes behind that: S0 is the tasks' stream, R another one that reads their results. */
static void freed_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t  *engine = engine_of(comm);
    void           *s0, *r, *first, *second;
    device_buffer_t in, copy;
    hora_handle_t  *handle = NULL;
    hora_output_t   o;
    (void)arg;
    device_begin();
    s0 = device_stream();
    r = device_stream();
    device_make(&in, GATHERED);
    device_make(&copy, (size_t)size * GATHERED);
    o = end_gather(start_gather(engine, 0, &in, 1, s0), r);
    first = o.data;
    device_finish(r);
    if (rank == 0) /* enqueued before, and executed after it is freed */
        handle = start_gather(engine, 1, &in, 2, s0);
    standin_of()->held = r;
    device_get_from(first, copy.host, copy.bytes, r);
    hora_output_free(&o);
    harness_ok(hora_barrier(comm, NULL));
    if (rank > 0)
        handle = start_gather(engine, 1, &in, 2, s0);
    o = end_gather(handle, s0);
    second = o.data;
    harness_check(second != first, "%s", "given again while R is to read it");
    hora_output_free(&o);
    o = end_gather(start_gather(engine, 2, &in, 3, s0), r); /* R is marked behind its read */
    harness_check(o.data == second, "%s", "not given again to a task that was enqueued later");
    hora_output_free(&o);
    handle = start_gather(engine, 3, &in, 4, s0);
    usleep(50000);
    standin_of()->held = NULL;
    o = end_gather(handle, s0);
    harness_check(o.data == first, "%s", "not given again behind R's mark");
    device_finish(r);
    for (size_t i = 0; i < copy.bytes; i++)
        harness_check(copy.host[i] == 1, "byte %zu is %d: overwritten before it was read", i,
                      copy.host[i]);
    harness_ok(hora_engine_free(engine));
    hora_output_free(&o); /* after its engine */
    device_destroy(&in);
    device_destroy(&copy);
}

/* ---- While another thread captures a graph -------------------------------------------------- */

static void captured_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t  *engine = engine_of(comm);
    cuda_standin_t *standin;
    device_buffer_t in;
    hora_output_t   o;
    (void)rank, (void)size, (void)arg;
    device_begin();
    device_make(&in, GATHERED);
    o = end_gather(start_gather(engine, 0, &in, 1, NULL), NULL);
    hora_output_free(&o);
    device_finish(NULL);
    standin = standin_of();
    standin->captures = true;
    for (int i = 1; i < 8; i++) {
        o = end_gather(enqueue_gather(engine, i, &in, NULL), NULL);
        hora_output_free(&o);
    }
    harness_ok(hora_barrier(comm, NULL));
    standin->captures = false;
    harness_check(standin->spoils == 0, "%d calls spoil a capture", standin->spoils);
    harness_ok(hora_engine_free(engine));
    device_finish(NULL);
    device_destroy(&in);
}

/* ---- What goes wrong ------------------------------------------------------------------------ */

static hora_task_t task_of(const char *name, hora_task_kind_t kind, const int64_t *shape, void *in,
                           void *out) {
    hora_task_t task = HORA_TASK_INIT;
    task.name = name;
    task.kind = kind;
    task.ndim = 1;
    task.shape = shape;
    task.in = in;
    task.out = out;
    task.device = 0;
    return task;
}

static hora_status_t run_task(hora_engine_t *engine, const hora_task_t *task) {
    hora_handle_t *handle;
    hora_status_t  st = hora_engine_enqueue(engine, task, 1, 0, &handle);
    if (st != HORA_OK)
        return st;
    st = hora_handle_wait(handle);
    if (st == HORA_OK)
        st = hora_handle_stream_wait(handle, 0, NULL);
    hora_handle_release(handle);
    return st;
}

static void mismatch_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t  *engine = engine_of(comm);
    float           x[4] = {1, 1, 1, 1};
    int64_t         shape = 4;
    device_buffer_t b;
    hora_task_t     task;
    hora_handle_t  *handle;
    (void)size, (void)arg;
    device_begin();
    device_make(&b, sizeof(x));
    task = task_of("x", HORA_TASK_ALLREDUCE, &shape, b.at, b.at);
    if (rank == 0) {
        task.device = -1;
        task.in = task.out = x;
    }
    expect_text(run_task(engine, &task), HORA_ERR_MISMATCH, "has the tensor on a GPU");
    harness_check(strstr(hora_last_error(), "has the tensor in host memory") != NULL, "%s",
                  hora_last_error());
    task = task_of("y", HORA_TASK_ALLREDUCE, &shape, b.at, b.at);
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle));
    if (!hora_handle_poll(handle))
        hora_handle_stream_wait(handle, 0, NULL); /* too early: an error, or the handle is done now */
    harness_ok(hora_handle_wait(handle));
    task.device = 1;
    expect_text(run_task(engine, &task), HORA_ERR_INVALID_ARGUMENT, "this engine's are on GPU 0");
    harness_ok(hora_engine_free(engine));
    harness_ok(hora_handle_stream_wait(handle, 0, NULL)); /* it outlives the engine */
    hora_handle_release(handle);
    device_finish(NULL);
    device_destroy(&b);
}

/* One rank's driver refuses in the middle: every rank gets an error that says so. */
static void refused_main(hora_comm_t *unused, int rank, int size, void *arg) {
    const char    **what = arg;
    hora_engine_t  *engine;
    device_buffer_t b;
    hora_comm_t    *comm;
    int64_t         shape = 1000;
    hora_status_t   st = HORA_OK;
    char            name[16];
    (void)unused;
    if (rank == size - 1)
        setenv("HORA_STANDIN_FAIL", what[0], 1);
    comm = harness_join();
    engine = engine_of(comm);
    device_begin();
    device_make(&b, 4000);
    for (int i = 0; i < 20 && st == HORA_OK; i++) {
        hora_task_t task = task_of(name, i % 2 ? HORA_TASK_ALLREDUCE : HORA_TASK_ALLGATHER, &shape, b.at,
                                   i % 2 ? b.at : NULL);
        snprintf(name, sizeof(name), "%d", i);
        st = run_task(engine, &task);
    }
    if (st == HORA_ERR_PEER_FAILED && rank < size - 1) /* that one did not come as far as to tell */
        expect_text(st, st, "has left");
    else
        harness_check((st == HORA_ERR_NO_MEMORY || st == HORA_ERR_SYSTEM) &&
                          strstr(hora_last_error(), what[1]) != NULL,
                      "%s: %s", hora_status_name(st), hora_last_error());
    hora_engine_free(engine);
    hora_comm_free(comm);
}

/* A rank dies while the others' work is queued on their GPUs. */
static void die_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t  *engine = engine_of(comm);
    device_buffer_t b;
    int64_t         shape = 100000;
    hora_task_t     task;
    hora_status_t   st = HORA_OK;
    (void)arg;
    device_begin();
    device_make(&b, 400000);
    task = task_of("x", HORA_TASK_ALLREDUCE, &shape, b.at, b.at);
    for (int i = 0; i < 1000 && st == HORA_OK; i++) {
        if (rank == size - 1 && i == 3)
            raise(SIGKILL);
        device_finish(NULL);
        device_put(&b, NULL);
        st = run_task(engine, &task);
    }
    harness_check(st == HORA_ERR_PEER_FAILED, "%s: %s", hora_status_name(st), hora_last_error());
    hora_engine_free(engine);
    device_finish(NULL);
    device_destroy(&b);
    hora_comm_free(comm);
    fflush(NULL);
    _exit(0);
}

/* A rank dies, and the others' GPUs do not come to their work: nobody may touch its buffers. */
static void stuck_main(hora_comm_t *comm, int rank, int size, void *arg) {
    hora_engine_t  *engine = engine_of(comm);
    void           *stream;
    device_buffer_t b;
    int64_t         shape = 1000;
    hora_task_t     task;
    hora_handle_t  *handle;
    (void)arg;
    device_begin();
    stream = device_stream();
    device_make(&b, 4000);
    task = task_of("x", HORA_TASK_ALLREDUCE, &shape, b.at, b.at);
    task.stream = stream;
    harness_ok(run_task(engine, &task));
    device_finish(stream);
    if (rank == size - 1)
        alarm(1);
    else
        standin_of()->held = stream;
    device_put(&b, stream);
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle));
    harness_check(hora_handle_wait(handle) == HORA_ERR_PEER_FAILED, "%s", hora_last_error());
    expect_text(hora_handle_stream_wait(handle, 0, stream), HORA_ERR_PEER_FAILED, "may still use");
    hora_handle_release(handle);
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle)); /* has never been queued there */
    harness_check(hora_handle_wait(handle) == HORA_ERR_PEER_FAILED, "%s", hora_last_error());
    harness_ok(hora_handle_stream_wait(handle, 0, stream));
    hora_handle_release(handle);
    standin_of()->held = NULL;
    hora_engine_free(engine);
    device_finish(stream);
    device_destroy(&b);
    hora_comm_free(comm);
    fflush(NULL);
    _exit(0);
}

/* ---- Tests --------------------------------------------------------------------------------- */

static harness_job_t job_of(harness_main_t rank_main, void *arg) {
    return (harness_job_t){.nranks = nranks, .main = rank_main, .arg = arg, .transport = transport};
}

static void bits_of_the_host(void **state) {
    harness_job_t job = job_of(pairs_main, NULL);
    (void)state;
    assert_int_equal(harness_run(&job), 0);
}

static void ranks_that_joined(void **state) {
    harness_job_t job = job_of(pairs_main, "joins");
    (void)state;
    assert_int_equal(harness_run(&job), 0);
}

static void results_that_are_freed(void **state) {
    harness_job_t job = job_of(freed_main, NULL);
    (void)state;
    assert_int_equal(harness_run(&job), 0);
}

static void beside_a_capture(void **state) {
    harness_job_t job = job_of(captured_main, NULL);
    (void)state;
    assert_int_equal(harness_run(&job), 0);
}

static void differences(void **state) {
    harness_job_t job = job_of(mismatch_main, NULL);
    (void)state;
    if (nranks > 1)
        assert_int_equal(harness_run(&job), 0);
}

static void a_driver_that_fails(void **state) {
    static const char *cases[][2] = {
        {"cuMemAlloc_v2:2:2", "allocating a result"},
        {"cuStreamCreateWithPriority:1:2", "the engine's stream"},
        {"cuStreamWaitEvent:9:719:lost", "on GPU 0"},
        {"cuMemcpyDtoHAsync_v2:3:700:lost", "on GPU 0"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]) && nranks > 1; i++) {
        harness_job_t job = job_of(refused_main, cases[i]);
        job.bare = job.keep_fds = true;
        assert_int_equal(harness_run(&job), 0);
    }
}

static void lose_the_last(harness_main_t rank_main, int signal) {
    harness_job_t job = job_of(rank_main, NULL);
    ranks_end_t   ends[16];
    if (nranks == 1)
        return;
    harness_run_ends(&job, ends);
    for (int r = 0; r < nranks - 1; r++)
        assert_int_equal(ends[r].code, 0);
    assert_int_equal(ends[nranks - 1].signal, signal);
}

static void a_rank_that_dies(void **state) {
    (void)state;
    lose_the_last(die_main, SIGKILL);
}

static void a_gpu_that_does_not_come(void **state) {
    (void)state;
    lose_the_last(stuck_main, SIGALRM);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_of_the_host), cmocka_unit_test(ranks_that_joined),
        cmocka_unit_test(results_that_are_freed), cmocka_unit_test(beside_a_capture),
        cmocka_unit_test(differences), cmocka_unit_test(a_driver_that_fails),
        cmocka_unit_test(a_rank_that_dies), cmocka_unit_test(a_gpu_that_does_not_come),
    };
    if (argc != 4 || !harness_arguments(3, argv, &transport, &nranks)) {
        fprintf(stderr, "usage: %s TRANSPORT RANKS STANDIN\n", argv[0]);
        return 2;
    }
    setenv("HORA_CUDA_LIBRARY", argv[3], 1);
    setenv("HORA_STANDIN_DELAY_US", "50", 1);
    setenv("HORA_STANDIN_GPUS", "2", 1);
    setenv("HORA_GPU_CHUNK", "4k", 1);
    setenv("HORA_GPU_PATH", "staged", 1);
    setenv("HORA_DETERMINISTIC", "1", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
