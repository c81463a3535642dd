/*
 * The CUDA kernels on a GPU, beside the CPU kernels, bit for bit; then their rates.
 *
 *     hora-gpu-kernels [--check [--few]] [--measure [--most MB] [--json FILE]]
 *
 * Both without an option. --few: every 16th case, for where each takes long; --most: the longest
 * tensor that is measured, 1024.
 *
 * Ends with 77 and the reason where there is no GPU. One thread.
 */
#include "gpu.h"

#include <kernels/cpu/kernels.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT_MAX 200003
#define INPUTS    9
#define BYTES     ((size_t)COUNT_MAX * 8 + 64)

static const size_t sizes[HORA_DTYPE_COUNT] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 1, 1};

typedef struct check {
    const gpu_test_t *t;
    uint64_t          dev[INPUTS + 2]; /* inputs, then two outputs */
    unsigned char    *host[INPUTS];
    unsigned char    *expected, *got;
    uint64_t          seed;
    long              cases, turn, step; /* every step-th turn is a case */
} check_t;

static uint64_t random_u64(check_t *c) {
    uint64_t z = (c->seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void must_equal(check_t *c, size_t bytes, const char *what, int dtype, int op, int nsrc, size_t count) {
    c->cases++;
    if (memcmp(c->expected, c->got, bytes) == 0)
        return;
    for (size_t i = 0; i < bytes; i++)
        if (c->expected[i] != c->got[i]) {
            fprintf(stderr, "%s, type %d to or by %d, %d inputs, count %zu: byte %zu differs\n", what,
                    dtype, op, nsrc, count, i);
            exit(1);
        }
}

/* Random bits: every NaN, infinity and subnormal among them. bool has 0 and 1. */
static void fill(check_t *c, hora_dtype_t dtype) {
    for (int s = 0; s < INPUTS; s++) {
        for (size_t i = 0; i + 8 <= BYTES; i += 8) {
            uint64_t raw = random_u64(c);
            raw = dtype == HORA_BOOL ? raw & 0x0101010101010101u : raw;
            memcpy(c->host[s] + i, &raw, 8);
        }
        gpu_put(c->t, c->dev[s], c->host[s], BYTES);
    }
}

/* shift: elements by which inputs and outputs lie off their alignment. In place: the first output is
 * the last input. */
static void check_reduce(check_t *c, const hora_reduce_t *cpu, int nsrc, size_t count, size_t shift,
                         bool in_place) {
    size_t             size = sizes[cpu->dtype], off = shift * size;
    hora_element_how_t how = {cpu->prescale, cpu->postscale, cpu->divisor};
    const void        *src[INPUTS];
    void              *out = c->expected;
    uint64_t           from[INPUTS], to[2];
    hora_cuda_reduce_t args;
    unsigned           blocks;
    const char        *kernel;
    if (c->turn++ % c->step != 0)
        return;
    for (int s = 0; s < nsrc; s++) {
        src[s] = c->host[s] + off;
        from[s] = c->dev[s] + off;
    }
    to[0] = in_place ? from[nsrc - 1] : c->dev[INPUTS] + off;
    to[1] = c->dev[INPUTS + 1] + off;
    hora_kernel_reduce(cpu, &out, 1, src, nsrc, count);
    kernel = hora_cuda_reduce_plan(cpu->dtype, cpu->op, &how, to, 2, from, nsrc, count,
                                   c->t->gpu.processors, &args, &blocks);
    if (kernel == NULL) {
        fprintf(stderr, "no kernel for type %d and operation %d\n", cpu->dtype, cpu->op);
        exit(1);
    }
    gpu_must_status(hora_gpu_launch(&c->t->gpu, kernel, blocks, &args, c->t->stream), kernel);
    for (int d = 0; d < 2; d++) {
        gpu_get(c->t, c->got, to[d], count * size);
        must_equal(c, count * size, kernel, cpu->dtype, cpu->op, nsrc, count);
    }
    if (in_place)
        gpu_put(c->t, c->dev[nsrc - 1], c->host[nsrc - 1], BYTES);
}

static void check_op(check_t *c, hora_dtype_t dtype, hora_op_t op) {
    static const size_t        counts[] = {0, 1, 17, 4096, COUNT_MAX - 7};
    static const hora_reduce_t hows[] = {
        {.divisor = 1, .prescale = 1.0, .postscale = 1.0}, {.divisor = 4, .prescale = 1.0, .postscale = 1.0},
        {.divisor = 3, .prescale = -1.7, .postscale = 0.3}};
    for (int nsrc = 1; nsrc <= INPUTS; nsrc++)
        for (size_t h = 0; h < 3; h++)
            for (size_t k = 0; k < 5; k++) {
                hora_reduce_t how = hows[h];
                how.dtype = dtype;
                how.op = op;
                if (dtype == HORA_BOOL && (h > 0 || nsrc == 1))
                    continue;
                check_reduce(c, &how, nsrc, counts[k], k % 2, nsrc == 2 || nsrc == 5);
            }
}

static void check_reductions(check_t *c) {
    static const hora_op_t ops[] = {HORA_SUM, HORA_PRODUCT, HORA_MIN, HORA_MAX, HORA_BAND, HORA_BOR, HORA_BXOR};
    for (int type = 0; type < HORA_DTYPE_COUNT; type++) {
        fill(c, (hora_dtype_t)type);
        for (size_t o = 0; o < 7; o++)
            if (hora_op_supported((hora_dtype_t)type, ops[o]))
                check_op(c, (hora_dtype_t)type, ops[o]);
    }
}

/* Pieces of all sizes, packed into the first output and unpacked from it. */
static void check_pack(check_t *c, hora_dtype_t from, hora_dtype_t to, double scale, uint64_t table) {
    hora_cuda_piece_t pieces[64];
    hora_cuda_pack_t  args;
    unsigned          blocks;
    const char       *kernel;
    size_t            at = 0;
    uint32_t          n = 0;
    while (n < 64) {
        size_t len = n % 7 == 0 ? 0 : n % 5 == 0 ? 20000 : (size_t)(random_u64(c) % 900);
        if (at + len > COUNT_MAX)
            break;
        pieces[n++] = (hora_cuda_piece_t){c->dev[0] + at * sizes[from],
                                          c->dev[INPUTS] + at * sizes[to], len, 0};
        at += len;
    }
    hora_kernel_convert(c->expected, to, c->host[0], from, at, scale);
    kernel = hora_cuda_pack_plan(from, to, scale, pieces, n, c->t->gpu.processors, &args, &blocks);
    args.pieces = table;
    gpu_put(c->t, table, pieces, n * sizeof(pieces[0]));
    gpu_must_status(hora_gpu_launch(&c->t->gpu, kernel, blocks, &args, c->t->stream), kernel);
    gpu_get(c->t, c->got, c->dev[INPUTS], at * sizes[to]);
    must_equal(c, at * sizes[to], kernel, from, to, (int)n, at);
}

static void check_packs(check_t *c) {
    const double scales[] = {1.0, 0.3, -65536.0};
    uint64_t     table = gpu_alloc(c->t, 64 * sizeof(hora_cuda_piece_t));
    for (int from = 0; from < HORA_DTYPE_COUNT; from++) {
        fill(c, (hora_dtype_t)from);
        check_pack(c, (hora_dtype_t)from, (hora_dtype_t)from, 1.0, table);
        for (int to = HORA_FLOAT16; from >= HORA_FLOAT16 && to < HORA_DTYPE_COUNT; to++)
            for (int k = from == to; k < 3 && (from == to || (from <= HORA_FLOAT64 && to <= HORA_FLOAT64)); k++)
                check_pack(c, (hora_dtype_t)from, (hora_dtype_t)to, scales[k], table);
    }
    gpu_free(c->t, table);
}

static void check_all(const gpu_test_t *t, bool few) {
    check_t c = {.t = t, .seed = 5, .expected = malloc(BYTES), .got = malloc(BYTES),
                 .step = few ? 16 : 1};
    for (int i = 0; i < INPUTS + 2; i++)
        c.dev[i] = gpu_alloc(t, BYTES);
    for (int i = 0; i < INPUTS; i++)
        if ((c.host[i] = malloc(BYTES)) == NULL || c.expected == NULL || c.got == NULL)
            exit(1);
    check_reductions(&c);
    check_packs(&c);
    printf("%ld cases have the CPU kernels' bits\n", c.cases);
    for (int i = 0; i < INPUTS + 2; i++)
        gpu_free(t, c.dev[i]);
    for (int i = 0; i < INPUTS; i++)
        free(c.host[i]);
    free(c.expected);
    free(c.got);
}

int main(int argc, char **argv) {
    gpu_test_t  t;
    bool        check = true, measure = true, few = false;
    const char *json = NULL;
    size_t      most = 1024;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--check") == 0)
            measure = false;
        else if (strcmp(argv[i], "--measure") == 0)
            check = false;
        else if (strcmp(argv[i], "--few") == 0)
            few = true;
        else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            json = argv[++i];
        else if (strcmp(argv[i], "--most") == 0 && i + 1 < argc && atoi(argv[i + 1]) > 0)
            most = (size_t)atoi(argv[++i]);
        else {
            printf("usage: hora-gpu-kernels [--check [--few]] [--measure [--most MB] "
                   "[--json FILE]]\n");
            return strcmp(argv[i], "--help") == 0 ? 0 : 2;
        }
    }
    gpu_begin(&t);
    printf("# %s, driver of CUDA %d.%d\n", t.gpu.name, t.cuda->version / 1000, t.cuda->version % 1000 / 10);
    if (check)
        check_all(&t, few);
    if (measure)
        gpu_measure(&t, most << 20, json);
    gpu_end(&t);
    return 0;
}
