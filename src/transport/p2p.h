/*
 * Point to point: transfers to any rank of the world, whatever transport carries them, and to
 * oneself. Takes world->lock itself; any thread.
 */
#ifndef HORA_TRANSPORT_P2P_H
#define HORA_TRANSPORT_P2P_H

#include "transport/comm.h"
#include "transport/transport.h"

/* Start a transfer with world rank `peer`. The caller has set buf, len, tag, sig and flags. */
void hora_p2p_send(hora_world_t *world, int peer, hora_xfer_t *xfer);
void hora_p2p_recv(hora_world_t *world, int peer, hora_xfer_t *xfer);

/* The transfer's status; moves all transports on first if it is still in progress. Statuses are
 * written under world->lock, so other threads' progress may finish it: read them only through this. */
hora_status_t hora_p2p_test(hora_world_t *world, hora_xfer_t *xfer);
/* The same for several, with one look at the transports: the index of one that is done, and its
 * status; else -1, and *status_p is not written. NULLs among xfers are passed over. first: where to
 * begin to look; who goes on after the last one found looks at each but once. */
int hora_p2p_test_any(hora_world_t *world, hora_xfer_t *const *xfers, int n, int first,
                      hora_status_t *status_p);

/* Moves all transports on, without blocking. Returns the number of events. */
unsigned hora_p2p_progress(hora_world_t *world);
/* Looks, without blocking, for what moves this transfer on, and perhaps for nothing else: for who waits
 * for it and looks at all transports now and then. Returns the number of events. */
unsigned hora_p2p_look(hora_world_t *world, const hora_xfer_t *xfer);

/* After it, nobody touches the transfer or its buffer. Does nothing to a transfer that is done. */
void hora_p2p_cancel(hora_world_t *world, hora_xfer_t *xfer);

/* Blocks until the transfer is done, the communicator fails, or `timeout` seconds have passed
 * (0: the communicator's); then it is cancelled. `what` names it in messages ("allgather"). */
hora_status_t hora_p2p_wait(hora_comm_t *comm, hora_xfer_t *xfer, double timeout, const char *what);

#endif
