/*
 * Rounds that fail: the texts, the error to every rank, and what must be remembered of it
 * (coordinator.h says why). Pure code.
 */
#include "controller/trace.h"

#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>

#define FAILED_MAX 65536 /* failures remembered at one time; beyond, the oldest is forgotten */

hora_status_t hora_note_add(hora_coordinator_t *c, hora_item_type_t type, const hora_entry_t *e,
                            const char *text, hora_note_t **note_p) {
    size_t       name_len = e != NULL ? e->name.len : 0;
    hora_note_t *note = calloc(1, sizeof(*note) + name_len);
    if (note == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a message to the ranks");
    note->type = type;
    note->is_last = e != NULL && e == c->join;
    note->name_len = name_len;
    if (name_len > 0)
        memcpy(note->name, e->name.text, name_len);
    snprintf(note->text, sizeof(note->text), "%s", text);
    *c->notes_tail = note;
    c->notes_tail = &note->next;
    if (note_p != NULL)
        *note_p = note;
    return HORA_OK;
}

/* ---- Remembering ---------------------------------------------------------------------------- */

static void unlink_failed(hora_coordinator_t *c, hora_entry_t *e) {
    if (e->failed_prev != NULL)
        e->failed_prev->failed_next = e->failed_next;
    else
        c->failed_first = e->failed_next;
    if (e->failed_next != NULL)
        e->failed_next->failed_prev = e->failed_prev;
    else
        c->failed_last = e->failed_prev;
    e->failed_prev = e->failed_next = NULL;
    e->is_failed = false;
    c->nfailed--;
}

static void remember(hora_coordinator_t *c, hora_entry_t *e) {
    if (e->is_failed)
        unlink_failed(c, e);
    e->is_failed = true;
    e->failed_prev = c->failed_last;
    if (c->failed_last != NULL)
        c->failed_last->failed_next = e;
    else
        c->failed_first = e;
    c->failed_last = e;
    c->nfailed++;
}

void hora_failures_forget(hora_coordinator_t *c) {
    uint32_t seen = c->errors;
    if (c->failed_first == NULL)
        return;
    for (int r = 0; r < c->options.size; r++)
        if (!c->left[r] && (int32_t)(c->acked[r] - seen) < 0)
            seen = c->acked[r];
    while (c->failed_first != NULL &&
           ((int32_t)(c->failed_first->failed_seq - seen) <= 0 || c->nfailed > FAILED_MAX)) {
        hora_entry_t *e = c->failed_first;
        unlink_failed(c, e);
        hora_entry_drop(c, e);
    }
}

/* ---- Failing -------------------------------------------------------------------------------- */

static hora_status_t fail_one(hora_coordinator_t *c, hora_entry_t *e, hora_status_t status,
                              const char *text, uint64_t other_key) {
    hora_note_t  *note = NULL;
    hora_status_t st = hora_note_add(c, HORA_ITEM_ERROR, e, text, &note);
    if (st != HORA_OK)
        return st;
    note->status = status;
    hora_coordinator_trace_failed(c, e, text);
    e->failed_seq = ++c->errors;
    e->failed_keys[0] = e->sig->group_key;
    e->failed_keys[1] = other_key;
    e->failed_counted = false;
    e->id_stale = true;
    remember(c, e);
    hora_entry_end_round(c, e);
    return HORA_OK;
}

/* Fails every task of the group that is there; those that are still to come will fail too. */
static hora_status_t fail_group(hora_coordinator_t *c, hora_group_t *group, hora_status_t status,
                                const char *text, uint64_t other_key) {
    hora_status_t st = HORA_OK;
    group->failed = true;
    group->status = status;
    snprintf(group->text, sizeof(group->text), "%s", text);
    for (hora_entry_t *e = group->first, *next; e != NULL && st == HORA_OK; e = next) {
        next = e->group_next;
        st = fail_one(c, e, status, text, other_key);
    }
    group->first = NULL;
    group->tail = &group->first;
    if (group->known >= group->size)
        hora_group_free(c, group);
    return st;
}

/* Fails the group of a task that was not counted in it, because its report did not make a round. */
static hora_status_t fail_other_group(hora_coordinator_t *c, uint64_t key, uint32_t size,
                                      hora_status_t status, const char *text) {
    hora_group_t *group = hora_group_find(c, key);
    if (group == NULL) {
        hora_status_t st = hora_group_make(c, key, size, &group);
        if (st != HORA_OK)
            return st;
    }
    group->known++;
    return fail_group(c, group, status, text, 0);
}

static hora_status_t fail_round(hora_coordinator_t *c, hora_entry_t *e, hora_status_t status,
                                const char *text, uint64_t other_key) {
    if (e->group != NULL)
        return fail_group(c, e->group, status, text, other_key);
    return fail_one(c, e, status, text, other_key);
}

hora_status_t hora_round_fail(hora_coordinator_t *c, hora_entry_t *e, hora_status_t status,
                              const char *text) {
    return fail_round(c, e, status, text, 0);
}

hora_status_t hora_round_fail_late(hora_coordinator_t *c, hora_entry_t *e, hora_group_t *group) {
    hora_status_t st = fail_one(c, e, group->status, group->text, 0);
    if (group->known >= group->size)
        hora_group_free(c, group);
    return st;
}

static const char *host_of(const hora_coordinator_t *c, int rank) {
    return c->options.host(c->options.host_arg, rank);
}

hora_status_t hora_round_mismatch(hora_coordinator_t *c, hora_entry_t *e, int rank,
                                  const hora_signature_t *sig) {
    char          values[2][200], what[16] = "tensor", text[HORA_TEXT_MAX];
    uint64_t      key = e->sig->group_key;
    bool          swap = rank < e->first;
    int           low = swap ? rank : e->first, high = swap ? e->first : rank;
    hora_status_t st;
    hora_signature_difference(swap ? sig : e->sig, swap ? e->sig : sig, values[0], values[1],
                              sizeof(values[0]));
    if (e->sig->kind == sig->kind)
        snprintf(what, sizeof(what), "%s", hora_kind_name(sig->kind));
    snprintf(text, sizeof(text), "%s %.300s: rank %d (%s) has %s, rank %d (%s) has %s", what,
             e->name.text, low, host_of(c, low), values[0], high, host_of(c, high), values[1]);
    hora_log(HORA_LOG_DEBUG, "%s", text);
    st = fail_round(c, e, HORA_ERR_MISMATCH, text, sig->group_key);
    if (st != HORA_OK || sig->group_key == 0 || sig->group_key == key)
        return st;
    e->failed_counted = true;
    return fail_other_group(c, sig->group_key, sig->group_size, HORA_ERR_MISMATCH, text);
}

hora_status_t hora_round_fail_left(hora_coordinator_t *c, hora_entry_t *e) {
    char text[HORA_TEXT_MAX];
    int  rank = 0;
    while (rank < c->options.size - 1 &&
           (!c->left[rank] || (!hora_entry_misses(c, e, rank) && e != c->join)))
        rank++;
    snprintf(text, sizeof(text), "%s %.300s: rank %d (%s) has left and will not take part",
             hora_kind_name(e->sig->kind), e->name.text, rank, host_of(c, rank));
    return hora_round_fail(c, e, HORA_ERR_PEER_FAILED, text);
}

hora_status_t hora_round_fail_root(hora_coordinator_t *c, hora_entry_t *e) {
    char text[HORA_TEXT_MAX];
    snprintf(text, sizeof(text), "%s %.300s: its root, rank %d (%s), has joined and has nothing to "
             "send", hora_kind_name(e->sig->kind), e->name.text, e->sig->root,
             host_of(c, e->sig->root));
    return hora_round_fail(c, e, HORA_ERR_MISMATCH, text);
}

/* The group of the rank that was at odds is forgotten once all its tasks have been seen; this one
 * will have no round of its own. Several ranks may report it. */
static void count_swallowed(hora_coordinator_t *c, hora_entry_t *e, uint64_t key) {
    hora_group_t *group = hora_group_find(c, key);
    if (key == e->failed_keys[0] || e->failed_counted || group == NULL || !group->failed)
        return;
    e->failed_counted = true;
    if (++group->known >= group->size)
        hora_group_free(c, group);
}

hora_status_t hora_round_swallow(hora_coordinator_t *c, hora_entry_t *e,
                                 const hora_signature_t *sig) {
    char text[HORA_TEXT_MAX];
    if (sig->group_key == 0)
        return HORA_OK;
    if (sig->group_key == e->failed_keys[0] || sig->group_key == e->failed_keys[1]) {
        count_swallowed(c, e, sig->group_key);
        return HORA_OK;
    }
    e->failed_keys[1] = sig->group_key;
    e->failed_counted = true;
    snprintf(text, sizeof(text), "%s %.300s, of the same group, has failed on the other ranks",
             hora_kind_name(sig->kind), e->name.text);
    return fail_other_group(c, sig->group_key, sig->group_size, HORA_ERR_MISMATCH, text);
}
