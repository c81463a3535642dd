/*
 * Signatures (signature.h): comparing them, and saying in words how two differ. Pure code, any
 * thread.
 */
#include "controller/signature.h"

#include <stdio.h>
#include <string.h>

static bool has_op(int kind) {
    return kind == HORA_TASK_ALLREDUCE || kind == HORA_TASK_REDUCESCATTER;
}

/* Each rank brings its own number of rows. */
static bool has_own_rows(int kind) {
    return kind == HORA_TASK_ALLGATHER || kind == HORA_TASK_ALLTOALL;
}

void hora_signature_normalize(hora_signature_t *sig) {
    if (!has_op(sig->kind)) {
        sig->op = HORA_SUM;
        sig->prescale = sig->postscale = 1.0;
    }
    if (sig->kind != HORA_TASK_BROADCAST)
        sig->root = 0;
    if (sig->kind == HORA_TASK_BARRIER) {
        sig->dtype = HORA_BOOL;
        sig->ndim = 0;
        sig->device = 0;
    }
    if (has_own_rows(sig->kind) && sig->ndim > 0)
        sig->shape[0] = 0;
    if (sig->group_size <= 1) {
        sig->group_size = 1;
        sig->group_key = 0;
    }
}

/* Bit by bit, so that a NaN equals itself. */
static bool same_double(double a, double b) {
    return memcmp(&a, &b, sizeof(a)) == 0;
}

static bool same_shape(const hora_signature_t *a, const hora_signature_t *b) {
    return a->ndim == b->ndim && memcmp(a->shape, b->shape, a->ndim * sizeof(a->shape[0])) == 0;
}

bool hora_signature_equal(const hora_signature_t *a, const hora_signature_t *b) {
    return a->kind == b->kind && a->dtype == b->dtype && a->op == b->op && a->root == b->root &&
           a->device == b->device && a->group_key == b->group_key &&
           a->group_size == b->group_size && same_shape(a, b) &&
           same_double(a->prescale, b->prescale) && same_double(a->postscale, b->postscale);
}

/* Adasum looks at whole tensors. */
static bool can_be_packed(const hora_signature_t *sig) {
    switch ((hora_task_kind_t)sig->kind) {
    case HORA_TASK_ALLREDUCE:
    case HORA_TASK_REDUCESCATTER: return sig->op != HORA_ADASUM;
    case HORA_TASK_BROADCAST:
    case HORA_TASK_ALLGATHER: return true;
    default: return false;
    }
}

bool hora_signature_fuses(const hora_signature_t *a, const hora_signature_t *b) {
    return can_be_packed(a) && a->kind == b->kind && a->dtype == b->dtype && a->op == b->op &&
           a->root == b->root && a->device == b->device &&
           same_double(a->prescale, b->prescale) && same_double(a->postscale, b->postscale);
}

bool hora_shape_count(const int64_t *shape, int first, int ndim, size_t elem_size,
                      size_t *count_p) {
    size_t count = 1;
    bool   empty = false;
    for (int i = first; i < ndim; i++) {
        if (shape[i] < 0)
            return false;
        empty |= shape[i] == 0;
        if (shape[i] > 0 && __builtin_mul_overflow(count, (size_t)shape[i], &count))
            return false;
    }
    if (elem_size > 0 && count > (size_t)INT64_MAX / elem_size)
        return false;
    *count_p = empty ? 0 : count;
    return true;
}

size_t hora_signature_bytes(const hora_signature_t *sig) {
    size_t count = 0;
    hora_shape_count(sig->shape, 0, sig->ndim, 1, &count);
    return count * hora_dtype_size((hora_dtype_t)sig->dtype);
}

bool hora_signature_is_sane(const hora_signature_t *sig, int size) {
    size_t count;
    if (sig->kind >= HORA_TASK_JOIN || !hora_dtype_is_valid((hora_dtype_t)sig->dtype) ||
        sig->ndim > HORA_MAX_DIMS || sig->device > 1 || sig->root < 0 || sig->root >= size)
        return false;
    if (has_op(sig->kind) ? !hora_op_supported((hora_dtype_t)sig->dtype, (hora_op_t)sig->op)
                          : sig->op != HORA_SUM)
        return false;
    if (sig->op == HORA_ADASUM && sig->kind != HORA_TASK_ALLREDUCE)
        return false;
    if (sig->group_size < 1 || (sig->group_size == 1) != (sig->group_key == 0))
        return false;
    if (sig->ndim == 0 && (has_own_rows(sig->kind) || sig->kind == HORA_TASK_REDUCESCATTER))
        return false;
    return hora_shape_count(sig->shape, 0, sig->ndim,
                            hora_dtype_size((hora_dtype_t)sig->dtype), &count);
}

const char *hora_kind_name(int kind) {
    static const char *const names[HORA_TASK_KIND_COUNT] = {
        [HORA_TASK_ALLREDUCE] = "allreduce",         [HORA_TASK_ALLGATHER] = "allgather",
        [HORA_TASK_BROADCAST] = "broadcast",         [HORA_TASK_ALLTOALL] = "alltoall",
        [HORA_TASK_REDUCESCATTER] = "reducescatter", [HORA_TASK_BARRIER] = "barrier",
        [HORA_TASK_JOIN] = "join",
    };
    return (unsigned)kind < HORA_TASK_KIND_COUNT ? names[kind] : "unknown";
}

static void describe_shape(const hora_signature_t *sig, char *text, size_t len) {
    int n = snprintf(text, len, "shape [");
    for (int i = 0; i < sig->ndim && n >= 0 && (size_t)n < len; i++) {
        const char *comma = i > 0 ? ", " : "";
        if (i == 0 && has_own_rows(sig->kind))
            n += snprintf(text + n, len - (size_t)n, "*");
        else
            n += snprintf(text + n, len - (size_t)n, "%s%lld", comma, (long long)sig->shape[i]);
    }
    if (n >= 0 && (size_t)n < len)
        snprintf(text + n, len - (size_t)n, "]");
}

static void describe_group(const hora_signature_t *sig, char *text, size_t len) {
    if (sig->group_size == 1)
        snprintf(text, len, "no group");
    else
        snprintf(text, len, "a group of %u tensors", sig->group_size);
}

static void describe_scales(const hora_signature_t *sig, char *text, size_t len) {
    snprintf(text, len, "prescale %.17g and postscale %.17g", sig->prescale, sig->postscale);
}

void hora_signature_difference(const hora_signature_t *a, const hora_signature_t *b, char *a_p,
                               char *b_p, size_t len) {
    const hora_signature_t *sigs[2] = {a, b};
    char                   *texts[2] = {a_p, b_p};
    for (int i = 0; i < 2; i++) {
        const hora_signature_t *sig = sigs[i];
        if (a->kind != b->kind)
            snprintf(texts[i], len, "operation %s", hora_kind_name(sig->kind));
        else if (a->device != b->device)
            snprintf(texts[i], len, "the tensor %s", sig->device ? "on a GPU" : "in host memory");
        else if (a->dtype != b->dtype)
            snprintf(texts[i], len, "type %s", hora_dtype_name((hora_dtype_t)sig->dtype));
        else if (a->op != b->op)
            snprintf(texts[i], len, "reduction %s", hora_op_name((hora_op_t)sig->op));
        else if (!same_shape(a, b))
            describe_shape(sig, texts[i], len);
        else if (a->root != b->root)
            snprintf(texts[i], len, "root rank %d", sig->root);
        else if (a->group_size != b->group_size)
            describe_group(sig, texts[i], len);
        else if (a->group_key != b->group_key)
            snprintf(texts[i], len, "a group of %u tensors with other names", sig->group_size);
        else
            describe_scales(sig, texts[i], len);
    }
}
