/*
 * Making communicators, splitting them, and taking them apart again, but for what src/offload keeps in
 * them, which comes after and goes before. On the thread that uses them.
 */
#ifndef HORA_SCHEDULE_COMMS_H
#define HORA_SCHEDULE_COMMS_H

#include "transport/comm.h"

/* A communicator of `size` members, who are still to be filled in, as is its channel; in nobody's list.
 * NULL: no memory. */
hora_comm_t *hora_comm_new(hora_world_t *world, int size);
/* Puts it into world->comms and makes all that its members share. Collective. After an error it is closed. */
hora_status_t hora_comm_open(hora_comm_t *comm);
/* Takes it out of world->comms and frees it. True: it was the last one. */
bool hora_comm_close(hora_comm_t *comm);

/* What one rank says in a split. */
typedef struct hora_ballot {
    int32_t color, key;
} hora_ballot_t;

/* A split that the parent's members have agreed on. */
typedef struct hora_split {
    hora_ballot_t *ballots; /* [size of the parent]; hora_split_end frees it */
    hora_ballot_t  mine;
    int            size;    /* members of my color */
    uint32_t       channel; /* of the new communicators */
} hora_split_t;

/* Collective over the parent; an error: the parent has failed, or there is no memory here. After success
 * call hora_split_end. */
hora_status_t hora_split_agree(hora_comm_t *parent, int color, int key, hora_split_t *split_p);
/* Makes this rank's new communicator; NULL if its color is below 0. Collective over those of one color. part:
 * it is a part of the parent (transport/comm.h), else its own. An error: it has failed on all its members, or
 * there is no memory here. */
hora_status_t hora_split_make(hora_comm_t *parent, const hora_split_t *split, bool part,
                              hora_comm_t **comm_p);
void          hora_split_end(hora_split_t *split);

#endif
