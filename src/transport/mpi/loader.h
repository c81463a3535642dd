/*
 * Finds and loads the MPI plug-in. Any thread. One per process, since MPI can only be had once;
 * it is never unloaded.
 */
#ifndef HORA_TRANSPORT_MPI_LOADER_H
#define HORA_TRANSPORT_MPI_LOADER_H

#include "transport/mpi/plugin.h"
#include "util/status.h"

/* Loads the plug-in from `path` (the setting mpi_library); "": libhora_mpi.so beside libhora, or
 * in the folder hora beside it. Loads MPI with it but does not initialise it. Once one was
 * loaded, it is what every later call gets. HORA_ERR_UNSUPPORTED: none, or not for this MPI or
 * this hora. */
hora_status_t hora_mpi_load(const char *path, const hora_mpi_plugin_t **plugin_p);

/* Where the loaded plug-in was found; "" before. Static storage. */
const char *hora_mpi_path(void);

/* For people: "yes", "no", or that the loaded MPI can only say it once it runs. One was loaded. Static storage. */
const char *hora_mpi_cuda_words(void);

/* Fills detail and remedy of a back-end that needs the plug-in; whether it can be loaded here. */
bool hora_mpi_probe(hora_backend_t *backend);

#endif
