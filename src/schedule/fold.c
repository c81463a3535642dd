/*
 * Folding and chunked exchange, for doubling.c and halving.c (fold.h). Planner code, any thread.
 *
 * Invariant: a place is overwritten only after the sends from it have been waited for.
 */
#include "schedule/fold.h"

#include "schedule/algos.h"

#define LEAD 2 /* receives posted ahead; LEAD + 1 chunks of TMP */

hora_fold_t hora_fold_init(const hora_coll_t *coll, const hora_plan_hint_t *hint,
                           hora_plan_t *plan) {
    hora_fold_t fold = {.coll = coll, .plan = plan, .chunk = hint->chunk, .ranks = 1,
                        .acc = HORA_BUF_IN};
    if (fold.chunk > coll->count)
        fold.chunk = coll->count;
    while (fold.ranks * 2 <= coll->size)
        fold.ranks *= 2;
    fold.extra = coll->size - fold.ranks;
    if (coll->rank >= 2 * fold.extra)
        fold.number = coll->rank - fold.extra;
    else
        fold.number = coll->rank % 2 ? coll->rank / 2 : -1;
    plan->tmp = (LEAD + 1) * fold.chunk;
    return fold;
}

int hora_fold_rank(const hora_fold_t *fold, int number) {
    return number < fold->extra ? 2 * number + 1 : number + fold->extra;
}

void hora_fold_exchange(hora_fold_t *fold, int peer, size_t send_at, size_t send_count,
                        size_t recv_at, size_t recv_count, bool finish) {
    hora_plan_t *plan = fold->plan;
    size_t       chunk = fold->chunk, posted = 0, sent = 0;
    uint32_t     recvs[LEAD + 1], sends[LEAD + 1];
    bool         same = send_at == recv_at; /* the sums overwrite what is being sent */
    for (size_t i = 0; i * chunk < send_count || i * chunk < recv_count; i++) {
        size_t     n = hora_chunk_count(chunk, recv_count, i), slot = i % (LEAD + 1);
        hora_ref_t mine = hora_own(fold->acc, recv_at + i * chunk);
        hora_ref_t theirs = hora_own(HORA_BUF_TMP, slot * chunk);
        hora_ref_t sum = hora_own(HORA_BUF_OUT, recv_at + i * chunk);
        for (; posted <= i + LEAD; posted++)
            recvs[posted % (LEAD + 1)] =
                hora_plan_recv(plan, peer, HORA_BUF_TMP, posted % (LEAD + 1) * chunk,
                               hora_chunk_count(chunk, recv_count, posted));
        for (; sent <= i + LEAD; sent++)
            sends[sent % (LEAD + 1)] = hora_plan_send(plan, peer, fold->acc, send_at + sent * chunk,
                                                      hora_chunk_count(chunk, send_count, sent));
        hora_plan_wait(plan, recvs[slot]);
        if (same)
            hora_plan_wait(plan, sends[slot]);
        hora_plan_combine(plan, peer < fold->coll->rank ? theirs : mine,
                          peer < fold->coll->rank ? mine : theirs, sum, n, finish);
        if (!same)
            hora_plan_wait(plan, sends[slot]);
    }
}

bool hora_fold_enter(hora_fold_t *fold) {
    int      rank = fold->coll->rank;
    size_t   count = fold->coll->count;
    uint32_t sends[LEAD + 1] = {HORA_NO_XFER, HORA_NO_XFER, HORA_NO_XFER};
    if (rank >= 2 * fold->extra)
        return true;
    if (rank % 2) {
        hora_fold_exchange(fold, rank - 1, 0, 0, 0, count, false);
        fold->acc = HORA_BUF_OUT;
        return true;
    }
    for (size_t i = 0; i * fold->chunk < count; i++) {
        hora_plan_wait(fold->plan, sends[i % (LEAD + 1)]);
        sends[i % (LEAD + 1)] = hora_plan_send(fold->plan, rank + 1, HORA_BUF_IN, i * fold->chunk,
                                               hora_chunk_count(fold->chunk, count, i));
    }
    for (int i = 0; i <= LEAD; i++) /* in place, the result comes to where they are sent from */
        hora_plan_wait(fold->plan, sends[i]);
    hora_plan_wait(fold->plan, hora_plan_recv(fold->plan, rank + 1, HORA_BUF_OUT, 0, count));
    return false;
}

void hora_fold_leave(hora_fold_t *fold) {
    int rank = fold->coll->rank;
    if (rank < 2 * fold->extra)
        hora_plan_send(fold->plan, rank - 1, HORA_BUF_OUT, 0, fold->coll->count);
}
