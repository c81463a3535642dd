"""SyncBatchNorm: batch normalization with the statistics of all ranks' batches together.

Works on tensors of any device that torch can compute on. Statistics stay on a CUDA device, where the
host does not wait for them; those of other devices travel through CPU memory.
Ranks may have batches of different sizes, also empty ones. There is one allgather in the forward
pass and one allreduce in the backward pass; gradients of weight and bias are this rank's own share,
which the distributed optimizer reduces as those of all parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from hora.common.process_sets import ProcessSet, global_process_set
from hora.torch._process_set import ProcessSetReference
from hora.torch.mpi_ops import Sum, allgather, allreduce

__all__ = ["SyncBatchNorm"]


class SyncBatchNorm(_BatchNorm):
    """``torch.nn.BatchNorm1d``, ``2d`` and ``3d`` in one, over the batches of all ranks.

    Arguments are those of ``torch.nn.BatchNorm2d``; ``process_set``: the ranks whose batches belong
    together. Without running statistics (``track_running_stats=False``) the batches' statistics are
    used, and ranks wait for each other, in evaluation too, as in Horovod.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_set: ProcessSet = global_process_set,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype
        )
        self._process_set = ProcessSetReference(process_set)

    @property
    def process_set(self) -> ProcessSet:
        return self._process_set.process_set

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")
        if input.shape[1] != self.num_features:
            raise ValueError(
                f"expected input with {self.num_features} channels (got {input.shape[1]})"
            )

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.running_mean is not None:
            return super().forward(input)
        if torch.compiler.is_compiling():
            return _outside_of_graphs(self, input)
        return self._forward_together(input)

    def _forward_together(self, input: Tensor) -> Tensor:
        if self.process_set.size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, count = _everyones_statistics(input, self.process_set)
        if self.training and self.track_running_stats and self.running_mean is not None:
            self._track(mean, var, count)
        return _Normalize.apply(
            input, self.weight, self.bias, mean, var, count, self.eps, self.process_set
        )

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        factor = self.momentum
        if factor is None:  # the average of all batches so far
            factor = 1.0 / float(self.num_batches_tracked)
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean), factor)
        self.running_var.lerp_(unbiased.to(self.running_var), factor)

    @classmethod
    def convert_sync_batchnorm(
        cls, module: torch.nn.Module, process_set: ProcessSet = global_process_set
    ) -> torch.nn.Module:
        """Replaces all BatchNorm layers in the model, which keep their parameters and statistics.
        Returns the model, or the new layer if it is a BatchNorm layer itself."""
        result = module
        if isinstance(module, _BatchNorm) and not isinstance(module, SyncBatchNorm):
            result = cls._like(module, process_set)
        for name, child in module.named_children():
            result.add_module(name, cls.convert_sync_batchnorm(child, process_set))
        return result

    @classmethod
    def _like(cls, module: _BatchNorm, process_set: ProcessSet) -> SyncBatchNorm:
        if any(torch.nn.parameter.is_lazy(p) for p in module.parameters()):
            raise ValueError("a lazy BatchNorm layer has to see an input before it is converted")
        result = cls(
            module.num_features, module.eps, module.momentum, module.affine,
            module.track_running_stats, process_set,
        )  # fmt: skip
        result.weight, result.bias = module.weight, module.bias
        result.running_mean, result.running_var = module.running_mean, module.running_var
        result.num_batches_tracked = module.num_batches_tracked
        result.training = module.training
        if hasattr(module, "qconfig"):
            result.qconfig = module.qconfig
        return result


def _wide(tensor: Tensor) -> torch.dtype:
    """The type to compute in: halves would lose the statistics."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _channels(vector: Tensor, like: Tensor) -> Tensor:
    """A value per channel, in the shape that spreads over a tensor's channels."""
    return vector.view(1, -1, *[1] * (like.dim() - 2))


def _place(tensor: Tensor) -> torch.device:
    """Where its statistics travel."""
    return tensor.device if tensor.is_cuda else torch.device("cpu")


# A compiled model is cut here: collectives cannot be traced.
_outside_of_graphs = _disable_dynamo(SyncBatchNorm._forward_together)


@torch.no_grad()
def _everyones_statistics(
    input: Tensor, process_set: ProcessSet
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance per channel (float64, biased) and number of values of all ranks' batches.

    Ranks exchange their mean and their sum of squared distances from it, which loses nothing where
    the mean is large; in float64, because there are few numbers.
    """
    channels = input.shape[1]
    count = input.numel() // channels if channels else 0
    mine = torch.zeros(1, 2 * channels + 1, dtype=torch.float64, device=_place(input))
    mine[0, 0] = count
    if count:
        dims = [0, *range(2, input.dim())]
        var, mean = torch.var_mean(input.to(_wide(input)), dims, correction=0)
        mine[0, 1 : channels + 1] = mean
        mine[0, channels + 1 :] = var.double() * count
    everyone = allgather(mine, name="sync_batch_norm.statistics", process_set=process_set)
    counts, means, squares = everyone.split([1, channels, channels], dim=1)
    total = counts.sum()
    if count <= 1 and total.item() <= 1:  # asked last: on a GPU the host has to wait for it
        raise ValueError(
            "Expected more than 1 value per channel when training, got input size "
            f"{tuple(input.shape)} and {int(total)} value(s) per channel on all ranks together"
        )
    mean = (means * counts).sum(dim=0) / total
    var = (squares + (means - mean).square() * counts).sum(dim=0) / total
    return mean.to(input.device), var.to(input.device), total.to(input.device)


def _sum_of_all(vector: Tensor, process_set: ProcessSet) -> Tensor:
    name = "sync_batch_norm.gradients"
    summed = allreduce(vector.to(_place(vector)), name=name, op=Sum, process_set=process_set)
    return summed.to(vector.device)


class _Normalize(torch.autograd.Function):
    """(input - mean) / sqrt(var + eps) * weight + bias, where mean and var are those of all ranks'
    inputs, so that every rank's gradient has part in every other's."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor,
        var: Tensor, count: Tensor, eps: float, process_set: ProcessSet,
    ) -> Tensor:  # fmt: skip
        wide = _wide(input)
        inverse = (var + eps).rsqrt()
        ctx.save_for_backward(input, weight, mean.to(wide), inverse.to(wide))
        ctx.count, ctx.process_set = count, process_set
        ctx.bias_type = None if bias is None else bias.dtype
        result = (input.to(wide) - _channels(mean.to(wide), input)).mul_(
            _channels((inverse if weight is None else inverse * weight).to(wide), input)
        )
        if bias is not None:
            result.add_(_channels(bias.to(wide), input))
        return result.to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight, mean, inverse = ctx.saved_tensors
        wide = mean.dtype
        dims = [0, *range(2, input.dim())]
        grad = grad.to(wide)
        normal = (input.to(wide) - _channels(mean, input)).mul_(_channels(inverse, input))
        sums = torch.cat([grad.sum(dims), (grad * normal).sum(dims)])
        grad_bias, grad_weight = sums.chunk(2)
        grad_input = None
        if ctx.needs_input_grad[0]:
            # Sums over all ranks: how the common mean and variance depend on each input.
            means = _sum_of_all(sums, ctx.process_set) / ctx.count
            of_mean, of_variance = (_channels(part, input) for part in means.chunk(2))
            scale = inverse if weight is None else inverse * weight
            grad_input = (grad - of_mean).sub_(normal.mul_(of_variance))
            grad_input = grad_input.mul_(_channels(scale.to(wide), input)).to(input.dtype)
        if not ctx.needs_input_grad[1]:
            grad_weight = None
        else:
            grad_weight = grad_weight.to(weight.dtype)
        grad_bias = grad_bias.to(ctx.bias_type) if ctx.needs_input_grad[2] else None
        return grad_input, grad_weight, grad_bias, None, None, None, None, None
