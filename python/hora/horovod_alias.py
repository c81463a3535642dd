"""The name `horovod` for hora: after ``hora.horovod_alias.install()``, ``import horovod.torch`` gives
the module ``hora.torch`` itself, and so for every module, so that scripts run unchanged.

The distribution hora-horovod (``pip install hora[horovod]``, or python/horovod-alias/ of hora's
source) switches it on whenever `horovod` is imported, and brings the horovodrun command. An
installed Horovod is never hidden: then both refuse, and say what to do.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
from types import CodeType, ModuleType
from typing import Any, Sequence

import hora

NAME = "horovod"
MARK = "_is_hora.py"  # lies in the package `horovod` of hora-horovod, and in no other

# What Horovod has and hora has not.
ABSENT = {
    "tensorflow": "TensorFlow",
    "_keras": "Keras",
    "keras": "Keras",
    "mxnet": "MXNet",
    "spark": "Spark",
    "ray": "Ray",
}


class Loader:
    """Hands out the module of hora as it is."""

    def __init__(self, own: importlib.machinery.ModuleSpec) -> None:
        self.own = own
        self.spec: Any = None

    def create_module(self, spec: Any) -> ModuleType:
        module = importlib.import_module(self.own.name)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """The import system has put its own spec there; importlib.reload wants the true one."""
        module.__spec__ = self.spec

    def get_code(self, name: str) -> CodeType | None:
        """For `python -m horovod.X`."""
        return self.own.loader.get_code(self.own.name)  # type: ignore[union-attr]


class Finder:
    """Stands before all others, because those would load hora's files a second time."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: Any = None) -> Any:
        if name != NAME and not name.startswith(NAME + "."):
            return None
        below = name.split(".")[1:2]
        if below and below[0] in ABSENT:
            raise ModuleNotFoundError(
                f"{name}: hora takes the place of Horovod for PyTorch only, it has nothing for "
                f"{ABSENT[below[0]]}; Horovod itself has (pip uninstall hora-horovod, then install "
                "horovod)", name=name)
        own = importlib.util.find_spec("hora" + name[len(NAME):])
        if own is None:
            return None
        return importlib.util.spec_from_loader(
            name, Loader(own), origin=own.origin,  # type: ignore[arg-type]
            is_package=own.submodule_search_locations is not None)


def is_ours(origin: str | None) -> bool:
    """Is this file the package of hora-horovod (or hora itself)?"""
    if origin is None:
        return False
    folder = os.path.dirname(os.path.abspath(origin))
    return origin == hora.__file__ or os.path.exists(os.path.join(folder, MARK))


def find_horovod() -> str | None:
    """What is there of a Horovod that is not this alias, in words."""
    try:
        version = importlib.metadata.version(NAME)
        return f"Horovod {version} is installed in this environment"
    except importlib.metadata.PackageNotFoundError:
        pass
    loaded = sys.modules.get(NAME)
    if loaded is not None and not is_ours(getattr(loaded, "__file__", None)):
        return f"a package {NAME} is imported already from {getattr(loaded, '__file__', '?')}"
    for entry in sys.path:
        spec = importlib.machinery.PathFinder.find_spec(NAME, [entry])
        if spec is not None and spec.loader is not None and spec.origin and not is_ours(spec.origin):
            return f"there is a package {NAME} in {os.path.dirname(spec.origin)}"
    return None


def install() -> None:
    """Makes `horovod` and everything below it hora, in this process. Raises ImportError where a
    Horovod is to be found."""
    if sys.modules.get(NAME) is hora:
        return
    found = find_horovod()
    if found is not None:
        raise ImportError(
            f"{found}, and hora does not hide it. To use hora under the name {NAME}: pip uninstall "
            f"{NAME}, then pip install --force-reinstall --no-deps hora-horovod. To use Horovod: pip "
            f"uninstall hora-horovod, then install {NAME} again. hora itself is there in any case: "
            "import hora.torch as hvd", name=NAME)
    sys.meta_path.insert(0, Finder)  # type: ignore[arg-type]
    sys.modules[NAME] = hora


def remove() -> None:
    """Undoes :func:`install`; modules that were imported stay what they are."""
    if Finder in sys.meta_path:
        sys.meta_path.remove(Finder)  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name == NAME or name.startswith(NAME + ".")]:
        del sys.modules[name]
