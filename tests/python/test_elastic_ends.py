"""How elastic jobs end, well or not; what their workers find."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import hora
from elastic_job import ElasticJob, check_totals, die_at
from hora import _core
from hora.common import basics, elastic, elastic_worker


def test_exception_of_the_program_ends_the_job(tmp_path: Path) -> None:
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.number == 1 and me.step == 5:\n"
            "        raise ArithmeticError('the loss is not a number')\n")
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", hook=hook)
    assert job.wait() == 1
    last = [line for line in job.err.splitlines() if line.startswith("hora run:")][-1]
    assert "worker 1" in last and "ArithmeticError: the loss is not a number" in last
    assert job.events("done") == [] and len(job.events("begin")) == 3


def test_too_few_ranks_for_too_long(tmp_path: Path) -> None:
    begin = time.monotonic()
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "2", "--elastic-timeout", "2",
                     hook=die_at(1, 5), hosts="localhost:2")
    assert job.wait() == 128 + 9
    last = [line for line in job.err.splitlines() if line.startswith("hora run:")][-1]
    assert "1 rank of at least 2 (--min-np) for 2 s (--elastic-timeout)" in last
    assert "failed: localhost" in last
    assert time.monotonic() - begin > 2


def test_too_few_ranks_and_no_hope(tmp_path: Path) -> None:
    """Hosts are fixed: nothing would change in 600 s."""
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "2", hook=die_at(0, 5))
    assert job.wait(30) == 128 + 9
    assert "1 rank of at least 2 (--min-np), and no more can come" in job.err


def test_hosts_that_do_not_suffice(tmp_path: Path) -> None:
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "2", "--elastic-timeout", "1",
                     hosts="localhost:1")
    assert job.wait(30) == 1
    assert "0 ranks of at least 2" in job.err and "hosts: localhost:1" in job.err


def test_discovery_script_that_fails(tmp_path: Path) -> None:
    script = tmp_path / "broken.sh"
    script.write_text("#!/bin/sh\necho the scheduler is down >&2; exit 3\n")
    script.chmod(0o755)
    job = ElasticJob(tmp_path, "-np", "1", "--elastic-timeout", "1", "--host-discovery-script",
                     str(script))
    assert job.wait(30) == 1
    assert "ended with 3: the scheduler is down" in job.err


def test_reset_limit(tmp_path: Path) -> None:
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.step >= 5 and me.number == 3: me.die()\n"
            "    if where == 'step' and me.step >= 10 and me.number == 2: me.die()\n")
    job = ElasticJob(tmp_path, "-np", "4", "--min-np", "1", "--reset-limit", "1", hook=hook)
    assert job.wait() == 128 + 9
    assert "this would be reset number 2, and --reset-limit is 1" in job.err


def test_all_die(tmp_path: Path) -> None:
    hook = "def hook(where, me):\n    if where == 'step' and me.step >= 5: me.die()\n"
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", "--blacklist-cooldown-range", "0.1",
                     "0.2", hook=hook)
    assert job.wait() == 128 + 9
    assert "no worker is left" in job.err or "had the state of the training has ended" in job.err


def test_state_that_is_lost_is_an_error(tmp_path: Path) -> None:
    """A newcomer must not begin from nothing when those who had the state have died."""
    hook = ("def hook(where, me):\n"
            "    if where == 'begin' and me.number == 1: me.await_file('go')\n"
            "    if where == 'sync' and me.number == 0 and me.joinings == 2: me.die()\n")
    job = ElasticJob(tmp_path, "-np", "1", "--min-np", "1", "--max-np", "2", "--elastic-timeout", "5",
                     hook=hook, hosts="localhost:1", steps=100000, nap=0.01)
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 1)
    job.set_hosts("localhost:1,127.0.0.1:1")
    (tmp_path / "go").touch()
    assert job.wait() == 128 + 9
    assert "had the state of the training has ended" in job.err


def test_worker_without_hora(tmp_path: Path) -> None:
    """Programs that never call init() are run as they are."""
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", command=["sh", "-c", "echo $HORA_RANK"])
    job.succeed()
    assert sorted(line.rpartition(":")[2] for line in job.out.splitlines()) == ["0", "1"]
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", command=["sh", "-c", "exit 7"])
    assert job.wait() == 7


def test_program_that_does_not_exist(tmp_path: Path) -> None:
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", command=["/no/such/program"])
    assert job.wait() == 127
    assert "/no/such/program" in job.err


def test_interrupted_and_killed_launcher(tmp_path: Path) -> None:
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", steps=100000)
    job.await_event(lambda e: e["what"] == "enter")
    job.process.send_signal(signal.SIGINT)
    assert job.wait() == 128 + signal.SIGINT
    other = tmp_path / "other"
    other.mkdir()
    job = ElasticJob(other, "-np", "3", "--min-np", "1", steps=100000)
    job.await_event(lambda e: e["what"] == "enter")
    job.process.kill()
    assert job.wait() == -signal.SIGKILL  # and no worker is left, see wait()


def test_environment_of_the_workers(tmp_path: Path) -> None:
    hook = ("def hook(where, me):\n"
            "    if where == 'step' and me.number == 0 and me.step >= 5: me.die()\n"
            "    names = ('RANK', 'SIZE', 'LOCAL_RANK', 'LOCAL_SIZE', 'CROSS_RANK', 'CROSS_SIZE',\n"
            "             'ELASTIC')\n"
            "    if where == 'done':\n"
            "        me.say('env', hora=[os.environ['HORA_' + n] for n in names],\n"
            "               horovod=[os.environ['HOROVOD_' + n] for n in names],\n"
            "               argv=[open(f'/proc/{p}/cmdline').read() for p in\n"
            "                     (os.getpid(), os.getppid())], secret=os.environ['HORA_SECRET'])\n")
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "1", hook=hook, HOROVOD_ELASTIC_TIMEOUT=5)
    job.succeed()
    found = sorted(job.events("env"), key=lambda e: e["hora"])
    for rank, event in enumerate(found):
        assert event["hora"] == [str(rank), "2", str(rank), "2", "0", "1", "1"]
        assert event["horovod"] == event["hora"]
        assert not any(event["secret"] in text for text in event["argv"])


def function_for_run(steps: int, victim: str) -> tuple[int, int, int]:
    """What test_function runs on the ranks."""
    if victim == "line" and os.environ["HORA_ELASTIC_ID"] == "1":
        elastic_worker.worker()._socket.shutdown(socket.SHUT_RDWR)
    basics.init()
    if victim == "error" and basics.rank() == 1:
        raise ArithmeticError("the loss is not a number")

    def bcast(obj: Any) -> Any:
        data = list(pickle.dumps(obj)) if basics.rank() == 0 else []
        return pickle.loads(bytes(_core.exchange("bcast", data)[0]))

    def train(state: Any) -> tuple[int, int, int]:
        while state.step < steps:
            _core.exchange("step", [1])
            if state.step == 5 and os.environ["HORA_ELASTIC_ID"] == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            state.step += 1
            state.commit()
        return basics.rank(), basics.size(), state.step

    state = elastic.ObjectState(bcast, basics.rank, step=0)
    return elastic.run_fn(train, basics.restart)(state)  # type: ignore[no-any-return]


def test_function() -> None:
    """hora.run returns what the ranks returned that are there at the end."""
    values = hora.run(function_for_run, (20, "0"), num_proc=3, min_num_proc=1)
    assert values == [(0, 2, 20), (1, 2, 20)]
    with pytest.raises(RuntimeError, match="the loss is not a number"):
        hora.run(function_for_run, (20, "error"), num_proc=3, min_num_proc=1)


def test_child_of_a_worker_is_no_worker(tmp_path: Path) -> None:
    """It has the worker's environment; init() there must not take the worker's line away."""
    hook = ("import subprocess\n"
            "def hook(where, me):\n"
            "    if where == 'step' and me.step == 3 and me.number == 0:\n"
            "        program = 'from hora.common import basics; basics.init()'\n"
            "        done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)\n"
            "        me.say('child', code=done.returncode, err=done.stderr)\n")
    job = ElasticJob(tmp_path, "-np", "2", "--min-np", "1", hook=hook)
    job.succeed()
    check_totals(job, 2)
    (child,) = job.events("child")
    assert child["code"] == 1 and "only the worker itself may call init()" in child["err"]
    assert f"is process {child['pid']}," in child["err"]
    assert len(job.events("enter")) == 2


NOTHING_ELASTIC = ("if env | grep -E '^(HORA|HOROVOD)_ELASTIC'; then exit 3; fi; "
                   "echo inner $HORA_RANK of $HORA_SIZE")


def test_plain_job_inside_an_elastic_one(tmp_path: Path) -> None:
    """Its ranks are of another job: they must not speak with the driver of this one."""
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/bash\nwhile [ \"${1:0:1}\" = - ]; do shift 2; done\nexec bash -c \"$2\"\n")
    ssh.chmod(0o755)
    script = f"{sys.executable} -m hora run -q -H localhost,127.0.0.2 --ssh {ssh} " \
        f"--remote-python {sys.executable} bash -c '{NOTHING_ELASTIC.replace(chr(39), chr(34))}'"
    job = ElasticJob(tmp_path, "-np", "1", "--min-np", "1", command=["bash", "-c", script])
    job.succeed()
    assert sorted(line.rpartition(":")[2] for line in job.out.splitlines()) == ["inner 0 of 2", "inner 1 of 2"]


def test_worker_without_a_line_is_not_the_end() -> None:
    """It has never been a member: those who are go on."""
    values = hora.run(function_for_run, (20, "line"), num_proc=2, min_num_proc=1)
    assert values == [(0, 1, 20)]


def test_many_generations_leave_nothing_behind(tmp_path: Path) -> None:
    hook = ("from hora.common import basics\n"
            "def holdings():\n"
            "    status = open('/proc/self/status').read()\n"
            "    kilobytes = int(status.split('VmRSS:')[1].split()[0])\n"
            "    return [len(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task')), kilobytes]\n"
            "def hook(where, me):\n"
            "    if where == 'done':\n"
            "        found = []\n"
            "        for times in (5, 60):\n"
            "            for _ in range(times): basics.restart()\n"
            "            rank = me.rank\n"
            "            basics.shutdown()\n"
            "            found.append(holdings())\n"
            "        me.say('holdings', before=found[0], after=found[1], rank=rank)\n")
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "3", "--reset-limit", "0", hook=hook, steps=3)
    job.succeed()
    found = job.events("holdings")
    assert sorted(event["rank"] for event in found) == [0, 1, 2]
    for event in found:
        assert event["after"][:2] == event["before"][:2]
        assert event["after"][2] - event["before"][2] < 2000
