/*
 * Choice of an algorithm. Any thread that may use the communicator.
 *
 * Every member must choose the same, so only what is equal on all members counts: the call, the
 * members' hosts, the settings, autotune's values. Adasum has its own, by size. Else, in this order:
 * HORA_ALGO where it applies; what autotune has found; else what costs least (costs.h).
 */
#include "schedule/algos.h"
#include "schedule/costs.h"
#include "schedule/exec.h"
#include "transport/shm/pads.h"
#include "util/log.h"

#include <stdatomic.h>
#include <string.h>

bool hora_select_widens(const hora_algo_t *algo, const hora_coll_t *coll) {
    bool exact = (coll->op == HORA_MIN || coll->op == HORA_MAX) && coll->prescale == 1.0 &&
                 coll->postscale == 1.0;
    return hora_coll_reduces(coll->kind) && hora_dtype_is_half(coll->dtype) && !algo->rank_order &&
           !exact;
}

bool hora_select_usable(const hora_comm_t *comm, const hora_coll_t *coll, const hora_algo_t *algo) {
    const hora_settings_t *settings = &comm->world->settings;
    size_t                 elem = hora_dtype_size(coll->dtype);
    if (!(algo->colls & 1u << coll->kind) || !algo->applies(coll))
        return false;
    if (settings->deterministic && hora_coll_reduces(coll->kind) && !algo->rank_order)
        return false;
    if (algo->needs_arena && comm->pads == NULL)
        return false;
    return !algo->small_only || (coll->count <= hora_comm_oneshot_limit(comm) / elem &&
                                 coll->count <= comm->pads->slot_bytes / elem);
}

/* Says once per kind that the user's wish was not met. */
static void note_fallback(const hora_settings_t *settings, const hora_coll_t *coll,
                          const hora_algo_t *algo) {
    static atomic_uint noted;
    unsigned           bit = 1u << coll->kind;
    if (atomic_fetch_or(&noted, bit) & bit)
        return;
    hora_log(HORA_LOG_INFO, "HORA_ALGO=%s does not apply to this %s%s; using %s", settings->algo,
             hora_coll_name(coll->kind),
             settings->deterministic ? " with HORA_DETERMINISTIC=1" : "", algo->name);
}

/* The one of that name if it is usable; else NULL. */
static const hora_algo_t *forced(const hora_comm_t *comm, const hora_coll_t *coll,
                                 const char *name) {
    for (int i = 0; hora_algo_list[i] != NULL; i++)
        if (strcmp(hora_algo_list[i]->name, name) == 0)
            return hora_select_usable(comm, coll, hora_algo_list[i]) ? hora_algo_list[i] : NULL;
    return NULL;
}

/* What autotune has found for this call, or NULL. */
static const hora_algo_t *tuned(const hora_comm_t *comm, const hora_coll_t *coll) {
    if (comm->tuned_algo == NULL || comm->pads != NULL || coll->kind != HORA_COLL_ALLREDUCE ||
        coll->count < comm->tuned_large / hora_dtype_size(coll->dtype))
        return NULL;
    return forced(comm, coll, comm->tuned_algo);
}

/* Bytes of an element on the wire. */
static size_t wire_size(const hora_algo_t *algo, const hora_coll_t *coll) {
    return hora_select_widens(algo, coll) ? sizeof(float) : hora_dtype_size(coll->dtype);
}

double hora_select_cost(hora_comm_t *comm, const hora_coll_t *coll, const hora_algo_t *algo) {
    return hora_costs_predict(comm, algo, coll, wire_size(algo, coll));
}

static double formula_cost(hora_comm_t *comm, const hora_coll_t *coll, const hora_algo_t *algo) {
    return hora_costs_formula(comm, algo, coll, wire_size(algo, coll));
}

static const hora_algo_t *cheapest(hora_comm_t *comm, const hora_coll_t *coll,
                                   double (*cost_of)(hora_comm_t *comm, const hora_coll_t *coll,
                                                     const hora_algo_t *algo)) {
    const hora_algo_t *chosen = NULL;
    double             least = 0;
    for (int i = 0; hora_algo_list[i] != NULL; i++) {
        double cost;
        if (!hora_select_usable(comm, coll, hora_algo_list[i]))
            continue;
        cost = cost_of(comm, coll, hora_algo_list[i]);
        if (chosen == NULL || cost < least) {
            chosen = hora_algo_list[i];
            least = cost;
        }
    }
    return chosen;
}

const hora_algo_t *hora_select_by_formula(hora_comm_t *comm, const hora_coll_t *coll) {
    return cheapest(comm, coll, formula_cost);
}

/* All that a choice depends on, beside the bytes and what never changes. Not 0. */
static uint64_t what_of(const hora_comm_t *comm, const hora_coll_t *coll) {
    bool plain = coll->prescale == 1.0 && coll->postscale == 1.0;
    return (uint64_t)coll->kind | (uint64_t)coll->dtype << 4 | (uint64_t)coll->op << 8 |
           (uint64_t)plain << 12 | (uint64_t)hora_comm_oneshot_limit(comm) << 13;
}

/* A job makes the same calls again and again; the smallest take no longer than the comparison. */
static const hora_algo_t *best(hora_comm_t *comm, const hora_coll_t *coll) {
    uint64_t       what = what_of(comm, coll);
    size_t         bytes = hora_costs_bytes(coll);
    hora_chosen_t *chosen =
        &comm->chosen[(what ^ bytes * 0x9e3779b97f4a7c15u >> 32) % HORA_CHOICES];
    if (chosen->what != what || chosen->bytes != bytes)
        *chosen = (hora_chosen_t){what, bytes, cheapest(comm, coll, hora_select_cost)};
    return chosen->algo;
}

/* The work of the one-shot form grows with the ranks, and it is not shared. */
static const hora_algo_t *adasum_by_size(const hora_comm_t *comm, const hora_coll_t *coll) {
    size_t elem = hora_dtype_is_half(coll->dtype) ? sizeof(float) : hora_dtype_size(coll->dtype);
    size_t limit = hora_comm_oneshot_limit(comm) * 2 / (size_t)comm->size;
    if (comm->pads == NULL)
        return &hora_algo_adasum;
    if (limit > comm->pads->slot_bytes)
        limit = comm->pads->slot_bytes;
    return coll->count <= limit / elem ? &hora_algo_adasum_oneshot : &hora_algo_adasum;
}

const hora_algo_t *hora_select(hora_comm_t *comm, const hora_coll_t *coll) {
    const hora_settings_t *settings = &comm->world->settings;
    const hora_algo_t     *algo;
    if (coll->op == HORA_ADASUM && coll->kind == HORA_COLL_ALLREDUCE)
        return adasum_by_size(comm, coll);
    if (comm->forced != NULL && hora_select_usable(comm, coll, comm->forced))
        return comm->forced;
    if (strcmp(settings->algo, "auto") == 0) {
        algo = tuned(comm, coll);
        return algo != NULL ? algo : best(comm, coll);
    }
    algo = forced(comm, coll, settings->algo);
    if (algo != NULL)
        return algo;
    algo = best(comm, coll);
    if (comm->opened)
        note_fallback(settings, coll, algo);
    return algo;
}

const char *hora_select_name(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_coll_t placed = *coll;
    if (comm->size == 1)
        return "self";
    if (hora_tiny_applies(comm, coll))
        return "tiny";
    placed.hosts = hora_comm_levels(comm);
    return hora_select(comm, &placed)->name;
}
