/*
 * Scaling and casting on a GPU (elements.h). No state.
 */
#include "offload/cuda/elements.h"

hora_status_t hora_elements_scale(const hora_gpu_place_t *place, hora_dtype_t dtype,
                                  const hora_element_how_t *how, const void *from, void *to,
                                  size_t count) {
    hora_cuda_reduce_t args;
    uint64_t           src = (uintptr_t)from, dst = (uintptr_t)to;
    unsigned           blocks;
    const char        *kernel = hora_cuda_reduce_plan(dtype, HORA_SUM, how, &dst, 1, &src, 1, count,
                                                      place->gpu->processors, &args, &blocks);
    if (kernel == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "no kernel scales %s", hora_dtype_name(dtype));
    return hora_gpu_launch(place->gpu, kernel, blocks, &args, place->stream);
}

hora_status_t hora_elements_cast(const hora_gpu_place_t *place, hora_cuda_piece_t *piece,
                                 const void *from, hora_dtype_t from_type, void *to,
                                 hora_dtype_t to_type, size_t count) {
    hora_cuda_pack_t args;
    unsigned         blocks;
    const char      *kernel;
    *piece = (hora_cuda_piece_t){(uintptr_t)from, (uintptr_t)to, count, 0};
    kernel = hora_cuda_pack_plan(from_type, to_type, 1.0, piece, 1, place->gpu->processors, &args,
                                 &blocks);
    if (kernel == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "no kernel casts %s to %s", hora_dtype_name(from_type),
                         hora_dtype_name(to_type));
    args.pieces = (uintptr_t)piece; /* the GPU reads pinned memory where it lies */
    return hora_gpu_launch(place->gpu, kernel, blocks, &args, place->stream);
}
