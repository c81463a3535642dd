/*
 * The engine's door: checks what only this rank can see, and hands on (hora.h). Any thread.
 */
#include "api/check.h"
#include "background/background.h"
#include "controller/message.h"
#include "util/fork.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- The engine ------------------------------------------------------------------------------ */

static size_t threshold_of(const hora_comm_t *comm, const hora_engine_options_t *options) {
    if (options == NULL || options->fusion_threshold == 0)
        return comm->world->settings.fusion_threshold;
    return options->fusion_threshold < 0 ? 0 : (size_t)options->fusion_threshold;
}

/* The others cannot use an engine that one rank could not make: all learn here which one, and
 * why. st: what came of it on this rank. */
static hora_status_t agree(hora_comm_t *comm, hora_status_t st) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    char                own[HORA_FAILURE_TEXT_MAX] = "", text[HORA_FAILURE_TEXT_MAX];
    int32_t             culprit = st == HORA_OK ? comm->size : comm->rank;
    hora_status_t       told;
    if (st != HORA_OK)
        snprintf(own, sizeof(own), "%s", hora_last_error());
    memcpy(text, own, sizeof(text));
    options.name = "engine_create";
    told = hora_allreduce(comm, &culprit, &culprit, 1, HORA_INT32, HORA_MIN, &options);
    if (told == HORA_OK && culprit == comm->size)
        return HORA_OK;
    if (told == HORA_OK)
        told = hora_broadcast(comm, text, text, sizeof(text), HORA_UINT8, culprit, &options);
    if (st != HORA_OK)
        return hora_fail_again(st, own);
    if (told != HORA_OK)
        return told;
    return hora_fail(HORA_ERR_PEER_FAILED, "engine_create: rank %d on host %s: %.*s", culprit,
                     hora_comm_peer(comm, culprit)->host, (int)sizeof(text) - 1, text);
}

static hora_status_t check_arguments(const hora_engine_options_t *options,
                                     hora_engine_t **engine_p) {
    if (engine_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "engine_create: engine_p is NULL");
    if (options != NULL && options->size < sizeof(*options))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "engine_create: options->size is not set; use "
                         "HORA_ENGINE_OPTIONS_INIT");
    return HORA_OK;
}

hora_status_t hora_engine_create(hora_comm_t *comm, const hora_engine_options_t *options,
                                 hora_engine_t **engine_p) {
    hora_engine_t *engine;
    hora_comm_t   *own;
    hora_status_t  st = hora_check_comm(comm, "engine_create"), agreed;
    if (st == HORA_OK)
        st = agree(comm, check_arguments(options, engine_p));
    if (st != HORA_OK)
        return st;
    st = hora_comm_split(comm, 0, comm->rank, &own);
    if (st != HORA_OK)
        return st;
    st = hora_background_create(own, threshold_of(comm, options), &engine);
    agreed = agree(comm, st);
    if (agreed == HORA_OK) {
        *engine_p = engine;
        return HORA_OK;
    }
    if (st == HORA_OK)
        hora_background_free(engine);
    hora_comm_free(own);
    return agreed;
}

hora_status_t hora_engine_free(hora_engine_t *engine) {
    hora_comm_t *own;
    if (engine == NULL)
        return HORA_OK;
    own = hora_background_comm(engine);
    if (own->world->fork_generation != hora_fork_generation)
        return hora_fail(HORA_ERR_UNSUPPORTED, "engine_free: called in the child of a fork");
    hora_background_free(engine);
    return hora_comm_free(own);
}

/* ---- Tasks ----------------------------------------------------------------------------------- */

static hora_status_t bad(const hora_task_t *task, const char *what) {
    return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue %s: %s", task->name, what);
}

static hora_status_t check_name(const hora_task_t *task) {
    size_t len = task->name != NULL ? strnlen(task->name, HORA_NAME_MAX + 1) : 0;
    if (len > 0 && len <= HORA_NAME_MAX)
        return HORA_OK;
    return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                     "enqueue: a task needs a name of 1 to %d characters", HORA_NAME_MAX);
}

static bool gives_output(hora_task_kind_t kind) {
    return kind == HORA_TASK_ALLGATHER || kind == HORA_TASK_ALLTOALL ||
           kind == HORA_TASK_REDUCESCATTER;
}

static hora_status_t check_shape(const hora_task_t *task) {
    size_t        count = 1, size = hora_dtype_size(task->dtype);
    hora_status_t st;
    if (task->ndim < 0 || task->ndim > HORA_MAX_DIMS || (task->ndim > 0 && task->shape == NULL))
        return bad(task, "ndim is not 0 to HORA_MAX_DIMS, or shape is NULL");
    if (task->ndim == 0 && gives_output(task->kind))
        return bad(task, "a scalar has no dimension 0 along which to gather, split or scatter");
    if (!hora_shape_count(task->shape, 0, task->ndim, size, &count))
        return bad(task, "an extent of its shape is negative, or the tensor is too large");
    if (gives_output(task->kind))
        return hora_check_buffer(task->in, count, task->dtype, "in", task->name);
    st = hora_check_buffer(task->out, count, task->dtype, "out", task->name);
    if (st == HORA_OK) /* of a broadcast, elsewhere than on root, this is out again */
        st = hora_check_buffer(task->in, count, task->dtype, "in", task->name);
    return st == HORA_OK
               ? hora_check_overlap(task->in, count * size, task->out, count * size, task->name)
               : st;
}

static hora_status_t check_broadcast(const hora_comm_t *comm, const hora_task_t *task) {
    hora_task_t   own = *task;
    hora_status_t st = hora_check_rank(comm, task->root, "root", task->name);
    if (comm->rank != task->root)
        own.in = task->out; /* in is ignored */
    return st == HORA_OK ? check_shape(&own) : st;
}

static hora_status_t check_splits(const hora_comm_t *comm, const hora_task_t *task) {
    int64_t sum = 0;
    if (task->nsplits == 0)
        return task->shape[0] % comm->size == 0
                   ? HORA_OK
                   : hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue %s: %lld rows cannot be split "
                               "evenly among %d ranks; give splits", task->name,
                               (long long)task->shape[0], comm->size);
    if (task->nsplits != comm->size || task->splits == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue %s: %d splits for %d ranks",
                         task->name, task->nsplits, comm->size);
    for (int r = 0; r < comm->size; r++)
        if (task->splits[r] < 0 || __builtin_add_overflow(sum, task->splits[r], &sum))
            return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue %s: splits[%d] is %lld",
                             task->name, r, (long long)task->splits[r]);
    if (sum != task->shape[0])
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue %s: splits add up to %lld, but there "
                         "are %lld rows", task->name, (long long)sum, (long long)task->shape[0]);
    return HORA_OK;
}

static hora_status_t check_join(const hora_task_t *task, size_t ntasks) {
    if (task->out == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue: a join needs out, for the rank that "
                         "joins last");
    if (ntasks > 1)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue: a join stands alone, not in a group");
    return HORA_OK;
}

static hora_status_t check_task(const hora_comm_t *comm, const hora_task_t *task) {
    hora_status_t st = check_name(task);
    if (st != HORA_OK || task->kind == HORA_TASK_BARRIER)
        return st;
    if (task->stream != NULL && task->device < 0)
        return bad(task, "stream is given, but device says host memory");
    st = hora_check_dtype(task->dtype, task->name);
    if (st != HORA_OK)
        return st;
    switch (task->kind) {
    case HORA_TASK_REDUCESCATTER: st = hora_check_plain_op(task->dtype, task->op, task->name); break;
    case HORA_TASK_ALLREDUCE: st = hora_check_op(task->dtype, task->op, task->name); break;
    case HORA_TASK_BROADCAST: return check_broadcast(comm, task);
    case HORA_TASK_ALLGATHER:
    case HORA_TASK_ALLTOALL: break;
    default: return bad(task, "kind is no task kind");
    }
    if (st == HORA_OK)
        st = check_shape(task);
    return st == HORA_OK && task->kind == HORA_TASK_ALLTOALL ? check_splits(comm, task) : st;
}

/* Tasks of a program that was built with a longer or shorter struct, as this library knows them. */
static hora_status_t convert_tasks(const hora_task_t *tasks, size_t ntasks, hora_task_t **own_p) {
    const hora_task_t init = HORA_TASK_INIT;
    size_t            stride = tasks->size;
    hora_task_t      *own = calloc(ntasks, sizeof(*own));
    if (own == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "enqueue of %zu tasks", ntasks);
    for (size_t i = 0; i < ntasks; i++) {
        own[i] = init;
        memcpy(&own[i], (const char *)tasks + i * stride,
               stride < sizeof(init) ? stride : sizeof(init));
    }
    *own_p = own;
    return HORA_OK;
}

static hora_status_t check_and_enqueue(hora_engine_t *engine, const hora_task_t *tasks,
                                       size_t ntasks, unsigned flags, hora_handle_t **handle_p) {
    const hora_comm_t *comm = hora_background_comm(engine);
    for (size_t i = 0; i < ntasks; i++) {
        hora_status_t st = tasks[i].kind == HORA_TASK_JOIN ? check_join(&tasks[i], ntasks)
                                                           : check_task(comm, &tasks[i]);
        if (st != HORA_OK)
            return st;
    }
    return hora_background_enqueue(engine, tasks, ntasks, flags, handle_p);
}

hora_status_t hora_engine_enqueue(hora_engine_t *engine, const hora_task_t *tasks, size_t ntasks,
                                  unsigned flags, hora_handle_t **handle_p) {
    hora_task_t  *own = NULL;
    hora_status_t st;
    if (engine == NULL || tasks == NULL || handle_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue: engine, tasks or handle_p is NULL");
    if (ntasks == 0 || ntasks > UINT32_MAX)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "enqueue: a group of %zu tasks", ntasks);
    if (hora_background_comm(engine)->world->fork_generation != hora_fork_generation)
        return hora_fail(HORA_ERR_UNSUPPORTED, "enqueue: called in the child of a fork; start "
                         "processes before hora is initialised, or with spawn or forkserver");
    if (tasks->size == sizeof(*tasks))
        return check_and_enqueue(engine, tasks, ntasks, flags, handle_p);
    if (tasks->size < offsetof(hora_task_t, kind) + sizeof(tasks->kind))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "enqueue: the task's size is not set; use HORA_TASK_INIT");
    st = convert_tasks(tasks, ntasks, &own);
    if (st != HORA_OK)
        return st;
    st = check_and_enqueue(engine, own, ntasks, flags, handle_p);
    free(own);
    return st;
}

/* ---- Handles --------------------------------------------------------------------------------- */

int hora_handle_poll(hora_handle_t *handle) {
    return handle != NULL ? hora_background_poll(handle) : 1;
}

hora_status_t hora_handle_wait(hora_handle_t *handle) {
    if (handle == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "handle_wait: handle is NULL");
    return hora_background_wait(handle);
}

hora_status_t hora_handle_stream_wait(hora_handle_t *handle, int device, void *stream) {
    if (handle == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "handle_stream_wait: handle is NULL");
    return hora_background_stream_wait(handle, device, stream);
}

void hora_handle_release(hora_handle_t *handle) {
    if (handle != NULL)
        hora_background_release(handle);
}

hora_status_t hora_handle_output(hora_handle_t *handle, size_t index, hora_output_t *output_p) {
    if (handle == NULL || output_p == NULL)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "handle_output: handle or output_p is NULL");
    if (output_p->size < sizeof(*output_p))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "handle_output: output_p->size is not set; use HORA_OUTPUT_INIT");
    return hora_background_output(handle, index, output_p);
}

void hora_output_free(hora_output_t *output) {
    if (output == NULL)
        return;
    if (output->device >= 0 && output->data != NULL)
        hora_background_output_free(output->device, output->data);
    else
        free(output->data);
    free(output->received_splits);
    output->data = NULL;
    output->received_splits = NULL;
}
