"""The state of a training with PyTorch: what it consists of, and how each part is kept."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch

from hora.common.elastic import ObjectState
from hora.torch import mpi_ops
from hora.torch.elastic.sampler import ElasticSampler, Progress
from hora.torch.functions import (
    allgather_object, broadcast_object, broadcast_optimizer_state, broadcast_parameters,
)  # fmt: skip

__all__ = ["SamplerStateHandler", "StateHandler", "TorchState"]


class StateHandler:
    """Keeps one part of the state, by its state_dict. Other kinds of objects are handled so too, if
    they have state_dict and load_state_dict: learning-rate schedulers, gradient scalers."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self.save()

    def set_value(self, value: Any) -> None:
        self.value = value
        self.save()

    def save(self) -> None:
        self._saved = copy.deepcopy(self.value.state_dict())

    def restore(self) -> None:
        self.value.load_state_dict(copy.deepcopy(self._saved))

    def sync(self) -> None:
        state = broadcast_object(self.value.state_dict(), name="elastic.state")
        if mpi_ops.rank() != 0:
            self.value.load_state_dict(state)
        self.save()


class ModelStateHandler(StateHandler):
    """Copies of the tensors are made once and filled again."""

    def save(self) -> None:
        old = getattr(self, "_saved", {})
        new = {}
        with torch.no_grad():
            for name, value in self.value.state_dict().items():
                kept = old.get(name)
                if not isinstance(value, torch.Tensor):
                    new[name] = copy.deepcopy(value)
                elif isinstance(kept, torch.Tensor) and _alike(kept, value):
                    new[name] = kept.copy_(value)
                else:
                    new[name] = value.detach().clone()
        self._saved = new

    def restore(self) -> None:
        self.value.load_state_dict(self._saved)  # which copies

    def sync(self) -> None:
        broadcast_parameters(self.value.state_dict(), root_rank=0)
        self.save()


class OptimizerStateHandler(StateHandler):
    def sync(self) -> None:
        broadcast_optimizer_state(self.value, root_rank=0)
        self.save()


class SamplerStateHandler(StateHandler):
    """Each rank knows what it has processed; together they know all."""

    def save(self) -> None:
        """A commit comes after each batch, so the set of what is done is only made by restore()."""
        if type(self.value).state_dict is ElasticSampler.state_dict:
            self._saved = self.value.progress()
        else:
            self._saved = copy.deepcopy(self.value.state_dict())

    def restore(self) -> None:
        saved = self._saved
        self.value.load_state_dict(saved.state_dict() if isinstance(saved, Progress) else saved)

    def sync(self) -> None:
        states = allgather_object(self.value.state_dict(), name="elastic.sampler")
        first = states[0]
        done: set[int] = set()
        for state in states:
            if state["epoch"] == first["epoch"]:
                done |= state["processed_indices"]
        self.value.load_state_dict({**first, "processed_indices": done})
        self.save()


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def _make_handler(value: Any) -> StateHandler | None:
    if isinstance(value, torch.nn.Module):
        return ModelStateHandler(value)
    if isinstance(value, torch.optim.Optimizer):
        return OptimizerStateHandler(value)
    if isinstance(value, ElasticSampler):
        return SamplerStateHandler(value)
    if callable(getattr(value, "state_dict", None)) and hasattr(value, "load_state_dict"):
        return StateHandler(value)
    return None


class TorchState(ObjectState):
    """Modules, optimizers, samplers, schedulers and plain values under names of your choice:
    ``TorchState(model=model, optimizer=optimizer, sampler=sampler, batch=0, epoch=0)``."""

    def __init__(
        self,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"model": model, "optimizer": optimizer, **kwargs}
        handlers = {name: _make_handler(value) for name, value in given.items()}
        self._handlers: dict[str, StateHandler] = {k: v for k, v in handlers.items() if v}
        for name in self._handlers:
            super().__setattr__(name, given.pop(name))
        for name in ("model", "optimizer"):
            if given.get(name, self) is None:
                super().__setattr__(name, given.pop(name))
        super().__init__(lambda obj: broadcast_object(obj, name="elastic"), mpi_ops.rank, **given)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in self.__dict__.get("_handlers", {}):
            self._handlers[name].set_value(value)

    @property
    def always_sync(self) -> bool:  # type: ignore[override]
        return any(isinstance(h, SamplerStateHandler) for h in self._handlers.values())

    def save(self) -> None:
        for handler in self._handlers.values():
            handler.save()
        super().save()

    def restore(self) -> None:
        _drain()
        for handler in self._handlers.values():
            handler.restore()
        super().restore()

    def sync(self) -> None:
        for handler in self._handlers.values():
            handler.sync()
        super().sync()

    def reset(self) -> None:
        for handler in self._handlers.values():
            if isinstance(handler, SamplerStateHandler):
                handler.value.reset()


def _drain() -> None:
    """Ends operations that are still under way, so that none writes into what is being restored.
    The job has failed: they all fail at once."""
    for handle in list(mpi_ops._operations):
        with contextlib.suppress(Exception):
            mpi_ops.synchronize(handle)
