"""Timelines: what each rank records, files that are JSON whenever a rank is killed, `hora trace`."""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ranks

from hora import cli

ODD_NAMES = ['quote " and \\ back', "tab\t and\nline", "ünï→𝄞", "</script>", "\x01\x7f", "{}[],:"]


# ---- Reading a timeline --------------------------------------------------------------------------


def load(path: Path | str) -> list[dict[str, Any]]:
    """The events of a file that must be JSON, whose slices nest and do not run backwards."""
    events = json.loads(Path(path).read_bytes().decode("utf-8"))
    open_slices: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        assert event["ph"] in "MBEXi", event
        if event["ph"] == "B":
            open_slices.setdefault(event["pid"], []).append(event)
        elif event["ph"] == "E":
            begin = open_slices[event["pid"]].pop()
            assert begin["ts"] <= event["ts"], (begin, event)
    return list(events)


def process_names(events: list[dict[str, Any]]) -> dict[int, str]:
    return {e["pid"]: e["args"]["name"] for e in events if e.get("name") == "process_name"}


def of_tensor(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    names = process_names(events)
    return [e for e in events if names[e["pid"]] == name and e["ph"] != "M"]


def slices(events: list[dict[str, Any]], name: str) -> list[str]:
    return [e["name"] for e in of_tensor(events, name) if e["ph"] == "B"]


# ---- What is recorded ----------------------------------------------------------------------------


def refused(kind: type[BaseException], call: Any, *texts: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    for text in texts:
        assert text in str(caught.value), caught.value


def one_of_each(hvd: Any, torch: Any) -> None:
    hvd.allreduce(torch.ones(3, 4), name="reduce")
    hvd.allgather(torch.ones(hvd.rank() + 1, 2), name="gather")
    hvd.broadcast(torch.ones(5), 0, name="cast")
    hvd.alltoall(torch.ones(2 * hvd.size()), name="all")
    hvd.reducescatter(torch.ones(7, 2), op=hvd.Sum, name="scatter")
    hvd.allreduce(torch.ones(6), op=hvd.Adasum, name="ada")
    handles = [hvd.allreduce_async(torch.ones(100), name=f"grad.{i}") for i in range(50)]
    for handle in handles:
        hvd.synchronize(handle)
    hvd.grouped_allreduce([torch.ones(8), torch.ones(9)], name="group")
    for name in ODD_NAMES:
        hvd.allreduce(torch.ones(1), name=name)
    hvd.barrier()
    hvd.join()


def errors(hvd: Any, folder: str, path: str) -> None:
    me = hvd.rank()
    refused(OSError, lambda: hvd.start_timeline(f"{folder}/none/t.json"), "none/t.json",
            "No such file")
    refused(ValueError, lambda: hvd.start_timeline(""), "no path")
    refused(TypeError, lambda: hvd.start_timeline(3))
    hvd.stop_timeline()  # nothing to be stopped
    hvd.start_timeline(path)
    refused(ValueError, lambda: hvd.start_timeline(f"{folder}/other"), path if me == 0 else
            f"{path}.rank{me}", "already")
    hvd.stop_timeline()


def again_and_again(hvd: Any, torch: Any, folder: str) -> int:
    """Starts and stops 50 times while three threads are at work; each file must be JSON."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(150):
                hvd.allreduce(torch.ones(64), name=f"thread {number}, tensor {i % 7}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    mine = f"{folder}/again.{hvd.rank()}"
    recorded = 0
    for turn in range(50):
        hvd.start_timeline(mine, mark_cycles=True)
        time.sleep(0.002 * (turn % 3))
        hvd.stop_timeline()
        recorded += len(load(mine if hvd.rank() == 0 else f"{mine}.rank{hvd.rank()}"))
    for thread in threads:
        thread.join()
    assert not failures, failures
    return recorded


def record(folder: str) -> int:
    import hora.torch as hvd
    import torch

    refused(ValueError, lambda: hvd.start_timeline("x"), "not been initialized")
    refused(ValueError, hvd.stop_timeline, "not been initialized")
    hvd.init()
    errors(hvd, folder, f"{folder}/errors")
    hvd.barrier()
    hvd.start_timeline(Path(folder) / "run.json", mark_cycles=True)
    hvd.barrier()
    one_of_each(hvd, torch)
    pair = hvd.add_process_set([0, hvd.size() - 1])
    if pair.included():
        hvd.allreduce(torch.ones(2), name="reduce", process_set=pair)
    hvd.barrier()
    with pytest.raises(hvd.HorovodInternalError):
        hvd.allreduce(torch.ones(2 + hvd.rank()), name="unequal")
    if hvd.rank() == 1:
        time.sleep(0.3)
    hvd.allreduce(torch.ones(2), name="late")
    hvd.stop_timeline()
    hvd.barrier()
    recorded = again_and_again(hvd, torch, folder)
    hvd.barrier()
    hvd.start_timeline(f"{folder}/open.json")
    hvd.barrier()
    hvd.allreduce(torch.ones(2), name="last")
    hvd.shutdown()  # closes it
    return recorded


OPERATIONS = {"reduce": "ALLREDUCE", "gather": "ALLGATHER", "cast": "BROADCAST", "all": "ALLTOALL",
              "scatter": "REDUCESCATTER", "ada": "ADASUM"}
SUFFIX = {"BROADCAST": "BCAST", "ADASUM": "ADASUM_ALLREDUCE"}


def check_operations(events: list[dict[str, Any]], rank: int, size: int) -> None:
    known = set(process_names(events).values())
    for short, operation in OPERATIONS.items():
        name = next(n for n in known if n.endswith(short) and not n.startswith("ranks"))
        begun = slices(events, name)
        assert begun[:2] == [f"NEGOTIATE_{operation}", "QUEUE"], begun
        assert operation in begun
        assert f"SHM_{SUFFIX.get(operation, operation)}" in begun, begun
        ready = {e["name"] for e in of_tensor(events, name) if e["ph"] == "X"}
        assert ready == ({str(r) for r in range(size)} if rank == 0 else {str(rank)})
        done = [e["args"] for e in of_tensor(events, name) if e["ph"] == "E" and "args" in e]
        assert [d["dtype"] for d in done] == ["float32"]
    gathered = next(n for n in known if n.endswith("gather"))
    (done,) = [e["args"] for e in of_tensor(events, gathered) if "args" in e]
    assert done["shape"] == f"[{rank + 1}, 2]" and done["bytes"] == 8 * (rank + 1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timeline")
    counts = ranks.run(record, 3, str(folder))
    assert all(count > 100 for count in counts), counts
    return folder


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_events(recorded: Path, rank: int) -> None:
    events = load(recorded / ("run.json" + (f".rank{rank}" if rank else "")))
    head = events[0]["args"]
    assert (head["rank"], head["size"], head["clock_offset_in_micros"]) == (rank, 3, 0)
    assert abs(head["start_time_since_epoch_in_micros"] / 1e6 - time.time()) < 3600
    names = process_names(events)
    sorts = {e["pid"]: e["args"]["sort_index"] for e in events
             if e.get("name") == "process_sort_index"}
    assert sorts == {pid: pid for pid in names}
    check_operations(events, rank, 3)
    fused = {e["name"] for name in names.values() if "grad." in name
             for e in of_tensor(events, name) if e["ph"] == "B"}
    assert {"MEMCPY_IN_FUSION_BUFFER", "SHM_ALLREDUCE", "MEMCPY_OUT_FUSION_BUFFER",
            "WAIT_FOR_OTHER_TENSOR_DATA"} <= fused
    assert any(e.get("name") == "CYCLE_START" and e["ph"] == "i" for e in events)
    for name in ODD_NAMES:
        assert any(known.endswith(name) for known in names.values()), name
    assert any("BARRIER" in slices(events, name) for name in names.values())
    assert any("NEGOTIATE_JOIN" in slices(events, name) for name in names.values())


def test_errors_and_delays(recorded: Path) -> None:
    events = load(recorded / "run.json")
    names = process_names(events).values()
    unequal = next(name for name in names if name.endswith("unequal"))
    assert "ALLREDUCE" not in slices(events, unequal)
    failed = [e["args"]["error"] for e in of_tensor(events, unequal) if "args" in e]
    # Twice if the others disagreed before rank 0 had the tensor, whose own task then fails as well.
    assert len(failed) in (1, 2) and all(text.count(" has shape [") == 2 for text in failed)
    late = next(name for name in names if name.endswith("late"))
    ready = {e["name"]: e["ts"] for e in of_tensor(events, late) if e["ph"] == "X"}
    assert ready["1"] - ready["0"] > 200_000 > ready["2"] - ready["0"]


def test_process_sets(recorded: Path) -> None:
    for rank in range(3):
        events = load(recorded / ("run.json" + (f".rank{rank}" if rank else "")))
        pair = [n for n in process_names(events).values() if n.startswith("ranks 0, 2: ")]
        assert bool(pair) == (rank != 1)
        if rank == 0:
            ready = {e["name"] for e in of_tensor(events, pair[0]) if e["ph"] == "X"}
            assert ready == {"0", "2"}  # ranks of the job, not of the set


def test_shutdown_closes_it(recorded: Path) -> None:
    for suffix in ("", ".rank1", ".rank2"):
        text = (recorded / f"open.json{suffix}").read_text()
        assert text.endswith("}\n]\n")
        events = load(recorded / f"open.json{suffix}")
        assert any("ALLREDUCE" in slices(events, n) for n in process_names(events).values())
    assert not list(recorded.glob("*.part*"))


# ---- Settings, kills, forks ----------------------------------------------------------------------

# Without torch, which takes seconds to import.
WORK = """
import os, sys, time
import numpy as np
from hora import _core
_core.init(-1, -1, None, None, 0.0, 0.0, 0)
def reduce(name):
    x = np.ones(100, dtype=np.float32)
    _core.enqueue(_core.ALLREDUCE, name, x, x, _core.SUM, 1.0, 1.0, 0, None, 0).wait()
def steps(seconds):
    end, i = time.monotonic() + seconds, 0
    while time.monotonic() < end or i < 20:
        reduce(f"tensor {i % 400}")
        i += 1
        if i == 20:
            open(os.environ["HORA_TEST_FOLDER"] + "/working", "w").close()
"""


@pytest.mark.parametrize("prefix", ["HORA", "HOROVOD"])
def test_settings(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "t.json"
    env = {f"{prefix}_TIMELINE": str(path), f"{prefix}_TIMELINE_MARK_CYCLES": "1"}
    ranks.run(WORK + "reduce('x'); _core.shutdown()", 2, env=env)
    for file in (path, tmp_path / "t.json.rank1"):
        events = load(file)
        assert slices(events, "x")[0] == "NEGOTIATE_ALLREDUCE"
        assert any(e.get("name") == "CYCLE_START" for e in events)


def test_folder_dynamic_and_bad_path(tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    ranks.run(WORK + "reduce('x'); _core.shutdown()", 2, env={"HORA_TIMELINE": str(folder)})
    assert sorted(file.name for file in folder.iterdir()) == ["timeline.0.json", "timeline.1.json"]
    assert all(load(file) for file in folder.iterdir())
    program = WORK + f"reduce('x'); _core.start_timeline({str(tmp_path / 'd.json')!r}, False); "
    ranks.run(program + "reduce('y'); _core.shutdown()", 1, env={"HORA_TIMELINE": "DYNAMIC"})
    assert set(process_names(load(tmp_path / "d.json")).values()) == {"hora, rank 0", "y"}
    outcomes = ranks.start(WORK + "reduce('x'); _core.shutdown()", 1,
                           env={"HORA_TIMELINE": str(tmp_path / "no" / "t.json")}).wait()
    assert outcomes[0].code == 0  # the job goes on
    assert str(tmp_path / "no") in outcomes[0].output or "no/t.json" in outcomes[0].output


def test_killed_at_any_moment(tmp_path: Path) -> None:
    random.seed(4)
    total = 0
    for round_number in range(6):
        path = tmp_path / f"{round_number}.json"
        job = ranks.start(WORK + "steps(20)", 2, env={"HORA_TIMELINE": str(path)})
        job.wait_for_file("working")
        time.sleep(random.uniform(0, 0.4))
        for process in job.processes:
            process.send_signal(signal.SIGKILL)
        job.wait()
        for file in (path, Path(f"{path}.rank1")):
            events = json.loads(file.read_bytes().decode("utf-8"))
            assert events[0]["args"]["size"] == 2
            total += len(events)
    assert total > 1000


def test_other_links(tmp_path: Path) -> None:
    """Over TCP, between "hosts": the clocks are compared."""

    def variables(rank: int, size: int, meeting: str) -> dict[str, str]:
        return ranks.hora_variables(rank, size, meeting) | {"HORA_HOSTNAME": f"host{rank}"}

    path = tmp_path / "t.json"
    program = WORK + "reduce('x'); time.sleep(0.2); _core.stop_timeline(); reduce('end'); "
    program += "_core.shutdown()"
    ranks.run(program, 2, env={"HORA_TIMELINE": str(path)}, variables=variables)
    events = load(tmp_path / "t.json.rank1")
    assert "TCP_ALLREDUCE" in slices(events, "x")
    assert "clock_offset_in_micros" not in events[0]["args"]
    clocks = [e["args"] for e in events if e.get("name") == "clock_offset"]
    assert len(clocks) == 2  # at the start and at the stop
    for clock in clocks:  # it is one machine
        assert abs(clock["clock_offset_in_micros"]) <= clock["clock_error_in_micros"] + 1
    assert events[0]["args"]["host"] == "host1"


def test_child_of_a_fork(tmp_path: Path) -> None:
    program = WORK + """
path = os.environ["HORA_TIMELINE"]
reduce("before")
child = os.fork()
if child == 0:
    try:
        _core.stop_timeline()
    except RuntimeError as error:
        os._exit(7 if "fork" in str(error) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
child = os.fork()
if child == 0:
    sys.exit(0)  # with all that Python does at the exit
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
reduce("after")
_core.shutdown()
"""
    path = tmp_path / "t.json"
    ranks.run(program, 1, env={"HORA_TIMELINE": str(path)})
    assert {"before", "after"} <= set(process_names(load(path)).values())


# ---- hora trace ----------------------------------------------------------------------------------


def head(rank: int, size: int = 2, **args: Any) -> dict[str, Any]:
    base = {"name": f"hora, rank {rank}", "rank": rank, "size": size, "host": f"h{rank}",
            "start_time_since_epoch_in_micros": 5_000_000 + rank}
    return {"ph": "M", "name": "process_name", "pid": 0, "args": base | args}


def clock(ts: float, offset: float) -> dict[str, Any]:
    return {"ph": "M", "name": "clock_offset", "pid": 0, "tid": 0, "ts": ts,
            "args": {"clock_offset_in_micros": offset, "clock_error_in_micros": 1}}


def tensor(ts: float, name: str = "x", pid: int = 1) -> list[dict[str, Any]]:
    """One round of 10 us of negotiation and 20 us of execution."""
    return [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}},
        {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": pid}},
        {"ph": "B", "ts": ts, "pid": pid, "tid": 0, "name": "NEGOTIATE_ALLREDUCE"},
        {"ph": "E", "ts": ts + 10, "pid": pid, "tid": 0},
        {"ph": "B", "ts": ts + 10, "pid": pid, "tid": 0, "name": "ALLREDUCE"},
        {"ph": "B", "ts": ts + 11, "pid": pid, "tid": 0, "name": "SHM_ALLREDUCE"},
        {"ph": "E", "ts": ts + 29, "pid": pid, "tid": 0},
        {"ph": "E", "ts": ts + 30, "pid": pid, "tid": 0,
         "args": {"dtype": "float32", "shape": "[2]", "bytes": 8}},
    ]  # fmt: skip


def write(path: Path, events: list[dict[str, Any]]) -> str:
    path.write_text("[\n" + ",\n".join(json.dumps(event) for event in events) + "\n]\n")
    return str(path)


def hora(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.main(["trace", *args])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def begin_of(events: list[dict[str, Any]], name: str) -> float:
    return next(e["ts"] for e in of_tensor(events, name) if e["ph"] == "B")


def test_merge_shifts_the_clocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rank 1's clock is 900 us behind, and loses 100 us more in the 1000 us that it records."""
    monotonic = "start_time_monotonic_in_micros"
    path = write(tmp_path / "t.json", [head(0, **{monotonic: 1000.0, "clock_offset_in_micros": 0}),
                                       *tensor(100)])
    write(tmp_path / "t.json.rank1", [head(1, **{monotonic: 150.0}), clock(0, 900), *tensor(500),
                                      clock(1000, 1000), *tensor(2000, "y", 2)])
    code, out, err = hora(capsys, "merge", path)
    assert (code, err) == (0, "") and "2 ranks" in out
    events = load(tmp_path / "t.merged.json")
    assert begin_of(events, "rank 0: x") == 100
    assert begin_of(events, "rank 1: x") == 150 + 500 + 950 - 1000
    assert begin_of(events, "rank 1: y") == 150 + 2000 + 1000 - 1000
    names = process_names(events)
    assert sorted(names.values()) == ["rank 0 on h0", "rank 0: x", "rank 1 on h1", "rank 1: x",
                                      "rank 1: y"]
    sorts = {names[e["pid"]]: e["args"]["sort_index"] for e in events
             if e.get("name") == "process_sort_index"}
    assert sorts["rank 0: x"] < sorts["rank 1: x"] < sorts["rank 1: y"]


def test_merge_begins_with_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"clock_offset_in_micros": 0}
    a = write(tmp_path / "a", [head(0, start_time_monotonic_in_micros=70.0, **known), *tensor(0)])
    b = write(tmp_path / "b", [head(1, start_time_monotonic_in_micros=50.0, **known), *tensor(0)])
    out = tmp_path / "out.json"
    assert hora(capsys, "merge", b, a, "-o", str(out))[0] == 0
    events = load(out)
    assert (begin_of(events, "rank 0: x"), begin_of(events, "rank 1: x")) == (20, 0)
    code, text, _ = hora(capsys, "merge", a, b, "-o", "-")
    assert code == 0 and json.loads(text) == events
    assert hora(capsys, "merge", a, b, "-o", a)[0] == 1


def test_merge_by_the_time_of_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As for a file whose rank was killed before it knew rank 0's clock, and for Horovod's own."""
    path = write(tmp_path / "t.json", [head(0), *tensor(5)])
    write(tmp_path / "t.json.rank1", [head(1), *tensor(5)])
    code, _, err = hora(capsys, "merge", path)
    assert code == 0 and "time of day" in err
    events = load(tmp_path / "t.merged.json")
    assert (begin_of(events, "rank 0: x"), begin_of(events, "rank 1: x")) == (5, 6)


def test_merge_damaged_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = {"start_time_monotonic_in_micros": 0.0, "clock_offset_in_micros": 0}
    whole = Path(write(tmp_path / "t.json", [head(0, 4, **known), *tensor(5)]))
    for rank, cut in ((1, 0.7), (2, 0.0)):
        other = Path(write(tmp_path / f"t.json.rank{rank}", [head(rank, 4, **known), *tensor(5)]))
        text = other.read_bytes()
        other.write_bytes(text[: int(len(text) * cut)])
    (tmp_path / "t.json.rank1.part-12").write_text("no trace")
    code, out, err = hora(capsys, "merge", str(whole))
    assert code == 0 and "2 ranks" in out
    assert "rank1: damaged" in err and "rank2" in err and "left out" in err and "rank 2, 3" in err
    merged = json.loads((tmp_path / "t.merged.json").read_text())
    assert "rank 1: x" in process_names(merged).values()
    for name, text in (("empty", ""), ("words", "no trace"), ("number", "3"), ("object", "{}"),
                       ("nothing", "[]"), ("binary", "\x00\x01[["), ("deep", "[" * 100000)):
        (tmp_path / name).write_text(text)
        code, _, err = hora(capsys, "merge", str(tmp_path / name), "-o", "-")
        assert code == 1 and str(tmp_path / name) in err, name
        assert hora(capsys, "summary", str(tmp_path / name))[0] == 1
    (tmp_path / "odd").write_text('[{"ph": "B", "ts": "x"}, 5, {"ph": "E", "args": []}, '
                                  '{"ph": "E", "ts": 1, "pid": 9}, {"ph": "B", "pid": 9}]')
    code, _, err = hora(capsys, "summary", str(tmp_path / "odd"))
    assert code == 0 and "3 lines or events" in err


def test_merge_strangers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write(tmp_path / name, [head(0), *tensor(0)]) for name in "ab")
    code, _, err = hora(capsys, "merge", a, b)
    assert code == 1 and "both of rank 0" in err
    c = write(tmp_path / "c", [head(1, 8), *tensor(0)])
    assert "2 and 8 ranks" in hora(capsys, "merge", a, c, "-o", "-")[2]
    assert "no such file" in hora(capsys, "merge", str(tmp_path / "none"))[2]
    assert "timeline.<rank>.json" in hora(capsys, "merge", str(tmp_path))[2]


def test_merge_real_files(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = hora(capsys, "merge", str(recorded / "run.json"))
    assert (code, err) == (0, "") and "3 ranks" in out
    events = load(recorded / "run.merged.json")
    assert min(e["ts"] for e in events if "ts" in e) >= 0
    # The ranks execute at one time: the ends of a barrier-like operation lie close together.
    names = [n for n in process_names(events).values() if n.endswith("late")]
    ends = [max(e["ts"] for e in of_tensor(events, n)) for n in names]
    assert len(ends) == 3 and max(ends) - min(ends) < 200_000
    begins = [begin_of(events, n) for n in sorted(names)]
    assert begins[1] - begins[2] > 100_000  # rank 1 came late


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [{"ph": "B", "ts": 300, "pid": 2, "tid": 0, "name": "NEGOTIATE_BROADCAST"},
              {"ph": "E", "ts": 350, "pid": 2, "tid": 0, "args": {"error": "rank 1 has left"}}]
    lost = {"ph": "i", "ts": 1, "pid": 0, "tid": 0, "name": "DROPPED_EVENTS", "s": "g",
            "args": {"count": 5}}
    path = write(tmp_path / "t", [head(0), *tensor(0), *tensor(100), lost, *tensor(200, "y", 2),
                                  *failed])
    code, out, _ = hora(capsys, "summary", path, "--json")
    found = json.loads(out)
    assert code == 0 and (found["rank"], found["host"], found["dropped"]) == (0, "h0", 5)
    y, x = found["tensors"]
    assert x == {"tensor": "x", "operation": "ALLREDUCE", "count": 2, "negotiate_us": 20,
                 "operation_us": 40, "mean_negotiate_us": 10, "mean_operation_us": 20,
                 "longest_us": 30, "bytes": 16, "errors": 0}
    assert (y["count"], y["errors"], y["negotiate_us"]) == (1, 1, 60)
    code, out, _ = hora(capsys, "summary", path, "--sort", "name", "-n", "1")
    assert code == 0 and "5 events were lost" in out and "and 1 more" in out
    assert out.splitlines()[1].split()[:4] == ["x", "ALLREDUCE", "2", "0.020"]


def test_summary_of_a_real_file(recorded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = hora(capsys, "summary", str(recorded / "run.json"), "--json")
    rows = {row["tensor"]: row for row in json.loads(out)["tensors"]}
    grads = [row for name, row in rows.items() if "grad." in name]
    assert code == 0 and len(grads) == 50
    assert all(row["count"] == 1 and row["bytes"] == 400 for row in grads)
    unequal = next(row for name, row in rows.items() if name.endswith("unequal"))
    assert unequal["count"] == 0 and unequal["errors"] in (1, 2)
    text = hora(capsys, "summary", str(recorded / "run.json"), "-n", "0")[1]
    assert "\x01" not in text and len(text.splitlines()) == len(rows) + 1


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for args in ([], ["merge"], ["summary"], ["melt"]):
        with pytest.raises(SystemExit) as ended:
            hora(capsys, *args)
        assert ended.value.code == 2
