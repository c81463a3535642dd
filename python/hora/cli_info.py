"""`hora info`: what this build and machine have, what is missing, and what to do about it."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import socket
import sys
from pathlib import Path
from typing import Any

# As src/bootstrap/launcher.c has them: the first family that is complete is taken.
FAMILIES = {
    "hora run": ("HORA_RANK", "HORA_SIZE"),
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "MPICH": ("PMI_RANK", "PMI_SIZE"),
    "MVAPICH2": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "Slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
}


def launcher() -> str | None:
    for name, variables in FAMILIES.items():
        if all(variable in os.environ for variable in variables):
            return name
    return None


def library_version() -> str | None:
    try:
        return importlib.metadata.version("hora")
    except importlib.metadata.PackageNotFoundError:
        return None


def cgroup_quota() -> float | None:
    """Cores that the control group allows, or None for all of them."""
    quota = None
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in own:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            values = read_words(Path("/sys/fs/cgroup") / path.lstrip("/") / "cpu.max")
        elif "cpu" in controllers.split(","):
            folder = Path("/sys/fs/cgroup/cpu") / path.lstrip("/")
            values = read_words(folder / "cpu.cfs_quota_us") + read_words(folder / "cpu.cfs_period_us")
        else:
            continue
        if len(values) == 2 and values[0].isdigit() and int(values[1]) > 0:
            quota = int(values[0]) / int(values[1])
    return quota


def read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def settings() -> dict[str, str]:
    """The HORA_ and HOROVOD_ variables of this environment; never a secret."""
    found = {name: os.fsencode(value).decode(errors="replace")
             for name, value in sorted(os.environ.items())
             if name.startswith(("HORA_", "HOROVOD_"))}
    return {name: "(set, not shown)" if "SECRET" in name else value for name, value in found.items()}


def package_version(name: str) -> str | None:
    """Without importing it: torch takes seconds."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def backends() -> tuple[list[dict[str, Any]], str | None]:
    """(the back-ends, None) or ([], why they cannot be asked)."""
    try:
        from hora import _core
    except ImportError as error:
        return [], f"the extension hora._core cannot be loaded: {error}"
    return list(_core.backends()), None


def unknown_settings() -> list[str]:
    """A sentence on each HORA_ variable that is no setting."""
    try:
        from hora import _core
    except ImportError:
        return []  # backends() says why
    return list(_core.unknown_settings())


def gpu_paths(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Which way collectives of GPU tensors would go, and why. The ranks of a job decide it at their
    first one (src/offload/cuda/device.c), when they know of each other."""
    found = {(row["name"], row["kind"]): row for row in rows}
    cuda, nccl = found.get(("cuda", "device")), found.get(("nccl", "offload"))
    if cuda is None or not cuda["available"]:
        return [{"ranks": "any", "path": "none", "why": cuda["detail"] if cuda else "no back-end"}]
    forced = os.environ.get("HORA_GPU_PATH") or "auto"
    if forced != "auto":
        return [{"ranks": "any", "path": forced, "why": "HORA_GPU_PATH"}]
    without = "ipc on one host, if its GPUs can open each other's memory; else staged"
    if os.environ.get("HORA_OFFLOAD") == "mpi":
        mpi = found.get(("mpi", "offload"))
        return [{"ranks": "of an MPI job", "path": "mpi, if it is CUDA-aware; else nccl, ipc or staged",
                 "why": f"HORA_OFFLOAD=mpi; {mpi['detail'] if mpi else 'no back-end'}"}]  # fmt: skip
    alone = (("nccl", nccl["detail"]) if nccl and nccl["available"] else
             (without, f"no NCCL: {nccl['detail'] if nccl else 'no back-end'}"))
    levels = os.environ.get("HORA_HIERARCHICAL_ALLREDUCE",
                            os.environ.get("HOROVOD_HIERARCHICAL_ALLREDUCE", ""))
    asked = levels.lower() in ("1", "true", "yes", "on")
    ways = [{"ranks": "with a GPU each", "path": alone[0], "why": alone[1]},
            {"ranks": "that share a GPU", "path": without, "why": "NCCL takes one rank for a GPU"}]
    if nccl and nccl["available"]:
        why = ("HORA_HIERARCHICAL_ALLREDUCE" if asked else
               "only where NCCL works inside each host and not between them: other versions, say")
        ways.append({"ranks": "on several hosts", "path": "hierarchical", "why": why})
    return ways


def collect() -> dict[str, Any]:
    rows, problem = backends()
    return {
        "version": library_version(),
        "package": str(Path(__file__).parent),
        "problem": problem,
        "backends": rows,
        "gpu_paths": gpu_paths(rows),
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "numpy": package_version("numpy"),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "quota_cores": cgroup_quota(),
        "launcher": launcher(),
        "settings": settings(),
        "unknown_settings": unknown_settings(),
    }


def mark(available: bool, stream: Any) -> str:
    encoding = (getattr(stream, "encoding", None) or "ascii").lower()
    if encoding.startswith("utf"):
        return "\u2714" if available else "\u2718"
    return "yes" if available else "no "


def print_text(info: dict[str, Any], out: Any) -> None:
    print(f"hora {info['version'] or '(not installed)'} in {info['package']}", file=out)
    print(f"Python {info['python']}, torch {info['torch'] or 'not installed'}, "
          f"{info['machine']}, Linux {info['kernel']}", file=out)
    quota = info["quota_cores"]
    limit = f", limited to {quota:g} by the control group" if quota is not None else ""
    print(f"{info['usable_cores']} of {info['cores']} cores usable{limit}", file=out)
    print(f"launcher: {info['launcher'] or 'none (one rank by itself)'}", file=out)
    if info["problem"]:
        print(f"\n{info['problem']}", file=out)
    print(file=out)
    for row in info["backends"]:
        line = f"  {mark(row['available'], out)} {row['name']:<8} {row['kind']:<10} {row['detail']}"
        print(line, file=out)
        if row["remedy"] and not row["available"]:
            print(f"{'':>23}{row['remedy']}", file=out)
    print("\ntensors on GPUs:", file=out)
    for way in info["gpu_paths"]:
        print(f"  ranks {way['ranks']:<17} {way['path']} ({way['why']})", file=out)
    print("\nsettings from the environment:" if info["settings"] else
          "\nno settings in the environment; all are at their defaults (docs/config.md)", file=out)
    for name, value in info["settings"].items():
        print(f"  {name}={value}", file=out)
    for sentence in info["unknown_settings"]:
        print(f"  {sentence}", file=out)


def main(args: argparse.Namespace) -> int:
    info = collect()
    if args.json:
        print(json.dumps(info, indent=2))
    else:
        print_text(info, sys.stdout)
    return 1 if info["problem"] else 0
