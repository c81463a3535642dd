/*
 * hora._core: the C ABI for Python, on the limited API (one file for all Pythons from 3.10 on),
 * with no link to libtorch. One job per process at a time, with an engine for each of its process
 * sets; the Python modules are built on it.
 *
 * Everything runs under the GIL except the calls that block: joining and leaving the job, waiting,
 * and the communicator's collectives.
 */
#include "_core.h"

#include <pthread.h>
#include <string.h>
#include <time.h>

#define HOLD_POLLS 1000 /* of a millisecond each: how long end() waits before it aborts */

hora_engine_t *core_engine;
hora_comm_t   *core_world;
bool           core_forked;

static PyObject             *internal_error;
static hora_engine_options_t engine_options = HORA_ENGINE_OPTIONS_INIT;

/* ---- Errors and arguments ------------------------------------------------------------------- */

PyObject *core_text(const char *text) {
    if (!text)
        Py_RETURN_NONE;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

PyObject *core_raise(hora_status_t status) {
    return core_raise_text(status, hora_last_error());
}

PyObject *core_raise_text(hora_status_t status, const char *text) {
    bool callers_fault = status == HORA_ERR_INVALID_ARGUMENT || status == HORA_ERR_DUPLICATE_NAME;
    PyObject *type = callers_fault ? PyExc_ValueError : internal_error;
    PyObject *message = core_text(*text ? text : hora_status_message(status));
    PyObject *error = message ? PyObject_CallFunctionObjArgs(type, message, NULL) : NULL;
    PyObject *value = error ? PyLong_FromLong(status) : NULL;
    if (value && PyObject_SetAttrString(error, "status", value) == 0)
        PyErr_SetObject(type, error);
    Py_XDECREF(value);
    Py_XDECREF(error);
    Py_XDECREF(message);
    return NULL;
}

PyObject *core_raise_not_initialized(void) {
    PyErr_SetString(PyExc_ValueError, "hora has not been initialized; use hvd.init().");
    return NULL;
}

static void mark_forked(void) {
    core_forked = true;
}

bool core_check_process(void) {
    if (__builtin_expect(!core_forked, 1))
        return true;
    PyErr_SetString(internal_error, "hora cannot be used in the child of a fork(); start such a "
                                    "process with the 'spawn' method instead");
    return false;
}

bool core_check_count(Py_ssize_t given, Py_ssize_t wanted, const char *function) {
    if (given == wanted)
        return true;
    PyErr_Format(PyExc_TypeError, "%s() takes %zd arguments, not %zd", function, wanted, given);
    return false;
}

/* Python's own text does not say which argument it was. */
static bool refuse_number(PyObject *object, const char *argument, const char *wanted) {
    if (PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be %s, not %R", argument, wanted,
                     (PyObject *)Py_TYPE(object));
    }
    return false;
}

bool core_get_int(PyObject *object, const char *argument, int *value_p) {
    long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred())
        return refuse_number(object, argument, "an integer");
    if (value != (int)value) {
        PyErr_Format(PyExc_ValueError, "%s is out of range: %ld", argument, value);
        return false;
    }
    *value_p = (int)value;
    return true;
}

bool core_get_double(PyObject *object, const char *argument, double *value_p) {
    double value = PyFloat_AsDouble(object);
    if (value == -1.0 && PyErr_Occurred())
        return refuse_number(object, argument, "a number");
    *value_p = value;
    return true;
}

bool core_get_string(PyObject *object, const char **value_p) {
    Py_ssize_t length;
    const char *text = object != Py_None ? PyUnicode_AsUTF8AndSize(object, &length) : NULL;
    *value_p = text;
    if (object == Py_None)
        return true;
    if (text && strlen(text) != (size_t)length) {
        PyErr_Format(PyExc_ValueError, "a text with a null character: %R", object);
        return false;
    }
    return text != NULL;
}

bool core_get_dtype(const char *name, hora_dtype_t *dtype_p) {
    for (int dtype = 0; name && dtype < HORA_DTYPE_COUNT; dtype++) {
        if (strcmp(name, hora_dtype_name((hora_dtype_t)dtype)) == 0) {
            *dtype_p = (hora_dtype_t)dtype;
            return true;
        }
    }
    PyErr_Format(PyExc_ValueError, "hora has no element type '%s'", name ? name : "");
    return false;
}

bool core_get_comm_options(PyObject *const *args, hora_comm_options_t *options_p) {
    return core_get_int(args[0], "rank", &options_p->rank) &&
           core_get_int(args[1], "nranks", &options_p->nranks) &&
           core_get_string(args[2], &options_p->rendezvous) &&
           core_get_string(args[3], &options_p->transport) &&
           core_get_double(args[4], "start_timeout", &options_p->start_timeout) &&
           core_get_double(args[5], "timeout", &options_p->timeout);
}

/* ---- The job of the process ----------------------------------------------------------------- */

/* Without the GIL. Takes the communicator over: on failure it is freed. */
static hora_status_t start(hora_comm_t *world, hora_engine_t **engine_p) {
    hora_status_t status = hora_engine_create(world, &engine_options, engine_p);
    if (status != HORA_OK)
        goto err_world;
    status = core_sets_open(world, &engine_options);
    if (status != HORA_OK)
        goto err_engine;
    return HORA_OK;
err_engine:
    hora_engine_free(*engine_p);
err_world:
    hora_comm_free(world);
    return status;
}

static PyObject *begin(hora_comm_t *world, hora_engine_t *engine) {
    if (!core_sets_fill(world, engine)) {
        core_sets_close();
        hora_engine_free(engine);
        hora_comm_free(world);
        return NULL;
    }
    core_world = world;
    core_engine = engine;
    core_memory_job(world);
    Py_RETURN_NONE;
}

static core_hold_t *holds;

void core_hold_world(core_hold_t *hold) {
    *hold = (core_hold_t){core_world, holds, false};
    holds = hold;
}

void core_let_go(core_hold_t *hold) {
    core_hold_t **at = &holds;
    while (*at != hold)
        at = &(*at)->next;
    *at = hold->next;
}

static bool is_held(const hora_comm_t *world, bool collective) {
    const core_hold_t *hold = holds;
    while (hold && (hold->world != world || (collective && !hold->collective)))
        hold = hold->next;
    return hold != NULL;
}

/* A collective call of another thread has a moment to end well, and then gets an error. */
static void wait_for_holds(hora_comm_t *world) {
    for (int i = 0; is_held(world, false); i++) {
        bool aborts = i == HOLD_POLLS && is_held(world, true);
        Py_BEGIN_ALLOW_THREADS
        if (aborts)
            hora_comm_abort(world, "hora has been shut down");
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        Py_END_ALLOW_THREADS
    }
}

/* Leaves the job. Other threads see at once that there is none. */
static hora_status_t end(void) {
    hora_engine_t *engine = core_engine;
    hora_comm_t *world = core_world;
    hora_status_t status, freed;
    core_engine = NULL;
    core_world = NULL;
    core_memory_job(NULL);
    Py_BEGIN_ALLOW_THREADS
    status = hora_engine_free(engine);
    Py_END_ALLOW_THREADS
    core_sets_close();
    core_handle_sweep();
    wait_for_holds(world);
    core_interrupt_forget(world);
    Py_BEGIN_ALLOW_THREADS
    freed = hora_comm_free(world);
    Py_END_ALLOW_THREADS
    return status == HORA_OK ? freed : status;
}

static void free_part(hora_comm_t *part) {
    Py_BEGIN_ALLOW_THREADS
    hora_comm_free(part);
    Py_END_ALLOW_THREADS
}

/* Set by another thread than the one that joins. */
static volatile int cancelled;

static PyObject *core_cancel_init(PyObject *module, PyObject *flag) {
    (void)module;
    int value = PyObject_IsTrue(flag);
    if (value < 0)
        return NULL;
    __atomic_store_n(&cancelled, value, __ATOMIC_RELAXED);
    Py_RETURN_NONE;
}

/* init(rank, nranks, rendezvous, transport, start_timeout, timeout, fusion_threshold) */
static PyObject *core_init(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    static bool starting;
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    if (!core_check_count(nargs, CORE_COMM_OPTIONS + 1, "init") || !core_check_process() ||
        !core_get_comm_options(args, &options))
        return NULL;
    int64_t fusion_threshold = PyLong_AsLongLong(args[CORE_COMM_OPTIONS]);
    if (PyErr_Occurred())
        return NULL;
    if (core_world || starting)
        return PyErr_Format(PyExc_ValueError, "hora has been initialized already");
    hora_status_t status;
    hora_comm_t *world = NULL;
    hora_engine_t *engine = NULL;
    engine_options.fusion_threshold = fusion_threshold;
    options.cancel = &cancelled;
    starting = true;
    Py_BEGIN_ALLOW_THREADS
    status = hora_comm_create(&options, &world);
    if (status == HORA_OK)
        status = start(world, &engine);
    Py_END_ALLOW_THREADS
    starting = false;
    return status == HORA_OK ? begin(world, engine) : core_raise(status);
}

/* narrow(color, key): ranks of one color go on as a job of their own, ordered by key. A negative
 * color leaves. Right after init; collective. */
static PyObject *core_narrow(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    int color, key;
    if (!core_check_count(nargs, 2, "narrow") || !core_get_int(args[0], "color", &color) ||
        !core_get_int(args[1], "key", &key) || !core_check_process())
        return NULL;
    if (!core_world)
        return core_raise_not_initialized();
    hora_comm_t *part = NULL;
    hora_engine_t *engine = NULL;
    hora_status_t status, ended;
    core_hold_t hold;
    core_hold_world(&hold);
    hold.collective = true;
    Py_BEGIN_ALLOW_THREADS
    status = hora_comm_split(hold.world, color, key, &part);
    Py_END_ALLOW_THREADS
    bool left = core_world != hold.world; /* by another thread, which waits for this one */
    if (left)
        free_part(part);
    core_let_go(&hold);
    if (status != HORA_OK)
        return core_raise(status);
    if (left)
        return core_raise_not_initialized();
    ended = end();
    if (ended != HORA_OK) {
        free_part(part);
        return core_raise(ended);
    }
    if (!part)
        Py_RETURN_NONE;
    Py_BEGIN_ALLOW_THREADS
    status = start(part, &engine);
    Py_END_ALLOW_THREADS
    return status == HORA_OK ? begin(part, engine) : core_raise(status);
}

static PyObject *core_shutdown(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    if (core_forked || !core_world)
        Py_RETURN_NONE;
    hora_status_t status = end();
    if (status != HORA_OK)
        return core_raise(status);
    Py_RETURN_NONE;
}

/* The reason may be any text, also what UTF-8 cannot say: file names have lone surrogates. */
static PyObject *core_abort(PyObject *module, PyObject *reason) {
    (void)module;
    if (!core_check_process())
        return NULL;
    if (!core_world)
        return core_raise_not_initialized();
    PyObject *bytes = PyUnicode_AsEncodedString(reason, "utf-8", "backslashreplace");
    const char *text = bytes ? PyBytes_AsString(bytes) : NULL;
    if (!text) {
        Py_XDECREF(bytes);
        return NULL;
    }
    hora_status_t status;
    core_hold_t hold;
    core_hold_world(&hold);
    Py_BEGIN_ALLOW_THREADS
    status = hora_comm_abort(hold.world, text);
    Py_END_ALLOW_THREADS
    core_let_go(&hold);
    Py_DECREF(bytes);
    if (status != HORA_OK)
        return core_raise(status);
    Py_RETURN_NONE;
}

static PyObject *core_is_initialized(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyBool_FromLong(core_world != NULL && !core_forked);
}

static PyObject *world_number(int (*get)(const hora_comm_t *comm)) {
    return core_world ? PyLong_FromLong(get(core_world)) : core_raise_not_initialized();
}

static PyObject *core_rank(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return world_number(hora_comm_rank);
}

static PyObject *core_world_size(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return world_number(hora_comm_size);
}

static PyObject *core_local_rank(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return world_number(hora_comm_local_rank);
}

static PyObject *core_local_size(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return world_number(hora_comm_local_size);
}

static PyObject *core_cross_rank(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return world_number(hora_comm_cross_rank);
}

static PyObject *core_cross_size(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return world_number(hora_comm_cross_size);
}

static PyObject *member_text(PyObject *number, const char *(*get)(const hora_comm_t *, int)) {
    int rank;
    if (!core_get_int(number, "rank", &rank))
        return NULL;
    if (!core_world)
        return core_raise_not_initialized();
    const char *text = get(core_world, rank);
    if (!text)
        return PyErr_Format(PyExc_ValueError, "there is no rank %d", rank);
    return core_text(text);
}

static PyObject *core_host(PyObject *module, PyObject *rank) {
    (void)module;
    return member_text(rank, hora_comm_host);
}

static PyObject *core_transport(PyObject *module, PyObject *rank) {
    (void)module;
    return member_text(rank, hora_comm_transport);
}

/* ---- What this build has -------------------------------------------------------------------- */

static PyObject *core_backends(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list; i++) {
        hora_backend_t backend = HORA_BACKEND_INIT;
        if (hora_backend_get(i, &backend) != HORA_OK)
            break;
        PyObject *row = Py_BuildValue("{s:s,s:s,s:N,s:N,s:N}", "name", backend.name, "kind",
                                      backend.kind, "available",
                                      PyBool_FromLong(backend.available), "detail",
                                      core_text(backend.detail), "remedy",
                                      core_text(backend.remedy));
        if (!row || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *core_unknown_settings(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    char text[256];
    for (size_t i = 0; list && hora_setting_unknown(i, text, sizeof(text)) == HORA_OK; i++) {
        PyObject *item = core_text(text);
        if (!item || PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* op_supported(dtype name, op) */
static PyObject *core_op_supported(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    const char *name;
    int op;
    if (!core_check_count(nargs, 2, "op_supported") || !core_get_string(args[0], &name) ||
        !core_get_int(args[1], "op", &op))
        return NULL;
    hora_dtype_t dtype;
    if (!core_get_dtype(name, &dtype))
        return NULL;
    return PyBool_FromLong(hora_op_supported(dtype, (hora_op_t)op));
}

#define FAST(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL

static PyMethodDef functions[] = {
    {"init", FAST(core_init),
     "init(rank, nranks, rendezvous, transport, start_timeout, timeout, fusion_threshold): joins "
     "the job and starts the engine. -1, None and 0 leave the choice to hora."},
    {"narrow", FAST(core_narrow),
     "narrow(color, key): after init, ranks of one color go on as a job of their own, ordered by "
     "key; a negative color leaves. Collective."},
    {"cancel_init", core_cancel_init, METH_O,
     "cancel_init(flag): True ends an init() that another thread is in, and every one to come, with "
     "an error, until False."},
    {"shutdown", core_shutdown, METH_NOARGS, "Leaves the job in order. Idempotent."},
    {"abort", core_abort, METH_O, "abort(reason): ends the job on every rank with an error."},
    {"is_initialized", core_is_initialized, METH_NOARGS, "True between init and shutdown."},
    {"rank", core_rank, METH_NOARGS, "Rank of this process in the job."},
    {"size", core_world_size, METH_NOARGS, "Number of ranks in the job."},
    {"local_rank", core_local_rank, METH_NOARGS, "Rank of this process on its host."},
    {"local_size", core_local_size, METH_NOARGS, "Number of ranks on this host."},
    {"cross_rank", core_cross_rank, METH_NOARGS,
     "Rank of this host among the hosts that have a process of this local rank."},
    {"cross_size", core_cross_size, METH_NOARGS,
     "Number of hosts that have a process of this local rank."},
    {"host", core_host, METH_O, "host(rank): name of the rank's host."},
    {"transport", core_transport, METH_O, "transport(rank): what carries bytes to the rank."},
    {"tensors", FAST(core_tensors), "What reduce_tensor is to know of torch and its handles."},
    {"reduce_tensor", FAST(core_reduce_tensor),
     "reduce_tensor(tensor, name, average, op, prescale, postscale, process_set, waits): "
     "allreduce_async_, or allreduce_ if it waits, in the common case; else None."},
    {"enqueue", FAST(core_enqueue),
     "enqueue(kind, name, tensor, output, op, prescale, postscale, root, splits, flags, "
     "process_set_id=0) -> Handle. With tuples for name, tensor and output, the tasks form one "
     "group. root is a rank of the job."},
    {"is_dense", core_is_dense, METH_O,
     "is_dense(tensor): whether it is of a library with DLPack's C functions, and contiguous."},
    {"process_set_ids", core_set_ids, METH_NOARGS, "Ids of the process sets, in order."},
    {"process_set_ranks", core_set_ranks, METH_O, "process_set_ranks(id): ranks of the job."},
    {"process_set_size", core_set_size, METH_O, "process_set_size(id): number of members."},
    {"process_set_rank", core_set_rank, METH_O, "process_set_rank(id): my rank among them."},
    {"process_set_included", core_set_included, METH_O,
     "process_set_included(id): True when this rank is a member."},
    {"exchange", FAST(core_set_exchange),
     "exchange(what, numbers): the list of what each rank passes. Collective over all ranks."},
    {"add_process_set", core_set_add, METH_O,
     "add_process_set(ranks) -> id. Collective over all ranks, which must pass the same ranks: see "
     "hora.common.process_sets, which checks that."},
    {"remove_process_set", core_set_remove, METH_O,
     "remove_process_set(id). Every rank does it, when they have agreed."},
    {"install_interrupt", core_interrupt_install, METH_NOARGS,
     "Lets Ctrl-C end a blocking call on the main thread, which must call this."},
    {"start_timeline", FAST(core_start_timeline),
     "start_timeline(path, mark_cycles): begins to record; rank r > 0 writes path.rank<r>."},
    {"stop_timeline", core_stop_timeline, METH_NOARGS, "Ends the recording; the file is complete."},
    {"backends", core_backends, METH_NOARGS, "What this build and machine have: list of dicts."},
    {"unknown_settings", core_unknown_settings, METH_NOARGS,
     "A sentence on each variable HORA_* that is no setting."},
    {"op_supported", FAST(core_op_supported), "op_supported(dtype, op): bool"},
    {NULL, NULL, 0, NULL},
};

static bool add_numbers(PyObject *module) {
    static const struct {
        const char *name;
        long        value;
    } numbers[] = {
        {"AVERAGE", HORA_AVERAGE},
        {"SUM", HORA_SUM},
        {"ADASUM", HORA_ADASUM},
        {"MIN", HORA_MIN},
        {"MAX", HORA_MAX},
        {"PRODUCT", HORA_PRODUCT},
        {"BAND", HORA_BAND},
        {"BOR", HORA_BOR},
        {"BXOR", HORA_BXOR},
        {"ALLREDUCE", HORA_TASK_ALLREDUCE},
        {"ALLGATHER", HORA_TASK_ALLGATHER},
        {"BROADCAST", HORA_TASK_BROADCAST},
        {"ALLTOALL", HORA_TASK_ALLTOALL},
        {"REDUCESCATTER", HORA_TASK_REDUCESCATTER},
        {"BARRIER", HORA_TASK_BARRIER},
        {"JOIN", HORA_TASK_JOIN},
        {"WILL_WAIT", HORA_ENQUEUE_WILL_WAIT},
        {"DUPLICATE_NAME", HORA_ERR_DUPLICATE_NAME},
        {"MISMATCH", HORA_ERR_MISMATCH},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (PyModule_AddIntConstant(module, numbers[i].name, numbers[i].value) < 0)
            return false;
    return PyModule_AddStringConstant(module, "__version__", hora_version()) == 0;
}

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) {
    static PyModuleDef definition = {
        PyModuleDef_HEAD_INIT,
        .m_name = "hora._core",
        .m_doc = "hora's C library for Python; see hora.torch for the interface to use.",
        .m_size = -1,
        .m_methods = functions,
    };
    PyObject *module = PyModule_Create(&definition);
    if (!module)
        return NULL;
    internal_error = PyErr_NewExceptionWithDoc(
        "hora.common.exceptions.HorovodInternalError",
        "An operation failed on some rank; the text says where and why. `status` is hora's status "
        "value.",
        PyExc_RuntimeError, NULL);
    if (!internal_error || PyModule_AddObjectRef(module, "HorovodInternalError", internal_error) ||
        !core_array_add_type(module) || !core_handle_add_type(module) ||
        !core_comm_add_type(module) || !add_numbers(module)) {
        Py_DECREF(module);
        return NULL;
    }
    pthread_atfork(NULL, NULL, mark_forked);
    return module;
}
