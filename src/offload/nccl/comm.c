/*
 * NCCL communicators (comm.h): making one, freeing it, and the frame around each operation on it. On
 * the thread that uses the owner, with the GPU's context current.
 *
 * All of them are non-blocking: a call returns while NCCL still works at it on threads of its own, and
 * this thread asks until it has done. So every wait has hora's deadline, and the thread goes on moving
 * hora's own messages, which another rank may need before it comes here.
 */
#include "offload/nccl/comm.h"

#include "schedule/algos.h"
#include "schedule/exec.h"
#include "transport/p2p.h"
#include "util/clock.h"
#include "util/log.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define YIELD_NS        200000u  /* asks so long before it sleeps in between */
#define NAP_NS          100000u
#define CAUSE_NS        500000000u
#define WORK_BYTES      (1u << 20)

/* Device memory. Outgrown blocks are kept until the end: freeing one would wait for the GPU. */
struct hora_nccl_block {
    struct hora_nccl_block *next;
    uint64_t                at;
    size_t                  bytes;
};

/* ---- Waiting for NCCL on the host ------------------------------------------------------------ */

static void pause_for(uint64_t waited) {
    struct timespec nap = {0, NAP_NS};
    if (waited < YIELD_NS)
        sched_yield();
    else
        nanosleep(&nap, NULL);
}

/* The watch may know why NCCL failed: HORA_OK if it says nothing. */
static hora_status_t wait_for_cause(hora_nccl_comm_t *self) {
    uint64_t      start = hora_clock_ns();
    hora_status_t st;
    while ((st = hora_failure_check(&self->owner->failure)) == HORA_OK &&
           hora_clock_ns() - start < CAUSE_NS)
        pause_for(YIELD_NS);
    return st;
}

void hora_nccl_enter(hora_nccl_comm_t *self) {
    atomic_store(&self->calling, hora_clock_ns());
    hora_nccl_guard_wake();
}

/* An error: the guard has cut the call off, and the owner has failed. */
static hora_status_t come_out(hora_nccl_comm_t *self) {
    if (atomic_exchange(&self->calling, 0) == HORA_NCCL_CUT_OFF)
        return hora_failure_check(&self->owner->failure);
    return HORA_OK;
}

/* Until NCCL has done with what returned `result`. An error is this thread's last error; the owner has
 * not failed of it yet. */
static hora_status_t settle(hora_nccl_comm_t *self, hora_nccl_handle_t handle,
                            hora_nccl_result_t result, double timeout, const char *setting,
                            const char *what) {
    uint64_t      start = hora_clock_ns(), waited = 0;
    hora_status_t st = hora_failure_check(&self->owner->failure);
    while (st == HORA_OK && result == HORA_NCCL_IN_PROGRESS) {
        hora_nccl_result_t asked;
        pause_for(waited);
        hora_p2p_progress(self->owner->world);
        waited = hora_clock_ns() - start;
        st = hora_failure_check(&self->owner->failure);
        if (st == HORA_OK && hora_clock_seconds(waited) > timeout)
            st = hora_fail(HORA_ERR_TIMEOUT, "%s by NCCL: waited %.1f s for other ranks (%s)", what,
                           hora_clock_seconds(waited), setting);
        if (st != HORA_OK)
            return st;
        asked = self->nccl->async_error(handle, &result);
        result = asked != HORA_NCCL_SUCCESS ? asked : result;
    }
    if (st != HORA_OK || result == HORA_NCCL_SUCCESS)
        return st;
    if (result == HORA_NCCL_REMOTE_ERROR || result == HORA_NCCL_SYSTEM_ERROR)
        st = wait_for_cause(self);
    return st != HORA_OK ? st : hora_nccl_fail(self, result, what);
}

/* ---- Making one ------------------------------------------------------------------------------ */

static hora_coll_t host_coll(const hora_comm_t *owner, hora_coll_kind_t kind, hora_dtype_t dtype,
                             void *data, size_t count, const char *name) {
    return (hora_coll_t){.kind = kind, .dtype = dtype, .op = HORA_MIN, .rank = owner->rank,
                         .size = owner->size, .count = count, .in = data, .out = data,
                         .prescale = 1.0, .postscale = 1.0, .staged = true, .name = name};
}

/* *all_p: whether every member says yes. Another one may still be waiting for NCCL. */
static hora_status_t agree(hora_comm_t *owner, bool yes, bool *all_p) {
    int32_t       vote = yes;
    hora_coll_t   coll = host_coll(owner, HORA_COLL_ALLREDUCE, HORA_INT32, &vote, 1,
                                   "has every rank its NCCL communicator");
    hora_status_t st;
    coll.timeout = owner->timeout + owner->world->settings.start_timeout;
    st = hora_coll_run(owner, &coll);
    if (st == HORA_OK)
        *all_p = vote != 0;
    return st;
}

/* What rank 0 gives the others. */
typedef struct invitation {
    hora_nccl_id_t id;
    int32_t        result;
} invitation_t;

/* Makes the communicator, with all other members. */
static hora_status_t meet(hora_nccl_comm_t *self) {
    hora_comm_t       *owner = self->owner;
    hora_nccl_config_t config = HORA_NCCL_CONFIG;
    invitation_t       invitation = {{{0}}, 0};
    hora_coll_t        coll = host_coll(owner, HORA_COLL_BROADCAST, HORA_UINT8, &invitation,
                                        sizeof(invitation), "where NCCL meets");
    hora_nccl_result_t result;
    hora_status_t      st;
    if (owner->rank == 0)
        invitation.result = self->nccl->get_id(&invitation.id);
    st = hora_coll_run(owner, &coll);
    if (st != HORA_OK)
        return st;
    if (invitation.result != HORA_NCCL_SUCCESS)
        return hora_nccl_fail(self, invitation.result, "the meeting place, made by rank 0,");
    result = self->nccl->init(&self->handle, owner->size, invitation.id, owner->rank, &config);
    return settle(self, self->handle, result, owner->world->settings.start_timeout,
                  "HORA_START_TIMEOUT", "joining");
}

static hora_nccl_comm_t *comm_new(hora_comm_t *owner, hora_gpu_t *gpu,
                                  const hora_nccl_library_t *nccl) {
    hora_nccl_comm_t *self = calloc(1, sizeof(*self));
    if (self == NULL)
        return NULL;
    pthread_mutex_init(&self->lock, NULL);
    self->owner = owner;
    self->gpu = gpu;
    self->nccl = nccl;
    return self;
}

/* Of one that is not guarded. */
static void comm_delete(hora_nccl_comm_t *self) {
    if (self->handle != NULL)
        hora_nccl_end(self, false);
    pthread_mutex_destroy(&self->lock);
    free(self);
}

/* *taken_p: it has one from the split that made it, which is on this GPU on every member. */
static hora_status_t take_inherited(hora_comm_t *owner, const hora_gpu_t *gpu,
                                    hora_nccl_comm_t **self_p, bool *taken_p) {
    hora_nccl_comm_t *self = owner->inherited;
    hora_status_t     st;
    if (self == NULL)
        return HORA_OK;
    st = agree(owner, self->gpu == gpu, taken_p);
    if (st != HORA_OK)
        return st;
    owner->inherited = NULL;
    if (*taken_p)
        *self_p = self;
    else
        hora_nccl_comm_free(self);
    return HORA_OK;
}

hora_status_t hora_nccl_comm_create(hora_comm_t *owner, hora_gpu_t *gpu,
                                    const hora_nccl_library_t *nccl, hora_nccl_comm_t **self_p) {
    hora_nccl_comm_t *self;
    bool              guarded, all = false;
    hora_status_t     st = take_inherited(owner, gpu, self_p, &all);
    if (st != HORA_OK || all)
        return st;
    self = comm_new(owner, gpu, nccl);
    if (self == NULL)
        return hora_coll_fail(owner, hora_fail(HORA_ERR_NO_MEMORY, "a NCCL communicator"));
    st = meet(self);
    if (st == HORA_OK)
        st = hora_nccl_guard_add(self);
    guarded = st == HORA_OK;
    st = hora_failure_check(&owner->failure);
    if (st == HORA_OK && !guarded)
        hora_log(HORA_LOG_WARNING, "hora does without NCCL: %s", hora_last_error());
    if (st == HORA_OK)
        st = agree(owner, guarded, &all);
    if (st == HORA_OK && all) {
        *self_p = self;
        return HORA_OK;
    }
    if (guarded)
        hora_nccl_guard_remove(self);
    comm_delete(self);
    if (st == HORA_OK)
        *self_p = NULL;
    return st;
}

/* Of a parent whose lock is held. Whatever the call answers, NCCL has only begun: it writes the
 * handle when the parent is ready again (NVIDIA/nccl#1472), or, if that is aborted, perhaps
 * later. */
static hora_status_t split(hora_nccl_comm_t *parent, int color, int key, hora_nccl_comm_t *self) {
    hora_nccl_config_t config = HORA_NCCL_CONFIG;
    double             timeout = parent->owner->timeout;
    hora_nccl_result_t result;
    hora_status_t      st;
    hora_nccl_enter(parent);
    result = parent->nccl->split(parent->handle, color < 0 ? HORA_NCCL_NO_COLOR : color, key,
                                 &self->handle, &config);
    st = come_out(parent);
    result = result == HORA_NCCL_SUCCESS ? HORA_NCCL_IN_PROGRESS : result;
    if (st == HORA_OK)
        st = settle(parent, parent->handle, result, timeout, "HORA_TIMEOUT", "splitting");
    if (st == HORA_OK && color >= 0)
        st = settle(parent, self->handle, HORA_NCCL_IN_PROGRESS, timeout, "HORA_TIMEOUT",
                    "splitting");
    return st;
}

hora_status_t hora_nccl_comm_split(hora_nccl_comm_t *parent, int color, int key,
                                   hora_nccl_comm_t **self_p) {
    hora_nccl_comm_t *self = comm_new(parent->owner, parent->gpu, parent->nccl);
    bool              begun = false;
    hora_status_t     st;
    if (self == NULL)
        return hora_coll_fail(parent->owner, hora_fail(HORA_ERR_NO_MEMORY, "a NCCL communicator"));
    pthread_mutex_lock(&parent->lock);
    st = hora_failure_check(&parent->owner->failure);
    begun = st == HORA_OK;
    if (st == HORA_OK)
        st = split(parent, color, key, self);
    if (st == HORA_OK && color >= 0)
        st = hora_nccl_guard_add(self);
    if (st != HORA_OK) {
        st = hora_coll_fail(parent->owner, st);
        hora_nccl_abort(parent);
    }
    pthread_mutex_unlock(&parent->lock);
    if (st != HORA_OK && begun)
        parent->half = self;
    else if (st == HORA_OK && color >= 0)
        *self_p = self;
    else
        comm_delete(self);
    if (st == HORA_OK && color < 0)
        *self_p = NULL;
    return st;
}

void hora_nccl_comm_adopt(hora_nccl_comm_t *self, hora_comm_t *owner) {
    pthread_mutex_lock(&self->lock);
    self->owner = owner;
    pthread_mutex_unlock(&self->lock);
}

/* ---- Freeing it ------------------------------------------------------------------------------ */

/* Finishes what is queued, together with the other members. False: it did not come to an end. */
static bool finalize(hora_nccl_comm_t *self) {
    hora_nccl_result_t result = self->nccl->finalize(self->handle);
    if (settle(self, self->handle, result, hora_nccl_patience(self), "enough", "leaving") ==
        HORA_OK)
        return true;
    hora_log(HORA_LOG_INFO, "a NCCL communicator is aborted: %s", hora_last_error());
    return false;
}

static void free_op(hora_nccl_comm_t *self, hora_nccl_op_t *op) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    if (op->begin != NULL)
        cuda->event_destroy(op->begin);
    if (op->end != NULL)
        cuda->event_destroy(op->end);
    if (op->pieces != NULL)
        cuda->host_free(op->pieces);
    free(op);
}

static void free_ops(hora_nccl_comm_t *self, hora_nccl_op_t *op) {
    while (op != NULL) {
        hora_nccl_op_t *next = op->next;
        free_op(self, op);
        op = next;
    }
}

static void free_memory(hora_nccl_comm_t *self) {
    free_ops(self, self->first);
    free_ops(self, self->spare);
    while (self->work != NULL) {
        struct hora_nccl_block *block = self->work;
        self->work = block->next;
        self->gpu->cuda->free(block->at);
        free(block);
    }
}

void hora_nccl_comm_free(hora_nccl_comm_t *self) {
    bool finalized, ended;
    hora_nccl_guard_remove(self);
    finalized = atomic_load(&self->ending) == NULL && finalize(self);
    ended = hora_nccl_end(self, finalized);
    if (ended && self->half != NULL)
        comm_delete(self->half);
    if (ended)
        free_memory(self); /* else kernels may still use it */
    pthread_mutex_destroy(&self->lock);
    free(self);
}

/* ---- Operations ------------------------------------------------------------------------------ */

static hora_status_t cuda_status(const hora_nccl_comm_t *self, hora_cuda_result_t result,
                                 const char *what) {
    return result == HORA_CUDA_SUCCESS ? HORA_OK : hora_cuda_fail(self->gpu->cuda, result, what);
}

static hora_status_t make_op(hora_nccl_comm_t *self, hora_nccl_op_t **op_p) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_nccl_op_t    *op = calloc(1, sizeof(*op));
    hora_cuda_result_t result;
    if (op == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "an operation of NCCL");
    result = cuda->event_create(&op->begin, HORA_CUDA_EVENT_NO_TIMING);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->event_create(&op->end, HORA_CUDA_EVENT_NO_TIMING);
    if (result != HORA_CUDA_SUCCESS) {
        free_op(self, op);
        return cuda_status(self, result, "an event");
    }
    *op_p = op;
    return HORA_OK;
}

static hora_status_t take_op(hora_nccl_comm_t *self, hora_nccl_op_t **op_p) {
    hora_status_t st = hora_nccl_reap(self);
    if (st != HORA_OK || self->spare == NULL)
        return st != HORA_OK ? st : make_op(self, op_p);
    *op_p = self->spare;
    self->spare = self->spare->next;
    return HORA_OK;
}

hora_status_t hora_nccl_op_begin(hora_nccl_comm_t *self, hora_cuda_stream_t stream,
                                 hora_nccl_op_t **op_p) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_nccl_op_t    *op = NULL;
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    hora_status_t      st;
    pthread_mutex_lock(&self->lock);
    st = hora_failure_check(&self->owner->failure);
    if (st == HORA_OK)
        st = take_op(self, &op);
    if (st != HORA_OK)
        return hora_nccl_op_end(self, NULL, st);
    op->next = NULL;
    op->since = 0;
    if (self->last != NULL && self->stream != stream) /* they share the memory for copies */
        result = cuda->stream_wait(stream, self->last->end, 0);
    self->stream = stream;
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->event_record(op->begin, stream);
    if (result != HORA_CUDA_SUCCESS)
        return hora_nccl_op_end(self, op, cuda_status(self, result, "recording an event"));
    *op_p = op;
    return HORA_OK;
}

hora_status_t hora_nccl_leave(hora_nccl_comm_t *self, hora_nccl_result_t result,
                              const hora_nccl_op_t *op) {
    hora_status_t st = come_out(self);
    return st != HORA_OK ? st : settle(self, self->handle, result, op->timeout, "HORA_TIMEOUT", op->what);
}

hora_status_t hora_nccl_op_end(hora_nccl_comm_t *self, hora_nccl_op_t *op, hora_status_t st) {
    hora_cuda_result_t result = HORA_CUDA_SUCCESS;
    if (st == HORA_OK)
        result = self->gpu->cuda->event_record(op->end, self->stream);
    if (result != HORA_CUDA_SUCCESS)
        st = cuda_status(self, result, "recording an event");
    if (st == HORA_OK) {
        if (self->last != NULL)
            self->last->next = op;
        else
            self->first = op;
        self->last = op;
    } else {
        st = hora_coll_fail(self->owner, st);
        hora_nccl_abort(self);
        if (op != NULL) {
            op->next = self->spare;
            self->spare = op;
        }
    }
    pthread_mutex_unlock(&self->lock);
    return st;
}

hora_status_t hora_nccl_work(hora_nccl_comm_t *self, size_t bytes, uint64_t *memory_p) {
    struct hora_nccl_block *block = self->work;
    size_t                  room = block != NULL ? 2 * block->bytes : WORK_BYTES;
    hora_cuda_result_t      result;
    if (block == NULL || block->bytes < bytes) {
        block = calloc(1, sizeof(*block));
        if (block == NULL)
            return hora_fail(HORA_ERR_NO_MEMORY, "memory for NCCL");
        block->bytes = bytes > room ? bytes : room;
        result = self->gpu->cuda->alloc(&block->at, block->bytes);
        if (result != HORA_CUDA_SUCCESS && block->bytes > bytes) {
            block->bytes = bytes;
            result = self->gpu->cuda->alloc(&block->at, block->bytes);
        }
        if (result != HORA_CUDA_SUCCESS) {
            free(block);
            return cuda_status(self, result, "memory for copies of inputs to NCCL");
        }
        block->next = self->work;
        self->work = block;
    }
    *memory_p = block->at;
    return HORA_OK;
}
