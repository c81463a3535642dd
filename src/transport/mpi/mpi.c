/*
 * The mpi transport: MPI point to point through the plug-in, for where an MPI knows the network
 * best. Opening, addresses, links and closing; xfer.c moves the bytes. All of it under world->lock.
 * open and close wait for other ranks, but not for ever.
 *
 * Each world has a communicator of its own, made by all ranks of the MPI job when they open it, so
 * that nothing left over from an earlier world can be taken for a message of this one.
 */
#include "transport/mpi/internal.h"
#include "transport/mpi/loader.h"
#include "util/clock.h"
#include "util/log.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ADDRESS_MAGIC 0x686f7261u

typedef struct mpi_address {
    uint32_t magic;
    int32_t  rank; /* in MPI_COMM_WORLD */
    uint8_t  nonce[HORA_MPI_NONCE];
} mpi_address_t;

/* Waits for the group: it is ready when all ranks of the MPI job have opened it. */
static hora_status_t await_group(mpi_transport_t *self) {
    double          timeout = self->base.world->settings.start_timeout;
    uint64_t        end = hora_clock_ns() + hora_clock_from_seconds(timeout);
    struct timespec nap = {0, 200000};
    for (;;) {
        int ready = self->plugin->group_poll(self->group, self->nonce);
        if (ready > 0)
            return HORA_OK;
        if (ready < 0)
            return hora_fail(HORA_ERR_PEER_FAILED, "mpi: joining: %s", self->plugin->error());
        if (hora_clock_ns() > end)
            return hora_fail(HORA_ERR_TIMEOUT, "mpi: not all %d ranks of the MPI job have joined "
                             "hora within %.0f s (HORA_START_TIMEOUT)", self->info.size, timeout);
        nanosleep(&nap, NULL);
    }
}

static hora_status_t start_mpi(mpi_transport_t *self) {
    hora_world_t *world = self->base.world;
    hora_status_t st = hora_mpi_load(world->settings.mpi_library, &self->plugin);
    if (st != HORA_OK)
        return st;
    if (self->plugin->init(&self->info) != 0)
        return hora_fail(HORA_ERR_UNSUPPORTED, "mpi: %s", self->plugin->error());
    if (self->info.size < world->size)
        return hora_fail(HORA_ERR_UNSUPPORTED, "mpi: the MPI job has %d ranks, hora's has %d: "
                         "start it with the mpirun or mpiexec of this MPI (%s)", self->info.size,
                         world->size, self->plugin->version());
    if (self->plugin->group_open(&self->group) != 0)
        return hora_fail(HORA_ERR_PEER_FAILED, "mpi: joining: %s", self->plugin->error());
    st = await_group(self);
    if (st != HORA_OK)
        self->plugin->group_close(self->group, HORA_MPI_DIRTY);
    return st;
}

static hora_status_t mpi_open(hora_world_t *world, hora_transport_t **self_p) {
    mpi_transport_t *self = calloc(1, sizeof(*self));
    hora_status_t    st;
    if (self == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "mpi transport");
    self->base.ops = &hora_transport_mpi;
    self->base.world = world;
    self->part = HORA_MPI_BYTES_MAX;
    st = start_mpi(self);
    if (st != HORA_OK) {
        free(self);
        return st;
    }
    hora_log(HORA_LOG_DEBUG, "mpi: rank %d of %d", self->info.rank, self->info.size);
    *self_p = &self->base;
    return HORA_OK;
}

static hora_status_t mpi_address(hora_transport_t *base, void *buf, size_t *len_p) {
    mpi_transport_t *self = (mpi_transport_t *)base;
    mpi_address_t    address = {.magic = ADDRESS_MAGIC, .rank = self->info.rank};
    if (*len_p < sizeof(address))
        return hora_fail(HORA_ERR_INTERNAL, "mpi: no room for an address");
    memcpy(address.nonce, self->nonce, sizeof(address.nonce));
    memcpy(buf, &address, sizeof(address));
    *len_p = sizeof(address);
    return HORA_OK;
}

static bool parse(const mpi_transport_t *self, const void *addr, size_t len, int *rank_p) {
    mpi_address_t address;
    if (len != sizeof(address))
        return false;
    memcpy(&address, addr, sizeof(address));
    if (address.magic != ADDRESS_MAGIC || address.rank < 0 || address.rank >= self->info.size ||
        address.rank == self->info.rank ||
        memcmp(address.nonce, self->nonce, sizeof(address.nonce)) != 0)
        return false;
    *rank_p = address.rank;
    return true;
}

static bool mpi_reachable(hora_transport_t *self, int peer, const void *addr, size_t len) {
    int rank;
    return parse((mpi_transport_t *)self, addr, len, &rank);
}

static hora_status_t mpi_connect(hora_transport_t *base, int peer, const void *addr, size_t len,
                                 hora_link_t **link_p) {
    mpi_transport_t *self = (mpi_transport_t *)base;
    mpi_link_t      *link;
    int              rank;
    if (!parse(self, addr, len, &rank))
        return hora_fail(HORA_ERR_PROTOCOL, "mpi: rank %d is not in this MPI job", peer);
    for (link = self->links; link != NULL; link = link->next)
        if (link->mpi_rank == rank)
            return hora_fail(HORA_ERR_PROTOCOL, "mpi: ranks %d and %d both claim to be rank %d of "
                             "the MPI job", link->base.peer, peer, rank);
    link = calloc(1, sizeof(*link));
    if (link == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "mpi link to rank %d", peer);
    link->base.transport = base;
    link->base.peer = peer;
    link->mpi_rank = rank;
    hora_match_init(&link->match);
    link->next = self->links;
    self->links = link;
    if (self->dead == HORA_OK)
        hora_mpi_listen(self, link);
    *link_p = &link->base;
    return HORA_OK; /* if listening failed, the first transfer says so */
}

/* After it MPI knows no buffer of the link's sends; its packets are our own. */
static void withdraw_sends(mpi_transport_t *self, mpi_link_t *link) {
    for (int slot = 0; slot < self->nops && self->dead == HORA_OK; slot++) {
        mpi_op_t *op = &self->ops[slot];
        if (op->kind == OP_BODY_SEND && op->link == link)
            hora_mpi_cancel(&link->base, op->xfer);
    }
}

static void remove_link(mpi_transport_t *self, mpi_link_t *link) {
    mpi_link_t **at = &self->links;
    hora_match_fail(&link->match, self->dead != HORA_OK ? self->dead : HORA_ERR_SHUT_DOWN);
    hora_match_destroy(&link->match);
    while (*at != link)
        at = &(*at)->next;
    *at = link->next;
    free(link);
}

/* After it MPI knows no buffer that the link receives into. */
static void stop_listening(mpi_transport_t *self, mpi_link_t *link) {
    const unsigned mask = 1u << OP_PACKET_RECV | 1u << OP_BODY_RECV;
    link->closing = true;
    for (int slot = 0; slot < self->nops && self->dead == HORA_OK; slot++) {
        mpi_op_t *op = &self->ops[slot];
        if (op->link == link && (mask & (1u << op->kind)) != 0 &&
            self->plugin->cancel(self->group, slot) != 0)
            hora_mpi_die(self, HORA_ERR_PEER_FAILED, link, self->plugin->error());
    }
    if (!hora_mpi_settle(self, link, mask, WITHDRAW_SECONDS))
        hora_mpi_die(self, HORA_ERR_SHUT_DOWN, link, "closed while a message was arriving");
    for (int slot = 0; slot < self->nops; slot++)
        if (self->ops[slot].link == link)
            self->ops[slot].link = NULL;
}

static void mpi_disconnect(hora_link_t *base) {
    mpi_link_t      *link = (mpi_link_t *)base;
    mpi_transport_t *self = (mpi_transport_t *)base->transport;
    self->parted |= !link->farewell;
    withdraw_sends(self, link);
    stop_listening(self, link);
    remove_link(self, link);
}

/* Tells every peer that nothing more comes, and hears the same from them: then the communicator is
 * quiet and can be given back. Peers may be long in coming, and need not come at all. */
static bool say_farewell(mpi_transport_t *self) {
    for (mpi_link_t *link = self->links; link != NULL && self->dead == HORA_OK; link = link->next)
        hora_mpi_send_farewell(self, link);
    hora_mpi_settle(self, NULL, ~0u, FAREWELL_SECONDS);
    for (mpi_link_t *link = self->links; link != NULL; link = link->next)
        if (!link->farewell)
            return false;
    return self->dead == HORA_OK && !self->parted;
}

static void free_spare(mpi_transport_t *self) {
    while (self->spare != NULL) {
        mpi_packet_t *next = self->spare->next;
        free(self->spare);
        self->spare = next;
    }
}

static void mpi_close(hora_transport_t *base) {
    mpi_transport_t *self = (mpi_transport_t *)base;
    const unsigned   sends = 1u << OP_PACKET_SEND | 1u << OP_BODY_SEND;
    bool             failed = atomic_load(&base->world->failure.raised) != HORA_OK;
    bool             quiet = false;
    hora_mpi_end_t   end;
    if (hora_mpi_settle(self, NULL, sends, FLUSH_SECONDS) && !failed)
        quiet = say_farewell(self);
    while (self->links != NULL)
        mpi_disconnect(&self->links->base);
    if (!hora_mpi_settle(self, NULL, ~0u, WITHDRAW_SECONDS))
        hora_mpi_die(self, HORA_ERR_SHUT_DOWN, NULL, "closed while a message was on its way");
    end = self->dead != HORA_OK ? HORA_MPI_DIRTY : quiet ? HORA_MPI_QUIET : HORA_MPI_LATE;
    self->plugin->group_close(self->group, end);
    free_spare(self);
    free(self->ops);
    free(self);
}

static int mpi_fd(hora_transport_t *self) {
    return -1; /* MPI has nothing to sleep on */
}

const hora_transport_ops_t hora_transport_mpi = {
    .size = sizeof(hora_transport_ops_t),
    .name = "mpi",
    .probe = hora_mpi_probe,
    .open = mpi_open,
    .close = mpi_close,
    .address = mpi_address,
    .reachable = mpi_reachable,
    .connect = mpi_connect,
    .send = hora_mpi_send,
    .recv = hora_mpi_recv,
    .cancel = hora_mpi_cancel,
    .progress = hora_mpi_progress,
    .fd = mpi_fd,
    .disconnect = mpi_disconnect,
};
