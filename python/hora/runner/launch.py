"""`hora run`: start a program on several ranks. This module reads the command line; job.py does
the work."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys

from hora.runner.hosts import (
    Host, HostError, assign, forwarded_environment, named_environment, parse_hostfile, parse_hosts,
    rank_environments,
)  # fmt: skip
from hora.runner.job import Job, Launcher

DESCRIPTION = """Start N copies of a program that find each other through hora.

  hora run -np 4 python train.py
  hora run -np 8 -H node1:4,node2:4 python train.py

Hosts other than this one are reached with ssh, which must not ask for a password; they need Python
3.7 and the program at the same path. Each line of output is written whole, with its rank before it.
Ranks have no standard input. When a rank fails, the others are ended too, and the exit code is that
of the first that failed; when this command ends, however it ends, nothing of the job is left."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    hosts = parser.add_argument_group("ranks and hosts")
    hosts.add_argument("-np", "--num-proc", type=int, metavar="N", help="number of ranks "
                       "(default: the slots of all hosts)")
    where = hosts.add_mutually_exclusive_group()
    where.add_argument("-H", "--hosts", metavar="HOST:SLOTS,...", help="where the ranks run "
                       "(default: all on this machine)")
    where.add_argument("-hostfile", "--hostfile", metavar="FILE",
                       help="lines 'HOST slots=N' or 'HOST:N'")
    hosts.add_argument("-p", "--ssh-port", type=int, metavar="PORT")
    hosts.add_argument("-i", "--ssh-identity-file", metavar="FILE")
    hosts.add_argument("--ssh", default="ssh", metavar="PROGRAM", help="instead of ssh")
    hosts.add_argument("--remote-python", default="python3", metavar="PROGRAM",
                       help="Python of the other hosts, for the launcher's own use")
    hosts.add_argument("-x", "--env", action="append", default=[], metavar="NAME[=VALUE]",
                       help="set or pass an environment variable; may be repeated")

    output = parser.add_argument_group("output")
    output.add_argument("-q", "--no-prefix", action="store_true",
                        help="no rank before the lines; local ranks write straight to this terminal")
    output.add_argument("--output-filename", metavar="DIR",
                        help="also write DIR/rank.N/stdout and stderr")
    output.add_argument("--verbose", action="store_true", help="say what is done")

    job = parser.add_argument_group("settings of the job (see docs/config.md)")
    job.add_argument("--start-timeout", type=float, metavar="S", help="HORA_START_TIMEOUT")
    job.add_argument("--timeout", type=float, metavar="S", help="HORA_TIMEOUT")
    job.add_argument("--transport", metavar="NAME", help="HORA_TRANSPORT")
    job.add_argument("--network-interfaces", "--network-interface", metavar="NAME",
                     help="HORA_INTERFACE")
    job.add_argument("--fusion-threshold-mb", type=float, metavar="MB", help="HORA_FUSION_THRESHOLD")
    job.add_argument("--log-level", metavar="LEVEL", help="HORA_LOG_LEVEL")
    job.add_argument("--grace", type=float, default=5.0, metavar="S", help="seconds that the other "
                     "ranks have to end by themselves after one has failed (5)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...",
                        help="the program and its arguments")


def settings(args: argparse.Namespace) -> dict[str, str]:
    """The options that stand for settings, as environment variables."""
    values = {
        "HORA_START_TIMEOUT": args.start_timeout,
        "HORA_TIMEOUT": args.timeout,
        "HORA_TRANSPORT": args.transport,
        "HORA_INTERFACE": args.network_interfaces,
        "HORA_LOG_LEVEL": args.log_level,
    }
    if args.fusion_threshold_mb is not None:
        values["HORA_FUSION_THRESHOLD"] = int(args.fusion_threshold_mb * 1024 * 1024)
    return {name: str(value) for name, value in values.items() if value is not None}


def find_hosts(args: argparse.Namespace) -> list[Host]:
    if args.num_proc is not None and args.num_proc < 1:
        raise HostError(f"-np {args.num_proc}: at least one rank is needed")
    if args.hostfile:
        hosts = parse_hostfile(args.hostfile)
    elif args.hosts:
        hosts = parse_hosts(args.hosts)
    elif args.num_proc:
        hosts = [Host("localhost", args.num_proc)]
    else:
        raise HostError("how many ranks? Give -np N")
    if not hosts:
        raise HostError("-H names no host")
    return assign(hosts, args.num_proc or sum(host.slots for host in hosts))


def ssh_command(args: argparse.Namespace) -> list[str]:
    ssh = [args.ssh, "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
    if args.ssh_port:
        ssh += ["-p", str(args.ssh_port)]
    if args.ssh_identity_file:
        ssh += ["-i", args.ssh_identity_file]
    return ssh


def make_job(args: argparse.Namespace) -> Job:
    hosts = find_hosts(args)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise HostError("which program? hora run -np 2 COMMAND ...")
    if any(not host.is_local for host in hosts) and shutil.which(args.ssh) is None:
        raise HostError(f"{args.ssh} is not installed; it starts the ranks of other hosts")
    level = args.log_level or os.environ.get("HORA_LOG_LEVEL", "")
    talks = args.verbose or level in ("info", "debug", "trace")
    own = {**named_environment(args.env), **settings(args)}
    return Job(
        hosts=hosts,
        command=command,
        rank_env=rank_environments(hosts, secrets.token_hex(32)),
        local_env=own,
        remote_env={**forwarded_environment(args.env), **own},
        ssh=ssh_command(args),
        remote_python=args.remote_python,
        prefix=not args.no_prefix,
        output_dir=args.output_filename,
        grace=max(0.0, args.grace),
        info=(lambda text: print(f"hora run: {text}", file=sys.stderr)) if talks else (lambda text: None),
    )


def main(args: argparse.Namespace) -> int:
    try:
        job = make_job(args)
        for host in job.hosts:
            job.info(f"host {host.name}: ranks {', '.join(map(str, host.ranks))}")
        return Launcher(job).run()
    except (HostError, OSError) as error:
        print(f"hora run: {error}", file=sys.stderr)
        return 2
