/*
 * The mpi transport between real ranks, without bootstrap: hand-made worlds whose addresses go
 * through files. Run by run.sh: mpirun -np N transport FOLDER, with HORA_MPI_LIBRARY set and FOLDER
 * empty. Every rank runs every case; the first failure exits with 1, and mpirun ends the rest.
 */
#include "transport/match.h"
#include "transport/mpi/internal.h"
#include "util/clock.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(what)                                                                               \
    do {                                                                                          \
        if (!(what))                                                                              \
            die(__LINE__, #what);                                                                 \
    } while (0)

static int           rank, size;
static const char   *folder;
static hora_world_t *world;
static const char   *case_name = "start";

static _Noreturn void die(int line, const char *what) {
    fprintf(stderr, "FAIL rank %d, case %s, line %d: %s (last error: %s)\n", rank, case_name, line,
            what, hora_last_error());
    _exit(1);
}

static int from_environment(const char *const *names) {
    for (; *names != NULL; names++)
        if (getenv(*names) != NULL)
            return atoi(getenv(*names));
    fprintf(stderr, "FAIL run me under mpirun\n");
    exit(1);
}

static unsigned progress(void) {
    unsigned n;
    pthread_mutex_lock(&world->lock);
    n = world->transports[0]->ops->progress(world->transports[0], NULL);
    pthread_mutex_unlock(&world->lock);
    if (n == 0)
        sched_yield();
    return n;
}

/* ---- A world by hand ---- */

static void put_file(const char *name, const void *data, size_t len) {
    char  path[512], temp[540];
    FILE *file;
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    snprintf(temp, sizeof(temp), "%s.new", path);
    file = fopen(temp, "wb");
    CHECK(file != NULL && fwrite(data, 1, len, file) == len && fclose(file) == 0);
    CHECK(rename(temp, path) == 0);
}

static size_t get_file(const char *name, void *data, size_t room) {
    char     path[512];
    FILE    *file;
    size_t   len;
    uint64_t end = hora_clock_ns() + hora_clock_from_seconds(30);
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    while ((file = fopen(path, "rb")) == NULL) {
        CHECK(hora_clock_ns() < end);
        if (world != NULL && world->ntransports > 0)
            progress();
        else
            usleep(200);
    }
    len = fread(data, 1, room, file);
    fclose(file);
    return len;
}

/* Outside MPI, so that it hides no fault of the transport; keeps making progress. */
static void barrier(void) {
    static int number;
    char       name[64], byte = 1;
    snprintf(name, sizeof(name), "barrier-%d-%d", number, rank);
    put_file(name, &byte, 1);
    for (int r = 0; r < size; r++) {
        snprintf(name, sizeof(name), "barrier-%d-%d", number, r);
        get_file(name, &byte, 1);
    }
    number++;
}

static void check_refused(hora_transport_t *t, int peer, const uint8_t *address, size_t len) {
    uint8_t      bad[HORA_ADDRESS_MAX];
    hora_link_t *link = NULL;
    memcpy(bad, address, len);
    bad[len - 1] ^= 1; /* another job's nonce */
    CHECK(!t->ops->reachable(t, peer, bad, len));
    CHECK(t->ops->connect(t, peer, bad, len, &link) == HORA_ERR_PROTOCOL && link == NULL);
    memcpy(bad, address, len);
    memset(bad + 4, 0x7f, 4); /* a rank that does not exist */
    CHECK(!t->ops->reachable(t, peer, bad, len));
    CHECK(!t->ops->reachable(t, peer, address, len - 1));
    CHECK(!t->ops->reachable(t, peer, address, 0));
}

static void open_world(void) {
    static int        generation;
    hora_transport_t *t;
    uint8_t           address[HORA_ADDRESS_MAX];
    size_t            len = sizeof(address);
    char              name[64];
    CHECK(hora_world_create(rank, size, &world) == HORA_OK);
    CHECK(hora_settings_load(&world->settings) == HORA_OK);
    pthread_mutex_lock(&world->lock);
    CHECK(hora_transport_mpi.open(world, &t) == HORA_OK);
    CHECK(t->ops->fd(t) == -1);
    CHECK(t->ops->address(t, address, &len) == HORA_OK && len <= HORA_ADDRESS_MAX);
    CHECK(!t->ops->reachable(t, rank, address, len)); /* not through MPI to myself */
    snprintf(name, sizeof(name), "address-%d-%d", generation, rank);
    put_file(name, address, len);
    for (int r = 0; r < size; r++) {
        if (r == rank)
            continue;
        snprintf(name, sizeof(name), "address-%d-%d", generation, r);
        len = get_file(name, address, sizeof(address));
        snprintf(world->peers[r].host, sizeof(world->peers[r].host), "host%d", r);
        check_refused(t, r, address, len);
        CHECK(t->ops->reachable(t, r, address, len));
        CHECK(t->ops->connect(t, r, address, len, &world->peers[r].link) == HORA_OK);
    }
    generation++;
    world->transports[world->ntransports++] = t;
    pthread_mutex_unlock(&world->lock);
}

static void close_world(void) {
    pthread_mutex_lock(&world->lock);
    hora_transport_mpi.close(world->transports[0]);
    world->ntransports = 0;
    pthread_mutex_unlock(&world->lock);
    hora_world_destroy(world);
    world = NULL;
}

/* ---- Transfers ---- */

static void start(bool sends, int peer, hora_xfer_t *xfer, void *buf, size_t len, uint64_t tag) {
    hora_link_t *link = world->peers[peer].link;
    xfer->buf = buf;
    xfer->len = len;
    xfer->tag = tag;
    pthread_mutex_lock(&world->lock);
    if (sends)
        link->transport->ops->send(link, xfer);
    else
        link->transport->ops->recv(link, xfer);
    pthread_mutex_unlock(&world->lock);
}

static hora_status_t wait_for(hora_xfer_t *xfer) {
    uint64_t end = hora_clock_ns() + hora_clock_from_seconds(60);
    while (xfer->status == HORA_IN_PROGRESS) {
        progress();
        CHECK(hora_clock_ns() < end);
    }
    return xfer->status;
}

static void cancel(hora_xfer_t *xfer) {
    pthread_mutex_lock(&world->lock);
    if (xfer->status == HORA_IN_PROGRESS)
        xfer->link->transport->ops->cancel(xfer->link, xfer);
    pthread_mutex_unlock(&world->lock);
}

static uint8_t byte_at(int from, uint64_t tag, size_t i) {
    return (uint8_t)((uint64_t)from * 131 + tag * 17 + i * 7 + (i >> 8) * 3 + (i >> 20));
}

static uint8_t *filled(int from, uint64_t tag, size_t len) {
    uint8_t *buf = malloc(len + 1);
    CHECK(buf != NULL);
    for (size_t i = 0; i < len; i++)
        buf[i] = byte_at(from, tag, i);
    return buf;
}

static bool is_filled(const uint8_t *buf, int from, uint64_t tag, size_t len) {
    for (size_t i = 0; i < len; i++)
        if (buf[i] != byte_at(from, tag, i))
            return false;
    return true;
}

/* Round the ring; `late`: the receive is posted only after the message may have come. */
static void ring_exchange(size_t len, uint64_t tag, bool late) {
    int         to = (rank + 1) % size, from = (rank + size - 1) % size;
    uint8_t    *out = filled(rank, tag, len), *in = malloc(len + 1);
    hora_xfer_t send = {0}, recv = {0};
    CHECK(in != NULL);
    in[len] = 0xa5;
    if (!late)
        start(false, from, &recv, in, len, tag);
    start(true, to, &send, out, len, tag);
    for (int i = 0; late && i < 50; i++)
        progress();
    if (late)
        start(false, from, &recv, in, len, tag);
    CHECK(wait_for(&send) == HORA_OK && send.moved == len);
    CHECK(wait_for(&recv) == HORA_OK && recv.moved == len);
    CHECK(is_filled(in, from, tag, len) && in[len] == 0xa5);
    free(out);
    free(in);
}

static void case_sizes(void) {
    static const size_t sizes[] = {0, 1, 3, 7, 3839, 3840, 3841, 4096, 65535, 65536, 65537, 1000003,
                                   1 << 20, (33 << 20) + 5};
    case_name = "sizes";
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        ring_exchange(sizes[i], 10 + i, false);
        ring_exchange(sizes[i], 10 + i, true);
    }
}

/* Bodies in many parts, and receives that join a message half way. */
static void case_parts(void) {
    mpi_transport_t *self = (mpi_transport_t *)world->transports[0];
    case_name = "parts";
    barrier();
    self->part = 100000;
    barrier();
    for (uint64_t i = 0; i < 6; i++)
        ring_exchange(3000001 + 50000 * i, 100 + i, i % 2 != 0);
    barrier();
    self->part = HORA_MPI_BYTES_MAX;
    barrier();
}

#define MANY 150
/* To and from every peer at once; received in another order than sent; equal tags keep theirs. */
static void case_many(void) {
    static hora_xfer_t sends[MANY * 8], recvs[MANY * 8];
    static uint8_t    *out[MANY * 8], *in[MANY * 8];
    static size_t      lens[MANY];
    case_name = "many";
    for (size_t i = 0; i < MANY; i++)
        lens[i] = i % 5 == 0 ? 0 : (i * i * 37) % (i % 7 == 0 ? 300000 : 9000);
    for (int round = 0; round < 3; round++) {
        for (int r = 0; r < size; r++) {
            for (size_t i = 0; r != rank && i < MANY; i++) {
                size_t k = (size_t)r * MANY + i, j = (i * 77) % MANY;
                in[k] = malloc(lens[j] + 1);
                out[k] = filled(rank, j, lens[j]);
                start(true, r, &sends[k], out[k], lens[j], j);
                if (round == 1) /* half of them before the others are sent */
                    start(false, r, &recvs[k], in[k], lens[j], j);
            }
        }
        for (int r = 0; r < size; r++) {
            for (size_t i = 0; r != rank && i < MANY; i++) {
                size_t k = (size_t)r * MANY + i, j = (i * 77) % MANY;
                size_t want = round == 1 ? j : MANY - 1 - i;
                if (round != 1) {
                    free(in[k]);
                    in[k] = malloc(lens[want] + 1);
                    start(false, r, &recvs[k], in[k], lens[want], want);
                }
                CHECK(wait_for(&recvs[k]) == HORA_OK && recvs[k].moved == lens[want]);
                CHECK(is_filled(in[k], r, want, lens[want]));
            }
        }
        for (int r = 0; r < size; r++) {
            for (size_t i = 0; r != rank && i < MANY; i++) {
                CHECK(wait_for(&sends[(size_t)r * MANY + i]) == HORA_OK);
                free(in[(size_t)r * MANY + i]);
                free(out[(size_t)r * MANY + i]);
            }
        }
    }
    for (size_t i = 0; i < 20; i++) /* one tag: first in, first out, whatever the sizes */
        ring_exchange(i % 2 ? 20000 + i : i, 5, i % 3 == 0);
}

/* The wrong length or collective is an error of that receive alone. */
static void case_mismatch(void) {
    int         to = (rank + 1) % size, from = (rank + size - 1) % size;
    size_t      lens[] = {100, 50000};
    hora_xfer_t send, recv;
    case_name = "mismatch";
    for (int i = 0; i < 2; i++) {
        uint8_t *out = filled(rank, 1, lens[i]), *in = malloc(lens[i]);
        memset(&send, 0, sizeof(send));
        memset(&recv, 0, sizeof(recv));
        start(false, from, &recv, in, lens[i] - 1, 1); /* too little room */
        start(true, to, &send, out, lens[i], 1);
        CHECK(wait_for(&recv) == HORA_ERR_MISMATCH && wait_for(&send) == HORA_OK);
        memset(&send, 0, sizeof(send));
        memset(&recv, 0, sizeof(recv));
        recv.sig = 7;
        send.sig = 8;
        start(false, from, &recv, in, lens[i], 2);
        start(true, to, &send, out, lens[i], 2);
        CHECK(wait_for(&recv) == HORA_ERR_MISMATCH && wait_for(&send) == HORA_OK);
        memset(&recv, 0, sizeof(recv));
        memset(&send, 0, sizeof(send));
        recv.flags = HORA_XFER_ANY_LENGTH;
        start(false, from, &recv, in, lens[i], 1);
        start(true, to, &send, out, lens[i] / 2, 1);
        CHECK(wait_for(&recv) == HORA_OK && recv.moved == lens[i] / 2);
        CHECK(wait_for(&send) == HORA_OK);
        free(out);
        free(in);
    }
    ring_exchange(1234, 1, false);
}

/* Even ranks send to the odd one above; who receives cancels at various moments. */
static void cancel_recv(size_t len, int turns, uint64_t tag) {
    bool        sends = rank % 2 == 0;
    int         peer = sends ? rank + 1 : rank - 1;
    uint8_t    *buf = filled(rank, tag, len);
    hora_xfer_t xfer = {0};
    if (peer < size && sends) {
        start(true, peer, &xfer, buf, len, tag);
        CHECK(wait_for(&xfer) == HORA_OK);
    } else if (peer < size) {
        start(false, peer, &xfer, buf, len, tag);
        for (int i = 0; i < turns; i++)
            progress();
        cancel(&xfer);
        CHECK(xfer.status == HORA_ERR_ABORTED || xfer.status == HORA_OK);
        memset(buf, 0x5a, len); /* nobody else may write to it from here on */
    }
    barrier();
    for (int i = 0; i < 50; i++)
        progress();
    for (size_t i = 0; !sends && i < len; i++)
        CHECK(buf[i] == 0x5a);
    barrier();
    free(buf);
}

static void cancel_send(size_t len, uint64_t tag) {
    bool        sends = rank % 2 == 0;
    int         peer = sends ? rank + 1 : rank - 1;
    uint8_t    *buf = filled(rank, tag, len);
    hora_xfer_t xfer = {0};
    if (peer < size && sends) {
        start(true, peer, &xfer, buf, len, tag);
        cancel(&xfer); /* the peer asked for nothing, but is making progress */
        CHECK(xfer.status == HORA_ERR_ABORTED || xfer.status == HORA_OK);
    }
    barrier();
    free(buf);
}

static void case_cancel(void) {
    static const size_t lens[] = {10, 5000, 9 << 20};
    case_name = "cancel";
    for (uint64_t i = 0; i < 3; i++)
        for (int turns = 0; turns < 40; turns += 1 + turns / 2)
            cancel_recv(lens[i], turns, 1000 + 100 * i + (uint64_t)turns);
    for (uint64_t i = 0; i < 3; i++)
        cancel_send(lens[i], 2000 + i);
    case_name = "after cancel";
    ring_exchange(7 << 20, 3000, false);
    ring_exchange(700, 3001, true);
}

/* Messages that nobody asked for must not turn up in the next world, and closing must not hang. */
static void case_leftovers(void) {
    static uint8_t buf[1 << 20];
    hora_xfer_t    small = {0}, large = {0}, recv = {0};
    int            to = (rank + 1) % size, from = (rank + size - 1) % size;
    uint64_t       begin;
    case_name = "leftovers";
    barrier(); /* what is sent to a rank that has left could not be withdrawn */
    begin = hora_clock_ns();
    memset(buf, 0xee, sizeof(buf));
    start(true, to, &small, buf, 100, 4000);
    start(true, to, &large, buf, sizeof(buf), 4000);
    start(false, from, &recv, buf, 1, 4001); /* never sent */
    if (rank == 0)
        usleep(300000); /* the others leave first */
    close_world();
    CHECK(hora_clock_seconds(hora_clock_ns() - begin) < 10);
    CHECK(recv.status == HORA_ERR_SHUT_DOWN && small.status == HORA_OK);
    open_world();
    ring_exchange(100, 4000, false);
    ring_exchange(sizeof(buf), 4000, false);
}

static void case_disconnect(void) {
    case_name = "disconnect";
    barrier();
    pthread_mutex_lock(&world->lock);
    for (int r = 0; r < size; r++)
        if (r != rank)
            world->transports[0]->ops->disconnect(world->peers[r].link);
    pthread_mutex_unlock(&world->lock);
}

static void report_speed(void) {
    static uint8_t buf[1 << 20];
    hora_xfer_t    a, b;
    int            peer = rank ^ 1;
    const struct {
        size_t len;
        int    turns;
    } runs[] = {{8, 2000}, {1 << 20, 100}};
    case_name = "speed";
    for (int k = 0; k < 2; k++) {
        barrier();
        uint64_t begin = hora_clock_ns();
        for (int i = 0; rank < 2 && i < runs[k].turns; i++) {
            memset(&a, 0, sizeof(a));
            memset(&b, 0, sizeof(b));
            start(false, peer, &b, buf, runs[k].len, 9);
            if (rank == 1)
                CHECK(wait_for(&b) == HORA_OK);
            start(true, peer, &a, buf, runs[k].len, 9);
            CHECK(wait_for(&a) == HORA_OK && wait_for(&b) == HORA_OK);
        }
        if (rank == 0)
            printf("  %zu bytes: %.2f us one way\n", runs[k].len,
                   hora_clock_seconds(hora_clock_ns() - begin) * 5e5 / runs[k].turns);
    }
}

int main(int argc, char **argv) {
    static const char *const ranks[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", NULL};
    static const char *const sizes[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};
    if (argc != 2) {
        fprintf(stderr, "usage: mpirun -np N %s EMPTY-FOLDER\n", argv[0]);
        return 2;
    }
    folder = argv[1];
    rank = from_environment(ranks);
    size = from_environment(sizes);
    CHECK(size >= 2 && size <= 8);
    open_world();
    case_sizes();
    case_parts();
    case_many();
    case_mismatch();
    case_cancel();
    report_speed();
    case_leftovers();
    case_leftovers();
    close_world();
    open_world();
    ring_exchange(99999, 1, false);
    case_disconnect();
    close_world();
    if (rank == 0)
        printf("PASS transport, %d ranks\n", size);
    return 0;
}
