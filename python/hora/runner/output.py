"""What the ranks print: whole lines with their rank before them, and files. Single thread."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


class Output:
    """Lines of all ranks on our own streams, whole, each with "[rank]<stream>:" before it, and in
    DIR/rank.N/stdout and stderr where a directory was asked for."""

    def __init__(self, size: int, prefix: bool, folder: str | None) -> None:
        self.size = size
        self.prefix = prefix
        self.partial: dict[tuple[int, str], bytes] = {}
        self.files: dict[tuple[int, str], Any] = {}
        if folder:
            width = len(str(size - 1))
            for rank in range(size):
                own = Path(folder) / f"rank.{rank:0{width}d}"
                own.mkdir(parents=True, exist_ok=True)
                for stream in ("stdout", "stderr"):
                    self.files[rank, stream] = open(own / stream, "wb", buffering=0)

    def feed(self, rank: int, stream: str, data: bytes) -> None:
        if self.files:
            self.files[rank, stream].write(data)
            if not self.prefix:
                return  # -q with a directory: files only
        data = self.partial.pop((rank, stream), b"") + data
        lines = data.splitlines(keepends=True)  # at \n, \r (progress bars) and \r\n
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self.partial[rank, stream] = lines.pop()
        self.write(rank, stream, lines)

    def write(self, rank: int, stream: str, lines: list[bytes]) -> None:
        if not lines:
            return
        target = sys.stdout.buffer if stream == "stdout" else sys.stderr.buffer
        head = b"[%d]<%s>:" % (rank, stream.encode()) if self.prefix else b""
        try:
            target.write(b"".join(head + line for line in lines))
            target.flush()
        except BrokenPipeError:  # whoever read our output has gone; the job goes on
            pass

    def end(self, rank: int) -> None:
        for stream in ("stdout", "stderr"):
            rest = self.partial.pop((rank, stream), b"")
            if rest:
                self.write(rank, stream, [rest + b"\n"])

    def close(self) -> None:
        for rank in range(self.size):
            self.end(rank)
        for file in self.files.values():
            file.close()
