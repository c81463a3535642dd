"""DistributedOptimizer and the broadcasts around it.

The measure is the training of one process on the joined batch: N ranks with a share of the batch
each must follow it step by step. The model is in float64, so that the order of additions moves the
result by less than TOLERANCE, and anything above it is a mistake. All ranks must agree to the bit.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, Callable

import ranks
import torch
from test_ops import fails, same

TOLERANCE = 1e-12
STEPS = 6
SHARE = 4  # rows of the batch per rank


class Model(torch.nn.Module):
    """A few layers, a parameter that is not trained and one that is never used."""

    def __init__(self, seed: int = 0, unused: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(6, 9)
        self.second = torch.nn.Linear(9, 5)
        self.last = torch.nn.Linear(5, 3, bias=False)
        self.fixed = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        if unused:
            self.unused = torch.nn.Parameter(torch.ones(4))
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x))))) * self.fixed


def batch(step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The joined batch of a step; rank r's share is rows r*SHARE to (r+1)*SHARE."""
    random = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(size * SHARE, 6, generator=random, dtype=torch.float64)
    y = torch.randn(size * SHARE, 3, generator=random, dtype=torch.float64)
    return x, y


def loss_of(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.mse_loss(model(x), y)


def close(model: torch.nn.Module, reference: torch.nn.Module, tolerance: float = TOLERANCE) -> None:
    for (name, mine), wanted in zip(model.named_parameters(), reference.parameters()):
        torch.testing.assert_close(
            mine, wanted, rtol=tolerance, atol=tolerance, msg=lambda m: f"{name}: {m}"
        )


def identical(hvd: Any, tensors: Any) -> None:
    """The tensors have the same bits on every rank."""
    flat = torch.cat([t.detach().reshape(-1).double() for t in tensors]).view(torch.int64)
    for other in hvd.allgather(flat[None], name="identical"):
        assert torch.equal(other, flat), "ranks differ"


MAKERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    lambda p: torch.optim.AdamW(p, lr=0.01),
]


def follow(
    hvd: Any,
    make: Callable[[Any], torch.optim.Optimizer] = MAKERS[0],
    tolerance: float = TOLERANCE,
    step: Callable[[Any, Any, Any], None] | None = None,
    unused: bool = False,
    set_to_none: bool = True,
    **options: Any,
) -> Any:
    """Trains with hvd and, beside it, alone on the joined batch; compares after every step."""
    me, size = hvd.rank(), hvd.size()
    model, alone = Model(seed=me, unused=unused), Model(seed=0, unused=unused)
    optimizer = hvd.DistributedOptimizer(
        make(model.parameters()), named_parameters=model.named_parameters(), **options
    )
    reference = make(alone.parameters())
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    close(model, alone, 0.0)
    for number in range(STEPS):
        x, y = batch(number, size)
        optimizer.zero_grad(set_to_none=set_to_none)
        reference.zero_grad(set_to_none=set_to_none)
        loss_of(alone, x, y).backward()
        mine = slice(me * SHARE, (me + 1) * SHARE)
        if step is None:
            loss_of(model, x[mine], y[mine]).backward()
            optimizer.step()
        else:
            step(optimizer, model, (x[mine], y[mine]))
        if unused and size > 1:
            alone.unused.grad = torch.zeros_like(alone.unused)  # documented: zero, not None
        reference.step()
        close(model, alone, tolerance)
        identical(hvd, model.parameters())
    return optimizer


# ---- Training ------------------------------------------------------------------------------------


def case_follows_one_process(hvd: Any) -> None:
    for make in MAKERS:
        optimizer = follow(hvd, make)
        assert isinstance(optimizer, torch.optim.Optimizer)
        assert type(optimizer).__name__ in ("SGD", "AdamW")
    assert isinstance(optimizer, torch.optim.AdamW)


def case_zero_grad_keeps_tensors(hvd: Any) -> None:
    follow(hvd, set_to_none=False)


def case_without_names(hvd: Any) -> None:
    model, me, size = Model(), hvd.rank(), hvd.size()
    groups = [{"params": model.first.parameters()}, {"params": model.second.parameters()}]
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(groups, lr=0.1))
    x, y = batch(0, size)
    loss_of(model, x[me * SHARE :][:SHARE], y[me * SHARE :][:SHARE]).backward()
    optimizer.step()
    alone = Model()
    loss_of(alone, x, y).backward()
    torch.optim.SGD([*alone.first.parameters(), *alone.second.parameters()], lr=0.1).step()
    close(model, alone)


def case_groups(hvd: Any) -> None:
    for count in (1, 2, 3):
        follow(hvd, groups=count)
    follow(hvd, groups=2, unused=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        follow(hvd, num_groups=2)


def case_groups_of_parameters(hvd: Any) -> None:
    model = Model()
    lists = [[model.first.weight, model.last.weight, model.fixed], [model.second.bias]]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters(), groups=lists)
    x, y = batch(0, hvd.size())
    mine = slice(hvd.rank() * SHARE, (hvd.rank() + 1) * SHARE)
    loss_of(model, x[mine], y[mine]).backward()
    optimizer.step()
    alone = Model()
    loss_of(alone, x, y).backward()
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    close(model, alone)


def case_compression(hvd: Any) -> None:
    # One rounding of each gradient to 11 (8) bits, and learning rate 0.1 over six steps.
    follow(hvd, compression=hvd.Compression.fp16, tolerance=2e-2)
    follow(hvd, compression=hvd.Compression.bf16, tolerance=5e-2)


def case_predivide_and_sum(hvd: Any) -> None:
    follow(hvd, gradient_predivide_factor=2.0)
    size = hvd.size()
    follow(
        hvd,
        op=hvd.Sum,
        step=lambda optimizer, model, data: (
            (loss_of(model, *data) / size).backward(),
            optimizer.step(),
        ),
    )


def case_unused_parameter(hvd: Any) -> None:
    optimizer = follow(hvd, unused=True)
    if hvd.size() > 1:
        assert optimizer.param_groups[0]["params"][-1].grad is not None


def case_parameter_used_on_one_rank(hvd: Any) -> None:
    """Ranks that do not use it have part in the average with zero."""
    p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p, q], lr=1.0), [("p", p), ("q", q)])
    for _ in range(3):
        optimizer.zero_grad()
        loss = q.sum()
        if hvd.rank() == 0:
            loss = loss + p.sum()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((3,), -3.0 / hvd.size()))
    same(q.detach(), torch.full((2,), -3.0))


def case_several_backward_passes(hvd: Any) -> None:
    def step(optimizer: Any, model: Any, data: Any) -> None:
        for x, y in zip(data[0].split(SHARE // 2), data[1].split(SHARE // 2)):
            (loss_of(model, x, y) / 2).backward()
        optimizer.step()

    follow(hvd, step=step, backward_passes_per_step=2)
    follow(hvd, step=step, backward_passes_per_step=2, groups=2)

    optimizer = follow(hvd)
    optimizer.set_backward_passes_per_step(2)
    assert optimizer.backward_passes_per_step == 2


def case_too_many_backward_passes(hvd: Any) -> None:
    model = Model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters())
    data = batch(0, 1)
    loss_of(model, *data).backward()
    if hvd.size() > 1:
        fails(AssertionError, lambda: loss_of(model, *data).backward(), "backward_passes_per_step")
    optimizer.step()
    optimizer.zero_grad()


def case_fewer_backward_passes_than_agreed(hvd: Any) -> None:
    """step() reduces what is there."""
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([p], lr=1.0), [("p", p)], backward_passes_per_step=3
    )
    for _ in range(1 + hvd.rank() % 2):
        p.sum().backward()
    optimizer.step()
    odd = hvd.size() // 2
    expected = -(hvd.size() + odd) / hvd.size()
    torch.testing.assert_close(p.detach(), torch.full((3,), expected))


def case_clip_between(hvd: Any) -> None:
    size, me = hvd.size(), hvd.rank()
    model, alone = Model(), Model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters())
    reference = torch.optim.SGD(alone.parameters(), lr=0.1)
    for number in range(3):
        x, y = batch(number, size)
        mine = slice(me * SHARE, (me + 1) * SHARE)
        optimizer.zero_grad()
        loss_of(model, x[mine], y[mine]).backward()
        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with optimizer.skip_synchronize():
                optimizer.step()
        reference.zero_grad()
        loss_of(alone, x, y).backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
        reference.step()
        close(model, alone)


def case_warns_when_synchronized_twice(hvd: Any) -> None:
    model = Model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters())
    loss_of(model, *batch(0, 1)).backward()
    optimizer.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    assert any("skip_synchronize" in str(w.message) for w in caught)


def case_closure(hvd: Any) -> None:
    """The gradients that a closure makes are averaged too, as often as it is called."""
    size, me = hvd.size(), hvd.rank()
    model, alone = Model(), Model()
    lbfgs = torch.optim.LBFGS(
        [p for p in model.parameters() if p.requires_grad], lr=0.1, max_iter=4
    )
    names = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimizer = hvd.DistributedOptimizer(lbfgs, names)
    reference = torch.optim.LBFGS(
        [p for p in alone.parameters() if p.requires_grad], lr=0.1, max_iter=4
    )
    x, y = batch(0, size)
    mine = slice(me * SHARE, (me + 1) * SHARE)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, x[mine], y[mine])
        loss.backward()
        return loss

    def closure_alone() -> torch.Tensor:
        reference.zero_grad()
        loss = loss_of(alone, x, y)
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
        reference.step(closure_alone)
    close(model, alone, 1e-9)  # its line of search magnifies the last bits
    fails(ValueError, lambda: hvd.broadcast_optimizer_state(optimizer, 0), "LBFGS")


def case_sparse_gradients(hvd: Any) -> None:
    size, me = hvd.size(), hvd.rank()
    for as_dense in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(10, 3, sparse=True)
        alone = torch.nn.Embedding(10, 3, sparse=True)
        alone.load_state_dict(table.state_dict())
        sgd = torch.optim.SGD(table.parameters(), lr=0.5)
        optimizer = hvd.DistributedOptimizer(
            sgd, table.named_parameters(), sparse_as_dense=as_dense
        )
        reference = torch.optim.SGD(alone.parameters(), lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            table(torch.tensor([me, me + 1, 9])).sum().backward()
            optimizer.step()
            reference.zero_grad()
            for r in range(size):
                (alone(torch.tensor([r, r + 1, 9])).sum() / size).backward()
            reference.step()
        torch.testing.assert_close(table.weight, alone.weight)
        identical(hvd, [table.weight])


def case_scheduler_and_new_group(hvd: Any) -> None:
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([p], lr=1.0)
    before = torch.optim.lr_scheduler.StepLR(sgd, 1, 0.5)
    optimizer = hvd.DistributedOptimizer(sgd, [("p", p)])
    after = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.add_param_group({"params": [q], "lr": 3.0})
    ((p + q) * float(hvd.rank())).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
        after.step()
    del before
    mean = (hvd.size() - 1) / 2
    torch.testing.assert_close(p.detach(), torch.full((2,), -mean))
    torch.testing.assert_close(q.detach(), torch.full((2,), -3 * mean))
    assert optimizer.param_groups[0]["lr"] == 0.5


def case_not_contiguous_gradient(hvd: Any) -> None:
    torch.manual_seed(1)
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer = hvd.DistributedOptimizer(sgd, layer.named_parameters())
    layer(torch.ones(1, 3, 5, 5) * (hvd.rank() + 1)).sum().backward()
    optimizer.step()
    identical(hvd, layer.parameters())
    alone = torch.nn.Conv2d(3, 4, 3)
    alone(torch.ones(1, 3, 5, 5)).sum().backward()
    mean = (hvd.size() + 1) / 2
    torch.testing.assert_close(layer.weight.grad, alone.weight.grad * mean)


def case_optimizer_that_was_dropped(hvd: Any) -> None:
    """A second optimizer on the same parameters works once the first one is gone."""
    model = Model()
    for _ in range(2):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = hvd.DistributedOptimizer(sgd, model.named_parameters())
        optimizer.zero_grad()
        loss_of(model, *batch(0, 1)).backward()
        optimizer.step()
        del optimizer, sgd


# ---- Arguments -----------------------------------------------------------------------------------


def case_arguments(hvd: Any) -> None:
    model = Model()

    def wrap(**options: Any) -> Any:
        return hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), **options)

    named = list(model.named_parameters())
    fails(ValueError, lambda: wrap(named_parameters=model.parameters()), "sequence of tuples")
    fails(ValueError, lambda: wrap(named_parameters=named + named[:1]), named[0][0])
    fails(ValueError, lambda: wrap(named_parameters=named[1:]), "were not named")
    fails(ValueError, lambda: wrap(groups=-1), "groups")
    fails(ValueError, lambda: wrap(groups=[[model.fixed], [model.fixed]]), "once")
    fails(ValueError, lambda: wrap(groups=[["first"]]), "torch.Tensor")
    fails(ValueError, lambda: wrap(op=hvd.Sum, gradient_predivide_factor=2.0), "predivide")
    fails(ValueError, lambda: hvd.DistributedOptimizer(wrap()), "already")


def case_zero_grad_too_early(hvd: Any) -> None:
    model = Model()
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))
    optimizer.zero_grad()
    loss_of(model, *batch(0, 1)).backward()
    if hvd.size() > 1:
        fails(AssertionError, lambda: optimizer.zero_grad(), "race condition")
    optimizer.step()
    optimizer.zero_grad()


# ---- the tests -----------------------------------------------------------------------------------

test_optimizer = ranks.case_test(sys.modules[__name__], [1, 2, 3])
