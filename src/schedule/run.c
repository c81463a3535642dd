/*
 * Runs the steps of one collective. On the thread that uses the communicator; never blocks.
 *
 * Phases on the pads. A call that meets uses one phase before those of its plan: its note says where
 * the member's buffers lie. (A member with private buffers does not wait there, but goes on to copy in;
 * in an allreduce its first signal then stands for both.) Each phase goes with the call's signature. Every
 * call on a communicator with pads has a first phase or meets, so members that make different calls
 * always find out. After the call, pads->base has grown by what was used.
 */
#include "schedule/run.h"

#include "schedule/costs.h"
#include "transport/p2p.h"
#include "transport/shm/arena.h"
#include "transport/shm/pads.h"
#include "transport/wait.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(HORA_PLAN_LEAD + 2 <= HORA_PADS_DEPTH, "signatures are read while they are kept");

/* ---- preparing ---- */

/* Over tcp, where a message costs more, twice what is set: see "TCP" in docs/performance.md. */
static size_t chunk_elements(hora_comm_t *comm, size_t elem) {
    size_t chunk = comm->world->settings.chunk_size / elem;
    if (comm->pads == NULL && hora_costs_over_tcp(comm))
        chunk *= 2;
    return chunk > 0 ? chunk : 1;
}

static size_t algo_index(const hora_algo_t *algo) {
    size_t i = 0;
    while (hora_algo_list[i] != NULL && hora_algo_list[i] != algo)
        i++;
    return i;
}

static void make_key(const hora_exec_t *exec, hora_plan_key_t *key) {
    const hora_coll_t *coll = &exec->inner;
    const hora_comm_t *comm = exec->comm;
    size_t             elem = hora_dtype_size(coll->dtype);
    size_t             slot_bytes = comm->pads != NULL ? comm->pads->slot_bytes : comm->host_slot;
    *key = (hora_plan_key_t){.algo = exec->algo,
                             .kind = coll->kind,
                             .dtype = coll->dtype,
                             .rank = (size_t)coll->rank,
                             .size = (size_t)coll->size,
                             .root = (size_t)coll->root,
                             .count = coll->count,
                             .elem_size = elem,
                             .chunk = chunk_elements(exec->comm, elem),
                             .slot = slot_bytes / elem,
                             .longest = exec->longest,
                             .shared = exec->shared};
}

static hora_status_t make_plan(hora_exec_t *exec, const hora_plan_key_t *key) {
    hora_plan_hint_t hint = {.elem_size = key->elem_size, .chunk = key->chunk, .slot = key->slot,
                             .longest = key->longest, .shared_in_out = key->shared != 0};
    memset(&exec->key, 0, sizeof(exec->key));
    hora_plan_reset(&exec->plan);
    exec->algo->plan(&exec->inner, &hint, &exec->plan);
    if (exec->plan.status != HORA_OK)
        return hora_fail(exec->plan.status, "%s: no memory for a plan", exec->what);
    if (exec->plan.slot > key->slot)
        return hora_fail(HORA_ERR_INTERNAL, "%s: the plan needs %zu elements in a slot of %zu",
                         exec->what, exec->plan.slot, key->slot);
    exec->key = *key;
    return HORA_OK;
}

static hora_status_t reserve_xfers(hora_exec_t *exec) {
    hora_exec_xfer_t *xfers;
    if (exec->plan.nxfers <= exec->xfers_room)
        return HORA_OK;
    xfers = realloc(exec->xfers, exec->plan.nxfers * sizeof(*xfers));
    if (xfers == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "%s: no memory for %u transfers", exec->what,
                         exec->plan.nxfers);
    exec->xfers = xfers;
    exec->xfers_room = exec->plan.nxfers;
    return HORA_OK;
}

/* Everything that the steps need, from the choice of buffers on. */
static hora_status_t begin_steps(hora_exec_t *exec) {
    hora_plan_key_t key;
    hora_status_t   st = hora_stage_in(exec);
    if (st != HORA_OK)
        return st;
    make_key(exec, &key);
    if (memcmp(&key, &exec->key, sizeof(key)) != 0)
        st = make_plan(exec, &key);
    if (st == HORA_OK)
        st = reserve_xfers(exec);
    if (st == HORA_OK)
        st = hora_stage_reserve(&exec->tmp, &exec->tmp_room, exec->plan.tmp * key.elem_size);
    exec->pc = 0;
    exec->started = exec->drained = 0;
    exec->next_member = 0;
    exec->state = HORA_EXEC_STEPS;
    return st;
}

/* ---- meeting ---- */

static bool uses_pads(const hora_algo_t *algo) {
    return algo->needs_arena || algo->two_level;
}

/* Of `count` elements at ptr. */
static uint64_t offset_in_arena(const hora_exec_t *exec, const void *ptr, size_t count) {
    uint64_t offset;
    size_t   bytes = count * hora_dtype_size(exec->coll.dtype);
    if (uses_pads(exec->algo) && !exec->algo->small_only && bytes > 0 && !hora_stage_copies(exec) &&
        hora_arena_offset(exec->comm->world->arena, ptr, bytes, &offset))
        return offset;
    return HORA_PADS_NONE;
}

static bool is_uneven_alltoall(const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_ALLTOALL && !hora_coll_is_even(coll);
}

/* Do other members know where in my input their blocks lie? */
static bool layout_is_known(const hora_coll_t *coll) {
    size_t at = 0;
    if (is_uneven_alltoall(coll) || hora_stage_overlaps(coll))
        return false;
    if (coll->kind != HORA_COLL_REDUCE_SCATTER && coll->kind != HORA_COLL_ALLTOALL)
        return true;
    for (int r = 0; r < coll->size; at += coll->counts[r++])
        if (coll->displs[r] != at)
            return false;
    return true;
}

static size_t longest_block(const hora_coll_t *coll) {
    size_t most = 0;
    for (int r = 0; r < coll->size; r++) {
        most = coll->counts[r] > most ? coll->counts[r] : most;
        most = coll->other_counts[r] > most ? coll->other_counts[r] : most;
    }
    return most;
}

/* From there on a push into all buffers gains more than the meeting costs, if every rank has a core. */
#define MEET_BYTES 8192u

static size_t meeting_limit(const hora_exec_t *exec) {
    size_t limit = hora_comm_oneshot_limit(exec->comm);
    bool   soon = exec->coll.kind == HORA_COLL_ALLREDUCE && exec->algo->needs_arena &&
                  exec->comm->world->crowd <= 100;
    return soon && limit > MEET_BYTES ? MEET_BYTES : limit;
}

/* Do the members meet before the plan? Where they might use each other's buffers, where the plan has no
 * phase that would show the signature, and where it depends on what no member knows alone. The same on
 * all members, even where the one of a host would only meet itself. */
static bool must_meet(const hora_exec_t *exec) {
    const hora_comm_t *comm = exec->comm;
    size_t             bytes = hora_coll_extent(&exec->coll) * hora_dtype_size(exec->coll.dtype);
    if (comm->pads == NULL && comm->host_slot == 0)
        return false;
    return !uses_pads(exec->algo) || bytes == 0 || is_uneven_alltoall(&exec->coll) ||
           (!exec->algo->small_only && bytes > meeting_limit(exec));
}

static uint32_t block_mark(int from, int to, size_t count) {
    uint64_t mark = ((uint64_t)count + 1) * 0x9e3779b97f4a7c15u;
    mark ^= ((uint64_t)from << 32 | (uint64_t)to) * 0xbf58476d1ce4e5b9u;
    mark = (mark ^ mark >> 29) * 0x94d049bb133111ebu;
    return (uint32_t)(mark >> 32);
}

/* What I send minus what I expect. Where both ends of every block agree, the members' sum is 0. */
static uint32_t balance(const hora_coll_t *coll) {
    uint32_t sum = 0;
    for (int r = 0; r < coll->size; r++)
        sum += block_mark(coll->rank, r, coll->counts[r]) -
               block_mark(r, coll->rank, coll->other_counts[r]);
    return sum;
}

/* Does a plan with slots signal before it waits for anything of this call? Then that says, too, that I came to
 * the meeting. */
static bool signals_first(const hora_exec_t *exec) {
    return exec->algo->needs_arena && exec->coll.kind == HORA_COLL_ALLREDUCE;
}

/* Comes to the meeting. False if there is no need to wait for the others there: my buffers are
 * private, so it is the plan with slots, and its first wait compares the signatures. */
static bool signal_meeting(hora_exec_t *exec) {
    const hora_coll_t *coll = &exec->coll;
    size_t             shown = hora_coll_shown(coll, coll->rank);
    hora_pads_note_t   note = {.in = HORA_PADS_NONE, .out = HORA_PADS_NONE};
    bool               waits;
    if (layout_is_known(coll))
        note.in = offset_in_arena(exec, coll->in, shown);
    if (coll->kind == HORA_COLL_ALLREDUCE)
        note.out = offset_in_arena(exec, coll->out, coll->count);
    if (is_uneven_alltoall(coll)) {
        note.longest = exec->longest = longest_block(coll);
        note.balance = balance(coll);
    }
    waits = !uses_pads(exec->algo) || hora_coll_extent(coll) == 0 ||
            ((shown == 0 || note.in != HORA_PADS_NONE) &&
             (coll->kind != HORA_COLL_ALLREDUCE || note.out != HORA_PADS_NONE));
    hora_pads_prepare(exec->pads, exec->pads->base + 1, exec->sig, &note);
    if (waits || !signals_first(exec))
        hora_pads_signal(exec->pads, exec->pads->base + 1, exec->sig);
    return waits;
}

hora_status_t hora_run_begin(hora_exec_t *exec) {
    hora_comm_t *comm = exec->comm;
    if (comm->size == 1) {
        hora_stage_alone(&exec->coll);
        exec->state = HORA_EXEC_DONE;
        return HORA_OK;
    }
    exec->algo = hora_select(comm, &exec->coll);
    exec->pads = comm->pads != NULL ? comm->pads : comm->host_pads;
    exec->meets = must_meet(exec);
    exec->started = exec->drained = 0;
    exec->sig = hora_coll_sig_with(hora_coll_sig(&exec->coll),
                                   algo_index(exec->algo) << 48 | (uint64_t)exec->meets << 47 |
                                       comm->world->settings.chunk_size);
    if (comm->pads != NULL)
        exec->sig = hora_coll_sig_with(exec->sig, comm->pads->past);
    exec->tag = hora_tag_collective(comm->channel, comm->seq++);
    exec->shared = false;
    exec->longest = 0;
    if (exec->key.algo != exec->algo || exec->name[0] != 0 || exec->what[0] == 0)
        snprintf(exec->what, sizeof(exec->what), "%s%s%s%s (%s)", hora_coll_name(exec->coll.kind),
                 exec->name[0] ? " '" : "", exec->name, exec->name[0] ? "'" : "",
                 exec->algo->name);
    if (!exec->meets || exec->pads == NULL)
        return begin_steps(exec);
    exec->next_member = 0;
    exec->state = HORA_EXEC_MEET;
    return signal_meeting(exec) ? HORA_OK : begin_steps(exec);
}

/* ---- phases ---- */

static hora_status_t blocked_on_phase(hora_exec_t *exec, uint64_t phase, int rank) {
    exec->blocked_xfer = NULL;
    exec->blocked_phase = phase;
    exec->blocked_rank = rank;
    return HORA_IN_PROGRESS;
}

/* Waits until member r has signalled `phase`, and compares signatures: those of this call, or, with
 * its last phase, of the call before, in which I may have waited for nobody. */
static hora_status_t await_rank(hora_exec_t *exec, uint64_t phase, int r) {
    const hora_pads_t *pads = exec->pads;
    uint32_t           sig = phase > pads->base ? exec->sig : pads->last_sig, theirs;
    if (!hora_pads_reached(pads, r, phase))
        return blocked_on_phase(exec, phase, r);
    theirs = hora_pads_sig(pads, r, phase);
    if (theirs != sig)
        return hora_coll_mismatch(exec->comm, &exec->coll, sig, r, theirs);
    return HORA_OK;
}

/* One member is missing, perhaps others too: of them, who shares my core comes only if I wait for it. */
static void prefer_neighbour(hora_exec_t *exec, uint64_t phase) {
    const hora_pads_t *pads = exec->pads;
    for (int i = exec->next_member; i < pads->size; i++) {
        int r = pads->members[i];
        if (hora_apart_takes_turns(exec->comm, r) && !hora_pads_reached(pads, r, phase)) {
            exec->blocked_rank = r;
            return;
        }
    }
}

/* The same for all members on my host. */
static hora_status_t await_phase(hora_exec_t *exec, uint64_t phase) {
    hora_pads_t  *pads = exec->pads;
    hora_status_t st = HORA_OK;
    if (phase <= pads->known)
        return HORA_OK;
    for (; st == HORA_OK && exec->next_member < pads->size; exec->next_member += st == HORA_OK)
        st = await_rank(exec, phase, pads->members[exec->next_member]);
    if (st == HORA_IN_PROGRESS && exec->comm->world->crowd_cores > 0)
        prefer_neighbour(exec, phase);
    if (st != HORA_OK)
        return st;
    exec->next_member = 0;
    pads->known = phase;
    return HORA_OK;
}

static hora_status_t read_notes(hora_exec_t *exec) {
    const hora_pads_t *pads = exec->pads;
    uint32_t           sum = 0;
    for (int i = 0; i < pads->size; i++) {
        int                     r = pads->members[i];
        const hora_pads_note_t *note = hora_pads_note(pads, r, pads->base + 1);
        exec->peers[r].in_at = note->in;
        exec->peers[r].out_at = note->out;
        sum += note->balance;
        if (is_uneven_alltoall(&exec->coll) && note->longest > exec->longest)
            exec->longest = note->longest;
    }
    if (is_uneven_alltoall(&exec->coll) && pads->size == exec->coll.size && sum != 0)
        return hora_fail(HORA_ERR_MISMATCH, "%s: the ranks do not agree on their blocks: what one "
                         "sends to another is not what that one expects of it", exec->what);
    return HORA_OK;
}

/* After a meeting: can everybody use the others' buffers? All members of a host come to the same answer,
 * because they look at the same notes. */
static hora_status_t find_buffers(hora_exec_t *exec) {
    const hora_comm_t *comm = exec->comm;
    const hora_pads_t *pads = exec->pads;
    const hora_coll_t *coll = &exec->coll;
    size_t             elem = hora_dtype_size(coll->dtype);
    bool               pushes = coll->kind == HORA_COLL_ALLREDUCE;
    for (int i = 0; i < pads->size; i++) {
        int r = pads->members[i];
        if ((hora_coll_shown(coll, r) > 0 && exec->peers[r].in_at == HORA_PADS_NONE) ||
            (pushes && exec->peers[r].out_at == HORA_PADS_NONE) || is_uneven_alltoall(coll))
            return HORA_OK;
    }
    for (int i = 0; i < pads->size; i++) {
        int               r = pads->members[i];
        hora_exec_peer_t *peer = &exec->peers[r];
        size_t            bytes = hora_coll_shown(coll, r) * elem;
        int               local = pads->locals[r];
        peer->in = bytes > 0 ? hora_arena_at(comm->world->arena, local, peer->in_at, bytes) : NULL;
        peer->out = pushes ? hora_arena_at(comm->world->arena, local, peer->out_at, bytes) : NULL;
        if ((bytes > 0 && peer->in == NULL) || (pushes && peer->out == NULL))
            return hora_fail(HORA_ERR_PROTOCOL, "%s: rank %d on host %s has published a buffer "
                             "outside of its arena", exec->what, hora_comm_name(comm, r),
                             hora_comm_peer(comm, r)->host);
    }
    exec->shared = true;
    return HORA_OK;
}

/* A plan with slots has a round for each piece of the longest block of all members, who may say what they
 * like. From here on it is messages, with a plan as long as my own blocks. All come to the same answer. */
#define LONGEST_BYTES ((size_t)1 << 30)

static void bound_plan(hora_exec_t *exec) {
    if (exec->algo->needs_arena && exec->longest > LONGEST_BYTES / hora_dtype_size(exec->coll.dtype))
        exec->algo = &hora_algo_direct;
}

static hora_status_t advance_meeting(hora_exec_t *exec) {
    hora_status_t st = await_phase(exec, exec->pads->base + 1);
    if (st != HORA_OK)
        return st;
    st = read_notes(exec);
    bound_plan(exec);
    if (st == HORA_OK && uses_pads(exec->algo))
        st = find_buffers(exec);
    return st == HORA_OK ? begin_steps(exec) : st;
}

hora_status_t hora_run_check_crossing(hora_exec_t *exec) {
    hora_pads_t            *pads = exec->pads;
    const hora_pads_cell_t *cell;
    uint64_t                next;
    if (exec->blocked_xfer != NULL || pads == NULL)
        return HORA_OK;
    next = pads->tiny + 1;
    cell = &pads->lines[exec->blocked_rank]->cells[next % HORA_PADS_CELLS];
    if (atomic_load_explicit(&cell->number, memory_order_acquire) != next || hora_run_ready(exec))
        return HORA_OK; /* not there, or there only after it had finished this call */
    return hora_coll_mismatch(exec->comm, &exec->coll, exec->sig, exec->blocked_rank, cell->sig);
}

/* ---- steps ---- */

static inline uint8_t *place_of(const hora_exec_t *exec, const hora_ref_t *ref) {
    size_t at = ref->off * exec->key.elem_size;
    bool   own = ref->rank < 0 || ref->rank == exec->comm->rank;
    switch (ref->buf) {
    case HORA_BUF_IN:
        return (own ? (uint8_t *)exec->inner.in : exec->peers[ref->rank].in) + at;
    case HORA_BUF_OUT:
        return (own ? (uint8_t *)exec->inner.out : exec->peers[ref->rank].out) + at;
    case HORA_BUF_TMP:
        return exec->tmp + at;
    default:
        return hora_pads_slot(exec->pads, own ? exec->comm->rank : ref->rank) + at;
    }
}

static void start_xfer(hora_exec_t *exec, const hora_step_t *step) {
    hora_exec_xfer_t *x = &exec->xfers[step->xfer];
    int               peer = exec->comm->world_ranks[step->peer];
    memset(x, 0, sizeof(*x));
    x->peer = step->peer;
    x->xfer.buf = place_of(exec, &step->src);
    x->xfer.len = step->count * exec->key.elem_size;
    x->xfer.tag = exec->tag;
    x->xfer.sig = exec->sig;
    x->xfer.status = HORA_IN_PROGRESS;
    exec->started = step->xfer + 1;
    if (step->kind == HORA_STEP_SEND)
        hora_p2p_send(exec->comm->world, peer, &x->xfer);
    else
        hora_p2p_recv(exec->comm->world, peer, &x->xfer);
}

/* Puts a transfer's failure into words. The communicator's own failure, where there is one, says
 * more; so does the cause of a broken link. */
static hora_status_t xfer_failed(hora_exec_t *exec, const hora_exec_xfer_t *x,
                                 hora_status_t status) {
    hora_status_t st = hora_failure_check(&exec->comm->failure);
    if (st == HORA_OK && status == HORA_ERR_PEER_FAILED)
        st = hora_wait_cause(exec->comm, x->peer, exec->what);
    if (st != HORA_OK)
        return st;
    if (status == HORA_ERR_MISMATCH)
        return hora_coll_mismatch(exec->comm, &exec->coll, exec->sig, x->peer, x->xfer.sig);
    return hora_fail(status, "%s: transfer of %zu bytes with rank %d on host %s, step %zu of %zu: "
                     "%s", exec->what, x->xfer.len, hora_comm_name(exec->comm, x->peer),
                     hora_comm_peer(exec->comm, x->peer)->host, exec->pc, exec->plan.nsteps,
                     hora_status_message(status));
}

static hora_status_t wait_xfer(hora_exec_t *exec, uint32_t number) {
    hora_exec_xfer_t *x = &exec->xfers[number];
    hora_status_t     st;
    if (!hora_xfer_done(&x->xfer)) {
        exec->blocked_xfer = &x->xfer;
        exec->blocked_rank = x->peer;
        return HORA_IN_PROGRESS;
    }
    st = x->xfer.status;
    return st == HORA_OK ? HORA_OK : xfer_failed(exec, x, st);
}

/* Is it worth asking for these lines ahead? Where two members sum in slots: what is read in one the
 * other has written last, whosever it is. Not in other kinds, nor in buffers that members share:
 * it makes those slower (docs/performance.md). */
static bool is_far(const hora_exec_t *exec, const hora_ref_t *ref) {
    return ref->buf == HORA_BUF_SLOT && exec->comm->size == HORA_PADS_PAIR &&
           exec->coll.kind == HORA_COLL_ALLREDUCE;
}

static void run_copy(hora_exec_t *exec, const hora_step_t *step) {
    void *src = place_of(exec, &step->src), *dst = place_of(exec, &step->dst);
    size_t bytes = step->count * exec->key.elem_size;
    if (src == dst)
        return;
    if (step->take)
        hora_kernel_take(dst, src, bytes);
    else if (is_far(exec, &step->src) && !step->stream)
        hora_kernel_fetch(dst, src, bytes);
    else
        (step->stream ? hora_kernel_copy_part : hora_kernel_copy)(dst, src, bytes);
}

static hora_reduce_t how_of(const hora_exec_t *exec, const hora_step_t *step) {
    hora_reduce_t how = exec->how;
    if (!step->begin)
        how.prescale = 1.0;
    if (!step->finish) {
        how.postscale = 1.0;
        how.divisor = 1;
    }
    return how;
}

static void **places_of(const hora_exec_t *exec, const hora_ref_t *refs, int n) {
    for (int i = 0; i < n; i++)
        exec->ptrs[i] = place_of(exec, &refs[i]);
    return exec->ptrs;
}

static void run_reduce(hora_exec_t *exec, const hora_step_t *step, const hora_ref_t *refs) {
    hora_reduce_t how = how_of(exec, step);
    void        **ptrs = places_of(exec, refs, step->nsrc + step->ndst);
    int           far = step->nsrc - 1;
    while (far >= 0 && !is_far(exec, &refs[far]))
        far--;
    hora_kernel_reduce_far(&how, ptrs + step->nsrc, step->ndst, (const void *const *)ptrs,
                           step->nsrc, step->count, far);
}

static void run_scaled_copy(hora_exec_t *exec, const hora_step_t *step) {
    hora_reduce_t how = how_of(exec, step);
    const void   *src = place_of(exec, &step->src);
    void         *dst = place_of(exec, &step->dst);
    hora_kernel_reduce(&how, &dst, 1, &src, 1, step->count);
}

/* COPYs out of a slot, the COPYs into it and the REDUCE that follow, all in one. */
static void run_turn(hora_exec_t *exec, const hora_step_t *step) {
    const hora_step_t *in = step + step->turn, *sum = in + step->turn, *last = in - 1;
    hora_reduce_t      how = how_of(exec, sum);
    void             **ptrs = places_of(exec, exec->plan.refs + sum->first, sum->nsrc + sum->ndst);
    hora_turn_t        turn = {.out = place_of(exec, &step->dst),
                               .slot = place_of(exec, &step->src),
                               .in = place_of(exec, &in->src),
                               .count = last->src.off + last->count - step->src.off,
                               .gap_at = step->count};
    turn.gap = last > step ? last->src.off - step->src.off - step->count : 0;
    hora_kernel_reduce_turn(&how, ptrs + sum->nsrc, (const void *const *)ptrs, sum->nsrc, &turn,
                            sum->count);
    exec->pc += 2 * (size_t)step->turn;
}

/* ---- Adasum ---- */

static void run_dots(hora_exec_t *exec, const hora_step_t *step, const hora_ref_t *refs) {
    hora_dots_t *dots = (hora_dots_t *)(void *)place_of(exec, &refs[2]);
    if (step->begin)
        *dots = (hora_dots_t){0, 0, 0};
    hora_kernel_dots(exec->inner.dtype, place_of(exec, &refs[0]), place_of(exec, &refs[1]),
                     step->count, dots);
}

static void run_add_dots(hora_exec_t *exec, const hora_step_t *step) {
    const hora_dots_t *src = (const hora_dots_t *)(void *)place_of(exec, &step->src);
    hora_dots_t       *dst = (hora_dots_t *)(void *)place_of(exec, &step->dst);
    *dst = (hora_dots_t){dst->aa + src->aa, dst->ab + src->ab, dst->bb + src->bb};
}

static void run_blend(hora_exec_t *exec, const hora_step_t *step, const hora_ref_t *refs) {
    hora_kernel_adasum(exec->inner.dtype, place_of(exec, &refs[3]), place_of(exec, &refs[0]),
                       place_of(exec, &refs[1]), step->count,
                       (const hora_dots_t *)(void *)place_of(exec, &refs[2]),
                       step->finish ? exec->how.postscale : 1.0);
}

/* ---- phases and steps ---- */

static void signal_phase(hora_exec_t *exec, uint32_t phase) {
    hora_pads_signal(exec->pads, exec->pads->base + exec->meets + phase, exec->sig);
}

static hora_status_t run_await(hora_exec_t *exec, const hora_step_t *step) {
    uint64_t phase = exec->pads->base + (step->xfer > 0 ? exec->meets + step->xfer : 0);
    return step->peer == HORA_ALL_RANKS ? await_phase(exec, phase)
                                        : await_rank(exec, phase, step->peer);
}

static hora_status_t run_step(hora_exec_t *exec, const hora_step_t *step) {
    const hora_ref_t *refs = exec->plan.refs + step->first;
    switch (step->kind) {
    case HORA_STEP_SEND:
    case HORA_STEP_RECV:
        start_xfer(exec, step);
        return HORA_OK;
    case HORA_STEP_WAIT:
        return wait_xfer(exec, step->xfer);
    case HORA_STEP_COPY:
        if (step->turn > 0)
            run_turn(exec, step);
        else if (step->begin || step->finish)
            run_scaled_copy(exec, step);
        else
            run_copy(exec, step);
        return HORA_OK;
    case HORA_STEP_REDUCE:
        run_reduce(exec, step, refs);
        return HORA_OK;
    case HORA_STEP_DOTS:
        run_dots(exec, step, refs);
        return HORA_OK;
    case HORA_STEP_ADD_DOTS:
        run_add_dots(exec, step);
        return HORA_OK;
    case HORA_STEP_BLEND:
        run_blend(exec, step, refs);
        return HORA_OK;
    case HORA_STEP_SIGNAL:
        signal_phase(exec, step->xfer);
        return HORA_OK;
    default:
        return run_await(exec, step);
    }
}

static hora_status_t advance_steps(hora_exec_t *exec) {
    hora_status_t st = HORA_OK;
    for (; st == HORA_OK && exec->pc < exec->plan.nsteps; exec->pc += st == HORA_OK)
        st = run_step(exec, &exec->plan.steps[exec->pc]);
    for (; st == HORA_OK && exec->drained < exec->started; exec->drained += st == HORA_OK)
        st = wait_xfer(exec, exec->drained);
    if (st != HORA_OK)
        return st;
    hora_stage_out(exec);
    if (exec->pads != NULL) {
        exec->pads->base += (uint64_t)exec->meets + exec->plan.phases;
        exec->pads->last_sig = exec->sig;
        hora_pads_remember(exec->pads, exec->sig);
        exec->pads->turns[exec->pads->calls & 1] ^= exec->plan.turns;
        exec->pads->calls += uses_pads(exec->algo) && !exec->plan.stays;
    }
    exec->state = HORA_EXEC_DONE;
    return HORA_OK;
}

hora_status_t hora_run_advance(hora_exec_t *exec) {
    hora_status_t st = HORA_OK;
    if (exec->state == HORA_EXEC_MEET)
        st = advance_meeting(exec);
    if (st == HORA_OK && exec->state == HORA_EXEC_STEPS)
        st = advance_steps(exec);
    return st;
}

bool hora_run_ready(const hora_exec_t *exec) {
    if (exec->blocked_xfer != NULL)
        return hora_xfer_done(exec->blocked_xfer);
    return hora_pads_reached(exec->pads, exec->blocked_rank, exec->blocked_phase);
}

void hora_run_cancel(hora_exec_t *exec) {
    for (uint32_t i = 0; exec->state == HORA_EXEC_STEPS && i < exec->started; i++)
        hora_p2p_cancel(exec->comm->world, &exec->xfers[i].xfer);
}
