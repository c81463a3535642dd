/*
 * This rank's side of the negotiation: says which tasks are ready here, and asks about those that
 * wait too long (engine.h). The driving thread.
 */
#include "background/trace.h"

#include "util/clock.h"

#define GRACE_NS 10000000000u /* after its deadline, how long a task waits for an answer */
#define AGAIN_NS 1000000000u  /* then asks this often */

/* ---- Frames --------------------------------------------------------------------------------- */

static hora_status_t open_frame(hora_engine_t *engine) {
    hora_status_t st;
    if (engine->out != NULL)
        return HORA_OK;
    st = hora_control_prepare(engine->control, &engine->out);
    if (st == HORA_OK)
        hora_frame_begin(&engine->writer, hora_outgoing_buf(engine->out), HORA_FRAME_REQUESTS,
                         engine->errors_seen);
    return st;
}

/* Sends what has been gathered. */
static void flush(hora_engine_t *engine) {
    hora_outgoing_t *out = engine->out;
    engine->out = NULL;
    if (out != NULL)
        hora_control_send(engine->control, out, hora_frame_end(&engine->writer));
}

static bool put_report(hora_engine_t *engine, const hora_work_t *work) {
    const hora_name_t *name = &work->record->name;
    if (work->sig.kind == HORA_TASK_JOIN)
        return hora_frame_put_join(&engine->writer, engine->resends_seen);
    if (work->sent_id != 0)
        return hora_frame_put_cached(&engine->writer, work->sent_id);
    return hora_frame_put_full(&engine->writer, name->text, name->len, &work->sig);
}

static hora_status_t report_to_self(hora_engine_t *engine, const hora_work_t *work) {
    const hora_name_t *name = &work->record->name;
    if (work->sig.kind == HORA_TASK_JOIN)
        return hora_coordinator_join(engine->coordinator, 0, engine->errors_seen,
                                     engine->resends_seen);
    if (work->sent_id != 0)
        return hora_coordinator_cached(engine->coordinator, 0, engine->errors_seen, work->sent_id);
    return hora_coordinator_full(engine->coordinator, 0, engine->errors_seen, name->hash,
                                 name->text, name->len, &work->sig);
}

static hora_status_t report(hora_engine_t *engine, hora_work_t *work) {
    hora_status_t st;
    if (engine->coordinator != NULL)
        return report_to_self(engine, work);
    st = open_frame(engine);
    if (st != HORA_OK || put_report(engine, work))
        return st;
    flush(engine);
    st = open_frame(engine);
    if (st == HORA_OK)
        put_report(engine, work); /* an empty frame has room for any report */
    return st;
}

/* ---- New tasks ------------------------------------------------------------------------------ */

/* Moves the queue, without what comes after a join, to the end of flight; returns the first task
 * that was moved. */
static hora_work_t *take_queue(hora_engine_t *engine) {
    hora_work_t *first, *work, *last = NULL;
    size_t       n = 0;
    pthread_mutex_lock(&engine->lock);
    first = work = engine->queue.first;
    for (; work != NULL && !work->is_held; work = work->next, n++) {
        work->queued = false;
        last = work;
    }
    if (last != NULL) {
        first->prev = engine->flight.last;
        if (first->prev != NULL)
            first->prev->next = first;
        else
            engine->flight.first = first;
        engine->flight.last = last;
        last->next = NULL;
        engine->queue.first = work;
        if (work != NULL)
            work->prev = NULL;
        else
            engine->queue.last = NULL;
    }
    atomic_fetch_sub_explicit(&engine->nqueued, n, memory_order_relaxed);
    pthread_mutex_unlock(&engine->lock);
    return last != NULL ? first : NULL;
}

static hora_status_t execute_alone(hora_engine_t *engine) {
    hora_status_t st = HORA_OK;
    while (engine->flight.first != NULL && st == HORA_OK) {
        hora_trace_cycle(engine);
        st = hora_batch_add(engine, engine->flight.first);
        if (st == HORA_OK)
            st = hora_batch_execute(engine);
    }
    return st;
}

/* When the task has waited too long; never: UINT64_MAX. */
static uint64_t deadline_of(const hora_engine_t *engine, const hora_work_t *work) {
    if (work->sig.kind != HORA_TASK_JOIN)
        return work->since + engine->stall_limit_ns;
    return engine->join_limit_ns > 0 ? work->since + engine->join_limit_ns : UINT64_MAX;
}

static void begin_waiting(const hora_engine_t *engine, hora_work_t *work, uint64_t now) {
    uint64_t check = engine->stall_check_ns;
    work->since = now;
    work->next_ask = deadline_of(engine, work);
    if (check > 0 && now + check < work->next_ask)
        work->next_ask = now + check;
}

hora_status_t hora_requests_report(hora_engine_t *engine, bool *moved_p) {
    hora_status_t st = HORA_OK;
    uint64_t      now;
    if (atomic_load_explicit(&engine->nqueued, memory_order_acquire) == 0 || engine->has_joined)
        return HORA_OK;
    *moved_p = true;
    hora_work_t *work = take_queue(engine);
    if (engine->size == 1)
        return execute_alone(engine);
    now = hora_clock_ns();
    for (hora_work_t *each = work; each != NULL; each = each->next) {
        begin_waiting(engine, each, now);
        if (each->next_ask < engine->next_check)
            engine->next_check = each->next_ask;
    }
    if (work != NULL && hora_frozen_report(engine, work))
        return hora_requests_progress(engine);
    for (; work != NULL && st == HORA_OK; work = work->next) {
        hora_record_t *record = work->record;
        work->sent_id = 0;
        if (record->id != 0 && hora_signature_equal(&record->sig, &work->sig))
            work->sent_id = record->id;
        record->sent = work;
        hora_trace_reported(engine, work);
        engine->has_joined = work->sig.kind == HORA_TASK_JOIN;
        st = report(engine, work);
    }
    if (st == HORA_OK)
        flush(engine);
    return st;
}

hora_status_t hora_requests_progress(hora_engine_t *engine) {
    const hora_frozen_t *f = &engine->frozen;
    hora_status_t        st;
    if (engine->coordinator != NULL)
        return hora_coordinator_progress(engine->coordinator, 0, engine->errors_seen, f->epoch,
                                         f->reported);
    st = open_frame(engine);
    if (st != HORA_OK)
        return st;
    if (!hora_frame_put_progress(&engine->writer, f->epoch, f->reported)) {
        flush(engine);
        st = open_frame(engine);
        if (st == HORA_OK)
            hora_frame_put_progress(&engine->writer, f->epoch, f->reported);
    }
    if (st == HORA_OK)
        flush(engine);
    return st;
}

hora_status_t hora_request_resend(hora_engine_t *engine, uint32_t id) {
    hora_work_t  *work = engine->flight.first;
    hora_status_t st = HORA_OK;
    engine->resends_seen++;
    while (work != NULL && work->sent_id != id)
        work = work->next;
    if (work != NULL) { /* else it has failed meanwhile */
        work->sent_id = 0;
        st = report(engine, work);
    }
    if (st == HORA_OK && engine->has_joined) /* the one before came too early and did not count */
        st = report(engine, engine->join);
    if (st == HORA_OK)
        flush(engine);
    return st;
}

void hora_requests_join_lives(hora_engine_t *engine) {
    begin_waiting(engine, engine->join, hora_clock_ns());
}

/* ---- Tasks that wait ------------------------------------------------------------------------ */

static uint64_t after(const hora_engine_t *engine, const hora_work_t *work, uint64_t now) {
    uint64_t deadline = deadline_of(engine, work);
    uint64_t next = work->next_ask + engine->stall_check_ns;
    if (now >= deadline)
        return now + AGAIN_NS;
    if (engine->stall_check_ns == 0 || next > deadline)
        return deadline;
    return next > now ? next : now + engine->stall_check_ns;
}

static bool put_question(hora_engine_t *engine, const hora_work_t *work, uint64_t now) {
    uint64_t ms = (now - work->since + 999999u) / 1000000u;
    return hora_frame_put_waited(&engine->writer, work->record->name.text, work->record->name.len,
                                 ms > UINT32_MAX ? UINT32_MAX : (uint32_t)ms);
}

static hora_status_t ask(hora_engine_t *engine, const hora_work_t *work, uint64_t now) {
    const hora_name_t *name = &work->record->name;
    const hora_peer_t *peer = hora_comm_peer(engine->comm, 0);
    hora_status_t      st;
    if (engine->coordinator != NULL) {
        hora_coordinator_waited(engine->coordinator, name->text, name->len, now - work->since, now);
        return HORA_OK;
    }
    if (deadline_of(engine, work) < now && now - deadline_of(engine, work) >= GRACE_NS)
        return hora_fail(HORA_ERR_TIMEOUT, "%s %s: waited %.0f s, and rank 0 on host %s, which "
                         "coordinates, does not answer", hora_kind_name(work->sig.kind), name->text,
                         hora_clock_seconds(now - work->since), peer->host);
    st = open_frame(engine);
    if (st != HORA_OK || put_question(engine, work, now))
        return st;
    flush(engine);
    st = open_frame(engine);
    if (st == HORA_OK)
        put_question(engine, work, now);
    return st;
}

hora_status_t hora_requests_ask(hora_engine_t *engine, uint64_t now) {
    hora_status_t st = HORA_OK;
    engine->next_check = UINT64_MAX;
    for (hora_work_t *work = engine->flight.first; work != NULL && st == HORA_OK;
         work = work->next) {
        if (now >= work->next_ask) {
            st = ask(engine, work, now);
            work->next_ask = after(engine, work, now);
        }
        if (work->next_ask < engine->next_check)
            engine->next_check = work->next_ask;
    }
    if (st != HORA_OK || engine->out == NULL)
        return st;
    flush(engine);
    if (engine->world->poke != NULL) /* nobody may be driving there */
        engine->world->poke(engine->world, engine->comm->world_ranks[0]);
    return st;
}
