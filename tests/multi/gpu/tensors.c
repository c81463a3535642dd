/*
 * Half of the engine tests' tensors on a GPU (engine/tasks.h), by their names, so that all ranks choose
 * alike. They come from three streams and the default one. Any thread.
 */
#include "device.h"

#include "../engine/tasks.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define STREAMS 4

typedef struct gpu_tensor {
    device_buffer_t in, out; /* out.at == in.at in place */
    void           *stream;
} gpu_tensor_t;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static void          *streams[STREAMS];

static void begin(void) {
    device_begin();
    for (int i = 1; i < STREAMS; i++)
        streams[i] = device_stream();
}

static unsigned hash_of(const char *name) {
    unsigned hash = 5381;
    for (; *name != '\0'; name++)
        hash = hash * 33 + (unsigned char)*name;
    return hash;
}

static size_t bytes_of(const tensor_t *t) {
    return t->count * hora_dtype_size(t->task.dtype);
}

static gpu_tensor_t *place(tensor_t *t) {
    gpu_tensor_t *g = calloc(1, sizeof(*g));
    harness_check(g != NULL, "%s", "memory");
    pthread_once(&once, begin);
    device_make(&g->in, bytes_of(t));
    g->out = g->in;
    if (t->task.out != NULL && t->out != t->in)
        device_make(&g->out, bytes_of(t));
    g->stream = streams[hash_of(t->name) / 2 % STREAMS];
    t->task.device = 0;
    t->task.stream = g->stream;
    t->task.in = g->in.at;
    t->task.out = t->task.out != NULL ? g->out.at : NULL;
    t->device = g;
    return g;
}

void tensor_push(tensor_t *t) {
    gpu_tensor_t *g = t->device;
    if (hash_of(t->name) % 2 == 0)
        return;
    if (g == NULL)
        g = place(t);
    device_finish(g->stream); /* the pinned memory is free to be written */
    memcpy(g->in.host, t->in, bytes_of(t));
    device_put(&g->in, g->stream);
}

void tensor_pull(tensor_t *t, hora_handle_t *handle) {
    gpu_tensor_t *g = t->device;
    if (g == NULL)
        return;
    harness_ok(hora_handle_stream_wait(handle, 0, g->stream));
    device_get(&g->out, g->stream);
    device_finish(g->stream);
    memcpy(t->out, g->out.host, bytes_of(t));
}

void tensor_pull_output(tensor_t *t, hora_handle_t *handle, hora_output_t *output) {
    gpu_tensor_t   *g = t->device;
    device_buffer_t b;
    size_t          bytes = hora_dtype_size(t->task.dtype);
    harness_check(output->device == (g != NULL ? 0 : -1), "%s: device %d", t->name, output->device);
    if (g == NULL || output->data == NULL)
        return;
    for (int i = 0; i < output->ndim; i++)
        bytes *= (size_t)output->shape[i];
    device_make(&b, bytes);
    harness_ok(hora_handle_stream_wait(handle, 0, g->stream));
    device_get_from(output->data, b.host, bytes, g->stream);
    device_finish(g->stream);
    hora_output_t device = *output;
    output->data = memcpy(malloc(bytes), b.host, bytes);
    output->device = -1;
    device.received_splits = NULL;
    hora_output_free(&device);
    device_destroy(&b);
}

void tensor_drop(tensor_t *t) {
    gpu_tensor_t *g = t->device;
    if (g == NULL)
        return;
    if (g->out.at != g->in.at)
        device_destroy(&g->out);
    device_destroy(&g->in);
    free(g);
    t->device = NULL;
}
