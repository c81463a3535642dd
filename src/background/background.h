/*
 * The engine: named tasks enqueued in any order on each rank, executed in one order on all. This is
 * what src/api/engine.c calls once it has checked the arguments.
 */
#ifndef HORA_BACKGROUND_BACKGROUND_H
#define HORA_BACKGROUND_BACKGROUND_H

#include "transport/comm.h"

/* comm: private to the engine; it stays the caller's, who frees it after hora_background_free.
 * fusion_threshold: bytes, 0: fuse nothing. Not collective by itself; starts the background thread
 * where there is more than one rank. */
hora_status_t hora_background_create(hora_comm_t *comm, size_t fusion_threshold,
                                     hora_engine_t **engine_p);
/* Fails what is in flight with HORA_ERR_SHUT_DOWN, tells the other ranks, stops the thread. The
 * memory goes when the last handle is released. Afterwards nothing touches the communicator. */
void hora_background_free(hora_engine_t *engine);

hora_comm_t *hora_background_comm(const hora_engine_t *engine);

/* hora_engine_enqueue with tasks that have been checked (each of sizeof(hora_task_t), with a name).
 * Any thread. */
hora_status_t hora_background_enqueue(hora_engine_t *engine, const hora_task_t *tasks,
                                      size_t ntasks, unsigned flags, hora_handle_t **handle_p);

/* hora_handle_* of hora.h; handle is not NULL. Any thread. */
int           hora_background_poll(hora_handle_t *handle);
hora_status_t hora_background_wait(hora_handle_t *handle);
hora_status_t hora_background_stream_wait(hora_handle_t *handle, int device, void *stream);
void          hora_background_release(hora_handle_t *handle);
hora_status_t hora_background_output(hora_handle_t *handle, size_t index, hora_output_t *output_p);
/* Frees a result's data on a GPU; the engine may have ended. Waits for the GPU only if it has. */
void          hora_background_output_free(int device, void *at);

#endif
