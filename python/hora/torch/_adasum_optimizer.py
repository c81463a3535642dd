"""DistributedOptimizer with op=Adasum: ranks take their steps alone, and the steps are combined.

Every rank applies the wrapped optimizer to its own gradients. How far that has moved each parameter
is reduced with Adasum, and all ranks move by the result: so they stay equal although their
optimizers' states (momenta, ...) differ. Horovod takes the local step of a parameter within the
backward pass; here it is taken in ``step()``, so that clipping, closures, hooks on ``step`` and
gradients that are accumulated work as with the wrapped optimizer alone.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterable, Iterator

import torch

from hora.common.process_sets import ProcessSet
from hora.torch._wrapping import Wrapping, check_names
from hora.torch.compression import Compressor
from hora.torch.mpi_ops import Adasum, allreduce_async_, synchronize

__all__ = ["_DistributedAdasumOptimizer"]


class _DistributedAdasumOptimizer(Wrapping):
    """Goes in front of the wrapped optimizer's class."""

    def _distribute(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
        compression: type[Compressor],
        backward_passes_per_step: int,
        process_set: ProcessSet,
    ) -> None:
        self._compression = compression
        self._parameter_names = check_names(self.param_groups, named_parameters)
        self.backward_passes_per_step = backward_passes_per_step
        self.process_set = process_set
        self.op = Adasum
        self._starts: dict[torch.Tensor, torch.Tensor] = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self._name_new_group()

    def set_backward_passes_per_step(self, passes: int) -> None:
        """Kept for Horovod's scripts: any number of passes may come before a step, because nothing
        is reduced before it."""
        self.backward_passes_per_step = passes

    def synchronize(self) -> None:
        """Does nothing: gradients stay this rank's own."""

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        raise AssertionError(
            "Skipping synchronization is not supported when using Adasum optimizer."
        )
        yield

    def _remember_starts(self) -> dict[torch.Tensor, torch.Tensor]:
        starts = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.requires_grad:
                    start = self._starts.get(p)
                    if start is None or start.shape != p.shape or start.dtype != p.dtype:
                        start = torch.empty_like(p, requires_grad=False)
                    starts[p] = start.copy_(p.detach())
        self._starts = starts
        return starts

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """The wrapped optimizer's step on this rank's gradients, then the combination of all ranks'
        steps. Every parameter takes part, those without a gradient on this rank with no step."""
        if not self.process_set.included() or self.process_set.size() == 1:
            return super().step() if closure is None else super().step(closure)
        with torch.no_grad():
            starts = self._remember_starts()
        loss = super().step() if closure is None else super().step(closure)
        with torch.no_grad():
            try:
                self._combine(starts)
            except BaseException:
                for p, start in starts.items():
                    p.copy_(start)
                raise
        return loss

    def _combine(self, starts: dict[torch.Tensor, torch.Tensor]) -> None:
        handles = []
        for p, start in starts.items():
            small, context = self._compression.compress(p.detach().sub_(start))
            name = self._parameter_names[p]
            handle = allreduce_async_(small, name=name, op=Adasum, process_set=self.process_set)
            handles.append((handle, context))
        for (p, start), (handle, context) in zip(starts.items(), handles):
            delta = self._compression.decompress(synchronize(handle), context)
            torch.add(start, delta, out=p.detach())

    # torch would wrap this `step` to run the hooks on steps, which the wrapped one does already.
    step.hooked = True
