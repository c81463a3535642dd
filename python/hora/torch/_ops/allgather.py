"""allgather and grouped_allgather."""

from __future__ import annotations

from typing import Any, Sequence

import torch

from hora import _core
from hora.common.process_sets import ProcessSet, global_process_set
from hora.torch._ops.allreduce import grouped_allreduce
from hora.torch._ops.start import (
    Finishing, Operation, WAIT, all_outputs, begin, dense, first_output, needs_grad, register,
)  # fmt: skip


def _allgather(
    tensor: torch.Tensor, name: str | None, process_set: ProcessSet, flags: int
) -> Operation:
    work = dense(tensor)
    handle = begin(_core.ALLGATHER, "allgather", name, work, None, process_set, flags=flags)
    return Finishing(handle, first_output)


def _grouped_allgather(
    tensors: Sequence[torch.Tensor], name: str | None, process_set: ProcessSet, flags: int
) -> Operation:
    work = tuple(map(dense, tensors))
    handle = begin(
        _core.ALLGATHER, "grouped_allgather", name, work, None, process_set, flags=flags
    )
    return Finishing(handle, all_outputs(len(work)))


def _gathered_grads(
    grads: Sequence[torch.Tensor], rows: Sequence[int], process_set: ProcessSet
) -> list[torch.Tensor]:
    """The part of each gathered gradient that belongs to this rank's rows, averaged."""
    reduced = grouped_allreduce(grads, op=_core.AVERAGE, process_set=process_set)
    mine = torch.tensor([rows], dtype=torch.int64, device="cpu")
    counts = allgather(mine, process_set=process_set)
    before = counts[: process_set.rank()].sum(dim=0).tolist()
    return [grad.narrow(0, at, n) for grad, at, n in zip(reduced, before, rows)]


class _Allgather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, name: str | None, process_set: ProcessSet
    ) -> torch.Tensor:
        result = _allgather(tensor, name, process_set, WAIT).wait()
        ctx.rows = tensor.shape[0]
        ctx.process_set = process_set
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _gathered_grads([grad], [ctx.rows], ctx.process_set)[0], None, None


class _GroupedAllgather(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str | None, process_set: ProcessSet, *tensors: torch.Tensor
    ) -> Any:
        results = _grouped_allgather(tensors, name, process_set, WAIT).wait()
        ctx.rows = [tensor.shape[0] for tensor in tensors]
        ctx.process_set = process_set
        return results

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, None, *_gathered_grads(grads, ctx.rows, ctx.process_set)


def allgather(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Concatenates the ranks' tensors along dimension 0, in which they may differ. Differentiable;
    the gradient is the average of the ranks' gradients for this rank's rows, as in Horovod."""
    if needs_grad(tensor):
        return _Allgather.apply(tensor, name, process_set)
    return _allgather(tensor, name, process_set, WAIT).wait()


def allgather_async(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    """Starts an allgather; returns a handle."""
    return register(_allgather(tensor, name, process_set, 0))


def grouped_allgather(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> tuple[torch.Tensor, ...]:
    """As :func:`allgather` for a list of tensors, which are gathered together."""
    if needs_grad(*tensors):
        return _GroupedAllgather.apply(name, process_set, *tensors)
    return _grouped_allgather(tensors, name, process_set, WAIT).wait()


def grouped_allgather_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """As :func:`allgather_async` for a list of tensors; one handle for all."""
    return register(_grouped_allgather(tensors, name, process_set, 0))
