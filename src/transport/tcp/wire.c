/*
 * Encoding and decoding; see wire.h. Pure functions.
 */
#include "transport/tcp/wire.h"

#include "util/bytes.h"

#include <netinet/in.h>

#define ADDRESS_MAGIC 0x61726f68u          /* "hora" */
#define HELLO_MAGIC   0x6f6c6c6568726f68u  /* "horhello" */
#define FRAME_MAGIC   0x6d617266u          /* "fram" */
#define CORE_MAX      0xffffu

static uint8_t *put32(uint8_t *p, uint32_t value) {
    hora_put_u32(p, value);
    return p + sizeof(value);
}

static uint8_t *put64(uint8_t *p, uint64_t value) {
    hora_put_u64(p, value);
    return p + sizeof(value);
}

/* magic, version << 16 | 4 or 6, port (host order), ip[16], token */
void hora_tcp_address_encode(const hora_tcp_address_t *address,
                             uint8_t out[HORA_TCP_ADDRESS_SIZE]) {
    const struct sockaddr_in  *v4 = (const struct sockaddr_in *)&address->sa;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address->sa;
    bool                       is_v4 = address->sa.ss_family == AF_INET;
    uint8_t                   *p = out;
    memset(out, 0, HORA_TCP_ADDRESS_SIZE);
    p = put32(p, ADDRESS_MAGIC);
    p = put32(p, HORA_TCP_VERSION << 16 | (is_v4 ? 4 : 6));
    p = put32(p, ntohs(is_v4 ? v4->sin_port : v6->sin6_port));
    if (is_v4)
        memcpy(p, &v4->sin_addr, sizeof(v4->sin_addr));
    else
        memcpy(p, &v6->sin6_addr, sizeof(v6->sin6_addr));
    memcpy(p + 16, address->token, HORA_TCP_TOKEN_SIZE);
}

bool hora_tcp_address_decode(const void *in, size_t len, hora_tcp_address_t *address_p) {
    const uint8_t      *p = in;
    hora_tcp_address_t  address = {.len = 0};
    struct sockaddr_in  v4 = {.sin_family = AF_INET};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    if (len != HORA_TCP_ADDRESS_SIZE || hora_get_u32(p) != ADDRESS_MAGIC)
        return false;
    uint32_t kind = hora_get_u32(p + 4), port = hora_get_u32(p + 8);
    if (port == 0 || port > 65535)
        return false;
    if (kind == (HORA_TCP_VERSION << 16 | 4)) {
        v4.sin_port = htons((uint16_t)port);
        memcpy(&v4.sin_addr, p + 12, sizeof(v4.sin_addr));
        memcpy(&address.sa, &v4, sizeof(v4));
        address.len = sizeof(v4);
    } else if (kind == (HORA_TCP_VERSION << 16 | 6)) {
        v6.sin6_port = htons((uint16_t)port);
        memcpy(&v6.sin6_addr, p + 12, sizeof(v6.sin6_addr));
        memcpy(&address.sa, &v6, sizeof(v6));
        address.len = sizeof(v6);
    } else {
        return false;
    }
    memcpy(address.token, p + 28, HORA_TCP_TOKEN_SIZE);
    *address_p = address;
    return true;
}

/* magic, version, rank, size, index, count, token, zeros */
void hora_tcp_hello_encode(const hora_tcp_hello_t *hello, uint8_t out[HORA_TCP_HELLO_SIZE]) {
    uint8_t *p = out;
    memset(out, 0, HORA_TCP_HELLO_SIZE);
    p = put64(p, HELLO_MAGIC);
    p = put32(p, hello->version);
    p = put32(p, hello->rank);
    p = put32(p, hello->size);
    p = put32(p, hello->index);
    p = put32(p, hello->count);
    memcpy(p, hello->token, HORA_TCP_TOKEN_SIZE);
}

bool hora_tcp_hello_decode(const uint8_t in[HORA_TCP_HELLO_SIZE], hora_tcp_hello_t *hello_p) {
    if (hora_get_u64(in) != HELLO_MAGIC)
        return false;
    hello_p->version = hora_get_u32(in + 8);
    hello_p->rank = hora_get_u32(in + 12);
    hello_p->size = hora_get_u32(in + 16);
    hello_p->index = hora_get_u32(in + 20);
    hello_p->count = hora_get_u32(in + 24);
    memcpy(hello_p->token, in + 28, HORA_TCP_TOKEN_SIZE);
    return true;
}

/* magic, sig, tag, number, total, offset, len, core */
void hora_tcp_header_encode(const hora_tcp_header_t *header, uint8_t out[HORA_TCP_HEADER_SIZE]) {
    uint8_t *p = out;
    p = put32(p, FRAME_MAGIC);
    p = put32(p, header->sig);
    p = put64(p, header->tag);
    p = put64(p, header->number);
    p = put64(p, header->total);
    p = put64(p, header->offset);
    p = put32(p, header->len);
    put32(p, header->core);
}

bool hora_tcp_header_decode(const uint8_t in[HORA_TCP_HEADER_SIZE], hora_tcp_header_t *header_p) {
    hora_tcp_header_t h = {
        .sig = hora_get_u32(in + 4),
        .tag = hora_get_u64(in + 8),
        .number = hora_get_u64(in + 16),
        .total = hora_get_u64(in + 24),
        .offset = hora_get_u64(in + 32),
        .len = hora_get_u32(in + 40),
        .core = hora_get_u32(in + 44),
    };
    if (hora_get_u32(in) != FRAME_MAGIC || h.core > CORE_MAX)
        return false;
    if (h.total > HORA_TCP_MESSAGE_MAX || h.total > SIZE_MAX || h.offset > h.total ||
        h.len > h.total - h.offset || h.len > HORA_TCP_FRAME_MAX)
        return false;
    if (h.len == 0 && h.total != 0)
        return false;
    *header_p = h;
    return true;
}
