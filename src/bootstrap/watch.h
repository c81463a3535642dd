/*
 * The watch: one thread that sleeps on the control connections until a rank dies, leaves, or has
 * something to say, and tells the other ranks.
 */
#ifndef HORA_BOOTSTRAP_WATCH_H
#define HORA_BOOTSTRAP_WATCH_H

#include "bootstrap/local.h"
#include "bootstrap/star.h"

typedef struct hora_watch hora_watch_t;

/* Takes over the connections of star and local, and sets world->announce and world->poke. On an
 * error the caller still owns them. */
hora_status_t hora_watch_start(hora_world_t *world, hora_star_t *star, hora_local_t *local,
                               hora_watch_t **watch_p);

/* Says goodbye, ends the thread, closes the connections, frees. NULL is allowed. */
void hora_watch_stop(hora_watch_t *watch);

#endif
