/*
 * Events of the engine (background/trace.h). The pushes are on the thread that does what they tell.
 */
#include "background/trace.h"

#include "controller/trace.h"
#include "transport/transport.h"

#include <stdio.h>
#include <string.h>

enum { BY_SELF, BY_SHM, BY_TCP, BY_MPI, BY_GPU, CARRIERS };

/* What a collective on this communicator waits for: links between hosts, where there are some. */
static int carrier_of(const hora_comm_t *comm) {
    int carrier = BY_SHM;
    if (comm->size == 1)
        return BY_SELF;
    if (comm->pads != NULL)
        return BY_SHM;
    for (int r = 0; r < comm->size; r++) {
        const hora_link_t *link = hora_comm_peer(comm, r)->link;
        if (r == comm->rank || link == NULL)
            continue;
        if (strcmp(link->transport->ops->name, "tcp") == 0)
            carrier = BY_TCP;
        else if (strcmp(link->transport->ops->name, "mpi") == 0)
            carrier = BY_MPI;
    }
    return carrier;
}

/* "ranks 0, 2: " before the names of a process set's tensors; nothing for all ranks. */
static void describe_ranks(const hora_comm_t *comm, char *text, size_t room) {
    size_t n = (size_t)snprintf(text, room, "ranks ");
    text[comm->size == comm->world->size ? 0 : n] = '\0';
    for (int r = 0; comm->size < comm->world->size && r < comm->size; r++) {
        if (n + 24 > room) {
            snprintf(text + n, room - n, ", ...: ");
            return;
        }
        n += (size_t)snprintf(text + n, room - n, "%s%d%s", r > 0 ? ", " : "",
                              comm->world_ranks[r], r + 1 == comm->size ? ": " : "");
    }
}

void hora_trace_init(hora_engine_t *engine) {
    const hora_comm_t *comm = engine->comm;
    engine->trace = (hora_timeline_source_t){.timeline = &comm->world->timeline,
                                             .scope = comm->channel,
                                             .ranks = comm->world_ranks,
                                             .carrier = carrier_of(comm)};
    describe_ranks(comm, engine->trace.label, sizeof(engine->trace.label));
    hora_nvtx_open();
}

static hora_timeline_event_t event_of(const hora_engine_t *engine, const hora_work_t *work,
                                      hora_timeline_type_t type) {
    const hora_name_t *name = &work->record->name;
    return (hora_timeline_event_t){.type = type,
                                   .scope = engine->trace.scope,
                                   .op = hora_signature_trace_name(&work->sig),
                                   .label = engine->trace.label,
                                   .name = name->text,
                                   .name_len = name->len,
                                   .number = -1};
}

static bool has_data(const hora_work_t *work) {
    return work->sig.kind != HORA_TASK_BARRIER && work->sig.kind != HORA_TASK_JOIN;
}

void hora_trace_push(hora_engine_t *engine, const hora_work_t *work, hora_timeline_type_t type,
                     const char *text) {
    hora_timeline_event_t e = event_of(engine, work, type);
    int64_t               shape[HORA_MAX_DIMS];
    if (type == HORA_TIMELINE_REPORTED && engine->coordinator == NULL)
        e.number = engine->world->rank; /* on rank 0 the coordinator tells it */
    if (type == HORA_TIMELINE_ENDED && has_data(work)) {
        e.dtype = hora_dtype_name((hora_dtype_t)work->sig.dtype);
        e.bytes = work->count * hora_dtype_size((hora_dtype_t)work->sig.dtype);
        e.ndim = work->sig.ndim;
        memcpy(shape, work->sig.shape, (size_t)e.ndim * sizeof(shape[0]));
        shape[0] = e.ndim > 0 ? work->rows : 0; /* the signature may leave it open */
        e.shape = shape;
    }
    e.text = text;
    hora_timeline_push(engine->trace.timeline, &e);
}

void hora_trace_push_started(hora_engine_t *engine) {
    for (size_t i = 0; i < engine->nbatch; i++)
        if (!engine->batch[i]->is_ghost)
            hora_trace_push(engine, engine->batch[i], HORA_TIMELINE_STARTED, NULL);
    if (engine->nbatch > 1)
        hora_trace_push_phase(engine, "WAIT_FOR_OTHER_TENSOR_DATA");
}

/* "SHM_ALLREDUCE layer1.weight and 160 more" */
static void show_phase(const hora_engine_t *engine, const char *activity) {
    const hora_work_t *work = engine->ntraced > 0 ? engine->batch[engine->traced] : NULL;
    char               text[160], more[40] = "";
    if (activity == NULL || work == NULL) {
        hora_nvtx_phase(activity);
        return;
    }
    if (engine->ntraced > 1)
        snprintf(more, sizeof(more), " and %zu more", engine->ntraced - 1);
    snprintf(text, sizeof(text), "%s %.80s%s", activity, work->record->name.text, more);
    hora_nvtx_phase(text);
}

void hora_trace_push_phase(const hora_engine_t *engine, const char *activity) {
    if (hora_nvtx_on)
        show_phase(engine, activity);
    for (size_t i = 0; hora_trace_on(engine) && i < engine->ntraced; i++) {
        const hora_work_t    *work = engine->batch[engine->traced + i];
        hora_timeline_event_t e = event_of(engine, work, HORA_TIMELINE_ACTIVITY);
        e.activity = activity;
        if (!work->is_ghost)
            hora_timeline_push(engine->trace.timeline, &e);
    }
}

#define OF_ALL(kind) {"SELF_" kind, "SHM_" kind, "TCP_" kind, "MPI_" kind, "GPU_" kind}

void hora_trace_push_run(const hora_engine_t *engine, const hora_coll_t *coll) {
    static const char *const names[HORA_COLL_KIND_COUNT][CARRIERS] = {
        [HORA_COLL_ALLREDUCE] = OF_ALL("ALLREDUCE"),
        [HORA_COLL_ALLGATHER] = OF_ALL("ALLGATHER"),
        [HORA_COLL_BROADCAST] = OF_ALL("BCAST"),
        [HORA_COLL_ALLTOALL] = OF_ALL("ALLTOALL"),
        [HORA_COLL_REDUCE_SCATTER] = OF_ALL("REDUCESCATTER"),
    };
    static const char *const adasum[CARRIERS] = OF_ALL("ADASUM_ALLREDUCE");
    bool offloads = coll->kind == HORA_COLL_ALLREDUCE && coll->op != HORA_ADASUM &&
                    strcmp(engine->world->settings.offload, "mpi") == 0;
    int  carrier = coll->gpu != NULL ? BY_GPU : offloads ? BY_MPI : engine->trace.carrier;
    hora_trace_push_phase(engine, coll->op == HORA_ADASUM ? adasum[carrier]
                                                          : names[coll->kind][carrier]);
}

void hora_trace_push_cycle(hora_engine_t *engine) {
    hora_timeline_event_t e = {.type = HORA_TIMELINE_CYCLE, .name = ""};
    if (atomic_load(&engine->trace.timeline->mark_cycles))
        hora_timeline_push(engine->trace.timeline, &e);
}
