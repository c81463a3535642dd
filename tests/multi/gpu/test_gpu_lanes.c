/*
 * An engine with several streams on a GPU (HORA_NUM_NCCL_STREAMS), on the stand-ins:
 * `test_gpu_lanes CUDA NCCL`. Two ranks by NCCL: one batch is packed while another one's collective
 * runs, results are right and in memory of their own, and one that fails is not the last to fail.
 */
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "device.h"
#include "standin.h"

#define COUNT  3001
#define GROUP  2 /* tensors that are packed */
#define ROUNDS 40

/* ---- In a rank ----------------------------------------------------------------------------- */

static cuda_standin_t *standin_of(void) {
    return dlsym(dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD), "cuda_standin");
}

/* Each rank has a GPU to itself. */
static hora_engine_t *begin(int rank, hora_comm_t **comm_p) {
    hora_engine_t *engine;
    char           gpu[16];
    snprintf(gpu, sizeof(gpu), "%d", rank);
    setenv("CUDA_VISIBLE_DEVICES", gpu, 1);
    *comm_p = harness_join();
    harness_ok(hora_engine_create(*comm_p, NULL, &engine));
    device_begin();
    return engine;
}

static hora_handle_t *enqueue(hora_engine_t *engine, hora_task_kind_t kind, int number,
                              device_buffer_t *b, void *stream) {
    hora_task_t    tasks[GROUP];
    int64_t        shape = (int64_t)(b[0].bytes / sizeof(int32_t));
    char           names[GROUP][32];
    hora_handle_t *handle = NULL;
    for (int i = 0; i < GROUP; i++) {
        const hora_task_t init = HORA_TASK_INIT;
        snprintf(names[i], sizeof(names[i]), "%d.%d", number, i);
        tasks[i] = init;
        tasks[i].name = names[i];
        tasks[i].kind = kind;
        tasks[i].dtype = HORA_INT32;
        tasks[i].op = HORA_SUM;
        tasks[i].ndim = 1;
        tasks[i].shape = &shape;
        tasks[i].in = b[i].at;
        tasks[i].out = kind == HORA_TASK_ALLREDUCE ? b[i].at : NULL;
        tasks[i].device = 0;
        tasks[i].stream = stream;
    }
    harness_ok(hora_engine_enqueue(engine, tasks, GROUP, 0, &handle));
    return handle;
}

static void make(device_buffer_t *b, size_t count) {
    for (int i = 0; i < GROUP; i++)
        device_make(&b[i], count * sizeof(int32_t));
}

/* What element k of tensor i is to a rank. */
static int32_t value(int number, int i, size_t k, int rank) {
    return (int32_t)(k % 97) + 1000 * number + 10 * i + rank;
}

static void put(device_buffer_t *b, int number, int rank, void *stream) {
    for (int i = 0; i < GROUP; i++) {
        for (size_t k = 0; k < b[i].bytes / sizeof(int32_t); k++)
            ((int32_t *)(void *)b[i].host)[k] = value(number, i, k, rank);
        device_put(&b[i], stream);
    }
}

static void sums_are_right(const device_buffer_t *b, int number, int size) {
    for (int i = 0; i < GROUP; i++)
        for (size_t k = 0; k < COUNT; k++) {
            int32_t want = 0, got = ((const int32_t *)(const void *)b[i].host)[k];
            for (int r = 0; r < size; r++)
                want += value(number, i, k, r);
            harness_check(got == want, "group %d, tensor %d, element %zu is %d, not %d", number, i, k, got,
                          want);
        }
}

static hora_handle_t *done(hora_handle_t *handle) {
    harness_ok(hora_handle_wait(handle));
    return handle;
}

/* ---- Overlap ------------------------------------------------------------------------------- */

static int kernels_that_ran(const cuda_standin_t *standin, int before, int least) {
    double end = harness_now() + 5;
    while (atomic_load(&standin->ran) - before < least && harness_now() < end)
        usleep(1000);
    usleep(30000); /* nothing more comes */
    return atomic_load(&standin->ran) - before;
}

/* Rank 1's first group is not there yet, so rank 0's collective waits for it on its GPU. There the second
 * group is packed meanwhile, if it has another stream. arg: kernels that then have run. */
static void overlap_main(hora_comm_t *unused, int rank, int size, void *arg) {
    int              expected = *(const int *)arg, ran;
    hora_comm_t     *comm;
    hora_engine_t   *engine = begin(rank, &comm);
    void            *s1 = device_stream(), *s2 = device_stream(), *s3 = device_stream();
    device_buffer_t  a[GROUP], b[GROUP];
    hora_handle_t   *first, *second;
    cuda_standin_t  *standin = standin_of();
    (void)unused;
    make(a, COUNT);
    make(b, COUNT);
    for (int i = 0; i < 2; i++) { /* all that is made at the first time */
        first = done(enqueue(engine, HORA_TASK_ALLREDUCE, i, a, s1));
        harness_ok(hora_handle_stream_wait(first, 0, s1));
        hora_handle_release(first);
    }
    device_finish(s1);
    harness_ok(hora_barrier(comm, NULL));
    ran = atomic_load(&standin->ran);
    if (rank == 1)
        standin->held = s1;
    put(a, 2, rank, s1);
    put(b, 3, rank, s2);
    first = done(enqueue(engine, HORA_TASK_ALLREDUCE, 2, a, s1));
    second = done(enqueue(engine, HORA_TASK_ALLREDUCE, 3, b, s2));
    if (rank == 0) {
        ran = kernels_that_ran(standin, ran, expected);
        harness_check(ran == expected, "%d kernels ran during the first collective, not %d", ran, expected);
    }
    harness_ok(hora_barrier(comm, NULL));
    standin->held = NULL;
    harness_ok(hora_handle_stream_wait(second, 0, s3)); /* it stands for the first one, too */
    for (int i = 0; i < GROUP; i++) {
        device_get(&a[i], s3);
        device_get(&b[i], s3);
    }
    device_finish(s3);
    sums_are_right(a, 2, size);
    sums_are_right(b, 3, size);
    hora_handle_release(first);
    hora_handle_release(second);
    harness_ok(hora_engine_free(engine));
    harness_ok(hora_comm_free(comm));
}

/* ---- Results, freed and dropped ------------------------------------------------------------- */

#define GATHERED 1500 /* elements of a rank */

/* What `reader` is to find in round `number`, queued; the result is freed at once. */
static void read_and_free(hora_handle_t *handle, device_buffer_t *copies, void *reader) {
    harness_ok(hora_handle_stream_wait(handle, 0, reader));
    for (int i = 0; i < GROUP; i++) {
        hora_output_t o = HORA_OUTPUT_INIT;
        harness_ok(hora_handle_output(handle, (size_t)i, &o));
        device_get_from(o.data, copies[i].host, copies[i].bytes, reader);
        hora_output_free(&o);
    }
}

static void gather_is_right(const device_buffer_t *copies, int number, int size) {
    for (int i = 0; i < GROUP; i++)
        for (size_t k = 0; k < (size_t)size * GATHERED; k++) {
            int32_t got = ((const int32_t *)(const void *)copies[i].host)[k];
            int32_t want = value(number, i, k % GATHERED, (int)(k / GATHERED));
            harness_check(got == want, "round %d, tensor %d, element %zu is %d, not %d", number, i, k, got,
                          want);
        }
}

/* Every third result is dropped while it may still be to be written; the others are read by two streams
 * that lag behind. arg: one of them does not begin before all is queued, which is so much that no list of
 * pieces is used twice. */
static void memory_main(hora_comm_t *unused, int rank, int size, void *arg) {
    static device_buffer_t in[ROUNDS][GROUP], copies[ROUNDS][GROUP];
    int            rounds = arg != NULL ? *(const int *)arg : ROUNDS;
    hora_comm_t   *comm;
    hora_engine_t *engine = begin(rank, &comm);
    void          *s = device_stream(), *readers[2] = {device_stream(), device_stream()};
    (void)unused;
    if (arg != NULL)
        standin_of()->held = readers[0];
    for (int n = 0; n < rounds; n++) {
        hora_handle_t *handle;
        make(in[n], GATHERED);
        make(copies[n], (size_t)size * GATHERED);
        put(in[n], n, rank, s);
        handle = done(enqueue(engine, HORA_TASK_ALLGATHER, n, in[n], s));
        if (n % 3 != 0)
            read_and_free(handle, copies[n], readers[n % 2]);
        hora_handle_release(handle);
    }
    usleep(arg != NULL ? 30000 : 0);
    standin_of()->held = NULL;
    device_finish(s);
    device_finish(readers[0]);
    device_finish(readers[1]);
    for (int n = 0; n < rounds; n++)
        if (n % 3 != 0)
            gather_is_right(copies[n], n, size);
    harness_ok(hora_engine_free(engine));
    harness_ok(hora_comm_free(comm));
}

/* ---- Failure ------------------------------------------------------------------------------- */

/* Rank 1's NCCL hangs: what is queued before that is known cannot say so, all that comes later does. */
static void failure_main(hora_comm_t *unused, int rank, int size, void *arg) {
    hora_comm_t    *comm;
    hora_engine_t  *engine;
    device_buffer_t b[4][GROUP];
    hora_handle_t  *handles[4];
    hora_status_t   st = HORA_OK;
    double          start;
    void           *s;
    (void)unused, (void)size, (void)arg;
    setenv("HORA_STANDIN_NCCL", "hangs", 1);
    setenv("HORA_STANDIN_NCCL_RANK", "1", 1);
    engine = begin(rank, &comm);
    s = device_stream();
    start = harness_now();
    for (int n = 0; n < 4; n++) {
        make(b[n], COUNT);
        put(b[n], n, rank, s);
        handles[n] = done(enqueue(engine, HORA_TASK_ALLREDUCE, n, b[n], s));
    }
    for (int n = 4; st == HORA_OK && harness_now() - start < 8; n++) {
        hora_handle_t *handle = handles[n % 4]; /* which has used the buffers before */
        harness_ok(hora_handle_stream_wait(handle, 0, s));
        hora_handle_release(handle);
        handles[n % 4] = enqueue(engine, HORA_TASK_ALLREDUCE, n, b[n % 4], s);
        usleep(50000);
        st = hora_handle_wait(handles[n % 4]);
    }
    harness_check(st == HORA_ERR_TIMEOUT && strstr(hora_last_error(), "by NCCL") != NULL, "%s: %s",
                  hora_status_name(st), hora_last_error());
    for (int n = 0; n < 4; n++) {
        hora_handle_stream_wait(handles[n], 0, s); /* they come to an end on the GPU */
        hora_handle_release(handles[n]);
    }
    device_finish(s);
    harness_ok(hora_engine_free(engine));
    harness_check(harness_now() - start < 8, "freed after %.1f s", harness_now() - start);
    hora_comm_free(comm);
}

/* ---- Tests --------------------------------------------------------------------------------- */

static void run(int nranks, harness_main_t rank_main, const char *lanes, const char *delay_us,
                const int *arg, double timeout) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = (void *)(uintptr_t)arg, .transport = "shm",
                         .bare = true, .keep_fds = true, .timeout = timeout, .deadline = 30};
    setenv("HORA_NUM_NCCL_STREAMS", lanes, 1);
    setenv("HORA_STANDIN_DELAY_US", delay_us, 1);
    assert_int_equal(harness_run(&job), 0);
}

static void packing_beside_a_collective(void **state) {
    static const int alone = 1, both = 2;
    (void)state;
    run(2, overlap_main, "1", "0", &alone, 10);
    run(2, overlap_main, "2", "0", &both, 10);
    run(2, overlap_main, "3", "500", &both, 10);
}

static void memory_of_results(void **state) {
    static const int rounds = 8;
    (void)state;
    run(2, memory_main, "2", "2000", NULL, 10);
    run(1, memory_main, "2", "0", &rounds, 10); /* no collective puts anything in order */
}

static void a_batch_that_hangs(void **state) {
    (void)state;
    run(2, failure_main, "2", "0", NULL, 0.8);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packing_beside_a_collective),
        cmocka_unit_test(memory_of_results),
        cmocka_unit_test(a_batch_that_hangs),
    };
    if (argc != 3) {
        fprintf(stderr, "usage: %s CUDA NCCL\n", argv[0]);
        return 2;
    }
    setenv("HORA_CUDA_LIBRARY", argv[1], 1);
    setenv("HORA_NCCL_LIBRARY", argv[2], 1);
    setenv("HORA_STANDIN_GPUS", "2", 1);
    setenv("HORA_GPU_PATH", "nccl", 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
