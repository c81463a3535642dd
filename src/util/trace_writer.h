/*
 * Makes a trace of the timeline's events: knows what state each tensor is in, and writes Horovod's
 * events into a trace file. The writer thread of a timeline, or a test.
 */
#ifndef HORA_UTIL_TRACE_WRITER_H
#define HORA_UTIL_TRACE_WRITER_H

#include "util/timeline.h"

typedef struct hora_trace_writer hora_trace_writer_t;

/* options->path: as hora_trace_file_resolve gives it. Time 0 of the trace is `now`, of
 * hora_clock_ns(). */
hora_status_t hora_trace_writer_create(const hora_timeline_options_t *options, uint64_t now,
                                       hora_trace_writer_t **writer_p);
/* ns: the event's time. The key of a tensor is (scope, label, name). Errors are those of the file;
 * a tensor for which there is no room is counted. */
hora_status_t hora_trace_writer_add(hora_trace_writer_t *writer, uint64_t ns,
                                    const hora_timeline_event_t *event);
/* `count` events were lost before this moment. */
hora_status_t hora_trace_writer_lost(hora_trace_writer_t *writer, uint64_t ns, uint64_t count);
/* Everything that was added is in the file. */
hora_status_t hora_trace_writer_flush(hora_trace_writer_t *writer);
/* Events lost altogether, those of tensors without room among them. */
uint64_t hora_trace_writer_losses(const hora_trace_writer_t *writer);
/* Ends what is open at ns, closes the file, frees. */
hora_status_t hora_trace_writer_close(hora_trace_writer_t *writer, uint64_t ns);

#endif
