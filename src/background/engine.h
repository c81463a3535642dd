/*
 * What the files of the engine share.
 *
 * Threads. One thread at a time drives: it talks to the other ranks and executes. That is a thread
 * in hora_handle_wait, or the background thread while nobody waits. `driven` (under `lock`) says
 * that somebody does; fields marked "driver" belong to that thread, and `lock` passes them on to
 * the next. Everything else is under `lock`, or atomic. While `lock` is held, no transport, collective
 * or log is called; only the bell is rung.
 *
 * Nobody is forgotten: a thread that stops driving while tasks are pending wakes a waiting thread,
 * or else the background thread (hora_engine_leave). Who enqueues wakes the driver if it sleeps on
 * the bell, or else the background thread, unless that is about to look anyway.
 */
#ifndef HORA_BACKGROUND_ENGINE_H
#define HORA_BACKGROUND_ENGINE_H

#include "background/background.h"
#include "background/device.h"
#include "controller/control.h"
#include "controller/coordinator.h"
#include "controller/fuse.h"
#include "fusion/fusion.h"
#include "schedule/plan.h"
#include "transport/wait.h"
#include "util/names.h"
#include "util/timeline.h"

#include <pthread.h>

typedef struct hora_record hora_record_t;
typedef struct hora_work   hora_work_t;

/* What this rank knows of a tensor's name. Kept while it has an id, a task, a ghost, or an error to
 * tell. */
struct hora_record {
    hora_name_t      name; /* first: the table points here */
    hora_work_t     *work; /* in flight: enqueued and not ended */
    hora_work_t     *sent; /* driver: the same once it has been reported; NULL otherwise */
    bool             has_ghost; /* a ghost is in the batch, or about to be */
    uint32_t         id;   /* driver: given by the coordinator for sig; 0: none */
    uint32_t         position; /* driver: perhaps its place in the frozen schedule */
    hora_signature_t sig;  /* driver */
    hora_status_t    late_status; /* the other ranks' task of this name has failed already; or OK */
    char            *late_text;
};

/* One task. Lives in its handle. */
struct hora_work {
    hora_work_t     *prev, *next; /* in queue (lock) or flight (driver) */
    hora_handle_t   *handle;
    hora_record_t   *record; /* NULL once ended */
    hora_signature_t sig;
    const void      *in;
    void            *out;
    int64_t          rows;     /* dimension 0 of in; 1 for a scalar */
    size_t           count;    /* elements of in */
    int64_t         *splits;   /* alltoall; NULL: even. Freed with the handle */
    bool             queued;   /* in queue */
    bool             is_held;  /* in queue: enqueued after a join of this rank, which comes first */
    bool             is_ghost; /* of other ranks; this one has joined (ghost.c) */
    uint32_t         sent_id;  /* driver: reported by this id; 0: in full */
    bool             by_position; /* driver: reported as a part of the frozen schedule */
    uint64_t         since;    /* driver: ns, when the driver first saw it */
    uint64_t         next_ask; /* driver: ns, when to ask the coordinator what it waits for */
    hora_mark_t     *ready;    /* on a GPU: where the caller's stream was; dropped with the handle */
    void            *data;     /* the result, where the engine allocates it */
    int64_t         *received; /* alltoall: rows from each rank */
    int64_t          out_rows;
    bool             has_output; /* data, received and out_rows are set and were not taken */
};

struct hora_handle {
    hora_engine_t *engine;
    hora_handle_t *next_idle;
    atomic_int     done;
    bool           released;
    bool           stuck; /* on a GPU: it has failed, and what is queued may still use its buffers */
    hora_status_t  status; /* the first error */
    char          *text;   /* of it */
    hora_mark_t   *mark;   /* on a GPU: behind the work of all tasks that are done; or NULL */
    size_t         nworks, remaining;
    hora_work_t    works[];
};

/* A thread asleep in hora_handle_wait. */
typedef struct hora_sleeper {
    struct hora_sleeper *prev, *next;
    hora_handle_t       *handle;
    pthread_cond_t       wake;
} hora_sleeper_t;

typedef struct hora_works {
    hora_work_t *first, *last;
} hora_works_t;

/* What rank 0 has said will be executed again and again (frozen.c). */
typedef struct hora_frozen {
    uint32_t  epoch;
    size_t    n;         /* tasks; 0: nothing is frozen */
    uint32_t *ids;       /* [n] */
    size_t    threshold; /* of fusion: rank 0's */
    uint64_t  reported;  /* position up to which this rank has reported */
    bool      reports;   /* by position; else one by one */
    uint32_t *batch; /* [n] scratch */
    /* The batches of laid_n tasks from place laid_from on, which are the same in the next period. */
    uint32_t *order, *begins; /* [n], [n + 1] */
    size_t    laid_from, laid_n;
    uint32_t  laid_batches;
} hora_frozen_t;

typedef enum hora_thread_state {
    HORA_THREAD_NONE,     /* one rank: there is no thread */
    HORA_THREAD_ASLEEP,
    HORA_THREAD_LINGERING, /* will look again soon (linger_locked) */
    HORA_THREAD_DRIVING
} hora_thread_state_t;

struct hora_engine {
    hora_comm_t    *comm;
    hora_world_t   *world; /* gone once hora_background_free has returned, which handles may outlive */
    unsigned        fork_generation; /* the world's */
    int             rank, size;
    size_t          fusion_threshold;
    uint64_t        stall_check_ns, stall_limit_ns; /* check 0: no warnings */
    uint64_t        join_limit_ns; /* 0: a join waits for ever */
    hora_engine_t  *next_poked; /* under world->poke_lock */
    hora_timeline_source_t trace;

    pthread_mutex_t    gpu_lock; /* taken before `lock`, or alone; CUDA is called under it */
    hora_engine_gpu_t *gpu; /* under gpu_lock; NULL until there is a task on a GPU, then constant */

    pthread_mutex_t lock;
    hora_names_t    records;
    hora_works_t    queue;   /* enqueued, not yet seen by the driver */
    atomic_size_t   nqueued; /* written under lock */
    size_t          enqueued; /* tasks ever */
    atomic_size_t   pending; /* tasks enqueued and not ended; written under lock */
    bool            driven;
    hora_sleeper_t *sleepers;
    atomic_int      nsleepers; /* written under lock */
    hora_thread_state_t thread_state;
    pthread_t       thread;
    pthread_cond_t  thread_wake;
    atomic_bool     poked;   /* another rank asks the coordinator to look at its messages */
    atomic_bool     closing; /* hora_background_free has begun; written under lock */
    pthread_cond_t  left;    /* signalled when the driver leaves while closing */
    hora_handle_t  *idle;    /* handles of one task, for reuse */
    size_t          nidle;
    hora_work_t    *join;    /* this rank's join, enqueued and not ended; or NULL */
    size_t          refs;    /* live handles, and one for the engine's owner */
    hora_status_t   failed;  /* HORA_OK, or why the engine has ended */
    char            failed_text[HORA_FAILURE_TEXT_MAX];

    /* Driver. */
    hora_works_t        flight; /* reported to the coordinator; oldest first */
    hora_record_t     **by_slot;
    size_t              nslots;
    uint32_t            errors_seen, resends_seen;
    hora_frozen_t       frozen;
    bool                has_joined; /* the join has been reported: nothing more until it ends */
    hora_control_t     *control;     /* NULL: one rank */
    hora_coordinator_t *coordinator; /* rank 0 of several */
    hora_outgoing_t    *out;         /* requests that are being gathered; NULL: none */
    hora_frame_writer_t writer;
    uint64_t            next_check; /* ns: when a task in flight must be asked about */
    uint64_t            poked_until; /* ns: when to give up on what a poke announced */
    bool                fed;         /* coordinator: a request came since the last poke */
    bool               *seen_gone;   /* coordinator: [size] */
    hora_fusion_t       fusion;
    hora_tuning_t       tuning; /* equal on all ranks between batches */
    struct hora_tuner  *tuner;  /* rank 0, with autotune on; else NULL */
    hora_work_t       **batch;  /* the tasks that are executed now */
    hora_piece_t       *pieces;
    size_t              nbatch, batch_room;
    uint32_t            divisor; /* of averages, where some ranks have joined; 0: none has */
    hora_work_t        *ghosts;  /* tasks of the batch that this rank does not have */
    size_t             *blocks; /* [4 * size] counts and offsets */
    int64_t            *rows;   /* [size] */
    size_t             *lens;   /* [lens_room] bytes from each rank, for each task of a batch */
    int64_t            *all_rows; /* [lens_room] rows, for each task, from each rank */
    size_t              lens_room;
    size_t              traced, ntraced; /* trace.h: tasks of the batch that are worked on */
    bool                traced_packed;
};

#define HORA_LINGER_NS 100000 /* after the first task that the background thread sees */
#define HORA_LINGERS   10     /* and again as long as tasks come, so often at most: 1 ms */

/* work.c: tasks, records and handles. Those that end in _locked need `lock`. */
hora_record_t *hora_record_find_locked(const hora_engine_t *engine, const char *name, size_t len);
hora_record_t *hora_record_make_locked(hora_engine_t *engine, const char *name, size_t len);
hora_handle_t *hora_handle_make_locked(hora_engine_t *engine, size_t nworks);
void hora_works_append(hora_works_t *works, hora_work_t *work);
void hora_works_remove(hora_works_t *works, hora_work_t *work);
/* Frees the record if nothing needs it any more. */
void hora_record_drop_locked(hora_engine_t *engine, hora_record_t *record);
/* The task is over; its handle too if it was the last one. Driver, and the queue's owner. */
void hora_work_end_locked(hora_engine_t *engine, hora_work_t *work, hora_status_t status,
                          const char *text);
/* Ends every task, now and later. The first text is kept. Driver. */
void hora_engine_fail(hora_engine_t *engine, hora_status_t status, const char *text);
void hora_engine_fail_queued_locked(hora_engine_t *engine);
/* May leave engine->refs at 0: then hora_engine_destroy is due, without the lock. */
void hora_handle_free_locked(hora_engine_t *engine, hora_handle_t *handle);
/* What the engine allocated for a result that nobody takes. */
void hora_work_free_output(hora_engine_t *engine, hora_work_t *work);

/* drive.c */
/* Drives until handle is done, or, with handle NULL, until the background thread is not needed.
 * The caller has set `driven`. */
void hora_engine_drive(hora_engine_t *engine, const hora_handle_t *handle);
/* The caller has driven and stops. */
void hora_engine_leave_locked(hora_engine_t *engine);
/* Wakes somebody to drive if that is needed. */
void hora_engine_pass_on_locked(hora_engine_t *engine);
/* One rank, where there is no background thread: executes what is pending unless somebody does. */
void hora_engine_drive_alone_locked(hora_engine_t *engine);
/* request.c: this rank's side of the negotiation. Driver. */
hora_status_t hora_requests_report(hora_engine_t *engine, bool *moved_p);
hora_status_t hora_request_resend(hora_engine_t *engine, uint32_t id);
/* This rank has joined and the others go on: the join has not waited for nothing until now. */
void hora_requests_join_lives(hora_engine_t *engine);
/* Says how far this rank has come in the frozen schedule. */
hora_status_t hora_requests_progress(hora_engine_t *engine);
hora_status_t hora_requests_ask(hora_engine_t *engine, uint64_t now);

/* response.c: does what the coordinator says. Driver. */
/* The record that the id stands for; or NULL. */
hora_record_t *hora_response_find_id(const hora_engine_t *engine, uint32_t id);
hora_status_t hora_response_handle(hora_engine_t *engine, const uint8_t *buf, size_t len);

/* frozen.c. Driver. */
/* The tasks from `first` to the end of flight are new: true if they are the next ones of the frozen
 * schedule, and now only hora_requests_progress is due. */
bool          hora_frozen_report(hora_engine_t *engine, hora_work_t *first);
hora_status_t hora_frozen_begin(hora_engine_t *engine, const hora_item_t *item);
hora_status_t hora_frozen_advance(hora_engine_t *engine, const hora_item_t *item);
void          hora_frozen_end(hora_engine_t *engine);
void          hora_frozen_destroy(hora_engine_t *engine);

/* batch.c: executes engine->batch[0..nbatch) and ends the tasks. Driver. */
hora_status_t hora_batch_execute(hora_engine_t *engine);
hora_status_t hora_batch_add(hora_engine_t *engine, hora_work_t *work);

/* execute.c: one task on its own buffers; and what packed ones need as well. Driver. */
hora_status_t hora_execute_one(hora_engine_t *engine, size_t i); /* batch[i] */
hora_coll_t   hora_execute_describe(const hora_engine_t *engine, const hora_work_t *work,
                                    hora_coll_kind_t kind);
hora_status_t hora_execute_run(const hora_engine_t *engine, const hora_coll_t *coll);
size_t       *hora_execute_list(const hora_engine_t *engine, int i); /* [size], of blocks */
/* Turns numbers of rows, which may come from other ranks, into counts and offsets of blocks. */
hora_status_t hora_execute_lay_out(const hora_engine_t *engine, const hora_work_t *work,
                                   const int64_t *rows, size_t *counts, size_t *displs,
                                   int64_t *total_p);
hora_status_t hora_execute_make_output(const hora_engine_t *engine, hora_work_t *work, int64_t rows);
/* An allgather of which it is known how many rows each rank brings. */
hora_status_t hora_execute_gather(hora_engine_t *engine, hora_work_t *work, const int64_t *rows);
static inline size_t hora_work_elem_size(const hora_work_t *work) {
    return hora_dtype_size((hora_dtype_t)work->sig.dtype);
}

/* pack.c: tasks [from, to) of the batch, packed into the fusion buffer. For allgathers,
 * engine->lens and the works' out_rows are set. Driver. */
hora_status_t hora_pack_execute(hora_engine_t *engine, size_t from, size_t to);

/* ghost.c: tasks in which this rank takes part because it has joined. Driver. */
/* record->sig says what the task is, and record->has_ghost is set. */
hora_status_t hora_ghost_make(hora_engine_t *engine, hora_record_t *record, hora_work_t **work_p);
/* Writes what changes nothing in a reduction by op. */
void hora_ghost_fill(void *dst, hora_dtype_t dtype, hora_op_t op, size_t count);
void hora_ghosts_free_locked(hora_engine_t *engine);
bool hora_ghost_scales_first(const hora_engine_t *engine, const hora_work_t *work);

/* tune.c */
/* Sets engine->tuning; on rank 0, if settings want it, makes the tuner. Before the coordinator. */
hora_status_t hora_tuner_create(hora_engine_t *engine);
void hora_tuner_destroy(hora_engine_t *engine);
struct hora_tune *hora_tuner_tune(const hora_engine_t *engine); /* for the coordinator; or NULL */
void hora_tuning_apply(hora_engine_t *engine, const hora_tuning_t *tuning);

/* thread.c */
hora_status_t hora_thread_start(hora_engine_t *engine);
/* The engine is closing; returns when the thread has ended. */
void hora_thread_stop(hora_engine_t *engine);

/* background.c: frees the memory once refs is 0. */
void hora_engine_destroy(hora_engine_t *engine);

#endif
