"""Trains a small network on handwritten digits, on as many processes as something starts.

    python train.py --data_dir data                                   one process
    hora run -np 2 python train.py --data_dir data                    two, started by hora,
    mpirun -np 2 python train.py --data_dir data                      by Open MPI,
    torchrun --nproc-per-node 2 train.py --data_dir data              by torchrun,
    az ml job create --file job_mpi.yml                               or by Azure ML

All of them train the same network. Rank 0 writes to --output_dir:

    metrics.jsonl   one line for each epoch, while it runs (plot_metrics.py draws them)
    model.pt        the parameters
    model.onnx      the model for other programs, checked with onnxruntime
    run.json        arguments and result (sweep.py compares them)
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import hora.torch as hvd  # with hora's alias installed, `import horovod.torch as hvd` is the same
from export import export_onnx
from prepare import is_prepared, prepare

Data = tuple[torch.Tensor, torch.Tensor]


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"),
                        help="train.npz and test.npz; written there first if they are missing")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs"))
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch-size", type=int, default=64,
                        help="samples per step, over all processes")
    parser.add_argument("--width", type=int, default=128, help="of the hidden layers")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--onnx", choices=("auto", "require", "skip"), default="auto",
                        help="auto: export the model where the packages for it are installed")
    return parser.parse_args()


def load(folder: Path) -> tuple[Data, Data]:
    """Training and test data. One process of each host prepares them if they are missing."""
    if hvd.local_rank() == 0 and not is_prepared(folder):
        print(f"preparing the data in {folder}", flush=True)
        prepare(folder)
    hvd.barrier()
    parts = []
    for name in ("train.npz", "test.npz"):
        with np.load(folder / name) as arrays:
            parts.append((torch.from_numpy(arrays["pixels"]), torch.from_numpy(arrays["labels"])))
    return parts[0], parts[1]


def make_model(width: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, width), torch.nn.ReLU(),
        torch.nn.Linear(width, width), torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )  # fmt: skip


def train_epoch(model: torch.nn.Module, optimizer: Any, data: Data, batch: int,
                seed: int) -> float:
    """One pass over the data; returns the mean loss over all processes."""
    pixels, labels = data
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    starts = range(0, len(labels) - batch + 1, batch)
    show = hvd.rank() == 0 and sys.stderr.isatty()
    total = 0.0
    for step, start in enumerate(starts, 1):
        mine = order[start + hvd.rank():start + batch:hvd.size()]  # a part of each batch
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels[mine]), labels[mine])
        loss.backward()
        optimizer.step()  # with the gradients' average over all processes
        total += loss.item()
        if show:
            print(f"\r  step {step} of {len(starts)}", end="", file=sys.stderr, flush=True)
    if show:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return hvd.allreduce(torch.tensor(total / len(starts)), name="loss").item()


def accuracy(model: torch.nn.Module, data: Data) -> float:
    with torch.no_grad():
        return (model(data[0]).argmax(dim=1) == data[1]).float().mean().item()


def train(args: argparse.Namespace) -> dict[str, Any]:
    if args.batch_size % hvd.size() != 0:
        raise SystemExit(f"--batch-size {args.batch_size} cannot be divided among {hvd.size()} "
                         "processes")
    training, test = load(args.data_dir)
    torch.manual_seed(args.seed + hvd.rank())  # each its own, until the broadcast
    model = make_model(args.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    hvd.broadcast_optimizer_state(optimizer, root_rank=0)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters())

    log = args.output_dir / "metrics.jsonl"
    if hvd.rank() == 0:
        args.output_dir.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
    row: dict[str, Any] = {}
    begin = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(model, optimizer, training, args.batch_size, 1000 * args.seed + epoch)
        row = {"epoch": epoch, "loss": loss, "accuracy": accuracy(model, test), "lr": args.lr,
               "seconds": time.perf_counter() - begin}
        if hvd.rank() == 0:
            with open(log, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"epoch {epoch:3} of {args.epochs}  loss {loss:.4f}  "
                  f"test accuracy {row['accuracy']:.4f}  {row['seconds']:.1f} s", flush=True)
    result = {"processes": hvd.size(), "loss": row.get("loss"), "accuracy": row.get("accuracy"),
              "seconds": row.get("seconds")}
    if hvd.rank() == 0:
        torch.save(model.state_dict(), args.output_dir / "model.pt")
        result["onnx"] = export_onnx(model, test[0], args.output_dir / "model.onnx", args.onnx)
        run = {"arguments": {k: str(v) if isinstance(v, Path) else v for k, v in
                             vars(args).items()}, "result": result}
        (args.output_dir / "run.json").write_text(json.dumps(run, indent=2), encoding="utf-8")
    return result


def main() -> int:
    args = read_arguments()
    hvd.init()
    result = train(args)
    hvd.shutdown()
    onnx = result.get("onnx")
    return 1 if onnx is not None and onnx["state"] == "failed" else 0


if __name__ == "__main__":
    sys.exit(main())
