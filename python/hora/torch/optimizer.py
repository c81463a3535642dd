"""DistributedOptimizer: averages gradients over the ranks while the backward pass still runs.

A hook on each parameter starts its allreduce as soon as its gradient is complete; ``step()`` waits
for all of them. Parameters whose hook did not run in this step on this rank (unused, or fewer
backward passes) are reduced by ``step()`` with the gradient that they have, zero if none: so ranks
may use different parts of a model, and an unused parameter has a gradient of zero, not None, after.
"""

from __future__ import annotations

import contextlib
import os
import warnings
import weakref
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch

from hora.common.process_sets import ProcessSet, check_process_set, global_process_set
from hora.common.util import split_list
from hora.torch.compression import Compression, Compressor
from hora.torch.functions import broadcast_object
from hora.torch.mpi_ops import (
    Adasum, Average, allreduce_async_, grouped_allreduce_async_, size, sparse_allreduce_async,
    synchronize,
)  # fmt: skip

__all__ = ["DistributedOptimizer"]

Group = tuple[torch.Tensor, ...]


class _DistributedOptimizer(torch.optim.Optimizer):
    """Goes in front of the wrapped optimizer's class; shares its state with the wrapped one."""

    # ---- Setting up ------------------------------------------------------------------------------

    def _distribute(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
        compression: type[Compressor],
        backward_passes_per_step: int,
        op: int,
        gradient_predivide_factor: float,
        groups: int | list[list[torch.Tensor]] | None,
        sparse_as_dense: bool,
    ) -> None:
        self._compression = compression
        self._parameter_names = self._check_names(named_parameters)
        self.backward_passes_per_step = backward_passes_per_step
        self._allreduce_delay = dict.fromkeys(self._parameter_names, backward_passes_per_step)
        self.op = op
        self.gradient_predivide_factor = gradient_predivide_factor
        self.sparse_as_dense = sparse_as_dense
        # Parameter or group -> (what to wait for, compression context(s)); (None, None) for a
        # parameter that waits for more backward passes or for the rest of its group.
        self._handles: dict[Any, tuple[Any, Any]] = {}
        self._requires_update: dict[torch.Tensor, None] = {}  # in order
        self._synchronized = False
        self._should_synchronize = True
        self._groups: dict[torch.Tensor, Group] = {}
        self._hooks: list[Any] = []
        self._active = size() > 1 or "1" in (
            os.environ.get("HORA_ELASTIC"),
            os.environ.get("HOROVOD_ELASTIC"),
        )
        if groups is not None:
            self._make_groups(groups)
        for group in self.param_groups:
            self._register_hooks(group["params"])

    def _check_names(
        self, named_parameters: Iterable[tuple[str, torch.Tensor]] | None
    ) -> dict[torch.Tensor, str]:
        parameters = [p for group in self.param_groups for p in group["params"]]
        if named_parameters is None:
            return {p: f"allreduce.noname.{i}" for i, p in enumerate(parameters)}
        named = list(named_parameters)
        if any(not isinstance(pair, tuple) for pair in named):
            raise ValueError(
                "named_parameters should be a sequence of tuples (name, parameter), usually "
                "produced by model.named_parameters()."
            )
        seen: set[str] = set()
        duplicates = {name for name, _ in named if name in seen or seen.add(name)}
        if duplicates:
            raise ValueError(
                "Parameter names in named_parameters must be unique. Found duplicates: "
                + ", ".join(sorted(duplicates))
            )
        unnamed = {id(p) for p in parameters} - {id(p) for _, p in named}
        if unnamed:
            raise ValueError(
                "named_parameters was specified, but one or more model parameters were not named. "
                "Python object ids: " + ", ".join(map(str, unnamed))
            )
        return {p: name for name, p in named}

    def _make_groups(self, groups: int | list[list[torch.Tensor]]) -> None:
        mine = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if isinstance(groups, list):
            lists = self._check_groups(groups)
        elif isinstance(groups, int) and groups >= 0:
            if groups == 0 or not self._active:
                return
            # The order of rank 0 holds, in case the ranks list their parameters differently.
            by_name = {self._parameter_names[p]: p for p in mine}
            names = broadcast_object(list(by_name), 0, "DistributedOptimizer.groups")
            lists = split_list([by_name[name] for name in names], groups)
        else:
            raise ValueError(
                "groups should be a non-negative integer or a list of list of torch.Tensor."
            )
        known = set(mine)
        for members in lists:
            group = tuple(p for p in members if p in known)
            self._groups.update(dict.fromkeys(group, group))

    @staticmethod
    def _check_groups(groups: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
        seen: set[torch.Tensor] = set()
        for members in groups:
            for p in members:
                if not isinstance(p, torch.Tensor):
                    raise ValueError("groups must consist of torch.Tensor.")
                if p in seen:
                    raise ValueError("A parameter can only appear once in groups.")
                seen.add(p)
        return groups

    def _register_hooks(self, parameters: Iterable[torch.Tensor]) -> None:
        if not self._active:
            return
        # Hooks outlive an optimizer that was dropped; then they do nothing.
        me = weakref.ref(self)

        def hook(p: torch.Tensor) -> None:
            optimizer = me()
            if optimizer is not None:
                optimizer._gradient_ready(p)

        for p in parameters:
            if p.requires_grad:
                self._requires_update[p] = None
                self._hooks.append(p.register_post_accumulate_grad_hook(hook))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        if not hasattr(self, "_requires_update"):
            return
        parameters = self.param_groups[-1]["params"]
        for p in parameters:
            self._parameter_names.setdefault(p, f"allreduce.noname.{len(self._parameter_names)}")
            self._allreduce_delay[p] = self.backward_passes_per_step
        self._register_hooks(parameters)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """How many backward passes add to the gradients before they are reduced."""
        self.backward_passes_per_step = passes
        self._allreduce_delay = dict.fromkeys(self._allreduce_delay, passes)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._handles = {}
        self._synchronized = False
        self._should_synchronize = True
        self._allreduce_delay = dict.fromkeys(
            self._allreduce_delay, self.backward_passes_per_step
        )
        super().load_state_dict(*args, **kwargs)

    # ---- Reducing --------------------------------------------------------------------------------

    def _gradient_ready(self, p: torch.Tensor) -> None:
        if self._allreduce_delay[p] <= 0:
            raise AssertionError(
                "Gradients were computed more than backward_passes_per_step times before call to "
                "step(). Increase backward_passes_per_step to accumulate gradients locally."
            )
        assert not p.grad.requires_grad, "gradients of gradients cannot be reduced"
        self._allreduce_delay[p] -= 1
        self._handles.setdefault(p, (None, None))
        if self._allreduce_delay[p] == 0:
            group = self._groups.get(p)
            if group is None:
                self._handles[p] = self._start(p)
            elif all(self._allreduce_delay[member] == 0 for member in group):
                self._start_group(group)

    def _scales(self) -> dict[str, float]:
        if self.op != Average or self.gradient_predivide_factor == 1.0:
            return {}
        # The division by the number of ranks comes on top, after the sum.
        return {
            "prescale_factor": 1.0 / self.gradient_predivide_factor,
            "postscale_factor": self.gradient_predivide_factor,
        }

    def _gradient(self, p: torch.Tensor) -> torch.Tensor:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        elif p.grad.is_sparse and self.sparse_as_dense:
            p.grad = p.grad.to_dense()
        return p.grad

    def _start(self, p: torch.Tensor) -> tuple[Any, Any]:
        gradient = self._gradient(p)
        name = self._parameter_names[p]
        if gradient.is_sparse:
            return sparse_allreduce_async(gradient, name=name, op=self.op), None
        small, context = self._compression.compress(gradient)
        return allreduce_async_(small, name=name, op=self.op, **self._scales()), context

    def _start_group(self, group: Group) -> None:
        gradients = [self._gradient(p) for p in group]
        if any(gradient.is_sparse for gradient in gradients):
            raise ValueError("sparse gradients cannot be in a group; use sparse_as_dense=True")
        small, contexts = zip(*map(self._compression.compress, gradients))
        name = self._parameter_names[group[0]]
        handle = grouped_allreduce_async_(small, name=name, op=self.op, **self._scales())
        for p in group:
            self._handles.pop(p, None)
        self._handles[group] = handle, contexts

    def _start_missing(self) -> None:
        for p in self._requires_update:
            group = self._groups.get(p)
            if group is not None:
                if group not in self._handles:
                    self._start_group(group)
            elif self._handles.get(p, (None, None))[0] is None:
                self._handles[p] = self._start(p)

    def _finish(self, p: torch.Tensor, result: torch.Tensor, context: Any) -> None:
        self._allreduce_delay[p] = self.backward_passes_per_step
        if result.is_sparse:
            p.grad = result
            return
        result = self._compression.decompress(result, context)
        if p.grad is None:
            p.grad = result
        elif p.grad is not result:
            p.grad.copy_(result)

    @torch.no_grad()
    def synchronize(self) -> None:
        """Starts what is missing and waits until all gradients have been reduced."""
        self._start_missing()
        handles, self._handles = self._handles, {}
        for key, (handle, context) in handles.items():
            result = handle() if callable(handle) else synchronize(handle)
            if isinstance(key, tuple):
                for p, part, part_context in zip(key, result, context):
                    self._finish(p, part, part_context)
            else:
                self._finish(key, result, context)
        self._synchronized = True

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """``step()`` inside does not synchronize, because the caller did (to clip gradients, say):

        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with optimizer.skip_synchronize():
            optimizer.step()
        """
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def _closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The gradients of a closure are there after it has run, so they are reduced then."""

        @torch.enable_grad()
        def run() -> Any:
            loss = closure()
            self.synchronize()
            self._synchronized = False
            return loss

        return run

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Waits for the gradients and lets the wrapped optimizer take its step."""
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). This can cause training slowdown. You may want to "
                    "consider using optimizer.skip_synchronize() context if you use "
                    "optimizer.synchronize() in your code."
                )
            if closure is None:
                self.synchronize()
            else:
                closure = self._closure(closure)
        self._synchronized = False
        return super().step(closure) if closure is not None else super().step()

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        if self._handles:
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can cause "
                "a race condition."
            )
        super().zero_grad(*args, **kwargs)


def _share(optimizer: torch.optim.Optimizer) -> _DistributedOptimizer:
    """An optimizer of a new class, (_DistributedOptimizer, the optimizer's class), with the
    optimizer's own parameters, options and state."""
    kind = type(optimizer)
    # super() in the methods above must go on to the wrapped class, which is why it is a base.
    cls = type(kind.__name__, (_DistributedOptimizer, kind), {"__module__": __name__})
    wrapped = cls.__new__(cls)
    # Not `step`: learning-rate schedulers put a bound one into the instance.
    wrapped.__dict__.update({k: v for k, v in vars(optimizer).items() if k != "step"})
    return wrapped


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: type[Compressor] = Compression.none,
    backward_passes_per_step: int = 1,
    op: int = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | Sequence[Sequence[torch.Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
) -> Any:
    """Wraps an optimizer so that ``step()`` uses gradients averaged over all ranks.

    named_parameters: ``model.named_parameters()``; names must be unique and cover all parameters.
    compression: what to send gradients as; ``Compression.none``, ``.fp16`` or ``.bf16``.
    backward_passes_per_step: passes that add to the gradients before they are reduced.
    op: ``Average``, ``Sum``, ...
    gradient_predivide_factor: with Average, gradients are divided by it before the sum and by
        size()/factor after.
    groups: gradients that are reduced together: a number of groups, or lists of parameters.
        num_groups is its deprecated form.
    sparse_as_dense: turn sparse gradients into dense ones instead of gathering them.

    The result is of a subclass of the optimizer's class and shares its parameters and state; the
    optimizer passed in should not be used any more.
    """
    check_process_set(process_set)
    if isinstance(optimizer, _DistributedOptimizer):
        raise ValueError("this optimizer is a DistributedOptimizer already")
    if gradient_predivide_factor != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor not supported with op != Average")
    if op == Adasum:
        raise ValueError("op=Adasum is not supported yet")
    if num_groups != 0:
        warnings.warn(
            "Parameter `num_groups` has been replaced by `groups` and will be removed.",
            DeprecationWarning,
            stacklevel=2,
        )
        groups = num_groups if groups is None else groups
    wrapped = _share(optimizer)
    wrapped._distribute(
        named_parameters, compression, backward_passes_per_step, op, gradient_predivide_factor,
        groups, sparse_as_dense,
    )  # fmt: skip
    return wrapped
