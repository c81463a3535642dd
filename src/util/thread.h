/*
 * Threads of the library's own.
 */
#ifndef HORA_UTIL_THREAD_H
#define HORA_UTIL_THREAD_H

#include "util/status.h"

#include <pthread.h>

/* Starts a thread on which every signal is blocked: they are for the program's own threads.
 * name: at most 15 characters. stack: bytes; 0: as is usual. `what` it is, for the error. Any thread. */
hora_status_t hora_thread_spawn(const char *name, size_t stack, void *(*main)(void *), void *arg,
                                const char *what, pthread_t *thread_p);

#endif
