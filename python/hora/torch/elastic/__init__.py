"""Elastic training with PyTorch; Horovod's names: ``run``, ``TorchState``, ``ElasticSampler``.

    import hora.torch as hvd

    hvd.init()
    state = hvd.elastic.TorchState(model=model, optimizer=optimizer, batch=0, epoch=0)

    @hvd.elastic.run
    def train(state):
        ...
        state.commit()

    train(state)

Started with ``hora run --min-np 2 --max-np 8 --host-discovery-script hosts.sh python train.py``.
"""

from __future__ import annotations

from typing import Any, Callable

from hora.common.basics import restart
from hora.common.elastic import run_fn
from hora.torch.elastic.sampler import ElasticSampler
from hora.torch.elastic.state import SamplerStateHandler, StateHandler, TorchState

__all__ = ["ElasticSampler", "SamplerStateHandler", "StateHandler", "TorchState", "run"]


def run(func: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates ``func(state, ...)``: it is run again from its last commit when ranks are lost, and
    goes on where it is when hosts come or go. ``init()`` must have been called before."""
    return run_fn(func, restart)
