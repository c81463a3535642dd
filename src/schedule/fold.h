/*
 * What recursive doubling and halving share: folding a number of ranks that is no power of two, and
 * the exchange of two ranks that is cut into chunks. Planner code: pure, any thread.
 *
 * Folding: with p = 2^k + r, ranks 2i and 2i+1 for i < r are a pair. The even one gives its vector
 * to the odd one, sits out, and gets the result at the end. The 2^k others have numbers 0 .. 2^k-1
 * in the order of their ranks.
 *
 *     p = 6:   0->1  2->3  4  5      numbers: 1:0  3:1  4:2  5:3
 */
#ifndef HORA_SCHEDULE_FOLD_H
#define HORA_SCHEDULE_FOLD_H

#include "schedule/plan.h"

typedef struct hora_fold {
    const hora_coll_t *coll;
    hora_plan_t       *plan;
    size_t             chunk;
    int                extra;  /* pairs */
    int                ranks;  /* 2^k */
    int                number; /* mine; -1: I sit out */
    hora_buf_t         acc;    /* where my sum is: IN before the first reduction, then OUT */
} hora_fold_t;

hora_fold_t hora_fold_init(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                           hora_plan_t *plan);
/* Rank of a number. */
int hora_fold_rank(const hora_fold_t *fold, int number);
/* The pairs' first step. False: I sit out, and the result's receive has been planned: done. */
bool hora_fold_enter(hora_fold_t *fold);
/* The pairs' last step: odd ranks pass the result on. */
void hora_fold_leave(hora_fold_t *fold);

/* Sends [send_at, +send_count) of acc, receives [recv_at, +recv_count) and combines it with acc
 * into OUT, the lower rank's part always first. finish: this is the last reduction. Does not
 * change fold->acc. */
void hora_fold_exchange(hora_fold_t *fold, int peer, size_t send_at, size_t send_count,
                        size_t recv_at, size_t recv_count, bool finish);

#endif
