"""`hora run --check-build`: what is there, in the form of Horovod's table; `hora info` says more."""

from __future__ import annotations

import importlib.util
from typing import Any


def table(version: str, backends: dict[str, bool], torch: bool) -> str:
    def row(name: str, found: bool) -> str:
        return f"    [{'X' if found else ' '}] {name}"

    mpi = backends.get("mpi", False)
    return "\n".join([
        f"hora v{version}:",
        "",
        "Available Frameworks:",
        row("TensorFlow", False),
        row("PyTorch", torch),
        row("MXNet", False),
        "",
        "Available Controllers:",
        row("MPI", mpi),
        row("Gloo", True) + " (hora's own stands in its place)",
        "",
        "Available Tensor Operations:",
        row("NCCL", backends.get("nccl", False)),
        row("DDL", False),
        row("CCL", False),
        row("MPI", mpi),
        row("Gloo", True) + " (hora's own: shared memory and TCP)",
    ])


def main() -> int:
    from hora import _core

    rows: Any = _core.backends()
    torch = importlib.util.find_spec("torch") is not None
    print(table(_core.__version__, {row["name"]: bool(row["available"]) for row in rows}, torch))
    return 0
