/*
 * Little-endian numbers at no particular alignment, as every wire format here has them. The callers
 * have checked bounds. Any thread.
 */
#ifndef HORA_UTIL_BYTES_H
#define HORA_UTIL_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
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

/* Compares in a time that does not depend on where they differ. */
static inline bool hora_bytes_equal(const void *a, const void *b, size_t len) {
    const volatile uint8_t *x = a, *y = b;
    uint8_t                 difference = 0;
    for (size_t i = 0; i < len; i++)
        difference |= (uint8_t)(x[i] ^ y[i]);
    return difference == 0;
}

#endif
