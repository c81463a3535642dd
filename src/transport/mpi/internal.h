/*
 * What the files of the mpi transport share. All of it under world->lock.
 *
 * A message is a packet (tag TAG_PACKET): a head, and the body too where it is small. A larger body
 * follows under a tag of its own, straight from the sender's buffer into the receiver's, in parts
 * of at most HORA_MPI_BYTES_MAX, one at a time. Each link keeps one receive for packets posted.
 * Matching may move a message's body while MPI writes a part of it: then the part is copied after.
 *
 * Buffers. MPI cannot be made to forget a buffer once a peer has begun to use it. So cancel asks
 * MPI and waits, up to WITHDRAW_SECONDS, for it to let go (a peer that makes any progress helps).
 * If that fails, the transport is dead: every link fails and hora never calls MPI again in this
 * process, not even at exit, so that nothing here makes MPI touch what no longer belongs to it.
 */
#ifndef HORA_TRANSPORT_MPI_INTERNAL_H
#define HORA_TRANSPORT_MPI_INTERNAL_H

#include "transport/match.h"
#include "transport/mpi/plugin.h"
#include "transport/transport.h"

#define TAG_PACKET       1
#define TAG_BODY         2 /* and above */
#define WITHDRAW_SECONDS 1.0
#define FLUSH_SECONDS    1.0
#define FAREWELL_SECONDS 0.2
#define HEAD_MAGIC       0x686f6d31u
#define PACKET_BODY      3840 /* with the head below 4096, which all MPIs send eagerly */

typedef enum head_kind { HEAD_MESSAGE = 1, HEAD_FAREWELL = 2 } head_kind_t;

typedef struct mpi_head {
    uint32_t magic, kind;
    uint64_t tag, len;
    uint32_t sig;
    uint32_t body_tag; /* 0: the body is in this packet */
} mpi_head_t;

typedef struct mpi_packet {
    mpi_head_t         head;
    uint8_t            body[PACKET_BODY];
    struct mpi_packet *next; /* in the free list */
} mpi_packet_t;
#define PACKET_BYTES (sizeof(mpi_head_t) + PACKET_BODY)

typedef struct mpi_link {
    hora_link_t      base;
    struct mpi_link *next;
    int              mpi_rank;
    uint32_t         bodies;    /* sent so far: makes the tag of the next */
    bool             farewell;  /* nothing more will come */
    bool             closing;   /* what was withdrawn is not received again */
    hora_match_t     match;
} mpi_link_t;

typedef enum op_kind {
    OP_NONE,
    OP_PACKET_RECV,
    OP_PACKET_SEND,
    OP_BODY_SEND,
    OP_BODY_RECV
} op_kind_t;

/* What a slot of the plug-in is used for. */
typedef struct mpi_op {
    op_kind_t       kind;
    mpi_link_t     *link;    /* PACKET_RECV, BODY_*; NULL: disconnected */
    mpi_packet_t   *packet;  /* PACKET_* */
    hora_xfer_t    *xfer;    /* BODY_SEND */
    hora_inbound_t *inbound; /* BODY_RECV */
    uint8_t        *to;      /* BODY_RECV: where MPI puts this part */
    size_t          bytes;   /* BODY_*: of this part */
    int             tag;     /* BODY_* */
    bool            withdrawn; /* BODY_RECV: its receive does not want it any more */
} mpi_op_t;

typedef struct mpi_transport {
    hora_transport_t         base;
    const hora_mpi_plugin_t *plugin;
    hora_mpi_info_t          info;
    hora_mpi_group_t        *group;
    uint8_t                  nonce[HORA_MPI_NONCE];
    mpi_link_t              *links;
    mpi_op_t                *ops; /* [nops], by slot */
    int                      nops;
    mpi_packet_t            *spare;
    hora_status_t            dead;   /* HORA_OK, or what everything fails with */
    bool                     parted; /* something sent to us will never be received */
    size_t                   part;   /* bytes of a body that go as one MPI message */
} mpi_transport_t;

/* xfer.c */
void     hora_mpi_send(hora_link_t *link, hora_xfer_t *xfer);
void     hora_mpi_recv(hora_link_t *link, hora_xfer_t *xfer);
void     hora_mpi_cancel(hora_link_t *link, hora_xfer_t *xfer);
unsigned hora_mpi_progress(hora_transport_t *transport, const hora_xfer_t *awaited);
/* Posts the link's receive for packets. Failure: self->dead. */
void hora_mpi_listen(mpi_transport_t *self, mpi_link_t *link);
/* Sends the packet that says that nothing more comes. */
void hora_mpi_send_farewell(mpi_transport_t *self, mpi_link_t *link);
/* Progresses until no slot of the kinds in `mask` (bit 1 << op_kind_t) of this link (NULL: of any)
 * is in use; false when `seconds` were not enough. */
bool hora_mpi_settle(mpi_transport_t *self, const mpi_link_t *link, unsigned mask, double seconds);
/* Ends everything with status and text; see above. */
void hora_mpi_die(mpi_transport_t *self, hora_status_t status, const mpi_link_t *link,
                  const char *text);

#endif
