/*
 * One collective in execution: what exec.c (queue, waiting), run.c (steps) and stage.c (buffers)
 * share. Used by the one thread that uses the communicator.
 */
#ifndef HORA_SCHEDULE_RUN_H
#define HORA_SCHEDULE_RUN_H

#include "schedule/algos.h"
#include "schedule/exec.h"
#include "transport/transport.h"

typedef enum hora_exec_state {
    HORA_EXEC_QUEUED, /* others come first */
    HORA_EXEC_MEET,   /* waits until every member has come and shown its signature and buffers */
    HORA_EXEC_STEPS,  /* runs the plan */
    HORA_EXEC_DONE
} hora_exec_state_t;

/* Where another member's buffers are, as this process sees them. */
typedef struct hora_exec_peer {
    uint64_t in_at, out_at; /* as published */
    uint8_t *in, *out;
} hora_exec_peer_t;

typedef struct hora_exec_xfer {
    hora_xfer_t xfer;
    int         peer; /* member */
} hora_exec_xfer_t;

/* What a plan was made for; compared as bytes. The counts are compared beside it. */
typedef struct hora_plan_key {
    const hora_algo_t *algo;
    size_t             kind, dtype, rank, size, root, count;
    size_t             elem_size, chunk, slot, longest, shared;
} hora_plan_key_t;

struct hora_exec {
    hora_exec_t *next; /* in comm->first.. or comm->idle */
    hora_comm_t *comm;
    hora_coll_t  coll;  /* as asked; its arrays and name are copies */
    hora_coll_t  inner; /* what the plan runs on: perhaps staged buffers, perhaps float32 */
    hora_status_t     status; /* HORA_IN_PROGRESS until done */
    hora_exec_state_t state;

    const hora_algo_t *algo;
    hora_pads_t       *pads; /* where the members of my host meet; NULL: nowhere */
    hora_plan_t        plan;
    hora_plan_key_t    key; /* of plan; zero: none */
    size_t            *arrays; /* counts, displs, other_counts, other_displs: 4 * size */
    char               name[64];
    char               what[112]; /* "allreduce 'x' (ring)", for messages */
    hora_reduce_t      how;
    bool               widened; /* inner is float32 for a half type */
    bool               meets;
    bool               shared;  /* all members' buffers are in the arena */

    uint32_t          sig;
    uint64_t          tag;
    size_t            pc;      /* next step */
    uint32_t          started; /* transfers [0, started) have been started ... */
    uint32_t          drained; /* ... and [0, drained) are known to be done */
    size_t            longest; /* uneven alltoall: elements of the longest block of all members */
    int               next_member; /* of the phase being awaited: those before it have come */
    hora_exec_xfer_t *xfers;
    size_t            xfers_room;
    hora_exec_peer_t *peers; /* [size] */
    void            **ptrs;  /* [2 * size + 2] scratch for a reduction */
    uint8_t          *tmp, *work;
    size_t            tmp_room, work_room; /* bytes */

    /* Why it does not move on: */
    const hora_xfer_t *blocked_xfer; /* this transfer; or, if NULL, */
    uint64_t           blocked_phase; /* this phase of blocked_rank */
    int                blocked_rank;
    uint64_t           blocked_since; /* ns; 0: not; only hora_exec_progress looks at it */
    uint64_t           blocked_gone;  /* ns: when that rank was first seen to have left, or 0 */
};

/* ---- stage.c: the one place where input is prepared and output finished beside the plan ---- */

/* Sets exec->inner, ->how, ->widened. Copies the input where the plan cannot run on it as it is:
 * halves that must be summed in float32, a prescale that the algorithm does not apply, overlaps
 * that plans do not know. HORA_ERR_NO_MEMORY. */
hora_status_t hora_stage_in(hora_exec_t *exec);
/* Does the output overlap the input in another way than plans allow (plan.h)? Then it is copied. */
bool hora_stage_overlaps(const hora_coll_t *coll);
/* Will hora_stage_in give the plan another input than the caller's? */
bool hora_stage_copies(const hora_exec_t *exec);
/* Rounds float32 results to the half type. */
void hora_stage_out(hora_exec_t *exec);
/* All of the collective, for one rank. */
void hora_stage_alone(const hora_coll_t *coll);
/* Makes *mem_p at least `bytes` long; contents are lost. HORA_ERR_NO_MEMORY. */
hora_status_t hora_stage_reserve(uint8_t **mem_p, size_t *room_p, size_t bytes);

/* ---- run.c ---- */

/* The first move of the operation at the head of the queue. */
hora_status_t hora_run_begin(hora_exec_t *exec);
/* Moves it on as far as it goes without waiting: HORA_IN_PROGRESS (blocked_* say why), HORA_OK, or
 * an error as this thread's last error. */
hora_status_t hora_run_advance(hora_exec_t *exec);
/* Could it move on now? */
bool hora_run_ready(const hora_exec_t *exec);
/* HORA_ERR_MISMATCH if the rank that is waited for is in a tiny call (tiny.c) instead. */
hora_status_t hora_run_check_crossing(hora_exec_t *exec);
/* Withdraws all transfers in flight. */
void hora_run_cancel(hora_exec_t *exec);

#endif
