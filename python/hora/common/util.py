"""Small helpers that callers of Horovod use too."""

from __future__ import annotations

import warnings
from typing import Sequence, TypeVar

from hora import _core

__all__ = ["choose_op", "num_rank_is_power_2", "split_list"]

T = TypeVar("T")


def split_list(items: Sequence[T], parts: int) -> list[list[T]]:
    """Splits into ``parts`` runs of nearly equal length; the first ones take the remainder."""
    quotient, remainder = divmod(len(items), parts)
    result = []
    start = 0
    for part in range(parts):
        end = start + quotient + (part < remainder)
        result.append(list(items[start:end]))
        start = end
    return result


def num_rank_is_power_2(num_rank: int) -> bool:
    return num_rank > 0 and num_rank & (num_rank - 1) == 0


def choose_op(op: int | None, average: bool | None) -> int:
    """The operation that ``op`` and Horovod's deprecated ``average`` ask for."""
    if op is None and average is None:
        return _core.AVERAGE
    if average is None:
        return op
    if op is not None:
        raise ValueError("The op parameter supersedes average. Please provide only one of them.")
    warnings.warn(
        "Parameter `average` has been replaced with `op` and will be removed.",
        DeprecationWarning,
        stacklevel=3,
    )
    return _core.AVERAGE if average else _core.SUM
