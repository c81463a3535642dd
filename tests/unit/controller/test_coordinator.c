/* The coordinator, case by case: agreement, ids, batches, groups, mismatches, stalls, leaving. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "world.h"

static void enqueue_everywhere(world_t *w, int tensor, const hora_signature_t *sig) {
    for (int r = 0; r < w->size; r++)
        rank_enqueue(w, r, tensor, sig);
}

static void expect_executed(const world_t *w, int tensor, int times) {
    for (int r = 0; r < w->size; r++)
        assert_int_equal(w->ranks[r].tensors[tensor].executed, times);
}

static void expect_failed(const world_t *w, int tensor, hora_status_t status, const char *text) {
    for (int r = 0; r < w->size; r++) {
        const tensor_t *t = &w->ranks[r].tensors[tensor];
        assert_int_equal(t->failed, 1);
        assert_int_equal(t->status, status);
        if (strstr(t->text, text) == NULL)
            fail_msg("rank %d, t%d: \"%s\" has no \"%s\"", r, tensor, t->text, text);
    }
}

static void waits_for_all(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    rank_enqueue(w, 0, 0, &sig);
    rank_enqueue(w, 2, 0, &sig);
    world_settle(w);
    expect_executed(w, 0, 0);
    rank_enqueue(w, 1, 0, &sig);
    world_settle(w);
    expect_executed(w, 0, 1);
    world_check_order(w);
    world_free(w);
}

static void ids_take_the_place_of_names(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t sig = allreduce_of(5), other = allreduce_of(6);
    (void)state;
    for (int round = 1; round <= 3; round++) {
        enqueue_everywhere(w, 7, &sig);
        world_settle(w);
        expect_executed(w, 7, round);
        assert_true(w->ranks[1].tensors[7].id != 0);
        assert_int_equal(w->ranks[1].tensors[7].sent_id != 0, round > 1);
    }
    for (int round = 4; round <= 5; round++) { /* other parameters: in full once, then by id */
        enqueue_everywhere(w, 7, &other);
        world_settle(w);
        expect_executed(w, 7, round);
        assert_int_equal(w->ranks[1].tensors[7].sent_id != 0, round > 4);
    }
    enqueue_everywhere(w, 7, &sig);
    world_settle(w);
    expect_executed(w, 7, 6);
    world_free(w);
}

static void an_id_against_other_parameters(void **state) {
    hora_signature_t sig = allreduce_of(5), other = allreduce_of(6);
    (void)state;
    for (int first = 0; first < 2; first++) {
        world_t *w = world_new(2, 1000, 100);
        enqueue_everywhere(w, 0, &sig);
        world_settle(w);
        rank_enqueue(w, first, 0, &sig); /* by id */
        rank_enqueue(w, !first, 0, &other);
        world_settle(w);
        expect_failed(w, 0, HORA_ERR_MISMATCH, "t0: rank 0 (even) has shape [");
        enqueue_everywhere(w, 0, &sig);
        world_settle(w);
        expect_executed(w, 0, 2);
        assert_int_equal(w->ranks[0].tensors[0].sent_id, 0); /* the id went with the error */
        world_free(w);
    }
}

static void ids_run_out(void **state) {
    world_t         *w = world_new(3, 0, 4);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    for (int i = 0; i < 200; i++) {
        int  a = i * 7 % 13, b = i % 4;
        bool two = a != b;
        enqueue_everywhere(w, a, &sig);
        for (int r = 0; two && r < 3; r++)
            rank_enqueue(w, r, b, &sig);
        for (int r = 0; r < 3; r++)
            rank_send(w, r, 1);
        while (rank_feed(w, 0) || rank_feed(w, 1)) /* rank 2's ids come when others have them */
            ;
        world_speak(w);
        world_settle(w);
    }
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 13; i++)
            assert_int_equal(w->ranks[r].tensors[i].executed, w->ranks[0].tensors[i].executed);
    for (int i = 0, total = 0; i < 13; i++) {
        total += w->ranks[0].tensors[i].executed;
        assert_true(i < 12 || total > 300);
    }
    world_check_order(w);
    world_free(w);
}

/* Rank 1 sends by an id that the coordinator gives to another name before it reads it. */
static void an_id_that_was_taken_away(void **state) {
    world_t         *w = world_new(2, 0, 1);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    enqueue_everywhere(w, 0, &sig);
    world_settle(w);
    enqueue_everywhere(w, 1, &sig);
    rank_send(w, 0, 0);
    rank_send(w, 1, 0);
    rank_enqueue(w, 1, 0, &sig);
    rank_send(w, 1, 0);
    assert_true(w->ranks[1].tensors[0].sent_id != 0);
    rank_feed(w, 0);
    rank_feed(w, 1);
    assert_int_equal(world_speak(w), 1); /* t1 has the only id now */
    world_settle(w);
    assert_int_equal(w->ranks[1].resent, 1);
    rank_enqueue(w, 0, 0, &sig);
    world_settle(w);
    expect_executed(w, 0, 2);
    expect_executed(w, 1, 1);
    world_free(w);
}

/* ---- Batches ------------------------------------------------------------------------------- */

/* Executes tensors with these signatures on two ranks; the order, -1 after each batch. */
static void expect_batches(size_t threshold, const hora_signature_t *sigs, int n,
                           const int *expected, size_t len) {
    world_t *w = world_new(2, threshold, 100);
    for (int i = 0; i < n; i++)
        enqueue_everywhere(w, i, &sigs[i]);
    world_settle(w);
    assert_int_equal(w->ranks[0].norder, len);
    assert_memory_equal(w->ranks[0].order, expected, len * sizeof(int));
    world_check_order(w);
    world_free(w);
}

static void types_that_alternate_fuse(void **state) {
    hora_signature_t a = allreduce_of(10), b = allreduce_of(10), c = allreduce_of(10);
    const int        expected[] = {0, 2, 5, -1, 1, 4, -1, 3, -1};
    (void)state;
    b.dtype = HORA_BFLOAT16;
    c.postscale = 0.5;
    expect_batches(1000, (hora_signature_t[]){a, b, a, c, b, a}, 6, expected, 9);
}

static void batches_end_at_the_threshold(void **state) {
    hora_signature_t a = allreduce_of(10), large = allreduce_of(26), none = allreduce_of(0);
    (void)state;
    /* 40 bytes each; the large one, 104 bytes, does not fit anywhere. */
    expect_batches(100, (hora_signature_t[]){a, a, a, large, none, a}, 6,
                   (const int[]){0, 1, -1, 2, 4, 5, -1, 3, -1}, 9);
    expect_batches(80, (hora_signature_t[]){a, a, a}, 3, (const int[]){0, 1, -1, 2, -1}, 5);
    expect_batches(79, (hora_signature_t[]){a, a, a}, 3, (const int[]){0, -1, 1, -1, 2, -1}, 6);
    expect_batches(0, (hora_signature_t[]){a, none, a}, 3, (const int[]){0, -1, 1, -1, 2, -1}, 6);
}

static void each_kind_fuses_with_its_own(void **state) {
    hora_signature_t a = allreduce_of(4), b = allreduce_of(4), c, d, e;
    (void)state;
    b.device = 1;
    expect_batches(1000, (hora_signature_t[]){a, b, a, b}, 4,
                   (const int[]){0, 2, -1, 1, 3, -1}, 6);
    b.device = 0;
    b.kind = HORA_TASK_BROADCAST;
    expect_batches(1000, (hora_signature_t[]){a, b, a, b}, 4,
                   (const int[]){0, 2, -1, 1, 3, -1}, 6);
    c = d = e = b;
    c.root = 1; /* another root, type, ... */
    d.dtype = HORA_FLOAT64;
    expect_batches(1000, (hora_signature_t[]){b, c, d, b, c, d}, 6,
                   (const int[]){0, 3, -1, 1, 4, -1, 2, 5, -1}, 9);
    c.kind = d.kind = HORA_TASK_REDUCESCATTER;
    c.root = 0;
    d.dtype = HORA_FLOAT32;
    d.postscale = 2; /* ... or scale */
    e.kind = HORA_TASK_ALLGATHER;
    e.shape[0] = 0;
    expect_batches(1000, (hora_signature_t[]){c, d, e, c, d, e}, 6,
                   (const int[]){0, 3, -1, 1, 4, -1, 2, 5, -1}, 9);
}

static void some_kinds_never_fuse(void **state) {
    hora_signature_t a = allreduce_of(4), b = allreduce_of(4), c = allreduce_of(4);
    (void)state;
    a.kind = HORA_TASK_ALLTOALL;
    b.kind = HORA_TASK_BARRIER;
    c.op = HORA_ADASUM; /* it looks at whole tensors */
    expect_batches(1000, (hora_signature_t[]){a, b, c, a, b, c}, 6,
                   (const int[]){0, -1, 1, -1, 2, -1, 3, -1, 4, -1, 5, -1}, 12);
}

/* ---- Groups -------------------------------------------------------------------------------- */

static hora_signature_t member(uint64_t key, uint32_t size) {
    hora_signature_t sig = allreduce_of(3);
    sig.group_key = key;
    sig.group_size = size;
    return sig;
}

static void groups_wait_for_their_last(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t g = member(42, 3), alone = allreduce_of(3);
    (void)state;
    for (int round = 1; round <= 3; round++) { /* in full, then by id */
        for (int i = 0; i < 2; i++)
            enqueue_everywhere(w, i, &g);
        rank_enqueue(w, 0, 2, &g);
        rank_enqueue(w, 1, 2, &g);
        enqueue_everywhere(w, 3, &alone);
        world_settle(w);
        expect_executed(w, 0, round - 1);
        expect_executed(w, 3, round);
        rank_enqueue(w, 2, 2, &g);
        world_settle(w);
        for (int i = 0; i < 3; i++)
            expect_executed(w, i, round);
    }
    world_check_order(w);
    world_free(w);
}

static void a_mismatch_fails_the_whole_group(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t g = member(42, 3), bad = g;
    (void)state;
    bad.dtype = HORA_INT32;
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 3; i++)
            rank_enqueue(w, r, i, r == 1 && i == 1 ? &bad : &g);
    world_settle(w);
    for (int i = 0; i < 3; i++)
        expect_failed(w, i, HORA_ERR_MISMATCH,
                      "allreduce t1: rank 0 (even) has type float32, rank 1 (odd) has type int32");
    for (int i = 0; i < 3; i++)
        enqueue_everywhere(w, i, &g);
    world_settle(w);
    for (int i = 0; i < 3; i++)
        expect_executed(w, i, 1);
    world_free(w);
}

/* The group arrives one report at a time, and the mismatch is in the first. */
static void a_group_in_pieces_fails_once(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t g = member(42, 4), bad = g;
    (void)state;
    bad.op = HORA_MAX;
    for (int r = 0; r < 3; r++) {
        for (int i = 0; i < 4; i++)
            rank_enqueue(w, r, i, r == 2 && i == 0 ? &bad : &g);
        rank_send(w, r, 1);
    }
    for (int i = 0; i < 4; i++)
        for (int r = 2; r >= 0; r--) {
            rank_feed(w, r);
            world_speak(w);
        }
    world_settle(w);
    for (int i = 0; i < 4; i++)
        expect_failed(w, i, HORA_ERR_MISMATCH, "reduction max");
    for (int i = 0; i < 4; i++)
        enqueue_everywhere(w, i, &g);
    world_settle(w);
    for (int i = 0; i < 4; i++)
        expect_executed(w, i, 1);
    world_free(w);
}

/* ---- Mismatches ---------------------------------------------------------------------------- */

static void each_difference_names_both_sides(void **state) {
    hora_signature_t a = allreduce_of(12), b;
    hora_signature_t root = a, rows = a;
    (void)state;
    root.kind = HORA_TASK_BROADCAST;
    rows.kind = HORA_TASK_ALLGATHER;
    rows.ndim = 2;
    rows.shape[0] = 0;
    rows.shape[1] = 3;
#define DIFFER(sig, change, text)                                                                 \
    do {                                                                                          \
        world_t *w = world_new(3, 1000, 100);                                                     \
        b = sig;                                                                                  \
        change;                                                                                   \
        rank_enqueue(w, 2, 5, &b);                                                                \
        rank_enqueue(w, 0, 5, &sig);                                                              \
        world_settle(w);                                                                          \
        rank_enqueue(w, 1, 5, &sig); /* it learns of it when it comes */                          \
        expect_failed(w, 5, HORA_ERR_MISMATCH, text);                                             \
        enqueue_everywhere(w, 5, &sig);                                                           \
        world_settle(w);                                                                          \
        expect_executed(w, 5, 1);                                                                 \
        world_free(w);                                                                            \
    } while (0)
    DIFFER(a, b.kind = HORA_TASK_BROADCAST,
           "tensor t5: rank 0 (even) has operation allreduce, rank 2 (even) has operation broadca");
    DIFFER(a, b.dtype = HORA_FLOAT64, "0 (even) has type float32, rank 2 (even) has type float64");
    DIFFER(a, b.op = HORA_MIN, "has reduction sum, rank 2 (even) has reduction min");
    DIFFER(a, (b.ndim = 2, b.shape[0] = 3, b.shape[1] = 4),
           "allreduce t5: rank 0 (even) has shape [12], rank 2 (even) has shape [3, 4]");
    DIFFER(a, b.ndim = 0, "shape [12], rank 2 (even) has shape []");
    DIFFER(a, b.prescale = 2, "prescale 1 and postscale 1, rank 2 (even) has prescale 2 and");
    DIFFER(a, b.postscale = 0.1, "postscale 0.1");
    DIFFER(a, (b.group_key = 9, b.group_size = 2), "has no group, rank 2 (even) has a group of 2");
    DIFFER(root, b.root = 1,
           "broadcast t5: rank 0 (even) has root rank 0, rank 2 (even) has root rank 1");
    DIFFER(a, b.device = 1,
           "has the tensor in host memory, rank 2 (even) has the tensor on a GPU");
    DIFFER(rows, b.shape[1] = 4, "has shape [*, 3], rank 2 (even) has shape [*, 4]");
#undef DIFFER
}

/* ---- Stalls and leaving -------------------------------------------------------------------- */

static void waited(world_t *w, const char *name, double seconds) {
    uint64_t ns = (uint64_t)(seconds * 1e9);
    hora_coordinator_waited(w->coordinator, name, strlen(name), ns, w->now);
}

static void stalls_are_told_once(void **state) {
    world_t         *w = world_new(4, 1000, 100);
    hora_signature_t sig = allreduce_of(12);
    (void)state;
    for (int r = 0; r < 3; r++)
        rank_enqueue(w, r, 0, &sig);
    world_settle(w);
    for (int r = 0; r < 3; r++)
        waited(w, "t0", 1.0); /* each of them asks */
    waited(w, "unknown", 1.0);
    assert_int_equal(world_speak(w), 1);
    waited(w, "t0", 1.0);
    assert_int_equal(world_speak(w), 0);
    world_settle(w);
    for (int r = 0; r < 4; r++)
        assert_int_equal(w->ranks[r].stalls, r < 3);
    w->now += 1000000000;
    waited(w, "t0", 2.0);
    world_settle(w);
    assert_int_equal(w->ranks[0].stalls, 2);
    w->now += 3000000000;
    waited(w, "t0", 5.0);
    world_settle(w);
    rank_enqueue(w, 3, 0, &sig); /* too late */
    expect_failed(w, 0, HORA_ERR_TIMEOUT, "allreduce t0: waited 5.0 s for rank 3 (odd); "
                                          "ready: ranks 0 (even), 1 (odd), 2 (even)");
    enqueue_everywhere(w, 0, &sig);
    world_settle(w);
    expect_executed(w, 0, 1);
    world_free(w);
}

/* A question does not overtake the report of another rank that has arrived too. */
static void questions_are_answered_last(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t sig = allreduce_of(12);
    (void)state;
    rank_enqueue(w, 0, 0, &sig);
    rank_send(w, 0, 0);
    rank_feed(w, 0);
    waited(w, "t0", 9.0);
    rank_enqueue(w, 1, 0, &sig);
    rank_send(w, 1, 0);
    rank_feed(w, 1);
    world_settle(w);
    expect_executed(w, 0, 1);
    world_free(w);
}

static void many_stalls_are_summed_up(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t sig = allreduce_of(12);
    char             name[16];
    (void)state;
    for (int i = 0; i < 50; i++)
        rank_enqueue(w, 0, i, &sig);
    world_settle(w);
    for (int i = 0; i < 50; i++) {
        snprintf(name, sizeof(name), "t%d", i);
        waited(w, name, 1.0);
    }
    world_settle(w);
    assert_int_equal(w->ranks[0].stalls, 8);
    world_free(w);
}

static void a_group_names_what_is_missing(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t g = member(42, 2);
    (void)state;
    enqueue_everywhere(w, 0, &g);
    rank_enqueue(w, 0, 1, &g);
    world_settle(w);
    waited(w, "t0", 9.0);
    world_settle(w);
    rank_enqueue(w, 1, 1, &g);
    for (int i = 0; i < 2; i++)
        expect_failed(w, i, HORA_ERR_TIMEOUT, "t1 of its group, which is missing on rank 1 (odd)");
    world_free(w);
}

static void whoever_has_left_is_not_waited_for(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t sig = allreduce_of(12), g = member(42, 2);
    (void)state;
    enqueue_everywhere(w, 3, &sig);
    world_settle(w);
    rank_enqueue(w, 0, 0, &sig);
    rank_enqueue(w, 1, 1, &g);
    rank_enqueue(w, 1, 2, &g);
    world_settle(w);
    hora_coordinator_left(w->coordinator, 2);
    hora_coordinator_left(w->coordinator, 2);
    rank_enqueue(w, 1, 3, &sig);
    world_settle(w);
    rank_enqueue(w, 0, 3, &sig);
    world_settle(w);
    rank_enqueue(w, 1, 0, &sig);
    for (int i = 0; i < 4; i++)
        for (int r = 0; r < 2; r++) {
            tensor_t *t = &w->ranks[r].tensors[i];
            if (i != 1 && i != 2)
                assert_int_equal(t->failed, 1);
            if (t->failed > 0)
                assert_non_null(strstr(t->text, "rank 2 (even) has left"));
        }
    assert_int_equal(w->ranks[1].tensors[1].failed, 1);
    assert_int_equal(w->ranks[1].tensors[2].failed, 1);
    assert_true(hora_coordinator_has_left(w->coordinator, 2));
    world_free(w);
}

/* ---- What is not believed ------------------------------------------------------------------ */

static void nonsense_is_refused(void **state) {
    world_t            *w = world_new(2, 1000, 100);
    hora_signature_t    sig = allreduce_of(12);
    uint8_t            *buf = malloc(HORA_FRAME_MAX);
    hora_frame_writer_t fw;
    (void)state;
    memset(buf, 0, HORA_FRAME_MAX);
    assert_int_equal(hora_coordinator_feed(w->coordinator, 1, buf, 100, 0), HORA_ERR_PROTOCOL);
    hora_frame_begin(&fw, buf, HORA_FRAME_REQUESTS, 1); /* an error that was never said */
    assert_int_equal(hora_coordinator_feed(w->coordinator, 1, buf, hora_frame_end(&fw), 0),
                     HORA_ERR_PROTOCOL);
    hora_frame_begin(&fw, buf, HORA_FRAME_REQUESTS, 0);
    hora_frame_put_full(&fw, "t0", 2, &sig);
    hora_frame_put_full(&fw, "t0", 2, &sig); /* twice */
    assert_int_equal(hora_coordinator_feed(w->coordinator, 1, buf, hora_frame_end(&fw), 0),
                     HORA_ERR_PROTOCOL);
    sig = member(42, 2);
    hora_frame_begin(&fw, buf, HORA_FRAME_REQUESTS, 0);
    hora_frame_put_full(&fw, "t1", 2, &sig);
    hora_frame_put_full(&fw, "t2", 2, &sig);
    hora_frame_put_full(&fw, "t3", 2, &sig); /* three in a group of two */
    assert_int_equal(hora_coordinator_feed(w->coordinator, 1, buf, hora_frame_end(&fw), 0),
                     HORA_ERR_PROTOCOL);
    free(buf);
    world_free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(waits_for_all),
        cmocka_unit_test(ids_take_the_place_of_names),
        cmocka_unit_test(an_id_against_other_parameters),
        cmocka_unit_test(ids_run_out),
        cmocka_unit_test(an_id_that_was_taken_away),
        cmocka_unit_test(types_that_alternate_fuse),
        cmocka_unit_test(batches_end_at_the_threshold),
        cmocka_unit_test(each_kind_fuses_with_its_own),
        cmocka_unit_test(some_kinds_never_fuse),
        cmocka_unit_test(groups_wait_for_their_last),
        cmocka_unit_test(a_mismatch_fails_the_whole_group),
        cmocka_unit_test(a_group_in_pieces_fails_once),
        cmocka_unit_test(each_difference_names_both_sides),
        cmocka_unit_test(stalls_are_told_once),
        cmocka_unit_test(questions_are_answered_last),
        cmocka_unit_test(many_stalls_are_summed_up),
        cmocka_unit_test(a_group_names_what_is_missing),
        cmocka_unit_test(whoever_has_left_is_not_waited_for),
        cmocka_unit_test(nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
