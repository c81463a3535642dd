"""Small helpers that callers of Horovod use too."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sysconfig
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence, TypeVar

from hora import _core
from hora.common import basics
from hora.common.exceptions import HorovodVersionMismatchError, get_version_mismatch_message

__all__ = [
    "EXTENSIONS", "ccl_built", "check_extension", "check_installed_version", "choose_op",
    "ddl_built", "env", "extension_available", "get_average_backwards_compatibility_fun",
    "get_ext_suffix", "get_extension_full_path", "gloo_built", "gpu_available", "is_iterable",
    "mpi_built", "nccl_built", "num_rank_is_power_2", "split_list",
]  # fmt: skip

T = TypeVar("T")

EXTENSIONS = ["torch"]  # the frameworks that hora has an interface for


# ---- Lists and numbers ---------------------------------------------------------------------------


def split_list(l: Sequence[T], n: int) -> list[Sequence[T]]:  # noqa: E741 (Horovod's names)
    """Splits into ``n`` runs of nearly equal length; the first ones take the remainder."""
    quotient, remainder = divmod(len(l), n)
    result = []
    start = 0
    for part in range(n):
        end = start + quotient + (part < remainder)
        result.append(l[start:end])
        start = end
    return result


def num_rank_is_power_2(num_rank: int) -> bool:
    return num_rank > 0 and num_rank & (num_rank - 1) == 0


def is_iterable(x: Any) -> bool:
    try:
        iter(x)
    except TypeError:
        return False
    return True


def _cache(f: Callable[..., T]) -> Callable[..., T]:
    """Remembers the results of a function by its arguments."""
    return functools.lru_cache(maxsize=None)(f)


@contextlib.contextmanager
def env(**kwargs: str | None) -> Iterator[None]:
    """Sets variables of the environment inside a ``with``; those that are None stay as they are."""
    given = {name: value for name, value in kwargs.items() if value is not None}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# ---- op and average ------------------------------------------------------------------------------


def choose_op(op: int | None, average: bool | None, stacklevel: int = 3) -> int:
    """The operation that ``op`` and Horovod's deprecated ``average`` ask for."""
    if op is None and average is None:
        return _core.AVERAGE
    if average is None:
        return op
    if op is not None:
        raise ValueError("The op parameter supersedes average. Please provide only one of them.")
    warnings.warn(
        "Parameter `average` has been replaced with `op` and will be removed.",
        DeprecationWarning,
        stacklevel=stacklevel,
    )
    return _core.AVERAGE if average else _core.SUM


def get_average_backwards_compatibility_fun(
    reduce_ops: Any,
) -> Callable[[int | None, bool | None], int]:
    """:func:`choose_op`, under the name that Horovod has for it."""
    return lambda op, average: choose_op(op, average, 4)


# ---- What is there -------------------------------------------------------------------------------


def get_ext_suffix() -> str:
    """How the file names of Python's extensions end."""
    return sysconfig.get_config_var("EXT_SUFFIX") or ".so"


def get_extension_full_path(pkg_path: str, *args: str) -> str:
    return os.path.join(os.path.dirname(pkg_path), *args[:-1], args[-1] + get_ext_suffix())


def extension_available(ext_base_name: str, verbose: bool = False) -> bool:
    """True when there is an interface for the framework, and the framework itself."""
    found = ext_base_name in EXTENSIONS and importlib.util.find_spec(ext_base_name) is not None
    if verbose:
        print(f"Extension {ext_base_name} {'was' if found else 'was NOT'} built.")
    return found


def check_extension(ext_name: str, ext_env_var: str, pkg_path: str, *args: str) -> None:
    """Raises ImportError when hora has no interface for the framework."""
    framework = ext_name.rpartition(".")[2]
    if not extension_available(framework):
        there = "is not installed" if framework in EXTENSIONS else "has no interface in hora"
        raise ImportError(f"Extension {ext_name} is not available: {framework} {there}")


@_cache
def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    """True when the framework can use a GPU here."""
    found = False
    if extension_available(ext_base_name):
        import torch

        found = torch.cuda.is_available()
    if verbose:
        print(f"Extension {ext_base_name} {'was' if found else 'was NOT'} running with GPU.")
    return found


def mpi_built(verbose: bool = False) -> bool:
    return basics.mpi_built()


def gloo_built(verbose: bool = False) -> bool:
    return basics.gloo_built()


def nccl_built(verbose: bool = False) -> int:
    return basics.nccl_built()


def ddl_built(verbose: bool = False) -> bool:
    return basics.ddl_built()


def ccl_built(verbose: bool = False) -> bool:
    return basics.ccl_built()


def check_installed_version(
    name: str, version: str, exception: BaseException | None = None
) -> None:
    """Warns, or raises HorovodVersionMismatchError from ``exception``, when the framework ``name``
    is not of the version that hora was installed for. One build of hora serves all versions, so
    there is nothing to compare with unless a packager has left a metadata.json in the package."""
    try:
        text = (Path(__file__).parent.parent / "metadata.json").read_text()
    except FileNotFoundError:
        return
    installed = json.loads(text).get(name)
    if installed == version:
        return
    if exception is not None:
        raise HorovodVersionMismatchError(name, version, installed) from exception
    warnings.warn(get_version_mismatch_message(name, version, installed), stacklevel=2)
