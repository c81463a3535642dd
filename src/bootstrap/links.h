/*
 * The links: which transport carries the bytes to each rank.
 */
#ifndef HORA_BOOTSTRAP_LINKS_H
#define HORA_BOOTSTRAP_LINKS_H

#include "bootstrap/star.h"
#include "transport/transport.h"

/* Can ranks of one host share memory under this transport setting? HORA_ERR_INVALID_ARGUMENT if
 * there is no such setting. */
hora_status_t hora_links_check(const char *transport, bool *share_p);

/* Opens the transports that are allowed and needed, exchanges their addresses and gives every peer
 * its link: the first transport of the list that reaches. Collective. On an error the caller closes
 * what was opened (hora_links_close). */
hora_status_t hora_links_open(hora_world_t *world, hora_star_t *star);

/* Sends what is still queued and closes all transports with their links. */
void hora_links_close(hora_world_t *world);

/* "2 by shm, 4 by tcp": the peers per transport. */
void hora_links_describe(const hora_world_t *world, char *text, size_t size);

#endif
