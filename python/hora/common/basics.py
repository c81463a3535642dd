"""Starting and ending: ``init``, ``shutdown``, what happens when a rank fails; what is built in.

A rank that ends with an uncaught exception ends the job on all ranks at once, with its message. An
exception that ends only a thread other than the main one does not: Python goes on then, and so does
the job.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import os
import re
import signal
import sys
import threading
import traceback
from typing import Any, Callable, Iterable, Iterator, Sequence

from hora import _core
from hora.common import elastic_worker
from hora.common import process_sets as _sets
from hora.common.process_sets import ProcessSet

__all__ = [
    "HorovodBasics", "init", "shutdown", "is_initialized", "rank", "size", "local_rank",
    "local_size",
    "cross_rank", "cross_size", "is_homogeneous", "mpi_threads_supported", "mpi_enabled",
    "mpi_built", "gloo_enabled", "gloo_built", "nccl_built", "ddl_built", "ccl_built",
    "cuda_built", "rocm_built", "start_timeline", "stop_timeline", "on_reset",
]  # fmt: skip

is_initialized = _core.is_initialized
rank = _core.rank
size = _core.size
local_rank = _core.local_rank
local_size = _core.local_size
cross_rank = _core.cross_rank
cross_size = _core.cross_size

_hooked = False
_failure: str | None = None
_resets: list[Callable[[], None]] = []
_last_arguments: list[Any] = [None, None]  # of init()


def on_reset(function: Callable[[], None]) -> None:
    """``function`` is called whenever hora starts and whenever it ends."""
    _resets.append(function)


def init(comm: Any = None, process_sets: Any = None) -> None:
    """Joins the job, which the launcher's variables describe; without any, a job of one rank.

    Does nothing when hora has been initialised already. After :func:`shutdown` it may be called
    again. Every rank that was launched calls it.

    ``comm`` is None for a job of all ranks that were launched, or the list of those that form it,
    in the order of their ranks in it, or an mpi4py communicator of them. Ranks that pass lists
    without a rank in common form jobs of their own. A rank that is not in the list that it passes
    gets a ValueError.

    ``process_sets`` is a list of :class:`ProcessSet` to add at once, the same on all ranks; or
    "dynamic", as Horovod has it: hora's sets can always be added and removed later.
    """
    if _core.is_initialized():
        return
    if isinstance(process_sets, str) and process_sets.lower() == "dynamic":
        process_sets = None
    sets = _check_sets(process_sets)
    listed = _check_comm(comm)

    def attempt() -> None:
        _core.init(-1, -1, None, None, 0.0, 0.0, 0)
        try:
            _narrow(_sets.ranks_of_communicator(comm) if listed is None else listed)
            _sets.register(sets)
        except BaseException:
            _sets.forget_all()
            _core.shutdown()
            raise

    with _interruptible():
        elastic_worker.join(attempt)  # an elastic job's launcher says where
    _last_arguments[:] = comm, sets
    for reset in _resets:
        reset()
    _install_hooks()


def restart() -> None:
    """Leaves the job and joins it again, as the last ``init()`` did: with the same process sets. It is
    how survivors of an elastic job take their next place. ValueError where a set has ranks that are
    not there any more."""
    shutdown()
    try:
        init(*_last_arguments)
    except ValueError as error:
        raise ValueError(f"after a reset of this elastic job: {error}") from None


def shutdown() -> None:
    """Leaves the job in order. Operations in flight end with an error. Does nothing before init."""
    if not _core.is_initialized():
        return
    for reset in _resets:
        reset()
    _sets.forget_all()
    _core.shutdown()


def _check_sets(process_sets: Iterable[Any] | None) -> list[ProcessSet]:
    sets = list(process_sets or ())
    for entry in sets:
        if not isinstance(entry, ProcessSet):
            raise ValueError(f"process_sets takes ProcessSet objects or \"dynamic\", not {entry!r}")
    return sets


def _check_comm(comm: Any) -> list[int] | None:
    """The ranks; none for all of them. None for an mpi4py communicator."""
    if comm is None:
        return []
    if _sets.is_communicator(comm):
        return None
    try:
        ranks = [rank + 0 for rank in comm]
    except TypeError:
        raise ValueError(
            f"init() takes a list of ranks or an mpi4py communicator, not {comm!r}"
        ) from None
    if len(set(ranks)) < len(ranks):
        raise ValueError(f"init(comm={ranks}): a rank is in the list twice")
    return ranks


def _narrow(ranks: Sequence[int]) -> None:
    """Leaves this job for one of only these ranks, in that order; no ranks: all."""
    rows = _core.exchange("init", ranks)
    if not any(rows):
        return
    me, everybody = _core.rank(), list(range(_core.size()))
    rows = [row or everybody for row in rows]
    _check_jobs(rows)
    mine = rows[me]
    if all(row == everybody for row in rows):
        return
    member = me in mine
    _core.narrow(min(mine) if member else -1, mine.index(me) if member else 0)
    if not member:
        raise ValueError(
            f"rank {me} is not in init(comm={mine}): it takes no part in that job"
        )


def _check_jobs(rows: Sequence[Sequence[int]]) -> None:
    """The members of each list must have passed the same list."""
    for caller, row in enumerate(rows):
        for rank in row:
            if not 0 <= rank < len(rows):
                raise ValueError(
                    f"init(comm={row}) on rank {caller}: {len(rows)} ranks were launched, and "
                    f"there is no rank {rank}"
                )
            if rows[rank] != row and caller in row:
                _sets.raise_mismatch(
                    f"init: rank {caller} passes comm={row}, which names rank {rank}, but rank "
                    f"{rank} passes comm={rows[rank]}"
                )


# ---- Ctrl-C and uncaught exceptions --------------------------------------------------------------


def _python_handles_interrupt() -> bool:
    return (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends the process while it waits for other ranks to start: nothing is lost then, and
    Python's own handler would only run after the wait."""
    if not _python_handles_interrupt():
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _core.install_interrupt()


def _fail(kind: type[BaseException], value: BaseException | None) -> None:
    """Ends the job on every rank because of an exception that nobody caught."""
    global _failure
    if _failure is not None or not _core.is_initialized():
        return
    what = "".join(traceback.format_exception_only(kind, value)).strip().splitlines()
    _failure = what[-1] if what else kind.__name__
    with contextlib.suppress(Exception):
        _core.abort(_failure)


def _install_hooks() -> None:
    global _hooked, _failure
    _failure = None
    if _hooked:
        return
    _hooked = True
    next_hook = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        _fail(kind, value)
        next_hook(kind, value, trace)

    sys.excepthook = hook
    atexit.register(_at_exit)


def _at_exit() -> None:
    """Says goodbye to the other ranks, unless the job has failed: then they know already."""
    if _failure is None:
        with contextlib.suppress(Exception):
            shutdown()


# ---- Timeline ------------------------------------------------------------------------------------


def start_timeline(file_path: str, mark_cycles: bool = False) -> None:
    """Begins to record a timeline in ``file_path``; rank r > 0 writes ``file_path.rank<r>``."""
    _core.rank()  # raises before init()
    _core.start_timeline(os.fspath(file_path), bool(mark_cycles))


def stop_timeline() -> None:
    """Ends the recording and closes the file."""
    _core.rank()
    _core.stop_timeline()


# ---- What is built in ----------------------------------------------------------------------------


def _backend(name: str) -> dict[str, Any] | None:
    rows = (row for row in _core.backends() if row["name"] == name and row["available"])
    return next(rows, None)


def is_homogeneous() -> bool:
    """True when every host has as many ranks as this one."""
    ranks_of_host = collections.Counter(map(_core.host, range(_core.size())))
    return len(set(ranks_of_host.values())) == 1


def mpi_threads_supported() -> bool:
    """True: any thread may use hora, and MPI beside it as MPI allows."""
    _core.rank()  # raises before init()
    return True


def mpi_enabled() -> bool:
    """True when MPI carries the bytes to some rank."""
    if not _core.is_initialized():
        return False
    return any(_core.transport(peer) == "mpi" for peer in range(_core.size()))


def mpi_built() -> bool:
    return _backend("mpi") is not None


def gloo_enabled() -> bool:
    """True when no MPI is in use: hora's own transports stand where Horovod has Gloo."""
    return not mpi_enabled()


def gloo_built() -> bool:
    return True


def nccl_built() -> int:
    """The version of the NCCL that can be used, as its NCCL_VERSION_CODE (22105); else 0."""
    row = _backend("nccl")
    if row is None:
        return 0
    version = re.search(r"(\d+)\.(\d+)\.(\d+)", row["detail"] or "")
    if version is None:
        return 1
    major, minor, patch = map(int, version.groups())
    return major * 10000 + minor * 100 + patch


def ddl_built() -> bool:
    return False


def ccl_built() -> bool:
    return False


def cuda_built() -> bool:
    return _backend("cuda") is not None


def rocm_built() -> bool:
    return False


# ---- As Horovod has it ---------------------------------------------------------------------------


class HorovodBasics:
    """The functions above as methods, for callers that use ``mpi_ops._basics``. The arguments name
    a library in Horovod; hora has one for all frameworks."""

    Average, Sum, Adasum = _core.AVERAGE, _core.SUM, _core.ADASUM
    Min, Max, Product = _core.MIN, _core.MAX, _core.PRODUCT

    HOROVOD_PROCESS_SET_ERROR_INIT = -1
    HOROVOD_PROCESS_SET_ERROR_DYNAMIC = -2
    HOROVOD_PROCESS_SET_ERROR_UNKNOWN_SET = -3
    HOROVOD_PROCESS_SET_ERROR_FOREIGN_SET = -4
    HOROVOD_PROCESS_SET_ERROR_SHUTDOWN = -5
    HOROVOD_PROCESS_SET_ERROR_EXISTING_SET = -6

    init = staticmethod(init)
    shutdown = staticmethod(shutdown)
    is_initialized = staticmethod(is_initialized)
    start_timeline = staticmethod(start_timeline)
    stop_timeline = staticmethod(stop_timeline)
    size = staticmethod(size)
    local_size = staticmethod(local_size)
    cross_size = staticmethod(cross_size)
    rank = staticmethod(rank)
    local_rank = staticmethod(local_rank)
    cross_rank = staticmethod(cross_rank)
    is_homogeneous = staticmethod(is_homogeneous)
    mpi_threads_supported = staticmethod(mpi_threads_supported)
    mpi_enabled = staticmethod(mpi_enabled)
    mpi_built = staticmethod(mpi_built)
    gloo_enabled = staticmethod(gloo_enabled)
    gloo_built = staticmethod(gloo_built)
    nccl_built = staticmethod(nccl_built)
    ddl_built = staticmethod(ddl_built)
    ccl_built = staticmethod(ccl_built)
    cuda_built = staticmethod(cuda_built)
    rocm_built = staticmethod(rocm_built)

    def __init__(self, pkg_path: str = "", *args: str) -> None:
        pass

    @staticmethod
    def _process_set_rank(process_set_id: int) -> int:
        return _core.process_set_rank(process_set_id)

    @staticmethod
    def _process_set_size(process_set_id: int) -> int:
        return _core.process_set_size(process_set_id)

    @staticmethod
    def _get_process_set_ids_and_ranks() -> dict[int, list[int]]:
        return _sets.get_process_set_ids_and_ranks()

    @staticmethod
    def _comm_process_set_id(comm: Any) -> int:
        """The id of the set that has the communicator's ranks."""
        members = set(_sets.ranks_of_communicator(comm))
        for number, ranks in _sets.get_process_set_ids_and_ranks().items():
            if set(ranks) == members:
                return number
        raise ValueError("MPI communicator does not correspond to any registered process set.")
