"""The parts of elastic jobs, one by one: the line to the driver, who gets which place, hosts, state."""

from __future__ import annotations

import itertools
import math
import selectors
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from hora.common import elastic, elastic_link, elastic_worker
from hora.common.elastic_link import DRIVER, WORKER, End, LinkError, RefusedError
from hora.common.exceptions import HorovodInternalError, HostsUpdatedInterrupt
from hora.runner.elastic import discovery, rendezvous
from hora.runner.elastic.registration import Desk
from hora.runner.elastic.rendezvous import Worker
from hora.runner.elastic.settings import ElasticSettings, check_settings
from hora.runner.hosts import Host, HostError

# ---- The line -------------------------------------------------------------------------------------


def pair(worker_secret: str = "s", driver_secret: str = "s") -> tuple[End, End]:
    driver, worker = End(DRIVER, driver_secret), End(WORKER, worker_secret)
    driver.nonce, hello = elastic_link.greeting()
    worker.accept(driver.admit(worker.introduce(hello.strip(), "7", 42).strip()).strip())
    return driver, worker


def test_line_carries_messages_both_ways() -> None:
    driver, worker = pair()
    assert (driver.worker, driver.pid) == ("7", 42)
    for number in range(3):
        data = worker.encode({"do": "x", "number": number, "text": "\u00e9\n\0"})
        (line,) = driver.lines(data)
        assert driver.decode(line) == {"do": "x", "number": number, "text": "\u00e9\n\0"}
        (line,) = worker.lines(driver.encode({"answer": number}))
        assert worker.decode(line) == {"answer": number}


def test_wrong_secret_is_found_out_by_either_side() -> None:
    with pytest.raises(LinkError, match="does not know the job's secret"):
        pair("guess", "s")
    worker = End(WORKER, "s")
    _, hello = elastic_link.greeting()
    worker.introduce(hello.strip(), "7", 42)
    with pytest.raises(LinkError, match="launcher does not know"):
        worker.accept(b'{"proof": "00"}')


def test_process_number_is_proved_and_refusals_are() -> None:
    driver, worker = End(DRIVER, "s"), End(WORKER, "s")
    driver.nonce, hello = elastic_link.greeting()
    proof = worker.introduce(hello.strip(), "7", 42).strip()
    with pytest.raises(LinkError, match="does not know the job's secret"):
        driver.admit(proof.replace(b":42,", b":43,"))
    asked: list[Any] = []

    def refuse(*who: Any) -> str:
        asked.append(who)
        return "go away"

    refusal = driver.admit(proof, refuse).strip()
    assert asked == [("7", 42)] and driver.key is None
    with pytest.raises(LinkError, match="launcher does not know"):
        worker.accept(refusal.replace(b"go", b"no"))
    with pytest.raises(RefusedError, match="go away"):
        worker.accept(refusal)
    assert worker.key is None


def test_lines_cannot_be_changed_repeated_or_turned_round() -> None:
    driver, worker = pair()
    first, second = (worker.encode({"n": n}).strip() for n in range(2))
    for line in (second, first.replace(b'"n":0', b'"n":9'), driver.encode({"n": 0}).strip(), b"", b" {}"):
        with pytest.raises(LinkError, match="not made with the job's secret"):
            driver.decode(line)
    assert driver.decode(first) == {"n": 0}
    with pytest.raises(LinkError):
        driver.decode(first)
    assert driver.decode(second) == {"n": 1}
    other, _ = pair()  # the same secret, another connection
    with pytest.raises(LinkError):
        other.decode(first)


@pytest.mark.parametrize("line", [b"", b"[]", b"7", b"{", b'{"nonce": 1}', b'{"worker": "1"}', b"\xff",
                                  b"[" * 400, b'{"nonce": "a", "worker": "1", "pid": 1, "proof": 5}',
                                  b'{"nonce": "a", "worker": "1", "pid": "1", "proof": "00"}'])
def test_nonsense_instead_of_a_proof(line: bytes) -> None:
    driver = End(DRIVER, "s")
    driver.nonce, _ = elastic_link.greeting()
    with pytest.raises(LinkError):
        driver.admit(line)
    with pytest.raises(LinkError):
        End(WORKER, "s").introduce(line, "1", 42)


def test_lines_come_in_any_pieces_and_have_limits() -> None:
    driver, worker = pair()
    data = b"".join(worker.encode({"n": n}) for n in range(4))
    lines = [line for i in range(0, len(data), 7) for line in driver.lines(data[i : i + 7])]
    assert [driver.decode(line)["n"] for line in lines] == [0, 1, 2, 3]
    stranger = End(DRIVER, "s")
    with pytest.raises(LinkError, match="too long"):
        list(stranger.lines(b"x" * 513))
    with pytest.raises(LinkError, match="too long"):
        for _ in range(10):
            list(driver.lines(b"x" * 10000))
    with pytest.raises(LinkError, match="bytes"):
        worker.encode({"text": "x" * 70000})


class Office:
    """A desk in a loop of its own."""

    def __init__(self, local: bool) -> None:
        self.selector = selectors.DefaultSelector()
        self.heard: list[tuple[int, dict[str, Any]]] = []
        self.notes: list[str] = []
        self.desk = Desk(local, "secret", self.selector, self.hear, self.notes.append)

    def hear(self, worker: int, message: dict[str, Any]) -> None:
        self.heard.append((worker, message))
        self.desk.tell(worker, echo=message["number"])

    def turn(self, seconds: float = 0.01) -> None:
        for key, what in self.selector.select(seconds):
            key.data.send() if what & selectors.EVENT_WRITE else key.data.events()

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline
            self.turn()


@pytest.mark.parametrize("local", [True, False])
def test_desk_admits_workers_only(local: bool) -> None:
    office = Office(local)
    address = office.desk.address("127.0.0.1")
    got: list[Any] = []

    def visit(secret: str, number: str) -> None:
        try:
            sock, end = elastic_link.connect(address, secret, number, 10)
        except (OSError, LinkError) as error:
            got.append(error)
            return
        sock.sendall(end.encode({"number": 5}))
        data = sock.recv(4096)
        got.append(end.decode(next(iter(end.lines(data)))))
        sock.close()

    for secret, number, wanted in (("secret", "3", {"echo": 5}), ("guess", "4", None)):
        thread = threading.Thread(target=visit, args=(secret, number))
        thread.start()
        office.until(lambda: not thread.is_alive())
        thread.join()
        if wanted is None:
            assert isinstance(got.pop(), ConnectionError)
        else:
            assert got.pop() == wanted
    office.until(lambda: not office.desk.workers and not office.desk.strangers)
    assert office.heard == [(3, {"number": 5})]
    office.desk.close()


def test_desk_has_room_for_few_strangers() -> None:
    office = Office(True)
    name = "\0" + office.desk.name
    visitors = []
    for _ in range(100):
        visitors.append(socket.socket(socket.AF_UNIX))
        visitors[-1].connect(name)
        office.turn()
    office.until(lambda: len(office.desk.strangers) == 64)
    visitors[-1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    office.until(lambda: len(office.desk.strangers) == 63)
    for visitor in visitors:
        visitor.close()
    office.until(lambda: not office.desk.strangers)
    office.desk.close()


def test_desk_has_room_for_the_workers_that_were_started() -> None:
    office = Office(True)
    office.desk.expected = 40
    visitors = []
    for _ in range(104):
        visitors.append(socket.socket(socket.AF_UNIX))
        visitors[-1].connect("\0" + office.desk.name)
        office.turn()
    office.until(lambda: len(office.desk.strangers) == 104)
    for visitor in visitors:
        visitor.close()
    office.desk.close()


def test_worker_comes_again_when_it_was_turned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the desk does with the oldest where too many have not proved who they are."""
    office = Office(True)
    for name, value in (("DRIVER", office.desk.address("")), ("ID", "3")):
        monkeypatch.setenv(f"HORA_ELASTIC_{name}", value)
    monkeypatch.setenv("HORA_SECRET", "secret")
    own = elastic_worker.Worker.__new__(elastic_worker.Worker)
    own._id = "3"
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(own._connect()), daemon=True)
    thread.start()
    office.until(lambda: office.desk.strangers)
    for stranger in list(office.desk.strangers):
        stranger.close()
    office.until(lambda: got or not thread.is_alive())
    assert got and got[0][1].worker == "3"
    got[0][0].close()
    office.desk.close()


# ---- Places ---------------------------------------------------------------------------------------


def workers(*ranks: int | None, hosts: str = "aaaaaaaa", commits: int = 5) -> list[Worker]:
    return [Worker(n, hosts[n], n, "waiting", rank, 1, rank is not None,
                   commits if rank is not None else -1) for n, rank in enumerate(ranks)]


def test_survivors_keep_their_ranks_where_they_can() -> None:
    new = rendezvous.order(workers(0, 2, 3, None))
    assert [w.number for w in new] == [0, 3, 1, 2]  # the newcomer takes rank 1
    assert [w.number for w in rendezvous.order(workers(0, 2, 3))] == [0, 2, 1]
    assert [w.number for w in rendezvous.order(workers(None, None, 1))] == [2, 0, 1]
    assert [w.number for w in rendezvous.order(workers(None, None))] == [0, 1]


def test_rank_0_has_the_newest_commit() -> None:
    found = workers(0, 1, 2)
    found[2].commits = 6
    assert [w.number for w in rendezvous.order(found)] == [2, 1, 0]


def test_ranks_of_a_machine_are_neighbours() -> None:
    found = workers(0, 1, 3, None, None, hosts="abbaab")
    assert [w.number for w in rendezvous.order(found)] == [0, 3, 4, 1, 2]
    found[2].commits = 9
    assert [w.number for w in rendezvous.order(found)] == [2, 1, 0, 3, 4]


def test_every_order_is_one() -> None:
    for ranks in itertools.product([None, 0, 1, 2, 3, 7], repeat=4):
        if len(set(r for r in ranks if r is not None)) < sum(r is not None for r in ranks):
            continue
        for hosts in ("aaaa", "abab"):
            new = rendezvous.order(workers(*ranks, hosts=hosts))
            assert sorted(w.number for w in new) == [0, 1, 2, 3]
            if any(r is not None for r in ranks):
                assert new[0].rank is not None


def test_choice_by_slots_and_by_the_most() -> None:
    found = workers(0, 1, None, None, hosts="abab")
    chosen, others = rendezvous.choose(found, {"a": 1, "b": 2}, None, True)
    assert [w.number for w in chosen] == [0, 1, 3] and [w.number for w in others] == [2]
    chosen, others = rendezvous.choose(found, {"a": 9, "b": 9}, 3, True)
    assert [w.number for w in chosen] == [0, 1, 2]
    chosen, _ = rendezvous.choose(found, {"b": 2}, None, True)
    assert [w.number for w in chosen] == [1, 3]


def test_the_last_one_with_state_stays() -> None:
    found = workers(0, 1, None, None, hosts="aabb")
    chosen, others = rendezvous.choose(found, {"b": 2}, None, True)
    assert [w.number for w in chosen] == [0, 2, 3] and [w.number for w in others] == [1]
    chosen, _ = rendezvous.choose(found, {"b": 2}, 2, True)
    assert [w.number for w in chosen] == [0, 2]
    chosen, _ = rendezvous.choose(found, {"b": 2}, None, False)
    assert [w.number for w in chosen] == [2, 3]
    assert rendezvous.choose(found, {}, None, True)[0] == []


def test_environment_on_one_machine_and_on_two() -> None:
    envs = rendezvous.environments(workers(0, 1, hosts=["localhost", "127.0.0.1"]))  # type: ignore[arg-type]
    assert [e["HORA_LOCAL_RANK"] for e in envs] == ["0", "1"]
    assert all(e["HORA_CROSS_SIZE"] == "1" and e["HORA_RENDEZVOUS"].startswith("unix:") for e in envs)
    found = workers(0, 1, 2, hosts="aab")
    found[0].ports = (4001, 4002)
    envs = rendezvous.environments(found)
    assert {e["HORA_RENDEZVOUS"] for e in envs} == {"tcp:a:4001"}
    assert {(e["MASTER_ADDR"], e["MASTER_PORT"]) for e in envs} == {("a", "4002")}
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE")
    values = [[int(e[f"HOROVOD_{n}"]) for n in names] for e in envs]
    assert values == [[0, 3, 0, 2, 0, 2], [1, 3, 1, 2, 0, 1], [2, 3, 0, 1, 1, 2]]


# ---- Hosts ----------------------------------------------------------------------------------------


def test_lines_of_the_script() -> None:
    text = "a:2\n\n# comment\nb  # one more\n a:1 \nc:0\n[::1]:4\n"
    assert discovery.parse_lines(text, 3) == {"a": 3, "b": 3, "::1": 4}
    with pytest.raises(HostError, match="--slots-per-host"):
        discovery.parse_lines("b\n", None)
    with pytest.raises(HostError, match="no host"):
        discovery.parse_lines("a b c\n", 1)


def test_discovery_tells_of_changes_only(tmp_path: Path) -> None:
    hosts, runs = tmp_path / "hosts", tmp_path / "runs"
    hosts.write_text("a:1\n")
    woken = threading.Event()
    found = discovery.Discovery(None, f"echo >> {runs}; cat {hosts}", None, woken.set)
    assert not found.fixed and woken.wait(10) and found.changes.get() == {"a": 1}
    woken.clear()
    while not runs.exists() or len(runs.read_text()) < 3:
        time.sleep(0.05)
    assert not woken.is_set()
    rest = tmp_path / "more"
    rest.write_text("a:1\nb:2\n")
    rest.rename(hosts)  # at once: an empty file would be a change, too
    assert woken.wait(10) and found.changes.get() == {"a": 1, "b": 2}
    woken.clear()
    hosts.unlink()
    assert woken.wait(10)
    error = found.changes.get()
    assert isinstance(error, HostError) and "No such file" in str(error)
    found.stop()


def test_blacklist() -> None:
    for_good = discovery.Blacklist(None)
    assert for_good.add("a", 100.0) == math.inf and for_good.has("a", 1e9)
    assert not for_good.has("b", 0.0) and for_good.next_return(0.0) is None
    times = []
    blacklist = discovery.Blacklist((10.0, 100.0))
    now = 0.0
    for _ in range(8):
        times.append(blacklist.add("a", now))
        assert blacklist.has("a", now + times[-1] - 0.1)
        assert blacklist.add("a", now + 1.0) == pytest.approx(times[-1] - 1.0)  # not twice
        assert blacklist.next_return(now) == pytest.approx(times[-1])
        now += times[-1] + 0.1
        assert not blacklist.has("a", now)
    for time_out, low in zip(times, (10, 20, 40, 80, 100, 100, 100, 100)):
        assert low - 1e-6 <= time_out <= min(100, 1.5 * low) + 1e-6


@pytest.mark.parametrize("change, text", [
    ({"min_np": 0}, "at least one"), ({"min_np": 3}, "less than"), ({"max_np": 1}, "less than"),
    ({"np": 5, "min_np": 5, "max_np": None}, "4 slots"), ({"timeout": 0}, "positive"),
    ({"reset_limit": -1}, "negative"), ({"cooldown": (5.0, 1.0)}, "MIN"),
    ({"hosts": None}, "either"), ({"script": "x"}, "either"),
])  # fmt: skip
def test_settings_that_cannot_be(change: dict[str, Any], text: str) -> None:
    good: dict[str, Any] = {"np": 2, "min_np": 2, "max_np": 4, "hosts": [Host("localhost", 4)]}
    check_settings(ElasticSettings(**good))
    with pytest.raises(HostError, match=text):
        check_settings(ElasticSettings(**(good | change)))


# ---- State and the loop, in a job of one rank -------------------------------------------------------


def one_rank(**values: Any) -> elastic.ObjectState:
    return elastic.ObjectState(lambda obj: obj, lambda: 0, **values)


def test_object_state_saves_what_is_changed_in_place() -> None:
    state = one_rank(step=0, losses=[], table={"a": [1]})
    state.step, state.table["a"] = 3, [2]
    state.losses.append(0.5)
    state.commit()
    state.step = 9
    state.losses.append(0.1)
    state.table["a"].append(7)
    state.restore()
    assert (state.step, state.losses, state.table) == (3, [0.5], {"a": [2]})
    state.losses.append(1.0)
    state.restore()
    assert state.losses == [0.5]


def test_sync_keeps_what_was_set_since_the_beginning() -> None:
    state = one_rank(epoch=0)
    state.epoch = 4  # loaded from a file
    state.sync()
    state.restore()
    assert state.epoch == 4


def test_hosts_updated_is_raised_at_a_commit() -> None:
    state = one_rank(step=0)
    state.commit()
    state.on_hosts_updated(1.0, elastic.HostUpdateResult.removed)
    state.step = 1
    with pytest.raises(HostsUpdatedInterrupt) as caught:
        state.commit()
    assert caught.value.skip_sync
    state.restore()
    assert state.step == 1  # it was saved first
    state.commit()
    state.on_hosts_updated(2.0, elastic.HostUpdateResult.removed)
    state.on_hosts_updated(3.0, elastic.HostUpdateResult.added)
    with pytest.raises(HostsUpdatedInterrupt) as caught:
        state.check_host_updates()
    assert not caught.value.skip_sync
    state.on_hosts_updated(2.5, elastic.HostUpdateResult.added)  # older than what is known
    state.commit()


def test_loop_after_a_change_of_hosts() -> None:
    state = one_rank(step=0)
    calls: list[str] = []
    state.register_reset_callbacks([lambda: calls.append("first"), lambda: calls.append("second")])

    def train(own: elastic.ObjectState, factor: int) -> int:
        if own.step == 0:
            own.step = 5
            raise HostsUpdatedInterrupt()
        return own.step * factor

    assert elastic.run_fn(train, lambda: calls.append("reset"))(state, factor=2) == 10
    assert calls == ["reset", "first", "second"]
    assert state not in elastic.notification_manager._listeners


def test_errors_pass_where_no_driver_is() -> None:
    def fail(_: Any) -> None:
        raise HorovodInternalError("a rank died")

    with pytest.raises(HorovodInternalError, match="a rank died"):
        elastic.run_fn(fail, lambda: pytest.fail("reset"))(one_rank(step=0))
    with pytest.raises(KeyError):
        elastic.run_fn(lambda _: {}["x"], lambda: pytest.fail("reset"))(one_rank(step=0))
