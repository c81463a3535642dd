"""hora.torch beside torch's gloo backend, in one run, on gradients as a training step makes them.

    hora run -np 2 python benchmarks/compare_torch.py [--rounds N] [--json FILE] [--cases CASE...]

Each case is timed for both in turn, round by round; every tensor is rewritten before every call; a
case's time is that of the slowest rank, and the median over rounds is printed, with the quartiles.
"1 KB, 100 in turn" is the time of one of 100 operations that follow each other, each awaited
before the next; the others begin with whatever the caches still hold after 2 ms in which the ranks
waited for the same moment. "500 x 1 KB" follows the other library's 500; "again" is the second and
third time that a library does it before it is the other's turn. "in buckets": the gradients as
25 MB buckets, with hora in memory from hora_alloc, as
DistributedOptimizer(gradient_as_bucket_view=True) has them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

import torch
import torch.distributed as dist

import hora.torch as hvd
from hora import _core


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Shapes of the 161 parameters of ResNet-50, in the order in which they are made."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for planes, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for conv in ((planes, inputs, 1, 1), (planes, planes, 3, 3), (planes * 4, planes, 1, 1)):
                shapes += [conv, (conv[0],), (conv[0],)]
            if block == 0:
                shapes += [(planes * 4, inputs, 1, 1), (planes * 4,), (planes * 4,)]
            inputs = planes * 4
    return shapes + [(1000, 2048), (1000,)]


def buckets(shapes: list[tuple[int, ...]], most: int = 25 << 18) -> list[tuple[int, ...]]:
    """Numbers of elements, at most `most`, of buckets that the tensors fill in reverse order."""
    counts = [0]
    for count in (math.prod(shape) for shape in reversed(shapes)):
        if counts[-1] and counts[-1] + count > most:
            counts.append(0)
        counts[-1] += count
    return [(count,) for count in counts]


class Case(NamedTuple):
    shapes: list[tuple[int, ...]]
    gap: float = 0.0  # seconds of sleep before it
    repeats: int = 1  # the same tensor, one after another
    shared: bool = False  # hora's tensors are in memory from hora_alloc
    calls: int = 1  # before the other library's turn; the first of several does not count


CASES = {
    "1 KB after 5 ms": Case([(256,)], gap=0.005),
    "1 KB": Case([(256,)]),
    "1 KB, 100 in turn": Case([(256,)], repeats=100),
    "4 MB": Case([(1 << 20,)]),
    "64 MB": Case([(16 << 20,)]),
    "500 x 1 KB": Case([(256,)] * 500),
    "500 x 1 KB, again": Case([(256,)] * 500, calls=3),
    "ResNet-50, 161 gradients": Case(resnet50_shapes()),
    "ResNet-50, in buckets": Case(buckets(resnet50_shapes()), shared=True),
}


def run_hora(tensors: list[torch.Tensor]) -> None:
    handles = [hvd.allreduce_async_(t, name=f"g{i}", op=hvd.Sum) for i, t in enumerate(tensors)]
    for handle in handles:
        hvd.synchronize(handle)


def run_hora_blocking(tensors: list[torch.Tensor]) -> None:
    for i, t in enumerate(tensors):
        hvd.allreduce_(t, name=f"g{i}", op=hvd.Sum)


def run_gloo(tensors: list[torch.Tensor]) -> None:
    works = [dist.all_reduce(t, async_op=True) for t in tensors]
    for work in works:
        work.wait()


def time_once(run, tensors: list[torch.Tensor], value: float, case: Case) -> float:
    for t in tensors:
        t.fill_(value + hvd.rank())
    hvd.barrier()
    if case.gap:
        time.sleep(case.gap)
    begin_together()
    start = time.perf_counter()
    for _ in range(case.repeats):
        run(tensors)
    elapsed = (time.perf_counter() - start) / case.repeats
    if case.repeats > 1:
        tensors[0].fill_(value + hvd.rank())
        run(tensors)
    expected = value * hvd.size() + sum(range(hvd.size()))
    for t in (tensors[0], tensors[-1]):
        if t.flatten()[0].item() != expected or t.flatten()[-1].item() != expected:
            raise RuntimeError(f"wrong sum: {t.flatten()[0].item()} instead of {expected}")
    slowest = torch.tensor([elapsed], dtype=torch.float64)
    hvd.allreduce_(slowest, name="time", op=hvd.Max)
    return slowest.item()


def begin_together() -> None:
    """Ranks leave a barrier, or wake after a gap, at different times; a call must not time that."""
    now = torch.tensor([time.clock_gettime(time.CLOCK_MONOTONIC) + 0.002], dtype=torch.float64)
    hvd.allreduce_(now, name="start", op=hvd.Max)
    while time.clock_gettime(time.CLOCK_MONOTONIC) < now.item():
        pass


def measure(name: str, rounds: int) -> dict:
    case = CASES[name]
    private = [torch.empty(shape) for shape in case.shapes]
    shared = [torch.from_dlpack(_core.alloc(shape, "float32")) for shape in case.shapes if case.shared]
    tensors = {"hora": shared or private, "gloo": private}
    runs = {"hora": run_hora_blocking if len(private) == 1 else run_hora, "gloo": run_gloo}
    times: dict[str, list[float]] = {key: [] for key in runs}
    for n in range(rounds + 2):
        for key, run in runs.items():
            for call in range(case.calls):
                t = time_once(run, tensors[key], float((n + call) % 7), case)
                if n >= 2 and (call > 0 or case.calls == 1):
                    times[key].append(t * 1e6)
    row: dict = {"case": name, "bytes": sum(t.nbytes for t in private), "rounds": rounds}
    for key, values in times.items():
        low, mid, high = statistics.quantiles(values, n=4)
        row[key] = {"median_us": statistics.median(values), "quartiles_us": [low, high]}
    row["ratio"] = row["gloo"]["median_us"] / row["hora"]["median_us"]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31, help="rounds per case (fewer for large ones)")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", metavar="FILE", help="write the results there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    hvd.init()
    where = hvd.broadcast_object(tempfile.mkdtemp() if hvd.rank() == 0 else None, root_rank=0)
    dist.init_process_group("gloo", init_method=f"file://{os.path.join(where, 'store')}",
                            rank=hvd.rank(), world_size=hvd.size())
    rows = []
    if hvd.rank() == 0:
        print(f"# hora and gloo (torch {torch.__version__}), {hvd.size()} ranks, float32 sum, median us")
        print(f"{'case':28s} {'bytes':>11s} {'hora':>11s} {'gloo':>11s} {'gloo/hora':>10s}", flush=True)
    for name in args.cases:
        row = measure(name, max(7, args.rounds // 3) if "64 MB" in name or "ResNet" in name
                      or "500" in name else args.rounds)
        rows.append(row)
        if hvd.rank() == 0:
            print(f"{name:28s} {row['bytes']:11d} {row['hora']['median_us']:11.1f} "
                  f"{row['gloo']['median_us']:11.1f} {row['ratio']:10.1f}", flush=True)
    if args.json and hvd.rank() == 0:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"torch": torch.__version__, "ranks": hvd.size(), "rows": rows}, file, indent=1)
    dist.destroy_process_group()
    hvd.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
