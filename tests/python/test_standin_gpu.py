"""Arrays on a GPU through the extension's doors, on the CUDA driver's stand-in (standin_gpu.py): the
streams, the places and the lifetimes. hora.torch itself on a GPU: tests/gpu.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any, Callable

import pytest
import ranks
import standin_gpu as gpu

COUNT = 5000
SLOW = {"HORA_STANDIN_DELAY_US": "3000"}  # of every second piece of queued work, at random


def launch(function: Callable[..., Any], size: int, *args: Any, **env: str) -> list[Any]:
    library = {"HORA_CUDA_LIBRARY": gpu.library(), "HORA_GPU_PATH": "staged"}
    return ranks.run(function, size, *args, env=library | env)


def refused(error: type[BaseException], call: Callable[[], Any], *texts: str) -> None:
    with pytest.raises(error) as caught:
        call()
    missing = [text for text in texts if text not in str(caught.value)]
    assert not missing, f"{missing} not in {caught.value}"


def begin(kind: int, name: Any, tensor: Any, output: Any, root: int = 0) -> Any:
    from hora import _core

    return _core.enqueue(kind, name, tensor, output, _core.SUM, 1.0, 1.0, root, None, 0)


# ---- What is refused on this rank ----------------------------------------------------------------


def refusals() -> None:
    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    here, there = gpu.Array(np.ones(3)), gpu.Array(np.ones(3), device=1)
    host = np.ones(3, np.float32)
    refused(ValueError, lambda: begin(_core.ALLREDUCE, "a", here, host), "one device")
    refused(ValueError, lambda: begin(_core.ALLREDUCE, "b", here, there), "one device")
    refused(ValueError, lambda: begin(_core.ALLREDUCE, ("c", "d"), (here, there), None), "one GPU")
    metal = gpu.Array(np.ones(3), device_type=8)
    refused(ValueError, lambda: begin(_core.ALLREDUCE, "e", metal, metal), "Metal")
    refused(ValueError, lambda: begin(_core.JOIN, "join", None, here), "int32 in CPU memory")
    basics.shutdown()


def test_refusals() -> None:
    launch(refusals, 1, HORA_STANDIN_GPUS="2")


# ---- hora.Communicator ---------------------------------------------------------------------------


def communicator() -> None:
    import hora
    import numpy as np

    side = gpu.new_stream()
    with hora.Communicator() as comm, gpu.current(side):
        n, me = comm.size, comm.rank
        x, out = gpu.Array(np.full(COUNT, me + 1.0)), gpu.Array(np.zeros(COUNT))
        total = n * (n + 1) / 2
        for i in range(4):
            assert comm.allreduce(x, out=out) is out
            assert np.all(out.numpy() == total)
        every = gpu.Array(np.zeros((n, COUNT)))
        assert comm.allgather(x, out=every) is every
        assert np.array_equal(every.numpy()[:, 0], np.arange(1.0, n + 1))
        request = comm.allreduce(x, out=out, op="max", async_op=True)
        assert request.wait() is out and np.all(out.numpy() == n)
        refused(ValueError, lambda: comm.allreduce(x, out=np.zeros(COUNT, np.float32)), "device -1")
        refused(ValueError, lambda: comm.allreduce(x), "give out=")
        host = np.ones(3)
        assert np.all(comm.allreduce(host) == n)  # in between


def test_communicator() -> None:
    launch(communicator, 2, **SLOW)


# ---- The hora command ----------------------------------------------------------------------------


def hora(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = ranks.clean_environment() | {"HORA_CUDA_LIBRARY": gpu.library()} | env
    command = [sys.executable, "-m", "hora", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)


def test_check_and_perf() -> None:
    how = ("--device", "cuda", "-np", "2", "--transport", "shm")
    done = hora("check", *how, "--algo", "staged")
    assert done.returncode == 0, done.stdout
    assert "PASS" in done.stdout and "shm   staged" in done.stdout
    done = hora("check", *how, "--algo", "nccl", HORA_NCCL_LIBRARY="/nowhere/libnccl.so")
    assert done.returncode == 1 and "nothing was checked" in done.stdout
    assert "shm   nccl      not checked: " in done.stdout
    sizes = ("-b", "32", "-e", "32K", "-f", "32", "-n", "2", "-w", "1")
    done = hora("perf", "--device", "cuda", "-np", "3", *sizes, "--json", "-")
    result = json.loads(done.stdout)
    assert result["device"] == "cuda" and len(result["rows"]) == 3
    refusal = hora("perf", "--device", "cuda", "--arena")
    assert refusal.returncode == 2 and "host memory" in refusal.stderr


def test_without_a_gpu() -> None:
    nowhere = {"HORA_CUDA_LIBRARY": "/nowhere/libcuda.so"}
    done = hora("check", "--device", "cuda", "-np", "2", **nowhere)
    assert done.returncode == 1
    assert done.stdout.count("no CUDA driver here (install NVIDIA's") == 2
    done = hora("perf", "--device", "cuda", "-np", "2", **nowhere)
    assert done.returncode == 1 and "no CUDA driver here (install NVIDIA's" in done.stderr
    info = json.loads(hora("info", "--json", **nowhere).stdout)
    cuda = next(row for row in info["backends"] if row["name"] == "cuda")
    assert not cuda["available"] and "--gpus all" in cuda["remedy"]
    assert [way["path"] for way in info["gpu_paths"]] == ["none"]


def test_info_shows_gpus() -> None:
    info = json.loads(hora("info", "--json", HORA_STANDIN_GPUS="2").stdout)
    rows = [row for row in info["backends"] if row["name"].startswith("gpu")]
    assert [row["name"] for row in rows] == ["gpu0", "gpu1"]
    for row in rows:
        for text in ("3.0 GiB", "sm_90", "GPU-686f", "ranks can share it"):
            assert text in row["detail"], row
