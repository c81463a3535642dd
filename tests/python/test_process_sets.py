"""Process sets: every operation on sets of every shape, several at work at once, adding and
removing while running, and what happens when ranks disagree about them."""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable, Iterator

import ranks
import torch
from test_ops import fails, same


def all_sets(size: int) -> list[list[int]]:
    """Subsets of the ranks, not all of them ordered by their first rank; never all ranks."""
    chosen = [[size - 1], list(range(0, size, 2)), list(range(1, size)), [0, size - 1]]
    distinct = []
    for ranks_of_set in chosen:
        if ranks_of_set and len(set(ranks_of_set)) < size and ranks_of_set not in distinct:
            distinct.append(sorted(set(ranks_of_set)))
    return [one for i, one in enumerate(distinct) if one not in distinct[:i]]


def each_set(hvd: Any) -> Iterator[tuple[Any, list[int], int]]:
    """Adds, yields and removes each set in turn, on its members (set, ranks, my rank in it)."""
    for members in all_sets(hvd.size()):
        process_set = hvd.add_process_set(members)
        assert process_set.ranks == members and process_set.size() == len(members)
        assert process_set.included() == (hvd.rank() in members)
        if process_set.included():
            assert process_set.rank() == members.index(hvd.rank())
            yield process_set, members, process_set.rank()
        else:
            fails(ValueError, process_set.rank, f"rank {hvd.rank()}", "not part", str(members))
        assert hvd.remove_process_set(process_set) is True
        assert process_set.process_set_id is None


# ---- Operations on sets --------------------------------------------------------------------------


def case_allreduce(hvd: Any) -> None:
    me = hvd.rank()
    for ps, members, _ in each_set(hvd):
        total = float(sum(members))
        x = torch.full((5,), float(me))
        same(hvd.allreduce(x, op=hvd.Sum, process_set=ps), torch.full((5,), total))
        torch.testing.assert_close(
            hvd.allreduce(x, process_set=ps), torch.full((5,), total / len(members))
        )
        same(hvd.allreduce(x, op=hvd.Max, process_set=ps), torch.full((5,), float(members[-1])))
        handle = hvd.allreduce_async(x, op=hvd.Sum, process_set=ps)
        same(hvd.synchronize(handle), torch.full((5,), total))
        y = x.clone()
        hvd.synchronize(hvd.allreduce_async_(y, op=hvd.Sum, name="in place", process_set=ps))
        same(y, torch.full((5,), total))
        assert hvd.allreduce_(x.clone(), op=hvd.Min, process_set=ps)[0] == members[0]
        for results in (
            hvd.grouped_allreduce([x, x + 1], op=hvd.Sum, process_set=ps),
            hvd.grouped_allreduce_([x.clone(), x + 1], op=hvd.Sum, process_set=ps),
            hvd.synchronize(
                hvd.grouped_allreduce_async([x, x + 1], op=hvd.Sum, process_set=ps)
            ),
            hvd.synchronize(
                hvd.grouped_allreduce_async_([x.clone(), x + 1], op=hvd.Sum, process_set=ps)
            ),
        ):
            same(results[1], torch.full((5,), total + len(members)))
        sparse = torch.sparse_coo_tensor([[me]], [1.0], (hvd.size(),))
        dense = hvd.sparse_allreduce_async(sparse, "s", hvd.Average, process_set=ps)().to_dense()
        expected = torch.tensor([float(r in members) for r in range(hvd.size())]) / len(members)
        torch.testing.assert_close(dense, expected)


def case_adasum(hvd: Any) -> None:
    for ps, members, mine in each_set(hvd):
        x = torch.zeros(len(members))
        x[mine] = 2.0  # the ranks' vectors are orthogonal: then Adasum is the sum
        result = hvd.allreduce(x, op=hvd.Adasum, process_set=ps)
        torch.testing.assert_close(result, torch.full((len(members),), 2.0))


def case_allgather(hvd: Any) -> None:
    for ps, members, _ in each_set(hvd):
        x = torch.full((hvd.rank() + 1, 2), float(hvd.rank()))
        wanted = torch.cat([torch.full((r + 1, 2), float(r)) for r in members])
        same(hvd.allgather(x, process_set=ps), wanted)
        same(hvd.synchronize(hvd.allgather_async(x, process_set=ps)), wanted)
        same(hvd.grouped_allgather([x, x], process_set=ps)[1], wanted)
        same(hvd.synchronize(hvd.grouped_allgather_async([x], process_set=ps))[0], wanted)


def case_broadcast_root_is_a_rank_of_the_job(hvd: Any) -> None:
    for ps, members, _ in each_set(hvd):
        for root in members:
            x = torch.tensor([hvd.rank()])
            same(hvd.broadcast(x, root, process_set=ps), torch.tensor([root]))
            handle = hvd.broadcast_async(x, root, process_set=ps)
            same(hvd.synchronize(handle), torch.tensor([root]))
            assert hvd.broadcast_(x, root, process_set=ps) is x and x.item() == root
        for stranger in set(range(-1, hvd.size() + 1)) - set(members):
            fails(
                ValueError,
                lambda: hvd.broadcast(torch.ones(1), stranger, process_set=ps),
                f"root rank {stranger}", str(members),
            )  # fmt: skip


def case_alltoall(hvd: Any) -> None:
    for ps, members, mine in each_set(hvd):
        n = len(members)
        x = torch.arange(n) + 100 * mine
        same(hvd.alltoall(x, process_set=ps), torch.tensor([100 * r + mine for r in range(n)]))
        splits = [(mine + to) % 3 for to in range(n)]
        received = [(r + mine) % 3 for r in range(n)]
        rows = torch.full((sum(splits),), mine)
        output, got = hvd.alltoall(rows, splits=splits, process_set=ps)
        assert output.tolist() == [r for r in range(n) for _ in range(received[r])]
        assert got.tolist() == received
        _, got = hvd.synchronize(hvd.alltoall_async(rows, splits, process_set=ps))
        assert got.tolist() == received
        fails(ValueError, lambda: hvd.alltoall(rows, splits + [0], process_set=ps), f"rank: {n}")


def case_reducescatter(hvd: Any) -> None:
    for ps, members, mine in each_set(hvd):
        n = len(members)
        rows = n + 1
        wanted = torch.full((2 if mine == 0 else 1, 3), float(sum(members)))
        x = torch.full((rows, 3), float(hvd.rank()))
        same(hvd.reducescatter(x, op=hvd.Sum, process_set=ps), wanted)
        handle = hvd.reducescatter_async(x, op=hvd.Sum, process_set=ps)
        same(hvd.synchronize(handle), wanted)
        same(hvd.grouped_reducescatter([x, x], op=hvd.Sum, process_set=ps)[1], wanted)
        handle = hvd.grouped_reducescatter_async([x], op=hvd.Sum, process_set=ps)
        same(hvd.synchronize(handle)[0], wanted)


def case_barrier_and_join(hvd: Any) -> None:
    for ps, members, mine in each_set(hvd):
        hvd.barrier(process_set=ps)
        for _ in range(2):
            for _ in range(mine):  # the last member has the most data
                x = hvd.allreduce(torch.ones(2), op=hvd.Sum, process_set=ps)
                assert 1 <= x[0] <= len(members)
            assert hvd.join(process_set=ps) in members
        hvd.synchronize(hvd.allreduce_async(torch.ones(2), process_set=ps))


def case_gradients(hvd: Any) -> None:
    for ps, members, mine in each_set(hvd):
        n = len(members)
        factors = [float(r + 1) for r in range(n)]
        mean = sum(factors) / n

        def gradient(apply: Callable[[Any], Any], rows: int) -> torch.Tensor:
            x = torch.ones(rows, 2, requires_grad=True)
            y = apply(x)
            y.backward(torch.full_like(y, factors[mine]))
            return x.grad

        close = torch.testing.assert_close
        ones = torch.ones
        close(gradient(lambda x: hvd.allreduce(x, process_set=ps), 3), ones(3, 2) * mean)
        close(
            gradient(lambda x: hvd.allreduce(x, op=hvd.Sum, process_set=ps), 3),
            ones(3, 2) * mean * n,
        )
        close(
            gradient(lambda x: torch.cat(hvd.grouped_allreduce([x, x], process_set=ps)), 3),
            ones(3, 2) * mean * 2,
        )
        close(
            gradient(lambda x: hvd.allgather(x, process_set=ps), mine + 1),
            ones(mine + 1, 2) * mean,
        )
        close(
            gradient(lambda x: torch.cat(hvd.grouped_allgather([x, x], process_set=ps)), mine),
            ones(mine, 2) * mean * 2,
        )
        root = members[-1]
        close(
            gradient(lambda x: hvd.broadcast(x, root, process_set=ps), 2),
            ones(2, 2) * (mean if hvd.rank() == root else 0),
        )
        close(
            gradient(lambda x: hvd.alltoall(x, process_set=ps), n),
            torch.tensor(factors)[:, None].expand(n, 2).contiguous(),
        )
        splits = [r + 1 for r in range(n)]
        sent = torch.cat([ones(r + 1, 2) * factors[r] for r in range(n)])
        close(gradient(lambda x: hvd.alltoall(x, splits, process_set=ps)[0], sum(splits)), sent)
        owner = torch.tensor([1.0, *factors])[:, None].expand(n + 1, 2)
        close(
            gradient(lambda x: hvd.reducescatter(x, op=hvd.Sum, process_set=ps), n + 1), owner * n
        )
        close(
            gradient(lambda x: hvd.grouped_reducescatter([x], process_set=ps)[0], n + 1),
            owner.contiguous(),
        )


# ---- Several sets --------------------------------------------------------------------------------


def case_overlapping_sets_at_once(hvd: Any) -> None:
    """Operations of one name on all sets in flight, started in an order of its own on each rank."""
    me = hvd.rank()
    sets = [hvd.global_process_set, *map(hvd.add_process_set, all_sets(hvd.size()))]
    mine = [ps for ps in sets if ps.included()]
    for turn in range(10):
        order = torch.randperm(len(mine), generator=torch.Generator().manual_seed(me + turn))
        handles = {
            i: hvd.allreduce_async(
                torch.full((7,), float(me)), name="one name", op=hvd.Sum, process_set=mine[i]
            )
            for i in order.tolist()
        }
        for i, handle in sorted(handles.items()):
            same(hvd.synchronize(handle), torch.full((7,), float(sum(mine[i].ranks))))
    for ps in sets[1:]:
        assert hvd.remove_process_set(ps)


def case_sets_in_threads(hvd: Any) -> None:
    sets = [hvd.global_process_set, *map(hvd.add_process_set, all_sets(hvd.size()))]
    wrong: list[str] = []

    def work(ps: Any) -> None:
        try:
            for i in range(30):  # unnamed: numbers are counted on each set
                total = hvd.allreduce(torch.full((9,), float(i)), op=hvd.Sum, process_set=ps)
                handle = hvd.allgather_async(torch.tensor([hvd.rank()]), process_set=ps)
                if hvd.synchronize(handle).tolist() != ps.ranks or total[0] != i * ps.size():
                    wrong.append(f"{ps}: {total}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(ps,)) for ps in sets if ps.included()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong, wrong
    for ps in reversed(sets[1:]):
        assert hvd.remove_process_set(ps)


# ---- Adding and removing -------------------------------------------------------------------------


def case_ids_are_used_again(hvd: Any) -> None:
    from hora.common.process_sets import (
        get_process_set_ids, get_process_set_ids_and_ranks, is_process_set_included,
        process_set_by_id, process_sets,
    )  # fmt: skip

    if hvd.size() < 3:
        return
    first, second = hvd.add_process_set([0]), hvd.add_process_set([2, 1])
    assert (first.process_set_id, second.process_set_id) == (1, 2)
    assert second.ranks == [1, 2]
    assert get_process_set_ids() == [0, 1, 2]
    assert get_process_set_ids_and_ranks() == {0: list(range(hvd.size())), 1: [0], 2: [1, 2]}
    assert process_set_by_id(2) is second
    assert process_sets() == [hvd.global_process_set, first, second]
    assert is_process_set_included(first) == (hvd.rank() == 0)
    assert hvd.remove_process_set(first) is True
    assert get_process_set_ids() == [0, 2]
    assert not is_process_set_included(first)
    third = hvd.add_process_set(hvd.ProcessSet([0, 1]))
    assert third.process_set_id == 1
    for ps in (third, second):
        assert hvd.remove_process_set(ps) is True
    assert hvd.remove_process_set(ps) is False, "it is gone already"
    assert hvd.remove_process_set(hvd.global_process_set) is False
    fails(ValueError, lambda: process_set_by_id(2), "2")


def case_a_set_that_cannot_be_used(hvd: Any) -> None:
    ones = torch.ones(3)
    size = hvd.size()
    loose = hvd.ProcessSet([0])
    assert (loose.process_set_id, loose.size(), loose.rank()) == (None, None, None)
    fails(ValueError, lambda: hvd.allreduce(ones, process_set=loose), "not been added", "[0]")
    fails(ValueError, lambda: hvd.barrier(process_set=loose), "not been added")
    fails(ValueError, lambda: hvd.join(process_set=loose), "not been added")
    fails(ValueError, lambda: hvd.allreduce(ones, process_set=3), "ProcessSet")
    if size == 1:
        return
    ps = hvd.add_process_set([size - 1])
    if not ps.included():
        for call in (
            lambda: hvd.allreduce(ones, process_set=ps),
            lambda: hvd.allgather_async(ones, process_set=ps),
            lambda: hvd.broadcast(ones, size - 1, process_set=ps),
            lambda: hvd.alltoall(ones, [3], process_set=ps),
            lambda: hvd.reducescatter(ones, process_set=ps),
            lambda: hvd.barrier(process_set=ps),
            lambda: hvd.join(process_set=ps),
        ):
            fails(ValueError, call, f"rank {hvd.rank()}", "process set 1", f"[{size - 1}]")
    hvd.remove_process_set(ps)
    fails(ValueError, lambda: hvd.allreduce(ones, process_set=ps), "removed")


def case_bad_sets(hvd: Any) -> None:
    size = hvd.size()
    for what in (5, "ab", [0, "1"], [0.5], [True], None, object()):
        fails(ValueError, lambda: hvd.ProcessSet(what), "list of ranks or an mpi4py communicator")
    fails(ValueError, lambda: hvd.add_process_set([0, size]), f"no rank {size}", f"{size} ranks")
    fails(ValueError, lambda: hvd.add_process_set([-1]), "no rank -1")
    fails(ValueError, lambda: hvd.add_process_set([0, 0]), "rank 0 is in it twice")
    fails(ValueError, lambda: hvd.add_process_set([]), "no ranks")
    fails(ValueError, lambda: hvd.add_process_set(range(size)), "duplicate", "process set 0")
    if size == 1:
        return
    ps = hvd.add_process_set([0])
    fails(ValueError, lambda: hvd.add_process_set([0]), "duplicate", "process set 1")
    fails(ValueError, lambda: hvd.add_process_set(ps), "duplicate")
    same(hvd.allreduce(torch.ones(2), op=hvd.Sum), torch.full((2,), float(size)))
    assert hvd.remove_process_set(ps)


def case_ranks_that_disagree(hvd: Any) -> None:
    """An error on every rank, which names both sides; and the next call works."""
    me, size = hvd.rank(), hvd.size()
    if size == 1:
        return
    last = size - 1
    odd = me == last
    error = hvd.HorovodInternalError
    fails(
        error, lambda: hvd.add_process_set([last] if odd else [0]),
        "rank 0 adds", "ranks [0]", f"rank {last} adds", f"ranks [{last}]",
    )  # fmt: skip
    other = [0, 1] if odd else [0, size]
    fails(error, lambda: hvd.add_process_set(other), f"[0, {size}]", "[0, 1]")
    ps = hvd.add_process_set([0])
    qs = hvd.add_process_set([last])
    fails(
        error, lambda: hvd.remove_process_set(qs if odd else ps),
        "rank 0 removes process set 1", f"rank {last} removes process set 2",
    )  # fmt: skip
    if odd:
        fails(error, lambda: hvd.remove_process_set(qs), "removes process set 2", "[0, 1]")
    else:
        fails(error, lambda: hvd.add_process_set([0, 1]), "removes process set 2", "[0, 1]")
    gone = hvd.ProcessSet([0])
    fails(
        error, lambda: hvd.remove_process_set(gone if odd else ps),
        "rank 0 removes process set 1", f"rank {last} removes a process set that is not there",
    )  # fmt: skip
    assert hvd.remove_process_set(gone) is False
    assert ps.process_set_id == 1 and qs.process_set_id == 2
    if odd:
        same(hvd.allreduce(torch.ones(2), process_set=qs), torch.ones(2))
    assert hvd.remove_process_set(qs) and hvd.remove_process_set(ps)


def case_mismatch_on_a_set(hvd: Any) -> None:
    for ps, members, mine in each_set(hvd):
        if len(members) == 1:
            continue
        fails(
            hvd.HorovodInternalError,
            lambda: hvd.allreduce(torch.ones(3 + (mine == 0)), name="bad", process_set=ps),
            "bad",
        )
        same(hvd.allreduce(torch.ones(2), process_set=ps), torch.ones(2))


def case_removed_with_operations_in_flight(hvd: Any) -> None:
    if hvd.size() == 1:
        return
    ps = hvd.add_process_set([0, 1] if hvd.size() > 2 else [0])
    handle = None
    if hvd.rank() == 0 and hvd.size() > 2:
        handle = hvd.allreduce_async(torch.ones(4), name="never", process_set=ps)
    hvd.remove_process_set(ps)
    if handle is not None:
        fails(hvd.HorovodInternalError, lambda: hvd.synchronize(handle), "never")
    ps = hvd.add_process_set([0])
    if ps.included():
        hvd.allreduce(torch.ones(4), name="never", process_set=ps)
    hvd.remove_process_set(ps)


test_shm = ranks.case_test(sys.modules[__name__], [1, 2, 3, 4])
test_tcp = ranks.case_test(sys.modules[__name__], [3], HORA_TRANSPORT="tcp")


# ---- With init() ---------------------------------------------------------------------------------


class FakeComm:
    """What hora needs of an mpi4py communicator, made of a file per rank."""

    def __init__(self, name: str, members: list[int]) -> None:
        self.name = name
        self.members = members

    def Get_size(self) -> int:  # noqa: N802 (MPI's name)
        return len(self.members)

    def __bool__(self) -> bool:
        return bool(self.members)

    def allgather(self, value: int) -> list[int]:
        import os
        import time
        from pathlib import Path

        folder = Path(os.environ["HORA_TEST_FOLDER"])
        mine = folder / f"{self.name}.{os.environ['HORA_TEST_RANK']}"
        mine.with_suffix(".tmp" + os.environ["HORA_TEST_RANK"]).write_text(str(value))
        mine.with_suffix(".tmp" + os.environ["HORA_TEST_RANK"]).rename(mine)
        result = []
        end = time.monotonic() + 30
        for member in self.members:
            path = folder / f"{self.name}.{member}"
            while not path.exists() and time.monotonic() < end:
                time.sleep(0.005)
            result.append(int(path.read_text()))
        return result


def place() -> int:
    """This process's rank among those that were launched."""
    import os

    return int(os.environ["HORA_TEST_RANK"])


def static_sets() -> list[int]:
    import hora.torch as hvd

    seen = []
    first, second = hvd.ProcessSet([1, 0]), hvd.ProcessSet([2])
    for _ in range(2):  # the objects can be used for the next job too
        hvd.init(process_sets=[first, second])
        assert (first.process_set_id, second.process_set_id) == (1, 2)
        mine = first if first.included() else second
        total = hvd.allreduce(torch.tensor([hvd.rank()]), op=hvd.Sum, process_set=mine)
        hvd.shutdown()
        assert first.process_set_id is None and first.ranks == [0, 1]
        seen.append(total.item())
    hvd.init(process_sets="dynamic")
    third = hvd.add_process_set([0, 2])
    if third.included():
        hvd.barrier(process_set=third)
    hvd.shutdown()
    fails(ValueError, lambda: hvd.init(process_sets=["set"]), "ProcessSet objects")
    for bad in ([hvd.ProcessSet([0]), hvd.ProcessSet([0])], [hvd.ProcessSet([0, 1, 2])]):
        fails(ValueError, lambda: hvd.init(process_sets=bad), "duplicate")
        assert not hvd.is_initialized() and bad[0].process_set_id is None
    for other in ([hvd.ProcessSet([1])], []):
        fails(
            hvd.HorovodInternalError,
            lambda: hvd.init(process_sets=other if place() == 2 else [hvd.ProcessSet([0])]),
            "rank 0 adds a process set of ranks [0]", "rank 2",
        )  # fmt: skip
        assert not hvd.is_initialized()
    return seen


def lists_that_do_not_fit() -> None:
    import hora.torch as hvd

    me = place()
    fails(ValueError, lambda: hvd.init(comm=[0, 0]), "twice")
    fails(ValueError, lambda: hvd.init(comm=7), "list of ranks")
    fails(ValueError, lambda: hvd.init(comm=["a"]), "list of ranks")
    fails(ValueError, lambda: hvd.init(comm=[0, 9]), "no rank 9", "3 ranks")
    lists = [[0, 1], [1, 2], [2]]
    fails(hvd.HorovodInternalError, lambda: hvd.init(comm=lists[me]), "rank 0", "[1, 2]")
    fails(
        hvd.HorovodInternalError, lambda: hvd.init(comm=[0, 1] if me == 0 else None), "[0, 1]"
    )
    assert not hvd.is_initialized()
    for order in ([0, 1, 2], [2, 1, 0]):
        hvd.init(comm=order)
        assert hvd.rank() == order.index(me) and hvd.size() == 3
        hvd.shutdown()


def sets_at_init() -> list[int]:
    seen = static_sets()
    lists_that_do_not_fit()
    return seen


def test_sets_at_init() -> None:
    assert ranks.run(sets_at_init, 3) == [[1, 1], [1, 1], [2, 2]]


def sets_of_communicators() -> None:
    import hora.torch as hvd
    from hora.common.process_sets import get_process_set_ids
    from hora.torch.mpi_ops import _basics

    me = place()
    halves = hvd.ProcessSet(FakeComm(f"half{me % 2}", [r for r in range(4) if r % 2 == me % 2]))
    one = FakeComm("one", [3, 0] if me in (0, 3) else [])  # null on ranks outside of it
    pair = hvd.ProcessSet(one)
    hvd.init(comm=FakeComm("all", [0, 1, 2, 3]), process_sets=[halves, pair])
    total = hvd.allreduce(torch.tensor([me]), op=hvd.Sum, process_set=halves).item()
    assert total == 2 * (me % 2) + 2
    assert halves.rank() == me // 2 and halves.ranks == [me % 2, me % 2 + 2]
    assert halves.process_set_id == 1 + me % 2
    assert pair.process_set_id == 3 and pair.ranks == [3, 0]
    if pair.included():  # the communicator's order
        got = hvd.allgather(torch.tensor([me]), process_set=pair)
        assert got.tolist() == [3, 0] and pair.rank() == [3, 0].index(me)
        assert hvd.broadcast(torch.tensor([me]), 3, process_set=pair).item() == 3
    assert get_process_set_ids() == [0, 1, 2, 3]
    assert _basics._comm_process_set_id(FakeComm("again", [0, 1, 2, 3])) == 0
    later = hvd.add_process_set(FakeComm("later", [1, 2] if me in (1, 2) else []))
    assert later.process_set_id == 4 and later.included() == (me in (1, 2))
    hvd.shutdown()


def jobs_of_some_ranks() -> list[Any]:
    import hora.torch as hvd

    sets_of_communicators()
    me = place()
    members = [2, 0] if me in (0, 2) else [1, 3]
    seen: list[Any] = []
    for comm in (members, FakeComm(f"part{me % 2}", members)):
        hvd.init(comm=comm, process_sets=[hvd.ProcessSet([1])])
        ids = hvd.mpi_ops._basics._get_process_set_ids_and_ranks()
        assert ids == {0: [0, 1], 1: [1]}
        assert hvd.local_rank() == hvd.rank() and hvd.local_size() == hvd.size() == 2
        seen.append([hvd.rank(), hvd.allgather(torch.tensor([me])).tolist()])
        hvd.shutdown()
    try:
        hvd.init(comm=[2, 0])
    except ValueError as error:
        assert not hvd.is_initialized()
        return [*seen, str(error)]
    for _ in range(50):
        total = hvd.allgather(torch.tensor([me]))
    return [*seen, total.tolist()]


def test_jobs_of_some_ranks() -> None:
    """Every list forms a job of its own, in the order of the list."""
    results = ranks.run(jobs_of_some_ranks, 4)
    places = [[1, [2, 0]], [0, [1, 3]], [0, [2, 0]], [1, [1, 3]]]
    assert [result[:2] for result in results] == [[one, one] for one in places]
    assert results[0][2] == results[2][2] == [2, 0]
    for outsider in (1, 3):
        assert f"rank {outsider} is not in init(comm=[2, 0])" in results[outsider][2]


# ---- Ranks that are late, or die -----------------------------------------------------------------


def a_rank_that_never_calls() -> list[str]:
    import time

    import hora.torch as hvd

    texts = []
    for what in ("add", "remove"):
        hvd.init()
        ps = hvd.add_process_set([0])
        if hvd.rank() == 1:
            time.sleep(5)
        else:
            try:
                hvd.add_process_set([0, 1]) if what == "add" else hvd.remove_process_set(ps)
            except hvd.HorovodInternalError as error:
                texts.append(str(error))
            if ps.included():  # its operations go on
                assert hvd.allreduce(torch.ones(1), process_set=ps).item() == 1
            hvd.synchronize(hvd.allgather_async(torch.ones(1), process_set=ps) if not hvd.rank()
                            else None)  # fmt: skip
        hvd.shutdown()
    return texts


def test_a_rank_that_never_calls() -> None:
    texts = ranks.run(a_rank_that_never_calls, 3, env={"HORA_TIMEOUT": "2"})
    assert not texts[1]
    for rank in (0, 2):
        add, remove = texts[rank]
        assert "add_process_set" in add and "rank 1" in add, add
        assert "remove_process_set" in remove and "rank 1" in remove, remove


def a_rank_dies() -> str:
    import os
    import time

    import hora.torch as hvd

    hvd.init()
    ps = hvd.add_process_set([0, 1])
    if hvd.rank() == 2:
        os._exit(3)
    end = time.monotonic() + 20
    try:
        while time.monotonic() < end:
            hvd.allreduce(torch.ones(1), process_set=ps)
    except hvd.HorovodInternalError as error:
        return str(error)
    return "no error"


def test_a_rank_outside_the_set_dies() -> None:
    """It has failed the job, and so all of its sets."""
    outcomes = ranks.start(a_rank_dies, 3).wait(90)
    assert [o.code for o in outcomes] == [0, 0, 3], [o.output for o in outcomes]
    for outcome in outcomes[:2]:
        assert "rank 2" in outcome.value and "died" in outcome.value, outcome.value
