/*
 * The machine in words (machine.h). No state.
 */
#include "transport/machine.h"

#include "transport/transport.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

const char *hora_machine_wire(const hora_world_t *world) {
    const char *wire = "shm";
    bool        shared = world->arena != NULL;
    for (int r = 0; r < world->size; r++) {
        const hora_link_t *link = world->peers[r].link;
        shared &= world->peers[r].bell != NULL;
        if (link != NULL && strcmp(link->transport->ops->name, "shm") != 0)
            wire = link->transport->ops->name;
    }
    return !shared && strcmp(wire, "shm") == 0 ? "shm links" : wire;
}

static void read_processor(char *text, size_t size) {
    char  line[256];
    FILE *file = fopen("/proc/cpuinfo", "re");
    snprintf(text, size, "unknown");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        char *colon = strchr(line, ':');
        if (colon == NULL || strncmp(line, "model name", 10) != 0)
            continue;
        colon[strcspn(colon, "\n")] = '\0';
        snprintf(text, size, "%s", colon + (colon[1] == ' ' ? 2 : 1));
        break;
    }
    if (file != NULL)
        fclose(file);
}

void hora_machine_describe(char *text, size_t size) {
    struct utsname name;
    char           processor[96];
    read_processor(processor, sizeof(processor));
    if (uname(&name) != 0)
        snprintf(name.machine, sizeof(name.machine), "unknown");
    /* All cores, not those that this rank is bound to: binding makes no other machine. */
    snprintf(text, size, "%.32s, %ld cores, %s", name.machine, sysconf(_SC_NPROCESSORS_ONLN), processor);
    for (char *c = text; *c != '\0'; c++)
        if ((unsigned char)*c < ' ' || *c == '"' || *c == '\\')
            *c = ' ';
}
