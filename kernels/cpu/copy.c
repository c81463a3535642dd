/*
 * Copies memory; any thread.
 *
 * A streaming store does not read the line that it overwrites and leaves the caches alone. That
 * wins once source and destination together are larger than the last cache: one core of a Zen 4
 * with 32 MiB of it copies 16 MiB at 45 instead of 30 GB/s (read and written), 256 MiB at 37
 * instead of 24, but 4 MiB at 54 instead of 92. glibc does it too, but from far larger sizes on.
 *
 * A core that writes to lines which it has written before and another has read since waits for each of
 * them: 30 to 150 ns on a Zen 4. Lines that the other has written to since come in 4 to 5 ns. So a reader
 * who writes a byte back into each line that it has read, which costs it nothing, halves the time of
 * copies through shared memory (docs/performance.md).
 */
#include <stdint.h>
#include <string.h>

#include "isa.h"
#include "kernels.h"

#define LINE HORA_LINE

void hora_kernel_fetch(void *dst, const void *src, size_t bytes)
{
    hora_isa_current()->copy(dst, src, bytes, true);
}

void hora_kernel_put(void *dst, const void *src, size_t bytes)
{
    hora_isa_current()->copy(dst, src, bytes, false);
}

/* Of one line. */
static void take_some(uint8_t *to, uint8_t *from, size_t bytes)
{
    memcpy(to, from, bytes);
    *(volatile uint8_t *)from = *from;
}

void hora_kernel_take(void *dst, void *src, size_t bytes)
{
    uint8_t *to = dst, *from = src;
    size_t   head = -(uintptr_t)from % LINE;
    head = head < bytes ? head : bytes;
    if (head > 0) {
        take_some(to, from, head);
    }
    to += head;
    from += head;
    bytes -= head;
    for (; bytes >= LINE; to += LINE, from += LINE, bytes -= LINE) {
        take_some(to, from, LINE); /* of a constant length: no call */
    }
    if (bytes > 0) {
        take_some(to, from, bytes);
    }
}

#if defined(__x86_64__)
#include <emmintrin.h>

#define STREAM_BYTES ((size_t)16 << 20)
#define PART_BYTES   1024 /* a shorter part is not worth the fence */

/* to: aligned to LINE. */
static void stream_lines(char *to, const char *from, size_t lines)
{
    for (size_t i = 0; i < lines * LINE; i += LINE) {
        __m128i a = _mm_loadu_si128((const __m128i *)(from + i));
        __m128i b = _mm_loadu_si128((const __m128i *)(from + i + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + i + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + i + 48));
        _mm_stream_si128((__m128i *)(to + i), a);
        _mm_stream_si128((__m128i *)(to + i + 16), b);
        _mm_stream_si128((__m128i *)(to + i + 32), c);
        _mm_stream_si128((__m128i *)(to + i + 48), d);
    }
    /* Streaming stores are not ordered with the flag that tells another rank of the data. */
    _mm_sfence();
}

static void copy_large(char *to, const char *from, size_t bytes)
{
    size_t head = -(uintptr_t)to % LINE;
    size_t lines = (bytes - head) / LINE;
    size_t streamed = head + lines * LINE;
    memcpy(to, from, head);
    stream_lines(to + head, from + head, lines);
    memcpy(to + streamed, from + streamed, bytes - streamed);
}

void hora_kernel_copy(void *dst, const void *src, size_t bytes)
{
    if (bytes >= STREAM_BYTES) {
        copy_large(dst, src, bytes);
    } else if (bytes > 0) {
        memcpy(dst, src, bytes);
    }
}

void hora_kernel_copy_part(void *dst, const void *src, size_t bytes)
{
    if (bytes >= PART_BYTES) {
        copy_large(dst, src, bytes);
    } else if (bytes > 0) {
        memcpy(dst, src, bytes);
    }
}
#else

void hora_kernel_copy(void *dst, const void *src, size_t bytes)
{
    if (bytes > 0) {
        memcpy(dst, src, bytes);
    }
}

void hora_kernel_copy_part(void *dst, const void *src, size_t bytes)
{
    hora_kernel_copy(dst, src, bytes);
}
#endif
