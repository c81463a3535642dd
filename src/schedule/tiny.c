/*
 * Tiny allreduces and barriers on one host: one cache line per rank carries payload and number, so
 * a call costs one line written and size - 1 lines read. It is the one-shot plan (oneshot.c) run
 * without a plan. On the calling thread.
 *
 * Source: the idea of payload inside the flag line is Open MPI's coll/xhc (immediate copy).
 */
#include "schedule/algos.h"
#include "transport/shm/pads.h"
#include "transport/wait.h"

#include <kernels/cpu/kernels.h>
#include <string.h>

#define TINY_RANKS_MAX 64

bool hora_tiny_applies(const hora_comm_t *comm, const hora_coll_t *coll) {
    if (comm->pads == NULL || comm->size > TINY_RANKS_MAX || comm->first != NULL)
        return false;
    if (coll->kind == HORA_COLL_BARRIER)
        return true;
    return coll->kind == HORA_COLL_ALLREDUCE && comm->tiny_allowed && coll->op != HORA_ADASUM &&
           coll->count <= HORA_PADS_TINY / hora_dtype_size(coll->dtype);
}

static hora_status_t await_cell(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                                const hora_pads_cell_t *cell, uint64_t number) {
    hora_waiter_t w;
    hora_status_t st = HORA_OK;
    hora_waiter_begin(&w, comm, coll->timeout, hora_coll_name(coll->kind));
    while (st == HORA_OK && atomic_load_explicit(&cell->number, memory_order_acquire) < number)
        st = hora_waiter_turn(&w, rank);
    hora_waiter_end(&w);
    return st;
}

static void publish(hora_pads_t *pads, const hora_coll_t *coll, uint64_t number, uint32_t sig) {
    hora_pads_cell_t *cell = &pads->lines[coll->rank]->cells[number % HORA_PADS_CELLS];
    cell->sig = sig;
    if (coll->count > 0)
        memcpy(cell->payload, coll->in, coll->count * hora_dtype_size(coll->dtype));
    atomic_store_explicit(&cell->number, number, memory_order_release);
    hora_pads_ring(pads);
}

static void combine(const hora_coll_t *coll, const void *const *payloads) {
    hora_reduce_t how;
    if (coll->count == 0)
        return;
    hora_coll_how(coll, &how);
    hora_kernel_reduce(&how, (void *const *)&coll->out, 1, payloads, coll->size, coll->count);
}

hora_status_t hora_tiny_run(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_pads_t *pads = comm->pads;
    const void  *payloads[TINY_RANKS_MAX];
    uint64_t     number = pads->tiny + 1;
    uint32_t     sig = hora_coll_sig(coll);
    publish(pads, coll, number, sig);
    for (int r = 0; r < comm->size; r++) {
        const hora_pads_cell_t *cell = &pads->lines[r]->cells[number % HORA_PADS_CELLS];
        hora_status_t           st = HORA_OK;
        if (atomic_load_explicit(&cell->number, memory_order_acquire) < number)
            st = await_cell(comm, coll, r, cell, number);
        if (st == HORA_OK && cell->sig != sig)
            st = hora_coll_mismatch(comm, coll, r, cell->sig);
        if (st != HORA_OK)
            return hora_coll_fail(comm, st);
        payloads[r] = cell->payload;
    }
    combine(coll, payloads);
    pads->tiny = number;
    comm->seq++;
    return HORA_OK;
}
