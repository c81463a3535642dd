"""Who gets which place in a generation of an elastic job: pure functions of what is known about the
workers.

    rank 0 is the survivor with the newest commit, whose state the others take over. On one machine
    the other survivors keep their ranks as far as there are so many, and the rest fills the gaps;
    between machines ranks of one machine stand side by side, in their old order.
"""

from __future__ import annotations

import dataclasses
import secrets

from hora.runner.hosts import address_towards, free_port, is_local, shown_name


@dataclasses.dataclass
class Worker:
    """One process of the job. It keeps its number, and its slot on its machine, all its life."""

    number: int
    host: str  # as the user or the script names it
    slot: int
    state: str = "starting"  # waiting, placed, running, leaving, ended
    rank: int | None = None  # in the last generation that it was given a place in
    generation: int = 0  # which that was
    member: bool = False  # of a generation that all had joined
    commits: int = -1  # -1: it has no state of its own
    why: str = "start"
    text: str = ""  # what it said about a failure
    error: str = ""  # the exception that nobody caught
    fatal: bool = False  # and that ends the job
    ports: tuple[int, int] = (0, 0)  # free ones on its host
    pid: int = 0

    @property
    def machine(self) -> str:
        """All names of this machine mean one machine."""
        return "localhost" if is_local(self.host) else self.host

    @property
    def alive(self) -> bool:
        return self.state not in ("leaving", "ended")

    @property
    def seniority(self) -> tuple[bool, int, int, int]:
        """For sorting: newest state first, then the old ranks, then the order of starting."""
        old = self.rank is not None and self.member
        return (not old, -self.commits, self.rank if old and self.rank is not None else 0,
                self.number)


def choose(waiting: list[Worker], slots: dict[str, int], most: int | None,
           has_state: bool) -> tuple[list[Worker], list[Worker]]:
    """(those who get a place, those for whom there is none any more). ``slots``: of the hosts that
    may be used. ``has_state``: the job has state, which must not be lost: if all who have it must
    go, because their hosts were taken away, one of them stays until the others have it."""
    chosen: list[Worker] = []
    left = dict(slots)
    for worker in sorted(waiting, key=lambda w: w.seniority):
        if left.get(worker.host, 0) > 0 and (most is None or len(chosen) < most):
            left[worker.host] -= 1
            chosen.append(worker)
    keepers = [worker for worker in waiting if worker.commits >= 0]
    if has_state and chosen and keepers and all(worker.commits < 0 for worker in chosen):
        chosen = [min(keepers, key=lambda w: w.seniority), *chosen][:most]
    numbers = {worker.number for worker in chosen}
    return chosen, [worker for worker in waiting if worker.number not in numbers]


def order(workers: list[Worker]) -> list[Worker]:
    """By their new ranks."""
    first, *rest = sorted(workers, key=lambda w: w.seniority)
    if any(worker.machine != first.machine for worker in rest):
        machines = dict.fromkeys(w.machine for w in [first, *sorted(rest, key=_old_order)])
        rest.sort(key=lambda w: (list(machines).index(w.machine), *_old_order(w)))
        return [first, *rest]
    seats: list[Worker | None] = [first] + [None] * len(rest)
    others = []
    for worker in sorted(rest, key=_old_order):
        rank = worker.rank if worker.member else None
        if rank is not None and rank < len(seats) and seats[rank] is None:
            seats[rank] = worker
        else:
            others.append(worker)
    return [seat if seat is not None else others.pop(0) for seat in seats]


def _old_order(worker: Worker) -> tuple[bool, int, int]:
    old = worker.rank is not None and worker.member
    return not old, worker.rank if old and worker.rank is not None else 0, worker.number


def _meeting_place(members: list[Worker]) -> tuple[str, str, int]:
    """(rendezvous of hora, address and port for torch's MASTER_ADDR and MASTER_PORT)."""
    first = members[0]
    others = [worker for worker in members if worker.machine != first.machine]
    if not others:
        port = free_port() if first.machine == "localhost" else first.ports[1]
        return f"unix:hora-{secrets.token_hex(12)}", "127.0.0.1", port
    address = first.host
    if first.machine == "localhost":
        address = address_towards(others[0].host)
    shown = f"[{address}]" if ":" in address else address
    return f"tcp:{shown}:{first.ports[0]}", address, first.ports[1]


def environments(members: list[Worker]) -> list[dict[str, str]]:
    """What each member must find in its environment, by rank."""
    rendezvous, address, port = _meeting_place(members)
    machines: dict[str, list[Worker]] = {}
    for worker in members:
        machines.setdefault(worker.machine, []).append(worker)
    result = []
    for rank, worker in enumerate(members):
        own = machines[worker.machine]
        local_rank = own.index(worker)
        peers = [name for name, all_there in machines.items() if len(all_there) > local_rank]
        numbers = {
            "RANK": rank,
            "SIZE": len(members),
            "LOCAL_RANK": local_rank,
            "LOCAL_SIZE": len(own),
            "CROSS_RANK": peers.index(worker.machine),
            "CROSS_SIZE": len(peers),
        }
        env = {f"{kind}_{name}": value for name, value in numbers.items() for kind in ("HORA", "HOROVOD")}
        env |= {"RANK": rank, "WORLD_SIZE": len(members), "LOCAL_RANK": local_rank,
                "LOCAL_WORLD_SIZE": len(own), "MASTER_ADDR": address, "MASTER_PORT": port,
                "HORA_RENDEZVOUS": rendezvous, "HOROVOD_HOSTNAME": worker.host,
                "HORA_HOSTNAME": shown_name(worker.machine) if len(machines) > 1 else ""}
        result.append({name: str(value) for name, value in env.items()})
    return result
