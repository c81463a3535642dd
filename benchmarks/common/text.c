/*
 * Words and numbers of the command line and of tables. Any thread; no state.
 */
#include "text.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct alias {
    const char *name;
    int         value;
} alias_t;

static const alias_t dtype_aliases[] = {{"half", HORA_FLOAT16},
                                        {"float", HORA_FLOAT32},
                                        {"double", HORA_FLOAT64}};
static const alias_t op_aliases[] = {{"avg", HORA_AVERAGE}, {"prod", HORA_PRODUCT}};

#define LENGTH(array) (sizeof(array) / sizeof((array)[0]))

bool text_size(const char *text, size_t *bytes_p) {
    static const char units[] = "kmgt";
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || errno != 0 || !(value >= 0))
        return false;
    if (*end != '\0') {
        const char *unit = strchr(units, tolower((unsigned char)*end));
        if (unit == NULL)
            return false;
        for (const char *u = units; u <= unit; u++)
            value *= 1024;
        end++;
        end += *end == 'i';
        end += tolower((unsigned char)*end) == 'b';
    }
    if (*end != '\0' || value > 1e15)
        return false;
    *bytes_p = (size_t)value;
    return true;
}

bool text_dtype(const char *text, hora_dtype_t *dtype_p) {
    for (size_t i = 0; i < LENGTH(dtype_aliases); i++)
        if (strcmp(text, dtype_aliases[i].name) == 0)
            return *dtype_p = (hora_dtype_t)dtype_aliases[i].value, true;
    for (int d = 0; d < HORA_DTYPE_COUNT; d++)
        if (strcmp(text, hora_dtype_name((hora_dtype_t)d)) == 0)
            return *dtype_p = (hora_dtype_t)d, true;
    return false;
}

bool text_op(const char *text, hora_op_t *op_p) {
    for (size_t i = 0; i < LENGTH(op_aliases); i++)
        if (strcmp(text, op_aliases[i].name) == 0)
            return *op_p = (hora_op_t)op_aliases[i].value, true;
    for (int op = 0; op < HORA_OP_COUNT; op++)
        if (strcmp(text, hora_op_name((hora_op_t)op)) == 0)
            return *op_p = (hora_op_t)op, true;
    return false;
}

const char *text_dtype_name(hora_dtype_t dtype) {
    for (size_t i = 0; i < LENGTH(dtype_aliases); i++)
        if ((int)dtype == dtype_aliases[i].value)
            return dtype_aliases[i].name;
    return hora_dtype_name(dtype);
}

const char *text_op_name(hora_op_t op) {
    for (size_t i = 0; i < LENGTH(op_aliases); i++)
        if ((int)op == op_aliases[i].value)
            return op_aliases[i].name;
    return (int)op < HORA_OP_COUNT ? hora_op_name(op) : "none";
}

void text_bytes(char *buf, size_t size, double bytes) {
    static const char *const units[] = {"B", "K", "M", "G", "T"};
    size_t unit = 0;
    for (; bytes >= 1024 && unit + 1 < LENGTH(units); unit++)
        bytes /= 1024;
    snprintf(buf, size, bytes == (double)(long)bytes ? "%.0f%s" : "%.1f%s", bytes, units[unit]);
}

void text_json(FILE *file, const char *text) {
    fputc('"', file);
    for (const unsigned char *c = (const unsigned char *)text; *c != '\0'; c++) {
        if (*c == '"' || *c == '\\')
            fputc('\\', file);
        if (*c < 0x20)
            fprintf(file, "\\u%04x", *c);
        else
            fputc(*c, file);
    }
    fputc('"', file);
}
