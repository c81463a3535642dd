/*
 * The CUDA driver's loader and a GPU's life beside a stand-in driver (fake_cuda.c): what is refused,
 * with which words, and that nothing stays entered, retained or loaded after a failure. Arguments:
 * a driver that is too old, one without GPUs, one that lacks a function, one that works.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "fake_cuda.h"

#include "util/cuda.h"
#include "util/gpu.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

/* In place of the build's own image: a build with nvcc, and one without. */
const unsigned char hora_cuda_image[16] = {0};
const size_t        hora_cuda_image_bytes = IMAGE_BYTES;

static char             **paths; /* see above, from 1 */
static fake_cuda_t       *fake;
static const hora_cuda_t *cuda;

static void refuse(const char *path, const char *says) {
    const hora_cuda_t *none = NULL;
    assert_int_equal(hora_cuda_open(path, &none), HORA_ERR_UNSUPPORTED);
    assert_null(none);
    if (strstr(hora_last_error(), says) == NULL)
        fail_msg("'%s' says nothing of '%s'", hora_last_error(), says);
}

static void test_refuses(void **state) {
    refuse("/nowhere/libcuda.so.1", "no CUDA driver");
    refuse(paths[1], "is of CUDA 11.8, and hora needs 12.0");
    refuse(paths[2], "no GPU is visible");
    refuse(paths[3], "has no cuStreamQuery");
}

/* A start that fails leaves the door open for the next try. */
static void test_start_fails(void **state) {
    const hora_cuda_t *none = NULL;
    void              *library = dlopen(paths[4], RTLD_NOW);
    assert_non_null(library);
    fake = dlsym(library, "fake_cuda");
    assert_non_null(fake);
    fake->fails = "cuInit";
    fake->result = 999;
    assert_int_equal(hora_cuda_open(paths[4], &none), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), "starting the CUDA driver: it failed (CUDA_ERROR_FAKE, 999)"));
    fake->fails = "cuInit";
    fake->result = HORA_CUDA_NO_DEVICE;
    refuse(paths[4], "no GPU is visible");
    fake->fails = NULL;
    assert_int_equal(hora_cuda_open(paths[4], &cuda), HORA_OK);
    assert_int_equal(cuda->devices, 2);
    assert_int_equal(cuda->version, 12040);
    assert_int_equal(hora_cuda_open("/nowhere/else.so", &none), HORA_OK); /* the one that is open */
    assert_ptr_equal(none, cuda);
}

static void test_words(void **state) {
    assert_int_equal(hora_cuda_fail(cuda, HORA_CUDA_OUT_OF_MEMORY, "a buffer of 7 bytes"),
                     HORA_ERR_NO_MEMORY);
    assert_string_equal(hora_last_error(),
                        "a buffer of 7 bytes: out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)");
    assert_int_equal(hora_cuda_fail(cuda, 12345, "x"), HORA_ERR_SYSTEM);
    assert_string_equal(hora_last_error(), "x: no text (an unknown result, 12345)");
}

static void test_probe(void **state) {
    hora_backend_t backend = HORA_BACKEND_INIT;
    assert_true(hora_cuda_probe(&backend));
    assert_string_equal(backend.detail, "2 GPUs, driver of CUDA 12.4; Fake GPU, 3.0 GiB, sm_99");
}

static void clean(void) {
    assert_int_equal(fake->depth, 0);
    assert_int_equal(fake->retained, 0);
    assert_int_equal(fake->loaded, 0);
}

static void test_gpu(void **state) {
    hora_gpu_t gpu;
    int        x = 1;
    assert_int_equal(hora_gpu_open(cuda, 1, &gpu), HORA_OK);
    assert_int_equal(fake->retained, 1);
    assert_int_equal(hora_gpu_launch(&gpu, "a", 0, &x, NULL), HORA_OK);
    assert_int_equal(fake->launches, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(hora_gpu_launch(&gpu, i == 1 ? "b" : "a", 5, &x, NULL), HORA_OK);
    assert_int_equal(fake->launches, 3);
    assert_int_equal(fake->blocks, 5);
    assert_int_equal(gpu.nkernels, 2); /* each is looked up once */
    hora_gpu_close(&gpu);
    clean();
}

static void test_gpu_fails(void **state) {
    static const char *const opening[] = {"cuDeviceGet", "cuDeviceGetAttribute",
                                          "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2",
                                          "cuModuleLoadData"};
    hora_gpu_t gpu;
    int        x = 1;
    for (size_t i = 0; i < sizeof(opening) / sizeof(opening[0]); i++) {
        fake->fails = opening[i];
        fake->result = HORA_CUDA_OUT_OF_MEMORY;
        assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_ERR_NO_MEMORY);
        clean();
    }
    fake->result = 222; /* unsupported PTX version */
    assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_ERR_UNSUPPORTED);
    assert_non_null(strstr(hora_last_error(), "on GPU 0 (Fake GPU)"));
    assert_non_null(strstr(hora_last_error(), "update the driver"));
    clean();
    fake->fails = NULL;
    assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_OK);
    fake->fails = "cuLaunchKernel";
    fake->result = 719;
    assert_int_equal(hora_gpu_launch(&gpu, "a", 5, &x, NULL), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), "a on GPU 0 (Fake GPU): it failed"));
    fake->fails = "cuModuleGetFunction";
    assert_int_equal(hora_gpu_launch(&gpu, "c", 5, &x, NULL), HORA_ERR_SYSTEM);
    assert_int_equal(fake->depth, 0);
    fake->fails = NULL;
    hora_gpu_close(&gpu);
    clean();
}

/* A build without nvcc says so before it touches the driver. */
static void test_no_image(void **state) {
    hora_gpu_t gpu;
    fake->ncalls = 0;
    assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_ERR_UNSUPPORTED);
    assert_non_null(strstr(hora_last_error(), "build hora with nvcc"));
    assert_int_equal(fake->ncalls, 0);
}

int main(int argc, char **argv) {
    bool                    image = IMAGE_BYTES > 0;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses), cmocka_unit_test(test_start_fails), cmocka_unit_test(test_words),
        cmocka_unit_test(test_probe),
        image ? (struct CMUnitTest)cmocka_unit_test(test_gpu) : (struct CMUnitTest)cmocka_unit_test(test_no_image),
        image ? (struct CMUnitTest)cmocka_unit_test(test_gpu_fails) : (struct CMUnitTest)cmocka_unit_test(test_no_image),
    };
    if (argc != 5)
        return 2;
    paths = argv;
    setenv("HORA_CUDA_LIBRARY", paths[4], 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
