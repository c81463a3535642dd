/*
 * Waiting for a GPU (event.h). Nothing tells the host that an event has come, so it looks again and
 * again, and sleeps longer the longer it has waited. cuEventSynchronize would wait for ever.
 */
#include "transport/event.h"

#include "transport/p2p.h"
#include "transport/wait.h"
#include "util/clock.h"

#include <sched.h>
#include <time.h>

#define SPIN_NS    20000u /* looks without a pause */
#define NAP_MIN_NS 20000u
#define NAP_MAX_NS 500000u

/* An eighth of what was waited for until now: so much too late may it end. */
static void nap(const hora_world_t *world, uint64_t waited) {
    struct timespec t = {0, (long)NAP_MAX_NS};
    if (waited < SPIN_NS) {
        if (world->has_cores)
            hora_cpu_relax();
        else
            sched_yield();
        return;
    }
    if (waited / 8 < NAP_MAX_NS)
        t.tv_nsec = waited / 8 > NAP_MIN_NS ? (long)(waited / 8) : (long)NAP_MIN_NS;
    nanosleep(&t, NULL);
}

/* of: an event or a stream. */
static hora_status_t wait_for(hora_comm_t *comm, const hora_gpu_t *gpu,
                              hora_cuda_result_t (*query)(void *of), void *of, double timeout,
                              const char *what) {
    uint64_t start = hora_clock_ns(), waited;
    double   limit = timeout > 0 ? timeout : comm->timeout;
    for (;;) {
        hora_cuda_result_t result = query(of);
        hora_status_t      st;
        if (result != HORA_CUDA_NOT_READY)
            return hora_gpu_check(gpu, result, what);
        if ((st = hora_failure_check(&comm->failure)) != HORA_OK)
            return st;
        hora_p2p_progress(comm->world); /* another rank may need a message of another operation */
        waited = hora_clock_ns() - start;
        if (waited > hora_clock_from_seconds(limit))
            return hora_fail(HORA_ERR_TIMEOUT, "%s: waited %.1f s for GPU %d to come to it "
                             "(HORA_TIMEOUT)", what, hora_clock_seconds(waited), gpu->ordinal);
        nap(comm->world, waited);
    }
}

hora_status_t hora_event_wait(hora_comm_t *comm, const hora_gpu_t *gpu, hora_cuda_event_t event,
                              double timeout, const char *what) {
    return wait_for(comm, gpu, gpu->cuda->event_query, event, timeout, what);
}

hora_status_t hora_event_wait_stream(hora_comm_t *comm, const hora_gpu_t *gpu,
                                     hora_cuda_stream_t stream, double timeout, const char *what) {
    return wait_for(comm, gpu, gpu->cuda->stream_query, stream, timeout, what);
}

static bool drain(const hora_world_t *world, hora_cuda_result_t (*query)(void *of), void *of,
                  double seconds) {
    uint64_t start = hora_clock_ns(), waited;
    while (query(of) == HORA_CUDA_NOT_READY) {
        waited = hora_clock_ns() - start;
        if (waited > hora_clock_from_seconds(seconds))
            return false;
        nap(world, waited);
    }
    return true;
}

bool hora_event_drain(const hora_world_t *world, const hora_gpu_t *gpu, hora_cuda_stream_t stream,
                      double seconds) {
    return drain(world, gpu->cuda->stream_query, stream, seconds);
}

bool hora_event_drain_event(const hora_world_t *world, const hora_gpu_t *gpu, hora_cuda_event_t event,
                            double seconds) {
    return drain(world, gpu->cuda->event_query, event, seconds);
}
