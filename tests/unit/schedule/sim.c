/*
 * The simulator (sim.h). One thread. Memory of a rank is one block per buffer, so that places can
 * be compared by address, whatever in place form is used.
 */
#include "sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GARBAGE 0xa5
#define EAGER   2 /* one message in so many is buffered by the sender */

typedef struct message {
    struct message *next;
    uint8_t        *kept; /* its bytes, if buffered */
    uint32_t        xfer; /* of the sender, if not */
    size_t          bytes;
} message_t;

typedef struct xfer {
    bool     started, done, waited, sends;
    int      peer;
    uint8_t *at;
    size_t   bytes;
} xfer_t;

/* Who touched an element of shared memory last: clocks, 0 for never. */
typedef struct shadow {
    uint32_t *writer, *written; /* [elements] */
    uint32_t *read;             /* [elements * size] */
} shadow_t;

typedef struct rank_state {
    hora_coll_t  coll;
    hora_plan_t  plan;
    sim_layout_t layout;
    uint8_t     *buf[4];      /* HORA_BUF_* */
    size_t       length[4];   /* elements */
    uint8_t     *in_copy, *out_copy, *want, *mask;
    size_t       pc;
    int          call;
    bool         met;
    xfer_t      *xfers;
    uint32_t     first_open;  /* xfers before it have been waited for */
    uint32_t     clock[64];   /* vector clock */
    uint64_t     phase, base; /* signalled last; used by calls before */
    int          half;        /* of the slots, in this call */
    int          turns[2];    /* of a slot's halves */
    shadow_t     shadow[4];
    size_t       messages, elements, between;
} rank_state_t;

typedef struct queue {
    message_t *first, **last;
    uint32_t  *recvs; /* posted receives, in order */
    size_t     nrecvs, taken, room;
} queue_t;

typedef struct sim {
    const sim_case_t *what;
    rank_state_t     *ranks;
    queue_t          *queues;    /* [to * size + from] */
    uint32_t        (*clocks)[64]; /* [rank * PHASES + phase]: at each signal */
    uint64_t          seed;
    size_t            elem;
    char              error[512];
} sim_t;

#define PHASES (HORA_PLAN_LEAD + 2) /* as HORA_PADS_DEPTH */

static char last_error[640];

static uint32_t dice(sim_t *sim, uint32_t sides) {
    sim->seed = sim->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(sim->seed >> 33) % sides;
}

static void fault(sim_t *sim, int rank, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void fault(sim_t *sim, int rank, const char *format, ...) {
    va_list args;
    size_t  n;
    if (sim->error[0] != 0)
        return;
    n = (size_t)snprintf(sim->error, sizeof(sim->error), "rank %d call %d step %zu: ", rank,
                         sim->ranks[rank].call, sim->ranks[rank].pc);
    va_start(args, format);
    vsnprintf(sim->error + n, sizeof(sim->error) - n, format, args);
    va_end(args);
}

/* Do two ranks share memory? */
static bool together(const sim_t *sim, int a, int b) {
    const hora_hosts_t *hosts = sim->what->hosts;
    return hosts == NULL || hosts->host[a] == hosts->host[b];
}

/* ---- memory ---- */

/* Are the elements [at, at+count) shared with other ranks? */
static bool is_shared(const sim_t *sim, int buf) {
    return buf == HORA_BUF_SLOT || (sim->what->shared && buf != HORA_BUF_TMP);
}

/* In place, IN and OUT are the same elements. */
static shadow_t *shadow_of(sim_t *sim, int owner, int buf) {
    if (sim->what->in_place && buf == HORA_BUF_OUT)
        buf = HORA_BUF_IN;
    return &sim->ranks[owner].shadow[buf];
}

static void check_race(sim_t *sim, int rank, int owner, int buf, size_t at, size_t count,
                       bool writes) {
    shadow_t *s = shadow_of(sim, owner, buf);
    uint32_t *clock = sim->ranks[rank].clock;
    size_t    size = (size_t)sim->what->size;
    if (sim->what->in_place)
        at += buf == HORA_BUF_IN    ? sim->ranks[owner].layout.in_at_out
              : buf == HORA_BUF_OUT ? sim->ranks[owner].layout.out_at_in
                                    : 0;
    for (size_t i = at; i < at + count; i++) {
        if (s->written[i] > clock[s->writer[i]])
            fault(sim, rank, "race on element %zu of buffer %d of rank %d, written by %u", i, buf,
                  owner, s->writer[i]);
        for (size_t r = 0; writes && r < size; r++)
            if (s->read[i * size + r] > clock[r])
                fault(sim, rank, "overwrites element %zu of buffer %d of rank %d, which %zu reads",
                      i, buf, owner, r);
        if (writes) {
            s->writer[i] = (uint32_t)rank;
            s->written[i] = clock[rank];
        } else {
            s->read[i * size + (size_t)rank] = clock[rank];
        }
    }
}

static bool overlap(const uint8_t *a, size_t an, const uint8_t *b, size_t bn) {
    return a < b + bn && b < a + an;
}

/* No transfer of this rank that was not waited for may be using the place, unless both read. */
static void check_open(sim_t *sim, int rank, const uint8_t *at, size_t bytes, bool writes) {
    rank_state_t *me = &sim->ranks[rank];
    for (uint32_t i = me->first_open; i < me->plan.nxfers && me->xfers[i].started; i++) {
        xfer_t *x = &me->xfers[i];
        if (!x->waited && (writes || !x->sends) && overlap(at, bytes, x->at, x->bytes))
            fault(sim, rank, "touches what transfer %u (%s rank %d) is using", i,
                  x->sends ? "to" : "from", x->peer);
    }
    while (me->first_open < me->plan.nxfers && me->xfers[me->first_open].waited)
        me->first_open++;
}

/* The place of ref, after all checks; NULL after a fault. */
static uint8_t *touch(sim_t *sim, int rank, hora_ref_t ref, size_t count, bool writes) {
    int           owner = ref.rank < 0 ? rank : ref.rank;
    int           half = sim->ranks[rank].half;
    rank_state_t *o;
    size_t        at = ref.off;
    uint8_t      *place;
    if (ref.buf == HORA_BUF_SLOT)
        owner ^= sim->ranks[rank].turns[half];
    o = &sim->ranks[owner];
    if (owner >= sim->what->size || (unsigned)ref.buf > 3 || ref.off > o->length[ref.buf] ||
        count > o->length[ref.buf] - ref.off) {
        fault(sim, rank, "[%zu, +%zu) is outside of buffer %d of rank %d", ref.off, count, ref.buf,
              owner);
        return NULL;
    }
    if (owner != rank && (!is_shared(sim, ref.buf) || !together(sim, rank, owner)))
        fault(sim, rank, "buffer %d of rank %d is private", ref.buf, owner);
    if (ref.buf == HORA_BUF_IN && writes && !sim->what->in_place)
        fault(sim, rank, "writes the input");
    if (ref.buf == HORA_BUF_SLOT)
        at += (size_t)half * o->length[HORA_BUF_SLOT];
    place = o->buf[ref.buf] + at * sim->elem;
    if (is_shared(sim, ref.buf))
        check_race(sim, rank, owner, ref.buf, at, count, writes);
    check_open(sim, rank, place, count * sim->elem, writes);
    return place;
}

/* ---- messages ---- */

static queue_t *queue_of(sim_t *sim, int to, int from) {
    return &sim->queues[to * sim->what->size + from];
}

/* Hands over the next message of a pair, if both sides are there. */
static bool deliver(sim_t *sim, int to, int from) {
    queue_t   *q = queue_of(sim, to, from);
    message_t *m = q->first;
    xfer_t    *r;
    if (m == NULL || q->taken == q->nrecvs)
        return false;
    r = &sim->ranks[to].xfers[q->recvs[q->taken]];
    if (m->bytes != r->bytes) {
        fault(sim, to, "a message of %zu bytes from rank %d where %zu were expected", m->bytes,
              from, r->bytes);
        return false;
    }
    memcpy(r->at, m->kept != NULL ? m->kept : sim->ranks[from].xfers[m->xfer].at, m->bytes);
    if (m->kept == NULL)
        sim->ranks[from].xfers[m->xfer].done = true;
    r->done = true;
    q->taken++;
    q->first = m->next;
    if (q->first == NULL)
        q->last = &q->first;
    free(m->kept);
    free(m);
    return true;
}

static void start_send(sim_t *sim, int rank, uint32_t number) {
    rank_state_t *me = &sim->ranks[rank];
    xfer_t       *x = &me->xfers[number];
    queue_t      *q = queue_of(sim, x->peer, rank);
    message_t    *m = calloc(1, sizeof(*m));
    m->bytes = x->bytes;
    m->xfer = number;
    if (dice(sim, EAGER) == 0) {
        m->kept = malloc(x->bytes);
        memcpy(m->kept, x->at, x->bytes);
        x->done = true;
    }
    *q->last = m;
    q->last = &m->next;
    me->messages++;
    me->elements += x->bytes / sim->elem;
    me->between += together(sim, rank, x->peer) ? 0 : x->bytes / sim->elem;
}

static void start_recv(sim_t *sim, int rank, uint32_t number) {
    xfer_t  *x = &sim->ranks[rank].xfers[number];
    queue_t *q = queue_of(sim, rank, x->peer);
    if (q->nrecvs == q->room) {
        q->room = q->room ? 2 * q->room : 16;
        q->recvs = realloc(q->recvs, q->room * sizeof(*q->recvs));
    }
    q->recvs[q->nrecvs++] = number;
    memset(x->at, GARBAGE, x->bytes);
}

static void start_xfer(sim_t *sim, int rank, const hora_step_t *step) {
    rank_state_t *me = &sim->ranks[rank];
    bool          sends = step->kind == HORA_STEP_SEND;
    uint8_t      *at = touch(sim, rank, step->src, step->count, !sends);
    xfer_t       *x = &me->xfers[step->xfer];
    if (at == NULL)
        return;
    if (step->peer < 0 || step->peer >= sim->what->size || step->peer == rank || step->count == 0 ||
        x->started || (step->xfer > 0 && !me->xfers[step->xfer - 1].started)) {
        fault(sim, rank, "malformed transfer %u with rank %d", step->xfer, step->peer);
        return;
    }
    *x = (xfer_t){.started = true, .sends = sends, .peer = step->peer, .at = at,
                  .bytes = step->count * sim->elem};
    if (sends)
        start_send(sim, rank, step->xfer);
    else
        start_recv(sim, rank, step->xfer);
}

static bool wait_xfer(sim_t *sim, int rank, uint32_t number) {
    xfer_t *x = &sim->ranks[rank].xfers[number];
    if (!x->started) {
        fault(sim, rank, "waits for transfer %u, which has not been started", number);
        return false;
    }
    if (!x->done && dice(sim, 2) == 0)
        deliver(sim, x->sends ? x->peer : rank, x->sends ? rank : x->peer);
    x->waited |= x->done;
    return x->done;
}

/* ---- phases ---- */

static void signal_phase(sim_t *sim, int rank, uint64_t phase) {
    rank_state_t *me = &sim->ranks[rank];
    if (phase != me->phase + 1)
        fault(sim, rank, "signals phase %lu after %lu", (unsigned long)phase,
              (unsigned long)me->phase);
    for (int r = 0; r < sim->what->size; r++)
        if (together(sim, r, rank) && phase > sim->ranks[r].phase + PHASES - 2)
            fault(sim, rank, "is too many phases ahead of rank %d", r);
    me->phase = phase;
    memcpy(sim->clocks[(size_t)rank * PHASES + phase % PHASES], me->clock, sizeof(me->clock));
    me->clock[rank]++;
}

/* Of member `peer`, or of all. */
static bool await_phase(sim_t *sim, int rank, uint64_t phase, int peer) {
    rank_state_t *me = &sim->ranks[rank];
    int           first = peer == HORA_ALL_RANKS ? 0 : peer;
    int           end = peer == HORA_ALL_RANKS ? sim->what->size : peer + 1;
    for (int r = first; r < end; r++)
        if (together(sim, r, rank) && sim->ranks[r].phase < phase)
            return false;
    for (int r = first; r < end; r++)
        for (int i = 0; i < sim->what->size && r != rank && together(sim, r, rank); i++) {
            uint32_t seen = sim->clocks[(size_t)r * PHASES + phase % PHASES][i];
            if (seen > me->clock[i])
                me->clock[i] = seen;
        }
    return true;
}

/* ---- steps ---- */

static void run_reduce(sim_t *sim, int rank, const hora_step_t *step) {
    rank_state_t     *me = &sim->ranks[rank];
    const hora_ref_t *refs = me->plan.refs + step->first;
    hora_reduce_t     how;
    void             *ptrs[130];
    int               n = step->nsrc + step->ndst;
    for (int i = 0; i < n; i++) {
        ptrs[i] = touch(sim, rank, refs[i], step->count, i >= step->nsrc);
        if (ptrs[i] == NULL)
            return;
    }
    hora_coll_how(&me->coll, &how);
    if (!step->begin)
        how.prescale = 1.0;
    if (!step->finish) {
        how.divisor = 1;
        how.postscale = 1.0;
    }
    hora_kernel_reduce(&how, ptrs + step->nsrc, step->ndst, (const void *const *)ptrs, step->nsrc,
                       step->count);
}

/* Touches nrefs vectors, the last of them to write if `writes`, and the dot products. */
static bool touch_adasum(sim_t *sim, int rank, const hora_step_t *step, bool writes, void **ptrs,
                         hora_dots_t **dots_p) {
    const hora_ref_t *refs = sim->ranks[rank].plan.refs + step->first;
    size_t            length = sizeof(hora_dots_t) / sim->elem;
    ptrs[0] = touch(sim, rank, refs[0], step->count, false);
    ptrs[1] = touch(sim, rank, refs[1], step->count, false);
    ptrs[2] = writes ? touch(sim, rank, refs[3], step->count, true) : ptrs[0];
    *dots_p = (hora_dots_t *)(void *)touch(sim, rank, refs[2], length, !writes);
    return ptrs[0] != NULL && ptrs[1] != NULL && ptrs[2] != NULL && *dots_p != NULL;
}

static void run_dots(sim_t *sim, int rank, const hora_step_t *step) {
    hora_dots_t *dots;
    void        *ptrs[3];
    if (!touch_adasum(sim, rank, step, false, ptrs, &dots))
        return;
    if (step->begin)
        memset(dots, 0, sizeof(*dots));
    hora_kernel_dots(sim->what->dtype, ptrs[0], ptrs[1], step->count, dots);
}

static void run_add_dots(sim_t *sim, int rank, const hora_step_t *step) {
    size_t  length = sizeof(hora_dots_t) / sim->elem;
    double *src = (double *)(void *)touch(sim, rank, step->src, length, false);
    double *dst = (double *)(void *)touch(sim, rank, step->dst, length, true);
    for (int i = 0; src != NULL && dst != NULL && i < 3; i++)
        dst[i] += src[i];
}

static void run_blend(sim_t *sim, int rank, const hora_step_t *step) {
    hora_dots_t *dots;
    void        *ptrs[3];
    if (touch_adasum(sim, rank, step, true, ptrs, &dots))
        hora_kernel_adasum(sim->what->dtype, ptrs[2], ptrs[0], ptrs[1], step->count, dots,
                           step->finish ? sim->what->postscale : 1.0);
}

/* In place, copies of a place to itself are no accesses: executors skip them. */
static bool copies_nothing(const sim_t *sim, int rank, const hora_step_t *step) {
    const rank_state_t *me = &sim->ranks[rank];
    return step->src.rank < 0 && step->dst.rank < 0 && !step->begin && !step->finish &&
           me->buf[step->src.buf] + step->src.off * sim->elem ==
               me->buf[step->dst.buf] + step->dst.off * sim->elem;
}

static void run_copy(sim_t *sim, int rank, const hora_step_t *step) {
    if (copies_nothing(sim, rank, step))
        return;
    uint8_t *src = touch(sim, rank, step->src, step->count, step->take);
    uint8_t *dst = touch(sim, rank, step->dst, step->count, true);
    if (step->take && step->src.buf != HORA_BUF_SLOT)
        fault(sim, rank, "takes lines over that are in no slot");
    if (src == NULL || dst == NULL || src == dst)
        return;
    if (overlap(src, step->count * sim->elem, dst, step->count * sim->elem))
        fault(sim, rank, "copies between places that overlap");
    else
        memcpy(dst, src, step->count * sim->elem);
}

/* False: it has to wait. */
static bool run_step(sim_t *sim, int rank, const hora_step_t *step) {
    rank_state_t *me = &sim->ranks[rank];
    switch (step->kind) {
    case HORA_STEP_SEND:
    case HORA_STEP_RECV:
        start_xfer(sim, rank, step);
        return true;
    case HORA_STEP_WAIT:
        return wait_xfer(sim, rank, step->xfer);
    case HORA_STEP_COPY:
        run_copy(sim, rank, step);
        return true;
    case HORA_STEP_REDUCE:
        run_reduce(sim, rank, step);
        return true;
    case HORA_STEP_DOTS:
        run_dots(sim, rank, step);
        return true;
    case HORA_STEP_ADD_DOTS:
        run_add_dots(sim, rank, step);
        return true;
    case HORA_STEP_BLEND:
        run_blend(sim, rank, step);
        return true;
    case HORA_STEP_SIGNAL:
        signal_phase(sim, rank, me->base + sim->what->shared + step->xfer);
        return true;
    default:
        return await_phase(sim, rank,
                           me->base + (step->xfer > 0 ? sim->what->shared + step->xfer : 0),
                           step->peer);
    }
}

/* ---- calls ---- */

static void begin_call(sim_t *sim, int rank) {
    rank_state_t *me = &sim->ranks[rank];
    size_t        out = me->layout.out * sim->elem;
    if (me->call > 0 && sim->what->shared) {
        check_race(sim, rank, rank, HORA_BUF_IN, 0, me->length[HORA_BUF_IN], true);
        check_race(sim, rank, rank, HORA_BUF_OUT, 0, me->length[HORA_BUF_OUT], true);
    }
    memset(me->buf[HORA_BUF_OUT], GARBAGE, out);
    sim_fill(sim->what, &me->layout, rank, me->call, me->buf[HORA_BUF_IN]);
    memset(me->buf[HORA_BUF_TMP], GARBAGE, me->plan.tmp * sim->elem);
    memcpy(me->in_copy, me->buf[HORA_BUF_IN], me->layout.in * sim->elem);
    memcpy(me->out_copy, me->buf[HORA_BUF_OUT], out);
    memset(me->xfers, 0, (me->plan.nxfers + 1) * sizeof(xfer_t));
    me->pc = 0;
    me->first_open = 0;
    me->met = !sim->what->shared;
}

/* The input must be as it was, but for what the result covers in place. */
static void check_input(sim_t *sim, int rank) {
    rank_state_t *me = &sim->ranks[rank];
    for (size_t i = 0; i < me->layout.in; i++) {
        const uint8_t *at = me->buf[HORA_BUF_IN] + i * sim->elem;
        bool covered = overlap(at, sim->elem, me->buf[HORA_BUF_OUT], me->layout.out * sim->elem);
        if (!covered && memcmp(at, me->in_copy + i * sim->elem, sim->elem) != 0)
            fault(sim, rank, "element %zu of the input has changed", i);
    }
}

static void check_output(sim_t *sim, int rank) {
    rank_state_t *me = &sim->ranks[rank];
    sim_expect(sim->what, &me->layout, rank, me->call, me->want, me->mask);
    for (size_t i = 0; i < me->layout.out; i++) {
        const uint8_t *got = me->buf[HORA_BUF_OUT] + i * sim->elem;
        if (me->mask[i] && !sim_close(sim->what, got, me->want + i * sim->elem))
            fault(sim, rank, "element %zu of the result is wrong", i);
        if (!me->mask[i] && memcmp(got, me->out_copy + i * sim->elem, sim->elem) != 0)
            fault(sim, rank, "element %zu, which is no result, has changed", i);
    }
    /* Kept for the comparison with rank 0 at the end: bits must be equal. */
    if (sim->what->kind == HORA_COLL_ALLREDUCE)
        memcpy(me->want, me->buf[HORA_BUF_OUT], me->layout.out * sim->elem);
}

static bool end_call(sim_t *sim, int rank) {
    rank_state_t *me = &sim->ranks[rank];
    for (uint32_t i = 0; i < me->plan.nxfers; i++)
        if (!me->xfers[i].waited && !wait_xfer(sim, rank, i))
            return false;
    for (int r = 0; r < sim->what->size; r++)
        queue_of(sim, rank, r)->nrecvs = queue_of(sim, rank, r)->taken = 0;
    if (sim->what->shared)
        check_race(sim, rank, rank, HORA_BUF_OUT, 0, me->length[HORA_BUF_OUT], false);
    check_input(sim, rank);
    check_output(sim, rank);
    me->base += sim->what->shared + me->plan.phases;
    if (me->plan.turns && sim->what->size != 2)
        fault(sim, rank, "only two ranks can change slots");
    me->turns[me->half] ^= me->plan.turns;
    me->half ^= !me->plan.stays;
    me->call++;
    return true;
}

/* Moves a rank on as far as luck and the others let it. Returns whether it moved. */
static bool move(sim_t *sim, int rank) {
    rank_state_t *me = &sim->ranks[rank];
    int           calls = sim->what->calls ? sim->what->calls : 1;
    bool          moved = false;
    if (me->call == calls)
        return false;
    if (!me->met) {
        if (me->phase == me->base) {
            signal_phase(sim, rank, me->base + 1);
            moved = true;
        }
        if (!await_phase(sim, rank, me->base + 1, HORA_ALL_RANKS))
            return moved;
        me->met = true;
    }
    do {
        if (me->pc == me->plan.nsteps) {
            if (!end_call(sim, rank))
                return moved;
            if (me->call < calls)
                begin_call(sim, rank);
            return true;
        }
        if (!run_step(sim, rank, &me->plan.steps[me->pc]))
            return moved;
        me->pc++;
        moved = true;
    } while (dice(sim, 4) != 0 && sim->error[0] == 0);
    return true;
}

static bool move_somebody(sim_t *sim) {
    int  size = sim->what->size, start = (int)dice(sim, (uint32_t)size);
    bool moved = false;
    for (int i = 0; i < size; i++) {
        int rank = (start + i) % size;
        moved |= move(sim, rank);
        for (int from = 0; from < size; from++)
            if (dice(sim, 3) == 0)
                moved |= deliver(sim, rank, from);
    }
    return moved;
}

static void run_all(sim_t *sim) {
    int calls = sim->what->calls ? sim->what->calls : 1, idle = 0;
    for (;;) {
        int done = 0;
        for (int r = 0; r < sim->what->size; r++)
            done += sim->ranks[r].call == calls;
        if (done == sim->what->size || sim->error[0] != 0)
            return;
        idle = move_somebody(sim) ? 0 : idle + 1;
        if (idle > 200) { /* luck alone withholds a message that often once in 10^30 */
            for (int r = 0; r < sim->what->size; r++)
                if (sim->ranks[r].call < calls)
                    fault(sim, r, "deadlock");
            return;
        }
    }
}

static void check_end(sim_t *sim) {
    for (int i = 0; i < sim->what->size * sim->what->size; i++)
        if (sim->queues[i].first != NULL)
            fault(sim, i / sim->what->size, "a message from rank %d was never received",
                  i % sim->what->size);
    for (int r = 1; sim->what->kind == HORA_COLL_ALLREDUCE && r < sim->what->size; r++)
        if (memcmp(sim->ranks[r].want, sim->ranks[0].want, sim->what->count * sim->elem) != 0)
            fault(sim, r, "has other bits than rank 0");
}

/* ---- setting up ---- */

static void *block(size_t elements, size_t elem) {
    uint8_t *mem = malloc(elements * elem + 64);
    memset(mem, GARBAGE, elements * elem + 64);
    return mem;
}

static void make_shadow(sim_t *sim, shadow_t *s, size_t elements) {
    s->writer = calloc(elements + 1, sizeof(*s->writer));
    s->written = calloc(elements + 1, sizeof(*s->written));
    s->read = calloc((elements + 1) * (size_t)sim->what->size, sizeof(*s->read));
}

static void make_buffers(sim_t *sim, rank_state_t *me) {
    const sim_layout_t *l = &me->layout;
    size_t              most = l->in > l->out ? l->in : l->out;
    me->length[HORA_BUF_IN] = l->in;
    me->length[HORA_BUF_OUT] = l->out;
    me->length[HORA_BUF_TMP] = me->plan.tmp;
    me->length[HORA_BUF_SLOT] = sim->what->slot;
    me->buf[HORA_BUF_IN] = block(most, sim->elem);
    if (!sim->what->in_place)
        me->buf[HORA_BUF_OUT] = block(l->out, sim->elem);
    else
        me->buf[HORA_BUF_OUT] = me->buf[HORA_BUF_IN] + l->out_at_in * sim->elem;
    me->buf[HORA_BUF_TMP] = block(me->plan.tmp, sim->elem);
    me->buf[HORA_BUF_SLOT] = block(2 * sim->what->slot, sim->elem);
    me->in_copy = block(most, sim->elem);
    me->out_copy = block(most, sim->elem);
    me->want = block(most, sim->elem);
    me->mask = block(most, 1);
    me->xfers = calloc(me->plan.nxfers + 1, sizeof(*me->xfers));
    for (int b = 0; b < 4; b++)
        if (is_shared(sim, b))
            make_shadow(sim, &me->shadow[b], b == HORA_BUF_SLOT ? 2 * sim->what->slot : most);
}

static void make_rank(sim_t *sim, int rank) {
    const sim_case_t *what = sim->what;
    rank_state_t     *me = &sim->ranks[rank];
    hora_plan_hint_t  hint = {.elem_size = sim->elem, .chunk = what->chunk, .slot = what->slot,
                              .longest = what->count, .shared_in_out = what->shared};
    sim_layout_make(what, rank, &me->layout);
    me->coll = (hora_coll_t){.kind = what->kind, .dtype = what->dtype, .op = what->op,
                             .rank = rank, .size = what->size, .root = what->root,
                             .count = what->uneven && me->layout.counts ? 0 : what->count,
                             .hosts = what->hosts,
                             .counts = me->layout.counts,
                             .displs = me->layout.displs,
                             .other_counts = me->layout.other_counts,
                             .other_displs = me->layout.other_displs,
                             .prescale = what->prescale, .postscale = what->postscale};
    hora_plan_init(&me->plan);
    what->algo->plan(&me->coll, &hint, &me->plan);
    if (me->plan.status != HORA_OK)
        fault(sim, rank, "plan failed");
    if (me->plan.slot > what->slot)
        fault(sim, rank, "the plan needs a slot of %zu elements", me->plan.slot);
    make_buffers(sim, me);
    if (what->in_place && me->layout.in_at_out > 0) { /* IN lies within OUT */
        me->buf[HORA_BUF_OUT] = me->buf[HORA_BUF_IN];
        me->buf[HORA_BUF_IN] += me->layout.in_at_out * sim->elem;
    }
    for (int r = 0; r < what->size; r++)
        me->clock[r] = r == rank;
}

static void free_rank(sim_t *sim, rank_state_t *me) {
    if (sim->what->in_place)
        me->buf[HORA_BUF_IN] -= me->layout.in_at_out * sim->elem;
    else
        free(me->buf[HORA_BUF_OUT]);
    free(me->buf[HORA_BUF_IN]);
    free(me->buf[HORA_BUF_TMP]);
    free(me->buf[HORA_BUF_SLOT]);
    free(me->in_copy);
    free(me->out_copy);
    free(me->want);
    free(me->mask);
    free(me->xfers);
    for (int b = 0; b < 4; b++) {
        free(me->shadow[b].writer);
        free(me->shadow[b].written);
        free(me->shadow[b].read);
    }
    sim_layout_free(&me->layout);
    hora_plan_destroy(&me->plan);
}

static void gather_stats(const sim_t *sim, sim_stats_t *stats) {
    memset(stats, 0, sizeof(*stats));
    for (int r = 0; r < sim->what->size; r++) {
        const rank_state_t *me = &sim->ranks[r];
        stats->messages += me->messages;
        stats->elements += me->elements;
        if (me->messages > stats->most_messages)
            stats->most_messages = me->messages;
        if (me->elements > stats->most_elements)
            stats->most_elements = me->elements;
    }
    for (int h = 0; sim->what->hosts != NULL && h < sim->what->hosts->count; h++) {
        size_t between = 0;
        for (int i = 0; i < hora_hosts_size(sim->what->hosts, h); i++)
            between += sim->ranks[hora_hosts_member(sim->what->hosts, h, i)].between;
        if (between > stats->most_between)
            stats->most_between = between;
    }
}

static void free_all(sim_t *sim) {
    int size = sim->what->size;
    for (int r = 0; r < size; r++)
        free_rank(sim, &sim->ranks[r]);
    for (int i = 0; i < size * size; i++) {
        while (sim->queues[i].first != NULL) {
            message_t *m = sim->queues[i].first;
            sim->queues[i].first = m->next;
            free(m->kept);
            free(m);
        }
        free(sim->queues[i].recvs);
    }
    free(sim->ranks);
    free(sim->queues);
    free(sim->clocks);
}

const char *sim_run(const sim_case_t *what, sim_stats_t *stats_p) {
    size_t size = (size_t)what->size;
    sim_t  sim = {.what = what, .seed = what->seed * 2654435761u + 12345,
                  .elem = hora_dtype_size(what->dtype)};
    sim.ranks = calloc(size, sizeof(*sim.ranks));
    sim.queues = calloc(size * size, sizeof(*sim.queues));
    sim.clocks = calloc(size * PHASES, sizeof(*sim.clocks));
    for (size_t i = 0; i < size * size; i++)
        sim.queues[i].last = &sim.queues[i].first;
    for (int r = 0; r < what->size; r++)
        make_rank(&sim, r);
    for (int r = 0; r < what->size && sim.error[0] == 0; r++)
        begin_call(&sim, r);
    run_all(&sim);
    if (sim.error[0] == 0)
        check_end(&sim);
    if (stats_p != NULL)
        gather_stats(&sim, stats_p);
    last_error[0] = 0;
    if (sim.error[0] != 0)
        snprintf(last_error, sizeof(last_error),
                 "%s %s size %d on %d hosts root %d count %zu chunk %zu %s%s%s seed %u: %s",
                 what->algo->name, hora_coll_name(what->kind), what->size,
                 what->hosts != NULL ? what->hosts->count : 1, what->root, what->count, what->chunk,
                 what->in_place ? "in place " : "", what->uneven ? "uneven " : "",
                 what->shared ? "shared" : "", what->seed, sim.error);
    free_all(&sim);
    return last_error;
}
