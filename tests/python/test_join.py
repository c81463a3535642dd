"""Join: ranks that run out of data at different times, for every operation.

In each case rank r takes part in r + 1 steps and then joins: so step s is done by the ranks from s
on, and the last rank is the last to join.
"""

from __future__ import annotations

import sys
from typing import Any, Iterator

import ranks
import torch
from test_ops import FLOATS, INTS, fails, reduce, same


def steps(hvd: Any) -> Iterator[tuple[int, list[int]]]:
    """Yields this rank's steps and which ranks are in them; then joins."""
    for step in range(hvd.rank() + 1):
        yield step, list(range(step, hvd.size()))
    assert hvd.join() == hvd.size() - 1


def data(rank: int, step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.arange(6).reshape(3, 2) % 3 + 1 + rank + step).to(dtype)


def stacked(active: list[int], step: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    wide = torch.float64 if dtype.is_floating_point else torch.int64
    return torch.stack([data(rank, step, dtype).to(wide) for rank in active])


def case_allreduce(hvd: Any) -> None:
    me = hvd.rank()
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32, torch.uint8):
        for op in (hvd.Sum, hvd.Min, hvd.Max, hvd.Product):
            for step, active in steps(hvd):
                wanted = reduce(stacked(active, step, dtype), op, dtype, hvd)
                name = f"{dtype}.{op}.{step}"
                same(hvd.allreduce(data(me, step, dtype), op=op, name=name), wanted, name)
                same(hvd.allreduce(data(me, step, dtype), op=op), wanted, name)


def case_average_divides_by_all_ranks(hvd: Any) -> None:
    """As in Horovod."""
    for step, active in steps(hvd):
        wanted = stacked(active, step).sum(dim=0) / hvd.size()
        torch.testing.assert_close(hvd.allreduce(data(hvd.rank(), step)), wanted.float())
        total = stacked(active, step, torch.int32).sum(dim=0)
        wanted = torch.div(total, hvd.size(), rounding_mode="trunc").to(torch.int32)
        same(hvd.allreduce(data(hvd.rank(), step, torch.int32)), wanted)


def case_scales(hvd: Any) -> None:
    for step, active in steps(hvd):
        result = hvd.allreduce(
            data(hvd.rank(), step), op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0
        )
        same(result, stacked(active, step).sum(dim=0).float() * 2)


def case_in_place_async_and_groups(hvd: Any) -> None:
    me = hvd.rank()
    for step, active in steps(hvd):
        total = stacked(active, step).sum(dim=0).float()
        x, y, z = data(me, step), data(me, step), [data(me, step), data(me, step) * 2]
        handles = [
            hvd.allreduce_async_(x, op=hvd.Sum),
            hvd.allreduce_async(y, op=hvd.Sum),
            hvd.grouped_allreduce_async_(z, op=hvd.Sum),
        ]
        for handle in reversed(handles):
            hvd.synchronize(handle)
        same(x, total)
        same(z[1], total * 2)
        same(hvd.grouped_allreduce([y, y], op=hvd.Sum, name=f"g{step}")[1], total)


def case_unnamed_operations_stay_matched(hvd: Any) -> None:
    """Ranks have started different numbers of them when they join."""
    me, size = hvd.rank(), hvd.size()
    for turn in range(3):
        for step in range((me + turn) % size + 1):
            handles = [hvd.allreduce_async(torch.ones(3), op=hvd.Sum) for _ in range(4)]
            got = [hvd.synchronize(handle)[0].item() for handle in handles]
            assert got == [size - step] * 4, (turn, step, got)
        assert (hvd.join() + turn) % size == size - 1
        handles = [hvd.allreduce_async(torch.full((3,), float(i)), op=hvd.Sum) for i in range(4)]
        for i, handle in enumerate(handles):
            same(hvd.synchronize(handle), torch.full((3,), float(i * size)))
        same(hvd.allreduce(torch.ones(2), op=hvd.Sum), torch.full((2,), float(size)))


def case_allgather(hvd: Any) -> None:
    me = hvd.rank()
    for step, active in steps(hvd):
        rows = torch.full((me + 1, 2), float(me + step))
        wanted = torch.cat([torch.full((r + 1, 2), float(r + step)) for r in active])
        same(hvd.allgather(rows), wanted)
        same(hvd.synchronize(hvd.allgather_async(rows, name=f"a{step}")), wanted)
        same(hvd.grouped_allgather([rows, rows])[1], wanted)


def case_broadcast(hvd: Any) -> None:
    me, root = hvd.rank(), hvd.size() - 1
    for step, _ in steps(hvd):
        same(hvd.broadcast(torch.tensor([me + step]), root), torch.tensor([root + step]))
        x = torch.tensor([me])
        assert hvd.broadcast_(x, root, name=f"b{step}") is x and x.item() == root


def case_broadcast_from_a_rank_that_has_joined(hvd: Any) -> None:
    for step, active in steps(hvd):
        if step > 0:
            fails(
                hvd.HorovodInternalError,
                lambda: hvd.broadcast(torch.ones(2), 0, name=f"from 0.{step}"),
                "rank 0", "join",
            )  # fmt: skip
        same(hvd.allreduce(torch.ones(2), op=hvd.Sum), torch.full((2,), float(len(active))))


def case_alltoall(hvd: Any) -> None:
    """Rows for a rank that has joined are lost, and none come from it."""
    me, size = hvd.rank(), hvd.size()
    for step, active in steps(hvd):
        rows = torch.arange(2 * size) + 100 * me
        wanted = torch.cat([torch.tensor([2 * me, 2 * me + 1]) + 100 * r for r in active])
        same(hvd.alltoall(rows), wanted)
        splits = [to + 1 for to in range(size)]
        output, received = hvd.alltoall(torch.full((sum(splits),), me), splits=splits)
        assert received.tolist() == [me + 1 if r in active else 0 for r in range(size)]
        assert output.tolist() == [r for r in active for _ in range(me + 1)]


def case_reducescatter(hvd: Any) -> None:
    """The shares are as ever: those of the joined ranks are lost."""
    me, size = hvd.rank(), hvd.size()
    for step, active in steps(hvd):
        rows = torch.full((2 * size + 1, 2), float(me + 1))
        share = 3 if me == 0 else 2
        total = float(sum(r + 1 for r in active))
        same(hvd.reducescatter(rows, op=hvd.Sum), torch.full((share, 2), total))
        torch.testing.assert_close(
            hvd.reducescatter(rows), torch.full((share, 2), total / size)
        )
        same(hvd.grouped_reducescatter([rows], op=hvd.Max)[0], torch.full((share, 2), float(size)))


def case_adasum(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for step, active in steps(hvd):
        x = torch.zeros(size)
        x[me] = 3.0  # orthogonal vectors: then Adasum is the sum
        wanted = torch.tensor([3.0 if r in active else 0.0 for r in range(size)])
        torch.testing.assert_close(hvd.allreduce(x, op=hvd.Adasum), wanted)


def case_barrier(hvd: Any) -> None:
    for _ in steps(hvd):
        hvd.barrier()


def case_every_type(hvd: Any) -> None:
    me = hvd.rank()
    for step, active in steps(hvd):
        for dtype in [*INTS, *FLOATS]:
            wanted = reduce(stacked(active, step, dtype), hvd.Sum, dtype, hvd)
            same(hvd.allreduce(data(me, step, dtype), op=hvd.Sum, name=f"{dtype}"), wanted)
        bits = torch.tensor([True, False, me % 2 == 0])
        same(
            hvd.allreduce(bits, op=hvd.Min, name="bool"),
            torch.tensor([True, False, all(r % 2 == 0 for r in active)]),
        )


def case_mismatch_while_others_have_joined(hvd: Any) -> None:
    for step, active in steps(hvd):
        if len(active) > 1 and step > 0:
            count = 3 + (hvd.rank() == active[0])
            fails(
                hvd.HorovodInternalError,
                lambda: hvd.allreduce(torch.ones(count), name=f"bad.{step}"),
                f"bad.{step}", "3", "4",
            )  # fmt: skip
        same(hvd.allreduce(torch.ones(2), op=hvd.Sum), torch.full((2,), float(len(active))))


def case_with_operations_in_flight(hvd: Any) -> None:
    """What a rank started before it joins is done as ever."""
    size = hvd.size()
    handle = hvd.allreduce_async(torch.ones(3), name="before", op=hvd.Sum)
    if hvd.rank() == size - 1:
        hvd.allreduce(torch.ones(3), name="more", op=hvd.Sum)
    last = hvd.join(device=0)
    assert 0 <= last < size
    same(hvd.synchronize(handle), torch.full((3,), float(size)))


def case_join_twice_at_once(hvd: Any) -> None:
    import threading
    import time

    if hvd.size() == 1:
        return
    if hvd.rank() == 0:
        errors: list[str] = []

        def again() -> None:
            time.sleep(0.5)
            try:
                hvd.join()
            except ValueError as error:
                errors.append(str(error))

        thread = threading.Thread(target=again)
        thread.start()
        assert hvd.join() > 0
        thread.join(30)
        assert len(errors) == 1 and "already in flight" in errors[0], errors
    else:
        time.sleep(1.5)
        hvd.join()


def case_join_again_and_again(hvd: Any) -> None:
    for _ in range(50):
        assert 0 <= hvd.join() < hvd.size()


test_shm = ranks.case_test(sys.modules[__name__], [1, 2, 3, 4])
test_tcp = ranks.case_test(sys.modules[__name__], [3], HORA_TRANSPORT="tcp")


def average_of_those_that_have_data() -> list[float]:
    import hora.torch as hvd

    hvd.init()
    results = [hvd.allreduce(torch.ones(2))[0].item() for _ in range(hvd.rank() + 1)]
    hvd.join()
    return results


def test_average_of_those_that_have_data() -> None:
    results = ranks.run(average_of_those_that_have_data, 3, env={"HORA_JOIN_AVERAGE": "active"})
    assert results == [[1.0], [1.0, 1.0], [1.0, 1.0, 1.0]]
