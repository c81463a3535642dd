/*
 * Adasum of two vectors (kernels.h): drives the loops of the chosen instruction set; any thread.
 */
#include "isa.h"
#include "kernels.h"

void hora_kernel_dots(hora_dtype_t dtype, const void *a, const void *b, size_t count,
                      hora_dots_t *dots)
{
    double sums[3] = {dots->aa, dots->ab, dots->bb};
    hora_isa_current()->dots[dtype](a, b, count, sums);
    *dots = (hora_dots_t){sums[0], sums[1], sums[2]};
}

/* A vector without length is neutral: both weights are 1, whatever the other one has in it. A NaN
 * or an infinity makes the weights NaN, and so the result. */
void hora_kernel_adasum(hora_dtype_t dtype, void *dst, const void *a, const void *b, size_t count,
                        const hora_dots_t *dots, double scale)
{
    double weights[2] = {1.0, 1.0};
    if (dots->aa != 0.0 && dots->bb != 0.0) {
        weights[0] = 1.0 - dots->ab / dots->aa * 0.5;
        weights[1] = 1.0 - dots->ab / dots->bb * 0.5;
    }
    hora_isa_current()->blend[dtype](dst, a, b, weights, scale, count);
}
