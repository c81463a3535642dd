/*
 * hora: ring-allreduce collective communication. This header is the whole C ABI.
 *
 * Two ways in:
 *   - the communicator API (hora_allreduce and its sisters): every rank makes the same calls
 *     in the same order, as with MPI or NCCL;
 *   - the engine (hora_engine_*): named tensors, enqueued in any order on each rank, fused
 *     and executed in one agreed order, as with Horovod.
 *
 * A whole program, for `hora run -np 4 ./a.out`, torchrun, mpirun or srun:
 *
 *     #include <hora/hora.h>
 *     #include <stdio.h>
 *
 *     int main(void) {
 *         hora_comm_t *world;
 *         float x[3] = {1, 2, 3};
 *         if (hora_comm_create(NULL, &world) != HORA_OK ||
 *             hora_allreduce(world, x, x, 3, HORA_FLOAT32, HORA_SUM, NULL) != HORA_OK) {
 *             fprintf(stderr, "%s\n", hora_last_error());
 *             return 1;
 *         }
 *         printf("rank %d of %d: %g %g %g\n", hora_comm_rank(world), hora_comm_size(world),
 *                x[0], x[1], x[2]);
 *         return hora_comm_free(world) != HORA_OK;
 *     }
 *
 * Conventions. Every function that can fail returns a hora_status_t: 0 is success, negative
 * values are errors; hora_last_error() then has the text for the calling thread. Outputs come
 * last, end in _p and are written only on success. Option structs begin with their own size,
 * so that a newer library serves an older program; initialise them with their *_INIT macro.
 * Counts are elements, not bytes, unless a name says bytes. Buffers belong to the caller and
 * must stay valid until the operation has completed.
 *
 * Threads. Any thread may call; one communicator or request is used by one thread at a time.
 * Different communicators may be used by different threads at once. An engine may be used by
 * any number of threads at once. Nothing here may be called in the child of a fork().
 *
 * Faults. No call waits for ever. When a rank dies, aborts, leaves or mismatches, each call that
 * needs it returns an error that names the rank, the host and the phase.
 */
#ifndef HORA_HORA_H
#define HORA_HORA_H

#include <stddef.h>
#include <stdint.h>

#define HORA_VERSION_MAJOR 0
#define HORA_VERSION_MINOR 1
#define HORA_VERSION_PATCH 0

#if defined(__GNUC__)
#define HORA_API __attribute__((visibility("default")))
#else
#define HORA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status ------------------------------------------------------------------------------- */

/* X(name, value, message). Values are part of the ABI and never renumbered. */
#define HORA_STATUS_MAP(X)                                                                        \
    X(OK, 0, "success")                                                                           \
    X(IN_PROGRESS, 1, "operation is still in progress")                                           \
    X(ERR_INVALID_ARGUMENT, -1, "invalid argument")                                               \
    X(ERR_NO_MEMORY, -2, "out of memory")                                                         \
    X(ERR_SYSTEM, -3, "a system call failed")                                                     \
    X(ERR_TIMEOUT, -4, "deadline passed")                                                         \
    X(ERR_PEER_FAILED, -5, "another rank failed")                                                 \
    X(ERR_ABORTED, -6, "communicator was aborted")                                                \
    X(ERR_MISMATCH, -7, "ranks disagree on an operation")                                         \
    X(ERR_DUPLICATE_NAME, -8, "a tensor of this name is already in flight")                       \
    X(ERR_UNSUPPORTED, -9, "not supported")                                                       \
    X(ERR_AUTHENTICATION, -10, "a peer did not prove that it belongs to the job")                 \
    X(ERR_SHUT_DOWN, -11, "hora has been shut down")                                              \
    X(ERR_PROTOCOL, -12, "malformed message from a peer")                                         \
    X(ERR_INTERNAL, -13, "internal error")

typedef enum hora_status {
#define HORA_STATUS_ENUM(name, value, message) HORA_##name = value,
    HORA_STATUS_MAP(HORA_STATUS_ENUM)
#undef HORA_STATUS_ENUM
} hora_status_t;

/* "HORA_ERR_TIMEOUT"; "HORA_ERR_UNKNOWN" for a value that is no status. Static storage. */
HORA_API const char *hora_status_name(hora_status_t status);
/* One sentence for the status. Static storage. */
HORA_API const char *hora_status_message(hora_status_t status);
/* Text of the last error on the calling thread: ranks, hosts, tensor, phase, remedy. Never NULL;
 * valid until the next failing call on this thread. */
HORA_API const char *hora_last_error(void);
/* "0.1.0". Static storage. */
HORA_API const char *hora_version(void);

/* ---- Element types and operations ---------------------------------------------------------- */

typedef enum hora_dtype {
    HORA_BOOL = 0, /* one byte, 0 or 1 */
    HORA_INT8 = 1,
    HORA_INT16 = 2,
    HORA_INT32 = 3,
    HORA_INT64 = 4,
    HORA_UINT8 = 5,
    HORA_UINT16 = 6,
    HORA_UINT32 = 7,
    HORA_UINT64 = 8,
    HORA_FLOAT16 = 9,
    HORA_BFLOAT16 = 10,
    HORA_FLOAT32 = 11,
    HORA_FLOAT64 = 12,
    HORA_FLOAT8_E4M3 = 13, /* torch.float8_e4m3fn: no infinity; NaN is 0x7f or 0xff */
    HORA_FLOAT8_E5M2 = 14, /* torch.float8_e5m2 */
    HORA_DTYPE_COUNT = 15
} hora_dtype_t;

/* Values 0 to 5 are Horovod's. Integers wrap; float NaN propagates through every operation;
 * half and float8 types accumulate in float32 and round once. float8 is rounded as torch 2.13's casts
 * round: an e4m3 result beyond 448 is 448, an e5m2 one from 61440 on is infinity; it has SUM, AVERAGE,
 * MIN and MAX only. bool: SUM and MAX are "or", PRODUCT and MIN
 * are "and". AVERAGE divides once by the number of ranks; integers truncate toward zero; not for
 * bool. BAND, BOR and BXOR are for integers and bool. ADASUM is for allreduce of the other floating-point types:
 * vectors a and b give a (1 - a.b/2|a|^2) + b (1 - a.b/2|b|^2), in a binary tree over the ranks; the
 * dot products are summed in float64; a vector of zeros is neutral (docs/adasum.md). */
typedef enum hora_op {
    HORA_AVERAGE = 0,
    HORA_SUM = 1,
    HORA_ADASUM = 2,
    HORA_MIN = 3,
    HORA_MAX = 4,
    HORA_PRODUCT = 5,
    HORA_BAND = 6,
    HORA_BOR = 7,
    HORA_BXOR = 8,
    HORA_OP_COUNT = 9
} hora_op_t;

/* Bytes of one element; 0 for a value that is no type. */
HORA_API size_t hora_dtype_size(hora_dtype_t dtype);
/* "float32", "bool", ...; "unknown" otherwise. Static storage. */
HORA_API const char *hora_dtype_name(hora_dtype_t dtype);
/* "sum", "average", ...; "unknown" otherwise. Static storage. */
HORA_API const char *hora_op_name(hora_op_t op);
/* 1 when hora can reduce this type with this operation (ADASUM: in allreduce), else 0. */
HORA_API int hora_op_supported(hora_dtype_t dtype, hora_op_t op);

/* ---- Communicators -------------------------------------------------------------------------- */

typedef struct hora_comm    hora_comm_t;    /* an ordered set of ranks; rank 0 .. size-1 */
typedef struct hora_request hora_request_t; /* one operation in flight on a communicator */

typedef struct hora_comm_options {
    size_t      size;          /* sizeof(hora_comm_options_t) */
    int         rank;          /* this process's rank; -1: from the launcher's variables */
    int         nranks;        /* number of ranks; -1: from the launcher's variables */
    const char *rendezvous;    /* where the ranks meet: "unix:NAME" or "tcp:HOST:PORT";
                                  NULL: HORA_RENDEZVOUS, else what the launcher gave */
    const char *transport;     /* "auto", "shm", "tcp" or "mpi"; NULL: HORA_TRANSPORT */
    double      start_timeout; /* seconds to wait for all ranks; 0: HORA_START_TIMEOUT */
    double      timeout;       /* seconds after which an operation fails; 0: HORA_TIMEOUT */
    const volatile int *cancel; /* NULL, or: another thread makes it non-zero, and the joining ends
                                   with HORA_ERR_ABORTED within some 20 ms; the lookup of a host's
                                   name cannot be cut short and may take longer */
    const char *name;          /* tells communicators apart that are made at one time; see below */
} hora_comm_options_t;
#define HORA_COMM_OPTIONS_INIT {sizeof(hora_comm_options_t), -1, -1, NULL, NULL, 0.0, 0.0, NULL, NULL}

/* Finds the other ranks of the job, links up and returns the communicator of all ranks.
 * Collective: every rank of the job calls it, as often as every other, in one order. Several threads
 * that make communicators at one time have no order among them: each then passes a name of its own,
 * equal on all ranks. Copies of this library in one process need no names: they are told apart by
 * the order in which they were loaded, which must be the same on all ranks. options may be NULL.
 * The caller frees *comm_p with hora_comm_free. */
HORA_API hora_status_t hora_comm_create(const hora_comm_options_t *options, hora_comm_t **comm_p);

/* Ranks that pass the same color (>= 0) form a new communicator, ordered by key, then by rank in
 * comm. A negative color takes part and receives *comm_p = NULL. Collective over comm. */
HORA_API hora_status_t hora_comm_split(hora_comm_t *comm, int color, int key, hora_comm_t **comm_p);

/* Leaves the communicator and frees it; NULL is allowed. Requests on it must have completed.
 * The last communicator that is freed closes the links to the other ranks. Not collective: a rank
 * that still waits for this one gets an error. */
HORA_API hora_status_t hora_comm_free(hora_comm_t *comm);

/* Ends every operation on comm, now and later, on every rank, with HORA_ERR_ABORTED and the given
 * reason (copied; may be NULL). On the communicator of hora_comm_create it ends the whole job: every
 * communicator of every rank. Any thread may call it at any time. hora_comm_free stays due. */
HORA_API hora_status_t hora_comm_abort(hora_comm_t *comm, const char *reason);

/* HORA_OK while comm can be used, else the error that ended it. Does not wait. */
HORA_API hora_status_t hora_comm_status(hora_comm_t *comm);

HORA_API int hora_comm_rank(const hora_comm_t *comm);
HORA_API int hora_comm_size(const hora_comm_t *comm);
HORA_API int hora_comm_local_rank(const hora_comm_t *comm); /* among members on this host */
HORA_API int hora_comm_local_size(const hora_comm_t *comm);
HORA_API int hora_comm_cross_rank(const hora_comm_t *comm); /* among members of equal local rank */
HORA_API int hora_comm_cross_size(const hora_comm_t *comm);
/* Host name of a member; NULL if there is no such rank. Owned by comm. */
HORA_API const char *hora_comm_host(const hora_comm_t *comm, int rank);
/* "shm", "tcp", "mpi" or "self": what carries bytes to a member; NULL if there is no such rank. */
HORA_API const char *hora_comm_transport(const hora_comm_t *comm, int rank);

/* An algorithm for a collective, and what it is expected to take. */
typedef struct hora_choice {
    const char *algorithm; /* static storage */
    double      seconds;
} hora_choice_t;
/* The algorithms that could run `collective` ("allreduce", "reduce", "reduce_scatter", "allgather",
 * "broadcast", "alltoall", "gather", "scatter" or "barrier") on `bytes` of float32, sum, root 0: the
 * one that hora takes first. bytes: of the vector; or of all blocks on a rank, which are equal. Writes
 * at most `room` of them, and returns how many there are; 0: no such collective. Every member gets
 * the same. Not collective. */
HORA_API int hora_comm_choices(hora_comm_t *comm, const char *collective, size_t bytes,
                               hora_choice_t *choices_p, int room);
/* Where the expectations come from, for people. Owned by comm. */
HORA_API const char *hora_comm_costs(const hora_comm_t *comm);
/* Measures every algorithm that could run a collective at 11 sizes from 16 B to 16 MB, in some
 * seconds, and has rank 0 write the times to a file; the next jobs with as many ranks on these hosts
 * choose by it. Collective over a communicator of all ranks, two or more. The file is what
 * HORA_ALGO_TIMES says; rank 0 gets its path in path_p, which has `room` bytes (NULL: not wanted).
 * HORA_ERR_SYSTEM on rank 0: it cannot be written, which is found before anything is measured. */
HORA_API hora_status_t hora_comm_calibrate(hora_comm_t *comm, char *path_p, size_t room);

/* ---- Collectives ---------------------------------------------------------------------------- */

typedef struct hora_call_options {
    size_t           size;      /* sizeof(hora_call_options_t) */
    double           prescale;  /* each input is multiplied by it first (reductions) */
    double           postscale; /* the result is multiplied by it last (reductions) */
    double           timeout;   /* seconds; 0: the communicator's */
    const char      *name;      /* for messages; copied; may be NULL */
    hora_request_t **request_p; /* NULL: block until done. Else start only, and store the request */
    void            *stream;    /* on a GPU: cudaStream_t (CUstream); NULL: the default stream */
    int              device;    /* where all buffers of this call lie: -1: in host memory; else on the
                                   GPU with this number (as CUDA counts the visible ones) */
} hora_call_options_t;
#define HORA_CALL_OPTIONS_INIT {sizeof(hora_call_options_t), 1.0, 1.0, 0.0, NULL, NULL, NULL, -1}

/* One buffer with a block for each rank. counts[r]: elements of rank r's block; displs[r]: its
 * offset in elements, or displs == NULL for blocks one after the other. */
typedef struct hora_blocks {
    void         *data;
    const size_t *counts;
    const size_t *displs;
} hora_blocks_t;

/*
 * On a GPU (options->device): a call starts after the work that is queued on options->stream, and what
 * is queued there later sees its results; a call that blocks returns once all of its work is queued.
 * Either all ranks pass buffers on a GPU or none does; a rank's are on one GPU for all calls on a
 * communicator. A request on a GPU is done when all of its work is queued, which needs
 * hora_request_test or hora_request_wait: what is to see its results is queued after that. A call in
 * host memory on that communicator first waits for its requests on a GPU, and so does hora_comm_split.
 * When a communicator fails, the first call that says so (or hora_request_wait) gives the GPU up to half a
 * second for each stream to end what it does with buffers; a warning is logged if it may use them still.
 * A barrier is one of the hosts; point to point is in host memory only.
 *
 * All ranks of comm make the same calls in the same order. options may be NULL (block, no
 * scaling); as with MPI, a call that blocks does not meet one that was started (request_p) on another
 * rank. in == out is in place; otherwise in and out must not overlap. A count of 0 is allowed
 * everywhere (the pointers may then be NULL). Every rank receives the same bits.
 */

/* out[i] = op over ranks of in[i]; count elements each. */
HORA_API hora_status_t hora_allreduce(hora_comm_t *comm, const void *in, void *out, size_t count,
                                      hora_dtype_t dtype, hora_op_t op,
                                      const hora_call_options_t *options);
/* As allreduce, with the result on rank root only; out is ignored on the others. */
HORA_API hora_status_t hora_reduce(hora_comm_t *comm, const void *in, void *out, size_t count,
                                   hora_dtype_t dtype, hora_op_t op, int root,
                                   const hora_call_options_t *options);
/* in: size*count elements; out: the count elements of the reduced vector that begin at rank*count.
 * In place: out == in + rank*count. */
HORA_API hora_status_t hora_reduce_scatter(hora_comm_t *comm, const void *in, void *out,
                                           size_t count, hora_dtype_t dtype, hora_op_t op,
                                           const hora_call_options_t *options);
/* As reduce_scatter with a block of its own size per rank (in->counts, in->displs). */
HORA_API hora_status_t hora_reduce_scatterv(hora_comm_t *comm, const hora_blocks_t *in, void *out,
                                            hora_dtype_t dtype, hora_op_t op,
                                            const hora_call_options_t *options);
/* out: size blocks of count elements, block r from rank r. In place: in == out + rank*count. */
HORA_API hora_status_t hora_allgather(hora_comm_t *comm, const void *in, void *out, size_t count,
                                      hora_dtype_t dtype, const hora_call_options_t *options);
/* As allgather with a block of its own size per rank; in has out->counts[rank] elements. */
HORA_API hora_status_t hora_allgatherv(hora_comm_t *comm, const void *in, const hora_blocks_t *out,
                                       hora_dtype_t dtype, const hora_call_options_t *options);
/* out on every rank = in on root; in is ignored on the others. */
HORA_API hora_status_t hora_broadcast(hora_comm_t *comm, const void *in, void *out, size_t count,
                                      hora_dtype_t dtype, int root,
                                      const hora_call_options_t *options);
/* Block r of in goes to rank r; block r of out came from rank r; count elements a block. Not in
 * place: out must be another buffer. */
HORA_API hora_status_t hora_alltoall(hora_comm_t *comm, const void *in, void *out, size_t count,
                                     hora_dtype_t dtype, const hora_call_options_t *options);
/* As alltoall with blocks of their own sizes; in->counts[r] here equals out->counts[me] on r. */
HORA_API hora_status_t hora_alltoallv(hora_comm_t *comm, const hora_blocks_t *in,
                                      const hora_blocks_t *out, hora_dtype_t dtype,
                                      const hora_call_options_t *options);
/* out on root: size blocks of count elements, block r from rank r; ignored on the others. */
HORA_API hora_status_t hora_gather(hora_comm_t *comm, const void *in, void *out, size_t count,
                                   hora_dtype_t dtype, int root,
                                   const hora_call_options_t *options);
/* in on root: size blocks of count elements; out: this rank's block. */
HORA_API hora_status_t hora_scatter(hora_comm_t *comm, const void *in, void *out, size_t count,
                                    hora_dtype_t dtype, int root,
                                    const hora_call_options_t *options);
/* Returns when every rank has called it. */
HORA_API hora_status_t hora_barrier(hora_comm_t *comm, const hora_call_options_t *options);

/* Point to point. Messages between two ranks with equal tag arrive in the order sent; 0 <= tag <
 * 2^31 - 1. A receive that does not ask for as many bytes as were sent gets HORA_ERR_MISMATCH. A send
 * is done when `in` may be changed, which may be before the receive. */
HORA_API hora_status_t hora_send(hora_comm_t *comm, const void *in, size_t count,
                                 hora_dtype_t dtype, int peer, int tag,
                                 const hora_call_options_t *options);
HORA_API hora_status_t hora_recv(hora_comm_t *comm, void *out, size_t count, hora_dtype_t dtype,
                                 int peer, int tag, const hora_call_options_t *options);

/* ---- Requests -------------------------------------------------------------------------------- */

/* Operations started on one communicator progress in order, inside these calls and inside every
 * later call on that communicator. */

/* Moves the operation on without blocking. *done_p = 1 when it has completed; the return value is
 * then its status. The request stays the caller's until hora_request_wait. */
HORA_API hora_status_t hora_request_test(hora_request_t *request, int *done_p);
/* Blocks until the operation has completed (or failed), frees the request, returns its status.
 * After hora_comm_abort it returns at once. */
HORA_API hora_status_t hora_request_wait(hora_request_t *request);

/* ---- Memory in the arena ---------------------------------------------------------------------- */

/* Memory that all ranks of this host have mapped: collectives on it need no copy. 64-byte aligned,
 * uninitialised. Falls back to ordinary memory where there is no shared-memory arena. Free it
 * with hora_free before hora_comm_free of the last communicator; what was not freed by then can be
 * used, but not freed, until the process ends. After a collective on it has failed,
 * other ranks may still write into it for a moment: do not use it again. Any thread. */
HORA_API hora_status_t hora_alloc(hora_comm_t *comm, size_t bytes, void **ptr_p);
HORA_API hora_status_t hora_free(hora_comm_t *comm, void *ptr);

/* ---- The engine: named tensors in any order ---------------------------------------------------- */

typedef struct hora_engine hora_engine_t;
typedef struct hora_handle hora_handle_t; /* one enqueued task or group of tasks */

typedef enum hora_task_kind {
    HORA_TASK_ALLREDUCE = 0,
    HORA_TASK_ALLGATHER = 1,     /* along dimension 0, which may differ per rank */
    HORA_TASK_BROADCAST = 2,
    HORA_TASK_ALLTOALL = 3,      /* dimension 0 split by splits[], or evenly */
    HORA_TASK_REDUCESCATTER = 4, /* dimension 0; the first ranks take the remainder rows */
    HORA_TASK_BARRIER = 5,
    HORA_TASK_JOIN = 6,          /* this rank has no more tasks until every rank has joined */
    HORA_TASK_KIND_COUNT = 7
} hora_task_kind_t;

typedef struct hora_task {
    size_t           size;      /* sizeof(hora_task_t) */
    hora_task_kind_t kind;
    const char      *name;      /* equal on all ranks; unique among tasks in flight; copied */
    hora_dtype_t     dtype;
    int              ndim;      /* 0 .. HORA_MAX_DIMS */
    const int64_t   *shape;     /* ndim extents of the input; copied */
    const void      *in;        /* contiguous, row major; valid until the handle is done */
    void            *out;       /* allreduce, broadcast: same shape, may equal in. join: int32_t,
                                   gets the rank that joined last. NULL for the others: the
                                   engine allocates (hora_handle_output) */
    hora_op_t        op;        /* allreduce; reducescatter: SUM or AVERAGE, MIN, MAX, PRODUCT */
    double           prescale;  /* allreduce, reducescatter */
    double           postscale; /* allreduce, reducescatter */
    int              root;      /* broadcast: rank in the engine's communicator */
    int              nsplits;   /* alltoall: number of ranks, or 0 for an even split */
    const int64_t   *splits;    /* alltoall: rows for each rank; copied */
    int              device;    /* -1: in and out lie in host memory; else on the GPU with this
                                   number, the same for all tasks of an engine that are on a GPU */
    void            *stream;    /* on a GPU: in is read and out is written after the work that is now
                                   queued on this cudaStream_t; NULL: the default stream */
} hora_task_t;
#define HORA_MAX_DIMS 16
#define HORA_TASK_INIT                                                                            \
    {sizeof(hora_task_t), HORA_TASK_ALLREDUCE, NULL, HORA_FLOAT32, 0, NULL, NULL, NULL,           \
     HORA_SUM, 1.0, 1.0, 0, 0, NULL, -1, NULL}

typedef struct hora_engine_options {
    size_t  size;             /* sizeof(hora_engine_options_t) */
    int64_t fusion_threshold; /* bytes; 0: HORA_FUSION_THRESHOLD; -1: fuse nothing */
} hora_engine_options_t;
#define HORA_ENGINE_OPTIONS_INIT {sizeof(hora_engine_options_t), 0}

/* Makes an engine on a private copy of comm. Collective over comm: where it fails on one rank, it
 * fails on all, with that rank's name and reason. options may be NULL. */
HORA_API hora_status_t hora_engine_create(hora_comm_t *comm, const hora_engine_options_t *options,
                                          hora_engine_t **engine_p);
/* Ends tasks in flight with HORA_ERR_SHUT_DOWN, stops the background thread and frees the engine.
 * Handles that were not released stay valid until they are. Not collective. NULL is allowed. */
HORA_API hora_status_t hora_engine_free(hora_engine_t *engine);

/* Join, for ranks that run out of data at different times. A rank that has joined takes part in
 * whatever the others still do, with input that changes nothing (zeros in a sum, ones in a product,
 * no rows in an allgather or alltoall); a broadcast from it fails on every rank. An average is still
 * divided by all ranks, or, with HORA_JOIN_AVERAGE=active, by those that contributed. Its own tasks
 * that were enqueued before the join take part as ever; what it enqueues after the join waits for
 * the join to end. That is when every rank has joined: then everybody goes on as before, and may
 * join again. name, dtype, shape and in are ignored; a join stands alone, not in a group, and a rank
 * has one at a time (HORA_ERR_DUPLICATE_NAME). A rank that had no task on a GPU before it joined takes
 * part in those of the others with the GPU of its local rank, modulo the GPUs that it sees. A join
 * waits as long as the others take; only HORA_STALL_SHUTDOWN_TIME_SECONDS, when it is set, ends one
 * that has waited so long while nothing was executed (HORA_ERR_TIMEOUT). */

#define HORA_ENQUEUE_WILL_WAIT 1u /* the caller waits at once: do not wake the background thread */

/* Enqueues ntasks tasks as one group: they complete together and share one handle. Returns at
 * once; errors that only this rank can see (arguments, duplicate name) are returned here, errors
 * between ranks by hora_handle_wait. The caller releases *handle_p with hora_handle_release. */
HORA_API hora_status_t hora_engine_enqueue(hora_engine_t *engine, const hora_task_t *tasks,
                                           size_t ntasks, unsigned flags, hora_handle_t **handle_p);
/* 1 when done (well or not), else 0. Any thread. */
HORA_API int hora_handle_poll(hora_handle_t *handle);
/* Blocks until done; drives the engine meanwhile. Returns the operation's status. A task on a GPU is
 * done when all of its work is queued there: see hora_handle_stream_wait. */
HORA_API hora_status_t hora_handle_wait(hora_handle_t *handle);
/* Makes what is queued on `stream` (cudaStream_t; NULL: the default stream) of GPU `device` from now on
 * wait for the results of a done handle. Does not block. Whatever uses the task's buffers again must come
 * after that, another task on them too: tasks may run side by side (HORA_NUM_NCCL_STREAMS). Nothing to do,
 * and HORA_OK, for tasks in host memory and for a handle that failed; but an error if what that has queued
 * may not have ended: then the GPU may still read and write its buffers, which must be left alone for good.
 * Any thread. */
HORA_API hora_status_t hora_handle_stream_wait(hora_handle_t *handle, int device, void *stream);
/* Frees the handle. If it is not done, it is freed when it is. NULL is allowed. */
HORA_API void hora_handle_release(hora_handle_t *handle);

typedef struct hora_output {
    size_t   size;  /* sizeof(hora_output_t) */
    void    *data;  /* NULL when there are no elements */
    int      ndim;
    int64_t  shape[HORA_MAX_DIMS];
    int64_t *received_splits; /* alltoall: rows from each rank; else NULL; host memory */
    int      device;          /* of data: -1: host memory, else this GPU */
} hora_output_t;
#define HORA_OUTPUT_INIT {sizeof(hora_output_t), NULL, 0, {0}, NULL, -1}

/* Moves the engine-allocated result of task `index` of a done handle into *output_p; the caller
 * frees it with hora_output_free. HORA_ERR_INVALID_ARGUMENT if there is none or it was taken. */
HORA_API hora_status_t hora_handle_output(hora_handle_t *handle, size_t index,
                                          hora_output_t *output_p);
/* NULL is allowed. Memory on a GPU is given to later results, behind what is queued by now on the stream
 * of its task and on those that hora_handle_stream_wait was given: what reads it on another stream, one of
 * these must have been made to wait for, or the host have waited. Does not block, but after hora_engine_free,
 * when it may wait for all that is queued on the GPU. Any thread. */
HORA_API void hora_output_free(hora_output_t *output);

/* ---- The timeline -------------------------------------------------------------------------------- */

/* Records what happens to the tensors of all engines of comm's job on this rank, as a trace that
 * Perfetto shows (docs/timeline.md). Rank 0 writes `path`, rank r `path`.rank<r>; in a folder, each
 * writes timeline.<rank>.json. A second copy of this library in the process adds .copy1 to `path`,
 * a third one .copy2. The file is valid JSON at every moment. Any rank may start and stop at any
 * time, while operations run, again and again; HORA_TIMELINE starts it with the job. After a full
 * disk it may be started anew. mark_cycles: also marks each time that the ranks have agreed on
 * something. Any thread.
 * HORA_ERR_INVALID_ARGUMENT: it records already; HORA_ERR_SYSTEM: the file cannot be written. */
HORA_API hora_status_t hora_timeline_start(hora_comm_t *comm, const char *path, int mark_cycles);
/* Ends it; the file is complete when this returns. HORA_OK too if nothing was recorded.
 * HORA_ERR_SYSTEM: the file could not be written to the end (a full disk). The end of the job does
 * the same. */
HORA_API hora_status_t hora_timeline_stop(hora_comm_t *comm);

/* ---- What this build and machine have ----------------------------------------------------------- */

typedef struct hora_backend {
    size_t size;         /* sizeof(hora_backend_t) */
    char   name[32];     /* "shm", "tcp", "mpi", "nccl", "cuda", "verbs", "avx512", ... */
    char   kind[16];     /* "transport", "offload", "kernels" or "device" */
    int    available;    /* 1: usable here and now */
    char   detail[256];  /* version, path, interface; or why it is not available */
    char   remedy[256];  /* what to do about it; "" if nothing */
} hora_backend_t;
#define HORA_BACKEND_INIT {sizeof(hora_backend_t), "", "", 0, "", ""}

/* Describes back-end number `index` (0, 1, ...); HORA_ERR_INVALID_ARGUMENT past the last. */
HORA_API hora_status_t hora_backend_get(size_t index, hora_backend_t *backend_p);

/* A sentence on the `index`th (0, 1, ...) environment variable that is called HORA_... and is no
 * setting of hora: its name, and the one that is meant, most likely. At most `room` bytes, the end
 * included. HORA_ERR_INVALID_ARGUMENT past the last. Rank 0 logs the same when it joins a job. */
HORA_API hora_status_t hora_setting_unknown(size_t index, char *text_p, size_t room);

#ifdef __cplusplus
}
#endif
#endif
