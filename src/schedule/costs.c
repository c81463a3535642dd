/*
 * Predicted times (costs.h). Any thread that may use the communicator, or that joins; no state.
 */
#include "schedule/costs.h"

#include "schedule/algos.h"
#include "transport/transport.h"
#include "util/bytes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Seconds per message (in the arena: per phase), per byte on the wire (copied), per byte reduced; and
 * how many times longer a message or a phase takes when ranks share a core and must take turns. */
typedef struct rates {
    const char *wire;
    double      a, b, g, turns;
} rates_t;

/* Slowest first, then the arena. Shipped defaults, measured on 2 cores of a Zen 4 (docs/performance.md);
 * but for tcp, which is typical of 10 to 25 Gb/s Ethernet. */
static const rates_t defaults[] = {
    {"tcp", 25e-6, 1.0 / 2.0e9, 1.0 / 12e9, 1},
    {"mpi", 4e-6, 1.0 / 5.0e9, 1.0 / 12e9, 1},
    {"shm", 1.5e-6, 1.0 / 6.0e9, 1.0 / 12e9, 6},
    {"arena", 0.4e-6, 1.0 / 50e9, 1.0 / 50e9, 12},
};
#define TCP   0
#define ARENA (sizeof(defaults) / sizeof(defaults[0]) - 1)

static size_t wire_index(const char *name) {
    for (size_t i = 0; i < ARENA; i++)
        if (strcmp(defaults[i].wire, name) == 0)
            return i;
    return 0;
}

/* The slowest wire to any member. Links of one kind make cliques, so all members find the same. */
static size_t slowest_wire(const hora_comm_t *comm) {
    size_t      slowest = ARENA - 1;
    const char *seen = NULL;
    for (int r = 0; r < comm->size; r++) {
        hora_link_t *link = hora_comm_peer(comm, r)->link;
        if (link == NULL || link->transport->ops->name == seen)
            continue;
        seen = link->transport->ops->name;
        if (wire_index(seen) < slowest)
            slowest = wire_index(seen);
    }
    return slowest;
}

static const rates_t *rates_of_links(hora_comm_t *comm) {
    if (comm->wire == 0)
        comm->wire = 1 + (int)slowest_wire(comm);
    return &defaults[comm->wire - 1];
}

bool hora_costs_over_tcp(hora_comm_t *comm) {
    return rates_of_links(comm) == &defaults[TCP];
}

#define UNEVEN_BYTES ((size_t)65536)

size_t hora_costs_bytes(const hora_coll_t *coll) {
    size_t elem = hora_dtype_size(coll->dtype);
    switch (coll->kind) {
    case HORA_COLL_ALLTOALL:
        return coll->count > 0 ? coll->count * (size_t)coll->size * elem : UNEVEN_BYTES;
    case HORA_COLL_GATHER:
    case HORA_COLL_SCATTER:
        return coll->count * (size_t)coll->size * elem;
    default:
        return hora_coll_total(coll) * elem;
    }
}

/* ---- By the formula ---------------------------------------------------------------------------- */

double hora_costs_formula(hora_comm_t *comm, const hora_algo_t *algo, const hora_coll_t *coll,
                          size_t elem) {
    const rates_t *rates = algo->needs_arena ? &defaults[ARENA] : rates_of_links(comm);
    double         crowd = comm->world->crowd > 100 ? comm->world->crowd / 100.0 : 1;
    double         wait = crowd > 1 ? rates->a * rates->turns * crowd : rates->a;
    hora_coll_t    known = *coll;
    if (coll->kind == HORA_COLL_ALLTOALL) { /* what a member sends may be its own business */
        known.counts = NULL;
        known.count = hora_costs_bytes(coll) / hora_dtype_size(coll->dtype);
    }
    return algo->cost(&known, elem, wait, rates->b * crowd, rates->g * crowd);
}

/* ---- By measured times ------------------------------------------------------------------------- */

static const uint32_t *row_of(const hora_costs_t *costs, const hora_algo_t *algo,
                              hora_coll_kind_t kind) {
    for (int i = 0; i < HORA_COSTS_ALGOS && hora_algo_list[i] != NULL; i++)
        if (hora_algo_list[i] == algo)
            return costs->ns[kind][i];
    return NULL;
}

/* Seconds for `bytes`, along a straight line between two points, beyond the last one in proportion;
 * negative: not measured there. Only what every machine computes alike: no logarithms. */
static double by_times(const uint32_t *ns, double bytes) {
    int    point = 0;
    double at, next;
    while (point + 1 < HORA_COSTS_POINTS && bytes >= (double)hora_costs_size(point + 1))
        point++;
    at = (double)hora_costs_size(point);
    if (ns[point] == 0)
        return -1;
    if (point + 1 == HORA_COSTS_POINTS)
        return 1e-9 * ns[point] * (bytes / at);
    if (bytes <= at)
        return 1e-9 * ns[point];
    if (ns[point + 1] == 0) /* the last size that it was measured at */
        return 1e-9 * ns[point] * (bytes / at);
    next = (double)hora_costs_size(point + 1);
    return 1e-9 * (ns[point] + ((double)ns[point + 1] - ns[point]) * (bytes - at) / (next - at));
}

double hora_costs_predict(hora_comm_t *comm, const hora_algo_t *algo, const hora_coll_t *coll,
                          size_t elem) {
    const hora_costs_t *costs = comm->world->costs;
    const uint32_t     *ns = NULL;
    double              wide = (double)elem / (double)hora_dtype_size(coll->dtype), seconds;
    if (costs != NULL && comm->size == comm->world->size)
        ns = row_of(costs, algo, coll->kind);
    if (ns != NULL && (seconds = by_times(ns, wide * (double)hora_costs_bytes(coll))) >= 0)
        return seconds;
    return hora_costs_formula(comm, algo, coll, elem);
}

/* ---- To the other ranks: the crowd; for each row with a time, kind, algorithm and the times ------ */

#define ROW_BYTES (2 + 4 * HORA_COSTS_POINTS)

static bool has_times(const uint32_t *ns) {
    for (int i = 0; i < HORA_COSTS_POINTS; i++)
        if (ns[i] != 0)
            return true;
    return false;
}

static void put_row(uint8_t *at, int kind, int algo, const uint32_t *ns) {
    at[0] = (uint8_t)kind;
    at[1] = (uint8_t)algo;
    for (int i = 0; i < HORA_COSTS_POINTS; i++)
        hora_put_u32(at + 2 + 4 * i, ns[i]);
}

size_t hora_costs_encode(hora_world_t *world, void *bytes, size_t room) {
    uint8_t *at = bytes;
    size_t   len = 4;
    hora_put_u32(at, (uint32_t)world->crowd);
    for (int kind = 0; world->costs != NULL && kind < HORA_COLL_KIND_COUNT; kind++)
        for (int algo = 0; algo < HORA_COSTS_ALGOS; algo++) {
            const uint32_t *ns = world->costs->ns[kind][algo];
            if (!has_times(ns))
                continue;
            if (ROW_BYTES > room - len) { /* what the others do not get must not count here */
                free(world->costs);
                world->costs = NULL;
                return 4;
            }
            put_row(at + len, kind, algo, ns);
            len += ROW_BYTES;
        }
    return len;
}

static bool take_rows(hora_costs_t *costs, const uint8_t *at, size_t len) {
    for (; len >= ROW_BYTES; at += ROW_BYTES, len -= ROW_BYTES) {
        if (at[0] >= HORA_COLL_KIND_COUNT || at[1] >= HORA_COSTS_ALGOS)
            return false;
        for (int i = 0; i < HORA_COSTS_POINTS; i++)
            costs->ns[at[0]][at[1]][i] = hora_get_u32(at + 2 + 4 * i);
    }
    return len == 0;
}

hora_status_t hora_costs_decode(hora_world_t *world, const void *bytes, size_t len) {
    hora_costs_t *costs;
    bool          good = len >= 4 && hora_get_u32(bytes) <= INT32_MAX;
    if (good)
        world->crowd = (int)hora_get_u32(bytes);
    if (good && len == 4)
        return HORA_OK;
    costs = calloc(1, sizeof(*costs));
    if (costs == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "the times of the algorithms");
    if (!good || !take_rows(costs, (const uint8_t *)bytes + 4, len - 4)) {
        free(costs);
        return hora_fail(HORA_ERR_PROTOCOL, "rank 0 sent malformed times of the algorithms");
    }
    snprintf(costs->source, sizeof(costs->source), "a file of rank 0's");
    world->costs = costs;
    return HORA_OK;
}
