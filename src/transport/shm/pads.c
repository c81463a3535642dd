/*
 * Pads (pads.h): where the members of a communicator meet in shared memory. Made and freed on the
 * thread that makes the communicator; signalled and read by the one thread that uses it.
 */
#include "transport/shm/pads.h"

#include "transport/p2p.h"
#include "transport/shm/arena.h"
#include "transport/shm/retire.h"
#include "transport/wait.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* What members tell each other when pads are made. */
typedef struct offer {
    uint64_t offset; /* of my block in my arena; HORA_PADS_NONE: I could not allocate it */
    uint64_t slot_bytes;
} offer_t;

static size_t slot_bytes(const hora_settings_t *settings) {
    size_t bytes = 3 * settings->chunk_size; /* regions of the push (schedule/arena.c) */
    if (bytes < settings->oneshot_limit)
        bytes = settings->oneshot_limit;
    if (bytes < 65536)
        bytes = 65536;
    return (bytes + 4095) & ~(size_t)4095;
}

static void pads_free(hora_pads_t *pads) {
    free(pads->lines);
    free(pads->slots);
    free(pads->locals);
    free(pads);
}

static hora_pads_t *pads_new(hora_comm_t *comm) {
    hora_pads_t *pads = calloc(1, sizeof(*pads));
    size_t       n = (size_t)comm->size;
    if (pads == NULL)
        return NULL;
    pads->comm = comm;
    pads->lines = calloc(n, sizeof(*pads->lines));
    pads->slots = calloc(n, sizeof(*pads->slots));
    pads->locals = calloc(n, sizeof(*pads->locals));
    if (pads->lines == NULL || pads->slots == NULL || pads->locals == NULL) {
        pads_free(pads);
        return NULL;
    }
    for (int i = 0; i < comm->size; i++)
        pads->locals[i] = hora_comm_peer(comm, i)->local;
    return pads;
}

/* Every member's offer to every member; offers[comm->rank] is mine. */
static hora_status_t exchange(hora_comm_t *comm, offer_t *offers) {
    int           n = comm->size;
    hora_xfer_t  *xfers = calloc(2 * (size_t)n, sizeof(*xfers));
    hora_status_t st = HORA_OK;
    if (xfers == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", n);
    for (int i = 0; i < 2 * n; i++) {
        bool sends = i >= n;
        int  peer = i % n;
        xfers[i].buf = sends ? &offers[comm->rank] : &offers[peer];
        xfers[i].len = sizeof(offer_t);
        xfers[i].tag = hora_tag_user(comm->channel, INT_MAX);
        if (peer == comm->rank)
            continue;
        (sends ? hora_p2p_send : hora_p2p_recv)(comm->world, comm->world_ranks[peer], &xfers[i]);
    }
    for (int i = 0; i < 2 * n; i++)
        if (i % n != comm->rank && st == HORA_OK)
            st = hora_p2p_wait(comm, &xfers[i], 0, "making a communicator");
        else if (i % n != comm->rank)
            hora_p2p_cancel(comm->world, &xfers[i]);
    free(xfers);
    return st;
}

/* Finds the members' blocks. False when some member has none: then nobody uses pads. An offer that
 * does not fit its arena is treated like that too. */
static bool locate(hora_pads_t *pads, const offer_t *offers) {
    hora_comm_t *comm = pads->comm;
    pads->slot_bytes = (size_t)offers[0].slot_bytes;
    for (int i = 0; i < comm->size; i++) {
        if (offers[i].offset == HORA_PADS_NONE || offers[i].slot_bytes > (1u << 30))
            return false;
        if (offers[i].slot_bytes < pads->slot_bytes)
            pads->slot_bytes = (size_t)offers[i].slot_bytes;
        uint8_t *block = hora_arena_at(comm->world->arena, pads->locals[i], offers[i].offset,
                                       sizeof(hora_pads_line_t) + 2 * (size_t)offers[i].slot_bytes);
        if (block == NULL || offers[i].offset % 64 != 0)
            return false;
        pads->lines[i] = (hora_pads_line_t *)block;
        pads->slots[i] = block + sizeof(hora_pads_line_t);
    }
    return true;
}

static void make_offer(hora_pads_t *pads, offer_t *offer) {
    hora_arena_t *arena = pads->comm->world->arena;
    *offer = (offer_t){HORA_PADS_NONE, slot_bytes(&pads->comm->world->settings)};
    size_t bytes = sizeof(hora_pads_line_t) + 2 * (size_t)offer->slot_bytes;
    if (hora_arena_alloc(arena, bytes, &pads->own) != HORA_OK) {
        pads->own = NULL;
        return;
    }
    memset(pads->own, 0, sizeof(hora_pads_line_t));
    hora_arena_offset(arena, pads->own, bytes, &offer->offset);
}

/* Before anyone has used them. */
static void discard(hora_pads_t *pads) {
    if (pads->own != NULL)
        hora_arena_free(pads->comm->world->arena, pads->own);
    pads_free(pads);
}

hora_status_t hora_pads_create(hora_comm_t *comm) {
    hora_pads_t  *pads = pads_new(comm);
    offer_t      *offers = calloc((size_t)comm->size, sizeof(*offers));
    bool          offers_fit;
    hora_status_t st = HORA_OK;
    hora_retired_sweep(comm->world);
    if (pads == NULL || offers == NULL) {
        st = hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", comm->size);
        goto err_free;
    }
    make_offer(pads, &offers[comm->rank]);
    st = exchange(comm, offers);
    if (st != HORA_OK)
        goto err_free;
    offers_fit = locate(pads, offers);
    free(offers);
    if (offers_fit)
        comm->pads = pads;
    else
        discard(pads); /* without pads everything works, over links */
    return HORA_OK;
err_free:
    free(offers);
    if (pads != NULL)
        discard(pads);
    return st;
}

void hora_pads_give_up(hora_pads_t *pads) {
    if (pads == NULL)
        return;
    if (pads->own != NULL)
        hora_retire(pads->comm, pads->own);
    pads_free(pads);
}

void hora_pads_ring(hora_pads_t *pads) {
    hora_comm_t *comm = pads->comm;
    if (comm->world->has_cores)
        hora_apart_note(comm->world);
    atomic_thread_fence(memory_order_seq_cst);
    for (int i = 0; i < comm->size; i++) {
        hora_peer_t *peer = hora_comm_peer(comm, i);
        if (i != comm->rank && atomic_load_explicit(&peer->bell->waiting, memory_order_relaxed))
            hora_bell_wake(peer->bell, peer->eventfd);
    }
}

void hora_pads_signal(hora_pads_t *pads, uint64_t phase, const hora_pads_note_t *note) {
    hora_pads_line_t *line = pads->lines[pads->comm->rank];
    line->notes[phase % HORA_PADS_DEPTH] = *note;
    atomic_store_explicit(&line->phase, phase, memory_order_release);
    hora_pads_ring(pads);
}
