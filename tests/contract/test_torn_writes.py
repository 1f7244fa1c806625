"""A log that was torn anywhere: the store is what it was after one of its transactions."""

import random
import shutil

import pytest
from sqlalchemy import event
from store_bench import Store, check_store, fail, succeed

from wtb_core.states import TERMINAL_BATCH
from wtb_core.store import endings


class Recorded:
    """A store with a random history: its log's length and what it held after each transaction."""

    def __init__(self, template, path, seed):
        self.path = path
        self.store = Store(template, path)
        self.store.batch_ids()  # so that a connection of another one keeps the log
        event.listen(self.store.engine, "connect", _keep_log)
        self.store.engine.dispose()
        self.store.restart()
        self.wal = path.with_name(f"{path.name}-wal")
        self.chance = random.Random(seed)
        self.running = []
        self.steps = [(self._length(), self._look())]
        for _ in range(40):
            self._step()
            self.steps.append((self._length(), self._look()))

    def _step(self):
        store, chance = self.store, self.chance
        store.now += chance.randrange(2_000)
        kind = chance.choice(
            ["submit", "claim", "claim", "finish", "finish", "lose", "cancel", "end"]
        )
        if kind == "submit":
            store.submit(cases=chance.randrange(1, 4), variants=2)
        elif kind == "claim":
            replica = chance.choice(["r1", "r2"])
            assignment = store.claim(replica)
            if assignment is not None:
                self.running.append((replica, assignment))
        elif kind == "finish" and self.running:
            replica, assignment = self.running.pop(chance.randrange(len(self.running)))
            store.finish(assignment, chance.choice([succeed(1.0), fail("crash")]), replica=replica)
        elif kind == "lose":
            store.lose("r1")
            self.running = [(name, given) for name, given in self.running if name != "r1"]
        alive = [b for b in store.batch_ids() if store.batch(b).status not in TERMINAL_BATCH]
        if kind == "cancel" and alive and chance.random() < 0.3:
            store.cancel(chance.choice(alive))
        elif kind == "end" and alive:
            batch_id = chance.choice(alive)
            store.write(lambda c: endings.continue_batch(store.ledger, c, batch_id))

    def _length(self):
        return self.wal.stat().st_size

    def _look(self):
        return {batch_id: self.store.snapshot(batch_id) for batch_id in self.store.batch_ids()}

    def tear(self, folder, at, how):
        """A copy of the files with the log torn at a byte, opened as a new collector does."""
        folder.mkdir()
        log = self.wal.read_bytes()
        rest = log[at:]
        torn = {"cut": b"", "zeroed": bytes(len(rest)), "flipped": bytes(b ^ 0x5A for b in rest)}
        (folder / "wtb.db-wal").write_bytes(log[:at] + torn[how])
        return Store(self.path, folder / "wtb.db")


def _keep_log(connection, _record):
    connection.execute("PRAGMA wal_autocheckpoint=0")


@pytest.mark.parametrize("seed", range(4))
def test_a_torn_log_leaves_what_one_of_the_transactions_left(template, tmp_path, seed):
    recorded = Recorded(template, tmp_path / "wtb.db", seed)
    chance = random.Random(seed)
    end = recorded.steps[-1][0]
    assert end > 100_000
    places = [chance.randrange(end + 1) for _ in range(12)]
    places += [length + chance.choice([-1, 0, 1]) for length, _ in chance.sample(recorded.steps, 8)]
    for number, at in enumerate(places):
        how = chance.choice(["cut", "zeroed", "flipped"])
        torn = recorded.tear(tmp_path / str(number), at, how)
        found = {batch_id: torn.snapshot(batch_id) for batch_id in torn.batch_ids()}
        whole = [state for length, state in recorded.steps if length <= at]
        assert found == (whole[-1] if whole else {})
        check_store(torn)
        torn.accept(torn.make()._replace(batch_id="b-after"))
        torn.close()
        shutil.rmtree(tmp_path / str(number))
    recorded.store.close()
