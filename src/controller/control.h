/*
 * Control messages on their way: frames between the coordinator (rank 0) and the other ranks of an
 * engine's communicator. Only the driving thread uses it.
 */
#ifndef HORA_CONTROLLER_CONTROL_H
#define HORA_CONTROLLER_CONTROL_H

#include "controller/message.h"
#include "transport/comm.h"

typedef struct hora_control hora_control_t;

/* A frame to be sent. */
typedef struct hora_outgoing hora_outgoing_t;

/* Posts the receives. comm must outlive it; its user tag 0 is taken. */
hora_status_t hora_control_create(hora_comm_t *comm, hora_control_t **control_p);
/* Withdraws what has not been sent or received. NULL is allowed. */
void hora_control_destroy(hora_control_t *control);

/* An empty frame, owned by control until it is sent. HORA_ERR_NO_MEMORY. */
hora_status_t hora_control_prepare(hora_control_t *control, hora_outgoing_t **out_p);
/* Its HORA_FRAME_MAX bytes. */
uint8_t *hora_outgoing_buf(hora_outgoing_t *out);
/* Starts to send: from rank 0 to every rank that has not left, from the others to rank 0. The frame
 * stays readable until the next hora_control_prepare. */
void hora_control_send(hora_control_t *control, hora_outgoing_t *out, size_t len);
/* Number of frames that were sent, however many ranks they went to. Any thread; for tests. */
unsigned long hora_control_frames(const hora_control_t *control);
/* Blocks until all that was sent is out of this rank's hands. What goes to ranks that have left is
 * withdrawn. timeout: seconds, 0: the communicator's. */
hora_status_t hora_control_flush(hora_control_t *control, double timeout);

/* A frame that has come: *from_p, and *buf_p until hora_control_release of that rank.
 * HORA_IN_PROGRESS: none. Does not block, but for a moment when the link to *from_p has broken, to
 * learn why; the error then says it. */
hora_status_t hora_control_receive(hora_control_t *control, int *from_p, const uint8_t **buf_p,
                                   size_t *len_p);
/* The frame has been read; receives the next one from that rank. */
void hora_control_release(hora_control_t *control, int from);
/* Nothing more will come from that rank, or go to it. */
void hora_control_forget(hora_control_t *control, int rank);

#endif
