/*
 * Opening the CUDA driver (cuda.h). Any thread; `lock` guards the state, which is written once.
 */
#include "util/cuda.h"

#include "util/log.h"
#include "util/settings.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define DRIVER_FILE "libcuda.so.1"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static hora_cuda_t     driver;
static bool            opened;

typedef struct symbol {
    const char *name;
    size_t      offset; /* of the member */
} symbol_t;

#define SYMBOL_ROW(member, symbol, parameters) {#symbol, offsetof(hora_cuda_t, member)},
static const symbol_t symbols[] = {HORA_CUDA_FUNCTIONS(SYMBOL_ROW)};

static hora_status_t find_functions(const char *path, void *library, hora_cuda_t *cuda) {
    for (size_t i = 0; i < sizeof(symbols) / sizeof(symbols[0]); i++) {
        void *function = dlsym(library, symbols[i].name);
        if (function == NULL)
            return hora_fail(HORA_ERR_UNSUPPORTED, "the CUDA driver %s has no %s: install driver "
                             "525 or later", path, symbols[i].name);
        memcpy((char *)cuda + symbols[i].offset, &function, sizeof(function));
    }
    return HORA_OK;
}

static hora_status_t start(const char *path, hora_cuda_t *cuda) {
    hora_cuda_result_t result = cuda->driver_version(&cuda->version);
    if (result == HORA_CUDA_SUCCESS && cuda->version < HORA_CUDA_DRIVER_MIN)
        return hora_fail(HORA_ERR_UNSUPPORTED, "the CUDA driver %s is of CUDA %d.%d, and hora needs "
                         "%d.%d: install driver 525 or later", path, cuda->version / 1000,
                         cuda->version % 1000 / 10, HORA_CUDA_DRIVER_MIN / 1000,
                         HORA_CUDA_DRIVER_MIN % 1000 / 10);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->init(0);
    if (result == HORA_CUDA_SUCCESS)
        result = cuda->device_count(&cuda->devices);
    if (result == HORA_CUDA_NO_DEVICE || (result == HORA_CUDA_SUCCESS && cuda->devices < 1))
        return hora_fail(HORA_ERR_UNSUPPORTED, "the CUDA driver is here, but no GPU is visible "
                         "(CUDA_VISIBLE_DEVICES, and the container's access to the GPU)");
    if (result != HORA_CUDA_SUCCESS)
        return hora_cuda_fail(cuda, result, "starting the CUDA driver");
    return HORA_OK;
}

static hora_status_t open_driver(const char *path) {
    hora_cuda_t   cuda = {0};
    hora_status_t st;
    void         *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "no CUDA driver: %s", dlerror());
    st = find_functions(path, library, &cuda);
    if (st == HORA_OK)
        st = start(path, &cuda);
    if (st != HORA_OK)
        goto err_library;
    driver = cuda;
    opened = true;
    hora_log(HORA_LOG_INFO, "CUDA driver %d.%d, %d GPUs", cuda.version / 1000,
             cuda.version % 1000 / 10, cuda.devices);
    return HORA_OK;

err_library:
    dlclose(library);
    return st;
}

hora_status_t hora_cuda_open(const char *library, const hora_cuda_t **cuda_p) {
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&lock);
    if (!opened)
        st = open_driver(library[0] != '\0' ? library : DRIVER_FILE);
    pthread_mutex_unlock(&lock);
    if (st == HORA_OK)
        *cuda_p = &driver;
    return st;
}

hora_status_t hora_cuda_fail(const hora_cuda_t *cuda, hora_cuda_result_t result, const char *what) {
    const char   *name = NULL, *text = NULL;
    hora_status_t st = result == HORA_CUDA_OUT_OF_MEMORY ? HORA_ERR_NO_MEMORY : HORA_ERR_SYSTEM;
    if (cuda->error_name(result, &name) != HORA_CUDA_SUCCESS || name == NULL)
        name = "an unknown result";
    if (cuda->error_text(result, &text) != HORA_CUDA_SUCCESS || text == NULL)
        text = "no text";
    return hora_fail(st, "%s: %s (%s, %d)", what, text, name, result);
}

/* "2 GPUs, driver 13.0; NVIDIA H100 80GB HBM3, 79.6 GiB, sm_90". */
static void describe(const hora_cuda_t *cuda, char *text, size_t room) {
    char   name[96] = "?";
    size_t bytes = 0;
    int    major = 0, minor = 0;
    int    device;
    if (cuda->device(&device, 0) == HORA_CUDA_SUCCESS) {
        cuda->device_name(name, sizeof(name), device);
        cuda->device_memory(&bytes, device);
        cuda->device_attribute(&major, HORA_CUDA_CAPABILITY_MAJOR, device);
        cuda->device_attribute(&minor, HORA_CUDA_CAPABILITY_MINOR, device);
    }
    snprintf(text, room, "%d GPU%s, driver of CUDA %d.%d; %s, %.1f GiB, sm_%d%d", cuda->devices,
             cuda->devices == 1 ? "" : "s", cuda->version / 1000, cuda->version % 1000 / 10, name,
             (double)bytes / (double)(1u << 30), major, minor);
}

bool hora_cuda_probe(hora_backend_t *backend) {
    hora_settings_t    settings;
    const hora_cuda_t *cuda;
    if (hora_settings_load(&settings) != HORA_OK ||
        hora_cuda_open(settings.cuda_library, &cuda) != HORA_OK) {
        snprintf(backend->detail, sizeof(backend->detail), "%.255s", hora_last_error());
        return false;
    }
    describe(cuda, backend->detail, sizeof(backend->detail));
    return true;
}
