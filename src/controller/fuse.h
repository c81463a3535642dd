/*
 * Which tasks are executed together: the rule, as a function of what is equal on all ranks. The
 * coordinator applies it to what it says one by one, and every rank to a frozen schedule. Pure
 * code.
 *
 * Each task joins the newest batch of its kind, type, operation, root and scales while the batch
 * stays within the threshold, so types that alternate still fuse. Batches come in the order in
 * which they were begun. How many rows the ranks bring to an allgather is not known here: who
 * executes the batch looks to it.
 */
#ifndef HORA_CONTROLLER_FUSE_H
#define HORA_CONTROLLER_FUSE_H

#include "controller/signature.h"

#define HORA_FUSE_OPEN 8     /* batches that still grow at one time; the oldest is closed first */
#define HORA_FUSE_REFS 60000 /* bytes of references in a batch: it must fit one frame */

/* A batch that still grows. */
typedef struct hora_fuse_batch {
    const hora_signature_t *sig; /* of its first task; NULL: unused */
    size_t                  bytes, refs;
    uint32_t                nready; /* ranks that have its tasks */
    uint32_t                number; /* head, number: the caller's */
    void                   *head;
} hora_fuse_batch_t;

typedef struct hora_fuser {
    size_t            threshold; /* bytes; 0: fuse nothing */
    size_t            oldest;
    hora_fuse_batch_t open[HORA_FUSE_OPEN];
} hora_fuser_t;

static inline void hora_fuser_init(hora_fuser_t *fuser, size_t threshold) {
    *fuser = (hora_fuser_t){.threshold = threshold};
}
/* The next task: `bytes` of its tensor, `refs` of its reference in a frame. Returns the batch that
 * it belongs to, or NULL: one of its own. *is_new_p: the batch begins with it. sig must stay where
 * it is. */
hora_fuse_batch_t *hora_fuser_add(hora_fuser_t *fuser, const hora_signature_t *sig, size_t bytes,
                                  size_t refs, uint32_t nready, bool *is_new_p);

#endif
