"""A script for Horovod, as its users write them: it knows nothing of hora. Measures training on data
that is made up, then says whether all ranks have the same weights."""

import argparse
import timeit

import torch
import torch.nn.functional as F

import horovod.torch as hvd
from horovod.torch.mpi_ops import synchronize

parser = argparse.ArgumentParser()
parser.add_argument("--batch-size", type=int, default=8)
parser.add_argument("--num-iters", type=int, default=2)
parser.add_argument("--num-batches-per-iter", type=int, default=2)
parser.add_argument("--fp16-allreduce", action="store_true")
parser.add_argument("--use-adasum", action="store_true")
args = parser.parse_args()

hvd.init()
torch.manual_seed(hvd.rank())
model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(4 * 14 * 14, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01 * hvd.size(), momentum=0.9)
compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
optimizer = hvd.DistributedOptimizer(
    optimizer, named_parameters=model.named_parameters(), compression=compression,
    op=hvd.Adasum if args.use_adasum else hvd.Average)
hvd.broadcast_parameters(model.state_dict(), root_rank=0)
hvd.broadcast_optimizer_state(optimizer, root_rank=0)

data = torch.randn(args.batch_size, 3, 16, 16)
target = torch.randint(0, 10, (args.batch_size,))


def log(text):
    if hvd.rank() == 0:
        print(text)


def benchmark_step():
    optimizer.zero_grad()
    F.cross_entropy(model(data), target).backward()
    optimizer.step()


log(f"Batch size: {args.batch_size}")
log(f"Number of CPUs: {hvd.size()}")
rates = []
for i in range(args.num_iters):
    seconds = timeit.timeit(benchmark_step, number=args.num_batches_per_iter)
    rates.append(args.batch_size * args.num_batches_per_iter / seconds)
    log(f"Iter #{i}: {rates[-1]:.1f} img/sec per CPU")

weights = torch.cat([p.detach().flatten() for p in model.parameters()])
mean = synchronize(hvd.allreduce_async(weights, name="weights"))
log(f"same weights: {torch.allclose(mean, weights, rtol=0, atol=1e-6)}")
log(f"Total img/sec on {hvd.size()} CPU(s): {hvd.size() * sum(rates) / len(rates):.1f}")
