"""The collectives on tensors, with Horovod's names, arguments and results.

Every operation has a name that is the same on all ranks; ranks may start operations in any order.
The names on the wire are ``<op>.<name>``, or ``<op>.noname.<n>`` where the caller gave none, and
members of a group have ``_<i>of<n>`` appended. ``n`` counts the unnamed asynchronous operations of
a kind since init, and starts again after 16384, so that the engine does not have to remember names
without end. Unnamed blocking operations are all number 0: so they find their place in the engine's
cache again. While number 0 is under way in another Python thread they are numbered as the
asynchronous ones are. Ranks can differ in that, so threads that run operations of one kind at once
should name them.

Tensors are in CPU memory. hora takes what Horovod refuses where it is safe: tensors that are not
contiguous are copied (and the result copied back when the operation is in place), and reductions
work on all of hora's types.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, Callable, Sequence

import torch

from hora import _core
from hora.common import basics as _basics
from hora.common.basics import (
    ccl_built, cross_rank, cross_size, cuda_built, ddl_built, gloo_built, gloo_enabled, init,
    is_homogeneous, is_initialized, local_rank, local_size, mpi_built, mpi_enabled,
    mpi_threads_supported, nccl_built, rank, rocm_built, shutdown, size,
)  # fmt: skip
from hora.common.exceptions import HorovodInternalError
from hora.common.process_sets import ProcessSet, check_process_set, global_process_set
from hora.common.util import choose_op
from hora.torch.compression import Compression, Compressor

__all__ = [
    "Average", "Sum", "Adasum", "Min", "Max", "Product", "HorovodInternalError",
    "init", "shutdown", "is_initialized", "rank", "size", "local_rank", "local_size",
    "cross_rank", "cross_size", "is_homogeneous", "mpi_threads_supported", "mpi_enabled",
    "mpi_built", "gloo_enabled", "gloo_built", "nccl_built", "ddl_built", "ccl_built",
    "cuda_built", "rocm_built", "allreduce", "allreduce_", "allreduce_async", "allreduce_async_",
    "grouped_allreduce", "grouped_allreduce_", "grouped_allreduce_async",
    "grouped_allreduce_async_", "sparse_allreduce_async", "allgather", "allgather_async",
    "grouped_allgather", "grouped_allgather_async", "broadcast", "broadcast_", "broadcast_async",
    "broadcast_async_", "alltoall", "alltoall_async", "reducescatter", "reducescatter_async",
    "grouped_reducescatter", "grouped_reducescatter_async", "barrier", "poll", "synchronize",
]  # fmt: skip

Average = _core.AVERAGE
Sum = _core.SUM
Adasum = _core.ADASUM
Min = _core.MIN
Max = _core.MAX
Product = _core.PRODUCT

_WAIT = _core.WILL_WAIT

# What synchronize() makes of a finished operation.
_Finish = Callable[["_core.Handle"], Any]

# Handle number -> the engine's handle and what to do when it is done.
_operations: dict[int, tuple[Any, _Finish]] = {}
_next_handle = itertools.count(1).__next__
_unnamed: dict[str, Any] = {}
_UNNAMED_MAX = 16384


def _forget() -> None:
    """A new job: numbering starts afresh, so that ranks that come and go agree."""
    _operations.clear()
    _unnamed.clear()


_basics.on_reset(_forget)


# ---- Starting and finishing ----------------------------------------------------------------------


def _full_name(kind: str, name: str | None, flags: int) -> str:
    if name is not None:
        return f"{kind}.{name}"
    if flags & _WAIT:
        return f"{kind}.noname.0"
    count = _unnamed.get(kind)
    if count is None:
        count = _unnamed.setdefault(kind, itertools.count().__next__)
    return f"{kind}.noname.{count() % _UNNAMED_MAX + 1}"


@functools.lru_cache(maxsize=4096)
def _group_names(base: str, count: int) -> tuple[str, ...]:
    return tuple(f"{base}_{i}of{count}" for i in range(1, count + 1))


def _register(handle: Any, finish: _Finish) -> int:
    number = _next_handle()
    _operations[number] = handle, finish
    return number


def _wait(handle: Any, finish: _Finish) -> Any:
    handle.wait()
    return finish(handle)


def poll(handle: int) -> bool:
    """True when the operation is done, well or not: :func:`synchronize` will not block."""
    if handle not in _operations:
        raise ValueError(f"there is no operation with handle {handle!r}")
    return _operations[handle][0].poll()


def synchronize(handle: int) -> Any:
    """Waits for an operation, forgets its handle, and returns its result: a tensor, a tuple of
    tensors for a group, or (tensor, received splits) for alltoall. None for an unknown handle.
    Raises HorovodInternalError if the operation failed."""
    operation = _operations.pop(handle, None)
    if operation is None:
        return None
    return _wait(*operation)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values in contiguous memory: itself, if they lie so."""
    if tensor.is_sparse:
        raise ValueError("sparse tensors: use sparse_allreduce_async")
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.detach().resolve_neg().contiguous()


def _copy_back(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    if target is not source:
        with torch.no_grad():
            target.copy_(source)
    return target


def _first_output(handle: Any) -> torch.Tensor:
    return handle.tensor(0)[0]


def _all_outputs(count: int) -> _Finish:
    return lambda handle: tuple(handle.tensor(i)[0] for i in range(count))


def _needs_grad(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def _check(process_set: ProcessSet) -> None:
    if process_set is not global_process_set:
        check_process_set(process_set)


def _begin(
    kind: int,
    prefix: str,
    name: str | None,
    tensor: Any,
    output: Any,
    op: int = _core.SUM,
    prescale: float = 1.0,
    postscale: float = 1.0,
    root: int = 0,
    splits: Any = None,
    flags: int = 0,
) -> Any:
    """Starts an operation on a tensor, or on a tuple of tensors, which form a group."""
    how = tensor, output, op, prescale, postscale, root, splits, flags
    count = len(tensor) if type(tensor) is tuple else 0
    full_name = _full_name(prefix, name, flags)
    try:
        return _core.enqueue(kind, _group_names(full_name, count) if count else full_name, *how)
    except ValueError as error:
        busy = getattr(error, "status", None) == _core.DUPLICATE_NAME
        if name is not None or not flags & _WAIT or not busy:
            raise
    full_name = _full_name(prefix, None, 0)
    return _core.enqueue(kind, _group_names(full_name, count) if count else full_name, *how)


# ---- allreduce -----------------------------------------------------------------------------------


def _allreduce(
    tensor: torch.Tensor, in_place: bool, name: str | None, op: int, prescale: float,
    postscale: float, flags: int,
) -> tuple[Any, _Finish]:  # fmt: skip
    work = _dense(tensor)
    output = work if in_place else torch.empty_like(work)
    handle = _begin(
        _core.ALLREDUCE, "allreduce", name, work, output, op, prescale, postscale, flags=flags
    )
    if in_place:
        return handle, lambda _: _copy_back(tensor, work)
    return handle, lambda _: output


class _Allreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, name: str | None, *how: Any) -> torch.Tensor:
        ctx.how = how
        return _wait(*_allreduce(tensor, False, name, *how, _WAIT))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        op, prescale, postscale = ctx.how
        reduced = allreduce(grad, op=op, prescale_factor=prescale, postscale_factor=postscale)
        return reduced, None, None, None, None


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
    _check(process_set)
    op = choose_op(op, average)
    small, context = compression.compress(tensor)
    if _needs_grad(small):
        result = _Allreduce.apply(small, name, op, prescale_factor, postscale_factor)
    else:
        result = _wait(
            *_allreduce(small, False, name, op, prescale_factor, postscale_factor, _WAIT)
        )
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
    _check(process_set)
    op = choose_op(op, average)
    return _register(
        *_allreduce(tensor, False, name, op, prescale_factor, postscale_factor, 0)
    )


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
    _check(process_set)
    op = choose_op(op, average)
    return _wait(*_allreduce(tensor, True, name, op, prescale_factor, postscale_factor, _WAIT))


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
    _check(process_set)
    op = choose_op(op, average)
    return _register(*_allreduce(tensor, True, name, op, prescale_factor, postscale_factor, 0))


# ---- grouped allreduce ---------------------------------------------------------------------------


def _grouped_allreduce(
    tensors: Sequence[torch.Tensor], in_place: bool, name: str | None, op: int, prescale: float,
    postscale: float, flags: int,
) -> tuple[Any, _Finish]:  # fmt: skip
    tensors = tuple(tensors)
    work = tuple(map(_dense, tensors))
    outputs = work if in_place else tuple(map(torch.empty_like, work))
    handle = _begin(
        _core.ALLREDUCE, "grouped_allreduce", name, work, outputs, op, prescale, postscale,
        flags=flags,
    )  # fmt: skip
    if in_place:
        return handle, lambda _: tuple(map(_copy_back, tensors, work))
    return handle, lambda _: outputs


class _GroupedAllreduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, op: int, prescale: float, postscale: float,
                *tensors: torch.Tensor) -> Any:  # fmt: skip
        ctx.how = op, prescale, postscale
        return _wait(*_grouped_allreduce(tensors, False, name, op, prescale, postscale, _WAIT))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        op, prescale, postscale = ctx.how
        reduced = grouped_allreduce(
            grads, op=op, prescale_factor=prescale, postscale_factor=postscale
        )
        return None, None, None, None, *reduced


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
    _check(process_set)
    op = choose_op(op, average)
    pairs = [compression.compress(tensor) for tensor in tensors]
    small = [tensor for tensor, _ in pairs]
    how = op, prescale_factor, postscale_factor
    if _needs_grad(*small):
        results = _GroupedAllreduce.apply(name, *how, *small)
    else:
        results = _wait(*_grouped_allreduce(small, False, name, *how, _WAIT))
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
    _check(process_set)
    op = choose_op(op, average)
    return _register(
        *_grouped_allreduce(tensors, False, name, op, prescale_factor, postscale_factor, 0)
    )


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
    _check(process_set)
    op = choose_op(op, average)
    return _wait(
        *_grouped_allreduce(tensors, True, name, op, prescale_factor, postscale_factor, _WAIT)
    )


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
    _check(process_set)
    op = choose_op(op, average)
    return _register(
        *_grouped_allreduce(tensors, True, name, op, prescale_factor, postscale_factor, 0)
    )


def sparse_allreduce_async(
    tensor: torch.Tensor,
    name: str | None,
    op: int,
    process_set: ProcessSet = global_process_set,
) -> Callable[[], torch.Tensor]:
    """Starts the sum or average of a sparse COO tensor over all ranks, as two allgathers. Returns a
    function that waits for it and returns the sparse result."""
    if op not in (Average, Sum):
        raise ValueError("sparse_allreduce_async takes op Average or Sum")
    tensor = tensor.coalesce()
    suffix = (None, None) if name is None else (f"{name}.indices", f"{name}.values")
    rows = tensor.indices().t().contiguous()
    indices = allgather_async(rows, name=suffix[0], process_set=process_set)
    values = allgather_async(tensor.values(), name=suffix[1], process_set=process_set)

    def finish() -> torch.Tensor:
        where = synchronize(indices).t()
        what = synchronize(values)
        if op == Average:
            what = what / process_set.size()
        return torch.sparse_coo_tensor(where, what, tensor.shape, check_invariants=False).coalesce()

    return finish


# ---- allgather -----------------------------------------------------------------------------------


def _allgather(tensor: torch.Tensor, name: str | None, flags: int) -> tuple[Any, _Finish]:
    handle = _begin(_core.ALLGATHER, "allgather", name, _dense(tensor), None, flags=flags)
    return handle, _first_output


def _grouped_allgather(
    tensors: Sequence[torch.Tensor], name: str | None, flags: int
) -> tuple[Any, _Finish]:
    work = tuple(map(_dense, tensors))
    handle = _begin(_core.ALLGATHER, "grouped_allgather", name, work, None, flags=flags)
    return handle, _all_outputs(len(work))


def _gathered_grads(grads: Sequence[torch.Tensor], rows: Sequence[int]) -> list[torch.Tensor]:
    """The part of each gathered gradient that belongs to this rank's rows, averaged."""
    reduced = grouped_allreduce(grads, op=Average)
    counts = allgather(torch.tensor([rows], dtype=torch.int64))
    before = counts[: rank()].sum(dim=0).tolist()
    return [grad.narrow(0, at, n) for grad, at, n in zip(reduced, before, rows)]


class _Allgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, name: str | None) -> torch.Tensor:
        result = _wait(*_allgather(tensor, name, _WAIT))
        ctx.rows = tensor.shape[0]
        return result

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _gathered_grads([grad], [ctx.rows])[0], None


class _GroupedAllgather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, *tensors: torch.Tensor) -> Any:
        results = _wait(*_grouped_allgather(tensors, name, _WAIT))
        ctx.rows = [tensor.shape[0] for tensor in tensors]
        return results

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, *_gathered_grads(grads, ctx.rows)


def allgather(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> torch.Tensor:
    """Concatenates the ranks' tensors along dimension 0, in which they may differ. Differentiable;
    the gradient is the average of the ranks' gradients for this rank's rows, as in Horovod."""
    _check(process_set)
    if _needs_grad(tensor):
        return _Allgather.apply(tensor, name)
    return _wait(*_allgather(tensor, name, _WAIT))


def allgather_async(
    tensor: torch.Tensor, name: str | None = None, process_set: ProcessSet = global_process_set
) -> int:
    """Starts an allgather; returns a handle."""
    _check(process_set)
    return _register(*_allgather(tensor, name, 0))


def grouped_allgather(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> tuple[torch.Tensor, ...]:
    """As :func:`allgather` for a list of tensors, which are gathered together."""
    _check(process_set)
    if _needs_grad(*tensors):
        return _GroupedAllgather.apply(name, *tensors)
    return _wait(*_grouped_allgather(tensors, name, _WAIT))


def grouped_allgather_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """As :func:`allgather_async` for a list of tensors; one handle for all."""
    _check(process_set)
    return _register(*_grouped_allgather(tensors, name, 0))


# ---- broadcast -----------------------------------------------------------------------------------


def _broadcast(
    tensor: torch.Tensor, in_place: bool, root_rank: int, name: str | None, flags: int
) -> tuple[Any, _Finish]:
    work = _dense(tensor)
    output = work if in_place else torch.empty_like(work)
    handle = _begin(
        _core.BROADCAST, "broadcast", name, work, output, root=root_rank, flags=flags
    )
    if in_place:
        return handle, lambda _: _copy_back(tensor, work)
    return handle, lambda _: output


class _Broadcast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, root_rank: int, name: str | None) -> torch.Tensor:
        ctx.root_rank = root_rank
        return _wait(*_broadcast(tensor, False, root_rank, name, _WAIT))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        reduced = allreduce(grad, op=Average)
        if rank() != ctx.root_rank:
            reduced.zero_()
        return reduced, None, None


def broadcast(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """The root's tensor, on every rank. Differentiable; the root's gradient is the average of the
    ranks' gradients and the others' is zero, as in Horovod."""
    _check(process_set)
    if _needs_grad(tensor):
        return _Broadcast.apply(tensor, root_rank, name)
    return _wait(*_broadcast(tensor, False, root_rank, name, _WAIT))


def broadcast_async(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts a broadcast; returns a handle."""
    _check(process_set)
    return _register(*_broadcast(tensor, False, root_rank, name, 0))


def broadcast_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> torch.Tensor:
    """As :func:`broadcast`, into the tensor itself. Not differentiable."""
    _check(process_set)
    return _wait(*_broadcast(tensor, True, root_rank, name, _WAIT))


def broadcast_async_(
    tensor: torch.Tensor,
    root_rank: int,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts an in-place broadcast; returns a handle."""
    _check(process_set)
    return _register(*_broadcast(tensor, True, root_rank, name, 0))


# ---- alltoall ------------------------------------------------------------------------------------


def _alltoall(
    tensor: torch.Tensor, splits: Any, name: str | None, flags: int
) -> tuple[Any, _Finish]:
    dtype = splits.dtype if isinstance(splits, torch.Tensor) else torch.int32
    if isinstance(splits, torch.Tensor):
        if splits.dim() != 1 or splits.dtype.is_floating_point or splits.dtype.is_complex:
            raise ValueError("splits must be a one-dimensional tensor of integers")
        splits = splits.tolist()
    if splits is not None and len(splits) != size():
        raise ValueError(f"splits must have one entry per rank: {size()}, not {len(splits)}")
    rows = tensor.shape[0] if tensor.dim() else 1

    def finish(handle: Any) -> tuple[torch.Tensor, torch.Tensor]:
        output, received = handle.tensor(0)
        return output, torch.tensor(received, dtype=dtype)

    if splits is not None and (min(splits) < 0 or sum(splits) > rows):
        raise ValueError(
            f"splits must be at least 0 and add up to at most the tensor's {rows} rows: {splits}"
        )
    work = _dense(tensor)
    if splits is not None and sum(splits) < rows:
        work = work[: sum(splits)]
    handle = _begin(_core.ALLTOALL, "alltoall", name, work, None, splits=splits, flags=flags)
    return handle, finish


class _Alltoall(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, splits: Any, name: str | None) -> Any:
        output, received = _wait(*_alltoall(tensor, splits, name, _WAIT))
        ctx.received = received
        ctx.shape = tensor.shape
        ctx.mark_non_differentiable(received)
        return output, received

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: Any) -> Any:
        returned, _ = alltoall(grad, splits=ctx.received)
        if returned.shape != ctx.shape:  # rows that were sent to nobody
            whole = returned.new_zeros(ctx.shape)
            whole[: returned.shape[0]] = returned
            returned = whole
        return returned, None, None


def alltoall(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Sends ``splits[r]`` rows of the tensor to rank r (equal parts if None) and returns the rows
    that came from all ranks, in rank order; with ``splits`` given, also a tensor of how many came
    from each. Differentiable."""
    _check(process_set)
    if _needs_grad(tensor):
        output, received = _Alltoall.apply(tensor, splits, name)
    else:
        output, received = _wait(*_alltoall(tensor, splits, name, _WAIT))
    return output if splits is None else (output, received)


def alltoall_async(
    tensor: torch.Tensor,
    splits: Any = None,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> int:
    """Starts an alltoall; returns a handle, whose result is always (tensor, received splits)."""
    _check(process_set)
    return _register(*_alltoall(tensor, splits, name, 0))


# ---- reducescatter -------------------------------------------------------------------------------


def _reducescatter(
    tensor: torch.Tensor, name: str | None, op: int, prescale: float, postscale: float, flags: int
) -> tuple[Any, _Finish]:
    work = _dense(tensor)
    handle = _begin(
        _core.REDUCESCATTER, "reducescatter", name, work, None, op, prescale, postscale,
        flags=flags,
    )  # fmt: skip
    return handle, _first_output


def _grouped_reducescatter(
    tensors: Sequence[torch.Tensor], name: str | None, op: int, prescale: float,
    postscale: float, flags: int,
) -> tuple[Any, _Finish]:  # fmt: skip
    work = tuple(map(_dense, tensors))
    handle = _begin(
        _core.REDUCESCATTER, "grouped_reducescatter", name, work, None, op, prescale, postscale,
        flags=flags,
    )  # fmt: skip
    return handle, _all_outputs(len(work))


def _scattered_grads(
    grads: Sequence[torch.Tensor], op: int, prescale: float, postscale: float
) -> tuple[torch.Tensor, ...]:
    if op not in (Average, Sum):
        raise ValueError("reducescatter is differentiable for op Average and Sum only")
    scale = prescale * postscale * (size() if op == Sum else 1)
    return grouped_allgather([grad * scale if scale != 1 else grad for grad in grads])


class _Reducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, name: str | None, *how: Any) -> torch.Tensor:
        ctx.how = how
        return _wait(*_reducescatter(tensor, name, *how, _WAIT))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        return _scattered_grads([grad], *ctx.how)[0], None, None, None, None


class _GroupedReducescatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str | None, op: int, prescale: float, postscale: float,
                *tensors: torch.Tensor) -> Any:  # fmt: skip
        ctx.how = op, prescale, postscale
        return _wait(*_grouped_reducescatter(tensors, name, op, prescale, postscale, _WAIT))

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return None, None, None, None, *_scattered_grads(grads, *ctx.how)


def reducescatter(
    tensor: torch.Tensor,
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: int = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> torch.Tensor:
    """Reduces the tensor over all ranks and returns this rank's share of the rows; the first ranks
    take the remainder. Differentiable for Average and Sum, with Horovod's convention: the gradient
    of Sum is multiplied by the number of ranks."""
    _check(process_set)
    small, context = compression.compress(tensor)
    how = op, prescale_factor, postscale_factor
    if _needs_grad(small):
        result = _Reducescatter.apply(small, name, *how)
    else:
        result = _wait(*_reducescatter(small, name, *how, _WAIT))
    return compression.decompress(result, context)


def reducescatter_async(
    tensor: torch.Tensor,
    name: str | None = None,
    op: int = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> int:
    """Starts a reducescatter; returns a handle."""
    _check(process_set)
    return _register(*_reducescatter(tensor, name, op, prescale_factor, postscale_factor, 0))


def grouped_reducescatter(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    compression: type[Compressor] = Compression.none,
    op: int = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> list[torch.Tensor]:
    """As :func:`reducescatter` for a list of tensors, which are reduced together."""
    _check(process_set)
    pairs = [compression.compress(tensor) for tensor in tensors]
    small = [tensor for tensor, _ in pairs]
    how = op, prescale_factor, postscale_factor
    if _needs_grad(*small):
        results = _GroupedReducescatter.apply(name, *how, *small)
    else:
        results = _wait(*_grouped_reducescatter(small, name, *how, _WAIT))
    return [compression.decompress(out, context) for out, (_, context) in zip(results, pairs)]


def grouped_reducescatter_async(
    tensors: Sequence[torch.Tensor],
    name: str | None = None,
    op: int = Average,
    process_set: ProcessSet = global_process_set,
    prescale_factor: float = 1.0,
    postscale_factor: float = 1.0,
) -> int:
    """As :func:`reducescatter_async` for a list of tensors; one handle for all."""
    _check(process_set)
    return _register(
        *_grouped_reducescatter(tensors, name, op, prescale_factor, postscale_factor, 0)
    )


# ---- barrier -------------------------------------------------------------------------------------


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Returns when every rank has called it."""
    _check(process_set)
    _begin(_core.BARRIER, "barrier", None, None, None, flags=_WAIT).wait()
