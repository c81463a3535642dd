"""DistributedOptimizer with gradient_as_bucket_view: the training is the same as without, gradients
are views of one tensor in shared memory while the job lasts, and nothing points there after it."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import ranks
import torch
from test_ops import fails
from test_optimizer import MAKERS, SHARE, Model, batch, close, follow, identical, loss_of

VIEWS: dict[str, Any] = {"gradient_as_bucket_view": True}


def buckets_of(optimizer: Any) -> list[torch.Tensor]:
    return list(optimizer._buckets.flat.values())


def lies_in(tensor: torch.Tensor, bucket: torch.Tensor) -> bool:
    at = tensor.data_ptr() - bucket.data_ptr()
    return 0 <= at <= bucket.nbytes - tensor.nbytes


def case_follows_one_process(hvd: Any) -> None:
    for make in MAKERS:
        for set_to_none in (True, False):
            optimizer = follow(hvd, make, set_to_none=set_to_none, unused=True, **VIEWS)
            buckets = buckets_of(optimizer)
            assert len(buckets) == (hvd.size() > 1)
            for p in optimizer.param_groups[0]["params"]:
                assert p.grad is None or any(lies_in(p.grad, b) for b in buckets) or not buckets


def case_keeps_its_place(hvd: Any) -> None:
    p = torch.nn.Parameter(torch.zeros(5))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], **VIEWS)
    seen = set()
    for _ in range(3):
        p.sum().backward()
        optimizer.step()
        seen.add(p.grad.data_ptr())
        optimizer.zero_grad(set_to_none=False)
    assert len(seen) == 1 and p[0].item() == -3.0


def case_groups(hvd: Any) -> None:
    optimizer = follow(hvd, groups=2, **VIEWS)
    assert len(buckets_of(optimizer)) == (2 if hvd.size() > 1 else 0)


def case_compression(hvd: Any) -> None:
    follow(hvd, tolerance=1e-2, compression=hvd.Compression.fp16, **VIEWS)


def case_accumulation(hvd: Any) -> None:
    def twice(optimizer: Any, model: Any, data: Any) -> None:
        for half in (slice(0, SHARE // 2), slice(SHARE // 2, SHARE)):
            (loss_of(model, data[0][half], data[1][half]) / 2).backward()
        optimizer.step()

    for set_to_none in (True, False):
        follow(hvd, step=twice, backward_passes_per_step=2, set_to_none=set_to_none, **VIEWS)


def case_types_and_strides(hvd: Any) -> None:
    """One bucket for each type; a gradient lies as its parameter does."""
    size, me = hvd.size(), hvd.rank()
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    parameters = [torch.nn.Parameter(t) for t in (image, torch.zeros(7).double(), torch.zeros(()))]
    named = list(zip("abc", parameters))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(parameters, lr=1.0), named, **VIEWS)
    sum(p.sum() * (me + 1.0) for p in parameters).backward()
    optimizer.step()
    for p in parameters:
        assert (p == -(size + 1) / 2).all() and p.grad.stride() == p.stride()
    assert len(buckets_of(optimizer)) == (2 if size > 1 else 0)


def case_ranks_that_list_them_differently(hvd: Any) -> None:
    model, alone = Model(), Model()
    named = list(model.named_parameters())
    if hvd.rank() % 2:
        named.reverse()
    inner = torch.optim.SGD([p for _, p in named], lr=0.1)
    optimizer = hvd.DistributedOptimizer(inner, named, **VIEWS)
    x, y = batch(0, hvd.size())
    mine = slice(hvd.rank() * SHARE, (hvd.rank() + 1) * SHARE)
    loss_of(model, x[mine], y[mine]).backward()
    optimizer.step()
    loss_of(alone, x, y).backward()
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    close(model, alone)
    identical(hvd, model.parameters())


def case_process_set(hvd: Any) -> None:
    if hvd.size() < 3:
        return
    pair = hvd.add_process_set([0, 2])
    p = torch.nn.Parameter(torch.zeros(4))
    inner = torch.optim.SGD([p], lr=1.0)
    optimizer = hvd.DistributedOptimizer(inner, [("p", p)], process_set=pair, **VIEWS)
    (p.sum() * (hvd.rank() + 1.0)).backward()
    optimizer.step()
    assert p[0].item() == -2.0
    hvd.remove_process_set(pair)


def case_sparse(hvd: Any) -> None:
    if hvd.size() == 1:
        return
    table = torch.nn.Embedding(4, 2, sparse=True)

    def wrap(**options: Any) -> Any:
        inner = torch.optim.SGD(table.parameters(), lr=1.0)
        return hvd.DistributedOptimizer(inner, table.named_parameters(), **VIEWS, **options)

    optimizer = wrap()
    fails(ValueError, table(torch.tensor([1])).sum().backward, "use sparse_as_dense=True")
    del optimizer
    optimizer = wrap(sparse_as_dense=True)
    optimizer.zero_grad()
    before = table.weight.detach().clone()
    table(torch.tensor([1])).sum().backward()
    optimizer.step()
    assert torch.equal(before[1] - 1.0, table.weight[1]) and torch.equal(before[0], table.weight[0])


def case_sparse_adam(hvd: Any) -> None:
    """It takes sparse gradients only."""
    table = torch.nn.Embedding(4, 2, sparse=True)
    torch.nn.init.ones_(table.weight)
    inner = torch.optim.SparseAdam(table.parameters(), lr=0.5)
    optimizer = hvd.DistributedOptimizer(
        inner, table.named_parameters(), sparse_as_dense=True, **VIEWS
    )
    for _ in range(2):
        optimizer.zero_grad()
        table(torch.tensor([hvd.rank()])).sum().backward()
        optimizer.step()
    rows = table.weight[:, 0] < 0.9
    assert rows.tolist() == [r < hvd.size() for r in range(4)]
    identical(hvd, table.parameters())


def case_other_memory(hvd: Any) -> None:
    """A gradient that was given other memory, or replaced before or after its reduction began."""
    if hvd.size() == 1:
        return
    mean = (hvd.size() + 1) / 2
    for set_to_none in (True, False):
        p = torch.nn.Parameter(torch.zeros(5))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], **VIEWS)
        for step in range(4):
            (p.sum() * (hvd.rank() + 1.0)).backward()
            if step == 1:
                p.grad = p.grad * 1  # the reduction has begun
            elif step == 2:
                p.grad = None
            optimizer.synchronize()
            assert (p.grad == mean).all(), (set_to_none, step, p.grad)
            if step == 0:
                p.grad.data = p.grad.data * 1
            with optimizer.skip_synchronize():
                optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        assert (p == -4 * mean).all()


def case_frozen_since(hvd: Any) -> None:
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    inner = torch.optim.SGD([p, q], lr=1.0, weight_decay=0.5)
    optimizer = hvd.DistributedOptimizer(inner, [("p", p), ("q", q)], **VIEWS)
    q.requires_grad_(False)
    p.sum().backward()
    optimizer.step()
    assert q.grad is None and (q == 1).all() and (p == -0.5).all()


class OnGpu(torch.nn.Parameter):
    """Says that it is on a GPU. What that is good for, on real ones: tests/gpu."""

    is_cuda = property(lambda self: True)


class Stream:
    def __init__(self) -> None:
        self.device = torch.device("cuda:0")
        self.waited: list[Stream] = []

    def wait_stream(self, stream: Stream) -> None:
        self.waited.append(stream)


def case_members_from_several_streams(hvd: Any) -> None:
    """The stream on which a group's operation is enqueued waits for those of its other members."""
    real = torch.cuda.current_stream
    for options in ({"groups": 1}, VIEWS):
        p, q, r = (OnGpu(torch.zeros(3)) for _ in range(3))
        named = [("p", p), ("q", q), ("r", r)]
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p, q, r], lr=1.0), named, **options)
        first, last = Stream(), Stream()
        try:
            for stream, parameter in ((first, p), (last, q), (last, r)):
                torch.cuda.current_stream = lambda device: stream
                (parameter.sum() * (hvd.rank() + 1)).backward()
        finally:
            torch.cuda.current_stream = real
        optimizer.step()
        assert (p == r).all() and p[0].item() == -(hvd.size() + 1) / 2
        assert first.waited == [] and last.waited == ([first] if hvd.size() > 1 else [])


def case_members_from_two_threads(hvd: Any) -> None:
    """As where one is on a GPU and one is not: a group starts once, with both gradients."""
    for options in ({"groups": 1}, VIEWS):
        p, q = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p, q], lr=1.0), [("p", p), ("q", q)],
                                             **options)
        starts = []
        count, start = optimizer._count_pass, optimizer._start_group
        optimizer._count_pass = lambda member: (count(member), time.sleep(0.02))[0]
        optimizer._start_group = lambda group: (starts.append(group), start(group))
        threads = [threading.Thread(target=(member.sum() * 2).backward) for member in (p, q)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        optimizer.step()
        assert len(starts) == (hvd.size() > 1)
        assert p[0].item() == q[0].item() == -2


test_buckets = ranks.case_test(sys.modules[__name__], [1, 2, 3])


def outlive() -> list[float]:
    """Gradients, and whatever else points to them, can be used after the job; then a new one."""
    import hora.torch as hvd

    hvd.init()
    p = torch.nn.Parameter(torch.zeros(300_000))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], **VIEWS)
    sums = []
    kept = []
    for _ in range(3):
        p.sum().backward()
        optimizer.step()
        kept.append(p.grad)
        hvd.shutdown()
        assert p.grad is not kept[-1]
        sums += [p.grad.sum().item() / p.numel(), kept[-1].sum().item() / p.numel()]
        kept[-1].fill_(7)
        optimizer.zero_grad()
        hvd.init()
    hvd.shutdown()
    return sums


def test_memory_outlives_the_job() -> None:
    assert ranks.run(outlive, 2) == [[1.0] * 6] * 2
