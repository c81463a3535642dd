/*
 * What the parts of the extension module share: arrays in (DLPack), arrays out, errors.
 * Everything here needs the GIL unless it says otherwise.
 */
#ifndef HORA_PYTHON_CORE_H
#define HORA_PYTHON_CORE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "dlpack.h"
#include <hora/hora.h>
#include <stdbool.h>

/* An array that was passed in. `shape` and `data` live as long as the object and `keep`. */
typedef struct core_array {
    void                    *data;
    const int64_t           *shape;
    int                      ndim;
    hora_dtype_t             dtype;
    size_t                   count;      /* elements */
    int                      device;     /* -1: host memory; else the GPU of this number */
    bool                     read_only;
    const DLPackExchangeAPI *api;        /* of its library; NULL when it has none */
    PyObject                *keep;       /* owned: what must live while the data is used, or NULL */
} core_array_t;

/* Reads an array in host memory or on a GPU, by DLPack or the buffer protocol. It must be contiguous
 * (C order) and of a type that hora has. On failure sets TypeError, ValueError or BufferError and
 * returns false. The caller drops array_p->keep. */
bool core_array_read(PyObject *object, core_array_t *array_p);
/* The stream of a GPU that a library works on, in this thread, now. api NULL: the default stream, with
 * which libraries without DLPack's C functions were asked to synchronise when core_array_read called
 * their __dlpack__. False with an exception. */
bool core_stream_of(const DLPackExchangeAPI *api, int device, void **stream_p);
/* The same for what offers the buffer protocol, where it is enough to be offered. */
bool core_buffer_offered(PyObject *object);
bool core_buffer_read(PyObject *object, core_array_t *array_p);
/* is_dense(tensor): is it one of a library with DLPack's C functions, in contiguous memory? Raises
 * nothing. */
PyObject *core_is_dense(PyObject *module, PyObject *object);
/* The same for a dense array in CPU memory of a library with DLPack's C functions. false, with no exception
 * set: it is something else. There is nothing to keep. */
bool core_array_read_plain(PyObject *object, core_array_t *array_p);
/* The array is where results go: must be writable. */
bool core_array_read_output(PyObject *object, core_array_t *array_p);

/* Memory that hora gives away: freed by release(owner, data) once its last user is gone, on any
 * thread, without the GIL. */
typedef struct core_memory {
    void *data;
    void *owner;
    void (*release)(void *owner, void *data);
    int   device; /* -1: host memory; else the GPU of this number */
} core_memory_t;

/* A new hora._core.Array over the memory, which it then owns (also when this fails). */
PyObject *core_array_new(const core_memory_t *memory, hora_dtype_t dtype, int ndim,
                         const int64_t *shape);
/* The same as an object of another library (torch.Tensor, ...) without a detour through Python. */
PyObject *core_array_export(const core_memory_t *memory, hora_dtype_t dtype, int ndim,
                            const int64_t *shape, const DLPackExchangeAPI *api);

/* Has this array type DLPack's C functions, of the version that hora knows? Raises nothing. */
bool core_array_has_functions(PyTypeObject *type);

/* A str from hora's text; None for NULL. Text may hold parts of UTF-8 characters, because hora cuts
 * long texts by bytes and takes them from other programs: those become U+FFFD. */
PyObject *core_text(const char *text);

/* Sets the exception for a failed call: ValueError for invalid arguments and duplicate names, else
 * HorovodInternalError; both with the status value as attribute `status`. The text is
 * hora_last_error. */
PyObject *core_raise(hora_status_t status);
/* The same with another text. */
PyObject *core_raise_text(hora_status_t status, const char *text);
PyObject *core_raise_not_initialized(void);

/* Number arguments. Return false with an exception set, which names the argument. */
bool core_get_int(PyObject *object, const char *argument, int *value_p);
bool core_get_double(PyObject *object, const char *argument, double *value_p);
/* str, without null characters, or None (NULL). Borrowed from the object. */
bool core_get_string(PyObject *object, const char **value_p);
/* "float32", ...: hora_dtype_name's names. */
bool core_get_dtype(const char *name, hora_dtype_t *dtype_p);
bool core_check_count(Py_ssize_t given, Py_ssize_t wanted, const char *function);

/* true in the child of a fork(), where hora must not be called. */
extern bool core_forked;
bool core_check_process(void);

/* The rank options that init() and Communicator() take: rank, nranks, rendezvous, transport,
 * start_timeout, timeout. */
#define CORE_COMM_OPTIONS 6
bool core_get_comm_options(PyObject *const *args, hora_comm_options_t *options_p);

/* The job of init() has begun; or, with NULL, it ends: memory from alloc() is not given back any
 * more. With the GIL. */
void core_memory_job(hora_comm_t *world);
/* Another one after each beginning and each end of a job: it says whether the job is still the
 * same, which core_world does not, as addresses come back. With the GIL. */
extern uintptr_t core_job_number;

bool core_array_add_type(PyObject *module);
bool core_comm_add_type(PyObject *module);
bool core_handle_add_type(PyObject *module);

/* Ctrl-C while a call blocks without the GIL. On the main thread, enter() before the call makes
 * SIGINT abort `comm`, which ends the call; core_finish after it raises KeyboardInterrupt then, and
 * otherwise what the status says. enter() runs the signal handlers that are due, which may close
 * comm and let other threads run: the caller checks again. It returns false with a handler's
 * exception. On other threads enter() does nothing. */
bool core_interrupt_enter(hora_comm_t *comm);
PyObject *core_finish(hora_status_t status, bool entered);
/* comm is about to be freed, by whatever thread: SIGINT does not abort it any more. */
void core_interrupt_forget(hora_comm_t *comm);
/* Installs it. Python's own handler of SIGINT stays in place and runs first. Idempotent. */
PyObject *core_interrupt_install(PyObject *module, PyObject *unused);

/* start_timeline(path, mark_cycles), stop_timeline() */
PyObject *core_start_timeline(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *core_stop_timeline(PyObject *module, PyObject *unused);

/* The engine of all ranks and the communicator it was made from; NULL before init. */
extern hora_engine_t *core_engine;
extern hora_comm_t   *core_world;

/* A call on core_world that releases the GIL. Another thread's shutdown() frees the world only when
 * every such call has come back. Both with the GIL. */
typedef struct core_hold {
    hora_comm_t      *world; /* NULL: there is no job */
    struct core_hold *next;
    bool              collective; /* waits for other ranks, which may never come; at first false */
} core_hold_t;
void core_hold_world(core_hold_t *hold);
void core_let_go(core_hold_t *hold);

/* A process set. Set 0 is all ranks. */
typedef struct core_set {
    hora_engine_t *engine; /* NULL where this rank is not a member */
    int           *ranks;  /* [size] of the world, in the order of the set; NULL: no such set */
    int            size;
    int            rank;   /* mine in the set; -1 where it is not a member */
} core_set_t;

/* The set, whose engine is not NULL; NULL with ValueError when there is no such set or this rank is
 * no member. Valid until the GIL is released. */
const core_set_t *core_set_of_member(int id);
/* Makes a rank of the world a rank of the (existing) set; false with ValueError if it is no
 * member. */
bool core_set_translate(int id, int *rank);

PyObject *core_set_ids(PyObject *module, PyObject *unused);
PyObject *core_set_ranks(PyObject *module, PyObject *id);
PyObject *core_set_size(PyObject *module, PyObject *id);
PyObject *core_set_rank(PyObject *module, PyObject *id);
PyObject *core_set_included(PyObject *module, PyObject *id);
/* exchange(what, numbers): what each rank passes; collective over all ranks. */
PyObject *core_set_exchange(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
/* Collective over all ranks, which must pass the same ranks. */
PyObject *core_set_add(PyObject *module, PyObject *ranks);
/* Not collective by itself: the ranks must have agreed. */
PyObject *core_set_remove(PyObject *module, PyObject *id);

/* In this order. Without the GIL; collective over world. */
hora_status_t core_sets_open(hora_comm_t *world, const hora_engine_options_t *options);
/* With the GIL. false with an exception without memory. */
bool core_sets_fill(hora_comm_t *world, hora_engine_t *engine);
/* With the GIL. Frees every engine but that of set 0. After core_sets_open, whatever it said. */
void core_sets_close(void);

PyObject *core_enqueue(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
/* A new Handle of one task on the set of all ranks, whose input and output are `tensor`, which was read into
 * `array`. NULL with an exception. */
PyObject *core_start(const hora_task_t *task, unsigned flags, const core_array_t *array,
                     PyObject *tensor);
/* Its wait(). */
PyObject *core_wait(PyObject *handle);
/* Lets go of handles that were dropped before they were done, if they are now. */
void core_handle_sweep(void);

/* _tensor.c */
PyObject *core_tensors(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *core_reduce_tensor(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

#endif
