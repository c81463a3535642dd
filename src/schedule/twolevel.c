/*
 * Allreduce over several hosts with several ranks each: shared memory inside, parallel rings between.
 * Planner: pure, any thread.
 *
 * A vector is cut into lanes, one for each rank of the smallest host; rank number k of each host works
 * on lane k, and all lanes go round the hosts at the same time. Two hosts of two ranks, lanes A and B
 * of two blocks each (A0 A1 | B0 B1; aA0: what rank a has there):
 *
 *                   host 0: a (lane A), b (lane B)        host 1: c (lane A), d (lane B)
 *     show          a shows its B to b, b its A to a      c its B to d, d its A to c
 *     sum, send     a: aA1+bA1 -> c    b: aB1+bB1 -> d    c: cA0+dA0 -> a    d: cB0+dB0 -> b
 *     sum, finish   a: (cA0+dA0)+aA0+bA0                  c: (aA1+bA1)+cA1+dA1
 *     ring on       a: A0 -> c  b: B0 -> d                c: A1 -> a  d: B1 -> b
 *     show          a its A to b, b its B to a            c its A to d, d its B to c
 *
 * So a host sends 2(h-1)/h N bytes, what a ring over h hosts sends, whatever its ranks. Ranks that have
 * no lane only take part in shared memory. Each block is summed along one chain, once: beginning at the
 * host after the block's, host by host, on each in rank order. So every rank receives the same bits.
 *
 * Blocks travel in columns of pieces. A column goes through 2h-1 stages: h sums, of which the last one
 * finishes a block, then h-1 blocks that other hosts have finished. Stage s of column j is at turn
 * j + DELAY s, so that what a stage waits for was sent turns ago, and shared memory and network are both
 * busy:
 *
 *     turn          0     1     2         3         4               (h = 2, DELAY 2: sjc is stage s of
 *     stages      s0c0  s0c1  s0c2 s1c0  s0c3 s1c1  s0c4 s1c2 s2c0    column c)
 *
 * Pieces are shown in slots. In each place of this sequence a rank copies the next place's piece of the
 * other lanes in, signals, awaits what was signalled one place ago, sums, sends and shows a finished
 * piece, and copies out what others showed two places ago. A region of a slot that is used again after
 * four places is free: all have signalled one place ago, and so are done with three places ago.
 * Buffers in the arena are read and written where they lie: nothing is copied in or out.
 *
 * Small vectors: each host's first rank sums what its host shows, exchanges with the other first ranks
 * (two hosts: whole vectors at once; more: each sums its part, in host order), and shows the result.
 *
 * Cost: with l lanes, 2(h-1) a + 2(h-1)/h N/l b, beside 7 N of copies and sums in memory; small:
 * a + N b for two hosts, else 2a' + 2(h-1)/h N b (a' as in direct.c).
 *
 * Source: the two levels are those of Horovod's NCCLHierarchicalAllreduce and of MPI libraries; one
 * ring for each local rank is N. Mikami et al., Massively distributed SGD, 2018 (2D-torus allreduce).
 */
#include "schedule/algos.h"
#include "schedule/exec.h"

#include <stdlib.h>

#define LINE_BYTES  64
#define DELAY       2
#define REGIONS     4                   /* of a slot, for pieces in and for pieces out */
#define SMALL_BYTES ((size_t)64 << 10)
#define PIECE_BYTES ((size_t)64 << 10)  /* as long as this if the slots allow */
#define PIECE_LEAST ((size_t)16 << 10)
#define SLOT_MOST   ((size_t)4 << 20)

typedef struct two {
    const hora_coll_t  *coll;
    const hora_hosts_t *hosts;
    hora_plan_t        *plan;
    bool                shared;
    int                 host, number, locals; /* mine; ranks of my host */
    int                 lanes;
    int                 left, right;          /* in my lane; -1: I have none */
    size_t              line, piece, columns; /* elements; elements; per block */
    hora_ref_t         *refs;                 /* [2 * locals + 1] scratch */
    uint32_t           *sent, *recvs;         /* by stage and column; recvs from stage 1 on */
} two_t;

/* A place in the sequence. */
typedef struct place {
    size_t turn;
    int    stage;
    size_t column;
    size_t shown_in, shown_out; /* places before it that show a piece to sum; a finished one */
} place_t;

typedef struct span {
    size_t at, count;
} span_t;

static int me(const two_t *two, int number) {
    return hora_hosts_member(two->hosts, two->host, number);
}

static bool has_lane(const two_t *two) {
    return two->number < two->lanes;
}

/* ---- what lies where ---- */

/* Parts are whole cache lines. */
static span_t part_of(const two_t *two, span_t whole, int parts, int i) {
    size_t lines = (whole.count + two->line - 1) / two->line;
    size_t begin = hora_part_begin(lines, parts, i) * two->line;
    size_t end = hora_part_begin(lines, parts, i) * two->line +
                 hora_part_count(lines, parts, i) * two->line;
    begin = begin < whole.count ? begin : whole.count;
    end = end < whole.count ? end : whole.count;
    return (span_t){whole.at + begin, end - begin};
}

/* The block of stage s: mine is finished at stage h-1, that of the host to my left comes next. */
static int block_at(const two_t *two, int stage) {
    int count = two->hosts->count;
    return (two->host + 2 * count - 1 - stage) % count;
}

static span_t piece_of(const two_t *two, int lane, int stage, size_t column) {
    span_t whole = {0, two->coll->count};
    span_t block = part_of(two, part_of(two, whole, two->lanes, lane), two->hosts->count,
                           block_at(two, stage));
    size_t at = column * two->piece;
    return (span_t){block.at + (at < block.count ? at : block.count),
                    hora_chunk_count(two->piece, block.count, column)};
}

static size_t in_slot(const two_t *two, const place_t *p, int lane) {
    return (p->shown_in % REGIONS * (size_t)two->lanes + (size_t)lane) * two->piece;
}

static size_t out_slot(const two_t *two, const place_t *p) {
    return (REGIONS * (size_t)two->lanes + p->shown_out % REGIONS) * two->piece;
}

static size_t slot_needed(const two_t *two) {
    return REGIONS * ((size_t)two->lanes + 1) * two->piece;
}

/* ---- the sequence ---- */

static int stages(const two_t *two) {
    return 2 * two->hosts->count - 1;
}

static bool sums(const two_t *two, const place_t *p) {
    return p->stage < two->hosts->count;
}

static bool finishes(const two_t *two, const place_t *p) {
    return p->stage >= two->hosts->count - 1;
}

/* The stages of one turn from the first to the last, those of them that have a column: stage s does from
 * turn DELAY s on. They are found without a look at all others, of which there are two for every host. */
static bool settle(const two_t *two, place_t *p) {
    size_t turns = two->columns + (size_t)(stages(two) - 1) * DELAY;
    for (; p->turn < turns; p->turn++, p->stage = 0) {
        int first = p->turn < two->columns ? 0 : (int)((p->turn - two->columns) / DELAY) + 1;
        p->stage = p->stage > first ? p->stage : first;
        if (p->stage < stages(two) && (size_t)p->stage * DELAY <= p->turn) {
            p->column = p->turn - (size_t)p->stage * DELAY;
            return true;
        }
    }
    return false;
}

static bool first_place(const two_t *two, place_t *p) {
    *p = (place_t){0};
    return settle(two, p);
}

static bool next_place(const two_t *two, place_t *p) {
    p->shown_in += sums(two, p);
    p->shown_out += finishes(two, p);
    p->stage++;
    return settle(two, p);
}

static size_t index_of(const two_t *two, int stage, size_t column) {
    return (size_t)stage * two->columns + column;
}

/* ---- shared memory ---- */

/* Shows my part of what the other lanes sum at p. */
static void copy_in(two_t *two, const place_t *p) {
    for (int lane = 0; lane < two->lanes; lane++) {
        span_t piece = piece_of(two, lane, p->stage, p->column);
        if (lane != two->number)
            hora_plan_copy(two->plan, hora_own(HORA_BUF_IN, piece.at),
                           hora_own(HORA_BUF_SLOT, in_slot(two, p, lane)), piece.count);
    }
}

/* Takes what the other lanes have finished at p. */
static void copy_out(two_t *two, const place_t *p) {
    for (int lane = 0; lane < two->lanes; lane++) {
        span_t piece = piece_of(two, lane, p->stage, p->column);
        if (lane != two->number)
            hora_plan_copy(two->plan, hora_of(me(two, lane), HORA_BUF_SLOT, out_slot(two, p)),
                           hora_own(HORA_BUF_OUT, piece.at), piece.count);
    }
}

/* Shows a finished piece, which lies in OUT. */
static void show(two_t *two, const place_t *p, span_t piece) {
    hora_ref_t from = hora_own(HORA_BUF_OUT, piece.at);
    for (int i = 0; two->shared && i < two->locals; i++)
        if (i != two->number)
            hora_plan_copy(two->plan, from, hora_of(me(two, i), HORA_BUF_OUT, piece.at),
                           piece.count);
    if (!two->shared && two->locals > 1)
        hora_plan_copy(two->plan, from, hora_own(HORA_BUF_SLOT, out_slot(two, p)), piece.count);
}

/* ---- network ---- */

/* Pieces to be summed come to TMP; as many as can be ahead. */
static size_t tmp_slots(const two_t *two) {
    return (size_t)(two->hosts->count - 1) * (DELAY + 1);
}

static size_t tmp_at(const two_t *two, int stage, size_t column) {
    size_t slot = (size_t)(stage - 1) * (DELAY + 1) + column % (DELAY + 1);
    return slot * two->piece;
}

/* Posts the receive of a place. Where a finished piece goes, my part of the sum has been sent. */
static void post(two_t *two, const place_t *p) {
    span_t   piece = piece_of(two, two->number, p->stage, p->column);
    size_t   at = index_of(two, p->stage, p->column);
    int      count = two->hosts->count;
    uint32_t recv;
    if (p->stage == 0)
        return;
    if (p->stage < count) {
        recv = hora_plan_recv(two->plan, two->left, HORA_BUF_TMP,
                              tmp_at(two, p->stage, p->column), piece.count);
    } else {
        hora_plan_wait(two->plan, two->sent[index_of(two, p->stage - count, p->column)]);
        recv = hora_plan_recv(two->plan, two->left, HORA_BUF_OUT, piece.at, piece.count);
    }
    two->recvs[at] = recv;
}

/* My host's sum of a piece, and what came from the left, into OUT; finished ones everywhere. */
static void sum(two_t *two, const place_t *p, span_t piece) {
    hora_ref_t  *src = two->refs, *dst = src + two->locals + 1;
    int          nsrc = 0, ndst = 1;
    bool         last = finishes(two, p);
    hora_step_t *step;
    if (p->stage > 0)
        src[nsrc++] = hora_own(HORA_BUF_TMP, tmp_at(two, p->stage, p->column));
    for (int i = 0; i < two->locals; i++)
        src[nsrc++] = i == two->number ? hora_own(HORA_BUF_IN, piece.at)
                      : two->shared    ? hora_of(me(two, i), HORA_BUF_IN, piece.at)
                                       : hora_of(me(two, i), HORA_BUF_SLOT,
                                                 in_slot(two, p, two->number));
    dst[0] = hora_own(HORA_BUF_OUT, piece.at);
    if (last && !two->shared && two->locals > 1)
        dst[ndst++] = hora_own(HORA_BUF_SLOT, out_slot(two, p));
    for (int i = 0; last && two->shared && i < two->locals; i++)
        if (i != two->number)
            dst[ndst++] = hora_of(me(two, i), HORA_BUF_OUT, piece.at);
    step = hora_plan_reduce(two->plan, src, nsrc, dst, ndst, piece.count);
    if (step != NULL)
        step->finish = last;
}

/* What the owner of a lane does at p; `ahead` is the place DELAY turns later, or the end. */
static void work(two_t *two, const place_t *p) {
    span_t piece = piece_of(two, two->number, p->stage, p->column);
    size_t at = index_of(two, p->stage, p->column);
    if (p->stage > 0)
        hora_plan_wait(two->plan, two->recvs[at]);
    if (sums(two, p))
        sum(two, p, piece);
    if (p->stage + 1 < stages(two))
        two->sent[at] = hora_plan_send(two->plan, two->right, HORA_BUF_OUT, piece.at, piece.count);
    if (!sums(two, p))
        show(two, p, piece);
}

/* Posts the receives of all places before the end of turn `turn`. */
static void post_until(two_t *two, place_t *next, bool *more, size_t turn) {
    for (; *more && next->turn <= turn; *more = next_place(two, next))
        post(two, next);
}

static void plan_rings(two_t *two) {
    place_t  here, next, posted, past[2]; /* past[i]: where i places ago was, mod 2 */
    bool     more = first_place(two, &here), posts = first_place(two, &posted);
    bool     slots = !two->shared && two->locals > 1;
    uint32_t n = 0; /* places so far */
    if (slots) {
        copy_in(two, &here);
        hora_plan_signal(two->plan, 1);
    }
    for (; more; n++) {
        next = here;
        more = next_place(two, &next);
        if (slots && more && sums(two, &next))
            copy_in(two, &next);
        if (has_lane(two))
            post_until(two, &posted, &posts, here.turn + DELAY);
        if (slots) {
            hora_plan_signal(two->plan, n + 2);
            hora_plan_await(two->plan, n + 1);
        }
        if (has_lane(two))
            work(two, &here);
        if (slots && n >= 2 && finishes(two, &past[n % 2]))
            copy_out(two, &past[n % 2]);
        past[n % 2] = here;
        here = next;
    }
    if (two->locals == 1)
        return;
    hora_plan_signal(two->plan, slots ? n + 2 : 1);
    hora_plan_await(two->plan, slots ? n + 2 : 1);
    for (uint32_t i = n >= 2 ? n - 2 : 0; slots && i < n; i++)
        if (finishes(two, &past[i % 2]))
            copy_out(two, &past[i % 2]);
}

/* ---- small vectors ---- */

/* The sum of my host, in TMP; what other hosts send comes after it. */
static void sum_host(two_t *two) {
    hora_ref_t dst = hora_own(HORA_BUF_TMP, 0);
    for (int i = 0; i < two->locals; i++)
        two->refs[i] = i == 0 ? hora_own(HORA_BUF_IN, 0) : hora_of(me(two, i), HORA_BUF_SLOT, 0);
    hora_plan_reduce(two->plan, two->refs, two->locals, &dst, 1, two->coll->count);
}

static void exchange_two(two_t *two) {
    size_t     count = two->coll->count;
    int        peer = hora_hosts_member(two->hosts, 1 - two->host, 0);
    hora_ref_t mine = hora_own(HORA_BUF_TMP, 0), theirs = hora_own(HORA_BUF_TMP, count);
    uint32_t   recv = hora_plan_recv(two->plan, peer, HORA_BUF_TMP, count, count);
    hora_plan_send(two->plan, peer, HORA_BUF_TMP, 0, count);
    hora_plan_wait(two->plan, recv);
    hora_plan_combine(two->plan, two->host == 0 ? mine : theirs, two->host == 0 ? theirs : mine,
                      hora_own(HORA_BUF_OUT, 0), count, true);
}

static span_t host_part(const two_t *two, int host) {
    return part_of(two, (span_t){0, two->coll->count}, two->hosts->count, host);
}

/* Each host's first rank sums its part of the vector, in host order, and sends it to all. */
static void exchange_many(two_t *two) {
    int          count = two->hosts->count;
    span_t       own = host_part(two, two->host);
    size_t       theirs = two->coll->count;
    hora_ref_t   dst = hora_own(HORA_BUF_OUT, own.at);
    hora_step_t *step;
    for (int i = 0; i < count; i++) {
        int h = (two->host + i) % count;
        if (h != two->host)
            two->recvs[h] = hora_plan_recv(two->plan, hora_hosts_member(two->hosts, h, 0),
                                           HORA_BUF_TMP, theirs + (size_t)h * own.count, own.count);
    }
    for (int i = 1; i < count; i++) {
        int    h = (two->host + i) % count;
        span_t part = host_part(two, h);
        hora_plan_send(two->plan, hora_hosts_member(two->hosts, h, 0), HORA_BUF_TMP, part.at,
                       part.count);
    }
    for (int h = 0; h < count; h++) {
        if (h != two->host)
            hora_plan_wait(two->plan, two->recvs[h]);
        two->refs[h] = h == two->host ? hora_own(HORA_BUF_TMP, own.at)
                                      : hora_own(HORA_BUF_TMP, theirs + (size_t)h * own.count);
    }
    step = hora_plan_reduce(two->plan, two->refs, count, &dst, 1, own.count);
    if (step != NULL)
        step->finish = true;
    for (int i = 1; i < count; i++) {
        int    h = (two->host + count - i) % count, to = (two->host + i) % count;
        span_t part = host_part(two, h);
        two->recvs[h] = hora_plan_recv(two->plan, hora_hosts_member(two->hosts, h, 0),
                                       HORA_BUF_OUT, part.at, part.count);
        hora_plan_send(two->plan, hora_hosts_member(two->hosts, to, 0), HORA_BUF_OUT, own.at,
                       own.count);
    }
    for (int h = 0; h < count; h++)
        if (h != two->host)
            hora_plan_wait(two->plan, two->recvs[h]);
}

static void plan_small(two_t *two) {
    const hora_coll_t *coll = two->coll;
    bool               leads = two->number == 0, alone = two->locals == 1;
    hora_ref_t         slot = hora_own(HORA_BUF_SLOT, 0);
    if (!leads)
        hora_plan_copy(two->plan, hora_own(HORA_BUF_IN, 0), slot, coll->count);
    if (!alone)
        hora_plan_signal(two->plan, 1);
    if (leads) {
        if (!alone)
            hora_plan_await(two->plan, 1);
        two->plan->tmp = coll->count * 2 + (size_t)two->hosts->count * two->line;
        sum_host(two);
        if (two->hosts->count == 2)
            exchange_two(two);
        else
            exchange_many(two);
        if (!alone)
            hora_plan_copy(two->plan, hora_own(HORA_BUF_OUT, 0), slot, coll->count);
    }
    if (alone)
        return;
    hora_plan_signal(two->plan, 2);
    hora_plan_await(two->plan, 2);
    if (!leads)
        hora_plan_copy(two->plan, hora_of(me(two, 0), HORA_BUF_SLOT, 0), hora_own(HORA_BUF_OUT, 0),
                       coll->count);
}

/* ---- */

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Several pieces per block let stages overlap; pieces that are too short only cost messages. */
static void choose_pieces(two_t *two, const hora_plan_hint_t *hint) {
    span_t whole = {0, two->coll->count};
    size_t longest = part_of(two, part_of(two, whole, two->lanes, 0), two->hosts->count, 0).count;
    size_t most = hint->slot / (REGIONS * ((size_t)two->lanes + 1));
    size_t shortest = least(PIECE_LEAST / hint->elem_size, longest);
    most = least(least(most, PIECE_BYTES / hint->elem_size), hint->chunk) / two->line * two->line;
    two->piece = (longest / 8 + two->line - 1) / two->line * two->line;
    if (two->piece < shortest)
        two->piece = (shortest + two->line - 1) / two->line * two->line;
    if (two->piece > most)
        two->piece = most > 0 ? most : two->line;
    two->columns = (longest + two->piece - 1) / two->piece;
}

static bool allocate(two_t *two) {
    int    count = two->hosts->count;
    size_t transfers = (size_t)stages(two) * two->columns + (size_t)count;
    two->refs = malloc((2 * (size_t)two->locals + 1 + (size_t)count) * sizeof(*two->refs));
    two->sent = malloc(2 * transfers * sizeof(*two->sent));
    two->recvs = two->sent + transfers;
    if (two->refs == NULL || two->sent == NULL)
        two->plan->status = HORA_ERR_NO_MEMORY;
    return two->plan->status == HORA_OK;
}

static void twolevel_plan(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan) {
    const hora_hosts_t *hosts = coll->hosts;
    two_t  two = {.coll = coll, .hosts = hosts, .plan = plan, .shared = hint->shared_in_out,
                  .host = hosts->host[coll->rank], .number = hosts->number[coll->rank],
                  .lanes = hosts->least, .line = LINE_BYTES / hint->elem_size};
    bool   small = coll->count * hint->elem_size <= SMALL_BYTES && coll->count <= hint->slot;
    two.locals = hora_hosts_size(hosts, two.host);
    if (coll->count == 0)
        return;
    if (!small)
        choose_pieces(&two, hint);
    if (!allocate(&two))
        goto out;
    if (small) {
        plan->slot = two.locals > 1 ? coll->count : 0;
        plan_small(&two);
        goto out;
    }
    if (has_lane(&two)) {
        two.left = hora_hosts_member(hosts, (two.host + hosts->count - 1) % hosts->count,
                                     two.number);
        two.right = hora_hosts_member(hosts, (two.host + 1) % hosts->count, two.number);
        plan->tmp = tmp_slots(&two) * two.piece;
    }
    plan->slot = two.shared || two.locals == 1 ? 0 : slot_needed(&two);
    plan_rings(&two);
out:
    free(two.sent);
    free(two.refs);
}

static bool twolevel_applies(const hora_coll_t *coll) {
    return coll->hosts != NULL;
}

static double twolevel_cost(const hora_coll_t *coll, size_t elem_size, double a, double b,
                            double g) {
    double n = (double)coll->count * (double)elem_size, h = coll->hosts->count;
    double lanes = coll->hosts->least, share = n * (h - 1) / h;
    if (n > (double)SMALL_BYTES)
        return 2 * (h - 1) * a + 2 * share * b / lanes + 7 * n * g;
    if (h == 2)
        return a + n * b + (coll->hosts->most + 4) * n * g;
    return 2 * (a + (h - 2) * a / 4) + 2 * share * b + (coll->hosts->most + 4) * n * g;
}

size_t hora_twolevel_slot_bytes(const hora_hosts_t *hosts) {
    size_t bytes = REGIONS * ((size_t)hosts->least + 1) * PIECE_BYTES;
    return bytes < SLOT_MOST ? bytes : SLOT_MOST;
}

const hora_algo_t hora_algo_twolevel = {
    .size = sizeof(hora_algo_t),
    .name = "twolevel",
    .colls = 1u << HORA_COLL_ALLREDUCE,
    .two_level = true,
    .applies = twolevel_applies,
    .cost = twolevel_cost,
    .plan = twolevel_plan,
};
