/*
 * Little-endian numbers at no particular alignment, as every wire format here has them. The callers
 * have checked bounds. Any thread.
 */
#ifndef HORA_UTIL_BYTES_H
#define HORA_UTIL_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline void hora_put_u16(void *at, uint16_t value) {
    uint16_t le = htole16(value);
    memcpy(at, &le, sizeof(le));
}

static inline void hora_put_u32(void *at, uint32_t value) {
    uint32_t le = htole32(value);
    memcpy(at, &le, sizeof(le));
}

static inline void hora_put_u64(void *at, uint64_t value) {
    uint64_t le = htole64(value);
    memcpy(at, &le, sizeof(le));
}

static inline uint16_t hora_get_u16(const void *at) {
    uint16_t le;
    memcpy(&le, at, sizeof(le));
    return le16toh(le);
}

static inline uint32_t hora_get_u32(const void *at) {
    uint32_t le;
    memcpy(&le, at, sizeof(le));
    return le32toh(le);
}

static inline uint64_t hora_get_u64(const void *at) {
    uint64_t le;
    memcpy(&le, at, sizeof(le));
    return le64toh(le);
}

#endif
