/*
 * Which instruction set to use; any thread.
 *
 * Invariant: `current` is NULL or a table that this machine can run. Threads that race for the
 * first call all store the same pointer.
 */
#include <stdatomic.h>
#include <string.h>

#include "isa.h"
#include "kernels.h"

typedef struct candidate {
    const hora_isa_t *isa;
    bool (*usable)(void);
} candidate_t;

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
#include <cpuid.h>

/* __builtin_cpu_supports knows no f16c in clang 14. AVX2, asked for beside it, stands for the
 * operating system's consent. */
static bool has_f16c(void)
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && has_f16c();
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

/* Best first; the last is always usable. */
static const candidate_t candidates[] = {
#if defined(__x86_64__)
    {&hora_isa_avx512, has_avx512},
    {&hora_isa_avx2, has_avx2},
#elif defined(__aarch64__)
    {&hora_isa_neon, always},
#endif
    {&hora_isa_portable, always},
};

static _Atomic(const hora_isa_t *) current;

/* The best table of that name, or of any if name is NULL; NULL if there is none. */
static const hora_isa_t *find(const char *name)
{
    for (size_t i = 0; i < sizeof(candidates) / sizeof(candidates[0]); i++) {
        const candidate_t *candidate = &candidates[i];
        if ((name == NULL || strcmp(name, candidate->isa->name) == 0) && candidate->usable()) {
            return candidate->isa;
        }
    }
    return NULL;
}

const hora_isa_t *hora_isa_current(void)
{
    const hora_isa_t *isa = atomic_load_explicit(&current, memory_order_relaxed);
    if (isa == NULL) {
        isa = find(NULL);
        atomic_store_explicit(&current, isa, memory_order_relaxed);
    }
    return isa;
}

const char *hora_kernel_isa(void)
{
    return hora_isa_current()->name;
}

bool hora_kernel_force_isa(const char *name)
{
    const hora_isa_t *isa = find(name != NULL && strcmp(name, "auto") != 0 ? name : NULL);
    if (isa == NULL) {
        return false;
    }
    atomic_store_explicit(&current, isa, memory_order_relaxed);
    return true;
}
