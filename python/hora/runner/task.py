"""A rank that runs one function for `hora.run`: the rank's side of function.py.

Standard input holds a line of JSON, {"path": sys.path, "argv0": TEXT, "rank": ...}, and after it the
pickled (function, args, kwargs). The result goes to a pipe of this rank's own: a line of JSON, see
``report``, and after it a pickle of as many bytes as the line says. Both come from and go to the
launcher through pipes of this job's processes alone; nothing is ever unpickled from a network port.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import socket
import sys
import traceback
from typing import Any, BinaryIO

# Sent as text, so that this module is found where the launcher has found it.
BOOTSTRAP = (
    "import json, sys; f = open(0, 'rb', closefd=False); h = json.loads(f.readline()); "
    "sys.path[:0] = [p for p in h['path'] if p not in sys.path]; "
    "from hora.runner import task; task.main(h, f)"
)

# Under mpirun, which gives standard input to one rank: the call is a file in a private folder.
BOOTSTRAP_FILE = (
    "import json, sys; f = open(sys.argv[1] + '/call', 'rb'); h = json.loads(f.readline()); "
    "sys.path[:0] = [p for p in h['path'] if p not in sys.path]; "
    "from hora.runner import task; task.main_file(h, f)"
)


def dumps(value: Any) -> bytes:
    """By cloudpickle where there is one: it knows functions and classes of scripts and notebooks."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(value)
    return bytes(cloudpickle.dumps(value))


def report(header: dict[str, Any], value: bytes) -> bytes:
    return json.dumps({**header, "size": len(value)}).encode() + b"\n" + value


def describe(error: BaseException) -> bytes:
    """An exception, itself if it can be pickled, and in words."""
    from hora._core import HorovodInternalError

    header = {
        "ok": False,
        "host": socket.gethostname(),
        "text": "".join(traceback.format_exception_only(type(error), error)).strip(),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
        "internal": isinstance(error, HorovodInternalError),
    }
    try:
        value = dumps(error)
        pickle.loads(value)  # some exceptions can be pickled but not made again
    except Exception:
        value = b""
    return report(header, value)


def send(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.close(fd)


def call(given: BinaryIO) -> bytes:
    function, args, kwargs = pickle.loads(given.read())
    result = function(*args, **kwargs)
    try:
        return report({"ok": True}, dumps(result))
    except Exception as error:
        raise TypeError(f"the result, a {type(result).__name__}, cannot be pickled: {error}") from error


def run_call(header: dict[str, Any], given: BinaryIO, fd: int) -> None:
    sys.argv[:] = [header["argv0"]]
    try:
        result = call(given)
    except BaseException as error:
        send(fd, describe(error))
        raise  # to hora's hook, which tells the other ranks, and to standard error
    send(fd, result)


def main(header: dict[str, Any], given: BinaryIO) -> None:
    """The function comes on standard input and the result goes to the descriptor in argv[1]."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    run_call(header, io.BytesIO(read_input(given)), fd)


def read_input(given: BinaryIO) -> bytes:
    """The rest of standard input, which is empty for the function itself."""
    data = given.read()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return data


def main_file(header: dict[str, Any], given: BinaryIO) -> None:
    """The result goes into a file beside the call, under another name until it is whole."""
    variables = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "MV2_COMM_WORLD_RANK")
    rank = next(os.environ[name] for name in variables if name in os.environ)
    folder = sys.argv[1]
    fd = os.open(f"{folder}/part.{rank}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        run_call(header, given, fd)
    finally:
        os.rename(f"{folder}/part.{rank}", f"{folder}/result.{rank}")
