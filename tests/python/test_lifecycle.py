"""Starting, ending and failing: what a rank's end does to the others, which variables start it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ranks

PROMPT = 10.0  # seconds within which the other ranks must have noticed; far below HORA_TIMEOUT


# ---- Before and without a job --------------------------------------------------------------------


def run_alone(program: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=ranks.clean_environment() | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_import_is_silent_and_needs_no_torch() -> None:
    done = run_alone(
        "import sys; sys.modules['torch'] = sys.modules['numpy'] = None; import hora, hora._core; "
        "import hora.common.exceptions; print(hora.__version__)"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == "0.1.0"


def test_before_init() -> None:
    done = run_alone(
        """
import torch, hora.torch as hvd
assert not hvd.is_initialized()
hvd.shutdown()
for call in (hvd.rank, hvd.size, hvd.local_rank, hvd.local_size, hvd.cross_rank, hvd.cross_size,
             hvd.barrier, lambda: hvd.allreduce(torch.ones(1)), hvd.mpi_threads_supported,
             hvd.global_process_set.size, hvd.global_process_set.included):
    try:
        call()
    except ValueError as error:
        assert "not been initialized; use hvd.init()" in str(error), error
    else:
        raise AssertionError(call)
"""
    )
    assert done.returncode == 0, done.stderr


def test_one_rank_without_a_launcher() -> None:
    done = run_alone(
        """
import torch, hora.torch as hvd
hvd.init()
hvd.init()
assert (hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size()) == (0, 1, 0, 1)
assert hvd.allreduce(torch.ones(3)).tolist() == [1, 1, 1]
assert isinstance(hvd.mpi_built(), bool) and isinstance(hvd.nccl_built(), int)
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_init_arguments() -> None:
    done = run_alone(
        """
import hora.torch as hvd
for arguments in (dict(comm=[0, 1]), dict(comm=object()), dict(process_sets=["set"]),
                  dict(process_sets=[hvd.ProcessSet([0])])):
    try:
        hvd.init(**arguments)
    except ValueError:
        assert not hvd.is_initialized()
    else:
        raise AssertionError(arguments)
hvd.init(comm=[0], process_sets=[])
assert hvd.size() == 1
"""
    )
    assert done.returncode == 0, done.stderr


def test_a_rank_that_never_comes() -> None:
    """init() fails by itself and says who is missing."""
    program = """
import hora.torch as hvd
try:
    hvd.init()
except hvd.HorovodInternalError as error:
    print("error:", error, error.status)
"""
    began = time.monotonic()
    done = run_alone(
        program, HORA_RANK="0", HORA_SIZE="2", HORA_START_TIMEOUT="2",
        HORA_RENDEZVOUS=f"unix:hora-test-nobody-{os.getpid()}",
    )  # fmt: skip
    assert "error:" in done.stdout, done.stderr
    assert "1" in done.stdout and time.monotonic() - began < 30


# ---- Again and again -----------------------------------------------------------------------------


def reinitialise() -> list[float]:
    import hora.torch as hvd
    import torch

    seen = []
    for turn in range(4):
        hvd.init()
        for i in range(turn + 1):  # unnamed operations: their numbers start afresh
            hvd.synchronize(hvd.allreduce_async(torch.ones(2), op=hvd.Sum))
        seen.append(hvd.allreduce(torch.full((3,), float(hvd.rank() + turn)), op=hvd.Sum)[0].item())
        hvd.barrier()
        hvd.shutdown()
        hvd.shutdown()
        assert not hvd.is_initialized()
    return seen


@pytest.mark.parametrize("size", [1, 2, 3])
def test_init_again(size: int) -> None:
    expected = [sum(r + turn for r in range(size)) for turn in range(4)]
    assert ranks.run(reinitialise, size) == [expected] * size


def what_it_holds() -> tuple[int, int, int]:
    """Resident memory in KiB, threads, open descriptors."""
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return (
        int(status["VmRSS"].split()[0]), int(status["Threads"]), len(os.listdir("/proc/self/fd"))
    )  # fmt: skip


def start_and_stop(times: int) -> list[tuple[int, int, int]]:
    import gc

    import hora.torch as hvd
    import torch

    sets = [hvd.ProcessSet([0])]
    seen = []
    for turn in range(times):
        hvd.init(process_sets=sets if hvd_world() > 1 else None)
        x = torch.full((1000,), 1.0)
        assert hvd.allreduce(x, op=hvd.Sum)[0] == hvd.size()
        hvd.synchronize(hvd.allgather_async(x))
        if hvd.size() > 1 and sets[0].included():
            hvd.allreduce(x, process_set=sets[0])
        hvd.barrier()
        hvd.shutdown()
        if turn in (times // 4, times - 1):
            gc.collect()
            seen.append(what_it_holds())
    return seen


def hvd_world() -> int:
    return int(os.environ["HORA_SIZE"])


@pytest.mark.parametrize("size", [1, 2])
def test_init_200_times(size: int) -> None:
    """Nothing is left of a job that has ended: memory, threads and descriptors stay as they were
    after the first quarter."""
    for early, late in ranks.run(start_and_stop, size, 200):
        assert late[1:] == early[1:], (early, late)
        assert late[0] - early[0] < 1500, f"{early} {late}: KiB of resident memory"


def test_shutdown_waits_for_other_threads_calls() -> None:
    """Two calls that use the job's communicator without the GIL, and are made to last by a log that
    nobody reads, while another thread leaves the job."""
    program = """
import os, sys, threading, time
from hora import _core

def blocked(level, call):
    os.environ["HORA_LOG_LEVEL"] = level
    _core.init(-1, -1, None, None, 0, 0, 0)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(1))
    except BlockingIOError:
        os.set_blocking(writer, True)
    before = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    user, leaver = threading.Thread(target=call), threading.Thread(target=_core.shutdown)
    user.start()
    time.sleep(0.1)
    assert user.is_alive()
    leaver.start()
    leaver.join(0.3)
    waited = leaver.is_alive()
    os.dup2(before, 2)
    drain = threading.Thread(target=lambda: all(iter(lambda: os.read(reader, 65536), b"")))
    drain.start()
    user.join()
    leaver.join()
    drain.join()
    assert waited and not _core.is_initialized()

blocked("error", lambda: _core.abort("on purpose"))
blocked("info", lambda: _core.start_timeline(sys.argv[1], False))
"""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", program, f"{folder}/timeline.json"],
            env=ranks.clean_environment(), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr


def narrow_without_the_others() -> tuple[str, float]:
    from hora import _core

    errors: list[str] = []

    def narrow() -> None:
        try:
            _core.narrow(0, 0)
        except _core.HorovodInternalError as error:
            errors.append(str(error))

    _core.init(-1, -1, None, None, 0, 0, 0)
    done = Path(os.environ["HORA_TEST_FOLDER"]) / "done"
    began = time.monotonic()
    if _core.rank() == 0:
        thread = threading.Thread(target=narrow)
        thread.start()
        time.sleep(0.1)
        assert thread.is_alive()
        began = time.monotonic()
        _core.shutdown()
        thread.join()
        ranks.signal_file(done.name)
    while not done.exists() and time.monotonic() - began < 60:
        time.sleep(0.01)
    return "".join(errors), time.monotonic() - began


def test_shutdown_ends_a_narrow_whose_others_never_come() -> None:
    (error, seconds), _ = ranks.run(narrow_without_the_others, 2)
    assert "rank 0" in error and "has been shut down" in error, error
    assert seconds < PROMPT


def stop_with_operations_in_flight() -> str:
    import hora.torch as hvd
    import torch
    from hora.torch import mpi_ops

    hvd.init()
    if hvd.rank() == 0:
        handle = hvd.allreduce_async(torch.ones(3), name="never")
        pending = mpi_ops._operations[handle]
        hvd.shutdown()
        assert hvd.synchronize(handle) is None
        try:
            pending.wait()
        except hvd.HorovodInternalError as error:
            return str(error)
        return "no error"
    time.sleep(1)
    return "ok"


def test_shutdown_with_operations_in_flight() -> None:
    first, second = ranks.run(stop_with_operations_in_flight, 2)
    assert "never" in first and "rank 0" in first and second == "ok"


def leave_without_shutdown(kind: str) -> None:
    import hora.torch as hvd
    import torch

    hvd.init()
    hvd.allreduce(torch.ones(3))
    if kind == "sys.exit":
        sys.exit(0)


@pytest.mark.parametrize("kind", ["return", "sys.exit"])
def test_leaving_without_shutdown_is_in_order(kind: str) -> None:
    outcomes = ranks.start(leave_without_shutdown, 3, kind).wait()
    assert [o.code for o in outcomes] == [0, 0, 0], [o.output for o in outcomes]
    assert "Traceback" not in "".join(o.output for o in outcomes)


# ---- Failing -------------------------------------------------------------------------------------


def fail_in_one_rank(how: str) -> None:
    import hora.torch as hvd
    import torch

    hvd.init()
    hvd.allreduce(torch.ones(3))
    if hvd.rank() == 1:
        if how == "exception":
            raise ArithmeticError("the loss is not a number")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(3):
        hvd.allreduce(torch.ones(3), name="next")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("how", ["exception", "killed"])
def test_one_rank_fails(how: str, size: int) -> None:
    """All others end within seconds with an error that says which rank failed and why."""
    outcomes = ranks.start(fail_in_one_rank, size, how).wait(60)
    reason = {"exception": "ArithmeticError: the loss is not a number", "killed": "rank 1"}[how]
    ended = outcomes[1].seconds
    assert "Traceback" in outcomes[1].output or how == "killed"
    for outcome in outcomes:
        if outcome.rank == 1:
            continue
        assert outcome.code == 1, outcome.output
        assert outcome.seconds - ended < PROMPT
        assert "HorovodInternalError" in outcome.output
        assert "rank 1" in outcome.output and reason in outcome.output, outcome.output
        assert socket.gethostname().split(".")[0] in outcome.output


def fail_with_strange_text() -> str:
    import hora.torch as hvd
    import torch

    hvd.init()
    if hvd.rank() == 1:
        raise FileNotFoundError("no file \udcff\ud800 é")  # as os.fsdecode() makes them
    try:
        for _ in range(1000):
            hvd.allreduce(torch.ones(3), name="next")
    except hvd.HorovodInternalError as error:
        return str(error)
    return "no error"


def test_an_exception_with_text_that_is_no_utf8() -> None:
    first, second = ranks.start(fail_with_strange_text, 2).wait(60)
    assert first.code == 0 and second.code == 1, first.output + second.output
    assert "rank 1" in first.value and "no file \\udcff\\ud800 é" in first.value, first.value


def settings_of_the_program() -> tuple[str, str]:
    """What Python puts into the environment before init() counts."""
    import hora.torch as hvd
    import torch

    os.environ["HORA_TRANSPORT"] = "tcp"
    os.environ["HORA_TIMEOUT"] = "2"
    os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"
    hvd.init()
    from hora import _core

    carrier = _core.transport(1 - hvd.rank())
    text = ""
    if hvd.rank() == 0:
        try:
            hvd.allreduce(torch.ones(1), name="only rank 0")
        except hvd.HorovodInternalError as error:
            text = str(error)
    else:
        time.sleep(4)
    hvd.shutdown()
    os.environ["HORA_TRANSPORT"] = "shm"
    hvd.init()
    carriers = f"{carrier} {_core.transport(1 - hvd.rank())}"
    hvd.shutdown()
    return carriers, text


def test_settings_of_the_program() -> None:
    (carriers, text), (others, _) = ranks.run(settings_of_the_program, 2)
    assert carriers == others == "tcp shm"
    assert "only rank 0" in text and "2" in text, text


def fail_in_a_thread() -> float:
    import hora.torch as hvd
    import torch

    hvd.init()
    if hvd.rank() == 1:
        thread = threading.Thread(target=lambda: [][1])
        thread.start()
        thread.join()
    for _ in range(3):
        total = hvd.allreduce(torch.ones(3), name="next", op=hvd.Sum)
    return total[0].item()


def test_a_thread_that_fails_does_not_end_the_job() -> None:
    outcomes = ranks.start(fail_in_a_thread, 2).wait(60)
    assert [(o.code, o.value) for o in outcomes] == [(0, 2.0)] * 2, [o.output for o in outcomes]
    assert "IndexError" in outcomes[1].output, "Python's own report of it"


def catch_failure() -> str:
    import hora.torch as hvd
    import torch

    hvd.init()
    if hvd.rank() == 1:
        os._exit(3)
    try:
        for _ in range(1000):
            hvd.allreduce(torch.ones(3), name="next")
    except hvd.HorovodInternalError as error:
        assert isinstance(error, RuntimeError) and isinstance(error.status, int)
        text = str(error)
    hvd.shutdown()  # and the program may go on without the job
    assert not hvd.is_initialized()
    return text


def test_failure_can_be_caught() -> None:
    outcomes = ranks.start(catch_failure, 3).wait(60)
    assert [o.code for o in outcomes] == [0, 3, 0], [o.output for o in outcomes]
    assert "rank 1" in outcomes[0].value and "rank 1" in outcomes[2].value


# ---- Ctrl-C --------------------------------------------------------------------------------------


def block_for_ever(own_handler: bool) -> str:
    import hora.torch as hvd
    import torch

    seen: list[int] = []
    if own_handler:
        signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    hvd.init()
    hvd.allreduce(torch.ones(2))
    if hvd.rank() == 0:
        ranks.signal_file("blocked")
        try:
            result = hvd.allreduce(torch.ones(2), name="late", op=hvd.Sum)
        except KeyboardInterrupt:
            raise
        return f"{result.tolist()} {seen}"
    time.sleep(3 if own_handler else 0)
    hvd.allreduce(torch.ones(2), name="late" if own_handler else "other", op=hvd.Sum)
    return ""


def test_keyboard_interrupt_ends_a_blocked_call() -> None:
    job = ranks.start(block_for_ever, 2, False)
    try:
        job.wait_for_file("blocked")
        time.sleep(1)
        job.processes[0].send_signal(signal.SIGINT)
        pressed = time.monotonic() - job.started
        first, second = job.wait(60)
    finally:
        job.kill()
    assert "KeyboardInterrupt" in first.output and first.code not in (0, None), first.output
    assert first.seconds - pressed < PROMPT
    assert second.code == 1 and second.seconds - pressed < PROMPT, second.output
    assert "rank 0" in second.output and "KeyboardInterrupt" in second.output


def test_own_handler_of_the_signal_is_left_alone() -> None:
    job = ranks.start(block_for_ever, 2, True)
    try:
        job.wait_for_file("blocked")
        time.sleep(0.5)
        job.processes[0].send_signal(signal.SIGINT)
        first, second = job.wait(60)
    finally:
        job.kill()
    assert (first.code, second.code) == (0, 0), first.output + second.output
    assert first.value == f"[2.0, 2.0] [{int(signal.SIGINT)}]"


def test_keyboard_interrupt_while_starting() -> None:
    job = ranks.start(
        "import ranks, hora.torch as hvd; ranks.signal_file('starting'); hvd.init()",
        1,
        env={"HORA_SIZE": "2", "PYTHONPATH": os.pathsep.join([str(ranks.HERE), *sys.path[1:]])},
    )
    try:
        job.wait_for_file("starting")
        time.sleep(0.5)
        job.processes[0].send_signal(signal.SIGINT)
        (outcome,) = job.wait(30)
    finally:
        job.kill()
    assert outcome.code == -signal.SIGINT, outcome.output


def test_a_signal_handler_comes_between() -> None:
    """It runs when a call is about to begin, and takes away what the call is about."""
    done = run_alone(
        """
import ctypes, functools, signal
from hora import _core

press = functools.partial(ctypes.PyDLL(None)["raise"], signal.SIGUSR1)

class Number:
    "0; when C code reads it, a signal becomes due, of which Python learns in C code as well."
    __index__ = staticmethod(press)

def start():
    _core.init(0, 1, None, None, 0, 0, 0)

def restart():
    _core.shutdown()
    start()

def refused(handler, call, text):
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(handler()))
    try:
        call()
    except ValueError as error:
        assert text in str(error) and len(seen) == 1, (error, seen)
    else:
        raise AssertionError(text)

_core.install_interrupt()
start()
numbers = [Number()]
for call in (functools.partial(_core.exchange, "x", numbers),
             functools.partial(_core.add_process_set, numbers)):
    refused(restart, call, "not been initialized")
    assert _core.process_set_ids() == [0] and _core.exchange("y", [7]) == [[7]]
    refused(_core.shutdown, call, "not been initialized")
    start()
_core.shutdown()
comm = _core.Comm(0, 1)
arguments = [_core.CALLS.index("barrier"), None, None, -1, None, None, 0, 0, 0, 1, 1, 0, None, True]
request = comm.call(*arguments)
pair = press, functools.partial(request.wait)  # with no Python code between the two
refused(request.wait, lambda: list(map(functools.partial.__call__, pair)), "been waited for")
number = Number()
refused(comm.close, functools.partial(comm.split, number, 0), "closed")
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


# ---- Launchers and processes ---------------------------------------------------------------------


def who_am_i() -> tuple[int, ...]:
    import hora.torch as hvd
    import torch

    hvd.init()
    total = hvd.allreduce(torch.tensor([hvd.rank()]), op=hvd.Sum).item()
    return hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), total


def test_torchrun_variables() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def variables(rank: int, size: int, meeting: str) -> dict[str, str]:
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": meeting,
        }

    result = ranks.run(who_am_i, 3, variables=variables)
    assert result == [(rank, 3, rank, 3, 3) for rank in range(3)]


def use_in_forked_child() -> str:
    import multiprocessing

    import hora.torch as hvd
    import torch

    hvd.init()
    kept = hvd.allgather(torch.ones(3))

    def child(pipe: Any) -> None:
        try:
            assert not hvd.is_initialized()
            assert kept.sum().item() == 3 * hvd.size()  # reading a result is fine
            hvd.allreduce(torch.ones(2))
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
        else:
            pipe.send("no error")

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    answer = here.recv() if here.poll(30) else "no answer"
    process.join(30)
    assert process.exitcode == 0
    hvd.allreduce(torch.ones(2))  # the parent goes on
    return answer


def test_forked_child_gets_an_error() -> None:
    for answer in ranks.run(use_in_forked_child, 2):
        assert "fork" in answer


def load_data_in_workers() -> float:
    import hora.torch as hvd
    import torch

    hvd.init()
    data = torch.utils.data.TensorDataset(torch.arange(16.0))
    total = 0.0
    for (part,) in torch.utils.data.DataLoader(data, batch_size=4, num_workers=2):
        total += hvd.allreduce(part.sum(), op=hvd.Sum).item()
    return total


def test_data_loader_workers() -> None:
    assert ranks.run(load_data_in_workers, 2) == [240.0, 240.0]
