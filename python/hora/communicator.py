"""The communicator API of hora.h for the arrays of any library.

    import numpy as np
    import hora

    with hora.Communicator() as comm:
        total = comm.allreduce(np.full(3, comm.rank))           # a new array
        comm.allreduce(total, out=total, op=hora.Op.MAX)        # in place
        request = comm.allreduce(total, async_op=True)          # starts it
        total = request.wait()

Every rank makes the same calls in the same order, as with MPI. Nothing is negotiated, so this is
the shortest way between ranks; ``hora.torch`` has Horovod's interface, where order does not matter.

Arrays. Whatever speaks DLPack or the buffer protocol, in CPU memory or on a CUDA device: NumPy arrays
and scalars, torch tensors, JAX and CuPy arrays, ``bytearray``, ``memoryview``, ``array.array``, and
the ``Array`` that ``alloc`` returns. Without ``out`` the result is a new array of the input's kind.
With ``out`` it is written there and returned; ``out=x`` works in place. An input with gaps between
its elements, or in the byte order of another machine, is copied; such an output is an error, as is
a read-only one. A tensor that requires a gradient is used as its data: these calls are not
differentiable.

Blocks. Where ranks contribute blocks (allgather, ...), blocks are cut along the first dimension,
and counts are rows. An array without dimensions counts as one row.

GPUs. A call on arrays on a CUDA device is queued on torch's current stream of that device, or, for
other libraries, on the default stream; it is done when it is queued. What comes later on that stream
sees the result, and another stream has to wait for it, also after ``Request.wait``. Either all ranks
pass arrays on a GPU or none does, and those of one call are on one device.

Threads. A communicator and its requests are used by one thread at a time; a second thread gets a
RuntimeError at once, and nothing is disturbed. Several threads use one communicator each
(``split``), or make their own, each with a ``name``. ``abort`` may be called by any thread. The GIL
is released while a call waits, and Ctrl-C ends it.

Errors. ValueError or TypeError for what this rank did wrong, before anything is sent; else
``HorovodInternalError``, which names the rank, the host and the phase. Both have the number of
hora.h as ``status`` where hora's core reports them.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import sys
import weakref
from types import TracebackType
from typing import Any, Callable, Sequence

from hora import _core
from hora._kinds import Kind, kind_of
from hora.constants import Op, to_dtype_name, to_op

__all__ = ["Communicator", "Request"]

Shape = tuple[int, ...]
_CALL = {name: number for number, name in enumerate(_core.CALLS)}
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def _same(shape: Shape) -> Shape:
    return shape


def _with_rows(shape: Shape, rows: int) -> Shape:
    return (rows, *shape[1:])


def _rows(shape: Shape) -> int:
    return shape[0] if shape else 1


class Request:
    """An operation in flight. It keeps its arrays alive; do not touch them until it is done."""

    __slots__ = ("_comm", "_raw", "_give", "_result", "_error")

    def __init__(self, comm: Communicator, raw: _core.Request, give: Callable[[], Any]) -> None:
        self._comm: Communicator | None = comm
        self._raw = raw
        self._give: Callable[[], Any] | None = give
        self._result: Any = None
        self._error: Exception | None = None

    def test(self) -> bool:
        """Moves it on without blocking; True when it is done, well or not (``wait`` tells)."""
        return self._comm is None or self._raw.test()

    def wait(self) -> Any:
        """Blocks until it is done. Returns the result or raises its error, as often as called."""
        if self._comm is not None:
            self._finish()
        if self._error is not None:
            raise self._error
        return self._result

    def _finish(self) -> None:
        """Waits, and keeps what came of it."""
        assert self._comm is not None and self._give is not None
        try:
            self._raw.wait()
        except (_core.HorovodInternalError, ValueError) as error:
            self._error = error
        self._comm._pending.pop(self, None)
        self._comm = None
        if self._error is None:
            self._result = self._give()
        self._give = None


class Communicator:
    """An ordered set of ranks. ``Communicator()`` has all ranks of the job, as the launcher's
    variables describe it; without any, it has one rank. Making one is collective.

    :param rank: this process's rank, and
    :param size: the number of ranks; both or neither.
    :param rendezvous: where the ranks meet, ``"unix:NAME"`` or ``"tcp:HOST:PORT"``.
    :param transport: ``"auto"``, ``"shm"``, ``"tcp"`` or ``"mpi"``.
    :param start_timeout: seconds to wait for all ranks.
    :param timeout: seconds after which an operation fails.
    :param name: tells communicators apart that several threads make at one time.
    """

    def __init__(
        self,
        rank: int = -1,
        size: int = -1,
        *,
        rendezvous: str | None = None,
        transport: str | None = None,
        start_timeout: float = 0.0,
        timeout: float = 0.0,
        name: str | None = None,
    ) -> None:
        from hora.common.basics import _interruptible

        with _interruptible():
            raw = _core.Comm(rank, size, rendezvous, transport, start_timeout, timeout, name)
        self._set(raw)

    def _set(self, raw: _core.Comm) -> None:
        self._raw = raw
        self._pending: dict[Request, None] = {}  # in order
        self._sweep_at = 16
        self._error: Exception | None = None  # the first one of requests that were swept
        self._closed = False
        self.rank: int = raw.rank
        self.size: int = raw.size
        self.local_rank: int = raw.local_rank
        self.local_size: int = raw.local_size
        self.cross_rank: int = raw.cross_rank
        self.cross_size: int = raw.cross_size
        _open.add(self)

    @classmethod
    def _wrap(cls, raw: _core.Comm) -> Communicator:
        comm = cls.__new__(cls)
        comm._set(raw)
        return comm

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        return f"<hora.Communicator: rank {self.rank} of {self.size}{state}>"

    # ---- The way of every call -------------------------------------------------------------------

    def _run(
        self,
        call: str,
        x: Any,
        out: Any,
        make: Callable[[Shape], Shape] | None = None,
        op: int = 0,
        root: int = 0,
        tag: int = 0,
        counts: Sequence[int] | None = None,
        out_counts: Sequence[int] | None = None,
        prescale: float = 1.0,
        postscale: float = 1.0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """make: the shape of the result from that of x, for when there is no out."""
        kind: Kind | None = kind_of(x) if x is not None else None
        given, source, target = out, None, None
        dtype = out_dtype = -1
        if out is None and make is not None and kind is not None:
            out = kind.empty(x, make(kind.shape(x)))
        if out is not None:
            target, out_dtype = kind_of(out).write(out)
        if out is x:
            source, dtype = target, out_dtype
        elif kind is not None:
            source, dtype = kind.read(x)
            if out is not None and dtype != out_dtype:
                raise ValueError(f"{call}: input and output are of different element types")
        started = self._raw.call(
            _CALL[call], source, target, dtype if kind is not None else out_dtype, counts,
            out_counts, op, root, tag, prescale, postscale, timeout, name, async_op,
        )  # fmt: skip
        if not async_op:
            return out if given is out or kind is None else kind.give(x, out)
        give = (lambda: out) if given is out or kind is None else (lambda: kind.give(x, out))
        return self._track(Request(self, started, give))

    def _track(self, request: Request) -> Request:
        """Requests live here until they are done, whatever the program does with them."""
        self._pending[request] = None
        if len(self._pending) >= self._sweep_at:
            for pending in tuple(self._pending):
                if pending.test():
                    pending._finish()
                    self._error = self._error or pending._error
            self._sweep_at = 2 * len(self._pending) + 16
        return request

    # ---- Reductions ------------------------------------------------------------------------------

    def allreduce(
        self,
        x: Any,
        out: Any = None,
        op: Op | int | str = Op.SUM,
        *,
        prescale: float = 1.0,
        postscale: float = 1.0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """The reduction of all ranks' x, element by element, on every rank.

        :param out: where the result goes; ``out=x``: in place.
        :param prescale: each input is multiplied by it first.
        :param postscale: the result is multiplied by it last.
        :param timeout: seconds; 0: the communicator's.
        :param name: for error messages.
        :param async_op: return a :class:`Request` at once; its ``wait`` returns the result.
        """
        return self._run("allreduce", x, out, _same, to_op(op), prescale=prescale,
                         postscale=postscale, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def reduce(
        self,
        x: Any,
        out: Any = None,
        op: Op | int | str = Op.SUM,
        *,
        root: int = 0,
        prescale: float = 1.0,
        postscale: float = 1.0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """As :meth:`allreduce`, on rank root only; the others get None; their out is ignored."""
        here = self.rank == root
        return self._run("reduce", x, out if here else None, _same if here else None, to_op(op),
                         root, prescale=prescale, postscale=postscale, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def reduce_scatter(
        self,
        x: Any,
        out: Any = None,
        op: Op | int | str = Op.SUM,
        *,
        prescale: float = 1.0,
        postscale: float = 1.0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """Block ``rank`` of the reduction of all ranks' x, which is cut into ``size`` equal blocks.
        In place: out is that block of x."""
        return self._run("reduce_scatter", x, out, self._one_block("reduce_scatter"), to_op(op),
                         prescale=prescale, postscale=postscale, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def reduce_scatterv(
        self,
        x: Any,
        out: Any = None,
        op: Op | int | str = Op.SUM,
        *,
        counts: Sequence[int],
        prescale: float = 1.0,
        postscale: float = 1.0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """As :meth:`reduce_scatter`, with ``counts[r]`` rows for rank r."""
        return self._run("reduce_scatterv", x, out,
                         lambda shape: _with_rows(shape, self._mine(counts)), to_op(op),
                         counts=counts, prescale=prescale, postscale=postscale, timeout=timeout,
                         name=name, async_op=async_op)  # fmt: skip

    # ---- Movement --------------------------------------------------------------------------------

    def _mine(self, counts: Sequence[int]) -> int:
        if len(counts) != self.size:
            raise ValueError(f"{len(counts)} counts for {self.size} ranks")
        return counts[self.rank]

    def _one_block(self, call: str) -> Callable[[Shape], Shape]:
        def shape(whole: Shape) -> Shape:
            if _rows(whole) % self.size:
                raise ValueError(
                    f"{call}: {_rows(whole)} rows cannot be divided among {self.size} ranks"
                )
            return _with_rows(whole, _rows(whole) // self.size)

        return shape

    def _all_blocks(self, shape: Shape) -> Shape:
        return _with_rows(shape, _rows(shape) * self.size)

    def broadcast(
        self,
        x: Any,
        out: Any = None,
        *,
        root: int = 0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """Root's x on every rank; the other ranks' x tells size and type. ``out=x``: in place."""
        return self._run("broadcast", x, out, _same, 0, root, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def allgather(
        self,
        x: Any,
        out: Any = None,
        *,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """All ranks' x, of equal shapes, one after the other. In place: x is that block of out."""
        return self._run("allgather", x, out, self._all_blocks, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def allgatherv(
        self,
        x: Any,
        out: Any = None,
        *,
        counts: Sequence[int] | None = None,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """As :meth:`allgather`, with ``counts[r]`` rows from rank r. Without counts the ranks tell
        each other how many rows they have, in a small allgather before."""
        if counts is None:
            counts = self.allgather(array.array("q", [_rows(kind_of(x).shape(x))]))
        total = sum(counts)
        return self._run("allgatherv", x, out, lambda shape: _with_rows(shape, total),
                         counts=counts, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def alltoall(
        self,
        x: Any,
        out: Any = None,
        *,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """Block r of x goes to rank r; block r of the result came from rank r. Not in place."""
        self._one_block("alltoall")(kind_of(x).shape(x))
        return self._run("alltoall", x, out, _same, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def alltoallv(
        self,
        x: Any,
        out: Any = None,
        *,
        counts: Sequence[int],
        out_counts: Sequence[int] | None = None,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """As :meth:`alltoall`, with ``counts[r]`` rows to rank r and ``out_counts[r]`` rows from
        it. Without out_counts the ranks tell each other, in a small alltoall before."""
        self._mine(counts)
        if out_counts is None:
            out_counts = self.alltoall(array.array("q", counts))
        total = sum(out_counts)
        return self._run("alltoallv", x, out, lambda shape: _with_rows(shape, total),
                         counts=counts, out_counts=out_counts, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def gather(
        self,
        x: Any,
        out: Any = None,
        *,
        root: int = 0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """As :meth:`allgather`, on rank root only; the others get None; their out is ignored."""
        here = self.rank == root
        return self._run("gather", x, out if here else None, self._all_blocks if here else None,
                         0, root, timeout=timeout, name=name, async_op=async_op)  # fmt: skip

    def scatter(
        self,
        x: Any = None,
        out: Any = None,
        *,
        root: int = 0,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """Block r of root's x on rank r. The other ranks need no x, but they need out."""
        here = self.rank == root
        if not here and out is None:
            raise ValueError("scatter: ranks other than root must say where their block goes (out)")
        return self._run("scatter", x if here else None, out, self._one_block("scatter"), 0, root,
                         timeout=timeout, name=name, async_op=async_op)  # fmt: skip

    def barrier(
        self, *, timeout: float = 0.0, name: str | None = None, async_op: bool = False
    ) -> Request | None:
        """Returns when every rank has called it."""
        return self._run("barrier", None, None, timeout=timeout, name=name, async_op=async_op)

    def send(
        self,
        x: Any,
        dest: int,
        tag: int = 0,
        *,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Request | None:
        """Sends x to rank dest, which receives it by the same tag."""
        return self._run("send", x, None, None, 0, dest, tag, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    def recv(
        self,
        out: Any,
        source: int,
        tag: int = 0,
        *,
        timeout: float = 0.0,
        name: str | None = None,
        async_op: bool = False,
    ) -> Any:
        """Receives into out, which must be of the size that rank source sends; returns out."""
        return self._run("recv", None, out, None, 0, source, tag, timeout=timeout, name=name,
                         async_op=async_op)  # fmt: skip

    # ---- About it --------------------------------------------------------------------------------

    def split(self, color: int, key: int = 0) -> Communicator | None:
        """A new communicator of the ranks that pass the same color (>= 0), ordered by key, then by
        rank. A negative color takes part and gets None. Collective."""
        raw = self._raw.split(color, key)
        return None if raw is None else Communicator._wrap(raw)

    def alloc(self, shape: int | Sequence[int], dtype: Any = "float32") -> _core.Array:
        """An uninitialised array in memory that the ranks of this host share: collectives on it
        copy less. ``numpy.asarray``, ``torch.from_dlpack`` and their like make views of it; the
        memory is freed with the last view, also after ``close``."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return self._raw.alloc(shape, to_dtype_name(dtype))

    def host(self, rank: int | None = None) -> str:
        """Name of a rank's host."""
        return self._raw.host(self.rank if rank is None else rank)

    def transport(self, rank: int) -> str:
        """What carries bytes to a rank: "shm", "tcp", "mpi" or "self"."""
        return self._raw.transport(rank)

    def check(self) -> None:
        """Raises the error that ended this communicator, if one has. Does not wait."""
        self._raw.check()

    # ---- The end ---------------------------------------------------------------------------------

    def abort(self, reason: str | None = None) -> None:
        """Ends every operation, now and later, on every rank, with the reason. On a communicator of
        all ranks it ends the whole job; on one of ``split``, only that one. Any thread."""
        self._raw.abort(reason)

    def close(self) -> None:
        """Waits for operations in flight and leaves; raises their first error. Idempotent."""
        if self._closed:
            return
        error = self._drain()
        self._raw.close()
        self._closed = True
        if error is not None:
            raise error

    def _drain(self) -> Exception | None:
        error, self._error = self._error, None
        while self._pending:
            request = next(iter(self._pending))
            request._finish()
            error = error or request._error
        return error

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes; after an exception, tells the other ranks of it first (``abort``)."""
        if value is None or (isinstance(value, SystemExit) and not value.code):
            self.close()
        else:
            self._end(value)

    def _end(self, value: BaseException) -> None:
        """Leaves because of an exception, which is what counts now."""
        with contextlib.suppress(Exception):
            if not self._closed:
                self.abort(f"{type(value).__name__}: {value}")
                self.close()

    def __del__(self) -> None:
        """Dropped without ``close``: leaves. Nobody can wait for operations in flight any more."""
        if not getattr(self, "_closed", True) and self._pending:
            with contextlib.suppress(Exception):
                self.abort("a communicator was dropped with operations in flight")
                self.close()


@atexit.register
def _close_all() -> None:
    """Leaves the job in order when Python ends, and says why if an exception ends it."""
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    for comm in list(_open):
        if error is not None:
            comm._end(error)
        else:
            with contextlib.suppress(Exception):
                comm.close()
