/*
 * Handles as their owners see them: poll, wait, release, output (background.h). Any thread.
 */
#include "background/blocks.h"
#include "background/engine.h"

#include "util/fork.h"

static bool is_done(const hora_handle_t *handle) {
    return atomic_load_explicit(&handle->done, memory_order_acquire);
}

/* Who polls does not wait, whatever was promised when the task was enqueued: somebody else has to
 * drive. If the lock is taken, somebody looks after the engine already, or the next poll does. */
int hora_background_poll(hora_handle_t *handle) {
    hora_engine_t *engine = handle->engine;
    if (is_done(handle))
        return 1;
    if (pthread_mutex_trylock(&engine->lock) == 0) {
        hora_engine_pass_on_locked(engine);
        pthread_mutex_unlock(&engine->lock);
    }
    return 0;
}

static void add_sleeper_locked(hora_engine_t *engine, hora_sleeper_t *s) {
    s->prev = NULL;
    s->next = engine->sleepers;
    if (s->next != NULL)
        s->next->prev = s;
    engine->sleepers = s;
    atomic_fetch_add(&engine->nsleepers, 1);
}

static void remove_sleeper_locked(hora_engine_t *engine, hora_sleeper_t *s) {
    if (s->prev != NULL)
        s->prev->next = s->next;
    else
        engine->sleepers = s->next;
    if (s->next != NULL)
        s->next->prev = s->prev;
    atomic_fetch_sub(&engine->nsleepers, 1);
}

/* Somebody else drives: sleeps until the handle is done or nobody drives any more. The background
 * thread is asked to stop driving, since this thread would only wait for it. */
static void sleep_locked(hora_engine_t *engine, hora_handle_t *handle) {
    hora_sleeper_t s = {.handle = handle};
    pthread_cond_init(&s.wake, NULL);
    add_sleeper_locked(engine, &s);
    if (engine->thread_state == HORA_THREAD_DRIVING)
        hora_bell_ring(engine->world->bell, engine->world->eventfd);
    while (!is_done(handle) && (engine->driven || atomic_load(&engine->closing)))
        pthread_cond_wait(&s.wake, &engine->lock);
    remove_sleeper_locked(engine, &s);
    pthread_cond_destroy(&s.wake);
}

static void wait_until_done(hora_handle_t *handle) {
    hora_engine_t *engine = handle->engine;
    pthread_mutex_lock(&engine->lock);
    while (!is_done(handle)) {
        if (engine->driven || atomic_load(&engine->closing)) {
            sleep_locked(engine, handle);
            continue;
        }
        engine->driven = true;
        pthread_mutex_unlock(&engine->lock);
        hora_engine_drive(engine, handle);
        pthread_mutex_lock(&engine->lock);
        hora_engine_leave_locked(engine);
    }
    hora_engine_pass_on_locked(engine); /* it may have been this thread's turn to drive */
    if (engine->size == 1)
        hora_engine_drive_alone_locked(engine);
    pthread_mutex_unlock(&engine->lock);
}

hora_status_t hora_background_wait(hora_handle_t *handle) {
    if (!is_done(handle)) {
        if (handle->engine->fork_generation != hora_fork_generation)
            return hora_fail(HORA_ERR_UNSUPPORTED, "handle_wait: called in the child of a fork");
        wait_until_done(handle);
    }
    if (handle->status == HORA_OK)
        return HORA_OK;
    return hora_fail_again(handle->status, handle->text != NULL
                                               ? handle->text
                                               : hora_status_message(handle->status));
}

void hora_background_release(hora_handle_t *handle) {
    hora_engine_t *engine = handle->engine;
    bool           last;
    pthread_mutex_lock(&engine->lock);
    if (is_done(handle)) {
        hora_handle_free_locked(engine, handle);
    } else {
        handle->released = true;
        hora_engine_pass_on_locked(engine); /* whoever was going to wait was interrupted */
    }
    last = engine->refs == 0;
    pthread_mutex_unlock(&engine->lock);
    if (last)
        hora_engine_destroy(engine);
}

hora_status_t hora_background_output(hora_handle_t *handle, size_t index, hora_output_t *output_p) {
    hora_engine_t *engine = handle->engine;
    hora_work_t   *work;
    bool           has_output = false;
    if (!is_done(handle))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "handle_output: the handle is not done");
    if (index >= handle->nworks)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "handle_output: task %zu of a handle of %zu",
                         index, handle->nworks);
    work = &handle->works[index];
    pthread_mutex_lock(&engine->lock);
    if (handle->status == HORA_OK) {
        has_output = work->has_output;
        work->has_output = false;
    }
    pthread_mutex_unlock(&engine->lock);
    if (!has_output)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "handle_output: task %zu has no output, or it was taken", index);
    output_p->data = work->data;
    output_p->ndim = work->sig.ndim;
    memcpy(output_p->shape, work->sig.shape, work->sig.ndim * sizeof(output_p->shape[0]));
    output_p->shape[0] = work->out_rows;
    output_p->received_splits = work->received;
    output_p->device = work->sig.device ? engine->gpu->place.gpu->ordinal : -1;
    return HORA_OK;
}

/* place: the stream, in whose GPU's context this is. */
static hora_status_t stream_wait(hora_handle_t *handle, const hora_gpu_place_t *place) {
    hora_engine_gpu_t *gpu = handle->engine->gpu;
    hora_status_t      st = HORA_OK;
    for (size_t i = 0; i < handle->nworks; i++)
        if (handle->works[i].sig.device && handle->works[i].data != NULL)
            hora_block_tell(gpu, handle->works[i].data, place);
    if (place->gpu == gpu->place.gpu)
        st = hora_device_mark_reader(gpu, place->stream);
    if (st != HORA_OK)
        return st;
    return hora_gpu_check(place->gpu,
                          place->gpu->cuda->stream_wait(place->stream, handle->mark->event, 0),
                          "making a stream wait");
}

hora_status_t hora_background_stream_wait(hora_handle_t *handle, int device, void *stream) {
    hora_gpu_place_t place = {NULL, stream};
    hora_status_t    st;
    if (!is_done(handle))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "handle_stream_wait: wait for the handle first");
    if (handle->stuck)
        return hora_fail(handle->status, "handle_stream_wait: the operation has failed, and the GPU may "
                         "still use its buffers");
    if (handle->mark == NULL)
        return HORA_OK;
    st = hora_gpu_get("", device, &place.gpu);
    if (st == HORA_OK)
        st = hora_gpu_enter(place.gpu);
    if (st != HORA_OK)
        return st;
    st = stream_wait(handle, &place);
    hora_gpu_leave(place.gpu);
    return st;
}
