/*
 * Ctrl-C while the main thread blocks inside libhora, where Python cannot run its signal handler.
 *
 * The signal handler posts a semaphore if the main thread blocks; a watching thread, asleep
 * otherwise, then aborts the communicator, so that the blocked call returns and Python raises
 * KeyboardInterrupt. The waiting path pays two atomic exchanges. Where the program has a SIGINT
 * handler of its own, none of this is installed: its handler runs when the call has returned.
 */
#include "_core.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>

static struct sigaction       previous;
static sem_t                  pressed;
static pthread_t              main_thread;
static bool                   installed;
static pthread_mutex_t        aborting = PTHREAD_MUTEX_INITIALIZER;
static _Atomic(hora_comm_t *) target; /* what the blocked main thread waits on */

static void on_interrupt(int number, siginfo_t *info, void *context) {
    int saved = errno;
    if (previous.sa_flags & SA_SIGINFO)
        previous.sa_sigaction(number, info, context);
    else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN)
        previous.sa_handler(number);
    if (atomic_load(&target))
        sem_post(&pressed);
    errno = saved;
}

static void *watch(void *unused) {
    (void)unused;
    for (;;) {
        if (sem_wait(&pressed) != 0)
            continue;
        pthread_mutex_lock(&aborting);
        hora_comm_t *comm = atomic_exchange(&target, NULL);
        if (comm)
            hora_comm_abort(comm, "KeyboardInterrupt");
        pthread_mutex_unlock(&aborting);
    }
    return NULL;
}

static int start_watch(void) {
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        pthread_detach(thread);
    return error;
}

PyObject *core_interrupt_install(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    struct sigaction now;
    if (sigaction(SIGINT, NULL, &now) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == on_interrupt)
        Py_RETURN_NONE;
    if (!installed) {
        if (sem_init(&pressed, 0, 0) != 0)
            return PyErr_SetFromErrno(PyExc_OSError);
        int error = start_watch();
        if (error) {
            errno = error;
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    installed = true;
    main_thread = pthread_self();
    previous = now;
    now.sa_flags |= SA_SIGINFO;
    now.sa_sigaction = on_interrupt;
    if (sigaction(SIGINT, &now, NULL) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static bool concerns_this_thread(void) {
    return installed && pthread_equal(pthread_self(), main_thread);
}

bool core_interrupt_enter(hora_comm_t *comm) {
    if (!concerns_this_thread())
        return true;
    atomic_store(&target, comm);
    if (PyErr_CheckSignals() == 0)
        return true;
    core_finish(HORA_OK, true);
    return false;
}

void core_interrupt_forget(hora_comm_t *comm) {
    hora_comm_t *expected = comm;
    pthread_mutex_lock(&aborting);
    atomic_compare_exchange_strong(&target, &expected, NULL);
    pthread_mutex_unlock(&aborting);
}

PyObject *core_finish(hora_status_t status, bool entered) {
    if (entered && concerns_this_thread() && !atomic_exchange(&target, NULL)) {
        pthread_mutex_lock(&aborting); /* until the watching thread has done with comm */
        pthread_mutex_unlock(&aborting);
    }
    if (PyErr_Occurred())
        return NULL;
    if (status == HORA_OK)
        Py_RETURN_NONE;
    if (PyErr_CheckSignals() != 0)
        return NULL; /* the signal is why the call failed */
    return core_raise(status);
}
