"""The `hora` command."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from hora import cli_info, cli_trace
from hora.runner import launch

DESCRIPTION = """hora: ring-allreduce collective communication.

  hora info                   what this machine has, and what is missing
  hora check                  does it compute the right thing here?
  hora perf -np 4             how fast is it?
  hora run -np 4 python train.py"""


def find_tool(name: str) -> str | None:
    """A program of hora's: in HORA_BIN_DIR, beside this package, or in PATH."""
    folders = [os.environ.get("HORA_BIN_DIR"), str(Path(__file__).parent)]
    for folder in folders:
        if folder and os.access(Path(folder) / name, os.X_OK):
            return str(Path(folder) / name)
    return shutil.which(name)


def run_tool(name: str, arguments: list[str]) -> int:
    tool = find_tool(name)
    if tool is None:
        print(f"hora: {name} was not found beside {Path(__file__).parent} nor in PATH; it comes with "
              "`pip install hora`, or set HORA_BIN_DIR to the folder of a build", file=sys.stderr)
        return 127
    sys.stdout.flush()
    os.execv(tool, [tool, *arguments])


def version() -> str:
    try:
        from hora import __version__
        return str(__version__)
    except ImportError:
        return cli_info.library_version() or "unknown"


def info_main(args: argparse.Namespace) -> int:
    if not args.algorithms and not args.calibrate:
        return cli_info.main(args)
    if args.transport is not None:
        os.environ["HORA_TRANSPORT"] = args.transport
    arguments = ["--calibrate" if args.calibrate else "--algorithms"]
    arguments += ["-np", str(args.np)] if args.np is not None else []
    arguments += ["--json", "-"] if args.json else []
    return run_tool("hora-perf", arguments)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hora", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="what", metavar="COMMAND")

    runs = commands.add_parser("run", help="start a program on several ranks",
                               description=launch.DESCRIPTION, allow_abbrev=False,
                               usage=launch.USAGE,
                               formatter_class=argparse.RawDescriptionHelpFormatter)
    launch.add_arguments(runs)
    runs.set_defaults(main=launch.main)

    info = commands.add_parser("info", help="what this build and machine have",
                               description="Each back-end: is it available, why not, what to do. Or, with "
                               "--algorithms, which algorithm does what among some ranks.")
    info.add_argument("--json", action="store_true", help="for programs")
    info.add_argument("--algorithms", action="store_true",
                      help="which algorithm is chosen for which sizes, and what it is expected to take")
    info.add_argument("--calibrate", action="store_true",
                      help="measure that, some seconds, and keep it for later jobs with as many ranks")
    info.add_argument("-np", "--np", type=int, metavar="N",
                      help="ranks, with these two (2, unless a launcher started this)")
    info.add_argument("--transport", metavar="NAME", help="auto, shm, tcp or mpi, with these two")
    info.set_defaults(main=info_main)

    trace = commands.add_parser("trace", help="join and sum up timelines", description=cli_trace.DESCRIPTION,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    cli_trace.add_arguments(trace)
    trace.set_defaults(main=cli_trace.main)

    # Shown in the list only: their arguments are the programs' own (see main).
    commands.add_parser("check", help="compare every collective with an exact reference", add_help=False)
    commands.add_parser("perf", help="measure a collective (nccl-tests' table)", add_help=False)
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["perf"] or argv[:1] == ["check"]:
        return run_tool(f"hora-{argv[0]}", argv[1:])
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.version:
        print(f"hora {version()}")
        return 0
    if args.what is None:
        parser.print_help()
        return 2
    return int(args.main(args))


if __name__ == "__main__":
    sys.exit(main())
