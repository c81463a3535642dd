/*
 * Bytes of control messages: little-endian fields at no particular alignment, written and read with
 * a bound. The first step past the bound sets `bad`, after which nothing is written or read and
 * every value is 0; callers look at `bad` once, at the end. Any thread; no state.
 */
#ifndef HORA_BOOTSTRAP_WIRE_H
#define HORA_BOOTSTRAP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct hora_wire {
    uint8_t *bytes;
    size_t   off, limit; /* off <= limit, always */
    bool     bad;
} hora_wire_t;

static inline hora_wire_t hora_wire_over(const void *bytes, size_t limit) {
    hora_wire_t w = {(uint8_t *)(uintptr_t)bytes, 0, limit, false};
    return w;
}

/* The next len bytes, or NULL if there are not so many. */
static inline uint8_t *hora_wire_take(hora_wire_t *w, size_t len) {
    if (w->bad || len > w->limit - w->off) {
        w->bad = true;
        return NULL;
    }
    uint8_t *p = w->bytes + w->off;
    w->off += len;
    return p;
}

static inline void hora_wire_put_uint(hora_wire_t *w, uint64_t value, size_t bytes) {
    uint8_t *p = hora_wire_take(w, bytes);
    for (size_t i = 0; p != NULL && i < bytes; i++)
        p[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t hora_wire_get_uint(hora_wire_t *w, size_t bytes) {
    const uint8_t *p = hora_wire_take(w, bytes);
    uint64_t       value = 0;
    for (size_t i = 0; p != NULL && i < bytes; i++)
        value |= (uint64_t)p[i] << (8 * i);
    return value;
}

static inline void hora_wire_put_u16(hora_wire_t *w, uint16_t value) {
    hora_wire_put_uint(w, value, 2);
}
static inline void hora_wire_put_u32(hora_wire_t *w, uint32_t value) {
    hora_wire_put_uint(w, value, 4);
}
static inline void hora_wire_put_u64(hora_wire_t *w, uint64_t value) {
    hora_wire_put_uint(w, value, 8);
}
static inline uint16_t hora_wire_get_u16(hora_wire_t *w) {
    return (uint16_t)hora_wire_get_uint(w, 2);
}
static inline uint32_t hora_wire_get_u32(hora_wire_t *w) {
    return (uint32_t)hora_wire_get_uint(w, 4);
}
static inline int32_t hora_wire_get_i32(hora_wire_t *w) {
    return (int32_t)hora_wire_get_u32(w);
}
static inline uint64_t hora_wire_get_u64(hora_wire_t *w) {
    return hora_wire_get_uint(w, 8);
}

static inline void hora_wire_put_bytes(hora_wire_t *w, const void *bytes, size_t len) {
    uint8_t *p = hora_wire_take(w, len);
    if (p != NULL && len > 0)
        memcpy(p, bytes, len);
}
static inline void hora_wire_get_bytes(hora_wire_t *w, void *bytes, size_t len) {
    const uint8_t *p = hora_wire_take(w, len);
    if (p != NULL && len > 0)
        memcpy(bytes, p, len);
}

/* A text is its length (16 bits), then its bytes. It is cut where room ends. */
void hora_wire_put_text(hora_wire_t *w, const char *text);
/* Reads a text into text[0..size), cut to fit, always ended by a NUL, with whatever could disturb a
 * terminal or a log (controls, broken UTF-8) replaced by '?'. */
void hora_wire_get_text(hora_wire_t *w, char *text, size_t size);

/* Replaces in place what is not printable UTF-8 by '?'. */
void hora_text_sanitise(char *text);

/* FNV-1a. Tells jobs and hosts apart, protects nothing. Pass HORA_HASH_START or a former result. */
#define HORA_HASH_START 0xcbf29ce484222325u
uint64_t hora_hash_bytes(uint64_t hash, const void *bytes, size_t len);
static inline uint64_t hora_hash_text(uint64_t hash, const char *text) {
    return hora_hash_bytes(hash, text, strlen(text) + 1);
}

#endif
