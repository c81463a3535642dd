/*
 * Reduces vectors: drives the loops of the chosen instruction set block by block; any thread.
 *
 * A block fits in the L1 cache. Each source is read from memory once and each destination written
 * once, whatever their number; everything between (widened or scaled inputs, the sum) stays in L1.
 * All sources of a block are read before any destination of it is written, so that a destination
 * may be a source; blocks do not touch each other, so the cut does not show in the bits.
 */
#include <string.h>

#include "isa.h"
#include "kernels.h"
#include "turn.h"

#define BLOCK_BYTES 4096 /* of one source, in the type that accumulates */
#define FEW         32   /* elements; sum would pad them to a chunk of 64, in memory */

typedef struct reduce_job {
    /* Steps on a block; NULL: left out, except that combine is there whenever nsrc > 1. */
    hora_cast_fn    widen;
    hora_scale_fn   prescale;
    hora_combine_fn combine;
    hora_divide_fn  divide;
    hora_scale_fn   postscale;
    hora_cast_fn    narrow;

    const hora_reduce_t *how;
    void *const         *dst;
    const void *const   *src;
    int                  ndst;
    int                  nsrc;
    size_t               size; /* bytes of an element in memory */
    const void          *far;  /* the source that another core has written; NULL: none */
} reduce_job_t;

/* Where a block's inputs and sum stay. */
typedef struct workspace {
    _Alignas(64) char sum[BLOCK_BYTES];
    _Alignas(64) char input[HORA_COMBINE_MAX][BLOCK_BYTES];
} workspace_t;

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Copies the block of dst[0] at `offset` to the other destinations. */
static void spread(const reduce_job_t *job, size_t offset, size_t bytes)
{
    const char *from = (const char *)job->dst[0] + offset;
    for (int d = 1; d < job->ndst; d++) {
        memcpy((char *)job->dst[d] + offset, from, bytes);
    }
}

/* Fetches the block of the far source that begins with element `begin`, if there is one. */
static void fetch_block(const reduce_job_t *job, size_t begin, size_t block, size_t count)
{
    if (job->far != NULL && begin < count) {
        hora_fetch((const char *)job->far + begin * job->size,
                   smaller(block, count - begin) * job->size);
    }
}

/* One source and nothing to compute. */
static void reduce_copy(const reduce_job_t *job, size_t count)
{
    for (int d = 0; d < job->ndst; d++) {
        if (job->dst[d] != job->src[0]) {
            hora_kernel_copy(job->dst[d], job->src[0], count * job->size);
        }
    }
}

/* No steps but combine, and few enough sources for one pass: straight from memory to memory. */
static void reduce_direct(const reduce_job_t *job, size_t count)
{
    bool        whole = job->ndst == 1 && job->far == NULL;
    size_t      block = whole ? count : BLOCK_BYTES / job->size;
    const void *in[HORA_COMBINE_MAX];
    fetch_block(job, 0, block, count);
    for (size_t begin = 0; begin < count; begin += block) {
        size_t length = smaller(block, count - begin);
        size_t offset = begin * job->size;
        fetch_block(job, begin + block, block, count);
        for (int s = 0; s < job->nsrc; s++) {
            in[s] = (const char *)job->src[s] + offset;
        }
        job->combine((char *)job->dst[0] + offset, in, job->nsrc, length);
        spread(job, offset, length * job->size);
    }
}

/* Source s of a block, ready to be combined: where it lies, or widened and scaled in scratch. */
static const void *block_input(const reduce_job_t *job, int s, size_t offset, size_t length,
                               void *scratch)
{
    const void *input = (const char *)job->src[s] + offset;
    if (job->widen != NULL) {
        job->widen(scratch, input, length);
        input = scratch;
    }
    if (job->prescale != NULL) {
        job->prescale(scratch, input, length, job->how->prescale);
        input = scratch;
    }
    return input;
}

/* Combines a block's sources, in order. Returns where the result lies: work->sum, or the input
 * where there is only one. */
static const void *block_combine(const reduce_job_t *job, size_t offset, size_t length,
                                 workspace_t *work)
{
    const void *in[HORA_COMBINE_MAX];
    int         ways = 0;
    for (int s = 0; s < job->nsrc; s++) {
        in[ways] = block_input(job, s, offset, length, work->input[ways]);
        ways++;
        if (ways > 1 && (ways == HORA_COMBINE_MAX || s == job->nsrc - 1)) {
            job->combine(work->sum, in, ways, length);
            in[0] = work->sum;
            ways = 1;
        }
    }
    return in[0];
}

/* Divides, scales and rounds a block's sum into dst[0]. */
static void block_finish(const reduce_job_t *job, size_t offset, size_t length, const void *sum,
                         workspace_t *work)
{
    void *out = (char *)job->dst[0] + offset;
    if (job->divide != NULL) {
        job->divide(work->sum, sum, length, job->how->divisor);
        sum = work->sum;
    }
    if (job->postscale != NULL) {
        job->postscale(work->sum, sum, length, job->how->postscale);
        sum = work->sum;
    }
    if (job->narrow != NULL) {
        job->narrow(out, sum, length);
    } else {
        memcpy(out, sum, length * job->size);
    }
}

static void reduce_blocks(const reduce_job_t *job, size_t element, size_t count)
{
    workspace_t work;
    size_t      block = BLOCK_BYTES / element;
    fetch_block(job, 0, block, count);
    for (size_t begin = 0; begin < count; begin += block) {
        size_t      length = smaller(block, count - begin);
        size_t      offset = begin * job->size;
        const void *sum;
        fetch_block(job, begin + block, block, count);
        sum = block_combine(job, offset, length, &work);
        block_finish(job, offset, length, sum, &work);
        spread(job, offset, length * job->size);
    }
}

/* So little that getting ready would take longer. False: not done. */
static bool reduce_few(const hora_isa_t *isa, const hora_reduce_t *how, void *const *dst, int ndst,
                       const void *const *src, int nsrc, size_t count)
{
    bool plain = how->prescale == 1.0 && how->divisor == 1 && how->postscale == 1.0;
    if (count > FEW || !plain || ndst != 1 || nsrc < 2 || nsrc > HORA_COMBINE_MAX ||
        isa->widen[how->dtype] != NULL) {
        return false;
    }
    isa->combine[how->dtype][how->op](dst[0], src, nsrc, count);
    return true;
}

/* Not inlined: its room on the stack is not for the few. */
static __attribute__((noinline)) void reduce_many(const hora_isa_t *isa, const hora_reduce_t *how,
                                                  void *const *dst, int ndst,
                                                  const void *const *src, int nsrc, size_t count,
                                                  const void *far)
{
    bool              half = isa->widen[how->dtype] != NULL;
    hora_dtype_t      type = half ? HORA_FLOAT32 : how->dtype; /* that accumulates */
    reduce_job_t      job = {
        .widen = isa->widen[how->dtype],
        .prescale = how->prescale != 1.0 ? isa->scale[type] : NULL,
        .combine = isa->combine[type][how->op],
        .divide = how->divisor != 1 ? isa->divide[type] : NULL,
        .postscale = how->postscale != 1.0 ? isa->scale[type] : NULL,
        .narrow = isa->narrow[how->dtype],
        .how = how,
        .dst = dst,
        .src = src,
        .ndst = ndst,
        .nsrc = nsrc,
        .size = hora_element_size(how->dtype),
        .far = far,
    };
    bool plain = job.prescale == NULL && job.divide == NULL && job.postscale == NULL;
    if (plain && nsrc == 1) {
        reduce_copy(&job, count);
    } else if (how->op == HORA_SUM && isa->sum[how->dtype] != NULL) {
        isa->sum[how->dtype](how, dst, ndst, src, nsrc, count, far);
    } else if (plain && nsrc <= HORA_COMBINE_MAX && !half) {
        reduce_direct(&job, count);
    } else {
        reduce_blocks(&job, hora_element_size(type), count);
    }
}

void hora_kernel_reduce_far(const hora_reduce_t *how, void *const *dst, int ndst,
                            const void *const *src, int nsrc, size_t count, int far)
{
    const hora_isa_t *isa = hora_isa_current();
    if (!reduce_few(isa, how, dst, ndst, src, nsrc, count)) {
        reduce_many(isa, how, dst, ndst, src, nsrc, count, far >= 0 ? src[far] : NULL);
    }
}

void hora_kernel_reduce(const hora_reduce_t *how, void *const *dst, int ndst,
                        const void *const *src, int nsrc, size_t count)
{
    hora_kernel_reduce_far(how, dst, ndst, src, nsrc, count, -1);
}

void hora_kernel_reduce_turn(const hora_reduce_t *how, void *const *dst, const void *const *src,
                             int n, const hora_turn_t *turn, size_t count)
{
    if (how->op == HORA_SUM && how->dtype == HORA_FLOAT32) {
        hora_isa_current()->turn_f32(how, dst, src, n, turn, count);
        return;
    }
    turn_rest(turn, 0, hora_element_size(how->dtype));
    hora_kernel_reduce(how, dst, n, src, n, count);
}
