/*
 * The coordinator's tables: entries by name, ids by slot, groups by key (round.h). Pure code.
 *
 * Ids. An id is a slot and the slot's generation, so an id that was given to another name is told
 * from the new one. When all slots are taken, the clock hand looks for an entry without a round
 * that was not used since it last passed.
 */
#include "controller/round.h"

#include <stdlib.h>

/* ---- Entries -------------------------------------------------------------------------------- */

hora_entry_t *hora_entry_find(const hora_coordinator_t *c, uint64_t hash, const char *name,
                              size_t name_len) {
    return (hora_entry_t *)hora_names_find(&c->names, hash, name, name_len);
}

hora_entry_t *hora_entry_make(hora_coordinator_t *c, uint64_t hash, const char *name,
                              size_t name_len) {
    size_t        bits = c->words * sizeof(uint64_t);
    hora_entry_t *e = calloc(1, sizeof(*e) + bits + name_len + 1);
    if (e == NULL)
        return NULL;
    e->ready = (uint64_t *)(e + 1);
    char *text = (char *)e->ready + bits;
    memcpy(text, name, name_len);
    e->name = (hora_name_t){hash, name_len, text};
    e->sig = &e->own_sig;
    if (hora_names_add(&c->names, &e->name) != HORA_OK) {
        free(e);
        return NULL;
    }
    return e;
}

int hora_entry_missing(const hora_coordinator_t *c, const hora_entry_t *e) {
    int missing = c->options.size - (int)e->nready;
    if (c->join == NULL || missing == 0 || e == c->join)
        return missing;
    for (size_t i = 0; i < c->words; i++)
        missing -= __builtin_popcountll(c->join->ready[i] & ~e->ready[i]);
    return missing;
}

/* The join is over. What only waits for the rest of its group is not complete any more where ranks
 * were missing that had joined: they can report it now. */
static void reopen(hora_coordinator_t *c) {
    for (size_t i = 0; i < c->names.room; i++) {
        hora_entry_t *e = (hora_entry_t *)c->names.slots[i];
        if (e == NULL || !e->complete || e->group == NULL || hora_entry_missing(c, e) == 0)
            continue;
        e->complete = false;
        e->group->ready--;
    }
}

void hora_entry_end_round(hora_coordinator_t *c, hora_entry_t *e) {
    bool is_join = c->join == e;
    memset(e->ready, 0, c->words * sizeof(uint64_t));
    e->nready = 0;
    e->complete = false;
    e->is_listed = false;
    e->warned_at = 0;
    e->group = NULL;
    e->group_next = NULL;
    if (is_join) {
        c->join = NULL;
        reopen(c);
    }
}

void hora_entry_drop(hora_coordinator_t *c, hora_entry_t *e) {
    if (e->id != 0 || e->nready > 0 || e->is_failed || e->asked_ns != 0)
        return;
    hora_names_remove(&c->names, &e->name);
    free(e);
}

/* ---- Ids ------------------------------------------------------------------------------------ */

/* A slot for a new id, or the capacity if every slot's entry has a round. */
static size_t find_slot(hora_coordinator_t *c) {
    size_t capacity = c->options.cache_capacity;
    if (c->slots_used < capacity)
        return c->slots_used++;
    for (size_t turns = 0; turns < 2 * capacity; turns++) {
        size_t        slot = c->hand;
        hora_entry_t *e = c->slots[slot];
        c->hand = (c->hand + 1) % capacity;
        if (e == NULL)
            return slot;
        if (e->nready > 0)
            continue;
        if (!e->used) {
            e->id = 0;
            hora_entry_drop(c, e);
            return slot;
        }
        e->used = false;
    }
    return capacity;
}

void hora_cache_assign(hora_coordinator_t *c, hora_entry_t *e) {
    size_t slot = find_slot(c);
    if (slot == c->options.cache_capacity)
        return;
    if (++c->generations[slot] == 0)
        c->generations[slot] = 1;
    c->slots[slot] = e;
    e->id = (uint32_t)c->generations[slot] << 16 | (uint32_t)slot;
}

hora_entry_t *hora_cache_find(hora_coordinator_t *c, uint32_t id) {
    size_t slot = id & 0xffff;
    if (slot >= c->slots_used || c->slots[slot] == NULL || c->slots[slot]->id != id)
        return NULL;
    return c->slots[slot];
}

/* ---- Groups --------------------------------------------------------------------------------- */

hora_group_t *hora_group_find(hora_coordinator_t *c, uint64_t key) {
    return (hora_group_t *)hora_names_find(&c->groups, key, (const char *)&key, sizeof(key));
}

hora_status_t hora_group_make(hora_coordinator_t *c, uint64_t key, uint32_t size,
                              hora_group_t **group_p) {
    hora_group_t *group = calloc(1, sizeof(*group));
    if (group == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "a group of %u tensors", size);
    group->key = key;
    group->size = size;
    group->tail = &group->first;
    group->name = (hora_name_t){key, sizeof(group->key), (const char *)&group->key};
    if (hora_names_add(&c->groups, &group->name) != HORA_OK) {
        free(group);
        return hora_fail(HORA_ERR_NO_MEMORY, "a group of %u tensors", size);
    }
    *group_p = group;
    return HORA_OK;
}

void hora_group_free(hora_coordinator_t *c, hora_group_t *group) {
    hora_names_remove(&c->groups, &group->name);
    free(group);
}
