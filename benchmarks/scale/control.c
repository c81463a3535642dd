/*
 * Rank 0 in a step (control.h).
 */
#include "control.h"

#include "controller/coordinator.h"
#include "transport/p2p.h"
#include "util/clock.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define WARM_STEPS   3
#define FROZEN_STEPS 5
#define THRESHOLD    ((size_t)128 << 20)

typedef struct world {
    int                 size, tensors;
    hora_coordinator_t *coordinator;
    uint32_t           *ids; /* [tensors] */
    uint32_t            epoch;
    uint64_t            position;
    bool                frozen;
    uint8_t             request[HORA_FRAME_MAX], response[HORA_FRAME_MAX];
    size_t              request_len, response_bytes;
} world_t;

static const char *host(const void *arg, int rank) {
    (void)arg, (void)rank;
    return "host";
}

static bool open_world(world_t *w, int size, int tensors, bool freeze) {
    hora_coordinator_options_t options = {.size = size, .fusion_threshold = THRESHOLD,
                                          .cache_capacity = HORA_CACHE_MAX, .freeze = freeze,
                                          .host = host};
    *w = (world_t){.size = size, .tensors = tensors};
    w->ids = calloc((size_t)tensors, sizeof(*w->ids));
    return w->ids != NULL && hora_coordinator_create(&options, &w->coordinator) == HORA_OK;
}

static void close_world(world_t *w) {
    hora_coordinator_destroy(w->coordinator);
    free(w->ids);
}

/* ---- What a rank says ----------------------------------------------------------------------- */

static bool put_tensor(hora_frame_writer_t *writer, int i) {
    char             name[48];
    int              len = snprintf(name, sizeof(name), "allreduce.layer%d.%d.conv%d.weight",
                                    i / 40, i / 8 % 5, i % 8);
    hora_signature_t sig = {.kind = HORA_TASK_ALLREDUCE, .dtype = HORA_FLOAT32, .op = HORA_AVERAGE,
                            .ndim = 4, .prescale = 1, .postscale = 1, .group_size = 1,
                            .shape = {256, 69, 3, 3}}; /* 161 of them: 102 MB, as ResNet-50 */
    return hora_frame_put_full(writer, name, (size_t)len, &sig);
}

/* What every rank says in the next step. */
static bool write_request(world_t *w, scale_step_t step) {
    hora_frame_writer_t writer;
    bool                fits = true;
    hora_frame_begin(&writer, w->request, HORA_FRAME_REQUESTS, 0);
    for (int i = 0; i < w->tensors && step == SCALE_COLD; i++)
        fits &= put_tensor(&writer, i);
    for (int i = 0; i < w->tensors && step == SCALE_WARM; i++)
        fits &= hora_frame_put_cached(&writer, w->ids[i]);
    if (step == SCALE_FROZEN)
        fits = hora_frame_put_progress(&writer, w->epoch, w->position);
    w->request_len = hora_frame_end(&writer);
    return fits;
}

/* ---- What it hears -------------------------------------------------------------------------- */

/* Keeps ids and the frozen schedule. Returns how many tasks are to be executed; -1: nonsense. */
static int read_response(world_t *w, size_t len) {
    hora_frame_reader_t reader;
    hora_item_t         item;
    hora_item_ref_t     ref;
    hora_status_t       st;
    int                 executed = 0;
    if (!hora_frame_open(&reader, w->response, len, HORA_FRAME_RESPONSES))
        return -1;
    while ((st = hora_frame_next(&reader, w->size, &item)) == HORA_OK) {
        while (item.type == HORA_ITEM_EXECUTE && hora_item_next_ref(&item, &ref)) {
            if (ref.name_len > 0 && executed < w->tensors)
                w->ids[executed] = ref.id;
            executed++;
        }
        if (item.type == HORA_ITEM_ADVANCE)
            executed += (int)(item.upto - item.from);
        if (item.type == HORA_ITEM_FREEZE) {
            w->epoch = item.epoch;
            w->position = item.from;
            w->frozen = true;
        }
    }
    return st == HORA_IN_PROGRESS ? executed : -1;
}

/* One step of all ranks. Returns rank 0's seconds; -1: it went wrong. */
static double run_step(world_t *w, scale_step_t step, int expected) {
    double   seconds = 0;
    uint64_t begin;
    size_t   len;
    int      executed = 0;
    if (!write_request(w, step))
        return -1;
    begin = hora_clock_ns();
    for (int r = 0; r < w->size; r++)
        if (hora_coordinator_feed(w->coordinator, r, w->request, w->request_len, begin) != HORA_OK)
            return -1;
    seconds = hora_clock_seconds(hora_clock_ns() - begin);
    w->response_bytes = 0;
    for (;;) {
        begin = hora_clock_ns();
        len = hora_coordinator_next_frame(w->coordinator, w->response);
        seconds += hora_clock_seconds(hora_clock_ns() - begin);
        if (len == 0)
            break;
        w->response_bytes += len;
        executed += read_response(w, len);
    }
    return executed == expected ? seconds : -1;
}

static bool note(world_t *w, scale_step_t step, double seconds, scale_control_t *control) {
    double *least = &control->seconds[step];
    control->in[step] = (double)w->request_len;
    control->out[step] = (double)w->response_bytes;
    if (*least == 0 || seconds < *least)
        *least = seconds;
    return seconds >= 0;
}

static bool measure_unfrozen(int size, int tensors, scale_control_t *control) {
    world_t *w = malloc(sizeof(*w));
    bool     fine = w != NULL && open_world(w, size, tensors, false);
    fine = fine && note(w, SCALE_COLD, run_step(w, SCALE_COLD, tensors), control);
    for (int i = 0; fine && i < WARM_STEPS; i++)
        fine = note(w, SCALE_WARM, run_step(w, SCALE_WARM, tensors), control);
    if (w != NULL)
        close_world(w);
    free(w);
    return fine;
}

static bool measure_frozen(int size, int tensors, scale_control_t *control) {
    world_t *w = malloc(sizeof(*w));
    bool     fine = w != NULL && open_world(w, size, tensors, true);
    fine = fine && run_step(w, SCALE_COLD, tensors) >= 0;
    for (int i = 0; fine && !w->frozen && i < 32; i++)
        fine = run_step(w, SCALE_WARM, tensors) >= 0;
    fine = fine && w->frozen && run_step(w, SCALE_FROZEN, 0) >= 0; /* the answer to FREEZE */
    for (int i = 0; fine && i < FROZEN_STEPS; i++) {
        w->position += (uint64_t)tensors;
        fine = note(w, SCALE_FROZEN, run_step(w, SCALE_FROZEN, tensors), control);
    }
    if (w != NULL)
        close_world(w);
    free(w);
    return fine;
}

/* ---- Frames that have come ------------------------------------------------------------------ */

/* As control.c on rank 0: each is found, read, and its receive posted again. */
static double find_all(hora_world_t *world, hora_xfer_t *xfers, hora_xfer_t **posted, int n) {
    uint64_t      begin = hora_clock_ns();
    hora_status_t st;
    int           next = 0;
    for (int k = 0; k < n; k++) {
        int i = hora_p2p_test_any(world, posted, n, next, &st);
        if (i < 0)
            return -1;
        xfers[i].status = HORA_IN_PROGRESS;
        next = i + 1 < n ? i + 1 : 0;
    }
    return hora_clock_seconds(hora_clock_ns() - begin);
}

static bool measure_find(int size, scale_control_t *control) {
    size_t        n = (size_t)size - 1;
    hora_xfer_t  *xfers = calloc(n, sizeof(*xfers)); /* status HORA_OK */
    hora_xfer_t **posted = calloc(n, sizeof(hora_xfer_t *));
    hora_world_t *world = NULL;
    if (xfers != NULL && posted != NULL && hora_world_create(0, 1, &world) == HORA_OK) {
        for (size_t i = 0; i < n; i++)
            posted[i] = &xfers[i];
        control->find_seconds = find_all(world, xfers, posted, (int)n);
        hora_world_destroy(world);
    }
    free(xfers);
    free(posted);
    return world != NULL && control->find_seconds >= 0;
}

bool scale_control_measure(int size, int tensors, scale_control_t *control_p) {
    *control_p = (scale_control_t){.memory = (size_t)(size - 1) * HORA_FRAME_MAX};
    return measure_unfrozen(size, tensors, control_p) && measure_frozen(size, tensors, control_p) &&
           measure_find(size, control_p);
}

/* ---- Frames on the wire --------------------------------------------------------------------- */

typedef struct wires {
    int  n, epoll;
    int *near, *far; /* rank 0's ends; the others' */
} wires_t;

static bool add_wire(wires_t *w, int listener, const struct sockaddr_in *at) {
    int one = 1, far = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int near = far >= 0 && connect(far, (const struct sockaddr *)at, sizeof(*at)) == 0
                   ? accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = near};
    if (near < 0) {
        close(far);
        return false;
    }
    setsockopt(near, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    setsockopt(far, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    w->near[w->n] = near;
    w->far[w->n++] = far;
    return epoll_ctl(w->epoll, EPOLL_CTL_ADD, near, &event) == 0;
}

static bool open_wires(wires_t *w, int n) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t          len = sizeof(at);
    int                listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool               fine;
    *w = (wires_t){.epoll = epoll_create1(EPOLL_CLOEXEC), .near = calloc((size_t)n, sizeof(int)),
                   .far = calloc((size_t)n, sizeof(int))};
    fine = listener >= 0 && w->epoll >= 0 && w->near != NULL && w->far != NULL &&
           bind(listener, (struct sockaddr *)&at, sizeof(at)) == 0 && listen(listener, n) == 0 &&
           getsockname(listener, (struct sockaddr *)&at, &len) == 0;
    while (fine && w->n < n)
        fine = add_wire(w, listener, &at);
    close(listener);
    return fine;
}

static void close_wires(wires_t *w) {
    for (int i = 0; i < w->n; i++) {
        close(w->near[i]);
        close(w->far[i]);
    }
    close(w->epoll);
    free(w->near);
    free(w->far);
}

/* One frame in from everybody, then one out to everybody. Returns rank 0's part in seconds. */
static double exchange(wires_t *w, char *frame, size_t len) {
    struct epoll_event events[64];
    uint64_t           begin;
    double             seconds;
    for (int i = 0; i < w->n; i++)
        if (send(w->far[i], frame, len, 0) != (ssize_t)len)
            return -1;
    begin = hora_clock_ns();
    for (int left = w->n; left > 0;) {
        int n = epoll_wait(w->epoll, events, 64, 1000);
        if (n <= 0)
            return -1;
        for (int i = 0; i < n; i++)
            left -= recv(events[i].data.fd, frame, len, 0) == (ssize_t)len;
    }
    for (int i = 0; i < w->n; i++)
        if (send(w->near[i], frame, len, MSG_NOSIGNAL) != (ssize_t)len)
            return -1;
    seconds = hora_clock_seconds(hora_clock_ns() - begin);
    for (int i = 0; i < w->n; i++)
        if (recv(w->far[i], frame, len, MSG_WAITALL) != (ssize_t)len)
            return -1;
    return seconds;
}

double scale_frame_us(int connections) {
    wires_t w;
    char    frame[64] = {0};
    double  best = -1;
    bool    fine = open_wires(&w, connections);
    for (int i = 0; fine && i < 30; i++) {
        double seconds = exchange(&w, frame, sizeof(frame));
        fine = seconds >= 0;
        if (fine && (best < 0 || seconds < best))
            best = seconds;
    }
    close_wires(&w);
    return best < 0 ? -1 : best / connections * 1e6;
}
