"""The principal component of data that is spread over the ranks, in NumPy.

    python examples/numpy_allreduce.py                    one process
    hora run -np 4 python examples/numpy_allreduce.py     four ranks, the same result

Each rank has some rows of a tall matrix X and never sees the others'. The direction in which X
varies most is found by power iteration: multiply a vector by X'X and scale it to length 1, again
and again. X'X v is a sum over rows, so each rank computes the part of its own rows and one
allreduce adds the parts up. What touches other ranks is marked with (1) to (6).
"""

from __future__ import annotations

import argparse
import sys

import numpy as np

import hora


def my_rows(comm: hora.Communicator, rows: int, columns: int) -> np.ndarray:
    """This rank's part of a matrix that is the same for any number of ranks."""
    begin, end = rows * comm.rank // comm.size, rows * (comm.rank + 1) // comm.size
    strong = np.random.default_rng(0).standard_normal(columns)
    return np.stack([
        noise.standard_normal() * strong + 0.5 * noise.standard_normal(columns)
        for noise in map(np.random.default_rng, range(begin + 1, end + 1))
    ]) if end > begin else np.empty((0, columns))  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--columns", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=100, help="at most")
    args = parser.parse_args()

    with hora.Communicator() as comm:  # (1) all ranks of the job; left at the end of the block
        x = my_rows(comm, args.rows, args.columns)
        mean = comm.allreduce(x.sum(axis=0)) / args.rows  # (2) a new array: the sum over all ranks
        x -= mean

        v = comm.broadcast(np.random.default_rng().standard_normal(args.columns))  # (3) rank 0's
        v /= np.linalg.norm(v)
        variance = before = 0.0
        for iteration in range(1, args.iterations + 1):
            product = x.T @ (x @ v)
            request = comm.allreduce(product, out=product, async_op=True)  # (4) starts, in place
            before = variance  # ... here is time for work that does not need the sum ...
            request.wait()
            variance = float(np.linalg.norm(product)) / args.rows
            v = product / np.linalg.norm(product)
            if abs(variance - before) <= 1e-12 * variance:
                break
        # Every rank gets the same bits from allreduce, so all leave the loop at the same time.

        whole = comm.allgatherv(x)  # (5) only to check: all rows, in the order of the ranks
        expected = np.linalg.svd(whole, compute_uv=False)[0] ** 2 / args.rows
        error = abs(variance - expected) / expected
        worst = comm.allreduce(np.float64(error), op=hora.Op.MAX)  # (6) a scalar; another operation
        if comm.rank == 0:
            print(f"variance {variance:.6f} along the first component after {iteration} iterations "
                  f"on {comm.size} ranks; relative error {worst:.1e}")
        return 0 if worst < 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
