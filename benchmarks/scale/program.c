/*
 * From plans to a program (program.h). One thread.
 */
#include "program.h"

#include "schedule/exec.h"
#include "util/clock.h"

#include <stdlib.h>
#include <string.h>

double scale_emit(const scale_case_t *what, int rank, hora_plan_t *plan) {
    hora_coll_t      coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                             .rank = rank, .size = what->size, .count = what->count,
                             .prescale = 1.0, .postscale = 1.0, .hosts = what->hosts};
    hora_plan_hint_t hint = {.elem_size = what->elem, .chunk = what->chunk};
    uint64_t         begin = hora_clock_ns();
    if (what->hosts != NULL)
        hint.slot = hora_twolevel_slot_bytes(what->hosts) / what->elem;
    hora_plan_reset(plan);
    what->algo->plan(&coll, &hint, plan);
    return hora_clock_seconds(hora_clock_ns() - begin);
}

bool scale_program_init(scale_program_t *program, int ranks, bool orbit) {
    *program = (scale_program_t){.orbit = orbit, .nslots = 1024};
    program->begin = calloc((size_t)ranks + 1, sizeof(*program->begin));
    program->slots = calloc(program->nslots, sizeof(*program->slots));
    return program->begin != NULL && program->slots != NULL;
}

void scale_program_free(scale_program_t *program) {
    free(program->ops);
    free(program->begin);
    free(program->messages);
    free(program->channels);
    free(program->slots);
}

/* ---- Channels ------------------------------------------------------------------------------- */

/* Where the key is, or a free slot for it. */
static uint32_t *slot_of(const scale_program_t *program, uint64_t key) {
    for (size_t i = (key * 0x9e3779b97f4a7c15u) >> 24;; i++) {
        uint32_t *slot = &program->slots[i & (program->nslots - 1)];
        if (*slot == 0 || program->channels[*slot - 1].key == key)
            return slot;
    }
}

static bool grow_channels(scale_program_t *program) {
    size_t           room = 2 * program->nslots;
    scale_channel_t *channels = realloc(program->channels, room * sizeof(*channels));
    if (channels != NULL)
        program->channels = channels;
    free(program->slots);
    program->nslots = 4 * program->nslots;
    program->slots = calloc(program->nslots, sizeof(*program->slots));
    if (channels == NULL || program->slots == NULL)
        return false;
    program->channels_room = room;
    for (size_t i = 0; i < program->nchannels; i++)
        *slot_of(program, channels[i].key) = (uint32_t)i + 1;
    return true;
}

static scale_channel_t *channel_of(scale_program_t *program, int from, int to, int shift) {
    uint64_t  key = (uint64_t)from << 40 | (uint64_t)to << 20 | (uint64_t)shift;
    uint32_t *slot;
    if (program->nchannels == program->channels_room && !grow_channels(program))
        return NULL;
    slot = slot_of(program, key);
    if (*slot == 0) {
        program->channels[program->nchannels] = (scale_channel_t){.key = key, .to = to};
        *slot = (uint32_t)++program->nchannels;
    }
    return &program->channels[*slot - 1];
}

/* ---- Orbits --------------------------------------------------------------------------------- */

int scale_orbit_of(const scale_case_t *what, int peer, bool back, int *shift_p) {
    int  host = scale_host(what), hosts = what->size / host, shift = peer / host;
    bool flips = what->algo == &hora_algo_halving || what->algo == &hora_algo_doubling;
    *shift_p = back && !flips ? (hosts - shift) % hosts : shift;
    return peer % host;
}

bool scale_has_orbit(const scale_case_t *what) {
    int  host = scale_host(what);
    bool powers = (what->size & (what->size - 1)) == 0 && (host & (host - 1)) == 0;
    if (what->algo == &hora_algo_ring || what->algo == &hora_algo_direct)
        return what->size % host == 0;
    if (what->algo == &hora_algo_twolevel)
        return what->size % host == 0 && scale_is_ringed(what);
    if (what->algo == &hora_algo_halving)
        return powers && what->count >= (size_t)what->size;
    return what->algo == &hora_algo_doubling && powers;
}

static int renumber(const scale_case_t *what, int rank, int peer) {
    int base = rank - rank % scale_host(what);
    if (what->algo == &hora_algo_halving || what->algo == &hora_algo_doubling)
        return peer ^ base;
    return (peer + base) % what->size;
}

bool scale_orbit_check(const scale_case_t *what, int rank) {
    hora_plan_t a, b;
    bool        same;
    hora_plan_init(&a);
    hora_plan_init(&b);
    scale_emit(what, rank % scale_host(what), &a);
    scale_emit(what, rank, &b);
    same = a.nsteps == b.nsteps && a.status == HORA_OK && b.status == HORA_OK;
    for (size_t i = 0; same && i < a.nsteps; i++) {
        const hora_step_t *x = &a.steps[i], *y = &b.steps[i];
        bool transfer = x->kind == HORA_STEP_SEND || x->kind == HORA_STEP_RECV;
        same = x->kind == y->kind && x->xfer == y->xfer && x->count == y->count &&
               x->nsrc == y->nsrc &&
               (!transfer || renumber(what, rank, x->peer) == y->peer);
    }
    hora_plan_destroy(&a);
    hora_plan_destroy(&b);
    return same;
}

/* ---- Loading -------------------------------------------------------------------------------- */

typedef struct loader {
    scale_program_t    *program;
    const scale_case_t *what;
    int                 rank;
    scale_op_t         *waits; /* [nxfers] the op that waits for it; WORK: there has been one */
} loader_t;

static bool put(scale_program_t *program, scale_op_t op) {
    if (program->nops == program->room) {
        size_t      room = program->room ? 2 * program->room : 4096;
        scale_op_t *ops = realloc(program->ops, room * sizeof(*ops));
        if (ops == NULL)
            return false;
        program->ops = ops;
        program->room = room;
    }
    program->ops[program->nops++] = op;
    return true;
}

static bool load_transfer(loader_t *l, const hora_step_t *step) {
    bool             sends = step->kind == HORA_STEP_SEND;
    int              shift = 0, peer = step->peer, host = l->what->net.host;
    scale_channel_t *channel;
    scale_op_t       op = {.kind = SCALE_SEND, .bytes = step->count * l->what->elem};
    if (l->program->orbit)
        peer = scale_orbit_of(l->what, peer, !sends, &shift);
    channel = sends ? channel_of(l->program, l->rank, peer, shift)
                    : channel_of(l->program, peer, l->rank, shift);
    if (channel == NULL)
        return false;
    op.channel = (uint32_t)(channel - l->program->channels);
    op.message = sends ? channel->sends++ : channel->recvs++;
    *(sends ? &channel->sent : &channel->received) += op.bytes * (op.message + 1);
    channel->inside = step->peer / host == l->rank / host;
    l->waits[step->xfer] = op;
    l->waits[step->xfer].kind = sends ? SCALE_LEFT : SCALE_CAME;
    return !sends || put(l->program, op);
}

static bool load_wait(loader_t *l, uint32_t xfer) {
    scale_op_t op = l->waits[xfer];
    l->waits[xfer].kind = SCALE_WORK;
    return op.kind == SCALE_WORK || put(l->program, op);
}

static bool load_step(loader_t *l, const hora_step_t *step) {
    bool   sums = step->kind == HORA_STEP_REDUCE && step->nsrc > 1;
    size_t sources = sums ? (size_t)step->nsrc - 1 : 1;
    switch (step->kind) {
    case HORA_STEP_SEND:
    case HORA_STEP_RECV: return load_transfer(l, step);
    case HORA_STEP_WAIT: return load_wait(l, step->xfer);
    case HORA_STEP_SIGNAL:
        return put(l->program, (scale_op_t){.kind = SCALE_SIGNAL, .message = step->xfer});
    case HORA_STEP_AWAIT:
        return put(l->program, (scale_op_t){.kind = SCALE_AWAIT, .message = step->xfer});
    default:
        return put(l->program, (scale_op_t){.kind = SCALE_WORK,
                                            .bytes = sources * step->count * l->what->elem});
    }
}

bool scale_program_add(scale_program_t *program, const scale_case_t *what, int rank,
                       const hora_plan_t *plan) {
    loader_t l = {.program = program, .what = what, .rank = rank};
    bool     fine = plan->status == HORA_OK;
    l.waits = malloc(((size_t)plan->nxfers + 1) * sizeof(*l.waits));
    fine &= l.waits != NULL;
    for (size_t i = 0; fine && i < plan->nsteps; i++)
        fine = load_step(&l, &plan->steps[i]);
    for (uint32_t i = 0; fine && i < plan->nxfers; i++)
        fine = load_wait(&l, i);
    free(l.waits);
    program->begin[++program->ranks] = program->nops;
    return fine;
}

const char *scale_program_link(scale_program_t *program) {
    for (size_t i = 0; i < program->nchannels; i++) {
        scale_channel_t *channel = &program->channels[i];
        if (channel->sends != channel->recvs || channel->sent != channel->received)
            return "what one rank sends is not what the other one receives";
        channel->first = (uint32_t)program->nmessages;
        program->nmessages += channel->sends;
    }
    program->messages = malloc((program->nmessages + 1) * sizeof(*program->messages));
    if (program->messages == NULL)
        return "no memory";
    for (size_t i = 0; i < program->nops; i++) {
        scale_op_t *op = &program->ops[i];
        if (op->kind >= SCALE_WORK)
            continue;
        const scale_channel_t *channel = &program->channels[op->channel];
        op->message += channel->first;
        program->messages[op->message] = (scale_message_t){
            .bytes = op->bytes, .came = -1, .to = channel->to, .inside = channel->inside};
    }
    return NULL;
}
