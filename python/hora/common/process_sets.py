"""Process sets. So far there is one: all ranks."""

from __future__ import annotations

from hora import _core

__all__ = ["ProcessSet", "global_process_set", "check_process_set"]


class ProcessSet:
    """An ordered set of ranks that run a collective together."""

    process_set_id: int | None = None

    def __init__(self, process_set_id: int | None) -> None:
        self.process_set_id = process_set_id

    @property
    def ranks(self) -> list[int]:
        return list(range(_core.size()))

    def size(self) -> int:
        return _core.size()

    def rank(self) -> int:
        return _core.rank()

    def included(self) -> bool:
        _core.rank()  # raises before init()
        return True

    def __repr__(self) -> str:
        return f"ProcessSet(process_set_id={self.process_set_id})"


global_process_set = ProcessSet(0)


def check_process_set(process_set: ProcessSet) -> None:
    """Raises ValueError for anything but the global process set."""
    if process_set is not global_process_set:
        raise ValueError(f"hora knows only the global process set so far, not {process_set!r}")
