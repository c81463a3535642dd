"""`hora run --mpi`: the command line of mpirun, for Open MPI and for MPICH and its kin.

mpirun only starts the ranks. It runs under an agent of ours, as one process, so that nothing of it
is left on this machine either. The job's secret goes through the environment, never through an
argument.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shlex
import shutil
import subprocess

from hora.runner.hosts import Host, HostError, meeting_place
from hora.runner.job import Job

REMEDY = "install Open MPI (Debian: openmpi-bin) or MPICH, or leave --mpi out: hora needs no MPI"


def implementation(program: str) -> str:
    """"openmpi" or "hydra" (MPICH, Intel MPI, MVAPICH2)."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60,
                              check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"--mpi: {program} --version: {error}") from None
    text = (done.stdout + done.stderr).lower()
    if any(name in text for name in ("open mpi", "openrte", "prrte", "spectrum")):
        return "openmpi"
    if any(name in text for name in ("hydra", "mpich", "intel(r) mpi", "mvapich")):
        return "hydra"
    first = text.strip().splitlines()[:1]
    raise HostError(f"--mpi: {program} is of no MPI that is known here ({' '.join(first)}); {REMEDY}")


def openmpi(args: argparse.Namespace, job: Job, names: list[str]) -> list[str]:
    words = ["-np", str(job.size), "-H", ",".join(f"{h.name}:{len(h.ranks)}" for h in job.hosts)]
    if os.getuid() == 0:
        words.append("--allow-run-as-root")
    words += shlex.split(args.binding_args or "--bind-to none --map-by slot")
    if job.prefix:
        words.append("--tag-output")
    if job.timestamp:
        words.append("--timestamp-output")
    if job.output_dir:
        words += ["--output-filename", job.output_dir]
    if args.tcp_flag:
        words += ["--mca", "pml", "ob1", "--mca", "btl", "^openib"]
    if len(job.ssh) > 1:
        words += ["--mca", "plm_rsh_args", " ".join(job.ssh[1:])]
    if args.ssh:
        words += ["--mca", "plm_rsh_agent", args.ssh]
    if args.network_interfaces:
        for name in ("btl_tcp_if_include", "oob_tcp_if_include"):
            words += ["--mca", name, ",".join(args.network_interfaces)]
    for name in names:
        words += ["-x", name]
    return words


def hydra(args: argparse.Namespace, job: Job, names: list[str]) -> list[str]:
    words = ["-np", str(job.size)]
    words += ["-hosts", ",".join(f"{h.name}:{len(h.ranks)}" for h in job.hosts)]
    words += shlex.split(args.binding_args or "-bind-to none")
    if job.prefix:
        words.append("-prepend-rank")
    if args.network_interfaces:
        words += ["-iface", args.network_interfaces[0]]
    return [*words, "-genvlist", ",".join(names)]


def environment(hosts: list[Host]) -> dict[str, str]:
    """What the ranks find besides MPI's own variables, from which they know their rank. No
    PYTHONUNBUFFERED: mpirun writes its tag before every piece that a rank writes."""
    rendezvous, address, port = meeting_place(hosts)
    env = {"HORA_RENDEZVOUS": rendezvous, "HORA_SECRET": secrets.token_hex(32),
           "MASTER_ADDR": address, "MASTER_PORT": str(port)}
    if "OMP_NUM_THREADS" not in os.environ:
        most = max(len(host.ranks) for host in hosts)
        env["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // most))
    return env


def job(args: argparse.Namespace, ranks: Job) -> Job:
    """A job of one process, mpirun, that starts the ranks of the other job."""
    program = shutil.which("mpirun") or shutil.which("mpiexec")
    if program is None:
        raise HostError(f"--mpi: there is no mpirun in PATH; {REMEDY}")
    env = {**environment(ranks.hosts), **ranks.local_env}
    names = sorted({*env, *ranks.remote_env})
    make = {"openmpi": openmpi, "hydra": hydra}[implementation(program)]
    command = [program, *make(args, ranks, names), *shlex.split(args.mpi_args or ""),
               *ranks.command]
    ranks.info(f"mpirun: {shlex.join(command)}")
    return Job(
        hosts=[Host("localhost", 1, [0])], command=command, rank_env={0: env},
        local_env=ranks.local_env, remote_env={}, ssh=[], prefix=False, grace=ranks.grace,
        threads=False, title="mpirun", info=ranks.info,
    )
