/*
 * hora_pack_<from>_<to>: many tensors in one launch, scaled and cast on the way; hora_pack_bytes<N>:
 * the same without arithmetic (kernels.h). Packing and unpacking are both this: a piece says where
 * from and where to.
 *
 * Blocks take chunks of about 32 KB in turn, whatever piece they belong to, so one large tensor and
 * five hundred small ones are spread over the device alike. A block finds the piece of a chunk by a
 * binary search, whose table stays in the L1 cache.
 */
#include "kernels.h"

namespace {

template <typename T, int N> struct alignas(sizeof(T) * N) Group {
    T at[N];
};

template <typename F> struct Smaller {
    static constexpr int BYTES = sizeof(typename F::from_t) > sizeof(typename F::to_t)
                                     ? sizeof(typename F::from_t)
                                     : sizeof(typename F::to_t);
    static constexpr int WIDTH = 16 / BYTES; /* elements of a group: 16 bytes of the larger type */
};

/* One chunk by all threads of the block. */
template <typename F>
__device__ __forceinline__ void move_chunk(const typename F::from_t *src, typename F::to_t *dst,
                                           uint32_t count, double scale)
{
    typedef typename F::from_t from_t;
    typedef typename F::to_t   to_t;
    constexpr int              WIDTH = Smaller<F>::WIDTH, UNROLL = 4;
    typedef Group<from_t, WIDTH> in_t;
    typedef Group<to_t, WIDTH>   out_t;
    bool aligned = (uint64_t)src % sizeof(in_t) == 0 && (uint64_t)dst % sizeof(out_t) == 0;
    uint32_t groups = aligned ? count / WIDTH : 0;
    for (uint32_t base = threadIdx.x; base < groups; base += HORA_CUDA_THREADS * UNROLL) {
        in_t in[UNROLL];
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (base + u * HORA_CUDA_THREADS < groups) {
                in[u] = reinterpret_cast<const in_t *>(src)[base + u * HORA_CUDA_THREADS];
            }
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            if (base + u * HORA_CUDA_THREADS < groups) {
                out_t out;
#pragma unroll
                for (int k = 0; k < WIDTH; k++) {
                    out.at[k] = F::cast(in[u].at[k], scale);
                }
                reinterpret_cast<out_t *>(dst)[base + u * HORA_CUDA_THREADS] = out;
            }
        }
    }
    for (uint32_t i = groups * WIDTH + threadIdx.x; i < count; i += HORA_CUDA_THREADS) {
        dst[i] = F::cast(src[i], scale);
    }
}

template <typename F> __device__ __forceinline__ void move_all(const hora_cuda_pack_t &job)
{
    const hora_cuda_piece_t *pieces = reinterpret_cast<const hora_cuda_piece_t *>(job.pieces);
    for (uint64_t chunk = blockIdx.x; chunk < job.chunks; chunk += gridDim.x) {
        const hora_cuda_piece_t &piece = pieces[hora_cuda_piece_of(pieces, job.npieces, chunk)];
        uint64_t                 begin = (chunk - piece.chunk) * job.chunk;
        uint64_t                 left = piece.count - begin;
        move_chunk<F>(reinterpret_cast<const typename F::from_t *>(piece.src) + begin,
                      reinterpret_cast<typename F::to_t *>(piece.dst) + begin,
                      left < job.chunk ? (uint32_t)left : job.chunk, job.scale);
    }
}

template <typename T> struct Same {
    typedef T from_t;
    typedef T to_t;
    static __device__ __forceinline__ T cast(T x, double) { return x; }
};

#define DEFINE_CAST(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                       \
    struct Cast_##FROM##_##TO {                                                                   \
        typedef TFROM from_t;                                                                     \
        typedef TTO   to_t;                                                                       \
        static __device__ __forceinline__ TTO cast(TFROM x, double scale)                         \
        {                                                                                         \
            return hora_element_cast_##FROM##_##TO(x, scale);                                     \
        }                                                                                         \
    };
HORA_ELEMENT_CASTS(DEFINE_CAST)

} // namespace

#define DEFINE_PACK(NAME, F)                                                                      \
    extern "C" __global__ void __launch_bounds__(HORA_CUDA_THREADS)                               \
        hora_pack_##NAME(const __grid_constant__ hora_cuda_pack_t job)                            \
    {                                                                                             \
        move_all<F>(job);                                                                         \
    }
#define DEFINE_CAST_KERNEL(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                \
    DEFINE_PACK(FROM##_##TO, Cast_##FROM##_##TO)
HORA_ELEMENT_CASTS(DEFINE_CAST_KERNEL)
DEFINE_PACK(bytes1, Same<uint8_t>)
DEFINE_PACK(bytes2, Same<uint16_t>)
DEFINE_PACK(bytes4, Same<uint32_t>)
DEFINE_PACK(bytes8, Same<uint64_t>)
