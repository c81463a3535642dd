"""Starting `hora run` in tests, and looking for what it has left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

HORA = [sys.executable, "-m", "hora"]


def clean_env(**extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HORA_R", "HORA_S", "OMP_"))}
    env.update(extra)
    return env


def hora_run(*args: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*HORA, "run", *args], capture_output=True, text=True, timeout=timeout,
                          env=clean_env(**env), check=False)


def processes_with(mark: str) -> list[int]:
    """Processes whose environment holds the mark, this one left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def wait_until(condition: object, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def shell(script: str) -> list[str]:
    return ["bash", "-c", script]
