/*
 * Mailboxes (mailbox.h). Under world->lock on each side; the two sides share only the counters.
 */
#include "transport/shm/mailbox.h"

#include <kernels/cpu/kernels.h>
#include <string.h>

void hora_mailbox_open(hora_mailbox_end_t *end, void *memory, size_t bytes) {
    end->box = memory;
    end->size = bytes - sizeof(hora_mailbox_t);
    end->mine = end->theirs = 0;
}

size_t hora_mailbox_room(hora_mailbox_end_t *end) {
    uint64_t used = end->mine - end->theirs;
    if (used + end->size / 2 > end->size) { /* looks again only when half full: saves a cache miss */
        end->theirs = atomic_load_explicit(&end->box->read, memory_order_acquire);
        used = end->mine - end->theirs;
    }
    return used > end->size ? 0 : end->size - (size_t)used;
}

void hora_mailbox_put(hora_mailbox_end_t *end, const void *bytes, size_t len) {
    size_t at = (size_t)(end->mine % end->size);
    size_t head = end->size - at < len ? end->size - at : len;
    if (len == 0)
        return;
    memcpy(end->box->ring + at, bytes, head);
    memcpy(end->box->ring, (const uint8_t *)bytes + head, len - head);
    end->mine += len;
}

void hora_mailbox_publish(hora_mailbox_end_t *end) {
    atomic_store_explicit(&end->box->written, end->mine, memory_order_release);
}

size_t hora_mailbox_ready(hora_mailbox_end_t *end) {
    if (end->theirs == end->mine)
        end->theirs = atomic_load_explicit(&end->box->written, memory_order_acquire);
    uint64_t ready = end->theirs - end->mine;
    return ready > end->size ? SIZE_MAX : (size_t)ready;
}

void hora_mailbox_take(hora_mailbox_end_t *end, void *bytes, size_t len) {
    size_t at = (size_t)(end->mine % end->size);
    size_t head = end->size - at < len ? end->size - at : len;
    if (len == 0)
        return;
    hora_kernel_take(bytes, end->box->ring + at, head);
    hora_kernel_take((uint8_t *)bytes + head, end->box->ring, len - head);
    end->mine += len;
}

void hora_mailbox_skip(hora_mailbox_end_t *end, size_t len) {
    end->mine += len;
}

void hora_mailbox_release(hora_mailbox_end_t *end) {
    atomic_store_explicit(&end->box->read, end->mine, memory_order_release);
}
