/*
 * Ranges of NVTX, which NVIDIA's profilers show beside the work of the GPU: what the engine does with
 * tensors, in the domain "hora". Only where NVTX's headers were there when this was built, and only
 * while a profiler is attached (nsys, or NVTX_INJECTION64_PATH): else nothing is on.
 */
#ifndef HORA_UTIL_NVTX_H
#define HORA_UTIL_NVTX_H

#include <stdbool.h>

/* Written by hora_nvtx_open only. */
extern bool hora_nvtx_on;

/* Looks for a profiler, the first time. Any thread, before others ask hora_nvtx_on. */
void hora_nvtx_open(void);
/* Ends this thread's range, if there is one, and begins the next; text NULL: none. It is copied. Only
 * while hora_nvtx_on. */
void hora_nvtx_phase(const char *text);

#endif
