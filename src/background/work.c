/*
 * Tasks, the records of their names, and handles: how they begin, end and are freed (engine.h).
 */
#include "background/blocks.h"
#include "background/trace.h"

#include <stdio.h>
#include <stdlib.h>

#define IDLE_MAX 4096 /* handles kept for reuse */

/* ---- Lists and records ---------------------------------------------------------------------- */

void hora_works_append(hora_works_t *works, hora_work_t *work) {
    work->next = NULL;
    work->prev = works->last;
    if (works->last != NULL)
        works->last->next = work;
    else
        works->first = work;
    works->last = work;
}

void hora_works_remove(hora_works_t *works, hora_work_t *work) {
    if (work->prev != NULL)
        work->prev->next = work->next;
    else
        works->first = work->next;
    if (work->next != NULL)
        work->next->prev = work->prev;
    else
        works->last = work->prev;
    work->prev = work->next = NULL;
}

hora_record_t *hora_record_find_locked(const hora_engine_t *engine, const char *name, size_t len) {
    return (hora_record_t *)hora_names_find(&engine->records, hora_name_hash(name, len), name, len);
}

hora_record_t *hora_record_make_locked(hora_engine_t *engine, const char *name, size_t len) {
    hora_record_t *record = calloc(1, sizeof(*record) + len + 1);
    char          *text = (char *)(record + 1);
    if (record == NULL)
        return NULL;
    memcpy(text, name, len);
    record->name = (hora_name_t){hora_name_hash(name, len), len, text};
    if (hora_names_add(&engine->records, &record->name) != HORA_OK) {
        free(record);
        return NULL;
    }
    return record;
}

void hora_record_drop_locked(hora_engine_t *engine, hora_record_t *record) {
    if (record->work != NULL || record->id != 0 || record->has_ghost ||
        record->late_status != HORA_OK)
        return;
    hora_names_remove(&engine->records, &record->name);
    free(record->late_text);
    free(record);
}

/* ---- Handles -------------------------------------------------------------------------------- */

hora_handle_t *hora_handle_make_locked(hora_engine_t *engine, size_t nworks) {
    hora_handle_t *handle = engine->idle;
    size_t         bytes = sizeof(*handle) + nworks * sizeof(handle->works[0]);
    if (nworks == 1 && handle != NULL) {
        engine->idle = handle->next_idle;
        engine->nidle--;
        memset(handle, 0, bytes);
    } else {
        handle = calloc(1, bytes);
    }
    if (handle == NULL)
        return NULL;
    handle->engine = engine;
    handle->nworks = handle->remaining = nworks;
    engine->refs++;
    return handle;
}

void hora_work_free_output(hora_engine_t *engine, hora_work_t *work) {
    if (work->sig.device)
        hora_block_discard(engine->gpu, work->data);
    else
        free(work->data);
    free(work->received);
}

void hora_handle_free_locked(hora_engine_t *engine, hora_handle_t *handle) {
    for (size_t i = 0; i < handle->nworks; i++) {
        hora_work_t *work = &handle->works[i];
        free(work->splits);
        if (work->has_output)
            hora_work_free_output(engine, work);
        if (work->ready != NULL)
            hora_mark_drop(engine->gpu, work->ready);
    }
    if (handle->mark != NULL)
        hora_mark_drop(engine->gpu, handle->mark);
    free(handle->text);
    engine->refs--;
    if (handle->nworks != 1 || engine->nidle >= IDLE_MAX || atomic_load(&engine->closing)) {
        free(handle);
        return;
    }
    handle->next_idle = engine->idle;
    engine->idle = handle;
    engine->nidle++;
}

static void end_handle_locked(hora_engine_t *engine, hora_handle_t *handle) {
    atomic_store_explicit(&handle->done, 1, memory_order_release);
    for (hora_sleeper_t *s = engine->sleepers; s != NULL; s = s->next)
        if (s->handle == handle)
            pthread_cond_signal(&s->wake);
    if (handle->released)
        hora_handle_free_locked(engine, handle);
}

/* ---- The end of a task ---------------------------------------------------------------------- */

/* What was enqueued after it may go on. */
static void end_join_locked(hora_engine_t *engine, const hora_work_t *join) {
    engine->join = NULL;
    if (!join->queued)
        engine->has_joined = false;
    for (hora_work_t *work = engine->queue.first; work != NULL; work = work->next)
        work->is_held = false;
}

/* A task in the queue is not known to the driver, so any thread may end it. */
void hora_work_end_locked(hora_engine_t *engine, hora_work_t *work, hora_status_t status,
                          const char *text) {
    hora_handle_t *handle = work->handle;
    hora_record_t *record = work->record;
    hora_trace_ended(engine, work, status, text);
    if (work == engine->join)
        end_join_locked(engine, work);
    if (work->queued) {
        hora_works_remove(&engine->queue, work);
        atomic_fetch_sub_explicit(&engine->nqueued, 1, memory_order_relaxed);
        work->queued = false;
    } else {
        hora_works_remove(&engine->flight, work);
        record->sent = NULL;
    }
    work->record = NULL;
    record->work = NULL;
    hora_record_drop_locked(engine, record);
    if (status != HORA_OK && handle->status == HORA_OK) {
        handle->status = status;
        handle->text = strdup(text);
    }
    atomic_fetch_sub_explicit(&engine->pending, 1, memory_order_relaxed);
    if (--handle->remaining == 0)
        end_handle_locked(engine, handle);
}

static void fail_all_locked(hora_engine_t *engine, hora_works_t *works) {
    char text[HORA_FAILURE_TEXT_MAX + 256];
    while (works->first != NULL) {
        hora_work_t *work = works->first;
        snprintf(text, sizeof(text), "%s %.200s: %s", hora_kind_name(work->sig.kind),
                 work->record->name.text, engine->failed_text);
        hora_work_end_locked(engine, work, engine->failed, text);
    }
}

void hora_engine_fail_queued_locked(hora_engine_t *engine) {
    fail_all_locked(engine, &engine->queue);
}

void hora_engine_fail(hora_engine_t *engine, hora_status_t status, const char *text) {
    pthread_mutex_lock(&engine->lock);
    if (engine->failed == HORA_OK) {
        engine->failed = status;
        snprintf(engine->failed_text, sizeof(engine->failed_text), "%s", text);
    }
    engine->nbatch = 0;
    hora_ghosts_free_locked(engine);
    fail_all_locked(engine, &engine->flight);
    fail_all_locked(engine, &engine->queue);
    pthread_mutex_unlock(&engine->lock);
}
