/*
 * Starting (start.h).
 */
#include "start.h"

#include "bootstrap/handshake.h"
#include "bootstrap/roster.h"
#include "common/ranks.h"
#include "schedule/algos.h"
#include "transport/tcp/tcp.h"
#include "transport/transport.h"
#include "util/clock.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

/* ---- Bytes and memory ----------------------------------------------------------------------- */

static hora_card_t card_of(int rank, int host) {
    hora_card_t card = {.host_id = (uint64_t)(rank / host) + 1};
    snprintf(card.host, sizeof(card.host), "node%06d.cluster", rank / host);
    snprintf(card.socket, sizeof(card.socket), "hora-%08x%016x", rank, rank);
    snprintf(card.transport, sizeof(card.transport), "auto");
    return card;
}

/* Four allgathers: who is where, the arenas, the addresses, all linked up (roster.c, local.c,
 * links.c, bootstrap.c). Each part has its length before it, and each frame a head. */
static double roster_bytes(int size, int host) {
    uint8_t     bytes[HORA_BLOB_MAX];
    hora_card_t card = card_of(0, host);
    double      addresses = 2 + strlen("shm") + 2 + 2 + strlen("tcp") + 2 + HORA_TCP_ADDRESS_SIZE;
    return (double)size * (4 * 4 + (double)hora_card_encode(&card, bytes) + addresses) +
           4 * HORA_FRAME_HEAD;
}

static double handshake_bytes(void) {
    return 4 * HORA_FRAME_HEAD + HORA_HELLO_BYTES + HORA_CHALLENGE_BYTES + 32 +
           (double)strlen("node000000.cluster");
}

/* ---- A rank's own work ---------------------------------------------------------------------- */

static bool measure_roster(int size, int host, double *seconds_p) {
    hora_world_t *world = NULL;
    hora_card_t  *cards = calloc((size_t)size, sizeof(*cards));
    bool          fine = cards != NULL && hora_world_create(0, size, &world) == HORA_OK;
    for (int r = 0; fine && r < size; r++)
        cards[r] = card_of(r, host);
    uint64_t begin = hora_clock_ns();
    fine = fine && hora_roster_fill(world, cards) == HORA_OK;
    *seconds_p = hora_clock_seconds(hora_clock_ns() - begin);
    hora_world_destroy(world);
    free(cards);
    return fine;
}

/* A communicator whose links are TCP's, each in a struct of its own. */
typedef struct fake {
    hora_transport_t  transport;
    hora_world_t     *world;
    hora_comm_t       comm;
    hora_tcp_link_t  *links;
} fake_t;

static bool fake_open(fake_t *fake, int size) {
    *fake = (fake_t){.transport.ops = &hora_transport_tcp};
    fake->links = calloc((size_t)size, sizeof(*fake->links));
    fake->comm.world_ranks = calloc((size_t)size, sizeof(int));
    if (fake->links == NULL || fake->comm.world_ranks == NULL ||
        hora_world_create(0, size, &fake->world) != HORA_OK)
        return false;
    hora_settings_load(&fake->world->settings);
    fake->comm.world = fake->world;
    fake->comm.size = size;
    for (int r = 0; r < size; r++) {
        fake->links[r].base.transport = &fake->transport;
        fake->world->peers[r].link = r > 0 ? &fake->links[r].base : NULL;
        fake->comm.world_ranks[r] = r;
    }
    return true;
}

static void fake_close(fake_t *fake) {
    hora_world_destroy(fake->world);
    free(fake->links);
    free(fake->comm.world_ranks);
}

static bool measure_select(int size, double *seconds_p) {
    hora_coll_t coll = {.kind = HORA_COLL_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_SUM,
                        .size = size, .count = 1000, .prescale = 1, .postscale = 1};
    fake_t      fake;
    bool        fine = fake_open(&fake, size);
    for (int i = 0; fine && i < 5; i++) {
        uint64_t begin = hora_clock_ns();
        hora_select(&fake.comm, &coll);
        double seconds = hora_clock_seconds(hora_clock_ns() - begin);
        if (i == 0 || seconds < *seconds_p)
            *seconds_p = seconds;
    }
    fake_close(&fake);
    return fine;
}

bool scale_start_measure(int size, int host, scale_start_t *start_p) {
    double others = size - 1;
    *start_p = (scale_start_t){
        .roster = roster_bytes(size, host),
        .sent = others * roster_bytes(size, host),
        .handshake = handshake_bytes(),
        .descriptors = scale_descriptors(size, host),
        .rank_memory = (double)size * (sizeof(hora_peer_t) + sizeof(int) + sizeof(void *) + 1 +
                                       sizeof(hora_tcp_link_t)),
        .root_memory = (double)size * (sizeof(hora_conn_t) + HORA_HOST_MAX + HORA_BLOB_MAX +
                                       sizeof(hora_card_t)) + 2 * roster_bytes(size, host),
        .root_buffers = others * sizeof(hora_tcp_in_t)};
    return measure_roster(size, host, &start_p->roster_seconds) &&
           measure_select(size, &start_p->select_seconds);
}

/* ---- Joins on this machine ------------------------------------------------------------------ */

static double cpu_seconds(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static int count_descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    int  n = -3; /* ".", "..", and the folder's own */
    if (folder == NULL)
        return 0;
    while (readdir(folder) != NULL)
        n++;
    closedir(folder);
    return n;
}

static hora_status_t run_step(hora_engine_t *engine) {
    int64_t        shape[1] = {1};
    float          value = 1;
    hora_handle_t *handle;
    hora_task_t    task = HORA_TASK_INIT;
    hora_status_t  st;
    task.name = "gradient";
    task.ndim = 1;
    task.shape = shape;
    task.in = task.out = &value;
    st = hora_engine_enqueue(engine, &task, 1, 0, &handle);
    if (st != HORA_OK)
        return st;
    st = hora_handle_wait(handle);
    hora_handle_release(handle);
    return st;
}

static int fail(void) {
    fprintf(stderr, "hora-scale: %s\n", hora_last_error());
    return 1;
}

/* arg: [size] in shared memory. */
static int join_main(int rank, int size, void *arg) {
    scale_join_t  *joins = arg;
    hora_comm_t   *comm;
    hora_engine_t *engine;
    int            before = count_descriptors();
    uint64_t       begin = hora_clock_ns();
    double         cpu = cpu_seconds();
    (void)size;
    if (hora_comm_create(NULL, &comm) != HORA_OK)
        return fail();
    joins[rank].wall = hora_clock_seconds(hora_clock_ns() - begin);
    joins[rank].cpu = cpu_seconds() - cpu;
    if (hora_engine_create(comm, NULL, &engine) != HORA_OK || run_step(engine) != HORA_OK)
        return fail();
    joins[rank].descriptors = count_descriptors() - before;
    if (hora_barrier(comm, NULL) != HORA_OK || hora_engine_free(engine) != HORA_OK)
        return fail();
    return hora_comm_free(comm) != HORA_OK;
}

bool scale_join_measure(int size, scale_join_t *join_p) {
    size_t        bytes = (size_t)size * sizeof(scale_join_t);
    ranks_job_t   job = {.nranks = size, .main = join_main, .deadline = 60, .grace = 5};
    scale_join_t *joins = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
                               0);
    bool          fine;
    if (joins == MAP_FAILED)
        return false;
    setenv("HORA_TRANSPORT", "tcp", 1);
    job.arg = joins;
    fine = ranks_run(&job, NULL) == 0;
    *join_p = joins[0];
    for (int r = 1; r < size; r++)
        if (joins[r].wall > join_p->wall)
            join_p->wall = joins[r].wall;
    munmap(joins, bytes);
    return fine;
}
