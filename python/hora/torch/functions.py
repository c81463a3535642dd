"""Broadcasting parameters and optimizer state, and exchanging Python objects.

Objects travel as pickles, as in Horovod, and through CPU memory, whatever torch's default device is.
Unpickling runs code that the sender chose: these functions trust the other ranks of the job. Where
the job has a secret (HORA_SECRET, which `hora run` sets), every rank has proved to know it. What
pickle cannot do (lambdas, classes made in functions) is left to cloudpickle if that is installed.
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

# Broadcasts move bytes, so types that no reduction knows (complex, some 8-bit floats) travel as uint8.
_BROADCASTABLE = frozenset({
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
})  # fmt: skip


def broadcast_parameters(
    params: Mapping[str, Any] | Iterable[Any],
    root_rank: int,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Gives every rank the root's values, in place. ``params``: a dict (``model.state_dict()``), or
    parameters or (name, parameter) pairs (``model.named_parameters()``). Entries that are no tensor
    are left alone. Ranks outside of ``process_set`` return at once; the root is a rank of the
    job."""
    if isinstance(params, Mapping):
        pairs = sorted(params.items())
    elif isinstance(params, Iterable) and not isinstance(params, (str, torch.Tensor)):
        pairs = [p if isinstance(p, tuple) else (None, p) for p in params]
    else:
        raise ValueError("invalid params of type: %s" % type(params))
    if not process_set.included():
        return
    started = [
        _start_broadcast(p, root_rank, name, process_set)
        for name, p in pairs
        if isinstance(p, torch.Tensor)
    ]
    for handle, target, copy in started:
        synchronize(handle)
        if copy is not target:
            with torch.no_grad():
                target.copy_(copy)


def _start_broadcast(
    target: torch.Tensor, root_rank: int, name: str | None, process_set: ProcessSet
) -> tuple[int, torch.Tensor, torch.Tensor]:
    """The handle, the tensor, and where its new values will be."""
    values = target
    wire = target
    if target.dtype not in _BROADCASTABLE:
        values = target.detach()
        if not values.is_contiguous() or values.is_conj() or values.is_neg():
            values = values.resolve_conj().resolve_neg().contiguous()
        wire = values.reshape(-1).view(torch.uint8)
        values = target if values.data_ptr() == target.data_ptr() else values
    return broadcast_async_(wire, root_rank, name, process_set), target, values


# ---- Objects -------------------------------------------------------------------------------------


def _to_bytes(obj: Any) -> torch.Tensor:
    try:
        data = pickle.dumps(obj)
    except (pickle.PicklingError, AttributeError, TypeError):
        try:
            import cloudpickle
        except ImportError:
            cloudpickle = None
        if cloudpickle is None:
            raise
        data = cloudpickle.dumps(obj)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _try_to_bytes(obj: Any) -> tuple[torch.Tensor | None, Exception | None]:
    """What cannot be pickled must not leave the other ranks waiting: they are told."""
    try:
        return _to_bytes(obj), None
    except Exception as error:
        return None, error


def _from_bytes(data: torch.Tensor) -> Any:
    return pickle.loads(data.numpy() if _has_numpy() else bytes(data))


def _has_numpy() -> bool:
    try:
        import numpy  # noqa: F401
    except ImportError:
        return False
    return True


def broadcast_object(
    obj: Any,
    root_rank: int = 0,
    name: str | None = None,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Returns the root's object on every rank. ``obj`` matters on the root only. Where the root
    cannot pickle it, the root raises what pickle does, and the others RuntimeError."""
    name = "broadcast_object" if name is None else name
    i_am_root = rank() == root_rank
    data, error = _try_to_bytes(obj) if i_am_root else (None, None)
    count = torch.tensor([-1 if data is None else len(data)], device="cpu")
    broadcast_(count, root_rank, f"{name}.sz", process_set)
    if error is not None:
        raise error
    if count.item() < 0:
        raise RuntimeError(f"broadcast_object: rank {root_rank} could not pickle its object")
    if not i_am_root:
        data = torch.empty(count.item(), dtype=torch.uint8, device="cpu")
    broadcast_(data, root_rank, f"{name}.t", process_set)
    return obj if i_am_root else _from_bytes(data)


def allgather_object(
    obj: Any, name: str | None = None, process_set: ProcessSet = global_process_set
) -> list[Any]:
    """Returns every rank's object, in rank order. Where a rank cannot pickle its own, that rank
    raises what pickle does, and the others RuntimeError."""
    name = "allgather_object" if name is None else name
    data, error = _try_to_bytes(obj)
    count = torch.tensor([-1 if data is None else len(data)], device="cpu")
    counts = allgather(count, name=f"{name}.sz", process_set=process_set).tolist()
    if error is not None:
        raise error
    if min(counts) < 0:
        rank_of_it = process_set.ranks[counts.index(min(counts))]
        raise RuntimeError(f"allgather_object: rank {rank_of_it} could not pickle its object")
    gathered = allgather(data, name=f"{name}.t", process_set=process_set)
    return [_from_bytes(part) for part in gathered.split(counts)]


# ---- Optimizer state -----------------------------------------------------------------------------


class _Slot(NamedTuple):
    """Stands for a tensor in the description of an optimizer's state."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str  # "cpu", or "cuda": each rank's own


def _describe(value: Any, tensors: list[torch.Tensor]) -> Any:
    """The value with a slot for each tensor, which goes to ``tensors``."""
    if isinstance(value, torch.Tensor) and value.layout == torch.strided:
        tensors.append(value)
        return _Slot(len(tensors) - 1, tuple(value.shape), value.dtype, value.device.type)
    if isinstance(value, dict):
        return {key: _describe(item, tensors) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_describe(item, tensors) for item in value)
    return value


def _fill(value: Any, tensors: list[torch.Tensor], cuda: torch.device | str) -> Any:
    """Undoes :func:`_describe` with new tensors, which go to ``tensors`` in their order; those on a GPU
    to ``cuda``."""
    if isinstance(value, _Slot):
        device = cuda if value.device == "cuda" else value.device
        tensors.append(torch.empty(value.shape, dtype=value.dtype, device=device))
        return tensors[-1]
    if isinstance(value, dict):
        return {key: _fill(item, tensors, cuda) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_fill(item, tensors, cuda) for item in value)
    return value


def _gpu_of(optimizer: torch.optim.Optimizer) -> torch.device | str:
    """Where this rank's optimizer has its parameters on a GPU; the current GPU if it has none."""
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    return next((p.device for p in parameters if p.is_cuda), "cuda")


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
    optimizer: torch.optim.Optimizer,
    root_rank: int,
    model: torch.nn.Module | None = None,
    process_set: ProcessSet = global_process_set,
) -> None:
    """Gives every rank the root's optimizer state and options (learning rate, ...). The optimizers
    of the others may be fresh: no step is taken to create their state. ``model`` is not needed and
    is accepted as Horovod does. Ranks outside of ``process_set`` return at once."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("cannot broadcast torch.optim.LBFGS state")
    if not process_set.included():
        return
    tensors: list[torch.Tensor] = []
    i_am_root = rank() == root_rank
    state = _describe(optimizer.state_dict(), tensors) if i_am_root else None
    state = broadcast_object(state, root_rank, "optimizer_state", process_set)
    if not i_am_root:
        tensors = []
        state = _fill(state, tensors, _gpu_of(optimizer))
    named = [(f"optimizer_state.{i}", tensor) for i, tensor in enumerate(tensors)]
    broadcast_parameters(named, root_rank, process_set)
    if not i_am_root:
        _load(optimizer, state)
