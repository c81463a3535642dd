/*
 * hora_allreduce by MPI_Allreduce (mpi.h). On the calling thread; comm->offload is touched by
 * the one thread that uses the communicator.
 *
 * The first allreduce on a communicator makes an MPI communicator of its members, whatever
 * transport links them. Each step of that is agreed on, because MPI_Init and MPI_Comm_create_group
 * wait for all. Only what gives hora's own results is handed over: no half types, which MPI lacks;
 * no minimum or maximum of floats, since MPI's lose a NaN; no scaled integers, which hora scales in
 * double.
 */
#include "offload/mpi/mpi.h"

#include "schedule/exec.h"
#include "transport/mpi/loader.h"
#include "util/log.h"

#include <kernels/cpu/kernels.h>
#include <stdlib.h>

struct hora_offload {
    const hora_mpi_plugin_t *plugin;
    hora_mpi_comm_t         *mpi; /* NULL: not all members have MPI; hora does everything */
    bool                     multiple;
};

bool hora_offload_mpi_suits(const hora_comm_t *comm, const hora_coll_t *coll) {
    bool scaled = coll->prescale != 1.0 || coll->postscale != 1.0;
    bool extreme = coll->op == HORA_MIN || coll->op == HORA_MAX;
    if (coll->kind != HORA_COLL_ALLREDUCE || comm->size == 1 || coll->count == 0)
        return false;
    if (comm->world->settings.deterministic || coll->op == HORA_ADASUM ||
        hora_dtype_is_half(coll->dtype))
        return false;
    return hora_dtype_is_float(coll->dtype) ? !extreme : !scaled;
}

/* ---- The MPI communicator -------------------------------------------------------------------- */

/* *all_p: whether every member says yes. */
static hora_status_t agree(hora_comm_t *comm, bool yes, bool *all_p) {
    int32_t     vote = yes;
    hora_coll_t coll = {
        .kind = HORA_COLL_ALLREDUCE, .dtype = HORA_INT32, .op = HORA_MIN, .rank = comm->rank,
        .size = comm->size, .count = 1, .in = &vote, .out = &vote, .prescale = 1.0,
        .postscale = 1.0, .name = "offload: do all ranks have MPI",
    };
    hora_status_t st = hora_coll_run(comm, &coll);
    if (st == HORA_OK)
        *all_p = vote != 0;
    return st;
}

/* ranks[i]: member i's rank in MPI_COMM_WORLD. */
static hora_status_t gather_ranks(hora_comm_t *comm, int mine, int *ranks) {
    size_t       *lists = malloc(2 * (size_t)comm->size * sizeof(*lists));
    int32_t       value = mine;
    hora_status_t st;
    if (lists == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "offload: %d ranks", comm->size);
    for (int i = 0; i < comm->size; i++) {
        lists[i] = 1;
        lists[comm->size + i] = (size_t)i;
    }
    hora_coll_t coll = {
        .kind = HORA_COLL_ALLGATHER, .dtype = HORA_INT32, .op = HORA_SUM, .rank = comm->rank,
        .size = comm->size, .count = 1, .in = &value, .out = ranks, .counts = lists,
        .displs = lists + comm->size, .prescale = 1.0, .postscale = 1.0,
        .name = "offload: MPI ranks",
    };
    st = hora_coll_run(comm, &coll);
    free(lists);
    return st;
}

static bool are_distinct(const int *ranks, int n) {
    for (int i = 0; i < n; i++)
        for (int j = 0; j < i; j++)
            if (ranks[i] == ranks[j])
                return false;
    return true;
}

/* All members have MPI initialised: make the communicator. */
static hora_status_t create(hora_comm_t *comm, struct hora_offload *self, int mine) {
    int          *ranks = malloc((size_t)comm->size * sizeof(*ranks));
    bool          made = false, all = false;
    hora_status_t st;
    if (ranks == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "offload: %d ranks", comm->size);
    st = gather_ranks(comm, mine, ranks);
    if (st == HORA_OK && are_distinct(ranks, comm->size)) { /* else they are several MPI jobs */
        made = self->plugin->comm_create(ranks, comm->size, (int)(comm->channel & 0x7fff),
                                         &self->mpi) == 0;
        st = agree(comm, made, &all);
    }
    if (made && !all) {
        self->plugin->comm_free(self->mpi, HORA_MPI_LATE);
        self->mpi = NULL;
    }
    free(ranks);
    return st;
}

static hora_status_t set_up(hora_comm_t *comm, struct hora_offload *self) {
    hora_world_t   *world = comm->world;
    hora_mpi_info_t info = {0};
    bool            all, ready;
    hora_status_t   st;
    ready = hora_mpi_load(world->settings.mpi_library, &self->plugin) == HORA_OK;
    st = agree(comm, ready, &all);
    if (st != HORA_OK || !all)
        return st;
    ready = self->plugin->init(&info) == 0;
    if (!ready)
        hora_log(HORA_LOG_WARNING, "offload: %s", self->plugin->error());
    self->multiple = info.multiple != 0;
    st = agree(comm, ready && info.size >= world->size, &all);
    if (st != HORA_OK || !all)
        return st;
    return create(comm, self, info.rank);
}

hora_status_t hora_offload_mpi_prepare(hora_comm_t *comm) {
    hora_status_t st;
    if (comm->offload != NULL)
        return HORA_OK;
    comm->offload = calloc(1, sizeof(*comm->offload));
    if (comm->offload == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "offload to MPI");
    st = set_up(comm, comm->offload);
    if (st == HORA_OK && comm->offload->mpi == NULL && comm->rank == 0)
        hora_log(HORA_LOG_WARNING, "MPI was asked for, but not all ranks have its plug-in and were "
                 "started by its mpirun, so hora reduces by itself");
    if (st == HORA_OK && comm->offload->mpi != NULL && comm->rank == 0)
        hora_log(HORA_LOG_INFO, "offload: allreduce of %d ranks by MPI_Allreduce (%s)", comm->size,
                 comm->offload->plugin->version());
    return st;
}

hora_status_t hora_offload_mpi_cuda(hora_comm_t *comm, bool *has_mpi_p, bool *all_p) {
    const struct hora_offload *self = comm->offload;
    bool                       has = self->mpi != NULL;
    *has_mpi_p = has;
    return agree(comm, has && self->plugin->cuda_aware() == 1, all_p);
}

void hora_offload_mpi_forget(hora_comm_t *comm) {
    struct hora_offload *self = comm->offload;
    bool                 failed = atomic_load(&comm->failure.raised) != HORA_OK;
    if (self->mpi != NULL) {
        if (!self->multiple)
            pthread_mutex_lock(&comm->world->lock);
        self->plugin->comm_free(self->mpi, failed ? HORA_MPI_LATE : HORA_MPI_QUIET);
        if (!self->multiple)
            pthread_mutex_unlock(&comm->world->lock);
    }
    free(self);
    comm->offload = NULL;
}

/* ---- The collective -------------------------------------------------------------------------- */

static void scale(const hora_coll_t *coll, const void *in, uint32_t divisor, double prescale,
                  double postscale) {
    hora_reduce_t how = {coll->dtype, HORA_SUM, divisor, prescale, postscale};
    void         *dst = coll->out;
    if (divisor != 1 || prescale != 1.0 || postscale != 1.0)
        hora_kernel_reduce(&how, &dst, 1, &in, 1, coll->count);
}

/* Under world->lock where MPI allows one thread at a time. */
hora_status_t hora_offload_mpi_reduce(hora_comm_t *comm, const hora_coll_t *coll, const void *in,
                                      hora_op_t op) {
    struct hora_offload *self = comm->offload;
    int                  failed;
    if (!self->multiple)
        pthread_mutex_lock(&comm->world->lock);
    failed = self->plugin->comm_allreduce(self->mpi, in, coll->out, coll->count, coll->dtype, op);
    if (!self->multiple)
        pthread_mutex_unlock(&comm->world->lock);
    if (!failed)
        return HORA_OK;
    hora_fail(HORA_ERR_PEER_FAILED, "allreduce by MPI: %s", self->plugin->error());
    hora_world_fail(comm->world, comm->channel, HORA_ERR_PEER_FAILED, -1, hora_last_error());
    return HORA_ERR_PEER_FAILED;
}

static hora_status_t allreduce(hora_comm_t *comm, const hora_coll_t *coll) {
    bool        average = coll->op == HORA_AVERAGE;
    uint32_t    divisor = coll->divisor != 0 ? coll->divisor : (uint32_t)comm->size;
    const void *in = coll->in;
    if (coll->prescale != 1.0) {
        scale(coll, in, 1, coll->prescale, 1.0);
        in = coll->out;
    }
    hora_status_t st = hora_offload_mpi_reduce(comm, coll, in, average ? HORA_SUM : coll->op);
    if (st == HORA_OK)
        scale(coll, coll->out, average ? divisor : 1, 1.0, coll->postscale);
    return st;
}

bool hora_offload_mpi(hora_comm_t *comm, const hora_coll_t *coll, hora_status_t *status_p) {
    hora_status_t st = HORA_OK;
    if (!hora_offload_mpi_suits(comm, coll))
        return false;
    /* A member that waits for an earlier operation needs this one to take part in it. */
    if (comm->first != NULL)
        st = hora_exec_wait(comm->last);
    if (st == HORA_OK)
        st = hora_failure_check(&comm->failure);
    if (st == HORA_OK)
        st = hora_offload_mpi_prepare(comm);
    if (st == HORA_OK && comm->offload->mpi == NULL)
        return false;
    *status_p = st == HORA_OK ? allreduce(comm, coll) : st;
    return true;
}
