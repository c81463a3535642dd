/*
 * The loops for aarch64, whose baseline has NEON and the float16 conversions; any thread.
 * One lane: the compiler vectorises the conversions themselves.
 */
#include "half.h"

#define LANES       1
#define LOOPS_NAME  "neon"
#define LOOPS_TABLE hora_isa_neon

typedef float lanes_t;

static inline float one_load_f16(const uint16_t *p)
{
    __fp16 half;
    memcpy(&half, p, sizeof(half));
    return half;
}

static inline float one_load_bf16(const uint16_t *p)
{
    return hora_bf16_to_f32(*p);
}

static inline void one_store_f16(uint16_t *p, float v)
{
    __fp16 half = (__fp16)v;
    memcpy(p, &half, sizeof(half));
}

static inline void one_store_bf16(uint16_t *p, float v)
{
    *p = hora_bf16_from_f32(v);
}

#define lanes_load_f16   one_load_f16
#define lanes_load_bf16  one_load_bf16
#define lanes_store_f16  one_store_f16
#define lanes_store_bf16 one_store_bf16
#define lanes_canonical  canonical_f32

#include "loops.h"
