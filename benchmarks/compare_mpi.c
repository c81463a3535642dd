/*
 * hora beside an MPI in one run: allreduce of float32, same buffers, the two interleaved call by call,
 * buffers rewritten before every call. Built by benchmarks/compare with the mpicc of the MPI to compare
 * with, and started by its mpirun:
 *
 *     mpirun -np 2 compare_mpi [--json FILE] [--rounds N] [SIZE...]
 *
 * Time of a call: from a barrier to the end of the slowest rank (MPI_MAX over ranks); the median over
 * calls is printed. Columns: MPI_Allreduce on private buffers, hora on private buffers, hora on buffers
 * from hora_alloc, each in place and in microseconds; then the ratios MPI / hora.
 */
#include <hora/hora.h>

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KINDS    3
#define SIZES    32
#define SECONDS  1.5 /* about so long for one size */
#define CALLS    20000

typedef struct setup {
    hora_comm_t *comm;
    int          rank, nranks;
    float       *buf[2]; /* private, arena */
    double      *times[KINDS];
} setup_t;

static const char *const kinds[KINDS] = {"mpi", "hora", "hora_arena"};

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n) {
    qsort(values, (size_t)n, sizeof(*values), by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static void die(const char *what) {
    fprintf(stderr, "compare_mpi: %s: %s\n", what, hora_last_error());
    MPI_Abort(MPI_COMM_WORLD, 1);
}

static double one_call(setup_t *s, int kind, size_t count, float value) {
    float *buf = s->buf[kind == 2];
    for (size_t i = 0; i < count; i++)
        buf[i] = value + (float)s->rank;
    MPI_Barrier(MPI_COMM_WORLD);
    double start = now_us();
    if (kind == 0)
        MPI_Allreduce(MPI_IN_PLACE, buf, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    else if (hora_allreduce(s->comm, buf, buf, count, HORA_FLOAT32, HORA_SUM, NULL) != HORA_OK)
        die("allreduce");
    double time = now_us() - start;
    float  expected = value * (float)s->nranks + (float)(s->nranks * (s->nranks - 1) / 2);
    if (count > 0 && (buf[0] != expected || buf[count - 1] != expected))
        die("wrong sum");
    return time;
}

/* Latency is too short for a barrier and a clock around each call: for small sizes a batch of calls
 * is timed, each on a rewritten buffer, and the rewriting is part of the time of all three alike. */
static double batch(setup_t *s, int kind, size_t count, int calls) {
    float *buf = s->buf[kind == 2];
    MPI_Barrier(MPI_COMM_WORLD);
    double start = now_us();
    for (int c = 0; c < calls; c++) {
        for (size_t i = 0; i < count; i++)
            buf[i] = (float)(c % 8 + s->rank);
        if (kind == 0)
            MPI_Allreduce(MPI_IN_PLACE, buf, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        else if (hora_allreduce(s->comm, buf, buf, count, HORA_FLOAT32, HORA_SUM, NULL) != HORA_OK)
            die("allreduce");
    }
    return (now_us() - start) / calls;
}

static int measure(setup_t *s, size_t bytes, int rounds, double *result) {
    size_t count = bytes / sizeof(float);
    int    batched = bytes <= 16384 ? 200 : 0, n = 0;
    double begin = now_us(), spent = 0;
    while (n < rounds || (spent < SECONDS * 1e6 && n < CALLS)) {
        for (int k = 0; k < KINDS; k++) {
            double t = batched ? batch(s, k, count, batched) : one_call(s, k, count, (float)(n % 5));
            MPI_Allreduce(MPI_IN_PLACE, &t, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
            s->times[k][n] = t;
        }
        n++;
        spent = now_us() - begin;
        MPI_Bcast(&spent, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    }
    for (int k = 0; k < KINDS; k++)
        result[k] = median(s->times[k] + n / 10, n - n / 10); /* the first tenth warms up */
    return n;
}

static void print_row(FILE *json, size_t bytes, int n, const double *r, int first) {
    printf("%12zu %8d %12.2f %12.2f %12.2f %10.2f %10.2f\n", bytes, n, r[0], r[1], r[2], r[0] / r[1],
           r[0] / r[2]);
    fflush(stdout);
    if (json == NULL)
        return;
    fprintf(json, "%s{\"bytes\":%zu,\"calls\":%d", first ? "" : ",\n", bytes, n);
    for (int k = 0; k < KINDS; k++)
        fprintf(json, ",\"%s_us\":%.3f", kinds[k], r[k]);
    fprintf(json, "}");
}

int main(int argc, char **argv) {
    size_t      sizes[SIZES] = {8, 4096, 65536, 1 << 20, 16 << 20, 64 << 20}, most = 0;
    int         nsizes = 0, rounds = 9;
    const char *path = NULL;
    char        library[MPI_MAX_LIBRARY_VERSION_STRING];
    setup_t     s = {0};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--json") == 0 && i + 1 < argc)
            path = argv[++i];
        else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
            rounds = atoi(argv[++i]);
        else if (strcmp(argv[i], "--help") == 0 || atoll(argv[i]) <= 0 || nsizes == SIZES) {
            printf("mpirun -np N %s [--json FILE] [--rounds N] [BYTES...]\n", argv[0]);
            return strcmp(argv[i], "--help") != 0;
        } else
            sizes[nsizes++] = (size_t)atoll(argv[i]);
    }
    nsizes = nsizes ? nsizes : 6;
    MPI_Init(&argc, &argv);
    if (hora_comm_create(NULL, &s.comm) != HORA_OK)
        die("comm_create");
    s.rank = hora_comm_rank(s.comm);
    s.nranks = hora_comm_size(s.comm);
    for (int i = 0; i < nsizes; i++)
        most = sizes[i] > most ? sizes[i] : most;
    if (posix_memalign((void **)&s.buf[0], 4096, most) != 0 ||
        hora_alloc(s.comm, most, (void **)&s.buf[1]) != HORA_OK)
        die("memory");
    for (int k = 0; k < KINDS; k++)
        s.times[k] = calloc(CALLS + 64, sizeof(double));
    FILE *json = path != NULL && s.rank == 0 ? fopen(path, "w") : NULL;
    MPI_Get_library_version(library, &argc);
    library[strcspn(library, ",\n")] = '\0';
    if (json != NULL)
        fprintf(json, "{\"mpi\":\"%s\",\"ranks\":%d,\"rows\":[\n", library, s.nranks);
    if (s.rank == 0)
        printf("# %s and hora %s, %d ranks, float32 sum in place, median us\n%12s %8s %12s %12s %12s "
               "%10s %10s\n", library, hora_version(), s.nranks, "bytes", "calls", "mpi", "hora",
               "hora arena", "mpi/hora", "mpi/arena");
    for (int i = 0; i < nsizes; i++) {
        double r[KINDS];
        int    n = measure(&s, sizes[i], rounds, r);
        if (s.rank == 0)
            print_row(json, sizes[i], n, r, i == 0);
    }
    if (json != NULL) {
        fprintf(json, "\n]}\n");
        fclose(json);
    }
    hora_free(s.comm, s.buf[1]);
    hora_comm_free(s.comm);
    MPI_Finalize();
    return 0;
}
