"""The driver of an elastic job: `hora run` with --min-np, --max-np or --host-discovery-script.

One thread, the launcher's loop; host discovery has a thread of its own, which only puts what it
finds into a queue. What happens to workers comes from their agents (started, output, ended) and from
the workers themselves over lines of their own (registration.py). After each event ``consider`` looks
at the whole and does what is due:

    hosts that may be used     -> start workers there, up to the most that are wanted
    a generation is running    -> tell it of workers that wait and of hosts that were taken away; its
                                  members leave it together, at a commit
    a generation is broken     -> wait until all who are left of it have asked for a new place
    enough workers ask         -> a new generation: each is told its rank, and where all meet
    too few, for too long      -> the job fails, and says why

A generation is broken when one of its members ends, or asks for a place. While its members are still
joining, the end of one also ends the joining of the others. Survivors keep their processes always.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import selectors
import secrets
import signal
import time
from typing import Any

from hora.common.elastic_link import HostUpdateResult
from hora.runner.elastic.discovery import Blacklist, Discovery
from hora.runner.elastic.registration import Desk
from hora.runner.elastic.rendezvous import Worker, choose, environments, order
from hora.runner.elastic.settings import ElasticSettings, read_settings
from hora.runner.hosts import Host, HostError, address_towards, shown_name
from hora.runner.job import AgentLink, Job, Launcher, signal_name
from hora.runner.output import Output

LEAVE_SECONDS = 10.0  # for a worker that has no place any more to end by itself
FAILED_JOININGS = 10  # generations in a row that do not come about, although nobody dies


def run_elastic(args: argparse.Namespace, job: Job) -> int:
    """Runs an elastic job as the command line says, and returns its exit code. ``job`` says how
    workers are started; its hosts and rank environments are not used. Blocks until all has ended."""
    return Driver(job, read_settings(args)).run()


def run_elastic_function(args: argparse.Namespace, job: Job, call: bytes) -> list[Any]:
    """The same for a function; returns the results of those who finished, by their ranks."""
    from hora.runner import function, task

    results = function.Results()
    job.command = [*job.command, "-c", task.BOOTSTRAP]
    job.task = call
    job.on_result = results.feed
    driver = Driver(job, read_settings(args))
    driver.results = results
    code = driver.run()
    function.check_ended(driver, code)
    if code != 0:
        return function.collect(results, driver, code, len(driver.workers))
    by_rank = function.Results()
    for rank, worker in enumerate(sorted(driver.finishers, key=lambda w: (w.rank or 0, w.number))):
        by_rank.feed(rank, bytes(results.data.get(worker.number, b"")))
    return by_rank.values(len(driver.finishers))


class WorkerOutput(Output):
    """Lines bear the rank that a worker has at the time; files are per worker."""

    ranks: dict[int, int]

    def head(self, rank: int, stream: str) -> bytes:
        return super().head(self.ranks.get(rank, rank), stream)


class WorkerLink(AgentLink):
    """An agent that starts some workers of a host. Further ones get another agent."""

    def config(self, job: Job, fds: list[int]) -> dict[str, Any]:
        return {**super().config(job, fds), "slots": self.host.slots}

    def signal_one(self, worker: int, number: int) -> None:
        self.send(b"signal %d %d\n" % (number, worker))


class Driver(Launcher):
    def __init__(self, job: Job, settings: ElasticSettings) -> None:
        secret = secrets.token_hex(32)
        super().__init__(dataclasses.replace(job, hosts=[], rank_env={}, title="the elastic job"))
        self.settings = settings
        self.secret = secret
        self.output = WorkerOutput(1, job.prefix, None, job.timestamp)
        self.output.folder = job.output_dir
        self.output.width = len(str(settings.np - 1))
        self.output.ranks = {}
        self.workers: dict[int, Worker] = {}
        self.links: dict[int, WorkerLink] = {}
        self.slots: dict[str, int] = {}  # of each host, as last discovered
        self.blacklist = Blacklist(settings.cooldown)
        self.discovery: Discovery | None = None
        self.discovery_error = ""
        local = settings.script is None and all(host.is_local for host in settings.hosts or [])
        self.desk = Desk(local, secret, self.selector, self.on_message, self.job.info)
        self.generation = 0
        self.members: list[Worker] = []
        self.joined: set[int] = set()
        self.broken = True  # the generation, or there is none yet
        self.began = False  # a generation has come about
        self.has_state = False  # some worker said that it has committed something
        self.resets = 0
        self.failed_joinings = 0
        self.succeeded = False  # a worker has ended well: the job is finishing
        self.finishers: list[Worker] = []  # all of them
        self.results: Any = None  # function.Results by worker, where a function is run
        self.told: set[str] = set()  # what the running generation has been told of
        self.short_since: float | None = None
        self.broken_since = time.monotonic()
        self.leaving: dict[int, float] = {}  # when a worker without a place is killed
        self.first_code = 0  # of the first worker that failed
        self.due: float | None = None  # when consider() has to look again

    # ---- What happens to workers ------------------------------------------------------------------

    def name(self, worker: Worker) -> str:
        if worker.rank is None:
            return f"worker {worker.number} on host {shown_name(worker.host)}"
        return f"rank {worker.rank} (worker {worker.number}) on host {shown_name(worker.host)}"

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.alive]

    def is_member(self, worker: Worker) -> bool:
        return worker.generation == self.generation and self.generation > 0

    def on_message(self, number: int, message: dict[str, Any]) -> None:
        """A worker speaks. KeyError, TypeError and ValueError end its connection."""
        worker = self.workers.get(number)
        if worker is None or not worker.alive:
            return
        what = message["do"]
        if what == "place":
            self.asked(worker, message)
        elif what == "joined" and int(message["generation"]) == self.generation:
            self.has_joined(worker)
        elif what == "error":
            worker.error = str(message["text"])
            worker.fatal = not message["internal"]

    def asked(self, worker: Worker, message: dict[str, Any]) -> None:
        one, two = message["ports"]
        why, commits = str(message["why"]), int(message["commits"])
        worker.ports, worker.pid = (int(one), int(two)), int(message["pid"])
        worker.why, worker.commits, worker.text = why, commits, str(message["text"])
        worker.state = "waiting"
        self.has_state |= commits >= 0
        if not self.is_member(worker):
            return
        if int(message["generation"]) == self.generation:  # it had joined; that was overtaken
            self.count_joined(worker)
        elif not self.broken:
            self.failed_joinings += 1
        self.broke(f"{self.name(worker)} asks for a new place ({why})")

    def has_joined(self, worker: Worker) -> None:
        if worker.state == "placed":
            worker.state = "running"
            self.count_joined(worker)

    def count_joined(self, worker: Worker) -> None:
        before = len(self.joined)
        self.joined.add(worker.number)
        if not before < len(self.joined) == len(self.members):
            return
        self.began = True
        self.failed_joinings = 0
        for member in self.members:
            member.member = True
        self.job.info(f"elastic: generation {self.generation} runs with {len(self.members)} ranks")

    def broke(self, why: str) -> None:
        """The generation is over; those who are still joining it need not go on."""
        if self.broken:
            return
        self.broken = True
        self.broken_since = time.monotonic()
        self.job.info(f"elastic: generation {self.generation} ends: {why}")
        if self.joined:
            return  # who has not said so has joined too, or hears of the failure there
        for member in self.members:
            if member.state == "placed":
                self.desk.tell(member.number, do="cancel", generation=self.generation)

    def rank_ended(self, agent: AgentLink, rank: int, code: int) -> None:
        agent.left.discard(rank)
        self.output.end(rank)
        worker = self.workers[rank]
        wanted = worker.state == "leaving"
        worker.state = "ended"
        self.leaving.pop(rank, None)
        if self.code is not None or wanted:
            return
        if code == 0:
            self.succeeded = True
            self.finishers.append(worker)
            self.job.info(f"elastic: {self.name(worker)} has finished")
        else:
            self.worker_failed(worker, code)
        if not self.alive() and self.code is None and not self.succeeded:
            last = f": {worker.error}" if worker.error else ""
            self.fail(self.first_code, f"elastic: no worker is left{last}", 0.0)

    def worker_failed(self, worker: Worker, code: int) -> None:
        how = f"was ended by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        exit_code = 128 - code if code < 0 else code
        self.first_code = self.first_code or exit_code
        self.look_for_error(worker)
        if self.failed_rank is None or worker.fatal:
            self.failed_rank, self.failed_host = worker.number, worker.host
        if worker.fatal:
            self.fail(exit_code, f"{self.name(worker)} {how}: {worker.error}", self.job.grace)
            return
        if self.succeeded and code > 0:
            self.fail(exit_code, f"{self.name(worker)} {how}, after others had finished",
                      self.job.grace)
            return
        out = ""
        if worker.host in self.slots:
            seconds = self.blacklist.add(worker.host, time.monotonic())
            out = f"; no new workers on {worker.host}"
            out += f" for {seconds:.0f} s" if seconds < float("inf") else ""
        left = len(self.alive())
        self.say(f"elastic: {self.name(worker)} {how}; {left} {'is' if left == 1 else 'are'} left{out}")
        if self.is_member(worker):
            self.broke(f"{self.name(worker)} {how}")

    def look_for_error(self, worker: Worker) -> None:
        """What a function raised has come as its result."""
        got = self.results.get(worker.number) if self.results is not None else None
        if got is not None and not got[0]["ok"]:
            worker.error, worker.fatal = got[0]["text"], not got[0]["internal"]

    def agent_gone(self, agent: AgentLink) -> None:
        lost, agent.left = sorted(agent.left), set()
        super().agent_gone(agent)
        for number in lost:
            worker = self.workers[number]
            worker.error = worker.error or f"host {shown_name(worker.host)} was lost"
            self.rank_ended(agent, number, 255)
        self.agents = [each for each in self.agents if not each.gone]

    def handle(self, agent: AgentLink, event: dict[str, Any]) -> None:
        if "error" in event and not self.began:
            super().handle(agent, event)
        elif "error" in event:
            for number in sorted(agent.left):
                self.workers[number].error = str(event["error"])
                self.rank_ended(agent, number, 127)
        else:
            super().handle(agent, event)

    # ---- Starting workers ---------------------------------------------------------------------------

    def usable(self) -> dict[str, int]:
        """Slots by host, without the hosts on which no worker may be started now."""
        now = time.monotonic()
        return {h: n for h, n in self.slots.items() if not self.blacklist.has(h, now)}

    def send_home(self) -> None:
        """The job is finishing: nobody new is needed. Without any generation so far, the program may
        be one that knows nothing of hora."""
        for worker in self.alive():
            if worker.state == "waiting" and not worker.member:
                self.dismiss(worker)
            elif worker.state == "starting" and self.began:
                worker.state = "leaving"
                self.links[worker.number].signal_one(worker.number, signal.SIGKILL)

    def staff(self) -> None:
        """Starts workers in free slots."""
        usable = self.usable()
        if not self.workers:
            if sum(usable.values()) < self.wanted_at_start():
                return
            self.broken_since = time.monotonic()  # from here on the first ones have their time
        here = [worker for worker in self.workers.values() if worker.state != "ended"]
        most = self.settings.max_np
        room = sum(usable.values()) if most is None else most - len(self.alive())
        batches = []
        for host, slots in usable.items():
            free = min(slots - sum(worker.host == host for worker in here), room)
            if free > 0:
                room -= free
                batches.append((host, slots, [self.new_worker(host) for _ in range(free)]))
        first = [w for _, _, batch in batches for w in batch] if not self.agents else []
        planned = environments(first) if len({w.machine for w in first}) == 1 else []
        for host, slots, batch in batches:
            self.start_batch(host, slots, batch, planned)

    def wanted_at_start(self) -> int:
        """As many as were asked for; after half of the time, as many as are needed."""
        waited = time.monotonic() - self.broken_since
        if waited < self.settings.timeout / 2:
            self.look_in(self.settings.timeout / 2 - waited)
            return self.settings.np
        return self.settings.min_np

    def new_worker(self, host: str) -> Worker:
        worker = Worker(len(self.workers), host, 0)
        taken = {w.slot for w in self.workers.values()
                 if w.state != "ended" and w.machine == worker.machine}
        worker.slot = min(set(range(len(taken) + 1)) - taken)
        self.workers[worker.number] = worker
        return worker

    def start_batch(self, host: str, slots: int, batch: list[Worker],
                    planned: list[dict[str, str]]) -> None:
        """``planned``: the places that the workers will get if nothing comes between, for programs
        that look at their rank before they call init()."""
        own = Host(host, slots, [worker.number for worker in batch])
        address = "127.0.0.1" if own.is_local or self.desk.name else address_towards(host)
        for worker in batch:
            env = planned[worker.number] if planned else {}
            self.job.rank_env[worker.number] = env | {
                "HORA_ELASTIC": "1",
                "HOROVOD_ELASTIC": "1",
                "HORA_ELASTIC_DRIVER": self.desk.address(address),
                "HORA_ELASTIC_ID": str(worker.number),
                "HORA_ELASTIC_TIMEOUT": f"{self.settings.timeout:g}",
                "HOROVOD_ELASTIC_TIMEOUT": f"{self.settings.timeout:g}",
                "HORA_SECRET": self.secret,
                "PYTHONUNBUFFERED": "1",
            }
        self.desk.expected += len(batch)
        agent = WorkerLink(self.job, own)
        for worker in batch:
            self.links[worker.number] = agent
        self.agents.append(agent)
        self.selector.register(agent.process.stdout, selectors.EVENT_READ, agent)
        numbers = ", ".join(str(worker.number) for worker in batch)
        self.job.info(f"elastic: starting worker {numbers} on host {host}")

    # ---- Hosts --------------------------------------------------------------------------------------

    def look_at_hosts(self) -> None:
        assert self.discovery is not None
        while not self.discovery.changes.empty():
            found = self.discovery.changes.get()
            if isinstance(found, HostError):
                if not self.discovery_error:
                    self.say(f"{found}; the last known hosts stay")
                self.discovery_error = str(found)
                continue
            self.discovery_error = ""
            self.slots = found
            self.told.discard("removed")
            named = ", ".join(f"{host}:{slots}" for host, slots in found.items())
            self.job.info(f"elastic: hosts are {named or 'none'}")

    def superfluous(self) -> bool:
        """A member is on a host that was taken away, or there are more than slots."""
        count: dict[str, int] = {}
        for worker in self.members:
            count[worker.host] = count.get(worker.host, 0) + worker.alive
        return any(number > self.slots.get(host, 0) for host, number in count.items())

    def notify(self) -> None:
        """Tells a running generation what it should make room for, once."""
        waiting = {f"worker {w.number}" for w in self.alive() if w.state == "waiting"}
        removed = {"removed"} if self.superfluous() else set()
        news = (waiting | removed) - self.told
        if not news or self.succeeded:
            return
        self.told |= news
        change = HostUpdateResult.removed if "removed" in news else 0
        change |= HostUpdateResult.added if len(news) > ("removed" in news) else 0
        self.job.info(f"elastic: telling generation {self.generation} of {', '.join(sorted(news))}")
        for member in self.members:
            self.desk.tell(member.number, do="hosts", time=time.time(), change=change)

    # ---- Generations --------------------------------------------------------------------------------

    def consider(self) -> None:
        """Does what is due now; ``self.due`` is when time alone makes something due."""
        self.due = None
        self.end_leavers()
        if self.code is not None or self.discovery is None:
            return
        self.look_at_hosts()
        if self.succeeded:
            self.send_home()
        else:
            self.staff()
        if not self.broken:
            if len(self.joined) == len(self.members):
                self.notify()
            self.look_again_at_hosts()
            return
        waiting = [worker for worker in self.alive() if worker.state == "waiting"]
        if self.must_wait_for_members():
            return
        chosen, others = choose(waiting, self.slots, self.settings.max_np, self.has_state)
        enough = 1 if self.succeeded else self.settings.min_np
        if len(chosen) < enough or (not self.began and self.first_still_start()):
            self.wait_for_more(len(chosen), enough)
            return
        self.short_since = None
        self.form(chosen, others)

    def look_in(self, seconds: float) -> None:
        when = time.monotonic() + max(0.0, seconds)
        self.due = when if self.due is None else min(self.due, when)

    def look_again_at_hosts(self) -> None:
        back = self.blacklist.next_return(time.monotonic())
        if back is not None:
            self.look_in(back + 0.01)

    def must_wait_for_members(self) -> bool:
        """Those who are left of the last generation and have not asked yet. They find out at their
        next operation; who does not for too long is stuck."""
        busy = [w for w in self.members if w.state in ("running", "placed")]
        if not busy:
            return False
        left = self.broken_since + self.settings.timeout - time.monotonic()
        if left > 0 or self.succeeded:
            self.look_in(left)
            return True
        for worker in busy:
            self.say(f"elastic: {self.name(worker)} has not come back for "
                     f"{self.settings.timeout:g} s (--elastic-timeout) and is ended")
            self.links[worker.number].signal_one(worker.number, signal.SIGKILL)
        self.broken_since = time.monotonic()  # its end is reported soon
        return True

    def first_still_start(self) -> bool:
        """The first generation waits for all who were started, but not for ever."""
        if not any(worker.state == "starting" for worker in self.alive()):
            return False
        return time.monotonic() - self.broken_since < self.settings.timeout

    def wait_for_more(self, have: int, enough: int) -> None:
        now = time.monotonic()
        self.short_since = self.short_since or now
        left = self.short_since + self.settings.timeout - now
        if left <= 0 and have < enough:
            self.too_few(have, enough, f" for {self.settings.timeout:g} s (--elastic-timeout)")
        elif have < enough and self.hopeless(enough):
            self.too_few(have, enough, ", and no more can come")
        else:
            self.look_in(left)
            self.look_again_at_hosts()

    def hopeless(self, enough: int) -> bool:
        """The hosts are fixed, and those that can still be used have too few slots."""
        assert self.discovery is not None
        if not self.discovery.fixed or self.blacklist.next_return(time.monotonic()) is not None:
            return False
        usable = self.usable()
        stay = [worker for worker in self.alive() if worker.host not in usable]
        return sum(usable.values()) + len(stay) < enough

    def too_few(self, have: int, enough: int, how: str) -> None:
        hosts = ", ".join(f"{host}:{slots}" for host, slots in self.slots.items()) or "none"
        failed = self.blacklist.describe(time.monotonic())
        text = f"elastic: {have} rank{'s' if have != 1 else ''} of at least {enough} (--min-np){how}"
        text += f"; hosts: {hosts}"
        text += f"; failed: {failed}" if failed else ""
        text += f"; {self.discovery_error}" if self.discovery_error else ""
        self.fail(self.first_code or 1, text, 0.0)

    def form(self, chosen: list[Worker], others: list[Worker]) -> None:
        lost = self.has_state and all(worker.commits < 0 for worker in chosen)
        if lost or (self.began and not any(worker.member for worker in chosen)):
            self.fail(self.first_code or 1, "elastic: every rank that had the state of the training "
                      "has ended; start the job again from its last checkpoint", 0.0)
            return
        if self.failed_joinings >= FAILED_JOININGS:
            self.fail(1, f"elastic: the ranks have failed to join {self.failed_joinings} times in a "
                      f"row: {chosen[0].text}", 0.0)
            return
        if self.began and len(self.joined) == len(self.members) and \
                any(worker.why != "again" for worker in chosen if worker.member):
            self.resets += 1
            if self.settings.reset_limit is not None and self.resets > self.settings.reset_limit:
                self.fail(self.first_code or 1, f"elastic: this would be reset number "
                          f"{self.resets}, and --reset-limit is {self.settings.reset_limit}", 0.0)
                return
        self.give_places(order(chosen))
        for worker in others:
            self.dismiss(worker)

    def give_places(self, members: list[Worker]) -> None:
        sync = any(worker.why != "skip" for worker in members)
        environment = environments(members)
        self.generation += 1
        self.members = members
        self.joined = set()
        self.broken = False
        self.told = set()
        now = time.time()
        for rank, worker in enumerate(members):
            worker.rank, worker.generation, worker.state = rank, self.generation, "placed"
            self.output.ranks[worker.number] = rank
            self.desk.tell(worker.number, do="place", generation=self.generation,
                           env=environment[rank], sync=sync, time=now)
        if self.generation > 1:
            self.say(f"elastic: going on with {len(members)} rank{'s' if len(members) > 1 else ''}")

    def dismiss(self, worker: Worker) -> None:
        self.job.info(f"elastic: there is no place for {self.name(worker)} any more")
        worker.state = "leaving"
        self.leaving[worker.number] = time.monotonic() + LEAVE_SECONDS
        self.desk.tell(worker.number, do="exit")

    def end_leavers(self) -> None:
        now = time.monotonic()
        for number, when in list(self.leaving.items()):
            if when > now:
                self.look_in(when - now)
            else:
                self.leaving[number] = now + LEAVE_SECONDS
                self.links[number].signal_one(number, signal.SIGKILL)

    # ---- The loop -----------------------------------------------------------------------------------

    def finished(self) -> bool:
        if self.agents:
            return False
        return self.code is not None or self.succeeded

    def run_plan(self) -> float | None:
        self.consider()
        self.hurry()
        wait = 0.0 if self.finished() else super().run_plan()
        if self.code is None and self.due is not None:
            own = max(0.0, self.due - time.monotonic())
            return own if wait is None else min(own, wait)
        return wait

    def hurry(self) -> None:
        """The grace after a failure is for those who still work. Who waits for a place gets none."""
        now = time.monotonic()
        if self.plan and self.plan[0][0] > now and self.code is not None and \
                all(worker.state == "waiting" for worker in self.alive()):
            early = self.plan[0][0] - now
            self.plan = [(when - early, number) for when, number in self.plan]

    def wake(self) -> None:
        """From the thread that discovers hosts: SIGCHLD's number is what the loop passes over."""
        os.write(self.wake_write, bytes([signal.SIGCHLD]))

    def run(self) -> int:
        old = self.catch_signals()
        os.set_blocking(self.wake_write, False)
        settings = self.settings
        self.discovery = Discovery(settings.hosts, settings.script, settings.slots_per_host, self.wake)
        try:
            while not self.finished():
                self.turn()
        finally:
            self.discovery.stop()
            self.restore_signals(old)
            self.desk.close()
            self.close()
        return self.code or 0
