/*
 * The roster (roster.h). Runs on the thread that joins; no state.
 */
#include "bootstrap/roster.h"

#include "bootstrap/wire.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

void hora_host_name(const hora_settings_t *settings, char host_p[HORA_HOST_MAX]) {
    char name[256] = "";
    if (settings->hostname[0] != '\0')
        snprintf(name, sizeof(name), "%s", settings->hostname);
    else if (gethostname(name, sizeof(name) - 1) != 0 || name[0] == '\0')
        snprintf(name, sizeof(name), "localhost");
    snprintf(host_p, HORA_HOST_MAX, "%.*s", HORA_HOST_MAX - 1, name);
    hora_text_sanitise(host_p);
}

static uint64_t hash_file(uint64_t hash, const char *path) {
    char    text[128];
    int     fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof(text)) : -1;
    if (fd >= 0)
        close(fd);
    return n > 0 ? hora_hash_bytes(hash, text, (size_t)n) : hash;
}

static uint64_t hash_inode(uint64_t hash, const char *path) {
    struct stat info;
    uint64_t    inode = stat(path, &info) == 0 ? (uint64_t)info.st_ino : 0;
    return hora_hash_bytes(hash, &inode, sizeof(inode));
}

uint64_t hora_host_identity(const char *host) {
    uid_t    user = geteuid();
    uint64_t hash = hora_hash_text(HORA_HASH_START, host);
    hash = hash_file(hash, "/proc/sys/kernel/random/boot_id");
    hash = hash_inode(hash, "/proc/self/ns/net");
    hash = hash_inode(hash, "/proc/self/ns/ipc");
    return hora_hash_bytes(hash, &user, sizeof(user));
}

size_t hora_card_encode(const hora_card_t *card, uint8_t *bytes_p) {
    hora_wire_t w = hora_wire_over(bytes_p, HORA_BLOB_MAX);
    hora_wire_put_u64(&w, card->host_id);
    hora_wire_put_text(&w, card->host);
    hora_wire_put_text(&w, card->socket);
    hora_wire_put_text(&w, card->transport);
    return w.off;
}

bool hora_card_decode(const void *bytes, size_t len, hora_card_t *card_p) {
    hora_wire_t w = hora_wire_over(bytes, len);
    hora_card_t card;
    card.host_id = hora_wire_get_u64(&w);
    hora_wire_get_text(&w, card.host, sizeof(card.host));
    hora_wire_get_text(&w, card.socket, sizeof(card.socket));
    hora_wire_get_text(&w, card.transport, sizeof(card.transport));
    if (w.bad || w.off != w.limit)
        return false;
    *card_p = card;
    return true;
}

/* Hosts by host_id: a hash table of the latest rank of each. */
typedef struct hosts {
    const hora_card_t *cards;
    int               *latest; /* [mask + 1], ranks + 1; 0: free */
    size_t             mask;
} hosts_t;

/* The latest rank of the host of rank r, which takes its place; -1: r is its first. */
static int take_latest(hosts_t *hosts, int r) {
    uint64_t id = hosts->cards[r].host_id;
    size_t   i = (id * 0x9e3779b97f4a7c15u) >> 32;
    int      before;
    while (hosts->latest[i & hosts->mask] != 0 &&
           hosts->cards[hosts->latest[i & hosts->mask] - 1].host_id != id)
        i++;
    before = hosts->latest[i & hosts->mask] - 1;
    hosts->latest[i & hosts->mask] = r + 1;
    return before;
}

hora_status_t hora_roster_fill(hora_world_t *world, const hora_card_t *cards) {
    const uint64_t my_host = cards[world->rank].host_id;
    hosts_t        hosts = {.cards = cards, .mask = 1};
    int            nhosts = 0;
    while (hosts.mask < 2 * (size_t)world->size)
        hosts.mask = 2 * hosts.mask + 1;
    hosts.latest = calloc(hosts.mask + 1, sizeof(*hosts.latest));
    if (hosts.latest == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a roster of %d ranks", world->size);
    world->local_size = world->cross_rank = world->cross_size = 0;
    for (int r = 0; r < world->size; r++) {
        hora_peer_t *peer = &world->peers[r];
        int          before = take_latest(&hosts, r);
        snprintf(peer->host, sizeof(peer->host), "%s", cards[r].host);
        peer->cross_rank = before < 0 ? nhosts++ : world->peers[before].cross_rank;
        peer->local_rank = before < 0 ? 0 : world->peers[before].local_rank + 1;
        peer->local = cards[r].host_id == my_host ? peer->local_rank : -1;
        world->local_size += peer->local >= 0;
    }
    free(hosts.latest);
    world->local_rank = world->peers[world->rank].local_rank;
    /* Across: the ranks of equal local rank, one of each host that has so many. */
    for (int r = 0; r < world->size; r++)
        if (world->peers[r].local_rank == world->local_rank) {
            world->cross_size++;
            world->cross_rank += r < world->rank;
        }
    return HORA_OK;
}

hora_status_t hora_roster_exchange(hora_world_t *world, hora_star_t *star, const hora_card_t *mine,
                                   hora_card_t **cards_p) {
    uint8_t       bytes[HORA_BLOB_MAX];
    size_t        len = hora_card_encode(mine, bytes);
    hora_blob_t  *blobs = NULL;
    hora_card_t  *cards;
    hora_status_t st = hora_star_allgather(star, bytes, len, "who is where", &blobs);
    if (st != HORA_OK)
        return st;
    cards = calloc((size_t)world->size, sizeof(*cards));
    if (cards == NULL)
        st = hora_fail(HORA_ERR_NO_MEMORY, "a roster of %d ranks", world->size);
    for (int r = 0; r < world->size && st == HORA_OK; r++) {
        if (!hora_card_decode(blobs[r].bytes, blobs[r].len, &cards[r]))
            st = hora_fail(HORA_ERR_PROTOCOL, "rank %d sent a malformed entry of the roster", r);
        else if (strcmp(cards[r].transport, mine->transport) != 0)
            st = hora_fail(HORA_ERR_MISMATCH, "rank %d on host %s is set to transport \"%s\", rank "
                           "%d on host %s to \"%s\": set HORA_TRANSPORT alike on all ranks",
                           r, cards[r].host, cards[r].transport, world->rank, mine->host,
                           mine->transport);
    }
    free(blobs);
    if (st == HORA_OK)
        st = hora_roster_fill(world, cards);
    if (st != HORA_OK) {
        free(cards);
        return st;
    }
    *cards_p = cards;
    return HORA_OK;
}
