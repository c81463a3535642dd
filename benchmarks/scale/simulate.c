/*
 * The event loop and the three ways (simulate.h). One thread.
 *
 * Events are ranks that go on and messages that begin to arrive, in the order of time. A rank runs
 * until it must wait, or until something else would happen before it sends: so outputs and inputs
 * are given to messages in the order of time.
 */
#include "simulate.h"

#include "formulas.h"
#include "program.h"

#include <stdio.h>
#include <stdlib.h>

#define LINE_BYTES 64

/* ---- Events --------------------------------------------------------------------------------- */

typedef struct event {
    double  t;
    int64_t what; /* a rank; or -1 - a message */
} event_t;

typedef struct heap {
    event_t *events;
    size_t   n;
} heap_t;

static void push(heap_t *heap, double t, int64_t what) {
    size_t i = heap->n++;
    for (; i > 0 && t < heap->events[(i - 1) / 2].t; i = (i - 1) / 2)
        heap->events[i] = heap->events[(i - 1) / 2];
    heap->events[i] = (event_t){t, what};
}

static event_t pop(heap_t *heap) {
    event_t first = heap->events[0], last = heap->events[--heap->n];
    size_t  i = 0, child;
    while ((child = 2 * i + 1) < heap->n) {
        child += child + 1 < heap->n && heap->events[child + 1].t < heap->events[child].t;
        if (last.t <= heap->events[child].t)
            break;
        heap->events[i] = heap->events[child];
        i = child;
    }
    heap->events[i] = last;
    return first;
}

/* ---- Ranks and wires ------------------------------------------------------------------------ */

typedef struct port {
    double out, in; /* free from then on */
} port_t;

typedef struct runner {
    double   clock;
    size_t   pc;
    int      depth; /* of the longest chain of messages that has come here */
    uint32_t phase, awaits;             /* signalled last; asleep until all have signalled this one */
    double   signalled[HORA_PLAN_LEAD + 2]; /* when, of the last phases */
} runner_t;

typedef struct run {
    const scale_program_t *program;
    const scale_net_t     *net;
    heap_t                 heap;
    runner_t              *ranks;
    port_t                *inside, *between; /* of ranks; of hosts */
} run_t;

static port_t *port_of(const run_t *run, const scale_message_t *m, int rank) {
    return m->inside ? &run->inside[rank] : &run->between[rank / run->net->host];
}

static double later(double a, double b) {
    return a > b ? a : b;
}

static void send_message(run_t *run, int rank, uint32_t number) {
    runner_t        *r = &run->ranks[rank];
    scale_message_t *m = &run->program->messages[number];
    port_t          *port = port_of(run, m, rank);
    double           a = m->inside ? run->net->inside_a : run->net->a, start;
    double           b = m->inside ? run->net->inside_b : run->net->b;
    r->clock += a / 4;
    start = later(r->clock, port->out);
    m->left = port->out = start + (double)m->bytes * b;
    m->depth = r->depth + 1;
    push(&run->heap, start + a * 3 / 4, -1 - (int64_t)number);
}

static void arrive(run_t *run, uint32_t number, double t) {
    scale_message_t *m = &run->program->messages[number];
    port_t          *port = port_of(run, m, m->to);
    double           b = m->inside ? run->net->inside_b : run->net->b;
    m->came = port->in = later(t, port->in) + (double)m->bytes * b;
    if (m->awaited)
        push(&run->heap, m->came, m->to);
}

/* The ranks of its host: first, and one past the last. */
static int host_begin(const run_t *run, int rank) {
    return rank / run->net->host * run->net->host;
}

static int host_end(const run_t *run, int rank) {
    int end = host_begin(run, rank) + run->net->host;
    return end < run->program->ranks ? end : run->program->ranks;
}

/* Have all ranks of the host signalled the phase? And when had they? */
static bool all_signalled(const run_t *run, int rank, uint32_t phase, double *when_p) {
    *when_p = 0;
    for (int i = host_begin(run, rank); i < host_end(run, rank); i++) {
        const runner_t *r = &run->ranks[i];
        if (r->phase < phase)
            return false;
        *when_p = later(*when_p, r->signalled[phase % (HORA_PLAN_LEAD + 2)]);
    }
    return true;
}

static void signal_phase(run_t *run, int rank, uint32_t phase) {
    runner_t *r = &run->ranks[rank];
    double    when;
    r->phase = phase;
    r->signalled[phase % (HORA_PLAN_LEAD + 2)] = r->clock;
    for (int i = host_begin(run, rank); i < host_end(run, rank); i++)
        if (run->ranks[i].awaits == phase && all_signalled(run, rank, phase, &when))
            push(&run->heap, when + run->net->inside_a, i);
}

/* False: it waits. */
static bool await_phase(run_t *run, int rank, uint32_t phase) {
    runner_t *r = &run->ranks[rank];
    double    when;
    if (!all_signalled(run, rank, phase, &when)) {
        r->awaits = phase;
        return false;
    }
    r->awaits = 0;
    r->clock = later(r->clock, when + run->net->inside_a);
    return true;
}

/* False: it waits. */
static bool run_op(run_t *run, int rank, const scale_op_t *op) {
    runner_t        *r = &run->ranks[rank];
    scale_message_t *m = op->kind >= SCALE_WORK ? NULL : &run->program->messages[op->message];
    switch (op->kind) {
    case SCALE_SIGNAL: signal_phase(run, rank, op->message); return true;
    case SCALE_AWAIT: return await_phase(run, rank, op->message);
    case SCALE_WORK: r->clock += (double)op->bytes * run->net->g; return true;
    case SCALE_LEFT: r->clock = later(r->clock, m->left); return true;
    case SCALE_CAME:
        if (m->came < 0) {
            m->awaited = true;
            return false;
        }
        r->clock = later(r->clock, m->came);
        r->depth = m->depth > r->depth ? m->depth : r->depth;
        return true;
    default:
        if (run->heap.n > 0 && run->heap.events[0].t < r->clock) {
            push(&run->heap, r->clock, rank);
            return false;
        }
        send_message(run, rank, op->message);
        return true;
    }
}

static void run_rank(run_t *run, int rank, double t) {
    runner_t *r = &run->ranks[rank];
    r->clock = later(r->clock, t);
    while (r->pc < run->program->begin[rank + 1] && run_op(run, rank, &run->program->ops[r->pc]))
        r->pc++;
}

static double finish(const run_t *run, int *rounds_p) {
    double end = 0;
    *rounds_p = 0;
    for (int i = 0; i < run->program->ranks; i++) {
        const runner_t *r = &run->ranks[i];
        if (r->pc < run->program->begin[i + 1])
            return -1;
        end = later(end, r->clock);
        *rounds_p = r->depth > *rounds_p ? r->depth : *rounds_p;
    }
    return end;
}

double scale_program_run(scale_program_t *program, const scale_net_t *net, int *rounds_p) {
    size_t n = (size_t)program->ranks;
    run_t  run = {.program = program, .net = net};
    double end = -1;
    run.heap.events = malloc((n + program->nmessages + 1) * sizeof(*run.heap.events));
    run.ranks = calloc(n, sizeof(*run.ranks));
    run.inside = calloc(n, sizeof(*run.inside));
    run.between = calloc(n, sizeof(*run.between));
    if (run.heap.events == NULL || run.ranks == NULL || run.inside == NULL || run.between == NULL)
        goto out;
    for (int i = 0; i < program->ranks; i++) {
        run.ranks[i].pc = program->begin[i];
        push(&run.heap, 0, i);
    }
    while (run.heap.n > 0) {
        event_t event = pop(&run.heap);
        if (event.what >= 0)
            run_rank(&run, (int)event.what, event.t);
        else
            arrive(&run, (uint32_t)(-1 - event.what), event.t);
    }
    end = finish(&run, rounds_p);
out:
    free(run.heap.events);
    free(run.ranks);
    free(run.inside);
    free(run.between);
    return end;
}

/* ---- What plans do, against the formulas ---------------------------------------------------- */

static scale_load_t count_load(const hora_plan_t *plan, size_t elem) {
    scale_load_t load = {0};
    for (size_t i = 0; i < plan->nsteps; i++) {
        const hora_step_t *step = &plan->steps[i];
        if (step->kind == HORA_STEP_SEND) {
            load.messages++;
            load.sent += step->count * elem;
        } else if (step->kind == HORA_STEP_RECV) {
            load.received += step->count * elem;
        } else if (step->kind == HORA_STEP_REDUCE) {
            load.reduced += ((uint64_t)step->nsrc - 1) * step->count * elem;
        }
    }
    return load;
}

static void check_load(const scale_case_t *what, int rank, const scale_load_t *load,
                       scale_result_t *result) {
    scale_load_t want;
    if (!scale_formula(what, rank, &want) ||
        (load->messages == want.messages && load->sent == want.sent &&
         load->received == want.received && load->reduced == want.reduced))
        return;
    snprintf(result->error, sizeof(result->error),
             "rank %d: %lu messages, %lu bytes out, %lu in, %lu reduced; by the formula %lu, %lu, "
             "%lu, %lu", rank, (unsigned long)load->messages, (unsigned long)load->sent,
             (unsigned long)load->received, (unsigned long)load->reduced,
             (unsigned long)want.messages, (unsigned long)want.sent, (unsigned long)want.received,
             (unsigned long)want.reduced);
}

static void raise_to(uint64_t *most, uint64_t value) {
    if (value > *most)
        *most = value;
}

/* Emits one rank's plan, checks and counts it. */
static bool look_at(const scale_case_t *what, int rank, hora_plan_t *plan,
                    scale_result_t *result) {
    double       seconds = scale_emit(what, rank, plan);
    scale_load_t load = count_load(plan, what->elem);
    size_t       bytes = plan->steps_room * sizeof(*plan->steps) +
                   plan->refs_room * sizeof(*plan->refs);
    if (plan->status != HORA_OK)
        return false;
    check_load(what, rank, &load, result);
    raise_to(&result->most.messages, load.messages);
    raise_to(&result->most.sent, load.sent);
    raise_to(&result->most.received, load.received);
    raise_to(&result->most.reduced, load.reduced);
    result->plans++;
    if (plan->nsteps > result->steps)
        result->steps = plan->nsteps;
    if (bytes > result->plan_bytes)
        result->plan_bytes = bytes;
    if (plan->tmp * what->elem > result->tmp_bytes)
        result->tmp_bytes = plan->tmp * what->elem;
    result->plan_seconds = later(result->plan_seconds, seconds);
    return true;
}

/* Ranks at the ends, in the middle and beside, and of both kinds where ranks fold. */
static bool look_at_some(const scale_case_t *what, scale_result_t *result) {
    const int   p = what->size, some[] = {0, 1, p / 2 - 1, p / 2, p - 2, p - 1};
    bool        fine = true;
    hora_plan_t plan;
    hora_plan_init(&plan);
    for (size_t i = 0; fine && i < sizeof(some) / sizeof(some[0]); i++)
        if (some[i] >= 0 && some[i] < p)
            fine = look_at(what, some[i], &plan, result);
    hora_plan_destroy(&plan);
    return fine;
}

/* ---- The ways ------------------------------------------------------------------------------- */

/* To other hosts, all ranks of host 0 together. */
static uint64_t host_sends(const scale_program_t *program, const scale_case_t *what) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < program->begin[scale_host(what)]; i++) {
        const scale_op_t *op = &program->ops[i];
        if (op->kind == SCALE_SEND && !program->messages[op->message].inside)
            bytes += op->bytes;
    }
    return bytes;
}

static bool run_program(scale_program_t *program, const scale_case_t *what,
                        scale_result_t *result) {
    const char *wrong = scale_program_link(program);
    if (wrong != NULL) {
        snprintf(result->error, sizeof(result->error), "%s", wrong);
        return true;
    }
    result->between = host_sends(program, what);
    result->seconds = scale_program_run(program, &what->net, &result->rounds);
    if (result->seconds < 0)
        snprintf(result->error, sizeof(result->error), "ranks wait for each other for ever");
    return true;
}

static bool run_full(const scale_case_t *what, scale_result_t *result) {
    scale_program_t program;
    hora_plan_t     plan;
    bool            fine = scale_program_init(&program, what->size, false);
    hora_plan_init(&plan);
    for (int r = 0; fine && r < what->size; r++)
        fine = look_at(what, r, &plan, result) && scale_program_add(&program, what, r, &plan);
    hora_plan_destroy(&plan);
    fine = fine && run_program(&program, what, result);
    scale_program_free(&program);
    return fine;
}

static bool run_orbit(const scale_case_t *what, scale_result_t *result) {
    scale_case_t    even = *what;
    scale_program_t program;
    hora_plan_t     plan;
    int             host = scale_host(what);
    bool            fine = look_at_some(what, result) && scale_program_init(&program, host, true);
    if (!fine)
        return false;
    if (what->algo != &hora_algo_doubling) { /* it has no blocks */
        size_t parts = (size_t)what->size * (what->hosts != NULL ? LINE_BYTES / what->elem : 1);
        even.count = (what->count + parts - 1) / parts * parts;
    }
    if (!scale_orbit_check(&even, what->size - 1) || !scale_orbit_check(&even, what->size / 3))
        snprintf(result->error, sizeof(result->error), "plans are not alike");
    hora_plan_init(&plan);
    for (int r = 0; fine && r < host; r++) {
        scale_emit(&even, r, &plan);
        fine = scale_program_add(&program, &even, r, &plan);
    }
    hora_plan_destroy(&plan);
    fine = fine && run_program(&program, &even, result);
    scale_program_free(&program);
    return fine;
}

/* Messages of all ranks together; and the plans of ring and direct look at every block. */
static double total_work(const scale_case_t *what) {
    bool         looks = what->algo == &hora_algo_ring || what->algo == &hora_algo_direct;
    double       total = looks ? (double)what->size * what->size / 8 : 0;
    scale_load_t load = {0};
    for (int r = 0; r < what->size; r++) {
        scale_formula(what, r, &load);
        total += (double)load.messages;
    }
    return total;
}

static scale_way_t choose(const scale_case_t *what) {
    double work = total_work(what);
    bool   orbit = scale_has_orbit(what);
    if (what->way != SCALE_AUTO)
        return what->way;
    if (work <= (double)what->most_messages * (orbit ? 1 : 5))
        return SCALE_FULL;
    return orbit ? SCALE_ORBIT : SCALE_FORMULA;
}

/* The formula is of one kind of network: ranks that share a host's are slowed down by it. */
static double formula_seconds(const scale_case_t *what) {
    hora_coll_t coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                        .size = what->size, .count = what->count, .hosts = what->hosts};
    return what->algo->cost(&coll, what->elem, what->net.a, what->net.b, what->net.g);
}

static bool simulate(const scale_case_t *what, scale_result_t *result) {
    int want;
    *result = (scale_result_t){.way = choose(what), .formula = formula_seconds(what)};
    result->seconds = result->formula;
    if (result->way == SCALE_FORMULA)
        return look_at_some(what, result);
    if (!(result->way == SCALE_ORBIT ? run_orbit(what, result) : run_full(what, result)))
        return false;
    want = scale_formula_rounds(what);
    if (result->error[0] == '\0' && want > 0 && result->rounds != want &&
        what->chunk >= what->count && what->count >= (size_t)what->size)
        snprintf(result->error, sizeof(result->error), "%d rounds; by the formula %d",
                 result->rounds, want);
    return true;
}

static bool make_hosts(const scale_case_t *what, hora_hosts_t **hosts_p) {
    int *ids = malloc((size_t)what->size * sizeof(*ids));
    bool fine = ids != NULL;
    for (int r = 0; fine && r < what->size; r++)
        ids[r] = r / what->net.host;
    fine = fine && hora_hosts_create(what->size, ids, what->size, hosts_p) == HORA_OK;
    free(ids);
    return fine;
}

bool scale_simulate(const scale_case_t *what, scale_result_t *result_p) {
    scale_case_t  placed = *what;
    hora_hosts_t *hosts = NULL;
    bool          fine;
    if (!what->algo->two_level)
        return simulate(what, result_p);
    *result_p = (scale_result_t){.way = SCALE_NONE};
    if (scale_host(what) == 1 || scale_host(what) == what->size)
        return true;
    if (!make_hosts(what, &hosts))
        return false;
    placed.hosts = hosts;
    fine = simulate(&placed, result_p);
    hora_hosts_destroy(hosts);
    return fine;
}
