"""Broadcasts of parameters and optimizer states, and the exchange of objects; arguments of wrong types."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import ranks
import torch
from test_ops import fails, same

SOME_TYPES = [
    torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32,
    torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn,
]  # fmt: skip


class Model(torch.nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(4, 3)
        self.norm = torch.nn.BatchNorm1d(3)
        self.last = torch.nn.Linear(3, 2, bias=False)
        self.fixed = torch.nn.Parameter(torch.rand(3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)) * self.fixed)


def some_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int = 2) -> None:
    for step in range(count):
        random = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 4, generator=random)).square().sum().backward()
        optimizer.step()


def equal(a: Any, b: Any) -> None:
    assert type(a) is type(b), (a, b)
    if isinstance(a, torch.Tensor):
        same(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            equal(x, y)
    else:
        assert a == b, (a, b)


# ---- Parameters ----------------------------------------------------------------------------------


def case_broadcast_parameters(hvd: Any) -> None:
    for root in (0, hvd.size() - 1):
        wanted = Model(seed=root).state_dict()
        for form in (
            lambda m: m.state_dict(),
            lambda m: dict(reversed(m.state_dict().items())) if hvd.rank() else m.state_dict(),
            lambda m: list(m.named_parameters()) + list(m.named_buffers()),
            lambda m: m.named_parameters(),
            lambda m: list(m.parameters()),
        ):
            model = Model(seed=hvd.rank())
            hvd.broadcast_parameters(form(model), root_rank=root)
            equal(model.state_dict(), wanted)


def case_broadcast_parameters_of_every_type(hvd: Any) -> None:
    root = hvd.size() - 1
    for dtype in SOME_TYPES:

        def make(rank: int) -> dict[str, torch.Tensor]:
            values = torch.arange(12.0).reshape(3, 4) + rank
            return {
                "matrix": values.to(dtype),
                "transposed": values.to(dtype).t(),
                "scalar": torch.tensor(rank + 1.0).to(dtype),
                "empty": torch.empty(0, 3, dtype=dtype),
            }

        mine = make(hvd.rank())
        if dtype.is_complex:
            mine["conjugated"] = (mine["matrix"].clone() * 1j).conj()
        kept = {name: tensor.data_ptr() for name, tensor in mine.items()}
        hvd.broadcast_parameters(mine, root_rank=root)
        for name, wanted in make(root).items():
            wide = torch.complex128 if dtype.is_complex else torch.float64
            assert torch.equal(mine[name].to(wide), wanted.to(wide)), (dtype, name)
            assert mine[name].data_ptr() == kept[name]
        if dtype.is_complex:
            assert torch.equal(mine["conjugated"], (make(root)["matrix"] * 1j).conj())


def case_broadcast_parameters_takes(hvd: Any) -> None:
    hvd.broadcast_parameters({"count": 3, "weight": torch.ones(2), "none": None}, root_rank=0)
    hvd.broadcast_parameters({}, root_rank=0)
    hvd.broadcast_parameters([], root_rank=0)
    wrong = "invalid params of type"
    for value in (5, None, torch.ones(2), "weights"):
        fails(ValueError, lambda: hvd.broadcast_parameters(value, 0), wrong, str(type(value)))
    fails(ValueError, lambda: hvd.broadcast_parameters([torch.ones(2)], hvd.size()))


# ---- Optimizers ----------------------------------------------------------------------------------

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.5}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("Adam", {"lr": 0.1, "betas": (0.8, 0.9), "amsgrad": True}),
    ("Adam", {"lr": torch.tensor(0.1), "foreach": False}),
    ("AdamW", {"lr": 0.01}),
    ("Adamax", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adadelta", {}),
    ("Adagrad", {}),
    ("Adafactor", {}),
    ("ASGD", {}),
    ("RMSprop", {"momentum": 0.5, "centered": True}),
    ("Rprop", {"etas": (0.4, 1.3)}),
]


def case_broadcast_optimizer_state(hvd: Any) -> None:
    """The state that only the root has (from a checkpoint, say) is made on the others, with the
    same types and options, and no parameter moves."""
    root = hvd.size() - 1
    for name, options in OPTIMIZERS:
        model = Model()
        optimizer = getattr(torch.optim, name)(model.parameters(), **options)
        if hvd.rank() == root:
            some_steps(model, optimizer)
            optimizer.param_groups[0]["lr"] = 0.25
            optimizer.param_groups[0]["note"] = (1, None, "text", {"a": [2.5]})
        before = [p.detach().clone() for p in model.parameters()]
        hvd.broadcast_optimizer_state(optimizer, root_rank=root)
        for p, kept in zip(model.parameters(), before):
            same(p.detach(), kept, "a parameter has changed")
        assert optimizer.param_groups[0]["lr"] == 0.25
        everyones = hvd.allgather_object(optimizer.state_dict())
        for other in everyones:
            equal(other, everyones[root])
        assert name == "SGD" and "momentum" not in options or everyones[0]["state"], name
        hvd.broadcast_parameters(model.state_dict(), root)
        some_steps(model, optimizer)  # and it works on from there
        everyones = hvd.allgather_object(model.state_dict())
        for other in everyones:
            equal(other, everyones[root])


def case_broadcast_optimizer_state_of_several_groups(hvd: Any) -> None:
    model = Model()
    groups = [
        {"params": list(model.first.parameters()), "lr": 0.1 + hvd.rank()},
        {"params": [model.last.weight], "lr": 0.3, "betas": (0.1 + hvd.rank() / 10, 0.5)},
        {"params": [model.fixed], "lr": 0.4},
    ]
    optimizer = torch.optim.Adam(groups)
    hvd.broadcast_optimizer_state(optimizer, 0, model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3, 0.4]
    assert optimizer.param_groups[1]["betas"] == (0.1, 0.5)
    assert optimizer.param_groups[1]["params"][0] is model.last.weight


def case_broadcast_of_a_fresh_optimizer(hvd: Any) -> None:
    """The root's optimizer has no state: then the others have none either."""
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    if hvd.rank() != 0:
        some_steps(model, optimizer)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert not optimizer.state_dict()["state"]


def case_broadcast_state_of_sparse_adam(hvd: Any) -> None:
    table = torch.nn.Embedding(6, 2, sparse=True)
    optimizer = torch.optim.SparseAdam(list(table.parameters()), lr=0.1)
    if hvd.rank() == 0:
        table(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    everyones = hvd.allgather_object(optimizer.state_dict())
    for other in everyones:
        equal(other, everyones[0])
    assert optimizer.state[table.weight]["step"] == 1


def case_broadcast_state_of_lbfgs(hvd: Any) -> None:
    model = Model()
    lbfgs = torch.optim.LBFGS([model.first.weight])
    wanted = "cannot broadcast torch.optim.LBFGS state"
    fails(ValueError, lambda: hvd.broadcast_optimizer_state(lbfgs, 0), wanted)
    wrapped = hvd.DistributedOptimizer(lbfgs)
    fails(ValueError, lambda: hvd.broadcast_optimizer_state(wrapped, 0), wanted)


def case_broadcast_optimizer_state_keeps_schedulers(hvd: Any) -> None:
    model = Model()
    adam = torch.optim.Adam(model.parameters(), lr=0.1 * (1 + hvd.rank()))
    scheduler = torch.optim.lr_scheduler.StepLR(adam, 1, 0.5)
    scheduler.base_lrs = [0.1]
    groups, group = adam.param_groups, adam.param_groups[0]
    optimizer = hvd.DistributedOptimizer(adam, model.named_parameters())
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups is groups and optimizer.param_groups[0] is group
    for wanted in (0.05, 0.025):
        some_steps(model, optimizer, 1)
        scheduler.step()
        assert hvd.allgather_object(optimizer.param_groups[0]["lr"]) == [wanted] * hvd.size()


def case_broadcast_optimizer_state_keeps_types(hvd: Any) -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    adam = torch.optim.Adam([p], lr=0.1)
    exact = torch.tensor([1.0, 1 + 2.0**-20, 3.0])  # bfloat16 does not have the second
    if hvd.rank() == 0:
        p.grad = torch.ones_like(p)
        adam.step()
        adam.state[p]["exp_avg"] = exact.clone()
        adam.state[p]["nested"] = {"list": [exact.clone(), 5]}
        adam.state[p]["nothing"] = None
    hvd.broadcast_optimizer_state(adam, root_rank=0)
    same(adam.state[p]["exp_avg"], exact)
    same(adam.state[p]["nested"]["list"][0], exact)
    assert adam.state[p]["exp_avg_sq"].dtype == torch.bfloat16
    assert adam.state[p]["step"].dtype == torch.float32
    assert adam.state[p]["nothing"] is None


# ---- Objects -------------------------------------------------------------------------------------


def case_objects(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for root in range(size):
        obj = {"rank": me, "list": [1.5, None, ("x", b"y")], "tensor": torch.full((2,), me)}
        got = hvd.broadcast_object(obj if me == root else None, root, name=f"from {root}")
        assert got["rank"] == root and got["list"] == [1.5, None, ("x", b"y")]
        same(got["tensor"], torch.full((2,), root))
    assert hvd.broadcast_object(None) is None
    assert hvd.allgather_object(None) == [None] * size
    assert hvd.allgather_object("x" * me, name="texts") == ["x" * r for r in range(size)]
    big = list(range(100_000))
    assert hvd.broadcast_object(big if me == 0 else ()) == big
    mine = hvd.broadcast_object(big)
    assert (mine is big) == (me == 0)


def case_objects_that_cannot_be_pickled(hvd: Any) -> None:
    """The ranks that wait for them are told, and go on."""
    me, size = hvd.rank(), hvd.size()

    class Stubborn:
        def __reduce__(self) -> Any:
            raise TypeError("not this one")

    obj = Stubborn() if me == size - 1 else 1
    kind, text = (TypeError, "not this one") if me == size - 1 else (RuntimeError, f"{size - 1}")
    fails(kind, lambda: hvd.broadcast_object(obj, size - 1), text)
    fails(kind, lambda: hvd.allgather_object(obj), text)
    assert hvd.allgather_object(me) == list(range(size))


def case_objects_that_need_cloudpickle(hvd: Any) -> None:
    if importlib.util.find_spec("cloudpickle") is None:
        return  # then pickle's own complaint reaches all ranks, which the case above shows
    triple = hvd.broadcast_object((lambda x: 3 * x) if hvd.rank() == 0 else None)
    assert triple(5) == 15


# ---- Arguments of wrong types ---------------------------------------------------------------------


def case_wrong_arguments_are_named(hvd: Any) -> None:
    x = torch.ones(3)
    for blocking in (hvd.allreduce, hvd.allreduce_):
        fails(TypeError, lambda: blocking(x, name="a", op="sum"), "op must be an integer")
        fails(TypeError, lambda: blocking(x, name="a", prescale_factor="2"), "prescale_factor must be")
        fails(ValueError, lambda: blocking(x, name="a\0b"), "null character")
    fails(ValueError, lambda: hvd.allreduce(x.to(torch.complex64), name="a"), "complex64")
    same(hvd.allreduce(x, name="a"), x)


# ---- the tests -----------------------------------------------------------------------------------

test_functions = ranks.case_test(sys.modules[__name__], [1, 2, 3])
