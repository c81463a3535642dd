"""A sampler that shares out what is left of an epoch when the number of ranks changes."""

from __future__ import annotations

import math
from typing import Any, Iterable, Iterator, Sized

import torch

from hora.torch.mpi_ops import rank, size

__all__ = ["ElasticSampler"]


class ElasticSampler(torch.utils.data.Sampler):
    """Samples of ``dataset`` for this rank, without those that were processed already in this epoch.

    Call :meth:`record_batch` after each batch, and make the sampler part of the state
    (``TorchState(sampler=sampler, ...)``): after a reset the samples that no rank has processed are
    shared out among the ranks that are there. All ranks get equally many; so some samples come
    twice in an epoch where the number does not divide.

    ``record_batch`` takes it that every rank processes its batch of the same number, as ranks that
    train together do. So what a rank has processed is known to the others even when it dies.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int = 0) -> None:
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.rank = 0
        self.num_replicas = 1
        self.processed_indices: set[int] = set()  # by this rank, or by all as of the last reset
        self.others_indices: set[int] = set()  # by the other ranks, since then
        self.remaining_indices: list[int] = []
        self.num_samples = 0
        self.total_size = 0
        self._order: list[int] = []  # of all ranks, in turn: rank 0's first, rank 1's first, ...
        self.reset()

    def set_epoch(self, epoch: int) -> None:
        """Begins an epoch, with all samples and another order. Call it at the epoch's end too, so
        that a reset then does not find an epoch without samples."""
        self.epoch = epoch
        self.processed_indices = set()
        self.others_indices = set()
        self.reset()

    def record_batch(self, batch_idx: int, batch_size: int) -> None:
        """This rank's batch number ``batch_idx`` (counted since the iteration began), of at most
        ``batch_size`` samples, is done."""
        start, end = batch_idx * batch_size, (batch_idx + 1) * batch_size
        for other in range(self.num_replicas):
            indices = self._order[other :: self.num_replicas][start:end]
            (self.processed_indices if other == self.rank else self.others_indices).update(indices)

    def record_indices(self, indices: Iterable[int]) -> None:
        """These samples are done, on this rank."""
        self.processed_indices.update(indices)

    def get_indices(self, batch_idx: int, batch_size: int) -> list[int]:
        """This rank's samples of a batch."""
        start = batch_idx * batch_size
        return self.indices[start : start + batch_size]

    @property
    def indices(self) -> list[int]:
        """This rank's samples, in the order of the iteration."""
        return self._order[self.rank :: self.num_replicas]

    def state_dict(self) -> dict[str, Any]:
        done = self.processed_indices | self.others_indices
        return {"epoch": self.epoch, "processed_indices": done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
        self.processed_indices = set(state_dict["processed_indices"])
        self.others_indices = set()
        self.reset()

    def reset(self) -> None:
        """Shares out the rest of the epoch among the ranks that there are now."""
        self.rank, self.num_replicas = rank(), size()
        self.processed_indices |= self.others_indices
        self.others_indices = set()
        done = self.processed_indices
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
