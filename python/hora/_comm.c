/*
 * Comm: making, splitting, aborting and closing communicators for Python, and memory in the arena.
 * hora.Communicator (communicator.py) is what users see. Neither the engine nor init() is needed.
 *
 * Invariants. One thread at a time is inside a communicator; a second one gets an error. The C
 * communicator is freed when the object was closed (or dropped) and the arrays from alloc() are
 * gone, whichever is last.
 */
#include "_comm.h"

#include <pthread.h>
#include <stdlib.h>

static PyTypeObject *comm_type;

/* Any thread, with or without the GIL. */
static void box_drop(comm_box_t *box) {
    if (atomic_fetch_sub(&box->users, 1) != 1)
        return;
    hora_comm_free(box->comm);
    free(box);
}

static PyObject *wrap(hora_comm_t *comm) {
    comm_object_t *self = PyObject_New(comm_object_t, comm_type);
    comm_box_t *box = malloc(sizeof(*box));
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
    self->in_flight = 0;
    return (PyObject *)self;
}

static PyObject *comm_new(PyTypeObject *type, PyObject *args, PyObject *options) {
    static char *names[] = {"rank",          "size",    "rendezvous", "transport",
                            "start_timeout", "timeout", "name",       NULL};
    hora_comm_options_t given = HORA_COMM_OPTIONS_INIT;
    (void)type;
    if (!core_check_process() ||
        !PyArg_ParseTupleAndKeywords(args, options, "|iizzddz", names, &given.rank, &given.nranks,
                                     &given.rendezvous, &given.transport, &given.start_timeout,
                                     &given.timeout, &given.name))
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
    comm_box_t *box = self->box;
    if (box && !core_forked) {
        Py_BEGIN_ALLOW_THREADS
        box_drop(box);
        Py_END_ALLOW_THREADS
    }
    PyObject_Free(object);
    Py_DECREF(type);
}

/* ---- Who is inside -------------------------------------------------------------------------- */

hora_comm_t *comm_get(PyObject *object) {
    comm_object_t *self = (comm_object_t *)object;
    if (!core_check_process())
        return NULL;
    if (!self->box) {
        PyErr_SetString(PyExc_ValueError, "this communicator has been closed");
        return NULL;
    }
    return self->box->comm;
}

static hora_comm_t *get_idle(PyObject *object) {
    hora_comm_t *comm = comm_get(object);
    if (!comm || !((comm_object_t *)object)->busy)
        return comm;
    PyErr_SetString(PyExc_RuntimeError, "another thread is using this communicator");
    return NULL;
}

hora_comm_t *comm_enter(PyObject *object) {
    hora_comm_t *comm = get_idle(object);
    if (!comm || !core_interrupt_enter(comm))
        return NULL;
    if (!get_idle(object)) { /* a signal's handler has closed it, or let another thread go first */
        core_finish(HORA_OK, true);
        return NULL;
    }
    ((comm_object_t *)object)->busy = true;
    return comm;
}

PyObject *comm_leave(PyObject *object, hora_status_t status) {
    ((comm_object_t *)object)->busy = false;
    return core_finish(status, true);
}

/* ---- Making, aborting, closing -------------------------------------------------------------- */

/* split(color, key) */
static PyObject *comm_split(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    int color, key;
    if (!core_check_count(nargs, 2, "split") || !core_get_int(args[0], "color", &color) ||
        !core_get_int(args[1], "key", &key))
        return NULL;
    hora_comm_t *comm = comm_enter(self), *part = NULL;
    if (!comm)
        return NULL;
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = hora_comm_split(comm, color, key, &part);
    Py_END_ALLOW_THREADS
    PyObject *result = comm_leave(self, status);
    if (!result || !part)
        return result;
    Py_DECREF(result);
    return wrap(part);
}

static PyObject *comm_abort(PyObject *self, PyObject *reason) {
    const char *text;
    hora_comm_t *comm = comm_get(self);
    if (!comm || !core_get_string(reason, &text))
        return NULL;
    hora_status_t status = hora_comm_abort(comm, text);
    if (status != HORA_OK)
        return core_raise(status);
    Py_RETURN_NONE;
}

static void release_allocated(void *owner, void *data) {
    comm_box_t *box = owner;
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

/* (shape, dtype name) */
static bool read_request(PyObject *const *args, int *ndim_p, int64_t *shape, hora_dtype_t *dtype_p,
                         size_t *bytes_p) {
    const char *name;
    size_t count;
    if (!core_get_string(args[1], &name) || !core_get_dtype(name, dtype_p) ||
        !read_shape(args[0], ndim_p, shape, &count))
        return false;
    if (!__builtin_mul_overflow(count, hora_dtype_size(*dtype_p), bytes_p))
        return true;
    PyErr_NoMemory();
    return false;
}

/* alloc(shape, dtype name) */
static PyObject *comm_alloc(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    int64_t shape[HORA_MAX_DIMS];
    int ndim;
    size_t bytes;
    hora_dtype_t dtype;
    hora_comm_t *comm = comm_get(self);
    if (!comm || !core_check_count(nargs, 2, "alloc") ||
        !read_request(args, &ndim, shape, &dtype, &bytes))
        return NULL;
    comm_box_t *box = ((comm_object_t *)self)->box;
    core_memory_t memory = {NULL, box, release_allocated, -1};
    hora_status_t status = hora_alloc(comm, bytes ? bytes : 1, &memory.data);
    if (status != HORA_OK)
        return core_raise(status);
    atomic_fetch_add(&box->users, 1);
    return core_array_new(&memory, dtype, ndim, shape);
}

/* The job of init(): memory of an earlier one is not given back, as there is nobody to take it. */
static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER;
static hora_comm_t    *job;
uintptr_t               core_job_number;

void core_memory_job(hora_comm_t *world) {
    pthread_mutex_lock(&job_lock);
    job = world;
    core_job_number++;
    pthread_mutex_unlock(&job_lock);
}

static void release_of_job(void *owner, void *data) {
    pthread_mutex_lock(&job_lock);
    if (job && (uintptr_t)owner == core_job_number)
        hora_free(job, data);
    pthread_mutex_unlock(&job_lock);
}

/* alloc(shape, dtype name): as Comm.alloc, for the job of init() */
static PyObject *core_alloc(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    int64_t shape[HORA_MAX_DIMS];
    int ndim;
    size_t bytes;
    hora_dtype_t dtype;
    core_memory_t memory = {NULL, (void *)core_job_number, release_of_job, -1};
    (void)module;
    if (!core_check_count(nargs, 2, "alloc") || !core_check_process())
        return NULL;
    if (!job)
        return core_raise_not_initialized();
    if (!read_request(args, &ndim, shape, &dtype, &bytes))
        return NULL;
    hora_status_t status = hora_alloc(job, bytes ? bytes : 1, &memory.data);
    return status == HORA_OK ? core_array_new(&memory, dtype, ndim, shape) : core_raise(status);
}

static void release_empty(void *owner, void *data) {
    (void)owner;
    free(data);
}

/* empty(shape, dtype name): in ordinary memory */
static PyObject *core_empty(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    int64_t shape[HORA_MAX_DIMS];
    int ndim;
    size_t bytes;
    hora_dtype_t dtype;
    core_memory_t memory = {NULL, NULL, release_empty, -1};
    (void)module;
    if (!core_check_count(nargs, 2, "empty") || !read_request(args, &ndim, shape, &dtype, &bytes))
        return NULL;
    if (posix_memalign(&memory.data, 64, bytes ? bytes : 1) != 0)
        return PyErr_NoMemory();
    return core_array_new(&memory, dtype, ndim, shape);
}

static PyObject *core_dtype_of(PyObject *module, PyObject *object) {
    core_array_t array;
    (void)module;
    if (!core_array_read(object, &array))
        return NULL;
    Py_XDECREF(array.keep);
    return PyUnicode_FromString(hora_dtype_name(array.dtype));
}

static PyObject *comm_close(PyObject *object, PyObject *unused) {
    (void)unused;
    comm_object_t *self = (comm_object_t *)object;
    if (!core_check_process())
        return NULL;
    if (self->busy)
        return PyErr_Format(PyExc_RuntimeError, "another thread is using this communicator");
    if (self->box && self->in_flight)
        return PyErr_Format(PyExc_ValueError, "%d operations are in flight on this communicator",
                            self->in_flight);
    comm_box_t *box = self->box;
    self->box = NULL;
    if (box) {
        core_interrupt_forget(box->comm); /* a signal's handler may close it that comm_enter runs */
        Py_BEGIN_ALLOW_THREADS
        box_drop(box);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

/* None, or the error that ended it. */
static PyObject *comm_check(PyObject *self, PyObject *unused) {
    (void)unused;
    hora_comm_t *comm = comm_get(self);
    if (!comm)
        return NULL;
    hora_status_t status = hora_comm_status(comm);
    if (status != HORA_OK)
        return core_raise(status);
    Py_RETURN_NONE;
}

static PyObject *comm_number(PyObject *self, void *get) {
    hora_comm_t *comm = comm_get(self);
    return comm ? PyLong_FromLong(((int (*)(const hora_comm_t *))get)(comm)) : NULL;
}

static PyObject *comm_text(PyObject *self, PyObject *number,
                           const char *(*get)(const hora_comm_t *, int)) {
    int rank;
    hora_comm_t *comm = comm_get(self);
    if (!comm || !core_get_int(number, "rank", &rank))
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
    static PyMethodDef functions[] = {
        {"alloc", FAST(core_alloc),
         "alloc(shape, dtype) -> Array in memory that the ranks of this host share: allreduces on it "
         "need no copy. Valid for ever; shared until shutdown()."},
        {"empty", FAST(core_empty), "empty(shape, dtype) -> Array in ordinary memory."},
        {"dtype_of", core_dtype_of, METH_O, "dtype_of(array): name of its element type."},
        {NULL, NULL, 0, NULL},
    };
    static PyMethodDef methods[] = {
        {"call", FAST(comm_call),
         "call(kind, input, output, dtype, counts, out_counts, op, root, tag, prescale, postscale, "
         "timeout, name, start): None when done, or the Request if start is True."},
        {"split", FAST(comm_split), "split(color, key) -> Comm or None; collective."},
        {"abort", comm_abort, METH_O, "abort(reason): every operation fails, on every rank."},
        {"alloc", FAST(comm_alloc),
         "alloc(shape, dtype) -> Array in memory that the ranks of this host share: collectives "
         "on it copy less."},
        {"check", comm_check, METH_NOARGS, "Raises the error that ended it, if one has."},
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
        {Py_tp_doc, "Comm(rank=-1, size=-1, rendezvous=None, transport=None, start_timeout=0, "
                    "timeout=0, name=None); see hora.Communicator."},
        {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "hora._core.Comm",
        .basicsize = sizeof(comm_object_t),
        .flags = Py_TPFLAGS_DEFAULT,
        .slots = slots,
    };
    comm_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return comm_type && PyModule_AddObjectRef(module, "Comm", (PyObject *)comm_type) == 0 &&
           PyModule_AddFunctions(module, functions) == 0 && comm_add_requests(module);
}
