"""DistributedOptimizer: averages gradients over the ranks while the backward pass still runs.

A hook on each parameter starts its allreduce as soon as its gradient is complete; ``step()`` waits
for all of them. Hooks run on a thread of autograd's for each GPU, and on the caller's for the CPU.
Parameters whose hook did not run in this step on this rank (unused, or fewer backward passes) are
reduced by ``step()`` with the gradient that they have, zero if none: so ranks may use different
parts of a model, and an unused parameter has a gradient of zero, not None, after.
Parameters that the caller froze or thawed after wrapping must be the same ones on all ranks.
"""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
import weakref
import zlib
from typing import Any, Callable, Iterable, Iterator, Sequence

import torch

from hora.common import basics
from hora.common.process_sets import ProcessSet, global_process_set, set_id
from hora.common.util import split_list
from hora.torch._adasum_optimizer import _DistributedAdasumOptimizer
from hora.torch._buckets import Buckets, Group, by_type, divide
from hora.torch._wrapping import Wrapping, check_names, wrap
from hora.torch._ops.start import copy_back, read_here
from hora.torch.compression import Compression, Compressor
from hora.torch.functions import broadcast_object
from hora.torch.mpi_ops import (
    Adasum, Average, HorovodInternalError, allreduce_async_, grouped_allreduce_async_,
    is_initialized, size, sparse_allreduce_async, synchronize,
)  # fmt: skip

__all__ = ["DistributedOptimizer"]

# Gradients in one bucket, with gradient_as_bucket_view and without groups; as DDP has it.
_BUCKET_BYTES = 25 << 20

# So many steps in a row that come too early for backward_passes_per_step are a mistake.
_EARLY_STEPS = 3


_living: weakref.WeakSet[_DistributedOptimizer] = weakref.WeakSet()


def _begin_again() -> None:
    for optimizer in list(_living):
        optimizer._leave_buckets()
    if is_initialized():  # it has begun, and not ended
        for optimizer in list(_living):
            optimizer._begin_again()


basics.on_reset(_begin_again)


def _is_elastic() -> bool:
    return "1" in (os.environ.get("HORA_ELASTIC"), os.environ.get("HOROVOD_ELASTIC"))


class _DistributedOptimizer(Wrapping):
    """Goes in front of the wrapped optimizer's class; shares its state with the wrapped one."""

    # ---- Setting up ------------------------------------------------------------------------------

    def _distribute(
        self,
        named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
        compression: type[Compressor],
        backward_passes_per_step: int,
        op: int,
        gradient_predivide_factor: float,
        groups: int | Sequence[Sequence[torch.Tensor]] | None,
        sparse_as_dense: bool,
        gradient_as_bucket_view: bool,
        process_set: ProcessSet,
    ) -> None:
        self._compression = compression
        self._parameter_names = check_names(self.param_groups, named_parameters)
        self.backward_passes_per_step = backward_passes_per_step
        self._allreduce_delay = dict.fromkeys(self._parameter_names, backward_passes_per_step)
        self.op = op
        self.gradient_predivide_factor = gradient_predivide_factor
        self.sparse_as_dense = sparse_as_dense
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.process_set = process_set
        # Parameter or group -> (what to wait for, compression context(s)); (None, None) for a
        # parameter that waits for more backward passes or for the rest of its group.
        self._handles: dict[Any, tuple[Any, Any]] = {}
        self._requires_update: dict[torch.Tensor, None] = {}  # in order
        self._frozen: list[torch.Tensor] = []  # parameters that need no gradient so far
        self._sparse: dict[torch.Tensor, int] = {}  # sparse_dim of gradients that were sparse
        self._early_steps = 0
        self._synchronized = False
        self._should_synchronize = True
        self._groups: dict[torch.Tensor, Group] = {}
        self._bucketed: dict[Group, None] = {}  # groups whose gradients are to lie in a bucket
        self._buckets = Buckets(())  # made when the first gradient is there
        # A group's first parameter -> the streams that its gradients were made on. The hash of a group
        # is that of all its members, and not for each of their hooks.
        self._streams: dict[torch.Tensor, set[torch.cuda.Stream]] = {}
        self._group_lock = threading.Lock()  # hooks of one group may run on several threads
        self._hooks: list[Any] = []
        self._active = self._has_work()
        self._group_count = 0  # groups that are to be made when this rank becomes a member
        if groups is not None:
            # In an elastic job those who came earlier have wrapped theirs: nobody would answer.
            self._make_groups(groups, ask=not _is_elastic())
        self._choose_buckets(ask=not _is_elastic())
        for group in self.param_groups:
            self._register_hooks(group["params"])
        _living.add(self)

    def _has_work(self) -> bool:
        return bool((size() > 1 or _is_elastic()) and self.process_set.included())

    def _begin_again(self) -> None:
        """A new job: this rank may be in the process set now, or not any more. Parameters have
        hooks only while there is work for them, so that hooks need not ask."""
        self._active = self._has_work()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._requires_update, self._frozen = [], {}, []
        self._forget_progress()
        if self._active and self._group_count:
            self._make_groups(self._group_count)
        self._choose_buckets()
        for group in self.param_groups:
            self._register_hooks(group["params"])

    def _options(self) -> dict[str, Any]:
        groups = [list(group) for group in dict.fromkeys(self._groups.values())]
        return super()._options() | {
            "op": self.op,
            "gradient_predivide_factor": self.gradient_predivide_factor,
            "groups": groups or self._group_count or None,
            "sparse_as_dense": self.sparse_as_dense,
            "gradient_as_bucket_view": self.gradient_as_bucket_view,
        }

    def _make_groups(
        self, groups: int | Sequence[Sequence[torch.Tensor]], ask: bool = False
    ) -> None:
        mine = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if isinstance(groups, (list, tuple)):
            lists = self._check_groups(groups)
        elif isinstance(groups, int) and groups >= 0:
            self._group_count = 0 if self._active else groups
            if groups == 0 or not self._active:
                return
            lists = split_list(self._in_roots_order(mine) if ask else mine, groups)
        else:
            raise ValueError(
                "groups should be a non-negative integer or a list of list of torch.Tensor."
            )
        known = set(mine)
        for members in lists:
            group = tuple(p for p in members if p in known)
            self._groups.update(dict.fromkeys(group, group))

    def _choose_buckets(self, ask: bool = False) -> None:
        """Groups become buckets, apart by type; without groups, all gradients are divided. In a
        bucket they lie in the order of their names, which is the same on all ranks."""
        if not self.gradient_as_bucket_view or not self._active or self._bucketed:
            return
        groups: Iterable[Sequence[torch.Tensor]] = list(dict.fromkeys(self._groups.values()))
        if not groups:
            mine = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
            groups = divide(self._in_roots_order(mine) if ask else mine, _BUCKET_BYTES)
        for members in groups:
            ordered = sorted(members, key=self._parameter_names.__getitem__)
            self._bucketed.update(dict.fromkeys(by_type(ordered)))
        for group in self._bucketed:
            self._groups.update(dict.fromkeys(group, group))

    def _leave_buckets(self) -> None:
        self._buckets.let_go()

    def _in_roots_order(self, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
        """The first rank's order holds, in case the ranks list their parameters differently."""
        by_name = {self._parameter_names[p]: p for p in parameters}
        root = self.process_set.ranks[0]
        names = broadcast_object(
            list(by_name), root, "DistributedOptimizer.groups", process_set=self.process_set
        )
        if set(names) != set(by_name):
            odd = ", ".join(sorted(set(names) ^ set(by_name))[:6])
            raise ValueError(
                f"the parameters of this rank's optimizer are not those of rank {root}: {odd}"
            )
        return [by_name[name] for name in names]

    @staticmethod
    def _check_groups(groups: Sequence[Sequence[torch.Tensor]]) -> Any:
        seen: set[torch.Tensor] = set()
        for members in groups:
            for p in members:
                if not isinstance(p, torch.Tensor):
                    raise ValueError("groups must consist of torch.Tensor.")
                if p in seen:
                    raise ValueError("A parameter can only appear once in groups.")
                seen.add(p)
        return groups

    def _register_hooks(self, parameters: Iterable[torch.Tensor]) -> None:
        if not self._active:
            return
        # Hooks outlive an optimizer that was dropped; then they do nothing.
        me = weakref.ref(self)

        def hook(p: torch.Tensor) -> None:
            optimizer = me()
            if optimizer is not None:
                optimizer._gradient_ready(p)

        for p in parameters:
            if p.requires_grad:
                self._requires_update[p] = None
                self._hooks.append(p.register_post_accumulate_grad_hook(hook))
            else:
                self._frozen.append(p)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        parameters = self._name_new_group()
        self._allreduce_delay.update(dict.fromkeys(parameters, self.backward_passes_per_step))
        self._register_hooks(parameters)

    def set_backward_passes_per_step(self, passes: int) -> None:
        """How many backward passes add to the gradients before they are reduced."""
        _check_passes(passes)
        self.backward_passes_per_step = passes
        self._reset_delays()

    def _reset_delays(self) -> None:
        self._allreduce_delay = dict.fromkeys(
            self._allreduce_delay, self.backward_passes_per_step
        )

    def _forget_progress(self) -> None:
        self._handles = {}
        self._synchronized = False
        self._should_synchronize = True
        self._reset_delays()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Also forgets what is under way: elastic training begins again from a state."""
        self._forget_progress()
        super().load_state_dict(*args, **kwargs)

    # ---- Reducing --------------------------------------------------------------------------------

    def _gradient_ready(self, p: torch.Tensor) -> None:
        group = self._groups.get(p)
        if group is not None:
            with self._group_lock:
                self._member_ready(p, group)
        elif self._count_pass(p) == 0:
            self._handles[p] = self._start(p)

    def _count_pass(self, p: torch.Tensor) -> int:
        """How many passes are to come before the gradient is complete."""
        delay = self._allreduce_delay[p] = self._allreduce_delay[p] - 1
        if delay < 0:
            self._fail_too_many_passes(p)
        assert not p.grad.requires_grad, "gradients of gradients cannot be reduced"
        self._handles.setdefault(p, (None, None))
        return delay

    def _member_ready(self, p: torch.Tensor, group: Group) -> None:
        delay = self._count_pass(p)
        if self._bucketed:
            self._put_into_bucket(p)
        if p.is_cuda:
            self._streams.setdefault(group[0], set()).add(torch.cuda.current_stream(p.device))
        if delay == 0 and all(self._allreduce_delay[member] == 0 for member in group):
            self._start_group(group)

    def _fail_too_many_passes(self, p: torch.Tensor) -> None:
        self._allreduce_delay[p] = 0
        raise AssertionError(
            "Gradients were computed more than backward_passes_per_step times before call to "
            "step(). Increase backward_passes_per_step to accumulate gradients locally. "
            f"(Parameter {self._parameter_names[p]}, backward_passes_per_step="
            f"{self.backward_passes_per_step}. Passes that an earlier loop left over, such as the "
            "last ones of an epoch, count: end it with step(), or with synchronize() and "
            "zero_grad() to drop them.)"
        )

    def _how(self, name: str) -> tuple[Any, ...]:
        """The arguments of an allreduce that come after the tensor."""
        before = after = 1.0
        if self.gradient_predivide_factor != 1.0 and self.op == Average:
            # The division by the number of ranks comes on top, after the sum.
            before, after = 1.0 / self.gradient_predivide_factor, self.gradient_predivide_factor
        return None, name, self.op, before, after, self.process_set

    def _gradient(self, p: torch.Tensor) -> torch.Tensor:
        """What is reduced for a parameter: its gradient, or zero if this rank has none."""
        gradient = p.grad
        if gradient is None:
            sparse_dim = self._sparse.get(p)
            if sparse_dim is None:
                gradient = p.grad = torch.zeros_like(p)
            else:
                gradient = p.grad = _empty_sparse(p, sparse_dim)
        if gradient.is_sparse:
            self._sparse[p] = gradient.sparse_dim()
            if self.sparse_as_dense:
                return gradient.to_dense()
        return gradient

    def _put_into_bucket(self, p: torch.Tensor) -> None:
        if not self._buckets.flat:
            self._buckets = Buckets(self._bucketed)
        if p not in self._buckets.views:
            return
        if p.grad is not None and p.grad.is_sparse:
            if not self.sparse_as_dense:
                raise ValueError("sparse gradients cannot be in buckets; use sparse_as_dense=True")
            self._sparse[p] = p.grad.sparse_dim()
            p.grad = p.grad.to_dense()
        self._buckets.take_in(p)

    def _take_from_bucket(self, p: torch.Tensor) -> None:
        self._buckets.give_out(p)
        if p in self._sparse and p.grad is not None:  # its optimizer may take sparse ones only
            p.grad = p.grad.to_sparse(self._sparse[p])

    def _start_bucket(self, group: Group) -> tuple[int, Any]:
        for p in group:
            self._put_into_bucket(p)
        small, context = self._compression.compress(self._buckets.flat[group])
        names = [self._parameter_names[p] for p in group]
        # Ranks that divided their gradients differently wait for each other, and add nothing up.
        name = f"{names[0]}.bucket.{zlib.crc32(chr(0).join(names).encode()):08x}"
        return allreduce_async_(small, *self._how(name)), context

    def _start(self, p: torch.Tensor) -> tuple[Any, Any]:
        gradient = self._gradient(p)
        name = self._parameter_names[p]
        if gradient.is_sparse:
            return sparse_allreduce_async(gradient, name, self.op, self.process_set), None
        small, context = self._compression.compress(gradient)
        return allreduce_async_(small, *self._how(name)), context

    def _await_members(self, group: Group) -> None:
        """The operation is enqueued on one stream, which has to wait for the others."""
        for stream in self._streams.pop(group[0], ()):
            current = torch.cuda.current_stream(stream.device)
            if current != stream:
                current.wait_stream(stream)

    def _start_group(self, group: Group) -> None:
        self._await_members(group)
        started = self._start_bucket(group) if group in self._bucketed else self._start_all(group)
        for p in group:
            self._handles.pop(p, None)
        self._handles[group] = started

    def _start_all(self, group: Group) -> tuple[int, Any]:
        gradients = [self._gradient(p) for p in group]
        if any(gradient.is_sparse for gradient in gradients):
            raise ValueError("sparse gradients cannot be in a group; use sparse_as_dense=True")
        small, contexts = zip(*map(self._compression.compress, gradients))
        name = self._parameter_names[group[0]]
        return grouped_allreduce_async_(small, *self._how(name)), contexts

    def _start_missing(self) -> None:
        if any(p.requires_grad for p in self._frozen):
            frozen, self._frozen = self._frozen, []
            self._register_hooks(frozen)
        started: Group | None = None
        for p in self._requires_update:
            group = self._groups.get(p)
            if group is not None:
                if group is not started and group not in self._handles:
                    self._start_group(group)
                started = group
            elif self._handles.get(p, (None, None))[0] is None:
                if p.requires_grad or p.grad is not None:  # else it has been frozen since
                    self._handles[p] = self._start(p)

    def _finish(self, p: torch.Tensor, result: torch.Tensor, context: Any) -> None:
        if result.is_sparse:
            p.grad = result
            return
        gradient = p.grad
        if result is not gradient:
            read_here(result)
        result = self._compression.decompress(result, context)
        if gradient is None:
            p.grad = result
        elif gradient is result:
            return
        elif gradient.is_sparse:  # sparse_as_dense, and its optimizer may take sparse ones only
            p.grad = result.to_sparse(gradient.sparse_dim())
        else:
            gradient.copy_(result)

    def _finish_all(self, handles: dict[Any, tuple[Any, Any]]) -> None:
        while handles:
            key = next(iter(handles))
            handle, context = handles.pop(key)
            result = handle() if callable(handle) else synchronize(handle)
            if isinstance(key, tuple) and key in self._buckets.flat:
                flat = self._buckets.flat[key]
                if result is not flat:
                    read_here(result)
                copy_back(flat, self._compression.decompress(result, context))
                for p in key:
                    self._take_from_bucket(p)
            elif isinstance(key, tuple):
                for p, part, part_context in zip(key, result, context):
                    self._finish(p, part, part_context)
            else:
                self._finish(key, result, context)

    def _warn_early_steps(self) -> None:
        """Steps that come before backward_passes_per_step passes reduce what is there. That is fine
        for the last step of an epoch; as a rule it is a step() in the wrong place."""
        passes = self.backward_passes_per_step - min(self._allreduce_delay.values())
        self._early_steps = self._early_steps + 1 if passes < self.backward_passes_per_step else 0
        if self._early_steps == _EARLY_STEPS:
            warnings.warn(
                f"the last {_EARLY_STEPS} calls of optimizer.step() came after fewer backward "
                f"passes than backward_passes_per_step={self.backward_passes_per_step} (the last "
                f"one after {passes}). Every step() reduces the gradients; to accumulate them, "
                "call step() once per backward_passes_per_step passes.",
                stacklevel=4,
            )

    @torch.no_grad()
    def synchronize(self) -> None:
        """Starts what is missing and waits until all gradients have been reduced."""
        if self._active:
            if self.backward_passes_per_step > 1:
                self._warn_early_steps()
            self._start_missing()
        handles, self._handles = self._handles, {}
        try:
            self._finish_all(handles)
        finally:
            self._reset_delays()
            for handle, _ in handles.values():  # one has failed: let the others come to their end
                with contextlib.suppress(HorovodInternalError, ValueError):
                    handle() if callable(handle) else synchronize(handle)
        self._synchronized = True

    @contextlib.contextmanager
    def skip_synchronize(self) -> Iterator[None]:
        """``step()`` inside does not synchronize, because the caller did (to clip gradients, say):

        optimizer.synchronize()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with optimizer.skip_synchronize():
            optimizer.step()
        """
        self._should_synchronize = False
        try:
            yield
        finally:
            self._should_synchronize = True

    def _closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The gradients of a closure are there after it has run, so they are reduced then."""

        @torch.enable_grad()
        def run() -> Any:
            loss = closure()
            self.synchronize()
            self._synchronized = False
            return loss

        return run

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Waits for the gradients and lets the wrapped optimizer take its step."""
        if self._should_synchronize:
            if self._synchronized:
                warnings.warn(
                    "optimizer.step() called without optimizer.skip_synchronize() context after "
                    "optimizer.synchronize(). This can cause training slowdown. You may want to "
                    "consider using optimizer.skip_synchronize() context if you use "
                    "optimizer.synchronize() in your code."
                )
            if closure is None:
                self.synchronize()
            else:
                closure = self._closure(closure)
        self._synchronized = False
        return super().step(closure) if closure is not None else super().step()

    # torch would wrap this `step` to run the hooks on steps, which the wrapped one does already.
    step.hooked = True

    def zero_grad(self, *args: Any, **kwargs: Any) -> None:
        """As the wrapped optimizer's, ``set_to_none`` and all."""
        if self._handles:
            raise AssertionError(
                "optimizer.zero_grad() was called after loss.backward() but before "
                "optimizer.step() or optimizer.synchronize(). This is prohibited as it can cause "
                "a race condition."
            )
        self._synchronized = False  # a step that was left out (torch.amp does) needs no warning
        super().zero_grad(*args, **kwargs)


def _empty_sparse(p: torch.Tensor, sparse_dim: int) -> torch.Tensor:
    indices = torch.empty((sparse_dim, 0), dtype=torch.int64, device=p.device)
    values = torch.empty((0, *p.shape[sparse_dim:]), dtype=p.dtype, device=p.device)
    return torch.sparse_coo_tensor(
        indices, values, p.shape, device=p.device, check_invariants=False
    )


def _check_passes(passes: int) -> None:
    if passes <= 0:
        raise ValueError("backward_passes_per_step must be > 0")


def DistributedOptimizer(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None = None,
    compression: type[Compressor] = Compression.none,
    backward_passes_per_step: int = 1,
    op: int = Average,
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: int | Sequence[Sequence[torch.Tensor]] | None = None,
    sparse_as_dense: bool = False,
    process_set: ProcessSet = global_process_set,
    gradient_as_bucket_view: bool = False,
) -> Any:
    """Wraps an optimizer so that ``step()`` uses gradients averaged over all ranks.

    named_parameters: ``model.named_parameters()``; names must be unique and cover all parameters.
    compression: what to send gradients as; ``Compression.none``, ``.fp16`` or ``.bf16``.
    backward_passes_per_step: passes that add to the gradients before they are reduced.
    op: ``Average``, ``Sum``, ... With ``Adasum`` each rank takes its step alone and the steps are
        combined; ``groups``, ``sparse_as_dense`` and ``gradient_as_bucket_view`` have no use then.
    gradient_predivide_factor: with Average, gradients are divided by it before the sum and by
        size()/factor after.
    groups: gradients that are reduced together: a number of groups, or lists of parameters.
        num_groups is its deprecated form.
    sparse_as_dense: reduce sparse gradients as dense ones instead of gathering them. A parameter
        whose first gradient is sparse on some ranks and missing on others needs it.
    process_set: the ranks whose gradients are reduced; on others this is the optimizer as it was.
    gradient_as_bucket_view: as in torch's DistributedDataParallel: a gradient that is ready moves
        into a bucket of up to 25 MB (with ``groups``: one bucket for each group, type and device),
        and ``p.grad`` is a view of it. Buckets are reduced where they lie; those in CPU memory are
        in memory that the ranks of this host share. ``zero_grad(set_to_none=False)`` keeps
        gradients there, so that nothing moves at all. Not for sparse gradients, unless
        ``sparse_as_dense``. At the end of the job (``shutdown()``, an elastic reset) gradients move
        back.

    The result is of a subclass of the optimizer's class and shares its parameters and state; the
    optimizer passed in should not be used any more. It can be pickled and copied: a copy reduces
    the gradients of its own parameters.
    """
    if isinstance(optimizer, Wrapping):
        raise ValueError("this optimizer is a DistributedOptimizer already")
    if gradient_predivide_factor != 1.0 and op != Average:
        raise ValueError("gradient_predivide_factor not supported with op != Average")
    _check_passes(backward_passes_per_step)
    set_id(process_set)  # raises unless the set has been added
    if num_groups != 0:
        warnings.warn(
            "Parameter `num_groups` has been replaced by `groups` and will be removed.",
            DeprecationWarning,
            stacklevel=2,
        )
        groups = num_groups if groups is None else groups
    options = {
        "named_parameters": named_parameters,
        "compression": compression,
        "backward_passes_per_step": backward_passes_per_step,
        "process_set": process_set,
    }
    if op == Adasum:
        return wrap(_DistributedAdasumOptimizer, optimizer, **options)
    return wrap(
        _DistributedOptimizer,
        optimizer,
        op=op,
        gradient_predivide_factor=gradient_predivide_factor,
        groups=groups,
        sparse_as_dense=sparse_as_dense,
        gradient_as_bucket_view=gradient_as_bucket_view,
        **options,
    )
