/*
 * src/schedule/run.c, exec.c, stage.c: collectives between ranks that are threads of this process.
 */
#include "sim.h"
#include "team.h"

#include "schedule/comms.h"
#include "schedule/run.h"
#include "transport/shm/arena.h"
#include "transport/shm/pads.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))
#define GARBAGE 0x5a

typedef enum place { APART, IN_PLACE, SAME_POINTER, PLACES } place_t;

/* One collective of one rank, with its buffers and what they must become. */
typedef struct job {
    sim_case_t   what;
    sim_layout_t layout;
    hora_coll_t  coll;
    uint8_t     *mem, *want, *mask;
} job_t;

static sim_case_t basic(const hora_algo_t *algo, hora_coll_kind_t kind, int size, size_t count) {
    return (sim_case_t){.algo = algo, .kind = kind, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                        .size = size,
                        .count = kind == HORA_COLL_BARRIER ? 0 : count, .integers = true,
                        .prescale = 1.0, .postscale = 1.0};
}

/* Buffers in `mem` (NULL: own memory), 2 * (in + out) elements. */
static void job_make(job_t *job, const sim_case_t *what, int rank, place_t place, uint8_t *mem) {
    size_t elem = hora_dtype_size(what->dtype), span;
    *job = (job_t){.what = *what};
    sim_layout_make(what, rank, &job->layout);
    span = job->layout.in + job->layout.out;
    job->mem = mem != NULL ? mem : malloc((span + 1) * elem);
    job->want = malloc((span + 1) * elem);
    job->mask = malloc(span + 1);
    memset(job->mem, GARBAGE, span * elem);
    job->coll = (hora_coll_t){.kind = what->kind, .dtype = what->dtype, .op = what->op,
                              .rank = rank, .size = what->size, .root = what->root,
                              .count = what->uneven && job->layout.counts ? 0 : what->count,
                              .counts = job->layout.counts, .displs = job->layout.displs,
                              .other_counts = job->layout.other_counts,
                              .other_displs = job->layout.other_displs,
                              .prescale = what->prescale, .postscale = what->postscale,
                              .in = job->mem, .out = job->mem + job->layout.in * elem};
    if (place != APART)
        job->coll.out = job->mem + (place == IN_PLACE ? job->layout.out_at_in * elem : 0);
    if (place == IN_PLACE)
        job->coll.in = job->mem + job->layout.in_at_out * elem;
    sim_fill(what, &job->layout, rank, 0, (void *)job->coll.in);
    sim_expect(what, &job->layout, rank, 0, job->want, job->mask);
}

static bool job_check(job_t *job, member_t *m, const char *note) {
    size_t elem = hora_dtype_size(job->what.dtype);
    for (size_t i = 0; i < job->layout.out; i++)
        if (job->mask[i] && !sim_close(&job->what, (uint8_t *)job->coll.out + i * elem,
                                       job->want + i * elem))
            return team_complain(m, "%s %s %s count %zu %s: element %zu is wrong",
                                 hora_coll_name(job->what.kind), hora_dtype_name(job->what.dtype),
                                 hora_op_name(job->what.op), job->what.count, note, i);
    return true;
}

static void job_free(job_t *job, bool own_mem) {
    if (own_mem)
        free(job->mem);
    free(job->want);
    free(job->mask);
    sim_layout_free(&job->layout);
}

static bool run_one(member_t *m, const sim_case_t *what, place_t place) {
    static const char *const notes[] = {"apart", "in place", "in == out"};
    job_t                    job;
    bool                     good;
    job_make(&job, what, m->rank, place, NULL);
    if (hora_coll_run(m->comm, &job.coll) != HORA_OK)
        good = team_complain(m, "%s: %s", hora_coll_name(what->kind), hora_last_error());
    else
        good = job_check(&job, m, notes[place]);
    job_free(&job, true);
    return good;
}

static bool is_rooted(hora_coll_kind_t kind) {
    return kind == HORA_COLL_REDUCE || kind == HORA_COLL_BROADCAST || kind == HORA_COLL_GATHER ||
           kind == HORA_COLL_SCATTER;
}

/* ---- every kind, type, place ---- */

static void every_kind(member_t *m) {
    static const size_t       counts[] = {0, 1, 5, 1000, 30011};
    static const hora_dtype_t dtypes[] = {HORA_FLOAT32, HORA_BFLOAT16, HORA_INT32, HORA_FLOAT64};
    unsigned                  turn = 0;
    for (int kind = 1; kind < HORA_COLL_KIND_COUNT; kind++)
        for (size_t c = 0; c < LEN(counts); c++)
            for (place_t place = APART; place < PLACES; place++, turn++) {
                /* direct: the strictest comparison; whole numbers are exact in any order */
                sim_case_t what = basic(&hora_algo_direct, (hora_coll_kind_t)kind, m->size,
                                        counts[c]);
                what.dtype = dtypes[turn % LEN(dtypes)];
                what.op = turn % 3 == 0 ? HORA_AVERAGE : turn % 3 == 1 ? HORA_SUM : HORA_MAX;
                what.root = is_rooted(what.kind) ? (int)(turn % (unsigned)m->size) : 0;
                what.uneven = turn % 2;
                what.prescale = what.dtype == HORA_INT32 ? 1.0 : 0.5;
                what.postscale = what.dtype == HORA_INT32 ? 1.0 : 4.0;
                if (!run_one(m, &what, place))
                    return;
            }
}

static void run__every_kind_type_and_place(void **state) {
    static const char *const algos[] = {NULL, "ring", "tree", "doubling", "halving", "direct",
                                        "slots"};
    (void)state;
    for (size_t a = 0; a < LEN(algos); a++)
        for (int size = 1; size <= 4; size++)
            for (int pads = a == 6; pads < 1 + (a == 0 || a == 6); pads++) {
                team_t team = {.size = size, .pads = pads, .algo = algos[a], .chunk = 4096};
                team_run(&team, every_kind);
            }
}

/* Halves are rounded once, whatever the algorithm: more ranks than a bfloat16 sum would bear. */
static void one_rounding(member_t *m) {
    uint16_t in[300], out[300], one;
    float    x = m->rank == 0 ? 256.0f : 1.0f, sum; /* one by one, 256 + 1 would round to 256 */
    hora_coll_t coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_BFLOAT16, .op = HORA_SUM,
                        .rank = m->rank, .size = m->size, .count = LEN(in), .in = in, .out = out,
                        .prescale = 1.0, .postscale = 1.0};
    hora_kernel_convert(&one, HORA_BFLOAT16, &x, HORA_FLOAT32, 1, 1.0);
    for (size_t i = 0; i < LEN(in); i++)
        in[i] = one;
    if (hora_coll_run(m->comm, &coll) != HORA_OK)
        team_complain(m, "%s", hora_last_error());
    for (size_t i = 0; i < LEN(in); i++) {
        hora_kernel_convert(&sum, HORA_FLOAT32, &out[i], HORA_BFLOAT16, 1, 1.0);
        if (sum != 260.0f)
            team_complain(m, "256 + 4 * 1 = %g", (double)sum);
    }
}

static void run__halves_are_rounded_once(void **state) {
    static const char *const algos[] = {"ring", "tree", "doubling", "halving", "direct", "arena",
                                        "oneshot"};
    (void)state;
    for (size_t a = 0; a < LEN(algos); a++) {
        team_t team = {.size = 5, .pads = a >= 5, .algo = algos[a]};
        team_run(&team, one_rounding);
    }
}

/* Buffers in the arena: the plan pushes into them, and needs no slot. */
static void shared_buffers(member_t *m) {
    for (int round = 0; round < 6; round++) {
        sim_case_t what = basic(&hora_algo_arena, HORA_COLL_ALLREDUCE, m->size,
                                100003 + (size_t)(round % 2));
        void      *mem;
        job_t      job;
        what.integers = false;
        what.seed = (unsigned)round;
        if (hora_arena_alloc(m->comm->world->arena, 2 * what.count * 4, &mem) != HORA_OK) {
            team_complain(m, "no arena memory");
            return;
        }
        job_make(&job, &what, m->rank, round % 3 ? APART : IN_PLACE, mem);
        if (hora_coll_run(m->comm, &job.coll) != HORA_OK)
            team_complain(m, "%s", hora_last_error());
        job_check(&job, m, "shared");
        job_free(&job, false);
        hora_arena_free(m->comm->world->arena, mem);
    }
}

static void run__pushes_into_buffers_in_the_arena(void **state) {
    (void)state;
    for (int size = 2; size <= 5; size++) {
        team_t team = {.size = size, .pads = true};
        team_run(&team, shared_buffers);
    }
}

/* ---- many calls ---- */

static void mixed_calls(member_t *m) {
    for (unsigned turn = 0; turn < 400 && m->error[0] == 0; turn++) {
        sim_case_t what = basic(&hora_algo_direct, (hora_coll_kind_t)(1 + turn * 5 % 9), m->size,
                                turn * 37 % 700);
        what.root = is_rooted(what.kind) ? (int)(turn % (unsigned)m->size) : 0;
        what.seed = turn;
        run_one(m, &what, APART);
    }
}

static void run__calls_of_all_kinds_follow_each_other(void **state) {
    (void)state;
    for (int pads = 0; pads < 2; pads++) {
        team_t team = {.size = 4, .pads = pads, .chunk = 512};
        team_run(&team, mixed_calls);
    }
}

/* Roots that wait for nobody, in calls of all sizes, beside ranks that dawdle. */
static void dawdle(member_t *m) {
    static const hora_coll_kind_t kinds[] = {HORA_COLL_BROADCAST, HORA_COLL_SCATTER,
                                             HORA_COLL_GATHER, HORA_COLL_BROADCAST,
                                             HORA_COLL_REDUCE, HORA_COLL_ALLGATHER};
    static const size_t           counts[] = {1, 700, 3, 300, 2, 3000, 20000, 60, 1025, 0};
    for (unsigned turn = 0; turn < 600 && m->error[0] == 0; turn++) {
        unsigned   few = turn / 100 % 2 ? turn : turn / 60; /* one kind again and again */
        sim_case_t what = basic(&hora_algo_direct, kinds[few % LEN(kinds)], m->size,
                                counts[few * 3 % LEN(counts)]);
        what.root = is_rooted(what.kind) ? (int)(few / 7 % (unsigned)m->size) : 0;
        what.seed = turn;
        if ((turn * 13 + (unsigned)m->rank * 29) % 50 == 0)
            usleep(200);
        run_one(m, &what, APART);
    }
}

static void run__roots_may_run_ahead(void **state) {
    (void)state;
    for (int size = 2; size <= 4; size++) {
        team_t team = {.size = size, .pads = true, .chunk = 4096};
        team_run(&team, dawdle);
    }
}

/* Lengths that use cell, board and slots; the boards must change hands with every call on them. */
static void small_calls(member_t *m) {
    static const size_t counts[] = {0, 1, 12, 13, 16, 17, 1000, 8192, 8193, 3};
    const uint8_t      *before = NULL;
    for (unsigned turn = 0; turn < 300 && m->error[0] == 0; turn++) {
        sim_case_t what = basic(&hora_algo_direct, HORA_COLL_ALLREDUCE, m->size, counts[turn % 10]);
        if (turn % 7 == 6)
            what = basic(&hora_algo_direct, turn % 2 ? HORA_COLL_BARRIER : HORA_COLL_BROADCAST,
                         m->size, 3);
        what.integers = false;
        what.seed = turn;
        run_one(m, &what, turn % 2 ? APART : IN_PLACE);
        if ((turn + (unsigned)m->rank) % 11 == 0)
            usleep(100); /* somebody is late */
        if (m->size == HORA_PADS_PAIR && what.count > 12 && what.count <= 8192) {
            if (hora_pads_board(m->comm->pads, m->rank) == before)
                team_complain(m, "turn %u: the boards have not changed hands", turn);
            before = hora_pads_board(m->comm->pads, m->rank);
        }
    }
}

static void run__small_calls_of_all_lengths_follow_each_other(void **state) {
    (void)state;
    for (int size = 2; size <= 4; size++) {
        team_t team = {.size = size, .pads = true};
        team_run(&team, small_calls);
    }
}

static size_t idle_count(const hora_comm_t *comm) {
    size_t n = 0;
    for (const hora_exec_t *e = comm->idle; e != NULL; e = e->next)
        n++;
    return n;
}

static void repeated_calls(member_t *m) {
    for (unsigned turn = 0; turn < 30; turn++) {
        sim_case_t what = basic(&hora_algo_direct, HORA_COLL_ALLREDUCE, m->size, 900 + turn % 3);
        run_one(m, &what, APART);
    }
    if (idle_count(m->comm) != 3)
        team_complain(m, "%zu executions are kept, not 3", idle_count(m->comm));
    for (unsigned turn = 0; turn < 30; turn++) {
        sim_case_t what = basic(&hora_algo_direct, HORA_COLL_ALLREDUCE, m->size, 900 + turn);
        run_one(m, &what, APART);
    }
    if (idle_count(m->comm) != 8)
        team_complain(m, "%zu executions are kept, not 8", idle_count(m->comm));
}

static void run__keeps_few_executions_and_uses_them_again(void **state) {
    team_t team = {.size = 3};
    (void)state;
    team_run(&team, repeated_calls);
}

/* ---- started, not waited for ---- */

static void started_calls(member_t *m) {
    enum { N = 12 };
    job_t        jobs[N];
    hora_exec_t *execs[N];
    for (int i = 0; i < N; i++) {
        sim_case_t what = basic(&hora_algo_direct, (hora_coll_kind_t)(1 + i % 8), m->size,
                                (size_t)(i * 331));
        what.uneven = i % 2;
        what.seed = (unsigned)i;
        job_make(&jobs[i], &what, m->rank, APART, NULL);
        if (hora_coll_start(m->comm, &jobs[i].coll, &execs[i]) != HORA_OK) {
            team_complain(m, "start: %s", hora_last_error());
            return;
        }
    }
    /* Some ranks poll the last one first, the others wait for it. */
    if (m->rank % 2 == 0)
        while (hora_exec_progress(execs[N - 1]) == HORA_IN_PROGRESS)
            usleep(10);
    for (int i = N - 1; i >= 0; i--) {
        if (hora_exec_wait(execs[i]) != HORA_OK)
            team_complain(m, "wait: %s", hora_last_error());
        hora_exec_free(execs[i]);
        job_check(&jobs[i], m, "started");
        job_free(&jobs[i], true);
    }
    if (m->comm->first != NULL || m->comm->last != NULL)
        team_complain(m, "the queue is not empty");
}

static void run__started_calls_complete_in_any_order_of_waits(void **state) {
    (void)state;
    for (int pads = 0; pads < 2; pads++)
        for (int size = 1; size <= 4; size++) {
            team_t team = {.size = size, .pads = pads};
            team_run(&team, started_calls);
        }
}

static void blocking_after_started(member_t *m) {
    job_t        job;
    hora_exec_t *exec;
    sim_case_t   what = basic(&hora_algo_direct, HORA_COLL_ALLREDUCE, m->size, 50000);
    sim_case_t   tiny = basic(&hora_algo_direct, HORA_COLL_ALLREDUCE, m->size, 3);
    job_make(&job, &what, m->rank, APART, NULL);
    if (hora_coll_start(m->comm, &job.coll, &exec) != HORA_OK)
        team_complain(m, "start: %s", hora_last_error());
    run_one(m, &tiny, APART);
    if (hora_exec_progress(exec) != HORA_OK)
        team_complain(m, "a blocking call did not finish the one before it");
    job_check(&job, m, "started");
    hora_exec_free(exec);
    job_free(&job, true);
}

static void run__a_blocking_call_finishes_started_ones_first(void **state) {
    (void)state;
    for (int pads = 0; pads < 2; pads++) {
        team_t team = {.size = 3, .pads = pads};
        team_run(&team, blocking_after_started);
    }
}

/* ---- errors ---- */

typedef struct mismatch {
    hora_coll_t first, others; /* what rank 0 calls, and what the others call */
    const char *says[2];
} mismatch_t;

static void call_differently(member_t *m) {
    const mismatch_t *mis = m->arg;
    size_t            counts[TEAM_MAX], displs[TEAM_MAX];
    char             *mem = calloc(1, 4u << 20);
    hora_coll_t       coll = m->rank == 0 ? mis->first : mis->others;
    hora_status_t     st;
    coll.rank = m->rank;
    coll.size = m->size;
    coll.in = mem;
    coll.out = mem + (2u << 20);
    coll.prescale = coll.postscale = 1.0;
    for (int r = 0; r < m->size; r++) {
        counts[r] = coll.count;
        displs[r] = coll.count * (size_t)r;
    }
    if (coll.kind == HORA_COLL_ALLGATHER) {
        coll.counts = counts;
        coll.displs = displs;
    }
    st = hora_coll_run(m->comm, &coll);
    if (st == HORA_OK) /* it needed nobody who called something else: the next one must fail */
        st = hora_coll_run(m->comm, &coll);
    if (st != HORA_ERR_MISMATCH)
        team_complain(m, "status %s, not a mismatch: %s", hora_status_name(st), hora_last_error());
    for (int i = 0; i < 2; i++)
        if (strstr(hora_last_error(), mis->says[i]) == NULL)
            team_complain(m, "no '%s' in: %s", mis->says[i], hora_last_error());
    if (strstr(hora_last_error(), "host0") == NULL)
        team_complain(m, "host0 is not named: %s", hora_last_error());
    st = hora_coll_run(m->comm, &coll);
    if (st != HORA_ERR_MISMATCH)
        team_complain(m, "the next call: %s", hora_status_name(st));
    free(mem);
}

static void run__a_mismatch_names_both_sides_on_every_rank(void **state) {
    static const mismatch_t cases[] = {
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 5000},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_MAX, .dtype = HORA_FLOAT32, .count = 5000},
         {"allreduce(sum, float32)", "allreduce(max, float32)"}},
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 5000},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_INT32, .count = 5000},
         {"float32", "int32"}},
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 5000},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 5001},
         {"allreduce(sum, float32)", "different counts"}},
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 200000},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 3},
         {"allreduce(sum, float32)", "different counts"}}, /* tiny against large */
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 12},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 13},
         {"allreduce(sum, float32)", "different counts"}}, /* in a line against on a board */
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_MIN, .dtype = HORA_FLOAT32, .count = 8192},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 8193},
         {"allreduce(min, float32)", "allreduce(sum, float32)"}}, /* on a board against large */
        {{.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 200000},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 100000},
         {"allreduce(sum, float32)", "different counts"}},
        {{.kind = HORA_COLL_BARRIER},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 5000},
         {"barrier()", "allreduce(sum, float32)"}},
        {{.kind = HORA_COLL_ALLGATHER, .dtype = HORA_FLOAT32, .count = 100},
         {.kind = HORA_COLL_ALLREDUCE, .op = HORA_SUM, .dtype = HORA_FLOAT32, .count = 5000},
         {"allgather(float32)", "allreduce(sum, float32)"}},
    };
    (void)state;
    for (size_t i = 0; i < LEN(cases); i++)
        for (int pads = 0; pads < 2; pads++)
            for (int size = 2; size <= 3; size++) {
                team_t team = {.size = size, .pads = pads, .arg = &cases[i]};
                team_run(&team, call_differently);
            }
}

/* Only with pads can ranks find out that they mean different roots; who had to wait for nobody
 * finds out later. */
static const mismatch_t roots = {
    {.kind = HORA_COLL_BROADCAST, .dtype = HORA_FLOAT32, .count = 20000, .root = 0},
    {.kind = HORA_COLL_BROADCAST, .dtype = HORA_FLOAT32, .count = 20000, .root = 1},
    {"broadcast(float32)", "roots"}};

static void run__different_roots_are_a_mismatch(void **state) {
    team_t team = {.size = 3, .pads = true, .arg = &roots};
    (void)state;
    team_run(&team, call_differently);
}

static void call_tiny_differently(member_t *m) {
    float         x[1000] = {1};
    size_t        count = *(const size_t *)m->arg;
    hora_coll_t   coll = {.kind = HORA_COLL_BROADCAST, .dtype = HORA_FLOAT32, .root = m->rank > 0,
                          .rank = m->rank, .size = m->size, .count = count, .in = x, .out = x,
                          .prescale = 1.0, .postscale = 1.0};
    hora_status_t st = hora_coll_run(m->comm, &coll);
    coll.kind = HORA_COLL_ALLREDUCE;
    coll.op = HORA_SUM;
    if (st == HORA_OK)
        st = hora_coll_run(m->comm, &coll);
    if (st != HORA_ERR_MISMATCH || strstr(hora_last_error(), "host0") == NULL)
        team_complain(m, "%s: %s", hora_status_name(st), hora_last_error());
}

static void run__different_roots_of_a_tiny_call_are_found_in_the_next(void **state) {
    static const size_t counts[] = {1, 1000};
    (void)state;
    for (size_t i = 0; i < LEN(counts); i++) {
        team_t team = {.size = 3, .pads = true, .arg = &counts[i]};
        team_run(&team, call_tiny_differently);
    }
}

static void one_stays_away(member_t *m) {
    float         x[1000] = {0};
    hora_coll_t   coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                          .rank = m->rank, .size = m->size, .count = 1000, .in = x, .out = x,
                          .prescale = 1.0, .postscale = 1.0, .name = "gradient"};
    const char   *how = m->arg;
    hora_exec_t  *exec;
    hora_status_t st;
    if (m->rank == 0)
        return;
    if (how[0] == 'b') {
        st = hora_coll_run(m->comm, &coll);
    } else {
        st = hora_coll_start(m->comm, &coll, &exec);
        while (st == HORA_OK && (st = hora_exec_progress(exec)) == HORA_IN_PROGRESS) {
            usleep(1000);
            st = HORA_OK;
        }
        if (st != HORA_OK)
            hora_exec_free(exec);
    }
    if (st != HORA_ERR_TIMEOUT)
        team_complain(m, "status %s", hora_status_name(st));
    if (strstr(hora_last_error(), "allreduce 'gradient'") == NULL ||
        strstr(hora_last_error(), "host") == NULL)
        team_complain(m, "text: %s", hora_last_error());
}

static void run__a_rank_that_stays_away_is_a_timeout(void **state) {
    static const char *const hows[] = {"blocking", "polling"};
    (void)state;
    for (int i = 0; i < 4; i++) {
        team_t team = {.size = 3, .pads = i % 2, .timeout = 0.15, .arg = hows[i / 2]};
        team_run(&team, one_stays_away);
    }
}

/* Rank 1 says of an uneven alltoall that some block of it is endless. */
static void one_claims_too_much(member_t *m) {
    hora_pads_t     *pads = m->comm->pads;
    float            in[4] = {0}, out[4];
    size_t           counts[2] = {1, 3}, other_counts[2] = {1, 2}, displs[2] = {0, 1};
    hora_coll_t      coll = {.kind = HORA_COLL_ALLTOALL, .dtype = HORA_FLOAT32, .rank = m->rank,
                             .size = m->size, .in = in, .out = out, .counts = counts, .displs = displs,
                             .other_counts = other_counts, .other_displs = displs, .prescale = 1.0,
                             .postscale = 1.0};
    hora_pads_note_t note;
    if (m->rank == 1) {
        while (!hora_pads_reached(pads, 0, pads->base + 1))
            usleep(100);
        note = *hora_pads_note(pads, 0, pads->base + 1);
        note.longest = *(const size_t *)m->arg;
        note.balance = -note.balance;
        hora_pads_prepare(pads, pads->base + 1, hora_pads_sig(pads, 0, pads->base + 1), &note);
        hora_pads_signal(pads, pads->base + 1, hora_pads_sig(pads, 0, pads->base + 1));
    } else if (hora_coll_run(m->comm, &coll) != HORA_ERR_TIMEOUT) { /* as nobody takes part */
        team_complain(m, "%s", hora_last_error());
    } else if (m->comm->idle->plan.nsteps > 100) {
        team_complain(m, "a plan of %zu steps", m->comm->idle->plan.nsteps);
    }
}

static void run__a_peer_does_not_decide_how_long_a_plan_is(void **state) {
    static const size_t claims[] = {SIZE_MAX, SIZE_MAX / 8, (size_t)1 << 40};
    (void)state;
    for (size_t i = 0; i < LEN(claims); i++) {
        team_t team = {.size = 2, .pads = true, .timeout = 0.15, .arg = &claims[i]};
        team_run(&team, one_claims_too_much);
    }
}

static void abandoned(member_t *m) {
    float        x[1000] = {0};
    hora_coll_t  coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                         .rank = m->rank, .size = m->size, .count = 1000, .in = x, .out = x,
                         .prescale = 1.0, .postscale = 1.0};
    hora_exec_t *execs[3];
    if (m->rank == 0)
        return;
    for (int i = 0; i < 3; i++)
        if (hora_coll_start(m->comm, &coll, &execs[i]) != HORA_OK)
            team_complain(m, "start: %s", hora_last_error());
    hora_world_raise(m->comm->world, 1, HORA_ERR_ABORTED, -1, "the end");
    if (hora_exec_progress(execs[1]) != HORA_ERR_ABORTED)
        team_complain(m, "an abort was not seen");
    hora_exec_free(execs[2]);
    hora_exec_free(execs[0]);
    hora_exec_free(execs[1]);
    if (m->comm->first != NULL || m->comm->last != NULL)
        team_complain(m, "the queue is not empty");
    if (hora_coll_run(m->comm, &coll) != HORA_ERR_ABORTED)
        team_complain(m, "a call after the end");
}

static void run__abandoned_calls_can_be_freed(void **state) {
    (void)state;
    for (int pads = 0; pads < 2; pads++) {
        team_t team = {.size = 2, .pads = pads};
        team_run(&team, abandoned);
    }
}

/* Rank 0 waits in vain for rank 1, which comes when rank 0 has given up: it is told that, at once. */
static void splits_alone(member_t *m) {
    atomic_bool  *gave_up = (atomic_bool *)(uintptr_t)m->arg;
    hora_ballot_t ballots[2] = {{0}};
    hora_split_t  split = {.ballots = ballots, .size = 2, .channel = 1u << 31 | 5};
    hora_comm_t  *made = NULL;
    hora_status_t st;
    if (m->rank == 1)
        while (!atomic_load(gave_up))
            usleep(1000);
    m->comm->timeout = m->rank == 0 ? 0.1 : 5;
    st = hora_split_make(m->comm, &split, false, &made);
    if (m->rank == 0 && st != HORA_ERR_TIMEOUT)
        team_complain(m, "rank 1 did not come: %s", st == HORA_OK ? "no error" : hora_last_error());
    if (made != NULL)
        st = hora_failure_check(&made->failure);
    if (m->rank == 1 && (st != HORA_ERR_TIMEOUT || strstr(hora_last_error(), "comm_split: rank 0") == NULL))
        team_complain(m, "rank 0 gave up: %s", st == HORA_OK ? "no error" : hora_last_error());
    if (made != NULL)
        hora_comm_close(made);
    if (m->rank == 0)
        atomic_store(gave_up, true);
}

static void run__a_rank_that_cannot_split_tells_the_others(void **state) {
    atomic_bool gave_up = false;
    team_t      team = {.size = 2, .arg = &gave_up};
    (void)state;
    team_run(&team, splits_alone);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(run__every_kind_type_and_place),
        cmocka_unit_test(run__halves_are_rounded_once),
        cmocka_unit_test(run__pushes_into_buffers_in_the_arena),
        cmocka_unit_test(run__calls_of_all_kinds_follow_each_other),
        cmocka_unit_test(run__roots_may_run_ahead),
        cmocka_unit_test(run__small_calls_of_all_lengths_follow_each_other),
        cmocka_unit_test(run__keeps_few_executions_and_uses_them_again),
        cmocka_unit_test(run__started_calls_complete_in_any_order_of_waits),
        cmocka_unit_test(run__a_blocking_call_finishes_started_ones_first),
        cmocka_unit_test(run__a_mismatch_names_both_sides_on_every_rank),
        cmocka_unit_test(run__different_roots_are_a_mismatch),
        cmocka_unit_test(run__different_roots_of_a_tiny_call_are_found_in_the_next),
        cmocka_unit_test(run__a_rank_that_stays_away_is_a_timeout),
        cmocka_unit_test(run__a_peer_does_not_decide_how_long_a_plan_is),
        cmocka_unit_test(run__abandoned_calls_can_be_freed),
        cmocka_unit_test(run__a_rank_that_cannot_split_tells_the_others),
    };
    setenv("HORA_LOG_LEVEL", "off", 1); /* failures are what is tested here */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
