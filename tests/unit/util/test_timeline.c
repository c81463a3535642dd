/*
 * src/util/timeline, trace_writer and trace_file: the file is JSON at every moment, slices nest,
 * names are escaped, and what cannot be recorded is counted.
 */
#include "util/clock.h"
#include "util/log.h"
#include "util/timeline.h"
#include "util/trace_file.h"
#include "util/trace_writer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[64], path[128];

static int setup(void **state) {
    (void)state;
    strcpy(folder, "/tmp/hora-timeline-XXXXXX");
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/trace.json", folder);
    return 0;
}

static int teardown(void **state) {
    char command[128];
    (void)state;
    snprintf(command, sizeof(command), "rm -rf '%s'", folder);
    return system(command);
}

/* ---- A small JSON parser: is the text one array, and how many elements has it? ------------- */

typedef struct parser {
    const unsigned char *at, *end;
} parser_t;

static void skip_space(parser_t *p) {
    while (p->at < p->end && (*p->at == ' ' || *p->at == '\n'))
        p->at++;
}

static bool take(parser_t *p, char c) {
    skip_space(p);
    if (p->at == p->end || *p->at != (unsigned char)c)
        return false;
    p->at++;
    return true;
}

static bool hex(const unsigned char *p) {
    for (int i = 0; i < 4; i++)
        if (strchr("0123456789abcdefABCDEF", p[i]) == NULL || p[i] == '\0')
            return false;
    return true;
}

/* Well-formed UTF-8 by the rule of RFC 3629, written apart from the code under test. */
static size_t character(const unsigned char *p, size_t left) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t                n = *p < 0x80 ? 1
                              : *p >> 5 == 6 ? 2
                              : *p >> 4 == 14 ? 3
                              : *p >> 3 == 30 ? 4 : 0;
    uint32_t              value = n > 1 ? *p & (0x7fu >> n) : 0;
    if (n == 0 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++) {
        if (p[i] >> 6 != 2)
            return 0;
        value = value << 6 | (p[i] & 0x3f);
    }
    if (n > 1 && (value < least[n] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000)))
        return 0;
    return n;
}

static bool string(parser_t *p) {
    if (!take(p, '"'))
        return false;
    while (p->at < p->end && *p->at != '"') {
        size_t n = character(p->at, (size_t)(p->end - p->at));
        if (n == 0 || *p->at < 0x20)
            return false;
        if (*p->at == '\\') {
            if (p->end - p->at < 7)
                return false;
            n = p->at[1] == 'u' ? 6 : 2;
            if (p->at[1] == 'u' ? !hex(p->at + 2) : strchr("\"\\/bfnrt", p->at[1]) == NULL)
                return false;
        }
        p->at += n;
    }
    return p->at++ < p->end;
}

static bool number(parser_t *p) {
    const unsigned char *begin;
    skip_space(p);
    begin = p->at;
    while (p->at < p->end && ((*p->at >= '0' && *p->at <= '9') || *p->at == '-' || *p->at == '.'))
        p->at++;
    return p->at > begin;
}

static bool value(parser_t *p);

static bool object(parser_t *p) {
    if (take(p, '}'))
        return true;
    do
        if (!string(p) || !take(p, ':') || !value(p))
            return false;
    while (take(p, ','));
    return take(p, '}');
}

static bool value(parser_t *p) {
    skip_space(p);
    if (p->at == p->end)
        return false;
    if (*p->at == '"')
        return string(p);
    return take(p, '{') ? object(p) : number(p);
}

/* Elements of the array, or -1 if it is not JSON. */
static int elements(const char *text, size_t len) {
    parser_t p = {(const unsigned char *)text, (const unsigned char *)text + len};
    int      n = 0;
    if (!take(&p, '['))
        return -1;
    do {
        if (!value(&p))
            return -1;
        n++;
    } while (take(&p, ','));
    if (!take(&p, ']'))
        return -1;
    skip_space(&p);
    return p.at == p.end ? n : -1;
}

static char *contents(const char *name, size_t *len_p) {
    struct stat st;
    int         fd = open(name, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    char *text = calloc(1, (size_t)st.st_size + 1);
    *len_p = (size_t)st.st_size;
    assert_int_equal(read(fd, text, *len_p), st.st_size);
    close(fd);
    return text;
}

static int elements_of(const char *name) {
    size_t len;
    char  *text = contents(name, &len);
    int    n = elements(text, len);
    free(text);
    return n;
}

static bool has(const char *what) {
    size_t len;
    char  *text = contents(path, &len);
    bool   found = strstr(text, what) != NULL;
    free(text);
    return found;
}

/* As strstr; but that of the sanitizers looks for the end of the text each time. */
static const char *next(const char *at, const char *end, const char *what) {
    return memmem(at, (size_t)(end - at), what, strlen(what));
}

static int count_of(const char *what) {
    size_t len;
    char  *text = contents(path, &len);
    int    n = 0;
    for (const char *at = text; (at = next(at, text + len, what)) != NULL; at++)
        n++;
    free(text);
    return n;
}

/* ---- The file ------------------------------------------------------------------------------- */

/* After each element, with all lengths, over several growths. */
static void file__valid_after_each_element(void **state) {
    hora_trace_file_t *file;
    char               element[HORA_TRACE_ELEMENT_MAX + 1];
    unsigned           seed = 1;
    (void)state;
    assert_int_equal(hora_trace_file_create(path, 0, "{}", 2, &file), HORA_OK);
    assert_int_equal(elements_of(path), 1);
    for (int i = 0; i < 240; i++) {
        size_t len = 2 + (size_t)rand_r(&seed) % (i % 2 == 0 ? HORA_TRACE_ELEMENT_MAX - 1 : 60);
        memset(element, 'x', len);
        element[0] = element[len - 1] = '"';
        assert_int_equal(hora_trace_file_put(file, element, len), HORA_OK);
        if (i % 4 == 0) {
            assert_int_equal(hora_trace_file_flush(file), HORA_OK);
            assert_int_equal(elements_of(path), i + 2);
        }
    }
    assert_int_equal(hora_trace_file_close(file), HORA_OK);
    assert_int_equal(elements_of(path), 241);
}

/* Elements that end just before, at and behind the border of a page. */
static void file__borders_of_pages(void **state) {
    char element[HORA_TRACE_ELEMENT_MAX + 1];
    (void)state;
    for (size_t last = 84; last < 96; last++) {
        hora_trace_file_t *file;
        assert_int_equal(hora_trace_file_create(path, 0, "{}", 2, &file), HORA_OK);
        for (int i = 0; i < 60; i++) {
            size_t len = i % 2 ? last : 4000 - 2 * 2 - 2;
            memset(element, 'x', len);
            element[0] = element[len - 1] = '"';
            assert_int_equal(hora_trace_file_put(file, element, len), HORA_OK);
            if (last % 2)
                assert_int_equal(hora_trace_file_flush(file), HORA_OK);
        }
        assert_int_equal(hora_trace_file_flush(file), HORA_OK);
        assert_int_equal(elements_of(path), 61);
        assert_int_equal(hora_trace_file_close(file), HORA_OK);
        assert_int_equal(elements_of(path), 61);
    }
}

static void file__no_spaces_left_at_the_end(void **state) {
    hora_trace_file_t *file;
    size_t             len;
    (void)state;
    assert_int_equal(hora_trace_file_create(path, 0, "{}", 2, &file), HORA_OK);
    assert_int_equal(hora_trace_file_put(file, "1", 1), HORA_OK);
    assert_int_equal(hora_trace_file_close(file), HORA_OK);
    char *text = contents(path, &len);
    assert_string_equal(text, "[\n{},\n1\n]\n");
    free(text);
}

static void file__paths(void **state) {
    char  *full, name[256], link[256], here[256];
    (void)state;
    snprintf(name, sizeof(name), "%s/none/t.json", folder);
    assert_int_equal(hora_trace_file_resolve(name, &full), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), name));
    assert_non_null(strstr(hora_last_error(), strerror(ENOENT)));
    assert_int_equal(hora_trace_file_resolve("/dev/null", &full), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), "no regular file"));
    assert_int_equal(hora_trace_file_resolve("", &full), HORA_ERR_SYSTEM);
    snprintf(name, sizeof(name), "%s/", folder);
    assert_int_equal(hora_trace_file_resolve(name, &full), HORA_ERR_SYSTEM);
    /* A link stays a link. */
    close(open(path, O_CREAT | O_WRONLY, 0600));
    snprintf(link, sizeof(link), "%s/link", folder);
    assert_int_equal(symlink(path, link), 0);
    assert_int_equal(hora_trace_file_resolve(link, &full), HORA_OK);
    assert_string_equal(full, path);
    free(full);
    assert_non_null(getcwd(here, sizeof(here)));
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(hora_trace_file_resolve("new.json", &full), HORA_OK);
    assert_int_equal(chdir(here), 0);
    snprintf(name, sizeof(name), "%s/new.json", folder);
    assert_string_equal(full, name);
    free(full);
}

/* The disk is full, so to say: what was written stays, and is JSON. */
static void file__that_may_not_grow(void **state) {
    (void)state;
    pid_t child = fork();
    if (child == 0) {
        hora_trace_file_t *file;
        struct rlimit      small = {100000, 100000};
        hora_status_t      st = HORA_OK;
        int                n = 1;
        signal(SIGXFSZ, SIG_IGN);
        hora_log_setup("off", false);
        if (setrlimit(RLIMIT_FSIZE, &small) != 0 ||
            hora_trace_file_create(path, 0, "{}", 2, &file) != HORA_OK)
            _exit(1);
        for (; st == HORA_OK && n < 100000; n++)
            st = hora_trace_file_put(file, "\"0123456789\"", 12);
        if (st != HORA_ERR_SYSTEM || strstr(hora_last_error(), strerror(EFBIG)) == NULL)
            _exit(2);
        _exit(elements_of(path) == n - 1 ? 0 : 3);
    }
    int ended;
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended));
    assert_int_equal(WEXITSTATUS(ended), 0);
    assert_true(elements_of(path) > 1000);
}

/* Killed at any moment, growing all the time. */
static void file__killed(void **state) {
    int most = 0;
    (void)state;
    for (int round = 0; round < 60; round++) {
        pid_t child = fork();
        if (child == 0) {
            hora_trace_file_t *file;
            if (hora_trace_file_create(path, 0, "{}", 2, &file) != HORA_OK)
                _exit(1);
            for (;;) {
                for (int i = 0; i < round % 7 + 1; i++)
                    hora_trace_file_put(file, "{\"name\": \"some event\", \"ts\": 1}", 31);
                hora_trace_file_flush(file);
            }
        }
        usleep(2000u + 731u * (unsigned)round % 9000u);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        if (access(path, F_OK) != 0)
            continue;
        int n = elements_of(path);
        assert_true(n >= 1);
        most = n > most ? n : most;
    }
    assert_true(most > 1);
}

/* ---- Events as JSON ------------------------------------------------------------------------- */

static hora_trace_writer_t *writer_of(int rank) {
    hora_timeline_options_t o = {.path = path, .rank = rank, .size = 4, .host = "ho\"st",
                                 .clock_known = true};
    hora_trace_writer_t    *w;
    assert_int_equal(hora_trace_writer_create(&o, 1000, &w), HORA_OK);
    return w;
}

static hora_timeline_event_t event(hora_timeline_type_t type, const char *name) {
    static const int64_t shape[2] = {3, 4};
    return (hora_timeline_event_t){.type = type, .scope = 7, .op = "ALLREDUCE", .name = name,
                                   .name_len = strlen(name), .dtype = "float32", .shape = shape,
                                   .ndim = 2, .number = 1, .bytes = 48};
}

static void add(hora_trace_writer_t *w, uint64_t ns, hora_timeline_event_t e) {
    assert_int_equal(hora_trace_writer_add(w, ns, &e), HORA_OK);
}

static void phase(hora_trace_writer_t *w, uint64_t ns, const char *name, const char *activity) {
    hora_timeline_event_t e = event(HORA_TIMELINE_ACTIVITY, name);
    e.activity = activity;
    add(w, ns, e);
}

/* Every B has its E. */
static void expect_balance(void) {
    assert_true(elements_of(path) > 1);
    assert_int_equal(count_of("\"ph\": \"B\""), count_of("\"ph\": \"E\""));
}

static void writer__a_whole_round(void **state) {
    hora_trace_writer_t *w = writer_of(2);
    (void)state;
    add(w, 2000, event(HORA_TIMELINE_ENQUEUED, "grad"));
    add(w, 2500, event(HORA_TIMELINE_READY, "grad"));
    add(w, 3000, event(HORA_TIMELINE_REPORTED, "grad"));
    add(w, 4000, event(HORA_TIMELINE_AGREED, "grad"));
    add(w, 5000, event(HORA_TIMELINE_STARTED, "grad"));
    phase(w, 5001, "grad", "MEMCPY_IN_FUSION_BUFFER");
    phase(w, 5002, "grad", "SHM_ALLREDUCE");
    phase(w, 5003, "grad", NULL);
    add(w, 1235567, event(HORA_TIMELINE_ENDED, "grad"));
    assert_int_equal(hora_trace_writer_close(w, 2000000), HORA_OK);
    expect_balance();
    assert_true(has("\"rank\": 2, \"size\": 4, \"host\": \"ho\\\"st\", "
                    "\"clock_offset_in_micros\": 0"));
    assert_true(has("\"start_time_since_epoch_in_micros\": "));
    assert_true(has("{\"ph\": \"M\", \"name\": \"process_name\", \"pid\": 1, "
                    "\"args\": {\"name\": \"grad\"}}"));
    assert_true(has("{\"ph\": \"M\", \"name\": \"process_sort_index\", \"pid\": 1, "
                    "\"args\": {\"sort_index\": 1}}"));
    assert_true(has("{\"ph\": \"B\", \"ts\": 1.000, \"pid\": 1, \"tid\": 0, "
                    "\"name\": \"NEGOTIATE_ALLREDUCE\"}"));
    assert_true(has("{\"ph\": \"X\", \"ts\": 1.500, \"pid\": 1, \"tid\": 0, \"dur\": 0, "
                    "\"name\": \"1\"}"));
    assert_true(has("{\"ph\": \"B\", \"ts\": 4.001, \"pid\": 1, \"tid\": 0, "
                    "\"name\": \"MEMCPY_IN_FUSION_BUFFER\"}"));
    assert_true(has("{\"ph\": \"E\", \"ts\": 1234.567, \"pid\": 1, \"tid\": 0, "
                    "\"args\": {\"dtype\": \"float32\", \"shape\": \"[3, 4]\", \"bytes\": 48}}"));
    assert_int_equal(count_of("\"ph\": \"B\""), 5); /* negotiate, queue, op, two activities */
}

/* Any order of events, as after losses, gives slices that nest. */
static void writer__any_order(void **state) {
    static const char   *names[] = {"a", "b"};
    hora_trace_writer_t *w = writer_of(0);
    unsigned             seed = 7;
    (void)state;
    for (int i = 0; i < 5000; i++) {
        hora_timeline_event_t e = event((hora_timeline_type_t)(rand_r(&seed) % 9), names[i % 2]);
        e.activity = rand_r(&seed) % 3 ? "SHM_ALLREDUCE" : NULL;
        e.text = rand_r(&seed) % 3 ? NULL : "it \"failed\"";
        add(w, 2000 + (uint64_t)i, e);
    }
    assert_int_equal(hora_trace_writer_close(w, 10000), HORA_OK);
    expect_balance();
}

static void writer__begun_in_the_middle(void **state) {
    hora_trace_writer_t *w = writer_of(0);
    (void)state;
    add(w, 2000, event(HORA_TIMELINE_ENDED, "over"));
    add(w, 2000, event(HORA_TIMELINE_AGREED, "over"));
    phase(w, 2001, "amid", "TCP_ALLREDUCE");
    add(w, 2002, event(HORA_TIMELINE_ENDED, "amid"));
    assert_int_equal(hora_trace_writer_close(w, 3000), HORA_OK);
    expect_balance();
    assert_int_equal(count_of("\"ph\": \"B\""), 2);
}

static void writer__one_name_in_two_engines(void **state) {
    hora_trace_writer_t  *w = writer_of(0);
    hora_timeline_event_t e = event(HORA_TIMELINE_STARTED, "x");
    (void)state;
    add(w, 2000, e);
    e.scope = 8;
    e.label = "ranks 0, 2: ";
    add(w, 2000, e);
    assert_int_equal(hora_trace_writer_close(w, 3000), HORA_OK);
    expect_balance();
    assert_true(has("\"pid\": 1, \"args\": {\"name\": \"x\"}"));
    assert_true(has("\"pid\": 2, \"args\": {\"name\": \"ranks 0, 2: x\"}"));
}

static void writer__names_of_all_kinds(void **state) {
    hora_trace_writer_t *w = writer_of(0);
    char                 name[3000];
    unsigned             seed = 3;
    (void)state;
    for (int c = 1; c < 256; c++) {
        snprintf(name, sizeof(name), "n%c", c);
        add(w, 2000, event(HORA_TIMELINE_STARTED, name));
    }
    static const char *const odd[] = {
        "quote\"back\\slash\n\t\x01\x7f", "ünï→𝄞", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
        "cut \xe2\x82", "\xf0\x9d\x84", "</script>", "\xff\xfe"};
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
        add(w, 2000, event(HORA_TIMELINE_STARTED, odd[i]));
    for (int i = 0; i < 300; i++) { /* noise, also far too long */
        size_t len = 1 + (size_t)rand_r(&seed) % (sizeof(name) - 2);
        for (size_t k = 0; k < len; k++)
            name[k] = (char)(1 + rand_r(&seed) % 255);
        name[len] = '\0';
        hora_timeline_event_t e = event(HORA_TIMELINE_ENDED, name);
        e.type = HORA_TIMELINE_STARTED;
        add(w, 2000, e);
        e.type = HORA_TIMELINE_ENDED;
        e.text = name;
        add(w, 2001, e);
    }
    memset(name, '\x01', 2000); /* each becomes six bytes */
    name[2000] = '\0';
    add(w, 2000, event(HORA_TIMELINE_STARTED, name));
    assert_int_equal(hora_trace_writer_close(w, 3000), HORA_OK);
    expect_balance();
    assert_true(has("\"quote\\\"back\\\\slash\\u000a\\u0009\\u0001\\u007f\""));
    assert_true(has("\"ünï→𝄞\""));
    assert_true(has("\"\xef\xbf\xbd\xef\xbf\xbd\"")); /* \xff\xfe */
}

static void writer__shapes(void **state) {
    hora_trace_writer_t  *w = writer_of(0);
    int64_t               shape[HORA_MAX_DIMS];
    hora_timeline_event_t e = event(HORA_TIMELINE_STARTED, "x");
    (void)state;
    for (int i = 0; i < HORA_MAX_DIMS; i++)
        shape[i] = INT64_MAX;
    add(w, 2000, e);
    e.type = HORA_TIMELINE_ENDED;
    e.shape = shape;
    e.ndim = HORA_MAX_DIMS;
    e.bytes = UINT64_MAX;
    add(w, 2001, e);
    e.type = HORA_TIMELINE_STARTED;
    add(w, 2002, e);
    e.type = HORA_TIMELINE_ENDED;
    e.ndim = 0;
    add(w, 2003, e);
    assert_int_equal(hora_trace_writer_close(w, 3000), HORA_OK);
    expect_balance();
    assert_true(has("9223372036854775807]\", \"bytes\": 18446744073709551615}"));
    assert_true(has("\"shape\": \"[]\""));
}

static void writer__clock_and_cycles(void **state) {
    hora_trace_writer_t  *w = writer_of(0);
    hora_timeline_event_t e = event(HORA_TIMELINE_CLOCK, "");
    (void)state;
    e.number = -1234567;
    e.bytes = 50000;
    add(w, 2000, e);
    add(w, 2001, event(HORA_TIMELINE_CYCLE, ""));
    assert_int_equal(hora_trace_writer_lost(w, 2002, 5), HORA_OK);
    assert_int_equal(hora_trace_writer_losses(w), 5);
    assert_int_equal(hora_trace_writer_close(w, 3000), HORA_OK);
    assert_int_equal(elements_of(path), 5);
    assert_true(has("\"clock_offset_in_micros\": -1234.567, \"clock_error_in_micros\": 50.000"));
    assert_true(has("\"name\": \"CYCLE_START\", \"s\": \"g\"}"));
    assert_true(has("\"name\": \"DROPPED_EVENTS\", \"s\": \"g\", \"args\": {\"count\": 5}"));
}

/* ---- The whole ------------------------------------------------------------------------------ */

static hora_timeline_t timeline;

static hora_status_t start(const char *name) {
    hora_timeline_options_t o = {.path = name, .size = 1, .host = "here", .clock_known = true};
    return hora_timeline_begin(&timeline, &o);
}

static void push(const char *name, int rounds) {
    for (int i = 0; i < rounds; i++) {
        hora_timeline_event_t e = event(HORA_TIMELINE_STARTED, name);
        if (hora_timeline_on(&timeline))
            hora_timeline_push(&timeline, &e);
        e.type = HORA_TIMELINE_ENDED;
        if (hora_timeline_on(&timeline))
            hora_timeline_push(&timeline, &e);
    }
}

static void timeline__on_and_off(void **state) {
    (void)state;
    hora_timeline_init(&timeline);
    assert_false(hora_timeline_on(&timeline));
    assert_int_equal(hora_timeline_end(&timeline), HORA_OK);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(start(path), HORA_OK);
        assert_true(hora_timeline_on(&timeline));
        push("x", i);
        assert_int_equal(hora_timeline_end(&timeline), HORA_OK);
        assert_false(hora_timeline_on(&timeline));
        push("x", 1); /* nobody listens */
        assert_int_equal(count_of("\"ph\": \"E\""), i);
        expect_balance();
    }
    hora_timeline_destroy(&timeline);
}

static void timeline__errors(void **state) {
    hora_timeline_t         other;
    hora_timeline_options_t o = {.path = path, .size = 1, .host = "here"};
    char                    name[256];
    (void)state;
    hora_timeline_init(&timeline);
    hora_timeline_init(&other);
    snprintf(name, sizeof(name), "%s/none/t.json", folder);
    assert_int_equal(start(name), HORA_ERR_SYSTEM);
    assert_false(hora_timeline_on(&timeline));
    assert_int_equal(start(path), HORA_OK);
    assert_int_equal(start(name), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), path));
    assert_int_equal(hora_timeline_begin(&other, &o), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "being written already"));
    hora_timeline_destroy(&timeline); /* ends it too */
    assert_true(elements_of(path) == 2);
    assert_int_equal(hora_timeline_begin(&other, &o), HORA_OK);
    hora_timeline_destroy(&other);
}

/* A folder that may not be written into; root may write anywhere. */
static void timeline__no_permission(void **state) {
    (void)state;
    if (geteuid() == 0)
        skip();
    hora_timeline_init(&timeline);
    assert_int_equal(chmod(folder, 0500), 0);
    assert_int_equal(start(path), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), strerror(EACCES)));
    assert_int_equal(chmod(folder, 0700), 0);
    hora_timeline_destroy(&timeline);
}

static int fill_the_disk(void) {
    struct rlimit small;
    char          other[160];
    signal(SIGXFSZ, SIG_IGN);
    hora_log_setup("off", false);
    snprintf(other, sizeof(other), "%s.again", path);
    hora_timeline_init(&timeline);
    if (getrlimit(RLIMIT_FSIZE, &small) != 0 || start(path) != HORA_OK)
        return 1;
    small.rlim_cur = 100000;
    if (setrlimit(RLIMIT_FSIZE, &small) != 0)
        return 2;
    for (int waited = 0; hora_timeline_on(&timeline) && waited < 5000; waited++) {
        push("a tensor", 100);
        usleep(1000);
    }
    small.rlim_cur = small.rlim_max;
    if (hora_timeline_on(&timeline) || setrlimit(RLIMIT_FSIZE, &small) != 0)
        return 3;
    if (start(other) != HORA_OK || !hora_timeline_on(&timeline))
        return 4;
    push("x", 20);
    if (hora_timeline_end(&timeline) != HORA_OK)
        return 5;
    return elements_of(other) > 40 && elements_of(path) > 40 ? 0 : 6;
}

/* After a full disk it can be started anew. */
static void timeline__again_after_a_full_disk(void **state) {
    int   ended;
    pid_t child = fork();
    (void)state;
    if (child == 0)
        _exit(fill_the_disk());
    assert_int_equal(waitpid(child, &ended, 0), child);
    assert_true(WIFEXITED(ended));
    assert_int_equal(WEXITSTATUS(ended), 0);
}

/* Soon after an event it is in the file, without an end. */
static void timeline__soon_in_the_file(void **state) {
    (void)state;
    hora_timeline_init(&timeline);
    assert_int_equal(start(path), HORA_OK);
    for (int i = 1; i <= 10; i++) {
        push("x", 1);
        for (int waited = 0; count_of("\"ph\": \"E\"") < i; waited++) {
            assert_true(waited < 5000);
            usleep(1000);
        }
        assert_true(elements_of(path) > 0);
    }
    hora_timeline_destroy(&timeline);
}

static void *pusher(void *arg) {
    char name[32];
    snprintf(name, sizeof(name), "of %s", (const char *)arg);
    push(name, 12000);
    return NULL;
}

/* Several threads push more than the writer takes, while it is started and stopped: what is not
 * written is counted. */
static void timeline__threads(void **state) {
    pthread_t threads[3];
    char     *names[3] = {"one", "two", "three"};
    (void)state;
    hora_log_setup("off", false);
    hora_timeline_init(&timeline);
    assert_int_equal(start(path), HORA_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, pusher, names[i]), 0);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(hora_timeline_end(&timeline), HORA_OK);
        assert_int_equal(start(path), HORA_OK);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    hora_timeline_destroy(&timeline);
    expect_balance();
}

static void timeline__overflow(void **state) {
    pthread_t threads[3];
    char     *names[3] = {"one", "two", "three"};
    size_t    len;
    int       written;
    long      lost = 0;
    (void)state;
    hora_log_setup("off", false);
    hora_timeline_init(&timeline);
    assert_int_equal(start(path), HORA_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, pusher, names[i]), 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    hora_timeline_destroy(&timeline);
    expect_balance();
    char *text = contents(path, &len);
    for (const char *at = text; (at = next(at, text + len, "\"count\": ")) != NULL; at++)
        lost += strtol(at + 9, NULL, 10);
    free(text);
    written = count_of("\"ph\": \"B\"");
    if (lost == 0) /* the writer has kept up */
        assert_int_equal(written, 36000);
    else
        assert_true(written < 36000 && 2L * written + lost >= 36000);
}

int main(void) {
#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(file__valid_after_each_element),
        TEST(file__borders_of_pages),
        TEST(file__no_spaces_left_at_the_end),
        TEST(file__paths),
        TEST(file__that_may_not_grow),
        TEST(file__killed),
        TEST(writer__a_whole_round),
        TEST(writer__any_order),
        TEST(writer__begun_in_the_middle),
        TEST(writer__one_name_in_two_engines),
        TEST(writer__names_of_all_kinds),
        TEST(writer__shapes),
        TEST(writer__clock_and_cycles),
        TEST(timeline__on_and_off),
        TEST(timeline__errors),
        TEST(timeline__no_permission),
        TEST(timeline__again_after_a_full_disk),
        TEST(timeline__soon_in_the_file),
        TEST(timeline__threads),
        TEST(timeline__overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
