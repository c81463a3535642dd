"""Operations and element types, by the numbers of hora.h."""

from __future__ import annotations

import enum

__all__ = ["Op", "DType"]


class Op(enum.IntEnum):
    """How values are reduced. AVERAGE of integers truncates toward zero."""

    AVERAGE = 0
    SUM = 1
    ADASUM = 2
    MIN = 3
    MAX = 4
    PRODUCT = 5
    BAND = 6
    BOR = 7
    BXOR = 8


class DType(enum.IntEnum):
    """Element types."""

    BOOL = 0
    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT16 = 9
    BFLOAT16 = 10
    FLOAT32 = 11
    FLOAT64 = 12
    FLOAT8_E4M3 = 13
    FLOAT8_E5M2 = 14


_PYTHON = {bool: DType.BOOL, int: DType.INT64, float: DType.FLOAT64}


def to_op(op: object) -> int:
    """The number of an operation that is given as ``Op``, as its number or by its name."""
    if isinstance(op, str):
        try:
            return int(Op[op.upper()])
        except KeyError:
            names = ", ".join(member.name.lower() for member in Op)
            raise ValueError(f"there is no operation {op!r}; there are {names}") from None
    return int(op)  # type: ignore[call-overload, no-any-return]


def to_dtype_name(dtype: object) -> str:
    """The name, for hora, of a type that is given as ``DType``, by name, as a Python type, or as
    one of NumPy's, torch's, ml_dtypes' or the like."""
    if isinstance(dtype, DType):
        return dtype.name.lower()
    if isinstance(dtype, str):
        return dtype.removeprefix("torch.")
    if isinstance(dtype, type) and dtype in _PYTHON:
        return _PYTHON[dtype].name.lower()
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    name = str(name).removeprefix("torch.")
    return "float8_e4m3" if name == "float8_e4m3fn" else name
