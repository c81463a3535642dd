/*
 * The loops for the compiler's baseline (SSE2 on x86-64), half types in software; any thread.
 * One lane: the compiler vectorises the conversions themselves.
 */
#include "half.h"

#define LANES      1
#define LOOPS_NAME  "portable"
#define LOOPS_TABLE hora_isa_portable

typedef float lanes_t;

static inline float one_load_f16(const uint16_t *p)
{
    return hora_f16_to_f32(*p);
}

static inline float one_load_bf16(const uint16_t *p)
{
    return hora_bf16_to_f32(*p);
}

static inline void one_store_f16(uint16_t *p, float v)
{
    *p = hora_f16_from_f32(v);
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
