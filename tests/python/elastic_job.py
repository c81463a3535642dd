"""Runs elastic jobs for the tests. "Hosts" are names of this machine. The workers' program does
without torch (elastic_program.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ranks import clean_environment

HERE = Path(__file__).resolve().parent
PROGRAM = [sys.executable, str(HERE / "elastic_program.py")]
STEPS = 30


class ElasticJob:
    """One `hora run`, and what its workers wrote."""

    def __init__(self, folder: Path, *options: str, hook: str = "", hosts: str | None = None,
                 command: list[str] | None = None, **env: Any) -> None:
        self.folder = folder
        self.mark = f"hora-elastic-{os.getpid()}-{folder.name}"
        variables = clean_environment() | {k: str(v) for k, v in env.items()}
        variables |= {"ELASTIC_TEST_FOLDER": str(folder), "ELASTIC_TEST_HOOK": hook,
                      "ELASTIC_TEST_STEPS": str(env.get("steps", STEPS)),
                      "ELASTIC_TEST_NAP": str(env.get("nap", 0.005)), "TEST_MARK": self.mark}
        extra: list[str] = []
        if hosts is not None:
            self.set_hosts(hosts)
            script = folder / "discover.sh"
            script.write_text(f"#!/bin/sh\ncat {folder}/hosts\n")
            script.chmod(0o755)
            extra = ["--host-discovery-script", str(script)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hora", "run", "--verbose", *extra, *options,
             *(command or PROGRAM)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables,
            start_new_session=True)
        self.out = self.err = ""

    def set_hosts(self, lines: str) -> None:
        new = self.folder / "hosts.new"
        new.write_text(lines.replace(",", "\n") + "\n")
        new.replace(self.folder / "hosts")

    def wait(self, timeout: float = 60) -> int:
        try:
            self.out, self.err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.out, self.err = self.process.communicate()
            pytest.fail(f"the job did not end\n{self.out}\n{self.err}\n{self.events()}")
        assert wait_until(lambda: self.leftovers() == []), "processes were left"
        return int(self.process.returncode)

    def succeed(self, timeout: float = 60) -> None:
        code = self.wait(timeout)
        assert code == 0, f"{self.out}\n{self.err}"

    def events(self, what: str | None = None) -> list[dict[str, Any]]:
        found = []
        for path in self.folder.glob("log.*"):
            found += [json.loads(line) for line in path.read_text().splitlines()]
        found.sort(key=lambda event: event["time"])
        return [event for event in found if what in (None, event["what"])]

    def await_event(self, condition: Any, timeout: float = 30) -> None:
        assert wait_until(lambda: any(map(condition, self.events())), timeout), \
            f"{self.events()}\nlauncher: {self.process.poll()}"

    def leftovers(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


def wait_until(condition: Any, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def check_totals(job: ElasticJob, ranks: int, steps: int = STEPS) -> None:
    """Every finisher did each step exactly once, as far as its state tells."""
    done = job.events("done")
    assert sorted(event["rank"] for event in done) == list(range(ranks)), job.err
    for event in done:
        assert event["total"] == steps and event["seen"] == list(range(steps))


def die_at(worker: int, step: int) -> str:
    return (f"def hook(where, me):\n"
            f"    if where == 'step' and me.number == {worker} and me.step >= {step}: me.die()\n")
