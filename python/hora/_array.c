/*
 * Arrays in and out of the extension: torch tensors by DLPack's table of C functions (about 80 ns),
 * what offers the buffer protocol (NumPy, bytearray, ...) by that, all else by __dlpack__().
 *
 * An array on a GPU comes with the stream that its library works on (core_stream_of). A library without
 * DLPack's C functions is asked, through __dlpack__, to synchronise with the default stream.
 *
 * Invariant: memory that goes out has one count of users (the Array, each DLPack tensor made from
 * it) and is released with the last of them. A buffer's user is its Array.
 */
#include "_core.h"
#include "buffer.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* ---- Arrays in ------------------------------------------------------------------------------ */

#define TYPE_CACHE 8

/* The tables of the array types seen so far. Types are kept alive, so an address stays theirs. */
static struct {
    PyTypeObject            *type;
    const DLPackExchangeAPI *api;
} type_cache[TYPE_CACHE];
static unsigned type_cache_next;

static const DLPackExchangeAPI *look_up_api(PyTypeObject *type) {
    PyObject *capsule = PyObject_GetAttrString((PyObject *)type, "__dlpack_c_exchange_api__");
    if (!capsule) {
        PyErr_Clear();
        return NULL;
    }
    const DLPackExchangeAPI *api = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    Py_DECREF(capsule);
    if (!api)
        PyErr_Clear();
    while (api && api->version.major != HORA_DLPACK_MAJOR)
        api = api->prev_api;
    return api && api->dltensor_from_py_object_no_sync ? api : NULL;
}

static const DLPackExchangeAPI *find_api(PyTypeObject *type) {
    for (unsigned i = 0; i < TYPE_CACHE; i++)
        if (type_cache[i].type == type)
            return type_cache[i].api;
    const DLPackExchangeAPI *api = look_up_api(type);
    unsigned slot = type_cache_next++ % TYPE_CACHE;
    Py_INCREF(type);
    PyTypeObject *old = type_cache[slot].type;
    type_cache[slot].type = type;
    type_cache[slot].api = api;
    Py_XDECREF(old);
    return api;
}

bool core_array_has_functions(PyTypeObject *type) {
    return find_api(type) != NULL;
}

static int dtype_from_dl(DLDataType type) {
    static const signed char ints[9] = {-1, HORA_INT8, HORA_INT16, -1, HORA_INT32,
                                        -1, -1,        -1,         HORA_INT64};
    static const signed char uints[9] = {-1, HORA_UINT8, HORA_UINT16, -1, HORA_UINT32,
                                         -1, -1,         -1,          HORA_UINT64};
    static const signed char floats[9] = {-1, -1, HORA_FLOAT16, -1, HORA_FLOAT32,
                                          -1, -1, -1,           HORA_FLOAT64};
    if (type.lanes != 1 || type.bits % 8 || type.bits > 64)
        return -1;
    unsigned bytes = type.bits / 8;
    switch (type.code) {
    case HORA_DL_INT:
        return ints[bytes];
    case HORA_DL_UINT:
        return uints[bytes];
    case HORA_DL_FLOAT:
        return floats[bytes];
    case HORA_DL_BFLOAT:
        return bytes == 2 ? HORA_BFLOAT16 : -1;
    case HORA_DL_BOOL:
        return bytes == 1 ? HORA_BOOL : -1;
    case HORA_DL_FLOAT8_E4M3FN:
        return bytes == 1 ? HORA_FLOAT8_E4M3 : -1;
    case HORA_DL_FLOAT8_E5M2:
        return bytes == 1 ? HORA_FLOAT8_E5M2 : -1;
    default:
        return -1;
    }
}

static bool is_contiguous(const DLTensor *tensor, size_t count) {
    if (!tensor->strides || count <= 1)
        return true;
    int64_t expected = 1;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] != 1 && tensor->strides[i] != expected)
            return false;
        expected *= tensor->shape[i];
    }
    return true;
}

/* Names from DLPack's enumeration of devices. */
static const char *device_name(int32_t type) {
    switch (type) {
    case 13:
        return "CUDA's managed memory";
    case 8:
        return "a Metal device";
    case 10:
        return "a ROCm device";
    case 14:
        return "a oneAPI device";
    default:
        return "another device";
    }
}

static bool read_device(const DLDevice *device, int *device_p) {
    switch (device->device_type) {
    case HORA_DL_CPU:
    case HORA_DL_CUDA_HOST:
        *device_p = -1;
        return true;
    case HORA_DL_CUDA:
        *device_p = device->device_id;
        return true;
    default:
        PyErr_Format(PyExc_ValueError,
                     "hora takes arrays in CPU memory and on CUDA devices; this one is on %s (DLPack "
                     "device type %d): copy it to the host first", device_name(device->device_type),
                     (int)device->device_type);
        return false;
    }
}

/* Of DLPack's types that hora does not have. */
static void raise_type(DLDataType type) {
    static const char *const names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    const char *hint = type.code == HORA_DL_COMPLEX
                           ? "; pass a view of it as real numbers (torch.view_as_real)" : "";
    if (type.code < sizeof(names) / sizeof(names[0]) && type.lanes == 1)
        PyErr_Format(PyExc_ValueError, "Tensor type is not supported: %s%d%s.", names[type.code],
                     (int)type.bits, hint);
    else
        PyErr_Format(PyExc_ValueError, "Tensor type is not supported (DLPack type code %d, %d bits, "
                     "%d lanes).", (int)type.code, (int)type.bits, (int)type.lanes);
}

static bool fill_array(const DLTensor *tensor, core_array_t *array_p) {
    if (!read_device(&tensor->device, &array_p->device))
        return false;
    int dtype = dtype_from_dl(tensor->dtype);
    if (dtype < 0) {
        raise_type(tensor->dtype);
        return false;
    }
    if (tensor->ndim > HORA_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "hora takes arrays of at most %d dimensions, not %d",
                     HORA_MAX_DIMS, (int)tensor->ndim);
        return false;
    }
    size_t count = 1;
    for (int i = 0; i < tensor->ndim; i++)
        count *= (size_t)tensor->shape[i];
    if (!is_contiguous(tensor, count)) {
        PyErr_SetString(PyExc_ValueError, "Tensor is required to be contiguous.");
        return false;
    }
    array_p->data = tensor->data ? (char *)tensor->data + tensor->byte_offset : NULL;
    array_p->shape = tensor->shape;
    array_p->ndim = tensor->ndim;
    array_p->dtype = (hora_dtype_t)dtype;
    array_p->count = count;
    return true;
}

/* What object.__dlpack_device__() says; false, without an exception, where there is none. */
static bool is_on_gpu(PyObject *object) {
    int type = 0, id = 0;
    PyObject *device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
    bool known = device && PyTuple_Check(device) && PyArg_ParseTuple(device, "ii", &type, &id);
    Py_XDECREF(device);
    PyErr_Clear();
    return known && type == HORA_DL_CUDA;
}

#define LEGACY_DEFAULT_STREAM 1 /* in the array API's numbering of CUDA streams */

/* The keywords of __dlpack__. An older library knows no max_version. */
static PyObject *dlpack_options(bool on_gpu, bool versioned) {
    if (!versioned)
        return on_gpu ? Py_BuildValue("{s:i}", "stream", LEGACY_DEFAULT_STREAM) : PyDict_New();
    return on_gpu ? Py_BuildValue("{s:(ii),s:i}", "max_version", HORA_DLPACK_MAJOR,
                                  HORA_DLPACK_MINOR, "stream", LEGACY_DEFAULT_STREAM)
                  : Py_BuildValue("{s:(ii)}", "max_version", HORA_DLPACK_MAJOR, HORA_DLPACK_MINOR);
}

static PyObject *call_with_options(PyObject *method, bool on_gpu, bool versioned) {
    PyObject *arguments = PyTuple_New(0), *options = dlpack_options(on_gpu, versioned);
    PyObject *capsule = arguments && options ? PyObject_Call(method, arguments, options) : NULL;
    Py_XDECREF(options);
    Py_XDECREF(arguments);
    return capsule;
}

static PyObject *call_dlpack(PyObject *object) {
    PyObject *method = PyObject_GetAttrString(object, "__dlpack__");
    if (!method) {
        PyErr_Format(PyExc_TypeError, "expected an array (an object with __dlpack__ or a buffer), "
                                      "not %R", (PyObject *)Py_TYPE(object));
        return NULL;
    }
    bool on_gpu = is_on_gpu(object);
    PyObject *capsule = call_with_options(method, on_gpu, true);
    if (!capsule && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear();
        capsule = call_with_options(method, on_gpu, false);
    }
    Py_DECREF(method);
    return capsule;
}

/* The capsule stays unconsumed: it frees the exported tensor when it is dropped. */
static bool read_by_capsule(PyObject *object, core_array_t *array_p) {
    PyObject *capsule = call_dlpack(object);
    if (!capsule)
        return false;
    const DLTensor *tensor = NULL;
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        DLManagedTensorVersioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (managed->version.major == HORA_DLPACK_MAJOR) {
            tensor = &managed->dl_tensor;
            array_p->read_only = managed->flags & HORA_DL_FLAG_READ_ONLY;
        }
    } else if (PyCapsule_IsValid(capsule, "dltensor")) {
        tensor = &((DLManagedTensor *)PyCapsule_GetPointer(capsule, "dltensor"))->dl_tensor;
    }
    if (!tensor)
        PyErr_SetString(PyExc_BufferError, "__dlpack__() returned no DLPack 1.x tensor");
    if (!tensor || !fill_array(tensor, array_p)) {
        Py_DECREF(capsule);
        return false;
    }
    array_p->keep = capsule;
    return true;
}

static bool read_own(PyObject *object, core_array_t *array_p);

/* Sparse, quantised, on the meta device, ...: the library's exception, of whatever type and with
 * its C++ stack trace, becomes a ValueError with its first line. */
static void raise_unreadable(void) {
    PyObject *type, *value, *trace, *text = NULL;
    PyErr_Fetch(&type, &value, &trace);
    if (value)
        text = PyObject_Str(value);
    const char *line = text ? PyUnicode_AsUTF8AndSize(text, NULL) : NULL;
    if (!line) {
        PyErr_Clear();
        line = "";
    }
    char reason[200];
    size_t length = strcspn(line, "\n");
    length = length < sizeof(reason) ? length : sizeof(reason) - 1;
    memcpy(reason, line, length);
    reason[length] = 0;
    PyErr_Format(PyExc_ValueError, "Tensor type is not supported: %s", reason);
    Py_XDECREF(text);
    Py_XDECREF(trace);
    Py_XDECREF(value);
    Py_XDECREF(type);
}

/* Some arrays offer buffers of some types only (JAX: not of bfloat16). */
static bool read_by_protocol(PyObject *object, core_array_t *array_p) {
    if (read_own(object, array_p))
        return true;
    if (core_buffer_offered(object)) {
        if (core_buffer_read(object, array_p))
            return true;
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        bool also = PyObject_HasAttrString(object, "__dlpack__");
        PyErr_Restore(type, value, trace);
        if (!also)
            return false;
        PyErr_Clear();
    }
    return read_by_capsule(object, array_p);
}

bool core_array_read(PyObject *object, core_array_t *array_p) {
    const DLPackExchangeAPI *api = find_api(Py_TYPE(object));
    array_p->api = api;
    array_p->keep = NULL;
    array_p->read_only = false;
    if (!api)
        return read_by_protocol(object, array_p);
    DLTensor tensor;
    if (api->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
        raise_unreadable();
        return false;
    }
    return fill_array(&tensor, array_p);
}

bool core_stream_of(const DLPackExchangeAPI *api, int device, void **stream_p) {
    *stream_p = NULL;
    if (!api || !api->current_work_stream)
        return true;
    return api->current_work_stream(HORA_DL_CUDA, device, stream_p) == 0;
}

bool core_array_read_plain(PyObject *object, core_array_t *array_p) {
    DLTensor tensor;
    array_p->api = find_api(Py_TYPE(object));
    array_p->keep = NULL;
    array_p->read_only = false;
    if (array_p->api && array_p->api->dltensor_from_py_object_no_sync(object, &tensor) == 0 &&
        tensor.device.device_type == HORA_DL_CPU && fill_array(&tensor, array_p))
        return true;
    PyErr_Clear();
    return false;
}

PyObject *core_is_dense(PyObject *module, PyObject *object) {
    (void)module;
    const DLPackExchangeAPI *api = find_api(Py_TYPE(object));
    DLTensor tensor;
    if (!api || api->dltensor_from_py_object_no_sync(object, &tensor) != 0) {
        PyErr_Clear();
        Py_RETURN_FALSE;
    }
    size_t count = 1;
    for (int i = 0; i < tensor.ndim; i++)
        count *= (size_t)tensor.shape[i];
    return PyBool_FromLong(is_contiguous(&tensor, count));
}

bool core_array_read_output(PyObject *object, core_array_t *array_p) {
    if (!core_array_read(object, array_p))
        return false;
    if (array_p->read_only) {
        Py_CLEAR(array_p->keep);
        PyErr_SetString(PyExc_ValueError, "the output array is read-only");
        return false;
    }
    return true;
}

/* ---- Arrays out ----------------------------------------------------------------------------- */

static DLDataType dtype_to_dl(hora_dtype_t dtype) {
    uint8_t bits = (uint8_t)(hora_dtype_size(dtype) * 8);
    uint8_t code = dtype == HORA_BOOL          ? HORA_DL_BOOL
                   : dtype == HORA_BFLOAT16    ? HORA_DL_BFLOAT
                   : dtype == HORA_FLOAT8_E4M3 ? HORA_DL_FLOAT8_E4M3FN
                   : dtype == HORA_FLOAT8_E5M2 ? HORA_DL_FLOAT8_E5M2
                   : dtype >= HORA_FLOAT16     ? HORA_DL_FLOAT
                   : dtype >= HORA_UINT8       ? HORA_DL_UINT
                                               : HORA_DL_INT;
    return (DLDataType){code, bits, 1};
}

typedef struct shared {
    atomic_int    users;
    core_memory_t memory;
} shared_t;

/* Owns the memory, also when this fails. */
static shared_t *share(const core_memory_t *memory) {
    shared_t *shared = malloc(sizeof(*shared));
    if (!shared) {
        memory->release(memory->owner, memory->data);
        PyErr_NoMemory();
        return NULL;
    }
    atomic_init(&shared->users, 1);
    shared->memory = *memory;
    return shared;
}

/* Any thread, with or without the GIL. */
static void drop_shared(shared_t *shared) {
    if (core_forked || atomic_fetch_sub(&shared->users, 1) != 1)
        return;
    shared->memory.release(shared->memory.owner, shared->memory.data);
    free(shared);
}

/* One exported tensor, in either of DLPack's two forms. */
typedef struct exported {
    union {
        DLManagedTensorVersioned versioned;
        DLManagedTensor          legacy;
    } as;
    shared_t *shared;
    int64_t   shape[HORA_MAX_DIMS], strides[HORA_MAX_DIMS];
} exported_t;

static void release_exported(exported_t *exported) {
    drop_shared(exported->shared);
    free(exported);
}

static void delete_versioned(DLManagedTensorVersioned *self) {
    release_exported(self->manager_ctx);
}

static void delete_legacy(DLManagedTensor *self) {
    release_exported(self->manager_ctx);
}

static DLDevice device_of(const shared_t *shared) {
    int device = shared->memory.device;
    return device < 0 ? (DLDevice){HORA_DL_CPU, 0} : (DLDevice){HORA_DL_CUDA, device};
}

/* One user more of the memory. */
static exported_t *export_memory(shared_t *shared, hora_dtype_t dtype, int ndim,
                                 const int64_t *shape, bool versioned) {
    exported_t *exported = calloc(1, sizeof(*exported));
    if (!exported) {
        PyErr_NoMemory();
        return NULL;
    }
    int64_t stride = 1;
    for (int i = ndim - 1; i >= 0; i--) {
        exported->shape[i] = shape[i];
        exported->strides[i] = stride;
        stride *= shape[i];
    }
    exported->shared = shared;
    atomic_fetch_add(&shared->users, 1);
    DLTensor tensor = {.data = shared->memory.data,
                       .device = device_of(shared),
                       .ndim = ndim,
                       .dtype = dtype_to_dl(dtype),
                       .shape = exported->shape,
                       .strides = exported->strides};
    if (versioned)
        exported->as.versioned = (DLManagedTensorVersioned){
            .version = {HORA_DLPACK_MAJOR, HORA_DLPACK_MINOR},
            .manager_ctx = exported,
            .deleter = delete_versioned,
            .dl_tensor = tensor,
        };
    else
        exported->as.legacy = (DLManagedTensor){
            .dl_tensor = tensor, .manager_ctx = exported, .deleter = delete_legacy};
    return exported;
}

PyObject *core_array_export(const core_memory_t *memory, hora_dtype_t dtype, int ndim,
                            const int64_t *shape, const DLPackExchangeAPI *api) {
    shared_t *shared = share(memory);
    if (!shared)
        return NULL;
    exported_t *exported = export_memory(shared, dtype, ndim, shape, true);
    drop_shared(shared); /* what remains is the exported tensor's */
    if (!exported)
        return NULL;
    void *object = NULL;
    if (api->managed_tensor_to_py_object_no_sync(&exported->as.versioned, &object) != 0)
        return NULL; /* the callee owned the tensor */
    return object;
}

typedef struct array_object {
    PyObject_HEAD
    shared_t    *shared;
    hora_dtype_t dtype;
    int          ndim;
    size_t       count; /* elements */
    int64_t      shape[HORA_MAX_DIMS];
    Py_ssize_t   extents[HORA_MAX_DIMS], strides[HORA_MAX_DIMS]; /* for buffers: strides in bytes */
} array_object_t;

static PyTypeObject *array_type;

PyObject *core_array_new(const core_memory_t *memory, hora_dtype_t dtype, int ndim,
                         const int64_t *shape) {
    shared_t *shared = share(memory);
    if (!shared)
        return NULL;
    array_object_t *self = PyObject_New(array_object_t, array_type);
    if (!self) {
        drop_shared(shared);
        return NULL;
    }
    self->shared = shared;
    self->dtype = dtype;
    self->ndim = ndim;
    self->count = 1;
    Py_ssize_t stride = (Py_ssize_t)hora_dtype_size(dtype);
    for (int i = ndim - 1; i >= 0; i--) {
        self->shape[i] = shape[i];
        self->extents[i] = (Py_ssize_t)shape[i];
        self->strides[i] = stride;
        self->count *= (size_t)shape[i];
        stride *= (Py_ssize_t)shape[i];
    }
    return (PyObject *)self;
}

static void array_dealloc(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    drop_shared(((array_object_t *)object)->shared);
    PyObject_Free(object);
    Py_DECREF(type);
}

/* An Array is read without a detour; false, without an exception: it is something else. */
static bool read_own(PyObject *object, core_array_t *array_p) {
    array_object_t *self = (array_object_t *)object;
    if (Py_TYPE(object) != array_type)
        return false;
    array_p->data = self->shared->memory.data;
    array_p->shape = self->shape;
    array_p->ndim = self->ndim;
    array_p->dtype = self->dtype;
    array_p->count = self->count;
    array_p->device = self->shared->memory.device;
    return true;
}

static const char *buffer_format(hora_dtype_t dtype) {
    static const char *const formats[HORA_DTYPE_COUNT] = {
        [HORA_BOOL] = "?",    [HORA_INT8] = "b",    [HORA_INT16] = "h",   [HORA_INT32] = "i",
        [HORA_INT64] = "q",   [HORA_UINT8] = "B",   [HORA_UINT16] = "H",  [HORA_UINT32] = "I",
        [HORA_UINT64] = "Q",  [HORA_FLOAT16] = "e", [HORA_FLOAT32] = "f", [HORA_FLOAT64] = "d",
    };
    return formats[dtype];
}

static int array_get_buffer(PyObject *object, hora_buffer_t *view, int flags) {
    array_object_t *self = (array_object_t *)object;
    const char *format = buffer_format(self->dtype);
    view->obj = NULL;
    if (self->shared->memory.device >= 0) {
        PyErr_Format(PyExc_BufferError, "this array is on GPU %d; use DLPack (from_dlpack)",
                     self->shared->memory.device);
        return -1;
    }
    if (!format) {
        PyErr_Format(PyExc_BufferError, "Python's buffers know no %s; use DLPack (from_dlpack)",
                     hora_dtype_name(self->dtype));
        return -1;
    }
    static char nothing[1]; /* an array without elements has no memory */
    bool shaped = (flags & HORA_BUFFER_STRIDES) != 0; /* PyBUF_ND is part of it */
    *view = (hora_buffer_t){
        .buf = self->shared->memory.data ? self->shared->memory.data : nothing,
        .obj = object,
        .len = (Py_ssize_t)(self->count * hora_dtype_size(self->dtype)),
        .itemsize = (Py_ssize_t)hora_dtype_size(self->dtype),
        .ndim = shaped ? self->ndim : 1,
        .format = flags & HORA_BUFFER_FORMAT ? (char *)(uintptr_t)format : NULL,
        .shape = shaped ? self->extents : NULL,
        .strides = (flags & HORA_BUFFER_STRIDES) == HORA_BUFFER_STRIDES ? self->strides : NULL,
    };
    Py_INCREF(object);
    return 0;
}

static void drop_capsule(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        DLManagedTensorVersioned *managed = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        managed->deleter(managed);
    } else if (PyCapsule_IsValid(capsule, "dltensor")) {
        DLManagedTensor *managed = PyCapsule_GetPointer(capsule, "dltensor");
        managed->deleter(managed);
    }
}

/* Is the consumer's stream one that sees what the default stream has done? None, -1 (it does not ask),
 * 0 and 1 are; others cannot be made to wait here. */
static bool check_stream(PyObject *stream, int device) {
    if (device < 0 || stream == Py_None)
        return true;
    long number = PyLong_AsLong(stream);
    if (number >= -1 && number <= LEGACY_DEFAULT_STREAM && !PyErr_Occurred())
        return true;
    PyErr_Clear();
    PyErr_SetString(PyExc_BufferError, "hora's arrays are handed over on the default CUDA stream");
    return false;
}

/* __dlpack__(*, stream=None, max_version=None, dl_device=None, copy=None) */
static PyObject *array_dlpack(PyObject *object, PyObject *args, PyObject *options) {
    static char *names[] = {"stream", "max_version", "dl_device", "copy", NULL};
    array_object_t *self = (array_object_t *)object;
    PyObject *stream = Py_None, *version = Py_None, *device = Py_None, *copy = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, options, "|$OOOO", names, &stream, &version, &device,
                                     &copy))
        return NULL;
    if (copy == Py_True)
        return PyErr_Format(PyExc_BufferError, "hora's arrays are exported without a copy");
    DLDevice own = device_of(self->shared);
    int major = 0, minor = 0, type = own.device_type, id = own.device_id;
    if (version != Py_None && !PyArg_ParseTuple(version, "ii", &major, &minor))
        return NULL;
    if (device != Py_None && !PyArg_ParseTuple(device, "ii", &type, &id))
        return NULL;
    if (type != own.device_type || id != own.device_id)
        return PyErr_Format(PyExc_BufferError, "this array is on DLPack device (%d, %d), and is not "
                            "copied to another", (int)own.device_type, (int)own.device_id);
    if (!check_stream(stream, self->shared->memory.device))
        return NULL;
    exported_t *exported =
        export_memory(self->shared, self->dtype, self->ndim, self->shape, major >= 1);
    if (!exported)
        return NULL;
    PyObject *capsule =
        PyCapsule_New(exported, major >= 1 ? "dltensor_versioned" : "dltensor", drop_capsule);
    if (!capsule)
        release_exported(exported);
    return capsule;
}

static PyObject *array_device(PyObject *object, PyObject *unused) {
    (void)unused;
    DLDevice device = device_of(((array_object_t *)object)->shared);
    return Py_BuildValue("(ii)", (int)device.device_type, (int)device.device_id);
}

static PyObject *array_shape(PyObject *object, void *unused) {
    (void)unused;
    array_object_t *self = (array_object_t *)object;
    PyObject *shape = PyTuple_New(self->ndim);
    for (int i = 0; shape && i < self->ndim; i++) {
        PyObject *extent = PyLong_FromLongLong(self->shape[i]);
        if (!extent || PyTuple_SetItem(shape, i, extent) < 0)
            Py_CLEAR(shape);
    }
    return shape;
}

static PyObject *array_dtype(PyObject *object, void *unused) {
    (void)unused;
    return PyUnicode_FromString(hora_dtype_name(((array_object_t *)object)->dtype));
}

bool core_array_add_type(PyObject *module) {
    static PyMethodDef methods[] = {
        {"__dlpack__", (PyCFunction)(void (*)(void))array_dlpack, METH_VARARGS | METH_KEYWORDS,
         "The memory, shared and not copied, as a DLPack capsule."},
        {"__dlpack_device__", array_device, METH_NOARGS, "(1, 0): CPU memory; (2, n): GPU n."},
        {NULL, NULL, 0, NULL},
    };
    static PyGetSetDef members[] = {
        {"shape", array_shape, NULL, "Extents.", NULL},
        {"dtype", array_dtype, NULL, "Name of the element type.", NULL},
        {NULL, NULL, NULL, NULL, NULL},
    };
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, (void *)array_dealloc},
        {Py_tp_methods, methods},
        {Py_tp_getset, members},
        {HORA_SLOT_GET_BUFFER, (void *)array_get_buffer},
        {Py_tp_doc, "Memory that hora allocated, freed with the last view of it: a buffer "
                    "(memoryview, numpy.asarray) and DLPack (torch.from_dlpack and its like)."},
        {0, NULL},
    };
    static PyType_Spec spec = {
        .name = "hora._core.Array",
        .basicsize = sizeof(array_object_t),
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
        .slots = slots,
    };
    array_type = (PyTypeObject *)PyType_FromSpec(&spec);
    return array_type && PyModule_AddObjectRef(module, "Array", (PyObject *)array_type) == 0;
}
