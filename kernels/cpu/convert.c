/*
 * Converts between the float types, with an optional scale; any thread.
 *
 * A conversion is a chain of at most five steps; the scale is applied in float64 if either type is
 * float64, else in float32. Block by block, so that what lies between two steps stays in L1. Two
 * types of equal size take more than one step or only the scale, which is why dst may be src.
 */
#include "isa.h"
#include "kernels.h"

#define BLOCK     512 /* elements */
#define STEPS_MAX 5   /* widen, to double, scale, to float, round */

typedef struct step {
    hora_cast_fn  cast;  /* this one, or, if it is NULL, */
    hora_scale_fn scale; /* this one, by the caller's factor */
} step_t;

typedef struct chain {
    step_t steps[STEPS_MAX];
    int    length;
} chain_t;

static void chain_cast(chain_t *chain, hora_cast_fn cast)
{
    if (cast != NULL) {
        chain->steps[chain->length++] = (step_t){.cast = cast};
    }
}

static void chain_scale(chain_t *chain, hora_scale_fn scale)
{
    chain->steps[chain->length++] = (step_t){.scale = scale};
}

static void chain_build(chain_t *chain, const hora_isa_t *isa, hora_dtype_t to, hora_dtype_t from,
                        double scale)
{
    bool wide = to == HORA_FLOAT64 || from == HORA_FLOAT64;
    bool to_half = isa->narrow[to] != NULL;
    chain_cast(chain, isa->widen[from]);
    if (wide && from != HORA_FLOAT64) {
        chain_cast(chain, isa->f32_to_f64);
    }
    if (scale != 1.0) {
        chain_scale(chain, isa->scale[wide ? HORA_FLOAT64 : HORA_FLOAT32]);
    }
    if (wide && to != HORA_FLOAT64) {
        chain_cast(chain, to_half ? isa->f64_to_f32_odd : isa->f64_to_f32);
    }
    chain_cast(chain, isa->narrow[to]);
}

static void chain_run(const chain_t *chain, char *dst, const char *src, size_t length, double scale)
{
    _Alignas(64) char between[2][BLOCK * sizeof(double)];
    const void *in = src;
    for (int s = 0; s < chain->length; s++) {
        const step_t *step = &chain->steps[s];
        void         *out = s == chain->length - 1 ? dst : between[s % 2];
        if (step->cast != NULL) {
            step->cast(out, in, length);
        } else {
            step->scale(out, in, length, scale);
        }
        in = out;
    }
}

/* Equal types: the reduction of one vector does that, integers included. */
static void convert_same(void *dst, const void *src, hora_dtype_t dtype, size_t count, double scale)
{
    hora_reduce_t how = {
        .dtype = dtype, .op = HORA_SUM, .divisor = 1, .prescale = scale, .postscale = 1.0};
    hora_kernel_reduce(&how, &dst, 1, &src, 1, count);
}

void hora_kernel_convert(void *dst, hora_dtype_t dst_dtype, const void *src, hora_dtype_t src_dtype,
                         size_t count, double scale)
{
    if (dst_dtype == src_dtype) {
        convert_same(dst, src, dst_dtype, count, scale);
        return;
    }
    chain_t chain = {.length = 0};
    chain_build(&chain, hora_isa_current(), dst_dtype, src_dtype, scale);
    size_t dst_size = hora_element_size(dst_dtype);
    size_t src_size = hora_element_size(src_dtype);
    for (size_t begin = 0; begin < count; begin += BLOCK) {
        size_t length = count - begin < BLOCK ? count - begin : BLOCK;
        chain_run(&chain, (char *)dst + begin * dst_size, (const char *)src + begin * src_size,
                  length, scale);
    }
}
