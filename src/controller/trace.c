/*
 * Events of the negotiation (controller/trace.h). The driving thread of rank 0.
 */
#include "controller/trace.h"

const char *hora_signature_trace_name(const hora_signature_t *sig) {
    static const char *const names[HORA_TASK_KIND_COUNT] = {
        [HORA_TASK_ALLREDUCE] = "ALLREDUCE",         [HORA_TASK_ALLGATHER] = "ALLGATHER",
        [HORA_TASK_BROADCAST] = "BROADCAST",         [HORA_TASK_ALLTOALL] = "ALLTOALL",
        [HORA_TASK_REDUCESCATTER] = "REDUCESCATTER", [HORA_TASK_BARRIER] = "BARRIER",
        [HORA_TASK_JOIN] = "JOIN",
    };
    if (sig->kind == HORA_TASK_ALLREDUCE && sig->op == HORA_ADASUM)
        return "ADASUM";
    return sig->kind < HORA_TASK_KIND_COUNT ? names[sig->kind] : "UNKNOWN";
}

void hora_coordinator_trace_push(const hora_coordinator_t *c, const hora_entry_t *e,
                                 hora_timeline_type_t type, int rank, const char *text) {
    const hora_timeline_source_t *source = c->options.trace;
    hora_timeline_event_t         event = {.type = type,
                                           .scope = source->scope,
                                           .op = hora_signature_trace_name(e->sig),
                                           .label = source->label,
                                           .name = e->name.text,
                                           .name_len = e->name.len,
                                           .number = source->ranks[rank],
                                           .text = text};
    hora_timeline_push(source->timeline, &event);
}
