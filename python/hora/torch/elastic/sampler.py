"""A sampler that shares out what is left of an epoch when the number of ranks changes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Iterable, Iterator, Sized

import torch

from hora.torch.mpi_ops import rank, size

__all__ = ["ElasticSampler"]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What is done of an epoch, without a look at each sample. None of the lists and sets is changed
    later, but for ``single``, which may get longer."""

    epoch: int
    before: set[int]  # the samples that were done as of the last reset
    order: list[int]  # since then: of these...
    ranges: tuple[tuple[int, int], ...]  # ...those in these places (first, end)
    single: list[int]  # and of these...
    singles: int  # ...so many

    def indices(self) -> set[int]:
        done = self.before.union(self.single[: self.singles])
        for first, end in self.ranges:
            done.update(self.order[first:end])
        return done

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "processed_indices": self.indices()}


class ElasticSampler(torch.utils.data.Sampler):
    """Samples of ``dataset`` for this rank, without those that were processed already in this epoch.

    Call :meth:`record_batch` after each batch, and make the sampler part of the state
    (``TorchState(sampler=sampler, ...)``): after a reset the samples that no rank has processed are
    shared out among the ranks that are there. All ranks get equally many; so some samples come
    twice in an epoch where the number does not divide.

    ``record_batch`` takes it that every rank processes its batch of the same number, as ranks that
    train together do. So what a rank has processed is known to the others even when it dies. And so
    a batch is a range of the order of all samples: to record it, and to commit that, costs the same
    for any size of the dataset.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int = 0) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.rank = 0
        self.num_replicas = 1
        self._before: set[int] = set()  # what was processed as of the last reset
        self._ranges: list[tuple[int, int]] = []  # of _order, processed since then
        self._single: list[int] = []  # what this rank has recorded by itself, since then
        self.remaining_indices: list[int] = []
        self.num_samples = 0
        self.total_size = 0
        self._order: list[int] = []  # of all ranks, in turn: rank 0's first, rank 1's first, ...
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, with all samples and another order. Call it at the epoch's end too, so
        that a reset then does not find an epoch without samples."""
        self.epoch = epoch
        self._begin(set())

    def record_batch(self, batch_idx: int, batch_size: int) -> None:
        """This rank's batch number ``batch_idx`` (counted since the iteration began), of at most
        ``batch_size`` samples, is done."""
        per_batch = batch_size * self.num_replicas
        first = batch_idx * per_batch
        end = min(first + per_batch, len(self._order))
        if self._ranges and self._ranges[-1][0] <= first <= self._ranges[-1][1]:
            first, before = self._ranges.pop()
            end = max(before, end)
        if first < end:
            self._ranges.append((first, end))

    def record_indices(self, indices: Iterable[int]) -> None:
        """These samples are done, on this rank."""
        self._single.extend(indices)

    def get_indices(self, batch_idx: int, batch_size: int) -> list[int]:
        """This rank's samples of a batch."""
        first = batch_idx * batch_size * self.num_replicas
        end = first + batch_size * self.num_replicas
        return self._order[first + self.rank : end : self.num_replicas]

    @property
    def indices(self) -> list[int]:
        """This rank's samples, in the order of the iteration."""
        return self._order[self.rank :: self.num_replicas]

    @property
    def processed_indices(self) -> set[int]:
        """By this rank, or by all as of the last reset. A copy."""
        done = self._before.union(self._single)
        for first, end in self._ranges:
            done.update(self._order[first + self.rank : end : self.num_replicas])
        return done

    def progress(self) -> Progress:
        """As of now, whatever comes later. Costs the same for any size of the dataset."""
        return Progress(self.epoch, self._before, self._order, tuple(self._ranges), self._single,
                        len(self._single))  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return self.progress().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
        self._begin(set(state_dict["processed_indices"]))

    def reset(self) -> None:
        """Shares out the rest of the epoch among the ranks that there are now."""
        self._begin(self.progress().indices())

    def _begin(self, done: set[int]) -> None:
        self.rank, self.num_replicas = rank(), size()
        self._before, self._ranges, self._single = done, [], []
        self.remaining_indices = [i for i in range(len(self.dataset)) if i not in done]
        self.num_samples = math.ceil(len(self.remaining_indices) / self.num_replicas)
        self.total_size = self.num_samples * self.num_replicas
        self._order = self._arrange()

    def _arrange(self) -> list[int]:
        """The same on every rank."""
        order = list(self.remaining_indices)
        if self.shuffle:
            generator = torch.Generator()
            generator.manual_seed(self.seed + self.epoch)
            shuffled = torch.randperm(len(order), generator=generator).tolist()
            order = [order[i] for i in shuffled]
        while order and len(order) < self.total_size:
            order += order[: self.total_size - len(order)]
        return order

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return self.num_samples
