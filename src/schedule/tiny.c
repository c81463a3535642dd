/*
 * Tiny calls on one host: one cache line per rank carries payload and number, so a call costs one
 * line written and at most size - 1 lines read; a longer payload lies on boards (pads.h), written
 * before the number. Any kind; it is the one-round plan (oneshot.c, slots.c) run without a plan. On
 * the calling thread.
 *
 * Who takes nothing from others waits for nobody: the root of a broadcast runs ahead of the others,
 * by HORA_PADS_LEAD calls at most and as far as the boards reach. That they called something else
 * it learns at the end of the lead, in the next call in which it waits for them, or from their
 * finding out.
 *
 * Two ranks have all kinds on their boards, up to HORA_ONESHOT_LIMIT. More have those that go one
 * way: the others have to meet in each call, and what a plan costs is little beside that.
 *
 * Who waits for the others in this call wakes them only when it begins to wait, or when they are
 * there: the fence that this takes would otherwise stand between writing and reading.
 *
 * Source: the idea of payload inside the flag line is Open MPI's coll/xhc (immediate copy).
 */
#include "schedule/blocks.h"
#include "schedule/run.h"
#include "transport/shm/pads.h"
#include "transport/wait.h"

#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <string.h>

#define TINY_RANKS_MAX 64
#define POLLS          100 /* looks at a cell before it is waited for; some 100 ns */

/* A call on its way. */
typedef struct tiny {
    hora_comm_t       *comm;
    hora_pads_t       *pads;
    const hora_coll_t *coll;
    uint64_t           number; /* of the message */
    size_t             elem;   /* bytes */
    size_t             board;  /* bytes of the payload, on a board; 0: it lies in the cell */
    bool               mutual; /* of two members, who read what the other shows */
} tiny_t;

/* Elements that a rank publishes, the same on all; an uneven alltoall is not asked for. */
static size_t payload_count(const hora_coll_t *coll) {
    switch (coll->kind) {
    case HORA_COLL_ALLGATHER:
        return hora_block_longest(coll);
    case HORA_COLL_REDUCE_SCATTER:
        return hora_coll_total(coll);
    case HORA_COLL_ALLTOALL:
    case HORA_COLL_SCATTER:
        return coll->count * (size_t)coll->size;
    default:
        return coll->count;
    }
}

static bool is_mutual(const hora_coll_t *coll) {
    return coll->size == HORA_PADS_PAIR && !hora_blocks_one_way(coll);
}

/* Bytes of the longest payload that goes without a plan. More than two members leave the boards'
 * room to several messages: see cleared_by. */
static size_t limit_of(const hora_comm_t *comm, const hora_coll_t *coll) {
    size_t most = HORA_PADS_BOARD, limit = hora_comm_oneshot_limit(comm);
    if (comm->size > HORA_PADS_PAIR)
        most = hora_blocks_one_way(coll) ? HORA_PADS_BOARD / 4 : 0;
    if (limit > most)
        limit = most;
    return limit > HORA_PADS_TINY && comm->boards_allowed ? limit : HORA_PADS_TINY;
}

/* Makes out the call, if it is one for this file. */
static bool make_out(hora_comm_t *comm, const hora_coll_t *coll, tiny_t *t) {
    size_t limit, count;
    if (comm->pads == NULL || comm->size > TINY_RANKS_MAX || comm->first != NULL)
        return false;
    *t = (tiny_t){.comm = comm, .pads = comm->pads, .coll = coll, .number = comm->pads->tiny + 1,
                  .elem = 0, .board = 0, .mutual = is_mutual(coll)};
    if (coll->kind == HORA_COLL_BARRIER)
        return true;
    if (!comm->tiny_allowed || coll->op == HORA_ADASUM ||
        (coll->kind == HORA_COLL_ALLTOALL && !hora_coll_is_even(coll)))
        return false;
    limit = limit_of(comm, coll);
    count = payload_count(coll);
    t->elem = hora_dtype_size(coll->dtype);
    if (count > limit || count * t->elem > limit)
        return false;
    if (count * t->elem > HORA_PADS_TINY)
        t->board = count * t->elem;
    return true;
}

bool hora_tiny_applies(hora_comm_t *comm, const hora_coll_t *coll) {
    tiny_t t;
    return make_out(comm, coll, &t);
}

/* ---- what a payload holds ---- */

/* Is a rank's own block read where it is, before anything is written to out? */
static bool keeps_own(const hora_coll_t *coll) {
    return coll->kind != HORA_COLL_REDUCE_SCATTER || !hora_stage_overlaps(coll);
}

/* One block, or all of the root's. Streamed where its lines would come back slowly (pads.h). */
static void show(const tiny_t *t, uint8_t *payload, const void *src, size_t bytes) {
    if (t->board > 0 && !t->mutual && !hora_blocks_one_copies(t->coll))
        hora_kernel_copy_part(payload, src, bytes);
    else if (bytes > 0)
        memcpy(payload, src, bytes);
}

static void show_block(const tiny_t *t, uint8_t *payload, int to) {
    const hora_coll_t *coll = t->coll;
    show(t, payload, (const uint8_t *)coll->in + coll->displs[to] * t->elem,
         coll->counts[to] * t->elem);
}

static int after(const hora_coll_t *coll, int r) {
    return r + 1 < coll->size ? r + 1 : 0;
}

static void fill(const tiny_t *t, uint8_t *payload) {
    const hora_coll_t *coll = t->coll;
    size_t             at = 0;
    if (!hora_blocks_give(coll) || coll->kind == HORA_COLL_BARRIER)
        return;
    if (coll->kind != HORA_COLL_REDUCE_SCATTER && coll->kind != HORA_COLL_ALLTOALL) {
        size_t count = coll->kind == HORA_COLL_ALLGATHER ? coll->counts[coll->rank]
                                                         : payload_count(coll);
        show(t, payload, coll->in, count * t->elem);
        return;
    }
    for (int r = after(coll, coll->rank); r != coll->rank; at += coll->counts[r], r = after(coll, r))
        show_block(t, payload + at * t->elem, r);
    if (!keeps_own(coll))
        show_block(t, payload + at * t->elem, coll->rank);
}

/* Where in the payload of `from` my block begins: its own is not there, or is the last. So two
 * ranks both read what lies at the beginning of the boards, and each writes where it has read. */
static size_t begin_of_mine(const hora_coll_t *coll, int from) {
    size_t at = 0;
    if (coll->kind == HORA_COLL_SCATTER)
        return (size_t)coll->rank * coll->count;
    if (hora_blocks_for_all(coll))
        return 0;
    for (int r = after(coll, from); r != coll->rank; r = after(coll, r))
        at += coll->counts[r];
    return at;
}

static void copy_out(const tiny_t *t, int from, uint8_t *block) {
    const hora_coll_t *coll = t->coll;
    size_t             bytes = hora_blocks_count_from(coll, from) * t->elem;
    uint8_t           *out = (uint8_t *)coll->out + hora_blocks_begin_out(coll, from) * t->elem;
    if (t->board > 0 && !t->mutual && hora_blocks_one_copies(coll))
        hora_kernel_take(out, block, bytes);
    else if (bytes > 0)
        memcpy(out, block, bytes);
}

static const uint8_t *own_block(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    return (const uint8_t *)coll->in + hora_blocks_begin_in(coll, coll->rank) * t->elem;
}

/* My own block, where I have one. */
static void keep(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    size_t             bytes = hora_blocks_count_from(coll, coll->rank) * t->elem;
    uint8_t           *out = (uint8_t *)coll->out +
                   hora_blocks_begin_out(coll, coll->rank) * t->elem;
    if (bytes > 0 && own_block(t) != out)
        memmove(out, own_block(t), bytes);
}

/* ---- waiting ---- */

static hora_pads_cell_t *cell_of(const hora_pads_t *pads, int rank, uint64_t number) {
    return &pads->lines[rank]->cells[number % HORA_PADS_CELLS];
}

static bool has_begun(const hora_pads_cell_t *cell, uint64_t number) {
    return atomic_load_explicit(&cell->number, memory_order_acquire) >= number;
}

/* A member's call of that number is not mine. Did we part before it? In the last tiny call, or the
 * last with a plan; else it is not known any more. */
static hora_status_t find_parting(const tiny_t *t, int rank, uint64_t number) {
    hora_comm_t *comm = t->comm;
    uint32_t     own = cell_of(t->pads, comm->rank, number)->sig;
    uint32_t     theirs = cell_of(t->pads, rank, number)->sig;
    if (own == theirs) {
        own = cell_of(t->pads, comm->rank, number - 1)->sig;
        theirs = cell_of(t->pads, rank, number - 1)->sig;
    }
    if (own == theirs) {
        own = t->pads->last_sig;
        theirs = hora_pads_sig(t->pads, rank, t->pads->base);
    }
    if (own != theirs)
        return hora_coll_mismatch(comm, t->coll, own, rank, theirs);
    return hora_fail(HORA_ERR_MISMATCH,
                     "operations do not match: before this %s, rank %d on host %s and rank %d on "
                     "host %s made different calls, or with different counts or roots",
                     hora_coll_name(t->coll->kind), hora_comm_name(comm, comm->rank),
                     hora_comm_peer(comm, comm->rank)->host, hora_comm_name(comm, rank),
                     hora_comm_peer(comm, rank)->host);
}

/* Wakes who sleeps, if that was put off. */
static void be_heard(hora_pads_t *pads) {
    if (!pads->unheard)
        return;
    pads->unheard = false;
    hora_pads_wake(pads);
}

static __attribute__((noinline)) hora_status_t wait_for_cell(const tiny_t *t, int rank,
                                                             const hora_pads_cell_t *cell,
                                                             uint64_t number) {
    hora_comm_t  *comm = t->comm;
    const char   *name = t->coll->name, *kind = hora_coll_name(t->coll->kind);
    bool          named = name != NULL && name[0] != 0;
    hora_waiter_t w;
    hora_status_t st = HORA_OK;
    char          what[112];
    if (comm->world->has_cores)
        hora_apart_note(comm->world);
    be_heard(t->pads);
    if (named)
        snprintf(what, sizeof(what), "%s '%.64s'", kind, name);
    hora_waiter_begin(&w, comm, t->coll->timeout, named ? what : kind);
    while (st == HORA_OK && !has_begun(cell, number))
        st = hora_waiter_turn(&w, rank);
    hora_waiter_end(&w);
    return st;
}

/* Waits until `rank` has begun call `number`, and compares it with mine of that number. */
static hora_status_t await_cell(const tiny_t *t, int rank, uint64_t number) {
    const hora_pads_cell_t *cell = cell_of(t->pads, rank, number), *own;
    int                     polls = t->comm->world->has_cores ? POLLS : 1;
    while (!has_begun(cell, number))
        if (--polls <= 0) {
            hora_status_t st = wait_for_cell(t, rank, cell, number);
            if (st != HORA_OK)
                return st;
        }
    own = cell_of(t->pads, t->comm->rank, number);
    if (cell->sig == own->sig && cell->past == own->past)
        return HORA_OK;
    return find_parting(t, rank, number);
}

/* Who shares my core comes only if I wait for it. */
static hora_status_t await_neighbours(const tiny_t *t, uint64_t number) {
    hora_status_t st = HORA_OK;
    for (int r = 0; st == HORA_OK && r < t->comm->size; r++)
        if (hora_apart_takes_turns(t->comm, r))
            st = await_cell(t, r, number);
    return st;
}

static hora_status_t await_all(const tiny_t *t, uint64_t number) {
    hora_status_t st = HORA_OK;
    if (t->comm->world->crowd_cores > 0)
        st = await_neighbours(t, number);
    for (int r = 0; st == HORA_OK && r < t->comm->size; r++)
        if (r != t->comm->rank)
            st = await_cell(t, r, number);
    be_heard(t->pads);
    if (st == HORA_OK)
        t->pads->tiny_known = number;
    return st;
}

/* ---- boards ---- */

static bool begins_anew(const tiny_t *t) {
    return t->mutual || t->board > HORA_PADS_BOARD - t->pads->behind;
}

/* The message that all must have begun before I write this one's payload to my board (pads.h). Not
 * this one itself: beginning anew, two members change boards; more have no messages longer than a
 * quarter of one, so that the last does not lie where it would be written over. */
static uint64_t cleared_by(const tiny_t *t) {
    size_t   place;
    uint64_t last = 0;
    if (!hora_blocks_give(t->coll))
        return 0;
    if (t->mutual)
        return t->number - 1;
    place = begins_anew(t) ? 0 : t->pads->behind;
    for (size_t page = (place + HORA_PADS_PAGE - 1) / HORA_PADS_PAGE;
         page * HORA_PADS_PAGE < place + t->board; page++)
        if (t->pads->pages[page] > last)
            last = t->pads->pages[page];
    return last + 1 < t->number ? last + 1 : t->number - 1;
}

/* Gives this message its place. */
static void claim(const tiny_t *t) {
    hora_pads_t *pads = t->pads;
    bool         anew = begins_anew(t);
    pads->place = anew ? 0 : pads->behind;
    pads->turn ^= anew && t->coll->size == HORA_PADS_PAIR;
    pads->behind = pads->place + (t->board + 63) / 64 * 64;
    for (size_t page = pads->place / HORA_PADS_PAGE; page * HORA_PADS_PAGE < pads->behind; page++)
        pads->pages[page] = t->number;
}

/* ---- the call ---- */

/* Who has run ahead as far as is allowed waits until half of the lead is gone; and who has
 * something for the boards, until there is room. */
static hora_status_t await_room(const tiny_t *t) {
    uint64_t known = t->pads->tiny_known, until = t->board > 0 ? cleared_by(t) : 0;
    if (known + HORA_PADS_LEAD < t->number && until < t->number - HORA_PADS_LEAD / 2)
        until = t->number - HORA_PADS_LEAD / 2;
    return until <= known ? HORA_OK : await_all(t, until);
}

/* My cell, with what shows which call it is. */
static hora_pads_cell_t *sign(const tiny_t *t) {
    hora_pads_t      *pads = t->pads;
    hora_pads_cell_t *cell = cell_of(pads, t->coll->rank, t->number);
    cell->sig = hora_coll_sig(t->coll);
    cell->past = pads->past;
    hora_pads_remember(pads, cell->sig);
    return cell;
}

static void announce(const tiny_t *t, hora_pads_cell_t *cell) {
    atomic_store_explicit(&cell->number, t->number, memory_order_release);
    t->pads->unheard = true;
}

static void publish(const tiny_t *t) {
    hora_pads_t      *pads = t->pads;
    hora_pads_cell_t *cell = sign(t);
    if (t->board > 0)
        claim(t);
    fill(t, t->board > 0 ? hora_pads_board(pads, t->coll->rank) : cell->payload);
    announce(t, cell);
    if (hora_blocks_one_way(t->coll))
        be_heard(pads); /* some of the ranks wait for nobody */
}

/* The block that member `rank` shows me in this call. */
static uint8_t *block_of(const tiny_t *t, int rank) {
    uint8_t *payload = t->board > 0 ? hora_pads_board(t->pads, rank)
                                    : cell_of(t->pads, rank, t->number)->payload;
    return payload + begin_of_mine(t->coll, rank) * t->elem;
}

/* In rank order, my own where it is. */
static void reduce(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    size_t             count = hora_blocks_count_from(coll, coll->rank);
    const void        *blocks[TINY_RANKS_MAX];
    hora_reduce_t      how;
    for (int r = 0; r < coll->size; r++)
        blocks[r] = block_of(t, r);
    if (keeps_own(coll))
        blocks[coll->rank] = own_block(t);
    hora_coll_how(coll, &how);
    if (count > 0)
        hora_kernel_reduce(&how, (void *const *)&coll->out, 1, blocks, coll->size, count);
}

static hora_status_t take_from_root(const tiny_t *t) {
    int           root = t->coll->root;
    hora_status_t st = HORA_OK;
    if (t->coll->rank == root)
        keep(t);
    else
        st = await_cell(t, root, t->number);
    if (st == HORA_OK && t->coll->rank != root)
        copy_out(t, root, block_of(t, root));
    return st;
}

static hora_status_t take_from_all(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    bool               sums = hora_coll_reduces(coll->kind);
    hora_status_t      st;
    if (!sums && coll->kind != HORA_COLL_BARRIER)
        keep(t);
    st = await_all(t, t->number);
    if (st != HORA_OK || coll->kind == HORA_COLL_BARRIER)
        return st;
    if (sums) {
        reduce(t);
        return HORA_OK;
    }
    for (int r = 0; r < coll->size; r++)
        if (r != coll->rank)
            copy_out(t, r, block_of(t, r));
    return HORA_OK;
}

static hora_status_t exchange(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    hora_status_t      st = await_room(t);
    if (st != HORA_OK)
        return st;
    publish(t);
    if (hora_blocks_from_root(coll))
        return take_from_root(t);
    return !hora_blocks_to_root(coll) || coll->rank == coll->root ? take_from_all(t) : HORA_OK;
}

/* ---- an allreduce of two members ---- */

/* make_out for it: the questions that are left. */
static bool make_out_pair(hora_comm_t *comm, const hora_coll_t *coll, tiny_t *t) {
    size_t limit, bytes;
    if (coll->kind != HORA_COLL_ALLREDUCE || coll->size != HORA_PADS_PAIR || comm->pads == NULL ||
        comm->first != NULL || !comm->tiny_allowed || coll->op == HORA_ADASUM)
        return false;
    limit = limit_of(comm, coll);
    t->elem = hora_dtype_size(coll->dtype);
    bytes = coll->count * t->elem;
    if (coll->count > limit || bytes > limit)
        return false;
    t->comm = comm;
    t->pads = comm->pads;
    t->coll = coll;
    t->number = comm->pads->tiny + 1;
    t->board = bytes > HORA_PADS_TINY ? bytes : 0;
    t->mutual = true;
    return true;
}

/* Shows what I bring. */
static void publish_pair(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    hora_pads_cell_t  *cell = sign(t);
    if (t->board > 0) {
        claim(t);
        hora_kernel_put(hora_pads_board(t->pads, coll->rank), coll->in, t->board);
    } else if (coll->count > 0) {
        memcpy(cell->payload, coll->in, coll->count * t->elem);
    }
    announce(t, cell);
}

/* exchange, with what is known here left out: a sixth of the instructions of a short call. */
static hora_status_t exchange_pair(const tiny_t *t) {
    const hora_coll_t *coll = t->coll;
    int                other = 1 - coll->rank;
    const void        *blocks[HORA_PADS_PAIR];
    hora_reduce_t      how;
    hora_status_t      st = HORA_OK;
    if (t->pads->tiny_known + 1 < t->number) /* calls that went one way came before */
        st = await_room(t);
    if (st != HORA_OK)
        return st;
    publish_pair(t);
    st = await_cell(t, other, t->number);
    be_heard(t->pads);
    if (st != HORA_OK)
        return st;
    t->pads->tiny_known = t->number;
    blocks[coll->rank] = coll->in;
    blocks[other] = t->board > 0 ? hora_pads_board(t->pads, other)
                                 : cell_of(t->pads, other, t->number)->payload;
    hora_coll_how(coll, &how);
    if (coll->count > 0)
        hora_kernel_reduce_far(&how, (void *const *)&coll->out, 1, blocks, HORA_PADS_PAIR,
                               coll->count, t->board > 0 ? other : -1);
    return HORA_OK;
}

bool hora_tiny_try(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p) {
    tiny_t        t;
    hora_status_t st;
    if (make_out_pair(comm, coll, &t))
        st = exchange_pair(&t);
    else if (make_out(comm, coll, &t))
        st = exchange(&t);
    else
        return false;
    if (st == HORA_OK) {
        comm->pads->tiny = t.number;
        comm->seq++;
    }
    *status_p = st == HORA_OK ? HORA_OK : hora_coll_fail(comm, st);
    return true;
}
