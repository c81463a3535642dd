/*
 * The links (links.h). Runs on the thread that joins or leaves.
 */
#include "bootstrap/links.h"

#include "bootstrap/wire.h"

#include <stdio.h>
#include <stdlib.h>

static bool is(const char *a, const char *b) {
    return strcmp(a, b) == 0;
}

hora_status_t hora_links_check(const char *transport, bool *share_p) {
    if (!is(transport, "auto") && !is(transport, "shm") && !is(transport, "tcp") &&
        !is(transport, "mpi"))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "transport \"%s\" is not understood; expected "
                         "auto, shm, tcp or mpi", transport);
    *share_p = is(transport, "auto") || is(transport, "shm");
    return HORA_OK;
}

/* Every pair whose both ranks are on one host with an arena has shm. */
static bool needs_network(const hora_world_t *world) {
    return world->arena == NULL || world->local_size < world->size;
}

/* auto: shared memory where there is some, tcp for the rest; mpi only when asked for. */
static bool wants(const hora_world_t *world, const char *name) {
    const char *setting = world->settings.transport;
    if (!is(setting, "auto"))
        return is(setting, name);
    if (is(name, "shm"))
        return world->arena != NULL && world->local_size > 1;
    return is(name, "tcp") && needs_network(world);
}

static hora_status_t open_wanted(hora_world_t *world) {
    hora_status_t st = HORA_OK;
    for (int i = 0; hora_transport_list[i] != NULL && st == HORA_OK; i++) {
        if (!wants(world, hora_transport_list[i]->name))
            continue;
        pthread_mutex_lock(&world->lock);
        st = hora_transport_list[i]->open(world, &world->transports[world->ntransports]);
        world->ntransports += st == HORA_OK;
        pthread_mutex_unlock(&world->lock);
    }
    return st;
}

/* For each transport: its name, the length of its address, the address. */
static hora_status_t write_addresses(hora_world_t *world, uint8_t *bytes, size_t *len_p) {
    hora_wire_t w = hora_wire_over(bytes, HORA_BLOB_MAX);
    for (int i = 0; i < world->ntransports; i++) {
        hora_transport_t *t = world->transports[i];
        uint8_t           address[HORA_ADDRESS_MAX];
        size_t            len = sizeof(address);
        pthread_mutex_lock(&world->lock);
        hora_status_t st = t->ops->address(t, address, &len);
        pthread_mutex_unlock(&world->lock);
        if (st != HORA_OK)
            return st;
        hora_wire_put_text(&w, t->ops->name);
        hora_wire_put_u16(&w, (uint16_t)len);
        hora_wire_put_bytes(&w, address, len);
    }
    if (w.bad)
        return hora_fail(HORA_ERR_INTERNAL, "the addresses of the transports need too much room");
    *len_p = w.off;
    return HORA_OK;
}

/* The address of that transport in a rank's blob; false if it has none. */
static bool find_address(const hora_blob_t *blob, const char *name, const void **addr_p,
                         size_t *len_p) {
    hora_wire_t w = hora_wire_over(blob->bytes, blob->len);
    while (!w.bad && w.off < w.limit) {
        char text[32];
        hora_wire_get_text(&w, text, sizeof(text));
        size_t         len = hora_wire_get_u16(&w);
        const uint8_t *addr = hora_wire_take(&w, len);
        if (!w.bad && is(text, name)) {
            *addr_p = addr;
            *len_p = len;
            return true;
        }
    }
    return false;
}

static hora_status_t unreachable(const hora_world_t *world, int peer) {
    const hora_peer_t *me = &world->peers[world->rank], *other = &world->peers[peer];
    const char        *setting = world->settings.transport;
    if (is(setting, "shm"))
        return hora_fail(HORA_ERR_UNSUPPORTED, "shm does not reach from rank %d on host %s to "
                         "rank %d on host %s: %s; set HORA_TRANSPORT=auto", world->rank, me->host,
                         peer, other->host, other->local < 0 ? "they do not share a host"
                                                       : "there is no shared memory");
    return hora_fail(HORA_ERR_UNSUPPORTED, "no transport reaches from rank %d on host %s to rank "
                     "%d on host %s (HORA_TRANSPORT=%s)", world->rank, me->host, peer, other->host,
                     setting);
}

static hora_status_t connect_peer(hora_world_t *world, int peer, const hora_blob_t *blob) {
    for (int i = 0; i < world->ntransports; i++) {
        hora_transport_t *t = world->transports[i];
        const void       *addr = NULL;
        size_t            len = 0;
        if (find_address(blob, t->ops->name, &addr, &len) &&
            t->ops->reachable(t, peer, addr, len))
            return t->ops->connect(t, peer, addr, len, &world->peers[peer].link);
    }
    return unreachable(world, peer);
}

hora_status_t hora_links_open(hora_world_t *world, hora_star_t *star) {
    uint8_t       bytes[HORA_BLOB_MAX];
    size_t        len = 0;
    hora_blob_t  *blobs;
    hora_status_t st;
    if (world->size == 1)
        return HORA_OK;
    st = open_wanted(world);
    if (st == HORA_OK)
        st = write_addresses(world, bytes, &len);
    if (st == HORA_OK)
        st = hora_star_allgather(star, bytes, len, "addresses", &blobs);
    if (st != HORA_OK)
        return st;
    pthread_mutex_lock(&world->lock);
    for (int r = 0; r < world->size && st == HORA_OK; r++)
        if (r != world->rank)
            st = connect_peer(world, r, &blobs[r]);
    pthread_mutex_unlock(&world->lock);
    free(blobs);
    return st;
}

void hora_links_close(hora_world_t *world) {
    pthread_mutex_lock(&world->lock);
    for (int r = 0; r < world->size; r++)
        world->peers[r].link = NULL;
    for (int i = world->ntransports - 1; i >= 0; i--)
        world->transports[i]->ops->close(world->transports[i]);
    world->ntransports = 0;
    pthread_mutex_unlock(&world->lock);
}

void hora_links_describe(const hora_world_t *world, char *text, size_t size) {
    size_t len = 0;
    snprintf(text, size, "no links");
    for (int i = 0; i < world->ntransports && len < size; i++) {
        int peers = 0;
        for (int r = 0; r < world->size; r++)
            peers += r != world->rank && world->peers[r].link->transport == world->transports[i];
        len += (size_t)snprintf(text + len, size - len, "%s%d by %s", i > 0 ? ", " : "", peers,
                                world->transports[i]->ops->name);
    }
}
