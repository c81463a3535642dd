/*
 * Emitters: append steps to a plan. Any thread, each plan by one at a time.
 *
 * Invariant: once status is not HORA_OK, emitters do nothing, so that planners need not look at it.
 */
#include "schedule/plan.h"

#include <stdlib.h>
#include <string.h>

void hora_plan_init(hora_plan_t *plan) {
    memset(plan, 0, sizeof(*plan));
}

void hora_plan_destroy(hora_plan_t *plan) {
    free(plan->steps);
    free(plan->refs);
    memset(plan, 0, sizeof(*plan));
}

void hora_plan_reset(hora_plan_t *plan) {
    hora_plan_t kept = {.steps = plan->steps, .steps_room = plan->steps_room,
                        .refs = plan->refs, .refs_room = plan->refs_room};
    *plan = kept;
}

/* Makes room for `more` items of `size` bytes after the first n of *room_p. */
static bool grow(void **items_p, size_t n, size_t *room_p, size_t more, size_t size) {
    size_t room = *room_p ? *room_p : 32;
    void  *items;
    if (n + more <= *room_p)
        return true;
    while (room < n + more)
        room *= 2;
    items = realloc(*items_p, room * size);
    if (items == NULL)
        return false;
    *items_p = items;
    *room_p = room;
    return true;
}

static hora_step_t *emit(hora_plan_t *plan, hora_step_kind_t kind, size_t count) {
    void        *steps = plan->steps;
    hora_step_t *step;
    if (plan->status != HORA_OK)
        return NULL;
    if (!grow(&steps, plan->nsteps, &plan->steps_room, 1, sizeof(*plan->steps))) {
        plan->status = HORA_ERR_NO_MEMORY;
        return NULL;
    }
    plan->steps = steps;
    step = &plan->steps[plan->nsteps++];
    memset(step, 0, sizeof(*step));
    step->kind = (uint8_t)kind;
    step->count = count;
    return step;
}

static uint32_t emit_xfer(hora_plan_t *plan, hora_step_kind_t kind, int peer, hora_ref_t place,
                          size_t count) {
    hora_step_t *step = count > 0 ? emit(plan, kind, count) : NULL;
    if (step == NULL)
        return HORA_NO_XFER;
    step->peer = peer;
    step->xfer = plan->nxfers++;
    step->src = step->dst = place;
    return step->xfer;
}

uint32_t hora_plan_send(hora_plan_t *plan, int peer, hora_buf_t buf, size_t off, size_t count) {
    return emit_xfer(plan, HORA_STEP_SEND, peer, hora_own(buf, off), count);
}

uint32_t hora_plan_recv(hora_plan_t *plan, int peer, hora_buf_t buf, size_t off, size_t count) {
    return emit_xfer(plan, HORA_STEP_RECV, peer, hora_own(buf, off), count);
}

void hora_plan_wait(hora_plan_t *plan, uint32_t xfer) {
    hora_step_t *step = xfer != HORA_NO_XFER ? emit(plan, HORA_STEP_WAIT, 0) : NULL;
    if (step != NULL)
        step->xfer = xfer;
}

hora_step_t *hora_plan_copy(hora_plan_t *plan, hora_ref_t src, hora_ref_t dst, size_t count) {
    hora_step_t *step = count > 0 ? emit(plan, HORA_STEP_COPY, count) : NULL;
    if (step == NULL)
        return NULL;
    step->src = src;
    step->dst = dst;
    return step;
}

/* A step on places; NULL if out of memory. */
static hora_step_t *emit_refs(hora_plan_t *plan, hora_step_kind_t kind, const hora_ref_t *refs,
                              size_t nrefs, size_t count) {
    void        *room = plan->refs;
    hora_step_t *step;
    if (plan->status != HORA_OK)
        return NULL;
    if (!grow(&room, plan->nrefs, &plan->refs_room, nrefs, sizeof(*plan->refs))) {
        plan->status = HORA_ERR_NO_MEMORY;
        return NULL;
    }
    plan->refs = room;
    step = emit(plan, kind, count);
    if (step == NULL)
        return NULL;
    step->first = (uint32_t)plan->nrefs;
    memcpy(plan->refs + plan->nrefs, refs, nrefs * sizeof(*refs));
    plan->nrefs += nrefs;
    return step;
}

hora_step_t *hora_plan_reduce(hora_plan_t *plan, const hora_ref_t *src, int nsrc,
                              const hora_ref_t *dst, int ndst, size_t count) {
    void        *refs = plan->refs;
    size_t       nrefs = (size_t)nsrc + (size_t)ndst;
    hora_step_t *step;
    if (count == 0 || plan->status != HORA_OK)
        return NULL;
    if (!grow(&refs, plan->nrefs, &plan->refs_room, nrefs, sizeof(*plan->refs))) {
        plan->status = HORA_ERR_NO_MEMORY;
        return NULL;
    }
    plan->refs = refs;
    step = emit(plan, HORA_STEP_REDUCE, count);
    if (step == NULL)
        return NULL;
    step->nsrc = nsrc;
    step->ndst = ndst;
    step->first = (uint32_t)plan->nrefs;
    memcpy(plan->refs + plan->nrefs, src, (size_t)nsrc * sizeof(*src));
    memcpy(plan->refs + plan->nrefs + nsrc, dst, (size_t)ndst * sizeof(*dst));
    plan->nrefs += nrefs;
    return step;
}

void hora_plan_combine(hora_plan_t *plan, hora_ref_t first, hora_ref_t second, hora_ref_t dst,
                       size_t count, bool finish) {
    hora_ref_t   src[2] = {first, second};
    hora_step_t *step = hora_plan_reduce(plan, src, 2, &dst, 1, count);
    if (step != NULL)
        step->finish = finish;
}

void hora_plan_dots(hora_plan_t *plan, hora_ref_t a, hora_ref_t b, hora_ref_t dots, size_t count,
                    bool begin) {
    hora_ref_t   refs[3] = {a, b, dots};
    hora_step_t *step = emit_refs(plan, HORA_STEP_DOTS, refs, 3, count);
    if (step != NULL)
        step->begin = begin;
}

void hora_plan_add_dots(hora_plan_t *plan, hora_ref_t src, hora_ref_t dst) {
    hora_step_t *step = emit(plan, HORA_STEP_ADD_DOTS, 1);
    if (step == NULL)
        return;
    step->src = src;
    step->dst = dst;
}

void hora_plan_blend(hora_plan_t *plan, hora_ref_t a, hora_ref_t b, hora_ref_t dots,
                     hora_ref_t dst, size_t count, bool finish) {
    hora_ref_t   refs[4] = {a, b, dots, dst};
    hora_step_t *step = count > 0 ? emit_refs(plan, HORA_STEP_BLEND, refs, 4, count) : NULL;
    if (step != NULL)
        step->finish = finish;
}

void hora_plan_signal(hora_plan_t *plan, uint32_t phase) {
    hora_step_t *step = emit(plan, HORA_STEP_SIGNAL, 0);
    if (step == NULL)
        return;
    step->xfer = phase;
    if (phase > plan->phases)
        plan->phases = phase;
}

void hora_plan_await_rank(hora_plan_t *plan, uint32_t phase, int rank) {
    hora_step_t *step = emit(plan, HORA_STEP_AWAIT, 0);
    if (step == NULL)
        return;
    step->xfer = phase;
    step->peer = rank;
}

void hora_plan_await(hora_plan_t *plan, uint32_t phase) {
    hora_plan_await_rank(plan, phase, HORA_ALL_RANKS);
}
