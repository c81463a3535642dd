/* The device code of hora: one image (meson.build). */
#include "reduce.cuh"

#include "pack.cuh"
