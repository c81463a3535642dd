"""What the workers of the elastic tests run: a training without torch, whose operations are exchanges
of a few numbers. A test gives it a hook, Python source that defines ``hook(where, me)``; the program
calls it at "begin", "init" (before each joining), "joined", "sync", "step" and "reset".

Each worker appends lines of JSON to a file of the test's folder.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from typing import Any

from hora import _core
from hora.common import basics, elastic
from hora.common.process_sets import ProcessSet

FOLDER = os.environ["ELASTIC_TEST_FOLDER"]
STEPS = int(os.environ.get("ELASTIC_TEST_STEPS", "30"))
NAP = float(os.environ.get("ELASTIC_TEST_NAP", "0.005"))


class Me:
    """This worker, for the hook."""

    number = int(os.environ["HORA_ELASTIC_ID"])
    joinings = 0
    state: Any = None

    @property
    def rank(self) -> int:
        return basics.rank()

    @property
    def step(self) -> int:
        return int(self.state.step)

    def die(self) -> None:
        os.kill(os.getpid(), 9)

    def touch(self, name: str) -> None:
        open(os.path.join(FOLDER, name), "w").close()

    def await_file(self, name: str) -> None:
        while not os.path.exists(os.path.join(FOLDER, name)):
            time.sleep(0.01)

    def say(self, what: str, **more: Any) -> None:
        line = {"what": what, "worker": self.number, "pid": os.getpid(), "time": time.time(), **more}
        with open(os.path.join(FOLDER, f"log.{self.number}"), "a") as file:
            file.write(json.dumps(line) + "\n")


me = Me()
space: dict[str, Any] = {"os": os, "sys": sys, "time": time, "hook": lambda where, me: None}
exec(os.environ.get("ELASTIC_TEST_HOOK", ""), space)
hook = space["hook"]


def bcast(obj: Any) -> Any:
    data = list(pickle.dumps(obj)) if basics.rank() == 0 else []
    return pickle.loads(bytes(_core.exchange("bcast", data)[0]))


real_init = _core.init


def init(*args: Any) -> None:
    hook("init", me)
    me.joinings += 1
    real_init(*args)


_core.init = init


class State(elastic.ObjectState):
    def sync(self) -> None:
        hook("sync", me)
        super().sync()

    def reset(self) -> None:
        me.say("reset", rank=basics.rank(), size=basics.size(), step=self.step)
        hook("reset", me)


def train(state: State) -> int:
    me.say("enter", rank=basics.rank(), size=basics.size(), step=state.step)
    while state.step < STEPS:
        rows = _core.exchange("step", [1, state.step])
        assert all(row[1] == state.step for row in rows), rows
        hook("step", me)
        state.total += sum(row[0] for row in rows) / len(rows)
        state.seen.append(state.step)
        state.step += 1
        time.sleep(NAP)
        state.commit()
    return int(state.total)


hook("begin", me)
me.say("begin", rank=int(os.environ.get("HORA_RANK", -1)))
sets = [ProcessSet(ranks) for ranks in json.loads(os.environ.get("ELASTIC_TEST_SETS", "[]"))]
basics.init(process_sets=sets)
me.say("joined", rank=basics.rank(), size=basics.size())
hook("joined", me)
me.state = State(bcast, basics.rank, step=0, total=0.0, seen=[])
total = elastic.run_fn(train, basics.restart)(me.state)
me.say("done", rank=basics.rank(), size=basics.size(), total=total, seen=me.state.seen,
       sets=[[s.process_set_id, s.ranks, s.included()] for s in sets], host=os.environ["HOROVOD_HOSTNAME"],
       meeting=os.environ["HORA_RENDEZVOUS"])  # fmt: skip
hook("done", me)
basics.shutdown()
