"""broadcast. The root is a rank of the job, also on a process set."""

from __future__ import annotations

from typing import Any

import torch

from hora import _core
from hora.common.process_sets import ProcessSet, global_process_set
from hora.torch._ops.allreduce import allreduce
from hora.torch._ops.start import (
    Finishing, Operation, WAIT, begin, copy_back, dense, needs_grad, register,
)  # fmt: skip


def _broadcast(
    tensor: torch.Tensor, in_place: bool, root_rank: int, name: str | None,
    process_set: ProcessSet, flags: int,
) -> Operation:  # fmt: skip
    work = dense(tensor)
    output = work if in_place else torch.empty_like(work)
    handle = begin(
        _core.BROADCAST, "broadcast", name, work, output, process_set, root=root_rank, flags=flags
    )
    if in_place and work is not tensor:
        return Finishing(handle, lambda _: copy_back(tensor, work))
    return handle


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, root_rank: int, name: str | None, process_set: ProcessSet
    ) -> torch.Tensor:
        ctx.root_rank = root_rank
        ctx.process_set = process_set
        return _broadcast(tensor, False, root_rank, name, process_set, WAIT).wait()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        reduced = allreduce(grad, op=_core.AVERAGE, process_set=ctx.process_set)
        if _core.rank() != ctx.root_rank:
            reduced.zero_()
        return reduced, None, None, None


def broadcast(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """The root's tensor, on every rank. Differentiable; the root's gradient is the average of the
    ranks' gradients and the others' is zero, as in Horovod."""
    if needs_grad(tensor):
        return _Broadcast.apply(tensor, root_rank, name, process_set)
    return _broadcast(tensor, False, root_rank, name, process_set, WAIT).wait()


def broadcast_async(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts a broadcast; returns a handle."""
    return register(_broadcast(tensor, False, root_rank, name, process_set, 0))


def broadcast_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """As :func:`broadcast`, into the tensor itself. Not differentiable."""
    return _broadcast(tensor, True, root_rank, name, process_set, WAIT).wait()


def broadcast_async_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts an in-place broadcast; returns a handle."""
    return register(_broadcast(tensor, True, root_rank, name, process_set, 0))
