/*
 * Device memory between the processes of a host (ipc.h). On the thread that uses the communicator, with
 * its GPU's context current.
 *
 * Allocations stay open once they were opened: CUDA takes long over both. They are known by their
 * number, which CUDA gives to no other allocation of the process. What its owner frees stays in
 * the GPU's memory until it is closed: when others are opened, or with the communicator.
 *
 * CUDA does not open what lies, in its owner, where something lay that is still open here: what
 * was freed must be closed first (CUDA_ERROR_ALREADY_MAPPED). So what is open is in one list of
 * the process, for all communicators, under `lock`; and before an allocation is opened, all others
 * of its process that it overlaps are closed, whoever uses them: their owner has freed them, and
 * so has done with them. An allocation may share a block of 2 MB with others (NCCL's CUDA_IPC_MIN),
 * of which CUDA opens and gives away the whole: unless it is of whole blocks, it is not shown.
 *
 * CUDA may take as long as the GPU has work to open and to close: nobody holds the lock meanwhile.
 * What a thread opens or closes is in the list as `busy`, and others wait for it with their
 * deadlines. What communicators left on a GPU that failed, or did not finish, is waited for
 * likewise before anything is closed there. Sources: CUDA C++ Programming Guide, interprocess
 * communication; openucx/ucx#2738.
 */
#include "offload/cuda/ipc.h"

#include "transport/event.h"
#include "transport/p2p.h"
#include "transport/shm/retire.h"
#include "util/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK           HORA_GPU_BLOCK
#define NAP_NS          100000            /* between looks at what another thread opens or closes */
#define GOODBYE_SECONDS 5.0 /* for work that is queued when the communicator is freed */

/* An allocation of another process, open in a GPU's context. */
typedef struct hora_ipc_opened {
    struct hora_ipc_opened *next;
    const hora_gpu_t       *gpu;
    uint64_t                process, id, start, length; /* there */
    uint64_t                at;    /* here */
    int                     users; /* mappings of communicators */
    bool                    busy;  /* a thread is opening or closing it */
    atomic_bool             stale; /* is being closed, or has been, and is in the list no more */
} opened_t;

/* What a communicator has left queued on a GPU when it was freed. */
typedef struct unfinished {
    struct unfinished *next;
    const hora_gpu_t  *gpu;
    hora_cuda_event_t  end;
} unfinished_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static opened_t       *all;
static unfinished_t   *unfinished; /* never shorter: few fail */

uint64_t hora_ipc_process(void) {
    static _Atomic uint64_t mine;
    uint64_t                none = 0, fresh = hora_clock_ns() << 22 ^ (uint64_t)getpid() << 1 ^ 1;
    atomic_compare_exchange_strong(&mine, &none, fresh);
    return atomic_load(&mine);
}

/* ---- Showing ----------------------------------------------------------------------------------- */

static bool ask(const hora_cuda_t *cuda, int attribute, uint64_t at, void *value_p) {
    return cuda->pointer_attribute(value_p, attribute, at) == HORA_CUDA_SUCCESS;
}

static const hora_ipc_shown_t *show_allocation(hora_gpu_ipc_t *self, uint64_t id, uint64_t start) {
    hora_ipc_shown_t *oldest = &self->shown[0];
    for (int i = 0; i < HORA_IPC_MAPPINGS; i++) {
        hora_ipc_shown_t *s = &self->shown[i];
        if (s->id == id && s->start == start) {
            s->used = self->calls;
            return s;
        }
        oldest = s->used < oldest->used ? s : oldest;
    }
    oldest->id = 0;
    if (self->gpu->cuda->ipc_memory(&oldest->handle, start) != HORA_CUDA_SUCCESS)
        return NULL;
    oldest->id = id;
    oldest->start = start;
    oldest->used = self->calls;
    return oldest;
}

bool hora_ipc_show(hora_gpu_ipc_t *self, uint64_t at, size_t bytes, hora_ipc_region_t *region_p) {
    const hora_cuda_t      *cuda = self->gpu->cuda;
    const hora_ipc_shown_t *shown;
    uint64_t                id = 0, start = 0;
    size_t                  room = 0;
    unsigned                capable = 0;
    if (!ask(cuda, HORA_CUDA_POINTER_IPC_CAPABLE, at, &capable) || capable == 0 ||
        !ask(cuda, HORA_CUDA_POINTER_ID, at, &id) || id == 0 ||
        !ask(cuda, HORA_CUDA_POINTER_START, at, &start) || start > at ||
        !ask(cuda, HORA_CUDA_POINTER_BYTES, at, &room) || at - start > room ||
        bytes > room - (size_t)(at - start) || room % BLOCK != 0)
        return false;
    shown = show_allocation(self, id, start);
    if (shown == NULL)
        return false;
    *region_p = (hora_ipc_region_t){id, start, room, at - start, bytes, shown->handle};
    return true;
}

/* ---- What is open -------------------------------------------------------------------------- */

/* In blocks, as CUDA gives memory away. */
static bool overlaps(const opened_t *o, const hora_gpu_t *gpu, uint64_t process,
                     const hora_ipc_region_t *region) {
    return o->gpu == gpu && o->process == process &&
           o->start / BLOCK <= (region->start + region->length - 1) / BLOCK &&
           region->start / BLOCK <= (o->start + o->length - 1) / BLOCK;
}

/* The caller holds the lock; from now on the others leave it to this thread. */
static void claim(opened_t *o) {
    o->busy = true;
    atomic_store(&o->stale, true);
}

/* Takes it out of the list. Its last user frees it. */
static void forget_opened(opened_t *o) {
    opened_t **at = &all;
    bool       unused;
    pthread_mutex_lock(&lock);
    while (*at != o)
        at = &(*at)->next;
    *at = o->next;
    o->busy = false;
    unused = o->users == 0;
    pthread_mutex_unlock(&lock);
    if (unused)
        free(o);
}

/* What this thread has claimed; without the lock, in its GPU's context. */
static void close_opened(opened_t *o) {
    o->gpu->cuda->ipc_memory_close(o->at);
    forget_opened(o);
}

/* o is in the list, as busy. */
static hora_status_t open_new(opened_t *o, const hora_cuda_bytes64_t *handle) {
    const hora_cuda_t *cuda = o->gpu->cuda;
    uint64_t           at = 0;
    hora_cuda_result_t result = cuda->ipc_memory_open(&at, *handle, HORA_CUDA_IPC_PEER_ACCESS);
    pthread_mutex_lock(&lock);
    o->at = at;
    o->users = result == HORA_CUDA_SUCCESS ? 1 : 0;
    o->busy = result != HORA_CUDA_SUCCESS;
    pthread_mutex_unlock(&lock);
    if (result == HORA_CUDA_SUCCESS)
        return HORA_OK;
    forget_opened(o);
    return hora_cuda_fail(cuda, result, "opening another rank's GPU memory");
}

/* closes: if nobody else uses it; else it stays open until its place is needed. */
static void drop_mapping(hora_ipc_mapping_t *m, bool closes) {
    opened_t *o = m->opened;
    bool      last, gone;
    if (o == NULL)
        return;
    pthread_mutex_lock(&lock);
    last = --o->users == 0;
    gone = last && atomic_load(&o->stale) && !o->busy;
    closes = closes && last && !atomic_load(&o->stale);
    if (closes)
        claim(o);
    pthread_mutex_unlock(&lock);
    m->opened = NULL;
    if (closes)
        close_opened(o);
    else if (gone)
        free(o);
}

/* ---- Finding ----------------------------------------------------------------------------------- */

static const unfinished_t *find_unfinished(void) {
    pthread_mutex_lock(&lock);
    const unfinished_t *first = unfinished;
    pthread_mutex_unlock(&lock);
    return first;
}

/* CUDA may wait for all queued work when it closes memory, and has no deadline. coll's stream has what it
 * has to wait for of earlier calls, too. */
static hora_status_t settle(hora_comm_t *comm, const hora_coll_t *coll) {
    const hora_gpu_t   *gpu = comm->gpu->gpu;
    const unfinished_t *u = find_unfinished();
    hora_status_t       st;
    st = hora_event_wait_stream(comm, gpu, coll->gpu->stream, coll->timeout,
                                "a collective on GPUs: closing another rank's memory");
    for (; u != NULL && st == HORA_OK; u = u->next)
        if (u->gpu == gpu)
            st = hora_event_wait(comm, gpu, u->end, coll->timeout, "a collective on GPUs: closing "
                                 "another rank's memory, which waits for work that a communicator "
                                 "that was freed has left on the GPU");
    return st;
}

/* Another thread is in CUDA with what lies there. */
static hora_status_t wait_for_turn(hora_comm_t *comm, const hora_coll_t *coll, uint64_t start) {
    const struct timespec nap = {0, NAP_NS};
    double                limit = coll->timeout > 0 ? coll->timeout : comm->timeout;
    double                waited = hora_clock_seconds(hora_clock_ns() - start);
    hora_status_t         st = hora_failure_check(&comm->failure);
    if (st != HORA_OK)
        return st;
    if (waited > limit)
        return hora_fail(HORA_ERR_TIMEOUT, "a collective on GPUs: waited %.1f s for another thread "
                         "that opens or closes memory on GPU %d (HORA_TIMEOUT)", waited,
                         comm->gpu->gpu->ordinal);
    hora_p2p_progress(comm->world); /* another rank may need a message of another operation */
    nanosleep(&nap, NULL);
    return HORA_OK;
}

static bool shows(const hora_ipc_mapping_t *m, const hora_ipc_region_t *region) {
    return m->opened != NULL && m->opened->id == region->id && !atomic_load(&m->opened->stale);
}

/* The one of this allocation, else an empty one, else the one that was used least lately. */
static hora_ipc_mapping_t *find_mapping(hora_ipc_member_t *member, const hora_ipc_region_t *region) {
    hora_ipc_mapping_t *best = &member->mappings[0];
    for (int i = 0; i < HORA_IPC_MAPPINGS; i++) {
        hora_ipc_mapping_t *m = &member->mappings[i];
        if (shows(m, region))
            return m;
        if (best->opened != NULL && (m->opened == NULL || m->used < best->used))
            best = m;
    }
    return best;
}

typedef enum step { STEP_USE, STEP_OPEN, STEP_SETTLE, STEP_CLOSE, STEP_WAIT } step_t;

/* What comes next. USE: *o_p is open, and has one user more. OPEN: `fresh` is in the list. CLOSE:
 * *o_p is claimed for that. */
static step_t choose_step(opened_t *fresh, const hora_ipc_region_t *region, bool settled,
                          opened_t **o_p) {
    opened_t *o;
    step_t    step = STEP_OPEN;
    pthread_mutex_lock(&lock);
    for (o = all; o != NULL && !overlaps(o, fresh->gpu, fresh->process, region); o = o->next)
        ;
    if (o == NULL) {
        fresh->next = all;
        all = fresh;
    } else if (o->busy) {
        step = STEP_WAIT;
    } else if (o->id == region->id) {
        o->users++;
        step = STEP_USE;
    } else if (!settled) {
        step = STEP_SETTLE;
    } else {
        claim(o);
        step = STEP_CLOSE;
    }
    pthread_mutex_unlock(&lock);
    *o_p = o == NULL ? fresh : o;
    return step;
}

static hora_status_t open_region(hora_comm_t *comm, const hora_coll_t *coll, opened_t *fresh,
                                 const hora_ipc_region_t *region, bool settled, opened_t **o_p) {
    uint64_t      start = hora_clock_ns();
    opened_t     *o = NULL;
    step_t        step = STEP_WAIT;
    hora_status_t st = HORA_OK;
    while (st == HORA_OK && step != STEP_USE && step != STEP_OPEN) {
        step = choose_step(fresh, region, settled, &o);
        if (step == STEP_WAIT)
            st = wait_for_turn(comm, coll, start);
        else if (step == STEP_CLOSE)
            close_opened(o);
        else if (step == STEP_SETTLE)
            st = settle(comm, coll);
        settled = settled || step == STEP_SETTLE;
    }
    if (step != STEP_OPEN)
        free(fresh);
    else
        st = open_new(fresh, &region->handle);
    if (st == HORA_OK)
        *o_p = o;
    return st;
}

static hora_status_t open_mapping(hora_comm_t *comm, const hora_coll_t *coll, uint64_t process,
                                  hora_ipc_mapping_t *m, const hora_ipc_region_t *region) {
    bool          replaces = m->opened != NULL;
    opened_t     *fresh;
    hora_status_t st = replaces ? settle(comm, coll) : HORA_OK;
    if (st != HORA_OK)
        return st;
    drop_mapping(m, true);
    fresh = calloc(1, sizeof(*fresh));
    if (fresh == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "opening another rank's GPU memory");
    *fresh = (opened_t){.gpu = comm->gpu->gpu, .process = process, .id = region->id,
                        .start = region->start, .length = region->length, .busy = true};
    return open_region(comm, coll, fresh, region, replaces, &m->opened);
}

/* Another process has written it. */
static hora_status_t check_region(const hora_ipc_region_t *region, int rank) {
    if (region->id == 0 ? region->bytes == 0
                        : region->length > 0 && region->length % BLOCK == 0 &&
                              region->start <= UINT64_MAX - region->length &&
                              region->offset <= region->length &&
                              region->bytes <= region->length - region->offset)
        return HORA_OK;
    return hora_fail(HORA_ERR_PROTOCOL, "rank %d shows %llu bytes at %llu of GPU memory of %llu "
                     "bytes at 0x%llx", rank, (unsigned long long)region->bytes,
                     (unsigned long long)region->offset, (unsigned long long)region->length,
                     (unsigned long long)region->start);
}

hora_status_t hora_ipc_find(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                            const hora_ipc_region_t *region, uint64_t *at_p) {
    hora_gpu_ipc_t     *self = comm->gpu->ipc;
    hora_ipc_member_t  *member = &self->members[rank];
    hora_ipc_mapping_t *m;
    hora_status_t       st = check_region(region, rank);
    if (st != HORA_OK)
        return st;
    if (region->id == 0) {
        *at_p = 0;
        return HORA_OK;
    }
    if (member->process == hora_ipc_process()) {
        *at_p = region->start + region->offset;
        return HORA_OK;
    }
    m = find_mapping(member, region);
    if (!shows(m, region))
        st = open_mapping(comm, coll, member->process, m, region);
    if (st != HORA_OK)
        return st;
    if (m->opened->start != region->start || m->opened->length != region->length)
        return hora_fail(HORA_ERR_PROTOCOL, "rank %d shows GPU memory of %llu bytes at 0x%llx that "
                         "had %llu before", rank, (unsigned long long)region->length,
                         (unsigned long long)region->start, (unsigned long long)m->opened->length);
    m->used = self->calls;
    *at_p = m->opened->at + region->offset;
    return HORA_OK;
}

/* ---- Staging ----------------------------------------------------------------------------------- */

/* At least doubled, so that the outgrown ones together are no longer than it. They are not freed: CUDA
 * might wait for all queued work, without a deadline. */
hora_status_t hora_ipc_reserve(hora_gpu_ipc_t *self, size_t bytes) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    size_t             room = self->stage_room > 0 ? self->stage_room : BLOCK;
    hora_cuda_result_t result;
    if (bytes <= self->stage_room)
        return HORA_OK;
    while (room < bytes && room <= SIZE_MAX / 4)
        room *= 2;
    if (self->nstages == HORA_IPC_STAGES || room < bytes)
        return hora_fail(HORA_ERR_NO_MEMORY, "a staging buffer of %zu bytes", bytes);
    result = cuda->alloc(&self->stages[self->nstages], room);
    if (result != HORA_CUDA_SUCCESS)
        return hora_cuda_fail(cuda, result, "a staging buffer for a collective on GPUs");
    self->nstages++;
    self->stage_room = room;
    return HORA_OK;
}

/* ---- The end ----------------------------------------------------------------------------------- */

/* What others may have open. */
typedef struct left {
    hora_gpu_t       *gpu;
    hora_cuda_event_t ready, done;
    uint64_t          stages[HORA_IPC_STAGES];
    int               nstages;
} left_t;

static void free_left(hora_world_t *world, void *what) {
    left_t            *left = what;
    const hora_cuda_t *cuda = left->gpu->cuda;
    bool               entered = hora_gpu_enter(left->gpu) == HORA_OK;
    (void)world;
    if (left->ready != NULL)
        cuda->event_destroy(left->ready);
    if (left->done != NULL)
        cuda->event_destroy(left->done);
    for (int i = 0; i < left->nstages; i++)
        cuda->free(left->stages[i]);
    if (entered)
        hora_gpu_leave(left->gpu);
    free(left);
}

/* The others may be about to make a stream wait for my events, even if the communicator has failed here, or
 * have my memory open: that goes once they have freed the communicator, too. Without memory it stays until
 * the process ends. */
static void leave(hora_comm_t *comm, hora_gpu_ipc_t *self, bool idle) {
    hora_ipc_member_t *me = &self->members[comm->rank];
    left_t            *left = calloc(1, sizeof(*left));
    if (left == NULL)
        return;
    *left = (left_t){.gpu = self->gpu, .ready = me->ready, .done = me->done,
                     .nstages = idle ? self->nstages : 0};
    memcpy(left->stages, self->stages, sizeof(left->stages));
    hora_retire(comm, NULL, comm->size, free_left, left);
}

static void drop_member(const hora_gpu_ipc_t *self, hora_ipc_member_t *member, bool closes) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    for (int i = 0; i < HORA_IPC_MAPPINGS; i++)
        drop_mapping(&member->mappings[i], closes);
    if (!member->opened)
        return;
    if (member->ready != NULL)
        cuda->event_destroy(member->ready);
    if (member->done != NULL)
        cuda->event_destroy(member->done);
}

/* Without memory it is forgotten. */
static bool keep_unfinished(const hora_gpu_ipc_t *self) {
    unfinished_t *u = malloc(sizeof(*u));
    if (u == NULL)
        return false;
    pthread_mutex_lock(&lock);
    *u = (unfinished_t){unfinished, self->gpu, self->end};
    unfinished = u;
    pthread_mutex_unlock(&lock);
    return true;
}

static bool has_unfinished(const hora_gpu_t *gpu) {
    const unfinished_t *u = find_unfinished();
    while (u != NULL && (u->gpu != gpu || gpu->cuda->event_query(u->end) != HORA_CUDA_NOT_READY))
        u = u->next;
    return u != NULL;
}

void hora_ipc_drop(hora_comm_t *comm, hora_gpu_ipc_t *self) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    bool               failed = atomic_load(&comm->failure.raised) != HORA_OK;
    bool               ended = self->end == NULL ||
                               hora_event_drain_event(comm->world, self->gpu, self->end,
                                                      failed ? 0 : GOODBYE_SECONDS);
    bool               closes = ended && !failed && !has_unfinished(self->gpu);
    for (int i = 0; i < comm->size; i++)
        if (i != comm->rank)
            drop_member(self, &self->members[i], closes);
    leave(comm, self, ended && !failed);
    if (self->end != NULL && (ended || !keep_unfinished(self)))
        cuda->event_destroy(self->end);
}
