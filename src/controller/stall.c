/*
 * Tensors that wait too long: whom they wait for, in words (coordinator.h). Pure code; the driving
 * thread of rank 0. The times come from the ranks that wait, so a coordinator that sleeps meanwhile
 * loses nothing. Questions are answered when all that has arrived was read: the report of a rank
 * that seems to be missing may lie behind the question of another.
 */
#include "controller/round.h"

#include "util/clock.h"
#include "util/log.h"

#include <stdio.h>

#define RANKS_NAMED   8 /* of a list of ranks; of the others the number is given */
#define TENSORS_NAMED 8 /* warned of at one time */

typedef enum which { REPORTED, MISSING, JOINED } which_t;

static bool is_in(const hora_coordinator_t *c, const hora_entry_t *e, int rank, which_t which) {
    switch (which) {
    case REPORTED: return hora_entry_reported(e, rank);
    case MISSING: return hora_entry_misses(c, e, rank);
    default: return !hora_entry_reported(e, rank) && !hora_entry_misses(c, e, rank);
    }
}

/* "rank 2 (hostB)" or "ranks 2 (hostB), 3 (hostB) and 5 more": the ranks that have, or have not,
 * reported the entry, or that have joined instead. Returns their number. */
static int list_ranks(const hora_coordinator_t *c, const hora_entry_t *e, which_t which,
                      char *text, size_t len) {
    int    total = 0, named = 0;
    size_t n;
    for (int r = 0; r < c->options.size; r++)
        total += is_in(c, e, r, which);
    n = (size_t)snprintf(text, len, total == 1 ? "rank" : "ranks");
    for (int r = 0; r < c->options.size && named < RANKS_NAMED && n < len; r++)
        if (is_in(c, e, r, which))
            n += (size_t)snprintf(text + n, len - n, "%s %d (%.64s)", named++ > 0 ? "," : "", r,
                                  c->options.host(c->options.host_arg, r));
    if (total > named && n < len)
        snprintf(text + n, len - n, " and %d more", total - named);
    return total;
}

/* The tensor that holds up the group of `e`, or e itself. */
static hora_entry_t *culprit(hora_entry_t *e) {
    if (!e->complete || e->group == NULL)
        return e;
    for (hora_entry_t *m = e->group->first; m != NULL; m = m->group_next)
        if (!m->complete)
            return m;
    return e;
}

static void describe(const hora_coordinator_t *c, hora_entry_t *e, double seconds, char *text,
                     size_t len) {
    char                missing[384], ready[192], joined[192], more[256] = "";
    const hora_entry_t *m = culprit(e);
    const char         *kind = hora_kind_name(e->sig->kind);
    if (m->complete) {
        snprintf(text, len, "%s %.150s: waited %.1f s; no rank has enqueued all of its group of %u",
                 kind, e->name.text, seconds, e->sig->group_size);
        return;
    }
    list_ranks(c, m, MISSING, missing, sizeof(missing));
    list_ranks(c, m, REPORTED, ready, sizeof(ready));
    if (list_ranks(c, m, JOINED, joined, sizeof(joined)) > 0)
        snprintf(more, sizeof(more), "; joined: %s", joined);
    if (m == e)
        snprintf(text, len, "%s %.150s: waited %.1f s for %s; ready: %s%s", kind, e->name.text,
                 seconds, missing, ready, more);
    else
        snprintf(text, len, "%s %.150s: waited %.1f s for %.150s of its group, which is missing on "
                 "%s; ready: %s%s", kind, e->name.text, seconds, m->name.text, missing, ready,
                 more);
}

/* Every waiting rank asks, for every task of a group; one answer in each interval serves all. */
static bool should_warn(hora_coordinator_t *c, hora_entry_t *m, uint64_t now) {
    uint64_t interval = c->options.stall_check_ns / 2;
    if (interval == 0 || (m->warned_at != 0 && now - m->warned_at < interval))
        return false;
    if (now - c->warned_since >= interval) {
        c->warned_since = now;
        c->warned = 0;
    }
    m->warned_at = now;
    return c->warned++ < TENSORS_NAMED;
}

void hora_coordinator_waited(hora_coordinator_t *c, const char *name, size_t name_len,
                             uint64_t waited_ns, uint64_t now) {
    hora_entry_t *e = hora_entry_find(c, hora_name_hash(name, name_len), name, name_len);
    c->asked_at = now;
    if (hora_freeze_thaw(c) != HORA_OK)
        return; /* no memory: it will ask again */
    if (e == NULL || e->nready == 0 || e->is_listed || waited_ns == 0)
        return; /* it has been executed, or has failed, meanwhile */
    if (e->asked_ns == 0) {
        e->asked_next = c->asked;
        c->asked = e;
    }
    if (waited_ns > e->asked_ns)
        e->asked_ns = waited_ns;
}

static bool is_too_long(const hora_coordinator_t *c, const hora_entry_t *e, uint64_t waited_ns) {
    if (e != c->join)
        return waited_ns >= c->options.stall_limit_ns;
    return c->options.join_limit_ns > 0 && waited_ns >= c->options.join_limit_ns;
}

static void answer(hora_coordinator_t *c, hora_entry_t *e, uint64_t waited_ns) {
    char text[HORA_TEXT_MAX];
    if (e->nready == 0 || e->is_listed)
        return;
    describe(c, e, hora_clock_seconds(waited_ns), text, sizeof(text));
    /* Without memory for the answer there is none; the ranks will ask again. */
    if (is_too_long(c, e, waited_ns)) {
        hora_round_fail(c, e, HORA_ERR_TIMEOUT, text);
    } else if (should_warn(c, culprit(e), c->asked_at)) {
        if (c->warned == TENSORS_NAMED)
            strncat(text, "; more tensors wait and are not listed",
                    sizeof(text) - strlen(text) - 1);
        hora_note_add(c, HORA_ITEM_STALL, e, text, NULL);
    }
}

void hora_stalls_answer(hora_coordinator_t *c) {
    for (hora_entry_t *e = c->asked, *next; e != NULL; e = next) {
        uint64_t waited_ns = e->asked_ns;
        next = e->asked_next;
        e->asked_ns = 0;
        answer(c, e, waited_ns);
        hora_entry_drop(c, e);
    }
    c->asked = NULL;
}
