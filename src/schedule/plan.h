/*
 * Plans: what one rank does for one collective, as a straight-line program of steps. Algorithms
 * (ring.c, doubling.c, halving.c, direct.c, tree.c, arena.c, ...) only emit steps; run.c executes
 * them over links or the arena, and the unit tests execute them for 64 ranks in one process.
 *
 * Steps run in program order. SEND and RECV only start a transfer, numbered by `xfer`; WAIT waits
 * for one; what is still in flight at the end is waited for. So pipelining is a matter of the
 * order in which steps are emitted: post the next receive before waiting for the last.
 * SIGNAL and AWAIT order accesses to memory that other ranks see (the arena): SIGNAL k publishes
 * that everything up to here is done, AWAIT k waits until every member of this host, or one, has reached
 * its SIGNAL k; AWAIT 0 until every member has reached the last SIGNAL of the call before. A plan does
 * that before it first writes to its slot (pads.h).
 */
#ifndef HORA_SCHEDULE_PLAN_H
#define HORA_SCHEDULE_PLAN_H

#include "transport/hosts.h"

#include <stdint.h>

typedef enum hora_coll_kind {
    HORA_COLL_ALLREDUCE = 1,
    HORA_COLL_REDUCE,
    HORA_COLL_REDUCE_SCATTER, /* v form; counts[] is always set */
    HORA_COLL_ALLGATHER,      /* v form; counts[] is always set */
    HORA_COLL_BROADCAST,
    HORA_COLL_ALLTOALL,       /* v form; counts[] and other_counts[] (and displs) are always set */
    HORA_COLL_GATHER,
    HORA_COLL_SCATTER,
    HORA_COLL_BARRIER,
    HORA_COLL_KIND_COUNT
} hora_coll_kind_t;

/* One collective as asked for. Offsets and counts are in elements. Immutable once started. */
typedef struct hora_coll {
    hora_coll_kind_t kind;
    hora_dtype_t     dtype;
    hora_op_t        op;
    int              rank, size, root;
    size_t           count;   /* per rank and block; allreduce, reduce, broadcast: the vector;
                                 barrier: 0; alltoall: 0 if blocks differ in length, anywhere */
    const void      *in;
    void            *out;     /* may equal in (see hora.h for what in place means to each kind) */
    const size_t    *counts;  /* reduce_scatter, allgather: block sizes. alltoall: send counts */
    const size_t    *displs;  /* offsets of these blocks; always set when counts is */
    const size_t    *other_counts, *other_displs; /* alltoall: receive side */
    double           prescale, postscale, timeout;
    uint32_t         divisor; /* of AVERAGE; 0: the number of ranks */
    const struct hora_gpu_place *gpu; /* where in and out lie (util/gpu.h); NULL: in host memory */
    bool             staged;  /* a part of one on GPUs, which meets no other */
    const hora_hosts_t *hosts; /* hora_comm_levels; exec.c sets it */
    const char      *name;    /* for messages; may be NULL */
} hora_coll_t;

typedef enum hora_buf {
    HORA_BUF_IN = 0,  /* coll->in, read only */
    HORA_BUF_OUT = 1, /* coll->out */
    HORA_BUF_TMP = 2, /* private, plan->tmp elements */
    HORA_BUF_SLOT = 3 /* mine in the arena, visible to others on my host, plan->slot elements */
} hora_buf_t;

/* A place: elements from `off` in buffer `buf` of member `rank` (-1: myself; else arena only). */
typedef struct hora_ref {
    int32_t rank;
    int32_t buf;
    size_t  off;
} hora_ref_t;

typedef enum hora_step_kind {
    HORA_STEP_SEND,   /* src -> peer, transfer number xfer */
    HORA_STEP_RECV,   /* peer -> dst, transfer number xfer */
    HORA_STEP_WAIT,   /* until transfer xfer is done */
    HORA_STEP_COPY,   /* src -> dst */
    HORA_STEP_REDUCE, /* refs[first .. first+nsrc) in order -> refs[first+nsrc .. +ndst) */
    HORA_STEP_DOTS,   /* refs[first], [first+1] -> adds to the hora_dots_t at [first+2], which
                         begins at 0 with `begin` */
    HORA_STEP_ADD_DOTS, /* hora_dots_t at src -> adds to the one at dst */
    HORA_STEP_BLEND,  /* refs[first], [first+1] by the dots at [first+2] -> Adasum at [first+3] */
    HORA_STEP_SIGNAL, /* publish phase xfer (1, 2, ...) */
    HORA_STEP_AWAIT   /* wait until peer, or every member, has signalled phase xfer */
} hora_step_kind_t;

typedef struct hora_step {
    uint8_t    kind;
    bool       finish;    /* REDUCE, COPY, BLEND: apply divisor and postscale here (last touch) */
    bool       stream;    /* COPY: part of one that is larger than the caches */
    bool       take;      /* COPY: from a slot, nobody else reads what is read there (hora_kernel_take) */
    uint8_t    turn;      /* so many COPYs out of a slot, this one the first, are followed by as
                             many to the same places and a REDUCE of all ranks' into all ranks':
                             line by line (hora_kernel_reduce_turn). 1, or 2 with a gap between;
                             the gap, and what is before it, are whole lines */
    bool       begin;     /* REDUCE, COPY: apply prescale to the sources here (first touch) */
    int32_t    nsrc;      /* as many as there are ranks, where one sums all */
    int32_t    peer;      /* AWAIT: HORA_ALL_RANKS for every member */
    uint32_t   xfer;
    uint32_t   first;     /* REDUCE, DOTS, BLEND: index into plan->refs */
    int32_t    ndst;
    hora_ref_t src, dst;
    size_t     count;     /* elements, >= 1 but for DOTS: the emitters drop steps of 0 elements */
} hora_step_t;

#define HORA_ALL_RANKS (-1)
#define HORA_PLAN_LEAD 12  /* phases that a member may be before the slowest one */
#define HORA_NO_XFER UINT32_MAX /* what SEND and RECV of 0 elements return; WAIT ignores it */

typedef struct hora_plan {
    hora_step_t *steps;
    size_t       nsteps, steps_room;
    hora_ref_t  *refs;
    size_t       nrefs, refs_room;
    uint32_t     nxfers;
    uint32_t     phases;  /* highest phase signalled */
    size_t       tmp;     /* elements of HORA_BUF_TMP */
    size_t       slot;    /* elements of HORA_BUF_SLOT */
    bool         turns;   /* two members: what was this slot is the other's the next time */
    bool         stays;   /* the next call uses the same half of the slots (pads.h) */
    hora_status_t status; /* HORA_ERR_NO_MEMORY once an emit failed; checked once, at the end */
} hora_plan_t;

/* What a planner may use beside the collective itself. */
typedef struct hora_plan_hint {
    size_t elem_size; /* bytes of an element on the wire */
    size_t chunk;     /* elements per pipelined chunk, >= 1 */
    size_t slot;      /* elements that one half-slot of the pads holds; 0: there are no pads. Equal on
                         all members */
    size_t longest;   /* alltoall with needs_arena: elements of the longest block of any member */
    bool   shared_in_out; /* what others may read or write of every member's in and out lies in the
                             arena (hora_coll_shown); of the members on this host */
} hora_plan_hint_t;

/*
 * A plan depends on the kind, type, rank, size, root and counts, and on the hint; never on the
 * pointers, the scales or the operation, because plans are kept and used again. So every plan must
 * be right in place too. These are the only overlaps of in and out that a plan sees (run.c copies
 * the input first where the caller asks for another one):
 *   allreduce, reduce, broadcast: in == out;
 *   reduce_scatter: out == in + displs[rank];  allgather: in == out + displs[rank];
 *   gather: in == out + root * count, and scatter: out == in + root * count, on the root.
 *
 * Scaling. Every result element is written by exactly one REDUCE or COPY with `finish` (or is a
 * copy of one that was). With rank_order, every input element passes one REDUCE or COPY with
 * `begin`; the other algorithms ignore prescale, run.c has applied it before.
 * On ranks other than the root of a reduce, HORA_BUF_OUT must not be touched; nor IN on the others
 * of a broadcast or scatter.
 */
struct hora_algo {
    size_t      size; /* sizeof(*this) */
    const char *name; /* HORA_ALGO value */
    uint32_t    colls;      /* bit 1 << hora_coll_kind_t for each that it can do */
    bool        rank_order; /* sums in rank order: bits do not depend on size, chunk or transport */
    bool        needs_arena; /* all members on one host, with pads */
    bool        two_level;   /* several hosts, with pads on each (coll->hosts is set) */
    bool        small_only; /* only up to settings.oneshot_limit and to what a half-slot holds */
    /* Beyond colls; by kind, type, operation, scales, size and bytes only. Never NULL. */
    bool      (*applies)(const hora_coll_t *coll);
    /* Seconds by the model: a per message, b per byte, g per byte reduced; with needs_arena, a per
     * phase and b per byte copied. */
    double    (*cost)(const hora_coll_t *coll, size_t elem_size, double a, double b, double g);
    void      (*plan)(const hora_coll_t *coll, const hora_plan_hint_t *hint, hora_plan_t *plan);
};
typedef struct hora_algo hora_algo_t;

/* All algorithms, ending with NULL. */
extern const hora_algo_t *const hora_algo_list[];

/* Emitters (plan.c). They never fail; see plan->status. Steps of 0 elements are dropped. */
void     hora_plan_init(hora_plan_t *plan);
void     hora_plan_destroy(hora_plan_t *plan);
void     hora_plan_reset(hora_plan_t *plan); /* empty again, keeps its memory */
uint32_t hora_plan_send(hora_plan_t *plan, int peer, hora_buf_t buf, size_t off, size_t count);
uint32_t hora_plan_recv(hora_plan_t *plan, int peer, hora_buf_t buf, size_t off, size_t count);
void     hora_plan_wait(hora_plan_t *plan, uint32_t xfer);
/* These two return the step, for begin, finish and stream; valid until the next emit. NULL if out of
 * memory or if count is 0. */
hora_step_t *hora_plan_copy(hora_plan_t *plan, hora_ref_t src, hora_ref_t dst, size_t count);
hora_step_t *hora_plan_reduce(hora_plan_t *plan, const hora_ref_t *src, int nsrc,
                              const hora_ref_t *dst, int ndst, size_t count);
/* first op second -> dst, with `finish`: the reduction of two. */
void     hora_plan_combine(hora_plan_t *plan, hora_ref_t first, hora_ref_t second, hora_ref_t dst,
                           size_t count, bool finish);
/* Adasum (kernels.h), float32 and float64. Dot products lie aligned in TMP. begin: *dots counts as 0
 * before; count may be 0 then. finish: applies postscale. */
void     hora_plan_dots(hora_plan_t *plan, hora_ref_t a, hora_ref_t b, hora_ref_t dots, size_t count,
                        bool begin);
void     hora_plan_add_dots(hora_plan_t *plan, hora_ref_t src, hora_ref_t dst);
void     hora_plan_blend(hora_plan_t *plan, hora_ref_t a, hora_ref_t b, hora_ref_t dots,
                         hora_ref_t dst, size_t count, bool finish);
void     hora_plan_signal(hora_plan_t *plan, uint32_t phase);
void     hora_plan_await(hora_plan_t *plan, uint32_t phase);
void     hora_plan_await_rank(hora_plan_t *plan, uint32_t phase, int rank); /* or HORA_ALL_RANKS */

static inline hora_ref_t hora_own(hora_buf_t buf, size_t off) {
    return (hora_ref_t){-1, (int32_t)buf, off};
}
static inline hora_ref_t hora_of(int rank, hora_buf_t buf, size_t off) {
    return (hora_ref_t){rank, (int32_t)buf, off};
}

/* First element and length of part `i` when `count` elements are cut into `parts` nearly equal
 * pieces (the first ones take the remainder). */
static inline size_t hora_part_begin(size_t count, int parts, int i) {
    size_t base = count / (size_t)parts, extra = count % (size_t)parts, k = (size_t)i;
    return base * k + (k < extra ? k : extra);
}
static inline size_t hora_part_count(size_t count, int parts, int i) {
    return count / (size_t)parts + ((size_t)i < count % (size_t)parts);
}

#endif
