/*
 * Random data of every type through every algorithm: `test_bits shm 4`. Every rank must have the same
 * bits; and where the algorithm sums in rank order, these must be the bits of a serial reduction,
 * whatever transport, chunk size, buffers and fusion. The serial results are computed once, in the
 * test's own process, before the ranks are forked.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../unit/kernels/reduce_reference.h"
#include "harness.h"
#include "schedule/algos.h"
#include "schedule/costs.h"
#include "util/settings.h"

#define SEED      20261122u
#define COUNT     9001 /* 9 to 72 KB: on both sides of the one-shot limit */
#define RANKS_MAX 8
#define CASES_MAX 256
#define CALLS_MAX (5 * CASES_MAX)

/* A reduction over all ranks' inputs of a type. */
typedef struct bits_case {
    hora_dtype_t dtype;
    hora_op_t    op;
    double       prescale, postscale;
    void        *want; /* [COUNT] */
} bits_case_t;

typedef struct call {
    hora_coll_kind_t kind;
    size_t           count; /* allreduce, reduce: of the vector; reduce_scatter: of a block */
    int              root;
    bool             in_place, arena;
    size_t           shift; /* elements that the buffers are moved by */
} call_t;

/* Buffers of a rank, COUNT + 1 elements of any type, in ordinary memory and in the arena. */
typedef struct buffers {
    unsigned char *in[2], *out[2];
} buffers_t;

static const char    *transport;
static int            nranks;
static unsigned char *inputs[HORA_DTYPE_COUNT][RANKS_MAX];
static bits_case_t    cases[CASES_MAX];
static int            ncases;

/* ---- Before the ranks -------------------------------------------------------------------------- */

static void *must_alloc(size_t bytes) {
    void *memory = malloc(bytes);
    assert_non_null(memory);
    return memory;
}

static void add_case(hora_dtype_t dtype, hora_op_t op, double prescale, double postscale) {
    bool          average = op == HORA_AVERAGE;
    hora_reduce_t how = {.dtype = dtype, .op = average ? HORA_SUM : op, .prescale = prescale,
                         .divisor = average ? (uint32_t)nranks : 1, .postscale = postscale};
    bits_case_t  *c = &cases[ncases++];
    assert_true(ncases <= CASES_MAX);
    *c = (bits_case_t){dtype, op, prescale, postscale, must_alloc(COUNT * hora_dtype_size(dtype))};
    reference_reduce(&how, (const void *const *)inputs[dtype], nranks, c->want, COUNT);
}

static int make_cases(void **state) {
    uint64_t seed = SEED;
    (void)state;
    print_message("seed %u\n", SEED);
    for (int d = 0; d < HORA_DTYPE_COUNT; d++) {
        for (int r = 0; r < nranks; r++) {
            inputs[d][r] = must_alloc(COUNT * hora_dtype_size((hora_dtype_t)d));
            reference_fill((hora_dtype_t)d, &seed, inputs[d][r], COUNT);
        }
        for (int op = 0; op < HORA_OP_COUNT; op++)
            if (op != HORA_ADASUM && hora_op_supported((hora_dtype_t)d, (hora_op_t)op))
                add_case((hora_dtype_t)d, (hora_op_t)op, 1.0, 1.0);
        add_case((hora_dtype_t)d, HORA_SUM, 0.6, -1.7);
    }
    return 0;
}

/* ---- In a rank: collectives ---------------------------------------------------------------------- */

static void make_buffers(hora_comm_t *comm, buffers_t *b) {
    size_t bytes = (COUNT + 1) * sizeof(double);
    b->in[0] = malloc(bytes);
    b->out[0] = malloc(bytes);
    harness_check(b->in[0] != NULL && b->out[0] != NULL, "memory");
    harness_ok(hora_alloc(comm, bytes, (void **)&b->in[1]));
    harness_ok(hora_alloc(comm, bytes, (void **)&b->out[1]));
}

static void free_buffers(hora_comm_t *comm, buffers_t *b) {
    free(b->in[0]);
    free(b->out[0]);
    harness_ok(hora_free(comm, b->in[1]));
    harness_ok(hora_free(comm, b->out[1]));
}

/* Makes the call; returns this rank's result, *count_p elements that begin at *first_p of the case. */
static const void *make_call(hora_comm_t *comm, const bits_case_t *c, const call_t *call,
                             const buffers_t *b, size_t *first_p, size_t *count_p) {
    int                 rank = hora_comm_rank(comm), size = hora_comm_size(comm);
    bool                scatter = call->kind == HORA_COLL_REDUCE_SCATTER;
    size_t              elem = hora_dtype_size(c->dtype), shift = call->shift * elem;
    size_t              whole = scatter ? call->count * (size_t)size : call->count;
    unsigned char      *in = b->in[call->arena] + shift, *out = b->out[call->arena] + shift;
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    hora_status_t       st;
    options.prescale = c->prescale;
    options.postscale = c->postscale;
    *first_p = scatter ? (size_t)rank * call->count : 0;
    *count_p = call->kind == HORA_COLL_REDUCE && rank != call->root ? 0 : call->count;
    if (call->in_place)
        out = in + *first_p * elem;
    memset(out, 0x5a, call->count * elem);
    memcpy(in, inputs[c->dtype][rank], whole * elem);
    if (call->kind == HORA_COLL_ALLREDUCE)
        st = hora_allreduce(comm, in, out, call->count, c->dtype, c->op, &options);
    else if (scatter)
        st = hora_reduce_scatter(comm, in, out, call->count, c->dtype, c->op, &options);
    else
        st = hora_reduce(comm, in, out, call->count, c->dtype, c->op, call->root, &options);
    harness_ok(st);
    return out;
}

/* Does any order of summing give these bits? */
static bool is_exact(const bits_case_t *c) {
    bool order = c->op == HORA_SUM || c->op == HORA_AVERAGE || c->op == HORA_PRODUCT;
    return !order || !hora_dtype_is_float(c->dtype);
}

static void expect_bits(const bits_case_t *c, const call_t *call, const char *what, const void *got,
                        size_t first, size_t count) {
    size_t elem = hora_dtype_size(c->dtype);
    for (size_t i = 0; i < count; i++)
        harness_check(memcmp((const char *)got + i * elem, (const char *)c->want + (first + i) * elem,
                             elem) == 0,
                      "%s: %s of %s, %s, scales %g and %g, count %zu%s%s, shift %zu, root %d: element "
                      "%zu is not what a serial reduction gives (seed %u)", what,
                      hora_coll_name(call->kind), hora_dtype_name(c->dtype), hora_op_name(c->op),
                      c->prescale, c->postscale, call->count, call->in_place ? ", in place" : "",
                      call->arena ? ", arena" : "", call->shift, call->root, first + i, SEED);
}

/* May the algorithm be forced on this call? Else another one would stand in for it. */
static bool takes(const hora_algo_t *algo, const bits_case_t *c, const call_t *call) {
    hora_coll_t coll = {.kind = call->kind, .dtype = c->dtype, .op = c->op, .size = nranks,
                        .count = call->count};
    if (algo == NULL)
        return true;
    return (algo->colls & 1u << call->kind) && algo->applies(&coll) &&
           (!algo->small_only || call->count * hora_dtype_size(c->dtype) <= 32768);
}

static uint64_t hash_of(const unsigned char *p, size_t bytes) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < bytes; i++)
        hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

/* What a job tries. */
typedef struct trial {
    const hora_algo_t *algo;    /* NULL: hora chooses */
    bool               ordered; /* the bits of a serial reduction are promised */
    char               what[96];
} trial_t;

static void compare_ranks(hora_comm_t *comm, const trial_t *trial, uint64_t *hashes, size_t calls) {
    uint64_t *all = malloc((size_t)nranks * CALLS_MAX * sizeof(*all));
    harness_check(all != NULL, "memory");
    harness_ok(hora_allgather(comm, hashes, all, calls, HORA_UINT64, NULL));
    for (int r = 0; r < nranks; r++)
        for (size_t i = 0; i < calls; i++)
            harness_check(all[(size_t)r * calls + i] == all[i],
                          "%s: allreduce %zu: ranks 0 and %d have other bits (seed %u)", trial->what,
                          i, r, SEED);
    free(all);
}

static void trial_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const trial_t *trial = arg;
    const call_t   calls[] = {{.kind = HORA_COLL_ALLREDUCE, .count = 3},
                              {.kind = HORA_COLL_ALLREDUCE, .count = 501},
                              {.kind = HORA_COLL_ALLREDUCE, .count = COUNT},
                              {.kind = HORA_COLL_REDUCE, .count = COUNT},
                              {.kind = HORA_COLL_REDUCE_SCATTER, .count = (size_t)(COUNT / size)}};
    uint64_t       hashes[CALLS_MAX];
    size_t         nhashes = 0;
    buffers_t      b;
    make_buffers(comm, &b);
    for (int i = 0; i < ncases; i++)
        for (size_t k = 0; k < sizeof(calls) / sizeof(calls[0]); k++) {
            call_t      call = calls[k];
            size_t      first, count, turn = (size_t)i * 5 + k;
            const void *got;
            call.in_place = turn % 2;
            call.arena = turn % 3 == 0 || (turn % 5 == 1 && rank % 2); /* everybody's, or some */
            call.shift = turn % 4 == 0;
            call.root = (int)(turn % (size_t)size);
            if (!takes(trial->algo, &cases[i], &call))
                continue;
            got = make_call(comm, &cases[i], &call, &b, &first, &count);
            if (trial->ordered || is_exact(&cases[i]))
                expect_bits(&cases[i], &call, trial->what, got, first, count);
            if (call.kind == HORA_COLL_ALLREDUCE)
                hashes[nhashes++] = hash_of(got, count * hora_dtype_size(cases[i].dtype));
        }
    compare_ranks(comm, trial, hashes, nhashes);
    free_buffers(comm, &b);
}

/* ---- In a rank: the engine ----------------------------------------------------------------------- */

typedef struct tensor {
    char           name[32];
    int64_t        shape;
    size_t         first; /* its elements begin there in the case */
    void          *out;
    hora_handle_t *handle;
} tensor_t;

static void enqueue(hora_engine_t *engine, const bits_case_t *c, tensor_t *t, int rank) {
    hora_task_t task = HORA_TASK_INIT;
    task.name = t->name;
    task.dtype = c->dtype;
    task.op = c->op;
    task.ndim = 1;
    task.shape = &t->shape;
    task.in = inputs[c->dtype][rank] + t->first * hora_dtype_size(c->dtype);
    task.out = t->out;
    task.prescale = c->prescale;
    task.postscale = c->postscale;
    harness_ok(hora_engine_enqueue(engine, &task, 1, 0, &t->handle));
}

/* All cases as tensors of many lengths, in another order on each rank. */
static void run_engine(hora_engine_t *engine, tensor_t *tensors, int rank) {
    for (int k = 0; k < ncases; k++) {
        int i = rank % 2 ? ncases - 1 - k : k;
        enqueue(engine, &cases[i], &tensors[i], rank);
    }
    for (int i = 0; i < ncases; i++) {
        call_t call = {.kind = HORA_COLL_ALLREDUCE, .count = (size_t)tensors[i].shape};
        harness_ok(hora_handle_wait(tensors[i].handle));
        hora_handle_release(tensors[i].handle);
        expect_bits(&cases[i], &call, "engine", tensors[i].out, tensors[i].first, call.count);
    }
}

static void engine_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static tensor_t      tensors[CASES_MAX];
    static const int64_t thresholds[] = {-1, 3000, 50000, 0}; /* none, two limits, all together */
    (void)size, (void)arg;
    for (int i = 0; i < ncases; i++) {
        size_t count = i % 9 == 0 ? COUNT : 1 + (size_t)i * 37 % 500;
        tensors[i] = (tensor_t){.shape = (int64_t)count, .first = COUNT - count};
        snprintf(tensors[i].name, sizeof(tensors[i].name), "case.%d", i);
        tensors[i].out = malloc(count * hora_dtype_size(cases[i].dtype));
        harness_check(tensors[i].out != NULL, "memory");
    }
    for (size_t k = 0; k < sizeof(thresholds) / sizeof(thresholds[0]); k++) {
        hora_engine_options_t options = HORA_ENGINE_OPTIONS_INIT;
        hora_engine_t        *engine;
        options.fusion_threshold = thresholds[k];
        harness_ok(hora_engine_create(comm, &options, &engine));
        run_engine(engine, tensors, rank);
        harness_ok(hora_barrier(comm, NULL));
        harness_ok(hora_engine_free(engine));
    }
    for (int i = 0; i < ncases; i++)
        free(tensors[i].out);
}

/* ---- In a rank: times that rank 0 alone has a file of --------------------------------------------- */

static int algo_of(const char *name) {
    int i = 0;
    while (strcmp(hora_algo_list[i]->name, name) != 0)
        i++;
    return i;
}

/* Such that tree is the fastest up to 4 KB, and ring above. */
static void write_times_main(hora_comm_t *comm, int rank, int size, void *arg) {
    static hora_costs_t costs;
    (void)size;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int point = 0; point < HORA_COSTS_POINTS &&
                            (hora_algo_list[i]->colls & 1u << HORA_COLL_ALLREDUCE); point++)
            costs.ns[HORA_COLL_ALLREDUCE][i][point] = 1000 * (1u + (unsigned)point);
    for (int point = 0; point < HORA_COSTS_POINTS; point++)
        costs.ns[HORA_COLL_ALLREDUCE][algo_of(point < 5 ? "tree" : "ring")][point] = 500;
    if (rank == 0)
        harness_ok(hora_costs_save(comm->world, &costs, arg));
}

static void expect_choice(hora_comm_t *comm, size_t bytes, const char *name) {
    hora_choice_t choice;
    harness_check(hora_comm_choices(comm, "allreduce", bytes, &choice, 1) > 1,
                  "%zu B: nothing to choose", bytes);
    harness_check(strcmp(choice.algorithm, name) == 0, "%zu B: %s by %s", bytes, choice.algorithm,
                  hora_comm_costs(comm));
}

static void read_times_main(hora_comm_t *none, int rank, int size, void *arg) {
    trial_t      trial = {.what = "by times from a file"};
    hora_comm_t *comm, *part;
    (void)none;
    setenv("HORA_ALGO_TIMES", rank == 0 ? arg : "none", 1);
    if (size == 2)
        setenv("HORA_ONESHOT_LIMIT", "0", 1); /* else all their small calls go without a choice */
    comm = harness_join();
    harness_check(rank != 0 || strstr(hora_comm_costs(comm), arg) != NULL, "%s",
                  hora_comm_costs(comm));
    expect_choice(comm, 1000, "tree");
    expect_choice(comm, 1 << 20, "ring");
    trial_main(comm, rank, size, &trial);
    harness_ok(hora_comm_split(comm, rank == 0, 0, &part)); /* too few ranks for the file */
    harness_check(strstr(hora_comm_costs(part), "formulas") != NULL, "%s", hora_comm_costs(part));
    harness_ok(hora_comm_free(part));
    harness_ok(hora_barrier(comm, NULL));
    harness_ok(hora_comm_free(comm));
}

/* ---- Tests --------------------------------------------------------------------------------------- */

static void run(harness_main_t rank_main, const char *algo, void *arg) {
    harness_job_t job = {.nranks = nranks, .main = rank_main, .arg = arg, .transport = transport,
                         .algo = algo};
    assert_int_equal(harness_run(&job), 0);
}

/* chunk: HORA_CHUNK_SIZE; NULL: the default. */
static void try(const hora_algo_t *algo, const char *chunk, bool ordered) {
    trial_t     trial = {.algo = algo, .ordered = ordered};
    const char *name = algo != NULL ? algo->name : "auto";
    snprintf(trial.what, sizeof(trial.what), "%s%s%s", name, chunk != NULL ? ", chunks of " : "",
             chunk != NULL ? chunk : "");
    if (chunk != NULL)
        setenv("HORA_CHUNK_SIZE", chunk, 1);
    run(trial_main, name, &trial);
    unsetenv("HORA_CHUNK_SIZE");
}

static void every_algorithm_gives_all_ranks_the_same_bits(void **state) {
    (void)state;
    try(NULL, NULL, false);
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        if (!hora_algo_list[i]->rank_order)
            try(hora_algo_list[i], NULL, false);
}

static void rank_order_gives_the_bits_of_a_serial_reduction(void **state) {
    bool shared = strcmp(transport, "shm") == 0;
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++) {
        const hora_algo_t *algo = hora_algo_list[i];
        if (!algo->rank_order || (algo->needs_arena && !shared))
            continue;
        try(algo, NULL, true);
        if (!algo->small_only)
            try(algo, "1000", true);
    }
}

static void deterministic_gives_the_same_bits_by_whatever_way(void **state) {
    (void)state;
    setenv("HORA_DETERMINISTIC", "1", 1);
    try(NULL, NULL, true);
    run(engine_main, "auto", NULL);
    unsetenv("HORA_DETERMINISTIC");
}

static void times_that_rank_0_has_count_for_all(void **state) {
    char          path[] = "/tmp/hora-times-XXXXXX";
    int           fd = mkstemp(path);
    harness_job_t reads = {.nranks = nranks, .main = read_times_main, .arg = path, .bare = true,
                           .transport = transport, .algo = "auto"};
    (void)state;
    assert_true(fd >= 0);
    run(write_times_main, "auto", path);
    assert_int_equal(harness_run(&reads), 0);
    close(fd);
    unlink(path);
}

int main(int argc, char **argv) {
    if (!harness_arguments(argc, argv, &transport, &nranks) || nranks < 2 || nranks > RANKS_MAX)
        return 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_algorithm_gives_all_ranks_the_same_bits),
        cmocka_unit_test(rank_order_gives_the_bits_of_a_serial_reduction),
        cmocka_unit_test(deterministic_gives_the_same_bits_by_whatever_way),
        cmocka_unit_test(times_that_rank_0_has_count_for_all),
    };
    return cmocka_run_group_tests(tests, make_cases, NULL);
}
