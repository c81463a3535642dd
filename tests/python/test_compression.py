"""Compression: which types travel as what, and what comes back."""

from __future__ import annotations

import sys
from typing import Any

import ranks
import torch
from test_ops import fails, same

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [torch.int32, torch.int64, torch.uint8, torch.bool]


def case_what_travels(hvd: Any) -> None:
    for compression, small in (
        (hvd.Compression.fp16, torch.float16),
        (hvd.Compression.bf16, torch.bfloat16),
    ):
        for dtype in FLOATS:
            tensor = torch.tensor([1.0, -2.5, 0.0]).to(dtype)
            sent, context = compression.compress(tensor)
            assert sent.dtype == (small if dtype.itemsize > 2 else dtype)
            same(compression.decompress(sent, context), tensor)
        for dtype in OTHERS:
            tensor = torch.tensor([1, 0, 1]).to(dtype)
            sent, context = compression.compress(tensor)
            assert sent is tensor
            same(compression.decompress(sent, context), tensor)
    tensor = torch.ones(3)
    sent, context = hvd.Compression.none.compress(tensor)
    assert sent is tensor and hvd.Compression.none.decompress(sent, context) is tensor


def case_in_the_operations(hvd: Any) -> None:
    size, me = hvd.size(), hvd.rank()
    for compression in (hvd.Compression.none, hvd.Compression.fp16, hvd.Compression.bf16):
        for dtype in (torch.float32, torch.float64, torch.int32):
            x = (torch.arange(8) + me).to(dtype)
            total = (torch.arange(8) * size + size * (size - 1) // 2).to(dtype)
            same(hvd.allreduce(x, op=hvd.Sum, compression=compression), total)
            for part in hvd.grouped_allreduce([x, x], op=hvd.Sum, compression=compression):
                same(part, total)
            at = [len(rows) for rows in torch.arange(8).tensor_split(size)]
            mine = slice(sum(at[:me]), sum(at[: me + 1]))
            same(hvd.reducescatter(x, op=hvd.Sum, compression=compression), total[mine])


def case_range_of_the_types(hvd: Any) -> None:
    """float16 cannot hold 1e5; bfloat16 can, and rounds it."""
    x = torch.full((3,), 1e5)
    assert hvd.allreduce(x, compression=hvd.Compression.fp16).isinf().all()
    got = hvd.allreduce(x, compression=hvd.Compression.bf16)
    same(got, x.bfloat16().float())


def case_compression_of_ones_own(hvd: Any) -> None:
    class Halved(hvd.Compression.none):
        @staticmethod
        def compress(tensor: torch.Tensor) -> tuple[torch.Tensor, Any]:
            return tensor / 2, "halved"

        @staticmethod
        def decompress(tensor: torch.Tensor, ctx: Any) -> torch.Tensor:
            assert ctx == "halved"
            return tensor * 2

    same(hvd.allreduce(torch.ones(3), compression=Halved), torch.ones(3))
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = hvd.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), compression=Halved)
    (p * (hvd.rank() + 1)).sum().backward()
    optimizer.step()
    same(p.detach(), torch.full((3,), -(hvd.size() + 1) / 2))


def case_base_class(hvd: Any) -> None:
    from hora.torch.compression import Compressor

    fails(NotImplementedError, lambda: Compressor.compress(torch.ones(1)))
    fails(NotImplementedError, lambda: Compressor.decompress(torch.ones(1), None))
    for kind in (hvd.Compression.none, hvd.Compression.fp16, hvd.Compression.bf16):
        assert issubclass(kind, Compressor)


# ---- the tests -----------------------------------------------------------------------------------

test_compression = ranks.case_test(sys.modules[__name__], [1, 3])
