/*
 * The kernels' rates beside the rate at which the device copies its own memory, in one run: bytes read
 * plus bytes written per second; medians, each round all cases in turn. One thread.
 */
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>

#define ROUNDS     9
#define RESNET_MAX 200
#define CASES_MAX  8
#define GB         ((size_t)1 << 30)
#define RESNET     ((size_t)112 << 20) /* bytes of ResNet-50's gradients, and more */

typedef struct measured {
    const char        *name;
    double             bytes; /* moved by one call */
    double             seconds[ROUNDS];
    const char        *kernel; /* NULL: the driver's own copy */
    unsigned           blocks;
    void              *args;
} measured_t;

typedef struct bench {
    const gpu_test_t  *t;
    uint64_t           a, b, c; /* each of `bytes` */
    size_t             bytes;
    hora_cuda_reduce_t sum2, average2;
    hora_cuda_pack_t   pack, unpack, pack_half;
    uint64_t           tables[3];
    measured_t         cases[CASES_MAX];
    int                ncases;
} bench_t;

/* The elements of ResNet-50's 161 gradients, in the order of its layers. */
static int resnet_sizes(uint64_t *sizes) {
    static const int blocks[4] = {3, 4, 6, 3};
    int              n = 0, in = 64;
    sizes[n++] = 64 * 3 * 49;
    sizes[n++] = 64, sizes[n++] = 64;
    for (int stage = 0; stage < 4; stage++)
        for (int block = 0, width = 64 << stage; block < blocks[stage]; block++) {
            const int layers[4][2] = {{in * width, width}, {width * width * 9, width},
                                      {width * width * 4, width * 4}, {in * width * 4, width * 4}};
            for (int l = 0; l < (block == 0 ? 4 : 3); l++) {
                sizes[n++] = (uint64_t)layers[l][0];
                sizes[n++] = (uint64_t)layers[l][1], sizes[n++] = (uint64_t)layers[l][1];
            }
            in = width * 4;
        }
    sizes[n++] = 2048 * 1000, sizes[n++] = 1000;
    return n;
}

static void add(bench_t *b, const char *name, double bytes, const char *kernel, unsigned blocks, void *args) {
    b->cases[b->ncases++] = (measured_t){.name = name, .bytes = bytes, .kernel = kernel,
                                         .blocks = blocks, .args = args};
}

static void add_sum(bench_t *b, const char *name, hora_cuda_reduce_t *args, uint32_t divisor) {
    hora_element_how_t how = {1.0, 1.0, divisor};
    uint64_t           src[2] = {b->a, b->b}, dst[1] = {b->c};
    unsigned           blocks;
    const char *kernel = hora_cuda_reduce_plan(HORA_FLOAT32, HORA_SUM, &how, dst, 1, src, 2,
                                               b->bytes / 4, b->t->gpu.processors, args, &blocks);
    add(b, name, 3.0 * (double)b->bytes, kernel, blocks, args);
}

/* Gradients lie apart in a, each aligned as torch's are (512 B); packed they follow each other. */
static void add_pack(bench_t *b, const char *name, hora_cuda_pack_t *args, uint64_t *table, bool back,
                     hora_dtype_t packed) {
    static hora_cuda_piece_t pieces[RESNET_MAX];
    static uint64_t          sizes[RESNET_MAX];
    int                      n = resnet_sizes(sizes);
    uint64_t                 apart = 0, at = 0, width = packed == HORA_FLOAT32 ? 4 : 2;
    const char              *kernel;
    unsigned                 blocks;
    for (int i = 0; i < n; i++) {
        uint64_t out = b->a + apart, in = b->b + at;
        pieces[i] = (hora_cuda_piece_t){back ? in : out, back ? out : in, sizes[i], 0};
        apart += (sizes[i] * 4 + 511) / 512 * 512;
        at += (sizes[i] * width + 15) / 16 * 16;
    }
    kernel = hora_cuda_pack_plan(back ? packed : HORA_FLOAT32, back ? HORA_FLOAT32 : packed, 1.0, pieces,
                                 (uint32_t)n, b->t->gpu.processors, args, &blocks);
    *table = args->pieces = gpu_alloc(b->t, (size_t)n * sizeof(pieces[0]));
    gpu_put(b->t, *table, pieces, (size_t)n * sizeof(pieces[0]));
    add(b, name, (double)(apart + at), kernel, blocks, args);
}

static void call(const bench_t *b, const measured_t *m) {
    if (m->kernel == NULL)
        gpu_must(b->t, b->t->cuda->copy(b->c, b->a, b->bytes, b->t->stream), "copying");
    else
        gpu_must_status(hora_gpu_launch(&b->t->gpu, m->kernel, m->blocks, m->args,
                                        b->t->stream), m->name);
}

static void run_round(bench_t *b, int round) {
    for (int i = 0; i < b->ncases; i++) {
        measured_t *m = &b->cases[i];
        int         calls = b->bytes < GB ? 1 : m->bytes > 1e9 ? 10 : 50;
        double      begin;
        call(b, m);
        gpu_wait(b->t);
        begin = gpu_seconds();
        for (int k = 0; k < calls; k++)
            call(b, m);
        gpu_wait(b->t);
        m->seconds[round] = (gpu_seconds() - begin) / calls;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(bench_t *b, const char *json) {
    FILE  *file = json != NULL ? fopen(json, "w") : NULL;
    double copy = 0;
    if (json != NULL && file == NULL) {
        fprintf(stderr, "%s cannot be written\n", json);
        exit(1);
    }
    printf("%-34s %10s %10s %8s\n", "", "us", "GB/s", "of copy");
    if (file != NULL)
        fprintf(file, "{\"gpu\": \"%s\", \"driver\": %d, \"cases\": [", b->t->gpu.name, b->t->cuda->version);
    for (int i = 0; i < b->ncases; i++) {
        measured_t *m = &b->cases[i];
        double      rate;
        qsort(m->seconds, ROUNDS, sizeof(double), by_value);
        rate = m->bytes / m->seconds[ROUNDS / 2];
        copy = i == 0 ? rate : copy;
        printf("%-34s %10.1f %10.1f %7.1f%%\n", m->name, m->seconds[ROUNDS / 2] * 1e6, rate / 1e9,
               100 * rate / copy);
        if (file != NULL)
            fprintf(file, "%s\n {\"name\": \"%s\", \"bytes\": %.0f, \"us\": %.2f, \"of_copy\": %.4f}",
                    i > 0 ? "," : "", m->name, m->bytes, m->seconds[ROUNDS / 2] * 1e6, rate / copy);
    }
    if (file != NULL) {
        fprintf(file, "\n]}\n");
        fclose(file);
    }
}

void gpu_measure(const gpu_test_t *t, size_t most, const char *json) {
    bench_t b = {.t = t, .bytes = most < GB ? most : GB};
    size_t  room;
    while (b.bytes * 4 > t->memory)
        b.bytes /= 2;
    room = b.bytes > RESNET ? b.bytes : RESNET;
    b.a = gpu_alloc(t, room);
    b.b = gpu_alloc(t, room);
    b.c = gpu_alloc(t, room);
    add(&b, "device to device copy, 1 tensor", 2.0 * (double)b.bytes, NULL, 0, NULL);
    add_sum(&b, "sum of 2 float32, 1 tensor", &b.sum2, 1);
    add_sum(&b, "average of 2 float32, 1 tensor", &b.average2, 2);
    add_pack(&b, "pack, ResNet-50", &b.pack, &b.tables[0], false, HORA_FLOAT32);
    add_pack(&b, "unpack, ResNet-50", &b.unpack, &b.tables[1], true, HORA_FLOAT32);
    add_pack(&b, "pack to bfloat16, ResNet-50", &b.pack_half, &b.tables[2], false, HORA_BFLOAT16);
    for (int round = 0; round < ROUNDS; round++)
        run_round(&b, round);
    report(&b, json);
    for (int i = 0; i < 3; i++)
        gpu_free(t, b.tables[i]);
    gpu_free(t, b.a);
    gpu_free(t, b.b);
    gpu_free(t, b.c);
}
