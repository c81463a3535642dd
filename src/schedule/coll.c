/*
 * Facts about collectives that algorithms and executors share: names, sizes, signatures, and how an
 * error between ranks is put into words and raised. Any thread.
 */
#include "schedule/algos.h"

#include <stdio.h>
#include <string.h>

static const char *const names[HORA_COLL_KIND_COUNT] = {
    [HORA_COLL_ALLREDUCE] = "allreduce", [HORA_COLL_REDUCE] = "reduce",
    [HORA_COLL_REDUCE_SCATTER] = "reduce_scatter", [HORA_COLL_ALLGATHER] = "allgather",
    [HORA_COLL_BROADCAST] = "broadcast", [HORA_COLL_ALLTOALL] = "alltoall",
    [HORA_COLL_GATHER] = "gather", [HORA_COLL_SCATTER] = "scatter",
    [HORA_COLL_BARRIER] = "barrier",
};

const char *hora_coll_name(hora_coll_kind_t kind) {
    return kind > 0 && kind < HORA_COLL_KIND_COUNT ? names[kind] : "unknown operation";
}

bool hora_algo_always(const hora_coll_t *coll) {
    (void)coll;
    return true;
}

size_t hora_coll_total(const hora_coll_t *coll) {
    size_t total = 0;
    if (coll->counts == NULL)
        return coll->count;
    for (int r = 0; r < coll->size; r++)
        total += coll->counts[r];
    return total;
}

size_t hora_coll_extent(const hora_coll_t *coll) {
    bool blocks = coll->kind == HORA_COLL_GATHER || coll->kind == HORA_COLL_SCATTER ||
                  coll->kind == HORA_COLL_ALLTOALL;
    return blocks ? coll->count * (size_t)coll->size : hora_coll_total(coll);
}

size_t hora_coll_shown(const hora_coll_t *coll, int rank) {
    switch (coll->kind) {
    case HORA_COLL_ALLGATHER:
        return coll->counts[rank];
    case HORA_COLL_BROADCAST:
    case HORA_COLL_SCATTER:
        return rank == coll->root ? hora_coll_extent(coll) : 0;
    case HORA_COLL_REDUCE:
    case HORA_COLL_GATHER:
        return rank == coll->root ? 0 : coll->count;
    default:
        return hora_coll_extent(coll);
    }
}

int hora_log2_ceil(int n) {
    int k = 0;
    while ((1L << k) < n)
        k++;
    return k;
}

size_t hora_block_longest(const hora_coll_t *coll) {
    size_t most = 0;
    for (int b = 0; b < coll->size; b++)
        if (hora_block_count(coll, b) > most)
            most = hora_block_count(coll, b);
    return most;
}

void hora_coll_how(const hora_coll_t *coll, hora_reduce_t *how_p) {
    bool     average = coll->op == HORA_AVERAGE;
    uint32_t all = coll->divisor != 0 ? coll->divisor : (uint32_t)coll->size;
    *how_p = (hora_reduce_t){.dtype = coll->dtype,
                             .op = average || coll->op == HORA_ADASUM ? HORA_SUM : coll->op,
                             .divisor = average ? all : 1,
                             .prescale = coll->prescale,
                             .postscale = coll->postscale};
}

/* ---- signatures: kind (4 bits), operation (4), type (4), hash (20) ---- */

#define HASH_MASK 0xfffffu

static uint64_t mix(uint64_t hash, uint64_t value) {
    hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

static uint64_t bits_of(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static bool is_rooted(hora_coll_kind_t kind) {
    return kind == HORA_COLL_REDUCE || kind == HORA_COLL_BROADCAST || kind == HORA_COLL_GATHER ||
           kind == HORA_COLL_SCATTER;
}

uint32_t hora_coll_sig(const hora_coll_t *coll) {
    bool     typed = coll->kind != HORA_COLL_BARRIER;
    uint32_t op = hora_coll_reduces(coll->kind) ? (uint32_t)coll->op : 0;
    uint64_t hash = mix(1, is_rooted(coll->kind) ? (uint64_t)coll->root : 0);
    if ((coll->counts == NULL && typed) || coll->kind == HORA_COLL_ALLTOALL)
        hash = mix(hash, coll->count);
    for (int r = 0; coll->counts != NULL && coll->kind != HORA_COLL_ALLTOALL && r < coll->size; r++)
        hash = mix(hash, coll->counts[r]);
    if (hora_coll_reduces(coll->kind) && (coll->prescale != 1.0 || coll->postscale != 1.0))
        hash = mix(mix(hash, bits_of(coll->prescale)), bits_of(coll->postscale));
    if (coll->staged)
        hash = mix(hash, 1);
    return (uint32_t)coll->kind << 28 | op << 24 | (typed ? (uint32_t)coll->dtype : 0) << 20 |
           (uint32_t)(hash >> 32 & HASH_MASK);
}

uint32_t hora_coll_sig_with(uint32_t sig, uint64_t value) {
    return sig ^ (uint32_t)(mix(2, value) >> 32 & HASH_MASK);
}

/* "allreduce(sum, float32)" */
static void describe(uint32_t sig, char *text, size_t size) {
    hora_coll_kind_t kind = (hora_coll_kind_t)(sig >> 28);
    const char      *dtype = hora_dtype_name((hora_dtype_t)(sig >> 20 & 15));
    if (kind == HORA_COLL_BARRIER)
        snprintf(text, size, "barrier()");
    else if (hora_coll_reduces(kind))
        snprintf(text, size, "%s(%s, %s)", hora_coll_name(kind),
                 hora_op_name((hora_op_t)(sig >> 24 & 15)), dtype);
    else
        snprintf(text, size, "%s(%s)", hora_coll_name(kind), dtype);
}

hora_status_t hora_coll_mismatch(hora_comm_t *comm, const hora_coll_t *coll, uint32_t own, int rank,
                                 uint32_t theirs) {
    char        mine[64], other[64], name[80] = "";
    int         me = hora_comm_name(comm, comm->rank), them = hora_comm_name(comm, rank);
    const char *host = hora_comm_peer(comm, comm->rank)->host;
    const char *peer_host = hora_comm_peer(comm, rank)->host;
    describe(own, mine, sizeof(mine));
    describe(theirs, other, sizeof(other));
    if (coll->name != NULL && coll->name[0] != 0)
        snprintf(name, sizeof(name), " '%.70s'", coll->name);
    if ((own ^ theirs) & ~HASH_MASK)
        return hora_fail(HORA_ERR_MISMATCH,
                         "operations do not match: rank %d on host %s called %s%s, but rank %d on "
                         "host %s called %s",
                         me, host, mine, name, them, peer_host, other);
    return hora_fail(HORA_ERR_MISMATCH,
                     "operations do not match: rank %d on host %s and rank %d on host %s both "
                     "called %s%s, but with different counts or roots, one on a GPU and one in host "
                     "memory, or with different HORA_* settings",
                     me, host, them, peer_host, mine, name);
}

hora_status_t hora_coll_fail(hora_comm_t *comm, hora_status_t status) {
    char          text[HORA_FAILURE_TEXT_MAX];
    hora_status_t st = hora_failure_check(&comm->failure);
    if (st != HORA_OK)
        return st;
    if (status == HORA_ERR_MISMATCH) /* it names both sides */
        snprintf(text, sizeof(text), "%s", hora_last_error());
    else
        snprintf(text, sizeof(text), "%s (found by rank %d on host %s)", hora_last_error(),
                 hora_comm_name(comm, comm->rank), hora_comm_peer(comm, comm->rank)->host);
    hora_world_fail(comm->world, hora_comm_family(comm), status, -1, text);
    st = hora_failure_check(&comm->failure);
    return st != HORA_OK ? st : hora_fail_again(status, text);
}
