/*
 * Calibration: measures the algorithms that hora could choose among (hora.h). On the thread that uses
 * the communicator, on all members in step.
 *
 * The algorithms of a call take turns, round by round, so that load that comes and goes hits them
 * alike. Buffers are ordinary memory, written before each call. The time of a round is that of the
 * slowest rank, and the lower quartile over the rounds is what is kept: what else the machine does may
 * hit half of them. How many rounds there are is agreed on:
 * as many as fit into a share of the time, of which small calls need less than they get.
 *
 * All sizes of all collectives are measured in several passes, because a machine has moods that last
 * for a second, and the median of the passes counts. What the formulas choose is left only for what was
 * clearly faster in every pass.
 */
#include "api/check.h"
#include "api/choices.h"
#include "schedule/costs.h"
#include "util/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CALLS_SMALL 20      /* timed together, up to SMALL bytes */
#define SMALL       16384u
#define ROUNDS_MAX  9
#define POINT_NS    27e6    /* for all algorithms at one size and pass, unless they are slow */
#define PASSES      3
#define CLEARLY     1.15    /* times as fast */

/* One size of one collective. */
typedef struct trial {
    hora_comm_t       *comm;
    hora_coll_t        coll;
    size_t             bytes;
    uint8_t           *in, *out;
    const hora_algo_t *algos[HORA_COSTS_ALGOS]; /* those that can */
    int                places[HORA_COSTS_ALGOS]; /* in hora_algo_list */
    int                nalgos;
    double             ns[HORA_COSTS_ALGOS][ROUNDS_MAX];
    hora_costs_t       passes[PASSES];
} trial_t;

static hora_status_t make_call(const trial_t *t) {
    const hora_coll_t *c = &t->coll;
    hora_dtype_t       type = HORA_FLOAT32;
    switch (c->kind) {
    case HORA_COLL_ALLREDUCE:
        return hora_allreduce(t->comm, t->out, t->out, c->count, type, HORA_SUM, NULL);
    case HORA_COLL_REDUCE:
        return hora_reduce(t->comm, t->in, t->out, c->count, type, HORA_SUM, 0, NULL);
    case HORA_COLL_REDUCE_SCATTER:
        return hora_reduce_scatter(t->comm, t->in, t->out, c->count, type, HORA_SUM, NULL);
    case HORA_COLL_ALLGATHER:
        return hora_allgather(t->comm, t->in, t->out, c->count, type, NULL);
    case HORA_COLL_BROADCAST:
        return hora_broadcast(t->comm, t->out, t->out, c->count, type, 0, NULL);
    case HORA_COLL_ALLTOALL:
        return hora_alltoall(t->comm, t->in, t->out, c->count, type, NULL);
    case HORA_COLL_GATHER:
        return hora_gather(t->comm, t->in, t->out, c->count, type, 0, NULL);
    default:
        return hora_scatter(t->comm, t->in, t->out, c->count, type, 0, NULL);
    }
}

/* As a program would that has just computed what it sends. */
static void write_buffers(const trial_t *t) {
    bool in_place = t->coll.kind == HORA_COLL_ALLREDUCE || t->coll.kind == HORA_COLL_BROADCAST;
    memset(in_place ? t->out : t->in, 0, t->bytes);
}

/* A round of one algorithm: nanoseconds for a call on this rank. */
static hora_status_t time_one(trial_t *t, const hora_algo_t *algo, double *ns_p) {
    int           calls = t->bytes <= SMALL ? CALLS_SMALL : 1;
    uint64_t      begin;
    hora_status_t st;
    write_buffers(t);
    st = hora_barrier(t->comm, NULL);
    t->comm->forced = algo;
    begin = hora_clock_ns();
    for (int i = 0; i < calls && st == HORA_OK; i++) {
        if (i > 0)
            write_buffers(t);
        st = make_call(t);
    }
    *ns_p = (double)(hora_clock_ns() - begin) / calls;
    t->comm->forced = NULL;
    return st;
}

/* The first one warms up, and shows how many are possible. */
static hora_status_t count_rounds(trial_t *t, int *rounds_p) {
    double        all = 0, one;
    hora_status_t st = HORA_OK;
    int           calls = t->bytes <= SMALL ? CALLS_SMALL : 1;
    for (int a = 0; a < t->nalgos && st == HORA_OK; a++) {
        st = time_one(t, t->algos[a], &one);
        all += one * calls;
    }
    if (st == HORA_OK)
        st = hora_allreduce(t->comm, &all, &all, 1, HORA_FLOAT64, HORA_MAX, NULL);
    *rounds_p = all * ROUNDS_MAX <= POINT_NS ? ROUNDS_MAX : (int)(POINT_NS / all);
    if (*rounds_p < 3)
        *rounds_p = all < 1e8 ? 3 : 1;
    return st;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static uint32_t lower_quartile(double *values, int n) {
    double value;
    qsort(values, (size_t)n, sizeof(*values), compare_doubles);
    value = values[n / 4];
    return value < 1 ? 1 : value > 4e9 ? 4000000000u : (uint32_t)value;
}

static hora_status_t run_trial(trial_t *t, hora_costs_t *costs, int point) {
    int           rounds;
    hora_status_t st = count_rounds(t, &rounds);
    for (int round = 0; round < rounds && st == HORA_OK; round++)
        for (int i = 0; i < t->nalgos && st == HORA_OK; i++) {
            int a = (i + round) % t->nalgos;
            st = time_one(t, t->algos[a], &t->ns[a][round]);
        }
    if (st == HORA_OK)
        st = hora_allreduce(t->comm, t->ns, t->ns, HORA_COSTS_ALGOS * ROUNDS_MAX, HORA_FLOAT64,
                            HORA_MAX, NULL);
    for (int a = 0; a < t->nalgos && st == HORA_OK; a++)
        costs->ns[t->coll.kind][t->places[a]][point] = lower_quartile(t->ns[a], rounds);
    return st;
}

static void find_algorithms(trial_t *t) {
    t->nalgos = 0;
    for (int i = 0; i < HORA_COSTS_ALGOS && hora_algo_list[i] != NULL; i++)
        if (hora_select_usable(t->comm, &t->coll, hora_algo_list[i])) {
            t->algos[t->nalgos] = hora_algo_list[i];
            t->places[t->nalgos++] = i;
        }
}

/* One size of one collective; false: there is nothing to choose. */
static bool prepare(trial_t *t, int kind, int point, size_t *lists) {
    t->bytes = hora_costs_size(point);
    t->coll = hora_choices_call(t->comm, (hora_coll_kind_t)kind, t->bytes, lists);
    memset(t->ns, 0, sizeof(t->ns));
    find_algorithms(t);
    return t->coll.count > 0 && t->nalgos > 1;
}

/* All sizes of all collectives once, into costs. */
static hora_status_t measure_all(trial_t *t, size_t *lists, hora_costs_t *costs) {
    hora_status_t st = HORA_OK;
    for (int kind = HORA_COLL_ALLREDUCE; kind < HORA_COLL_BARRIER; kind++)
        for (int point = 0; point < HORA_COSTS_POINTS && st == HORA_OK; point++)
            if (prepare(t, kind, point, lists))
                st = run_trial(t, costs, point);
    return st;
}

static int compare_times(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* The median of the passes; above `least` unless it was clearly faster in each than another one, whose
 * times are `other`. */
static uint32_t median_time(const uint32_t *times, const uint32_t *other, uint32_t least) {
    uint32_t sorted[PASSES], middle;
    bool     clear = true;
    memcpy(sorted, times, sizeof(sorted));
    qsort(sorted, PASSES, sizeof(*sorted), compare_times);
    middle = sorted[PASSES / 2];
    for (int pass = 0; pass < PASSES; pass++)
        clear &= times[pass] * CLEARLY < other[pass];
    return clear || middle > least ? middle : least + 1;
}

/* What the passes say of one size: the choice is the formulas', unless another one is clearly faster. */
static void combine(const trial_t *t, int point, hora_costs_t *costs) {
    uint32_t           times[HORA_COSTS_ALGOS][PASSES], least;
    const hora_algo_t *known = hora_select_by_formula(t->comm, &t->coll);
    int                first = 0;
    for (int a = 0; a < t->nalgos; a++) {
        first = t->algos[a] == known ? a : first;
        for (int pass = 0; pass < PASSES; pass++)
            times[a][pass] = t->passes[pass].ns[t->coll.kind][t->places[a]][point];
    }
    least = median_time(times[first], times[first], 0);
    for (int a = 0; a < t->nalgos; a++)
        costs->ns[t->coll.kind][t->places[a]][point] =
            a == first ? least : median_time(times[a], times[first], least);
}

static hora_status_t measure_passes(trial_t *t, size_t *lists, hora_costs_t *costs) {
    hora_status_t st = HORA_OK;
    for (int pass = 0; pass < PASSES && st == HORA_OK; pass++)
        st = measure_all(t, lists, &t->passes[pass]);
    for (int kind = HORA_COLL_ALLREDUCE; kind < HORA_COLL_BARRIER && st == HORA_OK; kind++)
        for (int point = 0; point < HORA_COSTS_POINTS; point++)
            if (prepare(t, kind, point, lists))
                combine(t, point, costs);
    return st;
}

/* A rank that cannot take part says so, or the others would wait for it. */
static hora_status_t agree(hora_comm_t *comm, hora_status_t mine) {
    uint8_t       failed = mine != HORA_OK;
    hora_status_t st = hora_allreduce(comm, &failed, &failed, 1, HORA_UINT8, HORA_MAX, NULL);
    if (mine != HORA_OK || st != HORA_OK)
        return mine != HORA_OK ? mine : st;
    return failed ? hora_fail(HORA_ERR_ABORTED, "comm_calibrate: another rank cannot take part in it, "
                              "and has said why")
                  : HORA_OK;
}

static hora_status_t measure(hora_comm_t *comm, hora_costs_t *costs) {
    size_t        most = hora_costs_size(HORA_COSTS_POINTS - 1);
    size_t       *lists = malloc(2 * (size_t)comm->size * sizeof(*lists));
    trial_t      *t = calloc(1, sizeof(*t));
    bool          tiny = comm->tiny_allowed;
    hora_status_t st = HORA_OK;
    if (t != NULL)
        *t = (trial_t){.comm = comm, .in = calloc(1, most), .out = calloc(1, most)};
    if (lists == NULL || t == NULL || t->in == NULL || t->out == NULL)
        st = hora_fail(HORA_ERR_NO_MEMORY, "comm_calibrate: two buffers of %zu bytes", most);
    st = agree(comm, st);
    comm->tiny_allowed = false;
    if (st == HORA_OK)
        st = measure_passes(t, lists, costs);
    comm->tiny_allowed = tiny;
    if (t != NULL) {
        free(t->in);
        free(t->out);
    }
    free(t);
    free(lists);
    return st;
}

hora_status_t hora_comm_calibrate(hora_comm_t *comm, char *path_p, size_t room) {
    char          path[512];
    hora_costs_t *costs = NULL;
    hora_status_t st = hora_check_comm(comm, "comm_calibrate");
    if (st != HORA_OK)
        return st;
    if (comm->size != comm->world->size || comm->size == 1)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_calibrate: this takes a communicator of "
                         "all ranks, two or more");
    if (comm->world->settings.deterministic)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "comm_calibrate: HORA_DETERMINISTIC leaves nothing "
                         "to choose");
    if (comm->rank == 0)
        st = hora_costs_prepare(comm->world, path, sizeof(path));
    if (st == HORA_OK && (costs = calloc(1, sizeof(*costs))) == NULL)
        st = hora_fail(HORA_ERR_NO_MEMORY, "comm_calibrate");
    st = agree(comm, st);
    if (st == HORA_OK)
        st = measure(comm, costs);
    if (st == HORA_OK && comm->rank == 0) {
        st = hora_costs_save(comm->world, costs, path);
        if (st == HORA_OK && path_p != NULL)
            snprintf(path_p, room, "%s", path);
    }
    free(costs);
    return st;
}
