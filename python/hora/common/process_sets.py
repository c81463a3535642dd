"""Process sets: groups of ranks that run collectives among themselves.

Every set has an engine of its own, so sets work at the same time, also where they overlap, and
names need to be unique only within a set. All ranks of the job add and remove sets together, in one
order; what they pass is compared, and a difference is an error on every rank that names both sides.
Ids start at 1 and are used again; 0 is :data:`global_process_set`, all ranks.

A set is described by ranks of the job, which are kept in rising order, or by an mpi4py
communicator. Different ranks may pass different communicators of one split: then each of them
becomes a set, and the object stands for the one that its rank is in.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Iterable, NoReturn, Sequence, Union

from hora import _core
from hora._core import HorovodInternalError

__all__ = [
    "ProcessSet", "add_process_set", "get_process_set_ids", "get_process_set_ids_and_ranks",
    "global_process_set", "is_process_set_included", "process_set_by_id", "process_sets",
    "remove_process_set",
]  # fmt: skip

_WHAT_IT_TAKES = "ProcessSet takes a list of ranks or an mpi4py communicator"


class ProcessSet:
    """A group of ranks; to be given to ``init()`` or :func:`add_process_set`, and then to the
    operations. ``process_set_id`` is None before it was added and after it was removed."""

    process_set_id: int | None = None
    ranks: list[int] | None = None
    mpi_comm: Any = None

    def __init__(self, ranks_or_comm: Union[Iterable[int], Any]) -> None:
        if is_communicator(ranks_or_comm):
            self.mpi_comm = ranks_or_comm
            return
        try:
            ranks = list(ranks_or_comm)
        except TypeError:
            raise ValueError(f"{_WHAT_IT_TAKES}, not {type(ranks_or_comm).__name__}") from None
        for rank in ranks:
            if isinstance(rank, bool) or not isinstance(rank, int):
                raise ValueError(f"{_WHAT_IT_TAKES}: {rank!r} is no rank")
        self.ranks = sorted(ranks)

    def size(self) -> int | None:
        """Number of ranks; None before the set was added."""
        if self.process_set_id is None:
            return None
        return _core.process_set_size(self.process_set_id)

    def rank(self) -> int | None:
        """This process's rank in the set, which is its place among ``ranks``; None before the set
        was added. ValueError where it is no member."""
        if self.process_set_id is None:
            return None
        return _core.process_set_rank(self.process_set_id)

    def included(self) -> bool | None:
        """True when this process is a member; None while the ranks are not known."""
        if self.process_set_id is not None:
            return _core.process_set_included(self.process_set_id)
        return None if self.ranks is None else _core.rank() in self.ranks

    def _invalidate(self) -> None:
        self.process_set_id = None

    def __repr__(self) -> str:
        return (
            f"ProcessSet(process_set_id={self.process_set_id}, ranks={self.ranks}, "
            f"mpi_comm={self.mpi_comm})"
        )


class _GlobalProcessSet(ProcessSet):
    """All ranks of the job, whichever that is."""

    process_set_id = 0

    def __init__(self) -> None:
        pass

    @property
    def ranks(self) -> list[int]:  # type: ignore[override]
        return _core.process_set_ranks(0) if _core.is_initialized() else []


global_process_set: ProcessSet = _GlobalProcessSet()

_lock = threading.Lock()  # one change at a time
_registered: dict[int, ProcessSet] = {}


def set_id(process_set: ProcessSet) -> int:
    """The set's id for the engine; ValueError where it has none."""
    try:
        number = process_set.process_set_id
    except AttributeError:
        kind = type(process_set).__name__
        raise ValueError(f"process_set must be a ProcessSet, not {kind}") from None
    if number is None:
        raise ValueError(
            f"{process_set} has not been added, or has been removed; give it to "
            "init(process_sets=[...]) or to add_process_set()"
        )
    return number


def check_process_set(process_set: ProcessSet) -> None:
    """Raises ValueError where this rank cannot use the set."""
    number = set_id(process_set)
    if number:
        _core.process_set_rank(number)


def add_process_set(process_set: Union[ProcessSet, Iterable[int], Any]) -> ProcessSet:
    """Adds a set while hora runs. Every rank of the job calls it, members or not, with the same
    ranks; it returns when the set can be used. ValueError if the set exists already."""
    if not isinstance(process_set, ProcessSet):
        process_set = ProcessSet(process_set)
    register([process_set])
    return process_set


def remove_process_set(process_set: ProcessSet) -> bool:
    """Removes a set. Every rank of the job calls it; operations that are still under way on the set
    end with an error. Returns False, and does nothing, for the global set, and for a set that is
    not there on any rank. Where only some ranks have it, that is a mismatch."""
    if process_set.process_set_id == 0:
        return False
    with _lock:
        number = process_set.process_set_id
        _check_alike(
            _core.exchange("remove_process_set", [_REMOVE, _ABSENT if number is None else number])
        )
        if number is None:
            return False
        _core.remove_process_set(number)
        _forget(number)
    return True


def is_process_set_included(process_set: ProcessSet) -> bool:
    """True when this process is a member of a set that can be used."""
    return process_set.process_set_id is not None and bool(process_set.included())


def get_process_set_ids() -> list[int]:
    """The ids of all sets, also of those that this process is not a member of."""
    return _core.process_set_ids()


def get_process_set_ids_and_ranks() -> dict[int, list[int]]:
    return {number: _core.process_set_ranks(number) for number in _core.process_set_ids()}


def process_set_by_id(process_set_id: int) -> ProcessSet:
    """The object of a set that exists."""
    if process_set_id == 0:
        return global_process_set
    if process_set_id not in _registered:
        raise ValueError(f"No known process set with id {process_set_id}")
    return _registered[process_set_id]


def process_sets() -> list[ProcessSet]:
    """The objects of all sets, by id."""
    return [global_process_set] + [_registered[number] for number in sorted(_registered)]


# ---- Agreeing ------------------------------------------------------------------------------------

# What the ranks say to each other: [_REMOVE, id], or [_ADD, and for each set: how it is described,
# the number of its ranks, and these].
_ADD, _REMOVE = 1, 2
_BY_RANKS, _BY_COMM = 0, 1
_ABSENT = -1  # instead of the id: the set was not added here, or has been removed

_forgetters: list[Callable[[int], None]] = []


def is_communicator(thing: Any) -> bool:
    """An mpi4py communicator, or what behaves like one; mpi4py itself is not needed."""
    return hasattr(thing, "Get_size") and hasattr(thing, "allgather")


def ranks_of_communicator(comm: Any) -> list[int]:
    """The members' ranks in the job, in the communicator's order; none for a null communicator.
    Collective over the communicator."""
    return [int(rank) for rank in comm.allgather(_core.rank())] if comm else []


def _encode(sets: Sequence[ProcessSet]) -> list[int]:
    numbers = [_ADD]
    for process_set in sets:
        how, ranks = _BY_RANKS, process_set.ranks
        if process_set.mpi_comm is not None:
            how, ranks = _BY_COMM, ranks_of_communicator(process_set.mpi_comm)
        numbers += [how, len(ranks), *ranks]
    return numbers


def _decode(row: Sequence[int]) -> list[tuple[int, tuple[int, ...]]]:
    sets = []
    at = 1
    while at < len(row):
        how, count = row[at : at + 2]
        sets.append((how, tuple(row[at + 2 : at + 2 + count])))
        at += 2 + count
    return sets


def _words(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:64]))
    return f"[{shown}, and {len(ranks) - 64} more]" if len(ranks) > 64 else f"[{shown}]"


def _say(row: Sequence[int]) -> str:
    if row[0] == _REMOVE:
        if row[1] == _ABSENT:
            return "removes a process set that is not there"
        return f"removes process set {row[1]}"
    sets = [
        "a communicator" if how == _BY_COMM else f"ranks {_words(ranks)}"
        for how, ranks in _decode(row)
    ]
    return f"adds a process set of {' and one of '.join(sets)}" if sets else "adds no process set"


def _essence(row: Sequence[int]) -> Any:
    """What must be the same on all ranks."""
    if row[0] == _REMOVE:
        return tuple(row)
    return [(how, None if how == _BY_COMM else ranks) for how, ranks in _decode(row)]


def raise_mismatch(text: str) -> NoReturn:
    """The error for ranks that disagree; every rank raises it."""
    error = HorovodInternalError(text)
    error.status = _core.MISMATCH
    raise error


def _check_alike(rows: Sequence[Sequence[int]]) -> None:
    wanted = _essence(rows[0])
    for rank, row in enumerate(rows):
        if _essence(row) != wanted:
            raise_mismatch(
                f"process sets: rank 0 {_say(rows[0])}, but rank {rank} {_say(row)}; all ranks "
                "must add and remove the same sets in the same order"
            )


def _new_sets(rows: Sequence[Sequence[int]]) -> list[list[tuple[int, ...]]]:
    """For each entry the lists of ranks that it stands for: one, or one for each communicator."""
    said = [_decode(row) for row in rows]
    known = {frozenset(_core.process_set_ranks(i)): i for i in _core.process_set_ids()}
    result = []
    for index in range(len(said[0])):
        lists = list(dict.fromkeys(sets[index][1] for sets in said if sets[index][1]))
        if not lists:
            raise ValueError(f"process set number {index} has no ranks")
        for ranks in lists:
            _check_ranks(ranks)
            members = frozenset(ranks)
            if members in known:
                raise ValueError(
                    f"process set number {index} is a duplicate: ranks {_words(ranks)} are "
                    f"process set {known[members]} already"
                )
            known[members] = max(known.values()) + 1
        result.append(lists)
    return result


def _check_ranks(ranks: Sequence[int]) -> None:
    outside = [rank for rank in ranks if not 0 <= rank < _core.size()]
    if outside:
        raise ValueError(
            f"process set {_words(ranks)}: there is no rank {outside[0]} in a job of "
            f"{_core.size()} ranks"
        )
    twice = [rank for rank in set(ranks) if ranks.count(rank) > 1]
    if twice:
        raise ValueError(f"process set {_words(ranks)}: rank {min(twice)} is in it twice")


def register(sets: Sequence[ProcessSet]) -> None:
    """Adds the sets, if all ranks want the same ones. Collective over all ranks."""
    with _lock:
        rows = _core.exchange("add_process_set", _encode(sets))
        _check_alike(rows)
        mine = [ranks for _, ranks in _decode(rows[_core.rank()])]
        for process_set, lists, own in zip(sets, _new_sets(rows), mine):
            for ranks in lists:
                number = _core.add_process_set(ranks)
                entry = process_set if ranks == (own or lists[0]) else ProcessSet(ranks)
                entry.ranks = list(ranks)
                entry.process_set_id = number
                _registered[number] = entry


def on_forget(function: Callable[[int], None]) -> None:
    """``function(id)`` is called when a set has been removed."""
    _forgetters.append(function)


def _forget(number: int) -> None:
    process_set = _registered.pop(number, None)
    if process_set is not None:
        process_set._invalidate()
    for function in _forgetters:
        function(number)


def forget_all() -> None:
    """The job has ended and its sets with it. The objects can be given to the next init()."""
    for number in list(_registered):
        _forget(number)
