/*
 * A worker of the comparison: connects to benchmarks/compare through the Unix socket PEER_SOCKET,
 * says who it is, and then sleeps in read() until it is told to measure, so that only one library
 * runs at a time. One thread.
 *
 *   -> {"rank": R, "size": N, "version": "..."}
 *   <- run OP COUNT CALLS BATCH SHARED GAP_US      OP: number of peer_op_t; COUNT: floats per block
 *   -> CPU_SECONDS T1 T2 ... (CALLS times, us per collective)
 *   <- idle SECONDS                                sleeps; then as after run, without times
 *   <- quit
 *
 * A time is that of one collective between a barrier and its return, or, with BATCH > 1, that of BATCH
 * collectives divided by it. The buffers are rewritten before every call, within the time if BATCH
 * > 1 (for every library alike), and the first and the last result of every call are checked.
 */
#include "peer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

typedef struct work {
    int       rank, size;
    peer_op_t op;
    size_t    count;
    float    *in, *out;
} work_t;

typedef struct arena {
    float *in, *out;
    size_t bytes;
} arena_t;

void peer_die(const char *what) {
    fprintf(stderr, "peer: %s\n", what);
    exit(1);
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static double cpu_seconds(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static void fill(float *at, size_t n, float value) {
    for (size_t i = 0; i < n; i++)
        at[i] = value;
}

/* Every element that rank r brings in call c is base(c) + r, for every destination. */
static void prepare(const work_t *w, float base) {
    size_t all = w->count * (size_t)w->size;
    switch (w->op) {
    case PEER_ALLREDUCE:
    case PEER_MOVE:
    case PEER_BROADCAST: fill(w->out, w->count, base + (float)w->rank); break;
    case PEER_ALLGATHER: fill(w->in, w->count, base + (float)w->rank); break;
    default: fill(w->in, all, base + (float)w->rank); break;
    }
}

static void check(const work_t *w, float base) {
    float  last = base + (float)(w->size - 1);
    float  sum = base * (float)w->size + (float)(w->size * (w->size - 1) / 2);
    size_t n = w->count;
    int    ok;
    if (n == 0)
        return;
    switch (w->op) {
    case PEER_ALLREDUCE:
    case PEER_REDUCE_SCATTER: ok = w->out[0] == sum && w->out[n - 1] == sum; break;
    case PEER_MOVE: ok = w->out[0] == base + (float)w->rank; break;
    case PEER_BROADCAST: ok = w->out[0] == base && w->out[n - 1] == base; break;
    default: ok = w->out[0] == base && w->out[n * (size_t)w->size - 1] == last; break;
    }
    if (!ok)
        peer_die("a result is wrong");
}

/* Reads and writes each line of the buffer once, in place, as fast as the C library knows how. */
static void move(const work_t *w) {
    size_t line = 64 / sizeof(float);
    if (w->count > line)
        memmove(w->out, w->out + line, (w->count - line) * sizeof(float));
}

static void call(const work_t *w) {
    if (w->op == PEER_MOVE)
        move(w);
    else
        peer_run(w->op, w->in, w->out, w->count);
}

static double measure(const work_t *w, int batch, float base) {
    double begin, time;
    if (batch <= 1)
        prepare(w, base);
    peer_barrier();
    begin = now_us();
    if (batch <= 1)
        call(w);
    for (int i = 0; i < batch && batch > 1; i++) {
        prepare(w, base);
        call(w);
    }
    time = now_us() - begin;
    check(w, base);
    return time / (batch > 1 ? batch : 1);
}

static void run(work_t *w, arena_t *arenas, char *line, FILE *link) {
    int     op, calls, batch, shared, gap;
    size_t  need;
    double *times, cpu = cpu_seconds();
    if (sscanf(line, "run %d %zu %d %d %d %d", &op, &w->count, &calls, &batch, &shared, &gap) != 6)
        peer_die("an order is not understood");
    arena_t *arena = &arenas[shared != 0];
    w->op = (peer_op_t)op;
    need = w->count * sizeof(float);
    if (op != PEER_ALLREDUCE && op != PEER_BROADCAST && op != PEER_MOVE)
        need *= (size_t)w->size;
    need = (need + 4095) & ~(size_t)4095;
    if (need > arena->bytes) { /* never given back: the comparison goes from small to large */
        arena->in = peer_alloc(need, shared);
        arena->out = peer_alloc(need, shared);
        arena->bytes = need;
    }
    w->in = arena->in;
    w->out = arena->out;
    times = calloc((size_t)calls + 1, sizeof(*times));
    for (int c = 0; c < calls; c++) {
        if (gap > 0)
            usleep((useconds_t)gap);
        times[c] = measure(w, batch, (float)(c % 7));
    }
    fprintf(link, "%.6f", cpu_seconds() - cpu);
    for (int c = 0; c < calls; c++)
        fprintf(link, " %.4f", times[c]);
    fprintf(link, "\n");
    fflush(link);
    free(times);
}

static void idle(const char *line, FILE *link) {
    double          cpu = cpu_seconds(), seconds = atof(line + 5);
    struct timespec rest = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&rest, NULL);
    fprintf(link, "%.6f\n", cpu_seconds() - cpu);
    fflush(link);
}

static FILE *connect_to(const char *path) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int                fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (path == NULL || strlen(path) >= sizeof(at.sun_path))
        peer_die("PEER_SOCKET is not set; this program is started by benchmarks/compare");
    strcpy(at.sun_path, path); /* the length was checked above */
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)) != 0)
        peer_die("benchmarks/compare cannot be reached");
    return fdopen(fd, "r+");
}

int main(int argc, char **argv) {
    work_t      w = {0};
    arena_t     arenas[2] = {{0}};
    const char *version = "";
    char        line[256];
    FILE       *link = connect_to(getenv("PEER_SOCKET"));
    peer_init(&argc, &argv, &w.rank, &w.size, &version);
    fprintf(link, "{\"rank\": %d, \"size\": %d, \"version\": \"%s\"}\n", w.rank, w.size, version);
    fflush(link);
    while (fgets(line, sizeof(line), link) != NULL && strncmp(line, "quit", 4) != 0) {
        fseek(link, 0, SEEK_CUR); /* from reading to writing */
        if (strncmp(line, "idle", 4) == 0)
            idle(line, link);
        else
            run(&w, arenas, line, link);
    }
    peer_finish();
    return 0;
}
