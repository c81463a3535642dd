"""Arrays on a GPU through the extension's doors, on the CUDA driver's stand-in (standin_gpu.py): the
streams, the places and the lifetimes. hora.torch itself on a GPU: tests/gpu.
"""

from __future__ import annotations

import json
import re
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


# ---- Streams and lifetimes -----------------------------------------------------------------------


def engine() -> None:
    """What is read before its stream was waited for, or freed before its work was done, shows."""
    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    me, n = basics.rank(), basics.size()
    mine = np.arange(COUNT, dtype=np.float32) + me
    total = np.arange(COUNT, dtype=np.float32) * n + n * (n - 1) / 2
    side, other = gpu.new_stream(), gpu.new_stream()
    for i in range(6):
        with gpu.current(side):
            x, out = gpu.Array(np.zeros(COUNT)), gpu.Array(np.zeros(COUNT))
            x.put(mine)
            handle = begin(_core.ALLREDUCE, f"sum.{i}", x, out)
        while i % 2 and not handle.poll():
            pass
        with gpu.current(other):  # which waits for the result, and for nothing else
            assert handle.wait() is out
            assert np.array_equal(out.numpy(), total)
            assert handle.wait() is None
        with gpu.current(side):
            x.put(mine * 2)
            assert begin(_core.BROADCAST, f"from.{i}", x, x, n - 1).wait() is x
            assert np.array_equal(x.numpy(), (np.arange(COUNT, dtype=np.float32) + n - 1) * 2)
    assert gpu.asked and not any(gpu.asked)
    del x, out, handle
    assert gpu.Array.live == 0
    basics.shutdown()


@pytest.mark.parametrize("path", ["ipc", "staged"])
def test_engine(path: str) -> None:
    launch(engine, 2, HORA_GPU_PATH=path, **SLOW)


def outputs() -> None:
    """What the engine allocates is handed over with its place, and freed with its last user."""
    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    me, n = basics.rank(), basics.size()
    blocks = [np.full((rank + 1, 7), rank + 1.0, np.float32) for rank in range(n)]
    for i in range(3):
        handle = begin(_core.ALLGATHER, f"gathered.{i}", gpu.Array(blocks[me]), None)
        handle.wait()
        gathered, received = handle.tensor(0)
        assert (type(gathered), gathered.tensor.device.device_type, gathered.device) == (
            gpu.Array, 2, 0)
        assert received is None and gathered.shape == (sum(range(1, n + 1)), 7)
        assert np.array_equal(gathered.numpy(), np.concatenate(blocks))
        rows = np.arange(2 * n * 3, dtype=np.float32).reshape(2 * n, 3)
        handle = begin(_core.ALLTOALL, f"exchanged.{i}", gpu.Array(rows + 100 * me), None)
        handle.wait()
        array, received = handle.output(0)  # hora's own
        assert received == [2] * n and array.__dlpack_device__() == (2, 0)
        refused(BufferError, lambda: memoryview(array), "GPU 0")
        refused(BufferError, lambda: array.__dlpack__(stream=77), "default CUDA stream")
        refused(BufferError, lambda: array.__dlpack__(dl_device=(1, 0)), "(2, 0)")
        assert array.__dlpack__(stream=1, max_version=(1, 0)) is not None
        again = begin(_core.ALLREDUCE, f"again.{i}", array, array)
        assert again.wait() is array
        del array, gathered, handle, again
    assert gpu.Array.live == 0
    basics.shutdown()


def test_outputs() -> None:
    launch(outputs, 2, **SLOW)


def dropped() -> bool:
    """A handle that nobody waits for keeps its arrays until it is done, and then lets go of them."""
    import time

    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    host = np.ones(1, np.float32)
    if basics.rank() == 1:
        time.sleep(0.3)
    handle = begin(_core.ALLREDUCE, "dropped", gpu.Array(np.ones(COUNT)), gpu.Array(np.ones(COUNT)))
    early = not handle.poll()
    del handle
    kept = gpu.Array.live == 2
    for i in range(2):  # the second one sweeps, when the first one is surely behind the dropped one
        begin(_core.ALLREDUCE, f"host.{i}", host, host).wait()
    assert gpu.Array.live == 0
    basics.shutdown()
    return early and kept


def test_dropped_handles() -> None:
    assert any(launch(dropped, 2, **SLOW))


def groups() -> None:
    """Arrays on a GPU and in host memory in one group, and an older library's by __dlpack__."""
    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    n = basics.size()
    for i in range(2):
        here, there = gpu.Array(np.full(COUNT, 2.0)), np.full(10, 3.0, np.float32)
        names = (f"here.{i}", f"there.{i}")
        begin(_core.ALLREDUCE, names, (here, there), (here, there)).wait()
        assert np.all(here.numpy() == 2 * n) and np.all(there == 3 * n)
    older = gpu.Older(np.ones(COUNT))
    begin(_core.ALLREDUCE, "older", older, older).wait()
    assert np.all(older.array.numpy() == n)
    assert older.options and all(options["stream"] == 1 for options in older.options)
    mixed = (gpu.Array(np.ones(3)), older)
    refused(ValueError, lambda: begin(_core.ALLREDUCE, ("m", "n"), mixed, mixed), "one library")
    basics.shutdown()


def test_groups() -> None:
    launch(groups, 2, **SLOW)


def disagreement() -> None:
    """On a GPU here and in host memory there: an error on both that says so, and life goes on."""
    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    here = gpu.Array(np.ones(3))
    x = here if basics.rank() == 0 else np.ones(3, np.float32)
    handle = begin(_core.ALLREDUCE, "odd", x, x)
    refused(_core.HorovodInternalError, handle.wait, "odd", "GPU")
    begin(_core.ALLREDUCE, "even", here, here).wait()
    assert np.all(here.numpy() == basics.size())
    basics.shutdown()


def test_disagreement() -> None:
    launch(disagreement, 2)




def joined() -> int:
    """A rank that has never used a GPU takes part in what the others do on theirs."""
    import numpy as np
    from hora import _core
    from hora.common import basics

    basics.init()
    me, last = basics.rank(), np.full(1, -1, np.int32)
    if me == 1:
        for i in range(3):
            x = gpu.Array(np.full(COUNT, 5.0))
            assert begin(_core.ALLREDUCE, f"alone.{i}", x, x).wait() is x
            assert np.all(x.numpy() == 5)
        handle = begin(_core.ALLGATHER, "rows", gpu.Array(np.ones((2, 3))), None)
        handle.wait()
        assert handle.tensor(0)[0].shape == (2, 3)
        del x, handle
    begin(_core.JOIN, "join", None, last).wait()
    basics.shutdown()
    return int(last[0])


def test_join() -> None:
    assert launch(joined, 2, **SLOW) == [1, 1]


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


@pytest.mark.parametrize("path", ["ipc", "staged"])
def test_communicator(path: str) -> None:
    launch(communicator, 2, HORA_GPU_PATH=path, **SLOW)


# ---- The hora command ----------------------------------------------------------------------------


def hora(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    env = ranks.clean_environment() | {"HORA_CUDA_LIBRARY": gpu.library()} | env
    command = [sys.executable, "-m", "hora", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=env)


def test_check_and_perf() -> None:
    how = ("--device", "cuda", "-np", "2", "--transport", "shm")
    done = hora("check", *how, HORA_NCCL_LIBRARY="/nowhere/libnccl.so")
    assert done.returncode == 0, done.stdout
    assert "PASS" in done.stdout and "shm   nccl      not checked: " in done.stdout
    assert all(re.search(f"shm   {path} +[0-9]+ calls", done.stdout) for path in ("ipc", "staged"))
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
