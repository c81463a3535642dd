"""hora.Communicator: the cases of communicator_cases.py at several sizes; its start and end."""

from __future__ import annotations

import os
import re
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import pytest
import ranks

CASES = Path(__file__).with_name("communicator_cases.py").read_text()
NAMES = re.findall(r"^def (case_\w+)", CASES, re.MULTILINE)
SHM, TCP = {"HORA_TRANSPORT": "shm"}, {"HORA_TRANSPORT": "tcp"}


def run_cases(names: list[str]) -> dict[str, str | None]:
    """On a rank. The first failure ends it, and the rest is not run."""
    import communicator_cases
    import hora

    results: dict[str, str | None] = {}
    with hora.Communicator() as comm:
        for name in names:
            try:
                getattr(communicator_cases, name)(comm)
                comm.barrier()
            except pytest.skip.Exception as skipped:
                results[name] = f"skipped: {skipped}"
                continue
            except BaseException:
                results[name] = traceback.format_exc()
                comm.abort(name)
                return results
            results[name] = None
    return results


LAUNCHES = {
    "1": (1, {}), "2 shm": (2, SHM), "2 tcp": (2, TCP), "4 shm": (4, SHM), "3 tcp": (3, TCP),
}  # fmt: skip
_launched: dict[str, list[ranks.Outcome]] = {}


def outcomes(launch: str) -> list[ranks.Outcome]:
    if launch not in _launched:
        size, env = LAUNCHES[launch]
        _launched[launch] = ranks.start(run_cases, size, NAMES, env=env).wait(300)
    return _launched[launch]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_case(launch: str, name: str) -> None:
    for outcome in outcomes(launch):
        done = outcome.value or {}
        assert name in done, f"rank {outcome.rank}: not run (exit {outcome.code})\n{outcome.output}"
        if done[name] is not None and done[name].startswith("skipped"):
            pytest.skip(done[name])
        assert done[name] is None, f"rank {outcome.rank}: {done[name]}"


# ---- Starting ------------------------------------------------------------------------------------


def explicit(rendezvous: str) -> list[int]:
    import hora
    import numpy as np

    rank, size = int(os.environ["MY_RANK"]), 2
    with hora.Communicator(
        rank, size, rendezvous=rendezvous, transport="tcp", start_timeout=60, timeout=30
    ) as comm:
        assert (comm.rank, comm.size, comm.transport(1 - rank)) == (rank, size, "tcp")
        return comm.allgather(np.array([rank])).tolist()


def test_rank_and_size_are_given() -> None:
    """Without any launcher, over TCP."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = ranks.run(explicit, 2, f"tcp:127.0.0.1:{port}",
                        variables=lambda rank, size, _: {"MY_RANK": str(rank)})  # fmt: skip
    assert results == [[0, 1], [0, 1]]


def test_bad_arguments() -> None:
    import hora

    for arguments, text in (
        ({"rank": 0}, "both or neither"),
        ({"rank": 2, "size": 2}, "rank 2"),
        ({"transport": "pigeon"}, "pigeon"),
        ({"rank": 0, "size": 2, "rendezvous": "nowhere"}, "nowhere"),
        ({"timeout": -1.0}, "negative"),
    ):
        with pytest.raises(ValueError, match=text):
            hora.Communicator(**arguments)
    with pytest.raises(TypeError):
        hora.Communicator(colour=1)
    with pytest.raises(RuntimeError, match="rank 0 did not appear"):
        hora.Communicator(1, 2, rendezvous="unix:hora-test-nobody", start_timeout=0.2)


# ---- Threads, Ctrl-C -----------------------------------------------------------------------------


def python_runs_while_it_waits() -> int:
    import threading

    import hora

    comm = hora.Communicator()
    counted = 0
    if comm.rank == 0:
        thread = threading.Thread(target=comm.barrier)
        thread.start()
        ranks.signal_file("waiting")
        while thread.is_alive():
            counted += 1
            time.sleep(0.001)
        thread.join()
    else:
        path = Path(os.environ["HORA_TEST_FOLDER"]) / "waiting"
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.5)
        comm.barrier()
    comm.close()
    return counted


def test_python_runs_while_it_waits() -> None:
    counted, _ = ranks.run(python_runs_while_it_waits, 2)
    assert counted > 20


def a_communicator_for_each_thread() -> list[int]:
    import threading

    import hora
    import numpy as np

    comm = hora.Communicator()
    parts = [comm.split(0) for _ in range(3)]
    sums = [0, 0, 0]

    def work(i: int) -> None:
        part = parts[i]
        assert part is not None
        for step in range(200):
            sums[i] += int(part.allreduce(np.array([i * step]))[0])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in (*parts, comm):
        assert part is not None
        part.close()
    return sums


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_communicator_for_each_thread(transport: str) -> None:
    total = sum(range(200))
    results = ranks.run(a_communicator_for_each_thread, 2, env={"HORA_TRANSPORT": transport})
    assert results == [[0, 2 * total, 4 * total]] * 2


def a_request_and_another_thread() -> list[str]:
    import threading

    import hora
    import numpy as np

    comm = hora.Communicator()
    errors: list[str] = []

    def also_use_it() -> None:
        ranks.signal_file("go")
        try:
            while comm.rank == 0:
                comm.check()  # any thread
                if thread_may_try.is_set():
                    comm.barrier()
                time.sleep(0.01)
        except RuntimeError as error:
            errors.append(str(error))

    thread_may_try = threading.Event()
    if comm.rank == 0:
        request = comm.allreduce(np.ones(3), async_op=True)
        thread = threading.Thread(target=also_use_it)
        thread.start()
        thread_may_try.set()
        request.wait()
        thread.join()
    else:
        time.sleep(1)
        comm.allreduce(np.ones(3), async_op=True).wait()
    assert (comm.allreduce(np.ones(1)) == 2).all()
    comm.close()
    return errors


def test_a_request_is_waited_for_and_another_thread_comes() -> None:
    first, _ = ranks.run(a_request_and_another_thread, 2)
    assert len(first) == 1 and "another thread" in first[0]


def interrupted() -> str:
    import hora
    import numpy as np

    comm = hora.Communicator()
    comm.barrier()
    if comm.rank == 1:
        ranks.signal_file("ready")
        time.sleep(2)
        try:
            comm.barrier()
        except RuntimeError as error:
            return str(error)
        return "nothing"
    try:
        comm.allreduce(np.ones(1), async_op=True).wait()
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return "nothing"


def test_ctrl_c_ends_a_wait() -> None:
    job = ranks.start(interrupted, 2)
    job.wait_for_file("ready")
    time.sleep(0.5)
    job.processes[0].send_signal(signal.SIGINT)
    first, second = job.wait()
    assert first.value == "KeyboardInterrupt" and "KeyboardInterrupt" in second.value


# ---- Ending --------------------------------------------------------------------------------------


def fails_in_a_block(how: str) -> str:
    import hora
    import numpy as np

    try:
        with hora.Communicator() as comm:
            comm.barrier()
            comm.allreduce(np.ones(10), async_op=True)
            if comm.rank == 0:
                raise KeyError("lost") if how == "exception" else SystemExit(how)
            comm.barrier()
    except (KeyError, RuntimeError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_an_exception_in_a_block_is_told_to_the_others() -> None:
    first, second = ranks.run(fails_in_a_block, 2, "exception")
    assert first == "KeyError: 'lost'"
    assert second.startswith("HorovodInternalError") and "KeyError: 'lost'" in second


UNCAUGHT = """
import hora, numpy as np
comm = hora.Communicator()
comm.barrier()
if comm.rank == 1:
    raise ZeroDivisionError("by none")
comm.barrier()
"""


def test_an_uncaught_exception_is_told_to_the_others() -> None:
    first, second = ranks.start(UNCAUGHT, 2).wait()
    assert first.code == second.code == 1
    assert "rank 1" in first.output and "ZeroDivisionError: by none" in first.output
    assert "HorovodInternalError" in first.output


LEFT_OPEN = """
import hora, numpy as np
comm = hora.Communicator()
part = comm.split(0)
x = np.ones(4)
kept = [part.allreduce(x, async_op=True) for _ in range(5)]
memory = comm.alloc(100)
comm.barrier()
"""


def test_python_ends_with_communicators_left_open() -> None:
    for outcome in ranks.start(LEFT_OPEN, 2).wait():
        assert outcome.code == 0 and outcome.output == "", outcome.output


def dropped() -> str:
    import gc

    import hora
    import numpy as np

    comm = hora.Communicator()
    part: Any = comm.split(0)
    comm.barrier()
    if comm.rank == 0:
        part.recv(np.zeros(3), 1, async_op=True)
        del part
        gc.collect()
        comm.barrier()
        comm.close()
        return "left"
    try:
        part.barrier()
    except RuntimeError as error:
        comm.barrier()
        return str(error)
    return "nothing"


def test_a_communicator_is_dropped_with_requests() -> None:
    first, second = ranks.run(dropped, 2)
    assert first == "left" and "dropped" in second


def again_and_again() -> tuple[int, int]:
    import gc

    import hora
    import numpy as np

    def count() -> int:
        return len(os.listdir("/proc/self/fd")) + len(os.listdir("/proc/self/task"))

    counts = []
    for i in range(12):
        with hora.Communicator() as comm:
            request = comm.allreduce(np.ones(1000), async_op=True)
            assert (request.wait() == comm.size).all()
            memory = np.asarray(comm.alloc(10))
        del memory
        gc.collect()
        counts.append(count())
    return counts[1], counts[-1]


def test_again_and_again() -> None:
    for first, last in ranks.run(again_and_again, 2):
        assert last <= first


FORKED = """
import os, hora, numpy as np
with hora.Communicator() as comm:
    child = os.fork()
    if child == 0:
        try:
            comm.barrier()
        except RuntimeError as error:
            os._exit(7 if "fork" in str(error) else 8)
        os._exit(9)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == 7, status
    comm.barrier()
"""


def test_the_child_of_a_fork_is_refused() -> None:
    for outcome in ranks.start(FORKED, 2).wait():
        assert outcome.code == 0, outcome.output


def on_jax() -> bool:
    try:
        import jax.numpy as jnp
    except ImportError:
        return False
    import hora

    with hora.Communicator() as comm:
        n = comm.size
        for dtype in (jnp.float32, jnp.bfloat16, jnp.int32):
            x = jnp.full((2, 3), comm.rank, dtype)
            result = comm.allreduce(x)
            assert type(result) is type(x) and result.dtype == dtype
            assert (result == n * (n - 1) // 2).all()
            assert comm.allgather(x, async_op=True).wait().shape == (2 * n, 3)
        with pytest.raises(ValueError, match="read-only"):
            comm.allreduce(x, out=x)
    return True


def test_jax() -> None:
    if not all(ranks.run(on_jax, 2)):
        pytest.skip("JAX is not installed")


def test_it_needs_neither_torch_nor_numpy() -> None:
    program = (
        "import sys\n"
        "sys.modules['numpy'] = sys.modules['torch'] = None\n"
        "import hora, array\n"
        "with hora.Communicator() as comm:\n"
        "    assert list(comm.allreduce(array.array('i', [2]))) == [2 * comm.size]\n"
        "    m = memoryview(comm.alloc(3, 'int8'))\n"
        "    m[0] = 1\n"
        "    assert comm.allreduce(m, out=m)[0] == comm.size\n"
    )
    for outcome in ranks.start(program, 2).wait():
        assert outcome.code == 0, outcome.output


# ---- Several worlds in one process ---------------------------------------------------------------


def second_copy(path: str, results: list[Any]) -> None:
    """What an extension with a libhora of its own does, in C's way."""
    import ctypes

    lib = ctypes.CDLL(path)  # RTLD_LOCAL
    lib.hora_last_error.restype = ctypes.c_char_p
    comm = ctypes.c_void_p()
    values = (ctypes.c_int32 * 4)(1, 1, 1, 1)
    status = lib.hora_comm_create(None, ctypes.byref(comm))
    for _ in range(30 if status == 0 else 0):
        count, int32, total = ctypes.c_size_t(4), 3, 1
        status = status or lib.hora_allreduce(comm, values, values, count, int32, total, None)
        status = status or lib.hora_allreduce(comm, values, values, count, int32, 3, None)  # min
        values[:] = [1] * 4 if values[0] == 2 else [-1] * 4
    status = status or lib.hora_comm_free(comm)
    results.append((status, lib.hora_last_error() if status else None, values[:]))


def many_worlds() -> list[Any]:
    """hora.torch's, this module's, named ones of threads, and another copy's, all at once."""
    import shutil
    import threading

    import hora
    import hora.torch as hvd
    import numpy as np
    import torch
    from hora import _core

    library = Path(_core.__file__).with_name("libhora.so")
    copy = Path(os.environ["HORA_TEST_FOLDER"]) / f"libother-{os.environ['HORA_TEST_RANK']}.so"
    shutil.copy(library, copy)
    me = int(os.environ["HORA_TEST_RANK"])
    results: list[Any] = []

    def named(name: str, number: int) -> None:
        time.sleep(0.02 * ((me + number) % 3))
        with hora.Communicator(name=name) as comm:
            for step in range(20):
                assert (comm.allreduce(np.full(100, number * step)) == 2 * number * step).all()
        results.append(name)

    threads = [threading.Thread(target=second_copy, args=(str(copy), results))]
    threads += [threading.Thread(target=named, args=(name, i)) for i, name in enumerate("ab", 1)]
    for thread in threads if me else reversed(threads):
        thread.start()
    hvd.init()
    with hora.Communicator() as one, hora.Communicator() as two:
        for step in range(30):
            handle = hvd.allreduce_async(torch.full((300,), float(step)), op=hvd.Sum)
            request = one.allreduce(np.full(100, step), async_op=True)
            assert (two.allreduce(np.full(5, 3.0)) == 6).all()
            assert (hvd.synchronize(handle) == 2 * step).all()
            assert (request.wait() == 2 * step).all()
        hvd.shutdown()
        assert (one.allreduce(np.ones(1)) == 2).all()
        hvd.init()
        assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == 2
    assert hvd.allreduce(torch.ones(1), op=hvd.Sum).item() == 2
    hvd.shutdown()
    for thread in threads:
        thread.join()
    return sorted(results, key=str)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_worlds_do_not_disturb_each_other(transport: str) -> None:
    for result in ranks.run(many_worlds, 2, env={"HORA_TRANSPORT": transport}):
        assert result == [(0, None, [1, 1, 1, 1]), "a", "b"]
