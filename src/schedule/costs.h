/*
 * What an algorithm is expected to take. Any thread that may use the communicator.
 *
 * By measured times where world->costs has them, for communicators of all ranks; else by the algorithm's
 * own formula, with the rates of what carries its bytes. All that goes into it is equal on all members:
 * rank 0 has read the times from a file (costs_file.c) when the job began, and told the others.
 */
#ifndef HORA_SCHEDULE_COSTS_H
#define HORA_SCHEDULE_COSTS_H

#include "schedule/plan.h"
#include "transport/comm.h"

#include <stdio.h>

/* Times are measured at 11 sizes: 16 B, 64 B, ... 16 MB. */
#define HORA_COSTS_POINTS 11
#define HORA_COSTS_ALGOS  16 /* the first ones of hora_algo_list */
static inline size_t hora_costs_size(int point) {
    return (size_t)16 << (2 * point);
}

typedef struct hora_costs {
    /* Nanoseconds; 0: the algorithm cannot, or was not measured. */
    uint32_t ns[HORA_COLL_KIND_COUNT][HORA_COSTS_ALGOS][HORA_COSTS_POINTS];
    char     source[320]; /* file and day */
} hora_costs_t;

/* Bytes that a call is about, for choice and calibration: of the whole vector, or of all blocks on a
 * rank; where the members' blocks may differ, some size that is the same on all. */
size_t hora_costs_bytes(const hora_coll_t *coll);

/* Is tcp the slowest link between any two members? The same on all members. */
bool hora_costs_over_tcp(hora_comm_t *comm);

/* Seconds that coll takes with algo; elem: bytes of an element on the wire. */
double hora_costs_predict(hora_comm_t *comm, const hora_algo_t *algo, const hora_coll_t *coll,
                          size_t elem);
/* The same by the algorithm's formula, whatever was measured. */
double hora_costs_formula(hora_comm_t *comm, const hora_algo_t *algo, const hora_coll_t *coll,
                          size_t elem);

/* Rank 0's crowd and times as bytes for the other ranks; room >= 4. Without times if they do not fit. */
size_t hora_costs_encode(hora_world_t *world, void *bytes, size_t room);
/* Takes them up, on another rank. HORA_ERR_PROTOCOL, HORA_ERR_NO_MEMORY. */
hora_status_t hora_costs_decode(hora_world_t *world, const void *bytes, size_t len);

/* ---- costs_file.c ---- */

/* Reads the file that the settings name into world->costs, if there is one for this number of ranks
 * and hosts, these links and this machine. Anything else is a warning, and no times. Rank 0. */
void hora_costs_load(hora_world_t *world);
/* Where the file lies by the settings: path_p has `room` bytes. HORA_ERR_INVALID_ARGUMENT. */
hora_status_t hora_costs_path(const hora_world_t *world, char *path_p, size_t room);
/* The same, makes its folder, and looks whether a file can be written there, before anybody has
 * measured for seconds. HORA_ERR_SYSTEM: it cannot. */
hora_status_t hora_costs_prepare(const hora_world_t *world, char *path_p, size_t room);
/* Writes it, and makes its folder. */
hora_status_t hora_costs_save(const hora_world_t *world, const hora_costs_t *costs,
                              const char *path);

#endif
