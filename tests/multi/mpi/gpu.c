/*
 * Collectives on GPUs by MPI, on the stand-in for CUDA: what MPI is given must be there before it reads,
 * and what comes after must find what it wrote; from a caller's stream, and from an engine's streams. Run
 * by run.py under mpirun, with ../../standin/mpi before the MPI; without it, says how hora refuses.
 */
#include "device.h"
#include "standin.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>

#define COUNT 5003

static cuda_standin_t *standin;
static int             rank, size;

/* ---- A stream that begins late ---------------------------------------------------------------- */

static void let_go(int signal) {
    (void)signal;
    standin->held = NULL;
}

/* What is queued on the stream from now on does not begin for a while. */
static void hold(void *stream) {
    struct itimerval soon = {.it_value = {.tv_usec = 20000}};
    signal(SIGALRM, let_go);
    standin->held = stream;
    setitimer(ITIMER_REAL, &soon, NULL);
}

/* ---- Direct calls ------------------------------------------------------------------------------ */

static float input(int r, size_t i) {
    return (float)((i * 7 + (size_t)r * 13) % 101);
}

static void put(const device_buffer_t *b, void *stream) {
    for (size_t i = 0; i < COUNT; i++)
        ((float *)(void *)b->host)[i] = input(rank, i);
    device_put(b, stream);
}

/* Sums of whole numbers, times what both scales come to. */
static void is_right(const device_buffer_t *b, float scale, const char *what) {
    for (size_t i = 0; i < COUNT; i++) {
        float want = 0, got = ((const float *)(const void *)b->host)[i];
        for (int r = 0; r < size; r++)
            want += input(r, i);
        harness_check(got == want * scale, "%s: element %zu is %g, not %g", what, i, got, want * scale);
    }
}

/* One rank's input is late. scales: to be applied before and after, which is exact. */
static void one(hora_comm_t *comm, void *stream, bool in_place, bool scales, int late) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    device_buffer_t     in, out;
    device_make(&in, COUNT * sizeof(float));
    device_make(&out, COUNT * sizeof(float));
    options.device = 0;
    options.stream = stream;
    options.prescale = scales ? 0.5 : 1.0;
    options.postscale = scales ? 8.0 : 1.0;
    if (rank == late)
        hold(stream);
    put(&in, stream);
    harness_ok(hora_allreduce(comm, in.at, in_place ? in.at : out.at, COUNT, HORA_FLOAT32, HORA_SUM,
                              &options));
    device_get(in_place ? &in : &out, stream);
    device_finish(stream);
    is_right(in_place ? &in : &out, scales ? 4 : 1, in_place ? "in place" : "out of place");
    device_destroy(&in);
    device_destroy(&out);
}

/* How hora refuses, if it does: the same on all ranks. */
static bool is_refused(hora_comm_t *comm) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    device_buffer_t     b;
    hora_status_t       st;
    device_make(&b, sizeof(float));
    options.device = 0;
    st = hora_allreduce(comm, b.at, b.at, 1, HORA_FLOAT32, HORA_SUM, &options);
    if (st == HORA_ERR_UNSUPPORTED && rank == 0)
        printf("REFUSED: %s\n", hora_last_error());
    else if (st != HORA_ERR_UNSUPPORTED)
        harness_ok(st);
    device_destroy(&b);
    return st != HORA_OK;
}

/* ---- The engine -------------------------------------------------------------------------------- */

#define TENSORS 6

static hora_handle_t *enqueue(hora_engine_t *engine, int number, const device_buffer_t *b, void *stream) {
    hora_task_t    task = HORA_TASK_INIT;
    int64_t        shape = COUNT;
    char           name[16];
    hora_handle_t *handle = NULL;
    snprintf(name, sizeof(name), "%d", number);
    task.name = name;
    task.ndim = 1;
    task.shape = &shape;
    task.in = task.out = b->at;
    task.op = HORA_SUM;
    task.device = 0;
    task.stream = stream;
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &handle));
    return handle;
}

/* From two streams, packed as it comes. */
static void by_engine(hora_comm_t *comm, void **streams) {
    hora_engine_t  *engine;
    device_buffer_t b[TENSORS];
    hora_handle_t  *handles[TENSORS];
    harness_ok(hora_engine_create(comm, NULL, &engine));
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < TENSORS; i++) {
            if (round == 0)
                device_make(&b[i], COUNT * sizeof(float));
            if (i == 2 && rank == size - 1)
                hold(streams[0]);
            put(&b[i], streams[i % 2]);
            handles[i] = enqueue(engine, i, &b[i], streams[i % 2]);
        }
        for (int i = 0; i < TENSORS; i++) {
            harness_ok(hora_handle_wait(handles[i]));
            harness_ok(hora_handle_stream_wait(handles[i], 0, streams[i % 2]));
            hora_handle_release(handles[i]);
            device_get(&b[i], streams[i % 2]);
            device_finish(streams[i % 2]);
            is_right(&b[i], 1, "by the engine");
        }
    }
    for (int i = 0; i < TENSORS; i++)
        device_destroy(&b[i]);
    harness_ok(hora_engine_free(engine));
}

int main(void) {
    hora_comm_t *comm = harness_join();
    void        *streams[2];
    rank = hora_comm_rank(comm);
    size = hora_comm_size(comm);
    device_begin();
    standin = dlsym(dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD), "cuda_standin");
    if (!is_refused(comm)) {
        streams[0] = device_stream();
        streams[1] = device_stream();
        for (int i = 0; i < 8; i++)
            one(comm, streams[i % 2], i & 1, i & 2, i % size);
        by_engine(comm, streams);
    }
    harness_ok(hora_comm_free(comm));
    harness_at_end();
    if (rank == 0)
        printf("PASS gpu, %d ranks\n", size);
    return 0;
}
