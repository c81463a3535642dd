/*
 * HORA_OFFLOAD=mpi through the public interface: every type and operation, scales, communicators of
 * some ranks, operations in flight, and joining again and again in one process. Run by run.py under
 * mpirun. The same program must pass without the offload.
 */
#include <hora/hora.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT 1000

static hora_comm_t *world;
static int          rank, size;

static _Noreturn void die(int line, const char *what) {
    fprintf(stderr, "FAIL rank %d, line %d: %s (last error: %s)\n", rank, line, what,
            hora_last_error());
    _exit(1);
}
#define CHECK(what)                                                                               \
    do {                                                                                          \
        if (!(what))                                                                              \
            die(__LINE__, #what);                                                                 \
    } while (0)

static double get(const void *buf, hora_dtype_t dtype, size_t i) {
    switch (dtype) {
    case HORA_BOOL:
    case HORA_UINT8: return ((const uint8_t *)buf)[i];
    case HORA_INT8: return ((const int8_t *)buf)[i];
    case HORA_INT16: return ((const int16_t *)buf)[i];
    case HORA_UINT16: return ((const uint16_t *)buf)[i];
    case HORA_INT32: return ((const int32_t *)buf)[i];
    case HORA_UINT32: return ((const uint32_t *)buf)[i];
    case HORA_INT64: return (double)((const int64_t *)buf)[i];
    case HORA_UINT64: return (double)((const uint64_t *)buf)[i];
    case HORA_FLOAT32: return ((const float *)buf)[i];
    case HORA_FLOAT64: return ((const double *)buf)[i];
    default: abort();
    }
}

static void put(void *buf, hora_dtype_t dtype, size_t i, int value) {
    switch (dtype) {
    case HORA_BOOL:
    case HORA_UINT8: ((uint8_t *)buf)[i] = (uint8_t)value; break;
    case HORA_INT8: ((int8_t *)buf)[i] = (int8_t)value; break;
    case HORA_INT16: ((int16_t *)buf)[i] = (int16_t)value; break;
    case HORA_UINT16: ((uint16_t *)buf)[i] = (uint16_t)value; break;
    case HORA_INT32: ((int32_t *)buf)[i] = value; break;
    case HORA_UINT32: ((uint32_t *)buf)[i] = (uint32_t)value; break;
    case HORA_INT64: ((int64_t *)buf)[i] = value; break;
    case HORA_UINT64: ((uint64_t *)buf)[i] = (uint64_t)value; break;
    case HORA_FLOAT32: ((float *)buf)[i] = (float)value; break;
    case HORA_FLOAT64: ((double *)buf)[i] = value; break;
    default: abort();
    }
}

/* Small enough that no sum or product of eight ranks leaves int8. */
static int input(hora_dtype_t dtype, int r, size_t i) {
    int value = (int)((i + (size_t)r) % 3);
    return dtype == HORA_BOOL ? value == 0 : value + (r < 2);
}

static int combine(hora_dtype_t dtype, hora_op_t op, int a, int b) {
    if (dtype == HORA_BOOL)
        op = op == HORA_SUM || op == HORA_MAX ? HORA_BOR
             : op == HORA_PRODUCT || op == HORA_MIN ? HORA_BAND : op;
    switch (op) {
    case HORA_MIN: return a < b ? a : b;
    case HORA_MAX: return a > b ? a : b;
    case HORA_PRODUCT: return a * b;
    case HORA_BAND: return a & b;
    case HORA_BOR: return a | b;
    case HORA_BXOR: return a ^ b;
    default: return a + b;
    }
}

static void check_one(hora_comm_t *comm, hora_dtype_t dtype, hora_op_t op, size_t count,
                      int in_place) {
    static double in[COUNT], out[COUNT];
    int           n = hora_comm_size(comm), me = hora_comm_rank(comm);
    for (size_t i = 0; i < count; i++)
        put(in, dtype, i, input(dtype, me, i));
    CHECK(hora_allreduce(comm, in, in_place ? (void *)in : out, count, dtype, op, NULL) == HORA_OK);
    for (size_t i = 0; i < count; i++) {
        int    value = input(dtype, 0, i);
        double want;
        for (int r = 1; r < n; r++)
            value = combine(dtype, op, value, input(dtype, r, i));
        want = op != HORA_AVERAGE      ? value
               : dtype == HORA_FLOAT32 ? (double)((float)value / (float)n)
               : dtype == HORA_FLOAT64 ? (double)value / n
                                       : value / n;
        CHECK(get(in_place ? in : out, dtype, i) == want);
    }
}

static void check_all(hora_comm_t *comm) {
    static const size_t counts[] = {0, 1, 7, COUNT};
    for (int dtype = 0; dtype < HORA_DTYPE_COUNT; dtype++)
        for (int op = 0; op < HORA_OP_COUNT; op++)
            for (int k = 0; k < 8; k++)
                if (hora_op_supported(dtype, op) && op != HORA_ADASUM && dtype != HORA_FLOAT16 &&
                    dtype != HORA_BFLOAT16 && dtype < HORA_FLOAT8_E4M3)
                    check_one(comm, dtype, op, counts[k / 2], k % 2);
}

static void check_scales(void) {
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    float               x[3] = {1, 2, 4}, y[3];
    int32_t             i = 10;
    options.prescale = 0.5;
    options.postscale = 8;
    CHECK(hora_allreduce(world, x, y, 3, HORA_FLOAT32, HORA_SUM, &options) == HORA_OK);
    CHECK(y[0] == 4 * size && y[1] == 8 * size && y[2] == 16 * size && x[2] == 4);
    CHECK(hora_allreduce(world, &i, &i, 1, HORA_INT32, HORA_SUM, &options) == HORA_OK);
    CHECK(i == 40 * size);
}

static void check_nan(void) {
    float x = rank == size - 1 ? NAN : 1;
    CHECK(hora_allreduce(world, &x, &x, 1, HORA_FLOAT32, HORA_MAX, NULL) == HORA_OK && isnan(x));
}

/* Rank 0 waits for the started operation first, the others call the next one first. */
static void check_in_flight(void) {
    static float        x[100000], y[5];
    hora_request_t     *request;
    hora_call_options_t options = HORA_CALL_OPTIONS_INIT;
    for (int i = 0; i < 100000; i++)
        x[i] = 1;
    for (int i = 0; i < 5; i++)
        y[i] = 2;
    options.request_p = &request;
    CHECK(hora_allreduce(world, x, x, 100000, HORA_FLOAT32, HORA_SUM, &options) == HORA_OK);
    if (rank == 0)
        CHECK(hora_request_wait(request) == HORA_OK);
    CHECK(hora_allreduce(world, y, y, 5, HORA_FLOAT32, HORA_SUM, NULL) == HORA_OK);
    if (rank != 0)
        CHECK(hora_request_wait(request) == HORA_OK);
    CHECK(x[0] == size && x[99999] == size && y[4] == 2 * size);
}

static void check_split(void) {
    hora_comm_t *part;
    CHECK(hora_comm_split(world, rank % 2, -rank, &part) == HORA_OK);
    check_all(part);
    CHECK(hora_comm_free(part) == HORA_OK);
}

int main(void) {
    for (int round = 0; round < 3; round++) {
        CHECK(hora_comm_create(NULL, &world) == HORA_OK);
        rank = hora_comm_rank(world);
        size = hora_comm_size(world);
        if (getenv("EXPECT_TRANSPORT") != NULL && size > 1)
            CHECK(strcmp(hora_comm_transport(world, !rank), getenv("EXPECT_TRANSPORT")) == 0);
        check_all(world);
        check_scales();
        check_nan();
        check_in_flight();
        check_split();
        check_split();
        CHECK(hora_comm_free(world) == HORA_OK);
    }
    if (rank == 0)
        printf("PASS offload, %d ranks\n", size);
    return 0;
}
