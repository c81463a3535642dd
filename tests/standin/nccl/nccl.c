/*
 * The stand-in's functions (nccl.h). VERSION: what it says it is; LACKS: without ncclCommFinalize.
 * A communicator is used by one thread, but for abort, async_error and the stream's thread.
 *
 * All that a group asks becomes transfers (bytes from this rank to another, or back), which move in
 * turn as the pipes have room, and reductions when all have arrived. A pipe is a ring of bytes in the
 * shared file from one rank to another.
 */
#include "nccl.h"

#include "offload/nccl/library.h"
#include "util/clock.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <kernels/cpu/kernels.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 22809
#endif
#define EXPORT   __attribute__((visibility("default")))
#define RANKS    8
#define PIPE     65536u
#define ASKS_MAX 256

typedef struct ring {
    _Atomic uint64_t written, read;
    uint8_t          bytes[PIPE];
} ring_t;

typedef struct ballot {
    int32_t color, key, pid, fd;
} ballot_t;

typedef struct shared {
    atomic_int joined, came, round;
    ballot_t   ballots[RANKS];
    ring_t     pipes[RANKS][RANKS]; /* from, to */
} shared_t;

typedef struct where { /* in an id */
    uint64_t magic;
    int32_t  pid, fd;
} where_t;

typedef struct comm {
    shared_t   *shared;
    int         rank, size, fd; /* fd: of the rank that made the file, until all have opened it */
    bool        hangs, reports, no_memory, call_blocks, abort_blocks, never;
    int         answers; /* ncclInProgress that is still to be said */
    hora_nccl_handle_t *wanted, made; /* of a split: the handle, and where it goes at the end */
    bool        finalized;
    atomic_bool aborted, inside; /* inside: a thread is in a call that blocks */
    uint64_t    reported; /* ns: from then on an error is; 0: not yet */
    atomic_int  jobs; /* on streams */
} comm_t;

typedef struct transfer {
    bool     sends;
    int      peer;
    uint8_t *at;
    size_t   bytes, done;
} transfer_t;

typedef struct reduction {
    hora_reduce_t how;
    const void   *src[RANKS];
    void         *dst;
    size_t        count;
} reduction_t;

typedef struct copy {
    const void *src;
    void       *dst;
    size_t      bytes;
} copy_t;

typedef struct job {
    comm_t     *comm;
    transfer_t  transfers[ASKS_MAX];
    reduction_t reductions[RANKS];
    copy_t      copies[RANKS];
    void       *temporary[ASKS_MAX];
    int         ntransfers, nreductions, ncopies, ntemporary;
} job_t;

EXPORT nccl_standin_t nccl_standin;

static __thread int                depth;
static __thread job_t             *open_job;
static __thread hora_cuda_stream_t open_stream;

/* ---- The CUDA stand-in ----------------------------------------------------------------------- */

static void *cuda_symbol(const char *name) {
    void *library = dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    void *found = library != NULL ? dlsym(library, name) : NULL;
    if (found == NULL) {
        fprintf(stderr, "nccl stand-in: no %s; is HORA_CUDA_LIBRARY the CUDA stand-in?\n", name);
        abort();
    }
    dlclose(library);
    return found;
}

static void *real(const void *at, size_t bytes) {
    void *(*memory)(uint64_t, size_t, int) = cuda_symbol("standin_memory");
    void *found = bytes > 0 ? memory((uintptr_t)at, bytes, -1) : NULL;
    if (found == NULL && bytes > 0) {
        fprintf(stderr, "nccl stand-in: %zu bytes at %p are no device memory\n", bytes, at);
        abort();
    }
    return found;
}

/* ---- Moving bytes, on a stream's thread ------------------------------------------------------ */

static bool move(comm_t *comm, transfer_t *t) {
    ring_t  *pipe = t->sends ? &comm->shared->pipes[comm->rank][t->peer]
                             : &comm->shared->pipes[t->peer][comm->rank];
    uint64_t written = atomic_load(&pipe->written), read = atomic_load(&pipe->read);
    uint64_t at = t->sends ? written : read;
    size_t   room = t->sends ? PIPE - (size_t)(written - read) : (size_t)(written - read);
    size_t   bytes = t->bytes - t->done, edge = PIPE - at % PIPE;
    bytes = bytes < room ? bytes : room;
    bytes = bytes < edge ? bytes : edge;
    if (bytes == 0)
        return false;
    if (t->sends)
        memcpy(pipe->bytes + at % PIPE, t->at + t->done, bytes);
    else
        memcpy(t->at + t->done, pipe->bytes + at % PIPE, bytes);
    atomic_store(t->sends ? &pipe->written : &pipe->read, at + bytes);
    t->done += bytes;
    return true;
}

/* Of the transfers over one pipe only the first that is not done moves. False: all are done. */
static bool move_all(job_t *job) {
    bool more = false, moved = false, busy[RANKS][2] = {{false}};
    for (int i = 0; i < job->ntransfers; i++) {
        transfer_t *t = &job->transfers[i];
        if (t->done == t->bytes || busy[t->peer][t->sends])
            continue;
        moved |= move(job->comm, t);
        busy[t->peer][t->sends] = t->done < t->bytes;
        more |= t->done < t->bytes;
    }
    if (more && !moved)
        sched_yield();
    return more;
}

static void forget(job_t *job) {
    for (int i = 0; i < job->ntemporary; i++)
        free(job->temporary[i]);
    free(job);
}

static void run_job(void *arg) {
    job_t  *job = arg;
    comm_t *comm = job->comm;
    while ((comm->hangs || move_all(job)) && !atomic_load(&comm->aborted))
        if (comm->hangs)
            usleep(1000);
    for (int i = 0; i < job->nreductions && !atomic_load(&comm->aborted); i++) {
        reduction_t *r = &job->reductions[i];
        hora_kernel_reduce(&r->how, &r->dst, 1, r->src, comm->size, r->count);
    }
    for (int i = 0; i < job->ncopies; i++)
        memmove(job->copies[i].dst, job->copies[i].src, job->copies[i].bytes);
    forget(job);
    atomic_fetch_sub(&comm->jobs, 1);
}

/* ---- Making and ending communicators --------------------------------------------------------- */

EXPORT int ncclGetVersion(int *version_p);
int ncclGetVersion(int *version_p) {
    *version_p = VERSION;
    return HORA_NCCL_SUCCESS;
}

EXPORT const char *ncclGetErrorString(int result);
const char *ncclGetErrorString(int result) {
    static const char *const texts[] = {"no error", "unhandled cuda error", "unhandled system error",
                                        "internal error", "invalid argument", "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result <= 7 ? texts[result] : "unknown result code";
}

static const char *last_error = "";

EXPORT const char *ncclGetLastError(hora_nccl_handle_t comm);
const char *ncclGetLastError(hora_nccl_handle_t comm) {
    return last_error;
}

EXPORT int ncclGetUniqueId(hora_nccl_id_t *id_p);
int ncclGetUniqueId(hora_nccl_id_t *id_p) {
    where_t where = {.magic = VERSION, .pid = getpid(), .fd = memfd_create("stand-in NCCL", MFD_CLOEXEC)};
    if (where.fd < 0 || ftruncate(where.fd, sizeof(shared_t)) != 0)
        return HORA_NCCL_SYSTEM_ERROR;
    memset(id_p, 0, sizeof(*id_p));
    memcpy(id_p, &where, sizeof(where));
    return HORA_NCCL_SUCCESS;
}

static bool fault(const char *word, int rank) {
    const char *words = getenv("HORA_STANDIN_NCCL"), *only = getenv("HORA_STANDIN_NCCL_RANK");
    return words != NULL && strstr(words, word) != NULL && (only == NULL || atoi(only) == rank);
}

static comm_t *comm_new(int pid, int fd, int rank, int size) {
    comm_t *comm = calloc(1, sizeof(*comm));
    char    path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, fd);
    *comm = (comm_t){.rank = rank, .size = size, .fd = pid == getpid() ? fd : -1, .answers = 2};
    fd = open(path, O_RDWR | O_CLOEXEC);
    comm->shared = mmap(NULL, sizeof(shared_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (comm->shared == MAP_FAILED) {
        perror("nccl stand-in");
        abort();
    }
    comm->never = fault("init-never", rank);
    comm->reports = fault("reports", rank);
    comm->hangs = comm->reports || fault("hangs", rank);
    comm->no_memory = fault("no-memory", rank);
    comm->call_blocks = fault("call-blocks", rank);
    comm->abort_blocks = fault("abort-blocks", rank);
    atomic_fetch_add(&comm->shared->joined, 1);
    return comm;
}

EXPORT int ncclCommInitRankConfig(hora_nccl_handle_t *comm_p, int size, hora_nccl_id_t id, int rank,
                                  hora_nccl_config_t *config);
int ncclCommInitRankConfig(hora_nccl_handle_t *comm_p, int size, hora_nccl_id_t id, int rank,
                           hora_nccl_config_t *config) {
    where_t where;
    memcpy(&where, &id, sizeof(where));
    if (where.magic != VERSION || size > RANKS || config->magic != 0xcafebeef || config->blocking != 0 ||
        config->version != 21403 || config->size != sizeof(*config))
        return HORA_NCCL_BAD_ARGUMENT;
    if (fault("init-error", rank)) {
        if (where.pid == getpid())
            close(where.fd);
        return HORA_NCCL_SYSTEM_ERROR;
    }
    atomic_fetch_add(&nccl_standin.inits, 1);
    *comm_p = comm_new(where.pid, where.fd, rank, size);
    return HORA_NCCL_IN_PROGRESS;
}

EXPORT int ncclCommGetAsyncError(hora_nccl_handle_t handle, int *error_p);
int ncclCommGetAsyncError(hora_nccl_handle_t handle, int *error_p) {
    comm_t *comm = handle;
    bool    ready;
    if (comm == NULL)
        return HORA_NCCL_BAD_ARGUMENT;
    ready = atomic_load(&comm->shared->joined) == comm->size && !comm->never;
    if (ready && comm->fd >= 0) {
        close(comm->fd);
        comm->fd = -1;
    }
    *error_p = !ready || comm->answers-- > 0 ? HORA_NCCL_IN_PROGRESS : HORA_NCCL_SUCCESS;
    if (*error_p == HORA_NCCL_SUCCESS && comm->wanted != NULL) {
        *comm->wanted = comm->made;
        comm->wanted = NULL;
    }
    if (comm->reported != 0 && hora_clock_ns() >= comm->reported)
        *error_p = HORA_NCCL_REMOTE_ERROR;
    return HORA_NCCL_SUCCESS;
}

/* As NCCL: no call but an abort before the last one was asked about until it had succeeded. */
static bool is_busy(const comm_t *comm) {
    return atomic_load(&comm->shared->joined) < comm->size || comm->answers >= 0;
}

#ifndef LACKS_SPLIT
/* All members of `comm` have come here. */
static void meet(comm_t *comm) {
    int round = atomic_load(&comm->shared->round);
    if (atomic_fetch_add(&comm->shared->came, 1) == comm->size - 1) {
        atomic_store(&comm->shared->came, 0);
        atomic_fetch_add(&comm->shared->round, 1);
    }
    while (atomic_load(&comm->shared->round) == round)
        usleep(100);
}

/* It says that it has succeeded, and gives the handle when the parent is ready again: as NCCL
 * 2.18 to 2.32. */
EXPORT int ncclCommSplit(hora_nccl_handle_t handle, int color, int key, hora_nccl_handle_t *comm_p,
                         hora_nccl_config_t *config);
int ncclCommSplit(hora_nccl_handle_t handle, int color, int key, hora_nccl_handle_t *comm_p,
                  hora_nccl_config_t *config) {
    comm_t        *comm = handle;
    ballot_t      *ballots = comm->shared->ballots;
    hora_nccl_id_t id;
    where_t        where = {0};
    int            rank = 0, size = 0, leader = -1;
    *comm_p = NULL;
    if (is_busy(comm) || config->magic != 0xcafebeef || color < -1)
        return HORA_NCCL_BAD_ARGUMENT;
    ballots[comm->rank] = (ballot_t){.color = color, .key = key};
    meet(comm);
    for (int r = 0; r < comm->size; r++) {
        bool before = ballots[r].key < key || (ballots[r].key == key && r < comm->rank);
        if (ballots[r].color != color)
            continue;
        size++;
        rank += before;
        leader = leader < 0 ? r : leader;
    }
    if (color >= 0 && leader == comm->rank) {
        ncclGetUniqueId(&id);
        memcpy(&where, &id, sizeof(where));
        ballots[comm->rank].pid = where.pid;
        ballots[comm->rank].fd = where.fd;
    }
    meet(comm);
    atomic_fetch_add(&nccl_standin.splits, 1);
    comm->made = color >= 0 ? comm_new(ballots[leader].pid, ballots[leader].fd, rank, size) : NULL;
    meet(comm);
    comm->wanted = comm_p;
    comm->answers = fault("split-never", comm->rank) ? 1000000 : 1;
    return HORA_NCCL_SUCCESS;
}
#endif

static void comm_delete(comm_t *comm) {
    while (atomic_load(&comm->jobs) > 0)
        usleep(100);
    if (comm->fd >= 0)
        close(comm->fd);
    munmap(comm->shared, sizeof(shared_t));
    free(comm);
}

EXPORT int ncclCommAbort(hora_nccl_handle_t handle);
int ncclCommAbort(hora_nccl_handle_t handle) {
    comm_t *comm = handle;
    atomic_fetch_add(&nccl_standin.aborts, 1);
    while (comm->abort_blocks)
        pause();
    atomic_store(&comm->aborted, true);
    while (atomic_load(&comm->inside))
        usleep(1000);
    if (comm->wanted != NULL)
        *comm->wanted = comm->made; /* so late may it come */
    comm_delete(comm);
    return HORA_NCCL_SUCCESS;
}

#ifndef LACKS
EXPORT int ncclCommFinalize(hora_nccl_handle_t handle);
int ncclCommFinalize(hora_nccl_handle_t handle) {
    comm_t *comm = handle;
    if (is_busy(comm))
        return HORA_NCCL_BAD_ARGUMENT;
    comm->finalized = true;
    comm->answers = atomic_load(&comm->jobs) > 0 ? 1000000 : 1;
    return HORA_NCCL_IN_PROGRESS;
}
#endif

EXPORT int ncclCommDestroy(hora_nccl_handle_t handle);
int ncclCommDestroy(hora_nccl_handle_t handle) {
    comm_t *comm = handle;
    atomic_fetch_add(&nccl_standin.destroys, 1);
    if (!comm->finalized || is_busy(comm))
        return HORA_NCCL_BAD_USAGE;
    comm_delete(comm);
    return HORA_NCCL_SUCCESS;
}

/* ---- Groups ---------------------------------------------------------------------------------- */

EXPORT int ncclGroupStart(void);
int ncclGroupStart(void) {
    depth++;
    return HORA_NCCL_SUCCESS;
}

/* The call adds to this job. */
static job_t *join_group(hora_nccl_handle_t handle, hora_cuda_stream_t stream) {
    comm_t *comm = handle;
    if (depth == 0) {
        fprintf(stderr, "nccl stand-in: a call outside of a group\n");
        abort();
    }
    if (open_job == NULL) {
        open_job = calloc(1, sizeof(*open_job));
        open_job->comm = comm;
        open_stream = stream;
        if (is_busy(comm))
            fprintf(stderr, "nccl stand-in: a call while another one is in progress\n"), abort();
    }
    if (open_job->comm != comm || open_stream != stream)
        fprintf(stderr, "nccl stand-in: a group of several communicators or streams\n"), abort();
    return open_job;
}

EXPORT int ncclGroupEnd(void);
int ncclGroupEnd(void) {
    int (*launch)(hora_cuda_stream_t, void (*)(void *), void *) = cuda_symbol("cuLaunchHostFunc");
    job_t  *job = open_job;
    comm_t *comm = job != NULL ? job->comm : NULL;
    if (--depth > 0 || job == NULL)
        return HORA_NCCL_SUCCESS;
    open_job = NULL;
    atomic_fetch_add(&nccl_standin.groups, 1);
    atomic_fetch_add(&comm->jobs, 1);
    comm->answers = 2;
    if (comm->reports && comm->reported == 0)
        comm->reported = hora_clock_ns() + 300000000; /* the call has returned by then */
    if (comm->no_memory) {
        last_error = "Cuda failure 2 'out of memory'";
        atomic_fetch_sub(&comm->jobs, 1);
        forget(job);
        return HORA_NCCL_CUDA_ERROR;
    }
    atomic_store(&comm->inside, comm->call_blocks);
    if (launch(open_stream, run_job, job) != HORA_CUDA_SUCCESS)
        return HORA_NCCL_CUDA_ERROR;
    if (!comm->call_blocks)
        return HORA_NCCL_IN_PROGRESS;
    while (!atomic_load(&comm->aborted))
        usleep(1000);
    atomic_store(&comm->inside, false);
    return HORA_NCCL_INTERNAL;
}

/* ---- Calls ----------------------------------------------------------------------------------- */

static const struct {
    hora_dtype_t dtype;
    size_t       size;
} types[] = {
    [HORA_NCCL_INT8] = {HORA_INT8, 1},       [HORA_NCCL_UINT8] = {HORA_UINT8, 1},
    [HORA_NCCL_INT32] = {HORA_INT32, 4},     [HORA_NCCL_UINT32] = {HORA_UINT32, 4},
    [HORA_NCCL_INT64] = {HORA_INT64, 8},     [HORA_NCCL_UINT64] = {HORA_UINT64, 8},
    [HORA_NCCL_FLOAT16] = {HORA_FLOAT16, 2}, [HORA_NCCL_FLOAT32] = {HORA_FLOAT32, 4},
    [HORA_NCCL_FLOAT64] = {HORA_FLOAT64, 8}, [HORA_NCCL_BFLOAT16] = {HORA_BFLOAT16, 2},
};
static const hora_op_t ops[] = {HORA_SUM, HORA_PRODUCT, HORA_MAX, HORA_MIN};

static void add_transfer(job_t *job, bool sends, int peer, const void *at, size_t bytes) {
    if (job->ntransfers == ASKS_MAX)
        abort();
    if (bytes > 0)
        job->transfers[job->ntransfers++] = (transfer_t){sends, peer, (uint8_t *)(uintptr_t)at, bytes, 0};
}

static void add_copy(job_t *job, const void *src, void *dst, size_t bytes) {
    if (bytes > 0 && src != dst)
        job->copies[job->ncopies++] = (copy_t){src, dst, bytes};
}

/* Receives everybody's `count` elements for this rank, and reduces them. */
static void add_reduction(job_t *job, const void *own, void *out, size_t count, int dtype, int op) {
    comm_t      *comm = job->comm;
    size_t       bytes = count * types[dtype].size;
    reduction_t *r = &job->reductions[job->nreductions++];
    *r = (reduction_t){.how = {types[dtype].dtype, ops[op], 1, 1.0, 1.0}, .dst = out, .count = count};
    for (int peer = 0; peer < comm->size; peer++) {
        r->src[peer] = own;
        if (peer == comm->rank)
            continue;
        r->src[peer] = job->temporary[job->ntemporary++] = malloc(bytes + 1);
        add_transfer(job, false, peer, r->src[peer], bytes);
    }
}

EXPORT int ncclAllReduce(const void *in, void *out, size_t count, int dtype, int op,
                         hora_nccl_handle_t handle, hora_cuda_stream_t stream);
int ncclAllReduce(const void *in, void *out, size_t count, int dtype, int op,
                  hora_nccl_handle_t handle, hora_cuda_stream_t stream) {
    job_t *job = join_group(handle, stream);
    size_t bytes = count * types[dtype].size;
    in = real(in, bytes);
    atomic_fetch_add(&nccl_standin.allreduces, 1);
    for (int peer = 0; peer < job->comm->size; peer++)
        if (peer != job->comm->rank)
            add_transfer(job, true, peer, in, bytes);
    add_reduction(job, in, real(out, bytes), count, dtype, op);
    return HORA_NCCL_SUCCESS;
}

EXPORT int ncclReduce(const void *in, void *out, size_t count, int dtype, int op, int root,
                      hora_nccl_handle_t handle, hora_cuda_stream_t stream);
int ncclReduce(const void *in, void *out, size_t count, int dtype, int op, int root,
               hora_nccl_handle_t handle, hora_cuda_stream_t stream) {
    job_t *job = join_group(handle, stream);
    size_t bytes = count * types[dtype].size;
    in = real(in, bytes);
    if (job->comm->rank == root)
        add_reduction(job, in, real(out, bytes), count, dtype, op);
    else
        add_transfer(job, true, root, in, bytes);
    return HORA_NCCL_SUCCESS;
}

EXPORT int ncclReduceScatter(const void *in, void *out, size_t block, int dtype, int op,
                             hora_nccl_handle_t handle, hora_cuda_stream_t stream);
int ncclReduceScatter(const void *in, void *out, size_t block, int dtype, int op,
                      hora_nccl_handle_t handle, hora_cuda_stream_t stream) {
    job_t   *job = join_group(handle, stream);
    comm_t  *comm = job->comm;
    size_t   bytes = block * types[dtype].size;
    uint8_t *from = real(in, bytes * (size_t)comm->size);
    for (int peer = 0; peer < comm->size; peer++)
        if (peer != comm->rank)
            add_transfer(job, true, peer, from + (size_t)peer * bytes, bytes);
    add_reduction(job, from + (size_t)comm->rank * bytes, real(out, bytes), block, dtype, op);
    return HORA_NCCL_SUCCESS;
}

EXPORT int ncclAllGather(const void *in, void *out, size_t block, int dtype, hora_nccl_handle_t handle,
                         hora_cuda_stream_t stream);
int ncclAllGather(const void *in, void *out, size_t block, int dtype, hora_nccl_handle_t handle,
                  hora_cuda_stream_t stream) {
    job_t   *job = join_group(handle, stream);
    comm_t  *comm = job->comm;
    size_t   bytes = block * types[dtype].size;
    uint8_t *from = real(in, bytes), *to = real(out, bytes * (size_t)comm->size);
    for (int peer = 0; peer < comm->size; peer++) {
        if (peer == comm->rank) {
            add_copy(job, from, to + (size_t)peer * bytes, bytes);
            continue;
        }
        add_transfer(job, true, peer, from, bytes);
        add_transfer(job, false, peer, to + (size_t)peer * bytes, bytes);
    }
    return HORA_NCCL_SUCCESS;
}

EXPORT int ncclBroadcast(const void *in, void *out, size_t count, int dtype, int root,
                         hora_nccl_handle_t handle, hora_cuda_stream_t stream);
int ncclBroadcast(const void *in, void *out, size_t count, int dtype, int root,
                  hora_nccl_handle_t handle, hora_cuda_stream_t stream) {
    job_t  *job = join_group(handle, stream);
    comm_t *comm = job->comm;
    size_t  bytes = count * types[dtype].size;
    void   *to = real(out, bytes);
    if (comm->rank != root) {
        add_transfer(job, false, root, to, bytes);
        return HORA_NCCL_SUCCESS;
    }
    in = real(in, bytes);
    add_copy(job, in, to, bytes);
    for (int peer = 0; peer < comm->size; peer++)
        if (peer != root)
            add_transfer(job, true, peer, in, bytes);
    return HORA_NCCL_SUCCESS;
}

EXPORT int ncclSend(const void *in, size_t count, int dtype, int peer, hora_nccl_handle_t handle,
                    hora_cuda_stream_t stream);
int ncclSend(const void *in, size_t count, int dtype, int peer, hora_nccl_handle_t handle,
             hora_cuda_stream_t stream) {
    job_t *job = join_group(handle, stream);
    size_t bytes = count * types[dtype].size;
    if (peer == job->comm->rank)
        return HORA_NCCL_BAD_ARGUMENT; /* NCCL could; hora does not ask it to */
    add_transfer(job, true, peer, real(in, bytes), bytes);
    return HORA_NCCL_SUCCESS;
}

EXPORT int ncclRecv(void *out, size_t count, int dtype, int peer, hora_nccl_handle_t handle,
                    hora_cuda_stream_t stream);
int ncclRecv(void *out, size_t count, int dtype, int peer, hora_nccl_handle_t handle,
             hora_cuda_stream_t stream) {
    job_t *job = join_group(handle, stream);
    size_t bytes = count * types[dtype].size;
    if (peer == job->comm->rank)
        return HORA_NCCL_BAD_ARGUMENT;
    add_transfer(job, false, peer, real(out, bytes), bytes);
    return HORA_NCCL_SUCCESS;
}
