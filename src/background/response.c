/*
 * Responses: does what the coordinator says, on every rank in the same order (engine.h). The
 * driving thread. What the coordinator says is not believed: it must name tasks that are in flight here.
 */
#include "background/trace.h"

#include "util/clock.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>

static hora_status_t malformed(const hora_engine_t *engine) {
    return hora_fail(HORA_ERR_PROTOCOL, "rank 0 on host %s sent a malformed response",
                     hora_comm_peer(engine->comm, 0)->host);
}

/* ---- Ids ------------------------------------------------------------------------------------ */

static void forget_id_locked(hora_engine_t *engine, hora_record_t *record) {
    if (record->id == 0)
        return;
    engine->by_slot[record->id & 0xffff] = NULL;
    record->id = 0;
}

static hora_status_t reserve_slot(hora_engine_t *engine, size_t slot) {
    size_t          n = slot + 1 > 2 * engine->nslots ? slot + 1 : 2 * engine->nslots;
    hora_record_t **slots;
    if (slot < engine->nslots)
        return HORA_OK;
    slots = realloc(engine->by_slot, n * sizeof(*slots));
    if (slots == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "the engine's table of %zu names", n);
    memset(slots + engine->nslots, 0, (n - engine->nslots) * sizeof(*slots));
    engine->by_slot = slots;
    engine->nslots = n;
    return HORA_OK;
}

/* From now on `id` stands for the record's name and for sig. */
static hora_status_t learn_id(hora_engine_t *engine, hora_record_t *record, uint32_t id,
                              const hora_signature_t *sig) {
    size_t         slot = id & 0xffff;
    hora_record_t *before;
    hora_status_t  st = reserve_slot(engine, slot);
    if (st != HORA_OK)
        return st;
    pthread_mutex_lock(&engine->lock);
    forget_id_locked(engine, record);
    before = id != 0 ? engine->by_slot[slot] : NULL;
    if (before != NULL) {
        forget_id_locked(engine, before);
        hora_record_drop_locked(engine, before);
    }
    if (id != 0)
        engine->by_slot[slot] = record;
    record->id = id;
    record->sig = *sig;
    pthread_mutex_unlock(&engine->lock);
    return HORA_OK;
}

/* ---- Items ---------------------------------------------------------------------------------- */

/* NULL unless it has been reported; only then is it this thread's. */
static hora_record_t *find_sent(hora_engine_t *engine, const char *name, size_t name_len) {
    pthread_mutex_lock(&engine->lock);
    hora_record_t *record = hora_record_find_locked(engine, name, name_len);
    if (record != NULL && record->sent == NULL)
        record = NULL;
    pthread_mutex_unlock(&engine->lock);
    return record;
}

hora_record_t *hora_response_find_id(const hora_engine_t *engine, uint32_t id) {
    size_t         slot = id & 0xffff;
    hora_record_t *record = slot < engine->nslots ? engine->by_slot[slot] : NULL;
    return record != NULL && record->id == id ? record : NULL;
}

/* This rank has joined, and the task is not in flight here. Its name's record, new or not, is kept
 * until the ghost is freed, although an id of the same batch may take the record's slot, and
 * another thread's enqueueing may come to nothing. */
static hora_status_t hold_record(hora_engine_t *engine, const hora_item_ref_t *ref,
                                 hora_record_t **record_p) {
    hora_record_t *record;
    bool           is_free;
    pthread_mutex_lock(&engine->lock);
    if (ref->name_len == 0)
        record = hora_response_find_id(engine, ref->id);
    else
        record = hora_record_find_locked(engine, ref->name, ref->name_len);
    if (record == NULL && ref->name_len > 0)
        record = hora_record_make_locked(engine, ref->name, ref->name_len);
    /* A task that is not held was found before, in this batch: this is its second mention. */
    is_free = record != NULL && !record->has_ghost &&
              (record->work == NULL || record->work->is_held);
    if (is_free)
        record->has_ghost = true;
    pthread_mutex_unlock(&engine->lock);
    if (record == NULL && ref->name_len > 0)
        return hora_fail(HORA_ERR_NO_MEMORY, "tensor %.*s", (int)ref->name_len, ref->name);
    if (!is_free)
        return malformed(engine);
    *record_p = record;
    return HORA_OK;
}

/* The task is in flight here, or this rank has joined and is told what the task is. */
static hora_status_t find_task(hora_engine_t *engine, const hora_item_t *item,
                               const hora_item_ref_t *ref, hora_work_t **work_p) {
    hora_record_t *record = ref->name_len > 0 ? find_sent(engine, ref->name, ref->name_len)
                                              : hora_response_find_id(engine, ref->id);
    bool           is_mine = record != NULL && record->sent != NULL;
    hora_status_t  st = HORA_OK;
    if (!is_mine && (item->divisor == 0 || !engine->has_joined))
        return malformed(engine);
    if (!is_mine)
        st = hold_record(engine, ref, &record);
    if (st == HORA_OK && ref->name_len > 0)
        st = learn_id(engine, record, ref->id, is_mine ? &record->sent->sig : &ref->sig);
    if (st == HORA_OK && !is_mine)
        return hora_ghost_make(engine, record, work_p);
    if (st != HORA_OK)
        return st; /* the engine ends, and the record with it */
    *work_p = record->sent;
    record->sent = NULL; /* a second mention of it would be malformed */
    return HORA_OK;
}

static hora_status_t execute(hora_engine_t *engine, hora_item_t *item) {
    hora_item_ref_t ref;
    hora_work_t    *work;
    hora_status_t   st = HORA_OK;
    while (st == HORA_OK && hora_item_next_ref(item, &ref)) {
        st = find_task(engine, item, &ref, &work);
        if (st == HORA_OK)
            st = hora_batch_add(engine, work);
    }
    engine->divisor = item->divisor;
    if (st == HORA_OK)
        st = hora_batch_execute(engine);
    if (st == HORA_OK && engine->has_joined)
        hora_requests_join_lives(engine);
    return st;
}

static hora_status_t take_joined(hora_engine_t *engine, const hora_item_t *item) {
    if (!engine->has_joined)
        return malformed(engine);
    pthread_mutex_lock(&engine->lock);
    *(int32_t *)engine->join->out = (int32_t)item->rank;
    hora_work_end_locked(engine, engine->join, HORA_OK, NULL);
    pthread_mutex_unlock(&engine->lock);
    return HORA_OK;
}

/* The error of a task that is not in flight here waits for it. */
static void keep_late_locked(hora_record_t *record, hora_status_t status, const char *text) {
    record->late_status = status;
    free(record->late_text);
    record->late_text = strdup(text);
}

static hora_status_t take_error(hora_engine_t *engine, const hora_item_t *item) {
    char           text[HORA_TEXT_MAX + 1];
    hora_record_t *record;
    hora_status_t  st = HORA_OK;
    snprintf(text, sizeof(text), "%.*s", (int)item->text_len, item->text);
    engine->errors_seen++;
    pthread_mutex_lock(&engine->lock);
    record = hora_record_find_locked(engine, item->name, item->name_len);
    if (record == NULL)
        record = hora_record_make_locked(engine, item->name, item->name_len);
    if (record == NULL) {
        st = HORA_ERR_NO_MEMORY;
    } else {
        forget_id_locked(engine, record);
        if (record->work != NULL && !record->work->is_held)
            hora_work_end_locked(engine, record->work, item->status, text);
        else if (engine->join == NULL)
            keep_late_locked(record, item->status, text);
        else /* it is of a time when this rank has joined */
            hora_record_drop_locked(engine, record);
    }
    pthread_mutex_unlock(&engine->lock);
    return st == HORA_OK ? st : hora_fail(st, "the error of %.*s", (int)item->name_len, item->name);
}

/* The rank that came too late finds all the warnings that were written for the others meanwhile. */
static bool waits_for_long(const hora_engine_t *engine, const hora_record_t *record) {
    return record != NULL &&
           hora_clock_ns() - record->sent->since >= engine->stall_check_ns / 2;
}

static void take_stall(hora_engine_t *engine, const hora_item_t *item) {
    if (engine->rank == 0 ||
        waits_for_long(engine, find_sent(engine, item->name, item->name_len)))
        hora_log(HORA_LOG_WARNING, "%.*s", (int)item->text_len, item->text);
}

static hora_status_t handle_item(hora_engine_t *engine, hora_item_t *item) {
    switch (item->type) {
    case HORA_ITEM_EXECUTE:
    case HORA_ITEM_EXECUTE_SOME: return execute(engine, item);
    case HORA_ITEM_JOINED: return take_joined(engine, item);
    case HORA_ITEM_FREEZE: return hora_frozen_begin(engine, item);
    case HORA_ITEM_ADVANCE: return hora_frozen_advance(engine, item);
    case HORA_ITEM_THAW: hora_frozen_end(engine); return HORA_OK;
    case HORA_ITEM_ERROR: return take_error(engine, item);
    case HORA_ITEM_STALL: take_stall(engine, item); return HORA_OK;
    case HORA_ITEM_RESEND:
        if (item->rank == (uint32_t)engine->rank)
            return hora_request_resend(engine, item->id);
        return HORA_OK;
    case HORA_ITEM_TUNE: hora_tuning_apply(engine, &item->tuning); return HORA_OK;
    case HORA_ITEM_SHUT_DOWN:
        return hora_fail(HORA_ERR_SHUT_DOWN, "%.*s", (int)item->text_len, item->text);
    default: return malformed(engine);
    }
}

hora_status_t hora_response_handle(hora_engine_t *engine, const uint8_t *buf, size_t len) {
    hora_frame_reader_t r;
    hora_item_t         item;
    hora_status_t       st;
    if (!hora_frame_open(&r, buf, len, HORA_FRAME_RESPONSES))
        return malformed(engine);
    hora_trace_cycle(engine);
    while ((st = hora_frame_next(&r, engine->size, &item)) == HORA_OK) {
        st = handle_item(engine, &item);
        if (st != HORA_OK)
            return st;
    }
    return st == HORA_IN_PROGRESS ? HORA_OK : malformed(engine);
}
