"""``hora trace``: joins the timelines of several ranks, and sums one up. Needs neither hora's
library nor a job, so it works on any machine that the files were copied to."""

from __future__ import annotations

import argparse
import bisect
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, TextIO

DESCRIPTION = """Works on timelines that HORA_TIMELINE or start_timeline() recorded.

  hora trace merge run.json              all ranks in one file, run.merged.json
  hora trace merge a.json b.json -o c.json
  hora trace summary run.json            how long each tensor took"""

RANK_SPACE = 1 << 20  # sort indices that one rank's tensors have for themselves

Event = dict[str, Any]


class TraceError(Exception):
    """The files cannot be used; the text says which and why."""


def warn(text: str) -> None:
    print(f"hora trace: warning: {text}", file=sys.stderr)


# ---- Reading -------------------------------------------------------------------------------------


@dataclass
class Trace:
    """One rank's file."""

    path: Path
    events: list[Event]
    rank: int = 0
    head: dict[str, Any] = field(default_factory=dict)  # the arguments of process 0
    clocks: list[tuple[float, float]] = field(default_factory=list)  # (ts, offset), in order
    unreadable: int = 0  # lines that were left out

    @property
    def dropped(self) -> int:
        return sum(int(event.get("args", {}).get("count", 0)) for event in self.events
                   if event.get("name") == "DROPPED_EVENTS")


def _salvage(text: str) -> tuple[list[Event], int]:
    """What can be read of a file that is no JSON: hora writes one event a line."""
    events, bad = [], 0
    for line in text.splitlines():
        line = line.strip().strip(",").strip()
        if line in ("", "[", "]"):
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            events.append(event)
        else:
            bad += 1
    return events, bad


def _is_event(event: Any) -> bool:
    return (isinstance(event, dict) and isinstance(event.get("ph"), str)
            and isinstance(event.get("args", {}), dict)
            and all(isinstance(event.get(key, 0), (int, float)) for key in ("ts", "pid", "dur")))


def _events(path: Path) -> tuple[list[Event], int]:
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror or error}") from error
    bad = 0
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        found, bad = _salvage(text)
        if not found:
            raise TraceError(f"{path}: this is no trace ({error})") from None
    if isinstance(found, dict):  # the other form of the format
        found = found.get("traceEvents")
    if not isinstance(found, list):
        raise TraceError(f"{path}: this is no trace: neither a list of events nor traceEvents")
    events = [event for event in found if _is_event(event)]
    bad += len(found) - len(events)
    if not events:
        raise TraceError(f"{path}: there is no event in it")
    return events, bad


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read(path: Path, index: int = 0) -> Trace:
    """Reads a file. A damaged one gives a warning and what could be read. ``index``: its rank,
    should neither the file nor its name say it."""
    events, bad = _events(path)
    trace = Trace(path, events, index, unreadable=bad)
    if bad:
        warn(f"{path}: damaged; {bad} lines or events were left out, {len(events)} are used")
    for event in events:
        args = event.get("args", {})
        if event["ph"] == "M" and event.get("pid") == 0:
            trace.head.update(args if event.get("name") == "process_name" else {})
            if event.get("name") == "clock_offset" and _number(args.get("clock_offset_in_micros")):
                trace.clocks.append((event.get("ts", 0), args["clock_offset_in_micros"]))
    named = re.search(r"(?:\.rank|timeline\.)(\d+)(?:\.json)?$", path.name)
    if isinstance(trace.head.get("rank"), int):
        trace.rank = trace.head["rank"]
    elif named:
        trace.rank = int(named[1])
    if not trace.clocks and _number(trace.head.get("clock_offset_in_micros")):
        trace.clocks = [(0, trace.head["clock_offset_in_micros"])]
    trace.clocks.sort()
    return trace


def siblings(path: Path) -> list[Path]:
    """The files of all ranks that ``path``, as it was given to HORA_TIMELINE, stands for."""
    if path.is_dir():
        pattern, folder = r"timeline\.(\d+)\.json", path
    else:
        pattern, folder = re.escape(path.name) + r"\.rank(\d+)", path.parent
    found = []
    for file in folder.iterdir() if folder.is_dir() else ():
        match = re.fullmatch(pattern, file.name)
        if match:
            found.append((int(match[1]), file))
    files = [file for _, file in sorted(found)]
    if path.is_file():
        files.insert(0, path)
    if not files:
        raise TraceError(f"{path}: there is no such file" if not path.is_dir()
                         else f"{path}: there is no timeline.<rank>.json in this folder")
    return files


def read_all(paths: list[Path]) -> list[Trace]:
    files = siblings(paths[0]) if len(paths) == 1 else paths
    traces: list[Trace] = []
    for index, file in enumerate(files):
        try:
            trace = read(file, index)
        except TraceError as error:
            if len(files) == 1:
                raise
            warn(f"{error}; it is left out")
            continue
        for other in traces:
            if other.rank == trace.rank:
                raise TraceError(f"{other.path} and {file} are both of rank {trace.rank}")
        traces.append(trace)
    if not traces:
        raise TraceError("none of the files can be read")
    _check_family(traces)
    return sorted(traces, key=lambda trace: trace.rank)


def _check_family(traces: list[Trace]) -> None:
    """Are these the ranks of one job, and all of them?"""
    sizes = {trace.head.get("size") for trace in traces if "size" in trace.head}
    if len(sizes) > 1:
        warn(f"the files are of jobs of {' and '.join(str(size) for size in sorted(sizes))} ranks: "
             "some may be left from an earlier run")
    elif sizes:
        missing = sorted(set(range(int(sizes.pop()))) - {trace.rank for trace in traces})
        if missing:
            shown = ", ".join(str(rank) for rank in missing[:16])
            warn(f"no file of rank {shown}{' and more' if len(missing) > 16 else ''}")


# ---- Time ----------------------------------------------------------------------------------------


class Clock:
    """Turns a file's times into those of rank 0's clock, in microseconds."""

    def __init__(self, trace: Trace, start: float, corrects: bool) -> None:
        self._start = start
        self._clocks = trace.clocks if corrects else []

    def __call__(self, ts: float) -> float:
        return self._start + ts + self._offset(ts)

    def _offset(self, ts: float) -> float:
        """Measured at the begin and the end; between these it changes evenly."""
        clocks = self._clocks
        if not clocks:
            return 0.0
        at = bisect.bisect_right(clocks, (ts, float("inf")))
        if at == 0 or at == len(clocks):
            return clocks[min(at, len(clocks) - 1)][1]
        (t0, o0), (t1, o1) = clocks[at - 1], clocks[at]
        return o0 + (o1 - o0) * (ts - t0) / (t1 - t0) if t1 > t0 else o1


def clocks_of(traces: list[Trace]) -> list[Clock]:
    """By the offsets that were measured; without these, by the time of day."""
    monotonic = "start_time_monotonic_in_micros"
    if all(_number(trace.head.get(monotonic)) and trace.clocks for trace in traces):
        return [Clock(trace, trace.head[monotonic], True) for trace in traces]
    if len(traces) > 1:
        lacking = next(t for t in traces if not _number(t.head.get(monotonic)) or not t.clocks)
        warn(f"{lacking.path} does not say how its clock differs from rank 0's: the files are "
             "aligned by the hosts' time of day, which may be off by milliseconds")
    epoch = "start_time_since_epoch_in_micros"
    for trace in traces:
        if len(traces) > 1 and not _number(trace.head.get(epoch)):
            warn(f"{trace.path} does not say when it began: it is shown from time 0 on")
    known = [trace.head[epoch] for trace in traces if _number(trace.head.get(epoch))]
    first = min(known, default=0)
    return [Clock(trace, trace.head[epoch] if _number(trace.head.get(epoch)) else first, False)
            for trace in traces]


# ---- merge ---------------------------------------------------------------------------------------


def _stands_for_rank(args: dict[str, Any]) -> bool:
    """Process 0, which is no tensor (in Horovod's traces it says only when it began)."""
    return "start_time_since_epoch_in_micros" in args


def _renamed(event: Event, trace: Trace, pid: int) -> Event:
    """The event with its new process number and, where it names the process, the rank before it."""
    event = dict(event, pid=pid)
    args = event.get("args", {})
    if event["ph"] == "M" and event.get("name") == "process_name" and _stands_for_rank(args):
        host = trace.head.get("host")
        name = f"rank {trace.rank}" + (f" on {host}" if host else "")
        event["args"] = dict(args, name=name)
    elif event["ph"] == "M" and event.get("name") == "process_name":
        event["args"] = dict(args, name=f"rank {trace.rank}: {args.get('name', '')}")
    elif event["ph"] == "M" and event.get("name") == "process_sort_index":
        index = args.get("sort_index", 0)
        event["args"] = dict(args, sort_index=trace.rank * RANK_SPACE + int(index))
    return event


def merge(traces: list[Trace]) -> Iterator[Event]:
    """All events on one time line; it begins where the first file begins."""
    clocks = clocks_of(traces)
    zero = min(clock(0) for clock in clocks)
    pids: dict[tuple[int, Any], int] = {}
    for trace, clock in zip(traces, clocks):
        for event in trace.events:
            pid = pids.setdefault((trace.rank, event.get("pid", 0)), len(pids) + 1)
            event = _renamed(event, trace, pid)
            if "ts" in event:
                event["ts"] = round(clock(event["ts"]) - zero, 3)
            yield event


def write(events: Iterator[Event], file: TextIO) -> int:
    count = 0
    file.write("[")
    for count, event in enumerate(events, 1):
        file.write(("\n" if count == 1 else ",\n") + json.dumps(event))
    file.write("\n]\n")
    return count


def _output_for(path: Path) -> Path:
    if path.is_dir():
        return path / "merged.json"
    return path.with_name(path.stem + ".merged" + (path.suffix or ".json"))


def main_merge(args: argparse.Namespace) -> int:
    paths = [Path(name) for name in args.files]
    traces = read_all(paths)
    if args.output == "-":
        write(merge(traces), sys.stdout)
        return 0
    output = Path(args.output) if args.output else _output_for(paths[0])
    if any(output.exists() and output.samefile(trace.path) for trace in traces):
        raise TraceError(f"{output} is one of the files to be merged")
    try:
        with output.open("w", encoding="utf-8") as file:
            count = write(merge(traces), file)
    except OSError as error:
        raise TraceError(f"{output}: {error.strerror or error}") from error
    print(f"{output}: {count} events of {len(traces)} ranks; open it in https://ui.perfetto.dev")
    return 0


# ---- summary -------------------------------------------------------------------------------------


@dataclass
class Row:
    """What happened to one tensor; times in microseconds."""

    tensor: str
    operation: str = ""
    count: int = 0
    negotiate: float = 0.0
    execute: float = 0.0
    longest: float = 0.0  # negotiation and execution of one round
    bytes: int = 0
    errors: int = 0

    def as_json(self) -> dict[str, Any]:
        mean = max(self.count, 1)
        return {
            "tensor": self.tensor, "operation": self.operation, "count": self.count,
            "negotiate_us": round(self.negotiate, 3), "operation_us": round(self.execute, 3),
            "mean_negotiate_us": round(self.negotiate / mean, 3),
            "mean_operation_us": round(self.execute / mean, 3),
            "longest_us": round(self.longest, 3), "bytes": self.bytes, "errors": self.errors,
        }  # fmt: skip


class _Reader:
    """Adds the slices of one process of the trace up."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self._open: list[tuple[str, float]] = []
        self._waited = 0.0

    def add(self, event: Event) -> None:
        if event["ph"] == "B":
            self._open.append((str(event.get("name", "")), event.get("ts", 0)))
        elif event["ph"] == "E" and self._open:
            name, begin = self._open.pop()
            if not self._open:
                self._end(name, event.get("ts", 0) - begin, event.get("args", {}))

    def _end(self, name: str, took: float, args: dict[str, Any]) -> None:
        row = self.row
        failed = "error" in args
        row.errors += failed
        if name.startswith("NEGOTIATE_"):
            row.negotiate += took
            self._waited = took
            if failed:
                row.operation = name[len("NEGOTIATE_"):]
            return
        row.operation = name
        row.count += not failed
        row.execute += took
        row.longest = max(row.longest, took + self._waited)
        self._waited = 0.0
        if not failed:
            row.bytes += int(args.get("bytes", 0))


def summarize(trace: Trace) -> list[Row]:
    readers: dict[Any, _Reader] = {}
    for event in trace.events:
        pid = event.get("pid", 0)
        if event["ph"] == "M" and event.get("name") == "process_name":
            name = str(event.get("args", {}).get("name", pid))
            readers.setdefault(pid, _Reader(Row(name))).row.tensor = name
        elif event["ph"] in "BE":
            readers.setdefault(pid, _Reader(Row(str(pid)))).add(event)
    return [reader.row for reader in readers.values() if reader.row.operation]


SORTS = {
    "time": lambda row: (-(row.negotiate + row.execute), row.tensor),
    "negotiate": lambda row: (-row.negotiate, row.tensor),
    "operation": lambda row: (-row.execute, row.tensor),
    "count": lambda row: (-row.count, row.tensor),
    "bytes": lambda row: (-row.bytes, row.tensor),
    "name": lambda row: row.tensor,
}


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1024:
            break
        count /= 1024
    else:
        unit = "TB"
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _table(rows: list[Row], more: int) -> str:
    head = ("tensor", "operation", "count", "negotiate ms", "operation ms", "longest ms", "bytes")
    lines = [head]
    for row in rows:
        failed = f" ({row.errors} failed)" if row.errors else ""
        name = _printable(row.tensor)
        lines.append((name if len(name) <= 60 else name[:57] + "...", row.operation,
                      f"{row.count}{failed}", f"{row.negotiate / 1000:.3f}",
                      f"{row.execute / 1000:.3f}", f"{row.longest / 1000:.3f}", _size(row.bytes)))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                      for i, (cell, width) in enumerate(zip(line, widths))).rstrip()
            for line in lines]
    if more:
        text.append(f"... and {more} more (-n 0 shows all)")
    return "\n".join(text)


def main_summary(args: argparse.Namespace) -> int:
    trace = read(Path(args.file))
    rows = sorted(summarize(trace), key=SORTS[args.sort])
    if args.json:
        print(json.dumps({"file": str(trace.path), "rank": trace.rank,
                          "host": trace.head.get("host"), "dropped": trace.dropped,
                          "tensors": [row.as_json() for row in rows]}, indent=1))
        return 0
    shown = rows[:args.number] if args.number > 0 else rows
    print(_table(shown, len(rows) - len(shown)))
    if trace.dropped:
        print(f"{trace.dropped} events were lost while this was recorded: the sums are too small")
    return 0


# ---- The command ---------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="trace", metavar="COMMAND", required=True)
    joins = commands.add_parser(
        "merge", help="join the files of several ranks",
        description="Joins the files of several ranks into one, on rank 0's clock. With one FILE, "
        "or a folder, as HORA_TIMELINE had it: those of all ranks beside it.")
    joins.add_argument("files", nargs="+", metavar="FILE")
    joins.add_argument("-o", "--output", metavar="OUT",
                       help="where to write it; -: standard output (default: FILE.merged.json)")
    joins.set_defaults(run=main_merge)
    sums = commands.add_parser(
        "summary", help="how long each tensor took",
        description="For each tensor of a file: how often, how long the ranks took to agree on it, "
        "how long its operation took, and how many bytes it had here.")
    sums.add_argument("file", metavar="FILE")
    sums.add_argument("--json", action="store_true", help="for programs; times in microseconds")
    sums.add_argument("--sort", choices=sorted(SORTS), default="time", help="default: time")
    sums.add_argument("-n", "--number", type=int, default=40, metavar="N",
                      help="show so many tensors (default 40; 0: all)")
    sums.set_defaults(run=main_summary)


def main(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args))
    except TraceError as error:
        print(f"hora trace: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # as `head` does; and nothing more to be flushed at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
