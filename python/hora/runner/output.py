"""What the ranks print: whole lines with their rank before them, and files. Single thread."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any


class Output:
    """Lines of all ranks on our own streams, whole, each with "[rank]<stream>:" before it, and in
    DIR/rank.N/stdout and stderr where a directory was asked for."""

    def __init__(self, size: int, prefix: bool, folder: str | None, timestamp: bool = False) -> None:
        self.prefix = prefix
        self.timestamp = timestamp
        self.folder = folder
        self.width = len(str(size - 1))
        self.partial: dict[tuple[int, str], bytes] = {}
        self.files: dict[tuple[int, str], Any] = {}
        for rank in range(size if folder else 0):
            self.open_files(rank)

    def open_files(self, rank: int) -> None:
        assert self.folder is not None
        own = Path(self.folder) / f"rank.{rank:0{self.width}d}"
        own.mkdir(parents=True, exist_ok=True)
        for stream in ("stdout", "stderr"):
            self.files[rank, stream] = open(own / stream, "wb", buffering=0)

    def feed(self, rank: int, stream: str, data: bytes) -> None:
        if self.folder:
            if (rank, stream) not in self.files:
                self.open_files(rank)
            self.files[rank, stream].write(data)
            if not self.prefix:
                return  # -q with a directory: files only
        data = self.partial.pop((rank, stream), b"") + data
        lines = data.splitlines(keepends=True)  # at \n, \r (progress bars) and \r\n
        if lines and not lines[-1].endswith((b"\n", b"\r")):
            self.partial[rank, stream] = lines.pop()
        self.write(rank, stream, lines)

    def head(self, rank: int, stream: str) -> bytes:
        """What stands before a line, in Horovod's form."""
        head = time.strftime("%a %b %d %H:%M:%S %Y") if self.timestamp else ""
        return (head + (f"[{rank}]<{stream}>:" if self.prefix else " ")).lstrip().encode()

    def write(self, rank: int, stream: str, lines: list[bytes]) -> None:
        if not lines:
            return
        head = self.head(rank, stream)
        text = b"".join(head + line for line in lines)
        target = sys.stdout if stream == "stdout" else sys.stderr
        try:
            if hasattr(target, "buffer"):
                target.flush()
                target.buffer.write(text)
            else:  # a notebook's stream takes text only
                target.write(text.decode(errors="replace"))
            target.flush()
        except BrokenPipeError:  # whoever read our output has gone; the job goes on
            pass

    def end(self, rank: int) -> None:
        for stream in ("stdout", "stderr"):
            rest = self.partial.pop((rank, stream), b"")
            if rest:
                self.write(rank, stream, [rest + b"\n"])

    def close(self) -> None:
        for rank in sorted({rank for rank, _ in self.partial}):
            self.end(rank)
        for file in self.files.values():
            file.close()
