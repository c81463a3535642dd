/*
 * The CUDA driver's loader and a GPU's life beside the stand-in driver (tests/standin/cuda): what is
 * refused, with which words, and that nothing stays entered, retained or loaded after a failure.
 * Argument: the stand-in.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "standin.h"

#include "util/cuda.h"
#include "util/gpu.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char        *path;
static cuda_standin_t    *standin;
static const hora_cuda_t *cuda;

static void refuse(const char *library, const char *says) {
    const hora_cuda_t *none = NULL;
    assert_int_equal(hora_cuda_open(library, &none), HORA_ERR_UNSUPPORTED);
    assert_null(none);
    if (strstr(hora_last_error(), says) == NULL)
        fail_msg("'%s' says nothing of '%s'", hora_last_error(), says);
}

static void fail_at(const char *symbol, int nth, int result) {
    standin->fails = symbol;
    standin->nth = nth;
    standin->result = result;
}

/* The environment is read once a process. */
static void refuse_with(const char *name, const char *value, const char *says) {
    int   status;
    pid_t child = fork();
    if (child == 0) {
        setenv(name, value, 1);
        refuse(path, says);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void test_refuses(void **state) {
    refuse("/nowhere/libcuda.so.1", "no CUDA driver");
    refuse("libm.so.6", "has no cuInit");
    refuse_with("HORA_STANDIN_VERSION", "11080", "is of CUDA 11.8, and hora needs 12.0");
    refuse_with("HORA_STANDIN_GPUS", "0", "no GPU is visible");
    refuse_with("CUDA_VISIBLE_DEVICES", "", "no GPU is visible");
}

/* A start that fails leaves the door open for the next try. */
static void test_start_fails(void **state) {
    const hora_cuda_t *none = NULL;
    void              *library = dlopen(path, RTLD_NOW);
    assert_non_null(library);
    standin = dlsym(library, "cuda_standin");
    assert_non_null(standin);
    fail_at("cuInit", 1, 999);
    assert_int_equal(hora_cuda_open(path, &none), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(),
                           "starting the CUDA driver: it failed (CUDA_ERROR_STANDIN, 999)"));
    fail_at("cuInit", 1, HORA_CUDA_NO_DEVICE);
    refuse(path, "no GPU is visible");
    assert_int_equal(hora_cuda_open(path, &cuda), HORA_OK);
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
    assert_string_equal(backend.detail,
                        "2 GPUs, driver of CUDA 12.4; CPU standing in for a GPU, 3.0 GiB, sm_90");
}

static void clean(void) {
    assert_int_equal(standin->depth, 0);
    assert_int_equal(standin->retained, 0);
    assert_int_equal(standin->loaded, 0);
}

/* Without sources and destinations a reduction does nothing. */
static void test_gpu(void **state) {
    hora_cuda_reduce_t job = {0};
    hora_gpu_t         gpu;
    assert_int_equal(hora_gpu_open(cuda, 1, &gpu), HORA_OK);
    assert_int_equal(standin->retained, 1);
    assert_int_equal(hora_gpu_launch(&gpu, "hora_reduce_f32", 0, &job, NULL), HORA_OK);
    assert_int_equal(standin->launches, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(hora_gpu_launch(&gpu, i == 1 ? "hora_reduce_i8" : "hora_reduce_f32", 5, &job,
                                         NULL), HORA_OK);
    assert_int_equal(standin->launches, 3);
    assert_int_equal(standin->blocks, 5);
    assert_int_equal(gpu.nkernels, HORA_GPU_KERNELS); /* all, when it was opened */
    assert_null(hora_cuda_kernel_name(HORA_GPU_KERNELS));
    fail_at("cuModuleGetFunction", 1, 719);
    assert_int_equal(hora_gpu_launch(&gpu, "hora_reduce_f64", 5, &job, NULL), HORA_OK);
    standin->fails = NULL;
    hora_gpu_close(&gpu);
    clean();
}

static void test_gpu_fails(void **state) {
    static const char *const opening[] = {"cuDeviceGet", "cuDeviceGetAttribute",
                                          "cuDevicePrimaryCtxRetain", "cuCtxPushCurrent_v2",
                                          "cuModuleLoadData", "cuModuleGetFunction"};
    hora_cuda_reduce_t job = {0};
    hora_gpu_t         gpu;
    for (size_t i = 0; i < sizeof(opening) / sizeof(opening[0]); i++) {
        fail_at(opening[i], 1, HORA_CUDA_OUT_OF_MEMORY);
        assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_ERR_NO_MEMORY);
        clean();
    }
    fail_at("cuModuleLoadData", 1, 222); /* unsupported PTX version */
    assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_ERR_UNSUPPORTED);
    if (hora_cuda_image_bytes > 0) {
        assert_non_null(strstr(hora_last_error(), "on GPU 0 (CPU standing in"));
        assert_non_null(strstr(hora_last_error(), "update the driver"));
    } else {
        assert_non_null(strstr(hora_last_error(), "build hora with nvcc"));
    }
    clean();
    assert_int_equal(hora_gpu_open(cuda, 0, &gpu), HORA_OK);
    fail_at("cuLaunchKernel", 1, 719);
    assert_int_equal(hora_gpu_launch(&gpu, "hora_reduce_f32", 5, &job, NULL), HORA_ERR_SYSTEM);
    assert_non_null(strstr(hora_last_error(), "hora_reduce_f32 on GPU 0 (CPU standing in"));
    assert_int_equal(hora_gpu_launch(&gpu, "no such kernel", 5, &job, NULL), HORA_ERR_INTERNAL);
    assert_int_equal(standin->depth, 0);
    hora_gpu_close(&gpu);
    clean();
}

/* One for each number, whoever asks, and none for a child. */
static void test_get(void **state) {
    hora_gpu_t *one = NULL, *two = NULL, *again = NULL;
    int         status;
    pid_t       child;
    fail_at("cuModuleLoadData", 1, HORA_CUDA_OUT_OF_MEMORY);
    assert_int_equal(hora_gpu_get(path, 0, &one), HORA_ERR_NO_MEMORY);
    assert_int_equal(hora_gpu_get(path, 0, &one), HORA_OK);
    assert_int_equal(hora_gpu_get(path, 1, &two), HORA_OK);
    assert_int_equal(hora_gpu_get(path, 0, &again), HORA_OK);
    assert_ptr_equal(one, again);
    assert_int_equal(two->ordinal, 1);
    assert_int_equal(hora_gpu_get(path, 2, &again), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(hora_gpu_get(path, -1, &again), HORA_ERR_INVALID_ARGUMENT);
    assert_int_equal(standin->retained, 2);
    child = fork();
    if (child == 0)
        _exit(hora_gpu_get(path, 0, &again) == HORA_ERR_UNSUPPORTED ? 0 : 1);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses), cmocka_unit_test(test_start_fails),
        cmocka_unit_test(test_words),   cmocka_unit_test(test_probe),
        cmocka_unit_test(test_gpu),     cmocka_unit_test(test_gpu_fails),
        cmocka_unit_test(test_get),
    };
    if (argc != 2)
        return 2;
    path = argv[1];
    setenv("HORA_CUDA_LIBRARY", path, 1);
    setenv("HORA_STANDIN_GPUS", "2", 0);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
