"""Every collective on every type against what torch computes from all ranks' inputs.

Inputs are small whole numbers, so that sums and products are exact in every type; each rank can
make every other rank's input. A `case_` runs on all ranks of one job; the tests at the end report them.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any, Callable

import ranks
import torch

INTS = [torch.int8, torch.int16, torch.int32, torch.int64]
UINTS = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
NUMBERS = INTS + UINTS + FLOATS
ALL = NUMBERS + [torch.bool]
EIGHTHS = [torch.float8_e4m3fn, torch.float8_e5m2]  # sums are rounded once, as torch casts
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2, 0, 3), (1009,)]


def values(shape: tuple[int, ...], dtype: torch.dtype, rank: int, low: int = -3) -> torch.Tensor:
    """Rank's input. Small whole numbers; none below zero for unsigned types."""
    count = torch.Size(shape).numel()
    sequence = (torch.arange(count, dtype=torch.int64) * 7 + rank * 5 + 1) % 8
    if dtype == torch.bool:
        return (sequence % 3 == 0).reshape(shape)
    signed = dtype not in UINTS
    return (sequence + (low if signed else 0)).to(dtype).reshape(shape)


def everyone(size: int, make: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """All ranks' inputs, stacked, in a type in which whole numbers are exact."""
    stack = [make(rank) for rank in range(size)]
    wide = torch.float64 if stack[0].is_floating_point() else torch.int64
    return torch.stack([tensor.to(wide) for tensor in stack])


def reduce(stack: torch.Tensor, op: int, dtype: torch.dtype, hvd: Any) -> torch.Tensor:
    """The reference for a reduction over dimension 0."""
    if dtype == torch.bool:
        any_of = op in (hvd.Sum, hvd.Max)
        return stack.bool().any(dim=0) if any_of else stack.bool().all(dim=0)
    if op == hvd.Average:
        mode = None if dtype.is_floating_point else "trunc"
        result = torch.div(stack.sum(dim=0), stack.shape[0], rounding_mode=mode)
    elif op == hvd.Sum:
        result = stack.sum(dim=0)
    elif op == hvd.Min:
        result = stack.amin(dim=0)
    elif op == hvd.Max:
        result = stack.amax(dim=0)
    else:
        result = stack.prod(dim=0)
    return result.to(dtype)


def same(result: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    assert result.dtype == expected.dtype, (what, result.dtype, expected.dtype)
    assert result.shape == expected.shape, (what, result.shape, expected.shape)
    wide = torch.float64 if expected.is_floating_point() else torch.int64
    assert torch.equal(result.to(wide), expected.to(wide)), f"{what}: {result} not {expected}"


def fails(kind: type[Exception], call: Callable[[], Any], *texts: str) -> str:
    """The call raises just that, with these texts. Returns the whole text."""
    try:
        result = call()
    except kind as error:
        assert type(error) is kind, repr(error)
        for text in texts:
            assert text in str(error), f"no {text!r} in {error}"
        return str(error)
    raise AssertionError(f"{kind.__name__} expected, not the result {result}")


# ---- allreduce -----------------------------------------------------------------------------------


def case_allreduce_every_op_and_type(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in ALL + EIGHTHS:
        for op in (hvd.Average, hvd.Sum, hvd.Min, hvd.Max, hvd.Product):
            refused = {hvd.Average: [torch.bool], hvd.Product: EIGHTHS}.get(op, [])
            for shape in SHAPES if dtype not in refused else []:
                low = -2 if op == hvd.Product else -3
                expected = reduce(
                    everyone(size, lambda r: values(shape, dtype, r, low)), op, dtype, hvd
                )
                tensor = values(shape, dtype, me, low)
                before = tensor.clone()
                result = hvd.allreduce(tensor, op=op, name=f"every.{dtype}.{op}.{shape}")
                what = f"{dtype} op {op} {shape}"
                if op == hvd.Average and dtype in FLOATS:
                    torch.testing.assert_close(result, expected, msg=lambda m: f"{what}: {m}")
                else:
                    same(result, expected, what)
                same(tensor, before, "the input must not change")


def case_allreduce_default_is_average(hvd: Any) -> None:
    tensor = torch.full((5,), float(hvd.rank()))
    expected = torch.full((5,), (hvd.size() - 1) / 2)
    torch.testing.assert_close(hvd.allreduce(tensor), expected)


def case_allreduce_average_argument(hvd: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        total = hvd.allreduce(torch.ones(2), average=False)
        mean = hvd.allreduce(torch.ones(2), average=True)
    same(total, torch.full((2,), float(hvd.size())))
    same(mean, torch.ones(2))
    fails(ValueError, lambda: hvd.allreduce(torch.ones(2), average=True, op=hvd.Sum), "supersedes")


def case_allreduce_large_random_is_the_same_everywhere(hvd: Any) -> None:
    size = hvd.size()
    for dtype in FLOATS:
        made = [
            torch.randn(100003, generator=torch.Generator().manual_seed(r)).to(dtype)
            for r in range(size)
        ]
        expected = torch.stack([tensor.double() for tensor in made]).sum(dim=0)
        result = hvd.allreduce(made[hvd.rank()], op=hvd.Sum, name=f"random.{dtype}")
        # Half types accumulate in float32 and round once: half a unit in the last place.
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(result.double(), expected, rtol=unit, atol=4 * 2.0**-22)
        bits = result.view(torch.uint8)
        for other in hvd.allgather(bits[None], name=f"bits.{dtype}"):
            assert torch.equal(other, bits), "ranks have different bits"


def case_allreduce_nan_and_infinity(hvd: Any) -> None:
    last = hvd.size() - 1
    for dtype in FLOATS:
        tensor = torch.zeros(9, dtype=dtype)
        if hvd.rank() == last:
            tensor[2], tensor[5] = float("nan"), float("inf")
        for op in (hvd.Sum, hvd.Min, hvd.Max, hvd.Product):
            result = hvd.allreduce(tensor, op=op)
            assert torch.isnan(result[2]), (dtype, op, result)
        assert torch.isinf(hvd.allreduce(tensor, op=hvd.Sum)[5])


def case_allreduce_scales(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in FLOATS:
        tensor = values((33,), dtype, me)
        total = everyone(size, lambda r: values((33,), dtype, r)).sum(dim=0)
        result = hvd.allreduce(tensor, op=hvd.Sum, prescale_factor=0.5, postscale_factor=4.0)
        same(result, (total * 2).to(dtype))
        result = hvd.allreduce(tensor, op=hvd.Average, prescale_factor=2.0)
        torch.testing.assert_close(result, (total * 2 / size).to(dtype))


def case_allreduce_in_place(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in ALL:
        tensor = values((5, 3), dtype, me)
        where = tensor.data_ptr()
        result = hvd.allreduce_(tensor, op=hvd.Sum)
        assert result is tensor and tensor.data_ptr() == where
        stack = everyone(size, lambda r: values((5, 3), dtype, r))
        same(tensor, reduce(stack, hvd.Sum, dtype, hvd))


def case_async_in_any_order(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    count = 40
    order = torch.randperm(count, generator=torch.Generator().manual_seed(me)).tolist()
    handles = {}
    tensors = {i: torch.full((i + 1,), float(me + i)) for i in range(count)}
    for i in order:
        start = hvd.allreduce_async_ if i % 2 else hvd.allreduce_async
        handles[i] = start(tensors[i], name=f"any.{i}", op=hvd.Sum)
        assert isinstance(handles[i], int)
    assert len(set(handles.values())) == count
    for i in reversed(order):
        result = hvd.synchronize(handles[i])
        same(result, torch.full((i + 1,), float(sum(range(size)) + size * i)))
        assert (result is tensors[i]) == bool(i % 2)
        assert hvd.synchronize(handles[i]) is None, "the handle is forgotten now"


def case_poll(hvd: Any) -> None:
    import time

    handle = hvd.allreduce_async(torch.ones(4), name="polled", op=hvd.Sum)
    end = time.monotonic() + 20
    while not hvd.poll(handle):
        assert time.monotonic() < end, "poll never becomes true"
        time.sleep(0.001)
    assert hvd.poll(handle) is True
    same(hvd.synchronize(handle), torch.full((4,), float(hvd.size())))
    fails(ValueError, lambda: hvd.poll(handle))
    assert hvd.synchronize(handle) is None
    assert hvd.synchronize(123456789) is None


def case_unnamed_in_two_threads(hvd: Any) -> None:
    """The n-th operation of a kind meets the n-th on the other ranks, whichever threads they are
    in, and however the threads take turns."""
    import random
    import threading
    import time

    chance = random.Random(hvd.rank())
    wrong: list[str] = []

    def work() -> None:
        for _ in range(40):
            time.sleep(chance.choice([0.0, 0.0, 0.001]))
            x = torch.ones(3)
            results = [hvd.allreduce(x, op=hvd.Sum), *hvd.grouped_allreduce([x, x], op=hvd.Sum)]
            if not all((result == hvd.size()).all() for result in results):
                wrong.append(str(results))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong, wrong


def case_name_in_use(hvd: Any) -> None:
    x = torch.ones(3)
    if hvd.size() > 1 and hvd.rank() == 0:
        first = hvd.allreduce_async(x, name="used", op=hvd.Sum)
        fails(ValueError, lambda: hvd.allreduce(x, name="used"), "already in flight")
        hvd.synchronize(first)
    elif hvd.size() > 1:
        import time

        time.sleep(0.5)
        hvd.allreduce(x, name="used", op=hvd.Sum)


def case_unnamed_numbers_come_around(hvd: Any) -> None:
    """An operation waits for that which has its number; both forms do."""
    import time

    from hora.torch._ops import start

    many, start._UNNAMED_MAX = start._UNNAMED_MAX, 3
    hvd.barrier()
    try:
        for last in range(2, 9):
            if hvd.rank() == last % hvd.size():
                time.sleep(0.05)  # the others come around while the first ones are under way
            x = [torch.full((2,), float(i)) for i in range(last + 1)]
            handles = [hvd.allreduce_async(one, op=hvd.Sum) for one in x[:-1]]
            same(hvd.allreduce(x[-1], op=hvd.Sum), x[-1] * hvd.size())
            for one, handle in zip(x, handles):
                same(hvd.synchronize(handle), one * hvd.size())
    finally:
        hvd.barrier()
        start._UNNAMED_MAX = many
    hvd.join()  # counts from 0 again


def case_unnamed_in_either_form(hvd: Any) -> None:
    """One rank may block where another does not, and see results when it likes."""
    first = hvd.rank() == 0
    hvd.join()
    for number in range(6):
        x, y = torch.full((3,), float(number)), torch.full((3,), 100.0 + number)
        late = hvd.allreduce_async(x, op=hvd.Sum)
        if first:
            same(hvd.synchronize(late), x * hvd.size())
            same(hvd.synchronize(hvd.allreduce_async(y, op=hvd.Sum)), y * hvd.size())
            a, b = hvd.grouped_allreduce([x, y], op=hvd.Sum)
        else:
            same(hvd.allreduce(y, op=hvd.Sum), y * hvd.size())
            a, b = hvd.synchronize(hvd.grouped_allreduce_async([x, y], op=hvd.Sum))
            same(hvd.synchronize(late), x * hvd.size())
        same(a, x * hvd.size())
        same(b, y * hvd.size())


def case_what_is_no_dense_tensor(hvd: Any) -> None:
    """Nothing is sent, so one rank alone may do it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on CSR
        csr = torch.eye(2).to_sparse_csr()
    calls: list[Callable[[Any], Any]] = [
        hvd.allreduce, hvd.allreduce_, hvd.allreduce_async, hvd.allgather, hvd.allgather_async,
        hvd.reducescatter, hvd.alltoall, hvd.alltoall_async,
        lambda x: hvd.allreduce(x, compression=hvd.Compression.fp16),
        lambda x: hvd.broadcast(x, 0), lambda x: hvd.broadcast_(x, 0),
        lambda x: hvd.grouped_allreduce([x]), lambda x: hvd.grouped_allgather_async([x]),
        lambda x: hvd.grouped_reducescatter([torch.ones(2), x]),
    ]  # fmt: skip
    if hvd.rank() == 0:
        for call in calls:
            for grad in (True, False):
                with torch.set_grad_enabled(grad):
                    fails(ValueError, lambda: call(csr), "tensor", "torch.sparse_csr")
                    fails(TypeError, lambda: call([1.0]), "tensor", "torch.Tensor", "list")
                    fails(TypeError, lambda: call(None), "tensor", "NoneType")
        for wrong, text in ((csr, "sparse_csr"), (torch.ones(2), "strided"), ([1], "list")):
            fails(ValueError, lambda: hvd.sparse_allreduce_async(wrong, "x", hvd.Sum), text)
        rows = torch.ones(hvd.size())
        for splits in ([1.0] * hvd.size(), ["1"] * hvd.size(), 3, [None] * hvd.size()):
            fails(ValueError, lambda: hvd.alltoall(rows, splits=splits), "splits", "integers")
    hvd.alltoall(torch.ones(hvd.size()), splits=tuple(torch.tensor(1) for _ in range(hvd.size())))


def case_refused_calls_use_no_number(hvd: Any) -> None:
    x = torch.ones(4)
    if hvd.rank() == 0:
        for call in (hvd.allreduce, hvd.allreduce_async):
            fails(ValueError, lambda: call(x, op=77), "op")
        fails(ValueError, lambda: hvd.broadcast(x, 99), "99")
    same(hvd.allreduce(x, op=hvd.Sum), x * hvd.size())
    same(hvd.synchronize(hvd.broadcast_async(x, 0)), x)


def case_unnamed_async(hvd: Any) -> None:
    handles = [hvd.allreduce_async(torch.full((3,), float(i)), op=hvd.Sum) for i in range(10)]
    hvd.allreduce(torch.ones(1))
    for i, handle in enumerate(handles):
        same(hvd.synchronize(handle), torch.full((3,), float(i * hvd.size())))


def case_handle_dropped_early(hvd: Any) -> None:
    from hora.torch import mpi_ops

    for i in range(20):
        handle = hvd.allreduce_async_(torch.ones(1000), name=f"dropped.{i}")
        mpi_ops._operations.pop(handle)  # the engine still uses the tensor
    hvd.barrier()


def case_grouped_allreduce(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    shapes = [(2, 3), (0,), (), (101,)]
    for dtypes in ([torch.float32] * 4, [torch.float32, torch.int64, torch.bfloat16, torch.int8]):
        made = [values(s, d, me) for s, d in zip(shapes, dtypes)]
        expected = [
            everyone(size, lambda r: values(s, d, r)).sum(dim=0).to(d)
            for s, d in zip(shapes, dtypes)
        ]
        for result, wanted in zip(hvd.grouped_allreduce(made, op=hvd.Sum), expected):
            same(result, wanted)
        handle = hvd.grouped_allreduce_async(made, op=hvd.Sum, name="group")
        for result, wanted in zip(hvd.synchronize(handle), expected):
            same(result, wanted)
        handle = hvd.grouped_allreduce_async_([t.clone() for t in made], op=hvd.Sum)
        for result, wanted in zip(hvd.synchronize(handle), expected):
            same(result, wanted)
        results = hvd.grouped_allreduce_(made, op=hvd.Sum)
        for result, tensor, wanted in zip(results, made, expected):
            assert result is tensor
            same(result, wanted)
    fails(ValueError, lambda: hvd.grouped_allreduce([]), "at least one")


def case_not_contiguous(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    whole = torch.arange(24.0).reshape(4, 6) + me
    total = sum(torch.arange(24.0).reshape(4, 6) + r for r in range(size))
    same(hvd.allreduce(whole.t(), op=hvd.Sum), total.t())
    same(hvd.allreduce(whole[:, ::2], op=hvd.Sum), total[:, ::2])
    same(hvd.allgather(whole.t()), torch.cat([(whole - me + r).t() for r in range(size)]))
    part = whole.clone()[:, 1:3]
    assert hvd.allreduce_(part, op=hvd.Sum) is part
    same(part, total[:, 1:3])
    base = whole.clone()
    hvd.synchronize(hvd.allreduce_async_(base.t(), op=hvd.Sum))
    same(base, total)
    base = whole.clone()
    hvd.broadcast_(base[1:, ::3], root_rank=size - 1)
    same(base[1:, ::3], (whole - me + size - 1)[1:, ::3])
    same(base[0], whole[0])
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    image = image.to(memory_format=torch.channels_last)
    result = hvd.allreduce_(image.clone(memory_format=torch.preserve_format), op=hvd.Average)
    torch.testing.assert_close(result, image)


def case_lazy_negation(hvd: Any) -> None:
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    negative = numbers.conj().imag
    assert negative.is_neg()
    same(hvd.allreduce(negative, op=hvd.Max), torch.tensor([-2.0, 4.0]))
    one = torch.tensor([5 + 6j]).conj().imag
    assert one.is_neg() and one.is_contiguous()
    same(hvd.allreduce_(one, op=hvd.Max), torch.tensor([-6.0]))


def case_in_place_by_every_way(hvd: Any) -> None:
    """The short way in C and the long one give the same, whichever an argument or a tensor leads to."""
    rank, size = hvd.rank(), hvd.size()
    total = sum(range(1, size + 1))

    def made() -> list[torch.Tensor]:
        whole = torch.full((6, 8), float(rank + 1))
        sparse_columns = whole.clone()[:, ::2]
        parameter = torch.nn.Parameter(whole.clone())
        negative = torch.view_as_complex(torch.full((3, 2), -float(rank + 1))).conj().imag[:1]
        assert negative.is_neg() and not sparse_columns.is_contiguous()
        return [whole, sparse_columns, parameter, negative, torch.tensor(float(rank + 1))]

    everybody = {"name": "set", "process_set": hvd.global_process_set}
    for way in ({"name": "short"}, {}, {"name": "n" * 300}, everybody, {"name": "\u00fc"}):
        for tensor in made():
            assert hvd.allreduce_(tensor, op=hvd.Sum, **way) is tensor
            same(tensor.detach(), torch.full_like(tensor, total), str(way)[:40])
        handles = []
        for i, tensor in enumerate(made()):
            own = {**way, "name": f"{way['name']}.{i}"} if "name" in way else way
            handles.append((hvd.allreduce_async_(tensor, op=hvd.Sum, prescale_factor=2.0, **own), tensor))
        assert len({handle for handle, _ in handles}) == len(handles)
        for handle, tensor in handles:
            assert hvd.synchronize(handle) is tensor and hvd.synchronize(handle) is None
            same(tensor.detach(), torch.full_like(tensor, 2 * total), str(way)[:40])
    mean = hvd.allreduce_(torch.full((4,), float(rank)), name="mean")
    same(mean, torch.full((4,), (size - 1) / 2))
    if rank > 0:
        hvd.barrier()
    first = hvd.allreduce_async_(torch.ones(4), name="twice", op=hvd.Sum)
    if rank == 0 and size > 1:  # the others have not begun it, so it is under way
        fails(ValueError, lambda: hvd.allreduce_async_(torch.ones(4), name="twice", op=hvd.Sum), "twice")
    if rank == 0:
        hvd.barrier()
    same(hvd.synchronize(first), torch.full((4,), float(size)))
    fails(TypeError, lambda: hvd.allreduce_([1.0], name="list"), "list")
    fails(TypeError, lambda: hvd.allreduce_(torch.ones(1).numpy(), name="array"), "ndarray")
    fails(TypeError, lambda: hvd.allreduce_(torch.ones(1), name="op", op="sum"))


def case_parameters_and_subclasses(hvd: Any) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        same(hvd.allreduce(parameter, op=hvd.Sum), torch.full((3,), float(hvd.size())))
    hvd.broadcast_(parameter, root_rank=0)
    assert parameter.is_leaf and parameter.requires_grad


# ---- gradients -----------------------------------------------------------------------------------


def case_gradients(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    weight = torch.arange(6.0).reshape(3, 2) + me

    def gradient(apply: Callable[[torch.Tensor], torch.Tensor], rows: int = 3) -> torch.Tensor:
        x = torch.ones(rows, 2, requires_grad=True)
        y = apply(x)
        y.backward(torch.full_like(y, float(me + 1)))
        return x.grad

    mean = (size + 1) / 2  # of the ranks' factors
    ones = torch.ones(3, 2)
    torch.testing.assert_close(gradient(lambda x: hvd.allreduce(x)), ones * mean)
    torch.testing.assert_close(
        gradient(lambda x: hvd.allreduce(x, op=hvd.Sum, prescale_factor=3.0)),
        ones * mean * size * 3,
    )
    torch.testing.assert_close(
        gradient(lambda x: torch.cat(hvd.grouped_allreduce([x, x * 2]))), ones * mean * 3
    )
    torch.testing.assert_close(
        gradient(lambda x: hvd.allgather(x), rows=me + 1), torch.ones(me + 1, 2) * mean
    )
    torch.testing.assert_close(
        gradient(lambda x: torch.cat(hvd.grouped_allgather([x, x]))), ones * mean * 2
    )
    expected = ones * mean if me == size - 1 else ones * 0
    torch.testing.assert_close(gradient(lambda x: hvd.broadcast(x, size - 1)), expected)
    sent = torch.arange(1.0, size + 1).repeat_interleave(2)[:, None].expand(2 * size, 2)
    torch.testing.assert_close(
        gradient(lambda x: hvd.alltoall(x), rows=2 * size), sent.contiguous()
    )
    splits = [1] * size
    rows = size + 1  # the last row goes to nobody
    expected = torch.cat([torch.arange(1.0, size + 1), torch.zeros(1)])[:, None].expand(rows, 2)
    torch.testing.assert_close(
        gradient(lambda x: hvd.alltoall(x, splits=splits)[0], rows), expected.contiguous()
    )
    rows = size + 1  # rank 0 has two of them
    owner = torch.tensor([1.0] + list(range(1, size + 1)))[:, None].expand(rows, 2)
    torch.testing.assert_close(
        gradient(lambda x: hvd.reducescatter(x, op=hvd.Average), rows), owner.contiguous()
    )
    torch.testing.assert_close(
        gradient(lambda x: hvd.grouped_reducescatter([x], op=hvd.Sum)[0], rows), owner * size
    )
    assert not hvd.allreduce(weight).requires_grad


# ---- allgather -----------------------------------------------------------------------------------


def case_allgather(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in ALL:
        for tail in ((), (3,), (2, 0), (2, 2)):
            rows = [(r * 3) % 4 for r in range(size)]  # rank 0 has none
            made = [values((rows[r], *tail), dtype, r) for r in range(size)]
            result = hvd.allgather(made[me], name=f"gather.{dtype}.{tail}")
            same(result, torch.cat(made), f"{dtype} {tail}")
    same(hvd.allgather(torch.empty(0, 3)), torch.empty(0, 3))
    handles = [hvd.allgather_async(torch.tensor([me * 10 + i])) for i in range(5)]
    for i, handle in enumerate(handles):
        same(hvd.synchronize(handle), torch.tensor([r * 10 + i for r in range(size)]))
    results = hvd.grouped_allgather([torch.full((me + 1,), me), torch.full((1, 2), float(me))])
    same(results[0], torch.cat([torch.full((r + 1,), r) for r in range(size)]))
    same(results[1], torch.cat([torch.full((1, 2), float(r)) for r in range(size)]))


def case_result_memory_outlives_its_handle(hvd: Any) -> None:
    kept = [hvd.allgather(torch.full((1000,), float(i))) for i in range(20)]
    for i, tensor in enumerate(kept):
        assert (tensor == i).all()
        tensor += 1  # it is ordinary memory
        tensor.resize_(3)


# ---- broadcast -----------------------------------------------------------------------------------


def case_broadcast(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in ALL:
        for root in range(size):
            for shape in SHAPES:
                tensor = values(shape, dtype, me)
                wanted = values(shape, dtype, root)
                same(hvd.broadcast(tensor, root), wanted)
                same(tensor, values(shape, dtype, me), "the input must not change")
                assert hvd.broadcast_(tensor, root_rank=root, name=f"b.{dtype}") is tensor
                same(tensor, wanted)
    handles = [
        hvd.broadcast_async_(torch.full((2,), float(me + i)), 0, name=f"async.{i}")
        for i in (range(6) if me % 2 else reversed(range(6)))
    ]
    for handle in handles:
        hvd.synchronize(handle)
    fails(ValueError, lambda: hvd.broadcast(torch.ones(1), size))
    fails(ValueError, lambda: hvd.broadcast(torch.ones(1), -1))


# ---- alltoall ------------------------------------------------------------------------------------


def case_alltoall(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in ALL:
        made = [values((2 * size, 3), dtype, r) for r in range(size)]
        wanted = torch.cat([made[r][2 * me : 2 * me + 2] for r in range(size)])
        result = hvd.alltoall(made[me])
        same(result, wanted)
    table = [[(r + 2 * to) % 3 for to in range(size)] for r in range(size)]
    made = [torch.arange(float(sum(table[r])))[:, None] + 100 * r for r in range(size)]
    wanted = torch.cat([made[r].split(table[r])[me] for r in range(size)])
    received = torch.tensor([table[r][me] for r in range(size)], dtype=torch.int32)
    for splits in (table[me], torch.tensor(table[me], dtype=torch.int32)):
        output, got = hvd.alltoall(made[me], splits=splits)
        same(output, wanted)
        same(got, received)
    _, got = hvd.alltoall(made[me], splits=torch.tensor(table[me]))
    same(got, received.to(torch.int64))
    output, got = hvd.synchronize(hvd.alltoall_async(torch.arange(float(size))))
    same(output, torch.full((size,), float(me)))
    same(got, torch.ones(size, dtype=torch.int32))
    nothing, got = hvd.alltoall(torch.empty(0), splits=[0] * size)
    assert nothing.numel() == 0 and got.tolist() == [0] * size
    for splits in ([1] * (size + 1), [2] + [0] * (size - 1), [-1] + [1] * (size - 1)):
        fails(ValueError, lambda: hvd.alltoall(torch.ones(1), splits=splits))
    if size > 1:
        fails(ValueError, lambda: hvd.alltoall(torch.ones(size + 1)))


# ---- reducescatter -------------------------------------------------------------------------------


def case_reducescatter(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    for dtype in NUMBERS:
        for rows in (size, 2 * size + 1, size - 1, 0):
            for op in (hvd.Average, hvd.Sum, hvd.Min, hvd.Max, hvd.Product):
                stack = everyone(size, lambda r: values((rows, 2), dtype, r, -2))
                whole = reduce(stack, op, dtype, hvd)
                share = [rows // size + (r < rows % size) for r in range(size)]
                wanted = whole.split(share)[me]
                tensor = values((rows, 2), dtype, me, -2)
                result = hvd.reducescatter(tensor, op=op, name=f"rs.{dtype}.{rows}.{op}")
                if op == hvd.Average and dtype.is_floating_point:
                    torch.testing.assert_close(result, wanted)
                else:
                    same(result, wanted, f"{dtype} {rows} {op}")
    handle = hvd.reducescatter_async(torch.ones(size, 3), op=hvd.Sum, postscale_factor=2.0)
    same(hvd.synchronize(handle), torch.full((1, 3), 2.0 * size))
    results = hvd.grouped_reducescatter([torch.ones(size), torch.ones(size, 2)], op=hvd.Sum)
    same(results[0], torch.full((1,), float(size)))
    same(results[1], torch.full((1, 2), float(size)))
    fails(ValueError, lambda: hvd.reducescatter(torch.tensor(1.0)))


# ---- mixed ---------------------------------------------------------------------------------------


def case_kinds_mixed_in_different_orders(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    starts = [
        lambda i: hvd.allreduce_async(torch.full((5,), float(i)), name=f"m{i}", op=hvd.Sum),
        lambda i: hvd.allgather_async(torch.tensor([[i, me]]), name=f"m{i}"),
        lambda i: hvd.broadcast_async(torch.tensor([i + me]), 0, name=f"m{i}"),
        lambda i: hvd.alltoall_async(torch.full((size,), i), name=f"m{i}"),
        lambda i: hvd.reducescatter_async(torch.full((size,), i), name=f"m{i}", op=hvd.Sum),
    ]
    for turn in range(5):
        order = torch.randperm(25, generator=torch.Generator().manual_seed(me + 10 * turn))
        handles = {i: starts[i % 5](i) for i in order.tolist()}
        for i in sorted(handles):
            result = hvd.synchronize(handles[i])
            if i % 5 == 0:
                same(result, torch.full((5,), float(i * size)))
            elif i % 5 == 1:
                same(result, torch.tensor([[i, r] for r in range(size)]))
            elif i % 5 == 2:
                same(result, torch.tensor([i]))
            elif i % 5 == 3:
                same(result[0], torch.full((size,), i))
            else:
                same(result, torch.tensor([i * size]))


def case_shape_of_a_name_changes(hvd: Any) -> None:
    for count in (3, 3, 3, 5, 5, 1, 100, 100):
        same(
            hvd.allreduce(torch.ones(count), name="changing", op=hvd.Sum),
            torch.full((count,), float(hvd.size())),
        )
    for dtype in (torch.float32, torch.int32, torch.float32):
        hvd.allreduce(torch.ones(3, dtype=dtype), name="changing", op=hvd.Sum)


def case_threads(hvd: Any) -> None:
    import threading

    wrong: list[str] = []

    def work(number: int) -> None:
        for i in range(30):
            total = hvd.allreduce(torch.full((8,), 1.0), name=f"t{number}.{i}", op=hvd.Sum)
            if not (total == hvd.size()).all():
                wrong.append(f"thread {number}, turn {i}: {total}")

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not wrong, wrong


def case_many_small_steps(hvd: Any) -> None:
    """The same names step after step, as in training: the engine's cached schedule."""
    size = hvd.size()
    for step in range(100):
        handles = [
            hvd.allreduce_async_(torch.full((17,), float(step + i)), name=f"step.{i}", op=hvd.Sum)
            for i in range(8)
        ]
        for i, handle in enumerate(handles):
            assert (hvd.synchronize(handle) == (step + i) * size).all()


def case_objects(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    sent = {"rank": me, "text": "ü" * me, "list": list(range(me * 1000))}
    for root in range(size):
        got = hvd.broadcast_object(sent if me == root else None, root_rank=root)
        assert got == {"rank": root, "text": "ü" * root, "list": list(range(root * 1000))}
    got = hvd.allgather_object(sent)
    assert [item["rank"] for item in got] == list(range(size))
    assert [len(item["list"]) for item in got] == [1000 * r for r in range(size)]


def case_compression(hvd: Any) -> None:
    size = hvd.size()
    for compression in (hvd.Compression.none, hvd.Compression.fp16, hvd.Compression.bf16):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.int32):
            tensor = torch.ones(5, dtype=dtype)
            result = hvd.allreduce(tensor, compression=compression, op=hvd.Sum)
            same(result, torch.full((5,), size, dtype=dtype))
    small, context = hvd.Compression.bf16.compress(torch.tensor([1.0 + 2.0**-12]))
    assert small.dtype == torch.bfloat16
    same(hvd.Compression.bf16.decompress(small, context), torch.tensor([1.0]))


def case_sparse_allreduce(hvd: Any) -> None:
    me, size = hvd.rank(), hvd.size()
    tensor = torch.sparse_coo_tensor([[0, me + 1]], [1.0, 2.0], (size + 2,))
    expected = torch.zeros(size + 2)
    expected[0] = size
    expected[1 : size + 1] = 2.0
    same(hvd.sparse_allreduce_async(tensor, "sparse", hvd.Sum)().to_dense(), expected)
    torch.testing.assert_close(
        hvd.sparse_allreduce_async(tensor, None, hvd.Average)().to_dense(), expected / size
    )
    fails(ValueError, lambda: hvd.allreduce(tensor), "sparse")


# ---- errors --------------------------------------------------------------------------------------


def case_arguments_that_hora_refuses(hvd: Any) -> None:
    ones = torch.ones(3)
    fails(ValueError, lambda: hvd.allreduce(torch.ones(3, dtype=torch.complex64)), "not supported")
    fails(ValueError, lambda: hvd.allreduce(torch.ones(3, dtype=torch.bool)))
    fails(ValueError, lambda: hvd.allreduce(torch.empty(3, device="meta")))
    fails(ValueError, lambda: hvd.allreduce(ones, op=17))
    fails(ValueError, lambda: hvd.allreduce(ones, process_set=hvd.ProcessSet(3)))
    same(hvd.allreduce(ones), ones)


def case_duplicate_name(hvd: Any) -> None:
    """Two tensors of one name in flight: rank 0 holds the first back, so that it cannot finish."""
    if hvd.size() == 1:
        return
    if hvd.rank() != 0:
        first = hvd.allreduce_async(torch.ones(3), name="twice", op=hvd.Sum)
        again = lambda: hvd.allreduce_async(torch.ones(3), name="twice", op=hvd.Sum)  # noqa: E731
        fails(ValueError, again, "twice")
        hvd.barrier()
    else:
        hvd.barrier()
        first = hvd.allreduce_async(torch.ones(3), name="twice", op=hvd.Sum)
    same(hvd.synchronize(first), torch.full((3,), float(hvd.size())))


def case_mismatch_between_ranks(hvd: Any) -> None:
    """The last rank differs. Every rank gets an error that names both sides, and goes on."""
    if hvd.size() == 1:
        return
    odd = hvd.rank() == hvd.size() - 1
    other = f"rank {hvd.size() - 1}"
    calls: list[tuple[str, Callable[[], Any], tuple[str, ...]]] = [
        ("shape", lambda: hvd.allreduce(torch.ones(4 if odd else 3), name="bad.shape"),
         ("bad.shape", "3", "4")),
        ("dims", lambda: hvd.allreduce(torch.ones((3, 1) if odd else (3,)), name="bad.dims"),
         ("bad.dims",)),
        ("dtype", lambda: hvd.allreduce(torch.ones(3).to(torch.int32 if odd else torch.float32),
                                        name="bad.dtype", op=hvd.Sum),
         ("bad.dtype", "int32", "float32")),
        ("op", lambda: hvd.allreduce(torch.ones(3), name="bad.op", op=hvd.Min if odd else hvd.Max),
         ("bad.op", "min", "max")),
        ("scale", lambda: hvd.allreduce(torch.ones(3), name="bad.scale",
                                        prescale_factor=2.0 if odd else 1.0),
         ("bad.scale",)),
        ("root", lambda: hvd.broadcast(torch.ones(3), 1 if odd else 0, name="bad.root"),
         ("bad.root",)),
        ("rows", lambda: hvd.allgather(torch.ones(2, 5 if odd else 4), name="bad.rows"),
         ("bad.rows",)),
        ("scatter", lambda: hvd.reducescatter(torch.ones(9 if odd else 8), name="bad.scatter"),
         ("bad.scatter",)),
    ]  # fmt: skip
    for what, call, texts in calls:
        text = fails(hvd.HorovodInternalError, call, other, *texts)
        assert any(f"rank {rank} " in text for rank in range(hvd.size() - 1)), text
        total = hvd.allreduce(torch.ones(2), name="after", op=hvd.Sum)
        same(total, torch.full((2,), float(hvd.size())))


def case_mismatch_between_async_operations(hvd: Any) -> None:
    if hvd.size() == 1:
        return
    bad = hvd.allreduce_async(torch.ones(3 + (hvd.rank() == 0)), name="bad")
    good = hvd.allreduce_async(torch.ones(3), name="good", op=hvd.Sum)
    same(hvd.synchronize(good), torch.full((3,), float(hvd.size())))
    fails(hvd.HorovodInternalError, lambda: hvd.synchronize(bad))
    assert hvd.synchronize(bad) is None


def case_places(hvd: Any) -> None:
    assert hvd.is_initialized()
    assert hvd.local_size() == hvd.size() and hvd.local_rank() == hvd.rank()
    assert hvd.cross_size() == 1 and hvd.cross_rank() == 0
    assert hvd.is_homogeneous()
    assert hvd.global_process_set.size() == hvd.size()
    assert hvd.global_process_set.ranks == list(range(hvd.size()))
    assert (hvd.Average, hvd.Sum, hvd.Adasum, hvd.Min, hvd.Max, hvd.Product) == (0, 1, 2, 3, 4, 5)


# ---- the tests -----------------------------------------------------------------------------------

test_shm = ranks.case_test(sys.modules[__name__], [1, 2, 3, 4])
test_tcp = ranks.case_test(sys.modules[__name__], [2, 3], HORA_TRANSPORT="tcp")
