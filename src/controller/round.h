/*
 * What the coordinator's files share: its tables and the state of each name's round.
 */
#ifndef HORA_CONTROLLER_ROUND_H
#define HORA_CONTROLLER_ROUND_H

#include "controller/coordinator.h"
#include "controller/tune.h"
#include "util/names.h"

typedef struct hora_entry hora_entry_t;
typedef struct hora_group hora_group_t;

/* A tensor's name and its round. Free when it has no id, no round, and no failure to remember. */
struct hora_entry {
    hora_name_t      name; /* first: the tables point here */
    uint32_t         id;   /* generation << 16 | slot; 0: none */
    bool             used; /* since the clock hand passed by */
    bool             id_stale; /* the ranks have dropped the id, after a failure */
    bool             complete; /* every rank has reported, or has joined */
    bool             is_listed; /* in the ready list or in a batch */
    bool             is_failed; /* failed_seq counts; in the list of failed entries */
    int              first;     /* rank that began the round */
    uint32_t         nready;
    uint32_t         failed_seq;     /* number of the error that its last failed round got */
    uint64_t         failed_keys[2]; /* groups that failed with it; of these, */
    bool             failed_counted; /* the second has counted it as known */
    uint64_t         warned_at;      /* ns; 0: not in this round */
    hora_signature_t id_sig;         /* what the id stands for */
    hora_signature_t own_sig;        /* of a round that began with a full request */
    const hora_signature_t *sig;     /* of this round: one of these two */
    size_t           bytes;
    hora_tune_mark_t mark;
    hora_group_t    *group;
    hora_entry_t    *group_next;
    hora_entry_t    *next;       /* in the ready list, then in its batch */
    hora_entry_t    *batch_next; /* first of a batch: the next batch */
    hora_entry_t    *batch_last;
    size_t           batch_refs; /* bytes of the references in a frame */
    uint32_t         batch_count;
    uint32_t         freeze_mark; /* it is in the sequence of that number */
    hora_entry_t    *failed_prev, *failed_next;
    hora_entry_t    *asked_next;
    uint64_t         asked_ns; /* a rank asks about it and has waited so long; 0: none does */
    uint64_t        *ready; /* bit per rank */
};

/* Tasks that are executed together. A failed group is kept until all its tasks have been seen. */
struct hora_group {
    hora_name_t   name; /* its text is the key */
    uint64_t      key;
    uint32_t      size, known, ready;
    hora_entry_t *first, **tail;
    bool          failed;
    hora_status_t status;
    char          text[HORA_TEXT_MAX];
};

/* Something to say that is no execution. */
typedef struct hora_note {
    struct hora_note *next;
    hora_item_type_t  type;
    bool              is_last; /* to be said after every batch */
    hora_status_t     status;
    uint32_t          rank, id;
    size_t            name_len;
    char              text[HORA_TEXT_MAX];
    char              name[];
} hora_note_t;

typedef enum hora_freeze_state {
    HORA_FREEZE_OFF,
    HORA_FREEZE_COLLECTING,
    HORA_FREEZE_FROZEN
} hora_freeze_state_t;

/* The frozen schedule (freeze.c). */
typedef struct hora_freeze {
    /* The sequence of ids that is being learnt; closed: it has begun again. */
    uint32_t *seq;
    size_t    nseq, seq_room, at; /* at: position in it */
    bool      is_closed, is_due;  /* due: to be frozen as soon as all before it was said */
    uint32_t  periods, periods_wanted, mark;

    hora_freeze_state_t state;
    uint32_t  epoch;
    uint32_t *ids; /* [n] the frozen one, also after a thaw */
    size_t    n;
    uint64_t  done, ready; /* positions: said; ready everywhere */
    uint64_t *upto;     /* [size] position up to which each rank is ready */
    int       nleast;   /* FROZEN: ranks that are ready up to `ready` only */
    bool     *answered; /* [size] it has read FREEZE */
    bool     *single;   /* [size] and reports by itself */
    int       nanswers;
} hora_freeze_t;

struct hora_coordinator {
    hora_coordinator_options_t options;
    size_t         words;  /* of a bit set over ranks */
    hora_names_t   names;  /* hora_entry_t */
    hora_names_t   groups; /* hora_group_t */
    hora_entry_t **slots;  /* [cache_capacity], by id */
    uint16_t      *generations;
    size_t         slots_used, hand;
    uint32_t       errors; /* said so far */
    uint32_t      *acked;  /* [size] errors that each rank had seen at its last frame */
    bool          *left;   /* [size] */
    int            nleft;
    uint32_t      *resends; /* [size] RESEND items said to each rank */
    hora_freeze_t  freeze;
    hora_entry_t  *join;    /* while some rank has joined: what it has reported then; or NULL */
    hora_entry_t  *ready, **ready_tail;     /* complete, in the order in which they became so */
    hora_entry_t  *batches, **batches_tail; /* planned, not said yet */
    hora_note_t   *notes, **notes_tail;
    hora_entry_t  *failed_first, *failed_last; /* by failed_seq */
    size_t         nfailed;
    hora_entry_t  *asked;        /* entries with asked_ns */
    uint64_t       asked_at;     /* ns; of the last question */
    uint64_t       warned_since; /* ns; begin of the interval in which `warned` counts */
    int            warned;
};

static inline bool hora_entry_reported(const hora_entry_t *e, int rank) {
    return e->ready[rank >> 6] >> (rank & 63) & 1;
}

static inline bool hora_rank_has_joined(const hora_coordinator_t *c, int rank) {
    return c->join != NULL && hora_entry_reported(c->join, rank);
}

/* The rank has not reported the entry and still could. */
static inline bool hora_entry_misses(const hora_coordinator_t *c, const hora_entry_t *e, int rank) {
    return !hora_entry_reported(e, rank) && (e == c->join || !hora_rank_has_joined(c, rank));
}

/* entry.c */
/* Number of ranks that the entry misses. */
int hora_entry_missing(const hora_coordinator_t *c, const hora_entry_t *e);
hora_entry_t *hora_entry_find(const hora_coordinator_t *c, uint64_t hash, const char *name,
                              size_t name_len);
hora_entry_t *hora_entry_make(hora_coordinator_t *c, uint64_t hash, const char *name,
                              size_t name_len); /* NULL: no memory */
void hora_entry_end_round(hora_coordinator_t *c, hora_entry_t *e);
/* Frees the entry if nothing needs it any more. */
void hora_entry_drop(hora_coordinator_t *c, hora_entry_t *e);
void hora_cache_assign(hora_coordinator_t *c, hora_entry_t *e); /* id 0: none is free */
hora_entry_t *hora_cache_find(hora_coordinator_t *c, uint32_t id); /* NULL: not known any more */
hora_group_t *hora_group_find(hora_coordinator_t *c, uint64_t key);
hora_status_t hora_group_make(hora_coordinator_t *c, uint64_t key, uint32_t size,
                              hora_group_t **group_p);
void hora_group_free(hora_coordinator_t *c, hora_group_t *group);

/* freeze.c */
hora_status_t hora_freeze_create(hora_coordinator_t *c);
void          hora_freeze_destroy(hora_coordinator_t *c);
/* e is complete. is_plain: every rank has it, and knows its id. */
void          hora_freeze_note(hora_coordinator_t *c, hora_entry_t *e, bool is_plain);
hora_status_t hora_freeze_thaw(hora_coordinator_t *c);
hora_status_t hora_freeze_check_single(hora_coordinator_t *c, int rank);
bool          hora_freeze_has_item(const hora_coordinator_t *c);
/* Everything else has been said. False: there is nothing, or it does not fit. */
bool          hora_freeze_say(hora_coordinator_t *c, hora_frame_writer_t *w);
/* coordinator.c: the rank has reported the frozen tasks at positions [from, to). */
hora_status_t hora_freeze_count_single(hora_coordinator_t *c, int rank, uint64_t from,
                                       uint64_t to);
/* batches.c: do the ranks not know the id for it? */
bool hora_entry_needs_name(const hora_entry_t *e);

/* stall.c: answers what the ranks have asked. */
void hora_stalls_answer(hora_coordinator_t *c);

/* failing.c. Each fails the round of the entry and those of its group. */
hora_status_t hora_round_fail(hora_coordinator_t *c, hora_entry_t *e, hora_status_t status,
                              const char *text);
/* Rank `rank` reported the entry with another signature. */
hora_status_t hora_round_mismatch(hora_coordinator_t *c, hora_entry_t *e, int rank,
                                  const hora_signature_t *sig);
hora_status_t hora_round_fail_left(hora_coordinator_t *c, hora_entry_t *e);
/* A broadcast whose root has joined. */
hora_status_t hora_round_fail_root(hora_coordinator_t *c, hora_entry_t *e);
/* A task arrived whose group has failed. */
hora_status_t hora_round_fail_late(hora_coordinator_t *c, hora_entry_t *e, hora_group_t *group);
/* Rank reported, too late, a task of a failed round; in the group of `sig`. */
hora_status_t hora_round_swallow(hora_coordinator_t *c, hora_entry_t *e,
                                 const hora_signature_t *sig);
/* Forgets failures that every rank has seen. */
void hora_failures_forget(hora_coordinator_t *c);
void hora_failure_forget(hora_coordinator_t *c, hora_entry_t *e);
hora_status_t hora_note_add(hora_coordinator_t *c, hora_item_type_t type, const hora_entry_t *e,
                            const char *text, hora_note_t **note_p);

#endif
