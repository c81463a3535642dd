"""What all collectives share: names, handles, starting, and waiting for the result.

Every operation has a name that is the same on all ranks of its process set; ranks may start
operations in any order. The names on the wire are ``<op>.<name>``, or ``<op>.noname.<n>`` where the
caller gave none, and members of a group have ``_<i>of<n>`` appended. ``n`` counts the unnamed
operations of a kind on a set, blocking or not, since init, or since the last join on the set: so
the n-th operation of a kind on one rank meets the n-th on the others, in whichever form, and
whenever this rank has seen earlier ones end. Numbers are used again after 4096, so that names find
their place in the engine's cache. If the operation that had the number before is still under way
then, the next one waits for its end before it starts. A call that is refused has used no number.
Threads that run operations of one kind at once on one set should name them, or they cannot know
whose they meet.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from typing import Any, Callable

import torch

from hora import _core
from hora.common import basics, process_sets
from hora.common.process_sets import ProcessSet, global_process_set, set_id

WAIT = _core.WILL_WAIT
_enqueue = _core.enqueue
_is_dense = _core.is_dense

# What has poll() and wait(), which returns the result: the engine's handle, if the result is the
# output that it was given, or Finishing.
Operation = Any


class Finishing:
    """An operation whose result is made when it is done: ``finish(handle)``."""

    __slots__ = "handle", "finish", "poll"

    def __init__(self, handle: Any, finish: Callable[[Any], Any]) -> None:
        self.handle, self.finish, self.poll = handle, finish, handle.poll

    def wait(self) -> Any:
        self.handle.wait()
        return self.finish(self.handle)


# Handle number -> the operation.
operations: dict[int, Operation] = {}
_next_handle = itertools.count(1).__next__
# (set, kind) -> how many unnamed operations have been started.
_unnamed: dict[tuple[int, str], int] = {}
_unnamed_lock = threading.Lock()
_UNNAMED_MAX = 4096


_core.tensors(torch.Tensor, global_process_set, operations, _next_handle)


def _forget() -> None:
    """A new job: numbering starts afresh, so that ranks that come and go agree."""
    operations.clear()
    _unnamed.clear()


def forget_unnamed(number: int) -> None:
    """Numbering on the set with this id starts afresh."""
    for key in [key for key in _unnamed if key[0] == number]:
        _unnamed.pop(key, None)


basics.on_reset(_forget)
process_sets.on_forget(forget_unnamed)


# ---- Starting ------------------------------------------------------------------------------------


def _take_number(key: tuple[int, str]) -> int:
    with _unnamed_lock:
        number = _unnamed.get(key, 0)
        _unnamed[key] = number + 1
    return number


def _give_back_number(key: tuple[int, str], number: int) -> None:
    """Of an operation that was refused. Not if another thread has taken the next one."""
    with _unnamed_lock:
        if _unnamed.get(key) == number + 1:
            _unnamed[key] = number


@functools.lru_cache(maxsize=4096)
def _group_names(base: str, count: int) -> tuple[str, ...]:
    return tuple(f"{base}_{i}of{count}" for i in range(1, count + 1))


def begin(
    kind: int,
    prefix: str,
    name: str | None,
    tensor: Any,
    output: Any,
    process_set: ProcessSet,
    op: int = _core.SUM,
    prescale: float = 1.0,
    postscale: float = 1.0,
    root: int = 0,
    splits: Any = None,
    flags: int = 0,
) -> Any:
    """Starts an operation on a tensor, or on a tuple of tensors, which form a group."""
    number = 0 if process_set is global_process_set else set_id(process_set)
    how = tensor, output, op, prescale, postscale, root, splits, flags, number
    if name is None:
        return _begin_unnamed(kind, prefix, how)
    return _enqueue(kind, _names(f"{prefix}.{name}", tensor), *how)


def _names(name: str, tensor: Any) -> Any:
    return _group_names(name, len(tensor)) if type(tensor) is tuple else name


def _begin_unnamed(kind: int, prefix: str, how: tuple[Any, ...]) -> Any:
    """Starts it; while another operation has its name, it waits."""
    key = how[-1], prefix
    count = _take_number(key)
    names = _names(f"{prefix}.noname.{count % _UNNAMED_MAX}", how[0])
    pause = 20e-6
    try:
        while True:
            try:
                return _enqueue(kind, names, *how)
            except ValueError as error:
                if getattr(error, "status", None) != _core.DUPLICATE_NAME:
                    raise
            time.sleep(pause)
            pause = min(pause * 1.5, 1e-3)
    except BaseException:
        _give_back_number(key, count)
        raise


def _check_type(tensor: Any) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"tensor must be a torch.Tensor, not {type(tensor).__name__}")


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor's values in contiguous memory: itself, if they lie so."""
    if _is_dense(tensor) and isinstance(tensor, torch.Tensor) and not tensor.is_neg():
        return tensor
    _check_type(tensor)
    if tensor.layout is not torch.strided:
        if tensor.is_sparse:
            raise ValueError("sparse tensors: use sparse_allreduce_async")
        raise ValueError(f"tensor must be a dense one, not one of layout {tensor.layout}")
    return tensor.detach().resolve_neg().contiguous()


def needs_grad(*tensors: torch.Tensor) -> bool:
    try:
        return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    except AttributeError:
        for tensor in tensors:
            _check_type(tensor)
        raise


# ---- Finishing -----------------------------------------------------------------------------------


def register(operation: Operation) -> int:
    number = _next_handle()
    operations[number] = operation
    return number


def poll(handle: int) -> bool:
    """True when the operation is done, well or not (on a GPU: queued): :func:`synchronize` will not
    block."""
    if handle not in operations:
        raise ValueError(f"there is no operation with handle {handle!r}")
    return operations[handle].poll()


def synchronize(handle: int) -> Any:
    """Waits for an operation, forgets its handle, and returns its result: a tensor, a tuple of
    tensors for a group, or (tensor, received splits) for alltoall. None for an unknown handle.
    Raises HorovodInternalError if the operation failed. The result of tensors on a GPU may be used at
    once on the stream that is current here."""
    operation = operations.pop(handle, None)
    return None if operation is None else operation.wait()


def read_here(temporary: torch.Tensor) -> None:
    """The current stream reads it before it is dropped: its memory, which may have come from the stream
    of the enqueue, is given out again there only after that."""
    if temporary.is_cuda:
        temporary.record_stream(torch.cuda.current_stream(temporary.device))


def copy_back(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    if target is not source:
        read_here(source)
        with torch.no_grad():
            target.copy_(source)
    return target


def first_output(handle: Any) -> torch.Tensor:
    return handle.tensor(0)[0]


def all_outputs(count: int) -> Callable[[Any], Any]:
    return lambda handle: tuple(handle.tensor(i)[0] for i in range(count))


# ---- Without a tensor ----------------------------------------------------------------------------


def barrier(process_set: ProcessSet = global_process_set) -> None:
    """Returns when every rank of the process set has called it."""
    begin(_core.BARRIER, "barrier", None, None, None, process_set, flags=WAIT).wait()


def join(device: int = -1, process_set: ProcessSet = global_process_set) -> int:
    """Says that this rank has no more data, and takes part in the operations of the others, with
    neutral values, until all ranks have called it. Returns the rank (of the job) that was last.
    ``device`` is ignored: a rank that has used no GPU so far takes the one of its local rank, if the
    others go on with tensors on theirs. Unnamed operations are numbered afresh after it."""
    number = set_id(process_set)
    last = torch.full((1,), -1, dtype=torch.int32, device="cpu")
    begin(_core.JOIN, "join", "all", None, last, process_set, flags=WAIT).wait()
    forget_unnamed(number)
    return process_set.ranks[int(last)]
