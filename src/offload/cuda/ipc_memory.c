/*
 * Device memory between the processes of a host (ipc.h). On the thread that uses the communicator, with
 * its GPU's context current.
 *
 * Allocations stay open once they were opened: CUDA takes long over both. They are known by their
 * number, which CUDA gives to no other allocation of the process; what was freed, and lies where a new
 * one is, is closed when that one is opened. What its owner frees stays in the GPU's memory until it is
 * closed: when others are opened, or with the communicator.
 */
#include "offload/cuda/ipc.h"

#include "transport/event.h"
#include "transport/shm/retire.h"
#include "util/clock.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STAGE_LEAST     ((size_t)2 << 20)
#define GOODBYE_SECONDS 5.0 /* for work that is queued when the communicator is freed */

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
        bytes > room - (size_t)(at - start))
        return false;
    shown = show_allocation(self, id, start);
    if (shown == NULL)
        return false;
    *region_p = (hora_ipc_region_t){id, start, at - start, bytes, shown->handle};
    return true;
}

/* ---- Finding ----------------------------------------------------------------------------------- */

/* CUDA may wait for all queued work when it closes memory, and has no deadline. coll's stream has what it
 * has to wait for of earlier calls, too. */
static hora_status_t settle(hora_comm_t *comm, const hora_coll_t *coll) {
    return hora_event_wait_stream(comm, comm->gpu->gpu, coll->gpu->stream, coll->timeout,
                                  "a collective on GPUs: closing another rank's memory");
}

static void close_mapping(const hora_gpu_ipc_t *self, hora_ipc_mapping_t *m) {
    if (m->id != 0)
        self->gpu->cuda->ipc_memory_close(m->at);
    m->id = 0;
}

/* The one of this allocation, of one that lay there, or the one that was used least lately. */
static hora_ipc_mapping_t *find_mapping(hora_ipc_member_t *member, const hora_ipc_region_t *region) {
    hora_ipc_mapping_t *oldest = &member->mappings[0];
    for (int i = 0; i < HORA_IPC_MAPPINGS; i++) {
        hora_ipc_mapping_t *m = &member->mappings[i];
        if (m->id != 0 && m->start == region->start)
            return m;
        oldest = m->id == 0 || (oldest->id != 0 && m->used < oldest->used) ? m : oldest;
    }
    return oldest;
}

static hora_status_t open_mapping(hora_comm_t *comm, const hora_coll_t *coll, hora_ipc_mapping_t *m,
                                  const hora_ipc_region_t *region) {
    hora_gpu_ipc_t    *self = comm->gpu->ipc;
    const hora_cuda_t *cuda = self->gpu->cuda;
    hora_cuda_result_t result;
    hora_status_t      st = m->id != 0 ? settle(comm, coll) : HORA_OK;
    if (st != HORA_OK)
        return st;
    close_mapping(self, m);
    result = cuda->ipc_memory_open(&m->at, region->handle, HORA_CUDA_IPC_PEER_ACCESS);
    if (result != HORA_CUDA_SUCCESS)
        return hora_cuda_fail(cuda, result, "opening another rank's GPU memory");
    m->id = region->id;
    m->start = region->start;
    return HORA_OK;
}

hora_status_t hora_ipc_find(hora_comm_t *comm, const hora_coll_t *coll, int rank,
                            const hora_ipc_region_t *region, uint64_t *at_p) {
    hora_gpu_ipc_t     *self = comm->gpu->ipc;
    hora_ipc_mapping_t *m;
    hora_status_t       st = HORA_OK;
    if (region->id == 0) {
        *at_p = 0;
        return HORA_OK;
    }
    if (self->members[rank].process == hora_ipc_process()) {
        *at_p = region->start + region->offset;
        return HORA_OK;
    }
    m = find_mapping(&self->members[rank], region);
    if (m->id != region->id)
        st = open_mapping(comm, coll, m, region);
    if (st != HORA_OK)
        return st;
    m->used = self->calls;
    *at_p = m->at + region->offset;
    return HORA_OK;
}

/* ---- Staging ----------------------------------------------------------------------------------- */

/* At least doubled, so that the outgrown ones together are no longer than it. They are not freed: CUDA
 * might wait for all queued work, without a deadline. */
hora_status_t hora_ipc_reserve(hora_gpu_ipc_t *self, size_t bytes) {
    const hora_cuda_t *cuda = self->gpu->cuda;
    size_t             room = self->stage_room > 0 ? self->stage_room : STAGE_LEAST;
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
        close_mapping(self, &member->mappings[i]);
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
