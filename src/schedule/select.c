/*
 * Choice of an algorithm. Any thread that may use the communicator.
 *
 * Every member must choose the same, so only what is equal on all members counts: the call, the
 * members' hosts, the settings, autotune's values. Adasum has its own, by size. Else, in this order:
 * HORA_ALGO where it applies; what autotune has found; the arena where all members share one; else
 * the cheapest by a + b + g model, with constants per kind of wire.
 */
#include "schedule/algos.h"
#include "schedule/exec.h"
#include "transport/shm/pads.h"
#include "transport/transport.h"
#include "util/log.h"

#include <stdatomic.h>
#include <string.h>

/* Seconds per message, per byte on the wire, per byte reduced. Slowest first. Shipped defaults:
 * measured on loopback and within a host for shm; typical of 10 to 25 Gb/s Ethernet for tcp. */
typedef struct wire {
    const char *transport;
    double      a, b, g;
} wire_t;

static const wire_t wires[] = {
    {"tcp", 25e-6, 1.0 / 2.0e9, 1.0 / 12e9},
    {"mpi", 4e-6, 1.0 / 5.0e9, 1.0 / 12e9},
    {"shm", 1.5e-6, 1.0 / 6.0e9, 1.0 / 12e9},
};
#define WIRES (sizeof(wires) / sizeof(wires[0]))

static size_t wire_index(const char *name) {
    for (size_t i = 0; i < WIRES; i++)
        if (strcmp(wires[i].transport, name) == 0)
            return i;
    return 0;
}

/* The slowest wire to any member. Links of one kind make cliques, so all members find the same. */
static const wire_t *wire_of(const hora_comm_t *comm) {
    size_t      slowest = WIRES - 1;
    const char *seen = NULL;
    for (int r = 0; r < comm->size; r++) {
        hora_link_t *link = hora_comm_peer(comm, r)->link;
        if (link == NULL || link->transport->ops->name == seen)
            continue;
        seen = link->transport->ops->name;
        if (wire_index(seen) < slowest)
            slowest = wire_index(seen);
    }
    return &wires[slowest];
}

bool hora_select_widens(const hora_algo_t *algo, const hora_coll_t *coll) {
    bool exact = (coll->op == HORA_MIN || coll->op == HORA_MAX) && coll->prescale == 1.0 &&
                 coll->postscale == 1.0;
    return hora_coll_reduces(coll->kind) && hora_dtype_is_half(coll->dtype) && !algo->rank_order &&
           !exact;
}

static bool usable(const hora_algo_t *algo, const hora_comm_t *comm, const hora_coll_t *coll) {
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
            return usable(hora_algo_list[i], comm, coll) ? hora_algo_list[i] : NULL;
    return NULL;
}

/* What autotune has found for this call, or NULL. */
static const hora_algo_t *tuned(const hora_comm_t *comm, const hora_coll_t *coll) {
    if (comm->tuned_algo == NULL || comm->pads != NULL || coll->kind != HORA_COLL_ALLREDUCE ||
        coll->count < comm->tuned_large / hora_dtype_size(coll->dtype))
        return NULL;
    return forced(comm, coll, comm->tuned_algo);
}

static const hora_algo_t *best(const hora_comm_t *comm, const hora_coll_t *coll) {
    const wire_t      *wire = NULL;
    const hora_algo_t *chosen = NULL;
    double             least = 0;
    for (int i = 0; hora_algo_list[i] != NULL; i++) {
        const hora_algo_t *algo = hora_algo_list[i];
        size_t             elem = hora_dtype_size(coll->dtype);
        double             cost;
        if (!usable(algo, comm, coll))
            continue;
        if (algo->needs_arena)
            return algo;
        if (wire == NULL)
            wire = wire_of(comm);
        if (hora_select_widens(algo, coll))
            elem = sizeof(float);
        cost = algo->cost(coll, elem, wire->a, wire->b, wire->g);
        if (chosen == NULL || cost < least) {
            chosen = algo;
            least = cost;
        }
    }
    return chosen;
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

const hora_algo_t *hora_select(const hora_comm_t *comm, const hora_coll_t *coll) {
    const hora_settings_t *settings = &comm->world->settings;
    const hora_algo_t     *algo;
    if (coll->op == HORA_ADASUM && coll->kind == HORA_COLL_ALLREDUCE)
        return adasum_by_size(comm, coll);
    if (strcmp(settings->algo, "auto") == 0) {
        algo = tuned(comm, coll);
        return algo != NULL ? algo : best(comm, coll);
    }
    algo = forced(comm, coll, settings->algo);
    if (algo != NULL)
        return algo;
    algo = best(comm, coll);
    note_fallback(settings, coll, algo);
    return algo;
}

const char *hora_select_name(const hora_comm_t *comm, const hora_coll_t *coll) {
    if (comm->size == 1)
        return "self";
    if (hora_tiny_applies(comm, coll))
        return "tiny";
    return hora_select(comm, coll)->name;
}
