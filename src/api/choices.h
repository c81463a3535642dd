/*
 * A call of a given size, as choosing and calibrating look at it. Any thread.
 */
#ifndef HORA_API_CHOICES_H
#define HORA_API_CHOICES_H

#include "schedule/algos.h"

/* float32, sum, root 0, equal blocks, no buffers. bytes: of the vector, or of all blocks on a rank.
 * lists: [2 * size], becomes the counts and offsets. */
hora_coll_t hora_choices_call(const hora_comm_t *comm, hora_coll_kind_t kind, size_t bytes,
                              size_t *lists);

#endif
