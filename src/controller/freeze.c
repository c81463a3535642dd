/*
 * The frozen schedule, as the coordinator sees it (coordinator.h). Pure code; the driving thread of
 * rank 0.
 *
 * A training step enqueues the same tasks in the same order again and again. When the sequence in
 * which tasks become complete has repeated often enough, the coordinator tells it to all ranks
 * (FREEZE). From then on a task has a position: the sequence goes on for ever, and position p is
 * the task ids[p % n]. A rank says up to which position everything is ready there (PROGRESS), the
 * coordinator up to which position everything is ready everywhere (ADVANCE), and each rank finds
 * the batches by the same rule (fuse.h). Whatever is not of this kind thaws the schedule, and then
 * all is as it was before.
 *
 *   COLLECTING  FREEZE was said; tasks are still counted one by one, until every rank has answered
 *               with the position up to which it has reported. A rank that cannot, because it has
 *               reported other tasks of the sequence than the next ones, declines.
 *   FROZEN      only upto[] counts. No task of the sequence has a round.
 *   OFF         after a thaw, what a rank still says by position is counted as single reports. It
 *               does so at most until it has read THAW, so not beyond the next n positions; and the
 *               next FREEZE comes later than that, because every rank has to report every task
 *               several times before.
 *
 * Nothing is lost or counted twice: a rank reports each task either by position or by itself, and
 * once it has reported one by itself while frozen, it does so with all.
 */
#include "controller/round.h"
#include "controller/trace.h"

#include <stdlib.h>

#define PERIODS_MIN 4    /* equal periods before the schedule is frozen */
#define PERIODS_MAX 1024 /* each thaw doubles the number, up to here */
#define IDS_MAX     16000 /* they must fit one frame */

/* ---- Learning the sequence ------------------------------------------------------------------ */

static void forget_sequence(hora_freeze_t *f) {
    f->nseq = 0;
    f->is_closed = false;
    f->is_due = false;
    f->mark++;
}

static void append(hora_coordinator_t *c, hora_entry_t *e) {
    hora_freeze_t *f = &c->freeze;
    if (f->nseq == f->seq_room) {
        size_t    room = f->seq_room ? 2 * f->seq_room : 64;
        uint32_t *seq = room <= IDS_MAX ? realloc(f->seq, room * sizeof(*seq)) : NULL;
        if (seq == NULL) { /* no memory, or too long a sequence: it will not be frozen */
            forget_sequence(f);
            return;
        }
        f->seq = seq;
        f->seq_room = room;
    }
    e->freeze_mark = f->mark;
    f->seq[f->nseq++] = e->id;
}

static void begin_sequence(hora_coordinator_t *c, hora_entry_t *e) {
    forget_sequence(&c->freeze);
    append(c, e);
}

/* The sequence has gone round once more. */
static void count_period(hora_coordinator_t *c) {
    hora_freeze_t *f = &c->freeze;
    f->periods++;
    f->is_due = f->periods >= f->periods_wanted && c->slots_used < c->options.cache_capacity &&
                c->nleft == 0 && f->state == HORA_FREEZE_OFF && c->options.tune == NULL &&
                !hora_coordinator_traces(c);
}

static void follow(hora_coordinator_t *c, hora_entry_t *e) {
    hora_freeze_t *f = &c->freeze;
    if (!f->is_closed && f->nseq > 0 && e->id == f->seq[0]) {
        f->is_closed = true;
        f->at = 0;
        f->periods = 0;
        count_period(c);
    }
    if (!f->is_closed) {
        if (f->nseq > 0 && e->freeze_mark == f->mark)
            begin_sequence(c, e); /* a task twice, before the first comes again */
        else
            append(c, e);
        return;
    }
    if (e->id != f->seq[f->at]) {
        begin_sequence(c, e);
        return;
    }
    f->at++;
    if (f->at == f->nseq) {
        f->at = 0;
        count_period(c);
    }
}

/* e is complete and will be executed. */
void hora_freeze_note(hora_coordinator_t *c, hora_entry_t *e, bool is_plain) {
    hora_freeze_t *f = &c->freeze;
    if (!c->options.freeze)
        return;
    if (f->state == HORA_FREEZE_COLLECTING) {
        if (is_plain && e->id == f->ids[f->done % f->n])
            f->done++;
        else
            hora_freeze_thaw(c); /* without memory for the note, the next frame says it */
        return;
    }
    if (!is_plain || c->join != NULL)
        forget_sequence(f);
    else
        follow(c, e);
}

/* ---- Freezing ------------------------------------------------------------------------------- */

bool hora_freeze_has_item(const hora_coordinator_t *c) {
    const hora_freeze_t *f = &c->freeze;
    return f->is_due || (f->state == HORA_FREEZE_FROZEN && f->ready > f->done);
}

static bool say_freeze(hora_coordinator_t *c, hora_frame_writer_t *w) {
    hora_freeze_t *f = &c->freeze;
    uint32_t      *ids = realloc(f->ids, f->nseq * sizeof(*ids));
    if (ids == NULL) {
        forget_sequence(f);
        return false;
    }
    f->ids = ids;
    if (!hora_frame_put_freeze(w, f->epoch + 1, c->options.fusion_threshold, (uint32_t)f->at,
                               f->seq, (uint32_t)f->nseq))
        return false;
    memcpy(f->ids, f->seq, f->nseq * sizeof(*ids));
    f->n = f->nseq;
    f->epoch++;
    f->done = f->at;
    f->nanswers = 0;
    memset(f->answered, 0, (size_t)c->options.size * sizeof(f->answered[0]));
    memset(f->single, 0, (size_t)c->options.size * sizeof(f->single[0]));
    f->state = HORA_FREEZE_COLLECTING;
    forget_sequence(f);
    return true;
}

bool hora_freeze_say(hora_coordinator_t *c, hora_frame_writer_t *w) {
    hora_freeze_t *f = &c->freeze;
    if (f->is_due)
        return say_freeze(c, w);
    if (!hora_freeze_has_item(c) || !hora_frame_put_advance(w, f->epoch, f->done, f->ready))
        return false;
    f->done = f->ready;
    return true;
}

/* Looks at all ranks; so only when the last of those that were behind has gone on. */
static void find_ready(hora_coordinator_t *c) {
    hora_freeze_t *f = &c->freeze;
    f->ready = UINT64_MAX;
    for (int r = 0; r < c->options.size; r++) {
        if (f->upto[r] < f->ready) {
            f->ready = f->upto[r];
            f->nleast = 0;
        }
        f->nleast += f->upto[r] == f->ready;
    }
}

/* Every rank has answered. What was counted one by one is what they say, or something is wrong. */
static bool is_consistent(const hora_coordinator_t *c) {
    const hora_freeze_t *f = &c->freeze;
    for (uint64_t p = f->done; p < f->done + f->n; p++) {
        const hora_entry_t *e = hora_cache_find((hora_coordinator_t *)c, f->ids[p % f->n]);
        for (int r = 0; r < c->options.size; r++)
            if (e == NULL || e->id_stale || e->group != NULL ||
                (!e->is_listed && hora_entry_reported(e, r)) != (f->upto[r] > p))
                return false;
    }
    return true;
}

static void freeze(hora_coordinator_t *c) {
    hora_freeze_t *f = &c->freeze;
    if (!is_consistent(c)) {
        hora_freeze_thaw(c);
        return;
    }
    for (size_t i = 0; i < f->n; i++) {
        hora_entry_t *e = hora_cache_find(c, f->ids[i]);
        if (!e->is_listed)
            hora_entry_end_round(c, e);
    }
    f->state = HORA_FREEZE_FROZEN;
    find_ready(c);
}

/* ---- Progress ------------------------------------------------------------------------------- */

static hora_status_t answer(hora_coordinator_t *c, int rank, uint64_t upto) {
    hora_freeze_t *f = &c->freeze;
    f->answered[rank] = true;
    f->single[rank] = upto == HORA_FREEZE_DECLINED;
    f->upto[rank] = upto;
    if (f->single[rank]) {
        f->upto[rank] = 0;
        hora_freeze_thaw(c);
        return HORA_OK;
    }
    if (f->state != HORA_FREEZE_COLLECTING)
        return HORA_OK;
    if (upto < f->done || upto > f->done + f->n)
        return HORA_ERR_PROTOCOL;
    if (++f->nanswers == c->options.size)
        freeze(c);
    return HORA_OK;
}

hora_status_t hora_coordinator_progress(hora_coordinator_t *c, int rank, uint32_t acked,
                                        uint32_t epoch, uint64_t upto) {
    hora_freeze_t *f = &c->freeze;
    uint64_t       from = f->upto[rank];
    hora_status_t  st = HORA_OK;
    bool           is_answer = epoch == f->epoch && f->n > 0 && !f->answered[rank];
    c->acked[rank] = acked;
    if (is_answer)
        st = answer(c, rank, upto);
    else if (epoch != f->epoch || f->n == 0 || f->single[rank] || upto < from ||
             upto > from + f->n ||
             (f->state == HORA_FREEZE_FROZEN && upto > f->done + f->n))
        st = HORA_ERR_PROTOCOL;
    if (st == HORA_ERR_PROTOCOL)
        return hora_fail(st, "rank %d says that it is ready up to where it cannot be", rank);
    if (st != HORA_OK || is_answer)
        return st;
    f->upto[rank] = upto;
    if (f->state != HORA_FREEZE_FROZEN)
        return hora_freeze_count_single(c, rank, from, upto);
    if (from == f->ready && upto > from && --f->nleast == 0)
        find_ready(c);
    return HORA_OK;
}

/* ---- Thawing -------------------------------------------------------------------------------- */

/* Back to single reports: each rank has reported everything from `done` to its own position. */
hora_status_t hora_freeze_thaw(hora_coordinator_t *c) {
    hora_freeze_t *f = &c->freeze;
    bool           was_frozen = f->state == HORA_FREEZE_FROZEN;
    hora_note_t   *note = NULL;
    hora_status_t  st = HORA_OK;
    forget_sequence(f);
    if (f->state == HORA_FREEZE_OFF)
        return HORA_OK;
    f->state = HORA_FREEZE_OFF;
    if (f->periods_wanted < PERIODS_MAX)
        f->periods_wanted *= 2;
    st = hora_note_add(c, HORA_ITEM_THAW, NULL, "", &note);
    if (st != HORA_OK)
        return st;
    note->id = f->epoch;
    for (uint64_t p = f->done; was_frozen && p < f->done + f->n; p++)
        for (int r = 0; r < c->options.size && st == HORA_OK; r++)
            if (f->upto[r] > p)
                st = hora_freeze_count_single(c, r, p, p + 1);
    return st;
}

/* A rank that reports by itself, although it knows of the frozen schedule, has left it. */
hora_status_t hora_freeze_check_single(hora_coordinator_t *c, int rank) {
    const hora_freeze_t *f = &c->freeze;
    if (f->state == HORA_FREEZE_FROZEN || (f->state == HORA_FREEZE_COLLECTING && f->answered[rank]))
        return hora_freeze_thaw(c);
    return HORA_OK;
}

hora_status_t hora_freeze_create(hora_coordinator_t *c) {
    hora_freeze_t *f = &c->freeze;
    size_t         size = (size_t)c->options.size;
    f->periods_wanted = PERIODS_MIN;
    f->mark = 1;
    f->upto = calloc(size, sizeof(*f->upto));
    f->answered = calloc(size, sizeof(*f->answered));
    f->single = calloc(size, sizeof(*f->single));
    return f->upto != NULL && f->answered != NULL && f->single != NULL ? HORA_OK
                                                                       : HORA_ERR_NO_MEMORY;
}

void hora_freeze_destroy(hora_coordinator_t *c) {
    free(c->freeze.seq);
    free(c->freeze.ids);
    free(c->freeze.upto);
    free(c->freeze.answered);
    free(c->freeze.single);
}
