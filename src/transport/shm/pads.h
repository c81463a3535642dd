/*
 * Pads: what the members of one communicator that are on one host share in their arenas: a line of
 * flags each, that only its owner writes, and slots, that all of these members read and write. Below,
 * the members are those of this host; base, phases and calls are equal on them, no more.
 *
 * Phases. Each member's line holds one counter that only grows. A collective uses phases base+1 ..
 * base+n, where base is equal on all members; afterwards base += n. With each phase goes the signature
 * of its collective, in the counter's own cache line, so that a signal is one line that changes cores. A
 * meeting's phase has a note as well. Both are kept for the last HORA_PADS_DEPTH phases; a member is never
 * more than HORA_PADS_DEPTH - 2 phases ahead of the slowest one, because every plan awaits its phases, or,
 * before it shows anything, the last one of the call before (who reads and shows nothing waits for one who
 * has).
 *
 * Cells. A tiny message's number, and what fits beside it, lie in one cache line. To begin message
 * k a member has seen k - HORA_PADS_LEAD of all, or a later one. So cell k % HORA_PADS_CELLS is
 * free for k: who has begun a later message than k - HORA_PADS_CELLS has read all that it needs of
 * that one. And the cells of the last HORA_PADS_LEAD messages of all members can be read.
 *
 * Boards. A payload that is longer than a cell lies on its member's board, right behind the one
 * before, at the same place on all boards; where it would go past the end, at the beginning. The
 * boards are cut into pages, and pages[] knows the last message on each. Who writes to a page that
 * the message before was not on has seen all members begin a message after the last one there: they
 * have read it. Two members change boards whenever they begin anew; where each reads what the other
 * shows, that is with every message. Then each writes where it has read itself, and nobody else
 * reads. Why: a core is quick to take a line that another has written and that it has read itself.
 * A line that it has written and another has read, it gets back slowly and one at a time: on a Zen
 * 4, 30 to 150 ns a line, instead of 5.
 *
 * Slots. Collective number k (pads->calls) uses slot half k % 2. It is free again: before a member writes
 * to a slot in k + 2, it has awaited the last phase of k + 1 from all, and they signalled that after
 * they had finished k. Two members may change halves as they change boards, if the plan says so.
 * A plan that `stays` is not counted, so that the next call finds its half in the caches: after its
 * last wait nobody touches another member's slot. In the next call each may write to its own at
 * once, and to another's when that member has signalled in it; no plan does so sooner.
 */
#ifndef HORA_TRANSPORT_SHM_PADS_H
#define HORA_TRANSPORT_SHM_PADS_H

#include "transport/comm.h"

#define HORA_PADS_DEPTH  14         /* as many signatures as fit beside the counter */
#define HORA_PADS_NONE   UINT64_MAX /* offset: the buffer is private */
#define HORA_PADS_CELLS  64         /* tiny messages in turn */
#define HORA_PADS_LEAD   32         /* of a member before the others, in tiny messages */
#define HORA_PADS_TINY   48         /* bytes of payload in a cell */
#define HORA_PADS_BOARD  65536      /* bytes of a board */
#define HORA_PADS_PAGE   4096       /* of it */
#define HORA_PADS_PAIR   2          /* members that change boards */

typedef struct hora_pads_note {
    uint64_t in, out; /* offsets of the member's buffers in its arena, or HORA_PADS_NONE */
    uint64_t longest; /* elements of the longest block, in or out; of an uneven alltoall */
    uint32_t balance; /* uneven alltoall: of what I send and receive; over all members it is 0 */
} hora_pads_note_t;

typedef struct hora_pads_cell {
    _Alignas(64) _Atomic uint64_t number; /* of the tiny message; written last */
    uint32_t sig;
    uint32_t past; /* the member's hora_pads.past when it began the call */
    uint8_t  payload[HORA_PADS_TINY];
} hora_pads_cell_t;

typedef struct hora_pads_line {
    _Alignas(128) _Atomic uint64_t phase;
    uint32_t sigs[HORA_PADS_DEPTH]; /* what collectives the last phases are of */
    _Alignas(64) hora_pads_note_t notes[HORA_PADS_DEPTH]; /* of those that are meetings */
    _Alignas(128) hora_pads_cell_t cells[HORA_PADS_CELLS];
} hora_pads_line_t;

struct hora_pads {
    hora_comm_t       *comm;
    int                size;       /* members: those of comm that are on my host */
    int               *members;    /* [size], ranks in comm, ascending */
    hora_peer_t      **others;     /* [size - 1]: all of them but me */
    uint64_t           base;       /* phases used up so far */
    uint64_t           calls;      /* collectives with slots so far */
    uint64_t           known;      /* phase that all members are known to have reached */
    uint32_t           last_sig;   /* of the call before, with phase `base`; 0: there was none */
    uint64_t           tiny;       /* tiny messages so far */
    uint64_t           tiny_known; /* tiny message that all members are known to have begun */
    uint32_t           past;       /* hash of the signatures of all calls so far */
    bool               unheard;    /* a message of mine is there, and no sleeper has been woken for it */
    int                turn;       /* of two members, m has board m ^ turn; else 0 */
    size_t             place;      /* of the current message on the boards */
    size_t             behind;     /* it: where the next one goes */
    uint64_t           pages[HORA_PADS_BOARD / HORA_PADS_PAGE]; /* last message on each; 0: none */
    uint8_t            turns[2];   /* of two members: member m's slot half h is that of m ^ turns[h] */
    size_t             slot_bytes; /* of one half */
    hora_pads_line_t **lines;      /* [comm->size], of each member, mapped here */
    uint8_t          **slots;      /* [comm->size], of each member: two halves */
    int               *locals;     /* [comm->size], index in the arena group */
    void              *own;        /* my block in my arena's heap */
};

/* Makes the pads of the members that share my arena: comm->pads if they are all members of comm, else
 * comm->host_pads. A half-slot has `slot_bytes` at least, and what the settings ask for. Collective
 * over these members, which exchange where their blocks lie with hora_p2p. Without memory for the
 * blocks there are none, on all of them. */
hora_status_t hora_pads_create(hora_comm_t *comm, size_t slot_bytes);
/* Gives them up; NULL is allowed. Other members may go on to read my block (retire.h). */
void hora_pads_give_up(hora_pads_t *pads);

static inline void hora_pads_remember(hora_pads_t *pads, uint32_t sig) {
    pads->past = (pads->past ^ sig) * 2654435761u + 1;
}

/* Publishes that I have reached `phase` (base + k) of the collective `sig`, and wakes sleeping members. */
void hora_pads_signal(hora_pads_t *pads, uint64_t phase, uint32_t sig);
/* Writes the note of a meeting. Call it before the signal of that phase, or of a later one that says it
 * as well. */
void hora_pads_prepare(hora_pads_t *pads, uint64_t phase, uint32_t sig,
                       const hora_pads_note_t *note);
/* Wakes the members that sleep. Call it after publishing. */
void hora_pads_wake(hora_pads_t *pads);
/* The same, and says where this member is (apart.c), before it waits. */
void hora_pads_ring(hora_pads_t *pads);
/* Has `rank` reached `phase`? Acquire: what it wrote before is visible if so. */
static inline bool hora_pads_reached(const hora_pads_t *pads, int rank, uint64_t phase) {
    return atomic_load_explicit(&pads->lines[rank]->phase, memory_order_acquire) >= phase;
}
/* The signature of a phase that `rank` has reached. */
static inline uint32_t hora_pads_sig(const hora_pads_t *pads, int rank, uint64_t phase) {
    return pads->lines[rank]->sigs[phase % HORA_PADS_DEPTH];
}
/* The note of a meeting that `rank` has reached. */
static inline const hora_pads_note_t *hora_pads_note(const hora_pads_t *pads, int rank,
                                                     uint64_t phase) {
    return &pads->lines[rank]->notes[phase % HORA_PADS_DEPTH];
}
/* Where `rank` shows the current message on its board. */
static inline uint8_t *hora_pads_board(const hora_pads_t *pads, int rank) {
    return (uint8_t *)(pads->lines[rank ^ pads->turn] + 1) + pads->place;
}
/* The half-slot of `rank` for the current call. */
static inline uint8_t *hora_pads_slot(const hora_pads_t *pads, int rank) {
    size_t half = pads->calls & 1;
    return pads->slots[rank ^ pads->turns[half]] + half * pads->slot_bytes;
}

#endif
