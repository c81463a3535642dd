"""A process that has imported torch and forks ranks for the tests: importing it anew takes each rank a
second or more. It never imports hora. ranks.py uses it; see `fork`.

The nursery reads lines of JSON from its standard input (env, cwd, output, what to run) and writes lines
to its standard output: {"pid": P} for each order, in order, and {"pid": P, "code": C} for each end. When
its input closes, it kills the ranks that are left.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1

# Variables that count when a process starts; a rank that wants others than the nursery's cannot be
# forked from it.
EARLY = ("LD_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "ASAN_", "TSAN_", "TORCH", "MALLOC_")


def early(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(EARLY)}


# ---- The test's side -----------------------------------------------------------------------------


class Nursery:
    def __init__(self, env: dict[str, str]) -> None:
        self.env = early(env)
        self.codes: dict[int, int] = {}
        self.answers: list[int] = []
        self._partial = b""
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, env=env)
        os.set_blocking(self.process.stdout.fileno(), False)

    def pump(self) -> None:
        """Takes in what the nursery has said."""
        data = self.process.stdout.read()
        if data == b"":
            raise RuntimeError("the nursery of the ranks has died")
        *lines, self._partial = (self._partial + (data or b"")).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "code" in message:
                self.codes[message["pid"]] = message["code"]
            else:
                self.answers.append(message["pid"])

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def fork(self, order: dict[str, Any]) -> "Rank":
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()
        while not self.answers:
            self.pump()
            time.sleep(0.002)
        return Rank(self, self.answers.pop(0))


class Rank:
    """A forked rank, as subprocess.Popen would show it."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery, self.pid = nursery, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.nursery.pump()
            self.returncode = self.nursery.codes.pop(self.pid, None)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + timeout if timeout is not None else None
        while self.poll() is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"rank with pid {self.pid}", timeout or 0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


_nursery: Nursery | None = None


def fork(order: dict[str, Any]) -> Rank | None:
    """Starts a rank: order["env"], ["cwd"], ["output"] (a path), and ["text"], a program, or else
    ranks.main. None where it must be a process of its own, because of its variables."""
    global _nursery
    if _nursery is None or _nursery.process.poll() is not None:
        _nursery = Nursery(order["env"])
        atexit.register(_nursery.close)
    if early(order["env"]) != _nursery.env:
        return None
    return _nursery.fork(order)


# ---- The nursery's side --------------------------------------------------------------------------


def say(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


def serve() -> dict[str, Any]:
    """Returns in each child, with its order."""
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    alive: dict[int, int] = {}  # pidfd -> pid
    pending = b""
    while True:
        for key, _ in selector.select():
            if key.fd != 0:
                pid = alive.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                say({"pid": pid, "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])})
                continue
            data = os.read(0, 1 << 20)
            if not data:
                for pid in alive.values():
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    for descriptor in alive:
                        os.close(descriptor)
                    return json.loads(line)
                descriptor = os.pidfd_open(pid)
                alive[descriptor] = pid
                selector.register(descriptor, selectors.EVENT_READ)
                say({"pid": pid})


def become(order: dict[str, Any]) -> None:
    """Makes this process look as if it had been started for the order."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    null = os.open(os.devnull, os.O_RDONLY)
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, null), (1, output), (2, output)):
        os.dup2(source, target)
    os.close(null)
    os.close(output)


def main() -> None:
    import numpy  # noqa: F401
    import torch  # noqa: F401

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    gc.collect()
    gc.freeze()
    order = serve()
    become(order)
    if "text" in order:
        sys.argv = ["-c"]
        exec(compile(order["text"], "<string>", "exec"), {"__name__": "__main__"})
    else:
        import ranks

        ranks.main()


if __name__ == "__main__":
    main()
