"""Writes the data that train.py reads: handwritten digits of 8 by 8 pixels, from scikit-learn.

    python prepare.py data

makes data/train.npz and data/test.npz with `pixels` (float32, 0 to 1) and `labels` (int64).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

FILES = ("train.npz", "test.npz")


def is_prepared(folder: Path) -> bool:
    return all((folder / name).exists() for name in FILES)


def write(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    """All of it or nothing: several hosts may write into one shared folder at the same time."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "wb") as file:
        np.savez_compressed(file, pixels=pixels, labels=labels)
    os.replace(temporary, path)


def prepare(folder: Path) -> None:
    from sklearn.datasets import load_digits

    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    pixels = (digits.data / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(1).permutation(len(labels))
    for name, part in zip(FILES, np.split(order, [1437])):
        write(folder / name, pixels[part], labels[part])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir", type=Path)
    args = parser.parse_args()
    prepare(args.data_dir)
    print(f"wrote {' and '.join(FILES)} to {args.data_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
