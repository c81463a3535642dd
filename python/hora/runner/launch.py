"""`hora run`, which is horovodrun too: from the command line to a job (job.py, mpi.py, elastic/)."""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import sys

from hora.runner import arguments, check_build, config_file, mpi
from hora.runner.hosts import (
    Host, HostError, assign, forwarded_environment, named_environment, parse_hostfile, parse_hosts,
    rank_environments,
)  # fmt: skip
from hora.runner.job import Job, Launcher

DESCRIPTION = """Start N copies of a program that find each other through hora.

  hora run -np 4 python train.py
  hora run -np 8 -H node1:4,node2:4 python train.py

Hosts other than this one are reached with ssh, which must not ask for a password; they need Python
3.7 and the program at the same path, and get this environment but for what belongs to this host or
login (HOME, HOSTNAME, TMPDIR, SSH_*, DISPLAY and so on; -x passes those too). Each line of output is
written whole, with its rank before it. Ranks have no standard input. When a rank fails, the others
are ended too, and the exit code is that of the first that failed; when this command ends, however it
ends, nothing of the job is left.

Every option of horovodrun is understood."""

USAGE = "%(prog)s -np N [options] COMMAND ..."


def say(text: str) -> None:
    print(f"hora run: {text}", file=sys.stderr)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_arguments(parser)


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog, usage=USAGE, description=DESCRIPTION, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_arguments(parser)
    return parser


def parse_args(argv: list[str] | None = None, prog: str = "horovodrun") -> argparse.Namespace:
    return make_parser(prog).parse_args(argv)


def is_elastic(args: argparse.Namespace) -> bool:
    return any(value is not None for value in
               (args.host_discovery_script, args.min_num_proc, args.max_num_proc))


def find_hosts(args: argparse.Namespace) -> list[Host]:
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
    ssh = [args.ssh or "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15"]
    if args.ssh_port:
        ssh += ["-p", str(args.ssh_port)]
    if args.ssh_identity_file:
        ssh += ["-i", args.ssh_identity_file]
    return ssh


def make_template(args: argparse.Namespace) -> Job:
    """The job but for its hosts and what each rank finds in its environment."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise HostError("which program? hora run -np 2 COMMAND ...")
    level = (args.log_level or os.environ.get("HORA_LOG_LEVEL", "")).lower()
    talks = args.verbose or level in ("info", "debug", "trace")
    given = args.env or []
    own = {**named_environment(given), **arguments.settings(args)}
    start = args.start_timeout
    if start is None:
        start = start_timeout_of_environment()
    return Job(
        hosts=[],
        command=command,
        rank_env={},
        local_env=own,
        remote_env={**forwarded_environment(given), **own},
        ssh=ssh_command(args),
        remote_python=args.remote_python or "python3",
        prefix=not args.no_prefix,
        timestamp=bool(args.prefix_output_with_timestamp),
        output_dir=args.output_filename,
        grace=5.0 if args.grace is None else args.grace,
        start_timeout=start,
        info=say if talks else (lambda text: None),
    )


def start_timeout_of_environment() -> float:
    text = os.environ.get("HORA_START_TIMEOUT") or os.environ.get("HOROVOD_START_TIMEOUT") or "60"
    try:
        return float(text)
    except ValueError:
        raise HostError(f"HORA_START_TIMEOUT={text} is no number of seconds") from None


def make_job(args: argparse.Namespace) -> Job:
    job = make_template(args)
    job.hosts = find_hosts(args)
    if any(not host.is_local for host in job.hosts) and shutil.which(job.ssh[0]) is None:
        raise HostError(f"{job.ssh[0]} is not installed; it starts the ranks of other hosts")
    if args.use_mpi:
        return mpi.job(args, job)
    job.rank_env = rank_environments(job.hosts, secrets.token_hex(32), args.network_interfaces)
    for host in job.hosts:
        job.info(f"host {host.shown}: ranks {', '.join(map(str, host.ranks))}")
    return job


def prepare(args: argparse.Namespace) -> None:
    """The config file, and everything that can be said about the options themselves."""
    notes = config_file.apply(args, args.config_file) if args.config_file else []
    arguments.check_values(args)
    for note in notes + arguments.notes(args):
        say(note)
    if args.use_jsrun:
        raise HostError("--jsrun: let jsrun start the ranks, hora knows its variables: "
                        f"jsrun -n {args.num_proc or 'N'} python train.py")
    if args.use_mpi and is_elastic(args):
        raise HostError("--mpi: MPI cannot go on without a rank; leave --mpi out of an elastic job")


def run_job(args: argparse.Namespace) -> int:
    prepare(args)
    if is_elastic(args):
        from hora.runner.elastic.driver import run_elastic

        return int(run_elastic(args, make_template(args)))
    return Launcher(make_job(args)).run()


def main(args: argparse.Namespace) -> int:
    if args.check_build:
        return check_build.main()
    try:
        return run_job(args)
    except (HostError, OSError) as error:
        say(str(error))
        return 2


def run_commandline(argv: list[str] | None = None) -> int:
    """The `horovodrun` command."""
    return main(parse_args(argv))


if __name__ == "__main__":
    sys.exit(run_commandline())
