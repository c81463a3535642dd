/*
 * The part of Python's buffer protocol that hora uses. Python's own declarations of it joined the
 * limited API with Python 3.11; the layout and the functions are the same in 3.10, the oldest
 * Python that hora runs on.
 *
 * Source: the Python/C API manual, "Buffer Protocol" and "Type Object Structures"; PEP 3118.
 */
#ifndef HORA_PYTHON_BUFFER_H
#define HORA_PYTHON_BUFFER_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#define HORA_BUFFER_WRITABLE 0x0001 /* PyBUF_WRITABLE */
#define HORA_BUFFER_FORMAT   0x0004 /* PyBUF_FORMAT */
#define HORA_BUFFER_STRIDES  0x0018 /* PyBUF_STRIDES: shape and strides too */
#define HORA_SLOT_GET_BUFFER     1  /* Py_bf_getbuffer */
#define HORA_SLOT_RELEASE_BUFFER 2  /* Py_bf_releasebuffer */

/* Py_buffer. */
typedef struct hora_buffer {
    void       *buf;
    PyObject   *obj; /* owned */
    Py_ssize_t  len, itemsize;
    int         readonly, ndim;
    char       *format; /* struct's letters; NULL: "B" */
    Py_ssize_t *shape, *strides, *suboffsets;
    void       *internal;
} hora_buffer_t;

extern int PyObject_CheckBuffer(PyObject *object);
extern int PyObject_GetBuffer(PyObject *object, hora_buffer_t *view, int flags);
extern void PyBuffer_Release(hora_buffer_t *view);

#endif
