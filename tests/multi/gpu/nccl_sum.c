/*
 * What the tests of NCCL's paths have in common (nccl_sum.h).
 */
#include "nccl_sum.h"

#include <dlfcn.h>
#include <stdlib.h>

const nccl_standin_t *nccl_counts(void) {
    void *library = dlopen(getenv("HORA_NCCL_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    const nccl_standin_t *found = library != NULL ? dlsym(library, "nccl_standin") : NULL;
    harness_check(found != NULL, "%s is not loaded", getenv("HORA_NCCL_LIBRARY"));
    return found;
}

hora_status_t nccl_queue_sum(hora_comm_t *comm, device_buffer_t *b, void *stream) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    options.device = 0;
    options.stream = stream;
    options.name = "grad";
    return hora_allreduce(comm, b->at, b->at, NCCL_COUNT, HORA_INT32, HORA_SUM, &options);
}

void nccl_sum_is_right(hora_comm_t *comm, device_buffer_t *b, void *stream) {
    int size = hora_comm_size(comm);
    for (int i = 0; i < NCCL_COUNT; i++)
        ((int *)(void *)b->host)[i] = i + hora_comm_rank(comm);
    device_put(b, stream);
    harness_ok(nccl_queue_sum(comm, b, stream));
    device_finish(stream);
    device_get(b, stream);
    device_finish(stream);
    for (int i = 0; i < NCCL_COUNT; i++)
        harness_check(((int *)(void *)b->host)[i] == size * i + size * (size - 1) / 2, "element %d", i);
}
