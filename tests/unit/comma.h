/*
 * A locale in which the decimal point is a comma, whatever locales are installed: the one file of
 * glibc's that says so (locale/localeinfo.h there) is written by hand. One at a time.
 */
#ifndef HORA_TESTS_COMMA_H
#define HORA_TESTS_COMMA_H

#include <locale.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static inline bool comma_write(const char *path) {
    /* Magic of LC_NUMERIC, 6 items and where they are: point, thousands, grouping, both as wide
     * characters, character set. */
    uint32_t head[8] = {0x20031115 ^ LC_NUMERIC, 6, 32, 34, 35, 36, 40, 44};
    char     items[18] = ",\0\0\177\0\0\0\0\0\0\0\0UTF-8";
    uint32_t point = ',';
    FILE    *file = fopen(path, "w");
    memcpy(items + 4, &point, sizeof(point));
    if (file == NULL)
        return false;
    fwrite(head, sizeof(head), 1, file);
    fwrite(items, sizeof(items), 1, file);
    return fclose(file) == 0;
}

/* Sets it for LC_NUMERIC. False: this C library has other locales. comma_end goes back to C. */
static inline bool comma_begin(void) {
    char folder[] = "/tmp/hora-comma-XXXXXX", inner[64], path[96], text[16] = "";
    bool good = false;
    if (mkdtemp(folder) == NULL)
        return false;
    snprintf(inner, sizeof(inner), "%s/comma", folder);
    snprintf(path, sizeof(path), "%s/LC_NUMERIC", inner);
    mkdir(inner, 0700);
    if (comma_write(path) && setenv("LOCPATH", folder, 1) == 0)
        good = setlocale(LC_NUMERIC, "comma") != NULL;
    unsetenv("LOCPATH");
    unlink(path);
    rmdir(inner);
    rmdir(folder);
    if (good)
        snprintf(text, sizeof(text), "%.1f", 0.5);
    return good && strcmp(text, "0,5") == 0;
}

static inline void comma_end(void) {
    setlocale(LC_NUMERIC, "C");
}

#endif
