"""The options of `hora run`, which are horovodrun's and some more, and the settings they stand for.

Every option is None unless it was given, so that a config file can fill in the others. An option of
Horovod's that changes nothing here is accepted, and a line says why (NOTES).
"""

from __future__ import annotations

import argparse
from typing import Any, Callable

from hora.runner.hosts import HostError

LOG_LEVELS = ("trace", "debug", "info", "warning", "warn", "error", "fatal", "off")


def flag(value: Any) -> str:
    return "1" if value else "0"


def flag_not(value: Any) -> str:
    return "0" if value else "1"


def mebibytes(value: Any) -> str:
    return str(int(float(value) * 1024 * 1024))


# Option, the setting it stands for (docs/config.md), and how its value is written there.
SETTINGS: list[tuple[str, str, Callable[[Any], str]]] = [
    ("timeout", "HORA_TIMEOUT", str),
    ("start_timeout", "HORA_START_TIMEOUT", str),
    ("transport", "HORA_TRANSPORT", str),
    ("network_interfaces", "HORA_INTERFACE", ",".join),
    ("fusion_threshold_mb", "HORA_FUSION_THRESHOLD", mebibytes),
    ("autotune", "HORA_AUTOTUNE", flag),
    ("autotune_log_file", "HORA_AUTOTUNE_LOG", str),
    ("autotune_warmup_samples", "HORA_AUTOTUNE_WARMUP_SAMPLES", str),
    ("autotune_steps_per_sample", "HORA_AUTOTUNE_STEPS_PER_SAMPLE", str),
    ("autotune_bayes_opt_max_samples", "HORA_AUTOTUNE_MAX_CANDIDATES", str),
    ("timeline_filename", "HORA_TIMELINE", str),
    ("timeline_mark_cycles", "HORA_TIMELINE_MARK_CYCLES", flag),
    ("no_stall_check", "HORA_STALL_CHECK_DISABLE", flag),
    ("stall_check_warning_time_seconds", "HORA_STALL_CHECK_TIME_SECONDS", str),
    ("stall_check_shutdown_time_seconds", "HORA_STALL_SHUTDOWN_TIME_SECONDS", str),
    ("log_level", "HORA_LOG_LEVEL", str),
    ("log_with_timestamp", "HORA_LOG_HIDE_TIME", flag_not),
    ("thread_affinity", "HORA_THREAD_AFFINITY", str),
    ("hierarchical_allreduce", "HORA_HIERARCHICAL_ALLREDUCE", flag),
    ("num_nccl_streams", "HORA_NUM_NCCL_STREAMS", str),
    ("tcp_flag", "NCCL_IB_DISABLE", flag),
]

CHOSEN = "algorithms are chosen by size, ranks and hosts; HORA_ALGO forces one"

# Options that change nothing, and why: as src/util/horovod.def has it for their variables.
NOTES = {
    "cycle_time_ms": "the engine is driven by events, it has no cycle",
    "cache_capacity": "the response cache grows as needed",
    "hierarchical_allgather": CHOSEN,
    "torus_allreduce": CHOSEN,
    "autotune_gaussian_process_noise": "autotune compares settings in pairs of samples, there is no "
                                       "Gaussian process",
    "gloo_timeout_seconds": "HORA_START_TIMEOUT is the time to find the ranks, HORA_TIMEOUT that of an "
                            "operation (--start-timeout, --timeout)",
    "mpi_threads_disable": "MPI is called by one thread at a time where it does not take more",
    "tcp_flag": "hosts are connected by TCP anyway (NCCL_IB_DISABLE=1 is set, too)",
    "disable_cache": "no results of checks are kept",
}

MPI_ONLY = ("mpi_args", "binding_args")

NOT_NEGATIVE = (
    "fusion_threshold_mb", "cycle_time_ms", "cache_capacity", "autotune_warmup_samples",
    "autotune_steps_per_sample", "autotune_bayes_opt_max_samples",
    "stall_check_warning_time_seconds", "stall_check_shutdown_time_seconds", "num_nccl_streams",
    "gloo_timeout_seconds", "start_timeout", "timeout", "elastic_timeout", "reset_limit", "grace",
)  # fmt: skip

POSITIVE = ("num_proc", "min_num_proc", "max_num_proc", "slots")


class AppendNames(argparse.Action):
    """Collects names from options that are repeated and from lists with commas."""

    def __call__(self, parser: Any, args: Any, values: Any, option: Any = None) -> None:
        names = [name.strip() for name in str(values).split(",") if name.strip()]
        old = getattr(args, self.dest) or []
        setattr(args, self.dest, old + [name for name in names if name not in old])


class ShowVersion(argparse.Action):
    def __call__(self, parser: Any, args: Any, values: Any, option: Any = None) -> None:
        from hora.cli import version

        print(f"hora {version()}")
        parser.exit()


def log_level(text: str) -> str:
    if text.lower() not in LOG_LEVELS:
        raise argparse.ArgumentTypeError(f"'{text}' is none of {', '.join(LOG_LEVELS)}")
    return text


def pair(group: Any, name: str, help: str, dest: str | None = None, on: bool = True) -> None:
    """--name and --no-name."""
    dest = dest or name.replace("-", "_")
    both = group.add_mutually_exclusive_group()
    both.add_argument(f"--{name}", action="store_const", const=on, dest=dest, help=help)
    both.add_argument(f"--no-{name}", action="store_const", const=not on, dest=dest,
                      help=argparse.SUPPRESS)


def add_hosts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("ranks and hosts")
    group.add_argument("-np", "--num-proc", type=int, metavar="N", help="number of ranks "
                       "(default: the slots of all hosts)")
    where = group.add_mutually_exclusive_group()
    where.add_argument("-H", "--hosts", metavar="HOST:SLOTS,...", help="where the ranks run "
                       "(default: all on this machine)")
    where.add_argument("-hostfile", "--hostfile", metavar="FILE",
                       help="lines 'HOST slots=N' or 'HOST:N'")
    where.add_argument("--host-discovery-script", metavar="FILE", help="elastic: a program that "
                       "prints the hosts, called again and again")
    group.add_argument("-p", "--ssh-port", type=int, metavar="PORT")
    group.add_argument("-i", "--ssh-identity-file", metavar="FILE")
    group.add_argument("--ssh", metavar="PROGRAM", help="instead of ssh")
    group.add_argument("--remote-python", metavar="PROGRAM", help="Python of the other hosts, "
                       "for the launcher's own use (python3)")
    group.add_argument("-x", "--env", action="append", metavar="NAME[=VALUE]",
                       help="set or pass an environment variable; may be repeated")
    group.add_argument("--network-interfaces", "--network-interface", action=AppendNames,
                       metavar="NAME,...", help="for connections between hosts: the first of "
                       "these that a host has (HORA_INTERFACE)")
    group.add_argument("--config-file", metavar="FILE", help="options in YAML; those on the "
                       "command line come first")
    group.add_argument("-cb", "--check-build", action="store_const", const=True,
                       help="show what hora can use here, and end")
    group.add_argument("-v", "--version", action=ShowVersion, nargs=0, help="show the version")


def add_elastic(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("elastic jobs, whose ranks may come and go")
    group.add_argument("--min-np", "--min-num-proc", dest="min_num_proc", type=int, metavar="N",
                       help="wait for more ranks when there are fewer (default: -np)")
    group.add_argument("--max-np", "--max-num-proc", dest="max_num_proc", type=int, metavar="N",
                       help="never more ranks than this (default: no limit)")
    group.add_argument("--slots-per-host", "--slots", dest="slots", type=int, metavar="N",
                       help="for hosts that the discovery script prints without a number")
    group.add_argument("--elastic-timeout", type=float, metavar="S",
                       help="how long to wait for enough ranks after a change (600)")
    group.add_argument("--reset-limit", type=int, metavar="N",
                       help="end the job after so many changes")
    group.add_argument("--blacklist-cooldown-range", dest="cooldown_range", type=float, nargs=2,
                       metavar=("MIN", "MAX"),
                       help="seconds until a host that has failed is tried again")


def add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("-q", "--no-prefix", action="store_const", const=True,
                       help="no rank before the lines; local ranks write straight to this terminal")
    group.add_argument("-prefix-timestamp", "--prefix-output-with-timestamp",
                       action="store_const", const=True, help="the time before each line")
    group.add_argument("--output-filename", metavar="DIR",
                       help="also write DIR/rank.N/stdout and stderr")
    group.add_argument("--verbose", action="store_const", const=True, help="say what is done")
    group.add_argument("--log-level", type=log_level, metavar="LEVEL",
                       help="HORA_LOG_LEVEL: " + ", ".join(LOG_LEVELS))
    times = group.add_mutually_exclusive_group()
    for names, const, text in (
        (("--log-with-timestamp", "--no-log-hide-timestamp"), True, argparse.SUPPRESS),
        (("--log-without-timestamp", "--log-hide-timestamp"), False, "HORA_LOG_HIDE_TIME=1"),
    ):
        times.add_argument(*names, dest="log_with_timestamp", action="store_const", const=const,
                           help=text)


def add_controller(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what starts the ranks")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--gloo", dest="use_gloo", action="store_const", const=True,
                       help="hora itself, with ssh (the default)")
    which.add_argument("--mpi", dest="use_mpi", action="store_const", const=True,
                       help="the mpirun in PATH")
    which.add_argument("--jsrun", dest="use_jsrun", action="store_const", const=True,
                       help="refused: let jsrun start the ranks, they find each other")
    group.add_argument("--mpi-args", metavar="ARGS", help='for mpirun: --mpi-args="--map-by node"')
    group.add_argument("--binding-args", metavar="ARGS",
                       help="for mpirun, instead of binding to nothing and mapping by slot")


def add_tuning(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("settings of the job (see docs/config.md)")
    group.add_argument("--start-timeout", type=float, metavar="S", help="HORA_START_TIMEOUT")
    group.add_argument("--timeout", type=float, metavar="S", help="HORA_TIMEOUT")
    group.add_argument("--transport", metavar="NAME", help="HORA_TRANSPORT")
    group.add_argument("--tcp", dest="tcp_flag", action="store_const", const=True,
                       help="between hosts TCP only, which is so anyway; NCCL_IB_DISABLE=1")
    group.add_argument("--fusion-threshold-mb", type=float, metavar="MB",
                       help="HORA_FUSION_THRESHOLD")
    group.add_argument("--timeline-filename", metavar="FILE", help="HORA_TIMELINE")
    pair(group, "timeline-mark-cycles", "HORA_TIMELINE_MARK_CYCLES")
    pair(group, "stall-check", argparse.SUPPRESS, dest="no_stall_check", on=False)
    group.add_argument("--stall-check-warning-time-seconds", type=float, metavar="S",
                       help="HORA_STALL_CHECK_TIME_SECONDS; --no-stall-check: no warnings")
    group.add_argument("--stall-check-shutdown-time-seconds", type=float, metavar="S",
                       help="HORA_STALL_SHUTDOWN_TIME_SECONDS")
    pair(group, "autotune", "HORA_AUTOTUNE")
    group.add_argument("--autotune-log-file", metavar="FILE", help="HORA_AUTOTUNE_LOG")
    group.add_argument("--autotune-warmup-samples", type=int, metavar="N",
                       help="HORA_AUTOTUNE_WARMUP_SAMPLES")
    group.add_argument("--autotune-steps-per-sample", type=int, metavar="N",
                       help="HORA_AUTOTUNE_STEPS_PER_SAMPLE")
    group.add_argument("--autotune-bayes-opt-max-samples", type=int, metavar="N",
                       help="HORA_AUTOTUNE_MAX_CANDIDATES")
    pair(group, "hierarchical-allreduce", "HORA_HIERARCHICAL_ALLREDUCE")
    group.add_argument("--thread-affinity", metavar="CORE,...", help="HORA_THREAD_AFFINITY")
    group.add_argument("--num-nccl-streams", type=int, metavar="N", help="HORA_NUM_NCCL_STREAMS")
    group.add_argument("--grace", type=float, metavar="S", help="seconds that the other "
                       "ranks have to end by themselves after one has failed (5)")


def add_without_effect(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("Horovod's options that change nothing here, and why")

    def add(name: str, **options: Any) -> None:
        group.add_argument(f"--{name}", help=NOTES[name.replace("-", "_")], **options)

    add("cycle-time-ms", type=float, metavar="MS")
    add("cache-capacity", type=int, metavar="N")
    for name in ("hierarchical-allgather", "torus-allreduce", "mpi-threads-disable"):
        pair(group, name, NOTES[name.replace("-", "_")])
    add("autotune-gaussian-process-noise", type=float, metavar="X")
    add("gloo-timeout-seconds", type=float, metavar="S")
    add("disable-cache", action="store_const", const=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for add in (add_hosts, add_elastic, add_output, add_controller, add_tuning, add_without_effect):
        add(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...",
                        help="the program and its arguments")


def check_values(args: argparse.Namespace) -> None:
    for limit, names in ((0, NOT_NEGATIVE), (1, POSITIVE)):
        for name in names:
            value = getattr(args, name)
            if value is not None and not value >= limit:
                option = {"num_proc": "-np"}.get(name, "--" + name.replace("_", "-"))
                raise HostError(f"{option} {value:g}: must be at least {limit}")
    if args.cooldown_range is not None and not 0 <= args.cooldown_range[0] <= args.cooldown_range[1]:
        raise HostError("--blacklist-cooldown-range: 0 <= MIN <= MAX")
    given = [n for n in (args.min_num_proc, args.num_proc, args.max_num_proc) if n is not None]
    if given != sorted(given):
        raise HostError("--min-np must not be more than -np, nor -np more than --max-np; they are "
                        + ", ".join(map(str, given)))


def settings(args: argparse.Namespace) -> dict[str, str]:
    """The options that stand for settings, as environment variables. A later row wins."""
    values = {}
    for dest, name, write in SETTINGS:
        value = getattr(args, dest)
        if value is not None:
            values[name] = write(value)
    return values


def notes(args: argparse.Namespace) -> list[str]:
    """A line for each option that was given and changes nothing, or not here."""
    given = [name for name in NOTES if getattr(args, name) is not None]
    lines = [f"{option_name(name)}: {NOTES[name]}" for name in given]
    if not args.use_mpi:
        lines += [f"{option_name(name)}: only with --mpi; hora run binds nothing"
                  for name in MPI_ONLY if getattr(args, name)]
    return lines


def option_name(dest: str) -> str:
    return {"tcp_flag": "--tcp"}.get(dest, "--" + dest.replace("_", "-"))
