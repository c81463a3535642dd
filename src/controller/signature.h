/*
 * The signature of a task: what all ranks must agree on before it can be executed. Pure code.
 */
#ifndef HORA_CONTROLLER_SIGNATURE_H
#define HORA_CONTROLLER_SIGNATURE_H

#include "util/status.h"

/* Fields that a kind does not use hold a fixed value (hora_signature_normalize), and so does
 * dimension 0 where ranks may differ in it, so that signatures compare field by field. */
typedef struct hora_signature {
    uint8_t  kind;  /* hora_task_kind_t */
    uint8_t  dtype; /* hora_dtype_t */
    uint8_t  op;    /* hora_op_t */
    uint8_t  ndim;
    uint8_t  device; /* 0: in host memory, 1: on a GPU */
    int32_t  root;
    double   prescale, postscale;
    uint64_t group_key;  /* 0: no group */
    uint32_t group_size; /* tasks in its group; 1: no group */
    int64_t  shape[HORA_MAX_DIMS]; /* ndim are set */
} hora_signature_t;

void hora_signature_normalize(hora_signature_t *sig);
bool hora_signature_equal(const hora_signature_t *a, const hora_signature_t *b);
/* Are all values in their ranges, for `size` ranks? Also that the bytes can be counted. A join has
 * no signature that travels. */
bool hora_signature_is_sane(const hora_signature_t *sig, int size);
/* May the two tasks be packed into one? */
bool hora_signature_fuses(const hora_signature_t *a, const hora_signature_t *b);

/* Product of shape[first..ndim); false if it or its bytes do not fit, or an extent is negative. */
bool hora_shape_count(const int64_t *shape, int first, int ndim, size_t elem_size, size_t *count_p);

/* Bytes of the tensor, without what each rank brings by itself. */
size_t hora_signature_bytes(const hora_signature_t *sig);

/* "allreduce", ... Static storage. */
const char *hora_kind_name(int kind);
/* What differs first: "shape [3, 4]" in a_p and "shape [4, 4]" in b_p, each with room for len. */
void hora_signature_difference(const hora_signature_t *a, const hora_signature_t *b, char *a_p,
                               char *b_p, size_t len);

#endif
