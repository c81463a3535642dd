/*
 * Members by host (hosts.h). Pure, any thread.
 */
#include "transport/hosts.h"

#include <stdlib.h>
#include <string.h>

void hora_hosts_destroy(hora_hosts_t *hosts) {
    if (hosts == NULL)
        return;
    free(hosts->host);
    free(hosts);
}

/* The arrays are one block, which begins at `host`. */
static hora_hosts_t *allocate(int size) {
    hora_hosts_t *hosts = calloc(1, sizeof(*hosts));
    size_t        n = (size_t)size;
    if (hosts == NULL)
        return NULL;
    hosts->host = calloc(4 * n + 1, sizeof(int));
    if (hosts->host == NULL) {
        free(hosts);
        return NULL;
    }
    hosts->number = hosts->host + n;
    hosts->members = hosts->number + n;
    hosts->first = hosts->members + n;
    return hosts;
}

/* Numbers the hosts, and counts their members in first[1 ..]. */
static void count_members(hora_hosts_t *hosts, int size, const int *ids, int *seen) {
    for (int i = 0; i < size; i++) {
        if (seen[ids[i]] == 0)
            seen[ids[i]] = ++hosts->count;
        hosts->host[i] = seen[ids[i]] - 1;
        hosts->number[i] = hosts->first[hosts->host[i] + 1]++;
    }
}

hora_status_t hora_hosts_create(int size, const int *ids, int nids, hora_hosts_t **hosts_p) {
    hora_hosts_t *hosts = allocate(size);
    int          *seen = calloc((size_t)nids, sizeof(*seen)); /* the host's number, from 1 */
    if (hosts == NULL || seen == NULL) {
        hora_hosts_destroy(hosts);
        free(seen);
        return hora_fail(HORA_ERR_NO_MEMORY, "the hosts of %d ranks", size);
    }
    count_members(hosts, size, ids, seen);
    free(seen);
    hosts->least = size;
    for (int h = 0; h < hosts->count; h++) {
        int members = hosts->first[h + 1];
        hosts->least = members < hosts->least ? members : hosts->least;
        hosts->most = members > hosts->most ? members : hosts->most;
        hosts->first[h + 1] += hosts->first[h];
    }
    for (int i = 0; i < size; i++)
        hosts->members[hosts->first[hosts->host[i]] + hosts->number[i]] = i;
    *hosts_p = hosts;
    return HORA_OK;
}
