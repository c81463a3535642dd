/*
 * What hora-check runs over one transport, inside one rank. After an error that ends the
 * communicator the rank gives the round up; wrong results are counted and the round goes on.
 */
#include "check_cases.h"

#include "common/coll.h"

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
} round_t;

static const char *const algos[CHECK_ROUNDS] = {"auto",     "arena",   "oneshot", "direct",  "ring",
                                                "doubling", "halving", "tree",    "twolevel"};

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

static bool run_call(round_t *r, coll_t *c) {
    snprintf(r->result->doing, sizeof(r->result->doing), "%s: %s of %zu %s, %s%s", r->algo,
             coll_name(c->kind), c->count, hora_dtype_name(c->dtype), hora_op_name(c->op),
             c->in_place ? ", in place" : "");
    c->in_memory = r->in_memory;
    c->out_memory = r->out_memory;
    coll_write(c);
    hora_status_t st = coll_call(c, r->comm, NULL);
    r->result->calls++;
    if (st != HORA_OK) {
        note_failure(r, "%s, %s: %s", r->transport, r->result->doing, hora_last_error());
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
    for (int place = 0; place < (coll_can_be_in_place(kind) ? 2 : 1) && good; place++) {
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

static bool get_memory(round_t *r, int size) {
    /* The longest: every block of the largest count, the v forms' additions, 8 bytes each. */
    size_t bytes = (more[LENGTH(more) - 1] + 8) * (size_t)(size + 1) * 8 + COLL_GUARD;
    r->in_memory = malloc(bytes);
    r->out_memory = malloc(bytes);
    if (r->in_memory != NULL && r->out_memory != NULL)
        return true;
    note_failure(r, "%s: no memory for %zu bytes", r->transport, bytes);
    return false;
}

static bool run_round(round_t *r) {
    bool good = get_memory(r, hora_comm_size(r->comm));
    for (int kind = 0; kind < COLL_KIND_COUNT && good; kind++)
        good = run_kind(r, (coll_kind_t)kind);
    free(r->in_memory);
    free(r->out_memory);
    return good;
}

static bool open_round(round_t *r, int number, bool own_rendezvous) {
    char rendezvous[128];
    hora_comm_options_t options = HORA_COMM_OPTIONS_INIT;
    snprintf(rendezvous, sizeof(rendezvous), "%s-%d", getenv("HORA_RENDEZVOUS") ? getenv("HORA_RENDEZVOUS") : "", number);
    options.transport = r->transport;
    options.rendezvous = own_rendezvous ? rendezvous : NULL;
    setenv("HORA_ALGO", r->algo, 1);
    snprintf(r->result->doing, sizeof(r->result->doing), "%s: start", r->algo);
    if (hora_comm_create(&options, &r->comm) == HORA_OK)
        return true;
    note_failure(r, "%s, start: %s", r->transport, hora_last_error());
    return false;
}

int check_transport(const char *transport, const char *only, bool own_rendezvous,
                    check_rank_t *result) {
    static unsigned salt;
    memset(result->rounds, 0, sizeof(result->rounds));
    for (int i = 0; i < CHECK_ROUNDS; i++) {
        round_t r = {.transport = transport, .algo = algos[i], .result = result, .salt = salt};
        bool arena_only = i == 1 || i == 2;
        if ((only != NULL && strcmp(only, algos[i]) != 0) ||
            (arena_only && strcmp(transport, "shm") != 0 && strcmp(transport, "auto") != 0))
            continue;
        double begin = now();
        long before = result->calls;
        if (!open_round(&r, i, own_rendezvous))
            return 1;
        result->rank = hora_comm_rank(r.comm);
        result->size = hora_comm_size(r.comm);
        bool good = run_round(&r);
        salt = r.salt;
        if (hora_comm_free(r.comm) != HORA_OK && good) {
            note_failure(&r, "%s, end: %s", transport, hora_last_error());
            good = false;
        }
        result->rounds[i] = (check_round_t){result->calls - before, now() - begin};
        if (!good)
            return 1;
    }
    return result->failures != 0;
}

void check_print_round(const check_rank_t *rank, int round, const char *transport) {
    if (rank->rounds[round].calls > 0)
        printf("%-5s %-9s %6ld calls %6.2f s\n", transport, algos[round], rank->rounds[round].calls,
               rank->rounds[round].seconds);
}
