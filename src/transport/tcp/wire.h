/*
 * What goes over the wire: address blobs, the hello of a new connection, and the header of a frame.
 * Fixed layouts, little endian. Decoders believe nothing; they only look at the bytes. Any thread.
 *
 * A connection carries bytes one way, or both: each way a hello, then frames. A message is one frame or
 * several, which may travel over several connections; each frame says to which message it belongs and
 * where in it. Messages of one pair are numbered from 0, and matched with receives in this order.
 */
#ifndef HORA_TRANSPORT_TCP_WIRE_H
#define HORA_TRANSPORT_TCP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#define HORA_TCP_VERSION         3u
#define HORA_TCP_TOKEN_SIZE      16
#define HORA_TCP_ADDRESS_SIZE    44
#define HORA_TCP_HELLO_SIZE      64
#define HORA_TCP_HEADER_SIZE     48
#define HORA_TCP_CONNECTIONS_MAX 16
#define HORA_TCP_FRAME_MAX       ((uint32_t)1 << 30)
#define HORA_TCP_MESSAGE_MAX     ((uint64_t)1 << 48)

/* Where a rank listens, and the word that opens its door. */
typedef struct hora_tcp_address {
    struct sockaddr_storage sa;
    socklen_t               len;
    uint8_t                 token[HORA_TCP_TOKEN_SIZE];
} hora_tcp_address_t;

typedef struct hora_tcp_hello {
    uint32_t version;
    uint32_t rank;  /* who connects */
    uint32_t size;  /* ranks in its world */
    uint32_t index; /* which of its connections this is */
    uint32_t count; /* how many it opens */
    uint8_t  token[HORA_TCP_TOKEN_SIZE]; /* of the rank that it connects to */
} hora_tcp_hello_t;

typedef struct hora_tcp_header {
    uint64_t tag, number, total, offset; /* total: the message's bytes; offset: of this frame */
    uint32_t len;                        /* bytes that follow */
    uint32_t sig;
    uint32_t core; /* where the sender is, from 1; 0: unknown. For ranks of one host */
} hora_tcp_header_t;

void hora_tcp_address_encode(const hora_tcp_address_t *address, uint8_t out[HORA_TCP_ADDRESS_SIZE]);
bool hora_tcp_address_decode(const void *in, size_t len, hora_tcp_address_t *address_p);

void hora_tcp_hello_encode(const hora_tcp_hello_t *hello, uint8_t out[HORA_TCP_HELLO_SIZE]);
/* False unless it is a hello, of any version. */
bool hora_tcp_hello_decode(const uint8_t in[HORA_TCP_HELLO_SIZE], hora_tcp_hello_t *hello_p);

void hora_tcp_header_encode(const hora_tcp_header_t *header, uint8_t out[HORA_TCP_HEADER_SIZE]);
/* False unless the frame lies inside its message and all lengths are possible. */
bool hora_tcp_header_decode(const uint8_t in[HORA_TCP_HEADER_SIZE], hora_tcp_header_t *header_p);

#endif
