"""A reference to a process set that survives copying and pickling of what holds it."""

from __future__ import annotations

import copy
from typing import Any

from hora.common.process_sets import ProcessSet, global_process_set, process_sets

__all__ = ["ProcessSetReference"]


class ProcessSetReference:
    """A deep copy refers to the same set. What was pickled refers to the set of the same ranks
    in the job that unpickles it, or, if there is none, to one that can still be added."""

    def __init__(self, process_set: ProcessSet) -> None:
        self.process_set = process_set

    def __deepcopy__(self, memo: Any) -> ProcessSetReference:
        return copy.copy(self)

    def __copy__(self) -> ProcessSetReference:
        return ProcessSetReference(self.process_set)

    def __reduce__(self) -> Any:
        everyone = self.process_set is global_process_set
        return _find, (None if everyone else list(self.process_set.ranks),)


def _find(ranks: list[int] | None) -> ProcessSetReference:
    if ranks is None:
        return ProcessSetReference(global_process_set)
    known = [s for s in process_sets() if s is not global_process_set and s.ranks == ranks]
    return ProcessSetReference(known[0] if known else ProcessSet(ranks))
