/* Joins: ranks that have nothing more to do count as ready, until all have joined. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/names.h"
#include "world.h"

static void expect_executed(const world_t *w, int rank, int tensor, int executed, int ghosts) {
    assert_int_equal(w->ranks[rank].tensors[tensor].executed, executed);
    assert_int_equal(w->ranks[rank].tensors[tensor].ghosts, ghosts);
}

static void expect_text(const tensor_t *t, const char *text) {
    if (strstr(t->text, text) == NULL)
        fail_msg("\"%s\" has no \"%s\"", t->text, text);
}

/* ---- Case by case --------------------------------------------------------------------------- */

static void the_others_go_on(void **state) {
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    for (int joiner = 0; joiner < 3; joiner++) { /* also the coordinator's own rank */
        world_t *w = world_new(3, 1000, 100);
        rank_join(w, joiner);
        for (int round = 1; round <= 3; round++) { /* in full, then by id */
            for (int r = 0; r < 3; r++)
                if (r != joiner)
                    rank_enqueue(w, r, 0, &sig);
            world_settle(w);
            for (int r = 0; r < 3; r++)
                expect_executed(w, r, 0, r == joiner ? 0 : round, r == joiner ? round : 0);
        }
        assert_int_equal(world_divisor, 3);
        rank_join(w, (joiner + 2) % 3);
        world_settle(w);
        assert_int_equal(w->ranks[0].joins, 0);
        rank_join(w, (joiner + 1) % 3);
        world_settle(w);
        for (int r = 0; r < 3; r++) {
            assert_int_equal(w->ranks[r].joins, 1);
            assert_int_equal(w->ranks[r].last, (joiner + 1) % 3);
            rank_enqueue(w, r, 0, &sig); /* the ghost has learnt the id too */
            assert_true(w->ranks[r].tensors[0].id != 0);
        }
        world_settle(w);
        for (int r = 0; r < 3; r++)
            expect_executed(w, r, 0, r == joiner ? 1 : 4, r == joiner ? 3 : 0);
        world_check_order(w);
        world_free(w);
    }
}

static void tasks_before_a_join_count(void **state) {
    world_t         *w = world_new_active(3, 1000, 100, true);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    rank_enqueue(w, 1, 0, &sig);
    rank_join(w, 1);
    rank_join(w, 2);
    world_settle(w);
    expect_executed(w, 1, 0, 0, 0);
    rank_enqueue(w, 0, 0, &sig);
    world_settle(w);
    expect_executed(w, 0, 0, 1, 0);
    expect_executed(w, 1, 0, 1, 0);
    expect_executed(w, 2, 0, 0, 1);
    assert_int_equal(world_divisor, 2); /* those that contributed */
    rank_enqueue(w, 0, 1, &sig);
    world_settle(w);
    assert_int_equal(world_divisor, 1);
    world_free(w);
}

/* What is complete when the last rank joins comes before the end of the join, although notes come
 * before batches. */
static void the_end_comes_last(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    for (int i = 0; i < 4; i++)
        rank_enqueue(w, 0, i, &sig);
    rank_send(w, 0, 0);
    rank_feed(w, 0);
    rank_join(w, 0);
    rank_join(w, 1);
    world_settle(w);
    assert_int_equal(w->ranks[1].norder, 6);
    assert_int_equal(w->ranks[1].order[5], -2);
    for (int i = 0; i < 4; i++)
        expect_executed(w, 1, i, 0, 1);
    world_check_order(w);
    world_free(w);
}

static void a_root_that_has_joined(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    sig.kind = HORA_TASK_BROADCAST;
    sig.root = 1;
    rank_join(w, 1);
    rank_enqueue(w, 0, 0, &sig);
    rank_enqueue(w, 2, 0, &sig);
    world_settle(w);
    for (int r = 0; r < 3; r += 2) {
        assert_int_equal(w->ranks[r].tensors[0].failed, 1);
        assert_int_equal(w->ranks[r].tensors[0].status, HORA_ERR_MISMATCH);
        expect_text(&w->ranks[r].tensors[0], "broadcast t0: its root, rank 1 (odd), has joined");
    }
    rank_join(w, 0);
    rank_join(w, 2);
    world_settle(w);
    for (int r = 0; r < 3; r++)
        rank_enqueue(w, r, 0, &sig); /* rank 1 keeps no error: it did not take part */
    world_settle(w);
    for (int r = 0; r < 3; r++)
        expect_executed(w, r, 0, 1, 0);
    world_free(w);
}

static void a_group_lacks_a_rank(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    sig.group_key = 7;
    sig.group_size = 3;
    for (int i = 0; i < 3; i++)
        rank_enqueue(w, 0, i, &sig);
    world_settle(w);
    rank_join(w, 1); /* after it is all there, and then before */
    world_settle(w);
    for (int round = 1; round <= 2; round++) {
        for (int i = 0; i < 3; i++) {
            expect_executed(w, 0, i, round, 0);
            expect_executed(w, 1, i, 0, round);
        }
        for (int i = 0; i < 3 && round == 1; i++)
            rank_enqueue(w, 0, i, &sig);
        world_settle(w);
    }
    world_check_order(w);
    world_free(w);
}

/* Rank 1 reports by an id that is gone, and joins before it hears so. */
static void a_join_waits_for_what_is_sent_again(void **state) {
    world_t         *w = world_new(2, 0, 1);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    for (int r = 0; r < 2; r++)
        rank_enqueue(w, r, 0, &sig);
    world_settle(w);
    for (int r = 0; r < 2; r++)
        rank_enqueue(w, r, 1, &sig);
    rank_send(w, 0, 0);
    rank_send(w, 1, 0);
    rank_enqueue(w, 1, 0, &sig);
    rank_join(w, 1);
    rank_send(w, 1, 0);
    rank_feed(w, 0);
    rank_feed(w, 1);
    world_speak(w); /* t1 has the only id now */
    rank_feed(w, 1);
    rank_enqueue(w, 0, 0, &sig);
    rank_send(w, 0, 0);
    rank_feed(w, 0);
    world_speak(w); /* without rank 1's task, which is on its way */
    expect_executed(w, 0, 0, 1, 0);
    world_settle(w);
    assert_int_equal(w->ranks[1].resent, 1);
    expect_executed(w, 0, 0, 2, 0);
    expect_executed(w, 1, 0, 2, 0);
    rank_join(w, 0);
    world_settle(w);
    assert_int_equal(w->ranks[0].joins, 1);
    assert_int_equal(w->ranks[1].joins, 1);
    world_free(w);
}

static void mismatches_do_not_touch_who_has_joined(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t sig = allreduce_of(5), other = allreduce_of(6);
    (void)state;
    rank_join(w, 0);
    rank_enqueue(w, 1, 0, &sig);
    rank_enqueue(w, 2, 0, &other);
    world_settle(w);
    expect_text(&w->ranks[1].tensors[0], "rank 1 (odd) has shape [5], rank 2 (even) has shape [6]");
    rank_join(w, 1);
    rank_join(w, 2);
    world_settle(w);
    assert_int_equal(w->ranks[0].joins, 1);
    for (int r = 0; r < 3; r++)
        rank_enqueue(w, r, 0, &sig);
    world_settle(w);
    for (int r = 0; r < 3; r++)
        expect_executed(w, r, 0, 1, 0);
    world_free(w);
}

/* Another rank's failure reaches rank 0 before it joins: it is not for the time after. */
static void a_join_forgets_late_errors(void **state) {
    world_t         *w = world_new(3, 1000, 100);
    hora_signature_t sig = allreduce_of(5), other = allreduce_of(6);
    (void)state;
    rank_enqueue(w, 1, 0, &sig);
    rank_enqueue(w, 2, 0, &other);
    world_settle(w);
    assert_true(w->ranks[0].tensors[0].late);
    for (int r = 0; r < 3; r++)
        rank_join(w, r);
    world_settle(w);
    for (int r = 0; r < 3; r++)
        rank_enqueue(w, r, 0, &sig);
    world_settle(w);
    for (int r = 0; r < 3; r++)
        expect_executed(w, r, 0, 1, 0);
    world_free(w);
}

static void a_stall_names_who_has_joined(void **state) {
    world_t         *w;
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    world_join_limit = 6500000000;
    w = world_new(4, 1000, 100);
    world_join_limit = 0;
    rank_join(w, 1);
    rank_enqueue(w, 0, 0, &sig);
    rank_enqueue(w, 3, 0, &sig);
    world_settle(w);
    hora_coordinator_waited(w->coordinator, "t0", 2, 6000000000, w->now);
    world_settle(w);
    assert_int_equal(w->ranks[0].tensors[0].status, HORA_ERR_TIMEOUT);
    expect_text(&w->ranks[0].tensors[0], "for rank 2 (even); ready: ranks 0 (even), 3 (odd); "
                                         "joined: rank 1 (odd)");
    /* The join itself gives up as well, when it shall. */
    hora_coordinator_waited(w->coordinator, HORA_JOIN_NAME, HORA_JOIN_NAME_LEN, 6000000000,
                            w->now);
    world_settle(w);
    for (int r = 0; r < 4; r++)
        assert_int_equal(w->ranks[r].join_failed, 0);
    hora_coordinator_waited(w->coordinator, HORA_JOIN_NAME, HORA_JOIN_NAME_LEN, 7000000000,
                            w->now);
    world_settle(w);
    for (int r = 0; r < 4; r++)
        assert_int_equal(w->ranks[r].join_failed, 1);
    assert_false(w->ranks[1].joined);
    rank_enqueue(w, 0, 1, &sig);
    rank_enqueue(w, 2, 1, &sig);
    rank_enqueue(w, 3, 1, &sig);
    world_settle(w);
    expect_executed(w, 0, 1, 0, 0); /* rank 1 counts again */
    rank_enqueue(w, 1, 1, &sig);
    world_settle(w);
    expect_executed(w, 1, 1, 1, 0);
    world_free(w);
}

/* Unless it was asked for, a join only warns. */
static void a_join_waits_for_ever(void **state) {
    world_t *w = world_new(3, 1000, 100);
    (void)state;
    rank_join(w, 1);
    world_settle(w);
    for (uint64_t s = 2; s < 2000000000; s *= 10) {
        w->now += 10000000000;
        hora_coordinator_waited(w->coordinator, HORA_JOIN_NAME, HORA_JOIN_NAME_LEN,
                                s * 1000000000, w->now);
        world_settle(w);
    }
    assert_int_equal(w->ranks[1].join_failed, 0);
    assert_int_equal(w->ranks[1].stalls, 9);
    assert_int_equal(w->ranks[0].stalls, 0);
    rank_join(w, 0);
    rank_join(w, 2);
    world_settle(w);
    assert_int_equal(w->ranks[1].joins, 1);
    world_free(w);
}

static void a_rank_that_left_ends_the_join(void **state) {
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    for (int leaver = 1; leaver <= 2; leaver++) { /* one that has joined, and one that has not */
        world_t *w = world_new(3, 1000, 100);
        rank_join(w, 1);
        rank_enqueue(w, 0, 0, &sig);
        world_settle(w);
        hora_coordinator_left(w->coordinator, leaver);
        world_settle(w);
        assert_int_equal(w->ranks[0].tensors[0].failed, 1);
        assert_int_equal(w->ranks[1].join_failed, 1);
        rank_join(w, 0);
        world_settle(w);
        assert_int_equal(w->ranks[0].join_failed, 2);
        world_free(w);
    }
}

/* What is complete is executed, although one that counts as ready leaves before it is said. */
static void a_joined_rank_leaves_too_late(void **state) {
    world_t         *w = world_new(2, 1000, 100);
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    rank_join(w, 1);
    rank_send(w, 1, 0);
    rank_feed(w, 1);
    rank_enqueue(w, 0, 0, &sig);
    rank_send(w, 0, 0);
    rank_feed(w, 0);
    hora_coordinator_left(w->coordinator, 1);
    world_settle(w);
    expect_executed(w, 0, 0, 1, 0);
    expect_executed(w, 1, 0, 0, 1);
    assert_int_equal(w->ranks[0].tensors[0].failed, 0);
    assert_int_equal(w->ranks[1].join_failed, 1);
    world_check_order(w);
    world_free(w);
}

/* Half of a group has been waiting for nobody when a join fails: now it waits for the one that had
 * joined, whose tasks come in another order. */
static void a_join_fails_in_the_midst_of_a_group(void **state) {
    world_t         *w;
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    world_join_limit = 5000000000;
    w = world_new(3, 1000, 100);
    world_join_limit = 0;
    sig.group_key = 7;
    sig.group_size = 2;
    rank_join(w, 2);
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < 2; i++)
            rank_enqueue(w, r, i, &sig);
    for (int r = 0; r < 3; r++)
        rank_send(w, r, 1);
    rank_feed(w, 2);
    rank_feed(w, 0);
    rank_feed(w, 0);
    rank_feed(w, 1); /* t0 */
    hora_coordinator_waited(w->coordinator, HORA_JOIN_NAME, HORA_JOIN_NAME_LEN, 6000000000,
                            w->now);
    world_speak(w);
    while (rank_listen(w, 2))
        ;
    assert_int_equal(w->ranks[2].join_failed, 1);
    rank_enqueue(w, 2, 1, &sig);
    rank_enqueue(w, 2, 0, &sig);
    rank_send(w, 2, 1);
    rank_feed(w, 1);
    rank_feed(w, 2);
    assert_int_equal(world_speak(w), 0); /* t1 is everywhere, t0 is not */
    world_settle(w);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 2; i++)
            expect_executed(w, r, i, 1, 0);
    world_check_order(w);
    world_free(w);
}

static void nonsense_is_refused(void **state) {
    hora_signature_t sig = allreduce_of(5);
    world_t         *w = world_new(2, 1000, 100);
    uint64_t         hash = hora_name_hash("t0", 2);
    (void)state;
    /* A report from a rank that has joined, of what is complete, and of what is new. */
    assert_int_equal(hora_coordinator_join(w->coordinator, 1, 0, 0), HORA_OK);
    assert_int_equal(hora_coordinator_full(w->coordinator, 0, 0, hash, "t0", 2, &sig), HORA_OK);
    assert_int_equal(hora_coordinator_full(w->coordinator, 1, 0, hash, "t0", 2, &sig),
                     HORA_ERR_PROTOCOL);
    hash = hora_name_hash("t1", 2);
    assert_int_equal(hora_coordinator_full(w->coordinator, 1, 0, hash, "t1", 2, &sig),
                     HORA_ERR_PROTOCOL);
    assert_int_equal(world_speak(w), 1);
    world_free(w);
    w = world_new(2, 1000, 100);
    assert_int_equal(hora_coordinator_join(w->coordinator, 1, 0, 0), HORA_OK);
    assert_int_equal(hora_coordinator_join(w->coordinator, 1, 0, 0), HORA_ERR_PROTOCOL);
    world_free(w);
}

/* ---- At random ------------------------------------------------------------------------------ */

static unsigned seed;

static int roll(int n) {
    return (int)((unsigned)rand_r(&seed) % (unsigned)n);
}

/* One operation: a tensor alone or a group; some ranks lack it, one may do it otherwise. */
typedef struct operation {
    int              first, count;
    hora_signature_t sig;
    bool             has[16];
    int              culprit;
} operation_t;

static int plan(operation_t *ops, int size) {
    int n = 0;
    for (int t = 0; t < TENSORS; n++) {
        operation_t *op = &ops[n];
        *op = (operation_t){.first = t, .count = roll(4) == 0 ? 1 + roll(4) : 1};
        if (t + op->count > TENSORS)
            op->count = TENSORS - t;
        op->sig = allreduce_of(1 + roll(3));
        op->sig.dtype = t % 3 ? HORA_FLOAT32 : HORA_BFLOAT16;
        if (op->count > 1) {
            op->sig.group_size = (uint32_t)op->count;
            op->sig.group_key = 1000u + (unsigned)t * 100 + (unsigned)op->count;
        }
        op->culprit = roll(6) == 0 ? roll(size) : -1;
        for (int r = 0; r < size; r++)
            op->has[r] = roll(4) != 0;
        t += op->count;
    }
    return n;
}

static void do_something(world_t *w) {
    switch (roll(4)) {
    case 0: rank_feed(w, roll(w->size)); break;
    case 1: world_speak(w); break;
    default: rank_listen(w, roll(w->size)); break;
    }
}

static void enqueue_op(world_t *w, const operation_t *op, int rank) {
    for (int i = 0; i < op->count && op->has[rank]; i++) {
        hora_signature_t sig = op->sig;
        if (rank == op->culprit)
            sig.prescale = 3;
        rank_enqueue(w, rank, op->first + i, &sig);
    }
    rank_send(w, rank, roll(2) ? 0 : 1 + roll(3));
}

/* Each rank does what it has in an order of its own, and joins. */
static void play(world_t *w, const operation_t *ops, int nops) {
    int orders[16][TENSORS], done[16] = {0};
    for (int r = 0; r < w->size; r++)
        for (int i = 0; i < nops; i++) {
            int j = roll(i + 1);
            orders[r][i] = orders[r][j];
            orders[r][j] = i;
        }
    for (int left = w->size; left > 0;) {
        int r = roll(w->size);
        if (done[r] < nops)
            enqueue_op(w, &ops[orders[r][done[r]++]], r);
        else if (done[r]++ == nops) {
            rank_join(w, r);
            rank_send(w, r, 0);
            left--;
        }
        for (int k = roll(6); k > 0; k--)
            do_something(w);
    }
    for (int k = 0; k < 50; k++)
        do_something(w);
    world_settle(w);
}

static void check(world_t *w, const operation_t *ops, int nops, int epoch) {
    for (int k = 0; k < nops; k++) {
        int  have = 0;
        bool bad;
        for (int r = 0; r < w->size; r++)
            have += ops[k].has[r];
        bad = ops[k].culprit >= 0 && ops[k].has[ops[k].culprit] && have > 1;
        for (int i = 0; i < ops[k].count; i++)
            for (int r = 0; r < w->size; r++) {
                tensor_t *t = &w->ranks[r].tensors[ops[k].first + i];
                assert_false(t->sent || t->queued || t->late);
                assert_int_equal(t->executed, !bad && ops[k].has[r]);
                assert_int_equal(t->failed, bad && ops[k].has[r]);
                assert_int_equal(t->ghosts, !bad && have > 0 && !ops[k].has[r]);
                t->executed = t->failed = t->ghosts = 0;
            }
    }
    for (int r = 0; r < w->size; r++) {
        assert_int_equal(w->ranks[r].joins, epoch + 1);
        assert_int_equal(w->ranks[r].last, w->ranks[0].last);
    }
    world_check_order(w);
}

static void many_epochs(void **state) {
    static const int    sizes[] = {2, 3, 5, 16};
    static const size_t capacities[] = {HORA_CACHE_MAX, 7, 1};
    operation_t         ops[TENSORS];
    (void)state;
    for (size_t i = 0; i < 4; i++)
        for (unsigned s = 0; s < 24; s++) {
            seed = 1000 * (unsigned)i + s;
            world_t *w = world_new_active(sizes[i], s % 4 ? 20 : 0, capacities[s % 3], s % 2);
            int      nops = 0;
            for (int epoch = 0; epoch < 6; epoch++) {
                if (epoch % 2 == 0)
                    nops = plan(ops, sizes[i]);
                play(w, ops, nops);
                check(w, ops, nops, epoch);
            }
            world_free(w);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_others_go_on),
        cmocka_unit_test(tasks_before_a_join_count),
        cmocka_unit_test(the_end_comes_last),
        cmocka_unit_test(a_root_that_has_joined),
        cmocka_unit_test(a_group_lacks_a_rank),
        cmocka_unit_test(a_join_waits_for_what_is_sent_again),
        cmocka_unit_test(mismatches_do_not_touch_who_has_joined),
        cmocka_unit_test(a_join_forgets_late_errors),
        cmocka_unit_test(a_stall_names_who_has_joined),
        cmocka_unit_test(a_join_waits_for_ever),
        cmocka_unit_test(a_rank_that_left_ends_the_join),
        cmocka_unit_test(a_joined_rank_leaves_too_late),
        cmocka_unit_test(a_join_fails_in_the_midst_of_a_group),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(many_epochs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
