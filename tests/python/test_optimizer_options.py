"""DistributedOptimizer beside the plain way: process sets, Adasum, sparse gradients, parameters
that come and go, accumulation, copies, and every mistake that it reports."""

from __future__ import annotations

import copy
import io
import os
import pickle
import sys
import warnings
from typing import Any

import pytest
import ranks
import torch
from test_ops import fails, same
from test_optimizer import SHARE, Model, batch, close, follow, identical, loss_of


def sgd(model: torch.nn.Module, lr: float = 0.1, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def my_share(hvd: Any, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = batch(step, hvd.size())
    mine = slice(hvd.rank() * SHARE, (hvd.rank() + 1) * SHARE)
    return x[mine], y[mine]


def parameter(count: int, **options: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(count, dtype=torch.float64), **options)


def warnings_of(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


# ---- Process sets --------------------------------------------------------------------------------


def case_process_set(hvd: Any) -> None:
    """Each half trains on its own; who is in neither trains alone."""
    size, me = hvd.size(), hvd.rank()
    if size == 1:
        return
    halves = [list(range(size // 2)), list(range(size // 2, size - size % 2))]
    sets = [hvd.add_process_set(ranks) for ranks in halves]
    for groups in (None, 2):
        optimizers, models = [], []
        for process_set in sets:
            model = Model()
            optimizers.append(
                hvd.DistributedOptimizer(
                    sgd(model), model.named_parameters(), process_set=process_set, groups=groups
                )
            )
            models.append(model)
        for step in range(2):
            data = my_share(hvd, step)
            for optimizer, model in zip(optimizers, models):
                optimizer.zero_grad()
                loss_of(model, *data).backward()
                optimizer.step()
        for ranks_of, model in zip(halves, models):
            alone = Model()
            reference = sgd(alone)
            for step in range(2):
                x, y = batch(step, size)
                rows = [r * SHARE + i for r in ranks_of for i in range(SHARE)]
                rows = rows if me in ranks_of else range(me * SHARE, me * SHARE + SHARE)
                reference.zero_grad()
                loss_of(alone, x[list(rows)], y[list(rows)]).backward()
                reference.step()
            close(model, alone)
    for process_set in sets:
        hvd.remove_process_set(process_set)
    gone = lambda: hvd.DistributedOptimizer(sgd(Model()), process_set=sets[0])  # noqa: E731
    fails(ValueError, gone, "has been removed")
    new = hvd.ProcessSet([0])
    fails(ValueError, lambda: hvd.DistributedOptimizer(sgd(Model()), process_set=new), "not been")


def case_broadcasts_on_a_process_set(hvd: Any) -> None:
    size, me = hvd.size(), hvd.rank()
    if size < 3:
        return
    ranks_of = [0, size - 1]
    process_set = hvd.add_process_set(ranks_of)
    p = torch.full((3,), float(me))
    model = Model(seed=me)
    adam = torch.optim.Adam(model.parameters(), lr=0.1 + me)
    hvd.broadcast_parameters([p], root_rank=size - 1, process_set=process_set)
    hvd.broadcast_optimizer_state(adam, size - 1, process_set=process_set)
    same(p, torch.full((3,), float(size - 1 if me in ranks_of else me)))
    assert adam.param_groups[0]["lr"] == 0.1 + (size - 1 if me in ranks_of else me)
    if me in ranks_of:
        assert hvd.broadcast_object(me, size - 1, process_set=process_set) == size - 1
        assert hvd.allgather_object(me, process_set=process_set) == ranks_of
        layer = hvd.SyncBatchNorm(2, process_set=process_set)
        layer(torch.tensor([[float(me), 1.0]]))
        assert layer.running_mean[0].item() == pytest.approx(0.1 * (size - 1) / 2)
    hvd.remove_process_set(process_set)


# ---- Adasum --------------------------------------------------------------------------------------


def adasum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    dot = (a * b).sum()
    return (1 - dot / (2 * a.square().sum())) * a + (1 - dot / (2 * b.square().sum())) * b


def case_adasum_of_equal_and_orthogonal_steps(hvd: Any) -> None:
    """Equal steps are averaged, orthogonal ones are added up."""
    size, me = hvd.size(), hvd.rank()
    for lr in (1.0, 0.25):
        equal, orthogonal = parameter(3), parameter(4)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD([equal, orthogonal], lr=lr),
            [("equal", equal), ("orthogonal", orthogonal)],
            op=hvd.Adasum,
        )
        for step in range(1, 3):
            optimizer.zero_grad()
            (2 * equal.sum() + 3 * orthogonal[me]).backward()
            optimizer.step()
            torch.testing.assert_close(equal.detach(), torch.full((3,), -2.0 * lr * step).double())
            wanted = torch.zeros(4).double()
            wanted[:size] = -3.0 * lr * step
            torch.testing.assert_close(orthogonal.detach(), wanted)


def case_adasum_training(hvd: Any) -> None:
    """With two ranks against the formula, with any number the ranks stay equal; each keeps the
    momentum of its own gradients."""
    size, me = hvd.size(), hvd.rank()
    model = Model()
    optimizer = hvd.DistributedOptimizer(
        sgd(model, momentum=0.9), model.named_parameters(), op=hvd.Adasum
    )
    assert isinstance(optimizer, torch.optim.SGD)
    alone = [Model() for _ in range(size)]  # every rank's, stepping from where all are
    references = [sgd(net, momentum=0.9) for net in alone]
    start = loss_of(model, *batch(0, size)).item()
    for step in range(4):
        x, y = batch(0, size)
        optimizer.zero_grad()
        loss_of(model, *my_share(hvd, 0)).backward()
        optimizer.step()
        identical(hvd, model.parameters())
        before = [p.detach().clone() for p in alone[0].parameters()]
        for rank in range(size):
            references[rank].zero_grad()
            rows = slice(rank * SHARE, (rank + 1) * SHARE)
            loss_of(alone[rank], x[rows], y[rows]).backward()
            references[rank].step()
        if size > 2:
            continue
        for index, begin in enumerate(before):
            now = [list(net.parameters())[index].detach() for net in alone]
            moved = [end - begin for end in now]
            if size == 2 and moved[0].any():
                moved[0] = adasum(*moved)
            for end in now:
                end.copy_(begin + moved[0])
        close(model, alone[0])
    assert loss_of(model, *batch(0, size)).item() < start
    momentum = optimizer.state[model.last.weight]["momentum_buffer"]
    if size <= 2:
        wanted = references[me].state[alone[me].last.weight]["momentum_buffer"]
        torch.testing.assert_close(momentum, wanted, rtol=1e-12, atol=1e-12)


def case_adasum_options(hvd: Any) -> None:
    size = hvd.size()
    model = Model()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.01), model.named_parameters(), op=hvd.Adasum,
        compression=hvd.Compression.fp16, backward_passes_per_step=2,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(4):
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        for _ in range(2):
            loss_of(model, *my_share(hvd, step)).backward()
        optimizer.synchronize()  # nothing to wait for
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        scheduler.step()
        identical(hvd, model.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.01 / 16
    with_closure = hvd.DistributedOptimizer(sgd(model), op=hvd.Adasum)

    def closure() -> torch.Tensor:
        with_closure.zero_grad()
        loss = loss_of(model, *my_share(hvd, 9))
        loss.backward()
        return loss

    assert with_closure.step(closure).item() > 0
    identical(hvd, model.parameters())
    optimizer.set_backward_passes_per_step(1)
    skipping = "Skipping synchronization is not supported when using Adasum optimizer."
    fails(AssertionError, lambda: optimizer.skip_synchronize().__enter__(), skipping)
    # A parameter that only one rank uses moves by that rank's step.
    p, q = parameter(2), parameter(2)
    partly = hvd.DistributedOptimizer(torch.optim.SGD([p, q], lr=1.0), op=hvd.Adasum)
    (p.sum() + (q.sum() if hvd.rank() == size - 1 else 0)).backward()
    partly.step()
    same(q.detach(), torch.full((2,), -1.0).double())


def case_adasum_on_a_process_set(hvd: Any) -> None:
    size, me = hvd.size(), hvd.rank()
    if size < 3:
        return
    process_set = hvd.add_process_set([1, 2])
    p = parameter(3)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([p], lr=1.0), op=hvd.Adasum, process_set=process_set
    )
    (p[me % 3] * 2).backward()
    optimizer.step()
    wanted = torch.zeros(3).double()
    wanted[[1, 2] if me in (1, 2) else [me % 3]] = -2.0
    torch.testing.assert_close(p.detach(), wanted)
    hvd.remove_process_set(process_set)


# ---- Sparse gradients ----------------------------------------------------------------------------


def case_sparse_gradients_for_sparse_adam(hvd: Any) -> None:
    """It takes sparse gradients only, so those that were reduced as dense ones are sparse again."""
    size, me = hvd.size(), hvd.rank()
    for as_dense in (False, True):
        torch.manual_seed(0)
        table = torch.nn.Embedding(8, 2, sparse=True).double()
        alone = copy.deepcopy(table)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SparseAdam(list(table.parameters()), lr=0.1),
            table.named_parameters(),
            sparse_as_dense=as_dense,
        )
        reference = torch.optim.SparseAdam(list(alone.parameters()), lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            reference.zero_grad()
            (table(torch.tensor([me, step, 6])) ** 2).sum().backward()
            for rank in range(size):
                (alone(torch.tensor([rank, step, 6])) ** 2).sum().div(size).backward()
            optimizer.step()
            assert table.weight.grad.is_sparse
            reference.step()
            torch.testing.assert_close(table.weight, alone.weight, rtol=1e-12, atol=1e-12)
            identical(hvd, [table.weight])


def case_sparse_gradient_missing_on_some_ranks(hvd: Any) -> None:
    """Once a rank knows that gradients of a parameter are sparse, one that is missing is empty."""
    size, me = hvd.size(), hvd.rank()
    for as_dense in (False, True):
        table = torch.nn.Embedding(4, 2, sparse=True).double()
        torch.nn.init.zeros_(table.weight)
        other = parameter(1)
        optimizer = hvd.DistributedOptimizer(
            torch.optim.SGD([table.weight, other], lr=1.0),
            [("table", table.weight), ("other", other)],
            sparse_as_dense=as_dense,
        )
        for step in range(3):
            optimizer.zero_grad()
            loss = other.sum()
            if step == 0 or me == 0:
                loss = loss + table(torch.tensor([step])).sum()
            loss.backward()
            optimizer.step()
        wanted = torch.zeros(4, 2).double()
        wanted[0], wanted[1:3] = -1.0, -1.0 / size
        torch.testing.assert_close(table.weight.detach(), wanted)


def case_sparse_gradient_missing_from_the_start(hvd: Any) -> None:
    """A rank cannot know then that it is sparse on others: an error at once, on all of them."""
    size, me = hvd.size(), hvd.rank()
    if size == 1:
        return
    table, other = torch.nn.Embedding(4, 2, sparse=True), parameter(1)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([table.weight, other], lr=1.0), [("table", table.weight), ("other", other)]
    )
    loss = other.sum()
    if me == 0:
        loss = loss + table(torch.tensor([1])).sum()
    loss.backward()
    fails(hvd.HorovodInternalError, optimizer.step, "allreduce.table", "allgather")


def case_sparse_gradient_in_a_group(hvd: Any) -> None:
    if hvd.size() == 1:
        return
    table = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = hvd.DistributedOptimizer(sgd(table), table.named_parameters(), groups=1)
    fails(ValueError, table(torch.tensor([1])).sum().backward, "use sparse_as_dense=True")
    del optimizer
    optimizer = hvd.DistributedOptimizer(
        sgd(table), table.named_parameters(), groups=1, sparse_as_dense=True
    )
    optimizer.zero_grad()
    table(torch.tensor([1])).sum().backward()
    optimizer.step()


# ---- Parameters that come and go -----------------------------------------------------------------


def case_param_groups(hvd: Any) -> None:
    """Several groups with options of their own, one parameter of them frozen."""

    def make(model: Model) -> torch.optim.Optimizer:
        groups = [
            {"params": model.first.parameters(), "lr": 0.3},
            {"params": [model.second.weight, model.fixed]},
            {"params": [model.second.bias, *model.last.parameters()], "momentum": 0.5},
        ]
        return torch.optim.SGD(groups, lr=0.1)

    for named in (True, False):
        model, alone = Model(), Model()
        names = model.named_parameters() if named else None
        optimizer, reference = hvd.DistributedOptimizer(make(model), names), make(alone)
        for step in range(3):
            optimizer.zero_grad()
            reference.zero_grad()
            loss_of(model, *my_share(hvd, step)).backward()
            loss_of(alone, *batch(step, hvd.size())).backward()
            optimizer.step()
            reference.step()
            close(model, alone)


def case_frozen_and_thawed_later(hvd: Any) -> None:
    """What is frozen later stands still, weight decay or not; what is thawed is reduced."""
    model, alone = Model(), Model()
    make = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), **make), model.named_parameters()
    )
    reference = torch.optim.SGD(alone.parameters(), **make)
    for step in range(6):
        for net in (model, alone):
            net.first.requires_grad_(step not in (2, 3))
            net.fixed.requires_grad_(step >= 4)
        optimizer.zero_grad()
        reference.zero_grad()
        loss_of(model, *my_share(hvd, step)).backward()
        loss_of(alone, *batch(step, hvd.size())).backward()
        optimizer.step()
        reference.step()
        close(model, alone)
        identical(hvd, model.parameters())


def case_compiled_model(hvd: Any) -> None:
    """The hooks survive torch.compile."""
    if hvd.size() > 2:
        return  # the compiler takes seconds to import
    model, alone = Model(), Model()
    compiled = torch.compile(model, backend="aot_eager")
    optimizer = hvd.DistributedOptimizer(sgd(compiled), compiled.named_parameters())
    reference = sgd(alone)
    for step in range(3):
        optimizer.zero_grad()
        reference.zero_grad()
        loss_of(compiled, *my_share(hvd, step)).backward()
        if hvd.size() > 1:
            assert optimizer._handles
        optimizer.step()
        loss_of(alone, *batch(step, hvd.size())).backward()
        reference.step()
        close(model, alone)


def case_grad_scaler(hvd: Any) -> None:
    """torch.amp's pattern: reduce, unscale, clip, step. One rank's overflow skips everyone's."""
    model, alone = Model(), Model()
    optimizer = hvd.DistributedOptimizer(sgd(model), model.named_parameters())
    reference = sgd(alone)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        overflow = step == 1
        optimizer.zero_grad()
        reference.zero_grad()
        loss = loss_of(model, *my_share(hvd, step))
        if overflow and hvd.rank() == hvd.size() - 1:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        optimizer.synchronize()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        with optimizer.skip_synchronize():
            scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (1024.0 if step == 0 else 512.0)
        if not overflow:
            loss_of(alone, *batch(step, hvd.size())).backward()
            torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.01)
            reference.step()
        close(model, alone)


# ---- Accumulation --------------------------------------------------------------------------------


def case_passes_left_over(hvd: Any) -> None:
    """Passes that an epoch left over count in the next one; the message says how to drop them."""
    if hvd.size() == 1:
        return
    p = parameter(2)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([p], lr=1.0), [("weights", p)], backward_passes_per_step=2
    )
    for _ in range(2):
        p.sum().backward()
    fails(
        AssertionError, p.sum().backward,
        "Gradients were computed more than backward_passes_per_step times before call to step(). "
        "Increase backward_passes_per_step to accumulate gradients locally.",
        "weights", "backward_passes_per_step=2", "synchronize() and zero_grad()",
    )  # fmt: skip
    optimizer.synchronize()
    optimizer.zero_grad()
    for _ in range(2):
        p.sum().backward()
    optimizer.step()
    same(p.detach(), torch.full((2,), -2.0).double())
    p.sum().backward()  # the first of two
    fails(AssertionError, optimizer.zero_grad, "prohibited as it can cause a race condition")
    fails(AssertionError, lambda: optimizer.zero_grad(set_to_none=False), "zero_grad")
    optimizer.step()


def case_step_after_every_pass(hvd: Any) -> None:
    """Then backward_passes_per_step saves nothing, which is said once."""
    if hvd.size() == 1:
        return
    p = parameter(2)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([p], lr=1.0), [("p", p)], backward_passes_per_step=4
    )

    def steps(passes: int) -> None:
        for _ in range(passes):
            p.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    for passes in (4, 1, 4, 1, 1):
        assert not warnings_of(lambda: steps(passes))
    said = warnings_of(lambda: steps(1))
    assert len(said) == 1 and "backward_passes_per_step=4 (the last one after 1)" in said[0], said
    assert not warnings_of(lambda: steps(1))
    optimizer.set_backward_passes_per_step(1)
    for _ in range(5):
        assert not warnings_of(lambda: steps(1))


# ---- Copies and states ---------------------------------------------------------------------------


def train(hvd: Any, model: torch.nn.Module, optimizer: Any, begin: int, end: int) -> None:
    for step in range(begin, end):
        optimizer.zero_grad()
        loss_of(model, *my_share(hvd, step)).backward()
        optimizer.step()


def trained_alone(size: int, steps: int) -> Model:
    alone = Model()
    reference = torch.optim.Adam(alone.parameters(), lr=0.01)
    for step in range(steps):
        reference.zero_grad()
        loss_of(alone, *batch(step, size)).backward()
        reference.step()
    return alone


def case_copies(hvd: Any) -> None:
    """A deep or a pickled copy goes on with the state of the original and reduces its own
    parameters' gradients; the original is not touched."""
    for options in ({}, {"groups": 2}, {"op": hvd.Adasum}):
        model = Model()
        optimizer = hvd.DistributedOptimizer(
            torch.optim.Adam(model.parameters(), lr=0.01), model.named_parameters(), **options
        )
        train(hvd, model, optimizer, 0, 2)
        pair = model, optimizer
        file = io.BytesIO()
        torch.save(pair, file)
        file.seek(0)
        before = [p.detach().clone() for p in model.parameters()]
        copies = [
            copy.deepcopy(pair),
            pickle.loads(pickle.dumps(pair)),
            torch.load(file, weights_only=False),
        ]
        for twin, its in copies:
            assert isinstance(its, torch.optim.Adam) and type(its) is not torch.optim.Adam
            assert its.process_set is hvd.global_process_set
            assert its.param_groups[0]["params"][0] is next(twin.parameters())
            train(hvd, twin, its, 2, 4)
            identical(hvd, twin.parameters())
            if "op" not in options:
                close(twin, trained_alone(hvd.size(), 4))
        for p, kept in zip(model.parameters(), before):
            same(p.detach(), kept)
        train(hvd, model, optimizer, 2, 4)
        close(model, copies[0][0], 0.0)


def case_state_dict(hvd: Any) -> None:
    """A new optimizer goes on from the state of the old one, also in the midst of a step."""
    model = Model()
    optimizer = hvd.DistributedOptimizer(
        torch.optim.Adam(model.parameters(), lr=0.01), model.named_parameters()
    )
    train(hvd, model, optimizer, 0, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    loss_of(model, *my_share(hvd, 7)).backward()  # and then it starts again from the state
    hvd.barrier()
    optimizer.load_state_dict(copy.deepcopy(saved[1]))
    model.load_state_dict(saved[0])
    optimizer.zero_grad()
    train(hvd, model, optimizer, 2, 3)
    fresh = Model(seed=3)
    other = hvd.DistributedOptimizer(torch.optim.Adam(fresh.parameters(), lr=0.5))
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(hvd, fresh, other, 2, 3)
    close(fresh, model, 0.0)
    close(fresh, trained_alone(hvd.size(), 3))


def case_keeps_the_state_of_the_wrapped_one(hvd: Any) -> None:
    model = Model()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    loss_of(model, *batch(0, hvd.size())).backward()
    adam.step()
    optimizer = hvd.DistributedOptimizer(adam, model.named_parameters())
    train(hvd, model, optimizer, 1, 3)
    close(model, trained_alone(hvd.size(), 3))


def case_step_hooks_run_once(hvd: Any) -> None:
    model = Model()
    for op in (hvd.Average, hvd.Adasum):
        optimizer = hvd.DistributedOptimizer(sgd(model), op=op)
        for twin in (optimizer, copy.deepcopy(optimizer)):
            calls: list[str] = []
            twin.register_step_pre_hook(lambda *_: calls.append("before"))
            twin.register_step_post_hook(lambda *_: calls.append("after"))
            twin.step()
            assert calls == ["before", "after"], calls


# ---- Join and failures ---------------------------------------------------------------------------


def case_join(hvd: Any) -> None:
    """Ranks with less data leave early and count as zero; the average stays over all."""
    size, me = hvd.size(), hvd.rank()
    p = parameter(2)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)])
    for _ in range(me + 1):
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()
    last = hvd.join()
    assert last == size - 1
    hvd.broadcast_parameters([p], root_rank=last)
    moved = sum((size - step) / size for step in range(size))
    torch.testing.assert_close(p.detach(), torch.full((2,), -moved).double())


def case_gradients_that_do_not_match(hvd: Any) -> None:
    """An error on every rank, after which training goes on."""
    size, me = hvd.size(), hvd.rank()
    if size == 1:
        return
    good, bad = parameter(3), parameter(3 + (me == size - 1))
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD([good, bad], lr=1.0), [("good", good), ("bad", bad)]
    )
    (good.sum() + bad.sum()).backward()
    fails(hvd.HorovodInternalError, optimizer.step, "allreduce.bad")
    optimizer.zero_grad()
    only = hvd.DistributedOptimizer(torch.optim.SGD([good], lr=1.0), [("only", good)])
    del optimizer, bad
    good.sum().backward()
    only.step()
    same(good.detach(), torch.full((3,), -1.0).double())


# ---- Arguments -----------------------------------------------------------------------------------


def case_messages(hvd: Any) -> None:
    model = Model()
    named = list(model.named_parameters())

    def wrap(**options: Any) -> Any:
        return hvd.DistributedOptimizer(sgd(model), **options)

    for op in (hvd.Average, hvd.Adasum):
        fails(
            ValueError, lambda: wrap(named_parameters=model.parameters(), op=op),
            "named_parameters should be a sequence of tuples (name, parameter), usually produced "
            "by model.named_parameters().",
        )  # fmt: skip
        twice = [*named, (named[0][0], parameter(1)), (named[2][0], parameter(1))]
        fails(
            ValueError, lambda: wrap(named_parameters=twice, op=op),
            "Parameter names in named_parameters must be unique. Found duplicates: ",
            f"{min(named[0][0], named[2][0])}, {max(named[0][0], named[2][0])}",
        )  # fmt: skip
        fails(
            ValueError, lambda: wrap(named_parameters=named[1:], op=op),
            "named_parameters was specified, but one or more model parameters were not named. "
            f"Python object ids: {id(named[0][1])}", "shapes: (3,)",
        )  # fmt: skip
    for op in (hvd.Sum, hvd.Adasum, hvd.Max):
        fails(
            ValueError, lambda: wrap(op=op, gradient_predivide_factor=2.0),
            "gradient_predivide_factor not supported with op != Average",
        )  # fmt: skip
    wrong = "groups should be a non-negative integer or a list of list of torch.Tensor."
    for groups in (-1, "two", 1.5):
        fails(ValueError, lambda: wrap(groups=groups), wrong)
    weight = model.first.weight
    once = "A parameter can only appear once in groups."
    fails(ValueError, lambda: wrap(groups=[[weight], [weight]]), once)
    fails(ValueError, lambda: wrap(groups=[["first"]]), "groups must consist of torch.Tensor.")
    for passes in (0, -1):
        bad = "backward_passes_per_step must be > 0"
        fails(ValueError, lambda: wrap(backward_passes_per_step=passes), bad)
        fails(ValueError, lambda: wrap().set_backward_passes_per_step(passes), bad)
    replaced = "Parameter `num_groups` has been replaced by `groups`"
    assert any(replaced in text for text in warnings_of(lambda: wrap(num_groups=2)))
    fails(ValueError, lambda: hvd.DistributedOptimizer(wrap()), "already")
    fails(ValueError, lambda: hvd.DistributedOptimizer(wrap(op=hvd.Adasum)), "already")


def case_groups_of_other_parameters(hvd: Any) -> None:
    if hvd.size() == 1:
        return
    p = parameter(2)
    name = "mine" if hvd.rank() == 0 else "yours"
    optimizer = torch.optim.SGD([p], lr=1.0)
    call = lambda: hvd.DistributedOptimizer(optimizer, [(name, p)], groups=1)  # noqa: E731
    if hvd.rank() == 0:
        call()
    else:
        fails(ValueError, call, "not those of rank 0: mine, yours")


def case_gradient_of_a_gradient(hvd: Any) -> None:
    if hvd.size() == 1:
        return
    p = parameter(2)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on cycles
        fails(AssertionError, lambda: p.square().sum().backward(create_graph=True), "of gradients")
    p.grad = None
    optimizer.load_state_dict(optimizer.state_dict())


# ---- the tests -----------------------------------------------------------------------------------

test_optimizer_options = ranks.case_test(sys.modules[__name__], [1, 2, 3])


def join_and_leave() -> list[str]:
    """Ranks become members of the set and leave it, from job to job; the optimizers stay. Every
    step moves the weight by the average of what the members' ranks are in that job, plus 1."""
    import hora.torch as hvd

    hvd.init()
    me, wrong = hvd.rank(), []
    pair = hvd.ProcessSet([0, 1])
    hvd.shutdown()
    hvd.init(process_sets=[pair])

    def wrap(**options: Any) -> tuple[Any, Any]:
        p, q = parameter(2), parameter(3)
        inner = torch.optim.SGD([p, q], lr=1.0)
        named = [("p", p), ("q", q)]
        return p, hvd.DistributedOptimizer(inner, named, process_set=pair, **options)

    views = {"gradient_as_bucket_view": True}
    passes_2 = {"backward_passes_per_step": 2}
    for options in ({}, {"groups": 1}, views, passes_2, {"op": hvd.Adasum}):
        p, optimizer = wrap(**options)
        for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 1, 2]):
            hvd.shutdown()
            hvd.init(comm=order, process_sets=[pair])
            now = hvd.rank()
            optimizer.zero_grad()
            before = p[0].item()
            for _ in range(options.get("backward_passes_per_step", 1)):
                (p.sum() * (now + 1.0)).backward()
            if order == [2, 1, 0] and len(options) == 0:  # a job ends between the two
                hvd.shutdown()
                hvd.init(comm=order, process_sets=[pair])
            optimizer.step()
            moved = before - p[0].item()
            passes = options.get("backward_passes_per_step", 1)
            wanted = (1.5 if now < 2 else 3.0) * passes  # (Adasum of 1 and 2, parallel: also)
            if abs(moved - wanted) > 1e-9:
                wrong.append(f"{options} {order} rank {now} ({me} at first): {moved} not {wanted}")
    hvd.shutdown()
    return wrong


def test_members_change_from_job_to_job() -> None:
    assert ranks.run(join_and_leave, 3) == [[], [], []]


def grow() -> list[float]:
    """A job of one rank becomes one of two, and one of one again."""
    import hora.torch as hvd

    me = int(os.environ["HORA_RANK"])
    moved = []
    hvd.init(comm=[me])
    p = parameter(1)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], groups=1)
    for comm in ([me], None, [me]):
        hvd.shutdown()
        hvd.init(comm=comm)
        optimizer.zero_grad()
        before = p.item()
        (p.sum() * me).backward()
        assert bool(optimizer._handles) == (comm is None)
        optimizer.step()
        moved.append(before - p.item())
    hvd.shutdown()
    return moved


def test_a_job_that_grows() -> None:
    assert ranks.run(grow, 2) == [[0.0, 0.5, 0.0], [1.0, 0.5, 1.0]]


def count_hooks() -> tuple[int, float]:
    import hora.torch as hvd

    hvd.init()
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)])
    p.sum().backward()
    started = len(optimizer._handles)
    optimizer.step()
    return started, p[0].item()


@pytest.mark.parametrize(
    ("variables", "started"),
    [({}, 0), ({"HOROVOD_ELASTIC": "1"}, 1), ({"HORA_ELASTIC": "1"}, 1)],
)
def test_hooks_at_one_rank(variables: dict[str, str], started: int) -> None:
    """One rank reduces nothing, unless more may join it."""
    assert ranks.run(count_hooks, 1, env=variables) == [(started, -1.0)]
