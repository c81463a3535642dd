/*
 * Numbers in settings and files are those of the C locale, with a point, whatever setlocale was
 * called with. Any thread; only the calling one is meant.
 */
#ifndef HORA_UTIL_LOCALE_H
#define HORA_UTIL_LOCALE_H

#include <locale.h>

/* The C locale, for the calling thread, until hora_locale_end gets what this returns. */
locale_t hora_locale_begin(void);
void hora_locale_end(locale_t before);

/* strtod in the C locale. */
double hora_strtod(const char *text, char **end_p);

#endif
