/*
 * hora's kernels on vectors on a GPU, beside what a collective moves: scaled, cast. They are queued on a
 * stream, with the GPU's context current. Any thread.
 */
#ifndef HORA_OFFLOAD_CUDA_ELEMENTS_H
#define HORA_OFFLOAD_CUDA_ELEMENTS_H

#include "util/gpu.h"

static inline bool hora_element_is_plain(const hora_element_how_t *how) {
    return how->prescale == 1.0 && how->postscale == 1.0 && how->divisor == 1;
}

/* to = from, scaled and divided; they may be the same. HORA_ERR_UNSUPPORTED: not this type. */
hora_status_t hora_elements_scale(const hora_gpu_place_t *place, hora_dtype_t dtype,
                                  const hora_element_how_t *how, const void *from, void *to,
                                  size_t count);
/* to = from, in another type. piece: pinned, not used otherwise until the kernel has run. */
hora_status_t hora_elements_cast(const hora_gpu_place_t *place, hora_cuda_piece_t *piece,
                                 const void *from, hora_dtype_t from_type, void *to,
                                 hora_dtype_t to_type, size_t count);

#endif
