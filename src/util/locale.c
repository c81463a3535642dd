/*
 * The C locale for one thread (locale.h). No state: newlocale has "C" at hand and makes nothing.
 */
#include "util/locale.h"

#include <stdlib.h>

locale_t hora_locale_begin(void) {
    return uselocale(newlocale(LC_ALL_MASK, "C", (locale_t)0)); /* (locale_t)0 changes nothing */
}

void hora_locale_end(locale_t before) {
    locale_t own = uselocale(before);
    if (own != before)
        freelocale(own);
}

double hora_strtod(const char *text, char **end_p) {
    locale_t before = hora_locale_begin();
    double   value = strtod(text, end_p);
    hora_locale_end(before);
    return value;
}
