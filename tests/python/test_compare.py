"""What benchmarks/compare needs beside the measuring."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers"))

import jobs  # noqa: E402


def lives(process: int) -> bool:
    """A zombie does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_workers_in_sessions_of_their_own_are_killed() -> None:
    """As `compare --sessions` starts them, by a shell that leads a group they are not in."""
    text = "for i in 1 2; do setsid --wait sleep 60 & echo $!; done; wait"
    shell = subprocess.Popen(["sh", "-c", text], stdout=subprocess.PIPE, start_new_session=True)
    assert shell.stdout is not None
    workers = [int(shell.stdout.readline()) for _ in range(2)]
    deadline = time.monotonic() + 10
    while any(os.getsid(worker) == shell.pid for worker in workers):
        assert time.monotonic() < deadline
    jobs.kill_tree(shell)
    shell.stdout.close()
    while any(map(lives, workers)):
        assert time.monotonic() < deadline, "a worker lives on"
