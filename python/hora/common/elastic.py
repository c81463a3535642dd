"""Elastic training, for any framework: state that survives the loss of ranks, and the loop that
brings a function back to its last commit.

    @run                                      # of the framework's module, made by run_fn
    def train(state):
        while state.batch < 1000:
            step()
            state.batch += 1
            state.commit()

When a rank dies, every operation of the others raises :class:`HorovodInternalError`; the function is
left, the state goes back to its last commit, the survivors make a new generation of the job, and the
function starts again. When hosts come or go, ``commit()`` (or ``check_host_updates()``) raises
:class:`HostsUpdatedInterrupt` on all ranks at once; the state is kept then. In between, ``sync()``
gives all ranks the state of rank 0, which is a survivor with the newest commit. docs/elastic.md has
the whole story.

In a job that was not started as an elastic one the function runs once, and errors pass through.
"""

from __future__ import annotations

import collections
import copy
import functools
import queue
import threading
from typing import Any, Callable

from hora.common import elastic_worker
from hora.common.elastic_link import HostUpdateResult
from hora.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt

__all__ = [
    "HostUpdateResult", "ObjectState", "State", "WorkerNotificationManager",
    "notification_manager", "run_fn",
]  # fmt: skip


class WorkerNotificationManager:
    """Passes on what the driver says about hosts to those who registered. What came while nobody
    had registered is not lost."""

    def __init__(self) -> None:
        self._listeners: set[Any] = set()
        self._recent: collections.deque[tuple[float, int]] = collections.deque(maxlen=64)
        self._lock = threading.Lock()

    def init(self, rendezvous_addr: Any = None, rendezvous_port: Any = None) -> None:
        """The arguments are Horovod's, and not needed."""
        if elastic_worker.active():
            elastic_worker.worker().listen(self.handle_hosts_updated)

    def register_listener(self, listener: Any) -> None:
        with self._lock:
            self._listeners.add(listener)
            since = _generation_time()
            for timestamp, update_res in self._recent:
                if timestamp > since:
                    listener.on_hosts_updated(timestamp, update_res)

    def remove_listener(self, listener: Any) -> None:
        with self._lock:
            self._listeners.discard(listener)

    def handle_hosts_updated(self, timestamp: float, update_res: int) -> None:
        with self._lock:
            self._recent.append((timestamp, update_res))
            for listener in self._listeners:
                listener.on_hosts_updated(timestamp, update_res)


def _generation_time() -> float:
    """What the driver said before has been taken account of."""
    if not elastic_worker.active():
        return 0.0
    return float(elastic_worker.worker().place.get("time", 0.0))


notification_manager = WorkerNotificationManager()


class State:
    """What must survive. Subclasses say how to save, restore and sync. ``bcast_object(obj)`` returns
    rank 0's object on every rank; ``get_rank()`` is this process's rank."""

    # A subclass whose ranks hold different parts of the state must be synced after every reset,
    # also when ranks only went away.
    always_sync = False

    def __init__(self, bcast_object: Callable[[Any], Any], get_rank: Callable[[], int]) -> None:
        self._bcast_object = bcast_object
        self._rank = get_rank
        self._host_messages: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
        self._last_updated_timestamp = 0.0
        self._reset_callbacks: list[Callable[[], None]] = []
        self._commits = -1  # nothing committed, nor taken over from others

    def register_reset_callbacks(self, callbacks: list[Callable[[], None]]) -> None:
        """Called, in order, after every reset, when the new rank and size are known: to scale the
        learning rate, for instance."""
        self._reset_callbacks.extend(callbacks)

    def on_reset(self) -> None:
        self._forget_old_messages()
        self.reset()
        for callback in self._reset_callbacks:
            callback()

    def _forget_old_messages(self) -> None:
        """Those that the new generation has taken account of. One that came since must stay."""
        since = _generation_time()
        self._last_updated_timestamp = max(since, self._last_updated_timestamp)
        for _ in range(self._host_messages.qsize()):
            message = self._host_messages.get()
            if message[0] > since:
                self._host_messages.put(message)

    def on_hosts_updated(self, timestamp: float, update_res: int) -> None:
        """Any thread."""
        self._host_messages.put((timestamp, update_res))

    def commit(self) -> None:
        """Saves the state, and raises HostsUpdatedInterrupt if hosts have come or gone."""
        self._commits += 1
        self.save()
        self.check_host_updates()

    def check_host_updates(self) -> None:
        """Raises HostsUpdatedInterrupt on all ranks at once if rank 0 has heard of a change.
        Collective."""
        before = latest = self._last_updated_timestamp
        change = HostUpdateResult.no_update
        while not self._host_messages.empty():
            timestamp, update = self._host_messages.get()
            if timestamp > latest:
                latest = timestamp
                change |= update
        before, latest, change = self._bcast_object((before, latest, change))
        self._last_updated_timestamp = latest
        if latest > before:
            raise HostsUpdatedInterrupt(change == HostUpdateResult.removed)

    def save(self) -> None:
        """Keeps a copy of the state in memory."""
        raise NotImplementedError

    def restore(self) -> None:
        """Goes back to the copy."""
        raise NotImplementedError

    def sync(self) -> None:
        """Gives every rank the state of rank 0, and saves it. Collective."""
        raise NotImplementedError

    def reset(self) -> None:
        """What has to change with rank and size."""


def _own_copy(value: Any) -> Any:
    """A copy of what a program changes in place; other objects are shared."""
    plain = (list, dict, set, bytearray, collections.deque)
    if isinstance(value, plain) or hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return copy.deepcopy(value)
    return value


class ObjectState(State):
    """State in plain attributes: ``ObjectState(bcast_object, get_rank, batch=0, epoch=0)``. Lists,
    dicts, sets and arrays are copied at a commit; any other object is kept by reference."""

    def __init__(
        self, bcast_object: Callable[[Any], Any], get_rank: Callable[[], int], **kwargs: Any
    ) -> None:
        super().__init__(bcast_object, get_rank)
        self._saved_state = {name: _own_copy(value) for name, value in kwargs.items()}
        for name, value in kwargs.items():
            setattr(self, name, value)

    def save(self) -> None:
        self._saved_state = {name: _own_copy(getattr(self, name)) for name in self._saved_state}

    def restore(self) -> None:
        for name, value in self._saved_state.items():
            setattr(self, name, _own_copy(value))

    def sync(self) -> None:
        live = {name: getattr(self, name) for name in self._saved_state}
        self._commits, live = self._bcast_object((self._commits, live))
        if self._rank() != 0:
            for name, value in live.items():
                setattr(self, name, value)
        ObjectState.save(self)


# ---- The loop ------------------------------------------------------------------------------------


def run_fn(func: Callable[..., Any], reset: Callable[[], None]) -> Callable[..., Any]:
    """Makes ``func(state, ...)`` elastic. ``reset()`` leaves the job and joins the new generation."""

    @functools.wraps(func)
    def wrapper(state: State, *args: Any, **kwargs: Any) -> Any:
        notification_manager.init()
        notification_manager.register_listener(state)
        skip_sync = False
        try:
            while True:
                try:
                    if not skip_sync:
                        state.sync()
                        state._commits = max(0, state._commits)
                    return func(state, *args, **kwargs)
                except HorovodInternalError as error:
                    if not elastic_worker.active():
                        raise
                    _say_why(state, "failed", str(error))
                    state.restore()
                except HostsUpdatedInterrupt as interrupt:
                    skip = interrupt.skip_sync and not state.always_sync
                    _say_why(state, "skip" if skip else "updated", "")
                reset()
                skip_sync = not _must_sync()
                state.on_reset()
        finally:
            notification_manager.remove_listener(state)

    return wrapper


def _say_why(state: State, why: str, text: str) -> None:
    """For the driver, when ``reset()`` comes to ask it for a place."""
    if elastic_worker.active():
        own = elastic_worker.worker()
        own.why, own.text, own.commits = why, text, state._commits


def _must_sync() -> bool:
    """All ranks sync or none does, and the driver knows why each of them has come."""
    return not elastic_worker.active() or bool(elastic_worker.worker().place.get("sync", True))
