/*
 * Allreduces on GPUs by a CUDA-aware MPI: the path `mpi` (mpi.h, docs/decisions/0005). On the thread that
 * uses the communicator, with the GPU's context current.
 *
 *     caller's stream   work | prescale | ready       divide, postscale | work
 *     host                              waits | MPI_Allreduce |
 *
 * MPI knows no streams. So the host waits until the input is there, and blocks in MPI until the result is;
 * what is queued after that finds it. MPI may read and write with copies, with kernels of its own, or by the
 * network card. Nothing that MPI does on the GPU is a kernel of hora's; hora scales before and after.
 * What mpi.c does not hand over in host memory is not handed over here either, and nothing but allreduces:
 * the rest is staged.
 */
#include "offload/mpi/mpi.h"

#include "offload/cuda/elements.h"
#include "schedule/algos.h"
#include "schedule/exec.h"
#include "transport/event.h"

#include <string.h>

static void describe(const hora_comm_t *comm, const hora_gpu_place_t *place,
                     hora_gpu_facts_t *facts) {
    (void)place;
    facts->mpi = strcmp(comm->world->settings.offload, "mpi") == 0;
}

static const char *obstacle(const hora_comm_t *comm, const hora_gpu_facts_t *facts) {
    (void)comm;
    return facts[0].mpi || strcmp(facts[0].setting, "mpi") == 0 ? NULL
                                                                : "HORA_OFFLOAD=mpi does not ask for it";
}

static hora_status_t prepare(hora_comm_t *comm, const char **obstacle_p) {
    bool               has_mpi, aware;
    hora_status_t      st;
    hora_cuda_result_t result;
    if (comm->size == 1)
        return HORA_OK;
    st = hora_offload_mpi_prepare(comm);
    if (st == HORA_OK)
        st = hora_offload_mpi_cuda(comm, &has_mpi, &aware);
    if (st != HORA_OK)
        return hora_coll_fail(comm, st);
    if (!aware) {
        *obstacle_p = has_mpi ? "the MPI does not say that it takes pointers to GPUs' memory (CUDA-aware)"
                              : "not all ranks have the MPI plug-in and were started by its mpirun";
        return HORA_OK;
    }
    result = comm->gpu->gpu->cuda->event_create(&comm->gpu->mpi, HORA_CUDA_EVENT_NO_TIMING);
    st = hora_gpu_check(comm->gpu->gpu, result, "making an event");
    return st == HORA_OK ? st : hora_coll_fail(comm, st);
}

static bool takes(const hora_comm_t *comm, const hora_coll_t *coll) {
    return hora_offload_mpi_suits(comm, coll);
}

/* A rank that waits for an earlier operation of hora's needs this one to take part in it. */
static hora_status_t await_earlier(hora_comm_t *comm) {
    return comm->first != NULL ? hora_exec_wait(comm->last) : HORA_OK;
}

/* Until all that was queued on the stream is done, and no longer. */
static hora_status_t await_input(hora_comm_t *comm, const hora_coll_t *coll) {
    const hora_gpu_t  *gpu = coll->gpu->gpu;
    hora_cuda_result_t result = gpu->cuda->event_record(comm->gpu->mpi, coll->gpu->stream);
    hora_status_t      st = hora_gpu_check(gpu, result, "recording an event");
    return st == HORA_OK ? hora_event_wait(comm, gpu, comm->gpu->mpi, coll->timeout,
                                           "allreduce by MPI") : st;
}

static hora_status_t allreduce(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_reduce_t      how;
    const void        *in = coll->in;
    hora_element_how_t before = {coll->prescale, 1.0, 1}, after;
    hora_status_t      st = await_earlier(comm);
    hora_coll_how(coll, &how);
    after = (hora_element_how_t){1.0, how.postscale, how.divisor};
    if (st == HORA_OK && coll->prescale != 1.0) {
        st = hora_elements_scale(coll->gpu, coll->dtype, &before, in, coll->out, coll->count);
        in = coll->out;
    }
    if (st == HORA_OK)
        st = await_input(comm, coll);
    if (st == HORA_OK)
        st = hora_offload_mpi_reduce(comm, coll, in, coll->op == HORA_AVERAGE ? HORA_SUM : coll->op);
    if (st == HORA_OK && !hora_element_is_plain(&after))
        st = hora_elements_scale(coll->gpu, coll->dtype, &after, coll->out, coll->out, coll->count);
    return st;
}

static hora_status_t run(hora_comm_t *comm, const hora_coll_t *coll) {
    hora_status_t st = allreduce(comm, coll);
    return st == HORA_OK ? st : hora_coll_fail(comm, st);
}

static void forget(hora_comm_t *comm) {
    if (comm->gpu->mpi != NULL)
        comm->gpu->gpu->cuda->event_destroy(comm->gpu->mpi);
    comm->gpu->mpi = NULL;
}

const hora_gpu_path_t hora_gpu_path_mpi = {
    .name = "mpi", .describe = describe, .obstacle = obstacle, .prepare = prepare,
    .takes = takes, .run = run, .forget = forget,
};
