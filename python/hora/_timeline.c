/*
 * start_timeline and stop_timeline. A file that cannot be written is an OSError, not an error of the
 * job: elastic training must not start anew for it.
 */
#include "_core.h"

static PyObject *finish(hora_status_t status) {
    if (status == HORA_OK)
        Py_RETURN_NONE;
    if (status != HORA_ERR_SYSTEM)
        return core_raise(status);
    PyObject *text = core_text(hora_last_error());
    if (text)
        PyErr_SetObject(PyExc_OSError, text);
    Py_XDECREF(text);
    return NULL;
}

PyObject *core_start_timeline(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    PyObject *path = NULL; /* bytes in the file system's encoding */
    int mark_cycles;
    if (!core_check_count(nargs, 2, "start_timeline") || !core_check_process())
        return NULL;
    if (!core_world)
        return core_raise_not_initialized();
    mark_cycles = PyObject_IsTrue(args[1]);
    if (mark_cycles < 0 || !PyUnicode_FSConverter(args[0], &path))
        return NULL;
    const char *text = PyBytes_AsString(path);
    hora_status_t status;
    core_hold_t hold;
    core_hold_world(&hold);
    Py_BEGIN_ALLOW_THREADS
    status = hora_timeline_start(hold.world, text, mark_cycles);
    Py_END_ALLOW_THREADS
    core_let_go(&hold);
    Py_DECREF(path);
    return finish(status);
}

PyObject *core_stop_timeline(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    if (!core_check_process())
        return NULL;
    if (!core_world)
        return core_raise_not_initialized();
    hora_status_t status;
    core_hold_t hold;
    core_hold_world(&hold);
    Py_BEGIN_ALLOW_THREADS
    status = hora_timeline_stop(hold.world);
    Py_END_ALLOW_THREADS
    core_let_go(&hold);
    return finish(status);
}
