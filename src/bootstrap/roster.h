/*
 * The roster: what every rank says of itself, and who is whose neighbour.
 */
#ifndef HORA_BOOTSTRAP_ROSTER_H
#define HORA_BOOTSTRAP_ROSTER_H

#include "bootstrap/star.h"
#include "transport/world.h"

#define HORA_SOCKET_NAME_MAX 48

/* One rank's entry. */
typedef struct hora_card {
    uint64_t host_id; /* equal: they can pass each other descriptors and share memory */
    char     host[HORA_HOST_MAX];
    char     socket[HORA_SOCKET_NAME_MAX]; /* abstract, where it meets its local peers; or "" */
    char     transport[16];                /* the transport setting; must be equal on all */
} hora_card_t;

/* The host name that this rank goes by: HORA_HOSTNAME or the system's. */
void hora_host_name(const hora_settings_t *settings, char host_p[HORA_HOST_MAX]);
/* One number for this boot of this host under this name, its network and IPC namespaces and my
 * user: what ranks must have in common to meet at an abstract socket and trust each other's
 * memory. */
uint64_t hora_host_identity(const char *host);

/* Bytes of a card; bytes_p has room for HORA_BLOB_MAX. */
size_t hora_card_encode(const hora_card_t *card, uint8_t *bytes_p);
bool   hora_card_decode(const void *bytes, size_t len, hora_card_t *card_p);

/* Exchanges the cards and fills in hosts, local and cross ranks of all peers and of the
 * world. Collective. The caller frees *cards_p, [size]. */
hora_status_t hora_roster_exchange(hora_world_t *world, hora_star_t *star, const hora_card_t *mine,
                                   hora_card_t **cards_p);

/* The computation of that alone, from the cards. HORA_ERR_NO_MEMORY. */
hora_status_t hora_roster_fill(hora_world_t *world, const hora_card_t *cards);

#endif
