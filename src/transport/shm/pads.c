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

static size_t slot_bytes_for(const hora_settings_t *settings, size_t bytes) {
    if (bytes < 3 * settings->chunk_size)
        bytes = 3 * settings->chunk_size; /* the push's two regions (schedule/arena.c) */
    if (bytes < settings->oneshot_limit)
        bytes = settings->oneshot_limit;
    if (bytes < 65536)
        bytes = 65536;
    return (bytes + 4095) & ~(size_t)4095;
}

/* A member's line, board and slots, one after the other. */
static size_t block_bytes(size_t slot) {
    return sizeof(hora_pads_line_t) + HORA_PADS_BOARD + 2 * slot;
}

static void pads_free(hora_pads_t *pads) {
    free(pads->lines);
    free(pads->slots);
    free(pads->locals);
    free(pads->members);
    free(pads->others);
    free(pads);
}

static hora_pads_t *pads_new(hora_comm_t *comm) {
    hora_pads_t *pads = calloc(1, sizeof(*pads));
    size_t       n = (size_t)comm->size;
    int          others = 0;
    if (pads == NULL)
        return NULL;
    pads->comm = comm;
    pads->lines = calloc(n, sizeof(*pads->lines));
    pads->slots = calloc(n, sizeof(*pads->slots));
    pads->locals = calloc(n, sizeof(*pads->locals));
    pads->members = calloc(n, sizeof(*pads->members));
    pads->others = calloc(n, sizeof(*pads->others));
    if (pads->lines == NULL || pads->slots == NULL || pads->locals == NULL ||
        pads->members == NULL || pads->others == NULL) {
        pads_free(pads);
        return NULL;
    }
    for (int i = 0; i < comm->size; i++) {
        pads->locals[i] = hora_comm_peer(comm, i)->local;
        if (hora_comm_peer(comm, i)->bell == NULL)
            continue;
        pads->members[pads->size++] = i;
        if (i != comm->rank)
            pads->others[others++] = hora_comm_peer(comm, i);
    }
    return pads;
}

/* Every member's offer to every member; offers[] is by rank in comm. */
static hora_status_t exchange(const hora_pads_t *pads, offer_t *offers) {
    hora_comm_t  *comm = pads->comm;
    int           n = pads->size;
    hora_xfer_t  *xfers = calloc(2 * (size_t)n, sizeof(*xfers));
    hora_status_t st = HORA_OK;
    if (xfers == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", comm->size);
    for (int i = 0; i < 2 * n; i++) {
        bool sends = i >= n;
        int  peer = pads->members[i % n];
        xfers[i].buf = sends ? &offers[comm->rank] : &offers[peer];
        xfers[i].len = sizeof(offer_t);
        xfers[i].tag = hora_tag_user(comm->channel, INT_MAX);
        if (peer == comm->rank)
            continue;
        (sends ? hora_p2p_send : hora_p2p_recv)(comm->world, comm->world_ranks[peer], &xfers[i]);
    }
    for (int i = 0; i < 2 * n; i++)
        if (pads->members[i % n] != comm->rank && st == HORA_OK)
            st = hora_p2p_wait(comm, &xfers[i], 0, "making a communicator");
        else if (pads->members[i % n] != comm->rank)
            hora_p2p_cancel(comm->world, &xfers[i]);
    free(xfers);
    return st;
}

/* Finds the members' blocks. False when some member has none: then nobody uses pads. An offer that
 * does not fit its arena is treated like that too. */
static bool locate(hora_pads_t *pads, const offer_t *offers) {
    hora_comm_t *comm = pads->comm;
    pads->slot_bytes = (size_t)offers[pads->members[0]].slot_bytes;
    for (int i = 0; i < pads->size; i++) {
        int            r = pads->members[i];
        const offer_t *offer = &offers[r];
        if (offer->offset == HORA_PADS_NONE || offer->slot_bytes > (1u << 30))
            return false;
        if (offer->slot_bytes < pads->slot_bytes)
            pads->slot_bytes = (size_t)offer->slot_bytes;
        uint8_t *block = hora_arena_at(comm->world->arena, pads->locals[r], offer->offset,
                                       block_bytes((size_t)offer->slot_bytes));
        if (block == NULL || offer->offset % 64 != 0)
            return false;
        pads->lines[r] = (hora_pads_line_t *)block;
        pads->slots[r] = block + sizeof(hora_pads_line_t) + HORA_PADS_BOARD;
    }
    return true;
}

static void make_offer(hora_pads_t *pads, size_t slot_bytes, offer_t *offer) {
    hora_arena_t *arena = pads->comm->world->arena;
    size_t        bytes = block_bytes(slot_bytes);
    *offer = (offer_t){HORA_PADS_NONE, slot_bytes};
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

hora_status_t hora_pads_create(hora_comm_t *comm, size_t slot_bytes) {
    hora_pads_t  *pads = pads_new(comm);
    offer_t      *offers = calloc((size_t)comm->size, sizeof(*offers));
    bool          offers_fit;
    hora_status_t st = HORA_OK;
    hora_retired_sweep(comm->world);
    if (pads == NULL || offers == NULL) {
        st = hora_fail(HORA_ERR_NO_MEMORY, "a communicator of %d ranks", comm->size);
        goto err_free;
    }
    make_offer(pads, slot_bytes_for(&comm->world->settings, slot_bytes), &offers[comm->rank]);
    st = exchange(pads, offers);
    if (st != HORA_OK)
        goto err_free;
    offers_fit = locate(pads, offers);
    free(offers);
    if (!offers_fit)
        discard(pads); /* without pads everything works, over links */
    else if (pads->size == comm->size)
        comm->pads = pads;
    else
        comm->host_pads = pads;
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
        hora_retire(pads->comm, pads->members, pads->size, NULL, pads->own);
    pads_free(pads);
}

void hora_pads_wake(hora_pads_t *pads) {
    atomic_thread_fence(memory_order_seq_cst);
    for (int i = 0; i < pads->size - 1; i++) {
        hora_peer_t *peer = pads->others[i];
        if (atomic_load_explicit(&peer->bell->waiting, memory_order_relaxed))
            hora_bell_wake(peer->bell, peer->eventfd);
    }
}

void hora_pads_ring(hora_pads_t *pads) {
    if (pads->comm->world->has_cores)
        hora_apart_note(pads->comm->world);
    hora_pads_wake(pads);
}

_Static_assert(sizeof(((hora_pads_line_t *)NULL)->phase) +
                       sizeof(((hora_pads_line_t *)NULL)->sigs) == 64,
               "a phase and its signature are in one cache line");

void hora_pads_prepare(hora_pads_t *pads, uint64_t phase, uint32_t sig,
                       const hora_pads_note_t *note) {
    hora_pads_line_t *line = pads->lines[pads->comm->rank];
    line->notes[phase % HORA_PADS_DEPTH] = *note;
    line->sigs[phase % HORA_PADS_DEPTH] = sig;
}

void hora_pads_signal(hora_pads_t *pads, uint64_t phase, uint32_t sig) {
    hora_pads_line_t *line = pads->lines[pads->comm->rank];
    line->sigs[phase % HORA_PADS_DEPTH] = sig;
    atomic_store_explicit(&line->phase, phase, memory_order_release);
    hora_pads_ring(pads);
}
