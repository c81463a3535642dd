"""Runs a function on N ranks, each a process of its own, and brings back what it returned.

Processes get the variables that `hora run` sets, and are forked where that will do (nursery.py). All
of them are killed when a test ends or takes too long, so that nothing is left behind.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import secrets
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import nursery
import pytest

HERE = Path(__file__).resolve().parent
LIMIT = 120.0  # seconds for one launch


@dataclass
class Outcome:
    """How one rank ended."""

    rank: int
    code: int | None = None  # exit status; None: killed by the timeout
    value: Any = None
    output: str = ""
    seconds: float = 0.0


@dataclass
class Job:
    """Ranks that are running."""

    processes: list[Any]  # subprocess.Popen or nursery.Rank
    folder: tempfile.TemporaryDirectory[str]
    started: float = field(default_factory=time.monotonic)

    def wait(self, timeout: float = LIMIT) -> list[Outcome]:
        """Waits for all ranks, kills those that are late, and collects what they left."""
        outcomes = [Outcome(rank) for rank in range(len(self.processes))]
        open_ranks = set(range(len(self.processes)))
        while open_ranks and time.monotonic() - self.started < timeout:
            for rank in list(open_ranks):
                code = self.processes[rank].poll()
                if code is not None:
                    open_ranks.remove(rank)
                    outcomes[rank].code = code
                    outcomes[rank].seconds = time.monotonic() - self.started
            time.sleep(0.01)
        self.kill()
        for outcome in outcomes:
            self._collect(outcome)
        self.folder.cleanup()
        return outcomes

    def kill(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _collect(self, outcome: Outcome) -> None:
        base = Path(self.folder.name) / str(outcome.rank)
        outcome.output = base.with_suffix(".out").read_text(errors="replace")
        result = base.with_suffix(".pickle")
        if result.exists():
            outcome.value = pickle.loads(result.read_bytes())

    def wait_for_file(self, name: str, timeout: float = 60.0) -> None:
        """Waits until some rank has called :func:`signal_file`."""
        path = Path(self.folder.name) / name
        end = time.monotonic() + timeout
        while not path.exists():
            assert time.monotonic() < end, f"no rank got to {name!r}"
            time.sleep(0.01)


def clean_environment() -> dict[str, str]:
    """The environment without anything that a launcher may have set."""
    prefixes = ("HORA_", "HOROVOD_", "OMPI_", "PMI_", "PMIX_", "SLURM_", "MV2_", "JSM_")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if not k.startswith(prefixes) and k not in names}
    env.update(OMP_NUM_THREADS="1", HORA_TIMEOUT="30", HORA_START_TIMEOUT="60")
    return env


def hora_variables(rank: int, size: int, meeting: str) -> dict[str, str]:
    return {
        "HORA_RANK": str(rank),
        "HORA_SIZE": str(size),
        "HORA_LOCAL_RANK": str(rank),
        "HORA_LOCAL_SIZE": str(size),
        "HORA_RENDEZVOUS": f"unix:{meeting}",
    }


def start(
    function: Callable[..., Any] | str,
    size: int,
    *args: Any,
    env: dict[str, str] | None = None,
    variables: Callable[[int, int, str], dict[str, str]] = hora_variables,
) -> Job:
    """Starts function(*args) on every rank: a function of a test module, or a program's text."""
    folder = tempfile.TemporaryDirectory(prefix="hora-test-")
    meeting = f"hora-test-{secrets.token_hex(8)}"
    if isinstance(function, str):
        command = [sys.executable, "-c", function]
    else:
        call = Path(folder.name) / "call"
        call.write_bytes(pickle.dumps((function.__module__, function.__qualname__, args)))
        command = [sys.executable, str(HERE / "ranks.py")]
    processes: list[Any] = []
    for rank in range(size):
        rank_env = clean_environment() | variables(rank, size, meeting) | (env or {})
        rank_env |= {"HORA_TEST_FOLDER": folder.name, "HORA_TEST_RANK": str(rank)}
        path = Path(folder.name) / f"{rank}.out"
        order = {"env": rank_env, "cwd": folder.name, "output": str(path)}
        process = nursery.fork(order | ({"text": function} if isinstance(function, str) else {}))
        if process is not None:
            processes.append(process)
            continue
        with open(path, "wb") as output:
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=rank_env,
                    cwd=folder.name,
                )
            )
    return Job(processes, folder)


def run(function: Callable[..., Any] | str, size: int, *args: Any, **options: Any) -> list[Any]:
    """Runs it on every rank, requires that all end well, and returns their results by rank."""
    timeout = options.pop("timeout", LIMIT)
    outcomes = start(function, size, *args, **options).wait(timeout)
    bad = [outcome for outcome in outcomes if outcome.code != 0]
    if bad:
        pytest.fail(
            "\n".join(f"--- rank {o.rank} ended with {o.code}:\n{o.output}" for o in bad),
            pytrace=False,
        )
    return [outcome.value for outcome in outcomes]


def signal_file(name: str) -> None:
    """Tells the test, from a rank, that it has come this far (see Job.wait_for_file)."""
    (Path(os.environ["HORA_TEST_FOLDER"]) / name).touch()


# ---- Many cases in one launch, because importing torch takes seconds -----------------------------


def case_names(module: Any) -> list[str]:
    return [name for name in vars(module) if name.startswith("case_")]


def run_cases(names: list[str], module: str) -> dict[str, str | None]:
    """On a rank: runs the cases in order. The first failure ends it, and the rest is not run."""
    import hora.torch as hvd

    space = vars(importlib.import_module(module))
    results: dict[str, str | None] = {}
    hvd.init()
    for name in names:
        try:
            space[name](hvd)
            hvd.barrier()
        except BaseException:
            results[name] = traceback.format_exc()
            return results
        results[name] = None
    hvd.shutdown()
    return results


def launch_cases(module: Any, size: int, **options: Any) -> dict[str, list[str]]:
    """Runs a module's cases on `size` ranks. Returns the complaints for each case."""
    names = case_names(module)
    job = start(run_cases, size, names, module.__name__, **options)
    outcomes = job.wait()
    complaints: dict[str, list[str]] = {}
    for name in names:
        complaints[name] = []
        for outcome in outcomes:
            done = outcome.value or {}
            if name not in done:
                tail = outcome.output[-2000:]
                complaints[name].append(
                    f"rank {outcome.rank}: not run to the end (exit {outcome.code})\n{tail}"
                )
            elif done[name] is not None:
                complaints[name].append(f"rank {outcome.rank}: {done[name]}")
    return complaints


def case_test(module: Any, sizes: list[int], **env: str) -> Callable[[int, str], None]:
    """The test of a module's cases, one by one, for each number of ranks; to be bound to a name that
    pytest collects, below the cases. All cases of a size are run by one launch, with `env`."""
    launch = functools.cache(lambda size: launch_cases(module, size, env=env))
    pairs = [(size, case) for size in sizes for case in case_names(module)]

    @pytest.mark.parametrize("size, case", pairs)
    def test(size: int, case: str) -> None:
        complaints = launch(size)[case]
        assert not complaints, "\n".join(complaints)

    return test


def main() -> None:
    sys.path.insert(0, str(HERE))
    folder = Path(os.environ["HORA_TEST_FOLDER"])
    module, name, args = pickle.loads((folder / "call").read_bytes())
    value = getattr(importlib.import_module(module), name)(*args)
    rank = os.environ["HORA_TEST_RANK"]
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(value))


if __name__ == "__main__":
    main()
