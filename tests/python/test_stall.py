"""The stall inspector: ranks that wait for a tensor say so, with ranks, tensors and seconds."""

from __future__ import annotations

import re

import pytest
import ranks

# Rank 1 comes late with two tensors. Without torch, which takes seconds to import.
PROGRAM = """
import os, time
import numpy as np
from hora import _core
_core.init(-1, -1, None, None, 0.0, 0.0, 0)
me = _core.rank()
def begin(name):
    x = np.ones(100, dtype=np.float32)
    return _core.enqueue(_core.ALLREDUCE, name, x, x, _core.SUM, 1.0, 1.0, 0, None, 0)
begin("warm").wait()
if me == 1:
    time.sleep(LATE)
handles = [begin("late.a"), begin("late.b")]
for handle in handles:
    try:
        handle.wait()
    except RuntimeError as error:
        print("FAILED", error, flush=True)
while True:  # until the late one is there
    try:
        begin("after").wait()
        break
    except RuntimeError as error:
        assert "after" in str(error), error
_core.shutdown()
"""


def run(transport: str, late: float, **env: str) -> list[str]:
    """What each of 3 ranks wrote."""
    program = PROGRAM.replace("LATE", str(late))
    outcomes = ranks.start(program, 3, env=env | {"HORA_TRANSPORT": transport}).wait()
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], [o.output for o in outcomes]
    return [outcome.output for outcome in outcomes]


@pytest.mark.parametrize(("transport", "prefix"), [("auto", "HOROVOD"), ("tcp", "HORA")])
def test_warning(transport: str, prefix: str) -> None:
    outputs = run(transport, 1.5, **{f"{prefix}_STALL_CHECK_TIME_SECONDS": "0.5"})
    pattern = (r"warning: allreduce (late\.[ab]): waited (\d+\.\d) s for rank 1 \((.+?)\); "
               r"ready: ranks 0 \((.+?)\), 2 \((.+?)\)")
    for rank in (0, 2):
        found = re.findall(pattern, outputs[rank])
        assert {name for name, *_ in found} == {"late.a", "late.b"}, outputs[rank]
        assert all(0.5 <= float(seconds) <= 4 for _, seconds, *_ in found), outputs[rank]
        assert "FAILED" not in outputs[rank] and "warm" not in outputs[rank]
    assert "waited" not in outputs[1]  # it learns of them when it is all over


@pytest.mark.parametrize("transport", ["auto", "tcp"])
def test_shutdown_time(transport: str) -> None:
    outputs = run(transport, 2.0, HORA_STALL_CHECK_TIME_SECONDS="0.4",
                  HORA_STALL_SHUTDOWN_TIME_SECONDS="1.2")
    for output in outputs:
        failed = re.findall(r"FAILED allreduce (late\.[ab]): waited \d\.\d s for rank 1 ", output)
        assert failed == ["late.a", "late.b"], output
    assert "warning: allreduce late.a" in outputs[0]
    assert "is not more than" not in outputs[0]


def test_disabled() -> None:
    outputs = run("auto", 1.5, HORA_STALL_CHECK_TIME_SECONDS="0.3", HORA_STALL_CHECK_DISABLE="1")
    assert not any("waited" in output for output in outputs)


def test_shutdown_time_that_leaves_no_warning() -> None:
    """Horovod wants the shutdown time to be the longer one."""
    outputs = run("auto", 1.5, HOROVOD_STALL_CHECK_TIME_SECONDS="60",
                  HOROVOD_STALL_SHUTDOWN_TIME_SECONDS="0.5")
    assert ("HORA_STALL_SHUTDOWN_TIME_SECONDS=0.5 is not more than "
            "HORA_STALL_CHECK_TIME_SECONDS=60") in outputs[0]
    assert all("is not more than" not in output for output in outputs[1:])
    assert all(output.count("FAILED") == 2 for output in outputs)
    quiet = run("auto", 0, HOROVOD_STALL_SHUTDOWN_TIME_SECONDS="5",
                HOROVOD_STALL_CHECK_DISABLE="1")
    assert not any("is not more" in output for output in quiet)
