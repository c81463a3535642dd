/*
 * A mailbox: a one-way stream of bytes between two ranks of a host, in the sender's arena. One
 * writer, one reader; wait-free on both sides. Neither side trusts the other's counter beyond the
 * size of the ring.
 */
#ifndef HORA_TRANSPORT_SHM_MAILBOX_H
#define HORA_TRANSPORT_SHM_MAILBOX_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef struct hora_mailbox {
    _Alignas(128) _Atomic uint64_t written; /* bytes ever written; by the sender */
    _Alignas(128) _Atomic uint64_t read;    /* bytes ever read; by the receiver */
    _Alignas(128) uint8_t ring[];
} hora_mailbox_t;

/* One end, in private memory. */
typedef struct hora_mailbox_end {
    hora_mailbox_t *box;
    size_t          size;   /* of the ring */
    uint64_t        mine;   /* my counter */
    uint64_t        theirs; /* the other's, as last seen */
} hora_mailbox_end_t;

void hora_mailbox_open(hora_mailbox_end_t *end, void *memory, size_t bytes);

/* Writer: how many bytes can be written now. */
size_t hora_mailbox_room(hora_mailbox_end_t *end);
/* Writer: copies bytes (at most the room) behind what was written; publish makes them visible. */
void hora_mailbox_put(hora_mailbox_end_t *end, const void *bytes, size_t len);
void hora_mailbox_publish(hora_mailbox_end_t *end);

/* Reader: how many bytes can be read now. SIZE_MAX if the writer's counter is impossible. */
size_t hora_mailbox_ready(hora_mailbox_end_t *end);
/* Reader: takes bytes (at most those ready); release gives their room back. */
void hora_mailbox_take(hora_mailbox_end_t *end, void *bytes, size_t len);
void hora_mailbox_skip(hora_mailbox_end_t *end, size_t len);
void hora_mailbox_release(hora_mailbox_end_t *end);

#endif
