/*
 * hora_reduce_<type>: up to 32 vectors into up to 32 places, on the device (kernels.h).
 *
 * A block takes tiles of UNROLL x 16 bytes per thread and source, strided by the grid. The loads of a
 * tile from one source are issued together, and those of the next source before this one's are
 * used. A thread reads all sources of its elements before it writes any, so a destination may be a
 * source. What does not fill a vector of 16 bytes, or is not aligned to it, goes by elements.
 * The operation is the same for a whole launch: the choice is outside of the tiles' loop. What is
 * rare (products, bits, scaled integers, bool) goes by elements, which keeps the image small.
 */
#include "kernels.h"

namespace {

/* What a type's loops are made of: with all steps, or with those of a plain reduction only. */
#define DEFINE_PARTS(S, T, A, DTYPE)                                                              \
    struct Parts_##S {                                                                            \
        typedef T memory_t;                                                                       \
        typedef A sum_t;                                                                          \
        static __device__ __forceinline__ A in(T x, const hora_element_how_t &)                   \
        {                                                                                         \
            return hora_element_load_##S(x);                                                      \
        }                                                                                         \
        static __device__ __forceinline__ A combine(hora_op_t op, A a, A b)                       \
        {                                                                                         \
            return hora_element_combine_##S(op, a, b);                                            \
        }                                                                                         \
        static __device__ __forceinline__ T out(A a, const hora_element_how_t &)                  \
        {                                                                                         \
            return hora_element_store_##S(a);                                                     \
        }                                                                                         \
    };                                                                                            \
    struct Scaled_##S : Parts_##S {                                                               \
        static __device__ __forceinline__ A in(T x, const hora_element_how_t &how)                \
        {                                                                                         \
            return hora_element_in_##S(x, &how);                                                  \
        }                                                                                         \
        static __device__ __forceinline__ T out(A a, const hora_element_how_t &how)               \
        {                                                                                         \
            return hora_element_out_##S(a, &how);                                                 \
        }                                                                                         \
    };
HORA_ELEMENT_TYPES(DEFINE_PARTS)

/* 16 bytes as elements. */
template <typename T> union Pack {
    uint4 raw;
    T     at[16 / sizeof(T)];
};

template <typename T> __device__ __forceinline__ T *place(uint64_t address)
{
    return reinterpret_cast<T *>(address);
}

/* One vector of this thread's tile; past the end, zeros that are not stored. */
template <typename T, int UNROLL>
__device__ __forceinline__ void load_tile(Pack<T> *tile, uint64_t src, uint64_t first, uint64_t end)
{
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        uint64_t v = first + (uint64_t)u * HORA_CUDA_THREADS;
        tile[u].raw = v < end ? place<const uint4>(src)[v] : make_uint4(0, 0, 0, 0);
    }
}

template <typename P, int OP, int UNROLL>
__device__ __forceinline__ void reduce_tile(const hora_cuda_reduce_t &job, uint64_t first, uint64_t end)
{
    typedef typename P::memory_t T;
    typedef typename P::sum_t    A;
    constexpr int                WIDTH = 16 / sizeof(T);
    A                            sum[UNROLL][WIDTH];
    Pack<T>                      tile[UNROLL], next[UNROLL];
    load_tile<T, UNROLL>(next, job.src[0], first, end);
    for (int s = 0; s < job.nsrc; s++) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            tile[u] = next[u];
        }
        if (s + 1 < job.nsrc) {
            load_tile<T, UNROLL>(next, job.src[s + 1], first, end);
        }
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) {
                A x = P::in(tile[u].at[k], job.how);
                sum[u][k] = s == 0 ? x : P::combine((hora_op_t)OP, sum[u][k], x);
            }
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            tile[u].at[k] = P::out(sum[u][k], job.how);
        }
    }
    for (int d = 0; d < job.ndst; d++) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            uint64_t v = first + (uint64_t)u * HORA_CUDA_THREADS;
            if (v < end) {
                place<uint4>(job.dst[d])[v] = tile[u].raw;
            }
        }
    }
}

/* Elements from `first` on, one per thread and turn: what the tiles leave, and everything rare. */
template <typename P>
__device__ __noinline__ void reduce_elements(const hora_cuda_reduce_t &job, uint64_t first)
{
    typedef typename P::memory_t T;
    uint64_t                     stride = (uint64_t)gridDim.x * HORA_CUDA_THREADS;
    hora_op_t                    op = (hora_op_t)job.op;
    for (uint64_t i = first + blockIdx.x * HORA_CUDA_THREADS + threadIdx.x; i < job.count; i += stride) {
        typename P::sum_t sum = P::in(place<const T>(job.src[0])[i], job.how);
        for (int s = 1; s < job.nsrc; s++) {
            sum = P::combine(op, sum, P::in(place<const T>(job.src[s])[i], job.how));
        }
        T out = P::out(sum, job.how);
        for (int d = 0; d < job.ndst; d++) {
            place<T>(job.dst[d])[i] = out;
        }
    }
}

template <typename P, int OP> __device__ __forceinline__ void reduce_all(const hora_cuda_reduce_t &job)
{
    typedef typename P::memory_t T;
    constexpr int                WIDTH = 16 / sizeof(T);
    constexpr int                UNROLL = sizeof(T) == 1 ? 2 : 4;
    uint64_t                     vectors = job.vector ? job.count / WIDTH : 0;
    uint64_t                     tile = (uint64_t)HORA_CUDA_THREADS * UNROLL;
    for (uint64_t base = blockIdx.x * tile; base < vectors; base += gridDim.x * tile) {
        reduce_tile<P, OP, UNROLL>(job, base + threadIdx.x, vectors);
    }
    if (vectors * WIDTH < job.count) {
        reduce_elements<P>(job, vectors * WIDTH);
    }
}

__device__ __forceinline__ bool is_scaled(const hora_cuda_reduce_t &job)
{
    return job.how.prescale != 1.0 || job.how.divisor != 1 || job.how.postscale != 1.0;
}

/* The bits, NaN and all. */
template <typename P> struct Copy : P {
    typedef typename P::memory_t T;
    static __device__ __forceinline__ T in(T x, const hora_element_how_t &) { return x; }
    static __device__ __forceinline__ T out(T a, const hora_element_how_t &) { return a; }
};

template <typename P> __device__ __forceinline__ void reduce_order(const hora_cuda_reduce_t &job)
{
    job.op == HORA_MIN ? reduce_all<P, HORA_MIN>(job) : reduce_all<P, HORA_MAX>(job);
}

/* What gradients use goes by tiles; averages and scaled sums of floats are as fast as sums. */
template <typename P, typename S>
__device__ __forceinline__ void reduce_float(const hora_cuda_reduce_t &job)
{
    bool scaled = is_scaled(job);
    if (job.op == HORA_SUM) {
        scaled ? reduce_all<S, HORA_SUM>(job) : reduce_all<P, HORA_SUM>(job);
    } else if (scaled || job.op == HORA_PRODUCT) {
        reduce_elements<S>(job, 0);
    } else {
        reduce_order<P>(job);
    }
}

/* Whatever does not depend on a sign, of signed types too, and copies of every type (plan.c). */
template <typename P, typename S>
__device__ __forceinline__ void reduce_unsigned(const hora_cuda_reduce_t &job)
{
    bool plain = !is_scaled(job);
    if (plain && job.nsrc == 1) {
        reduce_all<Copy<P>, HORA_SUM>(job);
    } else if (plain && job.op == HORA_SUM) {
        reduce_all<P, HORA_SUM>(job);
    } else if (plain && (job.op == HORA_MIN || job.op == HORA_MAX)) {
        reduce_order<P>(job);
    } else {
        reduce_elements<S>(job, 0);
    }
}

template <typename P, typename S>
__device__ __forceinline__ void reduce_signed(const hora_cuda_reduce_t &job)
{
    if (is_scaled(job)) {
        reduce_elements<S>(job, 0);
    } else {
        reduce_order<P>(job);
    }
}

template <typename P, typename S>
__device__ __forceinline__ void reduce_flags(const hora_cuda_reduce_t &job)
{
    reduce_elements<P>(job, 0);
}

} // namespace

#define DEFINE_REDUCTION(S, REDUCE)                                                               \
    extern "C" __global__ void __launch_bounds__(HORA_CUDA_THREADS)                               \
        hora_reduce_##S(const __grid_constant__ hora_cuda_reduce_t job)                           \
    {                                                                                             \
        REDUCE<Parts_##S, Scaled_##S>(job);                                                       \
    }
DEFINE_REDUCTION(bool, reduce_flags)
DEFINE_REDUCTION(i8, reduce_signed)
DEFINE_REDUCTION(i16, reduce_signed)
DEFINE_REDUCTION(i32, reduce_signed)
DEFINE_REDUCTION(i64, reduce_signed)
DEFINE_REDUCTION(u8, reduce_unsigned)
DEFINE_REDUCTION(u16, reduce_unsigned)
DEFINE_REDUCTION(u32, reduce_unsigned)
DEFINE_REDUCTION(u64, reduce_unsigned)
DEFINE_REDUCTION(f16, reduce_float)
DEFINE_REDUCTION(bf16, reduce_float)
DEFINE_REDUCTION(f32, reduce_float)
DEFINE_REDUCTION(f64, reduce_float)
DEFINE_REDUCTION(e4m3, reduce_float)
DEFINE_REDUCTION(e5m2, reduce_float)
