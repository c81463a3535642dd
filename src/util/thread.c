/*
 * Starting threads (thread.h). No state; any thread.
 */
#include "util/thread.h"

#include <signal.h>

hora_status_t hora_thread_spawn(const char *name, size_t stack, void *(*main)(void *), void *arg,
                                const char *what, pthread_t *thread_p) {
    sigset_t       all, before;
    pthread_attr_t attr;
    int            err;
    sigfillset(&all);
    pthread_attr_init(&attr);
    if (stack > 0)
        pthread_attr_setstacksize(&attr, stack);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    err = pthread_create(thread_p, &attr, main, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (err != 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, err, "%s", what);
    pthread_setname_np(*thread_p, name);
    return HORA_OK;
}
