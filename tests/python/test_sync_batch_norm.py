"""SyncBatchNorm against torch's BatchNorm on the joined batch of all ranks.

Every rank can make every other's input, so each computes the reference alone: its outputs and input
gradients must be its rows of the reference's, and the sum of the ranks' parameter gradients must be
the reference's.
"""

from __future__ import annotations

import copy
import io
import itertools
import sys
from typing import Any, Sequence

import ranks
import torch
from test_ops import fails, same
from torch import nn

CHANNELS = 5
LAYERS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
# Relative to the largest value; the reference computes in the same type, but adds up otherwise.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6}


def joined(
    step: int, rows: Sequence[int], inner: Sequence[int], dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """All ranks' inputs, and the gradients that reach the outputs."""
    random = torch.Generator().manual_seed(step)
    shape = (sum(rows), CHANNELS, *inner)
    x = torch.randn(shape, generator=random, dtype=torch.float64) * 3 + 2
    return x.to(dtype), torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)


def close(mine: torch.Tensor, wanted: torch.Tensor, tolerance: float, what: str) -> None:
    assert mine.shape == wanted.shape, (what, mine.shape, wanted.shape)
    limit = tolerance * max(1.0, wanted.abs().max().item() if wanted.numel() else 0.0)
    error = (mine.double() - wanted.double()).abs().max().item() if wanted.numel() else 0.0
    assert error <= limit, f"{what}: {error} > {limit}"


def pair(hvd: Any, dims: int, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """A SyncBatchNorm and the BatchNorm that it must be equal to, with the same parameters."""
    torch.manual_seed(5)
    plain = LAYERS[dims](CHANNELS, dtype=dtype, **options)
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    layer = hvd.SyncBatchNorm(CHANNELS, dtype=dtype, **options)
    layer.load_state_dict(plain.state_dict())
    return layer, plain


def compare(
    hvd: Any, layer: Any, plain: Any, rows: Sequence[int], inner: Sequence[int],
    dtype: torch.dtype, tolerance: float, steps: int = 2,
) -> None:  # fmt: skip
    me = hvd.rank()
    mine = slice(sum(rows[:me]), sum(rows[: me + 1]))
    for step in range(steps):
        x, grad = joined(step, rows, inner, dtype)
        x_mine = x[mine].clone().requires_grad_()
        x_plain = x.clone().requires_grad_()
        layer.zero_grad()
        plain.zero_grad()
        y, y_plain = layer(x_mine), plain(x_plain)
        assert y.dtype == dtype
        close(y, y_plain[mine], tolerance, f"output {step}")
        y.backward(grad[mine])
        y_plain.backward(grad)
        close(x_mine.grad, x_plain.grad[mine], tolerance, f"input's gradient {step}")
        for p, p_plain in zip(layer.parameters(), plain.parameters()):
            total = hvd.allreduce(p.grad, op=hvd.Sum)
            assert p.grad.dtype == p.dtype
            close(total, p_plain.grad, tolerance * sum(rows), f"parameter's gradient {step}")
        for (name, b), b_plain in zip(layer.named_buffers(), plain.buffers()):
            close(b, b_plain, tolerance, f"{name} {step}")


# ---- Training ------------------------------------------------------------------------------------


def case_every_shape(hvd: Any) -> None:
    rows = [4] * hvd.size()
    inners = [(), (3,), (1,), (3, 2), (2, 3, 2)]
    for dtype, inner in itertools.product((torch.float64, torch.float32), inners):
        layer, plain = pair(hvd, 2 + len(inner), dtype)
        compare(hvd, layer, plain, rows, inner, dtype, TOLERANCE[dtype])


def case_every_option(hvd: Any) -> None:
    rows = [3] * hvd.size()
    for affine, track, momentum in itertools.product((True, False), (True, False), (0.3, None)):
        layer, plain = pair(
            hvd, 4, torch.float64, affine=affine, track_running_stats=track, momentum=momentum,
            eps=1e-3,
        )  # fmt: skip
        compare(hvd, layer, plain, rows, (2, 2), torch.float64, 1e-12, steps=3)
        if track:
            assert layer.num_batches_tracked.item() == 3


def case_batches_of_different_sizes(hvd: Any) -> None:
    size = hvd.size()
    for rows in ([r + 1 for r in range(size)], [2 * (size - r) for r in range(size)]):
        if sum(rows) > 1:
            layer, plain = pair(hvd, 3, torch.float64)
            compare(hvd, layer, plain, rows, (2,), torch.float64, 1e-12)


def case_empty_batch(hvd: Any) -> None:
    size = hvd.size()
    if size == 1:
        return
    for empty in (0, size - 1):
        rows = [0 if r == empty else 3 for r in range(size)]
        for inner in ((), (2, 2)):
            layer, plain = pair(hvd, 2 + len(inner), torch.float64)
            compare(hvd, layer, plain, rows, inner, torch.float64, 1e-12)


def case_one_row_on_each_rank(hvd: Any) -> None:
    """What a BatchNorm of each rank alone could not do."""
    if hvd.size() > 1:
        layer, plain = pair(hvd, 2, torch.float64)
        compare(hvd, layer, plain, [1] * hvd.size(), (), torch.float64, 1e-12)


def case_half_precision(hvd: Any) -> None:
    """The parameters in float32 or in the input's type: as exact as the type of the result."""
    me, rows = hvd.rank(), [8] * hvd.size()
    for dtype, bits in ((torch.float16, 11), (torch.bfloat16, 8)):
        for parameters in (torch.float32, dtype):
            layer, plain = pair(hvd, 4, parameters)
            plain.double()
            x, grad = joined(0, rows, (3, 3), dtype)
            mine = slice(me * 8, me * 8 + 8)
            x_mine = x[mine].clone().requires_grad_()
            x_plain = x.double().requires_grad_()
            y, y_plain = layer(x_mine), plain(x_plain)
            assert y.dtype == dtype
            close(y, y_plain[mine], 2.0**-bits, "output")
            if hvd.size() == 1:
                continue  # torch's own from here on
            y.backward(grad[mine])
            y_plain.backward(grad.double())
            assert x_mine.grad.dtype == dtype
            close(x_mine.grad, x_plain.grad[mine], 2.0**-bits, "input's gradient")
            close(layer.running_var, plain.running_var, 2.0**-bits, "variance")
            for p, p_plain in zip(layer.parameters(), plain.parameters()):
                assert p.grad.dtype == parameters
                total = hvd.allreduce(p.grad.double(), op=hvd.Sum)
                close(total, p_plain.grad, hvd.size() * 2.0**-bits, "parameter's gradient")


def case_mean_far_from_zero(hvd: Any) -> None:
    """Sums of squares would lose the variance."""
    rows = [16] * hvd.size()
    x, _ = joined(0, rows, (), torch.float64)
    x = (x + 4096.0).float()
    me = hvd.rank()
    layer = hvd.SyncBatchNorm(CHANNELS, affine=False)
    y = layer(x[me * 16 : me * 16 + 16])
    wanted = nn.BatchNorm1d(CHANNELS, affine=False).double()(x.double())
    close(y, wanted[me * 16 : me * 16 + 16], 1e-3, "output")


def case_channels_last(hvd: Any) -> None:
    rows = [3] * hvd.size()
    me = hvd.rank()
    layer, plain = pair(hvd, 4, torch.float64)
    x, _ = joined(0, rows, (4, 4), torch.float64)
    y = layer(x[me * 3 : me * 3 + 3].to(memory_format=torch.channels_last))
    close(y, plain(x)[me * 3 : me * 3 + 3], 1e-12, "output")
    assert y.is_contiguous(memory_format=torch.channels_last)


def case_input_that_needs_no_gradient(hvd: Any) -> None:
    me, rows = hvd.rank(), [4] * hvd.size()
    layer, plain = pair(hvd, 2, torch.float64)
    x, grad = joined(0, rows, (), torch.float64)
    mine = slice(me * 4, me * 4 + 4)
    layer(x[mine]).backward(grad[mine])
    plain(x).backward(grad)
    for p, p_plain in zip(layer.parameters(), plain.parameters()):
        close(hvd.allreduce(p.grad, op=hvd.Sum), p_plain.grad, 1e-11, "parameter's gradient")


def case_in_a_model(hvd: Any) -> None:
    """With the distributed optimizer, training follows one process on the joined batch."""

    torch.manual_seed(3)
    alone = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6),
        nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2),
    ).double()  # fmt: skip
    size, me = hvd.size(), hvd.rank()
    model = hvd.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(alone))
    assert not any(type(m) in (nn.BatchNorm1d, nn.BatchNorm2d) for m in model.modules())
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model.named_parameters()
    )
    reference = torch.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    for step in range(5):
        random = torch.Generator().manual_seed(step)
        x = torch.randn(3 * size, 2, 4, 4, generator=random, dtype=torch.float64)
        y = torch.randn(3 * size, 2, generator=random, dtype=torch.float64)
        for net, opt, part in ((model, optimizer, slice(3 * me, 3 * me + 3)),
                               (alone, reference, slice(None))):  # fmt: skip
            opt.zero_grad()
            nn.functional.mse_loss(net(x[part]), y[part]).backward()
            opt.step()
        wanted = alone.state_dict()
        for name, mine in model.state_dict().items():
            close(mine, wanted[name], 1e-12, f"{name} in step {step}")
    model.eval()
    alone.eval()
    close(model(x), alone(x), 1e-12, "evaluation")


# ---- Evaluation, conversion, mistakes ------------------------------------------------------------


def case_evaluation(hvd: Any) -> None:
    """With running statistics no rank waits for another."""
    layer, plain = pair(hvd, 2, torch.float64)
    layer.running_mean.fill_(0.5)
    plain.running_mean.fill_(0.5)
    layer.eval()
    plain.eval()
    if hvd.rank() == 0:
        x, _ = joined(0, [3], (), torch.float64)
        same(layer(x), plain(x))
    assert layer.num_batches_tracked.item() == 0


def case_conversion(hvd: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm2d(3, eps=0.5, momentum=None)
            self.inner = nn.ModuleDict({"a": nn.Sequential(nn.BatchNorm1d(4, affine=False))})
            self.other = nn.GroupNorm(1, 3)
            self.bare = nn.BatchNorm3d(2, track_running_stats=False)

    net = Net().eval()
    net.first.running_mean.fill_(7.0)
    before = dict(net.named_parameters()) | dict(net.named_buffers())
    converted = hvd.SyncBatchNorm.convert_sync_batchnorm(net)
    assert converted is net
    for layer in (net.first, net.inner["a"][0], net.bare):
        assert type(layer) is hvd.SyncBatchNorm and not layer.training
    assert type(net.other) is nn.GroupNorm
    after = dict(net.named_parameters()) | dict(net.named_buffers())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert net.first.eps == 0.5 and net.first.momentum is None
    assert net.bare.running_mean is None and net.inner["a"][0].weight is None
    again = hvd.SyncBatchNorm.convert_sync_batchnorm(net)
    assert again.first is net.first
    alone = hvd.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm1d(3))
    assert type(alone) is hvd.SyncBatchNorm
    lazy = nn.Sequential(nn.LazyBatchNorm1d())
    fails(ValueError, lambda: hvd.SyncBatchNorm.convert_sync_batchnorm(lazy), "lazy")


def case_copies(hvd: Any) -> None:
    layer, plain = pair(hvd, 2, torch.float64)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert other.process_set is hvd.global_process_set
        twin = copy.deepcopy(plain)
        compare(hvd, other, twin, [2] * hvd.size(), (), torch.float64, 1e-12)
    assert layer.num_batches_tracked.item() == 0


def case_compiled(hvd: Any) -> None:
    """torch.compile cuts the model at the collective, forward and backward."""
    me, size = hvd.rank(), hvd.size()
    if size > 2:
        return  # the compiler takes seconds to import
    layer, plain = pair(hvd, 2, torch.float64)
    before, after = nn.Linear(CHANNELS, CHANNELS).double(), nn.Tanh()
    compiled = torch.compile(nn.Sequential(before, layer, after), backend="eager")
    x, grad = joined(0, [4] * size, (), torch.float64)
    with torch.no_grad():
        for p in before.parameters():
            hvd.broadcast_(p, 0)
    y = compiled(x[me * 4 : me * 4 + 4])
    y.backward(grad[me * 4 : me * 4 + 4])
    mine = hvd.allreduce(before.weight.grad, op=hvd.Sum)
    before.zero_grad()
    y_plain = after(plain(before(x)))
    close(y, y_plain[me * 4 : me * 4 + 4], 1e-12, "output")
    y_plain.backward(grad)
    close(mine, before.weight.grad, 1e-11, "gradient before it")


def case_mistakes(hvd: Any) -> None:
    layer = hvd.SyncBatchNorm(CHANNELS)
    fails(ValueError, lambda: layer(torch.ones(3)), "expected at least 2D input (got 1D input)")
    if hvd.size() > 1:
        fails(ValueError, lambda: layer(torch.ones(3, 2)), "5 channels (got 2)")
        # One row in the whole job: every rank is told.
        rows = 1 if hvd.rank() == hvd.size() - 1 else 0
        few = torch.ones(rows, CHANNELS)
        fails(ValueError, lambda: layer(few), "more than 1 value per channel")
        assert layer.num_batches_tracked.item() == 0
    layer(torch.ones(2, CHANNELS))  # and works after that


# ---- the tests -----------------------------------------------------------------------------------

test_sync_batch_norm = ranks.case_test(sys.modules[__name__], [1, 2, 3])
