"""Two hosts with two ranks each, on real network namespaces (benchmarks/common/netns.py). Skipped where none can
be made; tests/multi/test_hosts.c and `test_collectives hosts` pretend to have hosts, and run everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest
from launching import clean_env, processes_with, wait_until

from hora import cli

COMMON = Path(__file__).resolve().parents[2] / "benchmarks/common"
sys.path.insert(0, str(COMMON))

import netns  # noqa: E402


@pytest.fixture(scope="module")
def hosts() -> Iterator[netns.Hosts]:
    try:
        made = netns.Hosts(2)
    except netns.Unavailable as error:
        pytest.skip(f"network namespaces: {error}")
    with made:
        yield made


def start(hosts: netns.Hosts, rank: int, command: list[str], **env: str) -> subprocess.Popen[str]:
    place = {"HORA_RANK": str(rank), "HORA_SIZE": "4", "HORA_RENDEZVOUS": f"tcp:{hosts.addresses[0]}:29455"}
    return subprocess.Popen(hosts.command(rank // 2, command), env=clean_env(**place, **env), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def run(hosts: netns.Hosts, tool: str, *arguments: str, **env: str) -> list[tuple[str, str]]:
    """What each rank says, on both channels; all end well."""
    found = cli.find_tool(tool)
    assert found is not None
    ranks = [start(hosts, rank, [found, *arguments], **env) for rank in range(4)]
    try:
        said = [rank.communicate(timeout=60) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * 4, said
    return said


def test_two_levels_are_right(hosts: netns.Hosts) -> None:
    """Every collective, type and operation; allreduces by two levels."""
    said = run(hosts, "hora-check", "--algo", "twolevel", "--transport", "auto", "--json", "-", HORA_LOG_LEVEL="info")
    report: dict[str, Any] = json.loads(said[0][0])
    assert report["passed"] and report["calls"] > 500
    for rank, (_, log) in enumerate(said):
        assert f"joined as rank {rank} of 4" in log and f"2 on this host host{rank // 2}" in log
    assert "HORA_ALGO=twolevel does not apply to this allreduce" not in "".join(log for _, log in said)


def test_two_levels_are_chosen(hosts: netns.Hosts) -> None:
    said = run(hosts, "hora-perf", "--algorithms", "--json", "-", "-e", "1M")
    rows = json.loads(said[0][0])["collectives"]["allreduce"]
    assert {"twolevel"} <= {row["algorithms"][0]["name"] for row in rows}


def test_nothing_goes_on_when_it_is_killed(hosts: netns.Hosts) -> None:
    """What runs on the hosts ends with the process that made them."""
    mark = f"HORA_TEST_NETNS={os.getpid()}"
    making = subprocess.Popen([sys.executable, str(COMMON / "netns.py"), "--hosts", "1", "sh", "-c",
                               "export " + mark + "; exec sleep 62"])
    assert wait_until(lambda: len(processes_with(mark)) == 1)
    making.send_signal(signal.SIGKILL)
    making.wait()
    assert wait_until(lambda: not processes_with(mark), 3)
