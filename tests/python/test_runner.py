"""hora.run(function, ...): results by rank, and errors that say where they come from. And `hora run`
with horovodrun's options."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
from launching import clean_env, hora_run, processes_with, shell

import hora
from hora.runner import RankError, arguments, config_file, function, launch, mpi
from hora.runner.hosts import (
    HostError, forwarded_environment, interface_address, is_local, own_names, parse_hostfile,
)  # fmt: skip

# ---- Functions --------------------------------------------------------------------------------------


def place(scale: int, offset: int = 0) -> tuple[int, int]:
    rank = int(os.environ["HORA_RANK"])
    print(f"this is {rank}")
    return rank * scale + offset, int(os.environ["HORA_SIZE"])


def test_results_by_rank(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    got = hora.run(place, (10,), {"offset": 3}, num_proc=3, output_filename=str(tmp_path / "out"))
    assert got == [(3, 3), (13, 3), (23, 3)]
    assert sorted(capfd.readouterr().out.splitlines()) == [f"[{r}]<stdout>:this is {r}" for r in range(3)]
    assert (tmp_path / "out" / "rank.2" / "stdout").read_text() == "this is 2\n"


def test_defaults_and_old_names() -> None:
    assert hora.run(place, (1,)) == [(0, 1)]
    with pytest.warns(DeprecationWarning, match="num_proc"):
        assert hora.run(place, (1,), np=2, prefix=False) == [(0, 2), (1, 2)]
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match="--min-np"):
        hora.run(place, (1,), num_proc=2, min_np=3)


def sums() -> float:
    import torch

    import hora.torch as hvd

    hvd.init()
    return hvd.allreduce(torch.tensor(float(hvd.rank())), op=hvd.Sum).item()


def test_ranks_find_each_other() -> None:
    pytest.importorskip("torch")
    assert hora.run(sums, num_proc=3) == [3.0] * 3


def big(size: int, data: bytes) -> tuple[bytes, bytes]:
    assert sys.stdin.read() == "" and len(data) == size
    return data[::-1], os.urandom(size)


def test_large_arguments_and_results() -> None:
    data = bytes(range(256)) * 20000
    for turned, noise in hora.run(big, (len(data), data), num_proc=2):
        assert turned == data[::-1] and len(noise) == len(data)


def fail(how: str) -> Any:
    rank = int(os.environ["HORA_RANK"])
    if rank != 1:
        return rank
    if how == "error":
        raise LookupError("not to be found")
    if how == "lock":
        return threading.Lock()
    if how == "exit":
        sys.exit(0)
    if how == "gone":
        os._exit(0)
    if how == "class":
        class Odd(Exception):
            def __init__(self, one: int, two: int) -> None:
                super().__init__("odd")

        raise Odd(1, 2)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how, text, cause", [
    ("error", "LookupError: not to be found", LookupError),
    ("lock", "cannot be pickled", TypeError),
    ("exit", "SystemExit: 0", SystemExit),
    ("gone", "rank 1 of 2 ended without a result", type(None)),
    ("class", "odd", type(None)),
    ("kill", "rank 1 of 2 on host {host} was ended by SIGKILL", type(None)),
])
def test_errors_name_the_rank(how: str, text: str, cause: type) -> None:
    mark = f"hora-test-{os.getpid()}-{how}"
    text = text.format(host=re.escape(socket.gethostname()))  # not "localhost"
    with pytest.raises(RankError, match=text) as caught:
        hora.run(fail, (how,), num_proc=2, env={"TEST_MARK": mark})
    assert caught.value.rank == 1 and isinstance(caught.value.__cause__, cause)
    if how in ("error", "class"):
        assert "test_runner.py" in caught.value.traceback and "in fail" in str(caught.value)
        assert caught.value.host
    assert processes_with(mark) == []


def one_fails() -> None:
    import torch

    import hora.torch as hvd

    hvd.init()
    if hvd.rank() == 2:
        raise ArithmeticError("the loss is not a number")
    hvd.allreduce(torch.ones(3))


def test_cause_comes_before_its_consequences() -> None:
    """All ranks fail, two of them because of the third."""
    pytest.importorskip("torch")
    with pytest.raises(RankError, match="rank 2 of 3 .*the loss is not a number") as caught:
        hora.run(one_fails, num_proc=3)
    assert isinstance(caught.value.__cause__, ArithmeticError)


def test_from_another_thread() -> None:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(hora.run(place, (2,), num_proc=2)))
    thread.start()
    thread.join(60)
    assert got == [[(0, 2), (2, 2)]]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_environment_and_executable(tmp_path: Path) -> None:
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nMINE=by_wrapper exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    got = hora.run(os.getenv, ("MINE",), executable=str(wrapper), num_proc=2)
    assert got == ["by_wrapper"] * 2
    assert hora.run(os.getenv, ("COLOUR",), env={"COLOUR": "red"}) == ["red"]
    with pytest.raises(RankError, match="could not be started: .*no_such"):
        hora.run(place, (1,), executable="/no_such_python")


@pytest.mark.parametrize("given, text", [
    ({"hosts": "a:2", "hostfile": "b"}, "one of hosts"),
    ({"use_gloo": True, "use_mpi": True}, "one of use_gloo"),
    ({"num_proc": 3, "hosts": "localhost:2"}, "has 2 slots"),
    ({"num_proc": 0}, "-np 0"),
    ({"options": ["--no-such-option"]}, "--no-such-option"),
    ({"hosts": "elsewhere:2", "use_mpi": True}, "this host only"),
])
def test_what_cannot_be(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        hora.run(place, (1,), **given)


SCRIPT = """
import sys
import hora
from collections import namedtuple

base = 5
Pair = namedtuple("Pair", "rank text")

def work(factor):
    return Pair(int(__import__("os").environ["HOROVOD_RANK"]) * factor + base, "of the script")

{jupyter}
inner = [hora.run(lambda: work(3), num_proc=2), hora.run(work, (2,), num_proc=2)]
print(inner == [[Pair(5, "of the script"), Pair(8, "of the script")], [(5, "of the script"), (7, "of the script")]])
"""

JUPYTER = """
import io
class Stream(io.TextIOBase):
    "As a notebook's: text only, nothing below it."
    def __init__(self, below): self.below = below
    def write(self, text): return self.below.write(text)
    def flush(self): self.below.flush()
sys.stdout, sys.stderr = Stream(sys.stdout), Stream(sys.stderr)
"""


@pytest.mark.parametrize("how", ["script", "notebook"])
def test_functions_of_a_script(how: str, tmp_path: Path) -> None:
    """No guard with __name__ is needed: the script itself is not run again."""
    pytest.importorskip("cloudpickle")
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(jupyter=JUPYTER if how == "notebook" else ""))
    given = [str(path)] if how == "script" else ["-c", path.read_text()]
    done = subprocess.run([sys.executable, *given], capture_output=True, text=True, timeout=120,
                          env=clean_env(), check=False)
    assert done.returncode == 0 and done.stdout == "True\n", done.stdout + done.stderr


def test_without_cloudpickle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ValueError, match="pip install cloudpickle"):
        function.pack(lambda: 1, (), None)
    head, _, call = function.pack(place, (1,), None).partition(b"\n")
    assert json.loads(head)["path"] and b"test_runner" in call


def test_signal_ends_ranks_and_caller() -> None:
    mark = f"hora-test-{os.getpid()}-call"
    program = "import hora, time\nhora.run(exec, ('print(\"ready\"); import time; time.sleep(300)',), num_proc=2)"
    for number, code in ((signal.SIGTERM, -15), (signal.SIGINT, -2)):
        process = subprocess.Popen([sys.executable, "-c", program], env=clean_env(TEST_MARK=mark),
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(2):
            assert b"ready" in process.stdout.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert (b"KeyboardInterrupt" in err) == (number == signal.SIGINT)
        assert processes_with(mark) == []


# ---- MPI --------------------------------------------------------------------------------------------

needs_mpirun = pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun in PATH")


@needs_mpirun
def test_ranks_by_mpirun() -> None:
    done = hora_run("-np", "2", "--mpi", "--mpi-args=--oversubscribe", "--binding-args=--bind-to none",
                    "-x", "COLOUR=red", *shell("echo $COLOUR ${#HORA_SECRET}; cat /proc/[0-9]*/cmdline | "
                                               "grep -acf <(echo $HORA_SECRET); true"), timeout=120)
    lines = [line.rpartition(":")[2] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and sorted(lines) == ["0", "0", "red 64", "red 64"], done
    program = "from hora import Communicator; comm = Communicator(); comm.barrier(); " \
        "print(comm.rank, comm.size)"
    done = hora_run("-np", "2", "--mpi", sys.executable, "-c", program, timeout=120, PYTHONUNBUFFERED="")
    lines = [line.rpartition(":")[2] for line in done.stdout.splitlines()]
    assert done.returncode == 0 and sorted(lines) == ["0 2", "1 2"], done.stdout + done.stderr


@needs_mpirun
def test_function_by_mpirun() -> None:
    where = {"num_proc": 2, "use_mpi": True}
    assert hora.run(os.getenv, ("OMPI_COMM_WORLD_SIZE", "2"), **where) == ["2", "2"]
    with pytest.raises(RankError, match="ValueError: math domain error") as caught:
        hora.run(__import__("math").sqrt, (-1,), **where)
    assert isinstance(caught.value.__cause__, ValueError)


def test_mpi_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "mpirun").write_text("#!/bin/sh\necho something else\n")
    (tmp_path / "mpirun").chmod(0o755)
    with pytest.raises(HostError, match="something else"):
        mpi.implementation(str(tmp_path / "mpirun"))
    done = hora_run("-np", "2", "--mpi", "true", PATH=str(tmp_path / "empty"))
    assert done.returncode == 2 and "no mpirun in PATH" in done.stderr


def test_mpich_command_line() -> None:
    args = launch.parse_args(["-np", "3", "-H", "a:2,b:1", "--network-interfaces", "eth1,eth0", "true"])
    job = launch.make_template(args)
    job.hosts = launch.find_hosts(args)
    assert mpi.hydra(args, job, ["A", "B"]) == [
        "-np", "3", "-hosts", "a:2,b:1", "-bind-to", "none", "-prepend-rank", "-iface", "eth1",
        "-genvlist", "A,B"]  # fmt: skip


# ---- Options of horovodrun ---------------------------------------------------------------------------


def given(*words: str) -> dict[str, str]:
    args = launch.parse_args([*words, "-np", "1", "true"])
    arguments.check_values(args)
    return arguments.settings(args)


@pytest.mark.parametrize("words, setting", [
    (["--fusion-threshold-mb", "0"], {"HORA_FUSION_THRESHOLD": "0"}),
    (["--start-timeout", "9"], {"HORA_START_TIMEOUT": "9.0"}),
    (["--timeout", "9", "--gloo-timeout-seconds", "3"], {"HORA_TIMEOUT": "9.0"}),
    (["--gloo-timeout-seconds", "9"], {}),
    (["--network-interface", "a", "--network-interface", "b", "--network-interfaces", "c,a"],
     {"HORA_INTERFACE": "a,b,c"}),
    (["--timeline-filename", "t", "--timeline-mark-cycles"],
     {"HORA_TIMELINE": "t", "HORA_TIMELINE_MARK_CYCLES": "1"}),
    (["--no-timeline-mark-cycles"], {"HORA_TIMELINE_MARK_CYCLES": "0"}),
    (["--no-stall-check"], {"HORA_STALL_CHECK_DISABLE": "1"}),
    (["--stall-check"], {"HORA_STALL_CHECK_DISABLE": "0"}),
    (["--stall-check-warning-time-seconds", "5", "--stall-check-shutdown-time-seconds", "7"],
     {"HORA_STALL_CHECK_TIME_SECONDS": "5.0", "HORA_STALL_SHUTDOWN_TIME_SECONDS": "7.0"}),
    (["--autotune", "--autotune-log-file", "l", "--autotune-warmup-samples", "2",
      "--autotune-steps-per-sample", "3"],
     {"HORA_AUTOTUNE": "1", "HORA_AUTOTUNE_LOG": "l", "HORA_AUTOTUNE_WARMUP_SAMPLES": "2",
      "HORA_AUTOTUNE_STEPS_PER_SAMPLE": "3"}),
    (["--no-autotune"], {"HORA_AUTOTUNE": "0"}),
    (["--log-level", "INFO", "--log-without-timestamp"],
     {"HORA_LOG_LEVEL": "INFO", "HORA_LOG_HIDE_TIME": "1"}),
    (["--log-hide-timestamp"], {"HORA_LOG_HIDE_TIME": "1"}),
    (["--no-log-hide-timestamp"], {"HORA_LOG_HIDE_TIME": "0"}),
    (["--tcp"], {"NCCL_IB_DISABLE": "1"}),
    (["--autotune-bayes-opt-max-samples", "5"], {"HORA_AUTOTUNE_MAX_CANDIDATES": "5"}),
    (["--hierarchical-allreduce"], {"HORA_HIERARCHICAL_ALLREDUCE": "1"}),
    (["--no-hierarchical-allreduce"], {"HORA_HIERARCHICAL_ALLREDUCE": "0"}),
    (["--thread-affinity", "0,4"], {"HORA_THREAD_AFFINITY": "0,4"}),
    (["--num-nccl-streams", "2"], {"HORA_NUM_NCCL_STREAMS": "2"}),
    (["--gloo", "--verbose", "-p", "2222", "-i", "key", "--disable-cache"], {}),
])
def test_options_that_are_settings(words: list[str], setting: dict[str, str]) -> None:
    assert given(*words) == setting


def test_settings_of_options_are_in_the_table() -> None:
    table = (Path(__file__).parents[2] / "src" / "util" / "settings.def").read_text()
    for _, name, _ in arguments.SETTINGS:
        assert name == "NCCL_IB_DISABLE" or f'"{name.removeprefix("HORA_")}"' in table, name


@pytest.mark.parametrize("words", [
    ["--cycle-time-ms", "3.5"], ["--cache-capacity", "2048"],
    ["--no-hierarchical-allgather"], ["--torus-allreduce"],
    ["--autotune-gaussian-process-noise", "0.5"], ["--mpi-threads-disable"], ["--disable-cache"],
    ["--no-mpi-threads-disable"], ["--tcp"], ["--gloo-timeout-seconds", "60"],
    ["--mpi-args=--x"], ["--binding-args=--y"],
])
def test_options_that_change_nothing_say_so(words: list[str]) -> None:
    args = launch.parse_args([*words, "-np", "1", "true"])
    (note,) = arguments.notes(args)
    assert note.startswith(words[0].partition("=")[0].replace("--no-", "--") + ": "), note
    assert arguments.notes(launch.parse_args(["-np", "1", "true"])) == []


def test_note_is_printed_and_the_job_runs() -> None:
    done = hora_run("-np", "1", "--cycle-time-ms", "5", *shell("echo ran"))
    assert done.stdout == "[0]<stdout>:ran\n"
    assert done.stderr.startswith("hora run: --cycle-time-ms: ")


@pytest.mark.parametrize("words, text", [
    (["-np", "2", "--jsrun"], "jsrun -n 2"),
    (["-np", "2", "--fusion-threshold-mb", "-1"], "--fusion-threshold-mb -1"),
    (["-np", "2", "--min-np", "3"], "--min-np"),
    (["-np", "2", "--max-np", "1"], "--max-np"),
    (["-np", "2", "--mpi", "--min-np", "1"], "leave --mpi out"),
    (["-np", "2", "--min-np", "1", "--blacklist-cooldown-range", "5", "2"], "cooldown"),
])
def test_options_that_cannot_be(words: list[str], text: str) -> None:
    done = hora_run(*words, "true")
    assert done.returncode == 2 and text in done.stderr, done.stderr


@pytest.mark.parametrize("words", [["--log-level", "loud"], ["--gloo", "--mpi"], ["--no-such"],
                                   ["-H", "a", "-hostfile", "b"], ["--autotune", "--no-autotune"]])
def test_options_that_argparse_refuses(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        launch.parse_args([*words, "-np", "2", "true"])


def test_timestamps() -> None:
    done = hora_run("-np", "1", "-prefix-timestamp", *shell("echo one; echo two"))
    lines = done.stdout.splitlines()
    assert [line.rpartition("[0]<stdout>:")[2] for line in lines] == ["one", "two"]
    import time

    for line in lines:
        time.strptime(line.partition("[0]")[0], "%a %b %d %H:%M:%S %Y")


def test_check_build_and_version() -> None:
    done = hora_run("--check-build")
    assert done.returncode == 0 and done.stdout.startswith(f"hora v{hora.__version__}:")
    assert "[X] Gloo" in done.stdout and "[ ] TensorFlow" in done.stdout
    assert hora_run("-cb").stdout == done.stdout
    assert hora_run("-v").stdout == f"hora {hora.__version__}\n"


def test_host_that_does_not_come_up(tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 300\n")
    (tmp_path / "ssh").chmod(0o755)
    done = hora_run("-H", "127.0.0.9:1,localhost:1", "--ssh", str(tmp_path / "ssh"), "--start-timeout",
                    "1", "-x", "BIG=" + "x" * 100000, *shell("sleep 300"))
    assert done.returncode == 255
    assert "no rank was started on 127.0.0.9 within 1 s" in done.stderr


FORWARDED = ("DATA_DIR", "OMP_X", "HTTPS_PROXY", "LD_PRELOAD", "PYTHONHASHSEED", "CONDA_PREFIX", "LANG",
             "HORA_TIMEOUT", "HOROVOD_CYCLE_TIME", "PATH", "NCCL_DEBUG", "AWS_REGION", "MPICH_X", "lower")
KEPT = ("HOSTNAME", "HOST", "SSH_AUTH_SOCK", "DISPLAY", "XAUTHORITY", "TMPDIR", "PWD", "OLDPWD", "SHLVL",
        "_", "XDG_RUNTIME_DIR", "BASH_FUNC_f%%", "DBUS_SESSION_BUS_ADDRESS", "HOME", "USER", "LOGNAME",
        "SHELL", "HORA_RANK", "HOROVOD_SIZE", "HORA_LOCAL_RANK", "HORA_SECRET", "HORA_RENDEZVOUS",
        "HOROVOD_HOSTNAME", "HORA_ELASTIC_ID", "HOROVOD_ELASTIC", "OMPI_COMM_WORLD_RANK", "PMI_RANK",
        "PMIX_NAMESPACE", "SLURM_PROCID", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR",
        "TORCHELASTIC_RUN_ID", "GROUP_RANK", "a.b")  # fmt: skip


def test_environment_of_other_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FORWARDED + KEPT:
        monkeypatch.setenv(name, "7")
    env = forwarded_environment([])
    assert [name for name in FORWARDED if env.get(name) != "7"] == []
    assert [name for name in KEPT if name in env] == []
    assert forwarded_environment(["TMPDIR", "HOME=/x"]) | {"TMPDIR": "7", "HOME": "/x"} == \
        forwarded_environment(["TMPDIR", "HOME=/x"])


def test_own_names_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[None] = []
    monkeypatch.setattr(socket, "getfqdn", lambda: asked.append(None) or "me.example.org")
    own_names.cache_clear()
    try:
        assert [is_local(n) for n in ("me.example.org", "localhost", "other")] == [True, True, False]
        assert len(asked) == 1
    finally:
        own_names.cache_clear()


def test_interface_address() -> None:
    assert interface_address(["no0", "lo"]) == "127.0.0.1"
    assert interface_address(["127.0.0.1"]) == "127.0.0.1"
    assert interface_address(["no0", "192.0.2.77"]) is None
    assert interface_address(None) is None


def test_horovods_variables_are_there() -> None:
    done = hora_run("-np", "2", "-q", *shell("env | grep ^HOROVOD_ | sort | tr '\\n' ' '"))
    expected = ("HOROVOD_CROSS_RANK=0 HOROVOD_CROSS_SIZE=1 "
                f"HOROVOD_HOSTNAME={socket.gethostname()} "
                "HOROVOD_LOCAL_RANK={0} HOROVOD_LOCAL_SIZE=2 HOROVOD_RANK={0} HOROVOD_SIZE=2 ")
    assert done.stdout in (expected.format(0) + expected.format(1), expected.format(1) + expected.format(0))


def test_hostfile_of_both_forms(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("a slots=2 # one\n\n  b:3\nc slots = 4 max_slots=9\nd\na:1\n")
    hosts = parse_hostfile(str(tmp_path / "hosts"))
    assert [(host.name, host.slots) for host in hosts] == [("a", 3), ("b", 3), ("c", 4), ("d", 1)]


# ---- The config file ---------------------------------------------------------------------------------

CONFIG = """
controller: gloo
verbose: true
params:
    fusion_threshold_mb: 32
    cycle_time_ms: 10
    hierarchical_allreduce: true
autotune:
    enabled: true
    log_file: log.csv
timeline:
    filename: timeline.json
    mark_cycles: true
stall_check:
    enabled: false
    warning_time_seconds: 120
library_options:
    gloo_timeout_seconds: 50
    mpi_threads_disable: true
logging:
    level: INFO
    with_timestamp: false
elastic:
    min_np: 2
    blacklist_cooldown_range: [3, 5]
"""

EXPECTED = {
    "HORA_FUSION_THRESHOLD": "33554432", "HORA_AUTOTUNE": "1", "HORA_AUTOTUNE_LOG": "log.csv",
    "HORA_TIMELINE": "timeline.json", "HORA_TIMELINE_MARK_CYCLES": "1",
    "HORA_STALL_CHECK_DISABLE": "1", "HORA_STALL_CHECK_TIME_SECONDS": "120.0",
    "HORA_LOG_LEVEL": "INFO", "HORA_LOG_HIDE_TIME": "1", "HORA_HIERARCHICAL_ALLREDUCE": "1",
}  # fmt: skip


def read(path: Path, *words: str) -> tuple[Any, list[str]]:
    args = launch.parse_args([*words, "-np", "3", "--config-file", str(path), "true"])
    return args, config_file.apply(args, args.config_file)


def test_config_file_in_yaml(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG + "unknown: 3\n")
    args, notes = read(path)
    assert arguments.settings(args) == EXPECTED
    assert args.min_num_proc == 2 and args.cooldown_range == [3.0, 5.0] and args.verbose and args.use_gloo
    assert len(notes) == 1 and "unknown" in notes[0]
    assert [note.split(":")[0] for note in arguments.notes(args)] == [
        "--cycle-time-ms", "--gloo-timeout-seconds", "--mpi-threads-disable"]


@pytest.mark.parametrize("text, setting", [
    ({"logging": {"hide_timestamp": True}}, {"HORA_LOG_HIDE_TIME": "1"}),
    ({"logging": {"hide_timestamp": False}}, {"HORA_LOG_HIDE_TIME": "0"}),
    ({"logging": {"with_timestamp": True}}, {"HORA_LOG_HIDE_TIME": "0"}),
    ({"stall_check": {"enabled": None}}, {}),
])
def test_negated_keys(tmp_path: Path, text: dict[str, Any], setting: dict[str, str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(text))
    args, notes = read(path)
    assert arguments.settings(args) == setting and notes == []


def test_config_file_in_json_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"params": {"fusion_threshold_mb": 1}, "stall_check": {"enabled": True},
                                "hosts": "localhost:3", "network_interfaces": ["a", "b"]}))
    args, _ = read(path)
    assert arguments.settings(args) == {
        "HORA_FUSION_THRESHOLD": "1048576", "HORA_STALL_CHECK_DISABLE": "0", "HORA_INTERFACE": "a,b"}
    assert args.hosts == "localhost:3"
    # The command line comes first, also where it says no or zero.
    args, _ = read(path, "--fusion-threshold-mb", "0", "--no-stall-check", "-H", "localhost:9")
    assert arguments.settings(args)["HORA_FUSION_THRESHOLD"] == "0"
    assert arguments.settings(args)["HORA_STALL_CHECK_DISABLE"] == "1" and args.hosts == "localhost:9"
    done = hora_run("-np", "2", "--config-file", str(path), "-q", *shell("echo $HORA_FUSION_THRESHOLD"))
    assert done.stdout == "1048576\n" * 2


@pytest.mark.parametrize("text, what", [
    ("{", "config file"), ('["a"]', "sections"), ('{"params": 3}', "keys"),
    ('{"controller": "none"}', "controller"), ('{"params": {"fusion_threshold_mb": "x"}}', "fusion_threshold_mb"),
    ('{"autotune": {"enabled": 7}}', "true or false"), ('{"stall_check": {"enabled": 7}}', "true or false"),
])
def test_config_files_that_are_none(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(HostError, match=what):
        read(path)


def test_yaml_without_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    path = tmp_path / "config.yaml"
    path.write_text(textwrap.dedent("params:\n  fusion_threshold_mb: 1\n"))
    with pytest.raises(HostError, match="pip install pyyaml"):
        read(path)
    with pytest.raises(HostError, match="No such file"):
        read(tmp_path / "nothing")
