/*
 * src/transport/shm: heap, arena, mailboxes, and the shm link between two worlds of one process.
 */
#include "transport/shm/arena.h"
#include "transport/shm/heap.h"
#include "transport/shm/mailbox.h"
#include "transport/transport.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEAP_BYTES (8u << 20)

typedef struct heap_fixture {
    int          fd;
    uint8_t     *base;
    hora_heap_t *heap;
} heap_fixture_t;

static void heap_open(heap_fixture_t *f) {
    f->fd = memfd_create("test", MFD_CLOEXEC);
    assert_int_equal(ftruncate(f->fd, HEAP_BYTES), 0);
    f->base = mmap(NULL, HEAP_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    assert_ptr_not_equal(f->base, MAP_FAILED);
    assert_int_equal(hora_heap_create(f->fd, f->base, 4096, HEAP_BYTES, &f->heap), HORA_OK);
}

static void heap_close(heap_fixture_t *f) {
    hora_heap_destroy(f->heap);
    munmap(f->base, HEAP_BYTES);
    close(f->fd);
}

static void heap__random_blocks_never_overlap(void **state) {
    heap_fixture_t f;
    struct {
        uint8_t *ptr;
        size_t   len;
    } block[64] = {{0}};
    heap_open(&f);
    srand(7);
    for (int round = 0; round < 4000; round++) {
        int i = rand() % 64;
        if (block[i].ptr != NULL) {
            for (size_t b = 0; b < block[i].len; b += 97)
                assert_int_equal(block[i].ptr[b], i);
            assert_int_equal(hora_heap_free(f.heap, block[i].ptr), HORA_OK);
            block[i].ptr = NULL;
            continue;
        }
        block[i].len = (size_t)rand() % 60000 + 1;
        assert_int_equal(hora_heap_alloc(f.heap, block[i].len, (void **)&block[i].ptr), HORA_OK);
        assert_int_equal((uintptr_t)block[i].ptr % 64, 0);
        memset(block[i].ptr, i, block[i].len);
    }
    for (int i = 0; i < 64; i++)
        if (block[i].ptr != NULL)
            assert_int_equal(hora_heap_free(f.heap, block[i].ptr), HORA_OK);
    void *whole; /* everything has been merged again */
    assert_int_equal(hora_heap_alloc(f.heap, 4u << 20, &whole), HORA_OK);
    heap_close(&f);
}

static void heap__exhaustion_and_foreign_pointers(void **state) {
    heap_fixture_t f;
    void          *ptr = &f, *zero;
    heap_open(&f);
    assert_int_equal(hora_heap_alloc(f.heap, HEAP_BYTES, &ptr), HORA_ERR_NO_MEMORY);
    assert_ptr_equal(ptr, &f);
    assert_int_equal(hora_heap_alloc(f.heap, SIZE_MAX, &ptr), HORA_ERR_NO_MEMORY);
    assert_int_equal(hora_heap_free(f.heap, &f), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(hora_heap_alloc(f.heap, 0, &zero), HORA_OK);
    assert_int_equal(hora_heap_free(f.heap, (char *)zero + 64), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(hora_heap_free(f.heap, zero), HORA_OK);
    assert_int_equal(hora_heap_free(f.heap, zero), HORA_ERR_INVALID_ARGUMENT);
    heap_close(&f);
}

static void mailbox__stream_keeps_order_around_the_ring(void **state) {
    hora_mailbox_end_t out, in;
    size_t             bytes = sizeof(hora_mailbox_t) + 1000, sent = 0, got = 0;
    void              *memory = aligned_alloc(128, 4096);
    memset(memory, 0, 4096);
    hora_mailbox_open(&out, memory, bytes);
    hora_mailbox_open(&in, memory, bytes);
    srand(3);
    while (got < 200000) {
        uint8_t piece[1200];
        size_t  n = (size_t)rand() % 700, room = hora_mailbox_room(&out);
        assert_true(room <= 1000);
        n = n < room ? n : room;
        for (size_t i = 0; i < n; i++)
            piece[i] = (uint8_t)((sent + i) * 31);
        hora_mailbox_put(&out, piece, n);
        hora_mailbox_publish(&out);
        sent += n;
        n = hora_mailbox_ready(&in);
        assert_true(n <= 1000);
        n = n > 3 ? n - (size_t)rand() % 3 : n;
        hora_mailbox_take(&in, piece, n);
        hora_mailbox_release(&in);
        for (size_t i = 0; i < n; i++)
            assert_int_equal(piece[i], (uint8_t)((got + i) * 31));
        got += n;
    }
    free(memory);
}

static void mailbox__impossible_counter_is_seen(void **state) {
    hora_mailbox_end_t in;
    void              *memory = aligned_alloc(128, 4096);
    memset(memory, 0, 4096);
    hora_mailbox_open(&in, memory, 4096);
    atomic_store(&in.box->written, 1u << 20);
    assert_true(hora_mailbox_ready(&in) == SIZE_MAX);
    free(memory);
}

/* Two ranks of one host, in one process. */
typedef struct pair {
    hora_world_t *world[2];
    hora_link_t  *link[2];
} pair_t;

static void pair_open(pair_t *pair) {
    int fd[2];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(hora_world_create(i, 2, &pair->world[i]), HORA_OK);
        assert_int_equal(hora_arena_create(pair->world[i], i, 2, 64u << 20, &pair->world[i]->arena,
                                           &fd[i]), HORA_OK);
        pair->world[i]->peers[0].local = 0;
        pair->world[i]->peers[1].local = 1;
    }
    for (int i = 0; i < 2; i++) {
        hora_world_t *world = pair->world[i];
        assert_int_equal(hora_arena_map(world->arena, 1 - i, dup(fd[1 - i])), HORA_OK);
        world->bell = hora_arena_bell(world->arena, i);
        world->peers[1 - i].bell = hora_arena_bell(world->arena, 1 - i);
        world->peers[1 - i].eventfd = pair->world[1 - i]->eventfd;
        assert_int_equal(hora_transport_shm.open(world, &world->transports[0]), HORA_OK);
        world->ntransports = 1;
        assert_true(hora_transport_shm.reachable(world->transports[0], 1 - i, NULL, 0));
        assert_false(hora_transport_shm.reachable(world->transports[0], i, NULL, 0));
        assert_int_equal(hora_transport_shm.connect(world->transports[0], 1 - i, NULL, 0,
                                                    &pair->link[i]), HORA_OK);
    }
}

static void pair_close(pair_t *pair) {
    for (int i = 0; i < 2; i++) {
        hora_transport_shm.close(pair->world[i]->transports[0]);
        hora_arena_destroy(pair->world[i]->arena);
        hora_world_destroy(pair->world[i]);
    }
}

static void pair_progress(pair_t *pair, const hora_xfer_t *until) {
    for (int i = 0; i < 100000 && until->status == HORA_IN_PROGRESS; i++)
        for (int k = 0; k < 2; k++)
            hora_transport_shm.progress(pair->world[k]->transports[0], NULL);
    assert_int_not_equal(until->status, HORA_IN_PROGRESS);
}

static void link__messages_of_all_sizes(void **state) {
    static const size_t sizes[] = {0, 1, 31, 32, 33, 4096, 262144, 3000001};
    pair_t              pair;
    pair_open(&pair);
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        size_t      n = sizes[i];
        uint8_t    *a = malloc(n + 1), *b = calloc(n + 1, 1);
        hora_xfer_t send = {.buf = a, .len = n, .tag = 5}, recv = {.buf = b, .len = n, .tag = 5};
        for (size_t k = 0; k < n; k++)
            a[k] = (uint8_t)(k * 7 + i);
        hora_transport_shm.send(pair.link[0], &send);
        hora_transport_shm.recv(pair.link[1], &recv);
        pair_progress(&pair, &recv);
        pair_progress(&pair, &send);
        assert_int_equal(recv.status, HORA_OK);
        assert_int_equal(recv.moved, n);
        assert_memory_equal(a, b, n);
        free(a);
        free(b);
    }
    pair_close(&pair);
}

static void link__tags_in_other_order(void **state) {
    pair_t      pair;
    int         values[3] = {10, 11, 12}, got[3] = {0};
    hora_xfer_t send[3] = {{0}}, recv[3] = {{0}};
    pair_open(&pair);
    for (int i = 0; i < 3; i++) {
        send[i] = (hora_xfer_t){.buf = &values[i], .len = sizeof(int), .tag = (uint64_t)i};
        hora_transport_shm.send(pair.link[0], &send[i]);
    }
    for (int i = 2; i >= 0; i--) {
        recv[i] = (hora_xfer_t){.buf = &got[i], .len = sizeof(int), .tag = (uint64_t)i};
        hora_transport_shm.recv(pair.link[1], &recv[i]);
        pair_progress(&pair, &recv[i]);
        assert_int_equal(got[i], 10 + i);
    }
    pair_close(&pair);
}

static void link__cancelled_send_leaves_the_stream_whole(void **state) {
    pair_t      pair;
    size_t      n = 2000000; /* more than a mailbox holds: it stops half way */
    uint8_t    *big = calloc(n, 1), *into = calloc(n, 1);
    int         value = 42, got = 0;
    hora_xfer_t first = {.buf = big, .len = n, .tag = 1}, second = {.buf = &value, .len = 4, .tag = 2};
    hora_xfer_t unsent = {.buf = big, .len = n, .tag = 9};
    hora_xfer_t one = {.buf = into, .len = n, .tag = 1}, two = {.buf = &got, .len = 4, .tag = 2};
    memset(big, 7, n);
    pair_open(&pair);
    hora_transport_shm.send(pair.link[0], &first);
    hora_transport_shm.send(pair.link[0], &unsent);
    hora_transport_shm.send(pair.link[0], &second);
    assert_int_equal(first.status, HORA_IN_PROGRESS);
    hora_transport_shm.cancel(pair.link[0], &first);
    hora_transport_shm.cancel(pair.link[0], &unsent);
    free(big);
    hora_transport_shm.recv(pair.link[1], &one);
    hora_transport_shm.recv(pair.link[1], &two);
    pair_progress(&pair, &two);
    assert_int_equal(one.status, HORA_OK);
    assert_int_equal(into[n - 1], 7);
    assert_int_equal(got, 42);
    free(into);
    pair_close(&pair);
}

static void link__cancelled_receive_is_not_touched(void **state) {
    pair_t      pair;
    size_t      n = 1000000;
    uint8_t    *big = calloc(n, 1), *into = calloc(n, 1);
    int         value = 42, got = 0;
    hora_xfer_t first = {.buf = big, .len = n, .tag = 1}, second = {.buf = &value, .len = 4, .tag = 2};
    hora_xfer_t one = {.buf = into, .len = n, .tag = 1}, two = {.buf = &got, .len = 4, .tag = 2};
    memset(big, 7, n);
    pair_open(&pair);
    hora_transport_shm.recv(pair.link[1], &one);
    hora_transport_shm.send(pair.link[0], &first);
    hora_transport_shm.progress(pair.world[1]->transports[0], NULL);
    hora_transport_shm.cancel(pair.link[1], &one);
    free(into); /* a later write would be seen by the sanitizer */
    hora_transport_shm.send(pair.link[0], &second);
    hora_transport_shm.recv(pair.link[1], &two);
    pair_progress(&pair, &two);
    assert_int_equal(got, 42);
    free(big);
    pair_close(&pair);
}

static void link__garbage_fails_the_link(void **state) {
    pair_t             pair;
    hora_mailbox_end_t forged;
    int                got = 0;
    hora_xfer_t        recv = {.buf = &got, .len = 4, .tag = 2};
    size_t             bytes;
    pair_open(&pair);
    hora_transport_shm.recv(pair.link[1], &recv);
    void *box = hora_arena_mailbox(pair.world[0]->arena, 0, 1, &bytes);
    hora_mailbox_open(&forged, box, bytes);
    hora_mailbox_put(&forged, "................................", 32);
    hora_mailbox_publish(&forged);
    pair_progress(&pair, &recv);
    assert_int_equal(recv.status, HORA_ERR_PROTOCOL);
    assert_non_null(strstr(hora_last_error(), "rank 0"));
    pair_close(&pair);
}

static void arena__offsets(void **state) {
    pair_t   pair;
    void    *ptr;
    uint64_t offset;
    int      local = 0;
    pair_open(&pair);
    assert_int_equal(hora_arena_alloc(pair.world[0]->arena, 100, &ptr), HORA_OK);
    assert_true(hora_arena_offset(pair.world[0]->arena, ptr, 100, &offset));
    memcpy(ptr, "hello", 6);
    assert_string_equal(hora_arena_at(pair.world[1]->arena, 0, offset, 100), "hello");
    assert_false(hora_arena_offset(pair.world[0]->arena, &local, 4, &offset));
    assert_false(hora_arena_offset(pair.world[0]->arena, ptr, SIZE_MAX, &offset));
    assert_null(hora_arena_at(pair.world[1]->arena, 0, UINT64_MAX - 4, 100));
    assert_null(hora_arena_at(pair.world[1]->arena, 0, 0, 4)); /* the head is not the heap's */
    pair_close(&pair);
}

static void arena__refuses_a_foreign_memfd(void **state) {
    pair_t pair;
    int    fd = memfd_create("foreign", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(hora_world_create(0, 2, &pair.world[0]), HORA_OK);
    hora_arena_t *arena;
    int           own;
    assert_int_equal(hora_arena_create(pair.world[0], 0, 2, 64u << 20, &arena, &own), HORA_OK);
    assert_int_equal(hora_arena_map(arena, 1, dup(fd)), HORA_ERR_PROTOCOL); /* empty */
    assert_int_equal(ftruncate(fd, 64 << 20), 0);
    assert_int_equal(hora_arena_map(arena, 1, dup(fd)), HORA_ERR_PROTOCOL); /* not sealed */
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
    assert_int_equal(hora_arena_map(arena, 1, dup(fd)), HORA_ERR_PROTOCOL); /* no head */
    assert_int_equal(hora_arena_map(arena, 5, fd), HORA_ERR_PROTOCOL);
    hora_arena_destroy(arena);
    hora_world_destroy(pair.world[0]);
}

static void arena__says_how_much_it_needs(void **state) {
    hora_world_t *world;
    hora_arena_t *arena;
    int           own;
    assert_int_equal(hora_world_create(0, 2, &world), HORA_OK);
    assert_int_equal(hora_arena_create(world, 0, 2, 4096, &arena, &own), HORA_ERR_INVALID_ARGUMENT);
    assert_non_null(strstr(hora_last_error(), "HORA_ARENA_SIZE=4096 is too small"));
    assert_non_null(strstr(hora_last_error(), "2097152"));
    assert_int_equal(hora_arena_create(world, 0, 2, 2097152, &arena, &own), HORA_OK);
    hora_arena_destroy(arena);
    hora_world_destroy(world);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heap__random_blocks_never_overlap),
        cmocka_unit_test(heap__exhaustion_and_foreign_pointers),
        cmocka_unit_test(mailbox__stream_keeps_order_around_the_ring),
        cmocka_unit_test(mailbox__impossible_counter_is_seen),
        cmocka_unit_test(link__messages_of_all_sizes),
        cmocka_unit_test(link__tags_in_other_order),
        cmocka_unit_test(link__cancelled_send_leaves_the_stream_whole),
        cmocka_unit_test(link__cancelled_receive_is_not_touched),
        cmocka_unit_test(link__garbage_fails_the_link),
        cmocka_unit_test(arena__offsets),
        cmocka_unit_test(arena__refuses_a_foreign_memfd),
        cmocka_unit_test(arena__says_how_much_it_needs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
