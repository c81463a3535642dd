/*
 * Faults that are no deaths: a rank leaves in order, stops for a while, makes another call than the
 * others, makes none at all, or aborts the job from another thread. `test_faults shm 4`.
 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "fault.h"

#define TIMEOUT 0.4 /* seconds; HORA_TIMEOUT where a rank never calls */

static const char *transport;
static int         nranks;

static int run(harness_main_t rank_main, void *arg, double timeout, const char *algo,
               const char *what) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = arg, .transport = transport,
                         .timeout = timeout, .deadline = 30, .algo = algo != NULL ? algo : "auto"};
    return fault_run_job(&job, -1, FAULT_KILL, what);
}

/* ---- Leaving --------------------------------------------------------------------------------- */

/* Is the departure of one rank an error for all the others? The engine has a test of its own. */
static bool leaving_ends(const phase_t *phase) {
    if (phase->engine || strcmp(phase->name, "idle") == 0)
        return false;
    return phase->kind != COLL_SENDRECV || nranks == 2;
}

static void a_rank_leaves(void **state) {
    int complaints = 0, turn = 0;
    (void)state;
    for (const phase_t *phase = work_phases; phase->name != NULL; phase++, turn++) {
        fault_case_t c = {.transport = transport, .nranks = nranks, .victim = turn % nranks,
                          .phase = phase, .how = FAULT_LEAVE, .call = 1 + turn % 3};
        if (leaving_ends(phase))
            complaints += fault_run(&c);
    }
    assert_int_equal(complaints, 0);
}

/* ---- Stopping -------------------------------------------------------------------------------- */

#define STOP_SECONDS 3.0

static void sleep_for(double seconds) {
    usleep((useconds_t)(seconds * 1e6));
}

/* A thread of rank 0: stops another rank for a while in the midst of its work. */
static void *stopper_main(void *arg) {
    pid_t pid = *(pid_t *)arg;
    sleep_for(0.1 + 0.1 * fault_random());
    kill(pid, SIGSTOP);
    sleep_for(STOP_SECONDS);
    kill(pid, SIGCONT);
    sleep_for(0.2);
    atomic_store(&fault_board->go, 1);
    return NULL;
}

/* Rank 0 decides for all. */
static bool goes_on(hora_comm_t *comm) {
    int32_t go = atomic_load(&fault_board->go);
    harness_ok(hora_broadcast(comm, &go, &go, 1, HORA_INT32, 0, NULL));
    return go == 0;
}

static void stop_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static const char *const names[] = {"8 bytes", "8 MB of hora_alloc", "8 MB", "alltoall",
                                        "broadcast", "requests", "engine, waiting"};
    enum { WORKS = sizeof(names) / sizeof(names[0]) };
    work_t    works[WORKS];
    pthread_t stopper;
    pid_t     pid;
    double    longest = 0;
    (void)arg;
    atomic_store(&fault_board->pids[rank], getpid());
    for (int i = 0; i < WORKS; i++)
        harness_ok(work_begin(&works[i], work_find(names[i]), comm));
    harness_ok(hora_barrier(comm, NULL));
    pid = atomic_load(&fault_board->pids[size - 1]);
    if (rank == 0)
        harness_check(pthread_create(&stopper, NULL, stopper_main, &pid) == 0, "no thread");
    while (goes_on(comm)) {
        double begin = harness_now();
        for (int i = 0; i < WORKS; i++, works[i - 1].steps++)
            harness_ok(works[i].phase->step(&works[i]));
        if (harness_now() - begin > longest)
            longest = harness_now() - begin;
    }
    harness_check(longest > STOP_SECONDS / 2, "the longest round took %.2f s: nobody was stopped",
                  longest);
    for (int i = 0; i < WORKS; i++)
        work_end(&works[i]);
    if (rank == 0)
        pthread_join(stopper, NULL);
}

static void a_rank_stops_for_a_while(void **state) {
    (void)state;
    if (nranks < 4)
        skip(); /* it takes its time, and more ranks see more */
    assert_int_equal(run(stop_main, NULL, 0, NULL, "a rank stops and goes on"), 0);
}

/* ---- Disagreeing ----------------------------------------------------------------------------- */

typedef struct call {
    coll_kind_t  kind; /* COLL_KIND_COUNT: barrier */
    size_t       count;
    hora_dtype_t dtype;
    hora_op_t    op;
    int          root;
    const char  *text; /* how messages name it */
} call_t;

typedef struct disagreement {
    const char *what;
    call_t      most, one; /* what most ranks call, and what one rank calls */
    bool        pads;      /* found only where ranks share memory: no message goes between both */
    int         culprit; /* who calls `one` */
} disagreement_t;

#define SUM_OF(n) {COLL_ALLREDUCE, n, HORA_FLOAT32, HORA_SUM, 0, "allreduce(sum, float32)"}
#define FROM(n, root) {COLL_BROADCAST, n, HORA_INT32, HORA_SUM, root, "broadcast(int32)"}

static const disagreement_t disagreements[] = {
    {"count, tiny", SUM_OF(5), SUM_OF(6)},
    {"count, small", SUM_OF(4000), SUM_OF(3999)},
    {"count, large", SUM_OF(1 << 20), SUM_OF((1 << 20) - 1)},
    {"count, tiny and large", SUM_OF(2), SUM_OF(100000)},
    {"dtype, tiny", SUM_OF(5),
     {COLL_ALLREDUCE, 5, HORA_INT32, HORA_SUM, 0, "allreduce(sum, int32)"}},
    {"dtype, large", SUM_OF(100000),
     {COLL_ALLREDUCE, 100000, HORA_INT32, HORA_SUM, 0, "allreduce(sum, int32)"}},
    {"operation, tiny", SUM_OF(5),
     {COLL_ALLREDUCE, 5, HORA_FLOAT32, HORA_MAX, 0, "allreduce(max, float32)"}},
    {"operation, large", SUM_OF(100000),
     {COLL_ALLREDUCE, 100000, HORA_FLOAT32, HORA_MAX, 0, "allreduce(max, float32)"}},
    {"root, small", FROM(2, 0), FROM(2, 1), true},
    {"root, large", FROM(100000, 0), FROM(100000, 1), true},
    {"kind", SUM_OF(1000),
     {COLL_ALLGATHER, 1000, HORA_FLOAT32, HORA_SUM, 0, "allgather(float32)"}},
    {"kind, rooted", FROM(1000, 0),
     {COLL_REDUCE, 1000, HORA_INT32, HORA_SUM, 0, "reduce(sum, int32)"}, true},
    {"kind, alltoall", SUM_OF(1000),
     {COLL_ALLTOALL, 1000, HORA_FLOAT32, HORA_SUM, 0, "alltoall(float32)"}},
    {"kind, barrier", SUM_OF(1000), {COLL_KIND_COUNT, 0, HORA_UINT8, HORA_SUM, 0, "barrier"}},
    {"kind, tiny and barrier", SUM_OF(1),
     {COLL_KIND_COUNT, 0, HORA_UINT8, HORA_SUM, 0, "barrier"}},
};

static hora_status_t make_call(hora_comm_t *comm, const call_t *call) {
    coll_t        c;
    hora_status_t st;
    if (call->kind == COLL_KIND_COUNT)
        return hora_barrier(comm, NULL);
    coll_init(&c, call->kind, call->dtype, call->op, call->count);
    coll_place(&c, hora_comm_rank(comm), hora_comm_size(comm), call->root, false, 1);
    c.in_memory = malloc(coll_bytes_in(&c) + 1);
    c.out_memory = malloc(coll_bytes_out(&c));
    coll_write(&c);
    st = coll_call(&c, comm, NULL);
    free(c.in_memory);
    free(c.out_memory);
    coll_destroy(&c);
    return st;
}

/* The error comes at the call, or, to a rank that needs nobody in that call, at the next. */
static void disagree_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const disagreement_t *d = arg;
    char                  who[32];
    (void)size;
    hora_status_t st = hora_barrier(comm, NULL); /* so that all have joined */
    double        begin = harness_now();
    if (st == HORA_OK) /* or the others were quicker */
        st = make_call(comm, rank == d->culprit ? &d->one : &d->most);
    if (st == HORA_OK)
        st = hora_barrier(comm, NULL);
    harness_check(st == HORA_ERR_MISMATCH, "%s: %s", hora_status_name(st), hora_last_error());
    harness_check(harness_now() - begin < fault_bound(), "it took %.2f s", harness_now() - begin);
    snprintf(who, sizeof(who), "rank %d on host ", d->culprit);
    const char *parts[] = {who, d->most.text, d->one.text};
    for (int i = 0; i < 3; i++)
        harness_check(strstr(hora_last_error(), parts[i]) != NULL, "\"%s\" has no \"%s\"",
                      hora_last_error(), parts[i]);
    fault_check_failed(comm, d->culprit, HORA_ERR_MISMATCH);
}

static void ranks_disagree(void **state) {
    int complaints = 0;
    (void)state;
    for (size_t i = 0; i < sizeof(disagreements) / sizeof(disagreements[0]); i++) {
        disagreement_t d = disagreements[i];
        char           what[64];
        if (d.pads && strcmp(transport, "shm") != 0)
            continue;
        d.culprit = (int)i % nranks;
        snprintf(what, sizeof(what), "%s %d: %s", transport, nranks, d.what);
        complaints += run(disagree_main, &d, 0, NULL, what);
    }
    assert_int_equal(complaints, 0);
}

/* ---- Never coming ---------------------------------------------------------------------------- */

typedef struct absence {
    const phase_t *phase;
    int            absent;
} absence_t;

static void absence_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const absence_t *a = arg;
    work_t           w;
    /* Over links a rank may wait for one that waits for the absent one, and can name only that. */
    int named = size == 2 || strcmp(transport, "shm") == 0 ? a->absent : -1;
    harness_ok(work_begin(&w, a->phase, comm));
    harness_ok(hora_barrier(comm, NULL));
    double begin = harness_now();
    if (rank == a->absent) { /* it learns it without a call */
        while (hora_comm_status(comm) == HORA_OK && harness_now() - begin < 10)
            usleep(1000);
    } else {
        hora_status_t st = a->phase->step(&w);
        harness_check(st == HORA_ERR_TIMEOUT, "%s: %s", hora_status_name(st), hora_last_error());
        harness_check(harness_now() - begin > TIMEOUT * 0.8, "after %.2f s", harness_now() - begin);
        fault_check_text(comm, named);
    }
    harness_check(harness_now() - begin < TIMEOUT + fault_bound(), "after %.2f s",
                  harness_now() - begin);
    fault_check_failed(comm, named, HORA_ERR_TIMEOUT);
    work_end(&w);
}

static void a_rank_never_calls(void **state) {
    static const char *const names[] = {"barrier", "64 KB", "ring", "requests"};
    int complaints = 0;
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        absence_t a = {.phase = work_find(names[i]), .absent = (int)i % nranks};
        char      what[64];
        snprintf(what, sizeof(what), "%s: rank %d never calls", names[i], a.absent);
        complaints += run(absence_main, &a, TIMEOUT, a.phase->algo, what);
    }
    assert_int_equal(complaints, 0);
}

/* ---- Aborting -------------------------------------------------------------------------------- */

static void *aborter_main(void *arg) {
    sleep_for(0.05);
    atomic_store(&fault_board->death, harness_now());
    harness_ok(hora_comm_abort(arg, "had enough"));
    return NULL;
}

/* Every rank but one waits; that one's other thread aborts while it waits too, or does not. */
static void abort_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const absence_t *a = arg;
    work_t           w;
    pthread_t        aborter;
    int              idle = (a->absent + 1) % size;
    harness_ok(work_begin(&w, a->phase, comm));
    hora_status_t st = hora_barrier(comm, NULL);
    if (rank == a->absent)
        harness_check(pthread_create(&aborter, NULL, aborter_main, comm) == 0, "no thread");
    while (st == HORA_OK) { /* a rank may need nobody in this operation */
        st = rank == idle ? hora_comm_status(comm) : a->phase->step(&w);
        usleep(1000);
    }
    double late = harness_now() - atomic_load(&fault_board->death);
    harness_check(st == HORA_ERR_ABORTED, "%s: %s", hora_status_name(st), hora_last_error());
    harness_check(late < fault_bound(), "after %.2f s", late);
    harness_check(strstr(hora_last_error(), "had enough") != NULL, "%s", hora_last_error());
    fault_check_failed(comm, a->absent, HORA_ERR_ABORTED);
    if (rank == a->absent)
        pthread_join(aborter, NULL);
    work_end(&w);
}

static void another_thread_aborts(void **state) {
    static const char *const names[] = {"barrier", "8 bytes", "64 KB", "ring", "sendrecv",
                                        "requests"};
    int complaints = 0;
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        absence_t a = {.phase = work_find(names[i]), .absent = (int)i % nranks};
        char      what[64];
        snprintf(what, sizeof(what), "%s: rank %d aborts", names[i], a.absent);
        complaints += run(abort_main, &a, 0, a.phase->algo, what);
    }
    assert_int_equal(complaints, 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rank_leaves),      cmocka_unit_test(a_rank_stops_for_a_while),
        cmocka_unit_test(ranks_disagree),     cmocka_unit_test(a_rank_never_calls),
        cmocka_unit_test(another_thread_aborts),
    };
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
