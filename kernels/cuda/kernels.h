/*
 * CUDA kernels: what they take, how they are launched, and the device code itself as bytes. Plain C,
 * no CUDA header, no driver call: whoever has loaded the driver (src/util/cuda.h) loads the image
 * and launches by name. Any thread.
 *
 * Bits: those of kernels/cpu for the same inputs in the same order (kernels/cpu/kernels.h).
 */
#ifndef HORA_KERNELS_CUDA_KERNELS_H
#define HORA_KERNELS_CUDA_KERNELS_H

#include "element.h"

#include <stdbool.h>
#include <stddef.h>

#define HORA_CUDA_WAYS    32  /* most inputs, and most outputs, of one reduction */
#define HORA_CUDA_THREADS 256 /* of a block, for every kernel here */

/* The fatbin, 0 bytes where this was built without nvcc. Static storage. */
extern const unsigned char hora_cuda_image[];
extern const size_t        hora_cuda_image_bytes;

/* The names of all kernels in it: of number 0, 1 and so on; NULL: there are no more. Static
 * storage. */
const char *hora_cuda_kernel_name(int number);

/* Argument of hora_reduce_<S>: dst[0..ndst-1][i] = reduce over src[0..nsrc-1][i], i < count. All
 * pointers are device pointers; a dst may equal a src. */
typedef struct hora_cuda_reduce {
    uint64_t           src[HORA_CUDA_WAYS];
    uint64_t           dst[HORA_CUDA_WAYS];
    uint64_t           count;
    hora_element_how_t how;
    int32_t            nsrc, ndst;
    int32_t            op;     /* hora_op_t; not AVERAGE: SUM and divisor; not ADASUM */
    int32_t            vector; /* every pointer is a multiple of 16 */
} hora_cuda_reduce_t;

/* Fills *args and the number of blocks for a device of `processors` multiprocessors. 1 <= nsrc, ndst
 * <= HORA_CUDA_WAYS. Returns the kernel's name, NULL for a type or operation that there is none for
 * (and args is not written). count 0: *blocks_p is 0, and nothing is to be launched. */
const char *hora_cuda_reduce_plan(hora_dtype_t dtype, hora_op_t op, const hora_element_how_t *how,
                                  const uint64_t *dst, int ndst, const uint64_t *src, int nsrc,
                                  uint64_t count, int processors, hora_cuda_reduce_t *args,
                                  unsigned *blocks_p);

/* One tensor of a batch; `count` elements go from src to dst. */
typedef struct hora_cuda_piece {
    uint64_t src, dst; /* device pointers, multiples of their element's size */
    uint64_t count;
    uint64_t chunk; /* number of its first chunk; written by hora_cuda_pack_plan */
} hora_cuda_piece_t;

/* Argument of hora_pack_<FROM>_<TO> and hora_pack_bytes<N>: all pieces in one launch, scaled and cast
 * on the way. The work is cut by bytes, not by pieces: into chunks of `chunk` elements, which the
 * blocks take in turn. */
typedef struct hora_cuda_pack {
    uint64_t pieces; /* device pointer to hora_cuda_piece_t[npieces] */
    uint64_t chunks; /* of all pieces */
    double   scale;
    uint32_t npieces;
    uint32_t chunk;
} hora_cuda_pack_t;

/* The piece that a chunk belongs to: the last one that begins at or before it (empty ones share
 * their number with the next). n > 0. On the host and the device. */
HORA_INLINE uint32_t hora_cuda_piece_of(const hora_cuda_piece_t *pieces, uint32_t n, uint64_t chunk)
{
    uint32_t low = 0;
    uint32_t high = n;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (pieces[middle].chunk <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Numbers the pieces' chunks and fills *args but for args->pieces, which the caller sets to the
 * device copy of `pieces`. Empty pieces are allowed. to == from with scale 1.0 copies bits; other
 * pairs are of the float types (float8: with itself only). Returns the kernel's name, NULL for a
 * pair that there is none for. */
const char *hora_cuda_pack_plan(hora_dtype_t from, hora_dtype_t to, double scale,
                                hora_cuda_piece_t *pieces, uint32_t npieces, int processors,
                                hora_cuda_pack_t *args, unsigned *blocks_p);

#endif
