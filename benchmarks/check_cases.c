/*
 * What hora-check runs over one transport, inside one rank. After an error that ends the
 * communicator the rank gives the round up; wrong results are counted and the round goes on.
 */
#include "check_cases.h"

#include "common/coll.h"
#include "common/gpu.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct round {
    hora_comm_t   *comm;
    const char    *transport, *algo;
    check_rank_t  *result;
    unsigned       salt;
    unsigned char *in_memory, *out_memory;
    gpu_mirror_t  *mirror; /* NULL: calls are on host memory */
    bool           forced; /* a path that need not be possible here */
    bool           refused; /* and is not, as its first call has said */
    long           before; /* calls of the rounds before */
    check_round_t *round;
} round_t;

static const char *const algos[CHECK_ROUNDS] = {"auto",     "arena",   "oneshot", "direct",  "ring",
                                                "doubling", "halving", "tree",    "twolevel"};

static const char *const paths[] = {"auto",   "nccl", "hierarchical", "ipc",
                                    "staged", "mpi"}; /* on GPUs */

/* The matrix of types and operations runs with few elements, one type runs with more. */
static const size_t few[] = {1, 37};
static const size_t more[] = {0, 2, 1000, 4099, 50021};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void note_failure(round_t *r, const char *format, ...) {
    check_rank_t *result = r->result;
    if (result->failures < CHECK_TEXTS) {
        va_list args;
        va_start(args, format);
        vsnprintf(result->texts[result->failures], CHECK_TEXT_MAX, format, args);
        va_end(args);
    }
    result->failures++;
}

static hora_status_t call_on_gpu(gpu_mirror_t *mirror, coll_t *c, hora_comm_t *comm) {
    if (!gpu_mirror_put(mirror, c))
        return HORA_ERR_SYSTEM;
    hora_status_t st = gpu_mirror_call(mirror, c, comm);
    return st == HORA_OK && !gpu_mirror_get(mirror, c) ? HORA_ERR_SYSTEM : st;
}

static bool run_call(round_t *r, coll_t *c) {
    snprintf(r->result->doing, sizeof(r->result->doing), "%s: %s of %zu %s, %s%s", r->algo,
             coll_name(c->kind), c->count, hora_dtype_name(c->dtype), hora_op_name(c->op),
             c->in_place ? ", in place" : "");
    c->in_memory = r->in_memory;
    c->out_memory = r->out_memory;
    coll_write(c);
    hora_status_t st = r->mirror != NULL ? call_on_gpu(r->mirror, c, r->comm)
                                         : coll_call(c, r->comm, NULL);
    const char *text = r->mirror != NULL ? gpu_text(r->mirror->gpu) : hora_last_error();
    bool        first = r->result->calls == r->before;
    if (st == HORA_ERR_UNSUPPORTED && r->forced && first) { /* on all ranks */
        snprintf(r->round->why, sizeof(r->round->why), "%.199s", text);
        r->refused = true;
        return true;
    }
    r->result->calls++;
    if (st != HORA_OK) {
        note_failure(r, "%s, %s: %s", r->transport, r->result->doing, text);
        return false;
    }
    size_t wrong = coll_wrong(c);
    if (wrong != 0)
        note_failure(r, "%s, %s: %zu wrong elements", r->transport, r->result->doing, wrong);
    return true;
}

static bool run_case(round_t *r, coll_kind_t kind, hora_dtype_t dtype, hora_op_t op, size_t count) {
    int rank = hora_comm_rank(r->comm), size = hora_comm_size(r->comm);
    coll_t c;
    bool good = coll_init(&c, kind, dtype, op, count);
    int  places = r->refused ? 0 : coll_can_be_in_place(kind) ? 2 : 1;
    for (int place = 0; place < places && good; place++) {
        int root = (int)(++r->salt % (unsigned)size);
        good = coll_place(&c, rank, size, root, place == 1, r->salt) && run_call(r, &c);
    }
    coll_destroy(&c);
    return good;
}

static bool run_reductions(round_t *r, coll_kind_t kind, hora_dtype_t dtype) {
    for (int op = 0; op < HORA_OP_COUNT; op++)
        for (size_t i = 0; i < LENGTH(few) && coll_takes(kind, dtype, (hora_op_t)op); i++)
            if (!run_case(r, kind, dtype, (hora_op_t)op, few[i]))
                return false;
    return true;
}

static bool run_kind(round_t *r, coll_kind_t kind) {
    for (int d = 0; d < HORA_DTYPE_COUNT; d++) {
        if (coll_reduces(kind) ? !run_reductions(r, kind, (hora_dtype_t)d)
                               : !run_case(r, kind, (hora_dtype_t)d, PATTERN_MOVE, few[1]))
            return false;
    }
    for (size_t i = 0; i < LENGTH(more); i++)
        if (!run_case(r, kind, HORA_FLOAT32, HORA_SUM, more[i]))
            return false;
    return true;
}

/* The longest: every block of the largest count, the v forms' additions, 8 bytes each. */
static size_t most_bytes(int size) {
    return (more[LENGTH(more) - 1] + 8) * (size_t)(size + 1) * 8 + COLL_GUARD;
}

static bool run_kinds(round_t *r) {
    size_t bytes = most_bytes(hora_comm_size(r->comm));
    bool   good = true;
    r->in_memory = malloc(bytes);
    r->out_memory = malloc(bytes);
    if (r->in_memory == NULL || r->out_memory == NULL) {
        note_failure(r, "%s: no memory for %zu bytes", r->transport, bytes);
        good = false;
    }
    for (int kind = 0; kind < COLL_KIND_COUNT && good; kind++)
        if (r->mirror == NULL || kind != COLL_SENDRECV) /* only between ranks' host memory */
            good = run_kind(r, (coll_kind_t)kind);
    free(r->in_memory);
    free(r->out_memory);
    return good;
}

static bool run_on_gpu(round_t *r) {
    static gpu_t gpu; /* one for all rounds; closed with the process */
    gpu_mirror_t mirror;
    size_t       bytes = most_bytes(hora_comm_size(r->comm));
    if ((gpu.stream == NULL && !gpu_open(&gpu, hora_comm_local_rank(r->comm))) ||
        !gpu_mirror_open(&mirror, &gpu, bytes, bytes)) {
        note_failure(r, "--device cuda: %s", gpu.error);
        return false;
    }
    r->mirror = &mirror;
    bool good = run_kinds(r);
    gpu_mirror_close(&mirror);
    return good;
}

static bool open_round(round_t *r, int number, const check_job_t *job) {
    const char *own = getenv("HORA_RENDEZVOUS");
    char        rendezvous[128];
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    snprintf(rendezvous, sizeof(rendezvous), "%s-%d", own ? own : "", number);
    options.transport = r->transport;
    options.rendezvous = job->own_rendezvous ? rendezvous : NULL;
    setenv(job->cuda ? "HORA_GPU_PATH" : "HORA_ALGO", r->algo, 1);
    snprintf(r->result->doing, sizeof(r->result->doing), "%s: start", r->algo);
    if (hora_comm_create(&options, &r->comm) == HORA_OK)
        return true;
    note_failure(r, "%s, start: %s", r->transport, hora_last_error());
    return false;
}

/* Is round i to be run? */
static bool is_wanted(const check_job_t *job, int i) {
    bool arena = i == 1 || i == 2, one_host = strcmp(job->transport, "tcp") != 0 &&
                                              strcmp(job->transport, "mpi") != 0;
    if (job->only != NULL && strcmp(job->only, job->cuda ? paths[i] : algos[i]) != 0)
        return false;
    if (job->cuda)
        return job->mpirun || strcmp(paths[i], "mpi") != 0;
    return !arena || one_host;
}

/* False: the rest need not be tried. */
static bool run_round(const check_job_t *job, int i, unsigned *salt, check_rank_t *result) {
    round_t r = {.transport = job->transport, .algo = job->cuda ? paths[i] : algos[i],
                 .result = result, .salt = *salt, .round = &result->rounds[i],
                 .before = result->calls, .forced = job->cuda && i > 0};
    double begin = now();
    if (!open_round(&r, i, job))
        return false;
    result->rank = hora_comm_rank(r.comm);
    result->size = hora_comm_size(r.comm);
    bool good = job->cuda ? run_on_gpu(&r) : run_kinds(&r);
    *salt = r.salt;
    if (hora_comm_free(r.comm) != HORA_OK && good) {
        note_failure(&r, "%s, end: %s", job->transport, hora_last_error());
        good = false;
    }
    snprintf(r.round->name, sizeof(r.round->name), "%s", r.algo);
    r.round->calls = result->calls - r.before;
    r.round->seconds = now() - begin;
    return good;
}

int check_transport(const check_job_t *job, check_rank_t *result) {
    static unsigned salt;
    int rounds = job->cuda ? (int)LENGTH(paths) : (int)LENGTH(algos);
    memset(result->rounds, 0, sizeof(result->rounds));
    for (int i = 0; i < rounds; i++)
        if (is_wanted(job, i) && !run_round(job, i, &salt, result))
            return 1;
    return result->failures != 0;
}

void check_print_round(const check_round_t *round, const char *transport) {
    if (round->calls > 0)
        printf("%-5s %-9s %6ld calls %6.2f s\n", transport, round->name, round->calls,
               round->seconds);
    if (round->why[0] != '\0')
        printf("%-5s %-9s not checked: %s\n", transport, round->name, round->why);
}
