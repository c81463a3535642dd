/*
 * Status names, type and operation tables, and the per-thread text of the last error.
 * Any thread. The text lives in thread-local storage and is never freed.
 */
#include "util/status.h"

#include "util/log.h"

#include <stdio.h>
#include <string.h>

#define TEXT_MAX 2048

static _Thread_local char last_error[TEXT_MAX];

static const struct {
    hora_status_t value;
    const char   *name;
    const char   *message;
} statuses[] = {
#define HORA_STATUS_ROW(name, value, message) {HORA_##name, "HORA_" #name, message},
    HORA_STATUS_MAP(HORA_STATUS_ROW)
#undef HORA_STATUS_ROW
};

static const struct {
    const char *name;
    size_t      size;
    enum { KIND_BOOL, KIND_INTEGER, KIND_FLOAT, KIND_HALF, KIND_EIGHTH } kind;
} dtypes[HORA_DTYPE_COUNT] = {
    [HORA_BOOL] = {"bool", 1, KIND_BOOL},           [HORA_INT8] = {"int8", 1, KIND_INTEGER},
    [HORA_INT16] = {"int16", 2, KIND_INTEGER},      [HORA_INT32] = {"int32", 4, KIND_INTEGER},
    [HORA_INT64] = {"int64", 8, KIND_INTEGER},      [HORA_UINT8] = {"uint8", 1, KIND_INTEGER},
    [HORA_UINT16] = {"uint16", 2, KIND_INTEGER},    [HORA_UINT32] = {"uint32", 4, KIND_INTEGER},
    [HORA_UINT64] = {"uint64", 8, KIND_INTEGER},    [HORA_FLOAT16] = {"float16", 2, KIND_HALF},
    [HORA_BFLOAT16] = {"bfloat16", 2, KIND_HALF},   [HORA_FLOAT32] = {"float32", 4, KIND_FLOAT},
    [HORA_FLOAT64] = {"float64", 8, KIND_FLOAT},    [HORA_FLOAT8_E4M3] = {"float8_e4m3", 1, KIND_EIGHTH},
    [HORA_FLOAT8_E5M2] = {"float8_e5m2", 1, KIND_EIGHTH},
};

static const char *const ops[HORA_OP_COUNT] = {
    [HORA_AVERAGE] = "average", [HORA_SUM] = "sum",         [HORA_ADASUM] = "adasum",
    [HORA_MIN] = "min",         [HORA_MAX] = "max",         [HORA_PRODUCT] = "product",
    [HORA_BAND] = "band",       [HORA_BOR] = "bor",         [HORA_BXOR] = "bxor",
};

const char *hora_status_name(hora_status_t status) {
    for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
        if (statuses[i].value == status)
            return statuses[i].name;
    return "HORA_ERR_UNKNOWN";
}

const char *hora_status_message(hora_status_t status) {
    for (size_t i = 0; i < sizeof(statuses) / sizeof(statuses[0]); i++)
        if (statuses[i].value == status)
            return statuses[i].message;
    return "unknown status";
}

const char *hora_last_error(void) {
    return last_error;
}

const char *hora_version(void) {
    return HORA_VERSION;
}

bool hora_dtype_is_float(hora_dtype_t dtype) {
    return hora_dtype_is_valid(dtype) && dtypes[dtype].kind >= KIND_FLOAT;
}

bool hora_dtype_is_half(hora_dtype_t dtype) {
    return hora_dtype_is_valid(dtype) && dtypes[dtype].kind >= KIND_HALF;
}

size_t hora_dtype_size(hora_dtype_t dtype) {
    return hora_dtype_is_valid(dtype) ? dtypes[dtype].size : 0;
}

const char *hora_dtype_name(hora_dtype_t dtype) {
    return hora_dtype_is_valid(dtype) ? dtypes[dtype].name : "unknown";
}

const char *hora_op_name(hora_op_t op) {
    return (unsigned)op < HORA_OP_COUNT ? ops[op] : "unknown";
}

int hora_op_supported(hora_dtype_t dtype, hora_op_t op) {
    if (!hora_dtype_is_valid(dtype) || !hora_op_is_valid(op))
        return 0;
    if (dtypes[dtype].kind == KIND_EIGHTH)
        return op == HORA_AVERAGE || op == HORA_SUM || op == HORA_MIN || op == HORA_MAX;
    if (op == HORA_ADASUM)
        return dtypes[dtype].kind >= KIND_FLOAT;
    if (op >= HORA_BAND)
        return dtypes[dtype].kind <= KIND_INTEGER;
    return !(op == HORA_AVERAGE && dtypes[dtype].kind == KIND_BOOL);
}

hora_status_t hora_fail(hora_status_t status, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_error, sizeof(last_error), format, args);
    va_end(args);
    hora_log(HORA_LOG_INFO, "%s: %s", hora_status_name(status), last_error);
    return status;
}

hora_status_t hora_fail_errno(hora_status_t status, int err, const char *format, ...) {
    char    text[TEXT_MAX - 128];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return hora_fail(status, "%s: %s", text, strerror(err));
}

hora_status_t hora_fail_again(hora_status_t status, const char *text) {
    if (text != last_error)
        snprintf(last_error, sizeof(last_error), "%s", text);
    return status;
}
