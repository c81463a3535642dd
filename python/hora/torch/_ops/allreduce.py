"""allreduce and grouped_allreduce."""

from __future__ import annotations

import operator
from typing import Any, Sequence

import torch

from hora import _core
from hora.common.process_sets import ProcessSet, global_process_set
from hora.common.util import choose_op
from hora.torch._ops.start import (
    Finishing, Operation, WAIT, begin, copy_back, dense, needs_grad, register,
)  # fmt: skip
from hora.torch.compression import Compression, Compressor

# In place, dense, with a name, on all ranks: without Python on the way. Else it returns None.
_reduce = _core.reduce_tensor


def _allreduce(
    tensor: torch.Tensor, in_place: bool, name: str | None, op: int, prescale: float,
    postscale: float, process_set: ProcessSet, flags: int,
) -> Operation:  # fmt: skip
    work = dense(tensor)
    output = work if in_place else torch.empty_like(work)
    handle = begin(
        _core.ALLREDUCE, "allreduce", name, work, output, process_set, op, prescale, postscale,
        flags=flags,
    )  # fmt: skip
    if in_place and work is not tensor:
        return Finishing(handle, lambda _: copy_back(tensor, work))
    return handle


class _Allreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, name: str | None, *how: Any) -> torch.Tensor:
        ctx.how = how
        return _allreduce(tensor, False, name, *how, WAIT).wait()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        op, prescale, postscale, process_set = ctx.how
        reduced = allreduce(
            grad, op=op, prescale_factor=prescale, postscale_factor=postscale,
            process_set=process_set,
        )  # fmt: skip
        return reduced, None, None, None, None, None


def allreduce(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """Reduces the tensor over all ranks and returns the result on each; the average unless ``op``
    says otherwise. Differentiable. ``average`` is Horovod's deprecated form of ``op``."""
    op = choose_op(op, average)
    small, context = compression.compress(tensor)
    how = op, prescale_factor, postscale_factor, process_set
    if needs_grad(small):
        result = _Allreduce.apply(small, name, *how)
    else:
        result = _allreduce(small, False, name, *how, WAIT).wait()
    return compression.decompress(result, context)


def allreduce_async(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts an allreduce; returns a handle for :func:`poll` and :func:`synchronize`. The tensor
    must not change until then."""
    op = choose_op(op, average)
    how = op, prescale_factor, postscale_factor, process_set
    return register(_allreduce(tensor, False, name, *how, 0))


def allreduce_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """As :func:`allreduce`, into the tensor itself. Not differentiable."""
    result = _reduce(
        tensor, name, average, op, prescale_factor, postscale_factor, process_set, True
    )  # fmt: skip
    if result is not None:
        return result
    op = choose_op(op, average)
    how = op, prescale_factor, postscale_factor, process_set
    return _allreduce(tensor, True, name, *how, WAIT).wait()


def allreduce_async_(
    tensor: torch.Tensor,
    average: bool | None = None,
    name: str | None = None,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts an in-place allreduce; returns a handle. The tensor must not be touched until then."""
    number = _reduce(
        tensor, name, average, op, prescale_factor, postscale_factor, process_set, False
    )  # fmt: skip
    if number is not None:
        return number
    op = choose_op(op, average)
    how = op, prescale_factor, postscale_factor, process_set
    return register(_allreduce(tensor, True, name, *how, 0))


# ---- Groups --------------------------------------------------------------------------------------


def _grouped_allreduce(
    tensors: Sequence[torch.Tensor], in_place: bool, name: str | None, op: int, prescale: float,
    postscale: float, process_set: ProcessSet, flags: int,
) -> Operation:  # fmt: skip
    tensors = tuple(tensors)
    work = tuple(map(dense, tensors))
    outputs = work if in_place else tuple(map(torch.empty_like, work))
    handle = begin(
        _core.ALLREDUCE, "grouped_allreduce", name, work, outputs, process_set, op, prescale,
        postscale, flags=flags,
    )  # fmt: skip
    if in_place and any(map(operator.is_not, tensors, work)):
        return Finishing(handle, lambda _: tuple(map(copy_back, tensors, work)))
    return handle


class _GroupedAllreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, op: int, prescale: float, postscale: float,
                process_set: ProcessSet, *tensors: torch.Tensor) -> Any:  # fmt: skip
        ctx.how = how = op, prescale, postscale, process_set
        return _grouped_allreduce(tensors, False, name, *how, WAIT).wait()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        op, prescale, postscale, process_set = ctx.how
        reduced = grouped_allreduce(
            grads, op=op, prescale_factor=prescale, postscale_factor=postscale,
            process_set=process_set,
        )  # fmt: skip
        return None, None, None, None, None, *reduced


def grouped_allreduce(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> list[torch.Tensor]:
    """As :func:`allreduce` for a list of tensors, which are reduced together."""
    op = choose_op(op, average)
    pairs = [compression.compress(tensor) for tensor in tensors]
    small = [tensor for tensor, _ in pairs]
    how = op, prescale_factor, postscale_factor, process_set
    if needs_grad(*small):
        results = _GroupedAllreduce.apply(name, *how, *small)
    else:
        results = _grouped_allreduce(small, False, name, *how, WAIT).wait()
    return [compression.decompress(out, context) for out, (_, context) in zip(results, pairs)]


def grouped_allreduce_async(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> int:
    """As :func:`allreduce_async` for a list of tensors; one handle for all."""
    op = choose_op(op, average)
    how = op, prescale_factor, postscale_factor, process_set
    return register(_grouped_allreduce(tensors, False, name, *how, 0))


def grouped_allreduce_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> tuple[torch.Tensor, ...]:
    """As :func:`allreduce_` for a list of tensors."""
    op = choose_op(op, average)
    how = op, prescale_factor, postscale_factor, process_set
    return _grouped_allreduce(tensors, True, name, *how, WAIT).wait()


def grouped_allreduce_async_(
    tensors: Sequence[torch.Tensor],
    average: bool | None = None,
    name: str | None = None,
    op: int | None = None,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
    process_set: ProcessSet = global_process_set,
) -> int:
    """As :func:`allreduce_async_` for a list of tensors; one handle for all."""
    op = choose_op(op, average)
    how = op, prescale_factor, postscale_factor, process_set
    return register(_grouped_allreduce(tensors, True, name, *how, 0))
