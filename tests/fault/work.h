/*
 * The phases in which a rank may die: steps that all ranks repeat. Each step checks its results.
 */
#ifndef TESTS_FAULT_WORK_H
#define TESTS_FAULT_WORK_H

#include <coll.h>

#define WORK_FLIGHT 4

typedef struct work work_t;

typedef struct phase {
    const char *name;
    /* One step. HORA_OK only with right results. Not HORA_OK: nothing of the step is in flight. */
    hora_status_t (*step)(work_t *w);
    coll_kind_t kind;
    size_t      count; /* floats, per rank or block */
    bool        arena; /* buffers from hora_alloc */
    bool        engine;
    int         flight; /* requests or tensors at once, up to WORK_FLIGHT; 0: one blocking call */
    const char *algo;     /* HORA_ALGO; NULL: as it comes */
    double      duration; /* about, of a few steps, in seconds */
} phase_t;

struct work {
    const phase_t *phase;
    hora_comm_t   *comm;
    hora_engine_t *engine;
    coll_t         colls[WORK_FLIGHT];
    unsigned       steps; /* done so far */
};

extern const phase_t work_phases[]; /* ends with a NULL name */
const phase_t *work_find(const char *name);

/* Buffers and engine for the phase. An error is that of the engine's making; work_end stays due. */
hora_status_t work_begin(work_t *w, const phase_t *phase, hora_comm_t *comm);
/* Frees them, whatever has happened to the communicator. */
void work_end(work_t *w);

#endif
