"""The collectives on tensors, with Horovod's names, arguments and results.

Tensors are in CPU memory or on a CUDA device, the same one for all of a rank's; an operation's are on a
device on all ranks or on none. On a device, operations come after what is queued on the current
stream, and ``synchronize``, like the forms that block, makes the stream that is current then wait for
the result: the host waits until the work is queued, not until it has run. The memory of results that are
made here (allgather, alltoall, reducescatter) is hora's: what reads one on a third stream, ``record_stream``
tells nobody of; let one of those two streams wait for it before the result is dropped.

hora takes what Horovod refuses where it is safe: tensors that are not
contiguous are copied (and the result copied back when the operation is in place), and reductions
work on all of hora's types. ``hora.torch._ops.start`` says how operations are named.
"""

from __future__ import annotations

from hora import _core
from hora.common.basics import (
    HorovodBasics, ccl_built, cross_rank, cross_size, cuda_built, ddl_built, gloo_built,
    gloo_enabled, init, is_homogeneous, is_initialized, local_rank, local_size, mpi_built,
    mpi_enabled, mpi_threads_supported, nccl_built, rank, rocm_built, shutdown, size,
    start_timeline, stop_timeline,
)  # fmt: skip
from hora.common.exceptions import HorovodInternalError
from hora.common.process_sets import (
    ProcessSet, add_process_set, global_process_set, remove_process_set,
)  # fmt: skip
from hora.common.util import choose_op, num_rank_is_power_2
from hora.torch._ops.allgather import (
    allgather, allgather_async, grouped_allgather, grouped_allgather_async,
)  # fmt: skip
from hora.torch._ops.allreduce import (
    allreduce, allreduce_, allreduce_async, allreduce_async_, grouped_allreduce,
    grouped_allreduce_, grouped_allreduce_async, grouped_allreduce_async_,
)  # fmt: skip
from hora.torch._ops.alltoall import alltoall, alltoall_async
from hora.torch._ops.broadcast import broadcast, broadcast_, broadcast_async, broadcast_async_
from hora.torch._ops.reducescatter import (
    grouped_reducescatter, grouped_reducescatter_async, reducescatter, reducescatter_async,
)  # fmt: skip
from hora.torch._ops.sparse import sparse_allreduce_async
from hora.torch._ops.start import barrier, join, operations as _operations, poll, synchronize
from hora.torch.compression import Compression

__all__ = [
    "Adasum", "Average", "Compression", "HorovodInternalError", "Max", "Min", "ProcessSet",
    "Product", "Sum", "add_process_set", "allgather", "allgather_async", "allreduce",
    "allreduce_", "allreduce_async", "allreduce_async_", "alltoall", "alltoall_async", "barrier",
    "broadcast", "broadcast_", "broadcast_async", "broadcast_async_", "ccl_built", "choose_op",
    "cross_rank", "cross_size", "cuda_built", "ddl_built", "global_process_set", "gloo_built",
    "gloo_enabled", "grouped_allgather", "grouped_allgather_async", "grouped_allreduce",
    "grouped_allreduce_", "grouped_allreduce_async", "grouped_allreduce_async_",
    "grouped_reducescatter", "grouped_reducescatter_async", "init", "is_homogeneous",
    "is_initialized", "join", "local_rank", "local_size", "mpi_built", "mpi_enabled",
    "mpi_threads_supported", "nccl_built", "num_rank_is_power_2", "poll", "rank",
    "reducescatter", "reducescatter_async", "remove_process_set", "rocm_built", "shutdown",
    "size", "sparse_allreduce_async", "start_timeline", "stop_timeline", "synchronize",
]  # fmt: skip

Average = _core.AVERAGE
Sum = _core.SUM
Adasum = _core.ADASUM
Min = _core.MIN
Max = _core.MAX
Product = _core.PRODUCT

_basics = HorovodBasics(__file__, "mpi_lib_v2")
