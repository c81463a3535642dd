"""The `hora` command apart from `hora run` (test_run.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hora import cli, cli_info
from hora.runner import hosts as runner_hosts


def hora(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "hora", *args], capture_output=True, text=True,
                          timeout=120, env={**os.environ, **env}, check=False)


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"], ["info", "--help"],
                                  ["perf", "--help"], ["check", "--help"]])
def test_help_everywhere(args: list[str]) -> None:
    done = hora(*args)
    assert done.returncode == 0, done.stderr
    assert "usage: hora" in done.stdout


def test_help_of_every_tool() -> None:
    """And nothing but the help, at once. tools/setup is a part of others, *.py are modules."""
    tools = Path(__file__).parents[2] / "tools"
    for tool in sorted(path for path in tools.iterdir() if path.is_file()):
        if tool.name == "setup" or tool.suffix == ".py":
            continue
        done = subprocess.run([tool, "--help"], capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0 and done.stdout.startswith("usage: "), (tool, done.stderr)


def test_no_command_prints_help() -> None:
    assert hora().returncode == 2


def test_version() -> None:
    import hora as package

    done = hora("--version")
    assert done.stdout == f"hora {package.__version__}\n"


def test_info() -> None:
    done = hora("info", HORA_SECRET="not for the eyes", HORA_ALGO="ring")
    assert done.returncode == 0
    assert " shm " in done.stdout and " tcp " in done.stdout
    assert "HORA_ALGO=ring" in done.stdout
    assert "eyes" not in done.stdout


def test_info_without_utf8() -> None:
    done = hora("info", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert "yes shm" in done.stdout


def test_info_json() -> None:
    info = json.loads(hora("info", "--json", HORA_SECRET="not for the eyes").stdout)
    assert {row["name"] for row in info["backends"]} >= {"shm", "tcp"}
    assert all(row["available"] or row["detail"] for row in info["backends"])
    assert info["usable_cores"] == len(os.sched_getaffinity(0))
    assert "eyes" not in json.dumps(info)


def test_info_shows_slips_of_the_pen() -> None:
    done = hora("info", HORA_TIMEOT="3", HORA_TIMEOUT="3")
    assert "HORA_TIMEOT is no setting of hora; did you mean HORA_TIMEOUT?" in done.stdout
    assert done.stdout.count("no setting of hora") == 1


def test_info_names_the_launcher() -> None:
    info = json.loads(hora("info", "--json", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0").stdout)
    assert info["launcher"] == "torchrun"


def test_gpu_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hora info says of the way that collectives of GPU tensors would take."""
    rows = [{"name": name, "kind": kind, "available": True, "detail": f"{name} is here"}
            for name, kind in (("cuda", "device"), ("nccl", "offload"), ("mpi", "offload"))]  # fmt: skip
    for name in ("HORA_GPU_PATH", "HORA_OFFLOAD", "HORA_HIERARCHICAL_ALLREDUCE",
                 "HOROVOD_HIERARCHICAL_ALLREDUCE"):
        monkeypatch.delenv(name, raising=False)
    ways = cli_info.gpu_paths(rows)
    assert [way["path"].split()[0] for way in ways] == ["nccl", "ipc", "hierarchical"]
    assert ways[2]["ranks"] == "on several hosts" and ways[2]["why"].startswith("only where NCCL works")
    monkeypatch.setenv("HOROVOD_HIERARCHICAL_ALLREDUCE", "1")
    assert cli_info.gpu_paths(rows)[2]["why"] == "HORA_HIERARCHICAL_ALLREDUCE"
    monkeypatch.setenv("HORA_OFFLOAD", "mpi")
    (way,) = cli_info.gpu_paths(rows)
    assert way["path"].startswith("mpi, if it is CUDA-aware") and "mpi is here" in way["why"]
    monkeypatch.setenv("HORA_GPU_PATH", "staged")
    assert [way["path"] for way in cli_info.gpu_paths(rows)] == ["staged"]


def test_info_algorithms() -> None:
    text = hora("info", "--algorithms", "-np", "3", "--transport", "tcp").stdout
    assert text.startswith("# 3 ranks, tcp; ")
    assert {"allreduce", "broadcast", "alltoall"} <= {line.split(" ")[0] for line in text.splitlines()}
    info = json.loads(hora("info", "--algorithms", "-np", "2", "--json").stdout)
    assert (info["ranks"], info["transport"]) == (2, "shm")
    for rows in info["collectives"].values():
        for row in rows:
            assert row["algorithms"] and all(one["us"] >= 0 for one in row["algorithms"])
    largest = info["collectives"]["allreduce"][-1]["algorithms"]
    assert largest[0]["us"] == min(one["us"] for one in largest)  # the one that is taken


def test_info_calibrate(tmp_path: Path) -> None:
    """What is measured is kept, and used by the next job; a damaged file is not, and one that is missing is
    not missed in silence."""
    folder = {"XDG_CACHE_HOME": str(tmp_path)}
    said = json.loads(hora("info", "--calibrate", "-np", "2", "--json", **folder).stdout)
    [path] = (tmp_path / "hora").iterdir()
    assert said == {"ranks": 2, "transport": "shm", "file": str(path)}
    assert str(path) in hora("info", "--algorithms", **folder).stdout.splitlines()[0]
    assert hora("perf", "-np", "2", "-e", "64K", "-n", "3", **folder).returncode == 0
    path.write_text(path.read_text()[:-100])
    done = hora("info", "--algorithms", **folder)
    assert "damaged" in done.stderr and "formulas" in done.stdout.splitlines()[0]
    done = hora("info", "--algorithms", HORA_ALGO_TIMES=str(tmp_path / "typo"))
    assert "typo does not exist" in done.stderr and "formulas" in done.stdout.splitlines()[0]
    assert hora("info", "--algorithms", XDG_CACHE_HOME=str(tmp_path / "none")).stderr == ""


def test_info_calibrate_measures_nothing_in_vain(tmp_path: Path) -> None:
    """Where the times cannot be written it says so at once, and not after seconds of measuring."""
    (tmp_path / "file").touch()
    begin = time.monotonic()
    done = hora("info", "--calibrate", "-np", "2", XDG_CACHE_HOME=str(tmp_path / "file"))
    assert time.monotonic() - begin < 5
    assert done.returncode == 1 and "Not a directory" in done.stderr
    assert f"{tmp_path}/file/hora/times-" in done.stderr and "HORA_ALGO_TIMES" in done.stderr
    done = hora("info", "--calibrate", "-np", "2", HORA_ALGO_TIMES=str(tmp_path))
    assert done.returncode == 1 and "Is a directory" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("args, text", [
    (["perf", "-b", "x"], "bad value 'x' of -b"),
    (["perf", "--coll", "x"], "bad value 'x' of --coll"),
    (["perf", "-np", "0"], "bad value '0' of --np"),
    (["check", "-np", "2x"], "-np 2x; 1 to 256"),
    (["check", "-np", "4294967298"], "-np 4294967298; 1 to 256"),
    (["info", "--algorithms", "--np", "0"], "bad value '0'"),
])
def test_wrong_option_is_named(args: list[str], text: str) -> None:
    done = hora(*args)
    assert done.returncode == 2 and text in done.stderr


@pytest.mark.parametrize("args", [["--transport", "pigeon"], ["--algo", "abacus"]])
def test_check_says_why_it_checked_nothing(args: list[str]) -> None:
    done = hora("check", "-np", "1", *args)
    assert done.returncode == 1 and f" {args[1]}" in done.stdout


def test_info_algorithms_of_a_forced_one() -> None:
    info = json.loads(hora("info", "--algorithms", "--json", HORA_ALGO="ring").stdout)
    assert info["collectives"]["allreduce"][-1]["algorithms"][0]["name"] == "ring"


def test_tool_from_bin_dir(tmp_path: Path) -> None:
    tool = tmp_path / "hora-perf"
    tool.write_text("#!/bin/sh\necho mine \"$@\"\n")
    tool.chmod(0o755)
    assert hora("perf", "-np", "2", HORA_BIN_DIR=str(tmp_path)).stdout == "mine -np 2\n"


def test_tool_that_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                              tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "find_tool", lambda name: None)
    assert cli.run_tool("hora-perf", []) == 127
    assert "HORA_BIN_DIR" in capsys.readouterr().err


def test_hosts() -> None:
    hosts = runner_hosts.parse_hosts("a:2,b,[::2]:3,a:1")
    assert [(host.name, host.slots) for host in hosts] == [("a", 3), ("b", 1), ("::2", 3)]
    used = runner_hosts.assign(hosts, 4)
    assert [host.ranks for host in used] == [[0, 1, 2], [3]]
    with pytest.raises(runner_hosts.HostError, match="-np 8"):
        runner_hosts.assign(hosts, 8)


@pytest.mark.parametrize("text", ["a:0", "a:b", "a b", "[::1"])
def test_hosts_that_are_none(text: str) -> None:
    with pytest.raises(runner_hosts.HostError):
        runner_hosts.parse_hosts(text)


def test_ranks_across_hosts() -> None:
    hosts = [runner_hosts.Host("localhost", 2, [0, 1]), runner_hosts.Host("127.0.0.2", 1, [2])]
    env = runner_hosts.rank_environments(hosts, "s" * 64)
    cross = [(e["HORA_LOCAL_RANK"], e["HORA_CROSS_RANK"], e["HORA_CROSS_SIZE"]) for e in env.values()]
    assert cross == [("0", "0", "2"), ("1", "0", "1"), ("0", "1", "2")]
    assert len({e["HORA_RENDEZVOUS"] for e in env.values()}) == 1
