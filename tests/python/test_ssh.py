"""`hora run` and hora.run over several hosts, by a real ssh: an sshd of our own on a high port of
127.0.0.2 and 127.0.0.3, with keys that are thrown away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest
from launching import HORA, clean_env, processes_with, shell, wait_until

import hora
from hora.runner import RankError

ADDRESSES = ("127.0.0.2", "127.0.0.3")

CONFIG = """
Port {port}
ListenAddress 127.0.0.2
ListenAddress 127.0.0.3
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM {pam}
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
"""


@dataclass
class Server:
    port: int
    key: str
    program: str  # ssh, but that it knows no hosts yet

    @property
    def options(self) -> list[str]:
        return ["-p", str(self.port), "-i", self.key, "--ssh", self.program,
                "--remote-python", sys.executable]

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*HORA, "run", *self.options, *args], capture_output=True, text=True,
                              timeout=180, env=clean_env(**env), check=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.2", 0))
        return int(probe.getsockname()[1])


def make_ssh(folder: Path) -> str:
    path = folder / "ssh"
    path.write_text(f"#!/bin/sh\nexec ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile="
                    f'{folder}/known -o LogLevel=ERROR "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def try_server(folder: Path, program: str, pam: str) -> tuple[Server, subprocess.Popen[bytes]] | str:
    """A server that lets us in, or why not."""
    server = Server(free_port(), str(folder / "user"), make_ssh(folder))
    (folder / "config").write_text(CONFIG.format(port=server.port, folder=folder, pam=pam))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(folder / "config")], stderr=log,
                                   stdin=subprocess.DEVNULL)
    enter = [server.program, "-o", "BatchMode=yes", "-p", str(server.port), "-i", server.key]
    for _ in range(50):
        if process.poll() is not None:
            return (folder / "log").read_text().strip()
        done = [subprocess.run([*enter, address, "echo in"], capture_output=True, text=True,
                               timeout=60, check=False) for address in ADDRESSES]
        if all(one.stdout == "in\n" for one in done):
            return server, process
        if "refused" not in done[0].stderr:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    return done[0].stderr.strip() + " " + (folder / "log").read_text().strip()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    program = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if program is None or not shutil.which("ssh") or not shutil.which("ssh-keygen"):
        pytest.skip("sshd, ssh or ssh-keygen is not installed (Debian: openssh-server)")
    with tempfile.TemporaryDirectory(prefix="hora-sshd-") as name:
        folder = Path(name)
        for key in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)],
                           check=True)
        if os.getuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # it will not start without
        for pam in ("no", "yes"):
            got = try_server(folder, program, pam)
            if not isinstance(got, str):
                break
        else:
            pytest.skip(f"no sshd could be run here: {got}")
        try:
            yield got[0]
        finally:
            got[1].terminate()
            got[1].wait(timeout=30)


SUM = """
import os, numpy
from hora import Communicator
comm = Communicator()
total = comm.allreduce(numpy.arange(4.0) + comm.rank)
ways = "/".join(comm.transport(peer) for peer in range(comm.size))
print(comm.rank, os.environ["HORA_HOSTNAME"], total.tolist(), ways)
"""


def test_ranks_on_two_hosts(server: Server, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.2 slots=2\n127.0.0.3:1\n")
    done = server.run("-hostfile", str(hosts), "--output-filename", str(tmp_path / "out"),
                      sys.executable, "-c", SUM)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [
        "0 127.0.0.2 [3.0, 6.0, 9.0, 12.0] self/shm/tcp",
        "1 127.0.0.2 [3.0, 6.0, 9.0, 12.0] shm/self/tcp",
        "2 127.0.0.3 [3.0, 6.0, 9.0, 12.0] tcp/tcp/self",
    ]
    assert sorted(done.stdout.splitlines()) == [
        f"[{rank}]<stdout>:{line}" for rank, line in enumerate(expected)]
    for rank, line in enumerate(expected):
        assert (tmp_path / "out" / f"rank.{rank}" / "stdout").read_text() == line + "\n"


def test_this_host_and_another(server: Server) -> None:
    done = server.run("-H", "localhost:1,127.0.0.3:1", "--network-interfaces", "none0,lo",
                      sys.executable, "-c", SUM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"[0]<stdout>:0 {socket.gethostname()} [1.0, 3.0, 5.0, 7.0] self/tcp",
        "[1]<stdout>:1 127.0.0.3 [1.0, 3.0, 5.0, 7.0] tcp/self"]


def test_secret_is_in_no_command_line_and_no_environment_of_ssh(server: Server) -> None:
    program = (
        "import os, pathlib\n"
        "secret = os.environ['HORA_SECRET'].encode()\n"
        "assert len(secret) == 64\n"
        "seen = 0\n"
        "for entry in pathlib.Path('/proc').iterdir():\n"
        "    try:\n"
        "        name = (entry / 'comm').read_text().strip()\n"
        "        line = (entry / 'cmdline').read_bytes()\n"
        "        ssh = name.startswith('ssh')\n"
        "        env = (entry / 'environ').read_bytes() if ssh else b''\n"
        "    except OSError:\n"
        "        continue\n"
        "    seen += ssh\n"
        "    assert secret not in line and secret not in env, (entry, name)\n"
        "print('seen' if seen >= 2 else 'no ssh')\n")
    done = server.run("-H", "127.0.0.2,127.0.0.3", sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[0]<stdout>:seen", "[1]<stdout>:seen"]


def test_killed_rank_on_another_host(server: Server) -> None:
    mark = f"hora-test-{os.getpid()}-sshkill"
    program = SUM + "import time\nif comm.rank == 2: os.kill(os.getpid(), 9)\n" \
        "comm.barrier()\ntime.sleep(300)\n"
    done = server.run("-H", "127.0.0.2:2,127.0.0.3:1", "-x", f"TEST_MARK={mark}", sys.executable, "-c",
                      program)
    assert done.returncode == 128 + 9
    assert "rank 2 of 3 on host 127.0.0.3 was ended by SIGKILL" in done.stderr
    for rank in (0, 1):
        own = [line for line in done.stderr.splitlines() if line.startswith(f"[{rank}]<stderr>:")]
        assert any("rank 2 on host 127.0.0.3" in line for line in own), done.stderr
    assert processes_with(mark) == []


FAMILY = "(setsid sleep 300 &) ; (sleep 300 &) ; echo ready; sleep 300; echo on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_end_of_the_launcher_ends_all(server: Server, number: signal.Signals) -> None:
    mark = f"hora-test-{os.getpid()}-ssh{int(number)}"
    process = subprocess.Popen(
        [*HORA, "run", *server.options, "-H", "127.0.0.2:1,127.0.0.3:2", "-x", f"TEST_MARK={mark}",
         *shell(FAMILY)], env=clean_env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True)
    assert process.stdout is not None
    for _ in range(3):
        assert b"ready" in process.stdout.readline()
    assert len(processes_with(mark)) >= 9
    begin = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert wait_until(lambda: processes_with(mark) == [], 30)
    assert time.monotonic() - begin < 25


def test_torch_on_two_hosts(server: Server) -> None:
    pytest.importorskip("torch")
    program = "import torch, hora.torch as hvd; hvd.init(); " \
        "print(hvd.allreduce(torch.ones(2), op=hvd.Sum).tolist(), hvd.local_size(), hvd.cross_size())"
    done = server.run("-H", "127.0.0.2,127.0.0.3", sys.executable, "-c", program)
    assert done.stdout.splitlines() == [f"[{r}]<stdout>:[2.0, 2.0] 1 2" for r in range(2)] or \
        done.stdout.splitlines() == [f"[{r}]<stdout>:[2.0, 2.0] 1 2" for r in (1, 0)], done


def test_port_where_nobody_listens(server: Server) -> None:
    closed = ["-p", str(free_port())]
    done = server.run("-H", "127.0.0.2,localhost", *closed, "--grace", "0", *shell("sleep 300"))
    assert done.returncode == 255
    assert "lost host 127.0.0.2 with rank 0" in done.stderr
    assert "without a password" in done.stderr and "refused" in done.stderr


def places(scale: int, fail: int = -1) -> tuple[int, str, float]:
    import numpy

    comm = hora.Communicator()
    if comm.rank == fail:
        raise LookupError("no such thing")
    total = comm.allreduce(numpy.ones(1))
    return comm.rank * scale, os.environ["HORA_HOSTNAME"], float(total[0])


def test_function_on_two_hosts(server: Server) -> None:
    options = ["--ssh", server.program, "--remote-python", sys.executable]
    where = {"hosts": "127.0.0.2:1,127.0.0.3:2", "ssh_port": server.port,
             "ssh_identity_file": server.key, "options": options}
    assert hora.run(places, (10,), num_proc=3, **where) == [
        (0, "127.0.0.2", 3.0), (10, "127.0.0.3", 3.0), (20, "127.0.0.3", 3.0)]
    with pytest.raises(RankError, match="rank 2 of 3 .*LookupError: no such thing") as caught:
        hora.run(places, (10,), {"fail": 2}, num_proc=3, **where)
    assert caught.value.rank == 2 and isinstance(caught.value.__cause__, LookupError)
