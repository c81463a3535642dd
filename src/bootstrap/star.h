/*
 * The star: a control connection between rank 0 and every other rank, from the rendezvous until the
 * job is left. During the join it carries allgathers, on the joining thread; then the watch owns
 * it.
 */
#ifndef HORA_BOOTSTRAP_STAR_H
#define HORA_BOOTSTRAP_STAR_H

#include "bootstrap/conn.h"
#include "transport/world.h"

#define HORA_BLOB_MAX 2048u

typedef struct hora_star {
    int          rank, size;
    double       patience; /* seconds that an allgather waits */
    bool         failed;   /* the others know, or are being told */
    hora_conn_t *conns;    /* rank 0: [size], its own one closed; others: [1], to rank 0 */
    char (*hosts)[HORA_HOST_MAX]; /* as conns: whose host that is, for messages */
} hora_star_t;

static inline int hora_star_conns(const hora_star_t *star) {
    return star->rank == 0 ? star->size : star->size > 1 ? 1 : 0;
}

/* All connections closed. Freed by hora_star_destroy, also after an error. */
hora_status_t hora_star_init(hora_star_t *star, int rank, int size, double patience);
void          hora_star_destroy(hora_star_t *star);

typedef struct hora_blob {
    const uint8_t *bytes;
    uint32_t       len;
} hora_blob_t;

/* Every rank hands in a blob of at most HORA_BLOB_MAX bytes and receives all of them, in rank
 * order. Collective. The caller frees *blobs_p, which holds the bytes too. If a rank fails
 * meanwhile (hora_star_fail) or dies, every rank returns that error. phase: for messages ("the
 * arenas"). */
hora_status_t hora_star_allgather(hora_star_t *star, const void *blob, size_t len,
                                  const char *phase, hora_blob_t **blobs_p);

/* Tells the other ranks that this one cannot go on: their present or next allgather fails. */
void hora_star_fail(hora_star_t *star, hora_status_t status, const char *text);

/* Writes "2", "2 and 5" or "2, 5 and 7" for the ranks whose flag is `value`; the first sixteen. */
void hora_ranks_write(const uint8_t *flags, int size, uint8_t value, char *text, size_t room);

#endif
