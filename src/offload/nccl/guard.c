/*
 * The guard over NCCL communicators, and how one is ended (comm.h). `guard.lock` guards the list and
 * the thread's state; the thread sleeps while no communicator has work on the GPU, and looks at all of
 * them every LOOK_NS otherwise. The record of an ending is shared by its thread and by whoever frees
 * the communicator; the last of the two frees it.
 *
 * An error that NCCL reports is most often another rank's death, of which hora's watch knows more: so
 * it has CAUSE_NS to say so, before the error is taken for the cause.
 */
#include "offload/nccl/comm.h"

#include "schedule/algos.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/thread.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LOOK_NS  20000000u
#define CAUSE_NS 500000000u
#define STUCK    0.1 /* seconds: calls of NCCL are quicker; while one lasts nothing else should be called */

static struct {
    pthread_mutex_t   lock;
    pthread_cond_t    wake, stopped;
    hora_nccl_comm_t *first;
    bool              running, stops;
    atomic_bool       asleep;
    pthread_t         thread;
} guard = {.lock = PTHREAD_MUTEX_INITIALIZER,
           .wake = PTHREAD_COND_INITIALIZER,
           .stopped = PTHREAD_COND_INITIALIZER};

struct hora_nccl_ending {
    pthread_mutex_t    lock;
    pthread_cond_t     ended;
    bool               done;
    atomic_int         holders;
    hora_nccl_handle_t handle;
    hora_nccl_result_t (*call)(hora_nccl_handle_t comm);
    hora_gpu_t         gpu; /* a copy: it may outlive the communicator */
};

/* A moment of CLOCK_REALTIME, which condition variables count by. */
static struct timespec in_ns(uint64_t ns) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    ns += (uint64_t)at.tv_nsec;
    at.tv_sec += (time_t)(ns / 1000000000u);
    at.tv_nsec = (long)(ns % 1000000000u);
    return at;
}

/* ---- Words ----------------------------------------------------------------------------------- */

static hora_status_t status_of(hora_nccl_result_t result, const char *text) {
    if (strstr(text, "out of memory") != NULL)
        return HORA_ERR_NO_MEMORY;
    switch (result) {
    case HORA_NCCL_REMOTE_ERROR: return HORA_ERR_PEER_FAILED;
    case HORA_NCCL_TIMEOUT: return HORA_ERR_TIMEOUT;
    case HORA_NCCL_BAD_USAGE: return HORA_ERR_UNSUPPORTED;
    case HORA_NCCL_CUDA_ERROR:
    case HORA_NCCL_SYSTEM_ERROR: return HORA_ERR_SYSTEM;
    default: return HORA_ERR_INTERNAL;
    }
}

hora_status_t hora_nccl_fail(const hora_nccl_comm_t *self, hora_nccl_result_t result,
                             const char *what) {
    const char *words = self->nccl->error_text(result), *last = self->nccl->last_error(NULL);
    words = words != NULL ? words : "unknown result";
    last = last != NULL ? last : "";
    return hora_fail(status_of(result, last), "%s by NCCL: %.200s (%d)%s%.400s", what, words, result,
                     last[0] != '\0' ? "; last: " : "", last);
}

/* ---- Ending one -------------------------------------------------------------------------------- */

static void let_go(hora_nccl_ending_t *ending) {
    if (atomic_fetch_sub(&ending->holders, 1) > 1)
        return;
    pthread_cond_destroy(&ending->ended);
    pthread_mutex_destroy(&ending->lock);
    free(ending);
}

static void *ending_main(void *arg) {
    hora_nccl_ending_t *ending = arg;
    bool                entered = hora_gpu_enter(&ending->gpu) == HORA_OK;
    ending->call(ending->handle);
    if (entered)
        hora_gpu_leave(&ending->gpu);
    pthread_mutex_lock(&ending->lock);
    ending->done = true;
    pthread_cond_signal(&ending->ended);
    pthread_mutex_unlock(&ending->lock);
    let_go(ending);
    return NULL;
}

/* Begins it, by ncclCommAbort or ncclCommDestroy, unless that has begun. */
static void begin_ending(hora_nccl_comm_t *self, hora_nccl_result_t (*call)(hora_nccl_handle_t comm)) {
    pthread_t           thread;
    hora_nccl_ending_t *none = NULL, *ending;
    if (atomic_load(&self->ending) != NULL || (ending = calloc(1, sizeof(*ending))) == NULL)
        return;
    pthread_mutex_init(&ending->lock, NULL);
    pthread_cond_init(&ending->ended, NULL);
    atomic_init(&ending->holders, 2);
    ending->call = call;
    ending->handle = self->handle;
    ending->gpu = *self->gpu;
    if (!atomic_compare_exchange_strong(&self->ending, &none, ending)) {
        atomic_store(&ending->holders, 1);
        let_go(ending);
    } else if (hora_thread_spawn("hora-nccl-end", 0, ending_main, ending, "ending NCCL", &thread) !=
               HORA_OK) {
        hora_log(HORA_LOG_ERROR, "NCCL is left as it is: %s", hora_last_error());
        atomic_fetch_sub(&ending->holders, 1);
    } else {
        pthread_detach(thread);
    }
}

void hora_nccl_abort(hora_nccl_comm_t *self) {
    begin_ending(self, self->nccl->abort); /* without memory: the guard's next look tries again */
}

double hora_nccl_patience(const hora_nccl_comm_t *self) {
    return self->owner->timeout < HORA_NCCL_PATIENCE ? self->owner->timeout : HORA_NCCL_PATIENCE;
}

bool hora_nccl_end(hora_nccl_comm_t *self, bool finalized) {
    struct timespec     limit = in_ns(hora_clock_from_seconds(hora_nccl_patience(self)));
    hora_nccl_ending_t *ending;
    bool                done;
    begin_ending(self, finalized ? self->nccl->destroy : self->nccl->abort);
    ending = atomic_exchange(&self->ending, NULL);
    if (ending == NULL)
        return false;
    pthread_mutex_lock(&ending->lock);
    while (!ending->done && pthread_cond_timedwait(&ending->ended, &ending->lock, &limit) == 0)
        ;
    done = ending->done;
    pthread_mutex_unlock(&ending->lock);
    let_go(ending);
    if (!done)
        hora_log(HORA_LOG_WARNING, "NCCL has not ended a communicator in %.1f s: it is left behind, with "
                 "its memory", hora_nccl_patience(self));
    return done;
}

/* ---- Looking --------------------------------------------------------------------------------- */

hora_status_t hora_nccl_reap(hora_nccl_comm_t *self) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    while (self->first != NULL) {
        hora_nccl_op_t    *op = self->first;
        hora_cuda_result_t result = cuda->event_query(op->end);
        if (result == HORA_CUDA_NOT_READY)
            return HORA_OK;
        if (result != HORA_CUDA_SUCCESS)
            return hora_cuda_fail(cuda, result, op->what);
        self->first = op->next;
        if (self->first == NULL)
            self->last = NULL;
        op->next = self->spare;
        self->spare = op;
    }
    return HORA_OK;
}

static bool has_failed(const hora_nccl_comm_t *self) {
    return atomic_load(&self->owner->failure.raised) != HORA_OK;
}

static void end(hora_nccl_comm_t *self, hora_status_t status) {
    if (!has_failed(self))
        hora_coll_fail(self->owner, status);
    hora_nccl_abort(self);
}

/* Does NCCL report an error, which nobody has given a cause for? */
static hora_status_t check_reports(hora_nccl_comm_t *self, uint64_t now) {
    hora_nccl_result_t report = HORA_NCCL_SUCCESS;
    hora_nccl_result_t result = self->nccl->async_error(self->handle, &report);
    report = result != HORA_NCCL_SUCCESS ? result : report;
    if (hora_nccl_went(report))
        return HORA_OK;
    if (self->suspected == 0)
        self->suspected = now;
    return now - self->suspected < CAUSE_NS ? HORA_OK : hora_nccl_fail(self, report, self->first->what);
}

static hora_status_t check_time(hora_nccl_comm_t *self, uint64_t now) {
    hora_nccl_op_t    *op = self->first;
    hora_cuda_result_t result;
    if (op->since == 0) { /* work that was queued before it takes as long as it takes */
        result = self->gpu->cuda->event_query(op->begin);
        if (result != HORA_CUDA_SUCCESS)
            return HORA_OK; /* or an error, which its end shows too */
        op->since = now;
    }
    if (hora_clock_seconds(now - op->since) < op->timeout)
        return HORA_OK;
    return hora_fail(HORA_ERR_TIMEOUT, "%s by NCCL: on the GPU since %.1f s, waiting for other ranks "
                     "(HORA_TIMEOUT)", op->what, hora_clock_seconds(now - op->since));
}

/* Under its lock. True: there is work on the GPU. */
static bool look_at_work(hora_nccl_comm_t *self, uint64_t now) {
    hora_status_t st;
    if (atomic_load(&self->ending) != NULL)
        return false;
    if (has_failed(self)) { /* before CUDA is asked, which may be as stuck as what is to be ended */
        hora_nccl_abort(self);
        return true;
    }
    st = hora_nccl_reap(self);
    if (st == HORA_OK && self->first == NULL)
        return false;
    if (st == HORA_OK)
        st = check_reports(self, now);
    if (st == HORA_OK)
        st = check_time(self, now);
    if (st != HORA_OK)
        end(self, st);
    return true;
}

/* Another thread has the lock. It watches over itself unless it is inside NCCL, where only an abort
 * gets it out. */
static void look_at_caller(hora_nccl_comm_t *self, uint64_t now) {
    uint64_t since = atomic_load(&self->calling);
    double   seconds = since < now ? hora_clock_seconds(now - since) : 0;
    if (since <= HORA_NCCL_CUT_OFF || seconds < STUCK)
        return;
    if (!has_failed(self) && seconds > self->owner->timeout)
        hora_coll_fail(self->owner, hora_fail(HORA_ERR_TIMEOUT, "NCCL has not returned from a call for "
                                              "%.1f s (HORA_TIMEOUT)", seconds));
    if (has_failed(self) && atomic_compare_exchange_strong(&self->calling, &since, HORA_NCCL_CUT_OFF))
        hora_nccl_abort(self);
}

static bool look(hora_nccl_comm_t *self) {
    uint64_t now = hora_clock_ns();
    bool     busy;
    if (pthread_mutex_trylock(&self->lock) != 0) {
        look_at_caller(self, now);
        return true;
    }
    busy = self->first != NULL;
    if (busy && hora_gpu_enter(self->gpu) == HORA_OK) {
        busy = look_at_work(self, now);
        hora_gpu_leave(self->gpu);
    }
    pthread_mutex_unlock(&self->lock);
    return busy;
}

/* ---- The thread ------------------------------------------------------------------------------ */

/* Without it the looks of this thread would spoil a graph that another one captures from its streams. */
static void keep_out_of_captures(void) {
    int mode = HORA_CUDA_CAPTURE_RELAXED;
    guard.first->gpu->cuda->capture_mode(&mode);
}

static void *guard_main(void *arg) {
    (void)arg;
    pthread_mutex_lock(&guard.lock); /* the first communicator is in the list by now */
    if (guard.first != NULL)
        keep_out_of_captures();
    while (!guard.stops) {
        struct timespec soon = in_ns(LOOK_NS);
        bool            busy = false;
        atomic_store(&guard.asleep, true); /* whoever queues work from here on wakes it */
        for (hora_nccl_comm_t *self = guard.first; self != NULL; self = self->next)
            busy |= look(self);
        if (busy) {
            atomic_store(&guard.asleep, false);
            pthread_cond_timedwait(&guard.wake, &guard.lock, &soon);
        } else {
            while (!guard.stops && atomic_load(&guard.asleep))
                pthread_cond_wait(&guard.wake, &guard.lock);
        }
    }
    guard.running = guard.stops = false;
    pthread_cond_broadcast(&guard.stopped);
    pthread_mutex_unlock(&guard.lock);
    return NULL;
}

void hora_nccl_guard_wake(void) {
    if (!atomic_load(&guard.asleep))
        return;
    pthread_mutex_lock(&guard.lock);
    atomic_store(&guard.asleep, false);
    pthread_cond_signal(&guard.wake);
    pthread_mutex_unlock(&guard.lock);
}

hora_status_t hora_nccl_guard_add(hora_nccl_comm_t *self) {
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&guard.lock);
    while (guard.stops)
        pthread_cond_wait(&guard.stopped, &guard.lock);
    if (!guard.running)
        st = hora_thread_spawn("hora-nccl", 0, guard_main, NULL, "the guard over NCCL",
                               &guard.thread);
    if (st == HORA_OK) {
        guard.running = true;
        self->next = guard.first;
        guard.first = self;
    }
    pthread_mutex_unlock(&guard.lock);
    return st;
}

void hora_nccl_guard_remove(hora_nccl_comm_t *self) {
    hora_nccl_comm_t **at = &guard.first;
    pthread_t          thread;
    bool               last;
    pthread_mutex_lock(&guard.lock);
    while (*at != self)
        at = &(*at)->next;
    *at = self->next;
    last = guard.first == NULL;
    thread = guard.thread;
    if (last) {
        guard.stops = true;
        pthread_cond_signal(&guard.wake);
    }
    pthread_mutex_unlock(&guard.lock);
    if (last)
        pthread_join(thread, NULL);
}
