/*
 * The timeline: what happens to each tensor and when, as a trace that Perfetto and chrome://tracing
 * show (docs/timeline.md). One per world; off until hora_timeline_begin.
 *
 * Threads. Any thread pushes events, under whatever locks it holds: a push copies them into a
 * buffer under a lock that is held for no longer. A writer thread makes JSON of them. When events
 * come faster than they can be written, they are dropped, counted, and the file and the log say so.
 * Begin and end come from any thread.
 *
 *     pushes -> [ buffer ] -> writer thread: trace_writer.c (states, JSON) -> trace_file.c (bytes)
 */
#ifndef HORA_UTIL_TIMELINE_H
#define HORA_UTIL_TIMELINE_H

#include "util/status.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

typedef enum hora_timeline_type {
    HORA_TIMELINE_ENQUEUED,  /* here; op */
    HORA_TIMELINE_REPORTED,  /* to the coordinator, by rank `number`; op */
    HORA_TIMELINE_READY,     /* the coordinator learns that rank `number` is ready; op */
    HORA_TIMELINE_AGREED,    /* the coordinator: every rank is ready */
    HORA_TIMELINE_STARTED,   /* is being executed; op */
    HORA_TIMELINE_ACTIVITY,  /* now this is done with it; activity NULL: nothing; op */
    HORA_TIMELINE_ENDED,     /* op, dtype, shape, bytes; text: NULL, or why it has failed */
    HORA_TIMELINE_CYCLE,     /* no tensor: the ranks execute what they have agreed on */
    HORA_TIMELINE_CLOCK      /* no tensor: rank 0's clock is `number` ns ahead, +- `bytes` ns */
} hora_timeline_type_t;

/* One event. Strings of op and activity are of static storage; the rest is copied. */
typedef struct hora_timeline_event {
    hora_timeline_type_t type;
    uint32_t             scope; /* tells tensors of one name apart (an engine's channel) */
    const char          *op, *activity; /* "ALLREDUCE", "MEMCPY_IN_FUSION_BUFFER" */
    const char          *label;         /* before the name, as "ranks 0, 2: "; NULL: nothing */
    const char          *name;          /* name_len bytes of any kind */
    size_t               name_len;
    const char          *dtype;         /* static storage */
    const int64_t       *shape;
    int                  ndim;          /* 0 .. HORA_MAX_DIMS */
    int64_t              number;
    uint64_t             bytes;
    const char          *text;
} hora_timeline_event_t;

typedef struct hora_timeline_options {
    const char *path; /* of the very file; relative to the folder of now */
    bool        mark_cycles;
    unsigned    copy; /* number of this copy of the library in the process; 0: the first */
    int         rank, size;
    const char *host;
    bool        clock_known; /* rank 0 is on this host: no HORA_TIMELINE_CLOCK will come */
} hora_timeline_options_t;

typedef struct hora_recorder hora_recorder_t;

typedef struct hora_timeline {
    atomic_bool      active;      /* a hint: a recorder may want events */
    atomic_bool      mark_cycles;
    atomic_uint      clocks;      /* HORA_TIMELINE_CLOCK events pushed since the begin */
    pthread_mutex_t  control;     /* begin and end, one at a time */
    hora_recorder_t *recorder;    /* under control; NULL: off */
    pthread_mutex_t  lock;        /* guards the rest */
    pthread_cond_t   wake;        /* of the writer */
    unsigned char   *buffer;      /* NULL: nobody wants events */
    size_t           used;
    uint64_t         dropped;     /* since the writer last looked */
    bool             ending;
} hora_timeline_t;

/* Who pushes: an engine. */
typedef struct hora_timeline_source {
    hora_timeline_t *timeline;
    uint32_t         scope;
    const int       *ranks;     /* in the world, of the engine's ranks */
    int              carrier;   /* the engine's own number for what carries its bytes */
    char             label[80]; /* "ranks 0, 2: ", or "" */
} hora_timeline_source_t;

void hora_timeline_init(hora_timeline_t *timeline);
/* Ends a recording. Nobody pushes any more. */
void hora_timeline_destroy(hora_timeline_t *timeline);

/* Starts to record; a recording that could not be written any more is ended first.
 * HORA_ERR_INVALID_ARGUMENT: it records already, or this process writes that file for another
 * world; HORA_ERR_SYSTEM names path and reason. */
hora_status_t hora_timeline_begin(hora_timeline_t *timeline,
                                  const hora_timeline_options_t *options);
/* Writes what is left and closes the file. HORA_OK too when nothing was being recorded.
 * HORA_ERR_SYSTEM: it could not be written to its end; what is there is valid. */
hora_status_t hora_timeline_end(hora_timeline_t *timeline);

static inline bool hora_timeline_on(const hora_timeline_t *timeline) {
    return __builtin_expect(
        atomic_load_explicit(&((hora_timeline_t *)timeline)->active, memory_order_relaxed), 0);
}
/* Call it only while hora_timeline_on. The event's time is that of this call. */
void hora_timeline_push(hora_timeline_t *timeline, const hora_timeline_event_t *event);

#endif
