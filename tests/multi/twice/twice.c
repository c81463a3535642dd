/*
 * Copies of the library in one process, as when two extensions bring hora along: libhora itself,
 * the same from another path, and the same in a namespace of its own (dlmopen). All are given the
 * same launcher's variables, and make communicators at the same time, in an order that differs from
 * rank to rank. Named communicators of one copy do the same.
 *
 *     twice LIBHORA shm|tcp|net NRANKS COPIES
 *
 * net is tcp with the rendezvous at a TCP port too. Each rank's checks end its process.
 */
#include <hora/hora.h>
#include <ranks.h>

#include <arpa/inet.h>
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define COPIES_MAX 3
#define ROUNDS     8
#define STEPS      20
#define COUNT      1000

#define FUNCTIONS(X)                                                                              \
    X(last_error) X(comm_create) X(comm_split) X(comm_free) X(comm_abort) X(comm_rank)            \
    X(comm_size) X(allreduce) X(alltoall) X(barrier) X(alloc) X(free)                             \
    X(timeline_start) X(timeline_stop)

/* One copy: hora.h's functions. */
typedef struct copy {
#define MEMBER(name) __typeof__(hora_##name) *name;
    FUNCTIONS(MEMBER)
#undef MEMBER
    int apart; /* with a libc of its own, which knows the main thread and its own ones only */
} copy_t;

typedef struct job {
    const char *library, *other; /* paths of the same file's copies */
    const char *folder;          /* where the second one is */
    const char *how;
    int         ncopies, port;
} job_t;

/* What one thread does. */
typedef struct work {
    const copy_t *copy;
    const char   *name;   /* of its communicator; NULL: none */
    int           number; /* makes its values differ from those of other communicators */
    unsigned      delay;  /* us */
} work_t;

static int this_rank;

static void fail(const char *what, const char *text) {
    fprintf(stderr, "rank %d: %s: %s\n", this_rank, what, text);
    fflush(NULL);
    _exit(1);
}

static void expect(int holds, const char *what) {
    if (!holds)
        fail(what, "not so");
}

static void ok(const copy_t *copy, hora_status_t status, const char *what) {
    if (status != HORA_OK)
        fail(what, copy->last_error());
}

static void load(copy_t *copy, const char *path, int apart) {
    void *library = apart ? dlmopen(LM_ID_NEWLM, path, RTLD_NOW | RTLD_LOCAL)
                          : dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail("dlopen", dlerror());
    copy->apart = apart;
#define LOAD(name)                                                                                \
    copy->name = (__typeof__(hora_##name) *)dlsym(library, "hora_" #name);                        \
    expect(copy->name != NULL, "hora_" #name);
    FUNCTIONS(LOAD)
#undef LOAD
}

/* ---- What a communicator is for -------------------------------------------------------------- */

static void add_up(const work_t *w, hora_comm_t *comm, int32_t *data) {
    int n = w->copy->comm_size(comm), me = w->copy->comm_rank(comm);
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < COUNT; i++)
            data[i] = w->number * 1000 + me + step;
        ok(w->copy, w->copy->allreduce(comm, data, data, COUNT, HORA_INT32, HORA_SUM, NULL),
           "allreduce");
        int32_t sum = n * (w->number * 1000 + step) + n * (n - 1) / 2;
        for (int i = 0; i < COUNT; i++)
            expect(data[i] == sum, "the sum of one world alone");
    }
}

static void swap_blocks(const work_t *w, hora_comm_t *comm) {
    int32_t in[16], out[16];
    int     n = w->copy->comm_size(comm), me = w->copy->comm_rank(comm);
    for (int r = 0; r < n; r++)
        in[r] = w->number * 1000 + 10 * me + r;
    ok(w->copy, w->copy->alltoall(comm, in, out, 1, HORA_INT32, NULL), "alltoall");
    for (int r = 0; r < n; r++)
        expect(out[r] == w->number * 1000 + 10 * r + me, "blocks of one world alone");
}

static void *run(void *arg) {
    const work_t       *w = arg;
    const copy_t       *c = w->copy;
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_comm_t        *comm, *part;
    void               *memory;
    int32_t             data[COUNT];
    options.name = w->name;
    usleep(w->delay);
    ok(c, c->comm_create(&options, &comm), "comm_create");
    expect(c->comm_rank(comm) == this_rank, "my rank");
    add_up(w, comm, data);
    ok(c, c->comm_split(comm, 0, -this_rank, &part), "comm_split");
    ok(c, c->alloc(comm, sizeof(data), &memory), "alloc");
    add_up(w, part, memory);
    swap_blocks(w, comm);
    ok(c, c->free(comm, memory), "free");
    ok(c, c->comm_free(part), "comm_free of the part");
    ok(c, c->barrier(comm, NULL), "barrier");
    ok(c, c->comm_free(comm), "comm_free");
    return NULL;
}

/* ---- The scenarios --------------------------------------------------------------------------- */

/* All at once, each after a delay of its own, which another rank does not share. */
static void run_together(work_t *works, int count, unsigned *seed) {
    pthread_t threads[2 * COPIES_MAX];
    for (int i = 0; i < count; i++) {
        works[i].delay = rand_r(seed) % 4 ? rand_r(seed) % 20000 : 0;
        if (!works[i].copy->apart)
            expect(pthread_create(&threads[i], NULL, run, &works[i]) == 0, "a thread");
    }
    for (int i = 0; i < count; i++)
        if (works[i].copy->apart)
            run(&works[i]);
    for (int i = 0; i < count; i++)
        if (!works[i].copy->apart)
            pthread_join(threads[i], NULL);
}

static void copies_together(const copy_t *copies, int ncopies, unsigned *seed) {
    for (int round = 0; round < ROUNDS; round++) {
        work_t works[COPIES_MAX];
        for (int i = 0; i < ncopies; i++) {
            int which = (i + this_rank + round) % ncopies;
            works[i] = (work_t){&copies[which], NULL, 1 + which, 0};
        }
        run_together(works, ncopies, seed);
    }
}

static void copies_in_turn(const copy_t *copies, int ncopies) {
    for (int i = 0; i < 2 * ncopies; i++) {
        work_t work = {&copies[i % ncopies], NULL, 1 + i, 0};
        run(&work);
    }
}

static void names_together(const copy_t *copies, unsigned *seed) {
    for (int round = 0; round < ROUNDS; round++) {
        work_t works[3] = {{&copies[0], "left", 1, 0},
                           {&copies[0], "right", 2, 0},
                           {&copies[1], "left", 3, 0}};
        work_t first = works[0];
        if (this_rank % 2) {
            works[0] = works[2];
            works[2] = first;
        }
        run_together(works, 3, seed);
    }
}

/* One copy's world is aborted; the other one's goes on. */
static void one_aborted(const copy_t *copies) {
    const copy_t *a = &copies[0], *b = &copies[1];
    hora_comm_t  *one, *other;
    work_t        work = {b, NULL, 5, 0};
    int32_t       data[COUNT];
    ok(a, a->comm_create(NULL, &one), "comm_create");
    ok(b, b->comm_create(NULL, &other), "comm_create");
    if (this_rank == 0)
        ok(a, a->comm_abort(one, "on purpose"), "comm_abort");
    expect(a->barrier(one, NULL) == HORA_ERR_ABORTED, "the aborted world fails");
    expect(strstr(a->last_error(), "on purpose") != NULL, "and says why");
    add_up(&work, other, data);
    ok(a, a->comm_free(one), "comm_free");
    add_up(&work, other, data);
    ok(b, b->comm_free(other), "comm_free");
}

/* As if rank 0 had loaded the copies in another order: it joins by its second one, the others by
 * their first. They must not meet, and rank 0 says why. The last scenario, as the copies are out of
 * step then. */
static void out_of_order(const copy_t *copies, int size) {
    const copy_t       *mine = &copies[this_rank == 0];
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    hora_comm_t        *comm;
    hora_status_t       status;
    options.start_timeout = 1;
    if (size == 1)
        return;
    status = mine->comm_create(&options, &comm);
    expect(status == HORA_ERR_TIMEOUT, "copies loaded in another order do not meet");
    expect((strstr(mine->last_error(), "this is copy 1 of libhora in this process: all ranks must "
                                       "load the copies in one order") != NULL) == (this_rank == 0),
           mine->last_error());
}

/* What a file begins with; "" if there is none. */
static const char *first_of(const job_t *job, const char *name, char *text, size_t size) {
    char   path[PATH_MAX];
    FILE  *file;
    size_t n = 0;
    snprintf(path, sizeof(path), "%s/%s", job->folder, name);
    file = fopen(path, "r");
    if (file != NULL) {
        n = fread(text, 1, size - 1, file);
        fclose(file);
    }
    text[n] = '\0';
    return text;
}

/* Both copies are told the same path, and neither overwrites the other's file. */
static void timelines_apart(const job_t *job, const copy_t *copies) {
    char         path[PATH_MAX], name[64], text[512];
    hora_comm_t *comms[2];
    snprintf(path, sizeof(path), "%s/trace", job->folder);
    for (int i = 0; i < 2; i++)
        ok(&copies[i], copies[i].comm_create(NULL, &comms[i]), "comm_create");
    for (int i = 0; i < 2; i++)
        ok(&copies[i], copies[i].timeline_start(comms[i], path, 0), "timeline_start");
    for (int i = 0; i < 2; i++)
        ok(&copies[i], copies[i].timeline_stop(comms[i]), "timeline_stop");
    for (int i = 0; i < 2; i++) {
        int at = snprintf(name, sizeof(name), "trace%s", i == 0 ? "" : ".copy1");
        if (this_rank > 0)
            snprintf(name + at, sizeof(name) - (size_t)at, ".rank%d", this_rank);
        expect(first_of(job, name, text, sizeof(text))[0] == '[', name);
        expect(strstr(text, "]") != NULL, "a file that was closed");
        ok(&copies[i], copies[i].comm_free(comms[i]), "comm_free");
        snprintf(path, sizeof(path), "%s/%s", job->folder, name);
        unlink(path);
    }
}

static int rank_main(int rank, int size, void *arg) {
    const job_t *job = arg;
    copy_t       copies[COPIES_MAX];
    unsigned     seed = 1 + (unsigned)rank;
    char         place[64];
    this_rank = rank;
    setenv("HORA_TRANSPORT", strcmp(job->how, "shm") == 0 ? "shm" : "tcp", 1);
    setenv("HORA_TIMEOUT", "30", 1);
    setenv("HORA_START_TIMEOUT", "30", 1);
    snprintf(place, sizeof(place), "tcp:127.0.0.1:%d", job->port);
    if (strcmp(job->how, "net") == 0)
        setenv("HORA_RENDEZVOUS", place, 1);
    load(&copies[0], job->library, 0);
    load(&copies[1], job->other, 0);
    expect(copies[0].comm_create != copies[1].comm_create, "two copies");
    if (job->ncopies > 2)
        load(&copies[2], job->library, 1);
    copies_in_turn(copies, job->ncopies);
    copies_together(copies, job->ncopies, &seed);
    names_together(copies, &seed);
    one_aborted(copies);
    timelines_apart(job, copies);
    out_of_order(copies, size);
    return 0;
}

/* ---- The parent ------------------------------------------------------------------------------ */

static int free_port(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          len = sizeof(at);
    int                fd = socket(AF_INET, SOCK_STREAM, 0);
    expect(fd >= 0 && bind(fd, (struct sockaddr *)&at, len) == 0 &&
           getsockname(fd, (struct sockaddr *)&at, &len) == 0, "a free port");
    close(fd);
    return ntohs(at.sin_port);
}

static void copy_file(const char *from, const char *to) {
    char   bytes[65536];
    size_t n;
    FILE  *in = fopen(from, "rb"), *out = fopen(to, "wb");
    expect(in != NULL && out != NULL, "a copy of the library");
    while ((n = fread(bytes, 1, sizeof(bytes), in)) > 0)
        expect(fwrite(bytes, 1, n, out) == n, "a copy of the library");
    expect(fclose(in) == 0 && fclose(out) == 0, "a copy of the library");
}

int main(int argc, char **argv) {
    char      folder[] = "/tmp/hora-twice-XXXXXX", other[PATH_MAX];
    job_t     job = {.other = other, .folder = folder};
    ranks_job_t ranks = {.main = rank_main, .arg = &job, .deadline = 100, .grace = 5};
    if (argc != 5) {
        fprintf(stderr, "usage: twice LIBHORA shm|tcp|net NRANKS COPIES\n");
        return 2;
    }
    job.library = argv[1];
    job.how = argv[2];
    ranks.nranks = atoi(argv[3]);
    job.ncopies = atoi(argv[4]);
    job.port = free_port();
    expect(mkdtemp(folder) != NULL, "a folder");
    snprintf(other, sizeof(other), "%s/libhora.so", folder);
    copy_file(job.library, other);
    int failed = ranks_run(&ranks, NULL);
    unlink(other);
    rmdir(folder);
    return failed != 0;
}
