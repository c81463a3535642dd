/*
 * See fake_mpi.h. Built several times: FAKE_ABI and FAKE_FOREIGN make plug-ins that must be
 * refused.
 */
#include "fake_mpi.h"

#include "transport/mpi/plugin.h"

#include <stdlib.h>
#include <string.h>

#ifndef FAKE_ABI
#define FAKE_ABI HORA_MPI_ABI
#endif
#ifdef FAKE_FOREIGN
#define FAKE_VERSION NULL
#else
#define FAKE_VERSION "Fake MPI 1.0"
#endif

#define SLOTS 64
#define EXPORT __attribute__((visibility("default")))

typedef struct slot {
    enum { FREE, SENDING, RECEIVING, SENT, RECEIVED, CANCELLED } state;
    void  *buf;
    size_t bytes;
    int    peer, tag;
    long   order;
} slot_t;

struct hora_mpi_group {
    int    rank;
    slot_t slots[SLOTS];
};

EXPORT extern const hora_mpi_plugin_t hora_mpi_plugin;
EXPORT extern fake_mpi_t              fake_mpi;

fake_mpi_t               fake_mpi = {.size = 2};
static hora_mpi_group_t *groups[2];
static int               last_rank;
static long              orders;

static const char *fake_error(void) {
    return "the fake fails as asked";
}

static const char *fake_version(void) {
    return FAKE_VERSION;
}

static int fake_init(hora_mpi_info_t *info_p) {
    last_rank = fake_mpi.next_rank++ % 2;
    *info_p = (hora_mpi_info_t){last_rank, fake_mpi.size, 32767, 1};
    return 0;
}

static int fake_open(hora_mpi_group_t **group_p) {
    hora_mpi_group_t *group = calloc(1, sizeof(*group));
    group->rank = last_rank;
    groups[last_rank] = group;
    *group_p = group;
    return 0;
}

static int fake_poll(hora_mpi_group_t *group, uint8_t nonce[HORA_MPI_NONCE]) {
    memset(nonce, 7, HORA_MPI_NONCE);
    return !fake_mpi.never_ready;
}

static void fake_close(hora_mpi_group_t *group, hora_mpi_end_t end) {
    fake_mpi.closed[end]++;
    groups[group->rank] = NULL;
    free(group);
}

static int post(hora_mpi_group_t *group, slot_t value) {
    fake_mpi.calls++;
    for (int i = 0; i < SLOTS; i++)
        if (group->slots[i].state == FREE) {
            value.order = orders++;
            group->slots[i] = value;
            return i;
        }
    return -1;
}

static int fake_send(hora_mpi_group_t *group, const void *buf, size_t bytes, int peer, int tag) {
    if (fake_mpi.fail_send)
        return -1;
    return post(group, (slot_t){SENDING, (void *)(uintptr_t)buf, bytes, peer, tag, 0});
}

static int fake_recv(hora_mpi_group_t *group, void *buf, size_t bytes, int peer, int tag) {
    return post(group, (slot_t){RECEIVING, buf, bytes, peer, tag, 0});
}

static int fake_cancel(hora_mpi_group_t *group, int slot) {
    slot_t *s = &group->slots[slot];
    fake_mpi.calls++;
    if (s->state == RECEIVING && !(fake_mpi.hold_bodies && s->tag > 1))
        s->state = CANCELLED;
    return 0;
}

static slot_t *oldest(hora_mpi_group_t *group, int state, int peer, int tag) {
    slot_t *found = NULL;
    for (int i = 0; group != NULL && i < SLOTS; i++) {
        slot_t *s = &group->slots[i];
        if (s->state == (unsigned)state && s->peer == peer && (tag < 0 || s->tag == tag) &&
            (found == NULL || s->order < found->order))
            found = s;
    }
    return found;
}

/* Moves what `from` sent into what the other has posted. */
static void carry(hora_mpi_group_t *from, hora_mpi_group_t *to) {
    for (int i = 0; from != NULL && i < SLOTS; i++) {
        slot_t *out = &from->slots[i], *in;
        if (to == NULL && out->state == SENDING)
            out->state = SENT; /* the other rank has closed */
        if (out->state != SENDING || (fake_mpi.hold_bodies && out->tag > 1))
            continue;
        out = oldest(from, SENDING, to->rank, out->tag);
        in = oldest(to, RECEIVING, from->rank, out->tag);
        if (in == NULL)
            continue;
        memcpy(in->buf, out->buf, out->bytes);
        if (fake_mpi.corrupt)
            *(uint8_t *)in->buf ^= 0xff;
        fake_mpi.corrupt = false;
        in->bytes = out->bytes;
        in->state = RECEIVED;
        out->state = SENT;
    }
}

static int fake_test(hora_mpi_group_t *group, hora_mpi_done_t *done, int room) {
    int n = 0;
    fake_mpi.calls++;
    if (fake_mpi.fail_test)
        return -1;
    carry(groups[0], groups[1]);
    carry(groups[1], groups[0]);
    for (int i = 0; i < SLOTS && n < room; i++) {
        slot_t *s = &group->slots[i];
        if (s->state < SENT)
            continue;
        done[n++] = (hora_mpi_done_t){i, 0, s->state == CANCELLED, s->bytes};
        s->state = FREE;
    }
    return n;
}

static int fake_comm_create(const int *ranks, int n, int tag, hora_mpi_comm_t **comm_p) {
    (void)ranks, (void)n, (void)tag, (void)comm_p;
    return -1;
}

static int fake_allreduce(hora_mpi_comm_t *comm, const void *in, void *out, size_t count,
                          hora_dtype_t dtype, hora_op_t op) {
    (void)comm, (void)in, (void)out, (void)count, (void)dtype, (void)op;
    return -1;
}

static void fake_comm_free(hora_mpi_comm_t *comm, hora_mpi_end_t end) {
    (void)comm, (void)end;
}

static int fake_cuda_aware(void) {
    return 0;
}

const hora_mpi_plugin_t hora_mpi_plugin = {
    sizeof(hora_mpi_plugin_t), FAKE_ABI,  fake_error, fake_version, fake_init,   fake_open,
    fake_poll,                 fake_close, fake_send,  fake_recv,    fake_cancel, fake_test,
    fake_comm_create,          fake_allreduce, fake_comm_free, fake_cuda_aware,
};
