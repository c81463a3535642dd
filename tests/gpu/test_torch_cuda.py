"""hora.torch on a real GPU: two ranks on one, by each path. tests/gpu/run calls this, not CI.

HORA_TEST_DEVICE=cpu runs the cases on the CPU instead.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time

import cases_cuda
import pytest
import ranks

ON_CPU = os.environ.get("HORA_TEST_DEVICE") == "cpu"
PATHS = ["cpu"] if ON_CPU else ["ipc", "staged", "nccl"]


@functools.cache
def why_not() -> str:
    """Why these tests cannot be run; asked in another process, as a fork keeps no CUDA."""
    if ON_CPU:
        return ""
    code = "import torch; torch.zeros(1, device='cuda')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode != 0:
        return "torch has no GPU here: " + done.stderr.strip().splitlines()[-1]
    from hora import _core

    row = next(row for row in _core.backends() if (row["name"], row["kind"]) == ("cuda", "device"))
    return "" if row["available"] else f"hora cannot use the GPU: {row['detail']}"


@pytest.fixture(autouse=True)
def needs_a_gpu() -> None:
    if why_not():
        pytest.skip(why_not())


def variables(rank: int, size: int, meeting: str) -> dict[str, str]:
    """NCCL takes two ranks for one GPU if it believes that they are on two hosts."""
    return ranks.hora_variables(rank, size, meeting) | {
        "NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1",
    }  # fmt: skip


def settings(path: str) -> dict[str, str]:
    return {"HORA_TEST_DEVICE": "cpu"} if path == "cpu" else {"HORA_GPU_PATH": path}


@functools.cache
def complaints_of(path: str) -> dict[str, list[str]]:
    return ranks.launch_cases(cases_cuda, 2, env=settings(path), variables=variables)


@pytest.mark.parametrize("case", ranks.case_names(cases_cuda))
@pytest.mark.parametrize("path", PATHS)
def test_case(path: str, case: str) -> None:
    complaints = complaints_of(path)[case]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("path", [path for path in PATHS if path != "cpu"])
def test_out_of_memory(path: str) -> None:
    for text in ranks.run(cases_cuda.out_of_memory, 2, env=settings(path), variables=variables):
        assert text != "there was enough" and text


@pytest.mark.parametrize("path", PATHS)
def test_killed_rank(path: str) -> None:
    began = time.monotonic()
    first, second = ranks.start(
        cases_cuda.killed, 2, env=settings(path), variables=variables
    ).wait()
    assert second.code == -9
    assert first.code == 0 and first.value != "no error", first.output
    assert time.monotonic() - began < 60
