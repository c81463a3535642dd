/*
 * Waiting for a GPU, on the host. On the thread that uses the communicator, with the GPU's context
 * current.
 */
#ifndef HORA_TRANSPORT_EVENT_H
#define HORA_TRANSPORT_EVENT_H

#include "transport/comm.h"
#include "util/gpu.h"

/* Blocks until the event has come, the communicator fails, or `timeout` seconds have passed (0: the
 * communicator's). `what` names what waits, in messages. */
hora_status_t hora_event_wait(hora_comm_t *comm, const hora_gpu_t *gpu, hora_cuda_event_t event,
                              double timeout, const char *what);
/* The same until all that is queued on the stream is done. */
hora_status_t hora_event_wait_stream(hora_comm_t *comm, const hora_gpu_t *gpu,
                                     hora_cuda_stream_t stream, double timeout, const char *what);
/* Blocks until all that is queued on the stream is done, or can never be; false: `seconds` have passed.
 * For those who give memory back: the communicator may have failed. */
bool hora_event_drain(const hora_world_t *world, const hora_gpu_t *gpu, hora_cuda_stream_t stream,
                      double seconds);
/* The same until the event has come. */
bool hora_event_drain_event(const hora_world_t *world, const hora_gpu_t *gpu, hora_cuda_event_t event,
                            double seconds);

#endif
