"""Tries hyper-parameters: several trainings, one after another, and which of them was best.

    python sweep.py -np 2 --grid lr=0.01,0.1,0.3 batch-size=32,64 -- --epochs 5
    python sweep.py -np 2 --random 8 --grid lr=0.001:1 momentum=0.5,0.9

Each word of --grid is an argument of train.py and its values; low:high is a range from which
--random draws (evenly on a logarithmic scale). What comes after -- goes to every training as it is.
Writes OUTPUT/run-NN/ for each, OUTPUT/sweep.json, and a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def parse_grid(words: list[str]) -> dict[str, list[str] | tuple[float, float]]:
    """Each argument's values, or the range of them."""
    grid: dict[str, list[str] | tuple[float, float]] = {}
    for word in words:
        name, equals, values = word.partition("=")
        low, colon, high = values.partition(":")
        if not name or not equals or not values:
            raise ValueError(f"{word!r} is not NAME=VALUE,VALUE,... or NAME=LOW:HIGH")
        if not colon:
            grid[name] = values.split(",")
            continue
        if not 0 < float(low) <= float(high):
            raise ValueError(f"the range {values!r} of {name} must be above 0 and rise")
        grid[name] = (float(low), float(high))
    return grid


def all_points(grid: dict[str, Any]) -> list[dict[str, str]]:
    ranges = [name for name, values in grid.items() if isinstance(values, tuple)]
    if ranges:
        raise ValueError(f"{ranges[0]} is a range: say how many points to draw with --random")
    return [dict(zip(grid, point)) for point in itertools.product(*grid.values())]


def random_points(grid: dict[str, Any], count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)

    def value(values: list[str] | tuple[float, float]) -> str:
        if isinstance(values, list):
            return draw.choice(values)
        low, high = values
        return f"{math.exp(draw.uniform(math.log(low), math.log(high))):.4g}"

    return [{name: value(values) for name, values in grid.items()} for _ in range(count)]


def train(point: dict[str, str], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One training. The result has `error` instead of a result if it failed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").unlink(missing_ok=True)
    command = [*args.launcher, sys.executable, str(HERE / "train.py"), "--data_dir",
               str(args.data_dir), "--output_dir", str(folder), "--onnx", "skip", *args.extra]
    for name, value in point.items():
        command += [f"--{name}", value]
    begin = time.monotonic()
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log,
                              stderr=subprocess.STDOUT).returncode
    row: dict[str, Any] = {"point": point, "folder": str(folder),
                           "seconds": time.monotonic() - begin}
    if code == 0 and (folder / "run.json").exists():
        row["result"] = json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]
    else:
        row["error"] = f"ended with {code}; see {folder / 'log.txt'}"
    return row


def best_of(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The most accurate; among equals the one with the smallest loss."""
    good = [row for row in rows if "result" in row]
    return max(good, default=None, key=lambda r: (r["result"]["accuracy"], -r["result"]["loss"]))


def table(rows: list[dict[str, Any]], names: list[str], best: dict[str, Any] | None) -> str:
    head = ["run", *names, "loss", "accuracy", ""]
    lines = []
    for row in rows:
        result = row.get("result")
        ends = [f"{result['loss']:.4f}", f"{result['accuracy']:.4f}"] if result else ["-", "failed"]
        mark = "<- best" if row is best else ""
        values = [row["point"][name] for name in names]
        lines.append([Path(row["folder"]).name, *values, *ends, mark])
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip()
                     for line in [head, *lines])


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-np", type=int, default=1, help="processes of each training")
    parser.add_argument("--launcher", help="what starts them instead of `hora run -np NP`, for "
                        "example 'mpirun -np 4'")
    parser.add_argument("--grid", nargs="+", required=True, metavar="NAME=VALUES")
    parser.add_argument("--random", type=int, metavar="COUNT", help="draw so many points")
    parser.add_argument("--seed", type=int, default=1, help="of the drawing")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path("sweep"))
    parser.add_argument("extra", nargs="*", help="after --: arguments of every training")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.extra += words[cut + 1:]
    args.launcher = (shlex.split(args.launcher) if args.launcher else
                     [sys.executable, "-m", "hora", "run", "-np", str(args.np)])
    try:
        grid = parse_grid(args.grid)
        args.points = (random_points(grid, args.random, args.seed) if args.random else
                       all_points(grid))
    except ValueError as error:
        parser.error(str(error))
    return args


def main() -> int:
    args = read_arguments()
    rows: list[dict[str, Any]] = []
    best = None
    for number, point in enumerate(args.points, 1):
        words = " ".join(f"{name}={value}" for name, value in point.items())
        print(f"[{number} of {len(args.points)}] {words}", flush=True)
        row = train(point, args.output / f"run-{number:02}", args)
        rows.append(row)
        print(f"    {row['error']}" if "error" in row else
              f"    accuracy {row['result']['accuracy']:.4f} after {row['seconds']:.1f} s",
              flush=True)
        best = best_of(rows)
        (args.output / "sweep.json").write_text(json.dumps({"best": best, "runs": rows}, indent=2),
                                                encoding="utf-8")
    print(table(rows, list(args.points[0]), best))
    return 0 if best is not None else 1


if __name__ == "__main__":
    sys.exit(main())
