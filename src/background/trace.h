/*
 * What the engine tells the timeline, and a profiler by NVTX: what happens to each task here. The
 * driving thread, and for `enqueued` any. While nothing is recorded each call is one branch or two.
 */
#ifndef HORA_BACKGROUND_TRACE_H
#define HORA_BACKGROUND_TRACE_H

#include "background/engine.h"

#include "util/nvtx.h"

/* Fills in engine->trace, once the communicator is there. */
void hora_trace_init(hora_engine_t *engine);

void hora_trace_push(hora_engine_t *engine, const hora_work_t *work, hora_timeline_type_t type,
                     const char *text) __attribute__((cold));
void hora_trace_push_started(hora_engine_t *engine) __attribute__((cold));
void hora_trace_push_phase(const hora_engine_t *engine, const char *activity)
    __attribute__((cold));
void hora_trace_push_run(const hora_engine_t *engine, const hora_coll_t *coll)
    __attribute__((cold));
void hora_trace_push_cycle(hora_engine_t *engine) __attribute__((cold));

static inline bool hora_trace_on(const hora_engine_t *engine) {
    return hora_timeline_on(engine->trace.timeline);
}

static inline void hora_trace_enqueued(hora_engine_t *engine, const hora_work_t *work) {
    if (hora_trace_on(engine))
        hora_trace_push(engine, work, HORA_TIMELINE_ENQUEUED, NULL);
}

/* Call it before the coordinator may act on the report. */
static inline void hora_trace_reported(hora_engine_t *engine, const hora_work_t *work) {
    if (hora_trace_on(engine))
        hora_trace_push(engine, work, HORA_TIMELINE_REPORTED, NULL);
}

/* The whole batch is being executed from here on. */
static inline void hora_trace_started(hora_engine_t *engine) {
    engine->traced = 0;
    engine->ntraced = engine->nbatch;
    engine->traced_packed = false;
    if (hora_trace_on(engine))
        hora_trace_push_started(engine);
}

/* From here on it is about tasks [from, to) of the batch. */
static inline void hora_trace_select(hora_engine_t *engine, size_t from, size_t to, bool packed) {
    engine->traced = from;
    engine->ntraced = to - from;
    engine->traced_packed = packed;
}

/* Do phases go to the timeline or to a profiler? */
static inline bool hora_trace_shows_phases(const hora_engine_t *engine) {
    return hora_trace_on(engine) || hora_nvtx_on;
}

/* What is done with these tasks now; of static storage; NULL: nothing. */
static inline void hora_trace_phase(const hora_engine_t *engine, const char *activity) {
    if (hora_trace_shows_phases(engine))
        hora_trace_push_phase(engine, activity);
}

/* A collective over these tasks begins. */
static inline void hora_trace_run(const hora_engine_t *engine, const hora_coll_t *coll) {
    if (hora_trace_shows_phases(engine))
        hora_trace_push_run(engine, coll);
}

/* It has ended; what was packed is unpacked next. */
static inline void hora_trace_ran(const hora_engine_t *engine) {
    if (hora_trace_shows_phases(engine))
        hora_trace_push_phase(engine, engine->traced_packed ? "MEMCPY_OUT_FUSION_BUFFER" : NULL);
}

/* text: of the error, if status is one. */
static inline void hora_trace_ended(hora_engine_t *engine, const hora_work_t *work,
                                    hora_status_t status, const char *text) {
    if (hora_trace_on(engine))
        hora_trace_push(engine, work, HORA_TIMELINE_ENDED, status != HORA_OK ? text : NULL);
}

/* The ranks have agreed on something. */
static inline void hora_trace_cycle(hora_engine_t *engine) {
    if (hora_trace_on(engine))
        hora_trace_push_cycle(engine);
}

#endif
