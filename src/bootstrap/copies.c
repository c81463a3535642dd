/*
 * Which copy of the library am I (copies.h)? Settled once, when it is loaded, by the thread that
 * loads it and under the loader's lock.
 *
 * Each copy, as a library or linked into another one, carries an ELF note. The dynamic linker lists
 * what is loaded in the order of loading, also what was loaded with RTLD_LOCAL, and the notes in
 * the list before my own are the other copies. What dlmopen has loaded is in a list of its own,
 * which has a number.
 */
#include "bootstrap/copies.h"

#include <dlfcn.h>
#include <link.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#define NOTE_TYPE 0x636f7079u /* "copy" */

__asm__(".pushsection .note.hora, \"a\", %note\n"
        ".balign 4\n"
        ".long 5, 4, 0x636f7079\n" /* lengths of the name and of the content, type */
        ".asciz \"hora\"\n"
        ".balign 4\n"
        ".long 1\n"
        ".popsection\n");

static unsigned number;

typedef struct search {
    unsigned before;
    bool     found; /* my own */
} search_t;

static size_t padded(size_t len) {
    return (len + 3) & ~(size_t)3;
}

static bool has_note(const uint8_t *at, size_t len) {
    while (len >= sizeof(ElfW(Nhdr))) {
        const ElfW(Nhdr) *head = (const void *)at;
        size_t whole = sizeof(*head) + padded(head->n_namesz) + padded(head->n_descsz);
        if (whole > len)
            return false;
        if (head->n_type == NOTE_TYPE && head->n_namesz == 5 &&
            memcmp(at + sizeof(*head), "hora", 5) == 0)
            return true;
        at += whole;
        len -= whole;
    }
    return false;
}

static int visit(struct dl_phdr_info *object, size_t size, void *arg) {
    search_t *search = arg;
    uintptr_t me = (uintptr_t)&number;
    bool      mine = false, copy = false;
    (void)size;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        uintptr_t begin = (uintptr_t)(object->dlpi_addr + part->p_vaddr);
        if (part->p_type == PT_LOAD)
            mine |= me >= begin && me - begin < part->p_memsz;
        else if (part->p_type == PT_NOTE)
            copy |= has_note((const uint8_t *)begin, part->p_memsz);
    }
    search->found = mine;
    search->before += copy && !mine;
    return mine;
}

#if defined(__GLIBC__)
static unsigned list_number(void) {
    Dl_info          info;
    struct link_map *map = NULL;
    Lmid_t           list = LM_ID_BASE;
    if (dladdr1(&number, &info, (void **)&map, RTLD_DL_LINKMAP) == 0 || map == NULL ||
        dlinfo(map, RTLD_DI_LMID, &list) != 0)
        return 0;
    return (unsigned)list;
}
#else
static unsigned list_number(void) { /* dlmopen is glibc's */
    return 0;
}
#endif

__attribute__((constructor)) static void settle_number(void) {
    search_t search = {0, false};
    dl_iterate_phdr(visit, &search);
    number = list_number() << 16 | (search.found ? search.before : 0);
}

unsigned hora_copy_number(void) {
    return number;
}
