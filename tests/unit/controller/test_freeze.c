/* The frozen schedule: steps that repeat, and everything that can come between. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "world.h"

static world_t *new_world(int size, size_t threshold, size_t capacity) {
    world_freezes = true;
    return world_new(size, threshold, capacity);
}

/* `rounds` steps of tensors 0 .. n-1, each in the same order on all ranks. */
static void steps(world_t *w, int n, int rounds) {
    hora_signature_t sig = allreduce_of(5);
    for (int round = 0; round < rounds; round++) {
        for (int r = 0; r < w->size; r++)
            for (int i = 0; i < n; i++)
                rank_enqueue(w, r, i, &sig);
        world_settle(w);
    }
}

static void expect_executed(const world_t *w, int tensor, int times) {
    for (int r = 0; r < w->size; r++)
        assert_int_equal(w->ranks[r].tensors[tensor].executed, times);
}

static void expect_frozen(const world_t *w, bool frozen) {
    for (int r = 0; r < w->size; r++)
        assert_int_equal(w->ranks[r].frozen.reports, frozen);
}

static void steps_that_repeat_are_frozen(void **state) {
    static const int lengths[] = {1, 2, 7, TENSORS};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        world_t *w = new_world(3, 60, HORA_CACHE_MAX);
        int      n = lengths[i];
        size_t   bytes;
        steps(w, n, 7);
        expect_frozen(w, true);
        bytes = w->ranks[1].bytes_sent;
        steps(w, n, 10);
        assert_int_equal(w->ranks[1].bytes_sent - bytes, 10 * 36); /* one number per step */
        assert_int_equal(w->ranks[1].frozen.freezes, 1);
        assert_int_equal(w->ranks[1].frozen.advances, w->ranks[0].frozen.advances);
        assert_true(w->ranks[1].frozen.advances >= 10);
        for (int t = 0; t < n; t++)
            expect_executed(w, t, 17);
        world_check_order(w);
        world_free(w);
    }
}

/* Frozen batches are what they are otherwise, and begin before a step is complete. */
static void batches_are_the_same(void **state) {
    world_t         *w[2];
    hora_signature_t sig[12];
    (void)state;
    for (int i = 0; i < 12; i++) {
        sig[i] = allreduce_of(1 + i % 4);
        sig[i].dtype = i % 3 ? HORA_FLOAT32 : HORA_BFLOAT16;
        sig[i].kind = i % 5 == 4 ? HORA_TASK_BROADCAST : HORA_TASK_ALLREDUCE;
    }
    for (int k = 0; k < 2; k++) {
        world_freezes = k;
        w[k] = world_new(2, 30, 100);
        for (int round = 0; round < 12; round++)
            for (int part = 0; part < 3; part++) {
                for (int r = 0; r < 2; r++)
                    for (int i = 0; i < 4; i++)
                        rank_enqueue(w[k], r, 4 * part + i, &sig[4 * part + i]);
                world_settle(w[k]);
                assert_int_equal(w[k]->ranks[0].tensors[4 * part].executed, round + 1);
            }
    }
    assert_true(w[1]->ranks[0].frozen.advances > 10);
    assert_int_equal(w[0]->ranks[0].frozen.advances, 0);
    assert_int_equal(w[0]->ranks[0].norder, w[1]->ranks[0].norder);
    assert_memory_equal(w[0]->ranks[0].order, w[1]->ranks[0].order,
                        w[0]->ranks[0].norder * sizeof(int));
    world_free(w[0]);
    world_free(w[1]);
}

/* A rank wants the third tensor before it does the first: it must get it. */
static void another_order_does_not_wait(void **state) {
    hora_signature_t sig = allreduce_of(5);
    (void)state;
    for (int early = 0; early < 2; early++) {
        world_t *w = new_world(3, 60, 100);
        steps(w, 5, 8);
        expect_frozen(w, true);
        for (int r = 0; r < 3; r++) {
            rank_enqueue(w, r, 0, &sig); /* by position on some ranks */
            if (r != early)
                rank_enqueue(w, r, 1, &sig);
        }
        world_settle(w);
        expect_executed(w, 0, 9);
        expect_executed(w, 1, 8);
        for (int r = 0; r < 3; r++)
            rank_enqueue(w, r, 3, &sig);
        world_settle(w);
        expect_executed(w, 3, 9);
        expect_frozen(w, false);
        rank_enqueue(w, early, 1, &sig);
        for (int r = 0; r < 3; r++) {
            rank_enqueue(w, r, 2, &sig);
            rank_enqueue(w, r, 4, &sig);
        }
        world_settle(w);
        steps(w, 5, 20);
        expect_frozen(w, true); /* again */
        for (int t = 0; t < 5; t++)
            expect_executed(w, t, 29);
        world_check_order(w);
        world_free(w);
    }
}

static void a_mismatch_in_a_frozen_step(void **state) {
    world_t         *w = new_world(3, 60, 100);
    hora_signature_t sig = allreduce_of(5), other = allreduce_of(6);
    (void)state;
    steps(w, 4, 8);
    for (int r = 0; r < 3; r++)
        for (int i = 0; i < 4; i++)
            rank_enqueue(w, r, i, r == 1 && i == 2 ? &other : &sig);
    world_settle(w);
    for (int r = 0; r < 3; r++)
        assert_int_equal(w->ranks[r].tensors[2].failed, 1);
    expect_executed(w, 1, 9);
    expect_executed(w, 2, 8);
    expect_executed(w, 3, 9);
    steps(w, 4, 3);
    expect_executed(w, 2, 11);
    world_free(w);
}

static void nonsense_is_refused(void **state) {
    world_t *w = new_world(2, 60, 100);
    (void)state;
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 0, 0), HORA_ERR_PROTOCOL);
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 1, 0), HORA_ERR_PROTOCOL);
    steps(w, 4, 8);
    expect_frozen(w, true);
    uint64_t at = w->ranks[1].frozen.reported;
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 2, at), HORA_ERR_PROTOCOL);
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 1, at - 1), HORA_ERR_PROTOCOL);
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 1, at + 5), HORA_ERR_PROTOCOL);
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 1, HORA_FREEZE_DECLINED),
                     HORA_ERR_PROTOCOL);
    assert_int_equal(hora_coordinator_progress(w->coordinator, 1, 0, 1, at + 4), HORA_OK);
    world_free(w);
}

/* ---- At random ------------------------------------------------------------------------------ */

#define RANKS_MAX 6
#define ROUNDS    40
#define ITEMS_MAX (ROUNDS * (TENSORS + 1))

static unsigned seed;
static int      total_freezes, total_advances, total_declines, total_joins, total_failures;

static int roll(int n) {
    return (int)((unsigned)rand_r(&seed) % (unsigned)n);
}

/* What a rank does, one after the other; tensor JOIN: a join. */
typedef struct program {
    struct {
        int              tensor;
        hora_signature_t sig;
    } items[ITEMS_MAX];
    int length, next;
    int had[TENSORS];
} program_t;

static void add(program_t *p, int tensor, const hora_signature_t *sig) {
    p->items[p->length].tensor = tensor;
    p->items[p->length++].sig = *sig;
    if (tensor != JOIN)
        p->had[tensor]++;
}

static void shuffle(program_t *p, int from) {
    for (int i = p->length - 1; i > from; i--) {
        int j = from + roll(i - from + 1);
        __typeof__(p->items[0]) x = p->items[i];
        p->items[i] = p->items[j];
        p->items[j] = x;
    }
}

/* One step, as a rule like all others. */
static void plan_round(program_t *programs, int size, int n, int *mistakes, int calm) {
    int              what = roll(calm), odd = roll(n), culprit = roll(size), begin;
    hora_signature_t join = {.kind = HORA_TASK_JOIN};
    for (int r = 0; r < size; r++) {
        program_t *p = &programs[r];
        begin = p->length;
        for (int i = 0; i < n; i++) {
            hora_signature_t sig = allreduce_of(1 + i % 5);
            if (what == 1 && i == odd && r == culprit)
                sig.op = HORA_MAX; /* a mistake */
            if (what == 2 && i == odd)
                sig.dtype = HORA_FLOAT64; /* other parameters, everywhere */
            if (what == 3 && roll(4) == 0)
                continue; /* before a join */
            add(p, i, &sig);
            if (what == 4 && i == odd && n < TENSORS) { /* one more than usual */
                hora_signature_t more = allreduce_of(9);
                add(p, n, &more);
            }
        }
        if (what == 5 || (what == 6 && r == culprit))
            shuffle(p, begin);
        if (what == 3)
            add(p, JOIN, &join);
    }
    mistakes[odd] += what == 1;
}

static bool can_go_on(const world_t *w, int rank, const program_t *p) {
    const rank_t *r = &w->ranks[rank];
    int           t;
    if (p->next == p->length || r->joined)
        return false;
    t = p->items[p->next].tensor;
    return t == JOIN || (!r->tensors[t].queued && !r->tensors[t].sent);
}

static void go_on(world_t *w, int rank, program_t *p) {
    for (int k = 1 + roll(8); k > 0 && can_go_on(w, rank, p); k--) {
        if (p->items[p->next].tensor == JOIN)
            rank_join(w, rank);
        else
            rank_enqueue(w, rank, p->items[p->next].tensor, &p->items[p->next].sig);
        p->next++;
    }
    rank_send(w, rank, roll(3) ? 0 : 1 + roll(3));
}

static void ask(world_t *w) {
    char name[16];
    int  len = snprintf(name, sizeof(name), "t%d", roll(4));
    w->now += 1000;
    hora_coordinator_waited(w->coordinator, name, (size_t)len, 1000000, w->now);
}

static void play(world_t *w, program_t *programs, int questions) {
    for (int left = w->size, idle = 0; left > 0;) {
        int r = roll(w->size);
        switch (roll(6)) {
        case 0:
        case 1: go_on(w, r, &programs[r]); break;
        case 2:
        case 3: rank_feed(w, r); break;
        case 4: world_speak(w); break;
        default: rank_listen(w, r); break;
        }
        if (questions > 0 && roll(questions) == 0)
            ask(w);
        left = 0;
        for (r = 0; r < w->size; r++)
            left += programs[r].next < programs[r].length;
        assert_true(++idle < 10000000); /* a deadlock */
    }
    world_settle(w);
}

static void check(world_t *w, const program_t *programs, const int *mistakes) {
    for (int t = 0; t < TENSORS; t++)
        for (int r = 0; r < w->size; r++) {
            const tensor_t *x = &w->ranks[r].tensors[t], *first = &w->ranks[0].tensors[t];
            assert_false(x->sent || x->queued);
            assert_int_equal(x->failed, mistakes[t]);
            assert_int_equal(x->executed + x->failed, programs[r].had[t]);
            assert_int_equal(x->executed + x->ghosts, first->executed + first->ghosts);
            total_failures += x->failed;
        }
    for (int r = 0; r < w->size; r++) {
        total_freezes += w->ranks[r].frozen.freezes;
        total_advances += w->ranks[r].frozen.advances;
        total_declines += w->ranks[r].frozen.declines;
        total_joins += w->ranks[r].joins;
        assert_int_equal(w->ranks[r].joins, w->ranks[0].joins);
    }
    world_check_order(w);
}

static void anything_may_come_between(void **state) {
    program_t *programs = calloc(RANKS_MAX, sizeof(*programs));
    (void)state;
    for (unsigned s = 0; s < 600; s++) {
        int      mistakes[TENSORS] = {0}, size, n, calm;
        world_t *w;
        seed = s;
        size = 2 + roll(RANKS_MAX - 1);
        n = 1 + roll(s % 10 ? 9 : 60);
        calm = s % 3 == 0 ? 1 : 10 + roll(60); /* every so many rounds something else */
        w = new_world(size, s % 4 ? 40 : 0, s % 7 == 6 ? (size_t)n + 2 : HORA_CACHE_MAX);
        memset(programs, 0, RANKS_MAX * sizeof(*programs));
        for (int round = 0; round < ROUNDS; round++)
            plan_round(programs, size, n, mistakes, calm);
        play(w, programs, s % 5 == 4 ? 3000 : 0);
        check(w, programs, mistakes);
        world_free(w);
    }
    free(programs);
    print_message("%d freezes, %d advances, %d declines, %d joins, %d failures\n", total_freezes,
                  total_advances, total_declines, total_joins, total_failures);
    assert_true(total_freezes > 1000 && total_advances > 10000 && total_declines > 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_that_repeat_are_frozen),
        cmocka_unit_test(batches_are_the_same),
        cmocka_unit_test(another_order_does_not_wait),
        cmocka_unit_test(a_mismatch_in_a_frozen_step),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(anything_may_come_between),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
