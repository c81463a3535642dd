/*
 * NCCL's offload when something goes wrong, and which communicators it makes, on the stand-ins:
 * `test_gpu_nccl CUDA NCCL OTHER-NCCL`, where the last one is of another version and cannot split. What is
 * computed is test_gpu_comm's.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "nccl_sum.h"

static char **libraries; /* from 1 */

/* What goes wrong, and what is to come of it. */
typedef struct fault_case {
    const char   *words; /* HORA_STANDIN_NCCL, on rank 1 */
    hora_status_t status;
    const char   *text;  /* in every rank's error */
    int           aborts; /* on every rank; -1: any number */
    const char   *cuda;   /* HORA_STANDIN_FAIL, on rank 1; NULL: its GPU is well */
} fault_case_t;

/* ---- In a rank ----------------------------------------------------------------------------- */

/* Each rank has a GPU to itself, unless it shares one. */
static hora_comm_t *join(int rank, bool shares) {
    char gpu[16];
    snprintf(gpu, sizeof(gpu), "%d", rank);
    setenv("HORA_STANDIN_GPUS", "4", 1);
    if (!shares)
        setenv("CUDA_VISIBLE_DEVICES", gpu, 1);
    return harness_join();
}

static void expect(hora_status_t st, const fault_case_t *c) {
    harness_check(st == c->status && strstr(hora_last_error(), c->text) != NULL, "%s: %s, not %s: %s",
                  hora_status_name(st), hora_last_error(), hora_status_name(c->status), c->text);
}

/* The first error that a call returns, each of which may have been queued before it was found. */
static hora_status_t until_it_fails(hora_comm_t *comm, device_buffer_t *b, void *stream) {
    double        start = harness_now();
    hora_status_t st = HORA_OK;
    const char   *words = getenv("HORA_STANDIN_NCCL");
    hora_comm_t  *part;
    if (words != NULL && strstr(words, "split") != NULL) {
        nccl_sum_is_right(comm, b, stream);
        return hora_comm_split(comm, 0, 0, &part);
    }
    while (st == HORA_OK && harness_now() - start < 10) {
        st = nccl_queue_sum(comm, b, stream);
        usleep(20000);
    }
    return st;
}

/* In time, on every rank, with one text; the stream is free again by then, and the next call fails too. */
static void fault_main(hora_comm_t *unused, int rank, int size, void *arg) {
    const fault_case_t *c = arg;
    device_buffer_t     b;
    hora_comm_t        *comm;
    void               *stream;
    double              start;
    (void)unused, (void)size;
    setenv("HORA_STANDIN_NCCL", c->words, 1);
    setenv("HORA_STANDIN_NCCL_RANK", "1", 1);
    if (c->cuda != NULL && rank == 1)
        setenv("HORA_STANDIN_FAIL", c->cuda, 1);
    comm = join(rank, false);
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    start = harness_now();
    expect(until_it_fails(comm, &b, stream), c);
    harness_check(harness_now() - start < 5, "after %.1f s", harness_now() - start);
    if (strstr(c->words, "abort-blocks") == NULL && (c->cuda == NULL || rank == 0))
        harness_check(device_is_idle(stream), "%s: the GPU may still use the buffer", c->words);
    expect(nccl_queue_sum(comm, &b, stream), c);
    harness_ok(hora_comm_free(comm));
    harness_check(harness_now() - start < 8, "freed after %.1f s", harness_now() - start);
    harness_check(c->aborts < 0 || atomic_load(&nccl_counts()->aborts) == c->aborts, "%d aborts",
                  atomic_load(&nccl_counts()->aborts));
    if (strstr(c->words, "abort-blocks") != NULL)
        _exit(0); /* what is left behind is as it should be */
}

/* NCCL cannot be set up, on one rank or on all: another path is found, or the error says why. */
static void no_nccl_main(hora_comm_t *unused, int rank, int size, void *arg) {
    static const fault_case_t forced = {"", HORA_ERR_UNSUPPORTED, "NCCL could not make a communicator", 0};
    const char     *words = arg;
    device_buffer_t b;
    hora_comm_t    *comm;
    void           *stream;
    (void)unused, (void)size;
    setenv("HORA_STANDIN_NCCL", words, 1);
    if (strcmp(words, "init-never") == 0)
        setenv("HORA_STANDIN_NCCL_RANK", "1", 1);
    comm = join(rank, false);
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    if (strcmp(getenv("HORA_GPU_PATH"), "nccl") == 0) {
        expect(nccl_queue_sum(comm, &b, stream), &forced);
        expect(nccl_queue_sum(comm, &b, stream), &forced);
    } else {
        nccl_sum_is_right(comm, &b, stream);
        nccl_sum_is_right(comm, &b, stream);
    }
    harness_check(atomic_load(&nccl_counts()->allreduces) == 0, "NCCL was used%s", "");
    device_destroy(&b);
    harness_ok(hora_comm_free(comm));
}

/* A rank dies while its part is queued everywhere: the others know who, and their streams are free. */
static void death_main(hora_comm_t *unused, int rank, int size, void *arg) {
    static const fault_case_t c = {"", HORA_ERR_PEER_FAILED, "rank 1 on host", 1};
    device_buffer_t b;
    hora_comm_t    *comm = join(rank, false);
    void           *stream;
    double          start;
    (void)unused, (void)size, (void)arg;
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    nccl_sum_is_right(comm, &b, stream);
    if (rank == 1) {
        usleep(50000); /* the others come out of their calls, too */
        kill(getpid(), SIGKILL);
    }
    start = harness_now();
    expect(until_it_fails(comm, &b, stream), &c);
    harness_check(harness_now() - start < 2, "known after %.1f s", harness_now() - start);
    device_finish(stream);
    harness_ok(hora_comm_free(comm));
    harness_check(atomic_load(&nccl_counts()->aborts) == 1, "%d aborts", atomic_load(&nccl_counts()->aborts));
}

/* Is NCCL what is chosen? arg: "apart", "shared", "versions". */
static void choice_main(hora_comm_t *unused, int rank, int size, void *arg) {
    const char     *what = arg;
    bool            apart = strcmp(what, "apart") == 0;
    device_buffer_t b;
    hora_comm_t    *comm;
    void           *stream;
    (void)unused, (void)size;
    if (strcmp(what, "versions") == 0 && rank == 1)
        setenv("HORA_NCCL_LIBRARY", libraries[3], 1);
    comm = join(rank, strcmp(what, "shared") == 0);
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    nccl_sum_is_right(comm, &b, stream);
    harness_check(atomic_load(&nccl_counts()->allreduces) == apart, "%d by NCCL",
                  atomic_load(&nccl_counts()->allreduces));
    device_destroy(&b);
    harness_ok(hora_comm_free(comm));
    harness_check(atomic_load(&nccl_counts()->destroys) == apart, "%d destroyed",
                  atomic_load(&nccl_counts()->destroys));
}

/* Communicators that were split off one that has NCCL's, by ncclCommSplit where there is one. Rank 2 of 3
 * is alone, and rank 3 in none. */
static void split_main(hora_comm_t *unused, int rank, int size, void *arg) {
    static const int colors[] = {7, 7, 1, -1};
    device_buffer_t  b;
    hora_comm_t     *comm, *part = NULL, *again = NULL;
    void            *stream;
    int              splits;
    (void)unused, (void)arg;
    comm = join(rank, false);
    device_begin();
    stream = device_stream();
    device_make(&b, NCCL_COUNT * 4);
    harness_ok(hora_comm_split(comm, rank == 3 ? -1 : 0, -rank, &again)); /* NCCL was not used yet */
    harness_ok(hora_comm_free(again));
    nccl_sum_is_right(comm, &b, stream);
    harness_check(atomic_load(&nccl_counts()->splits) == 0, "%s", "split for nothing");
    harness_ok(hora_comm_split(comm, colors[rank], -rank, &part));
    splits = atomic_load(&nccl_counts()->splits);
    if (part != NULL) {
        nccl_sum_is_right(part, &b, stream);
        nccl_sum_is_right(part, &b, stream);
    }
    nccl_sum_is_right(comm, &b, stream);
    harness_check(atomic_load(&nccl_counts()->inits) + splits == (rank < 2 || splits ? 2 : 1),
                  "%d made, %d split", atomic_load(&nccl_counts()->inits), splits);
    harness_check(size == 4 && splits == (strcmp(getenv("HORA_NCCL_LIBRARY"), libraries[2]) == 0),
                  "%d split", splits);
    harness_ok(hora_comm_split(comm, 0, 0, &again)); /* and not used */
    harness_ok(hora_comm_free(again));
    harness_ok(hora_comm_free(part));
    device_destroy(&b);
    harness_ok(hora_comm_free(comm));
    harness_check(atomic_load(&nccl_counts()->aborts) == 0, "%d aborts", atomic_load(&nccl_counts()->aborts));
}

/* ---- Tests --------------------------------------------------------------------------------- */

/* timeout: HORA_TIMEOUT, s */
static int run_ranks(int nranks, harness_main_t rank_main, const void *arg, bool keep_fds,
                     double timeout) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = (void *)(uintptr_t)arg,
                         .transport = "shm", .bare = true, .keep_fds = keep_fds,
                         .timeout = timeout, .deadline = 30};
    return harness_run(&job);
}

static void run(int nranks, harness_main_t rank_main, const void *arg) {
    assert_int_equal(run_ranks(nranks, rank_main, arg, true, 5), 0);
}

static void faults(void **state) {
    static const fault_case_t cases[] = {
        {"no-memory", HORA_ERR_NO_MEMORY, "allreduce 'grad' by NCCL: unhandled cuda error", 1, NULL},
        {"hangs", HORA_ERR_TIMEOUT, "allreduce 'grad' by NCCL: on the GPU since", 1, NULL},
        {"reports", HORA_ERR_PEER_FAILED, "remote process exited", 1, NULL},
        {"call-blocks", HORA_ERR_TIMEOUT, "NCCL", 1, NULL},
        {"split-never", HORA_ERR_TIMEOUT, "splitting by NCCL: waited", 2, NULL},
        {"hangs abort-blocks", HORA_ERR_TIMEOUT, "allreduce 'grad' by NCCL", -1, NULL},
        {"", HORA_ERR_SYSTEM, "allreduce 'grad'", 1, "cuEventQuery:2:700:lost"},
    };
    (void)state;
    setenv("HORA_GPU_PATH", "nccl", 1);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_int_equal(run_ranks(2, fault_main, &cases[i], true,
                                   cases[i].status == HORA_ERR_TIMEOUT ? 0.8 : 4), 0);
}

static void cannot_be_set_up(void **state) {
    static const char *const paths[] = {"auto", "nccl"};
    (void)state;
    setenv("HORA_START_TIMEOUT", "1", 1);
    for (int i = 0; i < 2; i++) {
        setenv("HORA_GPU_PATH", paths[i], 1);
        run(2, no_nccl_main, i == 0 ? "init-never" : "init-error");
    }
    unsetenv("HORA_START_TIMEOUT");
}

static void a_rank_dies(void **state) {
    harness_job_t job = {.nranks = 3, .main = death_main, .transport = "shm", .bare = true,
                         .keep_fds = true, .deadline = 30};
    ranks_end_t   ends[3];
    (void)state;
    setenv("HORA_GPU_PATH", "auto", 1);
    assert_int_equal(harness_run_ends(&job, ends), 1);
    assert_int_equal(ends[1].signal, SIGKILL);
}

static void choices(void **state) {
    (void)state;
    setenv("HORA_GPU_PATH", "auto", 1);
    run(2, choice_main, "apart");
    run(2, choice_main, "shared");
    run(2, choice_main, "versions");
}

static void splits(void **state) {
    (void)state;
    setenv("HORA_GPU_PATH", "auto", 1);
    assert_int_equal(run_ranks(4, split_main, NULL, true, 5), 0);
    setenv("HORA_NCCL_LIBRARY", libraries[3], 1);
    run(4, split_main, NULL);
    setenv("HORA_NCCL_LIBRARY", libraries[2], 1);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices), cmocka_unit_test(splits), cmocka_unit_test(cannot_be_set_up),
        cmocka_unit_test(a_rank_dies), cmocka_unit_test(faults),
    };
    if (argc != 4) {
        fprintf(stderr, "usage: %s CUDA NCCL OTHER-NCCL\n", argv[0]);
        return 2;
    }
    libraries = argv;
    setenv("HORA_CUDA_LIBRARY", argv[1], 1);
    setenv("HORA_NCCL_LIBRARY", argv[2], 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
