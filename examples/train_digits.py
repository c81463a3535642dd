"""Trains a small network on handwritten digits (8 by 8 pixels, they come with scikit-learn).

    python examples/train_digits.py                    one process
    hora run -np 2 python examples/train_digits.py     two ranks, the same result

What makes it distributed is marked with (1) to (5); all else is an ordinary training loop. Every
rank takes its part of each batch, so that the network that comes out does not depend on the number
of ranks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from tqdm import tqdm

import hora.torch as hvd


def load() -> tuple[torch.Tensor, ...]:
    """Training pixels and labels, test pixels and labels; the same split on every rank."""
    digits = load_digits()
    pixels = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    train, test = order[:1437], order[1437:]
    return pixels[train], labels[train], pixels[test], labels[test]


def make_model(width: int) -> torch.nn.Module:
    torch.manual_seed(2)
    return torch.nn.Sequential(
        torch.nn.Linear(64, width), torch.nn.ReLU(),
        torch.nn.Linear(width, width), torch.nn.ReLU(),
        torch.nn.Linear(width, 10),
    )


def train_epoch(model: torch.nn.Module, optimizer: torch.optim.Optimizer, pixels: torch.Tensor,
                labels: torch.Tensor, batch: int, epoch: int) -> float:
    """One pass over the training data; returns the mean loss over all ranks."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(100 + epoch))
    starts = range(0, len(labels) - batch + 1, batch)
    bar = tqdm(starts, desc=f"epoch {epoch}", unit="batch", leave=False,
               disable=hvd.rank() != 0 or not sys.stderr.isatty())
    total = 0.0
    for start in bar:
        mine = order[start + hvd.rank():start + batch:hvd.size()]  # (4) a part of each batch
        optimizer.zero_grad()
        loss = F.cross_entropy(model(pixels[mine]), labels[mine])
        loss.backward()
        optimizer.step()
        total += loss.item()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    mean = torch.tensor(total / len(starts))
    return hvd.allreduce(mean, name="loss").item()  # (5) averaged over the ranks


def accuracy(model: torch.nn.Module, pixels: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(pixels).argmax(dim=1) == labels).float().mean().item()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.9)
    parser.add_argument("--batch", type=int, default=64, help="samples per step, over all ranks")
    parser.add_argument("--width", type=int, default=512, help="of the hidden layers")
    parser.add_argument("--json", metavar="FILE", help="where to write the result")
    args = parser.parse_args()

    hvd.init()  # (1)
    if args.batch % hvd.size() != 0:
        parser.error(f"--batch {args.batch} cannot be split evenly among {hvd.size()} ranks")
    train_pixels, train_labels, test_pixels, test_labels = load()
    model = make_model(args.width)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)  # (2) all begin with the same
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=args.momentum)
    optimizer = hvd.DistributedOptimizer(  # (3) averages the gradients
        optimizer, named_parameters=model.named_parameters())

    loss, begin = 0.0, time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(model, optimizer, train_pixels, train_labels, args.batch, epoch)
        if hvd.rank() == 0:
            print(f"epoch {epoch:2}  loss {loss:.4f}  "
                  f"test accuracy {accuracy(model, test_pixels, test_labels):.4f}", flush=True)
    seconds = time.perf_counter() - begin
    result = {
        "ranks": hvd.size(),
        "loss": loss,
        "accuracy": accuracy(model, test_pixels, test_labels),
        "samples_per_second": args.epochs * (len(train_labels) // args.batch * args.batch) / seconds,
    }
    if hvd.rank() == 0 and args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file)
    hvd.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
