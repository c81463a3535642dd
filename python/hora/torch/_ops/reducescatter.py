"""reducescatter and grouped_reducescatter."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from hora import _core
from hora.common.process_sets import ProcessSet, global_process_set
from hora.torch._ops.allgather import grouped_allgather
from hora.torch._ops.start import (
    Finishing, Operation, WAIT, all_outputs, begin, dense, first_output, needs_grad, register,
)  # fmt: skip
from hora.torch.compression import Compression, Compressor


def _reducescatter(
    tensor: torch.Tensor, name: str | None, op: int, prescale: float, postscale: float,
    process_set: ProcessSet, flags: int,
) -> Operation:  # fmt: skip
    work = dense(tensor)
    handle = begin(
        _core.REDUCESCATTER, "reducescatter", name, work, None, process_set, op, prescale,
        postscale, flags=flags,
    )  # fmt: skip
    return Finishing(handle, first_output)


def _grouped_reducescatter(
    tensors: Sequence[torch.Tensor], name: str | None, op: int, prescale: float,
    postscale: float, process_set: ProcessSet, flags: int,
) -> Operation:  # fmt: skip
    work = tuple(map(dense, tensors))
    handle = begin(
        _core.REDUCESCATTER, "grouped_reducescatter", name, work, None, process_set, op, prescale,
        postscale, flags=flags,
    )  # fmt: skip
    return Finishing(handle, all_outputs(len(work)))


def _scattered_grads(
    grads: Sequence[torch.Tensor], op: int, prescale: float, postscale: float,
    process_set: ProcessSet,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    if op not in (_core.AVERAGE, _core.SUM):
        raise ValueError("reducescatter is differentiable for op Average and Sum only")
    scale = prescale * postscale * (process_set.size() if op == _core.SUM else 1)
    scaled = [grad * scale if scale != 1 else grad for grad in grads]
    return grouped_allgather(scaled, process_set=process_set)


class _Reducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, name: str | None, *how: Any) -> torch.Tensor:
        ctx.how = how
        return _reducescatter(tensor, name, *how, WAIT).wait()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _scattered_grads([grad], *ctx.how)[0], None, None, None, None, None


class _GroupedReducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, op: int, prescale: float, postscale: float,
                process_set: ProcessSet, *tensors: torch.Tensor) -> Any:  # fmt: skip
        ctx.how = how = op, prescale, postscale, process_set
        return _grouped_reducescatter(tensors, name, *how, WAIT).wait()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, None, None, None, None, *_scattered_grads(grads, *ctx.how)


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: int = _core.AVERAGE,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduces the tensor over all ranks and returns this rank's share of the rows; the first ranks
    take the remainder. Differentiable for Average and Sum, with Horovod's convention: the gradient
    of Sum is multiplied by the number of ranks."""
    small, context = compression.compress(tensor)
    how = op, prescale_factor, postscale_factor, process_set
    if needs_grad(small):
        result = _Reducescatter.apply(small, name, *how)
    else:
        result = _reducescatter(small, name, *how, WAIT).wait()
    return compression.decompress(result, context)


def reducescatter_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: int = _core.AVERAGE,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> int:
    """Starts a reducescatter; returns a handle."""
    how = op, prescale_factor, postscale_factor, process_set
    return register(_reducescatter(tensor, name, *how, 0))


def grouped_reducescatter(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: int = _core.AVERAGE,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """As :func:`reducescatter` for a list of tensors, which are reduced together."""
    pairs = [compression.compress(tensor) for tensor in tensors]
    small = [tensor for tensor, _ in pairs]
    how = op, prescale_factor, postscale_factor, process_set
    if needs_grad(*small):
        results = _GroupedReducescatter.apply(name, *how, *small)
    else:
        results = _grouped_reducescatter(small, name, *how, WAIT).wait()
    return [compression.decompress(out, context) for out, (_, context) in zip(results, pairs)]


def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: int = _core.AVERAGE,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> int:
    """As :func:`reducescatter_async` for a list of tensors; one handle for all."""
    how = op, prescale_factor, postscale_factor, process_set
    return register(_grouped_reducescatter(tensors, name, *how, 0))
