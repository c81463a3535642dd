/*
 * Makes a real MPI CUDA-aware as far as the stand-in for CUDA (../cuda) goes: preloaded before it, for
 * tests only. The stand-in's memory faults when the host touches it, so an MPI that is handed a pointer
 * to it dies, unless this looks up where the stand-in keeps the content. Tells at the process's end how
 * often that was. Any thread.
 */
#include <dlfcn.h>
#include <mpi.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT int MPIX_Query_cuda_support(void);

static atomic_int calls;

/* Where the content is; NULL: it is no memory of a GPU's. */
static void *content(const void *at, size_t bytes) {
    static void *(*memory)(uint64_t at, size_t bytes, int gpu);
    void *library = dlopen(getenv("HORA_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    if (library == NULL)
        return NULL;
    *(void **)&memory = dlsym(library, "standin_memory");
    dlclose(library);
    return memory((uintptr_t)at, bytes, -1);
}

int MPIX_Query_cuda_support(void) {
    return 1;
}

EXPORT int MPI_Allreduce(const void *in, void *out, int count, MPI_Datatype type, MPI_Op op,
                         MPI_Comm comm) {
    bool        in_place = in == MPI_IN_PLACE;
    int         width = 0;
    const void *from;
    void       *to;
    MPI_Type_size(type, &width);
    to = content(out, (size_t)count * (size_t)width);
    from = in_place ? in : content(in, (size_t)count * (size_t)width);
    if (!in_place && (to == NULL) != (from == NULL)) {
        fprintf(stderr, "MPI_Allreduce between a GPU's memory and the host's\n");
        abort();
    }
    if (to == NULL)
        return PMPI_Allreduce(in, out, count, type, op, comm);
    atomic_fetch_add(&calls, 1);
    return PMPI_Allreduce(from, to, count, type, op, comm);
}

__attribute__((destructor)) static void tell(void) {
    if (atomic_load(&calls) > 0)
        fprintf(stderr, "MPI was given GPU memory %d times\n", atomic_load(&calls));
}
