"""Hosts, slots, and which rank goes where, for `hora run`."""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import os
import re
import secrets
import socket
import struct

# What remote hosts are not told, because it is of this host, this login or this session...
HOST_BOUND = {
    "HOSTNAME", "HOST", "HOME", "USER", "LOGNAME", "SHELL", "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY",
    "TMPDIR", "PWD", "OLDPWD", "SHLVL", "_",
}  # fmt: skip
HOST_BOUND_PREFIXES = ("SSH_", "XDG_", "BASH_FUNC_", "DBUS_")

# ...or of a launcher that has started this process: a rank there has another place in another job.
PLACE = {"RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "RENDEZVOUS", "SECRET",
         "HOSTNAME"}  # fmt: skip
TORCHRUN = {"RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE",
            "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
LAUNCHERS = (
    "HORA_ELASTIC", "HOROVOD_ELASTIC", "OMPI_", "PMIX_", "PMI_", "PRTE_", "ORTE_", "MV2_",
    "MPI_LOCAL", "HYDI_", "MPIEXEC_", "SLURM_", "SLURMD_", "SRUN_", "JSM_", "FLUX_",
    "TORCHELASTIC_",
)  # fmt: skip

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


class HostError(ValueError):
    """What the user asked for cannot be; the text says what to do."""


@dataclasses.dataclass
class Host:
    name: str
    slots: int
    ranks: list[int] = dataclasses.field(default_factory=list)

    @property
    def is_local(self) -> bool:
        return is_local(self.name)

    @property
    def shown(self) -> str:
        return shown_name(self.name)


@functools.lru_cache(maxsize=1)
def own_names() -> frozenset[str]:
    """Of this machine. Kept, because asking may take as long as a name server does."""
    own = socket.gethostname()
    return LOOPBACK | {own, own.split(".")[0], socket.getfqdn()}


def is_local(name: str) -> bool:
    return name in own_names()


def shown_name(name: str) -> str:
    """A host's name in messages and for its ranks, by which times and traces are filed too: that of
    this machine, where the user has written no more than that it is this one."""
    return socket.gethostname() or name if name in LOOPBACK else name


def split_host(text: str) -> tuple[str, int | None]:
    """"host", "host:4" or "[::1]:4" into name and slots."""
    match = re.fullmatch(r"(\[[^\]]+\]|[^:\s]+)(?::(\d+))?", text)
    if match is None:
        raise HostError(f"'{text}' is no host; write NAME or NAME:SLOTS")
    slots = int(match[2]) if match[2] else None
    if slots == 0:
        raise HostError(f"'{text}' has no slots")
    return match[1].strip("[]"), slots


def parse_hosts(text: str) -> list[Host]:
    """"a:2,b:4": one slot where no number is given."""
    pairs = [split_host(part.strip()) for part in text.split(",") if part.strip()]
    return merge([Host(name, slots or 1) for name, slots in pairs])


def parse_hostfile(path: str) -> list[Host]:
    """Both forms: "host slots=4" (Open MPI, Horovod) and "host:4" (MPICH); # begins a comment."""
    hosts = []
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise HostError(f"host file {path}: {error.strerror}") from None
    for line in lines:
        words = line.split("#")[0].split()
        if not words:
            continue
        name, slots = split_host(words[0])
        given = re.search(r"\bslots\s*=\s*(\d+)", line)
        hosts.append(Host(name, int(given[1]) if given else slots or 1))
    if not hosts:
        raise HostError(f"host file {path} names no host")
    return merge(hosts)


def merge(hosts: list[Host]) -> list[Host]:
    """One entry for each host, in the order of first appearance; slots add up."""
    merged: dict[str, Host] = {}
    for host in hosts:
        key = "localhost" if host.is_local else host.name
        if key in merged:
            merged[key].slots += host.slots
        else:
            merged[key] = host
    return list(merged.values())


def assign(hosts: list[Host], nranks: int) -> list[Host]:
    """Fills the hosts in order; returns those that have ranks."""
    slots = sum(host.slots for host in hosts)
    if nranks > slots:
        names = ",".join(f"{host.name}:{host.slots}" for host in hosts)
        raise HostError(
            f"-np {nranks}, but {names} has {slots} slot{'s' if slots != 1 else ''}; give more slots "
            f"(-H {hosts[0].name}:{nranks}) or a smaller -np"
        )
    first = 0
    for host in hosts:
        take = min(host.slots, nranks - first)
        host.ranks = list(range(first, first + take))
        first += take
    return [host for host in hosts if host.ranks]


def address_towards(other: str) -> str:
    """This machine's address on the way to another host. Sends nothing."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise HostError(f"host {other} cannot be found: {error}") from None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def interface_address(names: list[str] | None) -> str | None:
    """This machine's address on the first of these network interfaces that it has, if on any. A
    name may be an address already."""
    for name in names or []:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                request = struct.pack("256s", name.encode()[:15])
                answer = fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)
                return socket.inet_ntoa(answer[20:24])
            except OSError:
                pass
            try:
                probe.bind((name, 0))
                return name
            except OSError:
                pass
    return None


def meeting_place(hosts: list[Host], interfaces: list[str] | None = None) -> tuple[str, str, int]:
    """(rendezvous of hora, address and port for torch's MASTER_ADDR and MASTER_PORT)."""
    if len(hosts) == 1:
        return f"unix:hora-{secrets.token_hex(12)}", "127.0.0.1", free_port()
    first = hosts[0]
    if first.is_local:
        address = interface_address(interfaces) or address_towards(hosts[1].name)
        port, other_port = free_port(), free_port()
    else:
        # Below the range from which systems take ports for outgoing connections.
        port = 20000 + secrets.randbelow(6000)
        address, other_port = first.name, port + 6000
    shown = f"[{address}]" if ":" in address else address
    return f"tcp:{shown}:{port}", address, other_port


def rank_environments(hosts: list[Host], secret: str,
                      interfaces: list[str] | None = None) -> dict[int, dict[str, str]]:
    """What each rank finds in its environment, by rank. hora's names; Horovod's, which scripts
    read; torchrun's for programs that call torch.distributed themselves."""
    rendezvous, address, port = meeting_place(hosts, interfaces)
    size = sum(len(host.ranks) for host in hosts)
    environments = {}
    for host in hosts:
        for local_rank, rank in enumerate(host.ranks):
            peers = [h for h in hosts if len(h.ranks) > local_rank]
            place = {
                "RANK": rank,
                "SIZE": size,
                "LOCAL_RANK": local_rank,
                "LOCAL_SIZE": len(host.ranks),
                "CROSS_RANK": peers.index(host),
                "CROSS_SIZE": len(peers),
            }
            env = {
                **{f"HORA_{name}": value for name, value in place.items()},
                **{f"HOROVOD_{name}": value for name, value in place.items()},
                "HOROVOD_HOSTNAME": host.shown,
                "HORA_RENDEZVOUS": rendezvous,
                "HORA_SECRET": secret,
                "RANK": rank,
                "WORLD_SIZE": size,
                "LOCAL_RANK": local_rank,
                "LOCAL_WORLD_SIZE": len(host.ranks),
                "MASTER_ADDR": address,
                "MASTER_PORT": port,
                "PYTHONUNBUFFERED": 1,
            }
            if len(hosts) > 1:
                env["HORA_HOSTNAME"] = host.shown
            environments[rank] = {name: str(value) for name, value in env.items()}
    return environments


def forwarded_environment(extra: list[str]) -> dict[str, str]:
    """What a remote host is told of this environment: all that can be, and what -x names (NAME or
    NAME=VALUE), which may be one of those that are left out by themselves."""
    env = {name: value for name, value in os.environ.items() if is_forwarded(name)}
    env.update(named_environment(extra))
    return env


def is_forwarded(name: str) -> bool:
    """Whether other hosts are told of a variable."""
    family, _, rest = name.partition("_")
    if family in ("HORA", "HOROVOD") and rest in PLACE:
        return False
    if name in HOST_BOUND | TORCHRUN or name.startswith(HOST_BOUND_PREFIXES + LAUNCHERS):
        return False
    return re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name, re.ASCII) is not None


def named_environment(extra: list[str]) -> dict[str, str]:
    env = {}
    for item in extra:
        name, equals, value = item.partition("=")
        if not equals and name not in os.environ:
            raise HostError(f"-x {name}: it is not set here; write -x {name}=VALUE")
        env[name] = value if equals else os.environ[name]
    return env
