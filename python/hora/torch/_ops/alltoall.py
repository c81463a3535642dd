"""alltoall."""

from __future__ import annotations

import operator
from typing import Any

import torch

from hora import _core
from hora.common.process_sets import ProcessSet, global_process_set, set_id
from hora.torch._ops.start import (
    Finishing, Operation, WAIT, begin, dense, needs_grad, register,
)  # fmt: skip


def _check_splits(tensor: torch.Tensor, splits: Any, process_set: ProcessSet) -> list[int]:
    if isinstance(splits, torch.Tensor):
        if splits.dim() != 1 or splits.dtype.is_floating_point or splits.dtype.is_complex:
            raise ValueError("splits must be a one-dimensional tensor of integers")
        splits = splits.tolist()
    try:
        splits = [operator.index(count) for count in splits]
    except TypeError:
        raise ValueError(
            f"splits must be a list or a one-dimensional tensor of integers, not {splits!r}"
        ) from None
    size = _core.process_set_size(set_id(process_set))
    if len(splits) != size:
        raise ValueError(f"splits must have one entry per rank: {size}, not {len(splits)}")
    rows = tensor.shape[0] if tensor.dim() else 1
    if min(splits) < 0 or sum(splits) > rows:
        raise ValueError(
            f"splits must be at least 0 and add up to at most the tensor's {rows} rows: {splits}"
        )
    return splits


def _alltoall(
    tensor: torch.Tensor, splits: Any, name: str | None, process_set: ProcessSet, flags: int
) -> Operation:
    given = isinstance(splits, torch.Tensor)
    dtype, device = (splits.dtype, splits.device) if given else (torch.int32, "cpu")
    work = dense(tensor)
    if splits is not None:
        splits = _check_splits(tensor, splits, process_set)
        if work.dim() and sum(splits) < work.shape[0]:
            work = work[: sum(splits)]
    handle = begin(
        _core.ALLTOALL, "alltoall", name, work, None, process_set, splits=splits, flags=flags
    )

    def finish(handle: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, received = handle.tensor(0)
        return output, torch.tensor(received, dtype=dtype, device=device)

    return Finishing(handle, finish)


class _Alltoall(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, splits: Any, name: str | None, process_set: ProcessSet
    ) -> Any:
        output, received = _alltoall(tensor, splits, name, process_set, WAIT).wait()
        ctx.received = received
        ctx.shape = tensor.shape
        ctx.process_set = process_set
        ctx.mark_non_differentiable(received)
        return output, received

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
        returned, _ = alltoall(grad, splits=ctx.received, process_set=ctx.process_set)
        if returned.shape != ctx.shape:  # rows that were sent to nobody
            whole = returned.new_zeros(ctx.shape)
            whole[: returned.shape[0]] = returned
            returned = whole
        return returned, None, None, None


def alltoall(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Sends ``splits[r]`` rows of the tensor to rank r of the process set (equal parts if None) and
    returns the rows that came from all ranks, in rank order; with ``splits`` given, also a tensor
    of how many came from each. Differentiable."""
    if needs_grad(tensor):
        output, received = _Alltoall.apply(tensor, splits, name, process_set)
    else:
        output, received = _alltoall(tensor, splits, name, process_set, WAIT).wait()
    return output if splits is None else (output, received)


def alltoall_async(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts an alltoall; returns a handle, whose result is always (tensor, received splits)."""
    return register(_alltoall(tensor, splits, name, process_set, 0))
