/*
 * Up to 64 simulated ranks with random orders, delays, groups and mistakes: every rank executes the
 * same batches, and of each operation every rank sees exactly one end, the same on all.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "world.h"

static unsigned seed;

static int roll(int n) {
    return (int)((unsigned)rand_r(&seed) % (unsigned)n);
}

/* One operation: a tensor alone or a group, with the parameters of each rank. */
typedef struct operation {
    int              first, count; /* tensors */
    hora_signature_t sig;
    int              culprit; /* the rank that makes a mistake; -1: none */
    int              mistake;
} operation_t;

static hora_signature_t signature_on(const operation_t *op, int rank, int i) {
    hora_signature_t sig = op->sig;
    sig.shape[0] += i;
    if (rank != op->culprit)
        return sig;
    switch (op->mistake) {
    case 0: sig.dtype = HORA_FLOAT64; break;
    case 1: sig.op = HORA_MAX; break;
    case 2: sig.prescale = 3; break;
    case 3: /* another group of as many */
        sig.group_key += op->count > 1 ? 7 : 0;
        sig.postscale = op->count > 1 ? 1 : 2;
        break;
    default: /* another grouping */
        sig.group_size = op->count > 1 ? 1 : 2;
        sig.group_key = op->count > 1 ? 0 : 12345;
        break;
    }
    return sig;
}

static void plan(operation_t *ops, int *nops_p, int round, bool mistakes, int size) {
    int n = 0;
    for (int t = 0; t < TENSORS;) {
        operation_t *op = &ops[n++];
        op->first = t;
        op->count = roll(4) == 0 ? 1 + roll(5) : 1;
        if (t + op->count > TENSORS)
            op->count = TENSORS - t;
        op->sig = allreduce_of(1 + roll(2) * (round % 3));
        op->sig.dtype = t % 3 ? HORA_FLOAT32 : HORA_BFLOAT16;
        if (op->count > 1) {
            op->sig.group_size = (uint32_t)op->count;
            op->sig.group_key = 1000u + (unsigned)t * 100 + (unsigned)op->count;
        }
        op->culprit = mistakes && roll(5) == 0 ? roll(size) : -1;
        op->mistake = roll(op->count > 1 ? 5 : 3);
        t += op->count;
    }
    *nops_p = n;
}

/* Moves frames at random until nothing moves any more. */
static void mix(world_t *w) {
    for (int idle = 0; idle < 3;) {
        bool moved = false;
        for (int k = 0; k < 4 * w->size; k++) {
            int r = roll(w->size);
            switch (roll(4)) {
            case 0: moved |= rank_feed(w, r); break;
            case 1: moved |= world_speak(w) > 0; break;
            default: moved |= rank_listen(w, r); break;
            }
        }
        idle = moved ? 0 : idle + 1;
    }
    world_settle(w);
}

static void enqueue_some(world_t *w, const operation_t *ops, const int *order, int from, int to,
                         int rank) {
    for (int k = from; k < to; k++) {
        const operation_t *op = &ops[order[k]];
        int                turn = roll(op->count);
        for (int i = 0; i < op->count; i++) {
            int              t = op->first + (i + turn) % op->count;
            hora_signature_t sig = signature_on(op, rank, t - op->first);
            rank_enqueue(w, rank, t, &sig);
        }
    }
    rank_send(w, rank, roll(3) ? 0 : 1 + roll(3));
}

static void play_round(world_t *w, const operation_t *ops, int nops) {
    int (*orders)[TENSORS] = calloc((size_t)w->size, sizeof(*orders));
    int *done = calloc((size_t)w->size, sizeof(*done));
    for (int r = 0; r < w->size; r++)
        for (int i = 0; i < nops; i++) {
            int j = roll(i + 1);
            orders[r][i] = orders[r][j];
            orders[r][j] = i;
        }
    for (int left = w->size; left > 0;) {
        int r = roll(w->size), to = done[r] + 1 + roll(nops);
        if (done[r] < nops) {
            to = to > nops ? nops : to;
            enqueue_some(w, ops, orders[r], done[r], to, r);
            done[r] = to;
            left -= to == nops;
        }
        if (roll(2))
            rank_feed(w, roll(w->size));
        if (roll(3) == 0)
            world_speak(w);
        rank_listen(w, roll(w->size));
    }
    mix(w);
    free(orders);
    free(done);
}

static void check_round(world_t *w, const operation_t *ops, int nops) {
    for (int k = 0; k < nops; k++)
        for (int i = 0; i < ops[k].count; i++)
            for (int r = 0; r < w->size; r++) {
                tensor_t *t = &w->ranks[r].tensors[ops[k].first + i];
                bool      bad = ops[k].culprit >= 0;
                assert_false(t->sent || t->queued || t->late);
                assert_int_equal(t->executed, !bad);
                assert_int_equal(t->failed, bad);
                t->executed = t->failed = 0;
            }
    world_check_order(w);
}

static void simulate(int size, size_t threshold, size_t capacity, bool mistakes, int rounds) {
    world_t     *w = world_new(size, threshold, capacity);
    operation_t *ops = calloc(TENSORS, sizeof(*ops));
    int          nops = 0;
    for (int round = 0; round < rounds; round++) {
        if (round % 3 == 0 || mistakes) /* else the same again, by ids */
            plan(ops, &nops, round, mistakes, size);
        play_round(w, ops, nops);
        check_round(w, ops, nops);
    }
    free(ops);
    world_free(w);
}

static void any_order(void **state) {
    static const int sizes[] = {1, 2, 3, 5, 8, 17, 64};
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        seed = (unsigned)i;
        simulate(sizes[i], 20, HORA_CACHE_MAX, false, 9);
    }
}

static void few_ids(void **state) {
    (void)state;
    seed = 10;
    simulate(4, 20, 10, false, 20);
    simulate(7, 1000000, 1, false, 10);
}

static void with_mistakes(void **state) {
    static const int sizes[] = {2, 3, 4, 8, 33};
    (void)state;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        for (unsigned s = 0; s < (sizes[i] < 10 ? 30u : 3u); s++) {
            seed = 100 * (unsigned)i + s;
            simulate(sizes[i], 20, s % 3 ? HORA_CACHE_MAX : 8, true, 6);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_order),
        cmocka_unit_test(few_ids),
        cmocka_unit_test(with_mistakes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
