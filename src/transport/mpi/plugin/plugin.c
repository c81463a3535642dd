/*
 * The MPI plug-in: the only file that includes mpi.h. See plugin.h, which is all that it shares
 * with libhora. It uses point to point for the transport and MPI_Allreduce for the offload.
 *
 * Threads: as plugin.h says; `live` and `dirty` are touched by the thread that holds them there.
 */
#include "transport/mpi/plugin.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#if defined(OPEN_MPI) && __has_include(<mpi-ext.h>)
#include <mpi-ext.h>
#endif
#if defined(MPIX_CUDA_AWARE_SUPPORT) && !MPIX_CUDA_AWARE_SUPPORT
#define LACKS_CUDA true /* Open MPI was configured without CUDA */
#else
#define LACKS_CUDA false
#endif

#if defined(OPEN_MPI)
#define BUILT_FOR "Open MPI"
#elif defined(MPICH_VERSION) || defined(MPICH)
#define BUILT_FOR "MPICH" /* and those that keep its ABI: Intel MPI, MVAPICH, Cray MPICH */
#else
#define BUILT_FOR ""
#endif

#define EXPORT __attribute__((visibility("default")))
EXPORT extern const hora_mpi_plugin_t hora_mpi_plugin;

typedef enum stage { STAGE_DUP, STAGE_NONCE, STAGE_READY } stage_t;

struct hora_mpi_group {
    MPI_Comm     comm;
    MPI_Request  pending; /* of the stage */
    stage_t      stage;
    uint8_t      nonce[HORA_MPI_NONCE];
    MPI_Request *requests; /* [room]; MPI_REQUEST_NULL: a free slot */
    MPI_Status  *statuses; /* [room] */
    int         *indices;  /* [room] */
    int         *freed;    /* [room]: stack of free slots below `used` */
    int          used, nfreed, room;
};

struct hora_mpi_comm {
    MPI_Comm comm;
};

static _Thread_local char error_text[MPI_MAX_ERROR_STRING + 128];
static atomic_int         live;  /* groups and communicators that are open */
static atomic_int         dirty; /* 1: never call MPI again */
static pid_t              initialised_by; /* a child of a fork must not finalise */
static pthread_mutex_t    init_lock = PTHREAD_MUTEX_INITIALIZER;

static const char *plugin_error(void) {
    return error_text;
}

static int fail(const char *text) {
    snprintf(error_text, sizeof error_text, "%s", text);
    return -1;
}

static int fail_mpi(const char *what, int code) {
    char text[MPI_MAX_ERROR_STRING + 1] = "";
    int  length = 0;
    MPI_Error_string(code, text, &length);
    snprintf(error_text, sizeof error_text, "%s: %s", what, text);
    return -1;
}

/* Both families are met under the name libmpi.so; calling one with the other's handles crashes. */
static bool is_family(const char *version) {
    bool open_mpi = strncmp(version, "Open MPI", 8) == 0;
    if (strcmp(BUILT_FOR, "Open MPI") == 0)
        return open_mpi;
    return strcmp(BUILT_FOR, "MPICH") != 0 || !open_mpi;
}

static const char *plugin_version(void) {
    static _Thread_local char text[MPI_MAX_LIBRARY_VERSION_STRING + 1];
    int                       length = 0;
    MPI_Get_library_version(text, &length);
    text[sizeof text - 1] = '\0';
    text[strcspn(text, "\n")] = '\0';
    for (char *c = text; *c != '\0'; c++)
        if (*c == '\t')
            *c = ' ';
    if (is_family(text))
        return text;
    snprintf(error_text, sizeof error_text,
             "the plug-in was built for " BUILT_FOR " but the process has loaded %.80s", text);
    return NULL;
}

/* Open MPI 4 loads components that look for its symbols in the global scope, where a library that
 * was loaded by a plug-in is not. */
static void make_mpi_global(void) {
    Dl_info info;
    if (dladdr((void *)(uintptr_t)MPI_Init_thread, &info) != 0 && info.dli_fname != NULL)
        (void)dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
}

/* At exit. A process that ends with something open ends in disorder: MPI_Finalize would wait for
 * ranks that wait for this one. Without it the launcher sees the loss and ends the job. */
static void finalize_at_exit(void) {
    int done = 0;
    if (atomic_load(&live) != 0 || atomic_load(&dirty) != 0 || getpid() != initialised_by)
        return;
    MPI_Finalized(&done);
    if (!done)
        MPI_Finalize();
}

static int init_once(int *level) {
    int done = 0, ended = 0, code;
    MPI_Finalized(&ended);
    if (ended)
        return fail("MPI was finalised in this process and cannot be initialised again");
    MPI_Initialized(&done);
    if (done) {
        MPI_Query_thread(level);
        return 0;
    }
    make_mpi_global();
    code = MPI_Init_thread(NULL, NULL, MPI_THREAD_MULTIPLE, level);
    if (code != MPI_SUCCESS)
        return fail_mpi("MPI_Init_thread", code);
    initialised_by = getpid();
    atexit(finalize_at_exit);
    return 0;
}

static int plugin_init(hora_mpi_info_t *info_p) {
    int  level = MPI_THREAD_SINGLE, found = 0, failed;
    int *tag_max = NULL;
    if (plugin_version() == NULL)
        return -1;
    if (atomic_load(&dirty) != 0)
        return fail("MPI is not used again after a transfer could not be withdrawn");
    pthread_mutex_lock(&init_lock);
    failed = init_once(&level);
    pthread_mutex_unlock(&init_lock);
    if (failed)
        return -1;
    if (level < MPI_THREAD_SERIALIZED)
        return fail("MPI was initialised for one thread only; initialise it with MPI_Init_thread "
                    "and MPI_THREAD_MULTIPLE, or let hora do it");
    info_p->multiple = level >= MPI_THREAD_MULTIPLE;
    info_p->tag_max = 32767;
    MPI_Comm_rank(MPI_COMM_WORLD, &info_p->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &info_p->size);
    MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag_max, &found);
    if (found)
        info_p->tag_max = *tag_max;
    return 0;
}

/* ---- Groups ---------------------------------------------------------------------------------- */

static int group_open(hora_mpi_group_t **group_p) {
    hora_mpi_group_t *group = calloc(1, sizeof *group);
    int               code;
    if (group == NULL)
        return fail("out of memory");
    group->stage = STAGE_DUP;
    code = MPI_Comm_idup(MPI_COMM_WORLD, &group->comm, &group->pending);
    if (code != MPI_SUCCESS) {
        free(group);
        return fail_mpi("MPI_Comm_idup", code);
    }
    atomic_fetch_add(&live, 1);
    *group_p = group;
    return 0;
}

static int random_bytes(uint8_t *out, size_t bytes) {
    int     fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, out, bytes);
    if (fd >= 0)
        close(fd);
    return got == (ssize_t)bytes ? 0 : fail("cannot read /dev/urandom");
}

static int start_nonce(hora_mpi_group_t *group) {
    int rank = 0, code;
    MPI_Comm_set_errhandler(group->comm, MPI_ERRORS_RETURN);
    MPI_Comm_rank(group->comm, &rank);
    if (rank == 0 && random_bytes(group->nonce, sizeof group->nonce) != 0)
        return -1;
    code = MPI_Ibcast(group->nonce, HORA_MPI_NONCE, MPI_BYTE, 0, group->comm, &group->pending);
    if (code != MPI_SUCCESS)
        return fail_mpi("MPI_Ibcast", code);
    group->stage = STAGE_NONCE;
    return 0;
}

static int group_poll(hora_mpi_group_t *group, uint8_t nonce[HORA_MPI_NONCE]) {
    int done = 0, code;
    if (group->stage != STAGE_READY) {
        code = MPI_Test(&group->pending, &done, MPI_STATUS_IGNORE);
        if (code != MPI_SUCCESS)
            return fail_mpi("MPI_Test", code);
        if (!done)
            return 0;
        if (group->stage == STAGE_DUP)
            return start_nonce(group);
        group->stage = STAGE_READY;
    }
    memcpy(nonce, group->nonce, HORA_MPI_NONCE);
    return 1;
}

static void group_close(hora_mpi_group_t *group, hora_mpi_end_t end) {
    if (end == HORA_MPI_DIRTY)
        atomic_store(&dirty, 1);
    if (end == HORA_MPI_QUIET && group->stage == STAGE_READY)
        MPI_Comm_free(&group->comm);
    atomic_fetch_sub(&live, 1);
    if (group->stage != STAGE_READY) {
        atomic_store(&dirty, 1); /* MPI still writes to it, and MPI_Finalize would wait for that */
        return;
    }
    free(group->requests);
    free(group->statuses);
    free(group->indices);
    free(group->freed);
    free(group);
}

static bool grow_one(void **array, size_t bytes) {
    void *grown = realloc(*array, bytes);
    if (grown != NULL)
        *array = grown;
    return grown != NULL;
}

static bool group_grow(hora_mpi_group_t *group) {
    size_t room = group->room > 0 ? 2 * (size_t)group->room : 64;
    if (!grow_one((void **)&group->requests, room * sizeof *group->requests) ||
        !grow_one((void **)&group->statuses, room * sizeof *group->statuses) ||
        !grow_one((void **)&group->indices, room * sizeof *group->indices) ||
        !grow_one((void **)&group->freed, room * sizeof *group->freed))
        return false;
    group->room = (int)room;
    return true;
}

static int slot_take(hora_mpi_group_t *group) {
    if (group->nfreed > 0)
        return group->freed[--group->nfreed];
    if (group->used == group->room && !group_grow(group))
        return fail("out of memory");
    group->requests[group->used] = MPI_REQUEST_NULL;
    return group->used++;
}

static void slot_give(hora_mpi_group_t *group, int slot) {
    group->requests[slot] = MPI_REQUEST_NULL;
    group->freed[group->nfreed++] = slot;
}

static int group_send(hora_mpi_group_t *group, const void *buf, size_t bytes, int peer, int tag) {
    int slot = slot_take(group), code;
    if (slot < 0)
        return -1;
    code = MPI_Isend(buf, (int)bytes, MPI_BYTE, peer, tag, group->comm, &group->requests[slot]);
    if (code == MPI_SUCCESS)
        return slot;
    slot_give(group, slot);
    return fail_mpi("MPI_Isend", code);
}

static int group_recv(hora_mpi_group_t *group, void *buf, size_t bytes, int peer, int tag) {
    int slot = slot_take(group), code;
    if (slot < 0)
        return -1;
    code = MPI_Irecv(buf, (int)bytes, MPI_BYTE, peer, tag, group->comm, &group->requests[slot]);
    if (code == MPI_SUCCESS)
        return slot;
    slot_give(group, slot);
    return fail_mpi("MPI_Irecv", code);
}

static int group_cancel(hora_mpi_group_t *group, int slot) {
    int code = MPI_Cancel(&group->requests[slot]);
    return code == MPI_SUCCESS ? 0 : fail_mpi("MPI_Cancel", code);
}

static void report(hora_mpi_group_t *group, int k, bool in_status, hora_mpi_done_t *done) {
    const MPI_Status *status = &group->statuses[k];
    int               count = 0, cancelled = 0;
    done->slot = group->indices[k];
    done->failed = in_status && status->MPI_ERROR != MPI_SUCCESS;
    done->bytes = 0;
    done->cancelled = 0;
    if (done->failed) {
        fail_mpi("MPI_Testsome", status->MPI_ERROR);
    } else {
        MPI_Test_cancelled(status, &cancelled);
        done->cancelled = cancelled != 0;
        /* The count of a cancelled receive, or of a send, means nothing. */
        if (!cancelled && MPI_Get_count(status, MPI_BYTE, &count) == MPI_SUCCESS && count > 0)
            done->bytes = (size_t)count;
    }
    slot_give(group, done->slot);
}

/* MPI_Testsome reports everything that has ended, so it is shown only as many requests at a time
 * as there is room for reports. */
static int group_test(hora_mpi_group_t *group, hora_mpi_done_t *done, int room) {
    int total = 0;
    for (int first = 0; first < group->used && total < room;) {
        int n = group->used - first < room - total ? group->used - first : room - total;
        int ended = 0;
        int code = MPI_Testsome(n, group->requests + first, &ended, group->indices,
                                group->statuses);
        if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS)
            return fail_mpi("MPI_Testsome", code);
        for (int k = 0; ended != MPI_UNDEFINED && k < ended; k++) {
            group->indices[k] += first;
            report(group, k, code == MPI_ERR_IN_STATUS, &done[total++]);
        }
        first += n;
    }
    return total;
}

/* ---- Allreduce ------------------------------------------------------------------------------- */

static int comm_create(const int *ranks, int n, int tag, hora_mpi_comm_t **comm_p) {
    hora_mpi_comm_t *comm = malloc(sizeof *comm);
    MPI_Group        all, members;
    int              code;
    if (comm == NULL)
        return fail("out of memory");
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    code = MPI_Group_incl(all, n, ranks, &members);
    MPI_Group_free(&all);
    if (code != MPI_SUCCESS) {
        free(comm);
        return fail_mpi("MPI_Group_incl", code);
    }
    code = MPI_Comm_create_group(MPI_COMM_WORLD, members, tag, &comm->comm);
    MPI_Group_free(&members);
    if (code != MPI_SUCCESS || comm->comm == MPI_COMM_NULL) {
        free(comm);
        return fail_mpi("MPI_Comm_create_group", code);
    }
    MPI_Comm_set_errhandler(comm->comm, MPI_ERRORS_RETURN);
    atomic_fetch_add(&live, 1);
    *comm_p = comm;
    return 0;
}

static MPI_Datatype type_of(hora_dtype_t dtype) {
    switch (dtype) {
    case HORA_BOOL: return MPI_C_BOOL;
    case HORA_INT8: return MPI_INT8_T;
    case HORA_INT16: return MPI_INT16_T;
    case HORA_INT32: return MPI_INT32_T;
    case HORA_INT64: return MPI_INT64_T;
    case HORA_UINT8: return MPI_UINT8_T;
    case HORA_UINT16: return MPI_UINT16_T;
    case HORA_UINT32: return MPI_UINT32_T;
    case HORA_UINT64: return MPI_UINT64_T;
    case HORA_FLOAT32: return MPI_FLOAT;
    case HORA_FLOAT64: return MPI_DOUBLE;
    default: return MPI_DATATYPE_NULL;
    }
}

static MPI_Op op_of(hora_dtype_t dtype, hora_op_t op) {
    bool logical = dtype == HORA_BOOL;
    switch (op) {
    case HORA_SUM: return logical ? MPI_LOR : MPI_SUM;
    case HORA_MIN: return logical ? MPI_LAND : MPI_MIN;
    case HORA_MAX: return logical ? MPI_LOR : MPI_MAX;
    case HORA_PRODUCT: return logical ? MPI_LAND : MPI_PROD;
    case HORA_BAND: return logical ? MPI_LAND : MPI_BAND;
    case HORA_BOR: return logical ? MPI_LOR : MPI_BOR;
    case HORA_BXOR: return logical ? MPI_LXOR : MPI_BXOR;
    default: return MPI_OP_NULL;
    }
}

static int comm_allreduce(hora_mpi_comm_t *comm, const void *in, void *out, size_t count,
                          hora_dtype_t dtype, hora_op_t op) {
    const size_t most = (size_t)1 << 28; /* elements a call: 2 GiB of the widest type */
    MPI_Datatype type = type_of(dtype);
    MPI_Op       mpi_op = op_of(dtype, op);
    int          width = 0;
    if (type == MPI_DATATYPE_NULL || mpi_op == MPI_OP_NULL)
        return fail("MPI has no such type or operation");
    MPI_Type_size(type, &width);
    for (size_t at = 0; at < count; at += most) {
        int         n = (int)(count - at < most ? count - at : most);
        const char *from = (const char *)in + at * (size_t)width;
        char       *to = (char *)out + at * (size_t)width;
        int         code = MPI_Allreduce(in == out ? MPI_IN_PLACE : from, to, n, type, mpi_op,
                                         comm->comm);
        if (code != MPI_SUCCESS)
            return fail_mpi("MPI_Allreduce", code);
    }
    return 0;
}

static void comm_free(hora_mpi_comm_t *comm, hora_mpi_end_t end) {
    if (end == HORA_MPI_DIRTY)
        atomic_store(&dirty, 1);
    if (end == HORA_MPI_QUIET)
        MPI_Comm_free(&comm->comm);
    atomic_fetch_sub(&live, 1);
    free(comm);
}

/* ---- GPUs ------------------------------------------------------------------------------------ */

#define GPU_SUPPORT_CUDA 0 /* MPICH's MPIX_GPU_SUPPORT_CUDA */

/* MPIX_Query_cuda_support: Open MPI since 2, MPICH since 4, MVAPICH; MPIX_GPU_query_support: MPICH since 4.
 * Neither is standard, and headers that lack them come with libraries that have them: so they are looked
 * up. Both must be called between MPI_Init and MPI_Finalize. */
static int plugin_cuda_aware(void) {
    void *simple = dlsym(RTLD_DEFAULT, "MPIX_Query_cuda_support");
    void *by_kind = dlsym(RTLD_DEFAULT, "MPIX_GPU_query_support");
    int (*query)(void);
    int (*query_kind)(int kind, int *is);
    int ready = 0, is = 0;
    if (simple == NULL && by_kind == NULL)
        return 0;
    MPI_Initialized(&ready);
    if (!ready)
        return LACKS_CUDA ? 0 : -1;
    if (simple != NULL) {
        memcpy(&query, &simple, sizeof query);
        return query() == 1;
    }
    memcpy(&query_kind, &by_kind, sizeof query_kind);
    return query_kind(GPU_SUPPORT_CUDA, &is) == MPI_SUCCESS && is != 0;
}

const hora_mpi_plugin_t hora_mpi_plugin = {
    .size = sizeof(hora_mpi_plugin_t),
    .abi = HORA_MPI_ABI,
    .error = plugin_error,
    .version = plugin_version,
    .init = plugin_init,
    .group_open = group_open,
    .group_poll = group_poll,
    .group_close = group_close,
    .send = group_send,
    .recv = group_recv,
    .cancel = group_cancel,
    .test = group_test,
    .comm_create = comm_create,
    .comm_allreduce = comm_allreduce,
    .comm_free = comm_free,
    .cuda_aware = plugin_cuda_aware,
};
