/*
 * What this build and machine have: one row per back-end, for `hora info`. Any thread; probes do no
 * more than open a library or a descriptor and close it again.
 */
#include "api/gpus.h"
#include "bootstrap/bootstrap.h"
#include "offload/nccl/library.h"
#include "transport/mpi/loader.h"
#include "transport/transport.h"
#include "util/settings.h"

#include <dlfcn.h>
#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <string.h>

typedef struct row {
    const char *name, *kind;
    bool (*probe)(const struct row *row, hora_backend_t *backend);
    const void *arg;
} row_t;

static bool probe_transport(const row_t *row, hora_backend_t *backend) {
    const hora_transport_ops_t *ops = row->arg;
    return ops->probe(backend);
}

/* As the transport; and does it take GPUs' memory? */
static bool probe_mpi(const row_t *row, hora_backend_t *backend) {
    bool   available = probe_transport(row, backend);
    size_t len = strlen(backend->detail);
    if (available)
        snprintf(backend->detail + len, sizeof(backend->detail) - len, "; CUDA-aware: %s",
                 hora_mpi_cuda_words());
    return available;
}

static bool probe_nccl(const row_t *row, hora_backend_t *backend) {
    (void)row;
    return hora_nccl_probe(backend);
}

static bool probe_kernels(const row_t *row, hora_backend_t *backend) {
    hora_settings_t settings;
    bool good = hora_settings_load(&settings) == HORA_OK && hora_bootstrap_kernels(&settings) == HORA_OK;
    (void)row;
    if (good)
        snprintf(backend->detail, sizeof(backend->detail), "reductions use %s", hora_kernel_isa());
    else
        snprintf(backend->detail, sizeof(backend->detail), "%.255s", hora_last_error());
    return good;
}

/* A library that a later version will use: say whether it is here, and that it is not used yet. */
static bool probe_library(const row_t *row, hora_backend_t *backend) {
    const char *library = row->arg;
    void       *handle = dlopen(library, RTLD_LAZY | RTLD_LOCAL);
    if (handle != NULL)
        dlclose(handle);
    snprintf(backend->detail, sizeof(backend->detail), "%s %s; hora %s does not use it yet", library,
             handle != NULL ? "is here" : "was not found", HORA_VERSION);
    return false;
}

static bool probe_cuda(const row_t *row, hora_backend_t *backend) {
    (void)row;
    return hora_gpus_probe(backend);
}

static const row_t rows[] = {
    {"shm", "transport", probe_transport, &hora_transport_shm},
    {"tcp", "transport", probe_transport, &hora_transport_tcp},
    {"mpi", "transport", probe_transport, &hora_transport_mpi},
    {"verbs", "transport", probe_library, "libibverbs.so.1"},
    {"mpi", "offload", probe_mpi, &hora_transport_mpi},
    {"nccl", "offload", probe_nccl, NULL},
    {"cpu", "kernels", probe_kernels, NULL},
    {"cuda", "device", probe_cuda, NULL},
};
#define ROWS (sizeof(rows) / sizeof(rows[0])) /* after them, one for each GPU */

static bool describe(const row_t *row, hora_backend_t *backend) {
    snprintf(backend->name, sizeof(backend->name), "%s", row->name);
    snprintf(backend->kind, sizeof(backend->kind), "%s", row->kind);
    return row->probe(row, backend);
}

hora_status_t hora_setting_unknown(size_t index, char *text_p, size_t room) {
    char text[HORA_SETTING_STRING_MAX];
    if (text_p == NULL || room == 0)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "setting_unknown: no room for the text");
    if (!hora_settings_unknown(index, text))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "setting_unknown: there are not so many");
    snprintf(text_p, room, "%s", text);
    return HORA_OK;
}

hora_status_t hora_backend_get(size_t index, hora_backend_t *backend_p) {
    hora_backend_t backend = HORA_BACKEND_INIT;
    size_t         count = index < ROWS ? ROWS : ROWS + hora_gpus_count();
    if (index >= count)
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "backend_get: there are %zu back-ends", count);
    if (backend_p == NULL || backend_p->size < sizeof(size_t))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "backend_get: backend_p is NULL or its size is not "
                         "set; use HORA_BACKEND_INIT");
    backend.available = index < ROWS ? describe(&rows[index], &backend)
                                     : hora_gpus_describe((int)(index - ROWS), &backend);
    backend.size = backend_p->size < sizeof(backend) ? backend_p->size : sizeof(backend);
    memcpy(backend_p, &backend, backend.size);
    return HORA_OK;
}
