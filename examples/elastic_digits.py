"""Trains a small network on handwritten digits, and goes on when ranks are lost or come in.

    hora run -np 3 --min-np 1 python examples/elastic_digits.py --kill 1
    hora run -np 2 --min-np 1 --max-np 4 --host-discovery-script ./hosts.sh \\
        python examples/elastic_digits.py

--kill R lets rank R die after the first epoch, to see what happens. What makes the training elastic
is marked with (1) to (4); docs/elastic.md explains it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import hora.torch as hvd


def load() -> tuple[torch.utils.data.TensorDataset, torch.Tensor, torch.Tensor]:
    digits = load_digits()
    pixels = torch.tensor(digits.data / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    train, test = order[:1437], order[1437:]
    return torch.utils.data.TensorDataset(pixels[train], labels[train]), pixels[test], labels[test]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.05, help="per rank")
    parser.add_argument("--batch", type=int, default=16, help="samples per step and rank")
    parser.add_argument("--kill", type=int, metavar="R", help="rank R dies after the first epoch")
    args = parser.parse_args()

    hvd.init()
    victim = hvd.rank() == args.kill
    data, test_pixels, test_labels = load()
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr * hvd.size(), momentum=0.9)
    optimizer = hvd.DistributedOptimizer(optimizer, model.named_parameters())

    sampler = hvd.elastic.ElasticSampler(data)  # (1) shares out what is left of an epoch
    loader = torch.utils.data.DataLoader(data, args.batch, sampler=sampler)
    state = hvd.elastic.TorchState(  # (2) what must survive
        model=model, optimizer=optimizer, sampler=sampler, epoch=1, size=hvd.size())

    @hvd.elastic.run  # (3) runs it again from the last commit when ranks are lost
    def train(state: hvd.elastic.TorchState) -> None:
        for group in optimizer.param_groups:  # the batches of all ranks together have another size
            group["lr"] *= hvd.size() / state.size
        state.size = hvd.size()
        while state.epoch <= args.epochs:
            for number, (pixels, labels) in enumerate(loader):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(pixels), labels)
                loss.backward()
                optimizer.step()
                sampler.record_batch(number, args.batch)
                if number % 10 == 9:
                    state.commit()  # (4) at most ten steps are lost
                if victim and state.epoch == 2 and number == 4:
                    print("this rank dies", flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)
            mean = hvd.allreduce(loss.detach(), name="loss").item()
            if hvd.rank() == 0:
                with torch.no_grad():
                    right = (model(test_pixels).argmax(dim=1) == test_labels).float().mean().item()
                print(f"epoch {state.epoch:2}  {hvd.size()} ranks  loss {mean:.4f}  "
                      f"test accuracy {right:.4f}", flush=True)
            state.epoch += 1
            sampler.set_epoch(state.epoch)
            state.commit()

    train(state)
    hvd.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
