/*
 * The engine's beginning and end (background.h). On the threads that create and free it.
 */
#include "background/trace.h"

#include "util/clock.h"
#include "util/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOODBYE_SECONDS 1.0 /* to hand the last message over */

static const char *host_of(const void *arg, int rank) {
    return hora_comm_peer(arg, rank)->host;
}

static bool averages_active(const hora_engine_t *engine) {
    return strcmp(engine->world->settings.join_average, "active") == 0;
}

static hora_status_t create_controller(hora_engine_t *engine) {
    hora_coordinator_options_t options = {.size = engine->size,
                                          .fusion_threshold = engine->fusion_threshold,
                                          .cache_capacity = HORA_CACHE_MAX,
                                          .stall_check_ns = engine->stall_check_ns,
                                          .stall_limit_ns = engine->stall_limit_ns,
                                          .join_limit_ns = engine->join_limit_ns,
                                          .freeze = engine->world->settings.freeze,
                                          .average_active = averages_active(engine),
                                          .host = host_of,
                                          .host_arg = engine->comm,
                                          .tune = hora_tuner_tune(engine),
                                          .trace = &engine->trace};
    hora_status_t              st = HORA_OK;
    if (engine->rank == 0)
        st = hora_coordinator_create(&options, &engine->coordinator);
    return st == HORA_OK ? hora_control_create(engine->comm, &engine->control) : st;
}

static void set_times(hora_engine_t *engine) {
    const hora_settings_t *settings = &engine->world->settings;
    double                 limit = settings->stall_shutdown_time;
    if (!settings->stall_check_disable)
        engine->stall_check_ns = hora_clock_from_seconds(settings->stall_check_time);
    engine->stall_limit_ns = hora_clock_from_seconds(limit > 0 ? limit : engine->comm->timeout);
    /* The ranks that have not joined may compute for as long as they like, unless a limit was asked
     * for. */
    engine->join_limit_ns = limit > 0 ? engine->stall_limit_ns : 0;
    engine->next_check = UINT64_MAX;
    if (limit > 0 && engine->stall_check_ns > 0 && limit <= settings->stall_check_time &&
        engine->world->rank == 0 && engine->size == engine->world->size)
        hora_log(HORA_LOG_WARNING, "HORA_STALL_SHUTDOWN_TIME_SECONDS=%g is not more than "
                 "HORA_STALL_CHECK_TIME_SECONDS=%g: a tensor that waits fails without a warning "
                 "before", limit, settings->stall_check_time);
}

static void create_locks(hora_engine_t *engine) {
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&engine->lock, NULL);
    pthread_mutex_init(&engine->gpu_lock, NULL);
    pthread_cond_init(&engine->thread_wake, &monotonic);
    pthread_cond_init(&engine->left, NULL);
    pthread_condattr_destroy(&monotonic);
}

/* What only the driving thread uses; the communicator is still there. */
static void destroy_driver_side(hora_engine_t *engine) {
    hora_control_destroy(engine->control);
    hora_coordinator_destroy(engine->coordinator);
    hora_tuner_destroy(engine);
    hora_fusion_destroy(&engine->fusion);
    hora_engine_gpu_stop(engine);
    hora_frozen_destroy(engine);
    free(engine->seen_gone);
    free(engine->by_slot);
    free(engine->batch);
    free(engine->pieces);
    free(engine->blocks);
    free(engine->rows);
    free(engine->lens);
    free(engine->all_rows);
    engine->control = NULL;
    engine->coordinator = NULL;
}

void hora_engine_destroy(hora_engine_t *engine) {
    for (size_t i = 0; i < engine->records.room; i++) {
        hora_record_t *record = (hora_record_t *)engine->records.slots[i];
        if (record != NULL)
            free(record->late_text);
        free(record);
    }
    hora_names_destroy(&engine->records);
    for (hora_handle_t *handle = engine->idle, *next; handle != NULL; handle = next) {
        next = handle->next_idle;
        free(handle);
    }
    hora_engine_gpu_destroy(engine->gpu);
    pthread_mutex_destroy(&engine->lock);
    pthread_mutex_destroy(&engine->gpu_lock);
    pthread_cond_destroy(&engine->thread_wake);
    pthread_cond_destroy(&engine->left);
    free(engine);
}

hora_status_t hora_background_create(hora_comm_t *comm, size_t fusion_threshold,
                                     hora_engine_t **engine_p) {
    hora_engine_t *engine = calloc(1, sizeof(*engine));
    hora_status_t  st = HORA_OK;
    if (engine == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "an engine");
    engine->comm = comm;
    engine->world = comm->world;
    engine->fork_generation = comm->world->fork_generation;
    engine->rank = comm->rank;
    engine->size = comm->size;
    engine->fusion_threshold = fusion_threshold;
    engine->refs = 1;
    hora_trace_init(engine);
    create_locks(engine);
    set_times(engine);
    hora_fusion_init(&engine->fusion, engine->world, NULL);
    engine->blocks = calloc(4 * (size_t)engine->size, sizeof(*engine->blocks));
    engine->rows = calloc((size_t)engine->size, sizeof(*engine->rows));
    engine->seen_gone = calloc((size_t)engine->size, sizeof(*engine->seen_gone));
    if (engine->blocks == NULL || engine->rows == NULL || engine->seen_gone == NULL)
        st = hora_fail(HORA_ERR_NO_MEMORY, "an engine for %d ranks", engine->size);
    if (st == HORA_OK)
        st = hora_tuner_create(engine);
    if (st == HORA_OK && engine->size > 1)
        st = create_controller(engine);
    if (st == HORA_OK && engine->size > 1)
        st = hora_thread_start(engine);
    if (st != HORA_OK) {
        destroy_driver_side(engine);
        hora_engine_destroy(engine);
        return st;
    }
    *engine_p = engine;
    return HORA_OK;
}

hora_comm_t *hora_background_comm(const hora_engine_t *engine) {
    return engine->comm;
}

/* ---- The end -------------------------------------------------------------------------------- */

/* Nobody begins to drive from now on; returns when nobody drives any more. */
static void stop_driving(hora_engine_t *engine) {
    pthread_mutex_lock(&engine->lock);
    atomic_store(&engine->closing, true);
    pthread_cond_signal(&engine->thread_wake);
    hora_bell_ring(engine->world->bell, engine->world->eventfd);
    while (engine->driven)
        pthread_cond_wait(&engine->left, &engine->lock);
    pthread_mutex_unlock(&engine->lock);
    hora_thread_stop(engine);
}

static void say_goodbye(hora_engine_t *engine, const char *text) {
    hora_frame_writer_t w;
    hora_outgoing_t    *out;
    bool                is_coordinator = engine->coordinator != NULL;
    if (engine->control == NULL || engine->failed != HORA_OK ||
        hora_control_prepare(engine->control, &out) != HORA_OK)
        return;
    hora_frame_begin(&w, hora_outgoing_buf(out),
                     is_coordinator ? HORA_FRAME_RESPONSES : HORA_FRAME_REQUESTS,
                     engine->errors_seen);
    if (is_coordinator)
        hora_frame_put_shut_down(&w, text);
    else
        hora_frame_put_left(&w);
    hora_control_send(engine->control, out, hora_frame_end(&w));
    hora_control_flush(engine->control, GOODBYE_SECONDS); /* who is not there needs no goodbye */
}

void hora_background_free(hora_engine_t *engine) {
    char text[HORA_FAILURE_TEXT_MAX];
    bool last;
    stop_driving(engine);
    snprintf(text, sizeof(text), "rank %d on host %s has freed its engine", engine->rank,
             hora_comm_peer(engine->comm, engine->rank)->host);
    /* The others may be in the middle of what this rank leaves: a goodbye might not reach them. */
    if (atomic_load(&engine->pending) > 0 && engine->size > 1 && engine->failed == HORA_OK)
        hora_world_fail(engine->world, engine->comm->channel, HORA_ERR_SHUT_DOWN,
                        engine->world->rank, text);
    else
        say_goodbye(engine, text);
    hora_engine_fail(engine, HORA_ERR_SHUT_DOWN, text);
    destroy_driver_side(engine);
    pthread_mutex_lock(&engine->lock);
    last = --engine->refs == 0;
    pthread_mutex_unlock(&engine->lock);
    if (last)
        hora_engine_destroy(engine);
}
