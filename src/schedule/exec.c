/*
 * The door into schedules (exec.h): the queue of operations of a communicator, waiting for them,
 * and the executions that are kept for the next call. On the thread that uses the communicator.
 *
 * Invariants:
 *   - comm->first .. last are the operations in flight, in the order of their start; only the first
 *     one moves. It leaves the queue when it is done.
 *   - comm->idle are finished executions, newest first, at most IDLE_MAX, with their plans and
 *     memory; a call like an earlier one takes up its plan and allocates nothing.
 *   - An execution that the caller holds is in the queue or done; one that nobody holds is idle.
 */
#include "schedule/run.h"

#include "transport/p2p.h"
#include "transport/shm/pads.h"
#include "transport/wait.h"
#include "util/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IDLE_MAX     8
#define STALE_EVENTS 1024 /* events without news for this call before a look at the failure flag */
#define POLL_TURNS   64   /* turns between looks for a crossing call while waiting for a phase */
#define ALL_TURNS    8    /* turns between looks at all links while waiting for a transfer */

/* ---- executions and their memory ---- */

static void exec_destroy(hora_exec_t *exec) {
    hora_plan_destroy(&exec->plan);
    free(exec->arrays);
    free(exec->xfers);
    free(exec->peers);
    free(exec->ptrs);
    free(exec->tmp);
    free(exec->work);
    free(exec);
}

static hora_exec_t *exec_new(hora_comm_t *comm) {
    size_t       size = (size_t)comm->size;
    hora_exec_t *exec = calloc(1, sizeof(*exec));
    if (exec == NULL)
        return NULL;
    exec->comm = comm;
    hora_plan_init(&exec->plan);
    exec->arrays = malloc(4 * size * sizeof(*exec->arrays));
    exec->peers = calloc(size, sizeof(*exec->peers));
    exec->ptrs = malloc((2 * size + 2) * sizeof(*exec->ptrs));
    if (exec->arrays == NULL || exec->peers == NULL || exec->ptrs == NULL) {
        exec_destroy(exec);
        return NULL;
    }
    return exec;
}

void hora_exec_forget(hora_comm_t *comm) {
    while (comm->idle != NULL) {
        hora_exec_t *exec = comm->idle;
        comm->idle = exec->next;
        exec_destroy(exec);
    }
}

static bool same_array(const size_t *a, const size_t *b, int size) {
    if (a == NULL || b == NULL)
        return a == b;
    return memcmp(a, b, (size_t)size * sizeof(*a)) == 0;
}

/* Would the plan of `kept` do for coll? (The rest is in the plan's key.) */
static bool same_call(const hora_coll_t *kept, const hora_coll_t *coll) {
    return kept->kind == coll->kind && kept->count == coll->count && kept->root == coll->root &&
           kept->dtype == coll->dtype && same_array(kept->counts, coll->counts, coll->size) &&
           same_array(kept->displs, coll->displs, coll->size) &&
           same_array(kept->other_counts, coll->other_counts, coll->size) &&
           same_array(kept->other_displs, coll->other_displs, coll->size);
}

/* Takes an idle execution that has made this call before; else, once there are enough of them, the
 * one that has not been used for longest; else a new one. */
static hora_exec_t *acquire(hora_comm_t *comm, const hora_coll_t *coll, bool *same_p) {
    hora_exec_t **here = &comm->idle, **oldest = NULL, *exec;
    int           idle = 0;
    for (; *here != NULL && !same_call(&(*here)->coll, coll); here = &(*here)->next, idle++)
        oldest = here;
    *same_p = *here != NULL;
    if (!*same_p && idle < IDLE_MAX)
        return exec_new(comm);
    if (!*same_p)
        here = oldest;
    exec = *here;
    *here = exec->next;
    return exec;
}

static void release(hora_exec_t *exec) {
    hora_comm_t *comm = exec->comm;
    exec->next = comm->idle;
    comm->idle = exec;
}

static const size_t *keep_array(hora_exec_t *exec, int i, const size_t *array) {
    size_t  size = (size_t)exec->comm->size;
    size_t *own = exec->arrays + (size_t)i * size;
    if (array == NULL)
        return NULL;
    if (array != own)
        memcpy(own, array, size * sizeof(*own));
    return own;
}

static void copy_call(hora_exec_t *exec, const hora_coll_t *coll) {
    exec->coll = *coll;
    exec->coll.hosts = hora_comm_levels(exec->comm);
    exec->coll.counts = keep_array(exec, 0, coll->counts);
    exec->coll.displs = keep_array(exec, 1, coll->displs);
    exec->coll.other_counts = keep_array(exec, 2, coll->other_counts);
    exec->coll.other_displs = keep_array(exec, 3, coll->other_displs);
    if (coll->kind == HORA_COLL_BARRIER) {
        exec->coll.dtype = HORA_UINT8;
        exec->coll.count = 0;
    }
    if (exec->name[0] != 0)
        exec->what[0] = 0;
    exec->name[0] = 0;
    if (coll->name != NULL && coll->name[0] != 0) {
        snprintf(exec->name, sizeof(exec->name), "%s", coll->name);
        exec->coll.name = exec->name;
    } else {
        exec->coll.name = NULL;
    }
}

/* A new operation at the end of the queue. */
static hora_status_t enqueue(hora_comm_t *comm, const hora_coll_t *coll, hora_exec_t **exec_p) {
    bool         same;
    hora_exec_t *exec = acquire(comm, coll, &same);
    if (exec == NULL)
        return hora_coll_fail(comm, hora_fail(HORA_ERR_NO_MEMORY, "%s: no memory for its execution",
                                              hora_coll_name(coll->kind)));
    if (!same) {
        memset(&exec->key, 0, sizeof(exec->key));
        exec->what[0] = 0;
    }
    copy_call(exec, coll);
    exec->state = HORA_EXEC_QUEUED;
    exec->status = HORA_IN_PROGRESS;
    exec->blocked_since = 0;
    exec->blocked_gone = 0;
    exec->next = NULL;
    if (comm->last != NULL)
        comm->last->next = exec;
    else
        comm->first = exec;
    comm->last = exec;
    *exec_p = exec;
    return HORA_OK;
}

static void dequeue(hora_exec_t *exec) {
    hora_comm_t  *comm = exec->comm;
    hora_exec_t **here = &comm->first, *before = NULL;
    while (*here != exec) {
        before = *here;
        here = &before->next;
    }
    *here = exec->next;
    if (comm->last == exec)
        comm->last = before;
    exec->next = NULL;
}

/* ---- moving on ---- */

static void finish(hora_exec_t *exec, hora_status_t status) {
    if (status != HORA_OK) {
        hora_run_cancel(exec);
        status = hora_coll_fail(exec->comm, status);
    }
    exec->state = HORA_EXEC_DONE;
    exec->status = status;
    dequeue(exec);
}

/* Moves the head of the queue on. HORA_IN_PROGRESS: it is blocked; else it is done and gone, and
 * this is its status. */
static hora_status_t advance(hora_exec_t *exec) {
    hora_status_t st = hora_failure_check(&exec->comm->failure);
    if (st == HORA_OK && exec->state == HORA_EXEC_QUEUED)
        st = hora_run_begin(exec);
    if (st == HORA_OK)
        st = hora_run_advance(exec);
    if (st != HORA_IN_PROGRESS)
        finish(exec, st);
    return st == HORA_IN_PROGRESS ? st : exec->status;
}

/* Moves links on: in most turns only the one that is waited for. Another rank may need a message of
 * mine, of another operation, before it comes to this one. */
static unsigned move_links(const hora_exec_t *exec, unsigned turn) {
    if (exec->blocked_xfer != NULL && turn % ALL_TURNS != ALL_TURNS - 1)
        return hora_p2p_look(exec->comm->world, exec->blocked_xfer);
    return hora_p2p_progress(exec->comm->world);
}

/* Does a look for this transfer take a system call? */
static bool asks_kernel(const hora_xfer_t *xfer) {
    hora_transport_t *transport = xfer != NULL && xfer->link != NULL ? xfer->link->transport : NULL;
    return transport != NULL && transport->ops->fd(transport) != HORA_FD_BELL;
}

/* Blocks until the head of the queue can move on. */
static hora_status_t block(hora_exec_t *exec) {
    hora_waiter_t w;
    hora_status_t st = HORA_OK;
    unsigned      stale = 0;
    hora_waiter_begin(&w, exec->comm, exec->coll.timeout, exec->what);
    for (unsigned turn = 0; st == HORA_OK && !hora_run_ready(exec); turn++) {
        /* Who waits for a phase leaves the links to the waiter's slow turns, unless they have work. */
        bool moves = exec->blocked_xfer != NULL || exec->drained < exec->started;
        if (w.announced)
            turn = ALL_TURNS - 1;
        if (moves && move_links(exec, turn) > 0 && ++stale % STALE_EVENTS != 0)
            continue;
        if (moves || w.announced || turn % POLL_TURNS == 0)
            st = hora_run_check_crossing(exec);
        if (moves && asks_kernel(exec->blocked_xfer))
            hora_waiter_looked(&w);
        if (st == HORA_OK)
            st = hora_waiter_turn(&w, exec->blocked_rank);
    }
    hora_waiter_end(&w);
    return st;
}

/* Runs the head of the queue to its end. */
static hora_status_t run_head(hora_exec_t *exec) {
    hora_status_t st = advance(exec);
    while (st == HORA_IN_PROGRESS) {
        hora_status_t blocked = block(exec);
        if (blocked != HORA_OK) {
            finish(exec, blocked);
            return exec->status;
        }
        st = advance(exec);
    }
    return st;
}

/* For those who never block: have we been stuck for too long, or on a rank that has left? */
static hora_status_t check_stuck(hora_exec_t *exec) {
    hora_comm_t *comm = exec->comm;
    hora_peer_t *peer = hora_comm_peer(comm, exec->blocked_rank);
    double       timeout = exec->coll.timeout > 0 ? exec->coll.timeout : comm->timeout;
    uint64_t     now = hora_clock_ns();
    if (exec->blocked_since == 0)
        exec->blocked_since = now;
    if (now - exec->blocked_since > hora_clock_from_seconds(timeout))
        return hora_fail(HORA_ERR_TIMEOUT, "%s: waited %.1f s for rank %d on host %s "
                         "(HORA_TIMEOUT)", exec->what,
                         hora_clock_seconds(now - exec->blocked_since),
                         hora_comm_name(comm, exec->blocked_rank), peer->host);
    return hora_wait_check_gone(comm, exec->blocked_rank, &exec->blocked_gone, exec->what);
}

/* One look at the head of the queue, without blocking. */
static hora_status_t nudge(hora_exec_t *head) {
    size_t        pc = head->pc;
    uint32_t      drained = head->drained;
    int           next_member = head->next_member, rank = head->blocked_rank;
    hora_status_t st = advance(head);
    if (st != HORA_IN_PROGRESS)
        return st;
    if (head->blocked_rank != rank)
        head->blocked_gone = 0; /* that was another rank's */
    if (head->pc != pc || head->next_member != next_member || head->drained != drained) {
        head->blocked_since = 0;
        head->blocked_gone = 0;
    }
    st = hora_run_check_crossing(head);
    if (st == HORA_OK)
        st = check_stuck(head);
    if (st == HORA_OK)
        return HORA_IN_PROGRESS;
    finish(head, st);
    return head->status;
}

/* ---- the door ---- */

hora_status_t hora_coll_run(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_exec_t  *exec;
    hora_status_t st;
    while (comm->first != NULL) /* an error of an earlier one fails the communicator: seen below */
        run_head(comm->first);
    st = hora_failure_check(&comm->failure);
    if (st != HORA_OK)
        return st;
    if (comm->size == 1) {
        hora_stage_alone(coll);
        return HORA_OK;
    }
    if (hora_tiny_try(comm, coll, &st))
        return st;
    st = enqueue(comm, coll, &exec);
    if (st != HORA_OK)
        return st;
    st = run_head(exec);
    release(exec);
    return st;
}

hora_status_t hora_coll_start(hora_comm_t *comm, const hora_coll_t *coll, hora_exec_t **exec_p) {
    hora_exec_t  *exec;
    hora_status_t st = hora_failure_check(&comm->failure);
    if (st != HORA_OK)
        return st;
    st = enqueue(comm, coll, &exec);
    if (st != HORA_OK)
        return st;
    if (comm->first == exec)
        nudge(exec);
    *exec_p = exec;
    return HORA_OK;
}

hora_status_t hora_exec_progress(hora_exec_t *exec) {
    if (exec->state != HORA_EXEC_DONE)
        hora_p2p_progress(exec->comm->world);
    while (exec->state != HORA_EXEC_DONE)
        if (nudge(exec->comm->first) == HORA_IN_PROGRESS)
            return HORA_IN_PROGRESS;
    return exec->status;
}

hora_status_t hora_exec_wait(hora_exec_t *exec) {
    while (exec->state != HORA_EXEC_DONE)
        run_head(exec->comm->first);
    return exec->status == HORA_OK ? HORA_OK : hora_failure_check(&exec->comm->failure);
}

void hora_exec_free(hora_exec_t *exec) {
    if (exec == NULL)
        return;
    if (exec->state != HORA_EXEC_DONE) {
        hora_run_cancel(exec);
        exec->state = HORA_EXEC_DONE;
        exec->status = HORA_ERR_ABORTED;
        dequeue(exec);
    }
    release(exec);
}
