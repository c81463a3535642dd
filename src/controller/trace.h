/*
 * What the coordinator tells the timeline: which rank is ready with what, and how rounds end. On
 * the driving thread of rank 0. While nothing is recorded each call is one branch.
 */
#ifndef HORA_CONTROLLER_TRACE_H
#define HORA_CONTROLLER_TRACE_H

#include "controller/round.h"
#include "util/timeline.h"

/* Horovod's name of the operation: "ALLREDUCE", "ADASUM", ... Static storage. */
const char *hora_signature_trace_name(const hora_signature_t *sig);

void hora_coordinator_trace_push(const hora_coordinator_t *c, const hora_entry_t *e,
                                 hora_timeline_type_t type, int rank, const char *text)
    __attribute__((cold));

static inline bool hora_coordinator_traces(const hora_coordinator_t *c) {
    return c->options.trace != NULL && hora_timeline_on(c->options.trace->timeline);
}

static inline void hora_coordinator_trace_ready(const hora_coordinator_t *c, const hora_entry_t *e,
                                                int rank) {
    if (hora_coordinator_traces(c))
        hora_coordinator_trace_push(c, e, HORA_TIMELINE_READY, rank, NULL);
}

static inline void hora_coordinator_trace_agreed(const hora_coordinator_t *c,
                                                 const hora_entry_t *e) {
    if (hora_coordinator_traces(c))
        hora_coordinator_trace_push(c, e, HORA_TIMELINE_AGREED, 0, NULL);
}

static inline void hora_coordinator_trace_failed(const hora_coordinator_t *c,
                                                 const hora_entry_t *e, const char *text) {
    if (hora_coordinator_traces(c))
        hora_coordinator_trace_push(c, e, HORA_TIMELINE_ENDED, 0, text);
}

#endif
