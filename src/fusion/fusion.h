/*
 * Fusion: many small tensors as one large one. The buffer lies in the arena where there is one, so
 * that packing is the copy-in of the shared-memory algorithms; or it lies on a GPU, and then all
 * pieces do: what is done with it is queued there. Only the engine's driving thread uses it.
 */
#ifndef HORA_FUSION_FUSION_H
#define HORA_FUSION_FUSION_H

#include "fusion/gpu.h"
#include "transport/world.h"

/* One tensor of a fused operation. */
typedef struct hora_piece {
    const void *in;    /* NULL: is not packed; its place in the buffer keeps what it holds */
    void       *out;   /* NULL: is not unpacked */
    size_t      bytes; /* a multiple of the element's size; 0: in and out may be NULL */
    size_t      at;    /* used by the functions that move blocks */
} hora_piece_t;

typedef struct hora_fusion {
    hora_world_t *world;
    uint8_t      *data; /* 64-byte aligned; NULL while nothing was fused */
    size_t        bytes;
    bool          in_arena;
    hora_fusion_gpu_t *gpu; /* of a buffer on a GPU; NULL: in host memory. Not owned */
} hora_fusion_t;

void hora_fusion_init(hora_fusion_t *fusion, hora_world_t *world, hora_fusion_gpu_t *gpu);
void hora_fusion_destroy(hora_fusion_t *fusion);

/* Makes room for `bytes`; the content is lost when the buffer grows. Grows by doubling, not beyond
 * `most` (or bytes, if that is more). HORA_ERR_NO_MEMORY names the size. */
hora_status_t hora_fusion_reserve(hora_fusion_t *fusion, size_t bytes, size_t most);

/* Copies the pieces into the buffer from byte `at` on, one after the other; there is room. This and
 * the other three cannot fail in host memory. */
hora_status_t hora_fusion_pack(hora_fusion_t *fusion, size_t at, const hora_piece_t *pieces, size_t n);
/* Copies them from the buffer to where they belong. */
hora_status_t hora_fusion_unpack(const hora_fusion_t *fusion, size_t at, const hora_piece_t *pieces,
                                 size_t n);

/* The same for pieces that consist of a block for each rank, lens[i * nranks + r] bytes long: in
 * the buffer, all blocks of rank 0 come first, those of one rank in the order of the pieces. */
hora_status_t hora_fusion_pack_blocks(hora_fusion_t *fusion, hora_piece_t *pieces, size_t n,
                                      const size_t *lens, int nranks);
hora_status_t hora_fusion_unpack_blocks(const hora_fusion_t *fusion, hora_piece_t *pieces, size_t n,
                                        const size_t *lens, int nranks);

#endif
