/*
 * How a launch is cut up (kernels.h). Pure; any thread.
 *
 * A block of 256 threads works on a tile of 4 x 16 bytes per thread and source at a time, which keeps
 * enough loads in flight to fill the memory's pipe (latency x bandwidth is about 16 KB per
 * multiprocessor of an H100); four blocks per multiprocessor then stride over all tiles.
 */
#include "kernels.h"

#define BLOCKS_PER_PROCESSOR 4
#define TILE_BYTES           (HORA_CUDA_THREADS * 64u)
#define CHUNK_BYTES          32768u /* of the larger of the two types */
#define ALIGNMENT            16u

typedef struct type {
    const char *name; /* of the reduction */
    uint32_t    size;
} type_t;

#define TYPE_ROW(S, T, A, DTYPE) [DTYPE] = {"hora_reduce_" #S, sizeof(T)},
static const type_t types[HORA_DTYPE_COUNT] = {HORA_ELEMENT_TYPES(TYPE_ROW)};

#define PAIR_ROW(FROM, TO, TFROM, TTO, P, WIDEN, NARROW)                                          \
    [PAIR_##FROM][PAIR_##TO] = "hora_pack_" #FROM "_" #TO,
enum { PAIR_f16, PAIR_bf16, PAIR_f32, PAIR_f64, PAIR_e4m3, PAIR_e5m2, PAIRS };
static const char *const pairs[PAIRS][PAIRS] = {HORA_ELEMENT_CASTS(PAIR_ROW)};

static const char *const packs[] = {"hora_pack_bytes1", "hora_pack_bytes2", "hora_pack_bytes4",
                                    "hora_pack_bytes8"};

const char *hora_cuda_kernel_name(int number) {
    int npacks = sizeof(packs) / sizeof(packs[0]);
    if (number < HORA_DTYPE_COUNT)
        return types[number].name;
    number -= HORA_DTYPE_COUNT;
    if (number < npacks)
        return packs[number];
    number -= npacks;
    for (int i = 0; i < PAIRS * PAIRS; i++)
        if (pairs[i / PAIRS][i % PAIRS] != NULL && number-- == 0)
            return pairs[i / PAIRS][i % PAIRS];
    return NULL;
}

static unsigned blocks_for(uint64_t tiles, int processors) {
    uint64_t most = (uint64_t)processors * BLOCKS_PER_PROCESSOR;
    return (unsigned)(tiles < most ? tiles : most);
}

static bool op_exists(hora_dtype_t dtype, hora_op_t op) {
    bool bits = op == HORA_BAND || op == HORA_BOR || op == HORA_BXOR;
    bool eighth = dtype == HORA_FLOAT8_E4M3 || dtype == HORA_FLOAT8_E5M2;
    if ((unsigned)dtype >= HORA_DTYPE_COUNT || (unsigned)op >= HORA_OP_COUNT)
        return false;
    if (op == HORA_AVERAGE || op == HORA_ADASUM || (eighth && op == HORA_PRODUCT))
        return false;
    return !bits || dtype < HORA_FLOAT16;
}

static bool is_plain(const hora_element_how_t *how) {
    return how->prescale == 1.0 && how->divisor == 1 && how->postscale == 1.0;
}

/* The type whose kernel does it. A copy is one of unsigned words, and where no sign matters a signed
 * type is one: so each loop is there once. */
static hora_dtype_t acting_type(hora_dtype_t dtype, hora_op_t op, const hora_element_how_t *how,
                                int nsrc) {
    bool is_signed = dtype >= HORA_INT8 && dtype <= HORA_INT64;
    if (!is_plain(how) || (nsrc > 1 && !(is_signed && op != HORA_MIN && op != HORA_MAX)))
        return dtype;
    switch (types[dtype].size) {
    case 1: return HORA_UINT8;
    case 2: return HORA_UINT16;
    case 4: return HORA_UINT32;
    default: return HORA_UINT64;
    }
}

const char *hora_cuda_reduce_plan(hora_dtype_t dtype, hora_op_t op, const hora_element_how_t *how,
                                  const uint64_t *dst, int ndst, const uint64_t *src, int nsrc,
                                  uint64_t count, int processors, hora_cuda_reduce_t *args,
                                  unsigned *blocks_p) {
    uint64_t all = 0, tile;
    if (!op_exists(dtype, op) || nsrc < 1 || nsrc > HORA_CUDA_WAYS || ndst < 1 ||
        ndst > HORA_CUDA_WAYS)
        return NULL;
    *args = (hora_cuda_reduce_t){.count = count, .how = *how, .nsrc = nsrc, .ndst = ndst, .op = op};
    for (int i = 0; i < nsrc; i++)
        all |= args->src[i] = src[i];
    for (int i = 0; i < ndst; i++)
        all |= args->dst[i] = dst[i];
    args->vector = all % ALIGNMENT == 0;
    tile = TILE_BYTES / types[dtype].size;
    *blocks_p = blocks_for(count / tile + (count % tile != 0), processors);
    return types[acting_type(dtype, op, how, nsrc)].name;
}

static int pair_index(hora_dtype_t dtype) {
    switch (dtype) {
    case HORA_FLOAT16: return PAIR_f16;
    case HORA_BFLOAT16: return PAIR_bf16;
    case HORA_FLOAT32: return PAIR_f32;
    case HORA_FLOAT64: return PAIR_f64;
    case HORA_FLOAT8_E4M3: return PAIR_e4m3;
    case HORA_FLOAT8_E5M2: return PAIR_e5m2;
    default: return -1;
    }
}

static const char *pack_name(hora_dtype_t from, hora_dtype_t to, double scale) {
    int a = pair_index(from), b = pair_index(to);
    if (from == to && scale == 1.0)
        switch (types[from].size) {
        case 1: return packs[0];
        case 2: return packs[1];
        case 4: return packs[2];
        default: return packs[3];
        }
    return a >= 0 && b >= 0 ? pairs[a][b] : NULL;
}

const char *hora_cuda_pack_plan(hora_dtype_t from, hora_dtype_t to, double scale,
                                hora_cuda_piece_t *pieces, uint32_t npieces, int processors,
                                hora_cuda_pack_t *args, unsigned *blocks_p) {
    const char *name;
    uint32_t    larger;
    uint64_t    chunks = 0;
    if ((unsigned)from >= HORA_DTYPE_COUNT || (unsigned)to >= HORA_DTYPE_COUNT ||
        (name = pack_name(from, to, scale)) == NULL)
        return NULL;
    larger = types[from].size > types[to].size ? types[from].size : types[to].size;
    *args = (hora_cuda_pack_t){.scale = scale, .npieces = npieces, .chunk = CHUNK_BYTES / larger};
    for (uint32_t i = 0; i < npieces; i++) {
        pieces[i].chunk = chunks;
        chunks += pieces[i].count / args->chunk + (pieces[i].count % args->chunk != 0);
    }
    args->chunks = chunks;
    *blocks_p = blocks_for(chunks, processors);
    return name;
}
