"""Settings by Horovod's names: those that are honoured, and what is said of those with no meaning."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import ranks


def _affinity_of_engine() -> str:
    import hora.torch as hvd

    hvd.init()
    found, end = "no engine thread", time.monotonic() + 20
    while time.monotonic() < end:  # the thread binds itself when it first runs
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().strip() == "hora-engine":
                lines = (task / "status").read_text().splitlines()
                found = next(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
        if found.isdigit():
            break
        time.sleep(0.05)
    return found


def test_thread_affinity_by_local_rank() -> None:
    cores = sorted(os.sched_getaffinity(0))
    first, second = cores[0], cores[-1]
    outcomes = ranks.start(_affinity_of_engine, 2, env={"HOROVOD_THREAD_AFFINITY": f"{second},{first}"}).wait()
    assert [outcome.value for outcome in outcomes] == [str(second), str(first)]


@pytest.mark.parametrize("value", ["0", "0,", "0,x", "0,9999"])
def test_thread_affinity_without_a_core_for_a_rank(value: str) -> None:
    outcomes = ranks.start(_affinity_of_engine, 2, env={"HORA_THREAD_AFFINITY": value}).wait()
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes[1].output
    assert "HORA_THREAD_AFFINITY" in outcomes[1].output
    assert "no core for local rank 1" in outcomes[1].output


def _barrier() -> None:
    import hora.torch as hvd

    hvd.init()
    hvd.barrier()
    hvd.shutdown()
    hvd.init()  # what was said is not said again
    hvd.barrier()


def test_a_setting_without_meaning_is_named_once_by_rank_0() -> None:
    env = {"HOROVOD_CYCLE_TIME": "5", "HOROVOD_CONTROLLER": "gloo", "HOROVOD_HIERARCHICAL_ALLGATHER": "1"}
    outcomes = ranks.start(_barrier, 2, env=env).wait()
    assert [outcome.code for outcome in outcomes] == [0, 0]
    assert outcomes[0].output.count("HOROVOD_CYCLE_TIME=5 has no effect") == 1
    assert outcomes[0].output.count("HOROVOD_HIERARCHICAL_ALLGATHER=1 has no effect") == 1
    assert "HOROVOD_CONTROLLER" not in outcomes[0].output
    assert "HOROVOD_" not in outcomes[1].output


def test_a_bad_value_is_an_error_that_says_what_is_allowed() -> None:
    outcomes = ranks.start(_barrier, 1, env={"HOROVOD_FUSION_THRESHOLD": "much"}).wait()
    assert outcomes[0].code == 1
    assert 'HOROVOD_FUSION_THRESHOLD="much" is not understood; expected bytes' in outcomes[0].output
