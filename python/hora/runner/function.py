"""``hora.run(function, ...)``: a function on several ranks, and what it returned on each.

The function travels pickled through the agents' standard input, which is a private pipe here and
ssh's channel elsewhere; the results come back the same way (task.py). Horovod serves both from an
open HTTP port instead.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Sequence

from hora.runner import launch, task
from hora.runner.hosts import HostError
from hora.runner.job import Job, Launcher, signal_name


class RankError(RuntimeError):
    """A rank of :func:`run` failed: ``rank``, ``host``, and the rank's ``traceback`` as text. What
    was raised there is ``__cause__``, if it could be pickled."""

    def __init__(self, message: str, rank: int | None = None, host: str | None = None,
                 traceback: str = "") -> None:  # fmt: skip
        super().__init__(message)
        self.rank = rank
        self.host = host
        self.traceback = traceback

    def __reduce__(self) -> Any:
        return RankError, (str(self), self.rank, self.host, self.traceback)


class Results:
    """What has come from the ranks so far."""

    def __init__(self) -> None:
        self.data: dict[int, bytearray] = {}
        self.order: list[int] = []  # in which the ranks began to report

    def feed(self, rank: int, data: bytes) -> None:
        if rank not in self.data:
            self.data[rank] = bytearray()
            self.order.append(rank)
        self.data[rank] += data

    def get(self, rank: int) -> tuple[dict[str, Any], bytes] | None:
        """A rank's report, or None if it has not come whole."""
        head, newline, value = bytes(self.data.get(rank, b"")).partition(b"\n")
        if not newline:
            return None
        header = json.loads(head)
        return (header, value) if len(value) == header["size"] else None

    def first_error(self) -> int | None:
        """The rank whose error is the cause: others only hear that a rank has gone."""
        failed = [rank for rank in self.order if (got := self.get(rank)) and not got[0]["ok"]]
        own = [rank for rank in failed if not self.get(rank)[0]["internal"]]  # type: ignore[index]
        return (own + failed + [None])[0]  # type: ignore[list-item]

    def values(self, size: int) -> list[Any]:
        found = [self.get(rank) for rank in range(size)]
        missing = [rank for rank, got in enumerate(found) if got is None or not got[0]["ok"]]
        if missing:
            ranks = ", ".join(map(str, missing))
            raise RankError(f"rank {ranks} of {size} ended without a result", missing[0])
        return [pickle.loads(got[1]) for got in found]  # type: ignore[index]


def rank_error(results: Results, rank: int, size: int) -> RankError:
    header, value = results.get(rank)  # type: ignore[misc]
    error = RankError(f"rank {rank} of {size} on host {header['host']}: {header['text']}\n\n"
                      f"{header['traceback']}", rank, header["host"], header["traceback"])
    try:
        error.__cause__ = pickle.loads(value) if value else None
    except Exception:
        pass  # its class is not to be found here; the text says it all
    return error


def pack(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any] | None) -> bytes:
    """What each rank gets on its standard input."""
    try:
        call = task.dumps((function, tuple(args), dict(kwargs or {})))
    except Exception as error:
        remedy = ""
        if sys.modules.get("cloudpickle") is None:
            remedy = "; functions of scripts and notebooks, lambdas and inner functions need " \
                "cloudpickle (pip install cloudpickle)"
        raise ValueError(f"the function and its arguments cannot be sent: {error}{remedy}") from error
    if sys.modules.get("cloudpickle") is None and getattr(function, "__module__", "") == "__main__":
        raise ValueError(f"{function.__qualname__} is a function of the script itself; to send it, "
                         "install cloudpickle (pip install cloudpickle), or put it into a module")
    path = [os.path.abspath(entry) for entry in sys.path]
    header = {"path": path, "argv0": sys.argv[0] if sys.argv else ""}
    return json.dumps(header).encode() + b"\n" + call


def check_ended(launcher: Launcher, code: int) -> None:
    """The end of the job by a signal is the end of the caller too."""
    if launcher.stopped_by == signal.SIGINT:
        raise KeyboardInterrupt
    if launcher.stopped_by is not None:
        os.kill(os.getpid(), launcher.stopped_by)
        raise RankError(f"the job was ended by {signal_name(launcher.stopped_by)}")


def run_here(job: Job, call: bytes) -> list[Any]:
    """By hora's own launcher."""
    results = Results()
    job.command += ["-c", task.BOOTSTRAP]
    job.task = call
    job.on_result = results.feed
    launcher = Launcher(job)
    code = launcher.run()
    check_ended(launcher, code)
    return collect(results, launcher, code, job.size)


def collect(results: Results, launcher: Launcher, code: int, size: int) -> list[Any]:
    """The values, or what went wrong first: a rank's own error before the errors of the others, who
    only heard of it; and before those a rank that died without a word."""
    failed = results.first_error()
    if failed is not None:
        internal = results.get(failed)[0]["internal"]  # type: ignore[index]
        silent = launcher.failed_rank is not None and results.get(launcher.failed_rank) is None
        if not (internal and silent):
            raise rank_error(results, failed, size)
    if code != 0:
        raise RankError(launcher.reason, launcher.failed_rank, launcher.failed_host)
    return results.values(size)


def run_by_mpi(args: argparse.Namespace, call: bytes) -> list[Any]:
    """mpirun gives its standard input to rank 0 alone, so the call lies in a file that only this
    user can read, and the results beside it. Ranks of other hosts could not see it."""
    size = sum(len(host.ranks) for host in launch.find_hosts(args))
    if any(not host.is_local for host in launch.find_hosts(args)):
        raise ValueError("use_mpi=True sends a function to ranks of this host only; leave use_mpi "
                         "out for other hosts, or start a script with `hora run --mpi`")
    with tempfile.TemporaryDirectory(prefix="hora-run-") as folder:  # mode 0700
        Path(folder, "call").write_bytes(call)
        args.command += ["-c", task.BOOTSTRAP_FILE, folder]
        launcher = Launcher(launch.make_job(args))
        code = launcher.run()
        check_ended(launcher, code)
        results = Results()
        for path in sorted(Path(folder).glob("result.*"), key=lambda p: p.stat().st_mtime_ns):
            results.feed(int(path.suffix[1:]), path.read_bytes())
        return collect(results, launcher, code, size)


def renamed(new: Any, old: Any, default: Any, names: str) -> Any:
    """The value of an argument that has an old name too."""
    if old is None:
        return new
    warnings.warn(names, DeprecationWarning, stacklevel=4)
    return old if new == default else new


def run(
    func: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: dict[str, Any] | None = None,
    num_proc: int = 1,
    min_num_proc: int | None = None,
    max_num_proc: int | None = None,
    slots: int | None = None,
    reset_limit: int | None = None,
    cooldown_range: Sequence[float] | None = None,
    hosts: str | None = None,
    hostfile: str | None = None,
    host_discovery_script: str | None = None,
    start_timeout: float | None = None,
    ssh_port: int | None = None,
    ssh_identity_file: str | None = None,
    disable_cache: bool | None = None,
    output_filename: str | None = None,
    verbose: bool | None = None,
    use_gloo: bool | None = None,
    use_mpi: bool | None = None,
    mpi_args: str | None = None,
    network_interface: str | None = None,
    executable: str | None = None,
    np: int | None = None,
    min_np: int | None = None,
    max_np: int | None = None,
    *,
    network_interfaces: str | None = None,
    prefix: bool = True,
    env: dict[str, str] | None = None,
    options: Sequence[str] = (),
) -> list[Any]:
    """Runs ``func(*args, **kwargs)`` on ``num_proc`` ranks; returns the results, by rank.

    As ``horovod.run``. Each rank is a fresh process in which ``hora.torch.init()`` joins this job.
    A rank that fails raises :class:`RankError` here, with rank, host and traceback, once all ranks
    have ended. Functions of scripts and notebooks, lambdas and inner functions need cloudpickle.

    ``hosts`` ("a:2,b:2") or ``hostfile`` name the hosts (default: this one), which ssh reaches.
    ``executable`` is the ranks' Python (default: this one). ``prefix=False``: no "[rank]<stdout>:"
    before lines. ``env``: variables for the ranks. ``options``: more options of ``hora run``.
    ``disable_cache`` has no effect. With ``min_num_proc`` or ``host_discovery_script`` the job is
    elastic.
    """
    num_proc = renamed(num_proc, np, 1, "np is an old name, use num_proc")
    min_num_proc = renamed(min_num_proc, min_np, None, "min_np is an old name, use min_num_proc")
    max_num_proc = renamed(max_num_proc, max_np, None, "max_np is an old name, use max_num_proc")
    if sum(value is not None for value in (hosts, hostfile, host_discovery_script)) > 1:
        raise ValueError("give one of hosts, hostfile and host_discovery_script")
    if use_gloo and use_mpi:
        raise ValueError("give one of use_gloo and use_mpi")
    parsed = parse(options, {
        "num_proc": num_proc, "min_num_proc": min_num_proc, "max_num_proc": max_num_proc,
        "slots": slots, "reset_limit": reset_limit, "cooldown_range": cooldown_range,
        "hosts": hosts, "hostfile": hostfile, "host_discovery_script": host_discovery_script,
        "start_timeout": start_timeout, "ssh_port": ssh_port,
        "ssh_identity_file": ssh_identity_file, "output_filename": output_filename,
        "verbose": verbose, "use_gloo": use_gloo, "use_mpi": use_mpi, "mpi_args": mpi_args,
        "network_interfaces": names(network_interfaces or network_interface),
        "no_prefix": None if prefix else True,
        "env": [f"{name}={value}" for name, value in (env or {}).items()] or None,
    })  # fmt: skip
    parsed.command = [executable or sys.executable]
    call = pack(func, args, kwargs)
    try:
        return start(parsed, call)
    except HostError as error:
        raise ValueError(str(error)) from None


def parse(options: Sequence[str], given: dict[str, Any]) -> argparse.Namespace:
    """As `hora run` reads them, with what the caller has given beside."""
    try:
        parsed = launch.parse_args([*options], prog="hora.run")
    except SystemExit:  # argparse has said why
        raise ValueError(f"options={list(options)}") from None
    for name, value in given.items():
        if value is not None:
            setattr(parsed, name, value)
    return parsed


def names(text: Any) -> list[str] | None:
    if text is None:
        return None
    items = text.split(",") if isinstance(text, str) else text
    return [str(item).strip() for item in items]


def start(args: argparse.Namespace, call: bytes) -> list[Any]:
    launch.prepare(args)
    if launch.is_elastic(args):
        from hora.runner.elastic.driver import run_elastic_function

        return list(run_elastic_function(args, launch.make_template(args), call))
    if args.use_mpi:
        return run_by_mpi(args, call)
    return run_here(launch.make_job(args), call)
