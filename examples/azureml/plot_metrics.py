"""Draws the loss and the accuracy of runs, from the metrics.jsonl that train.py writes.

    python plot_metrics.py outputs --output metrics.png
    python plot_metrics.py sweep/run-* --output sweep.png

A run may still be going on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a run: its folder or its file. A line that is being written is left out."""
    file = path / "metrics.jsonl" if path.is_dir() else path
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def draw(runs: dict[str, list[dict[str, Any]]], output: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")  # a file, no window
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, what in zip(axes, ("loss", "accuracy")):
        for name, rows in runs.items():
            axis.plot([row["epoch"] for row in rows], [row[what] for row in rows], marker=".",
                      label=name)
        axis.set_xlabel("epoch")
        axis.set_title("training loss" if what == "loss" else "test accuracy")
        axis.grid(alpha=0.3)
    if len(runs) > 1:
        axes[1].legend(fontsize="small")
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="output folders or metrics.jsonl files")
    parser.add_argument("--output", type=Path, default=Path("metrics.png"))
    args = parser.parse_args()
    runs = {}
    for path in args.runs:
        try:
            runs[path.name if path.is_dir() else str(path)] = read(path)
        except OSError as error:
            parser.error(f"no metrics of {path}: {error}")
    try:
        draw(runs, args.output)
    except ImportError:
        print("drawing needs matplotlib: pip install hora[examples]", file=sys.stderr)
        return 1
    print(f"drew {len(runs)} run{'s' if len(runs) > 1 else ''} into {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
