/*
 * What hora counts on in a driver, on the stand-in that computes (tests/standin/cuda): order within a
 * stream and none between streams, events within a process and between two, memory of another
 * process, kernels; and the errors that a GPU reports late. Argument: the stand-in, which is told to
 * delay its work.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "standin.h"

#include "util/gpu.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT 1000
#define BYTES (COUNT * sizeof(float))

static const char *path;

/* What one process needs; made in children, so that each has a driver of its own. */
typedef struct side {
    hora_gpu_t        *gpu;
    const hora_cuda_t *cuda;
    hora_cuda_stream_t stream, other;
    float             *host; /* pinned */
} side_t;

static void begin(side_t *s) {
    void *host;
    assert_int_equal(hora_gpu_get(path, 0, &s->gpu), HORA_OK);
    s->cuda = s->gpu->cuda;
    assert_int_equal(hora_gpu_enter(s->gpu), HORA_OK);
    assert_int_equal(s->cuda->stream_create(&s->stream, HORA_CUDA_STREAM_NON_BLOCKING, 0), 0);
    assert_int_equal(s->cuda->stream_create(&s->other, HORA_CUDA_STREAM_NON_BLOCKING, 0), 0);
    assert_int_equal(s->cuda->host_alloc(&host, BYTES, 0), 0);
    s->host = host;
}

static uint64_t new_memory(const side_t *s) {
    uint64_t at;
    assert_int_equal(s->cuda->alloc(&at, BYTES), 0);
    return at;
}

static int finish(const side_t *s, hora_cuda_stream_t stream) {
    int result;
    while ((result = s->cuda->stream_query(stream)) == HORA_CUDA_NOT_READY)
        usleep(20);
    return result;
}

static void (*body)(side_t *s); /* of a child */

static void run_body(void **state) {
    side_t s;
    begin(&s);
    body(&s);
}

/* A failed assertion ends the child, with a status that is not 0. */
static pid_t start_child(void (*what)(side_t *s)) {
    const struct CMUnitTest only[] = {cmocka_unit_test(run_body)};
    pid_t                   child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        body = what;
        _exit(cmocka_run_group_tests(only, NULL, NULL) != 0);
    }
    return child;
}

static int end_child(pid_t child) {
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static int run_in_child(void (*what)(side_t *s)) {
    return end_child(start_child(what));
}

/* dst = a + b on the stream. */
static void add(const side_t *s, uint64_t dst, uint64_t a, uint64_t b, hora_cuda_stream_t stream) {
    const hora_element_how_t how = {1.0, 1.0, 1};
    const uint64_t           src[2] = {a, b};
    hora_cuda_reduce_t       job;
    unsigned                 blocks;
    const char *kernel = hora_cuda_reduce_plan(HORA_FLOAT32, HORA_SUM, &how, &dst, 1, src, 2, COUNT,
                                               s->gpu->processors, &job, &blocks);
    assert_int_equal(hora_gpu_launch(s->gpu, kernel, blocks, &job, stream), HORA_OK);
}

/* Twice: copy in, wait by event, add on the other stream, wait, copy out. */
static void events(side_t *s) {
    uint64_t          a = new_memory(s), b = new_memory(s);
    hora_cuda_event_t there, back;
    assert_int_equal(s->cuda->event_create(&there, HORA_CUDA_EVENT_NO_TIMING), 0);
    assert_int_equal(s->cuda->event_create(&back, HORA_CUDA_EVENT_NO_TIMING), 0);
    assert_int_equal(s->cuda->stream_wait(s->other, there, 0), 0); /* never recorded: done */
    assert_int_equal(s->cuda->event_query(there), 0);
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < COUNT; i++)
            s->host[i] = (float)(round + i);
        assert_int_equal(s->cuda->copy_in(a, s->host, BYTES, s->stream), 0);
        assert_int_equal(s->cuda->event_record(there, s->stream), 0);
        assert_int_equal(s->cuda->stream_wait(s->other, there, 0), 0);
        add(s, b, a, a, s->other);
        assert_int_equal(s->cuda->event_record(back, s->other), 0);
        assert_int_equal(s->cuda->stream_wait(s->stream, back, 0), 0);
        assert_int_equal(s->cuda->copy_out(s->host, b, BYTES, s->stream), 0);
        assert_int_equal(finish(s, s->stream), 0);
        assert_int_equal(s->cuda->event_query(back), 0);
        for (int i = 0; i < COUNT; i++)
            assert_true(s->host[i] == 2 * (float)(round + i));
    }
    assert_int_equal(s->cuda->event_destroy(there), 0);
    assert_int_equal(s->cuda->event_destroy(back), 0);
    assert_int_equal(s->cuda->free(a), 0);
    assert_int_equal(s->cuda->free(b), 0);
}

static void test_events(void **state) {
    assert_int_equal(run_in_child(events), 0);
}

/* Streams do not wait for each other of themselves: the stand-in's delays show it. */
static void race(side_t *s) {
    uint64_t a = new_memory(s), b = new_memory(s);
    int      wrong = 0;
    for (int round = 0; round < 40; round++) {
        s->host[0] = (float)round;
        assert_int_equal(s->cuda->copy_in(a, s->host, BYTES, s->stream), 0);
        add(s, b, a, a, s->other);
        assert_int_equal(finish(s, s->other), 0);
        assert_int_equal(finish(s, s->stream), 0);
        assert_int_equal(s->cuda->copy_out(s->host, b, BYTES, s->stream), 0);
        assert_int_equal(finish(s, s->stream), 0);
        wrong += s->host[0] != 2 * (float)round;
    }
    assert_true(wrong > 0);
}

static void test_race(void **state) {
    assert_int_equal(run_in_child(race), 0);
}

static void touch(side_t *s) {
    signal(SIGSEGV, SIG_DFL); /* cmocka catches it */
    *(volatile char *)(uintptr_t)new_memory(s) = 1;
}

static void test_host_cannot_touch(void **state) {
    int status = run_in_child(touch);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* A kernel's wrong address: an error of the stream, and of every call after it. */
static void bad_address(side_t *s) {
    uint64_t a = new_memory(s);
    add(s, a, a + 8, a, s->stream); /* beyond the end */
    assert_int_equal(finish(s, s->stream), STANDIN_ADDRESS);
    assert_int_equal(s->cuda->copy(a, a, 4, s->stream), STANDIN_ADDRESS);
}

static void test_bad_address(void **state) {
    assert_int_equal(run_in_child(bad_address), 0);
}

static void attributes(side_t *s) {
    uint64_t a = new_memory(s), start = 0;
    unsigned type = 0, capable = 0;
    size_t   bytes = 0;
    int      x, ordinal = 9;
    assert_int_equal(s->cuda->pointer_attribute(&type, HORA_CUDA_POINTER_MEMORY_TYPE, a + 5), 0);
    assert_int_equal(s->cuda->pointer_attribute(&ordinal, HORA_CUDA_POINTER_ORDINAL, a), 0);
    assert_int_equal(s->cuda->pointer_attribute(&start, HORA_CUDA_POINTER_START, a + 5), 0);
    assert_int_equal(s->cuda->pointer_attribute(&bytes, HORA_CUDA_POINTER_BYTES, a + 5), 0);
    assert_int_equal(s->cuda->pointer_attribute(&capable, HORA_CUDA_POINTER_IPC_CAPABLE, a), 0);
    assert_true(type == 2 && ordinal == 0 && start == a && bytes == BYTES && capable == 1);
    assert_int_equal(s->cuda->pointer_attribute(&type, HORA_CUDA_POINTER_MEMORY_TYPE,
                                                (uint64_t)(uintptr_t)s->host), 0);
    assert_int_equal(type, 1);
    assert_int_not_equal(s->cuda->pointer_attribute(&type, HORA_CUDA_POINTER_MEMORY_TYPE,
                                                    (uint64_t)(uintptr_t)&x), 0);
    hora_gpu_leave(s->gpu);
    assert_int_equal(s->cuda->alloc(&a, 4), STANDIN_NO_CONTEXT);
}

static void test_attributes(void **state) {
    assert_int_equal(run_in_child(attributes), 0);
}

/* ---- Two processes ----------------------------------------------------------------------------- */

typedef struct offer {
    hora_cuda_bytes64_t memory, event, answer;
} offer_t;

static int to_peer[2], to_owner[2];

/* Adds to the owner's memory once its event is done, and says so by an event of its own. */
static void peer(side_t *s) {
    offer_t           offer;
    uint64_t          theirs;
    hora_cuda_event_t filled, added;
    char              go = 1;
    assert_int_equal(read(to_peer[0], &offer, sizeof(offer)), sizeof(offer));
    assert_int_equal(s->cuda->ipc_memory_open(&theirs, offer.memory, HORA_CUDA_IPC_PEER_ACCESS), 0);
    assert_int_equal(s->cuda->ipc_event_open(&filled, offer.event), 0);
    assert_int_equal(s->cuda->event_create(&added, HORA_CUDA_EVENT_INTERPROCESS | HORA_CUDA_EVENT_NO_TIMING), 0);
    assert_int_equal(s->cuda->ipc_event(&offer.answer, added), 0);
    assert_int_equal(write(to_owner[1], &offer, sizeof(offer)), sizeof(offer));
    for (int round = 0; round < 20; round++) {
        assert_int_equal(read(to_peer[0], &go, 1), 1); /* the owner has recorded */
        assert_int_equal(s->cuda->stream_wait(s->stream, filled, 0), 0);
        add(s, theirs, theirs, theirs, s->stream);
        assert_int_equal(s->cuda->event_record(added, s->stream), 0);
        assert_int_equal(write(to_owner[1], &go, 1), 1);
    }
    assert_int_equal(finish(s, s->stream), 0);
    assert_int_equal(s->cuda->ipc_memory_close(theirs), 0);
    assert_int_equal(s->cuda->event_destroy(filled), 0);
    assert_int_equal(read(to_peer[0], &go, 1), 1); /* the owner has seen the last event */
}

static void owner(side_t *s) {
    offer_t           offer;
    uint64_t          mine = new_memory(s), own;
    hora_cuda_event_t filled, added;
    char              go = 1;
    assert_int_equal(s->cuda->event_create(&filled, HORA_CUDA_EVENT_INTERPROCESS), STANDIN_INVALID);
    assert_int_equal(s->cuda->event_create(&filled, HORA_CUDA_EVENT_INTERPROCESS | HORA_CUDA_EVENT_NO_TIMING), 0);
    assert_int_equal(s->cuda->ipc_memory(&offer.memory, mine), 0);
    assert_int_equal(s->cuda->ipc_event(&offer.event, filled), 0);
    assert_int_not_equal(s->cuda->ipc_memory_open(&own, offer.memory, HORA_CUDA_IPC_PEER_ACCESS), 0);
    assert_int_equal(write(to_peer[1], &offer, sizeof(offer)), sizeof(offer));
    assert_int_equal(read(to_owner[0], &offer, sizeof(offer)), sizeof(offer));
    assert_int_equal(s->cuda->ipc_event_open(&added, offer.answer), 0);
    for (int round = 0; round < 20; round++) {
        s->host[COUNT - 1] = (float)round;
        assert_int_equal(s->cuda->copy_in(mine, s->host, BYTES, s->stream), 0);
        assert_int_equal(s->cuda->event_record(filled, s->stream), 0);
        assert_int_equal(write(to_peer[1], &go, 1), 1);
        assert_int_equal(read(to_owner[0], &go, 1), 1); /* the peer has recorded */
        assert_int_equal(s->cuda->stream_wait(s->other, added, 0), 0);
        assert_int_equal(s->cuda->copy_out(s->host, mine, BYTES, s->other), 0);
        assert_int_equal(finish(s, s->other), 0);
        assert_true(s->host[COUNT - 1] == 2 * (float)round);
    }
    assert_int_equal(write(to_peer[1], &go, 1), 1);
}

static void test_processes(void **state) {
    pid_t child;
    assert_int_equal(pipe(to_peer), 0);
    assert_int_equal(pipe(to_owner), 0);
    child = start_child(peer);
    assert_int_equal(run_in_child(owner), 0);
    assert_int_equal(end_child(child), 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_events),      cmocka_unit_test(test_race),
        cmocka_unit_test(test_host_cannot_touch), cmocka_unit_test(test_bad_address),
        cmocka_unit_test(test_attributes),  cmocka_unit_test(test_processes),
    };
    if (argc != 2)
        return 2;
    path = argv[1];
    setenv("HORA_STANDIN_DELAY_US", "300", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
