"""Elastic jobs: workers that die in any phase, and hosts that come and go."""

from __future__ import annotations

import signal
import socket
import stat
import sys
import time
from pathlib import Path

import pytest

from elastic_job import ElasticJob, check_totals, die_at, wait_until

# ---- Workers that die -----------------------------------------------------------------------------


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_survivors_go_on_and_keep_their_processes(tmp_path: Path, victim: int) -> None:
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", hook=die_at(victim, 10))
    job.succeed()
    check_totals(job, 2)
    survivors = {0, 1, 2} - {victim}
    pids = {e["worker"]: e["pid"] for e in job.events("begin")}
    assert {e["worker"]: e["pid"] for e in job.events("done")} == {w: pids[w] for w in survivors}
    assert f"(worker {victim}) on host {socket.gethostname()} was ended by SIGKILL" in job.err
    again = [e for e in job.events("enter") if e["size"] == 2]
    assert {e["step"] for e in again} <= {10, 11}  # at most the step since the last commit


def test_two_at_once_and_the_last_one_alone(tmp_path: Path) -> None:
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.step >= 8 and me.number in (0, 3): me.die()\n"
            "    if where == 'step' and me.step >= 16 and me.number == 2: me.die()\n")
    job = ElasticJob(tmp_path, "-np", "4", "--min-np", "1", hook=hook)
    job.succeed()
    check_totals(job, 1)
    assert job.events("done")[0]["worker"] == 1


PHASES = {
    "before it asks": "if where == 'begin' and me.number == 1: me.die()",
    "at its place": "if where == 'init' and me.number == 1: me.die()",
    "when it has joined": "if where == 'joined' and me.number == 1: me.die()",
    "in sync": "if where == 'sync' and me.number == 1: me.die()",
    "in the reset after another's death":
        "if where == 'step' and me.number == 2 and me.step >= 5: me.die()\n"
        "    if where == 'init' and me.number == 1 and me.joinings == 1: me.die()",
    "in the sync after another's death":
        "if where == 'step' and me.number == 2 and me.step >= 5: me.die()\n"
        "    if where == 'sync' and me.number == 1 and me.joinings == 2: me.die()",
    "rank 0 in the reset":
        "if where == 'step' and me.number == 2 and me.step >= 5: me.die()\n"
        "    if where == 'init' and me.number == 0 and me.joinings == 1: me.die()",
    "two in the reset":
        "if where == 'step' and me.number == 2 and me.step >= 5: me.die()\n"
        "    if where == 'init' and me.number in (0, 1) and me.joinings == 1: me.die()",
}


@pytest.mark.parametrize("phase", PHASES)
def test_death_in_any_phase(tmp_path: Path, phase: str) -> None:
    """HORA_START_TIMEOUT is 60 s, so a rank that waits for a dead one would be found out."""
    begin = time.monotonic()
    hook = f"def hook(where, me):\n    {PHASES[phase]}\n"
    job = ElasticJob(tmp_path, "-np", "4", "--min-np", "1", hook=hook)
    job.succeed()
    alive = 4 - sum(f"(worker {w})" in line or f"worker {w} on" in line for w in range(4)
                    for line in job.err.splitlines() if "was ended by" in line and "left" in line)
    check_totals(job, alive)
    assert alive < 4
    assert time.monotonic() - begin < 45


def test_death_at_some_moment_of_the_joining(tmp_path: Path) -> None:
    """Some microseconds to milliseconds after the joining began, again and again: with a cooldown
    of next to nothing dead workers are replaced at once."""
    hook = (
        "import random\n"
        "def hook(where, me):\n"
        "    if where == 'init' and me.number not in (0, 2) and me.number < 9:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(random.uniform(0, 0.006))\n"
        "            os.kill(os.getppid(), 9)\n"
        "            os._exit(0)\n"
    )
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", "--blacklist-cooldown-range", "0.01",
                     "0.02", hook=hook, steps=120, nap=0.03)
    job.succeed()
    done = job.events("done")
    assert done and all(e["total"] == 120 and e["seen"] == list(range(120)) for e in done)
    assert job.err.count("was ended by SIGKILL") >= 5


def test_stopped_worker_is_given_up(tmp_path: Path) -> None:
    """One that neither works nor dies, while another has died."""
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.step >= 5 and me.number == 1: me.die()\n"
            "    if where == 'step' and me.step >= 5 and me.number == 2: os.kill(os.getpid(), 19)\n")
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", "--elastic-timeout", "2", hook=hook)
    job.succeed()
    check_totals(job, 1)
    assert "has not come back" in job.err


def test_process_sets_are_made_again(tmp_path: Path) -> None:
    job = ElasticJob(tmp_path, "-np", "4", "--min-np", "1", hook=die_at(3, 5),
                     ELASTIC_TEST_SETS="[[0, 1], [2]]")
    job.succeed()
    check_totals(job, 3)
    for event in job.events("done"):
        rank = event["rank"]
        assert event["sets"] == [[1, [0, 1], rank < 2], [2, [2], rank == 2]]


def test_process_set_whose_ranks_are_gone(tmp_path: Path) -> None:
    job = ElasticJob(tmp_path, "-np", "4", "--min-np", "1", hook=die_at(1, 5),
                     ELASTIC_TEST_SETS="[[2, 3]]")
    assert job.wait() == 1
    last = [line for line in job.err.splitlines() if line.startswith("hora run:")][-1]
    assert "after a reset" in last and "there is no rank 3 in a job of 3 ranks" in last


# ---- Hosts that come and go -----------------------------------------------------------------------


def test_fewer_ranks_then_new_ones(tmp_path: Path) -> None:
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.number == 1 and me.step >= 5: me.die()\n")
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", "--max-np", "3", hook=hook,
                     hosts="localhost:2", steps=100000, nap=0.01, ELASTIC_TEST_STOP="1")
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 1)
    job.set_hosts("localhost:2,127.0.0.1:3")  # of three more, two have room
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 3)
    enter = [e for e in job.events("enter") if e["size"] == 3]
    assert wait_until(lambda: len([e for e in job.events("enter") if e["size"] == 3]) == 3)
    enter = [e for e in job.events("enter") if e["size"] == 3]
    assert len({e["step"] for e in enter}) == 1 and enter[0]["step"] > 5  # the newcomers took over
    assert [e["worker"] for e in enter if e["rank"] == 0] == [0]
    job.set_hosts("localhost:2,127.0.0.1:1")  # one must go
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 2)
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 128 + signal.SIGTERM
    assert len({e["pid"] for e in job.events("enter") if e["worker"] == 0}) == 1


def test_hosts_are_exchanged_altogether(tmp_path: Path) -> None:
    """The newcomers get the state before the last of the old ranks goes."""
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", "--max-np", "4", hosts="localhost:2",
                     steps=150, nap=0.02)
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 2)
    job.set_hosts("127.0.0.1:2")
    job.succeed()
    check_totals(job, 2, 150)
    assert {e["worker"] for e in job.events("done")} == {2, 3}


def test_killed_worker_is_replaced_after_the_cooldown(tmp_path: Path) -> None:
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", "--blacklist-cooldown-range", "0.2", "1",
                     hook=die_at(1, 5), steps=100, nap=0.02)
    job.succeed()
    check_totals(job, 2, 100)
    assert {e["worker"] for e in job.events("done")} == {0, 2}
    assert "no new workers on localhost for 0 s" in job.err
    resets = [e for e in job.events("enter") if e["worker"] == 0]
    assert [e["size"] for e in resets] == [2, 1, 2]


def test_newcomer_waits_as_long_as_it_takes(tmp_path: Path) -> None:
    """A training may go on for long between two commits; only the driver has deadlines."""
    hook = ("def hook(where, me):\n"
            "    if where == 'begin' and me.number == 1:\n"
            "        os.environ['HORA_ELASTIC_TIMEOUT'] = '-119.8'\n")
    job = ElasticJob(tmp_path, "-np", "1", "--min-np", "1", "--max-np", "2", hosts="localhost:1",
                     hook=hook, steps=6, nap=1.5)
    job.await_event(lambda e: e["what"] == "enter")
    job.set_hosts("localhost:1,127.0.0.1:1")
    job.succeed()
    check_totals(job, 2, 6)


def test_failing_host_is_left_alone(tmp_path: Path) -> None:
    """For good, without a range: its free slots stay empty, other hosts are used."""
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", "--max-np", "3", hook=die_at(2, 5),
                     hosts="localhost:2,127.0.0.1:1", steps=60, nap=0.03)
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 2)
    job.set_hosts("localhost:2,127.0.0.1:2")
    job.succeed()
    check_totals(job, 2, 60)
    assert len(job.events("begin")) == 3 and "no new workers on 127.0.0.1" in job.err


def test_workers_behind_ssh(tmp_path: Path) -> None:
    """The driver listens on TCP; rank 0, and with it the meeting place, moves to another host."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/bash\nwhile [ \"${1:0:1}\" = - ]; do shift 2; done\n"
                   "cd / && env -i PATH=\"$PATH\" HOME=/ bash -c \"$2\"\n")
    ssh.chmod(ssh.stat().st_mode | stat.S_IXUSR)
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.step >= 5 and me.number in (0, 1): me.die()\n")
    passed = [f"ELASTIC_TEST_{name}" for name in ("FOLDER", "HOOK", "STEPS", "NAP")] + ["TEST_MARK"]
    options = [word for name in passed for word in ("-x", name)]
    job = ElasticJob(tmp_path, "-np", "4", "--min-np", "1", "--ssh", str(ssh), "--remote-python",
                     sys.executable, *options, hook=hook, hosts="localhost:2,127.0.0.2:1,127.0.0.3:1")
    job.succeed()
    check_totals(job, 2)
    done = sorted(job.events("done"), key=lambda event: event["rank"])
    assert {event["host"] for event in done} == {"127.0.0.2", "127.0.0.3"}
    assert done[0]["meeting"].startswith(f"tcp:{done[0]['host']}:")
    assert done[1]["meeting"] == done[0]["meeting"]


def test_host_that_cannot_be_reached(tmp_path: Path) -> None:
    """The others begin without it."""
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", "--ssh", "/bin/false",
                     hosts="localhost:1,127.0.0.2:1")
    job.succeed()
    check_totals(job, 1)
    assert "no new workers on 127.0.0.2" in job.err
