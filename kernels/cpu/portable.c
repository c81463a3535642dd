/*
 * The loops for the compiler's baseline (SSE2 on x86-64), half types in software; any thread.
 */
#include <stdint.h>

#define LOOPS_NAME  "portable"
#define LOOPS_TABLE hora_isa_portable
#define CHUNK       16 /* elements, */
#define VECTORS     4  /* in as many vectors */

typedef float   vector_t __attribute__((vector_size(16)));
typedef int32_t bits_t __attribute__((vector_size(16)));

#include "half.h"

static inline vector_t vector_canonical(vector_t v)
{
    const bits_t nan = {0x7fc00000, 0x7fc00000, 0x7fc00000, 0x7fc00000};
    bits_t       number = v == v;
    return (vector_t)(((bits_t)v & number) | (nan & ~number));
}

static inline void load_f16(const uint16_t *p, vector_t *v)
{
    float wide[CHUNK];
    for (size_t i = 0; i < CHUNK; i++) {
        wide[i] = hora_f16_to_f32(p[i]);
    }
    memcpy(v, wide, sizeof(wide));
}

static inline void load_bf16(const uint16_t *p, vector_t *v)
{
    float wide[CHUNK];
    for (size_t i = 0; i < CHUNK; i++) {
        wide[i] = hora_bf16_to_f32(p[i]);
    }
    memcpy(v, wide, sizeof(wide));
}

static inline void store_f16(uint16_t *p, const vector_t *v)
{
    float wide[CHUNK];
    memcpy(wide, v, sizeof(wide));
    for (size_t i = 0; i < CHUNK; i++) {
        p[i] = hora_f16_from_f32(wide[i]);
    }
}

static inline void store_bf16(uint16_t *p, const vector_t *v)
{
    float wide[CHUNK];
    memcpy(wide, v, sizeof(wide));
    for (size_t i = 0; i < CHUNK; i++) {
        p[i] = hora_bf16_from_f32(wide[i]);
    }
}

#include "sums.h"
#include "loops.h"
