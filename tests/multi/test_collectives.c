/*
 * Every collective, over one transport with one number of ranks: `test_collectives shm 4`. One
 * cmocka test for each algorithm that can be forced, and some over the whole matrix of types.
 */
#include <coll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "harness.h"

typedef struct sweep {
    const hora_dtype_t *dtypes;
    int                 ndtypes;
    const size_t       *counts;
    int                 ncounts;
    bool                arena; /* buffers from hora_alloc */
    bool                odd;   /* buffers that begin at an odd element */
} sweep_t;

static const char *transport;
static int nranks;

/* ---- In a rank ----------------------------------------------------------------------------- */

static void *get_memory(hora_comm_t *comm, const sweep_t *sweep, size_t bytes) {
    void *memory = NULL;
    if (sweep->arena)
        harness_ok(hora_alloc(comm, bytes, &memory));
    else
        memory = malloc(bytes);
    harness_check(memory != NULL, "%zu bytes", bytes);
    return memory;
}

static void put_memory(hora_comm_t *comm, const sweep_t *sweep, void *memory) {
    if (sweep->arena)
        harness_ok(hora_free(comm, memory));
    else
        free(memory);
}

static void run_one(hora_comm_t *comm, coll_t *c, const sweep_t *sweep) {
    size_t shift = sweep->odd ? hora_dtype_size(c->dtype) : 0;
    unsigned char *in = get_memory(comm, sweep, coll_bytes_in(c) + shift + 1);
    unsigned char *out = get_memory(comm, sweep, coll_bytes_out(c) + shift);
    c->in_memory = in + shift;
    c->out_memory = out + shift;
    coll_write(c);
    hora_status_t st = coll_call(c, comm, NULL);
    size_t wrong = st == HORA_OK ? coll_wrong(c) : 0;
    harness_check(st == HORA_OK && wrong == 0, "%s %s %s, count %zu, root %d%s: %s, %zu wrong",
                  coll_name(c->kind), hora_dtype_name(c->dtype), hora_op_name(c->op), c->count,
                  c->root, c->in_place ? ", in place" : "",
                  st == HORA_OK ? "ok" : hora_last_error(), wrong);
    put_memory(comm, sweep, in);
    put_memory(comm, sweep, out);
}

static void run_places(hora_comm_t *comm, coll_t *c, const sweep_t *sweep) {
    static unsigned salt;
    int rank = hora_comm_rank(comm), size = hora_comm_size(comm);
    int roots = coll_has_root(c->kind) ? size : 1;
    int places = coll_can_be_in_place(c->kind) ? 2 : 1;
    for (int root = 0; root < roots; root += size > 2 ? size - 1 : 1)
        for (int place = 0; place < places; place++) {
            harness_check(coll_place(c, rank, size, root, place == 1, ++salt), "memory");
            run_one(comm, c, sweep);
        }
}

static void sweep_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const sweep_t *sweep = arg;
    (void)rank, (void)size;
    for (int kind = 0; kind < COLL_KIND_COUNT; kind++)
        for (int d = 0; d < sweep->ndtypes; d++)
            for (int i = 0; i < sweep->ncounts; i++) {
                coll_t c;
                hora_op_t op = sweep->dtypes[d] == HORA_BOOL ? HORA_MAX : HORA_SUM;
                coll_init(&c, (coll_kind_t)kind, sweep->dtypes[d], op, sweep->counts[i]);
                run_places(comm, &c, sweep);
                coll_destroy(&c);
            }
    harness_ok(hora_barrier(comm, NULL));
}

static void ops_main(hora_comm_t *comm, int rank, int size, void *arg) {
    const sweep_t *sweep = arg;
    (void)rank, (void)size;
    for (int kind = 0; kind < COLL_KIND_COUNT; kind++) {
        if (!coll_reduces((coll_kind_t)kind))
            continue;
        for (int d = 0; d < HORA_DTYPE_COUNT; d++)
            for (int op = 0; op < HORA_OP_COUNT; op++) {
                coll_t c;
                if (!coll_takes((coll_kind_t)kind, (hora_dtype_t)d, (hora_op_t)op))
                    continue;
                coll_init(&c, (coll_kind_t)kind, (hora_dtype_t)d, (hora_op_t)op, 1237);
                run_places(comm, &c, sweep);
                coll_destroy(&c);
            }
    }
}

/* ---- Tests --------------------------------------------------------------------------------- */

static const hora_dtype_t all_types[] = {
    HORA_BOOL,   HORA_INT8,   HORA_INT16,   HORA_INT32,    HORA_INT64,   HORA_UINT8,  HORA_UINT16,
    HORA_UINT32, HORA_UINT64, HORA_FLOAT16, HORA_BFLOAT16, HORA_FLOAT32, HORA_FLOAT64,
    HORA_FLOAT8_E4M3, HORA_FLOAT8_E5M2};
static const hora_dtype_t some_types[] = {HORA_INT8, HORA_BFLOAT16, HORA_FLOAT32, HORA_FLOAT64};
static const hora_dtype_t one_type[] = {HORA_FLOAT32};
static const size_t small_counts[] = {0, 1, 2, 7, 16, 61, 1000};
static const size_t medium_counts[] = {1, 5, 4097, 33333};
static const size_t large_counts[] = {262144, 1000003};

#define LENGTH(array) ((int)(sizeof(array) / sizeof((array)[0])))

static void run(harness_main_t rank_main, const char *algo, sweep_t sweep) {
    harness_job_t job = {.nranks = nranks,
                         .main = rank_main,
                         .arg = &sweep,
                         .transport = transport,
                         .algo = algo};
    assert_int_equal(harness_run(&job), 0);
}

static void forced_algorithm(void **state) {
    run(sweep_main, *state,
        (sweep_t){some_types, LENGTH(some_types), small_counts, LENGTH(small_counts), false, false});
    run(sweep_main, *state,
        (sweep_t){one_type, 1, medium_counts, LENGTH(medium_counts), false, false});
}

static void forced_algorithm_in_arena(void **state) {
    run(sweep_main, *state,
        (sweep_t){one_type, 1, medium_counts, LENGTH(medium_counts), true, false});
}

static void every_type(void **state) {
    static const size_t counts[] = {3, 129};
    (void)state;
    run(sweep_main, "auto", (sweep_t){all_types, LENGTH(all_types), counts, 2, false, false});
}

static void every_operation(void **state) {
    (void)state;
    run(ops_main, "auto", (sweep_t){all_types, LENGTH(all_types), NULL, 0, false, false});
    run(ops_main, "auto", (sweep_t){all_types, LENGTH(all_types), NULL, 0, true, false});
}

static void unaligned_buffers(void **state) {
    (void)state;
    run(sweep_main, "auto",
        (sweep_t){some_types, LENGTH(some_types), medium_counts, LENGTH(medium_counts), false, true});
    run(sweep_main, "auto",
        (sweep_t){some_types, LENGTH(some_types), medium_counts, LENGTH(medium_counts), true, true});
}

static void large_messages(void **state) {
    (void)state;
    run(sweep_main, "auto",
        (sweep_t){one_type, 1, large_counts, LENGTH(large_counts), false, false});
    run(sweep_main, "auto",
        (sweep_t){one_type, 1, large_counts, LENGTH(large_counts), true, false});
}

#define ALGORITHM(name)                                                                           \
    {"algorithm_" name, forced_algorithm, NULL, NULL, (void *)name},                              \
    {"algorithm_" name "_in_arena", forced_algorithm_in_arena, NULL, NULL, (void *)name}

int main(int argc, char **argv) {
    if (!harness_arguments(argc, argv, &transport, &nranks))
        return 2;
    const struct CMUnitTest tests[] = {
        ALGORITHM("auto"),
        ALGORITHM("arena"),
        ALGORITHM("oneshot"),
        ALGORITHM("direct"),
        ALGORITHM("ring"),
        ALGORITHM("doubling"),
        ALGORITHM("halving"),
        ALGORITHM("tree"),
        cmocka_unit_test(every_type),
        cmocka_unit_test(every_operation),
        cmocka_unit_test(unaligned_buffers),
        cmocka_unit_test(large_messages),
    };
    const struct CMUnitTest on_hosts[] = {
        ALGORITHM("auto"),
        ALGORITHM("twolevel"),
        ALGORITHM("ring"),
        cmocka_unit_test(every_operation),
        cmocka_unit_test(unaligned_buffers),
        cmocka_unit_test(large_messages),
    };
    if (strcmp(transport, "hosts") == 0)
        return cmocka_run_group_tests(on_hosts, NULL, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
