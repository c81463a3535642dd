/*
 * The allreduce of a training step without Python on the way: of one dense torch tensor into itself, with
 * a name, on the set of all ranks. Whatever else there is, torch/_ops/allreduce.py does. Under the GIL.
 */
#include "_core.h"

#include <string.h>

#define PREFIX   "allreduce." /* as torch/_ops has it */
#define NAME_BYTES 256

static PyObject *tensor_type, *all_ranks, *operations, *next_number, *is_neg;

/* tensors(Tensor, global_process_set, operations, next_number): what reduce_tensor is to know.
 * ImportError: results could not be made tensors of this torch. */
PyObject *core_tensors(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    PyObject **const known[] = {&tensor_type, &all_ranks, &operations, &next_number};
    (void)module;
    if (!core_check_count(nargs, 4, "tensors"))
        return NULL;
    if (!PyType_Check(args[0]) || !PyDict_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "tensors() takes a type, a set, a dict and a function");
        return NULL;
    }
    if (!core_array_has_functions((PyTypeObject *)args[0]))
        return PyErr_Format(PyExc_ImportError,
                            "hora.torch needs torch 2.11 or later, whose tensors have DLPack's C "
                            "functions of major version %d; those of this torch have not",
                            HORA_DLPACK_MAJOR);
    if (!is_neg && !(is_neg = PyUnicode_InternFromString("is_neg")))
        return NULL;
    for (int i = 0; i < 4; i++) {
        PyObject *before = *known[i];
        Py_INCREF(args[i]);
        *known[i] = args[i];
        Py_XDECREF(before);
    }
    Py_RETURN_NONE;
}

/* Are the values in memory those of the tensor? Else they are its negatives: torch's lazy negation. -1 with
 * an exception. */
static int is_plain(PyObject *tensor) {
    PyObject *neg = PyObject_CallMethodObjArgs(tensor, is_neg, NULL);
    int plain = neg ? neg == Py_False : -1;
    Py_XDECREF(neg);
    return plain;
}

/* "allreduce.NAME"; false, without an exception: it is no text, a long one, or one with a null character. */
static bool full_name(PyObject *name, char full[NAME_BYTES]) {
    Py_ssize_t length;
    const char *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8AndSize(name, &length) : NULL;
    if (!text || (size_t)length >= NAME_BYTES - sizeof(PREFIX) || strlen(text) != (size_t)length) {
        PyErr_Clear();
        return false;
    }
    memcpy(full, PREFIX, sizeof(PREFIX) - 1);
    memcpy(full + sizeof(PREFIX) - 1, text, (size_t)length + 1);
    return true;
}

enum { TENSOR, NAME, AVERAGE, OP, PRESCALE, POSTSCALE, SET, WAITS, ARGUMENTS };

/* Registers the handle, and lets go of it. */
static PyObject *give_number(PyObject *handle) {
    PyObject *number = PyObject_CallObject(next_number, NULL);
    if (number && PyDict_SetItem(operations, number, handle) < 0)
        Py_CLEAR(number);
    Py_DECREF(handle);
    return number;
}

static PyObject *wait_now(PyObject *handle) {
    PyObject *result = core_wait(handle);
    Py_DECREF(handle);
    return result;
}

/* reduce_tensor(tensor, name, average, op, prescale, postscale, process_set, waits): the number of the
 * operation, or, if it waits, the tensor. None: it is no case for this. */
PyObject *core_reduce_tensor(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    core_array_t array;
    hora_task_t task = HORA_TASK_INIT;
    char name[NAME_BYTES];
    int op = HORA_AVERAGE, plain;
    (void)module;
    if (!core_check_count(nargs, ARGUMENTS, "reduce_tensor") || !core_check_process())
        return NULL;
    PyObject *tensor = args[TENSOR];
    bool waits = args[WAITS] == Py_True;
    if (args[SET] != all_ranks || args[AVERAGE] != Py_None || !tensor_type ||
        !PyType_IsSubtype(Py_TYPE(tensor), (PyTypeObject *)tensor_type) ||
        !core_array_read_plain(tensor, &array) || !full_name(args[NAME], name))
        Py_RETURN_NONE;
    plain = is_plain(tensor);
    if (plain < 0 || (args[OP] != Py_None && !core_get_int(args[OP], "op", &op)) ||
        !core_get_double(args[PRESCALE], "prescale_factor", &task.prescale) ||
        !core_get_double(args[POSTSCALE], "postscale_factor", &task.postscale))
        return NULL;
    if (!plain)
        Py_RETURN_NONE;
    task.kind = HORA_TASK_ALLREDUCE;
    task.name = name;
    task.op = (hora_op_t)op;
    task.dtype = array.dtype;
    task.ndim = array.ndim;
    task.shape = array.shape;
    task.in = array.data;
    task.out = array.data;
    PyObject *handle = core_start(&task, waits ? HORA_ENQUEUE_WILL_WAIT : 0, &array, tensor);
    if (!handle)
        return NULL;
    return waits ? wait_now(handle) : give_number(handle);
}
