/*
 * Handles: operations on the engine, and the Python objects that must live until they are done.
 *
 * Runs under the GIL except while a thread blocks in hora_handle_wait. Invariant: the references in
 * `keep` are dropped only after hora_handle_poll has said done, because the engine reads and writes
 * the arrays until then. A handle that is dropped early moves to the list of orphans.
 *
 * On a GPU, done means that the work is queued. So before the references are dropped, the stream on
 * which the task was enqueued is made to wait for it: a caching allocator (torch's) gives memory out
 * again in the order of that stream, on which the arrays may be used. wait() makes the stream that is
 * current then wait as well, where that is another one. Where it is not known when the GPU is through with
 * the arrays, after a failure, the references are not dropped at all: that leaks them, which is safe.
 */
#include "_core.h"

#include <stdlib.h>
#include <string.h>

#define KEEP 4

/* Where the arrays of an operation are that are not in host memory. */
typedef struct gpu {
    int                      device; /* -1: all are */
    const DLPackExchangeAPI *api;    /* of their library */
    void                    *stream; /* its current one at the enqueue */
} gpu_t;

typedef struct handle_object {
    PyObject_HEAD
    hora_handle_t           *handle; /* NULL once released */
    PyObject                *keep[KEEP];
    const DLPackExchangeAPI *api;    /* of the first array that came in */
    gpu_t                    gpu;
    int                      size;   /* number of ranks that take part */
    size_t                   ntasks;
    hora_dtype_t             dtype;  /* of task 0 */
    hora_dtype_t            *dtypes; /* [ntasks]; &dtype when there is one task */
} handle_object_t;

typedef struct orphan {
    struct orphan *next;
    hora_handle_t *handle;
    gpu_t          gpu;
    PyObject      *keep[KEEP];
} orphan_t;

static PyTypeObject *handle_type;
static orphan_t     *orphans;

/* The handle is done. False: its references must not be dropped. */
static bool release_handle(hora_handle_t *handle, const gpu_t *gpu) {
    bool safe = gpu->device < 0 ||
                hora_handle_stream_wait(handle, gpu->device, gpu->stream) == HORA_OK;
    hora_handle_release(handle);
    return safe;
}

/* Dropping a reference may run any Python code, which may sweep again: so the list is left alone by
 * then. */
void core_handle_sweep(void) {
    orphan_t *done = NULL;
    for (orphan_t **link = &orphans; *link;) {
        orphan_t *orphan = *link;
        if (!hora_handle_poll(orphan->handle)) {
            link = &orphan->next;
            continue;
        }
        *link = orphan->next;
        orphan->next = done;
        done = orphan;
    }
    while (done) {
        orphan_t *orphan = done;
        done = orphan->next;
        bool safe = release_handle(orphan->handle, &orphan->gpu);
        for (int i = 0; safe && i < KEEP; i++)
            Py_XDECREF(orphan->keep[i]);
        free(orphan);
    }
}

static void drop_references(handle_object_t *self) {
    for (int i = 0; i < KEEP; i++)
        Py_CLEAR(self->keep[i]);
}

/* Without memory for the orphan, its references leak, which is safe. */
static void make_orphan(handle_object_t *self) {
    orphan_t *orphan = malloc(sizeof(*orphan));
    if (!orphan)
        return;
    *orphan = (orphan_t){.next = orphans, .handle = self->handle, .gpu = self->gpu};
    for (int i = 0; i < KEEP; i++)
        orphan->keep[i] = self->keep[i];
    orphans = orphan;
}

static void handle_dealloc(PyObject *object) {
    handle_object_t *self = (handle_object_t *)object;
    PyTypeObject *type = Py_TYPE(object);
    if (self->handle && !core_forked && !hora_handle_poll(self->handle)) {
        make_orphan(self);
    } else {
        if (!self->handle || core_forked || release_handle(self->handle, &self->gpu))
            drop_references(self);
    }
    if (self->dtypes != &self->dtype)
        free(self->dtypes);
    PyObject_Free(object);
    Py_DECREF(type);
}

static handle_object_t *new_handle(size_t ntasks) {
    handle_object_t *self = PyObject_New(handle_object_t, handle_type);
    if (!self)
        return NULL;
    self->handle = NULL;
    self->api = NULL;
    self->gpu = (gpu_t){-1, NULL, NULL};
    self->size = 0;
    self->ntasks = ntasks;
    self->dtype = HORA_FLOAT32;
    self->dtypes = &self->dtype;
    for (int i = 0; i < KEEP; i++)
        self->keep[i] = NULL;
    if (ntasks > 1 && !(self->dtypes = malloc(ntasks * sizeof(*self->dtypes)))) {
        self->dtypes = &self->dtype;
        Py_DECREF(self);
        PyErr_NoMemory();
        return NULL;
    }
    return self;
}

/* ---- Enqueue -------------------------------------------------------------------------------- */

/* The arguments of _core.enqueue; the last one may be left out. */
enum { KIND, NAME, TENSOR, OUTPUT, OP, PRESCALE, POSTSCALE, ROOT, SPLITS, FLAGS, SET, ARGUMENTS };

/* What the tasks of one call have in common. */
typedef struct call {
    hora_task_t task;
    int         set; /* id */
    unsigned    flags;
} call_t;

static bool keep_also(handle_object_t *self, PyObject *object) {
    if (!self->keep[3] && !(self->keep[3] = PyList_New(0)))
        return false;
    return PyList_Append(self->keep[3], object) == 0;
}

static bool same_extent(const core_array_t *in, const core_array_t *out) {
    if (in->dtype != out->dtype || in->ndim != out->ndim)
        return false;
    for (int i = 0; i < in->ndim; i++)
        if (in->shape[i] != out->shape[i])
            return false;
    return true;
}

/* Where the array is. A group's arrays on a GPU are on one, and of one library: so there is one stream
 * to wait for and one to make wait. */
static bool read_place(gpu_t *gpu, const core_array_t *array, hora_task_t *task_p) {
    task_p->device = array->device;
    if (array->device < 0)
        return true;
    if (gpu->device < 0) {
        if (!core_stream_of(array->api, array->device, &gpu->stream))
            return false;
        gpu->device = array->device;
        gpu->api = array->api;
    }
    task_p->stream = gpu->stream;
    if (array->device == gpu->device && array->api == gpu->api)
        return true;
    PyErr_Format(PyExc_ValueError, "the arrays of one operation must be of one library and on one GPU, "
                 "not on GPU %d and GPU %d", gpu->device, array->device);
    return false;
}

static bool read_pair(handle_object_t *self, PyObject *tensor, PyObject *output,
                      hora_task_t *task_p) {
    core_array_t in, out;
    if (!core_array_read(tensor, &in))
        return false;
    if (!self->api)
        self->api = in.api;
    task_p->dtype = in.dtype;
    task_p->ndim = in.ndim;
    task_p->shape = in.shape;
    task_p->in = in.data;
    if (in.keep) {
        bool kept = keep_also(self, in.keep);
        Py_DECREF(in.keep);
        if (!kept)
            return false;
    }
    if (!read_place(&self->gpu, &in, task_p))
        return false;
    if (output == tensor && !in.read_only) {
        task_p->out = in.data;
        return true;
    }
    if (output == Py_None)
        return true;
    if (!core_array_read_output(output, &out))
        return false;
    task_p->out = out.data;
    if (out.keep) {
        bool kept = keep_also(self, out.keep);
        Py_DECREF(out.keep);
        if (!kept)
            return false;
    }
    if (in.device != out.device) {
        PyErr_SetString(PyExc_ValueError, "input and output must be on one device");
        return false;
    }
    if (!same_extent(&in, &out)) {
        PyErr_SetString(PyExc_ValueError, "input and output must have one type and shape");
        return false;
    }
    return true;
}

/* Join has no input and gives one number. */
static bool read_number_output(handle_object_t *self, PyObject *output, hora_task_t *task_p) {
    core_array_t out;
    if (!core_array_read_output(output, &out))
        return false;
    task_p->out = out.data;
    bool kept = !out.keep || keep_also(self, out.keep);
    Py_XDECREF(out.keep);
    if (!kept)
        return false;
    if (out.dtype == HORA_INT32 && out.count == 1 && out.device < 0)
        return true;
    PyErr_SetString(PyExc_ValueError, "without an input, the output is one int32 in CPU memory");
    return false;
}

static bool read_splits(PyObject *object, hora_task_t *task_p, int64_t **splits_p) {
    Py_ssize_t count = PySequence_Size(object);
    if (count < 0)
        return false;
    int64_t *splits = malloc(((size_t)count + 1) * sizeof(*splits));
    if (!splits) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(object, i);
        splits[i] = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
        if (PyErr_Occurred()) {
            free(splits);
            return false;
        }
    }
    task_p->nsplits = (int)count;
    task_p->splits = splits;
    *splits_p = splits;
    return true;
}

static PyObject *start(handle_object_t *self, const hora_task_t *tasks, const call_t *call) {
    hora_handle_t *handle;
    const core_set_t *set = core_set_of_member(call->set); /* reading arrays may have run Python */
    if (!set) {
        Py_DECREF(self);
        return NULL;
    }
    hora_status_t status =
        hora_engine_enqueue(set->engine, tasks, self->ntasks, call->flags, &handle);
    if (status != HORA_OK) {
        Py_DECREF(self);
        return core_raise(status == HORA_ERR_UNSUPPORTED ? HORA_ERR_INVALID_ARGUMENT : status);
    }
    self->handle = handle;
    self->size = set->size;
    return (PyObject *)self;
}

static PyObject *enqueue_one(call_t *call, PyObject *const *args) {
    hora_task_t *task = &call->task;
    handle_object_t *self = new_handle(1);
    if (!self)
        return NULL;
    int64_t *splits = NULL;
    if (!core_get_string(args[NAME], &task->name))
        goto err_handle;
    if (args[TENSOR] != Py_None && !read_pair(self, args[TENSOR], args[OUTPUT], task))
        goto err_handle;
    if (args[TENSOR] == Py_None && args[OUTPUT] != Py_None &&
        !read_number_output(self, args[OUTPUT], task))
        goto err_handle;
    if (args[SPLITS] != Py_None && !read_splits(args[SPLITS], task, &splits))
        goto err_handle;
    self->dtype = task->dtype;
    for (int i = 0; i < 2; i++) {
        Py_INCREF(args[TENSOR + i]);
        self->keep[i] = args[TENSOR + i];
    }
    PyObject *result = start(self, task, call);
    free(splits);
    return result;
err_handle:
    Py_DECREF(self);
    return NULL;
}

/* names, tensors and outputs are tuples of one length; outputs may be None. */
static bool read_group(handle_object_t *self, const hora_task_t *common, hora_task_t *tasks) {
    PyObject *names = self->keep[2], *tensors = self->keep[0], *outputs = self->keep[1];
    Py_ssize_t count = (Py_ssize_t)self->ntasks;
    if (PyTuple_Size(names) != count || (outputs != Py_None && PyTuple_Size(outputs) != count)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "names, tensors and outputs differ in number");
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *output = outputs == Py_None ? Py_None : PyTuple_GetItem(outputs, i);
        tasks[i] = *common;
        if (!core_get_string(PyTuple_GetItem(names, i), &tasks[i].name) ||
            !read_pair(self, PyTuple_GetItem(tensors, i), output, &tasks[i]))
            return false;
        self->dtypes[i] = tasks[i].dtype;
    }
    return true;
}

static PyObject *enqueue_group(const call_t *call, PyObject *const *args) {
    Py_ssize_t count = PyTuple_Size(args[TENSOR]);
    if (count <= 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a group needs at least one tensor");
        return NULL;
    }
    handle_object_t *self = new_handle((size_t)count);
    if (!self)
        return NULL;
    static const int kept[3] = {TENSOR, OUTPUT, NAME};
    for (int i = 0; i < 3; i++) {
        Py_INCREF(args[kept[i]]);
        self->keep[i] = args[kept[i]];
    }
    hora_task_t *tasks = malloc((size_t)count * sizeof(*tasks));
    PyObject *result = NULL;
    if (!tasks) {
        PyErr_NoMemory();
        Py_DECREF(self);
    } else if (!read_group(self, &call->task, tasks)) {
        Py_DECREF(self);
    } else {
        result = start(self, tasks, call);
    }
    free(tasks);
    return result;
}

static bool read_call(PyObject *const *args, Py_ssize_t nargs, call_t *call) {
    hora_task_t *task = &call->task;
    int kind, op, flags;
    if (nargs != ARGUMENTS - 1 && !core_check_count(nargs, ARGUMENTS, "enqueue"))
        return false;
    if (nargs == ARGUMENTS && !core_get_int(args[SET], "process_set_id", &call->set))
        return false;
    if (!core_set_of_member(call->set) || !core_get_int(args[KIND], "kind", &kind) ||
        !core_get_int(args[OP], "op", &op) ||
        !core_get_double(args[PRESCALE], "prescale_factor", &task->prescale) ||
        !core_get_double(args[POSTSCALE], "postscale_factor", &task->postscale) ||
        !core_get_int(args[ROOT], "root_rank", &task->root) ||
        !core_get_int(args[FLAGS], "flags", &flags))
        return false;
    if (call->set && kind == HORA_TASK_BROADCAST && !core_set_translate(call->set, &task->root))
        return false;
    task->kind = (hora_task_kind_t)kind;
    task->op = (hora_op_t)op;
    call->flags = (unsigned)flags;
    return true;
}

PyObject *core_start(const hora_task_t *task, unsigned flags, const core_array_t *array,
                     PyObject *tensor) {
    call_t call = {.flags = flags};
    if (orphans)
        core_handle_sweep();
    handle_object_t *self = new_handle(1);
    if (!self)
        return NULL;
    self->api = array->api;
    self->dtype = array->dtype;
    for (int i = 0; i < 2; i++) {
        Py_INCREF(tensor);
        self->keep[i] = tensor;
    }
    return start(self, task, &call);
}

PyObject *core_enqueue(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    call_t call = {.task = HORA_TASK_INIT};
    if (!core_check_process() || !read_call(args, nargs, &call))
        return NULL;
    if (orphans)
        core_handle_sweep();
    if (PyTuple_Check(args[TENSOR]))
        return enqueue_group(&call, args);
    return enqueue_one(&call, args);
}

/* ---- Methods -------------------------------------------------------------------------------- */

static PyObject *handle_poll(PyObject *object, PyObject *unused) {
    (void)unused;
    if (!core_check_process())
        return NULL;
    return PyBool_FromLong(hora_handle_poll(((handle_object_t *)object)->handle));
}

/* Before the references are dropped, if that is safe: see the head. False with an exception; the
 * operation's own, if it has failed, stays. */
static bool order_streams(const handle_object_t *self, bool good, bool *safe_p) {
    const gpu_t *gpu = &self->gpu;
    void *stream;
    if (gpu->device < 0)
        return good;
    hora_status_t status = hora_handle_stream_wait(self->handle, gpu->device, gpu->stream);
    *safe_p = status == HORA_OK;
    if (!good || !core_stream_of(gpu->api, gpu->device, &stream))
        return false;
    if (status == HORA_OK && stream != gpu->stream)
        status = hora_handle_stream_wait(self->handle, gpu->device, stream);
    if (status != HORA_OK)
        core_raise(status);
    return status == HORA_OK;
}

static PyObject *handle_wait(PyObject *object, PyObject *unused) {
    (void)unused;
    handle_object_t *self = (handle_object_t *)object;
    hora_status_t status;
    if (!core_check_process())
        return NULL;
    bool blocks = !hora_handle_poll(self->handle);
    if (blocks) {
        if (!core_interrupt_enter(core_world))
            return NULL;
        Py_BEGIN_ALLOW_THREADS
        status = hora_handle_wait(self->handle);
        Py_END_ALLOW_THREADS
    } else {
        status = hora_handle_wait(self->handle);
    }
    PyObject *result = core_finish(status, blocks);
    bool safe = true;
    if (!order_streams(self, result != NULL, &safe))
        Py_CLEAR(result);
    if (!safe)
        memset(self->keep, 0, sizeof(self->keep));
    PyObject *output = self->keep[1]; /* what came in as output */
    self->keep[1] = NULL;
    drop_references(self);
    if (!result || !output) {
        Py_XDECREF(output);
        return result;
    }
    Py_DECREF(result);
    return output;
}

PyObject *core_wait(PyObject *handle) {
    return handle_wait(handle, NULL);
}

static void release_output(void *owner, void *data) {
    (void)data;
    hora_output_free(owner);
    free(owner);
}

/* Takes result `index` out of the engine. */
static hora_output_t *take_output(handle_object_t *self, PyObject *number, size_t *index_p) {
    int index;
    if (!core_check_process() || !core_get_int(number, "index", &index))
        return NULL;
    if (index < 0 || (size_t)index >= self->ntasks) {
        PyErr_SetString(PyExc_IndexError, "no such task in this handle");
        return NULL;
    }
    hora_output_t *output = malloc(sizeof(*output));
    if (!output) {
        PyErr_NoMemory();
        return NULL;
    }
    *output = (hora_output_t)HORA_OUTPUT_INIT;
    hora_status_t status = hora_handle_output(self->handle, (size_t)index, output);
    if (status != HORA_OK) {
        free(output);
        core_raise(status);
        return NULL;
    }
    *index_p = (size_t)index;
    return output;
}

static PyObject *read_received_splits(const handle_object_t *self, const hora_output_t *output) {
    if (!output->received_splits)
        Py_RETURN_NONE;
    PyObject *list = PyList_New(self->size);
    for (int i = 0; list && i < self->size; i++) {
        PyObject *rows = PyLong_FromLongLong(output->received_splits[i]);
        if (!rows || PyList_SetItem(list, i, rows) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* Hands the result over as (array, received_splits or None). exported: as an object of the library
 * that the input came from, where it has DLPack's C functions. */
static PyObject *get_output(handle_object_t *self, PyObject *number, bool exported) {
    size_t index;
    hora_output_t *output = take_output(self, number, &index);
    if (!output)
        return NULL;
    PyObject *splits = read_received_splits(self, output);
    core_memory_t memory = {output->data, output, release_output, output->device};
    int ndim = output->ndim;
    PyObject *array =
        exported && self->api
            ? core_array_export(&memory, self->dtypes[index], ndim, output->shape, self->api)
            : core_array_new(&memory, self->dtypes[index], ndim, output->shape);
    if (!array || !splits) {
        Py_XDECREF(array);
        Py_XDECREF(splits);
        return NULL;
    }
    return Py_BuildValue("(NN)", array, splits);
}

static PyObject *handle_output(PyObject *object, PyObject *number) {
    return get_output((handle_object_t *)object, number, false);
}

static PyObject *handle_tensor(PyObject *object, PyObject *number) {
    return get_output((handle_object_t *)object, number, true);
}

bool core_handle_add_type(PyObject *module) {
    static PyMethodDef methods[] = {
        {"poll", handle_poll, METH_NOARGS, "True when the operation is done, well or not."},
        {"wait", handle_wait, METH_NOARGS,
         "Blocks until done; raises if the operation failed. Returns the output, or the tuple of "
         "outputs, that was passed to enqueue; from the second time on, None. On a GPU, done means "
         "queued: the current stream waits for the results."},
        {"output", handle_output, METH_O,
         "output(i): (Array, received splits or None) of task i, once, after wait()."},
        {"tensor", handle_tensor, METH_O,
         "As output(i), with an array of the library that the input came from."},
        {NULL, NULL, 0, NULL},
    };
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, (void *)handle_dealloc},
        {Py_tp_methods, methods},
        {Py_tp_doc, "An operation on the engine, or a group of them."},
        {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "hora._core.Handle",
        .basicsize = sizeof(handle_object_t),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .slots = slots,
    };
    handle_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return handle_type && PyModule_AddObjectRef(module, "Handle", (PyObject *)handle_type) == 0;
}
