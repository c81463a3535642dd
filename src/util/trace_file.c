/*
 * A growing JSON array that is valid at every moment (trace_file.h). One thread at a time.
 *
 * Why not simply move the closing bracket on with one write(2)? Linux copies a write into the page
 * cache page by page, and looks between two pages whether the process has been killed: a write
 * across the border of a page can be cut there. Within a page it cannot. Hence:
 *
 *     [ element,          The file has more room than it needs. The room is filled with spaces,
 *       element           which JSON allows, and closed by a bracket at its very end. Elements are
 *                  ]      put over the spaces, by writes that never cross the border of a page.
 *
 * When the room is used up, a file of twice the size is written beside this one and renamed over
 * it, which is atomic too; closing does the same with the exact size.
 */
#include "util/trace_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE       4096u              /* no system has smaller ones; larger ones are multiples */
#define ROOM_FIRST (16u * PAGE)
#define ROOM_STEP  ((size_t)256 << 20) /* beyond it the file grows by so much at a time */
#define COPY_BYTES ((size_t)256 << 10)

static const char closing[] = "\n]\n";

struct hora_trace_file {
    int    fd;
    char  *path, *part; /* the file, and its successor while that is made */
    size_t room;        /* bytes of the file, whole pages; the last one is for the bracket */
    size_t at;          /* where page[] goes: after all that is written */
    size_t len;         /* of page[]; it does not cross the border of the page that `at` is in */
    char   page[PAGE];
};

_Static_assert(HORA_TRACE_ELEMENT_MAX + 2 <= PAGE, "an element and its comma fit a page");

/* ---- Paths ---------------------------------------------------------------------------------- */

static hora_status_t join(const char *path, const char *name, char **full_p) {
    char *folder = name == path ? strdup(".") : strndup(path, (size_t)(name - path));
    char *real = folder != NULL ? realpath(folder, NULL) : NULL;
    int   err = errno, n = -1;
    if (real != NULL)
        n = asprintf(full_p, "%s/%s", strcmp(real, "/") == 0 ? "" : real, name);
    free(folder);
    free(real);
    if (real == NULL)
        return hora_fail_errno(HORA_ERR_SYSTEM, err, "timeline %s: its folder", path);
    return n >= 0 ? HORA_OK : hora_fail(HORA_ERR_NO_MEMORY, "timeline %s", path);
}

hora_status_t hora_trace_file_resolve(const char *path, char **full_p) {
    const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
    struct stat st;
    char       *full;
    if (*name == '\0')
        return hora_fail_errno(HORA_ERR_SYSTEM, *path != '\0' ? EISDIR : ENOENT, "timeline \"%s\"",
                               path);
    if (stat(path, &st) != 0) {
        if (errno != ENOENT)
            return hora_fail_errno(HORA_ERR_SYSTEM, errno, "timeline %s", path);
        return join(path, name, full_p);
    }
    if (!S_ISREG(st.st_mode))
        return hora_fail(HORA_ERR_SYSTEM, "timeline %s: it is there and is no regular file", path);
    full = realpath(path, NULL);
    if (full == NULL)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "timeline %s", path);
    *full_p = full;
    return HORA_OK;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static hora_status_t write_at(int fd, const char *bytes, size_t len, size_t at, const char *path) {
    while (len > 0) {
        ssize_t n = pwrite(fd, bytes, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return hora_fail_errno(HORA_ERR_SYSTEM, n < 0 ? errno : EIO, "timeline %s", path);
        bytes += n;
        at += (size_t)n;
        len -= (size_t)n;
    }
    return HORA_OK;
}

static hora_status_t copy(int from, int to, size_t len, char *buf, const char *path) {
    for (size_t at = 0; at < len;) {
        size_t        most = len - at < COPY_BYTES ? len - at : COPY_BYTES;
        ssize_t       n = pread(from, buf, most, (off_t)at);
        hora_status_t st;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) /* 0: somebody has cut the file */
            return hora_fail_errno(HORA_ERR_SYSTEM, n < 0 ? errno : EIO, "timeline %s", path);
        st = write_at(to, buf, (size_t)n, at, path);
        if (st != HORA_OK)
            return st;
        at += (size_t)n;
    }
    return HORA_OK;
}

static hora_status_t put_spaces(int fd, size_t from, size_t to, char *buf, const char *path) {
    hora_status_t st = HORA_OK;
    memset(buf, ' ', COPY_BYTES);
    while (from < to && st == HORA_OK) {
        size_t n = to - from < COPY_BYTES ? to - from : COPY_BYTES;
        st = write_at(fd, buf, n, from, path);
        from += n;
    }
    return st;
}

/* All of a file of `room` bytes: what is written, what is in page[], spaces and the bracket. */
static hora_status_t fill(const hora_trace_file_t *file, int fd, size_t room) {
    size_t        tail = sizeof(closing) - 1;
    char         *buf = malloc(COPY_BYTES);
    hora_status_t st = buf != NULL ? HORA_OK : hora_fail(HORA_ERR_NO_MEMORY, "the timeline's file");
    if (st == HORA_OK && file->fd >= 0)
        st = copy(file->fd, fd, file->at, buf, file->path);
    if (st == HORA_OK)
        st = put_spaces(fd, file->at, room - tail, buf, file->path);
    if (st == HORA_OK)
        st = write_at(fd, file->page, file->len, file->at, file->path);
    if (st == HORA_OK)
        st = write_at(fd, closing, tail, room - tail, file->path);
    free(buf);
    return st;
}

/* Puts a file of `room` bytes in this one's place. */
static hora_status_t replace(hora_trace_file_t *file, size_t room) {
    hora_status_t st;
    int           fd;
    unlink(file->part); /* of a process that was killed; a link there is not followed */
    fd = open(file->part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return hora_fail_errno(HORA_ERR_SYSTEM, errno, "timeline %s", file->path);
    st = fill(file, fd, room);
    if (st == HORA_OK && rename(file->part, file->path) != 0)
        st = hora_fail_errno(HORA_ERR_SYSTEM, errno, "timeline %s", file->path);
    if (st != HORA_OK) {
        unlink(file->part);
        close(fd);
        return st;
    }
    if (file->fd >= 0)
        close(file->fd);
    file->fd = fd;
    file->room = room;
    return HORA_OK;
}

static hora_status_t grow(hora_trace_file_t *file) {
    return replace(file, file->room + (file->room < ROOM_STEP ? file->room : ROOM_STEP));
}

/* ---- The door ------------------------------------------------------------------------------- */

static void delete(hora_trace_file_t *file) {
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file->part);
    free(file);
}

hora_status_t hora_trace_file_create(const char *full, unsigned copy, const char *first,
                                     size_t len, hora_trace_file_t **file_p) {
    static atomic_uint created;
    hora_trace_file_t *file = calloc(1, sizeof(*file));
    hora_status_t      st;
    if (file == NULL)
        return hora_fail(HORA_ERR_NO_MEMORY, "timeline %s", full);
    file->fd = -1;
    file->path = strdup(full);
    if (file->path == NULL || asprintf(&file->part, "%s.part-%ld-%x-%u", full, (long)getpid(), copy,
                                       atomic_fetch_add(&created, 1)) < 0) {
        file->part = NULL;
        delete(file);
        return hora_fail(HORA_ERR_NO_MEMORY, "timeline %s", full);
    }
    memcpy(file->page, "[\n", 2);
    memcpy(file->page + 2, first, len);
    file->len = len + 2;
    st = replace(file, ROOM_FIRST);
    if (st == HORA_OK)
        st = hora_trace_file_flush(file);
    if (st != HORA_OK) {
        delete(file);
        return st;
    }
    *file_p = file;
    return HORA_OK;
}

hora_status_t hora_trace_file_flush(hora_trace_file_t *file) {
    hora_status_t st = write_at(file->fd, file->page, file->len, file->at, file->path);
    if (st == HORA_OK) {
        file->at += file->len;
        file->len = 0;
    }
    return st;
}

hora_status_t hora_trace_file_put(hora_trace_file_t *file, const char *element, size_t len) {
    size_t        left = PAGE - file->at % PAGE - file->len;
    hora_status_t st = HORA_OK;
    if (len > HORA_TRACE_ELEMENT_MAX)
        return hora_fail(HORA_ERR_INTERNAL, "an element of %zu bytes in a timeline", len);
    if (left < len + 2) {
        st = hora_trace_file_flush(file);
        if (st == HORA_OK)
            file->at += left;
    }
    if (st == HORA_OK && file->len == 0 && file->at + PAGE >= file->room)
        st = grow(file);
    if (st != HORA_OK)
        return st;
    memcpy(file->page + file->len, ",\n", 2);
    memcpy(file->page + file->len + 2, element, len);
    file->len += len + 2;
    return HORA_OK;
}

hora_status_t hora_trace_file_close(hora_trace_file_t *file) {
    hora_status_t st;
    if (file == NULL)
        return HORA_OK;
    st = hora_trace_file_flush(file);
    if (st == HORA_OK)
        st = replace(file, file->at + sizeof(closing) - 1);
    delete(file);
    return st;
}
