"""The lines from the workers: they come to one listening socket, prove that they know the job's
secret, and then say and hear what elastic_link.py describes. All of it runs in the launcher's loop;
nothing here waits.

Objects of this module stand in the loop's selector beside the agents, so they have the methods that
it calls: ``events()`` when there is something to read, ``send()`` when there is room to write."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from hora.common import elastic_link

STRANGERS_MAX = 64  # beyond one for each worker that was started
STRANGER_SECONDS = 10.0
BACKLOG_MAX = 1 << 20  # bytes that a worker has not read


class Connection:
    """One worker's line, or a stranger's."""

    def __init__(self, desk: Desk, sock: socket.socket) -> None:
        self.desk = desk
        self.sock = sock
        self.since = time.monotonic()
        self.worker = -1
        self.end = elastic_link.End(elastic_link.DRIVER, desk.secret)
        self.unsent = bytearray()
        self.open = True
        sock.setblocking(False)
        self.end.nonce, hello = elastic_link.greeting()
        desk.selector.register(sock, selectors.EVENT_READ, self)
        self.send(hello)

    def events(self) -> list[dict[str, Any]]:
        try:
            data = self.sock.recv(1 << 16)
            if not data:
                self.close()
            for line in self.end.lines(data):
                self._hear(line)
        except BlockingIOError:
            pass
        except (OSError, KeyError, TypeError, ValueError) as error:
            self.desk.info(f"a connection to the elastic driver was closed: {error}")
            self.close()
        return []

    def _hear(self, line: bytes) -> None:
        if not self.open:
            return
        if self.end.key is None:
            self.send(self.end.admit(line, self.desk.judge))
            if self.end.key is None:
                self.desk.info(f"process {self.end.pid} is not worker {self.end.worker}, though it "
                               "has its environment")
                self.close()
                return
            self.worker = int(self.end.worker)
            if self.open:
                self.desk.admitted(self)
        else:
            self.desk.on_message(self.worker, self.end.decode(line))

    def tell(self, **message: Any) -> None:
        self.send(self.end.encode(message))

    def send(self, data: bytes = b"") -> None:
        if not self.open:
            return
        self.unsent += data
        try:
            del self.unsent[: self.sock.send(self.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        if len(self.unsent) > BACKLOG_MAX:
            self.close()
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        if self.desk.selector.get_key(self.sock).events != wanted:
            self.desk.selector.modify(self.sock, wanted, self)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.desk.selector.unregister(self.sock)
            self.sock.close()
            self.desk.closed(self)


class Desk:
    """Where workers come to. ``on_message(worker, message)`` gets what they say."""

    def __init__(self, local: bool, secret: str, selector: selectors.BaseSelector,
                 on_message: Callable[[int, dict[str, Any]], None],
                 info: Callable[[str], None]) -> None:
        self.secret = secret
        self.selector = selector
        self.on_message = on_message
        self.info = info
        self.server, self.name, self.port = elastic_link.listen(local)
        self.server.setblocking(False)
        self.expected = 0  # workers that were started
        self.strangers: set[Connection] = set()
        self.workers: dict[int, Connection] = {}
        selector.register(self.server, selectors.EVENT_READ, self)

    def address(self, host: str) -> str:
        """For HORA_ELASTIC_DRIVER; ``host`` is this machine's address as the worker sees it."""
        if self.name:
            return f"unix:{self.name}"
        return f"tcp:{f'[{host}]' if ':' in host else host}:{self.port}"

    def events(self) -> list[dict[str, Any]]:
        now = time.monotonic()
        for stranger in [s for s in self.strangers if now - s.since > STRANGER_SECONDS]:
            stranger.close()
        try:
            sock, _ = self.server.accept()
        except OSError:
            return []
        if len(self.strangers) >= STRANGERS_MAX + self.expected:
            min(self.strangers, key=lambda s: s.since).close()
        connection = Connection(self, sock)
        if connection.open:
            self.strangers.add(connection)
        return []

    def judge(self, worker: str, pid: int) -> str:
        """Why this process is not the worker whose environment it has, if so: a child of the worker,
        which must not take the worker's line away."""
        old = self.workers.get(int(worker))
        if old is None or old.end.pid == pid:
            return ""
        return (f"worker {worker} of this elastic job is process {old.end.pid}, and this is process "
                f"{pid}, which has its environment: only the worker itself may call init(). Start "
                "other programs without the variables HORA_ELASTIC*, or let hora run start them")

    def admitted(self, connection: Connection) -> None:
        self.strangers.discard(connection)
        old = self.workers.pop(connection.worker, None)
        if old is not None:
            old.close()
        self.workers[connection.worker] = connection

    def closed(self, connection: Connection) -> None:
        self.strangers.discard(connection)
        if self.workers.get(connection.worker) is connection:
            del self.workers[connection.worker]

    def tell(self, worker: int, **message: Any) -> None:
        """Does nothing where the worker is gone; its agent says so."""
        connection = self.workers.get(worker)
        if connection is not None:
            connection.tell(**message)

    def close(self) -> None:
        for connection in [*self.strangers, *self.workers.values()]:
            connection.close()
        self.selector.unregister(self.server)
        self.server.close()
