/*
 * The frozen schedule, as each rank sees it (controller/freeze.c says how it works). The driving
 * thread.
 *
 * While it reports by position, a rank has reported exactly the tasks before position `reported`.
 * If new tasks are not just the next ones, it reports by itself, from then on and until the next
 * FREEZE; what others still execute by position, it does execute.
 */
#include "background/engine.h"

#include <stdlib.h>

static hora_status_t malformed(const hora_engine_t *engine) {
    return hora_fail(HORA_ERR_PROTOCOL, "rank 0 on host %s froze what is not in flight here",
                     hora_comm_peer(engine->comm, 0)->host);
}

/* The record of the task `i` places after `place`, which is below n; i is at most n. */
static hora_record_t *record_at(const hora_engine_t *engine, size_t place, size_t i) {
    const hora_frozen_t *f = &engine->frozen;
    size_t               at = place + i;
    return hora_response_find_id(engine, f->ids[at < f->n ? at : at - f->n]);
}

/* ---- Reporting ------------------------------------------------------------------------------ */

/* Is the work one of the next tasks? */
static bool is_near(const hora_engine_t *engine, const hora_work_t *work) {
    const hora_frozen_t *f = &engine->frozen;
    const hora_record_t *record = work->record;
    return record->id != 0 && record->position < f->n && f->ids[record->position] == record->id &&
           hora_signature_equal(&record->sig, &work->sig);
}

bool hora_frozen_report(hora_engine_t *engine, hora_work_t *first) {
    hora_frozen_t *f = &engine->frozen;
    size_t         n = 0, done = 0, place;
    bool           fits = true;
    if (!f->reports)
        return false;
    place = f->reported % f->n;
    for (hora_work_t *work = first; work != NULL; work = work->next, n++) {
        fits = fits && is_near(engine, work);
        work->record->sent = work;
    }
    while (fits && done < n && n <= f->n) {
        hora_record_t *record = record_at(engine, place, done);
        if (record == NULL || record->sent == NULL || record->sent->by_position)
            break;
        record->sent->by_position = true; /* so that it is not found a second time */
        done++;
    }
    if (fits && done == n) {
        for (hora_work_t *work = first; work != NULL; work = work->next)
            work->sent_id = work->record->id;
        f->reported += n;
        return true;
    }
    for (hora_work_t *work = first; work != NULL; work = work->next) {
        work->by_position = false;
        work->record->sent = NULL;
    }
    f->reports = false;
    return false;
}

/* ---- FREEZE, ADVANCE, THAW ------------------------------------------------------------------ */

static hora_status_t reserve(hora_frozen_t *f, size_t n) {
    uint32_t *ids = realloc(f->ids, n * sizeof(*ids)), *batch, *order, *begins;
    if (ids != NULL)
        f->ids = ids;
    batch = realloc(f->batch, n * sizeof(*batch));
    if (batch != NULL)
        f->batch = batch;
    order = realloc(f->order, n * sizeof(*order));
    if (order != NULL)
        f->order = order;
    begins = realloc(f->begins, (n + 1) * sizeof(*begins));
    if (begins != NULL)
        f->begins = begins;
    if (ids == NULL || batch == NULL || order == NULL || begins == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a frozen schedule of %zu tasks", n);
    return HORA_OK;
}

/* How far this rank has come: what it has reported must be just the next tasks. */
static uint64_t find_start(const hora_engine_t *engine, uint64_t from) {
    const hora_frozen_t *f = &engine->frozen;
    size_t               n = 0, next = 0, place = from % f->n;
    for (size_t i = 0; i < f->n; i++) {
        const hora_record_t *record = record_at(engine, 0, i);
        n += record != NULL && record->sent != NULL;
    }
    while (next < f->n) {
        const hora_record_t *record = record_at(engine, place, next);
        if (record == NULL || record->sent == NULL ||
            !hora_signature_equal(&record->sig, &record->sent->sig))
            break;
        next++;
    }
    return next == n && !engine->has_joined ? from + next : HORA_FREEZE_DECLINED;
}

hora_status_t hora_frozen_begin(hora_engine_t *engine, const hora_item_t *item) {
    hora_frozen_t *f = &engine->frozen;
    hora_status_t  st = reserve(f, item->count);
    if (st != HORA_OK)
        return st;
    f->n = item->count;
    f->epoch = item->epoch;
    f->threshold = item->threshold;
    f->laid_n = 0;
    for (uint32_t i = 0; i < item->count; i++) {
        hora_record_t *record;
        f->ids[i] = hora_item_id(item, i);
        record = hora_response_find_id(engine, f->ids[i]);
        if (record == NULL)
            return malformed(engine);
        record->position = i;
    }
    f->reported = find_start(engine, item->from);
    f->reports = f->reported != HORA_FREEZE_DECLINED;
    return hora_requests_progress(engine);
}

void hora_frozen_end(hora_engine_t *engine) {
    engine->frozen.reports = false;
    engine->frozen.n = 0;
}

/* batch[i]: which batch the task i places after `place` is in. Returns the number of batches. */
static uint32_t find_batches(hora_engine_t *engine, size_t place, size_t n) {
    hora_frozen_t *f = &engine->frozen;
    hora_fuser_t   fuser;
    uint32_t       nbatches = 0;
    hora_fuser_init(&fuser, f->threshold);
    for (size_t i = 0; i < n; i++) {
        const hora_record_t *record = record_at(engine, place, i);
        hora_fuse_batch_t   *batch;
        bool                 is_new;
        batch = hora_fuser_add(&fuser, &record->sig, hora_signature_bytes(&record->sig),
                               hora_frame_ref_bytes(0, NULL), (uint32_t)engine->size, &is_new);
        f->batch[i] = is_new ? nbatches : batch->number;
        if (is_new && batch != NULL)
            batch->number = nbatches;
        nbatches += is_new;
    }
    return nbatches;
}

/* order[]: the tasks by batch, those of one batch in the order of the schedule; begins[b]: where
 * batch b begins. */
static void sort_by_batch(hora_frozen_t *f, size_t n, uint32_t nbatches) {
    uint32_t *begins = f->begins;
    for (uint32_t b = 0; b <= nbatches; b++)
        begins[b] = 0;
    for (size_t i = 0; i < n; i++)
        begins[f->batch[i] + 1]++;
    for (uint32_t b = 0; b < nbatches; b++)
        begins[b + 1] += begins[b];
    for (size_t i = 0; i < n; i++)
        f->order[begins[f->batch[i]]++] = (uint32_t)i;
    for (uint32_t b = nbatches; b > 0; b--) /* each has moved to where the next begins */
        begins[b] = begins[b - 1];
    begins[0] = 0;
}

static void lay_out(hora_engine_t *engine, size_t place, size_t n) {
    hora_frozen_t *f = &engine->frozen;
    if (f->laid_n == n && f->laid_from == place)
        return;
    f->laid_batches = find_batches(engine, place, n);
    sort_by_batch(f, n, f->laid_batches);
    f->laid_n = n;
    f->laid_from = place;
}

static hora_status_t execute_batch(hora_engine_t *engine, size_t place, uint32_t first,
                                   uint32_t last) {
    const hora_frozen_t *f = &engine->frozen;
    hora_status_t        st = HORA_OK;
    for (uint32_t i = first; i < last && st == HORA_OK; i++) {
        hora_record_t *record = record_at(engine, place, f->order[i]);
        if (record->sent == NULL) /* twice in the schedule */
            return malformed(engine);
        st = hora_batch_add(engine, record->sent);
        record->sent = NULL;
    }
    engine->divisor = 0;
    return st == HORA_OK ? hora_batch_execute(engine) : st;
}

hora_status_t hora_frozen_advance(hora_engine_t *engine, const hora_item_t *item) {
    hora_frozen_t *f = &engine->frozen;
    size_t         n = (size_t)(item->upto - item->from), place;
    hora_status_t  st = HORA_OK;
    if (f->n == 0 || item->epoch != f->epoch || item->upto - item->from > f->n)
        return malformed(engine);
    place = item->from % f->n;
    for (size_t i = 0; i < n; i++) {
        const hora_record_t *record = record_at(engine, place, i);
        if (record == NULL || record->sent == NULL)
            return malformed(engine);
    }
    lay_out(engine, place, n);
    for (uint32_t b = 0; b < f->laid_batches && st == HORA_OK; b++)
        st = execute_batch(engine, place, f->begins[b], f->begins[b + 1]);
    return st;
}

void hora_frozen_destroy(hora_engine_t *engine) {
    free(engine->frozen.ids);
    free(engine->frozen.batch);
    free(engine->frozen.order);
    free(engine->frozen.begins);
}
