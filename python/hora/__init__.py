"""hora: ring-allreduce collective communication.

``import hora.torch as hvd`` gives Horovod's interface for PyTorch. This module imports nothing but
the standard library, so that ``import hora`` works without torch, CUDA or MPI.
"""

from __future__ import annotations

__all__ = ["__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from hora import _core

        return _core.__version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
