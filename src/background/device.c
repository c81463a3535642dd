/*
 * Tensors on a GPU, in the engine (device.h).
 */
#include "background/blocks.h"
#include "background/engine.h"

#include "offload/cuda/device.h"
#include "offload/cuda/elements.h"
#include "transport/event.h"
#include "util/log.h"

#include <stdlib.h>

#define GOODBYE_SECONDS 5.0 /* for work that is queued when the engine is freed */

/* ---- Marks ---------------------------------------------------------------------------------- */

/* In the GPU's context. */
static hora_status_t take_mark(hora_engine_gpu_t *gpu, hora_cuda_stream_t stream,
                               hora_mark_t **mark_p) {
    const hora_cuda_t *cuda = gpu->place.gpu->cuda;
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    hora_mark_t       *mark;
    hora_status_t      st;
    pthread_mutex_lock(&gpu->lock);
    mark = gpu->unused;
    if (mark != NULL)
        gpu->unused = mark->next;
    pthread_mutex_unlock(&gpu->lock);
    if (mark == NULL) {
        mark = calloc(1, sizeof(*mark));
        if (mark == NULL)
            return hora_fail(HORA_ERR_NO_MEMORY, "an event of a GPU");
        result = cuda->event_create(&mark->event, HORA_CUDA_EVENT_NO_TIMING);
        if (result != HORA_CUDA_SUCCESS) {
            free(mark);
            return hora_gpu_check(gpu->place.gpu, result, "making an event");
        }
    }
    mark->refs = 1;
    mark->stream = stream;
    mark->number = atomic_fetch_add(&gpu->marks, 1) + 1;
    st = hora_gpu_check(gpu->place.gpu, cuda->event_record(mark->event, stream), "recording an event");
    if (st != HORA_OK)
        hora_mark_drop(gpu, mark);
    else
        *mark_p = mark;
    return st;
}

hora_mark_t *hora_mark_hold(hora_engine_gpu_t *gpu, hora_mark_t *mark) {
    pthread_mutex_lock(&gpu->lock);
    mark->refs++;
    pthread_mutex_unlock(&gpu->lock);
    return mark;
}

/* A wait that is queued keeps what it waits for, so the event may be recorded anew. */
void hora_mark_drop(hora_engine_gpu_t *gpu, hora_mark_t *mark) {
    if (mark == NULL)
        return;
    pthread_mutex_lock(&gpu->lock);
    if (--mark->refs == 0) {
        mark->next = gpu->unused;
        gpu->unused = mark;
    }
    pthread_mutex_unlock(&gpu->lock);
}

static bool is_on_gpu(const hora_task_t *task) {
    return task->device >= 0 && task->kind != HORA_TASK_BARRIER && task->kind != HORA_TASK_JOIN;
}

/* Tasks of one group mostly come from one stream, and share its mark. */
static hora_status_t record(hora_engine_t *engine, const hora_task_t *task, const hora_task_t *before,
                            hora_mark_t *mark_before, hora_mark_t **mark_p) {
    hora_engine_gpu_t *gpu;
    hora_status_t      st = hora_engine_gpu_get(engine, task->device, &gpu);
    if (st != HORA_OK)
        return st;
    if (mark_before != NULL && before->stream == task->stream) {
        *mark_p = hora_mark_hold(gpu, mark_before);
        return HORA_OK;
    }
    st = hora_gpu_enter(gpu->place.gpu);
    if (st != HORA_OK)
        return st;
    st = take_mark(gpu, task->stream, mark_p);
    hora_gpu_leave(gpu->place.gpu);
    return st;
}

hora_status_t hora_marks_record(hora_engine_t *engine, const hora_task_t *tasks, size_t ntasks,
                                hora_mark_t **marks_p) {
    hora_status_t st = HORA_OK;
    size_t        i;
    for (i = 0; i < ntasks && st == HORA_OK; i++) {
        marks_p[i] = NULL;
        if (is_on_gpu(&tasks[i]))
            st = record(engine, &tasks[i], i > 0 ? &tasks[i - 1] : NULL,
                        i > 0 ? marks_p[i - 1] : NULL, &marks_p[i]);
    }
    while (st != HORA_OK && i-- > 0)
        hora_mark_drop(engine->gpu, marks_p[i]);
    return st;
}

/* ---- Beginning and end ---------------------------------------------------------------------- */

/* Nothing is queued on it any more. */
static void close_lane(const hora_gpu_t *gpu, hora_lane_t *lane) {
    hora_fusion_gpu_destroy(lane->moves);
    if (lane->begun != NULL)
        gpu->cuda->event_destroy(lane->begun);
    if (lane->stream != NULL)
        gpu->cuda->stream_destroy(lane->stream);
    *lane = (hora_lane_t){0};
}

/* What was made before an error is closed with the others. */
static hora_status_t open_lane(hora_engine_t *engine, hora_gpu_t *gpu, hora_lane_t *lane, bool alone) {
    hora_gpu_place_t place;
    hora_status_t    st;
    st = hora_gpu_check(gpu, gpu->cuda->stream_create(&lane->stream, HORA_CUDA_STREAM_NON_BLOCKING, 0),
                        "making the engine's stream");
    if (st == HORA_OK && !alone)
        st = hora_gpu_check(gpu, gpu->cuda->event_create(&lane->begun, HORA_CUDA_EVENT_NO_TIMING),
                            "making an event");
    place = (hora_gpu_place_t){gpu, lane->stream};
    if (st == HORA_OK)
        st = hora_fusion_gpu_create(engine->comm, &place, &lane->moves);
    if (st == HORA_OK)
        hora_fusion_init(&lane->fusion, engine->world, lane->moves);
    return st;
}

/* In the GPU's context. */
static hora_status_t create(hora_engine_t *engine, hora_gpu_t *gpu, hora_engine_gpu_t **gpu_p) {
    int64_t            lanes = engine->world->settings.nccl_streams;
    hora_engine_gpu_t *self;
    hora_status_t      st = HORA_OK;
    self = calloc(1, sizeof(*self));
    if (self == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "tensors on a GPU");
    for (int i = 0; i < lanes && st == HORA_OK; i++)
        st = open_lane(engine, gpu, &self->lanes[i], lanes == 1);
    if (st != HORA_OK)
        goto err_lanes;
    self->nlanes = (int)lanes;
    self->lane = &self->lanes[0];
    self->place = (hora_gpu_place_t){gpu, self->lane->stream};
    pthread_mutex_init(&self->lock, NULL);
    *gpu_p = self;
    return HORA_OK;

err_lanes:
    for (int i = 0; i < lanes; i++)
        close_lane(gpu, &self->lanes[i]);
    free(self);
    return st;
}

static hora_status_t make(hora_engine_t *engine, int ordinal) {
    hora_gpu_t    *gpu;
    hora_status_t  st = hora_gpu_get(engine->world->settings.cuda_library, ordinal, &gpu);
    if (st == HORA_OK)
        st = hora_gpu_enter(gpu);
    if (st != HORA_OK)
        return st;
    st = create(engine, gpu, &engine->gpu);
    hora_gpu_leave(gpu);
    return st;
}

hora_status_t hora_engine_gpu_get(hora_engine_t *engine, int ordinal, hora_engine_gpu_t **gpu_p) {
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&engine->gpu_lock);
    if (engine->gpu == NULL)
        st = make(engine, ordinal);
    pthread_mutex_unlock(&engine->gpu_lock);
    if (st != HORA_OK)
        return st;
    if (engine->gpu->place.gpu->ordinal != ordinal)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "a tensor on GPU %d, but this engine's are on GPU %d",
                         ordinal, engine->gpu->place.gpu->ordinal);
    *gpu_p = engine->gpu;
    return HORA_OK;
}

static bool drain_lanes(const hora_engine_t *engine, const hora_engine_gpu_t *gpu) {
    bool idle = true;
    for (int i = 0; i < gpu->nlanes; i++)
        idle = hora_event_drain(engine->world, gpu->place.gpu, gpu->lanes[i].stream,
                                idle ? GOODBYE_SECONDS : 0) && idle;
    return idle;
}

/* What the GPU may still use is left to the process's end. */
void hora_engine_gpu_stop(hora_engine_t *engine) {
    hora_engine_gpu_t *gpu = engine->gpu;
    bool               entered;
    if (gpu == NULL)
        return;
    entered = hora_gpu_enter(gpu->place.gpu) == HORA_OK; /* else the GPU is lost */
    hora_mark_drop(gpu, gpu->last);
    gpu->last = NULL;
    gpu->idle = drain_lanes(engine, gpu);
    if (gpu->idle) {
        hora_blocks_give_back(gpu);
        for (int i = 0; i < gpu->nlanes; i++)
            close_lane(gpu->place.gpu, &gpu->lanes[i]);
    } else {
        hora_log(HORA_LOG_WARNING, "GPU %d is still busy with the engine's work: its memory is not freed",
                 gpu->place.gpu->ordinal);
    }
    if (entered)
        hora_gpu_leave(gpu->place.gpu);
}

static void destroy_marks(const hora_engine_gpu_t *gpu, hora_mark_t *mark) {
    for (hora_mark_t *next; mark != NULL; mark = next) {
        next = mark->next;
        gpu->place.gpu->cuda->event_destroy(mark->event);
        free(mark);
    }
}

void hora_engine_gpu_destroy(hora_engine_gpu_t *gpu) {
    bool entered;
    if (gpu == NULL)
        return;
    entered = hora_gpu_enter(gpu->place.gpu) == HORA_OK;
    destroy_marks(gpu, gpu->unused);
    destroy_marks(gpu, gpu->late);
    if (gpu->idle)
        hora_blocks_give_back(gpu);
    hora_blocks_leave(gpu, gpu->idle);
    if (entered)
        hora_gpu_leave(gpu->place.gpu);
    pthread_mutex_destroy(&gpu->lock);
    free(gpu);
}

/* ---- A batch -------------------------------------------------------------------------------- */

/* A rank that joined before it had a tensor on a GPU, and takes part in those of the others. */
static hora_status_t choose_gpu(hora_engine_t *engine, hora_engine_gpu_t **gpu_p) {
    const hora_cuda_t *cuda;
    hora_status_t      st = hora_cuda_open(engine->world->settings.cuda_library, &cuda);
    return st == HORA_OK ? hora_engine_gpu_get(engine, engine->world->local_rank % cuda->devices, gpu_p)
                         : st;
}

/* Driver: the GPU is there once a task has been enqueued on it. */
static hora_status_t find_gpu(hora_engine_t *engine, hora_engine_gpu_t **gpu_p) {
    pthread_mutex_lock(&engine->gpu_lock);
    *gpu_p = engine->gpu;
    pthread_mutex_unlock(&engine->gpu_lock);
    return *gpu_p != NULL ? HORA_OK : choose_gpu(engine, gpu_p);
}

static hora_status_t await(hora_engine_gpu_t *gpu, const hora_mark_t *mark) {
    hora_status_t st = hora_gpu_check(
        gpu->place.gpu, gpu->place.gpu->cuda->stream_wait(gpu->place.stream, mark->event, 0),
        "waiting for a tensor");
    if (st == HORA_OK)
        hora_blocks_passed(gpu, mark);
    return st;
}

static hora_status_t await_late(hora_engine_gpu_t *gpu) {
    hora_status_t st = HORA_OK;
    hora_mark_t  *mark, *next;
    pthread_mutex_lock(&gpu->lock);
    mark = gpu->late;
    gpu->late = NULL;
    pthread_mutex_unlock(&gpu->lock);
    for (; mark != NULL; mark = next) {
        next = mark->next;
        if (st == HORA_OK)
            st = await(gpu, mark);
        hora_mark_drop(gpu, mark);
    }
    return st;
}

static hora_status_t await_tasks(hora_engine_t *engine, hora_engine_gpu_t *gpu) {
    hora_status_t st = await_late(gpu);
    hora_mark_t  *last = NULL;
    for (size_t i = 0; i < engine->nbatch && st == HORA_OK; i++) {
        hora_mark_t *ready = engine->batch[i]->ready;
        if (ready != NULL && ready != last)
            st = await(gpu, ready);
        last = ready;
    }
    return st;
}

/* The driver looks at events and allocates, which would fail, and spoil a graph that another thread
 * captures from its streams, in the mode that threads begin with. */
static void keep_out_of_captures(hora_engine_gpu_t *gpu) {
    gpu->capture_mode = HORA_CUDA_CAPTURE_RELAXED;
    gpu->place.gpu->cuda->capture_mode(&gpu->capture_mode);
}

/* What the engine has waited for until now, the next lane waits for too, by the last one's beginning. */
static hora_status_t take_turn(hora_engine_gpu_t *gpu) {
    hora_lane_t *last = gpu->lane;
    int          next = (int)(last - gpu->lanes + 1) % gpu->nlanes;
    if (gpu->nlanes == 1)
        return HORA_OK;
    gpu->lane = &gpu->lanes[next];
    gpu->place.stream = gpu->lane->stream;
    return hora_gpu_check(gpu->place.gpu,
                          gpu->place.gpu->cuda->stream_wait(gpu->lane->stream, last->begun, 0),
                          "waiting for the batch before");
}

static hora_status_t mark_begin(const hora_engine_gpu_t *gpu) {
    if (gpu->nlanes == 1)
        return HORA_OK;
    return hora_gpu_check(gpu->place.gpu,
                          gpu->place.gpu->cuda->event_record(gpu->lane->begun, gpu->lane->stream),
                          "recording an event");
}

/* A batch's end: behind those of all before. */
static hora_status_t mark_end(hora_engine_gpu_t *gpu, hora_mark_t **done_p) {
    hora_mark_t  *done;
    hora_status_t st = HORA_OK;
    if (gpu->last != NULL)
        st = hora_gpu_check(
            gpu->place.gpu,
            gpu->place.gpu->cuda->stream_wait(gpu->lane->stream, gpu->last->event, 0),
            "waiting for the batch before");
    if (st == HORA_OK)
        st = take_mark(gpu, gpu->lane->stream, &done);
    if (st != HORA_OK)
        return st;
    if (gpu->nlanes > 1) {
        hora_mark_drop(gpu, gpu->last);
        gpu->last = hora_mark_hold(gpu, done);
    }
    *done_p = done;
    return HORA_OK;
}

hora_status_t hora_device_batch_begin(hora_engine_t *engine) {
    hora_engine_gpu_t *gpu;
    hora_status_t      st;
    if (engine->batch[0]->sig.device == 0)
        return HORA_OK;
    st = find_gpu(engine, &gpu);
    if (st == HORA_OK)
        st = hora_gpu_enter(gpu->place.gpu);
    if (st != HORA_OK)
        return st;
    gpu->entered = true;
    keep_out_of_captures(gpu);
    st = take_turn(gpu);
    if (st == HORA_OK)
        st = await_tasks(engine, gpu);
    return st == HORA_OK ? mark_begin(gpu) : st;
}

/* There is no mark to wait for. So the GPU has a moment to end what uses the tasks' buffers. */
static void end_failed(hora_engine_t *engine, const hora_engine_gpu_t *gpu) {
    if (hora_device_drain(engine->comm, &gpu->place))
        return;
    hora_log(HORA_LOG_WARNING, "GPU %d may still use the buffers of operations that have failed",
             gpu->place.gpu->ordinal);
    pthread_mutex_lock(&engine->lock);
    for (size_t i = 0; i < engine->nbatch; i++)
        if (!engine->batch[i]->is_ghost)
            engine->batch[i]->handle->stuck = true;
    pthread_mutex_unlock(&engine->lock);
}

hora_status_t hora_device_batch_end(hora_engine_t *engine, hora_status_t status, hora_mark_t **done_p) {
    hora_engine_gpu_t *gpu = engine->batch[0]->sig.device ? engine->gpu : NULL;
    *done_p = NULL;
    if (gpu == NULL || !gpu->entered)
        return status;
    if (status == HORA_OK)
        status = mark_end(gpu, done_p);
    if (status != HORA_OK)
        end_failed(engine, gpu);
    gpu->entered = false;
    gpu->place.gpu->cuda->capture_mode(&gpu->capture_mode);
    hora_gpu_leave(gpu->place.gpu);
    return status;
}

/* ---- Results -------------------------------------------------------------------------------- */

hora_status_t hora_device_mark_reader(hora_engine_gpu_t *gpu, hora_cuda_stream_t stream) {
    hora_mark_t  *mark;
    hora_status_t st;
    if (!hora_blocks_need_mark(gpu, stream))
        return HORA_OK;
    st = take_mark(gpu, stream, &mark);
    if (st != HORA_OK)
        return st;
    pthread_mutex_lock(&gpu->lock);
    mark->next = gpu->late;
    gpu->late = mark;
    pthread_mutex_unlock(&gpu->lock);
    return HORA_OK;
}

hora_status_t hora_device_scale(hora_engine_gpu_t *gpu, hora_dtype_t dtype, double factor,
                                size_t count) {
    const hora_element_how_t how = {.prescale = factor, .postscale = 1.0, .divisor = 1};
    void                    *data = gpu->lane->fusion.data;
    return hora_elements_scale(&gpu->place, dtype, &how, data, data, count);
}
