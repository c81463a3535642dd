/*
 * The operations of a communicator on arrays as they come, blocking or with a Request. Under the
 * GIL, except while an operation runs.
 *
 * On a GPU a call is queued on the stream that the arrays' library works on, and done when it is queued:
 * what comes later on that stream, the reuse of their memory too, comes after it.
 *
 * Invariant: a Request holds its Comm and its arrays until its operation has ended. If it is
 * dropped before, they are never freed, because other ranks may still write into them;
 * communicator.py keeps that from happening.
 */
#include "_comm.h"

#include <stdlib.h>

static PyTypeObject *request_type;

/* The operations, and how their arrays must fit. n: number of ranks; row: elements of one row. */
typedef enum kind {
    ALLREDUCE,       /* in: count; out: count */
    REDUCE,          /* the same; out on the root only */
    REDUCE_SCATTER,  /* in: n * count; out: count */
    REDUCE_SCATTERV, /* in: counts in rows; out: counts[rank] rows */
    ALLGATHER,       /* in: count; out: n * count */
    ALLGATHERV,      /* in: counts[rank] rows; out: counts in rows */
    BROADCAST,       /* in: count; out: count */
    ALLTOALL,        /* in: n * count; out: n * count */
    ALLTOALLV,       /* in: counts in rows; out: out_counts in rows */
    GATHER,          /* in: count; out, on the root: n * count */
    SCATTER,         /* in, on the root: n * count; out: count */
    SEND,            /* in: count */
    RECV,            /* out: count */
    BARRIER,
    KINDS
} kind_t;

static const char *const kind_names[KINDS] = {
    "allreduce", "reduce",    "reduce_scatter", "reduce_scatterv", "allgather", "allgatherv",
    "broadcast", "alltoall",  "alltoallv",      "gather",          "scatter",   "send",
    "recv",      "barrier",
};

typedef struct call {
    kind_t              kind;
    core_array_t        in, out; /* all zero where there is none */
    bool                has_in, has_out;
    hora_dtype_t        dtype;
    size_t              count;               /* elements */
    size_t             *counts, *out_counts; /* elements; owned */
    int                 op, root, tag;
    hora_call_options_t options;
} call_t;

static void drop_call(call_t *call) {
    Py_CLEAR(call->in.keep);
    Py_CLEAR(call->out.keep);
    free(call->counts);
    free(call->out_counts);
}

/* Where the arrays are; and on a GPU, the stream that their library works on. */
static bool read_place(call_t *call) {
    const core_array_t *array = call->has_in ? &call->in : &call->out;
    if (!call->has_in && !call->has_out)
        return true;
    if (call->has_out && call->out.device != array->device) {
        PyErr_Format(PyExc_ValueError, "%s: the input is on device %d, the output on device %d (-1: in "
                     "CPU memory): they do not fit", kind_names[call->kind], array->device,
                     call->out.device);
        return false;
    }
    call->options.device = array->device;
    return array->device < 0 ||
           core_stream_of(array->api, array->device, &call->options.stream);
}

/* dtype: what the arrays really hold, of the same size; -1: what they say. */
static bool read_arrays(call_t *call, PyObject *in, PyObject *out, int dtype) {
    call->has_in = in != Py_None;
    call->has_out = out != Py_None;
    if ((call->has_in && !core_array_read(in, &call->in)) ||
        (call->has_out && !core_array_read_output(out, &call->out)))
        return false;
    call->dtype = call->has_in ? call->in.dtype : call->out.dtype;
    if (call->has_in && call->has_out && call->in.dtype != call->out.dtype) {
        PyErr_Format(PyExc_ValueError, "%s: the input is of %s, the output of %s: they do not fit",
                     kind_names[call->kind], hora_dtype_name(call->in.dtype),
                     hora_dtype_name(call->out.dtype));
        return false;
    }
    if (dtype >= 0 && hora_dtype_size((hora_dtype_t)dtype) == hora_dtype_size(call->dtype))
        call->dtype = (hora_dtype_t)dtype;
    return read_place(call);
}

/* Elements of one row; an array without dimensions is a row. */
static size_t row_elements(const core_array_t *array) {
    size_t row = 1;
    for (int i = 1; i < array->ndim; i++)
        row *= (size_t)array->shape[i];
    return row;
}

static bool misfit(const call_t *call, size_t in, size_t out) {
    PyErr_Format(PyExc_ValueError, "%s: input (%zu of %s) and output (%zu) do not fit: %zu and %zu "
                 "elements were expected", kind_names[call->kind], call->in.count,
                 hora_dtype_name(call->dtype), call->out.count, in, out);
    return false;
}

static bool expect(const call_t *call, size_t in, size_t out) {
    bool in_fits = !call->has_in || call->in.count == in;
    bool out_fits = !call->has_out || call->out.count == out;
    return (in_fits && out_fits) || misfit(call, in, out);
}

/* Reads counts in rows into counts in elements, and adds them up. */
static bool read_counts(const call_t *call, PyObject *object, size_t nranks, size_t row,
                        size_t **counts_p, size_t *total_p) {
    Py_ssize_t given = PySequence_Size(object);
    if (given < 0)
        return false;
    if ((size_t)given != nranks) {
        PyErr_Format(PyExc_ValueError, "%s: %zd counts for %zu ranks", kind_names[call->kind],
                     given, nranks);
        return false;
    }
    size_t *counts = malloc(nranks * sizeof(*counts)), total = 0;
    if (!counts) {
        PyErr_NoMemory();
        return false;
    }
    *counts_p = counts; /* freed with the call */
    for (size_t i = 0; i < nranks; i++) {
        PyObject *item = PySequence_GetItem(object, (Py_ssize_t)i);
        Py_ssize_t rows = item ? PyNumber_AsSsize_t(item, PyExc_OverflowError) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred())
            return false;
        if (rows < 0 || __builtin_mul_overflow((size_t)rows, row, &counts[i]) ||
            __builtin_add_overflow(total, counts[i], &total)) {
            PyErr_Format(PyExc_ValueError, "%s: impossible count %zd for rank %zu",
                         kind_names[call->kind], rows, i);
            return false;
        }
    }
    *total_p = total;
    return true;
}

static bool fit_blocks(call_t *call, PyObject *counts, PyObject *out_counts, size_t nranks,
                       size_t rank) {
    size_t total, out_total;
    bool gathers = call->kind == ALLGATHERV;
    size_t row = row_elements(gathers ? &call->out : &call->in);
    if (!read_counts(call, counts, nranks, row, &call->counts, &total))
        return false;
    if (gathers)
        return expect(call, call->counts[rank], total);
    if (call->kind == REDUCE_SCATTERV)
        return expect(call, total, call->counts[rank]);
    return read_counts(call, out_counts, nranks, row, &call->out_counts, &out_total) &&
           expect(call, total, out_total);
}

/* Which array there must be: all kinds have both but for these. */
static bool check_present(const call_t *call, int rank) {
    bool root = rank == call->root;
    bool in = call->kind != RECV && call->kind != BARRIER && (call->kind != SCATTER || root);
    bool out = call->kind != SEND && call->kind != BARRIER &&
               ((call->kind != REDUCE && call->kind != GATHER) || root);
    if ((!in || call->has_in) && (!out || call->has_out))
        return true;
    PyErr_Format(PyExc_ValueError, "%s: an array is missing", kind_names[call->kind]);
    return false;
}

static bool fit(call_t *call, PyObject *counts, PyObject *out_counts, hora_comm_t *comm) {
    size_t n = (size_t)hora_comm_size(comm), rank = (size_t)hora_comm_rank(comm);
    if (!check_present(call, (int)rank))
        return false;
    switch (call->kind) {
    case REDUCE_SCATTERV:
    case ALLGATHERV:
    case ALLTOALLV:
        return fit_blocks(call, counts, out_counts, n, rank);
    case REDUCE_SCATTER:
    case SCATTER:
        call->count = call->out.count;
        return expect(call, n * call->count, call->count);
    case ALLGATHER:
    case GATHER:
        call->count = call->in.count;
        return expect(call, call->count, n * call->count);
    case ALLTOALL:
        call->count = call->in.count / n;
        if (call->in.count % n == 0)
            return expect(call, call->in.count, call->in.count);
        PyErr_Format(PyExc_ValueError, "alltoall: %zu elements cannot be divided among %zu ranks",
                     call->in.count, n);
        return false;
    default:
        call->count = call->has_in ? call->in.count : call->out.count;
        return expect(call, call->count, call->count);
    }
}

/* Without the GIL. */
static hora_status_t reduce_or_scatter(hora_comm_t *comm, const call_t *c) {
    hora_op_t op = (hora_op_t)c->op;
    hora_blocks_t blocks = {c->in.data, c->counts, NULL};
    switch (c->kind) {
    case ALLREDUCE:
        return hora_allreduce(comm, c->in.data, c->out.data, c->count, c->dtype, op, &c->options);
    case REDUCE:
        return hora_reduce(comm, c->in.data, c->out.data, c->count, c->dtype, op, c->root,
                           &c->options);
    case REDUCE_SCATTER:
        return hora_reduce_scatter(comm, c->in.data, c->out.data, c->count, c->dtype, op,
                                   &c->options);
    default:
        return hora_reduce_scatterv(comm, &blocks, c->out.data, c->dtype, op, &c->options);
    }
}

/* Without the GIL. */
static hora_status_t execute(hora_comm_t *comm, const call_t *c) {
    hora_blocks_t in = {c->in.data, c->counts, NULL};
    hora_blocks_t out = {c->out.data, c->kind == ALLTOALLV ? c->out_counts : c->counts, NULL};
    const hora_call_options_t *options = &c->options;
    switch (c->kind) {
    case ALLGATHER:
        return hora_allgather(comm, c->in.data, c->out.data, c->count, c->dtype, options);
    case ALLGATHERV:
        return hora_allgatherv(comm, c->in.data, &out, c->dtype, options);
    case BROADCAST:
        return hora_broadcast(comm, c->in.data, c->out.data, c->count, c->dtype, c->root, options);
    case ALLTOALL:
        return hora_alltoall(comm, c->in.data, c->out.data, c->count, c->dtype, options);
    case ALLTOALLV:
        return hora_alltoallv(comm, &in, &out, c->dtype, options);
    case GATHER:
        return hora_gather(comm, c->in.data, c->out.data, c->count, c->dtype, c->root, options);
    case SCATTER:
        return hora_scatter(comm, c->in.data, c->out.data, c->count, c->dtype, c->root, options);
    case SEND:
        return hora_send(comm, c->in.data, c->count, c->dtype, c->root, c->tag, options);
    case RECV:
        return hora_recv(comm, c->out.data, c->count, c->dtype, c->root, c->tag, options);
    case BARRIER:
        return hora_barrier(comm, options);
    default:
        return reduce_or_scatter(comm, c);
    }
}

/* ---- Requests ------------------------------------------------------------------------------- */

typedef struct request_object {
    PyObject_HEAD
    hora_request_t *request; /* NULL: waited for */
    PyObject       *comm;    /* the Comm; owned until then */
    PyObject       *keep;    /* what must live until then */
} request_object_t;

static void request_dealloc(PyObject *object) {
    request_object_t *self = (request_object_t *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (!self->request) { /* else they leak: see above */
        Py_XDECREF(self->keep);
        Py_XDECREF(self->comm);
    }
    PyObject_Free(object);
    Py_DECREF(type);
}

static PyObject *new_request(PyObject *comm, const call_t *call, PyObject *in, PyObject *out) {
    request_object_t *self = PyObject_New(request_object_t, request_type);
    if (!self)
        return NULL;
    self->request = NULL;
    self->comm = NULL;
    self->keep = PyTuple_Pack(4, in, out, call->in.keep ? call->in.keep : Py_None,
                              call->out.keep ? call->out.keep : Py_None);
    if (!self->keep) {
        Py_DECREF(self);
        return NULL;
    }
    Py_INCREF(comm);
    self->comm = comm;
    return (PyObject *)self;
}

/* The Comm of a request that has not been waited for; NULL with an exception. */
static hora_comm_t *enter_request(request_object_t *self) {
    hora_comm_t *comm = self->request ? comm_enter(self->comm) : NULL;
    if (self->request || PyErr_Occurred())
        return comm;
    PyErr_SetString(PyExc_ValueError, "this request has been waited for");
    if (comm) /* by a signal's handler that comm_enter ran */
        comm_leave(self->comm, HORA_OK);
    return NULL;
}

static PyObject *request_test(PyObject *object, PyObject *unused) {
    (void)unused;
    request_object_t *self = (request_object_t *)object;
    if (!enter_request(self))
        return NULL;
    int done = 0;
    Py_BEGIN_ALLOW_THREADS
    hora_request_test(self->request, &done);
    Py_END_ALLOW_THREADS
    PyObject *result = comm_leave(self->comm, HORA_OK); /* its error is for wait() */
    if (!result)
        return NULL;
    Py_DECREF(result);
    return PyBool_FromLong(done);
}

static PyObject *request_wait(PyObject *object, PyObject *unused) {
    (void)unused;
    request_object_t *self = (request_object_t *)object;
    if (!enter_request(self))
        return NULL;
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = hora_request_wait(self->request);
    Py_END_ALLOW_THREADS
    self->request = NULL;
    ((comm_object_t *)self->comm)->in_flight--;
    PyObject *result = comm_leave(self->comm, status);
    Py_CLEAR(self->keep);
    return result;
}

/* ---- The one way in ------------------------------------------------------------------------- */

/* The arguments of Comm.call. */
enum {
    KIND, INPUT, OUTPUT, DTYPE, COUNTS, OUT_COUNTS, OP, ROOT, TAG, PRESCALE, POSTSCALE, TIMEOUT,
    NAME, START, ARGUMENTS
};

static bool read_call(PyObject *const *args, call_t *call) {
    int kind, dtype;
    if (!core_get_int(args[KIND], "kind", &kind) || !core_get_int(args[DTYPE], "dtype", &dtype) ||
        !core_get_int(args[OP], "op", &call->op) ||
        !core_get_int(args[ROOT], "root, dest or source", &call->root) ||
        !core_get_int(args[TAG], "tag", &call->tag) ||
        !core_get_double(args[PRESCALE], "prescale", &call->options.prescale) ||
        !core_get_double(args[POSTSCALE], "postscale", &call->options.postscale) ||
        !core_get_double(args[TIMEOUT], "timeout", &call->options.timeout) ||
        !core_get_string(args[NAME], &call->options.name))
        return false;
    if (kind < 0 || kind >= KINDS) {
        PyErr_Format(PyExc_ValueError, "there is no operation %d", kind);
        return false;
    }
    call->kind = (kind_t)kind;
    return read_arrays(call, args[INPUT], args[OUTPUT], dtype);
}

/* An operation that hora does not have for this type is the caller's mistake, as in the engine. */
static hora_status_t judge(hora_status_t status) {
    return status == HORA_ERR_UNSUPPORTED ? HORA_ERR_INVALID_ARGUMENT : status;
}

static PyObject *block(PyObject *self, const call_t *call) {
    hora_comm_t *comm = comm_enter(self);
    if (!comm)
        return NULL;
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = execute(comm, call);
    Py_END_ALLOW_THREADS
    return comm_leave(self, judge(status));
}

static PyObject *start(PyObject *self, call_t *call, PyObject *const *args) {
    PyObject *object = new_request(self, call, args[INPUT], args[OUTPUT]);
    if (!object)
        return NULL;
    hora_comm_t *comm = comm_enter(self);
    if (!comm) {
        Py_DECREF(object);
        return NULL;
    }
    hora_request_t *request = NULL;
    hora_status_t status;
    call->options.request_p = &request;
    Py_BEGIN_ALLOW_THREADS
    status = execute(comm, call);
    Py_END_ALLOW_THREADS
    if (status == HORA_OK) {
        ((request_object_t *)object)->request = request;
        ((comm_object_t *)self)->in_flight++;
    }
    PyObject *result = comm_leave(self, judge(status));
    if (!result) {
        Py_DECREF(object);
        return NULL;
    }
    Py_DECREF(result);
    return object;
}

PyObject *comm_call(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    call_t call = {.options = HORA_CALL_OPTIONS_INIT};
    PyObject *result = NULL;
    hora_comm_t *comm = comm_get(self);
    if (!comm || !core_check_count(nargs, ARGUMENTS, "call"))
        return NULL;
    if (read_call(args, &call) && (comm = comm_get(self)) && /* Python code of the arrays has run */
        fit(&call, args[COUNTS], args[OUT_COUNTS], comm))
        result = args[START] == Py_True ? start(self, &call, args) : block(self, &call);
    drop_call(&call);
    return result;
}

bool comm_add_requests(PyObject *module) {
    static PyMethodDef methods[] = {
        {"test", request_test, METH_NOARGS, "Moves it on; True when it has ended, well or not."},
        {"wait", request_wait, METH_NOARGS, "Blocks until it has ended; raises if it failed."},
        {NULL, NULL, 0, NULL},
    };
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, (void *)request_dealloc},
        {Py_tp_methods, methods},
        {Py_tp_doc, "An operation in flight on a communicator."},
        {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "hora._core.Request",
        .basicsize = sizeof(request_object_t),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .slots = slots,
    };
    PyObject *names = PyTuple_New(KINDS);
    for (Py_ssize_t i = 0; names && i < KINDS; i++) {
        PyObject *name = PyUnicode_FromString(kind_names[i]);
        if (!name || PyTuple_SetItem(names, i, name) < 0)
            Py_CLEAR(names);
    }
    request_type = (PyTypeObject *)PyType_FromSpec(&spec);
    bool added = names && request_type &&
                 PyModule_AddObjectRef(module, "CALLS", names) == 0 &&
                 PyModule_AddObjectRef(module, "Request", (PyObject *)request_type) == 0;
    Py_XDECREF(names);
    return added;
}
