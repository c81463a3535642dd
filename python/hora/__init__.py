"""hora: ring-allreduce collective communication.

``import hora.torch as hvd`` gives Horovod's interface for PyTorch; ``hora.run(function, ...)`` calls
a function on several ranks; ``hora.Communicator`` has collectives on the arrays of any library, with
``hora.Op`` and ``hora.DType``. This module itself imports nothing but the standard library, so that
``import hora`` works without torch, CUDA or MPI.
"""

from __future__ import annotations

import importlib

__all__ = ["Communicator", "DType", "Op", "Request", "__version__", "run"]

# Name, and the module that has it: imported when it is first asked for.
LAZY = {
    "__version__": "hora._core", "run": "hora.runner",
    "Communicator": "hora.communicator", "Request": "hora.communicator",
    "Op": "hora.constants", "DType": "hora.constants",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name in LAZY:
        return getattr(importlib.import_module(LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
