/*
 * Process sets: groups of ranks, each with an engine of its own on a communicator of its own.
 *
 * Set 0 is all ranks; its engine belongs to _core.c. The others are made and removed by all ranks
 * together, over a private communicator of all ranks, the council; so the table is the same on
 * every rank but for the engines: a rank outside a set has an entry without one. That the ranks
 * mean the same set is checked by hora.common.process_sets, with exchange(). Everything runs under
 * the GIL except the calls on the council, which block; one thread at a time may be in them.
 */
#include "_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define TEXT_MAX 1024

static core_set_t            *sets;
static int                    nsets; /* entries; ranks == NULL: a free one */
static hora_comm_t           *council;
static bool                   in_council;
static hora_engine_options_t  options_of_sets;

/* ---- Asking -------------------------------------------------------------------------------- */

static const core_set_t *find(int id) {
    if (!core_world) {
        core_raise_not_initialized();
        return NULL;
    }
    if (id >= 0 && id < nsets && sets[id].ranks)
        return &sets[id];
    PyErr_Format(PyExc_ValueError, "Process set %d does not exist or has been removed.", id);
    return NULL;
}

static PyObject *list_of(const int *numbers, int count) {
    PyObject *list = PyList_New(count);
    for (int i = 0; list && i < count; i++) {
        PyObject *number = PyLong_FromLong(numbers[i]);
        if (!number || PyList_SetItem(list, i, number) < 0)
            Py_CLEAR(list);
    }
    return list;
}

static void raise_foreign(int id) {
    PyObject *ranks = list_of(sets[id].ranks, sets[id].size);
    if (!ranks)
        return;
    PyErr_Format(PyExc_ValueError, "rank %d is not part of process set %d, which has ranks %R",
                 hora_comm_rank(core_world), id, ranks);
    Py_DECREF(ranks);
}

const core_set_t *core_set_of_member(int id) {
    const core_set_t *set = find(id);
    if (!set || set->engine)
        return set;
    raise_foreign(id);
    return NULL;
}

bool core_set_translate(int id, int *rank) {
    const core_set_t *set = &sets[id];
    for (int i = 0; i < set->size; i++) {
        if (set->ranks[i] == *rank) {
            *rank = i;
            return true;
        }
    }
    PyObject *ranks = list_of(set->ranks, set->size);
    if (ranks)
        PyErr_Format(PyExc_ValueError, "root rank %d is not part of process set %d, which has "
                                       "ranks %R", *rank, id, ranks);
    Py_XDECREF(ranks);
    return false;
}

static const core_set_t *find_object(PyObject *object) {
    int id;
    return core_get_int(object, "process_set_id", &id) ? find(id) : NULL;
}

PyObject *core_set_ids(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    if (!core_world) {
        Py_XDECREF(list);
        return core_raise_not_initialized();
    }
    for (int id = 0; list && id < nsets; id++) {
        if (!sets[id].ranks)
            continue;
        PyObject *number = PyLong_FromLong(id);
        if (!number || PyList_Append(list, number) < 0)
            Py_CLEAR(list);
        Py_XDECREF(number);
    }
    return list;
}

PyObject *core_set_ranks(PyObject *module, PyObject *id) {
    (void)module;
    const core_set_t *set = find_object(id);
    return set ? list_of(set->ranks, set->size) : NULL;
}

PyObject *core_set_size(PyObject *module, PyObject *id) {
    (void)module;
    const core_set_t *set = find_object(id);
    return set ? PyLong_FromLong(set->size) : NULL;
}

PyObject *core_set_included(PyObject *module, PyObject *id) {
    (void)module;
    const core_set_t *set = find_object(id);
    return set ? PyBool_FromLong(set->rank >= 0) : NULL;
}

PyObject *core_set_rank(PyObject *module, PyObject *id) {
    (void)module;
    const core_set_t *set = find_object(id);
    if (!set)
        return NULL;
    if (set->rank >= 0)
        return PyLong_FromLong(set->rank);
    raise_foreign((int)(set - sets));
    return NULL;
}

/* ---- The table ----------------------------------------------------------------------------- */

static bool read_ranks(PyObject *object, core_set_t *set) {
    Py_ssize_t count = PySequence_Size(object);
    if (count < 0)
        return false;
    *set = (core_set_t){.rank = -1, .size = (int)count};
    set->ranks = malloc(((size_t)count + 1) * sizeof(*set->ranks));
    if (!set->ranks) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PySequence_GetItem(object, i);
        bool read = item && core_get_int(item, "a rank", &set->ranks[i]);
        Py_XDECREF(item);
        if (!read) {
            free(set->ranks);
            return false;
        }
        if (set->ranks[i] == hora_comm_rank(core_world))
            set->rank = (int)i;
    }
    return true;
}

/* The lowest free id, which is the same on all ranks; -1 without memory. */
static int free_id(void) {
    for (int id = 0; id < nsets; id++)
        if (!sets[id].ranks)
            return id;
    core_set_t *longer = realloc(sets, ((size_t)nsets + 1) * sizeof(*sets));
    if (!longer) {
        PyErr_NoMemory();
        return -1;
    }
    sets = longer;
    sets[nsets].ranks = NULL;
    return nsets++;
}

/* ---- The council --------------------------------------------------------------------------- */

/* The job is still the one of this number, and nobody is inside. */
static bool check_council(uintptr_t job) {
    if (!core_world || core_job_number != job)
        core_raise_not_initialized();
    else if (in_council)
        PyErr_SetString(PyExc_RuntimeError,
                        "another thread is adding or removing a process set");
    return !PyErr_Occurred();
}

/* May run a signal's handler, which may leave the job, join another, and let other threads run. */
static bool enter_council(void) {
    uintptr_t job = core_job_number;
    if (!core_check_process() || !check_council(job) || !core_interrupt_enter(core_world))
        return false;
    if (!check_council(job)) {
        core_finish(HORA_OK, true);
        return false;
    }
    in_council = true;
    return true;
}

/* core_finish may run a signal's handler, which may call shutdown(). */
static PyObject *leave_council(hora_status_t status) {
    in_council = false;
    return core_finish(status, true);
}

typedef struct lists {
    size_t   size;
    size_t  *counts; /* [size] */
    int64_t *numbers;
} lists_t;

static void drop_lists(lists_t *lists) {
    free(lists->counts);
    free(lists->numbers);
}

/* Without the GIL. */
static hora_status_t exchange(const char *what, const lists_t *mine, lists_t *lists_p) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    size_t size = (size_t)hora_comm_size(council), total = 0;
    int64_t count = (int64_t)mine->counts[0];
    int64_t *counts = calloc(size, sizeof(*counts));
    options.name = what;
    *lists_p = (lists_t){size, calloc(size, sizeof(*lists_p->counts)), NULL};
    hora_status_t status = counts && lists_p->counts ? HORA_OK : HORA_ERR_NO_MEMORY;
    if (status == HORA_OK)
        status = hora_allgather(council, &count, counts, 1, HORA_INT64, &options);
    for (size_t i = 0; status == HORA_OK && i < size; i++)
        total += lists_p->counts[i] = (size_t)counts[i];
    free(counts);
    if (status == HORA_OK && !(lists_p->numbers = malloc((total + 1) * sizeof(int64_t))))
        status = HORA_ERR_NO_MEMORY;
    if (status != HORA_OK)
        return status;
    hora_blocks_t blocks = {lists_p->numbers, lists_p->counts, NULL};
    return hora_allgatherv(council, mine->numbers, &blocks, HORA_INT64, &options);
}

static PyObject *python_lists(const lists_t *lists) {
    PyObject *result = PyList_New((Py_ssize_t)lists->size);
    const int64_t *next = lists->numbers;
    for (size_t i = 0; result && i < lists->size; i++) {
        PyObject *row = PyList_New((Py_ssize_t)lists->counts[i]);
        for (size_t j = 0; row && j < lists->counts[i]; j++) {
            PyObject *number = PyLong_FromLongLong(*next++);
            if (!number || PyList_SetItem(row, (Py_ssize_t)j, number) < 0)
                Py_CLEAR(row);
        }
        if (!row || PyList_SetItem(result, (Py_ssize_t)i, row) < 0)
            Py_CLEAR(result);
    }
    return result;
}

static bool read_numbers(PyObject *object, lists_t *mine_p) {
    Py_ssize_t count = PySequence_Size(object);
    if (count < 0)
        return false;
    *mine_p = (lists_t){1, malloc(sizeof(size_t)), malloc(((size_t)count + 1) * sizeof(int64_t))};
    if (!mine_p->counts || !mine_p->numbers)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; !PyErr_Occurred() && i < count; i++) {
        PyObject *item = PySequence_GetItem(object, i);
        mine_p->numbers[i] = item ? PyLong_AsLongLong(item) : -1;
        Py_XDECREF(item);
    }
    if (PyErr_Occurred()) {
        drop_lists(mine_p);
        return false;
    }
    mine_p->counts[0] = (size_t)count;
    return true;
}

PyObject *core_set_exchange(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    const char *what;
    lists_t mine, lists;
    if (!core_check_count(nargs, 2, "exchange") || !core_get_string(args[0], &what) ||
        !read_numbers(args[1], &mine))
        return NULL;
    if (!enter_council()) {
        drop_lists(&mine);
        return NULL;
    }
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = exchange(what, &mine, &lists);
    Py_END_ALLOW_THREADS
    PyObject *result = leave_council(status);
    if (result) {
        Py_DECREF(result);
        result = python_lists(&lists);
    }
    drop_lists(&lists);
    drop_lists(&mine);
    return result;
}

/* ---- Adding and removing ------------------------------------------------------------------- */

/* All ranks learn whether the engine could be made on each member. Without the GIL. text is set on
 * failure. */
static hora_status_t make(core_set_t *set, char *text) {
    hora_comm_t *comm = NULL;
    int32_t worst;
    hora_status_t status =
        hora_comm_split(council, set->rank < 0 ? -1 : 0, set->rank < 0 ? 0 : set->rank, &comm);
    if (status == HORA_OK && comm)
        status = hora_engine_create(comm, &options_of_sets, &set->engine);
    if (status != HORA_OK)
        snprintf(text, TEXT_MAX, "%s", hora_last_error());
    worst = status;
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    options.name = "add_process_set";
    hora_status_t told = hora_allreduce(council, &worst, &worst, 1, HORA_INT32, HORA_MIN, &options);
    if (told != HORA_OK && status == HORA_OK)
        snprintf(text, TEXT_MAX, "%s", hora_last_error());
    if (told == HORA_OK && status == HORA_OK && worst != HORA_OK)
        snprintf(text, TEXT_MAX, "add_process_set: another rank could not make it: %s",
                 hora_status_message((hora_status_t)worst));
    status = status != HORA_OK ? status : told != HORA_OK ? told : (hora_status_t)worst;
    if (status != HORA_OK) {
        hora_engine_free(set->engine);
        set->engine = NULL;
    }
    hora_comm_free(comm); /* the engine has a copy; all have come past their last use of it */
    return status;
}

PyObject *core_set_add(PyObject *module, PyObject *ranks) {
    (void)module;
    core_set_t set;
    char text[TEXT_MAX] = "";
    if (!core_world)
        return core_raise_not_initialized();
    if (!read_ranks(ranks, &set))
        return NULL;
    if (!enter_council()) {
        free(set.ranks);
        return NULL;
    }
    int id = free_id();
    if (id < 0) {
        free(set.ranks);
        return leave_council(HORA_OK);
    }
    const hora_comm_t *world = core_world;
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = make(&set, text);
    Py_END_ALLOW_THREADS
    PyObject *result = leave_council(HORA_OK);
    if (result && core_world != world) { /* a signal's handler or another thread has left the job */
        Py_CLEAR(result);
        core_raise_not_initialized();
    }
    if (result && status == HORA_OK) {
        Py_DECREF(result);
        sets[id] = set;
        return PyLong_FromLong(id);
    }
    hora_engine_free(set.engine);
    free(set.ranks);
    if (!result)
        return NULL;
    Py_DECREF(result);
    return PyErr_CheckSignals() == 0 ? core_raise_text(status, text) : NULL;
}

PyObject *core_set_remove(PyObject *module, PyObject *number) {
    (void)module;
    int id;
    if (!core_check_process() || !core_get_int(number, "process_set_id", &id) || !find(id))
        return NULL;
    if (id == 0)
        return PyErr_Format(PyExc_ValueError, "the global process set cannot be removed");
    hora_engine_t *engine = sets[id].engine;
    free(sets[id].ranks);
    sets[id] = (core_set_t){0};
    hora_status_t status;
    Py_BEGIN_ALLOW_THREADS
    status = hora_engine_free(engine);
    Py_END_ALLOW_THREADS
    core_handle_sweep();
    if (status != HORA_OK)
        return core_raise(status);
    Py_RETURN_NONE;
}

/* ---- With the job -------------------------------------------------------------------------- */

hora_status_t core_sets_open(hora_comm_t *world, const hora_engine_options_t *options) {
    options_of_sets = *options;
    return hora_comm_split(world, 0, hora_comm_rank(world), &council);
}

bool core_sets_fill(hora_comm_t *world, hora_engine_t *engine) {
    int size = hora_comm_size(world), id = free_id();
    int *ranks = id == 0 ? malloc((size_t)size * sizeof(*ranks)) : NULL;
    if (!ranks) {
        PyErr_NoMemory();
        return false;
    }
    for (int i = 0; i < size; i++)
        ranks[i] = i;
    sets[0] = (core_set_t){engine, ranks, size, hora_comm_rank(world)};
    return true;
}

/* Another thread may be adding a set: it gets an error. */
static void wait_for_council(void) {
    if (in_council)
        hora_comm_abort(council, "hora has been shut down");
    while (in_council) {
        Py_BEGIN_ALLOW_THREADS
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        Py_END_ALLOW_THREADS
    }
}

void core_sets_close(void) {
    wait_for_council();
    for (int id = 0; id < nsets; id++) {
        hora_engine_t *engine = id ? sets[id].engine : NULL;
        free(sets[id].ranks);
        sets[id] = (core_set_t){0};
        Py_BEGIN_ALLOW_THREADS
        hora_engine_free(engine);
        Py_END_ALLOW_THREADS
    }
    free(sets);
    sets = NULL;
    nsets = 0;
    hora_comm_t *closing = council;
    council = NULL;
    Py_BEGIN_ALLOW_THREADS
    hora_comm_free(closing);
    Py_END_ALLOW_THREADS
}
