"""A worker of an elastic job: how this process gets its place, and hears of changes.

The launcher sets HORA_ELASTIC_DRIVER (where it listens), HORA_ELASTIC_ID (who this process is) and
HORA_SECRET. ``init()`` then comes here: the worker asks the driver for a place, which is a rank in a
*generation* of the job, puts it into the environment, and joins. When the joining fails, because
another worker died in the midst of it, it asks again. A place comes when all who shall be in the
generation have asked; so ranks that join at a place come within moments.

One thread reads what the driver says; it is asleep otherwise. Everything else runs on the callers'
threads.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from typing import Any, Callable

from hora import _core
from hora._core import HorovodInternalError
from hora.common import elastic_link

__all__ = ["LineError", "active", "join", "worker", "Worker"]

CONNECT_SECONDS = 30.0
TEXT_MAX = 2000


class LineError(HorovodInternalError):
    """This worker cannot speak with the launcher. The job's other workers can go on without it."""


def active() -> bool:
    """True where a launcher drives an elastic job that this process is a worker of."""
    return "HORA_ELASTIC_DRIVER" in os.environ


class Worker:
    """This process, as the driver knows it. ``commits`` counts what its state has committed: the
    driver gives rank 0, whose state the others take over, to a survivor that has most."""

    def __init__(self) -> None:
        self.why = "start"  # why it asks for a place next
        self.text = ""  # what failed
        self.commits = -1
        self.generation = 0  # the last one that it joined
        self.place: dict[str, Any] = {}  # the last one that it was given
        self._listener: Callable[[float, int], None] | None = None
        self._unheard: list[tuple[float, int]] = []  # before there was a listener
        self._id = os.environ["HORA_ELASTIC_ID"]
        self._sending = threading.Lock()
        self._changed = threading.Condition()
        self._answer: dict[str, Any] | None = None  # guarded by _changed, as are the next three
        self._lost: str | None = None
        self._cancelled = 0
        self._joining = 0
        self._socket, self._end = self._connect()
        threading.Thread(target=self._read, name="hora-elastic", daemon=True).start()
        os.register_at_fork(after_in_child=self._forked)

    # ---- The line --------------------------------------------------------------------------------

    def _connect(self) -> tuple[socket.socket, elastic_link.End]:
        address = os.environ["HORA_ELASTIC_DRIVER"]
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                secret = os.environ.get("HORA_SECRET", "")
                return elastic_link.connect(address, secret, self._id, CONNECT_SECONDS)
            except OSError as error:
                if isinstance(error, elastic_link.RefusedError):
                    raise LineError(str(error)) from None
                if isinstance(error, elastic_link.LinkError) or time.monotonic() > deadline:
                    raise LineError(
                        f"cannot reach the launcher of this elastic job at {address}: {error}"
                    ) from None
            time.sleep(0.2)

    def _forked(self) -> None:
        """The child must not keep the line open, nor speak on it."""
        self._lost = "this is the child of a fork()"
        with contextlib.suppress(OSError):
            os.close(self._socket.detach())

    def send(self, **message: Any) -> None:
        with self._sending:
            if self._lost is None:
                with contextlib.suppress(OSError):  # the reader notices, too
                    self._socket.sendall(self._end.encode(message))

    def _read(self) -> None:
        reason = "it closed the connection"
        try:
            while True:
                for line in self._end.lines(b""):
                    self._hear(self._end.decode(line))
                data = self._socket.recv(1 << 16)
                if not data:
                    break
                for line in self._end.lines(data):
                    self._hear(self._end.decode(line))
        except (OSError, KeyError, TypeError, ValueError) as error:
            reason = str(error)
        with self._changed:
            self._lost = reason
            self._changed.notify_all()

    def _hear(self, message: dict[str, Any]) -> None:
        what = message.get("do")
        if what in ("place", "exit"):
            with self._changed:
                self._answer = message
                self._changed.notify_all()
        elif what == "cancel":
            with self._changed:
                self._cancelled = int(message["generation"])
                if self._joining and self._joining <= self._cancelled:
                    _core.cancel_init(True)
        elif what == "hosts":
            news = float(message["time"]), int(message["change"])
            with self._changed:
                listener = self._listener
                if listener is None:
                    self._unheard.append(news)
            if listener is not None:
                listener(*news)

    def listen(self, listener: Callable[[float, int], None]) -> None:
        """``listener(time, change)`` is called when hosts come or go, on another thread."""
        with self._changed:
            self._listener = listener
            unheard, self._unheard = self._unheard, []
        for news in unheard:
            listener(*news)

    # ---- Places ----------------------------------------------------------------------------------

    def ask(self) -> dict[str, Any]:
        """Waits for a place, for as long as the line is open: how long anybody may take is the
        driver's to judge, and a training between two commits may take hours. SystemExit: there is
        no place for this worker any more. LineError: the line is lost."""
        with self._changed:
            self._answer = None
        self.send(do="place", why=self.why, generation=self.generation, commits=self.commits,
                  text=self.text[:TEXT_MAX], ports=self._free_ports(), pid=os.getpid())  # fmt: skip
        with self._changed:
            self._changed.wait_for(lambda: self._answer or self._lost)
            answer = self._answer
        if answer is None:
            raise LineError(f"the launcher of this elastic job is gone: {self._lost}")
        if answer["do"] == "exit":
            raise SystemExit(0)
        os.environ.update({str(k): str(v) for k, v in answer["env"].items()})
        self.place = answer
        return answer

    def _free_ports(self) -> list[int]:
        """On this host, for the rendezvous should this worker become rank 0. Not needed where all
        ranks are on one host."""
        if os.environ["HORA_ELASTIC_DRIVER"].startswith("unix:"):
            return [0, 0]
        with socket.socket() as one, socket.socket() as two:
            one.bind(("", 0))
            two.bind(("", 0))
            return [int(one.getsockname()[1]), int(two.getsockname()[1])]

    def join(self, attempt: Callable[[], None]) -> None:
        """Gets a place and joins there with ``attempt``, as often as it takes."""
        while True:
            generation = int(self.ask()["generation"])
            try:
                self._attempt(generation, attempt)
            except HorovodInternalError as error:
                self.why, self.text = "failed", str(error)
                continue
            self.generation = generation
            self.why, self.text = "again", ""
            self.send(do="joined", generation=generation)
            return

    def _attempt(self, generation: int, attempt: Callable[[], None]) -> None:
        with self._changed:
            if self._cancelled >= generation:
                raise HorovodInternalError("another worker ended before all had joined")
            self._joining = generation
            _core.cancel_init(False)
        try:
            attempt()
        finally:
            with self._changed:
                self._joining = 0

    # ---- Exceptions ------------------------------------------------------------------------------

    def report(self, kind: type[BaseException], value: BaseException | None) -> None:
        """Tells the driver of an exception that nobody caught. It ends the job, unless it only says
        that another rank has failed."""
        if issubclass(kind, KeyboardInterrupt):
            return
        text = "".join(traceback.format_exception_only(kind, value)).strip()
        internal = issubclass(kind, HorovodInternalError)
        self.send(do="error", text=text[-TEXT_MAX:], internal=internal)


_worker: Worker | None = None
_lock = threading.Lock()


def worker() -> Worker:
    """This process's one worker; connects to the driver at the first call."""
    global _worker
    with _lock:
        if _worker is None:
            _worker = Worker()
            _install_hook(_worker)
        return _worker


def _install_hook(own: Worker) -> None:
    next_hook = sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, trace: Any) -> None:
        own.report(kind, value)
        next_hook(kind, value, trace)

    sys.excepthook = hook


def join(attempt: Callable[[], None]) -> None:
    """Joins the job with ``attempt``: once, or in an elastic job as its driver says."""
    if active():
        worker().join(attempt)
    else:
        attempt()
