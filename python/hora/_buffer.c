/*
 * Arrays in by the buffer protocol: NumPy, bytearray, memoryview, array.array, mmap, ctypes, ...
 * Under the GIL.
 */
#include "_core.h"
#include "buffer.h"

#include <stdlib.h>
#include <string.h>

#define CAPSULE "hora.buffer"

typedef struct held {
    hora_buffer_t view;
    int64_t       shape[HORA_MAX_DIMS];
} held_t;

static int by_size(Py_ssize_t bytes, int one, int two, int four, int eight) {
    return bytes == 1 ? one : bytes == 2 ? two : bytes == 4 ? four : bytes == 8 ? eight : -1;
}

static bool foreign_order(char mark) {
    const bool little = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    return little ? mark == '>' || mark == '!' : mark == '<';
}

/* The type for one of struct's letters; -1: hora has none. */
static int dtype_from_letter(char letter, Py_ssize_t bytes) {
    if (strchr("bhilqn", letter))
        return by_size(bytes, HORA_INT8, HORA_INT16, HORA_INT32, HORA_INT64);
    if (strchr("BHILQNc", letter))
        return by_size(bytes, HORA_UINT8, HORA_UINT16, HORA_UINT32, HORA_UINT64);
    if (letter == '?')
        return bytes == 1 ? HORA_BOOL : -1;
    return letter == 'e'   ? HORA_FLOAT16
           : letter == 'f' ? HORA_FLOAT32
           : letter == 'd' ? HORA_FLOAT64
                           : -1;
}

static int read_format(const hora_buffer_t *view) {
    const char *format = view->format ? view->format : "B";
    if (*format && strchr("@=<>!", *format)) {
        if (foreign_order(*format) && view->itemsize > 1) {
            PyErr_Format(PyExc_ValueError, "the array has the byte order of another machine "
                                           "(format '%s'); convert it first", format);
            return -1;
        }
        format++;
    }
    int dtype = format[0] && !format[1] ? dtype_from_letter(format[0], view->itemsize) : -1;
    if (dtype < 0)
        PyErr_Format(PyExc_ValueError, "Tensor type is not supported (buffer format '%s', %zd "
                                       "bytes).", view->format ? view->format : "B",
                     view->itemsize);
    return dtype;
}

/* Strides of a buffer are in bytes. */
static bool is_contiguous(const hora_buffer_t *view, size_t count) {
    Py_ssize_t expected = view->itemsize;
    if (!view->strides || count <= 1)
        return true;
    for (int i = view->ndim - 1; i >= 0; i--) {
        if (view->shape[i] != 1 && view->strides[i] != expected)
            return false;
        expected *= view->shape[i];
    }
    return true;
}

static bool fill_array(held_t *held, core_array_t *array_p) {
    hora_buffer_t *view = &held->view;
    size_t count = 1;
    if (view->ndim > HORA_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "hora takes arrays of at most %d dimensions, not %d",
                     HORA_MAX_DIMS, view->ndim);
        return false;
    }
    for (int i = 0; i < view->ndim; i++) {
        held->shape[i] = view->shape[i];
        count *= (size_t)view->shape[i];
    }
    int dtype = read_format(view);
    if (dtype < 0)
        return false;
    if (!is_contiguous(view, count)) {
        PyErr_SetString(PyExc_ValueError, "Tensor is required to be contiguous.");
        return false;
    }
    array_p->data = view->buf;
    array_p->shape = held->shape;
    array_p->ndim = view->ndim;
    array_p->dtype = (hora_dtype_t)dtype;
    array_p->count = count;
    array_p->device = -1;
    array_p->read_only = view->readonly;
    return true;
}

static void release(PyObject *capsule) {
    held_t *held = PyCapsule_GetPointer(capsule, CAPSULE);
    PyBuffer_Release(&held->view);
    free(held);
}

bool core_buffer_offered(PyObject *object) {
    return PyObject_CheckBuffer(object);
}

bool core_buffer_read(PyObject *object, core_array_t *array_p) {
    held_t *held = malloc(sizeof(*held));
    if (!held) {
        PyErr_NoMemory();
        return false;
    }
    if (PyObject_GetBuffer(object, &held->view, HORA_BUFFER_FORMAT | HORA_BUFFER_STRIDES) != 0) {
        free(held);
        return false;
    }
    PyObject *capsule = NULL;
    if (fill_array(held, array_p))
        capsule = PyCapsule_New(held, CAPSULE, release);
    if (!capsule) {
        PyBuffer_Release(&held->view);
        free(held);
        return false;
    }
    array_p->api = NULL;
    array_p->keep = capsule;
    return true;
}
