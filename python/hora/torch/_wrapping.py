"""What the distributed optimizers have in common: a subclass made around the class of the wrapped
optimizer, the names of its parameters, copying and pickling."""

from __future__ import annotations

from typing import Any, Iterable

import torch

from hora.common.process_sets import ProcessSet
from hora.torch._process_set import ProcessSetReference
from hora.torch.compression import Compressor

__all__ = ["Wrapping", "wrap", "check_names"]


def check_names(
    param_groups: list[dict[str, Any]],
    named_parameters: Iterable[tuple[str, torch.Tensor]] | None,
) -> dict[torch.Tensor, str]:
    """Parameter -> name. Raises ValueError when names are missing or not unique."""
    if named_parameters is None:
        return {
            p: f"allreduce.noname.{i}.{j}"
            for i, group in enumerate(param_groups)
            for j, p in enumerate(group["params"])
        }
    named = list(named_parameters)
    if any(not isinstance(pair, tuple) for pair in named):
        raise ValueError(
            "named_parameters should be a sequence of tuples (name, parameter), usually produced "
            "by model.named_parameters()."
        )
    seen: set[str] = set()
    duplicates = {name for name, _ in named if name in seen or seen.add(name)}
    if duplicates:
        raise ValueError(
            "Parameter names in named_parameters must be unique. Found duplicates: "
            + ", ".join(sorted(duplicates))
        )
    known = {id(p) for _, p in named}
    unnamed = [p for group in param_groups for p in group["params"] if id(p) not in known]
    if unnamed:
        raise ValueError(
            "named_parameters was specified, but one or more model parameters were not named. "
            f"Python object ids: {', '.join(str(id(p)) for p in unnamed)}; "
            f"shapes: {', '.join(str(tuple(p.shape)) for p in unnamed)}"
        )
    return {p: name for name, p in named}


class Wrapping(torch.optim.Optimizer):
    """Goes in front of the wrapped optimizer's class; shares its state with the wrapped one.

    Subclasses take their options as keywords in ``_distribute`` and give them back in ``_options``.
    """

    _compression: type[Compressor]
    _parameter_names: dict[torch.Tensor, str]
    backward_passes_per_step: int
    process_set: ProcessSet

    def _distribute(self, **options: Any) -> None:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        return {
            "named_parameters": [(name, p) for p, name in self._parameter_names.items()],
            "compression": self._compression,
            "backward_passes_per_step": self.backward_passes_per_step,
            "process_set": ProcessSetReference(self.process_set),
        }

    def _name_new_group(self) -> list[torch.Tensor]:
        """Names the parameters of the last group as those of the others are named without names."""
        number = len(self.param_groups) - 1
        parameters = self.param_groups[-1]["params"]
        for j, p in enumerate(parameters):
            self._parameter_names.setdefault(p, f"allreduce.noname.{number}.{j}")
        return parameters

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made at run time, so it cannot be found by its name. A copy has the options
        # and state of the original and nothing of what is under way.
        front, kind = type(self).__bases__
        return _restore, (front, kind, self.__getstate__(), self._options())


def wrap(front: type[Wrapping], optimizer: torch.optim.Optimizer, **options: Any) -> Any:
    """An optimizer of a new class, (front, the optimizer's class), with the optimizer's own
    parameters, options and state."""
    kind = type(optimizer)
    # super() in the front must go on to the wrapped class, which is why that is a base.
    cls = type(kind.__name__, (front, kind), {"__module__": "hora.torch.optimizer"})
    wrapped = cls.__new__(cls)
    # Not `step`: learning-rate schedulers put a bound one into the instance.
    wrapped.__dict__.update({k: v for k, v in vars(optimizer).items() if k != "step"})
    wrapped._distribute(**options)
    return wrapped


def _restore(
    front: type[Wrapping], kind: type, state: dict[str, Any], options: dict[str, Any]
) -> Any:
    plain = kind.__new__(kind)
    plain.__setstate__(state)
    options["process_set"] = options["process_set"].process_set
    return wrap(front, plain, **options)
