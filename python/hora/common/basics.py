"""Starting and ending: ``init``, ``shutdown``, what happens when a rank fails; what is built in.

A rank that ends with an uncaught exception ends the job on all ranks at once, with its message. An
exception that ends only a thread other than the main one does not: Python goes on then, and so does
the job.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import sys
import threading
import traceback
from typing import Any, Callable, Iterator

from hora import _core
from hora.common.process_sets import global_process_set

__all__ = [
    "init", "shutdown", "is_initialized", "rank", "size", "local_rank", "local_size",
    "cross_rank", "cross_size", "is_homogeneous", "mpi_threads_supported", "mpi_enabled",
    "mpi_built", "gloo_enabled", "gloo_built", "nccl_built", "ddl_built", "ccl_built",
    "cuda_built", "rocm_built", "on_reset",
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


def on_reset(function: Callable[[], None]) -> None:
    """``function`` is called whenever hora starts and whenever it ends."""
    _resets.append(function)


def init(comm: Any = None, process_sets: Any = None) -> None:
    """Joins the job, which the launcher's variables describe; without any, a job of one rank.

    Does nothing when hora has been initialised already. After :func:`shutdown` it may be called
    again. ``comm`` may be None or the list of all ranks; ``process_sets`` may be None or empty.
    """
    if _core.is_initialized():
        return
    if process_sets:
        raise ValueError("hora knows only the global process set so far; leave process_sets out")
    if comm is not None and not isinstance(comm, (list, tuple)):
        raise ValueError(f"init() takes no communicator of type {type(comm).__name__}")
    with _interruptible():
        _core.init(-1, -1, None, None, 0.0, 0.0, 0)
    if comm and sorted(comm) != list(range(_core.size())):
        total = _core.size()
        _core.shutdown()
        raise ValueError(f"init(comm={list(comm)}) must name all {total} ranks of the job")
    for reset in _resets:
        reset()
    _install_hooks()


def shutdown() -> None:
    """Leaves the job in order. Operations in flight end with an error. Does nothing before init."""
    if not _core.is_initialized():
        return
    for reset in _resets:
        reset()
    _core.shutdown()


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


# ---- What is built in ----------------------------------------------------------------------------


def _has(name: str) -> bool:
    return any(row["name"] == name and row["available"] for row in _core.backends())


def is_homogeneous() -> bool:
    """True when every host has as many ranks as this one."""
    return _core.local_size() * _core.cross_size() == _core.size()


def mpi_threads_supported() -> bool:
    _core.rank()  # raises before init()
    return True


def mpi_enabled() -> bool:
    """True when MPI carries the bytes to some rank."""
    return any(_core.transport(peer) == "mpi" for peer in global_process_set.ranks)


def mpi_built() -> bool:
    return _has("mpi")


def gloo_enabled() -> bool:
    """True when no MPI is in use: hora's own transports stand where Horovod has Gloo."""
    return not mpi_enabled()


def gloo_built() -> bool:
    return True


def nccl_built() -> int:
    return int(_has("nccl"))


def ddl_built() -> bool:
    return False


def ccl_built() -> bool:
    return False


def cuda_built() -> bool:
    return _has("cuda")


def rocm_built() -> bool:
    return False
