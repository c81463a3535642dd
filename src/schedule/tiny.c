/*
 * Tiny calls on one host: one cache line per rank carries payload and number, so a call costs one
 * line written and at most size - 1 lines read; a longer payload lies on boards (pads.h), written before
 * the number. Any kind; it is the one-round plan (oneshot.c, slots.c) run without a plan. On the calling
 * thread.
 *
 * Who takes nothing from others waits for nobody: the root of a broadcast runs ahead of the others,
 * by HORA_PADS_LEAD calls at most and as far as the boards reach. That they called something else it
 * learns at the end of the lead, in the next call in which it waits for them, or from their finding out.
 *
 * Two ranks have all kinds on their boards, up to HORA_ONESHOT_LIMIT. More have those that go one way: the
 * others have to meet in each call, and what a plan costs is little beside that.
 *
 * Who waits for the others in this call wakes them only when it begins to wait, or when they are there: the
 * fence that this takes would otherwise stand between writing and reading.
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

/* Elements that a rank publishes, the same on all; an uneven alltoall is not asked for. */
static size_t payload_count(const hora_coll_t *coll) {
    if (coll->kind == HORA_COLL_ALLGATHER)
        return hora_block_longest(coll);
    return coll->kind == HORA_COLL_GATHER ? coll->count : hora_coll_extent(coll);
}

/* Of what this file does, it is no overflow. */
static size_t payload_bytes(const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_BARRIER ? 0
                                           : payload_count(coll) * hora_dtype_size(coll->dtype);
}

/* Do two members read what the other shows? */
static bool is_mutual(const hora_coll_t *coll) {
    return coll->size == HORA_PADS_PAIR && !hora_blocks_one_way(coll);
}

/* Bytes of the longest payload that goes without a plan. More than two members leave the boards' room
 * to several messages: see await_room. */
static size_t limit_of(const hora_comm_t *comm, const hora_coll_t *coll) {
    size_t most = HORA_PADS_BOARD, limit = hora_comm_oneshot_limit(comm);
    if (comm->size > HORA_PADS_PAIR)
        most = hora_blocks_one_way(coll) ? HORA_PADS_BOARD / 4 : 0;
    if (limit > most)
        limit = most;
    return limit > HORA_PADS_TINY && comm->boards_allowed ? limit : HORA_PADS_TINY;
}

bool hora_tiny_applies(const hora_comm_t *comm, const hora_coll_t *coll) {
    size_t limit, count;
    if (comm->pads == NULL || comm->size > TINY_RANKS_MAX || comm->first != NULL)
        return false;
    if (coll->kind == HORA_COLL_BARRIER)
        return true;
    if (!comm->tiny_allowed || coll->op == HORA_ADASUM ||
        (coll->kind == HORA_COLL_ALLTOALL && !hora_coll_is_even(coll)))
        return false;
    limit = limit_of(comm, coll);
    count = payload_count(coll);
    return count <= limit && count * hora_dtype_size(coll->dtype) <= limit;
}

/* ---- what a payload holds ---- */

/* Is a rank's own block read where it is, before anything is written to out? */
static bool keeps_own(const hora_coll_t *coll) {
    return coll->kind != HORA_COLL_REDUCE_SCATTER || !hora_stage_overlaps(coll);
}

/* One block, or all of the root's. Streamed where its lines would come back slowly (pads.h). */
static void show(const hora_coll_t *coll, uint8_t *payload, const void *src, size_t bytes) {
    if (bytes > 0 && (is_mutual(coll) || hora_blocks_one_copies(coll)))
        memcpy(payload, src, bytes);
    else
        hora_kernel_copy_part(payload, src, bytes);
}

static void fill(const hora_coll_t *coll, uint8_t *payload) {
    size_t elem = hora_dtype_size(coll->dtype), at = 0;
    if (!hora_blocks_give(coll) || coll->kind == HORA_COLL_BARRIER)
        return;
    if (coll->kind != HORA_COLL_REDUCE_SCATTER && coll->kind != HORA_COLL_ALLTOALL) {
        size_t count = coll->kind == HORA_COLL_ALLGATHER ? coll->counts[coll->rank]
                                                         : payload_count(coll);
        show(coll, payload, coll->in, count * elem);
        return;
    }
    for (int r = 0; r < coll->size; at += coll->counts[r++])
        if (r != coll->rank || !keeps_own(coll))
            show(coll, payload + at * elem, (const uint8_t *)coll->in + coll->displs[r] * elem,
                 coll->counts[r] * elem);
}

/* Where in a payload my block begins. */
static size_t begin_of_mine(const hora_coll_t *coll) {
    size_t at = 0;
    if (hora_blocks_for_all(coll))
        return 0;
    for (int r = 0; r < coll->rank; r++)
        at += hora_blocks_count_to(coll, r);
    return at;
}

/* payloads[]: of the blocks for me. */
static void reduce(const hora_coll_t *coll, const void *const *payloads) {
    size_t        count = hora_blocks_count_from(coll, coll->rank);
    hora_reduce_t how;
    hora_coll_how(coll, &how);
    if (count > 0)
        hora_kernel_reduce(&how, (void *const *)&coll->out, 1, payloads, coll->size, count);
}

static void copy_out(const hora_coll_t *coll, int from, uint8_t *block) {
    size_t   elem = hora_dtype_size(coll->dtype);
    size_t   bytes = hora_blocks_count_from(coll, from) * elem;
    uint8_t *out = (uint8_t *)coll->out + hora_blocks_begin_out(coll, from) * elem;
    if (hora_blocks_one_way(coll) && bytes > HORA_PADS_TINY && hora_blocks_one_copies(coll))
        hora_kernel_take(out, block, bytes);
    else if (bytes > 0)
        memcpy(out, block, bytes);
}

/* My own block, where I have one. */
static void keep(const hora_coll_t *coll) {
    size_t      elem = hora_dtype_size(coll->dtype);
    size_t      bytes = hora_blocks_count_from(coll, coll->rank) * elem;
    const void *in = (const uint8_t *)coll->in + hora_blocks_begin_in(coll, coll->rank) * elem;
    void       *out = (uint8_t *)coll->out + hora_blocks_begin_out(coll, coll->rank) * elem;
    if (bytes > 0 && in != out)
        memmove(out, in, bytes);
}

/* ---- the call ---- */

static const hora_pads_cell_t *cell_of(const hora_pads_t *pads, int rank, uint64_t number) {
    return &pads->lines[rank]->cells[number % HORA_PADS_CELLS];
}

/* In which call before tiny call `number` did this member and I part? In the last tiny one, or the last
 * with a plan; else it is not known any more. */
static hora_status_t parted_before(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                                   uint64_t number) {
    hora_pads_t *pads = comm->pads;
    uint32_t     own = cell_of(pads, comm->rank, number - 1)->sig;
    uint32_t     theirs = cell_of(pads, rank, number - 1)->sig;
    if (own == theirs) {
        own = pads->last_sig;
        theirs = hora_pads_note(pads, rank, pads->base)->sig;
    }
    if (own != theirs)
        return hora_coll_mismatch(comm, coll, own, rank, theirs);
    return hora_fail(HORA_ERR_MISMATCH,
                     "operations do not match: before this %s, rank %d on host %s and rank %d on "
                     "host %s made different calls, or with different counts or roots",
                     hora_coll_name(coll->kind), hora_comm_name(comm, comm->rank),
                     hora_comm_peer(comm, comm->rank)->host, hora_comm_name(comm, rank),
                     hora_comm_peer(comm, rank)->host);
}

/* Wakes who sleeps, if that was put off. */
static void be_heard(hora_pads_t *pads, void (*wake)(hora_pads_t *pads)) {
    if (!pads->unheard)
        return;
    pads->unheard = false;
    wake(pads);
}

static bool poll_cell(const hora_comm_t *comm, const hora_pads_cell_t *cell, uint64_t number) {
    int polls = comm->world->has_cores ? POLLS : 1;
    while (polls > 0 && atomic_load_explicit(&cell->number, memory_order_acquire) < number)
        polls--;
    return polls > 0;
}

static hora_status_t wait_for_cell(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                                   const hora_pads_cell_t *cell, uint64_t number) {
    bool          named = coll->name != NULL && coll->name[0] != 0;
    const char   *kind = hora_coll_name(coll->kind);
    hora_waiter_t w;
    hora_status_t st = HORA_OK;
    char          what[112];
    be_heard(comm->pads, hora_pads_ring);
    if (named)
        snprintf(what, sizeof(what), "%s '%.64s'", kind, coll->name);
    hora_waiter_begin(&w, comm, coll->timeout, named ? what : kind);
    while (st == HORA_OK && atomic_load_explicit(&cell->number, memory_order_acquire) < number)
        st = hora_waiter_turn(&w, rank);
    hora_waiter_end(&w);
    return st;
}

/* Waits until `rank` has begun call `number`, and compares it with mine of that number. */
static hora_status_t await_cell(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                                uint64_t number) {
    const hora_pads_cell_t *cell = cell_of(comm->pads, rank, number), *own;
    hora_status_t           st = HORA_OK;
    if (!poll_cell(comm, cell, number))
        st = wait_for_cell(comm, coll, rank, cell, number);
    own = cell_of(comm->pads, comm->rank, number);
    if (st == HORA_OK && cell->sig != own->sig)
        return hora_coll_mismatch(comm, coll, own->sig, rank, cell->sig);
    return st != HORA_OK || cell->past == own->past ? st : parted_before(comm, coll, rank, number);
}

static hora_status_t await_all(hora_comm_t *comm, const hora_coll_t *coll, uint64_t number) {
    hora_status_t st = HORA_OK;
    for (int r = 0; st == HORA_OK && comm->world->crowd_cores > 0 && r < comm->size; r++)
        if (hora_apart_takes_turns(comm, r))
            st = await_cell(comm, coll, r, number);
    for (int r = 0; st == HORA_OK && r < comm->size; r++)
        if (r != comm->rank)
            st = await_cell(comm, coll, r, number);
    be_heard(comm->pads, hora_pads_wake);
    if (st == HORA_OK)
        comm->pads->tiny_known = number;
    return st;
}

/* ---- boards ---- */

static bool begins_anew(const hora_pads_t *pads, const hora_coll_t *coll, size_t bytes) {
    return bytes > HORA_PADS_BOARD - pads->behind || is_mutual(coll);
}

/* The message that all must have begun before I write this one's payload to my board (pads.h). Not this one
 * itself: beginning anew, two members change boards; more have no messages longer than a quarter of one,
 * so that the last does not lie where it would be written over. */
static uint64_t cleared_by(const hora_pads_t *pads, const hora_coll_t *coll, size_t bytes,
                           uint64_t number) {
    size_t   place;
    uint64_t last = 0;
    if (bytes == 0 || !hora_blocks_give(coll))
        return 0;
    if (is_mutual(coll))
        return number - 1;
    place = begins_anew(pads, coll, bytes) ? 0 : pads->behind;
    for (size_t page = (place + HORA_PADS_PAGE - 1) / HORA_PADS_PAGE;
         page * HORA_PADS_PAGE < place + bytes; page++)
        if (pads->pages[page] > last)
            last = pads->pages[page];
    return last + 1 < number ? last + 1 : number - 1;
}

/* Gives this message its place. */
static void claim(hora_pads_t *pads, const hora_coll_t *coll, size_t bytes, uint64_t number) {
    bool anew = begins_anew(pads, coll, bytes);
    pads->place = anew ? 0 : pads->behind;
    pads->turn ^= anew && coll->size == HORA_PADS_PAIR;
    pads->behind = pads->place + (bytes + 63) / 64 * 64;
    for (size_t page = pads->place / HORA_PADS_PAGE; page * HORA_PADS_PAGE < pads->behind; page++)
        pads->pages[page] = number;
}

/* ---- the call ---- */

/* Who has run ahead as far as is allowed waits until half of the lead is gone; and who has something for
 * the boards, until there is room. */
static hora_status_t await_room(hora_comm_t *comm, const hora_coll_t *coll, size_t bytes,
                                uint64_t number) {
    uint64_t until = cleared_by(comm->pads, coll, bytes, number);
    if (comm->pads->tiny_known + HORA_PADS_LEAD < number && until < number - HORA_PADS_LEAD / 2)
        until = number - HORA_PADS_LEAD / 2;
    return until <= comm->pads->tiny_known ? HORA_OK : await_all(comm, coll, until);
}

static void publish(hora_pads_t *pads, const hora_coll_t *coll, size_t bytes, uint64_t number) {
    hora_pads_cell_t *cell = &pads->lines[coll->rank]->cells[number % HORA_PADS_CELLS];
    cell->sig = hora_coll_sig(coll);
    cell->past = pads->past;
    hora_pads_remember(pads, cell->sig);
    fill(coll, bytes > 0 ? hora_pads_board(pads, coll->rank) : cell->payload);
    atomic_store_explicit(&cell->number, number, memory_order_release);
    pads->unheard = true;
    if (hora_blocks_one_way(coll))
        be_heard(pads, hora_pads_ring); /* some of the ranks wait for nobody */
}

/* The block that member `rank` shows me in this call; of a sum, my own where it is. */
static uint8_t *block_of(const hora_pads_t *pads, const hora_coll_t *coll, size_t bytes, int rank,
                         uint64_t number) {
    size_t elem = hora_dtype_size(coll->dtype), at = begin_of_mine(coll) * elem;
    if (rank == coll->rank && keeps_own(coll))
        return (uint8_t *)(uintptr_t)coll->in + hora_blocks_begin_in(coll, rank) * elem;
    return (bytes > 0 ? hora_pads_board(pads, rank)
                      : (uint8_t *)(uintptr_t)cell_of(pads, rank, number)->payload) + at;
}

static hora_status_t take_from_root(hora_comm_t *comm, const hora_coll_t *coll, size_t bytes,
                                    uint64_t number) {
    hora_status_t st;
    if (coll->rank == coll->root) {
        keep(coll);
        return HORA_OK;
    }
    st = await_cell(comm, coll, coll->root, number);
    if (st == HORA_OK)
        copy_out(coll, coll->root, block_of(comm->pads, coll, bytes, coll->root, number));
    return st;
}

/* Takes what is for me. */
static hora_status_t take(hora_comm_t *comm, const hora_coll_t *coll, size_t bytes,
                          uint64_t number) {
    bool          sums = hora_coll_reduces(coll->kind);
    const void   *blocks[TINY_RANKS_MAX];
    hora_status_t st;
    if (hora_blocks_from_root(coll))
        return take_from_root(comm, coll, bytes, number);
    if (!sums && coll->kind != HORA_COLL_BARRIER)
        keep(coll);
    st = await_all(comm, coll, number);
    if (st != HORA_OK || coll->kind == HORA_COLL_BARRIER)
        return st;
    for (int r = 0; r < comm->size; r++) {
        uint8_t *block = block_of(comm->pads, coll, bytes, r, number);
        blocks[r] = block;
        if (!sums && r != comm->rank)
            copy_out(coll, r, block);
    }
    if (sums)
        reduce(coll, blocks);
    return HORA_OK;
}

hora_status_t hora_tiny_run(hora_comm_t *comm, const hora_coll_t *coll) {
    uint64_t      number = comm->pads->tiny + 1;
    size_t        all = payload_bytes(coll), bytes = all > HORA_PADS_TINY ? all : 0; /* on a board */
    hora_status_t st = await_room(comm, coll, bytes, number);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    if (bytes > 0)
        claim(comm->pads, coll, bytes, number);
    publish(comm->pads, coll, bytes, number);
    if (!hora_blocks_to_root(coll) || coll->rank == coll->root)
        st = take(comm, coll, bytes, number);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    comm->pads->tiny = number;
    comm->seq++;
    return HORA_OK;
}
