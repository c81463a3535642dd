"""A job of `hora run`: an agent for each host, their output on ours, one exit code.

Single thread, one selector. The ranks' fate is the agents' business (agent.py); this module
decides when to end them: after the first rank that fails, the others have some seconds to come to
their own errors, then get SIGTERM, then SIGKILL.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hora.runner.hosts import Host
from hora.runner.output import Output

TERM_SECONDS = 3.0  # between SIGTERM and SIGKILL
LOST_SECONDS = 5.0  # between SIGKILL and giving an agent up

BOOTSTRAP = "import sys;b=sys.stdin.buffer;exec(compile(b.read(int(b.readline())),'hora-agent','exec'))"


@dataclasses.dataclass
class Job:
    hosts: list[Host]
    command: list[str]
    rank_env: dict[int, dict[str, str]]
    local_env: dict[str, str]
    remote_env: dict[str, str]
    ssh: list[str]
    remote_python: str = "python3"
    prefix: bool = True
    timestamp: bool = False
    output_dir: str | None = None
    grace: float = 5.0
    start_timeout: float | None = None  # seconds until every host must have started its ranks
    threads: bool = True  # the agents choose OMP_NUM_THREADS where it is not set
    title: str | None = None  # what the one process is that is no rank: mpirun
    task: bytes | None = None  # what the ranks get on standard input, for a function (function.py)
    on_result: Callable[[int, bytes], None] = lambda rank, data: None
    info: Callable[[str], None] = lambda text: None

    @property
    def size(self) -> int:
        return sum(len(host.ranks) for host in self.hosts)

    @property
    def captures(self) -> bool:
        """The ranks' output comes to us, instead of going straight to our own streams."""
        return self.prefix or self.timestamp or self.output_dir is not None


class AgentLink:
    """One host's agent as a child process of ours: here, or behind ssh."""

    def __init__(self, job: Job, host: Host) -> None:
        self.host = host
        self.left = set(host.ranks)  # ranks that have not ended
        self.started = False
        self.gone = False
        self.unsent = bytearray()  # orders that the agent's pipe had no room for
        self.buffer = b""
        source = Path(__file__).with_name("agent.py").read_bytes()
        own = [os.dup(1), os.dup(2)] if host.is_local and not job.captures else []
        self.process = subprocess.Popen(
            self.command_line(job),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; the agent hears of it from us
            pass_fds=own,
            bufsize=0,
        )
        for fd in own:
            os.close(fd)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        config = json.dumps(self.config(job, own)).encode()
        self.send(b"%d\n%s%d\n%s" % (len(source), source, len(config), config))

    def command_line(self, job: Job) -> list[str]:
        if self.host.is_local:
            return [sys.executable, "-I", "-S", "-c", BOOTSTRAP]
        remote = f"{shlex.quote(job.remote_python)} -c {shlex.quote(BOOTSTRAP)}"
        return [*job.ssh, self.host.name, remote]

    def config(self, job: Job, fds: list[int]) -> dict[str, Any]:
        return {
            "command": job.command,
            "cwd": os.getcwd(),
            "env": job.local_env if self.host.is_local else job.remote_env,
            "ranks": [{"rank": rank, "env": job.rank_env[rank]} for rank in self.host.ranks],
            "capture": not fds,
            "fds": fds,
            "threads": job.threads,
            "input": None if job.task is None else base64.b64encode(job.task).decode(),
        }

    def send(self, data: bytes = b"") -> None:
        """Never waits: behind an ssh that hangs nobody reads. The main loop sends the rest."""
        self.unsent += data
        assert self.process.stdin is not None
        try:
            while self.unsent:
                del self.unsent[: os.write(self.process.stdin.fileno(), self.unsent[: 1 << 20])]
        except BlockingIOError:
            pass
        except (OSError, ValueError):
            self.unsent.clear()  # it is gone; the end of its output tells the main loop

    def signal(self, number: int) -> None:
        self.send(b"signal %d\n" % number)

    def end(self) -> None:
        """Closes its pipes, upon which it kills what still runs."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(LOST_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def events(self) -> list[dict[str, Any]] | None:
        """What the agent has said since; None: it is gone."""
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 18)
        if not data:
            return None
        *lines, self.buffer = (self.buffer + data).split(b"\n")
        return [event for event in map(parse_event, lines) if event]


def parse_event(line: bytes) -> dict[str, Any] | None:
    """Login scripts of a remote host may print things of their own on the same stream."""
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return event
    if line.strip():
        sys.stderr.write(line.decode(errors="replace") + "\n")
    return None


class Launcher:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.output = Output(job.size, job.prefix, job.output_dir, job.timestamp)
        self.selector = selectors.DefaultSelector()
        self.agents: list[AgentLink] = []
        self.code: int | None = None  # of the whole job, once something has failed
        self.reason = ""  # why it has failed
        self.failed_rank: int | None = None  # the first
        self.failed_host: str | None = None
        self.stopped_by: int | None = None  # the signal that ended it
        self.plan: list[tuple[float, int]] = []  # (when, signal), soonest first
        self.start_deadline: float | None = None
        self.wake_read, self.wake_write = os.pipe()

    def say(self, text: str) -> None:
        sys.stderr.write(f"hora run: {text}\n")
        sys.stderr.flush()

    # ---- Failures -----------------------------------------------------------------------------

    def fail(self, code: int, text: str, wait: float) -> None:
        """The first failure decides the exit code and starts the end of the others."""
        if self.code is not None:
            return
        self.code = code
        self.reason = text
        self.say(text)
        begin = time.monotonic() + wait
        self.plan = [(begin, signal.SIGTERM), (begin + TERM_SECONDS, signal.SIGKILL)]
        self.plan.append((begin + TERM_SECONDS + LOST_SECONDS, 0))

    def rank_ended(self, agent: AgentLink, rank: int, code: int) -> None:
        agent.left.discard(rank)
        self.output.end(rank)
        if code == 0:
            return
        if self.code is None and self.job.title is None:
            self.failed_rank, self.failed_host = rank, agent.host.shown
        where = self.job.title or f"rank {rank} of {self.job.size} on host {agent.host.shown}"
        if code < 0:
            self.fail(128 - code, f"{where} was ended by {signal_name(-code)}", self.job.grace)
        else:
            self.fail(code, f"{where} ended with exit code {code}", self.job.grace)

    def agent_gone(self, agent: AgentLink) -> None:
        assert agent.process.stdout is not None and agent.process.stdin is not None
        self.selector.unregister(agent.process.stdout)
        agent.process.stdout.close()
        agent.unsent.clear()
        self.watch_input(agent)
        agent.process.stdin.close()
        agent.gone = True
        code = agent.process.wait()
        if agent.left:
            ranks = ", ".join(map(str, sorted(agent.left)))
            remedy = ""
            if not agent.host.is_local:
                remedy = f"; does `ssh -o BatchMode=yes {agent.host.name} {self.job.remote_python} " \
                    "--version` work without a password?"
            self.fail(255, f"lost host {agent.host.shown} with rank {ranks} (exit code {code}){remedy}",
                      self.job.grace)
            agent.left.clear()

    def on_signal(self, number: int) -> None:
        again = self.code is not None
        what = self.job.title or f"{self.job.size} rank{'s' if self.job.size > 1 else ''}"
        self.stopped_by = self.stopped_by or number
        self.fail(128 + number, f"{signal_name(number)}: ending {what}", 2.0)
        for agent in self.agents:
            agent.signal(signal.SIGKILL if again else number)

    # ---- The loop -----------------------------------------------------------------------------

    def handle(self, agent: AgentLink, event: dict[str, Any]) -> None:
        if "stream" in event:
            self.output.feed(event["rank"], event["stream"], event["data"].encode("latin-1"))
        elif "result" in event:
            self.job.on_result(event["rank"], base64.b64decode(event["result"]))
        elif "started" in event:
            agent.started = True
            if all(each.started for each in self.agents):
                self.start_deadline = None
        elif "exit" in event:
            self.rank_ended(agent, event["rank"], event["exit"])
        elif "error" in event:
            agent.left.clear()
            self.fail(127, f"rank {event['rank']} on host {agent.host.shown} could not be started: "
                      f"{event['error']}", 0.0)
        elif "info" in event:
            self.job.info(f"host {agent.host.shown}: {event['info']}")

    def check_start(self) -> None:
        """A host that does not come up in time, for instance because ssh hangs."""
        if self.start_deadline is None or time.monotonic() < self.start_deadline:
            return
        self.start_deadline = None
        late = [agent for agent in self.agents if not agent.started]
        self.fail(255, f"no rank was started on {', '.join(agent.host.shown for agent in late)} within "
                  f"{self.job.start_timeout:g} s (--start-timeout)", 0.0)
        for agent in late:
            agent.process.kill()  # should it have begun after all: without us it ends its ranks

    def run_plan(self) -> float | None:
        """Sends what is due; returns seconds until the next."""
        self.check_start()
        while self.plan and self.plan[0][0] <= time.monotonic():
            _, number = self.plan.pop(0)
            for agent in self.agents:
                if number:
                    agent.signal(number)
                elif agent.process.poll() is None:
                    agent.process.kill()  # it closes its pipes, and with them its ranks end
        due = [self.plan[0][0]] if self.plan else []
        due += [self.start_deadline] if self.start_deadline is not None else []
        return max(0.0, min(due) - time.monotonic()) if due else None

    def watch_input(self, agent: AgentLink) -> None:
        """Wakes the loop when an agent's pipe has room for orders that are waiting."""
        pipe = agent.process.stdin
        assert pipe is not None
        watched = not pipe.closed and pipe.fileno() in self.selector.get_map()
        if agent.unsent and not watched:
            self.selector.register(pipe, selectors.EVENT_WRITE, agent)
        elif watched and not agent.unsent:
            self.selector.unregister(pipe)

    def turn(self) -> None:
        wait = self.run_plan()
        for agent in self.agents:
            self.watch_input(agent)
        for key, what in self.selector.select(wait):
            if key.data is None:
                for number in os.read(self.wake_read, 64):
                    if number != signal.SIGCHLD:
                        self.on_signal(number)
            elif what & selectors.EVENT_WRITE:
                key.data.send()
            else:
                events = key.data.events()
                if events is None:
                    self.agent_gone(key.data)
                for event in events or []:
                    self.handle(key.data, event)

    def catch_signals(self) -> tuple[int, dict[int, Any]] | None:
        """Makes signals wake the loop. Only the main thread may; elsewhere the caller's handlers
        stay, and the agents see to it that nothing is left should this process end."""
        self.selector.register(self.wake_read, selectors.EVENT_READ, None)
        if threading.current_thread() is not threading.main_thread():
            return None
        os.set_blocking(self.wake_write, False)
        old_fd = signal.set_wakeup_fd(self.wake_write, warn_on_full_buffer=False)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        return old_fd, {number: signal.signal(number, lambda *_: None) for number in numbers}

    @staticmethod
    def restore_signals(old: tuple[int, dict[int, Any]] | None) -> None:
        if old is None:
            return
        signal.set_wakeup_fd(old[0])
        for number, handler in old[1].items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def close(self) -> None:
        """Ends what an exception in this process may have left, and gives the descriptors back."""
        for agent in self.agents:
            agent.end()
        self.output.close()
        self.selector.close()
        os.close(self.wake_read)
        os.close(self.wake_write)

    def run(self) -> int:
        old = self.catch_signals()
        if self.job.start_timeout is not None:
            self.start_deadline = time.monotonic() + self.job.start_timeout
        try:
            for host in self.job.hosts:
                agent = AgentLink(self.job, host)
                self.agents.append(agent)
                self.selector.register(agent.process.stdout, selectors.EVENT_READ, agent)
            while any(not agent.gone for agent in self.agents):
                self.turn()
        finally:
            self.restore_signals(old)
            self.close()
        return self.code or 0


def signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"
