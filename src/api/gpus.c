/*
 * What there is to say of GPUs (gpus.h). No state.
 */
#include "api/gpus.h"

#include "util/cuda.h"
#include "util/settings.h"

#include <kernels/cuda/kernels.h>
#include <stdio.h>
#include <string.h>

/* CUdevice_attribute, and its values. */
#define COMPUTE_MODE    20
#define MODE_PROHIBITED 2
#define MODE_EXCLUSIVE  3

static const hora_cuda_t *driver(void) {
    hora_settings_t    settings;
    const hora_cuda_t *cuda;
    if (hora_settings_load(&settings) != HORA_OK ||
        hora_cuda_open(settings.cuda_library, &cuda) != HORA_OK)
        return NULL;
    return cuda;
}

bool hora_gpus_probe(hora_backend_t *backend) {
    size_t len;
    if (!hora_cuda_probe(backend)) {
        snprintf(backend->remedy, sizeof(backend->remedy), "where there is an NVIDIA GPU: install its "
                 "driver (525 or later), or give the container the GPU (--gpus all); nvidia-smi shows "
                 "what can be used");
        return false;
    }
    if (hora_cuda_image_bytes > 0)
        return true;
    len = strlen(backend->detail);
    snprintf(backend->detail + len, sizeof(backend->detail) - len, "; this build has no CUDA kernels");
    snprintf(backend->remedy, sizeof(backend->remedy), "build hora with nvcc on PATH, or install a wheel "
             "that was");
    return false;
}

size_t hora_gpus_count(void) {
    const hora_cuda_t *cuda = driver();
    return cuda != NULL ? (size_t)cuda->devices : 0;
}

/* As nvidia-smi writes it. */
static void write_uuid(const uint8_t *uuid, char *text, size_t room) {
    size_t len = (size_t)snprintf(text, room, "GPU");
    for (int i = 0; i < 16 && len + 4 < room; i++) {
        const char *dash = i == 0 || i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
        len += (size_t)snprintf(text + len, room - len, "%s%02x", dash, uuid[i]);
    }
}

static const char *sharing(int mode) {
    if (mode == MODE_PROHIBITED)
        return "no process may use it (compute mode)";
    return mode == MODE_EXCLUSIVE ? "one process at a time (compute mode)" : "ranks can share it";
}

bool hora_gpus_describe(int ordinal, hora_backend_t *backend) {
    const hora_cuda_t *cuda = driver();
    hora_cuda_device_t device;
    uint8_t            uuid[16] = {0};
    char               name[96] = "unnamed", id[48];
    size_t             bytes = 0;
    int                major = 0, minor = 0, mode = 0;
    snprintf(backend->name, sizeof(backend->name), "gpu%d", ordinal);
    snprintf(backend->kind, sizeof(backend->kind), "device");
    if (cuda == NULL || cuda->device(&device, ordinal) != HORA_CUDA_SUCCESS) {
        snprintf(backend->detail, sizeof(backend->detail), "the driver does not answer for it");
        return false;
    }
    cuda->device_name(name, sizeof(name), device);
    cuda->device_memory(&bytes, device);
    cuda->device_uuid(uuid, device);
    cuda->device_attribute(&major, HORA_CUDA_CAPABILITY_MAJOR, device);
    cuda->device_attribute(&minor, HORA_CUDA_CAPABILITY_MINOR, device);
    cuda->device_attribute(&mode, COMPUTE_MODE, device);
    write_uuid(uuid, id, sizeof(id));
    snprintf(backend->detail, sizeof(backend->detail), "%s, %.1f GiB, sm_%d%d, %s, %s", name,
             (double)bytes / (double)(1u << 30), major, minor, id, sharing(mode));
    if (mode != 0)
        snprintf(backend->remedy, sizeof(backend->remedy), "nvidia-smi -i %s -c 0, as root, lets "
                 "processes share it", id);
    return mode != MODE_PROHIBITED;
}
