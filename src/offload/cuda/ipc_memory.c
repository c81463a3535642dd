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
 * so has done with them. Small allocations share a block of 2 MB (NCCL's CUDA_IPC_MIN), of which
 * CUDA opens and gives away the whole: they are not shown. Sources: CUDA C++ Programming Guide,
 * interprocess communication; openucx/ucx#2738.
 */
#include "offload/cuda/ipc.h"

#include "transport/event.h"
#include "transport/shm/retire.h"
#include "util/clock.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BLOCK           ((size_t)2 << 20) /* that small allocations share */
#define GOODBYE_SECONDS 5.0 /* for work that is queued when the communicator is freed */

/* An allocation of another process, open in a GPU's context. */
typedef struct hora_ipc_opened {
    struct hora_ipc_opened *next;
    const hora_gpu_t       *gpu;
    uint64_t                process, id, start, length; /* there */
    uint64_t                at;    /* here */
    int                     users; /* mappings of communicators */
    atomic_bool             stale; /* has been closed, and is in the list no more */
} opened_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static opened_t       *all;

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
        bytes > room - (size_t)(at - start) || room < BLOCK)
        return false;
    shown = show_allocation(self, id, start);
    if (shown == NULL)
        return false;
    *region_p = (hora_ipc_region_t){id, start, room, at - start, bytes, shown->handle};
    return true;
}

/* ---- What is open; the caller holds the lock --------------------------------------------- */

static bool overlaps(const opened_t *o, const hora_gpu_t *gpu, uint64_t process,
                     const hora_ipc_region_t *region) {
    return o->gpu == gpu && o->process == process && o->start < region->start + region->length &&
           region->start < o->start + o->length;
}

/* In its GPU's context, as all who have it are. */
static void close_opened(opened_t **at) {
    opened_t *o = *at;
    *at = o->next;
    o->gpu->cuda->ipc_memory_close(o->at);
    atomic_store(&o->stale, true);
}

/* Closes what lay in its owner where the region's allocation lies now. */
static void close_stale(const hora_gpu_t *gpu, uint64_t process, const hora_ipc_region_t *region) {
    for (opened_t **at = &all; *at != NULL;)
        if (overlaps(*at, gpu, process, region))
            close_opened(at);
        else
            at = &(*at)->next;
}

static hora_status_t open_new(const hora_gpu_t *gpu, uint64_t process,
                              const hora_ipc_region_t *region, opened_t **o_p) {
    opened_t          *o = calloc(1, sizeof(*o));
    hora_cuda_result_t result;
    if (o == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "opening another rank's GPU memory");
    o->gpu = gpu;
    o->process = process;
    o->id = region->id;
    o->start = region->start;
    o->length = region->length;
    result = gpu->cuda->ipc_memory_open(&o->at, region->handle, HORA_CUDA_IPC_PEER_ACCESS);
    if (result != HORA_CUDA_SUCCESS) {
        free(o);
        return hora_cuda_fail(gpu->cuda, result, "opening another rank's GPU memory");
    }
    o->next = all;
    all = o;
    *o_p = o;
    return HORA_OK;
}

static opened_t *find_opened(const hora_gpu_t *gpu, uint64_t process, uint64_t id) {
    opened_t *o = all;
    while (o != NULL && (o->gpu != gpu || o->process != process || o->id != id))
        o = o->next;
    return o;
}

static void drop_opened(opened_t *opened) {
    opened_t **at = &all;
    if (--opened->users > 0)
        return;
    while (*at != NULL && *at != opened)
        at = &(*at)->next;
    if (*at != NULL)
        close_opened(at);
    free(opened);
}

/* ---- Finding ----------------------------------------------------------------------------------- */

/* CUDA may wait for all queued work when it closes memory, and has no deadline. coll's stream has what it
 * has to wait for of earlier calls, too. */
static hora_status_t settle(hora_comm_t *comm, const hora_coll_t *coll) {
    return hora_event_wait_stream(comm, comm->gpu->gpu, coll->gpu->stream, coll->timeout,
                                  "a collective on GPUs: closing another rank's memory");
}

static void close_mapping(hora_ipc_mapping_t *m) {
    if (m->opened == NULL)
        return;
    pthread_mutex_lock(&lock);
    drop_opened(m->opened);
    pthread_mutex_unlock(&lock);
    m->opened = NULL;
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

static hora_status_t open_mapping(hora_comm_t *comm, const hora_coll_t *coll, uint64_t process,
                                  hora_ipc_mapping_t *m, const hora_ipc_region_t *region) {
    hora_gpu_t   *gpu = comm->gpu->gpu;
    opened_t     *o;
    bool          closes = m->opened != NULL;
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&lock);
    for (o = all; o != NULL; o = o->next)
        closes = closes || (overlaps(o, gpu, process, region) && o->id != region->id);
    pthread_mutex_unlock(&lock);
    if (closes)
        st = settle(comm, coll);
    if (st != HORA_OK)
        return st;
    close_mapping(m);
    pthread_mutex_lock(&lock);
    o = find_opened(gpu, process, region->id);
    if (o == NULL) {
        close_stale(gpu, process, region);
        st = open_new(gpu, process, region, &o);
    }
    if (st == HORA_OK) {
        o->users++;
        m->opened = o;
    }
    pthread_mutex_unlock(&lock);
    return st;
}

hora_status_t hora_ipc_find(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                            const hora_ipc_region_t *region, uint64_t *at_p) {
    hora_gpu_ipc_t     *self = comm->gpu->ipc;
    hora_ipc_member_t  *member = &self->members[rank];
    hora_ipc_mapping_t *m;
    hora_status_t       st = HORA_OK;
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

static void drop_member(const hora_gpu_ipc_t *self, hora_ipc_member_t *member, bool idle) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    for (int i = 0; idle && i < HORA_IPC_MAPPINGS; i++)
        close_mapping(&member->mappings[i]);
    if (!member->opened)
        return;
    if (member->ready != NULL)
        cuda->event_destroy(member->ready);
    if (member->done != NULL)
        cuda->event_destroy(member->done);
}

void hora_ipc_drop(hora_comm_t *comm, hora_gpu_ipc_t *self) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    bool               idle = atomic_load(&comm->failure.raised) == HORA_OK &&
                              (self->end == NULL || hora_event_drain_event(comm->world, self->gpu,
                                                                           self->end, GOODBYE_SECONDS));
    for (int i = 0; i < comm->size; i++)
        if (i != comm->rank)
            drop_member(self, &self->members[i], idle);
    leave(comm, self, idle);
    if (self->end != NULL)
        cuda->event_destroy(self->end);
}
