#!/usr/bin/env python3
"""Hosts that are only namespaces of this one: a network, a name, /etc/hosts and /dev/shm of their own each.

    benchmarks/common/netns.py [--hosts N] [--rate 1gbit] COMMAND [ARGUMENT...]

starts the command once on each host, with HOST (its number) and HOST_ADDRESS (0's address) set, and ends
with the worst exit status. In Python:

    with netns.Hosts(2) as hosts:
        subprocess.run(hosts.command(1, ["ping", "-c1", hosts.addresses[0]]))

Two hosts are joined by one pair of veth; more by a bridge in a namespace of its own, so that nothing is
added to the real host's network. Every namespace is held by a process that reads from a pipe of this one
and ends with it, however this one ends; with it go the namespace, its interfaces and its mounts. A command
is killed when the process ends that started it. Other files, processes and users are shared: an MPI's
launcher on one host reaches the others as ssh would. Each host's processes are bound to a share of the
cores, because a host cannot know that it has to share them. With a rate, each host sends no faster than that
(tc's tbf).
Making namespaces takes root.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

INTERFACE = "eth0"
TOOLS = ["unshare", "nsenter", "setpriv", "ip", "taskset"]
HOLD = """
hostname {name} && ip link set lo up && mount -t tmpfs shm /dev/shm &&
printf '%s\\n' {table} >/dev/shm/hosts && mount --bind /dev/shm/hosts /etc/hosts && rm /dev/shm/hosts &&
echo && exec cat
"""


class Unavailable(Exception):
    """Why there can be no such hosts here."""


class Namespace:
    """One host, for as long as this process lives. `table`: the lines of its /etc/hosts."""

    def __init__(self, name: str, table: list[str]) -> None:
        script = HOLD.format(name=name, table=shlex.join(["127.0.0.1 localhost", "::1 localhost", *table]))
        self.holder = subprocess.Popen(["unshare", "--net", "--uts", "--mount", "sh", "-c", script],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, start_new_session=True)
        assert self.holder.stdout is not None and self.holder.stderr is not None
        if self.holder.stdout.readline() != b"\n":
            raise Unavailable(f"no namespace can be made: {self.holder.stderr.read().decode().strip()}")
        self.enter = ["nsenter", "--target", str(self.holder.pid), "--net", "--uts", "--mount", "--"]

    def run(self, command: str) -> str:
        done = subprocess.run([*self.enter, *command.split()], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"{command}: {done.stderr.strip()}")
        return done.stdout

    def await_link(self) -> None:
        """The kernel may say only a second later that both ends are up; some libraries ask it."""
        for _ in range(50):
            if "state UP" in self.run(f"ip link show {INTERFACE}"):
                return
            time.sleep(0.1)
        raise Unavailable(f"{INTERFACE} does not come up")

    def close(self) -> None:
        assert self.holder.stdin is not None
        self.holder.stdin.close()
        self.holder.wait()


class Hosts:
    """`count` hosts, named NAME0, NAME1, ... `addresses[i]` is that of host i on `interface`."""

    interface = INTERFACE

    def __init__(self, count: int, name: str = "host", rate: str | None = None) -> None:
        if os.geteuid() != 0:
            raise Unavailable("network namespaces need root")
        missing = [tool for tool in [*TOOLS, *(["tc"] if rate else [])] if shutil.which(tool) is None]
        if missing:
            raise Unavailable(f"not installed: {', '.join(missing)} (util-linux, iproute2)")
        if not 1 <= count <= 200:
            raise Unavailable(f"{count} hosts: expected 1 to 200")
        self.names = [f"{name}{i}" for i in range(count)]
        self.addresses = [f"10.77.0.{i + 1}" for i in range(count)]
        cores = sorted(os.sched_getaffinity(0))
        self.cores = [cores[i::count] or [cores[i % len(cores)]] for i in range(count)]
        self._namespaces: list[Namespace] = []
        table = [f"{address} {host}" for address, host in zip(self.addresses, self.names)]
        try:
            for host in self.names:
                self._namespaces.append(Namespace(host, table))
            if count > 1:
                self._join(count)
            for namespace in self._namespaces[:count] if rate else []:
                namespace.run(f"tc qdisc add dev {INTERFACE} root tbf rate {rate} burst 256kb latency 20ms")
        except BaseException:
            self.close()
            raise

    def _join(self, count: int) -> None:
        hosts = self._namespaces[:count]
        if count == 2:
            hosts[0].run(f"ip link add {INTERFACE} type veth peer name {INTERFACE} netns {hosts[1].holder.pid}")
        else:
            switch = Namespace("switch", [])
            self._namespaces.append(switch)
            switch.run("ip link add br0 type bridge")
            switch.run("ip link set br0 up")
            for i, host in enumerate(hosts):
                switch.run(f"ip link add port{i} type veth peer name {INTERFACE} netns {host.holder.pid}")
                switch.run(f"ip link set port{i} master br0 up")
        for host, address in zip(hosts, self.addresses):
            host.run(f"ip address add {address}/24 dev {INTERFACE}")
            host.run(f"ip link set {INTERFACE} up")
        for host in hosts:
            host.await_link()

    def command(self, host: int, command: list[str]) -> list[str]:
        """The same command, to be run on that host, in this process's working folder."""
        cores = ",".join(map(str, self.cores[host]))
        return ["setpriv", "--pdeathsig", "KILL", *self._namespaces[host].enter, "env", "-C", os.getcwd(),
                "taskset", "-c", cores, *command]

    def write_agent(self, path: Path) -> None:
        """A program to give to launchers in place of ssh: PATH [OPTION...] ADDRESS|NAME COMMAND..."""
        lines = ["#!/bin/sh", 'while [ "${1#-}" != "$1" ]; do shift; done', "host=$1; shift", "case $host in"]
        for i, (name, address) in enumerate(zip(self.names, self.addresses)):
            lines.append(f'{name}|{address}) exec {shlex.join(self.command(i, ["sh", "-c"]))} "$*" ;;')
        lines += ["esac", 'echo "there is no host $host" >&2', "exit 1"]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        path.chmod(0o755)

    def close(self) -> None:
        for namespace in self._namespaces:
            namespace.close()
        self._namespaces = []

    def __enter__(self) -> Hosts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=2, help="how many (2)")
    parser.add_argument("--rate", help="of each host's interface, as tc takes it (unlimited)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    if not args.command:
        parser.error("a command is missing")
    try:
        with Hosts(args.hosts, rate=args.rate) as hosts:
            env = {**os.environ, "HOST_ADDRESS": hosts.addresses[0]}
            running = [subprocess.Popen(hosts.command(i, args.command), env={**env, "HOST": str(i)})
                       for i in range(args.hosts)]
            return max(abs(process.wait()) for process in running)
    except Unavailable as error:
        print(f"netns: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
