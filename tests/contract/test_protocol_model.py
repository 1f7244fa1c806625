"""The protocol under any order of messages and failures: a model check of the real store.

The world is in `protocol_model`. `WTB_MODEL_EXAMPLES` and `WTB_MODEL_STEPS` make a run deeper, and
`--hypothesis-profile explore` makes it a new one each time. A failure is told with all its moves;
`WTB_MODEL_SHRINK=1` takes minutes to leave out those that are not needed.
"""

import os
import random
import sys

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from protocol_model import World

from wtb_core.store import acceptance, endings

EXAMPLES = int(os.environ.get("WTB_MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("WTB_MODEL_STEPS", "60"))
PHASES = (Phase.generate, Phase.shrink) if "WTB_MODEL_SHRINK" in os.environ else (Phase.generate,)
PATIENCE = 400
"""Seconds in which all must have ended once nothing fails any more."""
MAX_BATCHES = 6
MAX_REPLICAS = 12

# How often each is chosen. Of the failures an example has only some.
USUAL = {
    "all_goes_well": 5,
    "message": 6,
    "crowd": 3,
    "flush": 2,
    "work": 4,
    "submit": 3,
    "pass_time": 2,
    "step": 3,
    "begin_tick": 1,
    "say_again": 1,
    "beat": 1,
}
FAILURES = {
    "lose_message": 2,
    "begin_message": 4,
    "double_message": 2,
    "misroute": 2,
    "replace_collector": 2,
    "user_code_dies": 1,
    "kill": 2,
    "cut_off": 3,
    "stop": 3,
    "stall": 1,
    "everything_dies": 1,
    "cancel": 1,
}
LIMITS = {
    "concurrency": [None, None, 1],
    "max_failures": [None, None, None, 0],
    "batch_timeout": [None, None, None, 30],
}
RETRY = {
    "max_attempts": [1, 2, 3, 4],
    "on": [["crash", "lost"], ["crash", "lost"], ["lost"], []],
    "backoff": [0, 1],
}
seeds = st.integers(0, 2**64 - 1)


class Protocol(RuleBasedStateMachine):
    """What can happen next happens; which of it, and to whom, is drawn."""

    template = None
    directory = None

    @initialize(seed=seeds)
    def open(self, seed):
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(acceptance, "INSERT_CHUNK", 3)
        self.patch.setattr(endings, "CANCEL_CHUNK", 2)
        for rest in self.directory.glob("wtb.db*"):
            rest.unlink()
        chance = random.Random(seed)
        failures = chance.sample(sorted(FAILURES), chance.randint(1, 6))
        note(f"what can fail: {failures}")
        self.is_watched = chance.random() < 0.5
        self.weights = USUAL | {name: FAILURES[name] for name in failures}
        self.world = World(self.template, self.directory / "wtb.db", self.patch)
        self.world.submit(cases=2)
        for _ in range(2):
            self.world.keep_going()
            self.world.flush()

    @rule(seed=seeds)
    def move(self, seed):
        """One of the moves that are possible."""
        chance = random.Random(seed)
        possible = {name: w for name, w in self.weights.items() if self.is_possible(name)}
        (name,) = chance.choices(list(possible), list(possible.values()))

        def draw(items):
            drawn = chance.choice(list(items))
            note(f"  {drawn}")
            return drawn

        note(name)
        getattr(self, name)(draw)
        self.world.keep_going()

    def is_possible(self, name):
        match name:
            case "submit":
                return len(self.world.batches) < MAX_BATCHES
            case "kill" | "stop" | "everything_dies":
                return len(self.world.replicas) < MAX_REPLICAS and self.living()
            case "cut_off" | "beat":
                return self.living()
            case "work" | "user_code_dies":
                return self.runs()
            case "step":
                return self.tasks()
            case (
                "message"
                | "crowd"
                | "lose_message"
                | "double_message"
                | "begin_message"
                | "misroute"
            ):
                return self.world.mail
        return True

    # -- clients -----------------------------------------------------------------------------------

    def submit(self, draw):
        self.world.submit(
            cases=draw([1, 2, 3]),
            limits={name: draw(values) for name, values in LIMITS.items()},
            retry={name: draw(values) for name, values in RETRY.items()},
            priority=draw([0, 0, 1]),
        )

    def cancel(self, draw):
        batch_id = draw(self.world.batches)
        numbers = [row.number for row in self.world.store.executions(batch_id)]
        number = draw([None, *numbers])
        if number is None:
            self.world.cancel_batch(batch_id)
        else:
            self.world.cancel_execution(f"{batch_id}-{number}")

    # -- the network -------------------------------------------------------------------------------

    def message(self, draw):
        self.world.deliver(self.take(draw))

    def begin_message(self, draw):
        """The collector begins with a call, and others may come in between."""
        self.world.deliver(self.take(draw), at_once=False)

    def crowd(self, draw):
        """Several calls and a tick at once, with their steps in any order."""
        collector = self.world.collector
        for _ in range(draw([2, 3, 5])):
            if self.world.mail:
                self.begin_message(draw)
        if draw([True, False]):
            collector.begin_tick()
        while collector.tasks:
            collector.step(draw(collector.tasks))

    def lose_message(self, draw):
        self.take(draw)

    def double_message(self, draw):
        self.world.deliver(draw(self.world.mail))

    def misroute(self, draw):
        """A permit that Serve hands to two replicas, a call that reaches a replaced collector."""
        message = self.take(draw)
        self.world.deliver(message, stale=True)
        if message.kind == "permit":
            self.world.deliver(message._replace(to=draw(self.world.replicas)))

    def take(self, draw):
        message = draw(self.world.mail)
        self.world.mail.remove(message)
        return message

    def flush(self, draw):
        self.world.flush()

    def say_again(self, draw):
        who = draw(["clients", "replicas", "watcher"])
        if who == "clients":
            self.world.ask_again()
        elif who == "watcher":
            self.world.report_pool()
        else:
            for replica in self.living():
                replica.send_again(only_late=False)

    # -- the collector -----------------------------------------------------------------------------

    def step(self, draw):
        """One read, transaction or answer of something that a collector has begun."""
        collector, task = draw(self.tasks())
        collector.step(task)

    def begin_tick(self, draw):
        self.world.collector.begin_tick()

    def replace_collector(self, draw):
        self.world.replace_collector(keep_old=draw([True, False]))

    # -- replicas ----------------------------------------------------------------------------------

    def all_goes_well(self, draw):
        """What there is to deliver arrives, and all that runs goes on."""
        for _ in range(draw([1, 2])):
            self.world.keep_going()
            self.world.flush()
            self.world.beat()
            for replica, run in self.runs():
                replica.work(run, "success")

    def work(self, draw):
        replica, run = draw(self.runs())
        end = draw(["success", "success", "success", "error", "crash", "setup"])
        for _ in range(draw([1, 2, 5])):
            if run.finish is None:
                replica.work(run, end)

    def user_code_dies(self, draw):
        replica, run = draw(self.runs())
        replica.crash(run, draw(["crash", "crash", "timeout"]))

    def beat(self, draw):
        draw(self.living()).beat()

    def kill(self, draw):
        self.world.kill(draw(self.living()), is_noticed=draw([True, False]))

    def cut_off(self, draw):
        """A replica is not heard for a while, and hears nothing; or is heard again."""
        replica = draw(self.living())
        replica.is_cut_off = not replica.is_cut_off
        if replica.is_cut_off:
            self.world.pass_time(draw([0, 5_400]))

    def stop(self, draw):
        """Serve stops a replica; next time, what is left of its grace, or its end."""
        leaving = self.leaving()
        if not leaving:
            self.world.stop(draw(self.living()))
        else:
            replica = draw(leaving)
            runs = [run for run in replica.runs.values() if run.finish is None]
            if runs and replica.is_draining:
                replica.hand_back(draw(runs))
            else:
                self.world.delist(replica)
        self.world.report_pool()

    # -- time --------------------------------------------------------------------------------------

    def pass_time(self, draw):
        self.world.pass_time(draw([100, 900, 900, 2_700, 5_400, 14_400]))

    def stall(self, draw):
        """Nobody is heard, and nobody looks."""
        self.world.store.now += draw([100, 2_000, 6_000])

    def everything_dies(self, draw):
        self.world.mail.clear()
        for replica in self.living():
            self.world.kill(replica, is_noticed=False)
            self.world.delist(replica)
        self.world.replace_collector(keep_old=False)

    # -- who there is ------------------------------------------------------------------------------

    def runs(self):
        return [
            (replica, run)
            for replica in self.world.replicas.values()
            for run in replica.runs.values()
            if run.finish is None
        ]

    def living(self):
        return [replica for replica in self.world.replicas.values() if replica.is_alive]

    def leaving(self):
        listed = [self.world.replicas[name] for name in self.world.serve]
        return [r for r in listed if not r.is_alive or self.world.serve[r.name] == "STOPPING"]

    def tasks(self):
        collectors = [self.world.collector, self.world.retired]
        return [(c, task) for c in collectors if c is not None for task in c.tasks]

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def nothing_is_wrong(self):
        if hasattr(self, "world"):
            self.world.check()

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            if sys.exception() is None:
                self.end_well()
        finally:
            self.world.close()
            self.patch.undo()

    def end_well(self):
        """When nothing fails any more, everything ends."""
        self.world.heal()
        for _ in range(PATIENCE):
            self.world.go_on(is_watched=self.is_watched)
            if self.world.is_quiet():
                break
        self.world.check_all()
        assert self.world.is_quiet(), "something never ends"


@pytest.mark.timeout(600 + 20 * EXAMPLES)
def test_no_order_of_messages_and_failures_loses_anything(template, tmp_path):
    class Here(Protocol):
        pass

    Here.template, Here.directory = template, tmp_path
    Here.TestCase.settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )
    Here.TestCase("runTest").runTest()
