/*
 * Driving: one thread at a time takes requests to the coordinator, does what the coordinator says,
 * and on rank 0 is the coordinator (engine.h). Nothing here sleeps but for the waiter, and nothing
 * runs while no task is pending.
 */
#include "background/engine.h"

#include "util/clock.h"

#include <stdio.h>

#define CLOCK_STEPS 64 /* busy steps between two looks at the clock */
#define POKE_NS     1000000000u /* how long a poke's message may take to arrive */
#define FOR_EVER    1e9 /* seconds; the engine has its own deadlines (hora_requests_ask) */

/* ---- Who drives ----------------------------------------------------------------------------- */

void hora_engine_pass_on_locked(hora_engine_t *engine) {
    bool poked = atomic_load(&engine->poked);
    if (engine->driven || atomic_load(&engine->closing) ||
        (atomic_load_explicit(&engine->pending, memory_order_relaxed) == 0 && !poked))
        return;
    if (engine->sleepers != NULL)
        pthread_cond_signal(&engine->sleepers->wake);
    else if (engine->thread_state == HORA_THREAD_ASLEEP)
        pthread_cond_signal(&engine->thread_wake);
}

void hora_engine_leave_locked(hora_engine_t *engine) {
    engine->driven = false;
    if (atomic_load(&engine->closing))
        pthread_cond_signal(&engine->left);
    hora_engine_pass_on_locked(engine);
}

/* A waiting thread drives only until its own task is done, and somebody may have enqueued more
 * while this one drove. */
void hora_engine_drive_alone_locked(hora_engine_t *engine) {
    while (!engine->driven && engine->sleepers == NULL && !atomic_load(&engine->closing) &&
           atomic_load_explicit(&engine->pending, memory_order_relaxed) > 0) {
        engine->driven = true;
        pthread_mutex_unlock(&engine->lock);
        hora_engine_drive(engine, NULL);
        pthread_mutex_lock(&engine->lock);
        hora_engine_leave_locked(engine);
    }
}

/* The background thread's reasons to stop. */
static bool is_not_needed(hora_engine_t *engine) {
    if (atomic_load_explicit(&engine->nsleepers, memory_order_relaxed) > 0)
        return true;
    if (atomic_load_explicit(&engine->pending, memory_order_relaxed) > 0)
        return false;
    if (!atomic_load_explicit(&engine->poked, memory_order_relaxed))
        return true;
    if (engine->failed == HORA_OK && !engine->fed && hora_clock_ns() < engine->poked_until)
        return false;
    atomic_store(&engine->poked, false);
    return true;
}

static bool is_enough(hora_engine_t *engine, const hora_handle_t *handle) {
    if (atomic_load_explicit(&engine->closing, memory_order_relaxed))
        return true;
    if (handle != NULL)
        return atomic_load_explicit(&handle->done, memory_order_acquire);
    return is_not_needed(engine);
}

/* ---- One step ------------------------------------------------------------------------------- */

static hora_status_t receive_requests(hora_engine_t *engine, bool *moved_p) {
    const uint8_t *buf;
    size_t         len;
    int            from;
    hora_status_t  st;
    while ((st = hora_control_receive(engine->control, &from, &buf, &len)) != HORA_IN_PROGRESS) {
        if (st != HORA_OK && !atomic_load(&hora_comm_peer(engine->comm, from)->gone))
            return st;
        *moved_p = true;
        if (st == HORA_OK) {
            engine->fed = true;
            st = hora_coordinator_feed(engine->coordinator, from, buf, len, hora_clock_ns());
            if (st != HORA_OK)
                return st;
        } else {
            hora_coordinator_left(engine->coordinator, from);
        }
        if (hora_coordinator_has_left(engine->coordinator, from))
            hora_control_forget(engine->control, from);
        else
            hora_control_release(engine->control, from);
    }
    return HORA_OK;
}

/* A rank that has left the job without a word: what it sent before is here after one more look. */
static void notice_gone(hora_engine_t *engine, bool *moved_p) {
    for (int r = 1; r < engine->size; r++) {
        if (!atomic_load_explicit(&hora_comm_peer(engine->comm, r)->gone, memory_order_acquire) ||
            hora_coordinator_has_left(engine->coordinator, r))
            continue;
        *moved_p = true;
        if (engine->seen_gone[r]) {
            hora_coordinator_left(engine->coordinator, r);
            hora_control_forget(engine->control, r);
        }
        engine->seen_gone[r] = true;
    }
}

static hora_status_t send_responses(hora_engine_t *engine, bool *moved_p) {
    while (hora_coordinator_has_frame(engine->coordinator)) {
        hora_outgoing_t *out;
        size_t           len;
        hora_status_t    st = hora_control_prepare(engine->control, &out);
        if (st != HORA_OK)
            return st;
        *moved_p = true;
        len = hora_coordinator_next_frame(engine->coordinator, hora_outgoing_buf(out));
        hora_control_send(engine->control, out, len);
        /* A collective that begins here might not move messages on that are still queued. */
        st = hora_control_flush(engine->control, 0);
        if (st == HORA_OK)
            st = hora_response_handle(engine, hora_outgoing_buf(out), len);
        if (st != HORA_OK)
            return st;
    }
    return HORA_OK;
}

static hora_status_t receive_responses(hora_engine_t *engine, bool *moved_p) {
    const uint8_t *buf;
    size_t         len;
    int            from;
    hora_status_t  st;
    while ((st = hora_control_receive(engine->control, &from, &buf, &len)) == HORA_OK) {
        *moved_p = true;
        st = hora_response_handle(engine, buf, len);
        if (st != HORA_OK)
            return st;
        hora_control_release(engine->control, from);
    }
    return st == HORA_IN_PROGRESS ? HORA_OK : st;
}

/* One look at everything, without blocking. slow: nothing has happened for a while. */
static hora_status_t step(hora_engine_t *engine, bool slow, bool *moved_p) {
    hora_status_t st = hora_failure_check(&engine->comm->failure);
    *moved_p = false;
    if (st == HORA_OK && engine->coordinator != NULL) /* before its own: they came before it */
        st = receive_requests(engine, moved_p);
    if (st == HORA_OK)
        st = hora_requests_report(engine, moved_p);
    if (st != HORA_OK || engine->control == NULL)
        return st;
    if (engine->coordinator == NULL)
        return receive_responses(engine, moved_p);
    if (slow && !*moved_p)
        notice_gone(engine, moved_p);
    return st == HORA_OK ? send_responses(engine, moved_p) : st;
}

/* ---- The loop ------------------------------------------------------------------------------- */

/* An error here ends the engine on every rank, unless the others know already or need not. */
static void fail(hora_engine_t *engine, hora_status_t status) {
    char text[HORA_FAILURE_TEXT_MAX];
    snprintf(text, sizeof(text), "%s", hora_last_error());
    if (status != HORA_ERR_PEER_FAILED && status != HORA_ERR_SHUT_DOWN && engine->size > 1)
        hora_world_fail(engine->world, engine->comm->channel, status, engine->world->rank, text);
    hora_engine_fail(engine, status, text);
}

static void begin_waiting(hora_engine_t *engine, hora_waiter_t *w) {
    hora_waiter_begin(w, engine->comm, FOR_EVER, "engine");
    w->warned = true; /* the stall check names tensors, which is more */
}

static hora_status_t check_time(hora_engine_t *engine, const hora_waiter_t *w, unsigned steps) {
    uint64_t now = w->last;
    if (w->turns == 0 && steps % CLOCK_STEPS == 0)
        now = hora_clock_ns();
    return now < engine->next_check ? HORA_OK : hora_requests_ask(engine, now);
}

void hora_engine_drive(hora_engine_t *engine, const hora_handle_t *handle) {
    hora_waiter_t w;
    unsigned      steps = 0;
    int           awaited = engine->rank == 0 ? -1 : 0;
    if (atomic_load(&engine->poked)) {
        engine->poked_until = hora_clock_ns() + POKE_NS;
        engine->fed = false;
    }
    begin_waiting(engine, &w);
    while (!is_enough(engine, handle)) {
        bool          moved;
        hora_status_t st = step(engine, w.turns > engine->world->spin_turns, &moved);
        if (st == HORA_OK && moved && w.turns > 0) {
            hora_waiter_end(&w);
            begin_waiting(engine, &w);
        } else if (st == HORA_OK && !moved) {
            st = hora_waiter_turn(&w, awaited);
        }
        if (st == HORA_OK)
            st = check_time(engine, &w, ++steps);
        if (st != HORA_OK)
            fail(engine, st);
    }
    hora_waiter_end(&w);
}
