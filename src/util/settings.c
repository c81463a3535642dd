/*
 * The settings table and its parser. Runs on the thread that joins the job; no state.
 */
#include "util/settings.h"

#include "util/locale.h"
#include "util/log.h"

#include <ctype.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SETTING(TYPE, field, name, value, text)                                                   \
    {HORA_SETTING_##TYPE, offsetof(hora_settings_t, field), name, value, text, NULL, NULL},
#define SETTING_HVD(TYPE, field, name, value, text)                                               \
    {HORA_SETTING_##TYPE, offsetof(hora_settings_t, field), name, value, text, name, NULL},
#define SETTING_AS(TYPE, field, name, other, value, text)                                         \
    {HORA_SETTING_##TYPE, offsetof(hora_settings_t, field), name, value, text, other, NULL},
#define SETTING_OF(TYPE, field, name, values, value, text)                                        \
    {HORA_SETTING_##TYPE, offsetof(hora_settings_t, field), name, value, text, NULL, values},
static const hora_setting_row_t rows[] = {
#include "util/settings.def"
};
#undef SETTING
#undef SETTING_HVD
#undef SETTING_AS
#undef SETTING_OF

const hora_setting_row_t *hora_settings_rows(size_t *count_p) {
    *count_p = sizeof(rows) / sizeof(rows[0]);
    return rows;
}

/* Is it one of these words? */
static bool is_listed(const char *values, const char *text) {
    size_t len = strlen(text);
    for (const char *at = values; *at != '\0';) {
        size_t n = strcspn(at, " ");
        if (n == len && memcmp(at, text, n) == 0)
            return true;
        at += n + (at[n] == ' ');
    }
    return false;
}

static bool parse_bool(const char *text, bool *value_p) {
    static const char *const yes[] = {"1", "true", "yes", "on"};
    static const char *const no[] = {"0", "false", "no", "off", ""};
    for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++)
        if (strcasecmp(text, yes[i]) == 0)
            return *value_p = true;
    for (size_t i = 0; i < sizeof(no) / sizeof(no[0]); i++)
        if (strcasecmp(text, no[i]) == 0) {
            *value_p = false;
            return true;
        }
    return false;
}

static bool parse_int(const char *text, int64_t *value_p) {
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0)
        return false;
    *value_p = v;
    return true;
}

static bool parse_bytes(const char *text, size_t *value_p) {
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (end == text || errno != 0 || text[0] == '-')
        return false;
    unsigned shift = 0;
    switch (tolower((unsigned char)*end)) {
    case 'k': shift = 10; end++; break;
    case 'm': shift = 20; end++; break;
    case 'g': shift = 30; end++; break;
    case 't': shift = 40; end++; break;
    default: break;
    }
    if (tolower((unsigned char)*end) == 'b')
        end++;
    if (*end != '\0' || (shift && v >> (63 - shift)))
        return false;
    *value_p = (size_t)v << shift;
    return true;
}

static bool parse_seconds(const char *text, double *value_p) {
    char *end;
    errno = 0;
    double v = hora_strtod(text, &end);
    if (end == text || *end != '\0' || errno != 0 || !(v >= 0))
        return false;
    *value_p = v;
    return true;
}

static bool parse(const hora_setting_row_t *row, const char *text, void *field) {
    switch (row->type) {
    case HORA_SETTING_STRING:
        if (strlen(text) >= HORA_SETTING_STRING_MAX ||
            (row->values != NULL && !is_listed(row->values, text)))
            return false;
        strcpy(field, text); /* the length was checked above */
        return true;
    case HORA_SETTING_BOOL: return parse_bool(text, field);
    case HORA_SETTING_INT: return parse_int(text, field);
    case HORA_SETTING_BYTES: return parse_bytes(text, field);
    case HORA_SETTING_SECONDS: return parse_seconds(text, field);
    }
    return false;
}

static const char *expected(const hora_setting_row_t *row) {
    switch (row->type) {
    case HORA_SETTING_STRING: return row->values != NULL ? row->values : "fewer than 256 characters";
    case HORA_SETTING_BOOL: return "0 or 1";
    case HORA_SETTING_INT: return "a whole number";
    case HORA_SETTING_BYTES: return "bytes, such as 65536, 64k or 128m";
    case HORA_SETTING_SECONDS: return "seconds, 0 or more";
    }
    return "";
}

static hora_status_t load_row(const hora_setting_row_t *row, hora_settings_t *settings) {
    char        name[64];
    void       *field = (char *)settings + row->offset;
    const char *text;
    snprintf(name, sizeof(name), "HORA_%s", row->name);
    text = getenv(name);
    if (text == NULL && row->horovod != NULL) {
        snprintf(name, sizeof(name), "HOROVOD_%s", row->horovod);
        text = getenv(name);
    }
    if (text == NULL || (*text == '\0' && (row->type != HORA_SETTING_STRING || row->values != NULL)))
        text = row->value;
    if (!parse(row, text, field))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT, "%s=\"%s\" is not understood; expected %s%s", name,
                         strcmp(row->name, "SECRET") == 0 ? "(not shown)" : text,
                         row->values != NULL ? "one of: " : "", expected(row));
    return HORA_OK;
}

hora_status_t hora_settings_load(hora_settings_t *settings_p) {
    hora_settings_t settings;
    memset(&settings, 0, sizeof(settings));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        hora_status_t st = load_row(&rows[i], &settings);
        if (st != HORA_OK)
            return st;
    }
    if (!hora_log_setup(settings.log_level, settings.log_hide_time))
        return hora_fail(HORA_ERR_INVALID_ARGUMENT,
                         "HORA_LOG_LEVEL=\"%s\" is not understood; expected off, error, warning, "
                         "info, debug or trace",
                         settings.log_level);
    *settings_p = settings;
    return HORA_OK;
}

/* ---- What Horovod has and hora has not ------------------------------------------------------ */

int hora_settings_warn_horovod(void) {
    static const struct {
        const char *name, *values, *text;
    } vain[] = {
#define MET(name, text)
#define VAIN(name, values, text) {"HOROVOD_" name, values, text},
#include "util/horovod.def"
#undef MET
#undef VAIN
    };
    static atomic_bool said[sizeof(vain) / sizeof(vain[0])];
    int                n = 0;
    for (size_t i = 0; i < sizeof(vain) / sizeof(vain[0]); i++) {
        const char *text = getenv(vain[i].name);
        if (text == NULL || *text == '\0' || is_listed(vain[i].values, text))
            continue;
        n++;
        if (!atomic_exchange(&said[i], true))
            hora_log(HORA_LOG_WARNING, "%s=%.64s has no effect. %s", vain[i].name, text,
                     vain[i].text);
    }
    return n;
}

bool hora_settings_item(const char **list_p, char item[HORA_SETTING_STRING_MAX]) {
    const char *at = *list_p + strspn(*list_p, ", ");
    size_t      len = strcspn(at, ",");
    *list_p = at + len;
    while (len > 0 && at[len - 1] == ' ')
        len--;
    if (len >= HORA_SETTING_STRING_MAX)
        len = HORA_SETTING_STRING_MAX - 1;
    memcpy(item, at, len);
    item[len] = '\0';
    return len > 0;
}
