/*
 * The arena: one memfd per rank, mapped by every rank of the host. Nothing is left behind in any
 * file system when the ranks die. Layout of each rank's memfd:
 *
 *     [head: magic, rank, bell] [mailboxes: one per local rank, which it reads] [heap]
 *
 * Pages are used only once touched. The heap serves hora_alloc, fusion buffers and pads; only its
 * owner allocates in it (any thread; arena->lock), every local rank reads and writes in it.
 */
#ifndef HORA_TRANSPORT_SHM_ARENA_H
#define HORA_TRANSPORT_SHM_ARENA_H

#include "transport/world.h"

/* Makes my own arena for `local_size` ranks of which I am number `local`. bytes: address space, 0:
 * chosen. *fd_p is the memfd (owned by the arena) to pass to the other local ranks. */
hora_status_t hora_arena_create(hora_world_t *world, int local, int local_size, size_t bytes,
                                hora_arena_t **arena_p, int *fd_p);
/* Maps the arena of local rank `local` from its memfd (consumed: closed even on error), after
 * checking its size and head. */
hora_status_t hora_arena_map(hora_arena_t *arena, int local, int fd);
/* Unmaps everything, but for this rank's own part while the user holds memory in it: that stays valid
 * until the process ends. NULL is allowed. */
void hora_arena_destroy(hora_arena_t *arena);

/* My own bell, in my head. */
hora_bell_t *hora_arena_bell(hora_arena_t *arena, int local);
/* Where local rank `to` finds bytes that local rank `from` sends it; *bytes_p long. In from's memfd. */
void *hora_arena_mailbox(hora_arena_t *arena, int from, int to, size_t *bytes_p);

/* Heap. 64-byte aligned. HORA_ERR_NO_MEMORY when the arena or the machine's memory is used up. */
hora_status_t hora_arena_alloc(hora_arena_t *arena, size_t bytes, void **ptr_p);
/* HORA_ERR_INVALID_ARGUMENT for a pointer that hora_arena_alloc did not return. */
hora_status_t hora_arena_free(hora_arena_t *arena, void *ptr);
/* The same for memory that the user holds (hora_alloc, hora_free). */
hora_status_t hora_arena_lend(hora_arena_t *arena, size_t bytes, void **ptr_p);
hora_status_t hora_arena_take_back(hora_arena_t *arena, void *ptr);

/* Offset of [ptr, ptr+bytes) in my memfd; false if it does not lie in my arena's heap. */
bool hora_arena_offset(const hora_arena_t *arena, const void *ptr, size_t bytes, uint64_t *offset_p);
/* The same bytes of local rank `local`, as this process sees them; NULL if they are out of range. */
void *hora_arena_at(const hora_arena_t *arena, int local, uint64_t offset, size_t bytes);

#endif
