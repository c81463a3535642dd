/*
 * Texts and hashes of control messages. Pure functions; any thread.
 */
#include "bootstrap/wire.h"

void hora_wire_put_text(hora_wire_t *w, const char *text) {
    size_t len = strlen(text);
    size_t room = w->limit - w->off;
    if (!w->bad && room >= 2 && len > room - 2)
        len = room - 2;
    if (len > UINT16_MAX)
        len = UINT16_MAX;
    hora_wire_put_u16(w, (uint16_t)len);
    hora_wire_put_bytes(w, text, len);
}

void hora_wire_get_text(hora_wire_t *w, char *text, size_t size) {
    size_t         len = hora_wire_get_u16(w);
    const uint8_t *p = hora_wire_take(w, len);
    if (p == NULL)
        len = 0;
    if (len > size - 1)
        len = size - 1;
    if (len > 0)
        memcpy(text, p, len);
    for (size_t i = 0; i < len; i++)
        if (text[i] == '\0')
            text[i] = '?';
    text[len] = '\0';
    hora_text_sanitise(text);
}

/* Bytes of the printable UTF-8 character at p; 0 if there is none. p ends with a NUL. */
static size_t character_length(const unsigned char *p) {
    static const uint32_t least[] = {0, 0, 0xa0, 0x800, 0x10000}; /* 0x80-0x9f are controls */
    if (p[0] >= 0x20 && p[0] < 0x7f)
        return 1;
    size_t n = p[0] >= 0xf0 && p[0] < 0xf5 ? 4 : p[0] >= 0xe0 && p[0] < 0xf0 ? 3
             : p[0] >= 0xc2 && p[0] < 0xe0 ? 2 : 0;
    if (n == 0)
        return 0;
    uint32_t code = p[0] & (0xffu >> (n + 1));
    for (size_t i = 1; i < n; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 0;
        code = code << 6 | (p[i] & 0x3fu);
    }
    bool surrogate = code >= 0xd800 && code <= 0xdfff;
    bool separator = code >= 0x2028 && code <= 0x202e; /* line ends and changes of direction */
    return code < least[n] || code > 0x10ffff || surrogate || separator ? 0 : n;
}

void hora_text_sanitise(char *text) {
    unsigned char *p = (unsigned char *)text;
    while (*p != '\0') {
        size_t n = character_length(p);
        if (n == 0) {
            *p = '?';
            n = 1;
        }
        p += n;
    }
}

uint64_t hora_hash_bytes(uint64_t hash, const void *bytes, size_t len) {
    const uint8_t *p = bytes;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}
