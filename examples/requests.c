/*
 * Requests in a program with a loop of its own: operations are started, the loop goes on, and each
 * time round it moves them on a little, until they are done.
 *
 *     cc requests.c $(pkg-config --cflags --libs hora) -o requests
 *     hora run -np 3 ./requests
 */
#include <hora/hora.h>
#include <stdio.h>

#define LAYERS 4
#define COUNT  50000

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, hora_last_error());
    return 1;
}

/* What else the program has to do; here, a little arithmetic. */
static double other_work(double x) {
    for (int i = 0; i < 1000; i++)
        x = x * 0.999 + 0.001;
    return x;
}

/* Starts adding up layer i over all ranks, in place. */
static hora_status_t start(hora_comm_t *world, float *layer, hora_request_t **request_p) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    options.name = "layer";       /* for messages */
    options.request_p = request_p; /* do not block */
    return hora_allreduce(world, layer, layer, COUNT, HORA_FLOAT32, HORA_SUM, &options);
}

static int check(const float *layer, int i, int size) {
    float expected = (float)(size * i) + (float)(size * (size - 1)) / 2;
    for (int k = 0; k < COUNT; k++)
        if (layer[k] != expected) {
            fprintf(stderr, "layer %d: %g, not %g\n", i, (double)layer[k], (double)expected);
            return 1;
        }
    return 0;
}

int main(void) {
    hora_request_t *requests[LAYERS] = {NULL};
    float          *layers[LAYERS];
    hora_comm_t    *world;
    double          work = 0;
    long            turns = 0;
    int             wrong = 0, open = LAYERS;
    if (hora_comm_create(NULL, &world) != HORA_OK)
        return fail("start");
    int rank = hora_comm_rank(world), size = hora_comm_size(world);
    for (int i = 0; i < LAYERS; i++) { /* every rank starts them in this order */
        void *memory; /* that the ranks of a host share: no copies */
        if (hora_alloc(world, COUNT * sizeof(float), &memory) != HORA_OK)
            return fail("memory");
        layers[i] = memory;
        for (int k = 0; k < COUNT; k++)
            layers[i][k] = (float)(i + rank);
        if (start(world, layers[i], &requests[i]) != HORA_OK)
            return fail("allreduce");
    }
    while (open > 0) { /* the program's loop */
        work = other_work(work);
        turns++;
        for (int i = 0; i < LAYERS; i++) {
            int done = 0;
            if (requests[i] == NULL)
                continue;
            if (hora_request_test(requests[i], &done) != HORA_OK)
                return fail("a layer");
            if (!done)
                continue;
            if (hora_request_wait(requests[i]) != HORA_OK) /* returns at once, and frees it */
                return fail("a layer");
            requests[i] = NULL;
            wrong |= check(layers[i], i, size);
            open--;
        }
    }
    for (int i = 0; i < LAYERS; i++)
        if (hora_free(world, layers[i]) != HORA_OK)
            return fail("memory");
    if (rank == 0)
        printf("%d layers added up over %d ranks; %s the loop went round (%.3f)\n", LAYERS, size,
               turns > 0 ? "meanwhile" : "never", work);
    return hora_comm_free(world) == HORA_OK ? wrong : fail("end");
}
