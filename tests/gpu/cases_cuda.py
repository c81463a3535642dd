"""What two ranks do on a GPU, for torch_cuda.py: every operation of hora.torch, the optimizers and
SyncBatchNorm beside one process, and what streams and the caching allocator ask for.

HORA_TEST_DEVICE=cpu runs what does not need a GPU on the CPU: a test of these tests.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import json
import os
import signal
import sys
import traceback
from typing import Any, Callable

import torch

DEVICE = torch.device(os.environ.get("HORA_TEST_DEVICE", "cuda:0"))
ON_GPU = DEVICE.type == "cuda"
LENGTHS = (1, 37, 4099, 300_007)
SLOW = 50_000_000  # clock cycles: some 30 ms
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def values(rank: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Small whole numbers, so that sums and products of two ranks' are exact in every type."""
    numbers = (torch.arange(count) * 7 + 3 * rank + 1) % 11
    return numbers.to(dtype).to(DEVICE)


def both(count: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return values(0, count, dtype), values(1, count, dtype)


def same(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.device == wanted.device, (got.device, wanted.device)
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (got.dtype, got.shape)
    assert torch.equal(got, wanted), (got.flatten()[:8], wanted.flatten()[:8])


def agree(hvd: Any, tensor: torch.Tensor) -> None:
    """All ranks have the same bits."""
    raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    everyone = hvd.allgather(raw.unsqueeze(0))
    assert torch.equal(everyone[0], everyone[-1])


def fails(error: type[BaseException], call: Callable[[], Any], *texts: str) -> None:
    try:
        call()
    except error as raised:
        missing = [text for text in texts if text not in str(raised)]
        assert not missing, f"{missing} not in {raised!r}"
    else:
        raise AssertionError(f"{error.__name__} was not raised")


def sleep() -> None:
    """Keeps the current stream busy for a while."""
    if ON_GPU:
        torch.cuda._sleep(SLOW)


@contextlib.contextmanager
def side_stream() -> Any:
    """Another stream, which begins where the current one is and of which the current one then waits."""
    if not ON_GPU:
        yield None
        return
    stream, outer = torch.cuda.Stream(DEVICE), torch.cuda.current_stream(DEVICE)
    stream.wait_stream(outer)
    with torch.cuda.stream(stream):
        yield stream
    outer.wait_stream(stream)


# ---- Operations ----------------------------------------------------------------------------------


def case_what_is_built(hvd: Any) -> None:
    if ON_GPU:
        assert hvd.cuda_built()
        wants_nccl = os.environ.get("HORA_GPU_PATH") == "nccl"
        assert not wants_nccl or hvd.nccl_built() >= 21403


def case_allreduce(hvd: Any) -> None:
    reductions = {
        hvd.Sum: torch.add, hvd.Min: torch.minimum, hvd.Max: torch.maximum, hvd.Product: torch.mul,
        hvd.Average: lambda a, b: torch.div(a + b, 2, rounding_mode=None if a.is_floating_point()
                                            else "trunc").to(a.dtype),
    }  # fmt: skip
    for dtype in FLOATS + INTEGERS:
        for count in LENGTHS:
            a, b = both(count, dtype)
            mine = values(hvd.rank(), count, dtype)
            for op, reduce in reductions.items():
                same(hvd.allreduce(mine, op=op), reduce(a, b))
            same(mine, values(hvd.rank(), count, dtype))


def case_in_place_and_async(hvd: Any) -> None:
    for count in LENGTHS:
        a, b = both(count)
        x = values(hvd.rank(), count)
        assert hvd.allreduce_(x, op=hvd.Sum) is x
        same(x, a + b)
        x = values(hvd.rank(), count)
        handle = hvd.allreduce_async_(x, op=hvd.Max, name="in.place")
        while not hvd.poll(handle):
            pass
        assert hvd.synchronize(handle) is x
        same(x, torch.maximum(a, b))
        handles = [hvd.allreduce_async(values(hvd.rank(), count), name=f"many.{i}", op=hvd.Sum)
                   for i in range(20)]
        for handle in reversed(handles):
            same(hvd.synchronize(handle), a + b)


def case_scales(hvd: Any) -> None:
    for dtype in FLOATS:
        a, b = both(4099, dtype)
        got = hvd.allreduce(values(hvd.rank(), 4099, dtype), op=hvd.Sum, prescale_factor=0.5,
                            postscale_factor=4.0)
        same(got, ((a + b).double() * 2).to(dtype))


def case_same_bits_as_on_the_cpu(hvd: Any) -> None:
    for dtype in FLOATS:
        torch.manual_seed(hvd.rank())
        x = torch.randn(50_021).to(dtype)
        got = hvd.allreduce(x.to(DEVICE), op=hvd.Sum, name="on.gpu")
        assert torch.equal(got.cpu(), hvd.allreduce(x, op=hvd.Sum, name="on.cpu"))
        agree(hvd, got)


def case_not_contiguous(hvd: Any) -> None:
    x = values(hvd.rank(), 600).reshape(20, 30)
    a, b = both(600)
    turned = x.t()
    assert hvd.allreduce_(turned, op=hvd.Sum) is turned
    same(x, (a + b).reshape(20, 30))
    same(hvd.allreduce(x[:, ::2], op=hvd.Max), x[:, ::2].contiguous())


def case_empty_and_scalars(hvd: Any) -> None:
    same(hvd.allreduce(torch.empty(0, 3, device=DEVICE)), torch.empty(0, 3, device=DEVICE))
    same(hvd.allreduce(torch.tensor(2.0, device=DEVICE), op=hvd.Sum),
         torch.tensor(4.0, device=DEVICE))  # fmt: skip


def case_groups(hvd: Any) -> None:
    counts = (5, 100_003, 0, 64)
    pairs = [both(count) for count in counts]
    mine = [pair[hvd.rank()] for pair in pairs]
    for got, (a, b) in zip(hvd.grouped_allreduce(mine, op=hvd.Sum), pairs):
        same(got, a + b)
    for got, (a, b) in zip(hvd.grouped_allgather(mine), pairs):
        same(got, torch.cat([a, b]))
    even = [pair[hvd.rank()][:4] for pair in (pairs[0], pairs[3])]
    for got, (a, b) in zip(hvd.grouped_reducescatter(even, op=hvd.Sum), (pairs[0], pairs[3])):
        at = 2 * hvd.rank()
        same(got, (a + b)[at : at + 2])
    copies = [tensor.clone() for tensor in mine]
    for got, copied, (a, b) in zip(hvd.grouped_allreduce_(copies, op=hvd.Sum), copies, pairs):
        assert got is copied
        same(got, a + b)


def case_both_devices_in_one_step(hvd: Any) -> None:
    a, b = both(1000)
    mine = (a, b)[hvd.rank()]
    handles = [(hvd.allreduce_async(mine, name="here", op=hvd.Sum), a + b),
               (hvd.allreduce_async(mine.cpu(), name="there", op=hvd.Sum), (a + b).cpu()),
               (hvd.allgather_async(mine.cpu(), name="g.there"), torch.cat([a, b]).cpu()),
               (hvd.allgather_async(mine, name="g.here"), torch.cat([a, b]))]  # fmt: skip
    for handle, wanted in handles:
        same(hvd.synchronize(handle), wanted)
    for got, wanted in zip(hvd.grouped_allreduce([mine, mine.cpu()], op=hvd.Sum),
                           (a + b, (a + b).cpu())):  # fmt: skip
        same(got, wanted)


def case_allgather(hvd: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
        for rows in ((3, 5), (0, 4), (1000, 1)):
            parts = [values(r, n * 7).reshape(n, 7).to(dtype) for r, n in enumerate(rows)]
            same(hvd.allgather(parts[hvd.rank()]), torch.cat(parts))


def case_broadcast(hvd: Any) -> None:
    for root in (0, 1):
        for dtype in (torch.float64, torch.float16, torch.uint8):
            for count in LENGTHS:
                x = values(hvd.rank(), count, dtype)
                same(hvd.broadcast(x, root), values(root, count, dtype))
                assert hvd.broadcast_(x, root) is x
                same(x, values(root, count, dtype))


def case_alltoall(hvd: Any) -> None:
    splits = [[2, 3], [0, 4]]  # rows from rank i to rank j
    inputs = [values(r, 6 * sum(splits[r])).reshape(-1, 6) for r in (0, 1)]
    me = hvd.rank()
    first = splits[0][0]
    wanted = (torch.cat([inputs[0][:first], inputs[1][:0]]) if me == 0
              else torch.cat([inputs[0][first:], inputs[1]]))  # fmt: skip
    for kind in (list, torch.tensor, lambda s: torch.tensor(s, device=DEVICE)):
        given = kind(splits[me])
        got, received = hvd.alltoall(inputs[me], splits=given)
        same(got, wanted)
        assert received.tolist() == [splits[r][me] for r in (0, 1)]
        if isinstance(given, torch.Tensor):
            assert received.device == given.device
    same(hvd.alltoall(values(me, 8)), torch.cat([values(r, 8)[4 * me : 4 * me + 4] for r in (0, 1)]))


def case_reducescatter(hvd: Any) -> None:
    for rows in (2, 7, 1001):
        a, b = (values(r, rows * 3).reshape(rows, 3) for r in (0, 1))
        first = (rows + 1) // 2
        wanted = (a + b)[:first] if hvd.rank() == 0 else (a + b)[first:]
        same(hvd.reducescatter((a, b)[hvd.rank()], op=hvd.Sum), wanted.contiguous())


def case_gradients_of_operations(hvd: Any) -> None:
    x = values(hvd.rank(), 12).requires_grad_()
    hvd.allreduce(x, op=hvd.Sum).sum().backward()
    same(x.grad, torch.full((12,), 2.0, device=DEVICE))
    y = values(hvd.rank(), 12).reshape(4, 3).requires_grad_()
    (hvd.allgather(y) * (hvd.rank() + 1)).sum().backward()
    same(y.grad, torch.full((4, 3), 1.5, device=DEVICE))
    z = values(hvd.rank(), 8).requires_grad_()
    (hvd.alltoall(z) * (hvd.rank() + 1)).sum().backward()
    same(z.grad, torch.tensor([1.0] * 4 + [2.0] * 4, device=DEVICE))


def case_sparse(hvd: Any) -> None:
    where = torch.tensor([[1, 3]]) if hvd.rank() == 0 else torch.tensor([[3, 4]])
    what = torch.full((2, 2), hvd.rank() + 1.0)
    x = torch.sparse_coo_tensor(where, what, (6, 2)).to(DEVICE)
    got = hvd.sparse_allreduce_async(x, "sparse", hvd.Sum)().to_dense()
    wanted = torch.zeros(6, 2)
    wanted[1], wanted[3], wanted[4] = 1, 3, 2
    same(got, wanted.to(DEVICE))


def case_join(hvd: Any) -> None:
    hvd.allreduce(values(hvd.rank(), 10), name="before.join")
    if hvd.rank() == 1:
        for i in range(4):
            got = hvd.allreduce(values(1, 1000), name=f"while.joined.{i}", op=hvd.Sum)
            same(got, values(1, 1000))
        same(hvd.allgather(values(1, 6), name="gathered.alone"), values(1, 6))
    assert hvd.join() == 1
    a, b = both(10)
    same(hvd.allreduce(values(hvd.rank(), 10), op=hvd.Sum), a + b)


def case_mismatches(hvd: Any) -> None:
    """Errors on every rank that name both sides; the next operation works."""
    x = values(hvd.rank(), 10 + hvd.rank())
    fails(hvd.HorovodInternalError, lambda: hvd.allreduce(x, name="odd.shape"), "odd.shape")
    if ON_GPU:
        y = values(0, 10) if hvd.rank() == 0 else values(0, 10).cpu()
        fails(hvd.HorovodInternalError, lambda: hvd.allreduce(y, name="odd.device"), "odd.device")
    a, b = both(10)
    same(hvd.allreduce(values(hvd.rank(), 10), op=hvd.Sum, name="after.odd"), a + b)


def case_another_gpu(hvd: Any) -> None:
    if ON_GPU and torch.cuda.device_count() > 1:
        hvd.allreduce(values(0, 3), name="first.gpu")
        other = values(0, 3).to("cuda:1")
        fails(ValueError, lambda: hvd.allreduce(other, name="second.gpu"), "GPU")
        with torch.cuda.device(1):  # what is current does not matter
            a, b = both(9)
            same(hvd.allreduce(values(hvd.rank(), 9), op=hvd.Sum), a + b)


def case_communicator(hvd: Any) -> None:
    import hora

    with hora.Communicator(name="on.gpu", **_elsewhere("communicator")) as comm:
        a, b = both(4099)
        mine = (a, b)[comm.rank]
        same(comm.allreduce(mine), a + b)
        out = torch.empty_like(mine)
        assert comm.allreduce(mine, out=out, op=hora.Op.MAX) is out
        same(out, torch.maximum(a, b))
        same(comm.allgather(mine), torch.cat([a, b]))
        same(comm.broadcast(mine, root=1), b)
        request = comm.allreduce(mine, async_op=True)
        same(request.wait(), a + b)
        if ON_GPU:
            fails(ValueError, lambda: comm.allreduce(mine, out=out.cpu()), "device")


def _elsewhere(name: str) -> dict[str, Any]:
    """Where a second world of these ranks meets."""
    meeting = f"{os.environ['HORA_RENDEZVOUS']}-{name}"
    return {"rank": int(os.environ["HORA_RANK"]), "size": int(os.environ["HORA_SIZE"]),
            "rendezvous": meeting}  # fmt: skip


# ---- Streams and memory --------------------------------------------------------------------------


def case_waits_for_the_stream(hvd: Any) -> None:
    """The input is written by a slow kernel that is still queued; the result is used at once."""
    a, b = both(100_003)
    for _ in range(3):
        x = torch.zeros(100_003, device=DEVICE)
        sleep()
        x.copy_((a, b)[hvd.rank()])
        doubled = hvd.allreduce(x, op=hvd.Sum) * 2
        x.fill_(-1)
        same(doubled, (a + b) * 2)
        with side_stream():
            sleep()
            y = (a, b)[hvd.rank()] + 1
            handle = hvd.allreduce_async(y, op=hvd.Sum, name="on.the.side")
            more = hvd.synchronize(handle) * 3
        same(more, (a + b + 2) * 3)


def case_does_not_block_the_host(hvd: Any) -> None:
    if not ON_GPU:
        return
    x = values(hvd.rank(), 1000)
    hvd.allreduce_(x, name="warm.up", op=hvd.Sum)
    torch.cuda.synchronize()
    torch.cuda._sleep(40 * SLOW)
    event = torch.cuda.Event()
    event.record()
    handle = hvd.allreduce_async_(x, name="not.blocking", op=hvd.Sum)
    assert not event.query()  # the sleep goes on, and the operation was enqueued
    hvd.synchronize(handle)
    torch.cuda.synchronize()


def case_enqueued_on_one_stream_awaited_on_another(hvd: Any) -> None:
    a, b = both(200_003)
    wrong = torch.zeros((), device=DEVICE)
    for i in range(20):
        with side_stream() as stream:
            x = (a, b)[hvd.rank()] + i
            handle = hvd.allreduce_async(x, op=hvd.Sum, name=f"two.streams.{i}")
            del x
            torch.full((200_003,), -1.0, device=DEVICE)  # takes x's memory, if it is free
        y = hvd.synchronize(handle)
        wrong += (y != a + b + 2 * i).sum()
        if stream is not None:
            y.record_stream(torch.cuda.current_stream())
    assert wrong.item() == 0


def case_memory_is_used_again(hvd: Any) -> None:
    """Inputs and results are dropped as soon as possible, and their memory is written by others."""
    wrong = torch.zeros((), device=DEVICE)
    for i in range(150):
        count = 1000 + 37_000 * (i % 7)
        x = torch.full((count,), float(hvd.rank() + i), device=DEVICE)
        handle = hvd.allreduce_async(x, op=hvd.Sum, name=f"again.{i % 10}")
        del x
        rubbish = torch.full((count,), -1.0, device=DEVICE)
        y = hvd.synchronize(handle)
        wrong += (y != 2 * i + 1).sum() + (rubbish != -1).sum()
        gathered = hvd.allgather(y[:10], name=f"again.g.{i % 10}")
        wrong += (gathered != 2 * i + 1).sum()
        del y, rubbish, gathered
    assert wrong.item() == 0


def case_handles_that_are_dropped(hvd: Any) -> None:
    """Nobody synchronizes: the tensors live until the work has been done, and no longer."""
    from hora.torch import mpi_ops

    wrong = torch.zeros((), device=DEVICE)
    for i in range(50):
        x = torch.full((50_003,), float(i), device=DEVICE)
        sleep() if i % 10 == 0 else None
        mpi_ops._operations.pop(hvd.allreduce_async_(x, op=hvd.Sum, name=f"dropped.{i}"))
        del x
        fresh = [torch.full((50_003,), -2.0, device=DEVICE) for _ in range(3)]
        hvd.barrier()
        wrong += sum((tensor != -2).sum() for tensor in fresh)
    assert wrong.item() == 0
    if ON_GPU:
        torch.cuda.synchronize()
        hvd.allreduce(torch.ones(1), name="sweeps")
        hvd.allreduce(torch.ones(1), name="sweeps")
        assert torch.cuda.memory_allocated() < 50 * 50_003 * 4


# ---- Training ------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    def __init__(self, embedding: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(10, 6, sparse=True) if embedding else None
        self.first = torch.nn.Linear(6, 40)
        self.second = torch.nn.Linear(40, 3, bias=False)
        self.double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.table is not None:
            x = x + self.table(x[:, 0].long().abs() % 10)
        return self.second(torch.tanh(self.first(x)))


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    x = torch.randn(8, 6, generator=random, dtype=torch.float64)
    return x.to(DEVICE), torch.randn(8, 3, generator=random, dtype=torch.float64).to(DEVICE)


def follow(hvd: Any, tolerance: float = 1e-12, passes: int = 1, stream: bool = False,
           embedding: bool = False, **options: Any) -> None:  # fmt: skip
    """Two ranks with half of each batch move as one process does with the whole."""
    mine, alone = Model(embedding).to(DEVICE), Model(embedding).to(DEVICE)
    optimizer = hvd.DistributedOptimizer(
        torch.optim.SGD(mine.parameters(), lr=0.1), mine.named_parameters(),
        backward_passes_per_step=passes, **options,
    )  # fmt: skip
    reference = torch.optim.SGD(alone.parameters(), lr=0.1)
    hvd.broadcast_parameters(mine.state_dict(), root_rank=0)
    for step in range(5):
        for optimizer_, model, share in ((optimizer, mine, slice(4 * hvd.rank(), 4 * hvd.rank() + 4)),
                                         (reference, alone, slice(0, 8))):  # fmt: skip
            optimizer_.zero_grad()
            for part in range(passes):
                x, y = batch(10 * step + part)
                with side_stream() if stream else contextlib.nullcontext():
                    sleep() if stream else None
                    loss = torch.nn.functional.mse_loss(model(x[share]), y[share])
                    loss.backward()
            optimizer_.step()
    for got, wanted in zip(mine.parameters(), alone.parameters()):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
        agree(hvd, got)


def case_optimizer(hvd: Any) -> None:
    follow(hvd)
    follow(hvd, passes=3)
    follow(hvd, groups=2)
    follow(hvd, gradient_predivide_factor=4.0)


def case_optimizer_on_a_side_stream(hvd: Any) -> None:
    follow(hvd, stream=True)
    follow(hvd, stream=True, groups=1)
    follow(hvd, stream=True, gradient_as_bucket_view=True)


def case_optimizer_with_buckets(hvd: Any) -> None:
    follow(hvd, gradient_as_bucket_view=True)
    follow(hvd, gradient_as_bucket_view=True, groups=2, passes=2)


def case_optimizer_with_compression(hvd: Any) -> None:
    follow(hvd, tolerance=2e-2, compression=hvd.Compression.fp16)
    follow(hvd, tolerance=5e-2, compression=hvd.Compression.bf16)
    follow(hvd, tolerance=2e-2, compression=hvd.Compression.fp16, gradient_as_bucket_view=True)


def case_optimizer_with_sparse_gradients(hvd: Any) -> None:
    follow(hvd, embedding=True)
    follow(hvd, embedding=True, sparse_as_dense=True)


def case_bucket_is_one_buffer(hvd: Any) -> None:
    model = Model().to(DEVICE)
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1),
                                         gradient_as_bucket_view=True)
    x, y = batch(0)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=False)
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    storages = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    assert len(storages) == 1 and all(p.grad.device == DEVICE for p in model.parameters())


def case_model_on_two_devices(hvd: Any) -> None:
    """Some layers on the CPU, some on the GPU; hooks then run on two threads."""

    class Split(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.near = torch.nn.Linear(6, 20).double()
            self.far = torch.nn.Linear(20, 3).double().to(DEVICE)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.far(torch.tanh(self.near(x.cpu())).to(DEVICE))

    for options in ({}, {"groups": 1}, {"gradient_as_bucket_view": True}):
        mine, alone = Split(), Split()
        optimizer = hvd.DistributedOptimizer(torch.optim.SGD(mine.parameters(), lr=0.1),
                                             mine.named_parameters(), **options)
        reference = torch.optim.SGD(alone.parameters(), lr=0.1)
        for step in range(4):
            x, y = batch(step)
            for one, model, rows in ((optimizer, mine, slice(4 * hvd.rank(), 4 * hvd.rank() + 4)),
                                     (reference, alone, slice(0, 8))):
                one.zero_grad()
                torch.nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
                one.step()
        for got, wanted in zip(mine.parameters(), alone.parameters()):
            torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def case_adasum(hvd: Any) -> None:
    """As on the CPU: the same vectors, and the optimizer's steps."""
    torch.manual_seed(hvd.rank())
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(4099, dtype=dtype)
        got = hvd.allreduce(x.to(DEVICE), op=hvd.Adasum, name="adasum.gpu")
        wanted = hvd.allreduce(x, op=hvd.Adasum, name="adasum.cpu")
        torch.testing.assert_close(got.cpu(), wanted)
        agree(hvd, got)
    models = Model().to(DEVICE), Model()
    for step in range(3):
        x, y = batch(step)
        for model in models:
            place = next(model.parameters()).device
            optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1),
                                                 model.named_parameters(), op=hvd.Adasum)
            rows = slice(4 * hvd.rank(), 4 * hvd.rank() + 4)
            loss = torch.nn.functional.mse_loss(model(x[rows].to(place)), y[rows].to(place))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for got, wanted in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(got.cpu(), wanted, rtol=1e-9, atol=1e-9)


def case_sync_batch_norm(hvd: Any) -> None:
    torch.manual_seed(3)
    whole = torch.randn(10, 4, 5, dtype=torch.float64).to(DEVICE)
    rows = slice(0, 3) if hvd.rank() == 0 else slice(3, 10)
    layer = torch.nn.BatchNorm1d(4).double().to(DEVICE)
    sync = hvd.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    x, mine = whole.clone().requires_grad_(), whole[rows].clone().requires_grad_()
    for _ in range(2):
        wanted, got = layer(x), sync(mine)
        torch.testing.assert_close(got, wanted[rows])
        (wanted**3).sum().backward()
        (got**3).sum().backward()
        torch.testing.assert_close(mine.grad, x.grad[rows])
    torch.testing.assert_close(sync.running_mean, layer.running_mean)
    torch.testing.assert_close(sync.running_var, layer.running_var)
    half = hvd.SyncBatchNorm(4).to(DEVICE)
    assert half(whole.half()).dtype == torch.float16
    one = whole[: 1 - hvd.rank(), :, :1]  # one value in all
    fails(ValueError, lambda: sync(one), "more than 1 value per channel")


def case_state(hvd: Any) -> None:
    """The root's parameters, optimizer state and objects on every rank."""
    model = Model().to(DEVICE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(hvd.rank())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01 * (hvd.rank() + 1))
    if hvd.rank() == 0:
        x, y = batch(0)
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    assert optimizer.param_groups[0]["lr"] == 0.01
    for p in model.parameters():
        agree(hvd, p)
        state = optimizer.state[p]
        assert state["exp_avg"].device == DEVICE and float(state["step"]) == 1
        agree(hvd, state["exp_avg"])
    complex_ = torch.full((3,), hvd.rank() + 1j, device=DEVICE)
    hvd.broadcast_parameters({"odd": complex_}, root_rank=1)
    same(complex_, torch.full((3,), 1 + 1j, device=DEVICE))
    assert hvd.broadcast_object({"of": hvd.rank()}, root_rank=1) == {"of": 1}
    assert hvd.allgather_object(hvd.rank() * "x") == ["", "x"]


# ---- Programs -----------------------------------------------------------------------------------


CASES = [name for name in list(globals()) if name.startswith("case_")]


def cases(hvd: Any) -> dict[str, str | None]:
    """All of them. The first failure ends it, and the rest is not run. One that hangs is the
    first that has no result."""
    results: dict[str, str | None] = {}
    for name in CASES:
        write(results)
        try:
            globals()[name](hvd)
            hvd.barrier()
        except BaseException:
            results[name] = traceback.format_exc()
            break
        results[name] = None
    return results


def out_of_memory(hvd: Any) -> dict[str, str | None]:
    """A result that does not fit is an error on every rank, and not a hang."""
    hvd.allreduce_(torch.ones(3, device=DEVICE))
    free, _ = torch.cuda.mem_get_info(DEVICE)
    hvd.barrier()
    x = torch.empty(int(free * 0.3), dtype=torch.uint8, device=DEVICE)
    return {"out_of_memory": _error(hvd, lambda: hvd.allgather(x))}  # 0.6 of it on each of two ranks


def killed(hvd: Any) -> dict[str, str | None]:
    """The other rank dies while kernels are queued on both."""
    x = torch.ones(1 << 20, device=DEVICE)
    hvd.allreduce_(x, name="warm.up")
    sleep()
    if hvd.rank() == 1:
        hvd.allreduce_async_(x, name="last")
        os.kill(os.getpid(), signal.SIGKILL)

    def go_on() -> None:
        for i in range(1000):
            hvd.allreduce_(x, name=f"alone.{i % 10}")
            sleep()

    return {"killed": _error(hvd, go_on)}


def _error(hvd: Any, call: Callable[[], Any]) -> str:
    try:
        call()
    except hvd.HorovodInternalError as error:
        return str(error)
    return "no error"


def write(results: dict[str, str | None]) -> None:
    """What there is, or nothing: never a part."""
    with open(sys.argv[2] + ".new", "w") as file:
        json.dump(results, file)
    os.rename(sys.argv[2] + ".new", sys.argv[2])


def main() -> None:
    """cases_cuda.py PROGRAM FILE, on each rank: its results go to the file."""
    import hora.torch as hvd

    faulthandler.dump_traceback_later(max(1.0, float(os.environ.get("HORA_TEST_LIMIT", "150")) - 5))
    hvd.init()
    results = globals()[sys.argv[1]](hvd)
    write(results)
    complete = all(results.get(name) is None for name in CASES)
    if sys.argv[1] == "cases" and complete:
        hvd.shutdown()
    os._exit(0)  # what still is queued on the GPU is not waited for: it may be what failed


if __name__ == "__main__":
    main()
