/*
 * What _comm.c and _call.c share: the Comm object and who is inside it. Under the GIL.
 */
#ifndef HORA_PYTHON_COMM_H
#define HORA_PYTHON_COMM_H

#include "_core.h"

#include <stdatomic.h>

typedef struct comm_box {
    atomic_int   users; /* the Comm, and each Array from alloc() */
    hora_comm_t *comm;
} comm_box_t;

typedef struct comm_object {
    PyObject_HEAD
    comm_box_t *box; /* NULL: closed */
    bool        busy;
    int         in_flight; /* requests that have not been waited for */
} comm_object_t;

/* The communicator; NULL with an exception if it was closed, or in the child of a fork. */
hora_comm_t *comm_get(PyObject *object);
/* The same, and marks it as in use by this thread until comm_leave. An exception too if another
 * thread uses it. */
hora_comm_t *comm_enter(PyObject *object);
/* None, or NULL with the exception for the status. */
PyObject *comm_leave(PyObject *object, hora_status_t status);

/* call(kind, input, output, dtype, counts, out_counts, op, root, tag, prescale, postscale, timeout,
 * name, start): see _call.c. */
PyObject *comm_call(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
/* Adds Request and the numbers of the operations. */
bool comm_add_requests(PyObject *module);

#endif
