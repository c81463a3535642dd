/*
 * Named things (names.h). At most two thirds of the slots are used, so probes stay short. The hash
 * spreads well but is not secret: names come from ranks that have proved to belong to the job.
 */
#include "util/names.h"

#include <stdlib.h>

#define ROOM_MIN 64

static uint64_t mix(uint64_t h, uint64_t word) {
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    return h ^ (h >> 29);
}

uint64_t hora_name_hash(const char *text, size_t len) {
    uint64_t h = mix(0x2545f4914f6cdd1du, len), word;
    for (; len >= sizeof(word); text += sizeof(word), len -= sizeof(word)) {
        memcpy(&word, text, sizeof(word));
        h = mix(h, word);
    }
    word = 0;
    memcpy(&word, text, len);
    return mix(mix(h, word), h);
}

void hora_names_init(hora_names_t *names) {
    memset(names, 0, sizeof(*names));
}

void hora_names_destroy(hora_names_t *names) {
    free(names->slots);
    hora_names_init(names);
}

hora_name_t *hora_names_find(const hora_names_t *names, uint64_t hash, const char *text,
                             size_t len) {
    size_t mask = names->room - 1;
    if (names->room == 0)
        return NULL;
    for (size_t i = hash & mask; names->slots[i] != NULL; i = (i + 1) & mask) {
        const hora_name_t *name = names->slots[i];
        if (name->hash == hash && name->len == len && memcmp(name->text, text, len) == 0)
            return names->slots[i];
    }
    return NULL;
}

static void place(hora_names_t *names, hora_name_t *name) {
    size_t mask = names->room - 1, i = name->hash & mask;
    while (names->slots[i] != NULL)
        i = (i + 1) & mask;
    names->slots[i] = name;
}

static hora_status_t grow(hora_names_t *names) {
    hora_names_t bigger = {NULL, names->room ? names->room * 2 : ROOM_MIN, names->count};
    bigger.slots = calloc(bigger.room, sizeof(*bigger.slots));
    if (bigger.slots == NULL)
        return HORA_ERR_NO_MEMORY;
    for (size_t i = 0; i < names->room; i++)
        if (names->slots[i] != NULL)
            place(&bigger, names->slots[i]);
    free(names->slots);
    *names = bigger;
    return HORA_OK;
}

hora_status_t hora_names_add(hora_names_t *names, hora_name_t *name) {
    if ((names->count + 1) * 3 > names->room * 2) {
        hora_status_t st = grow(names);
        if (st != HORA_OK)
            return st;
    }
    place(names, name);
    names->count++;
    return HORA_OK;
}

void hora_names_remove(hora_names_t *names, hora_name_t *name) {
    size_t mask = names->room - 1, hole = name->hash & mask;
    while (names->slots[hole] != name)
        hole = (hole + 1) & mask;
    /* Whoever comes later in the same run and may sit in the hole moves there. */
    for (size_t i = (hole + 1) & mask; names->slots[i] != NULL; i = (i + 1) & mask) {
        size_t home = names->slots[i]->hash & mask;
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            names->slots[hole] = names->slots[i];
            hole = i;
        }
    }
    names->slots[hole] = NULL;
    names->count--;
}
