/*
 * Enqueueing: a group of tasks becomes a handle and enters the queue (background.h). Any thread;
 * one lock.
 */
#include "background/trace.h"

#include <stdlib.h>

static void set_signature(hora_work_t *work, const hora_task_t *task, uint64_t group_key,
                          size_t ntasks) {
    hora_signature_t *sig = &work->sig;
    bool              bare = task->kind == HORA_TASK_BARRIER || task->kind == HORA_TASK_JOIN;
    int               ndim = bare ? 0 : task->ndim;
    *sig = (hora_signature_t){.kind = (uint8_t)task->kind,
                              .dtype = (uint8_t)task->dtype,
                              .op = (uint8_t)task->op,
                              .ndim = (uint8_t)ndim,
                              .root = task->root,
                              .prescale = task->prescale,
                              .postscale = task->postscale,
                              .device = !bare && task->device >= 0,
                              .group_key = group_key,
                              .group_size = (uint32_t)ntasks};
    if (ndim > 0)
        memcpy(sig->shape, task->shape, (size_t)ndim * sizeof(sig->shape[0]));
    hora_shape_count(sig->shape, 0, sig->ndim, 1, &work->count);
    work->rows = ndim > 0 ? task->shape[0] : 1;
    hora_signature_normalize(sig);
}

/* All joins have one name, so there is one at a time. */
static const char *name_of(const hora_task_t *task) {
    return task->kind == HORA_TASK_JOIN ? HORA_JOIN_NAME : task->name;
}

static size_t name_len_of(const hora_task_t *task) {
    return task->kind == HORA_TASK_JOIN ? HORA_JOIN_NAME_LEN : strlen(task->name);
}

static hora_status_t attach_locked(hora_engine_t *engine, hora_handle_t *handle, size_t i,
                                   const hora_task_t *task, uint64_t group_key) {
    hora_work_t   *work = &handle->works[i];
    size_t         len = name_len_of(task);
    hora_record_t *record = hora_record_find_locked(engine, name_of(task), len);
    if (record != NULL && record->work != NULL)
        return HORA_ERR_DUPLICATE_NAME;
    if (record == NULL)
        record = hora_record_make_locked(engine, name_of(task), len);
    if (record == NULL)
        return HORA_ERR_NO_MEMORY;
    work->handle = handle;
    work->record = record;
    work->in = task->in;
    work->out = task->out;
    work->is_held = engine->join != NULL;
    set_signature(work, task, group_key, handle->nworks);
    record->work = work;
    if (task->nsplits == 0 || task->kind != HORA_TASK_ALLTOALL)
        return HORA_OK;
    work->splits = malloc((size_t)task->nsplits * sizeof(work->splits[0]));
    if (work->splits == NULL)
        return HORA_ERR_NO_MEMORY;
    memcpy(work->splits, task->splits, (size_t)task->nsplits * sizeof(work->splits[0]));
    return HORA_OK;
}

static void detach_locked(hora_engine_t *engine, hora_handle_t *handle) {
    for (size_t i = 0; i < handle->nworks; i++) {
        hora_record_t *record = handle->works[i].record;
        if (record == NULL)
            continue;
        record->work = NULL;
        hora_record_drop_locked(engine, record);
    }
    hora_handle_free_locked(engine, handle);
}

/* Equal on all ranks that group the same names, in whatever order. */
static uint64_t key_of(const hora_task_t *tasks, size_t ntasks) {
    uint64_t key = ntasks * 0x9e3779b97f4a7c15u;
    if (ntasks == 1)
        return 0;
    for (size_t i = 0; i < ntasks; i++)
        key += hora_name_hash(tasks[i].name, strlen(tasks[i].name));
    return key != 0 ? key : 1;
}

/* *bad_p: the task at fault. The status has no text yet. */
static hora_status_t attach_all_locked(hora_engine_t *engine, const hora_task_t *tasks,
                                       size_t ntasks, hora_handle_t **handle_p, size_t *bad_p) {
    uint64_t       key = key_of(tasks, ntasks);
    hora_handle_t *handle = hora_handle_make_locked(engine, ntasks);
    *bad_p = 0;
    if (handle == NULL)
        return HORA_ERR_NO_MEMORY;
    for (size_t i = 0; i < ntasks; i++) {
        hora_status_t st = attach_locked(engine, handle, i, &tasks[i], key);
        if (st != HORA_OK) {
            *bad_p = i;
            detach_locked(engine, handle);
            return st;
        }
    }
    *handle_p = handle;
    return HORA_OK;
}

/* The other ranks have failed this task already: it is over here too. */
static void end_late_locked(hora_engine_t *engine, hora_work_t *work) {
    hora_record_t *record = work->record;
    hora_status_t  status = record->late_status;
    char          *text = record->late_text;
    record->late_status = HORA_OK;
    record->late_text = NULL;
    hora_work_end_locked(engine, work, status,
                         text != NULL ? text : hora_status_message(status));
    free(text);
}

/* What the other ranks have failed until now was before this rank's join, or without it: none of it
 * waits for a task that comes after. */
static void begin_join_locked(hora_engine_t *engine, hora_work_t *join) {
    engine->join = join;
    for (size_t i = 0; i < engine->records.room;) {
        hora_record_t *record = (hora_record_t *)engine->records.slots[i];
        size_t         count = engine->records.count;
        if (record != NULL && record != join->record && record->late_status != HORA_OK) {
            record->late_status = HORA_OK;
            free(record->late_text);
            record->late_text = NULL;
            hora_record_drop_locked(engine, record);
        }
        if (engine->records.count == count)
            i++; /* else it is gone, and another one may have moved here */
    }
}

static void queue_locked(hora_engine_t *engine, hora_handle_t *handle) {
    size_t n = handle->nworks; /* the handle stays: nobody can release it yet */
    if (handle->works[0].sig.kind == HORA_TASK_JOIN)
        begin_join_locked(engine, &handle->works[0]);
    for (size_t i = 0; i < n; i++) {
        handle->works[i].queued = true;
        hora_works_append(&engine->queue, &handle->works[i]);
        hora_trace_enqueued(engine, &handle->works[i]);
    }
    engine->enqueued += n;
    atomic_fetch_add_explicit(&engine->pending, n, memory_order_relaxed);
    atomic_fetch_add_explicit(&engine->nqueued, n, memory_order_release);
    for (size_t i = 0; i < n; i++)
        if (handle->works[i].record->late_status != HORA_OK)
            end_late_locked(engine, &handle->works[i]);
    if (engine->failed != HORA_OK)
        hora_engine_fail_queued_locked(engine);
}

static void wake_locked(hora_engine_t *engine, unsigned flags) {
    if (engine->size == 1)
        hora_engine_drive_alone_locked(engine);
    else if (engine->driven)
        hora_bell_ring(engine->world->bell, engine->world->eventfd);
    else if (!(flags & HORA_ENQUEUE_WILL_WAIT))
        hora_engine_pass_on_locked(engine);
}

/* Where the streams of tasks on a GPU are now: [ntasks], or NULL if none is. */
static hora_status_t record_marks(hora_engine_t *engine, const hora_task_t *tasks, size_t ntasks,
                                  hora_mark_t ***marks_p) {
    size_t        on_host = 0;
    hora_mark_t **marks;
    hora_status_t st;
    *marks_p = NULL;
    while (on_host < ntasks && tasks[on_host].device < 0)
        on_host++;
    if (on_host == ntasks)
        return HORA_OK;
    marks = calloc(ntasks, sizeof(*marks));
    if (marks == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "enqueue of %zu tasks", ntasks);
    st = hora_marks_record(engine, tasks, ntasks, marks);
    if (st == HORA_OK)
        *marks_p = marks;
    else
        free(marks);
    return st;
}

/* The handle's from now on; without a handle they are dropped. */
static void hand_over(hora_engine_t *engine, hora_mark_t **marks, size_t n, hora_handle_t *handle) {
    for (size_t i = 0; marks != NULL && i < n; i++) {
        if (handle != NULL)
            handle->works[i].ready = marks[i];
        else
            hora_mark_drop(engine->gpu, marks[i]);
    }
    free(marks);
}

hora_status_t hora_background_enqueue(hora_engine_t *engine, const hora_task_t *tasks,
                                      size_t ntasks, unsigned flags, hora_handle_t **handle_p) {
    hora_mark_t  **marks;
    hora_handle_t *handle = NULL;
    size_t         bad = 0;
    hora_status_t  st = record_marks(engine, tasks, ntasks, &marks);
    if (st != HORA_OK)
        return st;
    st = HORA_ERR_SHUT_DOWN;
    pthread_mutex_lock(&engine->lock);
    if (!atomic_load(&engine->closing))
        st = attach_all_locked(engine, tasks, ntasks, &handle, &bad);
    hand_over(engine, marks, ntasks, handle);
    if (st == HORA_OK) {
        queue_locked(engine, handle);
        wake_locked(engine, flags);
    }
    pthread_mutex_unlock(&engine->lock);
    if (st == HORA_ERR_DUPLICATE_NAME)
        return hora_fail(st, "%s %s: a tensor of this name is already in flight: wait for it "
                         "first, or give this one another name",
                         hora_kind_name(tasks[bad].kind), name_of(&tasks[bad]));
    if (st != HORA_OK)
        return hora_fail(st, "%s %s: %s", hora_kind_name(tasks[bad].kind), name_of(&tasks[bad]),
                         hora_status_message(st));
    *handle_p = handle;
    return HORA_OK;
}
