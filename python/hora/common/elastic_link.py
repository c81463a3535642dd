"""The line between a worker of an elastic job and the launcher, which drives the job.

Lines of JSON over a socket, none longer than a limit. Both ends first prove that they know the
job's secret, which itself is never sent:

    driver   {"hora": "elastic", "version": 2, "nonce": D}
    worker   {"worker": ID, "pid": PID, "nonce": W, "proof": HMAC(secret, "worker" D W ID PID)}
    driver   {"proof": HMAC(secret, "driver" D W ID PID)}

or, where it does not take that process, {"refused": TEXT, "proof": HMAC(secret, "refused" D W ID PID
TEXT)}. A child of a worker inherits the worker's ID, hence the process number.

From then on a line is "MAC JSON", where MAC is an HMAC over the direction, the number of the line and
its JSON, under a key that is made of the secret and both nonces: nobody can add, change, repeat or
reorder lines. They are not encrypted; nothing that they say is secret. What comes in is data, never
code. No threads here; an end is used by one thread at a time, but sending and receiving may be done
by different ones.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import socket
from typing import Any, Callable, Iterator

__all__ = ["End", "HostUpdateResult", "LinkError", "RefusedError", "connect", "greeting",
           "listen"]  # fmt: skip

VERSION = 2
STRANGER_MAX = 512  # bytes of a line before the proof
LINE_MAX = 1 << 16
NONCE_BYTES = 16
DRIVER, WORKER, REFUSED = "driver", "worker", "refused"
BACKLOG = 1024  # workers that come at once; the system may allow less


class HostUpdateResult:
    """What happened to the list of hosts; values can be combined."""

    no_update = 0
    removed = 1
    added = 2
    mixed = removed | added


class LinkError(ConnectionError):
    """The other end is not who it should be, or says what makes no sense."""


class RefusedError(LinkError):
    """The launcher knows this process's job, but does not take this process; the text says why."""


def _mac(key: bytes, *parts: object) -> str:
    text = "\0".join(map(str, parts)).encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest()


def greeting() -> tuple[str, bytes]:
    """The driver's nonce for a new connection, and the line to send."""
    nonce = secrets.token_hex(NONCE_BYTES)
    return nonce, _line({"hora": "elastic", "version": VERSION, "nonce": nonce})


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise LinkError("a line that is no JSON") from None
    if not isinstance(message, dict):
        raise LinkError("a line that is no JSON object")
    return message


def _number(message: dict[str, Any], name: str) -> int:
    value = message.get(name)
    if type(value) is not int:
        raise LinkError(f"a line without {name}")
    return value


def _text(message: dict[str, Any], name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise LinkError(f"a line without {name}")
    return value


class End:
    """One end: turns messages into bytes and back. ``secret`` is the job's."""

    def __init__(self, role: str, secret: str) -> None:
        self.role = role
        self.secret = secret.encode()
        self.nonce = ""  # the driver's
        self.worker = ""  # whose line it is; known once it has been proved, as is
        self.pid = 0  # the process number
        self.key: bytes | None = None
        self._pending = ""  # the worker's nonce, between its proof and the driver's
        self._buffer = bytearray()
        self._sent = 0
        self._heard = 0

    # ---- Proving ---------------------------------------------------------------------------------

    def _prove(self, side: str, nonce: str, *more: object) -> str:
        who = self.nonce, nonce, self.worker, self.pid
        return _mac(self.secret, "hora elastic", side, *who, *more)

    def _agree(self, nonce: str) -> None:
        self.key = bytes.fromhex(self._prove("key", nonce))

    def admit(
        self, line: bytes, judge: Callable[[str, int], str] = lambda worker, pid: ""
    ) -> bytes:
        """The driver judges a worker's proof; returns its own. LinkError: not one of us. Where
        ``judge(worker, pid)`` returns a text, the reply is a refusal, and there is no key."""
        message = _parse(line)
        nonce = _text(message, "nonce")
        self.worker, self.pid = _text(message, "worker"), _number(message, "pid")
        if not hmac.compare_digest(
            self._prove(WORKER, nonce).encode(), _text(message, "proof").encode()
        ):
            raise LinkError("a process that does not know the job's secret")
        refusal = judge(self.worker, self.pid)
        if refusal:
            return _line({"refused": refusal, "proof": self._prove(REFUSED, nonce, refusal)})
        self._agree(nonce)
        return _line({"proof": self._prove(DRIVER, nonce)})

    def introduce(self, line: bytes, worker: str, pid: int) -> bytes:
        """The worker answers the driver's greeting."""
        message = _parse(line)
        if message.get("hora") != "elastic" or message.get("version") != VERSION:
            raise LinkError("what answers there is no launcher of this version of hora")
        self.nonce, nonce = _text(message, "nonce"), secrets.token_hex(NONCE_BYTES)
        self._pending, self.worker, self.pid = nonce, worker, pid
        proof = self._prove(WORKER, nonce)
        return _line({"worker": worker, "pid": pid, "nonce": nonce, "proof": proof})

    def accept(self, line: bytes) -> None:
        """The worker judges the driver's proof. RefusedError: it does not take this process."""
        message = _parse(line)
        refusal = message.get("refused")
        said = [DRIVER, self._pending] if refusal is None else [REFUSED, self._pending, refusal]
        proof = self._prove(*said)
        if not hmac.compare_digest(proof.encode(), _text(message, "proof").encode()):
            raise LinkError("the launcher does not know the job's secret")
        if refusal is not None:
            raise RefusedError(refusal)
        self._agree(self._pending)

    # ---- Talking ---------------------------------------------------------------------------------

    def encode(self, message: dict[str, Any]) -> bytes:
        assert self.key is not None
        text = json.dumps(message, separators=(",", ":"))
        line = f"{_mac(self.key, self.role, self._sent, text)} {text}\n".encode()
        if len(line) > LINE_MAX:
            raise LinkError(f"a message of {len(line)} bytes")
        self._sent += 1
        return line

    def decode(self, line: bytes) -> dict[str, Any]:
        assert self.key is not None
        mac, _, text = line.partition(b" ")
        other = WORKER if self.role == DRIVER else DRIVER
        wanted = _mac(self.key, other, self._heard, text.decode(errors="replace"))
        if not hmac.compare_digest(wanted.encode(), mac):
            raise LinkError("a line that was not made with the job's secret")
        self._heard += 1
        return _parse(text)

    def lines(self, data: bytes) -> Iterator[bytes]:
        """Complete lines, without their ends. The limit holds for what is still incomplete too."""
        self._buffer += data
        while True:
            at = self._buffer.find(b"\n")
            limit = STRANGER_MAX if self.key is None else LINE_MAX
            if at > limit or (at < 0 and len(self._buffer) > limit):
                raise LinkError("a line that is too long")
            if at < 0:
                return
            line = bytes(self._buffer[:at])
            del self._buffer[: at + 1]
            yield line


# ---- Sockets -------------------------------------------------------------------------------------


def listen(local: bool) -> tuple[socket.socket, str, int]:
    """A listening socket; and its name, or its port where other hosts must reach it."""
    if local:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = f"hora-elastic-{secrets.token_hex(12)}"
        server.bind("\0" + name)
        server.listen(BACKLOG)
        return server, name, 0
    dual = socket.has_dualstack_ipv6()
    server = socket.create_server(
        ("", 0), family=socket.AF_INET6 if dual else socket.AF_INET, backlog=BACKLOG,
        dualstack_ipv6=dual,
    )  # fmt: skip
    keep(server)
    return server, "", int(server.getsockname()[1])


def keep(sock: socket.socket) -> None:
    """A host that vanishes without a word is noticed within about half a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def connect(address: str, secret: str, worker: str, timeout: float) -> tuple[socket.socket, End]:
    """The worker's way to the driver: "unix:NAME" or "tcp:HOST:PORT". LinkError: trying again
    is of no use; any other OSError: it may be."""
    kind, _, rest = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        sock.connect("\0" + rest)
    elif kind == "tcp":
        host, _, port = rest.rpartition(":")
        sock = socket.create_connection((host.strip("[]"), int(port)), timeout)
        keep(sock)
    else:
        raise LinkError(f"HORA_ELASTIC_DRIVER={address!r} is not understood")
    try:
        end = End(WORKER, secret)
        for step in range(2):
            line = _first_line(sock, end)
            if step == 0:
                sock.sendall(end.introduce(line, worker, os.getpid()))
            else:
                end.accept(line)
    except BaseException:
        sock.close()
        raise
    sock.settimeout(None)
    return sock, end


def _first_line(sock: socket.socket, end: End) -> bytes:
    while True:
        for line in end.lines(b""):
            return line
        data = sock.recv(STRANGER_MAX)
        if not data:
            raise ConnectionAbortedError("the launcher closed the connection")
        for line in end.lines(data):
            return line
