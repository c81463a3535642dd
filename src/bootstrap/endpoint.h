/*
 * Sockets of the rendezvous: listen and connect at a place, and who is at the other end.
 */
#ifndef HORA_BOOTSTRAP_ENDPOINT_H
#define HORA_BOOTSTRAP_ENDPOINT_H

#include "bootstrap/place.h"

#include <sys/socket.h>

/* One address to try. */
typedef struct hora_endpoint {
    struct sockaddr_storage sa;
    socklen_t               len;
} hora_endpoint_t;

/* An abstract unix socket that listens; the descriptor, or -1 and errno. */
int hora_unix_listen(const char *name, int backlog);
/* A connection to one; -1 and errno (ECONNREFUSED: nobody listens; EAGAIN: its queue is full). */
int hora_unix_connect(const char *name);
/* The user at the other end of a unix socket is the one that I run as. */
bool hora_unix_same_user(int fd);
/* The process that connected, or listens, at the other end, by the number that it has in my process
 * namespace; 0: none there. */
pid_t hora_unix_process(int fd);

/* Listens for rank 0 at a TCP place: on the address of `interface` (a name or an address; "": on
 * that of the place's host), at the first free port, which it writes to place->port and text. Waits
 * for a single port until the deadline while this process itself listens at it, for another world.
 * With `wide`, the job has ranks elsewhere and a loopback address would not do. */
hora_status_t hora_net_listen(hora_place_t *place, const char *interface, bool wide,
                              uint64_t deadline, int *fd_p);

/* The addresses of a TCP place, all ports; the caller frees *list_p. A name that cannot be resolved
 * (yet) is no error: *count_p is 0 and *why_p says why (static storage). */
hora_status_t hora_net_resolve(const hora_place_t *place, hora_endpoint_t **list_p, size_t *count_p,
                               const char **why_p);
/* Connects before the deadline (hora_poll_late), from the address of `interface` if that is not "".
 * The descriptor, or -1 and errno. */
int hora_net_connect(const hora_endpoint_t *to, const char *interface, uint64_t deadline);
/* For a long-lived control connection: no delay, and the kernel notices within about ten seconds
 * that the other host is gone. Does nothing to a unix socket. */
void hora_net_keep(int fd);

#endif
