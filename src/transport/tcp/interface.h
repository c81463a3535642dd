/*
 * Which network interface, and so which address, this rank listens on. Called at start only, on the
 * joining thread; may ask the resolver.
 */
#ifndef HORA_TRANSPORT_TCP_INTERFACE_H
#define HORA_TRANSPORT_TCP_INTERFACE_H

#include "transport/world.h"

#include <sys/socket.h>

#define HORA_TCP_TEXT_MAX 64 /* an address or interface name, as text */

typedef struct hora_tcp_interface {
    struct sockaddr_storage sa; /* port 0 */
    socklen_t               len;
    struct sockaddr_storage mask; /* of its network; all 0: unknown */
    char                    name[HORA_TCP_TEXT_MAX]; /* "eth0" */
    char                    text[HORA_TCP_TEXT_MAX]; /* "192.0.2.7" */
    bool                    loopback;
} hora_tcp_interface_t;

/* HORA_INTERFACE (a name or an address); else loopback, if all ranks are on this host; else the
 * interface that leads to the rendezvous; else the one of the default route; else any that is up;
 * else loopback. Uses world->local_size, size and settings. */
hora_status_t hora_tcp_interface_choose(const hora_world_t *world, hora_tcp_interface_t *chosen_p);

/* "10.0.0.1" and its port, for messages. */
void hora_tcp_address_text(const struct sockaddr_storage *sa, char text[HORA_TCP_TEXT_MAX],
                           int *port_p);
bool hora_tcp_is_loopback(const struct sockaddr_storage *sa);
/* Is that address on this host, or in the interface's own network, with no router on the way? */
bool hora_tcp_is_near(const hora_tcp_interface_t *from, const struct sockaddr_storage *sa);

/* "eth0 192.0.2.7, lo 127.0.0.1": what is up, cut to fit. */
void hora_tcp_interface_list(char *text, size_t size);

#endif
