/*
 * Which algorithm does what here, for people and programs who ask. On the thread that uses the
 * communicator.
 */
#include "api/choices.h"

#include "api/check.h"
#include "schedule/costs.h"
#include "schedule/exec.h"

#include <stdlib.h>
#include <string.h>

static hora_coll_kind_t find_kind(const char *name) {
    int kind = 1;
    while (kind < HORA_COLL_KIND_COUNT && strcmp(hora_coll_name((hora_coll_kind_t)kind), name) != 0)
        kind++;
    return (hora_coll_kind_t)kind;
}

static bool has_blocks(hora_coll_kind_t kind) {
    return kind == HORA_COLL_REDUCE_SCATTER || kind == HORA_COLL_ALLGATHER ||
           kind == HORA_COLL_ALLTOALL || kind == HORA_COLL_GATHER || kind == HORA_COLL_SCATTER;
}

hora_coll_t hora_choices_call(const hora_comm_t *comm, hora_coll_kind_t kind, size_t bytes,
                              size_t *lists) {
    size_t      n = (size_t)comm->size, count = bytes / sizeof(float) / (has_blocks(kind) ? n : 1);
    hora_coll_t coll = {.kind = kind, .dtype = HORA_FLOAT32, .op = HORA_SUM, .rank = comm->rank,
                        .size = comm->size, .count = count, .prescale = 1.0, .postscale = 1.0,
                        .hosts = hora_comm_levels(comm)};
    for (size_t i = 0; i < n; i++) {
        lists[i] = count;
        lists[n + i] = i * count;
    }
    if (has_blocks(kind) && kind != HORA_COLL_GATHER && kind != HORA_COLL_SCATTER) {
        coll.counts = coll.other_counts = lists;
        coll.displs = coll.other_displs = lists + n;
    }
    if (kind == HORA_COLL_BARRIER) {
        coll.dtype = HORA_UINT8;
        coll.count = 0;
    }
    return coll;
}

static int list_choices(hora_comm_t *comm, const hora_coll_t *coll, hora_choice_t *choices_p,
                        int room) {
    const hora_algo_t *first = hora_select(comm, coll);
    const char        *name = hora_select_name(comm, coll);
    int                n = 0;
    if (strcmp(name, first->name) != 0 && n++ < room) /* a short cut: it has no plan, and no formula */
        choices_p[0] = (hora_choice_t){name, hora_select_cost(comm, coll, first)};
    for (int i = -1; i < 0 || hora_algo_list[i] != NULL; i++) {
        const hora_algo_t *algo = i < 0 ? first : hora_algo_list[i];
        if ((i < 0 || algo != first) && hora_select_usable(comm, coll, algo) && n++ < room)
            choices_p[n - 1] = (hora_choice_t){algo->name, hora_select_cost(comm, coll, algo)};
    }
    return n;
}

int hora_comm_choices(hora_comm_t *comm, const char *collective, size_t bytes,
                      hora_choice_t *choices_p, int room) {
    hora_coll_kind_t kind;
    hora_coll_t      coll;
    size_t          *lists;
    int              n;
    if (hora_check_comm(comm, "comm_choices") != HORA_OK || collective == NULL ||
        (choices_p == NULL && room > 0))
        return 0;
    kind = find_kind(collective);
    lists = kind < HORA_COLL_KIND_COUNT ? malloc(2 * (size_t)comm->size * sizeof(*lists)) : NULL;
    if (lists == NULL)
        return 0;
    coll = hora_choices_call(comm, kind, bytes, lists);
    if (comm->size > 1) {
        n = list_choices(comm, &coll, choices_p, room);
    } else {
        n = 1;
        if (room > 0)
            choices_p[0] = (hora_choice_t){hora_select_name(comm, &coll), 0};
    }
    free(lists);
    return n;
}

const char *hora_comm_costs(const hora_comm_t *comm) {
    const hora_costs_t *costs = comm->world->costs;
    if (costs != NULL && comm->size == comm->world->size)
        return costs->source;
    return "by the formulas that hora comes with; hora info --calibrate measures them";
}
