/*
 * Names in the environment that begin as hora's settings do and are none (settings.h): slips of the
 * pen, which would go unnoticed else. Runs on the thread that joins the job.
 */
#include "util/log.h"
#include "util/settings.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PREFIX       "HORA_"
#define COMPARED_MAX 48 /* longer ones are near to nothing */

/* What is no setting and is read or set all the same: by launchers, the command and the tests. */
static const char *const others[] = {
    "RANK",    "SIZE",       "LOCAL_RANK",     "LOCAL_SIZE",      "CROSS_RANK", "CROSS_SIZE",
    "ELASTIC", "ELASTIC_ID", "ELASTIC_DRIVER", "ELASTIC_TIMEOUT", "BIN_DIR",    "MPI_ENVS",
};
static const char *const beginnings[] = {"TEST_", "STANDIN_"};

static bool equals(const char *name, size_t len, const char *other) {
    return strlen(other) == len && memcmp(name, other, len) == 0;
}

/* Kubernetes' own, of a service called hora or hora-...: SERVICE_HOST, PORT, PORT_80_TCP_ADDR. */
static bool is_service(const char *name, size_t len) {
    for (const char *at = name; at + strlen("PORT") <= name + len; at++) {
        const char *end = at + strlen("PORT");
        if (strncmp(at, "SERVICE_HOST", strlen("SERVICE_HOST")) == 0)
            return true;
        if (strncmp(at, "PORT", strlen("PORT")) == 0 && (at == name || at[-1] == '_') &&
            (end == name + len || *end == '_'))
            return true;
    }
    return false;
}

static bool is_known(const char *name, size_t len) {
    size_t                    count;
    const hora_setting_row_t *rows = hora_settings_rows(&count);
    for (size_t i = 0; i < count; i++)
        if (equals(name, len, rows[i].name))
            return true;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
        if (equals(name, len, others[i]))
            return true;
    for (size_t i = 0; i < sizeof(beginnings) / sizeof(beginnings[0]); i++)
        if (strncmp(name, beginnings[i], strlen(beginnings[i])) == 0)
            return true;
    return is_service(name, len);
}

static int least(int a, int b) {
    return a < b ? a : b;
}

/* How many letters must be put in, left out, changed or swapped with the next to make a of b: the
 * table of optimal string alignment, of which three rows are kept. */
static int distance(const char *a, int alen, const char *b, int blen) {
    int rows[3][COMPARED_MAX + 1];
    for (int j = 0; j <= blen; j++)
        rows[0][j] = j;
    for (int i = 1; i <= alen; i++) {
        int *row = rows[i % 3], *last = rows[(i + 2) % 3], *before = rows[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= blen; j++) {
            row[j] = least(last[j - 1] + (a[i - 1] != b[j - 1]), least(last[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], before[j - 2] + 1);
        }
    }
    return rows[alen % 3][blen];
}

/* The setting that is meant, most likely; NULL: none is near. */
static const char *nearest(const char *name, size_t len) {
    size_t                    count;
    const hora_setting_row_t *rows = hora_settings_rows(&count);
    const char               *found = NULL;
    int                       best = (int)len / 3 + 1;
    if (len > COMPARED_MAX)
        return NULL;
    for (size_t i = 0; i < count; i++) {
        size_t other = strlen(rows[i].name);
        int    steps = COMPARED_MAX;
        if (rows[i].horovod != NULL && equals(name, len, rows[i].horovod))
            return rows[i].name;
        if (other <= COMPARED_MAX)
            steps = distance(name, (int)len, rows[i].name, (int)other);
        if (steps < best) {
            best = steps;
            found = rows[i].name;
        }
    }
    return found;
}

/* Is this variable ("NAME=value") one of them? Then what to say of it. */
static bool describe(const char *variable, char text_p[HORA_SETTING_STRING_MAX]) {
    const char *name = variable + strlen(PREFIX), *near;
    size_t      len;
    if (strncmp(variable, PREFIX, strlen(PREFIX)) != 0)
        return false;
    len = strcspn(name, "=");
    if (is_known(name, len))
        return false;
    near = nearest(name, len);
    snprintf(text_p, HORA_SETTING_STRING_MAX, PREFIX "%.*s is no setting of hora%s%s%s",
             (int)least((int)len, 100), name, near != NULL ? "; did you mean " PREFIX : "",
             near != NULL ? near : "", near != NULL ? "?" : "");
    return true;
}

bool hora_settings_unknown(size_t index, char text_p[HORA_SETTING_STRING_MAX]) {
    for (char **variable = environ; variable != NULL && *variable != NULL; variable++)
        if (describe(*variable, text_p) && index-- == 0)
            return true;
    return false;
}

void hora_settings_warn_unknown(void) {
    static atomic_bool said;
    char               text[HORA_SETTING_STRING_MAX];
    if (atomic_exchange(&said, true))
        return;
    for (size_t i = 0; hora_settings_unknown(i, text); i++)
        hora_log(HORA_LOG_WARNING, "%s", text);
}
