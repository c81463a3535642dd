"""`hora run`: environment, output, exit codes, and above all that nothing is left."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import HORA, clean_env, hora_run, processes_with, shell, wait_until


def test_environment_of_each_rank() -> None:
    script = "echo $HORA_RANK $HORA_SIZE $HORA_LOCAL_RANK $HORA_LOCAL_SIZE $HORA_CROSS_RANK " \
        "$HORA_CROSS_SIZE ${#HORA_SECRET} ${HORA_RENDEZVOUS%%-*} $OMP_NUM_THREADS"
    done = hora_run("-np", "3", *shell(script))
    cores = max(1, len(os.sched_getaffinity(0)) // 3)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        f"[{r}]<stdout>:{r} 3 {r} 3 0 1 64 unix:hora {cores}" for r in range(3)]


def test_ranks_of_one_host_know_its_name() -> None:
    """As hora perf --calibrate does, which files its times by it."""
    program = "from hora import _core, Communicator; c = Communicator(); print(c.host(0))"
    done = hora_run("-np", "2", sys.executable, "-c", program)
    assert sorted(done.stdout.splitlines()) == [
        f"[{rank}]<stdout>:{socket.gethostname()}" for rank in range(2)], done.stderr


def test_secret_is_nowhere_on_a_command_line() -> None:
    done = hora_run("-np", "2", *shell("sleep 0.3; cat /proc/[0-9]*/cmdline | grep -acf <(echo $HORA_SECRET)"))
    assert [line.rpartition(":")[2] for line in done.stdout.splitlines()] == ["0", "0"]


def test_given_environment_wins() -> None:
    done = hora_run("-np", "1", "-x", "COLOUR=red", "--log-level", "debug", "--fusion-threshold-mb", "2",
                    *shell("echo $OMP_NUM_THREADS $COLOUR $HORA_LOG_LEVEL $HORA_FUSION_THRESHOLD"),
                    OMP_NUM_THREADS="7")
    assert done.stdout == "[0]<stdout>:7 red debug 2097152\n"


def test_lines_are_whole_and_marked() -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do printf a; sleep 0.01; printf 'b %050000d\\n' $i; done; " \
        "echo to stderr >&2; printf 'no end'"
    done = hora_run("-np", "3", *shell(script))
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 10
    for rank in range(3):
        own = [line for line in lines if line.startswith(f"[{rank}]<stdout>:")]
        assert own == [f"[{rank}]<stdout>:ab {i:050000d}" for i in range(1, 10)] + [
            f"[{rank}]<stdout>:no end"]
    assert sorted(done.stderr.splitlines()) == [f"[{r}]<stderr>:to stderr" for r in range(3)]


def test_no_prefix() -> None:
    done = hora_run("-np", "2", "-q", *shell("echo plain; echo other >&2"))
    assert (done.stdout, done.stderr) == ("plain\nplain\n", "other\nother\n")


def test_output_files(tmp_path: Path) -> None:
    done = hora_run("-np", "2", "--output-filename", str(tmp_path / "out"),
                    *shell("echo rank $HORA_RANK; echo error >&2"))
    assert "[1]<stdout>:rank 1" in done.stdout
    for rank in range(2):
        folder = tmp_path / "out" / f"rank.{rank}"
        assert (folder / "stdout").read_text() == f"rank {rank}\n"
        assert (folder / "stderr").read_text() == "error\n"


def test_bytes_that_are_no_text_pass() -> None:
    done = subprocess.run([*HORA, "run", "-np", "1", *shell("printf '\\xff\\x00\\xfe\\n'")],
                          capture_output=True, timeout=60, check=False)
    assert done.stdout == b"[0]<stdout>:\xff\x00\xfe\n"


def test_exit_code_is_that_of_the_first_failure() -> None:
    begin = time.monotonic()
    done = hora_run("-np", "3", "--grace", "0.2",
                    *shell("[ $HORA_RANK = 1 ] && exit 7; sleep 100; exit 9"))
    assert done.returncode == 7
    assert "rank 1 of 3" in done.stderr and "exit code 7" in done.stderr
    assert time.monotonic() - begin < 20


def test_others_may_end_by_themselves() -> None:
    done = hora_run("-np", "2", "--grace", "20",
                    *shell("[ $HORA_RANK = 1 ] && exit 3; sleep 0.5; echo my own error; exit 4"))
    assert done.returncode == 3
    assert "my own error" in done.stdout


def test_killed_rank() -> None:
    done = hora_run("-np", "2", "--grace", "0", *shell("[ $HORA_RANK = 0 ] && kill -9 $$; sleep 100"))
    assert done.returncode == 128 + 9
    assert "rank 0 of 2" in done.stderr and "SIGKILL" in done.stderr


def test_rank_that_ignores_sigterm_is_killed() -> None:
    begin = time.monotonic()
    done = hora_run("-np", "2", "--grace", "0",
                    *shell("trap '' TERM; [ $HORA_RANK = 0 ] && exit 5; while :; do sleep 1; done"))
    assert done.returncode == 5
    assert time.monotonic() - begin < 20


def test_program_that_does_not_exist() -> None:
    done = hora_run("-np", "2", "/no/such/program")
    assert done.returncode == 127
    assert "/no/such/program" in done.stderr


def start(mark: str, script: str, *args: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([*HORA, "run", "-np", "2", *args, *shell(script)],
                               env=clean_env(TEST_MARK=mark), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    for _ in range(2):
        assert b"ready" in process.stdout.readline()
    return process


FAMILY = "(setsid sleep 300 &) ; (sleep 300 &) ; echo ready; sleep 300; echo on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_all(number: signal.Signals) -> None:
    mark = f"hora-test-{os.getpid()}-{number}"
    process = start(mark, FAMILY)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert processes_with(mark) == []


def test_signal_reaches_the_ranks() -> None:
    mark = f"hora-test-{os.getpid()}-trap"
    process = start(mark, "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert out.count(b"saved") == 2
    assert processes_with(mark) == []


def test_killed_launcher_leaves_nothing() -> None:
    mark = f"hora-test-{os.getpid()}-kill"
    process = start(mark, FAMILY)
    assert len(processes_with(mark)) >= 8
    process.kill()
    process.communicate(timeout=30)
    assert wait_until(lambda: processes_with(mark) == [])


def test_descendants_are_gone_after_a_good_end() -> None:
    mark = f"hora-test-{os.getpid()}-end"
    done = hora_run("-np", "2", *shell("(setsid sleep 300 &); (sleep 300 &); true"), TEST_MARK=mark)
    assert done.returncode == 0
    assert processes_with(mark) == []


def test_more_ranks_than_slots() -> None:
    done = hora_run("-np", "3", "-H", "localhost:2", "true")
    assert done.returncode == 2
    assert "localhost:2 has 2 slots" in done.stderr and "-H localhost:3" in done.stderr


@pytest.mark.parametrize("args", [[], ["-np", "0"], ["-np", "2", "-H", ":3"], ["-np", "1"],
                                  ["-np", "2", "--hostfile", "/no/such/file"]])
def test_bad_command_lines(args: list[str]) -> None:
    command = [] if args == ["-np", "1"] else ["true"]
    done = hora_run(*args, *command)
    assert done.returncode == 2
    assert "hora run: " in done.stderr


# ---- Several hosts, behind something that looks like ssh -------------------------------------------

@pytest.fixture
def fake_ssh(tmp_path: Path) -> str:
    """Runs the command here; writes its arguments down, as a reader of `ps` would see them."""
    path = tmp_path / "ssh"
    path.write_text(
        "#!/bin/bash\n"
        f'printf "%s " "$@" >>{tmp_path}/log\n'
        "while [ \"${1:0:1}\" = - ]; do shift 2; done\n"
        "[ $1 = unreachable ] && { echo no route >&2; exit 255; }\n"
        'echo "welcome to $1"\n'
        'cd / && env -i PATH="$PATH" HOME=/ bash -c "$2"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_hosts_behind_ssh(fake_ssh: str, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("# two forms\nlocalhost slots=1\n127.0.0.2:2  # the other\n")
    script = "echo $HORA_RANK $HORA_LOCAL_RANK/$HORA_LOCAL_SIZE $HORA_CROSS_RANK/$HORA_CROSS_SIZE " \
        "$HORA_HOSTNAME ${HORA_RENDEZVOUS%:*} ${#HORA_SECRET} $PWD"
    done = hora_run("--hostfile", str(hosts), "--ssh", fake_ssh, *shell(script))
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"[0]<stdout>:0 0/1 0/2 {socket.gethostname()} tcp:127.0.0.1 64 {os.getcwd()}",
        f"[1]<stdout>:1 0/2 1/2 127.0.0.2 tcp:127.0.0.1 64 {os.getcwd()}",
        f"[2]<stdout>:2 1/2 0/1 127.0.0.2 tcp:127.0.0.1 64 {os.getcwd()}",
    ]
    assert "SECRET" not in (tmp_path / "log").read_text()
    assert "BatchMode=yes" in (tmp_path / "log").read_text()


def test_failure_on_another_host(fake_ssh: str) -> None:
    mark = f"hora-test-{os.getpid()}-ssh"
    done = hora_run("-H", "localhost,127.0.0.2", "--ssh", fake_ssh, "--grace", "0", "-x",
                    f"TEST_MARK={mark}", *shell("[ $HORA_RANK = 1 ] && exit 6; sleep 300"))
    assert done.returncode == 6
    assert "rank 1 of 2 on host 127.0.0.2" in done.stderr
    assert processes_with(mark) == []


def test_host_that_cannot_be_reached(fake_ssh: str) -> None:
    done = hora_run("-H", "unreachable:2,localhost:1", "--ssh", fake_ssh, "--grace", "0",
                    *shell("sleep 300"))
    assert done.returncode == 255
    assert "lost host unreachable" in done.stderr and "BatchMode" in done.stderr


def test_killed_launcher_ends_ranks_behind_ssh(fake_ssh: str) -> None:
    mark = f"hora-test-{os.getpid()}-far"
    process = start(mark, FAMILY, "-H", "127.0.0.2:2", "--ssh", fake_ssh, "-x", "TEST_MARK")
    process.kill()
    process.communicate(timeout=30)
    assert wait_until(lambda: processes_with(mark) == [])


# ---- Ranks that really find each other -----------------------------------------------------------

CHECK = [*HORA, "check", "--algo", "auto"]


def test_ranks_find_each_other() -> None:
    done = hora_run("-np", "3", *CHECK)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("[0]<stdout>:PASS") and "shm, tcp" in done.stdout


def test_ranks_on_two_hosts_find_each_other(fake_ssh: str) -> None:
    done = hora_run("-H", "127.0.0.2:2,localhost:1", "--ssh", fake_ssh, "--remote-python", sys.executable,
                    *CHECK)
    if "built without libsodium" in done.stdout:
        pytest.skip("hora run gives ranks on several hosts a secret, which needs libsodium")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout and "auto, tcp" in done.stdout


def test_dead_rank_is_named_by_the_others() -> None:
    program = (
        "import os, time\n"
        "from hora import Communicator, _core\n"
        "_core.init(-1, -1, None, None, 0.0, 0.0, 0)\n"
        "if _core.rank() == 1: os.kill(os.getpid(), 9)\n"
        "Communicator().barrier()\n")
    begin = time.monotonic()
    done = hora_run("-np", "3", sys.executable, "-c", program)
    assert done.returncode == 128 + 9
    assert "rank 1 of 3" in done.stderr
    assert "[0]<stderr>:" in done.stderr and "rank 1 on host" in done.stderr
    assert time.monotonic() - begin < 15


def traces_of(rendezvous: str) -> list[str]:
    """What is left of a job outside of its processes."""
    sockets = Path("/proc/net/unix").read_text().splitlines()
    return [line for line in sockets if rendezvous.partition(":")[2] in line] + [
        str(path) for path in Path("/dev/shm").glob("*hora*")]


@pytest.mark.parametrize("how", ["ctrl-c", "launcher killed"])
def test_end_in_the_midst_of_collectives_leaves_nothing(how: str) -> None:
    program = (
        "import os\n"
        "from hora import Communicator, _core\n"
        "_core.init(-1, -1, None, None, 0.0, 0.0, 0)\n"
        "comm = Communicator()\n"
        "comm.barrier()\n"
        "if _core.rank() == 0: print(os.environ['HORA_RENDEZVOUS'], flush=True)\n"
        "while True: comm.barrier()\n")
    mark = f"hora-test-{os.getpid()}-{how[:4]}"
    process = subprocess.Popen([*HORA, "run", "-np", "3", sys.executable, "-c", program],
                               env=clean_env(TEST_MARK=mark), stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    rendezvous = process.stdout.readline().decode().strip().removeprefix("[0]<stdout>:")
    assert rendezvous.startswith("unix:hora-") and traces_of(rendezvous) != []
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all in the foreground
    else:
        process.kill()
    process.communicate(timeout=30)
    if how == "ctrl-c":
        assert process.returncode == 128 + signal.SIGINT
        assert processes_with(mark) == []
    assert wait_until(lambda: processes_with(mark) == [] and traces_of(rendezvous) == [])


def test_exception_is_named_by_the_others() -> None:
    pytest.importorskip("torch")
    program = (
        "import torch, hora.torch as hvd\n"
        "hvd.init()\n"
        "hvd.allreduce(torch.ones(3), name='first')\n"
        "if hvd.rank() == 1: raise ArithmeticError('the loss is not a number')\n"
        "hvd.allreduce(torch.ones(3), name='second')\n")
    done = hora_run("-np", "3", "--grace", "20", sys.executable, "-c", program, timeout=120)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert any(line.startswith("[1]<stderr>:ArithmeticError") for line in lines), done.stderr
    for rank in (0, 2):
        own = "\n".join(line for line in lines if line.startswith(f"[{rank}]<stderr>:"))
        assert "rank 1 on host" in own and "the loss is not a number" in own, done.stderr
