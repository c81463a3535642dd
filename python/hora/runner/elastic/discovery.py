"""Which hosts an elastic job may use: found by a script that is run every second, or fixed; and which
of them have failed and must not be used for some time, or ever again."""

from __future__ import annotations

import dataclasses
import math
import os
import queue
import random
import re
import signal
import subprocess
import threading
from collections.abc import Callable

from hora.runner.hosts import Host, HostError, split_host

POLL_SECONDS = 1.0
SCRIPT_SECONDS = 60.0  # for one run of the script


def parse_lines(text: str, default_slots: int | None) -> dict[str, int]:
    """Lines "host:slots", or "host" where a number of slots for every host was given."""
    hosts: dict[str, int] = {}
    for line in text.splitlines():
        word = line.split("#")[0].strip()
        if not word:
            continue
        if re.fullmatch(r".*:0+", word):
            continue  # a host that must not be used now
        name, slots = split_host(word)
        if slots is None and default_slots is None:
            raise HostError(f"'{word}' has no number of slots; print HOST:SLOTS, or give "
                            "--slots-per-host")
        hosts[name] = hosts.get(name, 0) + (slots if slots is not None else default_slots or 0)
    return hosts


def run_script(script: str, default_slots: int | None) -> dict[str, int]:
    """HostError with what the script said, if it failed."""
    command = [script] if os.path.sep in script and " " not in script else ["sh", "-c", script]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, start_new_session=True)
    except OSError as error:
        raise HostError(f"host discovery script {script}: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=SCRIPT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise HostError(f"host discovery script {script}: no answer for {SCRIPT_SECONDS:g} s") from None
    if process.returncode != 0:
        last = err.strip().splitlines()[-1:] or ["it said nothing"]
        raise HostError(f"host discovery script {script} ended with {process.returncode}: {last[0]}")
    try:
        return parse_lines(out, default_slots)
    except HostError as error:
        raise HostError(f"host discovery script {script}: {error}") from None


class Discovery:
    """Tells of hosts: ``changes`` gets a dict of slots by host, or the HostError of a script that
    failed, whenever that is something new; ``wake`` is called then, on another thread."""

    def __init__(self, hosts: list[Host] | None, script: str | None, slots: int | None,
                 wake: Callable[[], None]) -> None:
        self.fixed = script is None
        self.changes: queue.SimpleQueue[dict[str, int] | HostError] = queue.SimpleQueue()
        self._script = script
        self._slots = slots
        self._wake = wake
        self._stop = threading.Event()
        if script is None:
            self.changes.put({host.name: host.slots for host in hosts or []})
        else:
            threading.Thread(target=self._poll, name="hora-discovery", daemon=True).start()

    def _poll(self) -> None:
        assert self._script is not None
        last: object = None
        while not self._stop.is_set():
            found: dict[str, int] | HostError
            try:
                found = run_script(self._script, self._slots)
                key: object = list(found.items())
            except HostError as error:
                found, key = error, str(error)
            if key != last:
                last = key
                self.changes.put(found)
                self._wake()
            self._stop.wait(POLL_SECONDS)

    def stop(self) -> None:
        self._stop.set()


@dataclasses.dataclass
class Record:
    """What is held against a host."""

    failures: int = 0
    until: float = 0.0  # on time.monotonic; infinity: for good


class Blacklist:
    """Hosts on which workers have failed. Without a range a host is out for good, as in Horovod;
    with one it is out for ``low`` seconds, then for twice as long each time, up to ``high``, and a
    random part more, so that hosts that failed together do not all come back together."""

    def __init__(self, cooldown: tuple[float, float] | None) -> None:
        self.cooldown = cooldown
        self.records: dict[str, Record] = {}

    def add(self, host: str, now: float) -> float:
        """Returns for how long (infinity: for good). A host that is out already is not out longer:
        several workers may end for one reason."""
        record = self.records.setdefault(host, Record())
        if record.until > now:
            return record.until - now
        record.failures += 1
        if self.cooldown is None:
            record.until = math.inf
        else:
            low, high = self.cooldown
            seconds = min(high, low * 2.0 ** (record.failures - 1))
            record.until = now + min(high, seconds * random.uniform(1.0, 1.5))
        return record.until - now

    def has(self, host: str, now: float) -> bool:
        record = self.records.get(host)
        return record is not None and record.until > now

    def next_return(self, now: float) -> float | None:
        """Seconds until the next host may be used again; None: none ever will."""
        times = [r.until - now for r in self.records.values() if now < r.until < math.inf]
        return min(times) if times else None

    def describe(self, now: float) -> str:
        return ", ".join(sorted(name for name in self.records if self.has(name, now)))
