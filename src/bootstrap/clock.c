/*
 * Comparing clocks with rank 0 (clock.h). On the watch thread.
 */
#include "bootstrap/clock.h"

#include "bootstrap/wire.h"
#include "util/clock.h"
#include "util/log.h"

#define QUESTIONS 8

static size_t ask(uint8_t *bytes) {
    hora_wire_t w = hora_wire_over(bytes, HORA_CLOCK_BYTES);
    hora_wire_put_u64(&w, hora_clock_ns());
    return w.off;
}

size_t hora_probe_begin(hora_probe_t *probe, uint8_t bytes_p[HORA_CLOCK_BYTES]) {
    *probe = (hora_probe_t){.left = QUESTIONS, .error = UINT64_MAX};
    return ask(bytes_p);
}

static void tell(const hora_probe_t *probe, hora_world_t *world) {
    hora_timeline_event_t event = {.type = HORA_TIMELINE_CLOCK, .name = "", .number = probe->offset,
                                   .bytes = probe->error};
    hora_log(HORA_LOG_DEBUG, "rank 0's clock is ahead by %lld ns, give or take %llu ns",
             (long long)probe->offset, (unsigned long long)probe->error);
    if (hora_timeline_on(&world->timeline))
        hora_timeline_push(&world->timeline, &event);
}

/* Rank 0 answers. */
static int answer(const hora_frame_t *frame, uint8_t *bytes) {
    hora_wire_t in = hora_wire_over(frame->payload, frame->len);
    hora_wire_t out = hora_wire_over(bytes, HORA_CLOCK_BYTES);
    hora_wire_put_u64(&out, hora_wire_get_u64(&in));
    hora_wire_put_u64(&out, hora_clock_ns());
    return in.bad || in.off != in.limit ? -1 : (int)out.off;
}

int hora_probe_heard(hora_probe_t *probe, hora_world_t *world, const hora_frame_t *frame,
                     uint8_t bytes_p[HORA_CLOCK_BYTES]) {
    uint64_t    now = hora_clock_ns();
    hora_wire_t w = hora_wire_over(frame->payload, frame->len);
    uint64_t    asked = hora_wire_get_u64(&w), theirs = hora_wire_get_u64(&w);
    if (world->rank == 0)
        return answer(frame, bytes_p);
    if (w.bad || w.off != w.limit || asked > now)
        return -1;
    if (probe->left == 0)
        return 0; /* of a former round */
    if ((now - asked) / 2 < probe->error) {
        probe->error = (now - asked) / 2;
        probe->offset = (int64_t)(theirs - asked - (now - asked) / 2);
    }
    if (--probe->left > 0)
        return (int)ask(bytes_p);
    tell(probe, world);
    return 0;
}
