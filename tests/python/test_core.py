"""The extension itself: arrays in and out through DLPack, the communicator, what is built in."""

from __future__ import annotations

import gc
import sys
import threading
from typing import Any

import pytest
import ranks


def refused(kind: type[BaseException], call: Any, text: str = "") -> None:
    with pytest.raises(kind) as caught:
        call()
    assert text in str(caught.value)


def communicator_on_torch() -> None:
    import hora
    import torch
    from hora import _core

    comm = hora.Communicator()
    me, size = comm.rank, comm.size
    assert comm.host(me) and comm.transport(me) == "self"
    assert comm.local_size == size and comm.cross_size == 1 and comm.cross_rank == 0
    for dtype in ("float32", "bfloat16", "int64", "uint8"):
        kind = getattr(torch, dtype)
        x = torch.arange(12).to(kind).reshape(3, 4) + me
        y = torch.empty_like(x)
        comm.allreduce(x, y, _core.SUM)
        wanted = torch.arange(12).reshape(3, 4) * size + size * (size - 1) // 2
        assert torch.equal(y, wanted.to(kind))
        comm.allreduce(x, x, _core.SUM)
        assert torch.equal(x, y)
    gathered = torch.empty(size, 2)
    comm.allgather(torch.full((2,), float(me)), gathered)
    assert gathered[:, 0].tolist() == list(range(size))
    part = torch.empty(2)
    comm.reduce_scatter(gathered, part, _core.SUM)
    assert part.tolist() == [me * size] * 2
    spread = torch.empty(size)
    comm.alltoall(torch.arange(float(size)) + 10 * me, spread)
    assert spread.tolist() == [10.0 * r + me for r in range(size)]
    word = torch.tensor([me])
    comm.broadcast(word, word, root=size - 1)
    assert word.item() == size - 1
    comm.barrier()
    odd = comm.split(me % 2, -me)
    assert odd.size == len(range(me % 2, size, 2)) and odd.rank == odd.size - 1 - me // 2
    assert comm.split(-1, 0) is None
    refused(ValueError, lambda: comm.allreduce(torch.ones(2), torch.ones(3), _core.SUM), "fit")
    refused(ValueError, lambda: comm.allreduce(x, x.float(), _core.SUM), "fit")
    refused(TypeError, lambda: comm.allreduce(x, [1, 2], _core.SUM), "array")
    refused(ValueError, lambda: comm.allreduce(x, x.t(), _core.SUM), "contiguous")
    odd.close()
    comm.close()
    comm.close()
    refused(ValueError, comm.barrier, "closed")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_communicator(size: int) -> None:
    ranks.run(communicator_on_torch, size)


def communicator_on_numpy() -> None:
    sys.modules["torch"] = None  # type: ignore[assignment]
    import hora
    import numpy as np
    from hora import _core

    comm = hora.Communicator()
    size = comm.size
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    x.flags.writeable = False
    y = np.zeros_like(x)
    comm.allreduce(x, y, _core.SUM)
    assert (y == x * size).all()
    refused(ValueError, lambda: comm.allreduce(y, x, _core.SUM), "read-only")
    refused(ValueError, lambda: comm.allreduce(y, y.T, _core.SUM))
    memory = comm.alloc((4, 5), "float64")
    assert memory.shape == (4, 5) and memory.dtype == "float64"
    shared, other = np.from_dlpack(memory), np.asarray(memory)
    shared[:] = 2.0
    comm.allreduce(shared, shared, _core.SUM)
    assert (shared == 2.0 * size).all()
    assert (other == shared).all() and np.shares_memory(shared, other)
    del other
    refused(ValueError, lambda: comm.alloc((2,), "complex64"), "complex64")
    refused(ValueError, lambda: comm.alloc((-1,), "float32"), "shape")
    comm.barrier()
    comm.close()  # the memory keeps the communicator until it is gone itself
    shared += 1
    gc.collect()  # exceptions that were caught above have seen x
    before = sys.getrefcount(x)
    del shared, memory
    gc.collect()
    assert sys.getrefcount(x) == before


@pytest.mark.parametrize("size", [1, 3])
def test_numpy_without_torch(size: int) -> None:
    ranks.run(communicator_on_numpy, size)


def engine_on_numpy() -> None:
    import numpy as np
    from hora import _core

    _core.init(-1, -1, None, None, 0.0, 0.0, 0)
    x = np.ones(5, dtype=np.int32)
    handle = _core.enqueue(_core.ALLREDUCE, "n", x, x, _core.SUM, 1.0, 1.0, 0, None, 0)
    handle.wait()
    assert (x == _core.size()).all()
    rows = np.full((_core.rank() + 1, 2), _core.rank(), dtype=np.uint8)
    before = sys.getrefcount(rows)
    handle = _core.enqueue(_core.ALLGATHER, "g", rows, None, _core.SUM, 1.0, 1.0, 0, None, 0)
    handle.wait()
    references = sys.getrefcount(rows)
    array, splits = handle.tensor(0)  # NumPy has no DLPack C functions
    assert type(array) is _core.Array and splits is None
    wanted = np.concatenate([np.full((r + 1, 2), r) for r in range(_core.size())])
    assert (np.from_dlpack(array) == wanted).all()
    refused(ValueError, lambda: handle.output(0))
    refused(IndexError, lambda: handle.output(1))
    assert references == before, "a finished handle holds no array"
    refused(ValueError, lambda: _core.init(-1, -1, None, None, 0.0, 0.0, 0), "already")
    _core.shutdown()


def test_engine_on_numpy() -> None:
    ranks.run(engine_on_numpy, 2)


NAMES = ("x", "y", "z")


def arrays_live_until_done() -> None:
    import weakref

    import torch
    from hora import _core

    def enqueue(name: str, tensor: Any) -> Any:
        return _core.enqueue(
            _core.ALLREDUCE, name, tensor, tensor, _core.SUM, 1.0, 1.0, 0, None, 0
        )

    swept: list[bool] = []

    def sweep_again(_: Any) -> None:
        """What runs when an array goes may come back into the extension."""
        refused(TypeError, lambda: enqueue("bad", object()))
        swept.append(True)

    _core.init(-1, -1, None, None, 0.0, 0.0, 0)
    if _core.rank() == 0:
        tensors = [torch.ones(1000) for _ in NAMES]
        gone = [weakref.ref(tensor, sweep_again) for tensor in tensors]
        handles = [enqueue(name, tensor) for name, tensor in zip(NAMES, tensors)]
        assert not any(handle.poll() for handle in handles)
        del tensors, handles  # rank 1 has not come yet
        gc.collect()
        assert all(reference() is not None for reference in gone)
        barrier = ("go", None)
    else:
        import time

        time.sleep(1.5)
        for name in NAMES:
            tensor = torch.ones(1000)
            enqueue(name, tensor).wait()
            assert (tensor == 2).all()
        barrier = ("go", None)
    for name in ("go", "swept"):
        _core.enqueue(
            _core.BARRIER, name, barrier[1], None, _core.SUM, 1.0, 1.0, 0, None, 0
        ).wait()
    if _core.rank() == 0:
        assert all(reference() is None for reference in gone), "the next enqueue lets go of them"
        assert len(swept) == len(NAMES)
    _core.shutdown()


def test_arrays_live_until_done() -> None:
    ranks.run(arrays_live_until_done, 2)


def long_texts() -> tuple[str, str]:
    import torch
    from hora import _core

    def enqueue(name: str, kind: int = _core.ALLREDUCE) -> Any:
        data = None if kind == _core.BARRIER else tensor
        return _core.enqueue(kind, name, data, data, _core.SUM, 1.0, 1.0, 0, None, 0)

    _core.init(-1, -1, None, None, 0.0, 0.0, 0)
    tensor, twice, texts = torch.ones(1), "", []
    for start in ("", "x"):  # one of them is cut in the middle of a character
        if _core.rank() == 0:
            pending = enqueue(start + "é" * 500)
            with pytest.raises(ValueError) as refusal:
                enqueue(start + "é" * 500)
            assert type(refusal.value) is ValueError  # UnicodeDecodeError is one too
            assert refusal.value.status == _core.DUPLICATE_NAME
            twice = str(refusal.value)
            enqueue("go", _core.BARRIER).wait()
        else:
            enqueue("go", _core.BARRIER).wait()
            pending = enqueue(start + "é" * 500)
        pending.wait()
    for start in ("", "x"):
        _core.abort(start + "é" * 600)
        with pytest.raises(_core.HorovodInternalError) as failure:
            enqueue("next").wait()
        texts.append(str(failure.value))
        _core.shutdown()
        if start == "":
            _core.init(-1, -1, None, None, 0.0, 0.0, 0)
    assert all("é" * 50 in text for text in texts), texts
    return twice, texts[-1]


def test_long_texts_that_are_not_ascii() -> None:
    (twice, _), _ = ranks.run(long_texts, 2)
    assert "é" * 50 in twice


def one_thread_at_a_time() -> list[str]:
    import hora
    import torch
    from hora import _core

    comm = hora.Communicator()
    errors: list[str] = []
    if comm.rank == 0:
        thread = threading.Thread(target=comm.barrier)
        thread.start()
        ranks.signal_file("inside")
        import time

        time.sleep(0.5)
        for call in (comm.barrier, comm.close):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
        comm.alloc((3,), "int8")  # this one is allowed
        thread.join()
    else:
        import time

        time.sleep(2)
        comm.barrier()
    comm.allreduce(torch.ones(1), torch.ones(1), _core.SUM)
    comm.close()
    return errors


def test_one_thread_at_a_time() -> None:
    first, _ = ranks.run(one_thread_at_a_time, 2)
    assert len(first) == 2 and all("another thread" in text for text in first)


def test_backends() -> None:
    from hora import _core

    rows = _core.backends()
    assert {"shm", "tcp"} <= {row["name"] for row in rows if row["available"]}
    for row in rows:
        assert set(row) == {"name", "kind", "available", "detail", "remedy"}
        assert row["kind"] in ("transport", "offload", "kernels", "device")
        assert row["available"] or row["detail"], row


def test_operations_supported() -> None:
    from hora import _core

    assert _core.op_supported("bfloat16", _core.AVERAGE)
    assert not _core.op_supported("bool", _core.AVERAGE)
    assert not _core.op_supported("float32", _core.BXOR)
    refused(ValueError, lambda: _core.op_supported("float8", _core.SUM), "float8")


def test_types_cannot_be_made() -> None:
    from hora import _core

    refused(TypeError, _core.Handle)
    refused(TypeError, _core.Array)
