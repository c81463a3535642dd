/*
 * Phases (work.h). In ranks only.
 */
#include "work.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"

/* ---- Buffers ------------------------------------------------------------------------------- */

static void place(work_t *w, int i) {
    harness_check(coll_place(&w->colls[i], hora_comm_rank(w->comm), hora_comm_size(w->comm), 0,
                             false, w->steps * WORK_FLIGHT + (unsigned)i),
                  "no memory");
}

static void *get_memory(work_t *w, size_t bytes) {
    void *p = NULL;
    if (w->phase->arena)
        harness_ok(hora_alloc(w->comm, bytes, &p));
    else
        p = malloc(bytes);
    harness_check(p != NULL, "no memory");
    return p;
}

static void put_memory(work_t *w, void *p) {
    if (w->phase->arena)
        harness_ok(hora_free(w->comm, p));
    else
        free(p);
}

static int buffers(const work_t *w) {
    return w->phase->flight > 0 ? w->phase->flight : 1;
}

hora_status_t work_begin(work_t *w, const phase_t *phase, hora_comm_t *comm) {
    memset(w, 0, sizeof(*w));
    w->phase = phase;
    w->comm = comm;
    for (int i = 0; i < buffers(w); i++) {
        coll_t *c = &w->colls[i];
        coll_init(c, phase->kind, HORA_FLOAT32, HORA_SUM, phase->count);
        place(w, i);
        c->in_memory = get_memory(w, coll_bytes_in(c) + 1);
        c->out_memory = get_memory(w, coll_bytes_out(c));
    }
    return phase->engine ? hora_engine_create(comm, NULL, &w->engine) : HORA_OK;
}

void work_end(work_t *w) {
    harness_ok(hora_engine_free(w->engine));
    for (int i = 0; i < buffers(w); i++) {
        put_memory(w, w->colls[i].in_memory);
        put_memory(w, w->colls[i].out_memory);
        coll_destroy(&w->colls[i]);
    }
}

static void write_input(work_t *w, int i) {
    place(w, i);
    coll_write(&w->colls[i]);
}

static void check_output(work_t *w, int i) {
    size_t wrong = coll_wrong(&w->colls[i]);
    harness_check(wrong == 0, "%s, step %u: success, but %zu elements are wrong", w->phase->name,
                  w->steps, wrong);
}

/* ---- Steps --------------------------------------------------------------------------------- */

static hora_status_t step_coll(work_t *w) {
    write_input(w, 0);
    hora_status_t st = coll_call(&w->colls[0], w->comm, NULL);
    if (st == HORA_OK)
        check_output(w, 0);
    return st;
}

static hora_status_t step_barrier(work_t *w) {
    return hora_barrier(w->comm, NULL);
}

/* Does nothing but ask. */
static hora_status_t step_idle(work_t *w) {
    usleep(1000);
    return hora_comm_status(w->comm);
}

/* Computes for a while between two collectives. */
static hora_status_t step_compute(work_t *w) {
    usleep(30000);
    return step_coll(w);
}

static hora_status_t step_requests(work_t *w) {
    hora_request_t     *requests[WORK_FLIGHT] = {NULL};
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    hora_status_t       st = HORA_OK;
    for (int i = 0; i < buffers(w) && st == HORA_OK; i++) {
        write_input(w, i);
        options.request_p = &requests[i];
        st = coll_call(&w->colls[i], w->comm, &options);
    }
    for (int i = 0, done = 0; i < buffers(w) && requests[i] != NULL; i++) {
        while (i % 2 && !done) /* every other one is polled for */
            (void)hora_request_test(requests[i], &done);
        hora_status_t one = hora_request_wait(requests[i]);
        if (one == HORA_OK)
            check_output(w, i);
        else
            st = one;
    }
    return st;
}

/* A communicator of all ranks in reverse order, used once. */
static hora_status_t step_split(work_t *w) {
    hora_comm_t  *other = NULL;
    int           rank = hora_comm_rank(w->comm), size = hora_comm_size(w->comm);
    hora_status_t st = hora_comm_split(w->comm, 0, -rank, &other);
    if (st != HORA_OK)
        return st;
    harness_check(hora_comm_rank(other) == size - 1 - rank, "rank %d", hora_comm_rank(other));
    write_input(w, 0);
    st = coll_call(&w->colls[0], other, NULL);
    if (st == HORA_OK)
        check_output(w, 0);
    harness_ok(hora_comm_free(other));
    return st;
}

static hora_status_t enqueue(work_t *w, int i, unsigned flags, hora_handle_t **handle_p) {
    char        name[32];
    coll_t     *c = &w->colls[i];
    int64_t     shape[1] = {(int64_t)c->count};
    hora_task_t task = HORA_TASK_INIT;
    write_input(w, i);
    snprintf(name, sizeof(name), "gradient.%d", i);
    task.name = name;
    task.ndim = 1;
    task.shape = shape;
    task.in = c->in_memory;
    task.out = c->out_memory;
    return hora_engine_enqueue(w->engine, &task, 1, flags, handle_p);
}

/* One tensor, waited for at once. */
static hora_status_t step_engine_sync(work_t *w) {
    hora_handle_t *handle;
    hora_status_t  st = enqueue(w, 0, HORA_ENQUEUE_WILL_WAIT, &handle);
    if (st != HORA_OK)
        return st;
    st = hora_handle_wait(handle);
    if (st == HORA_OK)
        check_output(w, 0);
    hora_handle_release(handle);
    return st;
}

/* Several tensors, on each rank in an order of its own; the background thread does the work. */
static hora_status_t step_engine(work_t *w) {
    hora_handle_t *handles[WORK_FLIGHT] = {NULL};
    hora_status_t  st = HORA_OK;
    for (int n = 0; n < buffers(w) && st == HORA_OK; n++) {
        int i = (n + hora_comm_rank(w->comm)) % buffers(w);
        st = enqueue(w, i, 0, &handles[i]);
    }
    for (int i = 0; i < buffers(w); i++) {
        if (handles[i] == NULL)
            continue;
        hora_status_t one = hora_handle_wait(handles[i]);
        if (one == HORA_OK)
            check_output(w, i);
        else
            st = one;
        hora_handle_release(handles[i]);
    }
    return st;
}

/* ---- The phases ---------------------------------------------------------------------------- */

#define KB(n) ((size_t)(n) * 256) /* floats */
#define MB(n) KB((n) * 1024)

const phase_t work_phases[] = {
    {"idle", step_idle, COLL_ALLREDUCE, 1, .duration = 0.005},
    {"compute", step_compute, COLL_ALLREDUCE, KB(1), .duration = 0.06},
    {"barrier", step_barrier, COLL_ALLREDUCE, 1, .duration = 0.002},
    {"8 bytes", step_coll, COLL_ALLREDUCE, 2, .duration = 0.002},
    {"16 KB", step_coll, COLL_ALLREDUCE, KB(16), .duration = 0.002},
    {"64 KB", step_coll, COLL_ALLREDUCE, KB(64), .duration = 0.004},
    {"8 MB", step_coll, COLL_ALLREDUCE, MB(8), .duration = 0.05},
    {"8 MB of hora_alloc", step_coll, COLL_ALLREDUCE, MB(8), .arena = true, .duration = 0.05},
    {"ring", step_coll, COLL_ALLREDUCE, MB(1), .algo = "ring", .duration = 0.01},
    {"halving", step_coll, COLL_ALLREDUCE, KB(256), .algo = "halving", .duration = 0.005},
    {"doubling", step_coll, COLL_ALLREDUCE, KB(16), .algo = "doubling", .duration = 0.004},
    {"tree", step_coll, COLL_BROADCAST, MB(1), .algo = "tree", .duration = 0.01},
    {"tree, reduce", step_coll, COLL_REDUCE, KB(64), .algo = "tree", .duration = 0.005},
    {"reduce_scatter", step_coll, COLL_REDUCE_SCATTER, KB(64), .duration = 0.01},
    {"allgather", step_coll, COLL_ALLGATHER, KB(64), .duration = 0.01},
    {"allgatherv", step_coll, COLL_ALLGATHERV, KB(64), .duration = 0.01},
    {"broadcast", step_coll, COLL_BROADCAST, KB(64), .duration = 0.004},
    {"broadcast, small", step_coll, COLL_BROADCAST, 2, .duration = 0.002},
    {"alltoall", step_coll, COLL_ALLTOALL, KB(64), .duration = 0.01},
    {"gather", step_coll, COLL_GATHER, KB(64), .duration = 0.01},
    {"scatter", step_coll, COLL_SCATTER, KB(64), .duration = 0.01},
    {"sendrecv", step_coll, COLL_SENDRECV, MB(1), .duration = 0.005},
    {"requests", step_requests, COLL_ALLREDUCE, KB(64), .flight = 4, .duration = 0.01},
    {"requests, allgather", step_requests, COLL_ALLGATHER, KB(16), .flight = 4,
     .duration = 0.01},
    {"split", step_split, COLL_ALLREDUCE, KB(4), .duration = 0.005},
    {"engine, waiting", step_engine_sync, COLL_ALLREDUCE, KB(4), .engine = true, .duration = 0.004},
    {"engine", step_engine, COLL_ALLREDUCE, KB(256), .engine = true, .flight = 4,
     .duration = 0.02},
    {NULL},
};

const phase_t *work_find(const char *name) {
    const phase_t *phase = work_phases;
    while (phase->name != NULL && strcmp(phase->name, name) != 0)
        phase++;
    harness_check(phase->name != NULL, "no phase \"%s\"", name);
    return phase;
}
