#!/usr/bin/env python3
"""How long an elastic job stands still when a rank is killed: from the kill to the end of the first
allreduce of the survivors. Starts itself under `hora run`, kills one rank again and again (a cooldown
of a moment brings a new one), and prints each phase's median.

    python benchmarks/elastic_recovery.py -np 4 -n 20 --json out.json

Phases, each from the kill on: "heard", the last survivor's operation fails; "placed", the last of
them has its new place; "joined", the last has joined; "done", the last has finished its first
allreduce, after the state (a model of --mb megabytes) has been synchronised. "again": a new process
has taken the dead one's seat, and all ranks train together.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PHASES = ("heard", "placed", "joined", "done", "again")


def note(what: str, **more: Any) -> None:
    line = {"what": what, "time": time.time(), "worker": int(os.environ["HORA_ELASTIC_ID"]), **more}
    with open(os.environ["RECOVERY_LOG"], "a") as file:  # one write: lines of ranks do not mix
        file.write(json.dumps(line) + "\n")


def worker(kills: int, megabytes: float, ranks: int) -> None:
    import torch

    import hora.torch as hvd
    from hora import _core
    from hora.common import elastic_worker

    hvd.init()
    model = torch.nn.Linear(1024, max(1, int(megabytes * 256)), bias=False)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.01))
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, kills=0, wait=0)
    own = elastic_worker.worker()
    ask, real_init = own.ask, _core.init

    def timed_ask() -> dict[str, Any]:
        note("heard")
        place = ask()
        note("placed", generation=place["generation"])
        return place

    def timed_init(*args: Any) -> None:
        real_init(*args)
        note("joined")

    own.ask, _core.init = timed_ask, timed_init

    @hvd.elastic.run
    def train(state: Any) -> None:
        x, first = torch.ones(1024), True
        while state.kills < kills:
            hvd.allreduce(x, name="x")
            if first:
                note("again" if hvd.size() == ranks else "done", size=hvd.size())
                first = False
            state.wait = state.wait + 1 if hvd.size() == ranks else 0
            if state.wait == 20:
                state.wait = 0
                state.kills += 1
                state.commit()
                if hvd.rank() == 1 + state.kills % (ranks - 1):
                    note("kill")
                    os.kill(os.getpid(), 9)
                continue
            time.sleep(0.01)
            state.commit()

    train(state)


def collect(log: Path) -> list[dict[str, float]]:
    """Milliseconds of each phase, of each kill."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    events.sort(key=lambda event: event["time"])
    kills = [event["time"] for event in events if event["what"] == "kill"]
    rows = []
    for begin, end in zip(kills, kills[1:] + [float("inf")]):
        after = [e for e in events if begin <= e["time"] < end]
        done = [e["time"] for e in after if e["what"] == "done"]
        if not done:
            continue
        row = {"done": max(done)}
        for what in ("heard", "placed", "joined"):
            row[what] = max(e["time"] for e in after if e["what"] == what and e["time"] <= max(done))
        again = [e["time"] for e in after if e["what"] == "again"]
        row["again"] = max(again) if again else float("nan")
        rows.append({what: (row[what] - begin) * 1e3 for what in PHASES})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-np", type=int, default=4, metavar="N", help="ranks, at least 3 (4)")
    parser.add_argument("-n", "--kills", type=int, default=20, metavar="N", help="kills (20)")
    parser.add_argument("--mb", type=float, default=4.0, help="megabytes of the model (4)")
    parser.add_argument("--json", metavar="FILE", help="write all samples there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.kills, args.mb, args.np)
        return 0
    if args.np < 3:
        parser.error("-np must be at least 3")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "hora", "run", "-np", str(args.np), "--min-np", "1",
                   "--blacklist-cooldown-range", "0.01", "0.01", "--log-level", "off", sys.executable,
                   __file__, "--worker", "-np", str(args.np), "-n", str(args.kills), "--mb", str(args.mb)]
        env = os.environ | {"RECOVERY_LOG": str(log), "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, env=env, stderr=subprocess.DEVNULL, check=False).returncode
        if code != 0:
            print(f"the job failed with {code}", file=sys.stderr)
            return code
        rows = collect(log)
    print(f"{len(rows)} kills of {args.np} ranks, {args.mb:g} MB of state, {os.cpu_count()} cores; "
          "milliseconds after the kill")
    print(f"{'':>8}" + "".join(f"{what:>10}" for what in PHASES))
    for name, pick in (("median", statistics.median), ("best", min), ("worst", max)):
        print(f"{name:>8}" + "".join(f"{pick([row[what] for row in rows]):10.1f}" for what in PHASES))
    if args.json:
        Path(args.json).write_text(json.dumps({"ranks": args.np, "mb": args.mb, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
