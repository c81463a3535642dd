/*
 * Which members of a communicator are on one host. Made once, then constant; any thread reads it.
 */
#ifndef HORA_TRANSPORT_HOSTS_H
#define HORA_TRANSPORT_HOSTS_H

#include "util/status.h"

/* Hosts are numbered in the order of their first members, a host's members in rank order:
 * member number i of host h is members[first[h] + i]. Equal on all members. */
typedef struct hora_hosts {
    int  count;       /* hosts */
    int  least, most; /* members of the smallest host and of the largest */
    int *host;        /* [size] of each member */
    int *number;      /* [size] its number on its host */
    int *first;       /* [count + 1] */
    int *members;     /* [size] */
} hora_hosts_t;

/* ids[i], 0 .. nids-1: what tells the hosts apart; any names. HORA_ERR_NO_MEMORY. */
hora_status_t hora_hosts_create(int size, const int *ids, int nids, hora_hosts_t **hosts_p);
/* NULL is allowed. */
void hora_hosts_destroy(hora_hosts_t *hosts);

static inline int hora_hosts_size(const hora_hosts_t *hosts, int host) {
    return hosts->first[host + 1] - hosts->first[host];
}
static inline int hora_hosts_member(const hora_hosts_t *hosts, int host, int number) {
    return hosts->members[hosts->first[host] + number];
}

#endif
