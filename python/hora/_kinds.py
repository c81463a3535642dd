"""The kinds of arrays that a communicator takes, and how each is read, written and made.

A kind answers five questions about its arrays. What hora cannot read in place (views with gaps, the
byte order of another machine) is copied on the way in and refused on the way out. None of the
libraries is imported here: an array of theirs shows that its library is there.
"""

from __future__ import annotations

import array
import math
import sys
from typing import Any

from hora import _core
from hora.constants import DType, to_dtype_name

__all__ = ["Kind", "kind_of"]

_HOST = (1, 3)  # DLPack's device types: CPU memory, and pinned by CUDA
# Types of the package ml_dtypes, which no buffer protocol knows.
_ML_DTYPES = {
    "bfloat16": DType.BFLOAT16,
    "float8_e4m3fn": DType.FLOAT8_E4M3,
    "float8_e5m2": DType.FLOAT8_E5M2,
}

AS_IT_IS = -1  # the element type is what the array says


def _no_type(dtype: object) -> ValueError:
    hint = ""
    if "complex" in str(dtype):
        hint = "; pass a view of it as real numbers"
    elif "float8" in str(dtype) or "float4" in str(dtype):
        hint = "; pass a view of it as uint8 to move it, or a wider copy to reduce it"
    return ValueError(f"hora has no element type {dtype}{hint}")


def _gaps() -> ValueError:
    return ValueError(
        "the output array must be contiguous in C order: pass such an array and copy from it"
    )


class Kind:
    """Arrays that C reads as they are, by DLPack or the buffer protocol."""

    def read(self, x: Any) -> tuple[Any, int]:
        """What C reads for the input x, and the element type where C cannot see it."""
        return x, AS_IT_IS

    def write(self, x: Any) -> tuple[Any, int]:
        """The same for an output; never a copy."""
        return x, AS_IT_IS

    def shape(self, x: Any) -> tuple[int, ...]:
        return tuple(x.shape)

    def empty(self, x: Any, shape: tuple[int, ...]) -> Any:
        """An output array for a result of the kind and element type of x."""
        return _core.empty(shape, to_dtype_name(x.dtype))

    def give(self, x: Any, result: Any) -> Any:
        """The result for the user, from what ``empty`` made for x."""
        return result


class _NumPy(Kind):
    def __init__(self, numpy: Any) -> None:
        self.numpy = numpy
        names = (m.name.lower() for m in DType if m not in _ML_DTYPES.values())
        self.types = {numpy.dtype(name) for name in names}

    def _check(self, x: Any) -> None:
        if isinstance(x, self.numpy.ma.MaskedArray):
            raise TypeError("hora knows no masks; pass x.filled(...) or x.data")

    def _carry(self, x: Any) -> tuple[Any, int]:
        """x is contiguous."""
        if x.dtype in self.types:
            return x, AS_IT_IS
        dtype = _ML_DTYPES.get(x.dtype.name)
        if dtype is not None:
            return x.view(f"u{x.dtype.itemsize}"), int(dtype)
        raise _no_type(x.dtype)

    def read(self, x: Any) -> tuple[Any, int]:
        if type(x) is not self.numpy.ndarray:
            self._check(x)
            x = self.numpy.asarray(x)
        if not x.flags.c_contiguous:
            x = x.copy(order="C")
        if x.dtype not in self.types and not x.dtype.isnative:
            x = x.astype(x.dtype.newbyteorder("="))
        return self._carry(x)

    def write(self, x: Any) -> tuple[Any, int]:
        if type(x) is not self.numpy.ndarray:
            self._check(x)
            if isinstance(x, self.numpy.generic):
                raise ValueError("a NumPy scalar cannot be written; pass an array of shape ()")
        if not x.flags.c_contiguous:
            raise _gaps()
        if not x.dtype.isnative:
            raise ValueError(f"the output array has the byte order of another machine ({x.dtype})")
        return self._carry(x)

    def empty(self, x: Any, shape: tuple[int, ...]) -> Any:
        return self.numpy.empty(shape, x.dtype.newbyteorder("="))

    def give(self, x: Any, result: Any) -> Any:
        scalar = isinstance(x, self.numpy.generic) and result.ndim == 0
        return result[()] if scalar else result


class _Torch(Kind):
    def __init__(self, torch: Any) -> None:
        self.torch = torch
        names = [m.name.lower() for m in DType] + ["float8_e4m3fn"]
        self.types = {getattr(torch, name, None) for name in names}

    def _check(self, x: Any) -> Any:
        if x.layout is not self.torch.strided:
            raise ValueError(f"hora takes dense tensors, not {x.layout}")
        if x.dtype not in self.types:
            raise _no_type(x.dtype)
        return x.detach() if x.requires_grad else x

    def read(self, x: Any) -> tuple[Any, int]:
        return self._check(x).contiguous(), AS_IT_IS

    def write(self, x: Any) -> tuple[Any, int]:
        x = self._check(x)
        if not x.is_contiguous():
            raise _gaps()
        return x, AS_IT_IS

    def empty(self, x: Any, shape: tuple[int, ...]) -> Any:
        return self.torch.empty(shape, dtype=x.dtype, device=x.device)


class _Buffer(Kind):
    """What has the buffer protocol alone: bytearray, bytes, memoryview, array.array, ctypes, ..."""

    def read(self, x: Any) -> tuple[Any, int]:
        view = memoryview(x)
        if not view.c_contiguous:
            view = memoryview(view.tobytes()).cast("B").cast(view.format, view.shape)
        return view, AS_IT_IS

    def write(self, x: Any) -> tuple[Any, int]:
        view = memoryview(x)
        if not view.c_contiguous:
            raise _gaps()
        return view, AS_IT_IS

    def shape(self, x: Any) -> tuple[int, ...]:
        return memoryview(x).shape

    def empty(self, x: Any, shape: tuple[int, ...]) -> Any:
        view = memoryview(x)
        if len(shape) == 1 and isinstance(x, array.array):
            return array.array(x.typecode, bytes(math.prod(shape) * view.itemsize))
        if len(shape) == 1 and isinstance(x, (bytes, bytearray)):
            return bytearray(math.prod(shape))
        return _core.empty(shape, _core.dtype_of(self.read(x)[0]))

    def give(self, x: Any, result: Any) -> Any:
        if isinstance(x, bytes):
            return bytes(result)
        return memoryview(result) if isinstance(x, memoryview) else result


class _DLPack(Kind):
    """JAX, CuPy, ...: results are handed over to their library's from_dlpack, where it is known."""

    def empty(self, x: Any, shape: tuple[int, ...]) -> Any:
        device, number = x.__dlpack_device__()
        if device in _HOST:
            return super().empty(x, shape)
        space = x.__array_namespace__() if hasattr(x, "__array_namespace__") else None
        if not hasattr(space, "empty"):
            raise ValueError(
                f"give out=: hora cannot make an array like {type(x)!r} on DLPack device "
                f"({int(device)}, {number})"
            )
        return space.empty(shape, dtype=x.dtype, device=x.device)

    def give(self, x: Any, result: Any) -> Any:
        namespace = getattr(x, "__array_namespace__", None)
        made_here = isinstance(result, _core.Array)
        return namespace().from_dlpack(result) if namespace and made_here else result


_found: dict[type, Kind] = {}


def _find(x: Any) -> Kind:
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(x, (numpy.ndarray, numpy.generic)):
        return _NumPy(numpy)
    if torch is not None and isinstance(x, torch.Tensor):
        return _Torch(torch)
    if isinstance(x, _core.Array):
        return Kind()
    if hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__"):
        return _DLPack()
    try:
        memoryview(x)
    except TypeError:
        raise TypeError(
            f"expected an array (an object with __dlpack__ or the buffer protocol), not {type(x)!r}"
        ) from None
    return _Buffer()


def kind_of(x: Any) -> Kind:
    """The kind of x; TypeError if it is no array."""
    kind = _found.get(type(x))
    if kind is None:
        kind = _found[type(x)] = _find(x)
    return kind
