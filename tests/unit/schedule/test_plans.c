/*
 * Every algorithm, for every kind that it can do, executed by the simulator.
 */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

static const int    sizes[] = {2, 3, 4, 5, 7, 8, 13, 16, 33, 64};
static const size_t counts[] = {0, 1, 2, 7, 64, 1000, 4099};
#define LEN(a) (sizeof(a) / sizeof((a)[0]))

static const hora_dtype_t dtypes[] = {HORA_FLOAT32, HORA_FLOAT64, HORA_INT32, HORA_BFLOAT16};

static void must_pass(const sim_case_t *what) {
    const char *error = sim_run(what, NULL);
    if (error[0] != 0)
        fail_msg("%s", error);
}

static bool has_blocks(hora_coll_kind_t kind) {
    return kind == HORA_COLL_REDUCE_SCATTER || kind == HORA_COLL_ALLGATHER ||
           kind == HORA_COLL_ALLTOALL;
}

static bool has_root(hora_coll_kind_t kind) {
    return kind == HORA_COLL_REDUCE || kind == HORA_COLL_BROADCAST || kind == HORA_COLL_GATHER ||
           kind == HORA_COLL_SCATTER;
}

/* Blocks come once per rank: keep their sum about as large as one vector. */
static bool too_much(const sim_case_t *what) {
    size_t blocks = has_blocks(what->kind) || what->kind == HORA_COLL_GATHER ||
                            what->kind == HORA_COLL_SCATTER
                        ? (size_t)what->size
                        : 1;
    if (what->kind == HORA_COLL_ALLTOALL)
        blocks *= (size_t)what->size;
    return what->count * blocks * (size_t)what->size > 300000;
}

static sim_case_t basic(const hora_algo_t *algo, hora_coll_kind_t kind, int size, size_t count) {
    return (sim_case_t){.algo = algo, .kind = kind, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                        .size = size, .count = count, .chunk = 256, .slot = 3 * 256,
                        .prescale = 1.0, .postscale = 1.0,
                        .seed = (unsigned)(size * 31 + (int)count)};
}

/* What a case of this algorithm needs of slots and phases. */
static void prepare_arena(sim_case_t *what) {
    if (!what->algo->needs_arena)
        return;
    if (what->algo->small_only)
        what->slot = what->count > 0 ? what->count : 1;
    else if (what->algo == &hora_algo_slots) /* two regions with a line for each other rank */
        what->slot = 2 * (size_t)what->size * (16 + (what->chunk < what->count ? what->chunk
                                                                              : what->count));
    else
        what->slot = 3 * (what->chunk > 64 ? what->chunk : 64);
    what->calls = 3;
}

static bool runs(const sim_case_t *what) {
    hora_coll_t coll = {.kind = what->kind, .size = what->size};
    return (what->algo->colls & 1u << what->kind) && what->algo->applies(&coll) &&
           !too_much(what) && !(what->algo->needs_arena && what->size > 16);
}

/* Every size and count, with what else there is varied along. */
static void sweep(const hora_algo_t *algo, hora_coll_kind_t kind) {
    static const size_t chunks[] = {100000, 256, 64, 300};
    unsigned            turn = 0;
    for (size_t s = 0; s < LEN(sizes); s++)
        for (size_t c = 0; c < LEN(counts); c++, turn++) {
            sim_case_t what = basic(algo, kind, sizes[s], counts[c]);
            bool       small = what.count <= 64;
            what.chunk = small && turn % 2 ? 1 + turn % 5 : chunks[turn % LEN(chunks)];
            what.root = has_root(kind) ? (int)(turn * 7 % (unsigned)what.size) : 0;
            what.in_place = turn % 3 == 1 && kind != HORA_COLL_ALLTOALL;
            what.uneven = has_blocks(kind) && turn % 2 == 0;
            what.integers = turn % 4 == 0;
            prepare_arena(&what);
            if (runs(&what))
                must_pass(&what);
        }
}

static void plans__give_the_right_result_for_every_size_and_count(void **state) {
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
            if (hora_algo_list[i]->colls & 1u << kind)
                sweep(hora_algo_list[i], (hora_coll_kind_t)kind);
}

static void plans__work_from_every_root_in_and_out_of_place(void **state) {
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
            for (int size = 2; size <= 9; size++)
                for (int root = 0; root < (has_root((hora_coll_kind_t)kind) ? size : 1); root++)
                    for (int place = 0; place < 2; place++) {
                        sim_case_t what = basic(hora_algo_list[i], (hora_coll_kind_t)kind, size,
                                                37);
                        what.root = root;
                        what.chunk = 8;
                        what.in_place = place && kind != HORA_COLL_ALLTOALL;
                        prepare_arena(&what);
                        if (runs(&what))
                            must_pass(&what);
                    }
}

static void plans__reduce_every_type_and_operation_with_scales(void **state) {
    static const hora_op_t ops[] = {HORA_SUM, HORA_AVERAGE, HORA_MAX, HORA_MIN};
    unsigned               turn = 0;
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int kind = HORA_COLL_ALLREDUCE; kind <= HORA_COLL_REDUCE_SCATTER; kind++)
            for (size_t d = 0; d < LEN(dtypes); d++)
                for (size_t o = 0; o < LEN(ops); o++, turn++) {
                    sim_case_t what = basic(hora_algo_list[i], (hora_coll_kind_t)kind,
                                            3 + (int)(turn % 5), 211);
                    bool half = hora_dtype_is_half(dtypes[d]), whole = dtypes[d] == HORA_INT32;
                    what.dtype = dtypes[d];
                    what.op = ops[o];
                    what.chunk = 32;
                    what.integers = whole;
                    /* A prescale is the planner's business only with rank order (run.c). */
                    what.prescale = !whole && what.algo->rank_order ? 0.37 : 1.0;
                    what.postscale = whole ? 1.0 : 1.7;
                    prepare_arena(&what);
                    if (runs(&what) && (what.algo->rank_order || !half))
                        must_pass(&what);
                }
}

/* Exact in any order, so it also shows that every contribution is counted once. */
static void plans__sum_whole_numbers_exactly(void **state) {
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int kind = HORA_COLL_ALLREDUCE; kind <= HORA_COLL_REDUCE_SCATTER; kind++)
            for (int size = 2; size <= 17; size++) {
                sim_case_t what = basic(hora_algo_list[i], (hora_coll_kind_t)kind, size, 113);
                what.chunk = 5;
                what.integers = true;
                what.in_place = size % 2 == 1;
                prepare_arena(&what);
                if (runs(&what))
                    must_pass(&what);
            }
}

static void plans__survive_many_interleavings(void **state) {
    (void)state;
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
            for (unsigned seed = 0; seed < 60; seed++) {
                sim_case_t what = basic(hora_algo_list[i], (hora_coll_kind_t)kind,
                                        2 + (int)(seed % 6), 40);
                what.chunk = 3 + seed % 9;
                what.seed = seed;
                what.in_place = seed % 2 == 0 && kind != HORA_COLL_ALLTOALL;
                what.root = has_root(what.kind) ? (int)(seed / 7) % what.size : 0;
                prepare_arena(&what);
                what.calls = 3;
                if (runs(&what))
                    must_pass(&what);
            }
}

static void plans__read_shared_inputs_without_races(void **state) {
    (void)state;
    for (int kind = HORA_COLL_REDUCE; kind < HORA_COLL_BARRIER; kind++)
        for (int size = 2; size <= 6; size++)
            for (unsigned seed = 0; seed < 8; seed++) {
                sim_case_t what = basic(&hora_algo_slots, (hora_coll_kind_t)kind, size,
                                        counts[1 + seed % 5]);
                what.seed = seed;
                what.shared = true;
                what.in_place = seed % 2 == 0 && kind != HORA_COLL_ALLTOALL;
                what.uneven = kind == HORA_COLL_ALLGATHER && seed % 3 == 0;
                what.root = has_root(what.kind) ? (int)seed % size : 0;
                what.calls = 4;
                must_pass(&what);
            }
}

static void plans__push_into_shared_buffers_without_races(void **state) {
    (void)state;
    for (int size = 2; size <= 8; size++)
        for (unsigned seed = 0; seed < 12; seed++) {
            sim_case_t what = basic(&hora_algo_arena, HORA_COLL_ALLREDUCE, size, counts[seed % 6]);
            if (what.count == 0)
                what.count = 500;
            what.seed = seed;
            what.shared = true;
            what.in_place = seed % 2 == 0;
            what.calls = 4;
            must_pass(&what);
        }
}

/* The simulator itself: a plan with a hole must be found. */
static void broken_order(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    int peer = 1 - coll->rank;
    (void)hint;
    hora_plan_recv(plan, peer, HORA_BUF_OUT, 0, coll->count);
    hora_plan_send(plan, peer, HORA_BUF_IN, 0, coll->count);
    hora_plan_combine(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_OUT, 0),
                      hora_own(HORA_BUF_OUT, 0), coll->count, true);
}

static void broken_deadlock(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                            hora_plan_t *plan) {
    (void)hint;
    hora_plan_wait(plan, hora_plan_recv(plan, 1 - coll->rank, HORA_BUF_OUT, 0, coll->count));
    hora_plan_send(plan, 1 - coll->rank, HORA_BUF_IN, 0, coll->count);
}

static void broken_race(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    hora_ref_t src[2] = {hora_of(0, HORA_BUF_SLOT, 0), hora_of(1, HORA_BUF_SLOT, 0)};
    hora_ref_t out = hora_own(HORA_BUF_OUT, 0);
    hora_step_t *step;
    (void)hint;
    plan->slot = coll->count;
    hora_plan_signal(plan, 1);
    hora_plan_copy(plan, hora_own(HORA_BUF_IN, 0), hora_own(HORA_BUF_SLOT, 0), coll->count);
    hora_plan_await(plan, 1);
    step = hora_plan_reduce(plan, src, 2, &out, 1, coll->count);
    step->begin = step->finish = true;
}

static void broken_leftover(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                            hora_plan_t *plan) {
    hora_algo_doubling.plan(coll, hint, plan);
    if (coll->rank == 0)
        hora_plan_wait(plan, hora_plan_send(plan, 1, HORA_BUF_IN, 0, 1));
}

static void simulator__finds_broken_plans(void **state) {
    static const struct {
        void (*plan)(const hora_coll_t *, const hora_plan_hint_t *, hora_plan_t *);
        const char *says;
    } broken[] = {{broken_order, "is using"}, {broken_deadlock, "deadlock"},
                  {broken_race, "race"}, {broken_leftover, "never received"}};
    (void)state;
    for (size_t i = 0; i < LEN(broken); i++) {
        hora_algo_t algo = hora_algo_direct;
        bool        found = false;
        algo.plan = broken[i].plan;
        for (unsigned seed = 0; seed < 20; seed++) {
            sim_case_t  what = basic(&algo, HORA_COLL_ALLREDUCE, 2, 9);
            const char *error;
            what.seed = seed;
            error = sim_run(&what, NULL);
            assert_true(i == 3 || error[0] != 0);
            found |= strstr(error, broken[i].says) != NULL;
        }
        assert_true(found);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(simulator__finds_broken_plans),
        cmocka_unit_test(plans__give_the_right_result_for_every_size_and_count),
        cmocka_unit_test(plans__work_from_every_root_in_and_out_of_place),
        cmocka_unit_test(plans__reduce_every_type_and_operation_with_scales),
        cmocka_unit_test(plans__sum_whole_numbers_exactly),
        cmocka_unit_test(plans__survive_many_interleavings),
        cmocka_unit_test(plans__push_into_shared_buffers_without_races),
        cmocka_unit_test(plans__read_shared_inputs_without_races),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
