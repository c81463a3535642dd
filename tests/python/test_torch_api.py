"""hora.torch has every name that horovod.torch exports, with the same parameters and defaults.

Parameters that hora adds come after Horovod's, so that positional calls mean the same.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any
from unittest import mock

import hora.torch as hvd
import pytest

NONE = hvd.Compression.none
ALL = hvd.global_process_set
AVERAGE = hvd.Average
REQUIRED = inspect.Parameter.empty

SCALES = [("prescale_factor", 1.0), ("postscale_factor", 1.0)]
SET = [("process_set", ALL)]
OP = [("average", None), ("name", None)]


def allreduce(first: str, compression: bool) -> list[tuple[str, Any]]:
    middle = [("compression", NONE)] if compression else []
    return [(first, REQUIRED), *OP, *middle, ("op", None), *SCALES, *SET]


def reducescatter(first: str, compression: bool) -> list[tuple[str, Any]]:
    middle = [("compression", NONE)] if compression else []
    return [(first, REQUIRED), ("name", None), *middle, ("op", AVERAGE), *SET, *SCALES]


def with_root(name: str) -> list[tuple[str, Any]]:
    return [(name, REQUIRED), ("root_rank", REQUIRED)]


BROADCAST = [*with_root("tensor"), ("name", None), *SET]
ALLTOALL = [("tensor", REQUIRED), ("splits", None), ("name", None), *SET]
ALLGATHER = [("tensor", REQUIRED), ("name", None), *SET]
GROUPED_ALLGATHER = [("tensors", REQUIRED), ("name", None), *SET]

SIGNATURES: dict[str, list[tuple[str, Any]]] = {
    "allreduce": allreduce("tensor", True),
    "allreduce_async": allreduce("tensor", False),
    "allreduce_": allreduce("tensor", False),
    "allreduce_async_": allreduce("tensor", False),
    "grouped_allreduce": allreduce("tensors", True),
    "grouped_allreduce_async": allreduce("tensors", False),
    "grouped_allreduce_": allreduce("tensors", False),
    "grouped_allreduce_async_": allreduce("tensors", False),
    "sparse_allreduce_async": [("tensor", REQUIRED), ("name", REQUIRED), ("op", REQUIRED), *SET],
    "allgather": ALLGATHER,
    "allgather_async": ALLGATHER,
    "grouped_allgather": GROUPED_ALLGATHER,
    "grouped_allgather_async": GROUPED_ALLGATHER,
    "broadcast": BROADCAST,
    "broadcast_async": BROADCAST,
    "broadcast_": BROADCAST,
    "broadcast_async_": BROADCAST,
    "alltoall": ALLTOALL,
    "alltoall_async": ALLTOALL,
    "reducescatter": reducescatter("tensor", True),
    "reducescatter_async": reducescatter("tensor", False),
    "grouped_reducescatter": reducescatter("tensors", True),
    "grouped_reducescatter_async": reducescatter("tensors", False),
    "join": [("device", -1)],
    "barrier": SET,
    "poll": [("handle", REQUIRED)],
    "synchronize": [("handle", REQUIRED)],
    "init": [("comm", None), ("process_sets", None)],
    "shutdown": [],
    "start_timeline": [("file_path", REQUIRED), ("mark_cycles", False)],
    "stop_timeline": [],
    "broadcast_parameters": [("params", REQUIRED), ("root_rank", REQUIRED)],
    "broadcast_optimizer_state": [*with_root("optimizer"), ("model", None)],
    "broadcast_object": [("obj", REQUIRED), ("root_rank", 0), ("name", None), *SET],
    "allgather_object": [("obj", REQUIRED), ("name", None)],
    "DistributedOptimizer": [
        ("optimizer", REQUIRED), ("named_parameters", None), ("compression", NONE),
        ("backward_passes_per_step", 1), ("op", AVERAGE), ("gradient_predivide_factor", 1.0),
        ("num_groups", 0), ("groups", None), ("sparse_as_dense", False), *SET,
    ],
    "SyncBatchNorm": [
        ("num_features", REQUIRED), ("eps", 1e-5), ("momentum", 0.1), ("affine", True),
        ("track_running_stats", True),
    ],
    "ProcessSet": [("ranks_or_comm", REQUIRED)],
    "add_process_set": [("process_set", REQUIRED)],
    "remove_process_set": [("process_set", REQUIRED)],
}  # fmt: skip

# Taken without arguments; those of the extension tell inspect nothing.
NO_ARGUMENTS = [
    "is_initialized", "size", "local_size", "cross_size", "rank", "local_rank", "cross_rank",
    "mpi_threads_supported", "mpi_enabled", "mpi_built", "gloo_enabled", "gloo_built",
    "nccl_built", "ddl_built", "ccl_built", "cuda_built", "rocm_built",
]  # fmt: skip

VALUES = {"Average": 0, "Sum": 1, "Adasum": 2, "Min": 3, "Max": 4, "Product": 5}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    parameters = list(inspect.signature(getattr(hvd, name)).parameters.values())
    wanted = SIGNATURES[name]
    assert [(p.name, p.default) for p in parameters[: len(wanted)]] == wanted
    for extra in parameters[len(wanted) :]:
        assert extra.default is not REQUIRED, f"{extra.name} would break Horovod's calls"
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    assert all(p.kind in positional for p in parameters[: len(wanted)])


@pytest.mark.parametrize("name", NO_ARGUMENTS)
def test_takes_no_arguments(name: str) -> None:
    function = getattr(hvd, name)
    with pytest.raises(TypeError):
        function(1)


def test_operations_are_horovods_numbers() -> None:
    for name, value in VALUES.items():
        assert getattr(hvd, name) == value


def test_everything_else() -> None:
    assert issubclass(hvd.HorovodInternalError, RuntimeError)
    assert hvd.Compression.fp16 is not hvd.Compression.none
    assert isinstance(hvd.global_process_set, hvd.ProcessSet)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        hvd.no_such_name


def test_all_names_what_is_there() -> None:
    for name in [*SIGNATURES, *NO_ARGUMENTS, *VALUES, "Compression", "HorovodInternalError"]:
        assert name in hvd.__all__
    for name in hvd.__all__:
        assert getattr(hvd, name) is not None


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("mpi_ops", [*VALUES, "allreduce_async_", "synchronize", "size", "is_homogeneous", "init"]),
        ("compression", ["Compression", "Compressor", "NoneCompressor", "FP16Compressor"]),
        ("functions", ["broadcast_parameters", "broadcast_object", "allgather_object"]),
        ("optimizer", ["DistributedOptimizer", "_DistributedOptimizer"]),
        ("sync_batch_norm", ["SyncBatchNorm"]),
    ],
)
def test_modules(module: str, names: list[str]) -> None:
    found = importlib.import_module(f"hora.torch.{module}")
    for name in names:
        assert hasattr(found, name), f"{module}.{name}"


def test_optimizer_has_horovods_methods() -> None:
    from hora.torch.optimizer import _DistributedAdasumOptimizer, _DistributedOptimizer

    for kind in (_DistributedOptimizer, _DistributedAdasumOptimizer):
        for name in (
            "synchronize", "skip_synchronize", "set_backward_passes_per_step", "step", "zero_grad",
        ):  # fmt: skip
            assert callable(getattr(kind, name))
        assert list(inspect.signature(kind.step).parameters) == ["self", "closure"]


def test_a_temporary_is_kept_for_the_stream_that_reads_it() -> None:
    """On a GPU, where synchronize may run on another stream than the enqueue."""
    from hora.torch._ops.start import copy_back

    source, target = mock.Mock(is_cuda=True), mock.Mock()
    with mock.patch("torch.cuda.current_stream", return_value="here"):
        assert copy_back(target, source) is target
    source.record_stream.assert_called_once_with("here")
    target.copy_.assert_called_once_with(source)


def test_a_torch_that_is_too_old_is_refused() -> None:
    """Before 2.10, torch.Tensor had none of DLPack's C functions."""
    from hora import _core

    with pytest.raises(ImportError, match="needs torch 2.11 or later"):
        _core.tensors(type("Tensor", (), {}), None, {}, None)
