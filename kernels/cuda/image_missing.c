/* Built without nvcc: there is no device code (kernels.h). */
#include "kernels.h"

const unsigned char hora_cuda_image[1] = {0};
const size_t        hora_cuda_image_bytes = 0;
