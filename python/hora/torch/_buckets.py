"""Gradients as views of buckets: a bucket is one tensor, which is reduced where it lies, in one
operation, without being packed. In CPU memory it is in memory that the ranks of a host share, and
nothing is copied either."""

from __future__ import annotations

from typing import Any, Iterable, Sequence

import torch

from hora import _core

__all__ = ["Buckets", "by_type", "divide"]

Group = tuple[torch.Tensor, ...]

_ALIGNMENT = 64  # bytes; a view begins on a cache line of its own


def divide(parameters: Iterable[torch.Tensor], most: int) -> list[list[torch.Tensor]]:
    """Buckets of at most ``most`` bytes, and at least one parameter, in reverse order: as gradients
    become ready, more or less."""
    buckets: list[list[torch.Tensor]] = []
    room = -1
    for p in reversed(list(parameters)):
        size = p.numel() * p.element_size()
        if room < size:
            buckets.append([])
            room = most
        buckets[-1].append(p)
        room -= size
    return buckets


def _zeros(count: int, like: torch.Tensor) -> torch.Tensor:
    if like.device.type != "cpu":
        return torch.zeros(count, dtype=like.dtype, device=like.device)
    return torch.from_dlpack(_core.alloc((count,), str(like.dtype).removeprefix("torch."))).zero_()


class Buckets:
    """The buckets of some groups of parameters. All members of a group are of one type and on one
    device."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.flat: dict[Group, torch.Tensor] = {}
        self.views: dict[torch.Tensor, torch.Tensor] = {}
        self._places: dict[torch.Tensor, tuple[torch.Tensor, tuple[int, ...], int]] = {}
        for group in groups:
            self._add(group)
        for device in {flat.device for flat in self.flat.values() if flat.is_cuda}:
            # The zeros must be there before another stream's gradients are. This is done once.
            torch.cuda.current_stream(device).synchronize()

    def _add(self, group: Group) -> None:
        step = max(1, _ALIGNMENT // group[0].element_size())
        counts = [(p.numel() + step - 1) // step * step for p in group]
        flat = self.flat[group] = _zeros(sum(counts), group[0])
        at = 0
        for p, count in zip(group, counts):
            strides = torch.empty_like(p, device="meta").stride()  # the parameter's, if dense
            self._places[p] = (flat, strides, at)
            self.views[p] = flat.as_strided(p.shape, strides, at)
            at += count

    def _view(self, p: torch.Tensor) -> torch.Tensor:
        """The parameter's view: another one if somebody has given the tensor other memory
        (``p.grad.data = ...``, and so ``model.to(...)``), which does not show in its identity."""
        flat, strides, at = self._places[p]
        view = self.views[p]
        if view.data_ptr() != flat.data_ptr() + at * flat.element_size() or view.dtype != flat.dtype:
            view = self.views[p] = flat.as_strided(p.shape, strides, at)
        return view

    def take_in(self, p: torch.Tensor) -> None:
        """Makes the parameter's gradient a view of its bucket; zero if there is none."""
        view, gradient = self._view(p), p.grad
        if gradient is view:
            return
        if gradient is not None:
            view.copy_(gradient)
        else:
            view.zero_()
            if not p.requires_grad:  # it has been frozen since: its optimizer must not see it
                return
        p.grad = view

    def give_out(self, p: torch.Tensor) -> None:
        """After the reduction: whoever has put another gradient in the view's place (it was scaled
        out of place, or set to None) gets the result too, as without a bucket."""
        view, gradient = self._view(p), p.grad
        if gradient is view:
            return
        if gradient is not None and not gradient.is_sparse:
            gradient.copy_(view)
        elif gradient is not None or p.requires_grad:
            p.grad = view

    def let_go(self) -> None:
        """Gradients go back to memory of their own: the shared one ends with the job."""
        for p, view in self.views.items():
            if p.grad is view:
                p.grad = view.clone()
        self.flat, self.views, self._places = {}, {}, {}


def by_type(group: Sequence[torch.Tensor]) -> list[Group]:
    """The group's members, apart by type and device."""
    found: dict[Any, list[torch.Tensor]] = {}
    for p in group:
        found.setdefault((p.dtype, p.device), []).append(p)
    return [tuple(members) for members in found.values()]
