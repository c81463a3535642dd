"""An array library whose arrays are on a GPU: what hora sees of torch with CUDA, or of CuPy.

The GPU is the stand-in of tests/standin/cuda, which runs on the CPU: its memory faults when the host
touches it, its streams are threads. A rank imports this with HORA_CUDA_LIBRARY set to ``library()``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import subprocess
import tempfile
from ctypes import POINTER, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Iterator

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def library() -> str:
    """Compiles the stand-in, in a second or so. The test's side."""
    folder = tempfile.mkdtemp(prefix="hora-standin-")
    target = f"{folder}/libcuda-standin.so"
    sources = sorted(map(str, (ROOT / "tests/standin/cuda").glob("*.c")))
    command = [os.environ.get("CC", "cc"), "-O1", "-shared", "-fPIC", "-std=gnu11", "-D_GNU_SOURCE",
               f"-I{ROOT}", f"-I{ROOT}/include", f"-I{ROOT}/src", "-o", target, *sources,
               "-lpthread", "-lm", "-Wl,-z,nodelete"]  # fmt: skip
    subprocess.run(command, check=True)
    return target


# ---- The driver ----------------------------------------------------------------------------------


@functools.cache
def driver() -> ctypes.CDLL:
    """The copy that hora opens too, with GPU 0's context entered in this thread."""
    cuda = ctypes.CDLL(os.environ["HORA_CUDA_LIBRARY"])
    context = c_void_p()
    good(cuda.cuInit(0))
    good(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    good(cuda.cuCtxPushCurrent_v2(context))
    return cuda


def good(result: int) -> None:
    assert result == 0, f"the driver's stand-in says {result}"


streams: dict[int, int | None] = {}  # of a device: the current one; None: the default stream
asked: list[int] = []  # devices of which hora has asked for the current stream


def new_stream() -> int:
    stream = c_void_p()
    good(driver().cuStreamCreateWithPriority(ctypes.byref(stream), 1, 0))
    assert stream.value is not None
    return stream.value


@contextlib.contextmanager
def current(stream: int | None) -> Iterator[None]:
    before = streams.get(0)
    streams[0] = stream
    yield
    streams[0] = before


# ---- DLPack, from include/dlpack/dlpack.h of version 1.3 -----------------------------------------


class DLDevice(ctypes.Structure):
    _fields_ = [("device_type", c_int32), ("device_id", c_int32)]


class DLDataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("device", DLDevice), ("ndim", c_int32), ("dtype", DLDataType),
                ("shape", POINTER(c_int64)), ("strides", POINTER(c_int64)),
                ("byte_offset", c_uint64)]  # fmt: skip


class DLManagedTensorVersioned(ctypes.Structure):
    pass


Deleter = ctypes.PYFUNCTYPE(None, POINTER(DLManagedTensorVersioned))
DLManagedTensorVersioned._fields_ = [
    ("major", c_uint32), ("minor", c_uint32), ("manager_ctx", c_void_p), ("deleter", Deleter),
    ("flags", c_uint64), ("dl_tensor", DLTensor),
]  # fmt: skip

ToObject = ctypes.PYFUNCTYPE(c_int, POINTER(DLManagedTensorVersioned), POINTER(c_void_p))
FromObject = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, POINTER(DLTensor))
WorkStream = ctypes.PYFUNCTYPE(c_int, c_int, c_int32, POINTER(c_void_p))


class ExchangeAPI(ctypes.Structure):
    _fields_ = [("major", c_uint32), ("minor", c_uint32), ("prev_api", c_void_p),
                ("allocator", c_void_p), ("from_object", c_void_p), ("to_object", ToObject),
                ("dltensor_from_object", FromObject), ("current_work_stream", WorkStream)]  # fmt: skip


class Array:
    """A float32 array on a GPU."""

    __dlpack_c_exchange_api__: Any
    live = 0

    def __init__(self, values: Any, device: int = 0, device_type: int = 2) -> None:
        values = np.ascontiguousarray(values, dtype=np.float32)
        pointer = c_uint64()
        good(driver().cuMemAlloc_v2(ctypes.byref(pointer), c_size_t(max(4, values.nbytes))))
        self.pointer = pointer.value
        self.managed: Any = None
        self._describe(values.shape, device, device_type)
        self.put(values)

    def _describe(self, shape: tuple[int, ...], device: int, device_type: int) -> None:
        Array.live += 1
        self.shape, self.device = tuple(shape), device
        self._shape = (c_int64 * max(1, len(shape)))(*shape)
        self.tensor = DLTensor(self.pointer, DLDevice(device_type, device), len(shape),
                               DLDataType(2, 32, 1), self._shape, None, 0)  # fmt: skip

    @classmethod
    def _adopt(cls, managed: Any) -> Array:
        self = cls.__new__(cls)
        tensor = managed.contents.dl_tensor
        assert (tensor.dtype.code, tensor.dtype.bits) == (2, 32)
        self.managed, self.pointer = managed, tensor.data or 0
        shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        self._describe(shape, tensor.device.device_id, tensor.device.device_type)
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.device)

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("hora takes the C functions")

    def put(self, values: np.ndarray) -> None:
        """Writes it on the current stream."""
        if values.nbytes:
            good(driver().cuMemcpyHtoDAsync_v2(c_uint64(self.pointer), values.ctypes.data_as(c_void_p),
                                               c_size_t(values.nbytes), c_void_p(streams.get(0))))

    def numpy(self) -> np.ndarray:
        """Its values as the current stream sees them."""
        values = np.full(self.shape, np.nan, np.float32)
        if values.nbytes:
            good(driver().cuMemcpyDtoHAsync_v2(values.ctypes.data_as(c_void_p), c_uint64(self.pointer),
                                               c_size_t(values.nbytes), c_void_p(streams.get(0))))
        return values

    def __del__(self) -> None:
        if not hasattr(self, "tensor"):
            return
        Array.live -= 1
        if self.managed is not None:
            self.managed.contents.deleter(self.managed)
        else:
            good(driver().cuMemFree_v2(c_uint64(self.pointer)))


def _to_object(managed: Any, object_p: Any) -> int:
    adopted = Array._adopt(ctypes.cast(managed, POINTER(DLManagedTensorVersioned)))
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(adopted))
    object_p[0] = id(adopted)
    return 0


def _from_object(object: Any, tensor_p: Any) -> int:
    tensor_p[0] = object.tensor
    return 0


def _work_stream(device_type: int, device: int, stream_p: Any) -> int:
    assert device_type == 2
    asked.append(device)
    stream_p[0] = streams.get(device)
    return 0


_api = ExchangeAPI(1, 3, None, None, None, ToObject(_to_object), FromObject(_from_object),
                   WorkStream(_work_stream))  # fmt: skip
ctypes.pythonapi.PyCapsule_New.restype = ctypes.py_object
ctypes.pythonapi.PyCapsule_New.argtypes = [c_void_p, ctypes.c_char_p, c_void_p]
_API_NAME, _TENSOR_NAME = b"dlpack_exchange_api", b"dltensor_versioned"  # capsules do not copy them
Array.__dlpack_c_exchange_api__ = ctypes.pythonapi.PyCapsule_New(
    ctypes.addressof(_api), _API_NAME, None
)


class Older:
    """One of a library without the C functions, such as an older CuPy."""

    def __init__(self, values: Any) -> None:
        self.array = Array(values)
        self.options: list[dict[str, Any]] = []
        self.managed: Any = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.array.device)

    def __dlpack__(self, **options: Any) -> Any:
        self.options.append(options)
        self.managed = DLManagedTensorVersioned(1, 0, None, Deleter(lambda _: None), 0,
                                                self.array.tensor)
        return ctypes.pythonapi.PyCapsule_New(ctypes.addressof(self.managed), _TENSOR_NAME, None)
