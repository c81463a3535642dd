/*
 * The coordinator's voice: what is ready is put into batches, and batches and notes into frames
 * (coordinator.h). Pure code; the driving thread of rank 0.
 */
#include "controller/fuse.h"
#include "controller/round.h"

#include <stdlib.h>

/* Does the reference need the name, because the ranks do not know the id for it? */
bool hora_entry_needs_name(const hora_entry_t *e) {
    return e->id == 0 || e->id_stale || e->sig != &e->id_sig;
}

/* Ranks that have joined bring nothing to it, and must be told what it is. */
static bool is_partial(const hora_coordinator_t *c, const hora_entry_t *e) {
    return e->nready < (uint32_t)c->options.size;
}

static const hora_signature_t *ref_sig(const hora_coordinator_t *c, const hora_entry_t *e) {
    return is_partial(c, e) ? e->sig : NULL;
}

static size_t ref_bytes(const hora_coordinator_t *c, const hora_entry_t *e) {
    return hora_frame_ref_bytes(hora_entry_needs_name(e) ? e->name.len : 0, ref_sig(c, e));
}

/* ---- Batches -------------------------------------------------------------------------------- */

static void begin_batch(hora_coordinator_t *c, hora_entry_t *e) {
    e->batch_last = e;
    e->batch_refs = ref_bytes(c, e);
    e->batch_count = 1;
    e->batch_next = NULL;
    *c->batches_tail = e;
    c->batches_tail = &e->batch_next;
}

static void extend_batch(const hora_coordinator_t *c, hora_entry_t *batch, hora_entry_t *e) {
    batch->batch_last->next = e;
    batch->batch_last = e;
    batch->batch_refs += ref_bytes(c, e);
    batch->batch_count++;
}

static void plan(hora_coordinator_t *c) {
    hora_fuser_t fuser;
    hora_fuser_init(&fuser, c->options.fusion_threshold);
    for (hora_entry_t *e = c->ready, *next; e != NULL; e = next) {
        bool               is_new;
        hora_fuse_batch_t *batch =
            hora_fuser_add(&fuser, e->sig, e->bytes, ref_bytes(c, e), e->nready, &is_new);
        next = e->next;
        e->next = NULL;
        if (is_new)
            begin_batch(c, e);
        else
            extend_batch(c, batch->head, e);
        if (is_new && batch != NULL)
            batch->head = e;
    }
    c->ready = NULL;
    c->ready_tail = &c->ready;
}

/* ---- Frames --------------------------------------------------------------------------------- */

/* Its round is over: the ranks execute it. */
static void say_entry(hora_coordinator_t *c, hora_frame_writer_t *w, hora_entry_t *e) {
    bool named = hora_entry_needs_name(e);
    if (e->id == 0)
        hora_cache_assign(c, e);
    hora_frame_put_ref(w, e->id, named ? e->name.text : NULL, e->name.len, ref_sig(c, e));
    if (e->sig != &e->id_sig) {
        e->id_sig = e->own_sig;
        e->sig = &e->id_sig;
    }
    e->id_stale = false;
    if (c->options.tune != NULL)
        hora_tune_tensor(c->options.tune, &e->mark, e->bytes);
    hora_entry_end_round(c, e);
    hora_entry_drop(c, e);
}

static uint32_t divisor_of(const hora_coordinator_t *c, const hora_entry_t *batch) {
    if (!is_partial(c, batch))
        return 0;
    return c->options.average_active ? batch->nready : (uint32_t)c->options.size;
}

static bool say_batch(hora_coordinator_t *c, hora_frame_writer_t *w) {
    hora_entry_t *batch = c->batches;
    if (!hora_frame_put_execute(w, batch->batch_count, batch->batch_refs, divisor_of(c, batch)))
        return false;
    c->batches = batch->batch_next;
    if (c->batches == NULL)
        c->batches_tail = &c->batches;
    for (hora_entry_t *e = batch, *next; e != NULL; e = next) {
        next = e->next;
        say_entry(c, w, e);
    }
    return true;
}

static bool put_note(hora_frame_writer_t *w, const hora_note_t *note) {
    switch (note->type) {
    case HORA_ITEM_ERROR:
        return hora_frame_put_error(w, note->name, note->name_len, note->status, note->text);
    case HORA_ITEM_STALL: return hora_frame_put_stall(w, note->name, note->name_len, note->text);
    case HORA_ITEM_JOINED: return hora_frame_put_joined(w, note->rank);
    case HORA_ITEM_THAW: return hora_frame_put_thaw(w, note->id);
    default: return hora_frame_put_resend(w, note->rank, note->id);
    }
}

static bool say_note(hora_coordinator_t *c, hora_frame_writer_t *w) {
    hora_note_t *note = c->notes;
    if (!put_note(w, note))
        return false;
    c->notes = note->next;
    if (c->notes == NULL)
        c->notes_tail = &c->notes;
    free(note);
    return true;
}

/* Notes come before batches, but for those that end a join. */
static bool say_next(hora_coordinator_t *c, hora_frame_writer_t *w) {
    if (c->notes != NULL && !(c->notes->is_last && c->batches != NULL))
        return say_note(c, w);
    if (c->batches != NULL)
        return say_batch(c, w);
    return hora_freeze_say(c, w);
}

/* First in a frame, so that it counts for all that follows, here and on every rank. */
static void say_tuning(hora_coordinator_t *c, hora_frame_writer_t *w) {
    if (!hora_tune_take_news(c->options.tune))
        return;
    c->options.fusion_threshold = hora_tune_current(c->options.tune)->fusion_threshold;
    hora_frame_put_tune(w, hora_tune_current(c->options.tune));
}

bool hora_coordinator_has_frame(hora_coordinator_t *c) {
    hora_stalls_answer(c);
    return c->ready != NULL || c->batches != NULL || c->notes != NULL || hora_freeze_has_item(c);
}

size_t hora_coordinator_next_frame(hora_coordinator_t *c, uint8_t *buf) {
    hora_frame_writer_t w;
    if (!hora_coordinator_has_frame(c))
        return 0;
    hora_frame_begin(&w, buf, HORA_FRAME_RESPONSES, 0);
    if (c->options.tune != NULL)
        say_tuning(c, &w);
    plan(c);
    while (say_next(c, &w))
        ;
    return hora_frame_end(&w);
}
