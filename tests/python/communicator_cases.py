"""Cases for hora.Communicator that run one after the other in one job: test_communicator.py."""

from __future__ import annotations

import array
import ctypes
import gc
import mmap
import time
import weakref
from typing import Any, Callable

import hora
import numpy as np
import pytest
import torch
from hora import _core
from hora.common.exceptions import HorovodInternalError

Comm = hora.Communicator


def refused(kind: type[BaseException], call: Callable[[], Any], text: str = "") -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value), str(caught.value)


def inputs(comm: Comm, dtype: Any, shape: tuple[int, ...] = (3, 4)) -> list[np.ndarray]:
    """What each rank puts in; small, so that sums and products are exact in every type."""
    count = int(np.prod(shape))
    return [
        ((np.arange(count) + rank) % 3 + 1).astype(dtype).reshape(shape)
        for rank in range(comm.size)
    ]


# ---- Every call against NumPy --------------------------------------------------------------------

REFERENCES: dict[str, Callable[[list[np.ndarray]], np.ndarray]] = {
    "sum": lambda parts: np.sum(parts, axis=0),
    "product": lambda parts: np.prod(parts, axis=0),
    "min": lambda parts: np.min(parts, axis=0),
    "max": lambda parts: np.max(parts, axis=0),
    "average": lambda parts: np.sum(parts, axis=0) / len(parts),
    "band": lambda parts: np.bitwise_and.reduce(parts),
    "bor": lambda parts: np.bitwise_or.reduce(parts),
    "bxor": lambda parts: np.bitwise_xor.reduce(parts),
}


def case_operations_and_types(comm: Comm) -> None:
    for member in hora.DType:
        if member in (hora.DType.BFLOAT16, hora.DType.FLOAT8_E4M3, hora.DType.FLOAT8_E5M2):
            continue  # NumPy does not know them
        dtype = np.dtype(member.name.lower())
        parts = inputs(comm, dtype)
        for name, reference in REFERENCES.items():
            if not _core.op_supported(dtype.name, hora.Op[name.upper()]):
                refused(ValueError, lambda: comm.allreduce(parts[comm.rank], op=name))
                continue
            result = comm.allreduce(parts[comm.rank], op=name)
            assert result.dtype == dtype and result.shape == (3, 4)
            wanted = reference(parts)
            if dtype.kind == "f" and name == "average":
                np.testing.assert_allclose(result, wanted, rtol=1e-3)
            elif name == "average":
                assert (result == np.trunc(wanted).astype(dtype)).all()
            else:
                assert (result == wanted.astype(dtype)).all(), (name, dtype)


def both_ways(call: Callable[..., Any]) -> list[Any]:
    """The results of a call that blocks and of one with a request."""
    request = call(async_op=True)
    assert isinstance(request, hora.Request)
    return [call(), request.wait()]


def same(result: Any, wanted: Any) -> None:
    assert result.dtype == wanted.dtype and result.shape == wanted.shape, (result, wanted)
    assert (result == wanted).all(), (result, wanted)


def case_reductions(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    parts = inputs(comm, np.float32, (2 * n, 3))
    x, total = parts[me], np.sum(parts, axis=0)
    for result in both_ways(lambda **o: comm.allreduce(x, prescale=2.0, postscale=0.25, **o)):
        same(result, total / 2)
    root = n - 1
    for result in both_ways(lambda **o: comm.reduce(x, root=root, op=hora.Op.SUM, **o)):
        same(result, total) if me == root else None
        assert me == root or result is None
    for result in both_ways(lambda **o: comm.reduce_scatter(x, **o)):
        same(result, total[2 * me : 2 * me + 2])
    counts = [2 * n - (n - 1)] + [1] * (n - 1)
    begin = sum(counts[:me])
    for result in both_ways(lambda **o: comm.reduce_scatterv(x, counts=counts, op="max", **o)):
        same(result, np.max(parts, axis=0)[begin : begin + counts[me]])
    out = np.empty_like(x)
    for result in both_ways(lambda **o: comm.allreduce(x, out, hora.Op.MIN, name="named", **o)):
        assert result is out
        same(out, np.min(parts, axis=0))


def case_movement(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    mine = np.full((2, 3), me, np.int32)
    for result in both_ways(lambda **o: comm.allgather(mine, **o)):
        same(result, np.repeat(np.arange(n, dtype=np.int32), 2)[:, None].repeat(3, axis=1))
    ragged = np.full((me + 1, 2), me, np.int16)
    wanted = np.concatenate([np.full((r + 1, 2), r, np.int16) for r in range(n)])
    for counts in (None, range(1, n + 1), np.arange(1, n + 1)):
        for result in both_ways(lambda **o: comm.allgatherv(ragged, counts=counts, **o)):
            same(result, wanted)
    for result in both_ways(lambda **o: comm.broadcast(mine, root=n - 1, **o)):
        same(result, np.full((2, 3), n - 1, np.int32))
    for result in both_ways(lambda **o: comm.alltoall(np.arange(2 * n) + 100 * me, **o)):
        same(result, np.concatenate([np.array([2 * me, 2 * me + 1]) + 100 * r for r in range(n)]))
    rows = sum(range(1, n + 1))
    block = np.arange(rows) + 1000 * me  # r + 1 rows to rank r
    begin = sum(range(1, me + 1))
    wanted = np.concatenate([np.arange(begin, begin + me + 1) + 1000 * r for r in range(n)])
    for out_counts in (None, [me + 1] * n):
        for result in both_ways(
            lambda **o: comm.alltoallv(
                block, counts=range(1, n + 1), out_counts=out_counts, **o
            )
        ):
            same(result, wanted)
    for result in both_ways(lambda **o: comm.gather(mine, root=0, **o)):
        same(result, np.repeat(np.arange(n, dtype=np.int32), 2)[:, None].repeat(3, axis=1)) if (
            me == 0
        ) else None
        assert me == 0 or result is None
    whole = np.arange(4.0 * n).reshape(2 * n, 2)
    part = np.empty((2, 2))
    for result in both_ways(lambda **o: comm.scatter(whole, part, root=n - 1, **o)):
        assert result is part
        same(part, whole[2 * me : 2 * me + 2])
    if me == 0:
        same(comm.scatter(whole), whole[:2])
    else:
        comm.scatter(out=part)
        refused(ValueError, lambda: comm.scatter(whole), "out")
    for result in both_ways(comm.barrier):
        assert result is None


def case_point_to_point(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    to, source = (me + 1) % n, (me - 1) % n
    out = np.empty(1000, np.float32)
    for tag in (0, 7):
        sending = comm.send(np.full(1000, me + tag, np.float32), to, tag, async_op=True)
        assert comm.recv(out, source, tag) is out
        assert (out == source + tag).all() and sending.wait() is None
    receiving = comm.recv(out, source, 3, async_op=True)
    comm.send(np.full(1000, me, np.float32), to, 3)
    assert receiving.wait() is out and (out == source).all()
    refused(ValueError, lambda: comm.send(out, n), "peer")
    refused(ValueError, lambda: comm.recv(out, 0, -1), "tag")
    if n > 1:
        request = comm.send(np.zeros(4, np.uint8), to, 9, async_op=True)
        with pytest.raises(HorovodInternalError) as caught:
            comm.recv(np.zeros(5, np.uint8), source, 9)
        assert caught.value.status == -7, caught.value  # HORA_ERR_MISMATCH
        try:
            request.wait()
        except HorovodInternalError as error:
            assert error.status == -7
        comm.barrier()


def case_in_place(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    x = np.full(5, me + 1.0)
    assert comm.allreduce(x, out=x) is x and (x == n * (n + 1) / 2).all()
    x[:] = me
    assert comm.broadcast(x, out=x, root=n - 1, async_op=True).wait() is x and (x == n - 1).all()
    whole = np.zeros((n, 3))
    whole[me] = me
    comm.allgather(whole[me], out=whole)
    same(whole, np.arange(n, dtype=float)[:, None].repeat(3, axis=1))
    comm.reduce_scatter(whole, out=whole[me : me + 1])
    assert (whole[me] == n * me).all()
    tensor = torch.full((4,), float(me))
    assert comm.allreduce(tensor, out=tensor, op="max") is tensor and (tensor == n - 1).all()
    data = bytearray([me, 1])
    assert comm.allreduce(data, out=data) is data and data == bytes([n * (n - 1) // 2, n])
    if n > 1:
        both = np.zeros(10)
        refused(ValueError, lambda: comm.allreduce(both[:6], out=both[2:8]), "overlap")


# ---- Kinds of arrays -----------------------------------------------------------------------------


def case_numpy_kinds(comm: Comm) -> None:
    n = comm.size
    for scalar in (np.float32(2), np.int64(2), np.float64(2)):
        result = comm.allreduce(scalar)
        assert type(result) is type(scalar) and result == 2 * n
    point = comm.allreduce(np.array(3.0))
    assert type(point) is np.ndarray and point.shape == () and point == 3 * n
    assert comm.allgather(np.float64(comm.rank)).tolist() == list(range(n))
    with pytest.raises(ValueError, match="scalar"):
        comm.allreduce(np.zeros(()), out=np.float64(1))
    flags = comm.allreduce(np.array([comm.rank == 0, False, True]))
    assert flags.dtype == bool and flags.tolist() == [True, False, True]
    matrix = comm.allreduce(np.ones((2, 2)).view(np.recarray))
    assert type(matrix) is np.ndarray


def case_torch(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8):
        result = comm.allreduce(torch.full((2, 3), me).to(dtype))
        assert type(result) is torch.Tensor and result.dtype is dtype
        assert (result == n * (n - 1) // 2).all()
    parameter = torch.nn.Parameter(torch.full((3,), float(me)))
    result = comm.allgather(parameter)
    assert type(result) is torch.Tensor and not result.requires_grad
    assert result.tolist() == [float(r) for r in range(n) for _ in range(3)]
    with torch.no_grad():
        comm.broadcast(parameter, out=parameter, root=n - 1)
    assert (parameter == n - 1).all() and parameter.requires_grad
    across = torch.arange(6.0).reshape(2, 3).t()  # has gaps: copied
    assert torch.equal(comm.allreduce(across), across * n)
    refused(ValueError, lambda: comm.allreduce(across, out=across), "contiguous")
    refused(ValueError, lambda: comm.allreduce(torch.zeros(2, dtype=torch.complex64)), "complex64")
    refused(ValueError, lambda: comm.allreduce(torch.eye(2).to_sparse()), "dense")
    refused(ValueError, lambda: comm.allreduce(torch.ones(2, device="meta")))
    other = torch.zeros(4, dtype=torch.float8_e4m3fnuz)
    refused(ValueError, lambda: comm.allreduce(other), "float8")
    assert comm.broadcast(other.view(torch.uint8)).dtype is torch.uint8


def case_float8_of_torch(comm: Comm) -> None:
    """Every pair of values; torch adds them in float32 and casts once, as hora does. What is too
    large for e4m3, older torches make NaN; hora, as newer ones, makes it the largest value."""
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        whole = torch.arange(256, dtype=torch.uint8).view(dtype)
        across = whole.view(torch.uint8).repeat_interleave(256).view(dtype)
        parts = [whole.repeat(256), across] + [torch.ones(65536).to(dtype)] * (comm.size - 2)
        total = parts[0].float()
        for part in parts[1 : comm.size]:
            total = total + part.float()
        for op, wanted in (("sum", total), ("average", total / comm.size)):
            if comm.size == 1:
                continue  # a copy keeps the sign of NaN
            result = comm.allreduce(parts[comm.rank], op=op)
            assert type(result) is torch.Tensor and result.dtype is dtype
            largest = torch.finfo(dtype).max if dtype is torch.float8_e4m3fn else torch.inf
            wanted = wanted.clamp(-largest, largest).to(dtype)
            same = result.view(torch.uint8) == wanted.view(torch.uint8)
            assert (same | (result.float().isnan() & wanted.float().isnan())).all(), (dtype, op)
        refused(ValueError, lambda: comm.allreduce(whole, op="product"), "float8")
        assert torch.from_dlpack(comm.alloc(4, dtype)).dtype is dtype


def case_buffers(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    assert comm.broadcast(b"from %d" % me, root=n - 1) == b"from %d" % (n - 1)
    assert comm.allgather(bytearray(b"x%d" % me)) == b"".join(b"x%d" % r for r in range(n))
    numbers = comm.allreduce(array.array("d", [1.5, me]))
    assert isinstance(numbers, array.array) and list(numbers) == [1.5 * n, n * (n - 1) / 2]
    view = comm.allreduce(memoryview(array.array("i", [1, 2])))
    assert isinstance(view, memoryview) and view.format == "i" and view.tolist() == [n, 2 * n]
    values = (ctypes.c_float * 3)(1, 2, me)
    assert comm.allreduce(values, out=values) is values and values[1] == 2 * n
    page = mmap.mmap(-1, 4096)
    page[0] = me
    comm.broadcast(page, out=page, root=n - 1)
    assert page[0] == n - 1
    page.close()  # nothing holds its buffer any more
    every_other = memoryview(bytearray(b"abcdef"))[::2]
    assert bytes(comm.broadcast(every_other)) == b"ace"
    refused(ValueError, lambda: comm.allreduce(every_other, out=every_other), "contiguous")
    refused(ValueError, lambda: comm.broadcast(bytearray(3), out=b"abc"), "read-only")
    letters = memoryview(b"abcd").cast("c")
    refused(ValueError, lambda: comm.allreduce(letters, op="nonsense"), "average")


class Frozen:
    """An array as JAX has them: immutable, and handed over by DLPack alone."""

    def __init__(self, data: Any) -> None:
        self.data = np.array(data)
        self.data.flags.writeable = False
        self.shape, self.dtype = self.data.shape, self.data.dtype

    def __dlpack__(self, **options: Any) -> Any:
        return self.data.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __array_namespace__(self) -> type[Frozen]:
        return Frozen

    @classmethod
    def from_dlpack(cls, other: Any) -> Frozen:
        return cls(np.from_dlpack(other))


class OnDevice(Frozen):
    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 3)


def case_immutable_and_elsewhere(comm: Comm) -> None:
    n = comm.size
    x = Frozen([1.0, comm.rank])
    for result in both_ways(lambda **o: comm.allreduce(x, **o)):
        assert type(result) is Frozen and result.data.tolist() == [n, n * (n - 1) / 2]
    out = np.zeros(2)
    assert comm.allreduce(x, out=out) is out and out[0] == n
    refused(ValueError, lambda: comm.allreduce(x, out=x), "read-only")
    refused(ValueError, lambda: comm.allreduce(OnDevice([1.0])), "on DLPack device (2, 3)")


def case_bfloat16_of_numpy(comm: Comm) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    n = comm.size
    x = np.array([1.5, comm.rank], ml_dtypes.bfloat16)
    result = comm.allreduce(x)
    assert result.dtype == x.dtype and result.tolist() == [1.5 * n, n * (n - 1) / 2]
    assert comm.allreduce(x, out=x) is x and x[0] == 1.5 * n
    assert comm.allreduce(ml_dtypes.bfloat16(2)) == 2 * n
    refused(ValueError, lambda: comm.allreduce(x, out=np.zeros(2, np.uint16)), "type")
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
        small = comm.allreduce(np.array([1.5, -2], dtype))
        assert small.dtype == dtype and small.tolist() == np.array([1.5 * n, -2 * n], dtype).tolist()
    refused(ValueError, lambda: comm.allreduce(np.zeros(2, ml_dtypes.float8_e3m4)), "float8")


def case_alloc(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    memory = comm.alloc((2, 3), np.float32)
    view, tensor = np.asarray(memory), torch.from_dlpack(memory)
    assert view.shape == (2, 3) and view.dtype == np.float32 and view.flags.writeable
    assert view.ctypes.data % 64 == 0 and tensor.data_ptr() == view.ctypes.data
    view[:] = me
    assert (tensor == me).all()
    result = comm.allreduce(memory, out=memory)
    assert result is memory and (view == n * (n - 1) / 2).all()
    fresh = comm.allgather(memory)
    assert type(fresh) is _core.Array and fresh.shape == (2 * n, 3) and fresh.dtype == "float32"
    for dtype, name in (
        (torch.int8, "int8"), (hora.DType.UINT16, "uint16"), (float, "float64"), ("bool", "bool"),
        (np.dtype("i8"), "int64"), (np.uint8, "uint8"),
    ):  # fmt: skip
        assert comm.alloc(3, dtype).dtype == name
    half = comm.alloc(4, torch.bfloat16)
    refused(BufferError, lambda: memoryview(half), "bfloat16")
    assert torch.from_dlpack(half).dtype is torch.bfloat16
    assert len(memoryview(comm.alloc(0, "int8"))) == 0 and comm.alloc((), "int8").shape == ()
    simple = memoryview(comm.alloc((2, 2), "int16"))
    assert simple.shape == (2, 2) and simple.format == "h" and not simple.readonly
    del memory, tensor, fresh
    gc.collect()
    view += 1  # the last view keeps the memory
    comm.barrier()


# ---- Unusual arrays ------------------------------------------------------------------------------


def case_inputs_that_are_copied(comm: Comm) -> None:
    n = comm.size
    base = np.arange(24.0).reshape(4, 6)
    for x in (base.T, base[:, ::2], base[::-1], np.asfortranarray(base), base[1:3, 2:4]):
        before = x.copy()
        same(comm.allreduce(x), x * n)
        same(comm.allgather(x), np.concatenate([before] * n))
        assert (x == before).all()
    swapped = np.arange(4, dtype=">i4")
    result = comm.allreduce(swapped)
    assert result.dtype == np.dtype("i4") and result.dtype.isnative
    assert result.tolist() == [0, n, 2 * n, 3 * n]
    frozen = np.arange(3.0)
    frozen.flags.writeable = False
    same(comm.allreduce(frozen), np.arange(3.0) * n)


def case_outputs_that_are_refused(comm: Comm) -> None:
    x = np.ones(6)
    frozen = np.ones(6)
    frozen.flags.writeable = False
    refused(ValueError, lambda: comm.allreduce(x, out=frozen), "read-only")
    refused(ValueError, lambda: comm.allreduce(x, out=np.ones(12)[::2]), "contiguous")
    refused(ValueError, lambda: comm.allreduce(x, out=np.ones(6, ">f8")), "byte order")
    refused(ValueError, lambda: comm.allreduce(x, out=np.ones(5)), "do not fit")
    refused(ValueError, lambda: comm.allreduce(x, out=np.ones(6, "f4")), "do not fit")
    refused(ValueError, lambda: comm.allgather(x, out=np.ones(6 * comm.size + 1)), "do not fit")
    refused(TypeError, lambda: comm.allreduce(x, out=[0.0] * 6), "list")
    square = np.ones((2, 2), order="F")
    refused(ValueError, lambda: comm.allreduce(square, out=square), "contiguous")


def case_inputs_that_are_refused(comm: Comm) -> None:
    for what, kind, text in (
        ([1, 2], TypeError, "list"),
        (3.0, TypeError, "float"),
        ("text", TypeError, "str"),
        (None, ValueError, "missing"),
        (np.zeros(2, complex), ValueError, "complex128"),
        (np.zeros(2, object), ValueError, "object"),
        (np.array(["a"]), ValueError, "<U1"),
        (np.zeros(2, "M8[s]"), ValueError, "datetime"),
        (np.zeros(2, [("a", "i4")]), ValueError, "no element type"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), TypeError, "mask"),
        (np.zeros((1,) * 17), ValueError, "dimensions"),
        ((ctypes.c_longdouble * 2)(), ValueError, "not supported"),
    ):
        refused(kind, lambda: comm.allreduce(what), text)
    x = np.ones(4)
    refused(ValueError, lambda: comm.allreduce(x, op="mean"), "average")
    refused(ValueError, lambda: comm.allreduce(x, op=99))
    refused(TypeError, lambda: comm.allreduce(x, op=None))
    refused(ValueError, lambda: comm.allreduce(x, timeout=-1.0), "timeout")
    refused(ValueError, lambda: comm.broadcast(x, root=comm.size), "root")
    refused(ValueError, lambda: comm.reduce_scatterv(x, counts=[4] * (comm.size + 1)), "counts")
    refused(ValueError, lambda: comm.reduce_scatterv(x, counts=[3] * comm.size), "do not fit")
    refused(ValueError, lambda: comm.alltoallv(x, counts=[-1] * comm.size,
                                               out_counts=[1] * comm.size), "count")  # fmt: skip
    if comm.size > 1:
        odd = np.ones(comm.size + 1)
        refused(ValueError, lambda: comm.alltoall(odd), "divided")
        refused(ValueError, lambda: comm.reduce_scatter(odd), "divided")
    comm.barrier()  # none of it has disturbed anything


def case_sizes(comm: Comm) -> None:
    n = comm.size
    for shape in ((0,), (3, 0), (0, 5), (), (1,), (1, 1, 1), (7,), (1000,), (300_001,)):
        x = np.ones(shape, np.float32)
        same(comm.allreduce(x), x * n)
        same(comm.broadcast(x), x)
        rows = shape[0] if shape else 1
        assert comm.allgather(x).shape == (n * rows, *shape[1:])
    assert comm.allgatherv(np.zeros((0, 4))).shape == (0, 4)
    counts = [0] * (n - 1) + [2]
    assert comm.allgatherv(np.ones((counts[comm.rank], 4)), counts=counts).shape == (2, 4)
    assert comm.alltoallv(np.zeros((0, 2)), counts=[0] * n).shape == (0, 2)
    raw = np.zeros(4 * 101 + 1, np.uint8)
    skewed = raw[1:].view(np.float32)  # not aligned
    skewed[:] = comm.rank
    assert (comm.allreduce(skewed) == n * (n - 1) / 2).all()


# ---- Requests ------------------------------------------------------------------------------------


def case_many_requests(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    arrays = [np.full(i * 37 % 500, me + i, np.float64) for i in range(200)]
    requests = [comm.allreduce(x, async_op=True) for x in arrays]
    for i in reversed(range(200)):
        assert (requests[i].wait() == n * (n - 1) / 2 + n * i).all()
    request = comm.allreduce(np.ones(3), async_op=True)
    while not request.test():
        pass
    assert request.test() and (request.wait() == n).all()
    assert request.wait() is request.wait()
    assert not comm._pending


def case_requests_hold_their_arrays(comm: Comm) -> None:
    n = comm.size
    x = torch.full((1000,), 1.0)
    gone = weakref.ref(x)
    data = bytearray(1000)
    if comm.rank == 0:
        requests = [comm.allreduce(x, async_op=True), comm.broadcast(data, out=data, async_op=True)]
        del x
        gc.collect()
        if n > 1:
            assert gone() is not None
            refused(BufferError, data.clear)
        comm.send(np.zeros(1), n - 1, 5) if n > 1 else None
    else:
        comm.recv(np.zeros(1), 0, 5) if comm.rank == n - 1 else None
        requests = [comm.allreduce(x, async_op=True), comm.broadcast(data, out=data, async_op=True)]
        del x
    assert (requests[0].wait() == n).all() and requests[1].wait() is data
    gc.collect()
    assert gone() is None
    data.clear()


def case_requests_that_are_dropped(comm: Comm) -> None:
    """They complete in later calls, and their arrays live as long."""
    n = comm.size
    x = np.ones(50)
    for i in range(500):
        comm.allreduce(x, async_op=True)
        if i % 50 == 49:
            comm.barrier()  # the ones before it are done
    assert (comm.allreduce(x, async_op=True).wait() == n).all()
    assert len(comm._pending) < 300, "they are let go of"
    part = comm.split(0)
    assert part is not None
    result = np.zeros(50)
    part.allreduce(x, out=result, async_op=True)
    part.close()  # waits for it
    assert (result == n).all()


# ---- About communicators -------------------------------------------------------------------------


def case_split(comm: Comm) -> None:
    me, n = comm.rank, comm.size
    half = comm.split(me % 2, key=-me)
    assert half is not None
    with half:
        members = list(range(me % 2, n, 2))[::-1]
        assert half.size == len(members) and members[half.rank] == me
        assert half.allgather(np.array([me])).tolist() == members
        assert (comm.allreduce(np.ones(2)) == n).all()  # both at once
        assert repr(half) == f"<hora.Communicator: rank {half.rank} of {half.size}>"
    assert "closed" in repr(half)
    refused(ValueError, half.barrier, "closed")
    assert comm.split(-1) is None
    private = comm.split(0)
    assert private is not None
    comm.barrier()  # an abort would end a split that is still under way elsewhere
    private.abort("enough")
    refused(HorovodInternalError, private.barrier, "enough")
    refused(HorovodInternalError, private.check, "enough")
    private.close()
    comm.check()
    comm.barrier()


def case_about(comm: Comm) -> None:
    assert comm.local_size == comm.size and comm.local_rank == comm.rank
    assert comm.cross_size == 1 and comm.cross_rank == 0
    assert comm.host() == comm.host(0) and comm.transport(comm.rank) == "self"
    refused(ValueError, lambda: comm.host(comm.size), "no rank")
    refused(ValueError, lambda: comm.transport(-1), "no rank")
    assert [int(op) for op in hora.Op] == list(range(9))
    for member in hora.DType:  # by the numbers of hora.h
        assert comm.alloc(1, member).dtype == member.name.lower()
    for op in hora.Op:
        assert getattr(_core, op.name) == op


def case_timeout(comm: Comm) -> None:
    if comm.size == 1:
        return
    part = comm.split(0)
    assert part is not None
    if comm.rank == 0:
        with pytest.raises(HorovodInternalError) as caught:
            part.recv(np.zeros(1), 1, timeout=0.2)
        assert caught.value.status == -4  # HORA_ERR_TIMEOUT
    comm.barrier()
    part.close()


def case_error_of_a_dropped_request(comm: Comm) -> None:
    """close() tells of it, also when the request has been swept long before."""
    if comm.size == 1:
        return
    part = comm.split(0)
    assert part is not None
    if comm.rank == 0:
        part.recv(np.zeros(1), 1, timeout=0.2, async_op=True)
        time.sleep(0.5)
        for i in range(40):
            try:
                part.barrier(timeout=0.2, name=f"later {i}", async_op=True)
            except HorovodInternalError:
                pass  # the communicator has ended
            part._sweep_at = 1
        refused(HorovodInternalError, part.close, "recv")
    comm.barrier()
    part.close()
