/*
 * The GPUs of this machine as back-ends, for `hora info`. Any thread. They make no context.
 */
#ifndef HORA_API_GPUS_H
#define HORA_API_GPUS_H

#include <hora/hora.h>
#include <stdbool.h>
#include <stddef.h>

/* The driver, and whether this build can use it: detail and remedy. */
bool hora_gpus_probe(hora_backend_t *backend);
/* GPUs that the driver shows this process; 0: none, or no driver. */
size_t hora_gpus_count(void);
/* GPU number `ordinal`, below hora_gpus_count: name, detail, remedy. False: no process can use it. */
bool hora_gpus_describe(int ordinal, hora_backend_t *backend);

#endif
