/*
 * Streams, events and pinned memory of the staged path (slots.h).
 *
 * The slots lie in the arena where there is one, pinned there: then collectives need no copy of them.
 * Nothing tells the host that an event has come, so it looks again and again, and sleeps longer the
 * longer it has waited. cuEventSynchronize would wait for ever.
 */
#include "offload/cuda/slots.h"

#include "transport/p2p.h"
#include "transport/shm/arena.h"
#include "transport/wait.h"
#include "util/clock.h"
#include "util/log.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define PAGE          4096u
#define SPIN_NS       20000u  /* looks without a pause */
#define NAP_MIN_NS    20000u
#define NAP_MAX_NS    500000u
#define GOODBYE_SECONDS 5.0   /* for copies that are queued when the communicator is freed */

hora_status_t hora_staged_check(const hora_gpu_t *gpu, hora_cuda_result_t result, const char *what) {
    char text[192];
    if (result == HORA_CUDA_SUCCESS)
        return HORA_OK;
    snprintf(text, sizeof(text), "%s on GPU %d (%s)", what, gpu->ordinal, gpu->name);
    return hora_cuda_fail(gpu->cuda, result, text);
}

/* ---- Waiting -------------------------------------------------------------------------------- */

/* An eighth of what was waited for until now, so that it ends at most so much too late. */
static void nap(const hora_world_t *world, uint64_t waited) {
    struct timespec t = {0, (long)(waited / 8)};
    if (waited < SPIN_NS && world->has_cores) {
        hora_cpu_relax();
        return;
    }
    if (waited < SPIN_NS) {
        sched_yield();
        return;
    }
    if (t.tv_nsec < (long)NAP_MIN_NS)
        t.tv_nsec = NAP_MIN_NS;
    if (t.tv_nsec > (long)NAP_MAX_NS)
        t.tv_nsec = NAP_MAX_NS;
    nanosleep(&t, NULL);
}

hora_status_t hora_slot_wait(hora_staged_t *staged, hora_cuda_event_t event, double timeout,
                             const char *what) {
    hora_comm_t *comm = staged->comm;
    uint64_t     start = hora_clock_ns(), waited = 0;
    double       limit = timeout > 0 ? timeout : comm->timeout;
    for (;;) {
        hora_cuda_result_t result = staged->gpu->cuda->event_query(event);
        hora_status_t      st;
        if (result != HORA_CUDA_NOT_READY)
            return hora_staged_check(staged->gpu, result, what);
        if ((st = hora_failure_check(&comm->failure)) != HORA_OK)
            return st;
        hora_p2p_progress(comm->world); /* another rank may need a message of another operation */
        waited = hora_clock_ns() - start;
        if (waited > hora_clock_from_seconds(limit))
            return hora_fail(HORA_ERR_TIMEOUT, "%s: waited %.1f s for GPU %d to come to it "
                             "(HORA_TIMEOUT)", what, hora_clock_seconds(waited),
                             staged->gpu->ordinal);
        nap(comm->world, waited);
    }
}

/* ---- Slots ---------------------------------------------------------------------------------- */

/* Pins whole pages of its own: no two registered ranges may share one. */
static bool reserve_in_arena(hora_staged_t *staged, hora_slot_t *slot, size_t room) {
    hora_arena_t *arena = staged->comm->world->arena;
    void         *base;
    uint8_t      *mem;
    if (arena == NULL || hora_arena_alloc(arena, room + PAGE, &base) != HORA_OK)
        return false;
    mem = (uint8_t *)(((uintptr_t)base + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    if (staged->gpu->cuda->host_register(mem, room, 0) != HORA_CUDA_SUCCESS) {
        hora_arena_free(arena, base);
        return false;
    }
    *slot = (hora_slot_t){.mem = mem, .room = room, .base = base, .in_arena = true, .out = slot->out,
                          .in = slot->in};
    return true;
}

static void free_memory(hora_staged_t *staged, hora_slot_t *slot) {
    if (slot->in_arena) {
        staged->gpu->cuda->host_unregister(slot->mem);
        hora_arena_free(staged->comm->world->arena, slot->base);
    } else if (slot->base != NULL) {
        staged->gpu->cuda->host_free(slot->base);
    }
    *slot = (hora_slot_t){.out = slot->out, .in = slot->in};
}

hora_status_t hora_slot_reserve(hora_staged_t *staged, hora_slot_t *slot, size_t bytes) {
    size_t        room = staged->comm->gpu->facts[0].chunk;
    void         *base;
    hora_status_t st = HORA_OK;
    if (bytes <= slot->room)
        return HORA_OK;
    if (bytes > room)
        room = bytes;
    room = (room + PAGE - 1) & ~(size_t)(PAGE - 1);
    if (slot->used)
        st = hora_slot_wait(staged, slot->in, 0, "making pinned memory larger");
    if (st != HORA_OK)
        return st;
    free_memory(staged, slot);
    if (reserve_in_arena(staged, slot, room))
        return HORA_OK;
    st = hora_staged_check(staged->gpu, staged->gpu->cuda->host_alloc(&base, room, 0),
                           "allocating pinned host memory");
    if (st == HORA_OK)
        *slot = (hora_slot_t){.mem = base, .room = room, .base = base, .out = slot->out,
                              .in = slot->in};
    return st;
}

/* ---- Beginning and end ---------------------------------------------------------------------- */

static hora_cuda_result_t make_stream(const hora_cuda_t *cuda, hora_cuda_stream_t *stream_p) {
    return cuda->stream_create(stream_p, HORA_CUDA_STREAM_NON_BLOCKING, 0);
}

static hora_cuda_result_t make_event(const hora_cuda_t *cuda, hora_cuda_event_t *event_p) {
    return cuda->event_create(event_p, HORA_CUDA_EVENT_NO_TIMING);
}

static void destroy_handles(hora_staged_t *staged) {
    const hora_cuda_t *cuda = staged->gpu->cuda;
    for (int i = 0; i < HORA_SLOTS; i++) {
        if (staged->slots[i].out != NULL)
            cuda->event_destroy(staged->slots[i].out);
        if (staged->slots[i].in != NULL)
            cuda->event_destroy(staged->slots[i].in);
    }
    if (staged->end != NULL)
        cuda->event_destroy(staged->end);
    if (staged->out != NULL)
        cuda->stream_destroy(staged->out);
    if (staged->in != NULL)
        cuda->stream_destroy(staged->in);
}

hora_status_t hora_staged_create(hora_comm_t *comm, hora_gpu_t *gpu, hora_staged_t **staged_p) {
    const hora_cuda_t *cuda = gpu->cuda;
    hora_staged_t     *staged = calloc(1, sizeof(*staged));
    hora_cuda_result_t result;
    hora_status_t      st;
    if (staged != NULL)
        staged->lists = calloc(4 * (size_t)comm->size, sizeof(*staged->lists));
    if (staged == NULL || staged->lists == NULL) {
        free(staged);
        return hora_fail(HORA_ERR_NO_MEMORY, "collectives on GPUs");
    }
    staged->comm = comm;
    staged->gpu = gpu;
    result = make_stream(cuda, &staged->out);
    if (result == HORA_CUDA_SUCCESS)
        result = make_stream(cuda, &staged->in);
    if (result == HORA_CUDA_SUCCESS)
        result = make_event(cuda, &staged->end);
    for (int i = 0; i < HORA_SLOTS && result == HORA_CUDA_SUCCESS; i++) {
        result = make_event(cuda, &staged->slots[i].out);
        if (result == HORA_CUDA_SUCCESS)
            result = make_event(cuda, &staged->slots[i].in);
    }
    st = hora_staged_check(gpu, result, "making streams and events");
    if (st != HORA_OK) {
        destroy_handles(staged);
        free(staged->lists);
        free(staged);
        return st;
    }
    *staged_p = staged;
    return HORA_OK;
}

/* The communicator may have failed: only the clock ends this. */
static bool is_idle(const hora_staged_t *staged) {
    const hora_cuda_t *cuda = staged->gpu->cuda;
    uint64_t           start = hora_clock_ns(), waited = 0;
    while (cuda->stream_query(staged->out) == HORA_CUDA_NOT_READY ||
           cuda->stream_query(staged->in) == HORA_CUDA_NOT_READY) {
        waited = hora_clock_ns() - start;
        if (waited > hora_clock_from_seconds(GOODBYE_SECONDS))
            return false;
        nap(staged->comm->world, waited);
    }
    return true;
}

void hora_staged_destroy(hora_staged_t *staged) {
    if (is_idle(staged)) {
        for (int i = 0; i < HORA_SLOTS; i++)
            free_memory(staged, &staged->slots[i]);
        if (staged->scratch != 0)
            staged->gpu->cuda->free(staged->scratch);
        destroy_handles(staged);
    } else {
        hora_log(HORA_LOG_WARNING, "GPU %d still copies: its pinned memory is not freed",
                 staged->gpu->ordinal);
    }
    free(staged->lists);
    free(staged);
}
