/*
 * Communicator: the ordered API (hora_allreduce and its sisters) for Python. Benchmarks and tests
 * use it; it needs neither the engine nor init().
 *
 * One thread at a time may be inside a communicator; a second one gets an error. The C communicator
 * is freed when the object was closed (or dropped) and the arrays from alloc() are gone, whichever
 * is last.
 */
#include "_core.h"

#include <stdatomic.h>
#include <stdlib.h>

typedef struct box {
    atomic_int   users;
    hora_comm_t *comm;
} box_t;

typedef struct comm_object {
    PyObject_HEAD
    box_t *box; /* NULL: closed */
    bool   busy;
} comm_object_t;

static PyTypeObject *comm_type;

/* Any thread, with or without the GIL. */
static void box_drop(box_t *box) {
    if (atomic_fetch_sub(&box->users, 1) != 1)
        return;
    hora_comm_free(box->comm);
    free(box);
}

static PyObject *wrap(hora_comm_t *comm) {
    comm_object_t *self = PyObject_New(comm_object_t, comm_type);
    box_t *box = malloc(sizeof(*box));
    if (!self || !box) {
        hora_comm_free(comm);
        free(box);
        if (self) {
            self->box = NULL;
            Py_DECREF(self);
        }
        return PyErr_NoMemory();
    }
    atomic_init(&box->users, 1);
    box->comm = comm;
    self->box = box;
    self->busy = false;
    return (PyObject *)self;
}

static PyObject *comm_new(PyTypeObject *type, PyObject *args, PyObject *options) {
    static char *names[] = {"rank",      "nranks",        "rendezvous",
                            "transport", "start_timeout", "timeout", NULL};
    hora_comm_options_t given = HORA_COMM_OPTIONS_INIT;
    (void)type;
    if (!core_check_process() ||
        !PyArg_ParseTupleAndKeywords(args, options, "|iizzdd", names, &given.rank, &given.nranks,
                                     &given.rendezvous, &given.transport, &given.start_timeout,
                                     &given.timeout))
        return NULL;
    hora_status_t status;
    hora_comm_t *comm;
    Py_BEGIN_ALLOW_THREADS
    status = hora_comm_create(&given, &comm);
    Py_END_ALLOW_THREADS
    return status == HORA_OK ? wrap(comm) : core_raise(status);
}

static void comm_dealloc(PyObject *object) {
    comm_object_t *self = (comm_object_t *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->box && !core_forked)
        box_drop(self->box);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- Calls ---------------------------------------------------------------------------------- */

static hora_comm_t *get_comm(PyObject *object) {
    comm_object_t *self = (comm_object_t *)object;
    if (!core_check_process())
        return NULL;
    if (!self->box) {
        PyErr_SetString(PyExc_ValueError, "this communicator has been closed");
        return NULL;
    }
    return self->box->comm;
}

/* Marks the communicator as in use by this thread. */
static hora_comm_t *enter(PyObject *object) {
    hora_comm_t *comm = get_comm(object);
    if (!comm)
        return NULL;
    if (((comm_object_t *)object)->busy) {
        PyErr_SetString(PyExc_RuntimeError, "another thread is using this communicator");
        return NULL;
    }
    if (!core_interrupt_enter(comm))
        return NULL;
    ((comm_object_t *)object)->busy = true;
    return comm;
}

static PyObject *leave(PyObject *object, hora_status_t status) {
    ((comm_object_t *)object)->busy = false;
    return core_finish(status, true);
}

typedef struct arrays {
    core_array_t in, out;
} arrays_t;

static void drop_arrays(arrays_t *arrays) {
    Py_XDECREF(arrays->in.keep);
    Py_XDECREF(arrays->out.keep);
}

/* The output must have in.count * times / parts elements of the same type. */
static bool read_arrays(PyObject *const *args, size_t times, size_t parts, arrays_t *arrays_p) {
    if (!core_array_read(args[0], &arrays_p->in))
        return false;
    if (!core_array_read_output(args[1], &arrays_p->out)) {
        Py_XDECREF(arrays_p->in.keep);
        return false;
    }
    size_t count = arrays_p->in.count;
    if (arrays_p->in.dtype == arrays_p->out.dtype && count % parts == 0 &&
        arrays_p->out.count == count * times / parts)
        return true;
    drop_arrays(arrays_p);
    PyErr_Format(PyExc_ValueError,
                 "input (%zu of %s) and output (%zu of %s) do not fit this operation", count,
                 hora_dtype_name(arrays_p->in.dtype), arrays_p->out.count,
                 hora_dtype_name(arrays_p->out.dtype));
    return false;
}

/* allreduce(in, out, op, prescale=1.0, postscale=1.0) */
static PyObject *comm_allreduce(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    arrays_t arrays;
    int op;
    if (nargs != 5 && !core_check_count(nargs, 3, "allreduce"))
        return NULL;
    if (!core_get_int(args[2], &op) ||
        (nargs == 5 && (!core_get_double(args[3], &options.prescale) ||
                        !core_get_double(args[4], &options.postscale))) ||
        !read_arrays(args, 1, 1, &arrays))
        return NULL;
    hora_comm_t *comm = enter(self);
    hora_status_t status = HORA_OK;
    if (comm) {
        Py_BEGIN_ALLOW_THREADS
        status = hora_allreduce(comm, arrays.in.data, arrays.out.data, arrays.in.count,
                                arrays.in.dtype, (hora_op_t)op, &options);
        Py_END_ALLOW_THREADS
    }
    drop_arrays(&arrays);
    return comm ? leave(self, status) : NULL;
}

/* reduce_scatter(in, out, op) */
static PyObject *comm_reduce_scatter(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    arrays_t arrays;
    int op;
    hora_comm_t *comm = get_comm(self);
    if (!comm || !core_check_count(nargs, 3, "reduce_scatter") || !core_get_int(args[2], &op) ||
        !read_arrays(args, 1, (size_t)hora_comm_size(comm), &arrays))
        return NULL;
    hora_status_t status = HORA_OK;
    comm = enter(self);
    if (comm) {
        Py_BEGIN_ALLOW_THREADS
        status = hora_reduce_scatter(comm, arrays.in.data, arrays.out.data, arrays.out.count,
                                     arrays.in.dtype, (hora_op_t)op, NULL);
        Py_END_ALLOW_THREADS
    }
    drop_arrays(&arrays);
    return comm ? leave(self, status) : NULL;
}

/* allgather(in, out) */
static PyObject *comm_allgather(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    arrays_t arrays;
    hora_comm_t *comm = get_comm(self);
    if (!comm || !core_check_count(nargs, 2, "allgather") ||
        !read_arrays(args, (size_t)hora_comm_size(comm), 1, &arrays))
        return NULL;
    hora_status_t status = HORA_OK;
    comm = enter(self);
    if (comm) {
        Py_BEGIN_ALLOW_THREADS
        status = hora_allgather(comm, arrays.in.data, arrays.out.data, arrays.in.count,
                                arrays.in.dtype, NULL);
        Py_END_ALLOW_THREADS
    }
    drop_arrays(&arrays);
    return comm ? leave(self, status) : NULL;
}

/* broadcast(in, out, root) */
static PyObject *comm_broadcast(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    arrays_t arrays;
    int root;
    if (!core_check_count(nargs, 3, "broadcast") || !core_get_int(args[2], &root) ||
        !read_arrays(args, 1, 1, &arrays))
        return NULL;
    hora_status_t status = HORA_OK;
    hora_comm_t *comm = enter(self);
    if (comm) {
        Py_BEGIN_ALLOW_THREADS
        status = hora_broadcast(comm, arrays.in.data, arrays.out.data, arrays.in.count,
                                arrays.in.dtype, root, NULL);
        Py_END_ALLOW_THREADS
    }
    drop_arrays(&arrays);
    return comm ? leave(self, status) : NULL;
}

/* alltoall(in, out) */
static PyObject *comm_alltoall(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    arrays_t arrays;
    hora_comm_t *comm = get_comm(self);
    if (!comm || !core_check_count(nargs, 2, "alltoall") || !read_arrays(args, 1, 1, &arrays))
        return NULL;
    size_t size = (size_t)hora_comm_size(comm);
    if (arrays.in.count % size) {
        drop_arrays(&arrays);
        return PyErr_Format(PyExc_ValueError, "%zu elements cannot be divided among %zu ranks",
                            arrays.in.count, size);
    }
    hora_status_t status = HORA_OK;
    comm = enter(self);
    if (comm) {
        Py_BEGIN_ALLOW_THREADS
        status = hora_alltoall(comm, arrays.in.data, arrays.out.data, arrays.in.count / size,
                               arrays.in.dtype, NULL);
        Py_END_ALLOW_THREADS
    }
    drop_arrays(&arrays);
    return comm ? leave(self, status) : NULL;
}

static PyObject *comm_barrier(PyObject *self, PyObject *unused) {
    (void)unused;
    hora_comm_t *comm = enter(self);
    if (!comm)
        return NULL;
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = hora_barrier(comm, NULL);
    Py_END_ALLOW_THREADS
    return leave(self, status);
}

/* ---- Making, aborting, closing -------------------------------------------------------------- */

/* split(color, key) */
static PyObject *comm_split(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    int color, key;
    if (!core_check_count(nargs, 2, "split") || !core_get_int(args[0], &color) ||
        !core_get_int(args[1], &key))
        return NULL;
    hora_comm_t *comm = enter(self), *part = NULL;
    if (!comm)
        return NULL;
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = hora_comm_split(comm, color, key, &part);
    Py_END_ALLOW_THREADS
    PyObject *result = leave(self, status);
    if (!result || !part)
        return result;
    Py_DECREF(result);
    return wrap(part);
}

static PyObject *comm_abort(PyObject *self, PyObject *reason) {
    const char *text;
    hora_comm_t *comm = get_comm(self);
    if (!comm || !core_get_string(reason, &text))
        return NULL;
    hora_status_t status = hora_comm_abort(comm, text);
    if (status != HORA_OK)
        return core_raise(status);
    Py_RETURN_NONE;
}

static void release_allocated(void *owner, void *data) {
    box_t *box = owner;
    hora_free(box->comm, data);
    box_drop(box);
}

static bool read_shape(PyObject *object, int *ndim_p, int64_t *shape, size_t *count_p) {
    Py_ssize_t ndim = PySequence_Size(object);
    if (ndim < 0)
        return false;
    if (ndim > HORA_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "at most %d dimensions", HORA_MAX_DIMS);
        return false;
    }
    size_t count = 1;
    for (Py_ssize_t i = 0; i < ndim; i++) {
        PyObject *item = PySequence_GetItem(object, i);
        shape[i] = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred())
            return false;
        if (shape[i] < 0 || __builtin_mul_overflow(count, (size_t)shape[i], &count)) {
            PyErr_SetString(PyExc_ValueError, "impossible shape");
            return false;
        }
    }
    *ndim_p = (int)ndim;
    *count_p = count;
    return true;
}

/* alloc(shape, dtype name) */
static PyObject *comm_alloc(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t shape[HORA_MAX_DIMS];
    int ndim;
    size_t count, bytes;
    const char *name;
    hora_dtype_t dtype;
    hora_comm_t *comm = get_comm(self);
    if (!comm || !core_check_count(nargs, 2, "alloc") || !core_get_string(args[1], &name) ||
        !core_get_dtype(name, &dtype) || !read_shape(args[0], &ndim, shape, &count))
        return NULL;
    if (__builtin_mul_overflow(count, hora_dtype_size(dtype), &bytes))
        return PyErr_NoMemory();
    box_t *box = ((comm_object_t *)self)->box;
    core_memory_t memory = {NULL, box, release_allocated};
    hora_status_t status = hora_alloc(comm, bytes ? bytes : 1, &memory.data);
    if (status != HORA_OK)
        return core_raise(status);
    atomic_fetch_add(&box->users, 1);
    return core_array_new(&memory, dtype, ndim, shape);
}

static PyObject *comm_close(PyObject *object, PyObject *unused) {
    (void)unused;
    comm_object_t *self = (comm_object_t *)object;
    if (!core_check_process())
        return NULL;
    if (self->busy)
        return PyErr_Format(PyExc_RuntimeError, "another thread is using this communicator");
    box_t *box = self->box;
    self->box = NULL;
    if (box) {
        Py_BEGIN_ALLOW_THREADS
        box_drop(box);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static PyObject *comm_number(PyObject *self, void *get) {
    hora_comm_t *comm = get_comm(self);
    return comm ? PyLong_FromLong(((int (*)(const hora_comm_t *))get)(comm)) : NULL;
}

static PyObject *comm_text(PyObject *self, PyObject *number,
                           const char *(*get)(const hora_comm_t *, int)) {
    int rank;
    hora_comm_t *comm = get_comm(self);
    if (!comm || !core_get_int(number, &rank))
        return NULL;
    const char *text = get(comm, rank);
    if (!text)
        return PyErr_Format(PyExc_ValueError, "there is no rank %d", rank);
    return core_text(text);
}

static PyObject *comm_host(PyObject *self, PyObject *rank) {
    return comm_text(self, rank, hora_comm_host);
}

static PyObject *comm_transport(PyObject *self, PyObject *rank) {
    return comm_text(self, rank, hora_comm_transport);
}

#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL
#define NUMBER(name, text) {#name, comm_number, NULL, text, (void *)hora_comm_##name}

bool core_comm_add_type(PyObject *module) {
    static PyMethodDef methods[] = {
        {"allreduce", FAST(comm_allreduce),
         "allreduce(in, out, op[, prescale, postscale]); in may be out."},
        {"reduce_scatter", FAST(comm_reduce_scatter), "reduce_scatter(in, out, op)"},
        {"allgather", FAST(comm_allgather), "allgather(in, out)"},
        {"broadcast", FAST(comm_broadcast), "broadcast(in, out, root); in may be out."},
        {"alltoall", FAST(comm_alltoall), "alltoall(in, out)"},
        {"barrier", comm_barrier, METH_NOARGS, "Returns when every rank has called it."},
        {"split", FAST(comm_split), "split(color, key) -> Communicator or None; collective."},
        {"abort", comm_abort, METH_O, "abort(reason): every operation fails, on every rank."},
        {"alloc", FAST(comm_alloc),
         "alloc(shape, dtype) -> Array in memory that the ranks of this host share: collectives "
         "on it copy less. Pass it to torch.from_dlpack or numpy.from_dlpack."},
        {"close", comm_close, METH_NOARGS, "Leaves the communicator. Idempotent."},
        {"host", comm_host, METH_O, "host(rank): its name."},
        {"transport", comm_transport, METH_O, "transport(rank): what carries bytes to it."},
        {NULL, NULL, 0, NULL},
    };
    static PyGetSetDef numbers[] = {
        NUMBER(rank, "My rank."),
        NUMBER(size, "Number of ranks."),
        NUMBER(local_rank, "My rank among the members on this host."),
        NUMBER(local_size, "Number of members on this host."),
        NUMBER(cross_rank, "My host's rank among the hosts."),
        NUMBER(cross_size, "Number of hosts."),
        {NULL, NULL, NULL, NULL, NULL},
    };
    static PyType_Slot slots[] = {
        {Py_tp_new, (void *)comm_new},
        {Py_tp_dealloc, (void *)comm_dealloc},
        {Py_tp_methods, methods},
        {Py_tp_getset, numbers},
        {Py_tp_doc, "Communicator(rank=-1, nranks=-1, rendezvous=None, transport=None, "
                    "start_timeout=0, timeout=0): all ranks of the job, with ordered collectives "
                    "on arrays. Every rank makes the same calls in the same order."},
        {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "hora._core.Communicator",
        .basicsize = sizeof(comm_object_t),
        .flags = Py_TPFLAGS_DEFAULT,
        .slots = slots,
    };
    comm_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return comm_type && PyModule_AddObjectRef(module, "Communicator", (PyObject *)comm_type) == 0;
}
