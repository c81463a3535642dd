/*
 * Tasks for tests of the engine: tensors whose values and results are known on every rank.
 */
#ifndef TESTS_MULTI_ENGINE_TASKS_H
#define TESTS_MULTI_ENGINE_TASKS_H

#include <hora/hora.h>

#include "harness.h"

typedef struct tensor {
    char           name[128];
    hora_task_t    task;
    int64_t        shape[2];
    int64_t        splits[64];
    void          *in, *out;
    size_t         count; /* elements of in */
    hora_handle_t *handle;
    void          *device; /* of tensor_t's on a GPU; else NULL */
} tensor_t;

/* Where tensors lie. tasks.c does nothing here; a test that links gpu/tensors.c too has half of its
 * tensors on a GPU, and in and out are what they come from and go to. */
void tensor_push(tensor_t *t); /* in and out have been filled */
void tensor_pull(tensor_t *t, hora_handle_t *handle); /* the result into out */
void tensor_pull_output(tensor_t *t, hora_handle_t *handle, hora_output_t *output);
void tensor_drop(tensor_t *t);

/* Writes a whole number as element i of a buffer of that type. */
void element_put(void *buf, hora_dtype_t dtype, size_t i, int v);

/* A tensor of kind with `rows` rows of `row` elements, filled for this rank. */
void tensor_make(tensor_t *t, hora_comm_t *comm, hora_task_kind_t kind, hora_dtype_t dtype,
                 const char *name, int64_t rows, int64_t row);
/* Fills in and out again. */
void tensor_fill(tensor_t *t, hora_comm_t *comm);
void tensor_free(tensor_t *t);

void tensor_enqueue(hora_engine_t *engine, tensor_t *t, unsigned flags);
/* Waits, checks the result, releases. */
void tensor_finish(tensor_t *t, hora_comm_t *comm);
/* Checks the result of task `index` of a done handle. */
void tensor_check(tensor_t *t, hora_comm_t *comm, hora_handle_t *handle, size_t index);

/* An allreduce of `count` floats that must work. */
void engine_must_work(hora_engine_t *engine, hora_comm_t *comm, const char *name, int64_t count);

#endif
