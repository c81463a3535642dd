"""torch's gloo backend as a worker of the comparison: the protocol and the measuring of main.c."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
from typing import Callable

import torch
import torch.distributed as dist


class Work:
    """One collective on buffers of `count` floats a block; the operations are numbered as in peer.h."""

    def __init__(self, op: int, count: int, rank: int, size: int) -> None:
        total = count if op in (0, 3) else count * size
        self.rank, self.size, self.op = rank, size, op
        self.block = torch.empty(count)
        self.whole = torch.empty(total)
        self.other = torch.empty(total if op == 4 else 0)
        self.source = self.block if op == 1 else self.whole
        self.call: Callable[[], object] = [
            lambda: dist.all_reduce(self.whole),
            lambda: dist.all_gather_into_tensor(self.whole, self.block),
            lambda: dist.reduce_scatter_tensor(self.block, self.whole),
            lambda: dist.broadcast(self.whole, 0),
            lambda: dist.all_to_all_single(self.other, self.whole),
        ][op]

    def check(self, base: float) -> None:
        result = [self.whole, self.whole, self.block, self.whole, self.other][self.op]
        total = base * self.size + self.size * (self.size - 1) / 2
        first, last = [(total, total), (base, base + self.size - 1), (total, total), (base, base),
                       (base, base + self.size - 1)][self.op]
        if result.numel() and (result[0].item(), result[-1].item()) != (first, last):
            raise SystemExit("peer: a result is wrong")

    def measure(self, batch: int, base: float) -> float:
        value = base + self.rank
        if batch <= 1:
            self.source.fill_(value)
        dist.barrier()
        begin = time.perf_counter()
        if batch <= 1:
            self.call()
        else:
            for _ in range(batch):
                self.source.fill_(value)
                self.call()
        took = time.perf_counter() - begin
        self.check(base)
        return took * 1e6 / max(batch, 1)


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    link = socket.socket(socket.AF_UNIX)
    link.connect(os.environ["PEER_SOCKET"])
    stream = link.makefile("rw")
    rank, size = int(os.environ["PEER_RANK"]), int(os.environ["PEER_SIZE"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['PEER_DIR']}/gloo", rank=rank,
                            world_size=size)
    print(json.dumps({"rank": rank, "size": size, "version": f"torch {torch.__version__}"}),
          file=stream, flush=True)
    for line in stream:
        words = line.split()
        before = cpu()
        if words[0] == "quit":
            break
        if words[0] == "idle":
            time.sleep(float(words[1]))
            print(f"{cpu() - before:.6f}", file=stream, flush=True)
            continue
        op, count, calls, batch, _, gap = map(int, words[1:])
        work = Work(op, count, rank, size)
        times = []
        for number in range(calls):
            if gap:
                time.sleep(gap * 1e-6)
            times.append(work.measure(batch, float(number % 7)))
        print(f"{cpu() - before:.6f}", *(f"{t:.4f}" for t in times), file=stream, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
