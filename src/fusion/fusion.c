/*
 * The fusion buffer (fusion.h). Runs on the engine's driving thread; no lock. Pieces follow each
 * other without gaps: all have the same element type, so each stays aligned to its elements.
 */
#include "fusion/fusion.h"

#include "transport/shm/arena.h"

#include <kernels/cpu/kernels.h>
#include <stdlib.h>

#define BYTES_MIN 65536
#define GPU_BYTES_MIN ((size_t)8 << 20)
#define ALIGNMENT 64

void hora_fusion_init(hora_fusion_t *fusion, hora_world_t *world, hora_fusion_gpu_t *gpu) {
    *fusion = (hora_fusion_t){.world = world, .gpu = gpu};
}

void hora_fusion_destroy(hora_fusion_t *fusion) {
    if (fusion->in_arena)
        hora_arena_free(fusion->world->arena, fusion->data);
    else if (fusion->gpu == NULL)
        free(fusion->data);
    hora_fusion_init(fusion, fusion->world, fusion->gpu);
}

static size_t grown(size_t bytes, size_t most) {
    size_t room = BYTES_MIN;
    if (bytes >= most)
        return (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    while (room < bytes)
        room *= 2;
    if (room > most)
        room = most;
    return (room + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

/* On the GPU nothing is freed, and so it grows in large steps. */
static hora_status_t reserve_on_gpu(hora_fusion_t *fusion, size_t bytes, size_t most) {
    size_t        room = grown(bytes > GPU_BYTES_MIN ? bytes : GPU_BYTES_MIN, most);
    void         *data;
    hora_status_t st;
    st = hora_fusion_gpu_alloc(fusion->gpu, room, &data);
    if (st != HORA_OK)
        return st;
    fusion->data = data;
    fusion->bytes = room;
    return HORA_OK;
}

hora_status_t hora_fusion_reserve(hora_fusion_t *fusion, size_t bytes, size_t most) {
    hora_world_t *world = fusion->world;
    size_t        room;
    void         *data = NULL;
    if (bytes <= fusion->bytes)
        return HORA_OK;
    if (fusion->gpu != NULL)
        return reserve_on_gpu(fusion, bytes, most);
    room = grown(bytes, most);
    hora_fusion_destroy(fusion);
    fusion->in_arena =
        world->arena != NULL && hora_arena_alloc(world->arena, room, &data) == HORA_OK;
    if (!fusion->in_arena)
        data = aligned_alloc(ALIGNMENT, room);
    if (data == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a fusion buffer of %zu bytes", room);
    fusion->data = data;
    fusion->bytes = room;
    return HORA_OK;
}

/* ---- Moving --------------------------------------------------------------------------------- */

static hora_status_t begin(const hora_fusion_t *fusion, size_t pieces) {
    return fusion->gpu != NULL ? hora_fusion_gpu_begin(fusion->gpu, pieces) : HORA_OK;
}

static void move(const hora_fusion_t *fusion, void *to, const void *from, size_t bytes) {
    if (fusion->gpu != NULL)
        hora_fusion_gpu_add(fusion->gpu, to, from, bytes);
    else
        hora_kernel_copy(to, from, bytes);
}

static hora_status_t end(const hora_fusion_t *fusion) {
    return fusion->gpu != NULL ? hora_fusion_gpu_queue(fusion->gpu) : HORA_OK;
}

hora_status_t hora_fusion_pack(hora_fusion_t *fusion, size_t at, const hora_piece_t *pieces,
                               size_t n) {
    uint8_t      *to = fusion->data + at;
    hora_status_t st = begin(fusion, n);
    for (size_t i = 0; st == HORA_OK && i < n; i++) {
        if (pieces[i].in != NULL)
            move(fusion, to, pieces[i].in, pieces[i].bytes);
        to += pieces[i].bytes;
    }
    return st == HORA_OK ? end(fusion) : st;
}

hora_status_t hora_fusion_unpack(const hora_fusion_t *fusion, size_t at, const hora_piece_t *pieces,
                                 size_t n) {
    const uint8_t *from = fusion->data + at;
    hora_status_t  st = begin(fusion, n);
    for (size_t i = 0; st == HORA_OK && i < n; i++) {
        if (pieces[i].out != NULL)
            move(fusion, pieces[i].out, from, pieces[i].bytes);
        from += pieces[i].bytes;
    }
    return st == HORA_OK ? end(fusion) : st;
}

hora_status_t hora_fusion_pack_blocks(hora_fusion_t *fusion, hora_piece_t *pieces, size_t n,
                                      const size_t *lens, int nranks) {
    uint8_t      *to = fusion->data;
    hora_status_t st = begin(fusion, n * (size_t)nranks);
    for (size_t i = 0; i < n; i++)
        pieces[i].at = 0;
    for (int r = 0; st == HORA_OK && r < nranks; r++)
        for (size_t i = 0; i < n; i++) {
            size_t len = lens[i * (size_t)nranks + (size_t)r];
            if (pieces[i].in != NULL)
                move(fusion, to, (const uint8_t *)pieces[i].in + pieces[i].at, len);
            pieces[i].at += len;
            to += len;
        }
    return st == HORA_OK ? end(fusion) : st;
}

hora_status_t hora_fusion_unpack_blocks(const hora_fusion_t *fusion, hora_piece_t *pieces, size_t n,
                                        const size_t *lens, int nranks) {
    const uint8_t *from = fusion->data;
    hora_status_t  st = begin(fusion, n * (size_t)nranks);
    for (size_t i = 0; i < n; i++)
        pieces[i].at = 0;
    for (int r = 0; st == HORA_OK && r < nranks; r++)
        for (size_t i = 0; i < n; i++) {
            size_t len = lens[i * (size_t)nranks + (size_t)r];
            if (pieces[i].out != NULL)
                move(fusion, (uint8_t *)pieces[i].out + pieces[i].at, from, len);
            pieces[i].at += len;
            from += len;
        }
    return st == HORA_OK ? end(fusion) : st;
}
