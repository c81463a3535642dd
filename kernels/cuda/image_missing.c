/* Built without nvcc: there is no device code, and no driver takes these bytes for it (kernels.h). */
#include "kernels.h"

const unsigned char hora_cuda_image[] = "hora was built without nvcc";
const size_t        hora_cuda_image_bytes = 0;
