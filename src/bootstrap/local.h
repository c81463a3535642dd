/*
 * The ranks of one host: a socket between each two of them, over which they pass the descriptors of
 * their arenas and bells, and by which they see each other die.
 */
#ifndef HORA_BOOTSTRAP_LOCAL_H
#define HORA_BOOTSTRAP_LOCAL_H

#include "bootstrap/conn.h"
#include "bootstrap/roster.h"
#include "bootstrap/star.h"

typedef struct hora_local {
    int          listener; /* -1: closed */
    char         name[HORA_SOCKET_NAME_MAX];
    hora_conn_t *conns; /* [nconns], one per local peer, in rank order */
    int          nconns;
} hora_local_t;

/* Listens under a random name, before the roster tells it to the others. */
hora_status_t hora_local_open(hora_local_t *local);

/* Connects the ranks of this host and passes arenas among them, unless `share` is false. On return
 * either every rank of the host has world->arena with all arenas mapped, bells and eventfds, or
 * none has, which was said in a warning. Collective over the world. key: of the job. */
hora_status_t hora_local_exchange(hora_local_t *local, hora_world_t *world, hora_star_t *star,
                                  const hora_card_t *cards, uint64_t key, bool share);

/* Closes what is open. */
void hora_local_close(hora_local_t *local);

/* Gives up the arena: unmaps it, closes the other ranks' eventfds, puts the private bell back. */
void hora_local_unshare(hora_world_t *world);

#endif
