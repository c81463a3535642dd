"""Operation x type x in place x async x process set x transport, against a plain torch reference.

Every combination runs; one job for each transport and number of ranks runs them all. Inputs are
small whole numbers, so results are exact but for averages of floats.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from typing import Any, Callable

import pytest
import ranks
import torch
from test_ops import ALL, FLOATS, everyone, reduce, values

SHAPE = (5, 3)


def compare(result: torch.Tensor, wanted: torch.Tensor, exact: bool, what: str) -> None:
    assert result.dtype == wanted.dtype and result.shape == wanted.shape, (what, result, wanted)
    if exact:
        wide = torch.float64 if wanted.is_floating_point() else torch.int64
        assert torch.equal(result.to(wide), wanted.to(wide)), f"{what}: {result} not {wanted}"
    else:
        torch.testing.assert_close(result, wanted, msg=lambda text: f"{what}: {text}")


def run(
    hvd: Any, base: str, x: Any, in_place: bool, asynchronous: bool, *args: Any, **options: Any
) -> Any:
    """Calls the form of an operation that is asked for. In place: its input must be its result;
    else the input must be as before."""
    copies = [t.clone() for t in x] if isinstance(x, list) else x.clone()
    function = getattr(hvd, base + "_async" * asynchronous + "_" * in_place)
    result = function(x, *args, **options)
    if asynchronous:
        result = hvd.synchronize(result)
    pairs = zip(x, copies, result) if isinstance(x, list) else [(x, copies, result)]
    for given, before, out in pairs:
        assert out is given if in_place else torch.equal(given, before), f"{base} {options}"
    return result


def forms(hvd: Any, base: str) -> list[tuple[bool, bool]]:
    places = [False, True] if hasattr(hvd, base + "_") else [False]
    return list(itertools.product(places, [False, True]))


class Case:
    """One process set and one type."""

    def __init__(self, hvd: Any, process_set: Any, dtype: torch.dtype) -> None:
        self.hvd = hvd
        self.process_set = process_set
        self.dtype = dtype
        self.members = process_set.ranks
        self.mine = process_set.rank()
        self.done = 0

    def input(self, rank: int, low: int = -2) -> torch.Tensor:
        return values(SHAPE, self.dtype, rank, low)

    def reduced(self, op: int) -> torch.Tensor:
        stack = everyone(len(self.members), lambda i: self.input(self.members[i]))
        return reduce(stack, op, self.dtype, self.hvd)

    def ops(self) -> list[int]:
        hvd = self.hvd
        ops = [hvd.Sum, hvd.Min, hvd.Max, hvd.Product]
        return ops if self.dtype == torch.bool else [hvd.Average, *ops]

    def check(
        self, base: str, wanted: torch.Tensor, *args: Any, exact: bool = True, **options: Any
    ) -> None:
        grouped = base.startswith("grouped")
        for in_place, asynchronous in forms(self.hvd, base):
            name = f"{base}.{self.dtype}" if in_place == asynchronous else None
            what = f"{base} {self.dtype} {in_place} {asynchronous} {options}"
            x = self.input(self.hvd.rank())
            result = run(
                self.hvd, base, [x, x.clone()] if grouped else x, in_place, asynchronous, *args,
                name=name, process_set=self.process_set, **options,
            )  # fmt: skip
            for one in result if grouped else [result]:
                compare(one, wanted, exact, what)
            self.done += 1

    def allreduce(self) -> None:
        for op in self.ops():
            exact = op != self.hvd.Average or not self.dtype.is_floating_point
            for base in ("allreduce", "grouped_allreduce"):
                self.check(base, self.reduced(op), op=op, exact=exact)

    def reducescatter(self) -> None:
        n = len(self.members)
        share = [SHAPE[0] // n + (i < SHAPE[0] % n) for i in range(n)]
        for op in self.ops():
            exact = op != self.hvd.Average or not self.dtype.is_floating_point
            wanted = self.reduced(op).split(share)[self.mine]
            for base in ("reducescatter", "grouped_reducescatter"):
                self.check(base, wanted, op=op, exact=exact)

    def allgather(self) -> None:
        wanted = torch.cat([self.input(rank) for rank in self.members])
        for base in ("allgather", "grouped_allgather"):
            self.check(base, wanted)

    def broadcast(self) -> None:
        for root in self.members:
            self.check("broadcast", self.input(root), root)

    def alltoall(self) -> None:
        n = len(self.members)
        table = [[(i + j) % 2 for j in range(n)] for i in range(n)]
        for i in range(n):
            table[i][0] += SHAPE[0] - sum(table[i])
        parts = [self.input(self.members[i]).split(table[i])[self.mine] for i in range(n)]
        for asynchronous in (False, True):
            x = self.input(self.hvd.rank())
            args = x, torch.tensor(table[self.mine])
            if asynchronous:
                handle = self.hvd.alltoall_async(*args, process_set=self.process_set)
                output, received = self.hvd.synchronize(handle)
            else:
                output, received = self.hvd.alltoall(*args, process_set=self.process_set)
            compare(output, torch.cat(parts), True, f"alltoall {self.dtype}")
            assert received.tolist() == [table[i][self.mine] for i in range(n)]
            self.done += 1

    def adasum(self) -> None:
        """Of equal vectors: the vector itself."""
        if self.dtype in FLOATS:
            for in_place, asynchronous in forms(self.hvd, "allreduce"):
                x = self.input(0)
                result = run(
                    self.hvd, "allreduce", x.clone(), in_place, asynchronous, op=self.hvd.Adasum,
                    process_set=self.process_set,
                )  # fmt: skip
                compare(result, x, False, f"Adasum {self.dtype}")
                self.done += 1


def matrix() -> tuple[int, str]:
    """On every rank: how many combinations ran, and over what."""
    import hora.torch as hvd
    from hora import _core

    hvd.init()
    me, size = hvd.rank(), hvd.size()
    sets = [hvd.global_process_set]
    for members in ([size - 1], list(range(0, size, 2)), list(range(1, size))):
        if members and len(members) < size and members not in [ps.ranks for ps in sets]:
            sets.append(hvd.add_process_set(members))
    done = 0
    for process_set in sets:
        for dtype in ALL if process_set.included() else []:
            case = Case(hvd, process_set, dtype)
            operations: list[Callable[[], None]] = [
                case.allreduce, case.allgather, case.broadcast, case.alltoall, case.reducescatter,
                case.adasum,
            ]  # fmt: skip
            for operation in operations:
                operation()
            done += case.done
        hvd.barrier()
    carriers = {_core.transport(peer) for peer in range(size) if peer != me}
    hvd.shutdown()
    return done, " ".join(sorted(carriers))


@pytest.mark.parametrize(
    "transport, size", [("shm", 1), ("shm", 2), ("shm", 3), ("shm", 4), ("tcp", 3)]
)
def test_matrix(transport: str, size: int) -> None:
    results = ranks.run(matrix, size, env={"HORA_TRANSPORT": transport})
    for done, carriers in results:
        assert done > 500 and carriers in ("", transport), results


MPIRUN = shutil.which("mpirun")


@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun in PATH")
def test_matrix_over_mpi() -> None:
    size = 3
    from hora import _core

    if not any(row["name"] == "mpi" and row["available"] for row in _core.backends()):
        pytest.skip("this build of hora has no MPI, or finds none")
    text = (
        f"import sys; sys.path.insert(0, {str(ranks.HERE)!r})\n"
        "import test_matrix; print(test_matrix.matrix())"
    )
    env = ranks.clean_environment() | {"HORA_TRANSPORT": "mpi"}
    root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [str(MPIRUN), *root, "--oversubscribe", "-np", str(size), sys.executable, "-c", text],
        env=env, capture_output=True, text=True, timeout=ranks.LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("'mpi')") == size, done.stdout
