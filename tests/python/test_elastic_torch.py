"""hora.torch.elastic: a training that loses ranks and gets new ones comes to the same place; the
sampler; what a state holds."""

from __future__ import annotations

import json
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from elastic_job import ElasticJob  # noqa: E402

BATCHES = 12
SAMPLES = 96
PER_BATCH = 4  # of one rank
EPOCHS = 2


# ---- On workers -----------------------------------------------------------------------------------


def problem() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SAMPLES, 6, generator=generator, dtype=torch.float64)
    return x, x @ torch.randn(6, 2, generator=generator, dtype=torch.float64)


def make_model() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2)).double()


def losses_of(model: Any, x: Any, y: Any) -> Any:
    return ((model(x) - y) ** 2).sum() / SAMPLES


def say(**line: Any) -> None:
    number = os.environ["HORA_ELASTIC_ID"]
    line |= {"worker": number, "pid": os.getpid(), "time": time.time()}
    with open(Path(os.environ["ELASTIC_TEST_FOLDER"]) / f"log.{number}", "a") as file:
        file.write(json.dumps(line) + "\n")


def dies(batch: int, number: str) -> bool:
    return os.environ["ELASTIC_TEST_HOOK"] == f"{batch} {number}"


def full_batches(hvd: Any) -> None:
    """Every rank has a share of all samples, so the gradients do not depend on how many there are.
    Worker 1 dies when part of its gradients is on the way."""
    x, y = problem()
    model = make_model()
    if hvd.rank() != 0:
        with torch.no_grad():
            model[0].weight.zero_()  # sync must bring rank 0's
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = hvd.DistributedOptimizer(inner, model.named_parameters(), op=hvd.Sum)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    state = hvd.elastic.TorchState(model, optimizer, schedule=schedule, batch=0, losses=[])

    @hvd.elastic.run
    def train(state: Any) -> None:
        say(what="enter", rank=hvd.rank(), size=hvd.size(), batch=state.batch)
        while state.batch < BATCHES:
            optimizer.zero_grad()
            share = slice(hvd.rank(), None, hvd.size())
            if state.batch == 5 and dies(5, os.environ["HORA_ELASTIC_ID"]):
                model[2].weight.register_post_accumulate_grad_hook(lambda _: os.kill(os.getpid(), 9))
            loss = losses_of(model, x[share], y[share])
            loss.backward()
            optimizer.step()
            schedule.step()
            state.losses.append(hvd.allreduce(loss.detach(), op=hvd.Sum, name="loss").item())
            state.batch += 1
            if state.batch % 2 == 0:
                state.commit()
            wait_for_company(hvd, state)

    train(state)
    say(what="full", rank=hvd.rank(), losses=state.losses, rate=schedule.get_last_lr(),
        weights=[p.flatten().tolist() for p in model.parameters()])


def wait_for_company(hvd: Any, state: Any) -> None:
    """After the death, at one commit: until the new worker has come."""
    while state.batch == 8 and hvd.size() < 3:
        time.sleep(0.01)
        state.check_host_updates()


def epochs(hvd: Any) -> None:
    """Goes through an epoch with a sampler; worker 2 dies in the midst of it."""
    data = list(range(SAMPLES))
    sampler = hvd.elastic.ElasticSampler(data, seed=4)
    state = hvd.elastic.TorchState(sampler=sampler, epoch=0, seen=[])

    @hvd.elastic.run
    def walk(state: Any) -> None:
        while state.epoch < EPOCHS:
            loader = torch.utils.data.DataLoader(data, PER_BATCH, sampler=sampler)
            for number, batch in enumerate(loader):
                if number == 3 and state.epoch == 1 and dies(5, "1") and hvd.size() == 3 and \
                        os.environ["HORA_ELASTIC_ID"] == "2":
                    os.kill(os.getpid(), 9)
                together = hvd.allgather(batch, name="batch")
                state.seen.append((state.epoch, together.tolist()))
                sampler.record_batch(number, PER_BATCH)
                state.commit()
            state.epoch += 1
            sampler.set_epoch(state.epoch)
            state.commit()

    walk(state)
    say(what="epochs", rank=hvd.rank(), size=hvd.size(), seen=state.seen)


def main() -> None:
    import hora.torch as hvd

    hvd.init()
    full_batches(hvd)
    epochs(hvd)
    hvd.shutdown()


# ---- Tests ----------------------------------------------------------------------------------------


def reference() -> tuple[list[float], Any]:
    x, y = problem()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    losses = []
    for _ in range(BATCHES):
        optimizer.zero_grad()
        loss = losses_of(model, x, y)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses, [p.flatten().tolist() for p in model.parameters()]


def test_training_comes_to_the_same_place(tmp_path: Path) -> None:
    """Worker 1 is killed in a backward pass; later a new one comes in on another "host"; then
    worker 2 is killed between the commits of an epoch."""
    program = [sys.executable, str(Path(__file__).resolve())]
    job = ElasticJob(tmp_path, "-np", "3", "--min-np", "2", "--max-np", "3", hook="5 1",
                     hosts="localhost:3", command=program)
    job.await_event(lambda e: e["what"] == "enter" and e["size"] == 2, 60)
    job.set_hosts("localhost:3,127.0.0.1:1")
    job.succeed(90)
    losses, weights = reference()
    enter = [e for e in job.events("enter") if e["size"] == 2]
    assert {e["batch"] for e in enter} == {4}, "more than the steps since the last commit were lost"
    full = job.events("full")
    assert len(full) == 3 and {e["worker"] for e in full} == {"0", "2", "3"}
    for event in full:
        assert event["losses"] == pytest.approx(losses, rel=1e-9)
        assert event["rate"] == [pytest.approx(0.05 * 0.25)]
        for mine, wanted in zip(event["weights"], weights):
            assert mine == pytest.approx(wanted, rel=1e-9)
    first = {e["worker"]: e["pid"] for e in job.events("enter") if e["size"] == 3}
    assert all(e["pid"] == first[e["worker"]] for e in full if e["worker"] != "3")
    check_epochs(job)


def check_epochs(job: ElasticJob) -> None:
    """Each sample once in each epoch, but for the few that make the ranks' numbers equal."""
    ended = job.events("epochs")
    assert {e["size"] for e in ended} == {2} and len(ended) == 2
    for event in ended:
        for epoch in range(EPOCHS):
            seen = [i for e, batch in event["seen"] if e == epoch for i in batch]
            assert set(seen) == set(range(SAMPLES))
            assert len(seen) - SAMPLES <= 2


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[rank, size] that the sampler sees."""
    import hora.torch.elastic.sampler as module

    place = [0, 1]
    monkeypatch.setattr(module, "rank", lambda: place[0])
    monkeypatch.setattr(module, "size", lambda: place[1])
    return place


def sampler_of(world: list[int], rank: int, size: int, count: int, **options: Any) -> Any:
    from hora.torch.elastic import ElasticSampler

    world[:] = rank, size
    return ElasticSampler(range(count), **options)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 10, 24])
def test_sampler_shares_out(world: list[int], size: int, count: int) -> None:
    own = [sampler_of(world, r, size, count, seed=5) for r in range(size)]
    lists = [list(s) for s in own]
    assert {len(indices) for indices in lists} == {len(own[0])} == {-(-count // size)}
    assert set().union(*map(set, lists)) == set(range(count))
    for sampler in own:
        sampler.set_epoch(1)
    if count >= 10:
        assert [list(s) for s in own] != lists


def test_sampler_without_shuffle(world: list[int]) -> None:
    assert list(sampler_of(world, 1, 3, 10, shuffle=False)) == [1, 4, 7, 0]


def test_sampler_goes_on_with_what_is_left(world: list[int]) -> None:
    size, count = 3, 40
    own = [sampler_of(world, r, size, count) for r in range(size)]
    done: set[int] = set()
    for rank, sampler in enumerate(own):
        list(sampler)
        for number in range(2):
            sampler.record_batch(number, 4)
            assert set(sampler.get_indices(number, 4)) <= sampler.processed_indices
            done.update(sampler.get_indices(number, 4))
    assert len(done) == 24
    saved = own[0].state_dict()
    assert saved["processed_indices"] == done  # rank 0 alone knows it, if the others die
    world[:] = 0, 2
    rest = []
    for rank in range(2):
        world[0] = rank
        new = sampler_of(world, rank, 2, count)
        new.load_state_dict(saved)
        rest.append(list(new))
    assert len(rest[0]) == len(rest[1]) == 8
    assert set(rest[0]) | set(rest[1]) == set(range(count)) - done
    own[1].record_indices([39])
    assert 39 in own[1].state_dict()["processed_indices"]
    own[1].set_epoch(3)
    assert own[1].state_dict() == {"epoch": 3, "processed_indices": set()}


def test_recording_and_committing_cost_the_same_for_any_dataset(world: list[int]) -> None:
    """Judged by memory: neither goes through the samples."""
    from hora.torch.elastic.state import SamplerStateHandler

    sampler = sampler_of(world, 1, 4, 100_000)
    handler = SamplerStateHandler(sampler)
    tracemalloc.start()
    for number in range(1000):
        sampler.record_batch(number, 8)
        handler.save()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000
    assert len(sampler.state_dict()["processed_indices"]) == 32_000


def by_hand(sampler: Any, batches: list[tuple[int, int]]) -> tuple[set[int], set[int]]:
    """(done on its rank, done on all)"""
    lists = [sampler._order[rank :: sampler.num_replicas] for rank in range(sampler.num_replicas)]
    rows = [{i for n, count in batches for i in own[n * count : (n + 1) * count]} for own in lists]
    return rows[sampler.rank], set().union(*rows)


@pytest.mark.parametrize("batches", [
    [(0, 3), (1, 3), (2, 3)], [(0, 3), (2, 3)], [(2, 3), (0, 3), (1, 3)], [(0, 4), (1, 2), (3, 2)],
    [(0, 3), (0, 3), (1, 2)], [(0, 100)], [(7, 9)], [(3, 4)], [(0, 0)], [],
])
@pytest.mark.parametrize("count", [0, 1, 10, 41])
def test_batches_in_any_order(world: list[int], batches: list[tuple[int, int]], count: int) -> None:
    sampler = sampler_of(world, 1, 3, count)
    for number, size in batches:
        sampler.record_batch(number, size)
        assert sampler.get_indices(number, size) == sampler.indices[number * size :][:size]
    own, together = by_hand(sampler, batches)
    assert sampler.processed_indices == own
    assert sampler.state_dict()["processed_indices"] == together
    sampler.reset()
    assert sampler.processed_indices == together
    assert set(sampler) <= set(range(count)) - together


def test_commit_of_a_sampler_stays_what_it_was(world: list[int]) -> None:
    from hora.torch.elastic.state import SamplerStateHandler

    sampler = sampler_of(world, 0, 2, 24)
    sampler.record_batch(0, 2)
    sampler.record_indices([20])
    handler = SamplerStateHandler(sampler)
    wanted = sampler.state_dict()
    sampler.record_batch(1, 2)
    sampler.record_indices([21])
    world[:] = 0, 3
    sampler.reset()
    sampler.record_batch(0, 2)
    for _ in range(2):
        handler.restore()
        assert sampler.state_dict() == wanted and sampler.num_replicas == 3
        sampler.set_epoch(4)


def test_torch_state_on_one_rank() -> None:
    import hora.torch as hvd

    hvd.init()
    try:
        model = torch.nn.BatchNorm1d(3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        state = hvd.elastic.TorchState(model=model, optimizer=optimizer, table={}, vector=torch.ones(2))
        assert (state.model, state.optimizer, state.table) == (model, optimizer, {})
        state.sync()

        def step() -> None:
            model(torch.randn(4, 3)).pow(2).sum().backward()
            optimizer.step()
            state.table["x"] = len(state.table) + 1
            state.vector += 1

        def snapshot() -> Any:
            values = [*model.state_dict().values(), state.vector, torch.tensor(len(state.table))]
            for entry in optimizer.state_dict()["state"].values():
                values += entry.values()
            return [v.clone() for v in values]

        step()
        state.commit()
        kept = snapshot()
        for _ in range(2):
            step()
            assert any(not torch.equal(a, b) for a, b in zip(kept, snapshot()))
            state.restore()
            assert all(torch.equal(a, b) for a, b in zip(kept, snapshot()))
        other = torch.nn.Linear(2, 2)
        state.model = other
        weight = other.weight.detach().clone()
        torch.nn.init.zeros_(other.weight)
        state.restore()
        assert torch.equal(other.weight, weight)
        empty = hvd.elastic.TorchState(batch=1)
        assert empty.model is None and empty.optimizer is None and empty.batch == 1
    finally:
        hvd.shutdown()


if __name__ == "__main__":
    main()
