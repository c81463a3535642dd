/*
 * The rendezvous: rank 0 keeps the gate, the others ask to be let in.
 */
#ifndef HORA_BOOTSTRAP_GATE_H
#define HORA_BOOTSTRAP_GATE_H

#include "bootstrap/handshake.h"
#include "bootstrap/place.h"
#include "bootstrap/star.h"

typedef struct hora_meeting {
    hora_ticket_t ticket;
    hora_place_t  place;
    const char   *interface; /* name or address; "": none chosen */
    bool          wide;      /* the job has, or may have, other hosts */
    double        patience;  /* seconds in which all ranks must come */
} hora_meeting_t;

/* Rank 0: waits at the place until every other rank has proved itself, then fills the star. When
 * some are missing at the deadline, or one does not fit, all who came are told. gate.c */
hora_status_t hora_gate_keep(hora_meeting_t *meeting, hora_star_t *star);

/* The others: look for rank 0 until the deadline, prove themselves, wait until all are there.
 * knock.c */
hora_status_t hora_gate_knock(hora_meeting_t *meeting, hora_star_t *star);

/* For messages: of the patience, the seconds that have passed at a deadline that may have come
 * early (hora_poll_arm). gate.c */
double hora_gate_waited(const hora_meeting_t *meeting, uint64_t deadline);

#endif
