"""The libraries that benchmarks/compare knows: where they are, how their worker is built and started.

A peer that is not here is None with a reason. PyPI's MPIs and oneCCL live in environments of their own
under .venv-mpi (tools/mpi-envs makes them); Debian's MPI is what mpicc on PATH gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "common"))

import netns  # noqa: E402

ENVS = Path(os.environ.get("HORA_MPI_ENVS", ROOT / ".venv-mpi"))
START_SECONDS = 60


@dataclasses.dataclass
class Peer:
    name: str
    command: list[str]            # starts all ranks, or one rank where `each`
    env: dict[str, str]
    each: bool = False            # the command is started once per rank, with PEER_RANK and PEER_SIZE
    shared: bool = False          # has memory of its own to measure as well


@dataclasses.dataclass
class Where:
    """On what machine the ranks run: on this host, all of them or (`tcp`) as if each had its own; or on
    `hosts` that are namespaces, `ranks` / len(hosts.names) on each, the first ones on host 0."""

    ranks: int
    tcp: bool = False
    hosts: netns.Hosts | None = None
    sessions: bool = False        # each rank is the leader of a session of its own, as torchrun's are

    @property
    def per_host(self) -> int:
        return self.ranks // len(self.hosts.names) if self.hosts else self.ranks

    @property
    def shares_memory(self) -> bool:
        return not self.tcp and self.hosts is None

    def command(self, rank: int, command: list[str]) -> list[str]:
        return self.hosts.command(rank // self.per_host, command) if self.hosts else command

    def program(self, command: list[str]) -> list[str]:
        """What runs as one rank."""
        return ["setsid", "--wait", *command] if self.sessions else command


@dataclasses.dataclass
class Variant:
    """hora itself, or another build of it, or the same under other settings."""

    name: str = "hora"
    folder: Path | None = None    # of libhora.so; None: of the installed package
    settings: dict[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, folder: Path | None) -> Variant:
        """NAME=FOLDER[,SETTING=VALUE...]; without a folder, that of hora itself."""
        name, _, rest = text.partition("=")
        words = rest.split(",")
        own = Path(words[0]).resolve() if words[0] else folder
        return cls(f"hora-{name}", own, dict(word.split("=", 1) for word in words[1:]))


class Absent(Exception):
    """Why a peer cannot be measured."""


def compile_worker(compiler: list[str], source: str, out: Path, *options: str) -> None:
    main = out.parent / "main.o"
    if not main.exists():
        subprocess.run(["cc", "-std=gnu11", "-O3", "-c", str(HERE / "main.c"), "-o", str(main)], check=True)
    done = subprocess.run([*compiler, "-O2", str(HERE / source), str(main), *options, "-o", str(out)],
                          capture_output=True, text=True)
    if done.returncode:
        raise Absent(f"{source} cannot be compiled: {done.stderr.strip().splitlines()[-1:]}")


PORTS = itertools.count(20000)


def hora_peer(build: Path, where: Where, variant: Variant) -> Peer:
    folder = variant.folder
    if folder is None:
        try:
            import hora
        except ImportError as error:
            raise Absent("not installed here (pip install ., or --library FOLDER)") from error
        folder = Path(hora.__file__).resolve().parent
    worker = build / variant.name
    compile_worker(["cc", "-std=gnu11", f"-I{ROOT}/include"], "hora.c", worker, f"-L{folder}", "-lhora",
                   f"-Wl,-rpath,{folder}")
    meeting = f"unix:compare-{os.getpid()}-{variant.name}"
    if where.hosts:
        meeting = f"tcp:{where.hosts.addresses[0]}:{next(PORTS)}"
    env = {"HORA_RENDEZVOUS": meeting, **variant.settings}
    if where.tcp:
        env["HORA_TRANSPORT"] = "tcp"
    return Peer(variant.name, where.program([str(worker)]), env, each=True, shared=where.shares_memory)


def gloo_peer(where: Where) -> Peer:
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise Absent("torch is not installed") from error
    if not dist.is_gloo_available():
        raise Absent("this torch has no gloo")
    env = {"GLOO_SOCKET_IFNAME": where.hosts.interface if where.hosts else "lo"}
    return Peer("gloo", where.program([sys.executable, str(HERE / "gloo.py")]), env, each=True)


def mpirun(home: Path | None, where: Where, build: Path) -> list[str]:
    """The launcher of the MPI at `home`, or of the one on PATH, and how it is to start the ranks."""
    found = shutil.which("mpiexec.hydra", path=str(home / "bin")) if home else None
    found = found or (str(home / "bin/mpirun") if home else "mpirun")
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    command = [found, "-np", str(where.ranks)]
    if "Open MPI" in version or "OpenRTE" in version:
        command += ["--oversubscribe"] if where.ranks > (os.cpu_count() or 1) else []
        command += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        if where.hosts:
            command += ["--host", ",".join(f"{host}:{where.per_host}" for host in where.hosts.names)]
            command += ["--bind-to", "none"]  # it would take the same core on each: they are bound already
            command += ["--prefix", str(home)] if home else []
    elif where.hosts:
        command += ["-launcher", "ssh", "-launcher-exec", str(write_agent(where.hosts, build)),
                    "-iface", where.hosts.interface, "-hosts", ",".join(where.hosts.names),
                    "-ppn", str(where.per_host)]
    return where.command(0, command)


def write_agent(hosts: netns.Hosts, build: Path) -> Path:
    hosts.write_agent(build / "agent")
    return build / "agent"


def between_hosts(hosts: netns.Hosts, build: Path) -> dict[str, str]:
    """What MPIs have to know about the hosts, beside mpirun's arguments."""
    agent, interface = str(write_agent(hosts, build)), hosts.interface
    return {"OMPI_MCA_plm_rsh_agent": agent, "PRTE_MCA_plm_ssh_agent": agent,
            "OMPI_MCA_btl_tcp_if_include": interface, "OMPI_MCA_oob_tcp_if_include": interface,
            "PRTE_MCA_prte_if_include": interface, "PMIX_MCA_ptl_tcp_if_include": interface,
            "FI_PROVIDER": "tcp", "FI_TCP_IFACE": interface,
            "MPIR_CVAR_CH4_NETMOD": "ofi"}  # UCX finds shared memory between namespaces


# What keeps an MPI off shared memory.
TCP_ONLY = {
    "openmpi-debian": {"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_pml": "ob1"},
    "openmpi": {"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_pml": "ob1"},
    "mpich": {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
    "impi": {"I_MPI_FABRICS": "ofi", "FI_PROVIDER": "tcp", "I_MPI_COLL_INTRANODE": "pt2pt"},
    "oneccl": {"I_MPI_FABRICS": "ofi", "FI_PROVIDER": "tcp", "CCL_ENABLE_SHM": "0"},
}


def mpi_peer(name: str, home: Path | None, build: Path, where: Where) -> Peer:
    if home is not None and not (home / "bin/mpicc").exists():
        raise Absent(f"not in {ENVS} (tools/mpi-envs {name})")
    if home is None and not (shutil.which("mpicc") and shutil.which("mpirun")):
        raise Absent("no mpicc and mpirun on PATH (apt install libopenmpi-dev openmpi-bin)")
    env = {}
    if home is not None:
        env["PATH"] = f"{home}/bin:{os.environ['PATH']}"
    if name == "impi":
        env |= {"I_MPI_ROOT": str(home), "FI_PROVIDER_PATH": f"{home}/lib", "LD_LIBRARY_PATH": f"{home}/lib"}
    if where.tcp:
        env |= TCP_ONLY[name]
    if where.hosts:
        env |= between_hosts(where.hosts, build)
    worker = build / name
    compiler = str(home / "bin/mpicc") if home else "mpicc"
    before = dict(os.environ)
    os.environ.update(env)
    try:
        compile_worker([compiler], "mpi.c", worker)
        return Peer(name, [*mpirun(home, where, build), *where.program([str(worker)])], env)
    finally:
        os.environ.clear()
        os.environ.update(before)


def oneccl_peer(build: Path, where: Where) -> Peer:
    home = ENVS / "oneccl"
    lib = home / "lib"
    if not (lib / "libccl.so.1").exists():
        raise Absent(f"not in {ENVS} (tools/mpi-envs oneccl)")
    if not (lib / "libccl.so.2").exists():  # what PyPI's libccl.so asks for is the library itself
        (lib / "libccl.so.2").symlink_to("libccl.so.1")
    worker = build / "oneccl"
    compile_worker(["c++", "-std=c++17", f"-I{home}/include"], "ccl.cpp", worker, f"-L{lib}", "-lccl",
                   "-Wl,--no-as-needed", "-l:libintlc.so.5", "-lirng", "-limf", "-lsvml", f"-Wl,-rpath,{lib}")
    env = {"PATH": f"{home}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": str(lib), "I_MPI_ROOT": str(home),
           "FI_PROVIDER_PATH": str(lib), "CCL_LOG_LEVEL": "error"}
    if where.tcp:
        env |= TCP_ONLY["oneccl"]
    if where.hosts:
        env |= between_hosts(where.hosts, build)
    ranked = 'PEER_RANK=$PMI_RANK PEER_SIZE=$PMI_SIZE exec "$0"'
    return Peer("oneccl", [*mpirun(home, where, build), *where.program(["/bin/sh", "-c", ranked, str(worker)])], env)


NAMES = ["hora", "openmpi-debian", "openmpi", "mpich", "impi", "oneccl", "gloo"]


def find(name: str, build: Path, where: Where, variants: list[Variant]) -> Peer:
    """The peer, with its worker built. Raises Absent with the reason."""
    for variant in variants:
        if name == variant.name:
            return hora_peer(build, where, variant)
    if name == "gloo":
        return gloo_peer(where)
    if name == "oneccl":
        return oneccl_peer(build, where)
    return mpi_peer(name, None if name == "openmpi-debian" else ENVS / name, build, where)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills the leader of a group, its group, and its descendants in whatever sessions they are."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            fields = path.read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [process.pid]
    for one in found:
        found += children.get(one, [])
    os.killpg(process.pid, signal.SIGKILL)
    for one in found[1:]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


class Job:
    """The running workers of a peer. Asleep but while they measure."""

    def __init__(self, peer: Peer, where: Where, folder: Path) -> None:
        ranks = where.ranks
        self.peer = peer
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.streams: list[Any] = []
        self.version = ""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.folder / "s"))
        listener.listen(ranks)
        listener.settimeout(START_SECONDS)
        env = {**os.environ, **peer.env, "PEER_SOCKET": str(self.folder / "s"), "PEER_DIR": str(self.folder)}
        command = ["/bin/sh", "-c", self.starter(where)] if peer.each else peer.command
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            for _ in range(ranks):
                link = listener.accept()[0]
                link.settimeout(600)
                self.streams.append(link.makefile("rw"))
            for stream in self.streams:
                self.version = json.loads(stream.readline())["version"]
        except (OSError, ValueError) as error:
            self.end()
            raise Absent(f"its workers did not start: {error or 'no answer'}; {self.last_words()}") from error

    def starter(self, where: Where) -> str:
        """Shell text that starts each rank. In one session, as MPI's launchers and `hora run` do: the kernel
        may give every session its share of the cores, and then ranks of different ones cannot yield to
        each other (Where.sessions)."""
        lines = [f"PEER_RANK={rank} PEER_SIZE={where.ranks} HORA_RANK={rank} HORA_SIZE={where.ranks} "
                 + shlex.join(where.command(rank, self.peer.command)) + f" >log.{rank} 2>&1 &"
                 for rank in range(where.ranks)]
        return "\n".join([f"cd {shlex.quote(str(self.folder))}", *lines, "wait"])

    def last_words(self) -> str:
        lines = [line for log in sorted(self.folder.glob("log*"))
                 for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "no output"

    def ask(self, order: str) -> tuple[list[float], list[list[float]]]:
        """CPU seconds of each rank, and times by rank."""
        try:
            for stream in self.streams:
                print(order, file=stream, flush=True)
            rows = [[float(word) for word in stream.readline().split()] for stream in self.streams]
        except (OSError, ValueError) as error:
            raise Absent(f"its workers failed: {error}; {self.last_words()}") from error
        if not all(rows):
            raise Absent(f"a worker has ended: {self.last_words()}")
        return [row[0] for row in rows], [row[1:] for row in rows]

    def times(self, op: int, count: int, calls: int, batch: int, shared: bool, gap_us: int) -> list[float]:
        """Of each call, in microseconds: that of the slowest rank."""
        rows = self.ask(f"run {op} {count} {calls} {batch} {int(shared)} {gap_us}")[1]
        return [max(of_call) for of_call in zip(*rows)]

    def end(self) -> None:
        for stream in self.streams:
            try:
                print("quit", file=stream, flush=True)
            except OSError:
                pass
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            kill_tree(self.process)
