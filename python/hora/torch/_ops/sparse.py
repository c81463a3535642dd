"""sparse_allreduce_async: the sum of sparse tensors by two allgathers.

The gathering of the indices has the name that an allreduce of the dense tensor has: a rank that
reduces a dense one under the same name gets an error at once, as all others do, instead of waiting.
"""

from __future__ import annotations

from typing import Callable

import torch

from hora import _core
from hora.common.process_sets import ProcessSet, global_process_set
from hora.torch._ops.allgather import allgather_async
from hora.torch._ops.start import Finishing, begin, first_output, register, synchronize


def sparse_allreduce_async(
    tensor: torch.Tensor,
    name: str | None,
    op: int,
    process_set: ProcessSet = global_process_set,
) -> Callable[[], torch.Tensor]:
    """Starts the sum or average of a sparse COO tensor over all ranks, as two allgathers. Returns a
    function that waits for it and returns the sparse result."""
    if op not in (_core.AVERAGE, _core.SUM):
        raise ValueError("sparse_allreduce_async takes op Average or Sum")
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.sparse_coo:
        what = getattr(tensor, "layout", type(tensor).__name__)
        raise ValueError(f"tensor must be a torch.Tensor of layout torch.sparse_coo, not {what}")
    tensor = tensor.coalesce()
    rows = tensor.indices().t().contiguous()
    prefix = "allgather" if name is None else "allreduce"
    gathering = begin(_core.ALLGATHER, prefix, name, rows, None, process_set)
    indices = register(Finishing(gathering, first_output))
    values_name = None if name is None else f"{name}.values"
    values = allgather_async(tensor.values(), name=values_name, process_set=process_set)

    def finish() -> torch.Tensor:
        where = synchronize(indices).t()
        what = synchronize(values)
        if op == _core.AVERAGE:
            what = what / process_set.size()
        return torch.sparse_coo_tensor(
            where, what, tensor.shape, device=what.device, check_invariants=False
        ).coalesce()

    return finish
