/*
 * Settings: one table (settings.def), read from the environment each time that a job is joined.
 */
#ifndef HORA_UTIL_SETTINGS_H
#define HORA_UTIL_SETTINGS_H

#include "util/status.h"

#define HORA_SETTING_STRING_MAX 256
#define HORA_STREAMS_MAX        8 /* HORA_NUM_NCCL_STREAMS, 1 at least */

typedef struct hora_settings {
#define FIELD_STRING(field)  char field[HORA_SETTING_STRING_MAX];
#define FIELD_BOOL(field)    bool field;
#define FIELD_INT(field)     int64_t field;
#define FIELD_BYTES(field)   size_t field;
#define FIELD_SECONDS(field) double field;
#define SETTING(TYPE, field, name, value, text)     FIELD_##TYPE(field)
#define SETTING_HVD(TYPE, field, name, value, text) FIELD_##TYPE(field)
#define SETTING_AS(TYPE, field, name, other, value, text) FIELD_##TYPE(field)
#define SETTING_OF(TYPE, field, name, values, value, text) FIELD_##TYPE(field)
#include "util/settings.def"
#undef SETTING
#undef SETTING_HVD
#undef SETTING_AS
#undef SETTING_OF
#undef FIELD_STRING
#undef FIELD_BOOL
#undef FIELD_INT
#undef FIELD_BYTES
#undef FIELD_SECONDS
} hora_settings_t;

typedef enum hora_setting_type {
    HORA_SETTING_STRING,
    HORA_SETTING_BOOL,
    HORA_SETTING_INT,
    HORA_SETTING_BYTES,
    HORA_SETTING_SECONDS
} hora_setting_type_t;

typedef struct hora_setting_row {
    hora_setting_type_t type;
    size_t              offset;      /* of the field in hora_settings_t */
    const char         *name;        /* without a prefix */
    const char         *value;       /* the default, as text */
    const char         *text;        /* one sentence */
    const char         *horovod;     /* name of Horovod's that is honoured, without a prefix; or NULL */
    const char         *values;      /* the only ones that there are, with blanks between; NULL: any */
} hora_setting_row_t;

/* The table, for docs and `hora info`. Static storage. */
const hora_setting_row_t *hora_settings_rows(size_t *count_p);

/* Reads every setting from the environment. HORA_ERR_INVALID_ARGUMENT names the variable, its value
 * and what is allowed. Also sets the log up. */
hora_status_t hora_settings_load(hora_settings_t *settings_p);

/* Takes the next item off a list with commas, without the blanks around it; empty ones are passed
 * over. False: there is none. */
bool hora_settings_item(const char **list_p, char item[HORA_SETTING_STRING_MAX]);

/* Says of each setting of Horovod's that is set and has no meaning here why that is so (a warning
 * each, the first time in a process). Returns their number. One rank is enough to call it. */
int hora_settings_warn_horovod(void);

/* What to say of the `index`th variable of the environment that is called HORA_... and is no
 * setting: its name, and the nearest one. False: there are not so many. */
bool hora_settings_unknown(size_t index, char text_p[HORA_SETTING_STRING_MAX]);
/* Logs them all as warnings, once in a process. One rank is enough to call it. */
void hora_settings_warn_unknown(void);

#endif
