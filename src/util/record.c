/*
 * Small files (record.h). Any thread; no state.
 */
#include "util/record.h"

#include "util/locale.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Reading ----------------------------------------------------------------------------------- */

static void skip_space(const char **p) {
    while (**p == ' ' || **p == '\t' || **p == '\n' || **p == '\r')
        (*p)++;
}

/* A string without escapes: none of ours needs one. */
static bool read_string(const char **p, char *text, size_t room) {
    size_t n = 0;
    if (*(*p)++ != '"')
        return false;
    for (; **p != '"'; (*p)++) {
        if ((unsigned char)**p < ' ' || **p == '\\' || n + 1 >= room)
            return false;
        text[n++] = **p;
    }
    (*p)++;
    text[n] = '\0';
    return true;
}

static bool read_number(const char **p, double *number_p) {
    char *end;
    if (**p != '-' && !isdigit((unsigned char)**p))
        return false;
    *number_p = hora_strtod(*p, &end);
    if (*number_p != *number_p)
        return false;
    *p = end;
    return true;
}

static bool read_member(const char **p, hora_record_field_t *fields, size_t n) {
    char key[64];
    skip_space(p);
    if (!read_string(p, key, sizeof(key)))
        return false;
    skip_space(p);
    if (*(*p)++ != ':')
        return false;
    skip_space(p);
    for (size_t i = 0; i < n; i++) {
        if (strcmp(fields[i].key, key) != 0)
            continue;
        if (fields[i].seen)
            return false;
        fields[i].seen = true;
        return fields[i].text != NULL ? read_string(p, fields[i].text, fields[i].room)
                                      : read_number(p, fields[i].number);
    }
    return false;
}

/* All fields, each once, and nothing else. */
static bool read_object(const char *p, hora_record_field_t *fields, size_t n) {
    skip_space(&p);
    if (*p++ != '{')
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!read_member(&p, fields, n))
            return false;
        skip_space(&p);
        if (*p++ != (i + 1 < n ? ',' : '}'))
            return false;
    }
    skip_space(&p);
    return *p == '\0';
}

/* The file's text, ended by '\0'; NULL with errno; 0: too long, or no plain file. */
static char *read_file(const char *path) {
    int         fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    char       *text = NULL;
    struct stat st;
    ssize_t     n;
    if (fd < 0)
        return NULL;
    errno = 0;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size < HORA_RECORD_MAX)
        text = calloc(1, HORA_RECORD_MAX);
    if (text != NULL) {
        n = read(fd, text, HORA_RECORD_MAX - 1);
        if (n < 0 || memchr(text, '\0', (size_t)n) != NULL) {
            free(text);
            text = NULL;
        }
    }
    close(fd);
    return text;
}

hora_record_result_t hora_record_read(const char *path, hora_record_field_t *fields, size_t n) {
    char *text = read_file(path);
    bool  good;
    if (text == NULL)
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES ? HORA_RECORD_ABSENT : HORA_RECORD_BAD;
    good = read_object(text, fields, n);
    free(text);
    return good ? HORA_RECORD_OK : HORA_RECORD_BAD;
}

/* ---- Writing ----------------------------------------------------------------------------------- */

#define TEMP_MAX 512

/* A new file beside the one that is meant; NULL with errno. */
static FILE *open_beside(const char *path, char temp_p[TEMP_MAX]) {
    if ((size_t)snprintf(temp_p, TEMP_MAX, "%s.%d", path, (int)getpid()) >= TEMP_MAX) {
        errno = ENAMETOOLONG;
        return NULL;
    }
    return fopen(temp_p, "wxe");
}

bool hora_record_writable(const char *path) {
    char        temp[TEMP_MAX];
    struct stat st;
    FILE       *file;
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        errno = EISDIR;
        return false;
    }
    file = open_beside(path, temp);
    if (file == NULL)
        return false;
    fclose(file);
    return unlink(temp) == 0;
}

bool hora_record_write(const char *path, bool (*print)(FILE *file, const void *arg),
                       const void *arg) {
    char  temp[TEMP_MAX];
    FILE *file = open_beside(path, temp);
    bool  good;
    if (file == NULL)
        return false;
    good = print(file, arg) && fflush(file) == 0 && !ferror(file);
    if (fclose(file) != 0)
        good = false;
    if (good && rename(temp, path) == 0)
        return true;
    unlink(temp);
    return false;
}
