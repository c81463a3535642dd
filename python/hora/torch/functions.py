"""Broadcasting parameters and optimizer state, and exchanging Python objects.

Objects travel as pickles, as in Horovod. Unpickling runs code that the sender chose: these functions
trust the other ranks of the job. Where the job has a secret (HORA_SECRET, which `hora run` sets),
every rank has proved to know it.
"""

from __future__ import annotations

import pickle
from typing import Any, Iterable, Mapping, NamedTuple

import torch

from hora.common.process_sets import ProcessSet, global_process_set
from hora.torch.mpi_ops import (
    allgather, broadcast_, broadcast_async_, rank, synchronize,
)  # fmt: skip

__all__ = [
    "broadcast_parameters", "broadcast_optimizer_state", "broadcast_object", "allgather_object",
]  # fmt: skip


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[Any], root_rank: int
) -> None:
    """Gives every rank the root's values, in place. ``params``: a dict (``model.state_dict()``), or
    parameters or (name, parameter) pairs (``model.named_parameters()``). Entries that are no tensor
    are left alone."""
    if isinstance(params, Mapping):
        pairs = sorted(params.items())
    elif isinstance(params, Iterable) and not isinstance(params, (str, torch.Tensor)):
        pairs = [p if isinstance(p, tuple) else (None, p) for p in params]
    else:
        raise ValueError("invalid params of type: %s" % type(params))
    handles = [
        broadcast_async_(p, root_rank, name) for name, p in pairs if isinstance(p, torch.Tensor)
    ]
    for handle in handles:
        synchronize(handle)


# ---- Objects -------------------------------------------------------------------------------------


def _to_bytes(obj: Any) -> torch.Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(obj)), dtype=torch.uint8)


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Returns the root's object on every rank. ``obj`` matters on the root only."""
    name = "broadcast_object" if name is None else name
    i_am_root = rank() == root_rank
    data = _to_bytes(obj) if i_am_root else None
    count = torch.tensor([len(data) if i_am_root else 0])
    broadcast_(count, root_rank, f"{name}.sz", process_set)
    if not i_am_root:
        data = torch.empty(count.item(), dtype=torch.uint8)
    broadcast_(data, root_rank, f"{name}.t", process_set)
    return obj if i_am_root else pickle.loads(data.numpy() if _has_numpy() else bytes(data))


def allgather_object(obj: Any, name: str | None = None) -> list[Any]:
    """Returns every rank's object, in rank order."""
    name = "allgather_object" if name is None else name
    data = _to_bytes(obj)
    counts = allgather(torch.tensor([len(data)]), name=f"{name}.sz").tolist()
    gathered = allgather(data, name=f"{name}.t")
    convert = torch.Tensor.numpy if _has_numpy() else bytes
    return [pickle.loads(convert(part)) for part in gathered.split(counts)]


def _has_numpy() -> bool:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


# ---- Optimizer state -----------------------------------------------------------------------------


class _Slot(NamedTuple):
    """Stands for a tensor in the description of an optimizer's state."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def _describe(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value with a slot for each tensor, which goes to ``tensors``."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Slot(len(tensors) - 1, tuple(value.shape), value.dtype)
    if isinstance(value, dict):
        return {key: _describe(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_describe(item, tensors) for item in value)
    return value


def _fill(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Undoes :func:`_describe` with new tensors, which go to ``tensors`` in their order."""
    if isinstance(value, _Slot):
        tensors.append(torch.empty(value.shape, dtype=value.dtype))
        return tensors[-1]
    if isinstance(value, dict):
        return {key: _fill(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_fill(item, tensors) for item in value)
    return value


def _keep_types(loaded: Any, sent: Any) -> Any:
    """``loaded``, with ``sent``'s tensors where torch has cast them to the parameter's type."""
    if isinstance(loaded, torch.Tensor):
        cast = isinstance(sent, torch.Tensor) and loaded.dtype != sent.dtype
        return sent.to(loaded.device) if cast else loaded
    if isinstance(loaded, dict) and isinstance(sent, dict):
        return {key: _keep_types(item, sent.get(key)) for key, item in loaded.items()}
    if type(loaded) in (list, tuple) and type(loaded) is type(sent):
        return type(loaded)(map(_keep_types, loaded, sent))
    return loaded


def _load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``optimizer.load_state_dict(state)``, but with tensors of the types they have on the root, in
    the same ``param_groups``: learning-rate schedulers hold on to these."""
    groups = optimizer.param_groups
    optimizer.load_state_dict(state)
    for group, loaded, sent in zip(groups, optimizer.param_groups, state["param_groups"]):
        group.clear()
        group.update(loaded)
        for parameter, number in zip(group["params"], sent["params"]):
            if number in state["state"]:
                values = optimizer.state[parameter]
                optimizer.state[parameter] = _keep_types(values, state["state"][number])
    optimizer.param_groups = groups


def broadcast_optimizer_state(
    optimizer: torch.optim.Optimizer, root_rank: int, model: torch.nn.Module | None = None
) -> None:
    """Gives every rank the root's optimizer state and options (learning rate, ...). The optimizers
    of the others may be fresh: no step is taken to create their state. ``model`` is not needed and
    is accepted as Horovod does."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("cannot broadcast torch.optim.LBFGS state")
    tensors: list[torch.Tensor] = []
    i_am_root = rank() == root_rank
    state = _describe(optimizer.state_dict(), tensors) if i_am_root else None
    state = broadcast_object(state, root_rank, "optimizer_state")
    if not i_am_root:
        tensors = []
        state = _fill(state, tensors)
    broadcast_parameters(
        [(f"optimizer_state.{i}", tensor) for i, tensor in enumerate(tensors)], root_rank
    )
    if not i_am_root:
        _load(optimizer, state)
