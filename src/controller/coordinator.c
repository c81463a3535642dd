/*
 * The coordinator's ears: reports and how rounds begin and become complete (coordinator.h). Pure
 * code; the driving thread of rank 0.
 */
#include "controller/coordinator.h"

#include "controller/trace.h"

#include <stdlib.h>

hora_status_t hora_coordinator_create(const hora_coordinator_options_t *options,
                                      hora_coordinator_t **coordinator_p) {
    hora_coordinator_t *c = calloc(1, sizeof(*c));
    if (c == NULL)
        goto err_none;
    c->options = *options;
    c->words = ((size_t)options->size + 63) / 64;
    c->slots = calloc(options->cache_capacity, sizeof(*c->slots));
    c->generations = calloc(options->cache_capacity, sizeof(*c->generations));
    c->acked = calloc((size_t)options->size, sizeof(*c->acked));
    c->left = calloc((size_t)options->size, sizeof(*c->left));
    c->resends = calloc((size_t)options->size, sizeof(*c->resends));
    if (c->slots == NULL || c->generations == NULL || c->acked == NULL || c->left == NULL ||
        c->resends == NULL || hora_freeze_create(c) != HORA_OK)
        goto err_free;
    c->ready_tail = &c->ready;
    c->batches_tail = &c->batches;
    c->notes_tail = &c->notes;
    *coordinator_p = c;
    return HORA_OK;
err_free:
    hora_coordinator_destroy(c);
err_none:
    return hora_fail(HORA_ERR_NO_MEMORY, "the engine's coordinator");
}

static void free_all(hora_names_t *names) {
    for (size_t i = 0; i < names->room; i++)
        free(names->slots[i]);
    hora_names_destroy(names);
}

void hora_coordinator_destroy(hora_coordinator_t *c) {
    if (c == NULL)
        return;
    free_all(&c->names);
    free_all(&c->groups);
    for (hora_note_t *note = c->notes, *next; note != NULL; note = next) {
        next = note->next;
        free(note);
    }
    hora_freeze_destroy(c);
    free(c->slots);
    free(c->generations);
    free(c->acked);
    free(c->left);
    free(c->resends);
    free(c);
}

/* ---- Rounds --------------------------------------------------------------------------------- */

static void list_ready(hora_coordinator_t *c, hora_entry_t *e) {
    hora_freeze_note(c, e, !hora_entry_needs_name(e) && e->nready == (uint32_t)c->options.size);
    e->is_listed = true;
    e->next = NULL;
    *c->ready_tail = e;
    c->ready_tail = &e->next;
}

/* Nobody is missing any more. */
static hora_status_t complete(hora_coordinator_t *c, hora_entry_t *e) {
    hora_group_t *group = e->group;
    if (e->complete)
        return HORA_OK;
    if (e->sig->kind == HORA_TASK_BROADCAST && !hora_entry_reported(e, e->sig->root))
        return hora_round_fail_root(c, e);
    e->complete = true;
    if (e == c->join)
        return HORA_OK;
    hora_coordinator_trace_agreed(c, e);
    if (group == NULL) {
        list_ready(c, e);
        return HORA_OK;
    }
    if (++group->ready < group->size)
        return HORA_OK;
    for (hora_entry_t *member = group->first; member != NULL; member = member->group_next) {
        member->group = NULL;
        list_ready(c, member);
    }
    hora_group_free(c, group);
    return HORA_OK;
}

static hora_status_t join_group(hora_coordinator_t *c, hora_entry_t *e) {
    hora_group_t *group = hora_group_find(c, e->sig->group_key);
    if (group == NULL) {
        hora_status_t st = hora_group_make(c, e->sig->group_key, e->sig->group_size, &group);
        if (st != HORA_OK)
            return st;
    }
    if (group->size != e->sig->group_size || group->known >= group->size)
        return hora_fail(HORA_ERR_PROTOCOL, "%s %s: its group does not hold together",
                         hora_kind_name(e->sig->kind), e->name.text);
    group->known++;
    if (group->failed)
        return hora_round_fail_late(c, e, group);
    e->group = group;
    e->group_next = NULL;
    *group->tail = e;
    group->tail = &e->group_next;
    return HORA_OK;
}

/* The first report of a round; sig NULL: what the id stands for. */
static void begin_round(hora_entry_t *e, int rank, const hora_signature_t *sig) {
    e->first = rank;
    e->used = true;
    e->sig = &e->id_sig;
    if (sig != NULL && (e->id == 0 || !hora_signature_equal(sig, &e->id_sig))) {
        e->own_sig = *sig;
        e->sig = &e->own_sig;
    }
    e->bytes = hora_signature_bytes(e->sig);
}

static hora_status_t report(hora_coordinator_t *c, hora_entry_t *e, int rank, uint32_t acked,
                            const hora_signature_t *sig) {
    hora_status_t st = HORA_OK;
    bool          first = e->nready == 0;
    if (e->is_failed && (int32_t)(acked - e->failed_seq) < 0)
        return hora_round_swallow(c, e, sig != NULL ? sig : &e->id_sig);
    if (hora_entry_reported(e, rank))
        return hora_fail(HORA_ERR_PROTOCOL, "%s %s: rank %d reported it twice",
                         hora_kind_name(e->sig->kind), e->name.text, rank);
    /* A rank that has joined says nothing more until it has heard of the end of the join, and before
     * it of all that became complete without it. */
    if (e != c->join && (e->complete || hora_rank_has_joined(c, rank)))
        return hora_fail(HORA_ERR_PROTOCOL, "%s %s: rank %d reported it although it has joined",
                         hora_kind_name((sig != NULL ? sig : &e->id_sig)->kind), e->name.text, rank);
    if (first)
        begin_round(e, rank, sig);
    e->ready[rank >> 6] |= (uint64_t)1 << (rank & 63);
    e->nready++;
    hora_coordinator_trace_ready(c, e, rank);
    if (first && e->sig->group_key != 0)
        st = join_group(c, e);
    if (st != HORA_OK || e->nready == 0) /* 0: it failed with its group */
        return st;
    if (sig == NULL)
        sig = &e->id_sig;
    if (!first && sig != e->sig && !hora_signature_equal(sig, e->sig))
        return hora_round_mismatch(c, e, rank, sig);
    if (hora_entry_missing(c, e) == 0)
        return complete(c, e);
    return c->nleft > 0 ? hora_round_fail_left(c, e) : HORA_OK;
}

/* ---- Joins ---------------------------------------------------------------------------------- */

/* A rank has joined: what waited only for it is complete. */
static hora_status_t complete_all(hora_coordinator_t *c) {
    hora_status_t st = HORA_OK;
    for (size_t i = 0; i < c->names.room && st == HORA_OK; i++) { /* nothing leaves the table */
        hora_entry_t *e = (hora_entry_t *)c->names.slots[i];
        if (e != NULL && e != c->join && e->nready > 0 && !e->complete &&
            hora_entry_missing(c, e) == 0)
            st = complete(c, e);
    }
    return st;
}

/* Every rank has joined: they go on as before, after what was complete until now. */
static hora_status_t end_join(hora_coordinator_t *c, int last) {
    hora_entry_t *e = c->join;
    hora_note_t  *note = NULL;
    hora_status_t st = hora_note_add(c, HORA_ITEM_JOINED, e, "", &note);
    if (st != HORA_OK)
        return st;
    note->rank = (uint32_t)last;
    hora_entry_end_round(c, e);
    return HORA_OK;
}

hora_status_t hora_coordinator_join(hora_coordinator_t *c, int rank, uint32_t acked,
                                    uint32_t resends) {
    static const hora_signature_t sig = {.kind = HORA_TASK_JOIN, .group_size = 1};
    size_t                        len = HORA_JOIN_NAME_LEN;
    uint64_t                      hash = hora_name_hash(HORA_JOIN_NAME, len);
    hora_entry_t                 *e = hora_entry_find(c, hash, HORA_JOIN_NAME, len);
    hora_status_t                 st;
    c->acked[rank] = acked;
    st = hora_freeze_thaw(c);
    if (st != HORA_OK)
        return st;
    if (resends != c->resends[rank])
        return HORA_OK; /* it will report a task in full, and then the join again */
    if (e == NULL)
        e = hora_entry_make(c, hash, HORA_JOIN_NAME, len);
    if (e == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a join");
    if (e->is_failed && (int32_t)(acked - e->failed_seq) < 0)
        return HORA_OK; /* the error is on its way to the rank */
    if (e->nready == 0)
        c->join = e;
    st = report(c, e, rank, acked, &sig);
    if (st == HORA_OK && c->join != NULL)
        st = complete_all(c);
    return st == HORA_OK && c->join != NULL && e->complete ? end_join(c, rank) : st;
}

/* ---- Reports -------------------------------------------------------------------------------- */

hora_status_t hora_coordinator_full(hora_coordinator_t *c, int rank, uint32_t acked, uint64_t hash,
                                    const char *name, size_t name_len,
                                    const hora_signature_t *sig) {
    hora_status_t st = hora_freeze_thaw(c);
    hora_entry_t *e = hora_entry_find(c, hash, name, name_len);
    c->acked[rank] = acked;
    if (st != HORA_OK)
        return st;
    if (e == NULL)
        e = hora_entry_make(c, hash, name, name_len);
    if (e == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "tensor %.*s", (int)name_len, name);
    return report(c, e, rank, acked, sig);
}

static hora_status_t report_id(hora_coordinator_t *c, int rank, uint32_t acked, uint32_t id) {
    hora_entry_t *e = hora_cache_find(c, id);
    hora_note_t  *note = NULL;
    hora_status_t st;
    c->acked[rank] = acked;
    if (e != NULL)
        return report(c, e, rank, acked, NULL);
    st = hora_note_add(c, HORA_ITEM_RESEND, NULL, "", &note);
    if (st != HORA_OK)
        return st;
    note->rank = (uint32_t)rank;
    note->id = id;
    c->resends[rank]++;
    return HORA_OK;
}

hora_status_t hora_coordinator_cached(hora_coordinator_t *c, int rank, uint32_t acked,
                                      uint32_t id) {
    hora_status_t st = hora_freeze_check_single(c, rank);
    return st == HORA_OK ? report_id(c, rank, acked, id) : st;
}

hora_status_t hora_freeze_count_single(hora_coordinator_t *c, int rank, uint64_t from,
                                       uint64_t to) {
    const hora_freeze_t *f = &c->freeze;
    hora_status_t        st = HORA_OK;
    for (uint64_t p = from; p < to && st == HORA_OK; p++)
        st = report_id(c, rank, c->acked[rank], f->ids[p % f->n]);
    return st;
}

void hora_coordinator_left(hora_coordinator_t *c, int rank) {
    if (c->left[rank] || hora_freeze_thaw(c) != HORA_OK)
        return;
    c->left[rank] = true;
    c->nleft++;
    if (hora_rank_has_joined(c, rank) && hora_round_fail_left(c, c->join) != HORA_OK)
        return;
    for (size_t i = 0; i < c->names.room; i++) { /* failing takes nothing out of the table */
        hora_entry_t *e = (hora_entry_t *)c->names.slots[i];
        if (e != NULL && e->nready > 0 && !e->complete && hora_entry_misses(c, e, rank) &&
            hora_round_fail_left(c, e) != HORA_OK)
            return; /* no memory even for the error: the others find out by their own deadline */
    }
}

bool hora_coordinator_has_left(const hora_coordinator_t *c, int rank) {
    return c->left[rank];
}

static hora_status_t feed_item(hora_coordinator_t *c, int rank, uint32_t acked,
                               const hora_item_t *item, uint64_t now) {
    hora_status_t st = HORA_OK;
    switch (item->type) {
    case HORA_ITEM_FULL:
        return hora_coordinator_full(c, rank, acked, hora_name_hash(item->name, item->name_len),
                                     item->name, item->name_len, &item->sig);
    case HORA_ITEM_CACHED:
        for (uint32_t i = 0; i < item->count && st == HORA_OK; i++)
            st = hora_coordinator_cached(c, rank, acked, hora_item_id(item, i));
        return st;
    case HORA_ITEM_WAITED:
        hora_coordinator_waited(c, item->name, item->name_len,
                                (uint64_t)item->waited_ms * 1000000u, now);
        return HORA_OK;
    case HORA_ITEM_LEFT: hora_coordinator_left(c, rank); return HORA_OK;
    case HORA_ITEM_PROGRESS:
        return hora_coordinator_progress(c, rank, acked, item->epoch, item->upto);
    case HORA_ITEM_JOIN: return hora_coordinator_join(c, rank, acked, item->count);
    default: return HORA_ERR_PROTOCOL;
    }
}

hora_status_t hora_coordinator_feed(hora_coordinator_t *c, int rank, const void *buf, size_t len,
                                    uint64_t now) {
    hora_frame_reader_t r;
    hora_item_t         item;
    hora_status_t       st = HORA_ERR_PROTOCOL;
    if (!hora_frame_open(&r, buf, len, HORA_FRAME_REQUESTS) || c->left[rank] ||
        (int32_t)(c->errors - r.acked) < 0)
        goto err_malformed;
    c->acked[rank] = r.acked;
    while ((st = hora_frame_next(&r, c->options.size, &item)) == HORA_OK) {
        st = feed_item(c, rank, r.acked, &item, now);
        if (st != HORA_OK)
            return st;
    }
    if (st != HORA_IN_PROGRESS)
        goto err_malformed;
    hora_failures_forget(c);
    return HORA_OK;
err_malformed:
    return hora_fail(HORA_ERR_PROTOCOL, "rank %d (%s) sent a malformed request", rank,
                     c->options.host(c->options.host_arg, rank));
}
