/*
 * Copies large blocks; any thread.
 */
#include <string.h>

#include "kernels.h"

void hora_kernel_copy(void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}
