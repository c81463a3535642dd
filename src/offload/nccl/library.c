/*
 * Opening NCCL (library.h). Any thread; `lock` guards the state, which is written once.
 */
#include "offload/nccl/library.h"

#include "util/log.h"
#include "util/settings.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LIBRARY_FILE "libnccl.so.2"
#define WHEEL_FILE   "/../nvidia/nccl/lib/" LIBRARY_FILE /* from the folder hora in site-packages */

static pthread_mutex_t     lock = PTHREAD_MUTEX_INITIALIZER;
static hora_nccl_library_t library;
static bool                opened;

typedef struct symbol {
    const char *name;
    size_t      offset; /* of the member */
} symbol_t;

#define SYMBOL_ROW(member, symbol, parameters) {#symbol, offsetof(hora_nccl_library_t, member)},
static const symbol_t required[] = {
    HORA_NCCL_FUNCTIONS(SYMBOL_ROW){"ncclGetErrorString", offsetof(hora_nccl_library_t, error_text)},
    {"ncclGetLastError", offsetof(hora_nccl_library_t, last_error)}};
static const symbol_t newer[] = {HORA_NCCL_NEWER(SYMBOL_ROW)};

static bool find(void *handle, const symbol_t *symbol, hora_nccl_library_t *nccl) {
    void *function = dlsym(handle, symbol->name);
    if (function != NULL)
        memcpy((char *)nccl + symbol->offset, &function, sizeof(function));
    return function != NULL;
}

const char *hora_nccl_version_text(int version) {
    static _Thread_local char text[32];
    snprintf(text, sizeof(text), "%d.%d.%d", version / 10000, version / 100 % 100, version % 100);
    return text;
}

/* Versions before 2.9 count by thousands, and are too old in either way of counting. */
static hora_status_t check_version(hora_nccl_library_t *nccl) {
    hora_nccl_result_t result = nccl->get_version(&nccl->version);
    if (result != HORA_NCCL_SUCCESS)
        return hora_fail(HORA_ERR_UNSUPPORTED, "NCCL %s does not tell its version (%d)", nccl->path,
                         result);
    if (nccl->version < HORA_NCCL_MIN)
        return hora_fail(HORA_ERR_UNSUPPORTED, "NCCL %s is version %s, and hora needs 2.14.3 or later",
                         nccl->path, hora_nccl_version_text(nccl->version));
    return HORA_OK;
}

static hora_status_t find_functions(void *handle, hora_nccl_library_t *nccl) {
    Dl_info       info;
    hora_status_t st;
    void         *known = dlsym(handle, "ncclGetVersion");
    snprintf(nccl->path, sizeof(nccl->path), "%s",
             known != NULL && dladdr(known, &info) != 0 ? info.dli_fname : LIBRARY_FILE);
    if (!find(handle, &required[0], nccl))
        return hora_fail(HORA_ERR_UNSUPPORTED, "%s is not NCCL: it has no ncclGetVersion", nccl->path);
    st = check_version(nccl);
    if (st != HORA_OK)
        return st;
    for (size_t i = 1; i < sizeof(required) / sizeof(required[0]); i++)
        if (!find(handle, &required[i], nccl))
            return hora_fail(HORA_ERR_UNSUPPORTED, "NCCL %s has no %s", nccl->path, required[i].name);
    for (size_t i = 0; i < sizeof(newer) / sizeof(newer[0]); i++)
        find(handle, &newer[i], nccl);
    return HORA_OK;
}

/* The wheels nvidia-nccl-* put it there. False: hora does not lie in a site-packages that has it. */
static bool find_wheel(char *path, size_t room) {
    Dl_info info;
    char    folder[PATH_MAX];
    char   *slash;
    if (dladdr((void *)(uintptr_t)hora_nccl_open, &info) == 0 || info.dli_fname == NULL)
        return false;
    snprintf(folder, sizeof(folder), "%s", info.dli_fname);
    slash = strrchr(folder, '/');
    if (slash == NULL)
        return false;
    *slash = '\0';
    return snprintf(path, room, "%s" WHEEL_FILE, folder) < (int)room && access(path, R_OK) == 0;
}

static void *open_file(const char *path) {
    char  wheel[PATH_MAX];
    void *handle = dlopen(LIBRARY_FILE, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (handle != NULL)
        return handle;
    if (path[0] != '\0')
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (find_wheel(wheel, sizeof(wheel)) && (handle = dlopen(wheel, RTLD_NOW | RTLD_LOCAL)) != NULL)
        return handle;
    return dlopen(LIBRARY_FILE, RTLD_NOW | RTLD_LOCAL);
}

static hora_status_t open_library(const char *path) {
    hora_nccl_library_t nccl = {0};
    hora_status_t       st;
    void               *handle = open_file(path);
    if (handle == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "no NCCL: %s", dlerror());
    st = find_functions(handle, &nccl);
    if (st != HORA_OK)
        goto err_handle;
    library = nccl;
    opened = true;
    hora_log(HORA_LOG_INFO, "NCCL %s: %s", hora_nccl_version_text(nccl.version), nccl.path);
    return HORA_OK;

err_handle:
    dlclose(handle);
    return st;
}

hora_status_t hora_nccl_open(const char *path, const hora_nccl_library_t **nccl_p) {
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&lock);
    if (!opened)
        st = open_library(path);
    pthread_mutex_unlock(&lock);
    if (st == HORA_OK)
        *nccl_p = &library;
    return st;
}

bool hora_nccl_probe(hora_backend_t *backend) {
    hora_settings_t            settings;
    const hora_nccl_library_t *nccl;
    if (hora_settings_load(&settings) != HORA_OK ||
        hora_nccl_open(settings.nccl_library, &nccl) != HORA_OK) {
        snprintf(backend->detail, sizeof(backend->detail), "%.255s", hora_last_error());
        snprintf(backend->remedy, sizeof(backend->remedy), "install NCCL 2.14.3 or later (pip install "
                 "nvidia-nccl-cu13, or with torch), or name its file in HORA_NCCL_LIBRARY");
        return false;
    }
    snprintf(backend->detail, sizeof(backend->detail), "NCCL %s; %.200s",
             hora_nccl_version_text(nccl->version), nccl->path);
    return true;
}
