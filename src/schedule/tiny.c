/*
 * Tiny calls on one host: one cache line per rank carries payload and number, so a call costs one
 * line written and at most size - 1 lines read. Any kind; it is the one-round plan (oneshot.c,
 * slots.c) run without a plan. On the calling thread.
 *
 * Who takes nothing from others waits for nobody: the root of a broadcast runs ahead of the others,
 * by HORA_PADS_LEAD calls at most (pads.h). That they called something else it learns at the end of
 * the lead, in the next call in which it waits for them, or from their finding out.
 *
 * Longer allreduces of two ranks, up to HORA_ONESHOT_LIMIT, lie on boards (pads.h), written before the
 * number. Who waits for the others in this call wakes them only when it begins to wait, or when they
 * are there: the fence that this takes would otherwise stand between writing and reading.
 *
 * Source: the idea of payload inside the flag line is Open MPI's coll/xhc (immediate copy).
 */
#include "schedule/blocks.h"
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

/* Is it too long for a cell? (Of what this file does.) */
static bool is_long(const hora_coll_t *coll) {
    return coll->kind == HORA_COLL_ALLREDUCE &&
           coll->count * hora_dtype_size(coll->dtype) > HORA_PADS_TINY;
}

static bool fits_board(const hora_comm_t *comm, const hora_coll_t *coll) {
    size_t limit = hora_comm_oneshot_limit(comm);
    if (limit > HORA_PADS_BOARD)
        limit = HORA_PADS_BOARD;
    return coll->kind == HORA_COLL_ALLREDUCE && comm->size == HORA_PADS_BOARDS &&
           comm->boards_allowed && coll->count <= limit &&
           coll->count * hora_dtype_size(coll->dtype) <= limit;
}

bool hora_tiny_applies(const hora_comm_t *comm, const hora_coll_t *coll) {
    if (comm->pads == NULL || comm->size > TINY_RANKS_MAX || comm->first != NULL)
        return false;
    if (coll->kind == HORA_COLL_BARRIER)
        return true;
    if (!comm->tiny_allowed || coll->op == HORA_ADASUM ||
        (coll->kind == HORA_COLL_ALLTOALL && !hora_coll_is_even(coll)))
        return false;
    return fits_board(comm, coll) ||
           payload_count(coll) <= HORA_PADS_TINY / hora_dtype_size(coll->dtype);
}

/* ---- what goes into a cell ---- */

static void fill(const hora_coll_t *coll, uint8_t *payload) {
    size_t elem = hora_dtype_size(coll->dtype), at = 0;
    if (hora_blocks_from_root(coll) && coll->rank != coll->root)
        return;
    if (coll->kind != HORA_COLL_REDUCE_SCATTER && coll->kind != HORA_COLL_ALLTOALL) {
        size_t count = coll->kind == HORA_COLL_ALLGATHER ? coll->counts[coll->rank]
                                                         : payload_count(coll);
        if (count > 0)
            memcpy(payload, coll->in, count * elem);
        return;
    }
    for (int r = 0; r < coll->size; at += coll->counts[r++])
        if (coll->counts[r] > 0)
            memcpy(payload + at * elem, (const uint8_t *)coll->in + coll->displs[r] * elem,
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

static void reduce(const hora_coll_t *coll, const void **payloads) {
    size_t        begin = begin_of_mine(coll) * hora_dtype_size(coll->dtype);
    size_t        count = hora_blocks_count_from(coll, coll->rank);
    hora_reduce_t how;
    for (int r = 0; r < coll->size; r++)
        payloads[r] = (const uint8_t *)payloads[r] + begin;
    hora_coll_how(coll, &how);
    if (count > 0)
        hora_kernel_reduce(&how, (void *const *)&coll->out, 1, payloads, coll->size, count);
}

static void copy_out(const hora_coll_t *coll, int from, const void *payload) {
    size_t elem = hora_dtype_size(coll->dtype), count = hora_blocks_count_from(coll, from);
    if (count > 0)
        memcpy((uint8_t *)coll->out + hora_blocks_begin_out(coll, from) * elem,
               (const uint8_t *)payload + begin_of_mine(coll) * elem, count * elem);
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

/* Who has run ahead as far as is allowed waits until half of the lead is gone. */
static hora_status_t await_room(hora_comm_t *comm, const hora_coll_t *coll, uint64_t number) {
    if (comm->pads->tiny_known + HORA_PADS_LEAD >= number)
        return HORA_OK;
    return await_all(comm, coll, number - HORA_PADS_LEAD / 2);
}

static void publish(hora_pads_t *pads, const hora_coll_t *coll, uint64_t number) {
    hora_pads_cell_t *cell = &pads->lines[coll->rank]->cells[number % HORA_PADS_CELLS];
    cell->sig = hora_coll_sig(coll);
    cell->past = pads->past;
    hora_pads_remember(pads, cell->sig);
    if (is_long(coll))
        memcpy(hora_pads_board(pads, coll->rank), coll->in,
               coll->count * hora_dtype_size(coll->dtype));
    else
        fill(coll, cell->payload);
    atomic_store_explicit(&cell->number, number, memory_order_release);
    pads->unheard = true;
    if (hora_blocks_from_root(coll) || hora_blocks_to_root(coll))
        be_heard(pads, hora_pads_ring); /* some of the ranks wait for nobody */
}

/* What member `rank` shows in this call. My own vector is read where it is. */
static const void *payload_of(const hora_pads_t *pads, const hora_coll_t *coll, int rank,
                              uint64_t number) {
    if (coll->kind == HORA_COLL_ALLREDUCE && rank == coll->rank)
        return coll->in;
    return is_long(coll) ? hora_pads_board(pads, rank) : cell_of(pads, rank, number)->payload;
}

/* Takes what is for me; payloads that are not awaited here are awaited before. */
static hora_status_t take(hora_comm_t *comm, const hora_coll_t *coll, uint64_t number) {
    const void   *payloads[TINY_RANKS_MAX];
    hora_status_t st;
    if (hora_blocks_from_root(coll)) {
        st = await_cell(comm, coll, coll->root, number);
        if (st == HORA_OK)
            copy_out(coll, coll->root, cell_of(comm->pads, coll->root, number)->payload);
        return st;
    }
    st = await_all(comm, coll, number);
    for (int r = 0; st == HORA_OK && r < comm->size; r++) {
        payloads[r] = payload_of(comm->pads, coll, r, number);
        if (!hora_coll_reduces(coll->kind) && coll->kind != HORA_COLL_BARRIER)
            copy_out(coll, r, payloads[r]);
    }
    if (st == HORA_OK && hora_coll_reduces(coll->kind))
        reduce(coll, payloads);
    return st;
}

hora_status_t hora_tiny_run(hora_comm_t *comm, const hora_coll_t *coll) {
    uint64_t      number = comm->pads->tiny + 1;
    hora_status_t st = await_room(comm, coll, number);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    publish(comm->pads, coll, number);
    if (!hora_blocks_to_root(coll) || coll->rank == coll->root)
        st = take(comm, coll, number);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    comm->pads->turn ^= is_long(coll);
    comm->pads->tiny = number;
    comm->seq++;
    return HORA_OK;
}
