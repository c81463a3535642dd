/*
 * What libhora asks of the MPI plug-in, libhora_mpi.so: a narrow table over MPI, with no knowledge
 * of worlds, tags or matching. MPI has no common binary interface, so only the plug-in includes
 * mpi.h and links MPI, and there is one plug-in for each MPI; it does not link libhora. It can be
 * built alone:
 *
 *     mpicc -shared -fPIC -O2 -Iinclude -Isrc src/transport/mpi/plugin/plugin.c -o libhora_mpi.so
 *
 * Functions return 0 (or what is said here) or -1; error() then has the text for this thread.
 * Calls that touch one group come one at a time. Where init says that MPI is not `multiple`, the
 * caller lets only one thread into the whole table at a time.
 */
#ifndef HORA_TRANSPORT_MPI_PLUGIN_H
#define HORA_TRANSPORT_MPI_PLUGIN_H

#include <hora/hora.h>
#include <stddef.h>
#include <stdint.h>

#define HORA_MPI_ABI       1u
#define HORA_MPI_NONCE     16 /* bytes */
#define HORA_MPI_BYTES_MAX ((size_t)1 << 30) /* of one send or recv: MPI's counts are int */
#define HORA_MPI_SYMBOL    "hora_mpi_plugin"

typedef struct hora_mpi_group hora_mpi_group_t; /* a private communicator of the whole MPI job */
typedef struct hora_mpi_comm  hora_mpi_comm_t;  /* a communicator to reduce on */

typedef struct hora_mpi_info {
    int rank, size; /* in MPI_COMM_WORLD */
    int tag_max;    /* largest tag; at least 32767 */
    int multiple;   /* 1: MPI_THREAD_MULTIPLE; 0: MPI_THREAD_SERIALIZED */
} hora_mpi_info_t;

/* One send or recv that has ended. */
typedef struct hora_mpi_done {
    int    slot;
    int    failed;    /* 1: see error() */
    int    cancelled; /* 1: cancel came in time; the buffer was not touched */
    size_t bytes;     /* received */
} hora_mpi_done_t;

typedef enum hora_mpi_end {
    HORA_MPI_QUIET, /* nothing is in flight on any rank: give the communicator back to MPI */
    HORA_MPI_LATE,  /* others may still send: keep the communicator, never use it again */
    HORA_MPI_DIRTY  /* buffers that MPI still knows are gone: do not call MPI again, nor at exit */
} hora_mpi_end_t;

typedef struct hora_mpi_plugin {
    size_t   size; /* sizeof(*this); slots are only ever appended */
    uint32_t abi;  /* HORA_MPI_ABI */
    const char *(*error)(void);
    /* First line of MPI_Get_library_version. NULL if the MPI that was found at run time is not the
     * one that the plug-in was built for. Before init too. */
    const char *(*version)(void);
    /* Initialises MPI unless it is. MPI stays so until the process ends, as it cannot be had twice;
     * then it is finalised if it was initialised here and everything had been closed in order. */
    int (*init)(hora_mpi_info_t *info_p);

    /* Starts making a group; all ranks of the MPI job must do so. Does not wait. */
    int (*group_open)(hora_mpi_group_t **group_p);
    /* 1: ready, and nonce holds bytes that are equal on all its ranks and nowhere else; 0: wait. */
    int (*group_poll)(hora_mpi_group_t *group, uint8_t nonce[HORA_MPI_NONCE]);
    void (*group_close)(hora_mpi_group_t *group, hora_mpi_end_t end);
    /* Start a transfer of at most HORA_MPI_BYTES_MAX bytes with an MPI rank. Return its slot, a
     * small number that is used again once test has reported it. */
    int (*send)(hora_mpi_group_t *group, const void *buf, size_t bytes, int peer, int tag);
    int (*recv)(hora_mpi_group_t *group, void *buf, size_t bytes, int peer, int tag);
    /* Asks to withdraw a recv; test reports whether that came in time. */
    int (*cancel)(hora_mpi_group_t *group, int slot);
    /* Reports up to `room` ended transfers; returns how many. Does not wait. */
    int (*test)(hora_mpi_group_t *group, hora_mpi_done_t *done, int room);

    /* A communicator of these MPI ranks, in this order; blocks until they have all called it. The
     * tag keeps apart what several threads make at once. */
    int (*comm_create)(const int *ranks, int n, int tag, hora_mpi_comm_t **comm_p);
    /* MPI_Allreduce; in may equal out. Blocks. AVERAGE, ADASUM and the half types are errors. */
    int (*comm_allreduce)(hora_mpi_comm_t *comm, const void *in, void *out, size_t count,
                          hora_dtype_t dtype, hora_op_t op);
    void (*comm_free)(hora_mpi_comm_t *comm, hora_mpi_end_t end);

    /* Does MPI take pointers to a GPU's memory? 1: it says so; 0: it does not; -1: it can only say it
     * after init. It knows no streams: what it reads must be there before a call, and what it writes is
     * there when the call returns. A GPU's context must be current in the calling thread. */
    int (*cuda_aware)(void);
} hora_mpi_plugin_t;

#endif
