/*
 * Streams, events and pinned memory of the staged path (slots.h).
 *
 * The slots lie in the arena where there is one, pinned there: then collectives need no copy of them.
 */
#include "offload/cuda/slots.h"

#include "transport/event.h"
#include "transport/shm/arena.h"
#include "util/log.h"

#include <stdlib.h>

#define PAGE            4096u
#define GOODBYE_SECONDS 5.0 /* for copies that are queued when the communicator is freed */

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
        st = hora_event_wait(staged->comm, staged->gpu, slot->in, 0, "making pinned memory larger");
    if (st != HORA_OK)
        return st;
    free_memory(staged, slot);
    if (reserve_in_arena(staged, slot, room))
        return HORA_OK;
    st = hora_gpu_check(staged->gpu, staged->gpu->cuda->host_alloc(&base, room, 0),
                           "allocating pinned host memory");
    if (st == HORA_OK)
        *slot = (hora_slot_t){.mem = base, .room = room, .base = base, .out = slot->out,
                              .in = slot->in};
    return st;
}

hora_status_t hora_scratch_reserve(hora_gpu_t *gpu, hora_scratch_t *scratch, size_t bytes,
                                   uint64_t *at_p) {
    size_t             room = 2 * scratch->bytes > bytes ? 2 * scratch->bytes : bytes;
    hora_cuda_result_t result;
    if (bytes > scratch->bytes) {
        if (scratch->n == HORA_SCRATCHES)
            return hora_fail(HORA_ERR_NO_MEMORY, "a copy of %zu bytes of input on a GPU", bytes);
        result = gpu->cuda->alloc(&scratch->at[scratch->n], room);
        if (result == HORA_CUDA_OUT_OF_MEMORY && room > bytes) {
            room = bytes;
            result = gpu->cuda->alloc(&scratch->at[scratch->n], room);
        }
        if (result != HORA_CUDA_SUCCESS)
            return hora_gpu_check(gpu, result, "memory for a copy of the input");
        scratch->n++;
        scratch->bytes = room;
    }
    *at_p = scratch->n > 0 ? scratch->at[scratch->n - 1] : 0;
    return HORA_OK;
}

void hora_scratch_free(hora_gpu_t *gpu, hora_scratch_t *scratch) {
    for (int i = 0; i < scratch->n; i++)
        gpu->cuda->free(scratch->at[i]);
    *scratch = (hora_scratch_t){.n = 0};
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
    st = hora_gpu_check(gpu, result, "making streams and events");
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
bool hora_staged_drain(const hora_staged_t *staged, double seconds) {
    const hora_world_t *world = staged->comm->world;
    return hora_event_drain(world, staged->gpu, staged->out, seconds) &&
           hora_event_drain(world, staged->gpu, staged->in, seconds);
}

void hora_staged_destroy(hora_staged_t *staged) {
    if (hora_staged_drain(staged, GOODBYE_SECONDS)) {
        for (int i = 0; i < HORA_SLOTS; i++)
            free_memory(staged, &staged->slots[i]);
        hora_scratch_free(staged->gpu, &staged->scratch);
        destroy_handles(staged);
    } else {
        hora_log(HORA_LOG_WARNING, "GPU %d still copies: its pinned memory is not freed",
                 staged->gpu->ordinal);
    }
    free(staged->lists);
    free(staged);
}
