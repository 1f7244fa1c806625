"""Removing batches that have ended, row by row, while others write."""

import threading
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_bench import Store, check_store, fail, make_template, succeed

from wtb_core.attempts import Origin, TrackedFiles
from wtb_core.errors import NotFound
from wtb_core.store import pruning, reuse, views
from wtb_core.store.database import sqlite_url
from wtb_core.store.pruning import Rule
from wtb_core.store.records import Offer
from wtb_core.store.tables import metadata
from wtb_core.turns import WriteTurn

ALL = frozenset({"completed", "failed", "cancelled"})
LONG = 10**12


def digest(number):
    return f"{number:064x}"


@pytest.fixture
def prune(store, tmp_path):
    with closing(Pruner(tmp_path / "wtb.db")) as pruner:
        yield pruner


class Pruner:
    """What `wtb prune` does with rows, one transaction a call."""

    def __init__(self, path):
        self.engine = pruning.open_pruning_engine(sqlite_url(path))
        self.turn = WriteTurn(path)
        self.transactions = 0

    def close(self):
        self.engine.dispose()

    def read(self, query):
        with self.engine.connect().execution_options(read_only=True) as connection:
            return query(connection)

    def write(self, change):
        self.transactions += 1
        with self.turn.take(), self.engine.begin() as connection:
            return change(connection)

    def choose(self, before_ms=LONG * 10, statuses=ALL, keep_last=0, project=None):
        rule = Rule(before_ms, frozenset(statuses), keep_last, project)
        return self.read(lambda c: pruning.choose(c, rule))

    def hide(self, batch_id, newest):
        return self.write(lambda c: pruning.hide(c, batch_id, newest))

    def clear(self):
        for batch_id in self.read(pruning.find_hidden):
            while self.write(lambda c, b=batch_id: pruning.delete_chunk(c, b)):
                pass

    def __call__(self, **rule):
        choice = self.choose(**rule)
        gone = [c.batch_id for c in choice.candidates if self.hide(c.batch_id, choice.newest)]
        self.clear()
        return gone


def names(choice):
    return [candidate.batch_id for candidate in choice.candidates]


def count_rows(store, batch_id):
    """Rows that belong to a batch, by table; the pool's own tables have none."""
    counts = {}
    for name, table in metadata.tables.items():
        for column in ("batch_id", "stream"):
            if column in table.c:
                query = f"SELECT count(*) AS n FROM {name} WHERE {column} = ?"
                counts[name] = store.select(query, batch_id)[0].n
    return counts


def test_every_row_of_a_batch_goes(store, prune):
    store.register()
    batch_id = store.submit(cases=3, variants=2, labels={"a": "b", "c": "d"})
    store.drain(batch_id)
    before, pool = count_rows(store, batch_id), store.events("pool")
    assert len(before) == 7
    assert all(before.values())

    assert prune() == [batch_id]

    assert not any(count_rows(store, batch_id).values())
    assert store.events("pool") == pool


def test_what_a_rule_does_not_fit_is_not_touched(store, prune):
    old = store.submit(cases=2)
    store.drain(old)
    store.now += 10_000
    new = store.submit(cases=2, labels={"a": "b"})
    store.drain(new)
    store.register()
    before, pool = store.snapshot(new), store.events("pool")

    assert prune(before_ms=store.batch(new).finished_ms) == [old]

    assert set(count_rows(store, old).values()) == {0}
    assert (store.snapshot(new), store.events("pool")) == (before, pool)
    with pytest.raises(NotFound):
        store.view(old)
    assert [row.batch_id for row in store.select("SELECT batch_id FROM labels")] == [new]


def test_the_age_is_counted_from_the_end(store, prune):
    batch_id = store.submit(cases=2)
    first = store.claim()
    store.now += 100_000
    store.finish(first)
    store.drain(batch_id)
    ended = store.batch(batch_id).finished_ms

    assert names(prune.choose(before_ms=ended)) == []
    assert names(prune.choose(before_ms=ended + 1)) == [batch_id]


def test_only_states_projects_and_ranks_that_are_asked_for(store, prune):
    made = {}
    for name, project in (("one", "p"), ("two", "p"), ("other", "q"), ("three", "p")):
        made[name] = store.submit(project=project)
        store.drain(made[name])
    made["stopped"] = store.submit()
    store.cancel(made["stopped"])
    store.settle()

    def chosen(**rule):
        ids = names(prune.choose(**rule))
        return [name for batch_id in ids for name, known in made.items() if known == batch_id]

    assert chosen() == ["stopped", "three", "other", "two", "one"]
    assert chosen(statuses={"cancelled"}) == ["stopped"]
    assert chosen(statuses={"completed"}, project="p") == ["three", "two", "one"]
    assert chosen(keep_last=1) == ["three", "two", "one"]
    assert chosen(keep_last=2) == ["two", "one"]
    assert chosen(keep_last=9) == []
    assert chosen(statuses={"failed"}) == []


@pytest.mark.parametrize("state", ["pending", "running", "cancelling"])
def test_a_batch_that_has_not_ended_is_never_touched(store, prune, state):
    batch_id = store.submit(cases=3)
    if state != "pending":
        store.claim()
    if state == "cancelling":
        store.cancel(batch_id)
    before = store.snapshot(batch_id)
    assert store.batch(batch_id).status == state

    assert prune() == []
    assert not prune.hide(batch_id, 0)
    assert not prune.hide("b-none", 0)

    assert store.snapshot(batch_id) == before
    assert prune.read(pruning.find_oldest_unfinished_ms) == store.batch(batch_id).created_ms


def partly_failed(store, **fields):
    batch_id = store.submit(cases=2, **fields)
    while (assignment := store.claim()) is not None:
        store.finish(assignment, fail() if assignment.case["id"] == "c1" else succeed())
    store.settle()
    return batch_id


def retry(store, batch_id, outcome=None):
    new_id = store.renew(batch_id).batch_id
    store.drain(new_id, outcome)
    return new_id


def test_a_batch_stays_while_a_kept_one_has_taken_results_over_from_it(store, prune):
    first = partly_failed(store)
    second = retry(store, first, fail())
    third = retry(store, second)
    origins = [row.reused_from for row in store.executions(third)]
    assert origins == [f"{first}-0", None]

    kept_by_age = prune.choose(before_ms=store.batch(third).finished_ms)
    assert (names(kept_by_age), kept_by_age.held) == ([], 2)
    assert prune(keep_last=1) == []
    assert store.read(lambda c: views.read_origin(c, f"{third}-0"))["execution_id"] == f"{first}-0"

    assert prune() == [third, second, first]
    assert store.batch_ids() == []


def test_a_retry_that_took_nothing_over_holds_nothing(store, prune):
    first = store.submit()
    store.drain(first, fail())
    second = retry(store, first)
    assert store.batch(second).reused == 0

    assert names(prune.choose(before_ms=store.batch(second).finished_ms)) == [first]


def test_a_retry_that_has_not_ended_holds_what_it_may_still_take(store, prune):
    first = partly_failed(store)
    pending = store.renew(first).batch_id

    choice = prune.choose()

    assert (names(choice), choice.held) == ([], 1)
    store.drain(pending)
    assert names(prune.choose()) == [pending, first]


def test_a_retry_accepted_after_the_choice_keeps_its_batch(store, prune):
    first = partly_failed(store)
    choice = prune.choose()
    assert names(choice) == [first]
    second = store.renew(first).batch_id

    assert not prune.hide(first, choice.newest)

    store.drain(second)
    assert store.view(second)["counts"]["succeeded"] == 2


def test_what_has_gone_cannot_be_tried_again_or_forked(store, prune):
    first = partly_failed(store)
    store.now += 1
    again = store.read(lambda c: reuse.renew(c, first, "b-again", None, None))
    origin = Origin(
        execution_id=f"{first}-0",
        attempt=1,
        checkpoint_id="c",
        history=digest(1),
        file_commit_id=digest(2),
    )
    fork = store.make()._replace(origin=origin, repetition=0)
    assert store.accept(fork._replace(batch_id="b-fork")).created
    store.drain("b-fork")
    assert prune(before_ms=store.batch("b-fork").finished_ms) == [first]

    for batch in (again, fork):
        with pytest.raises(NotFound, match=first):
            store.accept(batch)
    with pytest.raises(NotFound):
        store.renew(first)
    tried = store.accept(
        store.read(lambda c: reuse.renew(c, failed_fork(store, fork), "b-last", None, None))
    )
    assert tried.created, "a fork that failed is tried again without what it was forked from"
    store.drain("b-last")


def failed_fork(store, fork):
    """A fork whose source has gone since, and that failed."""
    source = store.submit()
    store.drain(source)
    origin = fork.origin.model_copy(update={"execution_id": f"{source}-0"})
    batch_id = store.accept(store.make()._replace(origin=origin, repetition=0)).batch_id
    store.drain(batch_id, fail())
    with closing(Pruner(store.engine.url.database)) as pruner:
        choice = pruner.choose()
        assert pruner.hide(source, choice.newest)
        pruner.clear()
    return batch_id


def test_a_key_is_free_again_when_its_batch_has_gone(store, prune):
    first = store.accept(store.make()._replace(idempotency_key="k")).batch_id
    store.drain(first)
    prune()

    receipt = store.accept(store.make()._replace(idempotency_key="k"))

    assert receipt.created
    store.drain(receipt.batch_id)


def test_nobody_ever_reads_half_a_batch_and_a_killed_run_is_finished_by_the_next(
    store, prune, monkeypatch
):
    monkeypatch.setattr(pruning, "CHUNK_ROWS", 2)
    batch_id = store.submit(cases=5)
    store.drain(batch_id)
    choice = prune.choose()

    assert prune.hide(batch_id, choice.newest)
    for reading in (
        lambda c: views.read_events(c, batch_id, 0, 100),
        lambda c: (
            views.read_execution(c, f"{batch_id}-0").keys() and views.read_batch(c, batch_id, 0)
        ),
    ):
        with pytest.raises(NotFound):
            store.read(reading)
    assert prune.write(lambda c: pruning.delete_chunk(c, batch_id))
    assert prune.read(pruning.find_hidden) == [batch_id]

    prune.clear()
    assert prune.transactions > 10
    assert set(count_rows(store, batch_id).values()) == {0}
    assert prune.read(pruning.find_hidden) == []


def test_how_much_a_batch_is(store, prune):
    batch_id = store.submit(cases=3, variants=2)
    store.drain(batch_id, succeed(output='"' + "x" * 1000 + '"'))

    amount = prune.read(lambda c: pruning.measure(c, [batch_id, "b-none"]))

    assert (amount.executions, amount.events) == (6, len(store.events(batch_id)))
    assert 6_000 < amount.text_bytes < 30_000


def test_every_blob_that_rows_name_is_found(store, prune):
    """Fields of an outcome that may hold a digest are filled by their types, not by their names."""
    from wtb_core.attempts import Outcome, ResumePoint

    texts = [name for name, field in Outcome.model_fields.items() if field.annotation == str | None]
    assert {"output", "stdout", "stderr", "history", "start_commit_id"} <= set(texts)
    filled = {name: digest(index + 1) for index, name in enumerate(texts)}
    filled["output"] = "1"
    files = TrackedFiles(
        file_commit_id=digest(101),
        checkpoint_id=None,
        created=0,
        modified=0,
        deleted=0,
        size_bytes=0,
        paths=[],
    )
    origin = Origin(
        execution_id=f"{partly_failed(store)}-0",
        attempt=1,
        checkpoint_id="c",
        history=digest(102),
        file_commit_id=digest(103),
    )
    assert set(ResumePoint.model_fields) == {"attempt", "checkpoint_id", "history"}
    assert set(Origin.model_fields) == {
        *("execution_id", "attempt", "checkpoint_id", "history", "file_commit_id", "state")
    }
    batch_id = store.accept(store.make(cases=2)._replace(origin=origin, repetition=0)).batch_id
    first = store.claim()
    lost = fail("lost").model_copy(update={"history": digest(104)})
    store.finish(first, lost)
    store.now += 10_000
    offer = Offer(first.execution_id, 2, 1, "c-9", digest(106))
    again = store.ask(offers=(offer,))
    outcome = succeed(files=files, **filled)
    store.finish(again, outcome, output_blob=digest(105))

    [named] = [b for b in prune.read(pruning.list_batches) if b.batch_id == batch_id]
    found = prune.read(lambda c: pruning.read_references(c, batch_id, 0))

    every = {*filled.values(), *map(digest, range(101, 107))} - {"1"}
    not_blobs = {filled[name] for name in ("start_reason",)}
    together = [*named.references, *found]
    assert set().union(*together) == every - not_blobs
    assert (named.references.histories, named.references.commits) == ({digest(102)}, {digest(103)})
    assert found.histories == {filled["history"], digest(104), digest(106)}
    assert found.commits == {filled["start_commit_id"], digest(101)}
    store.drain(batch_id)


@pytest.mark.parametrize("cases", [1, 4, 5, 9])
def test_references_are_read_in_pages_that_cover_a_batch(store, prune, cases, monkeypatch):
    monkeypatch.setattr(pruning, "PAGE", 4)
    batch_id = store.submit(cases=cases)
    for number in range(cases):
        outcome = succeed(stdout=digest(number))
        store.finish(store.claim(), outcome, output_blob=digest(100 + number))

    found = [
        prune.read(lambda c, f=first: pruning.read_references(c, batch_id, f)).plain
        for first in range(0, cases, pruning.PAGE)
    ]

    assert sum(map(len, found)) == 2 * cases
    assert set().union(*found) == {digest(n) for i in range(cases) for n in (i, 100 + i)}


class Act:
    SUBMIT, RETRY, RUN, CANCEL, PRUNE, WAIT = range(6)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return make_template(tmp_path_factory.mktemp("empty") / "wtb.db")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 3)), max_size=30))
def test_whatever_goes_the_rest_is_whole(empty, tmp_path_factory, acts):
    """Batches, retries of them, ends and prunes in any order; nothing that is kept loses a part."""
    directory = tmp_path_factory.mktemp("any")
    store = Store(empty, directory / "wtb.db")
    pruner = Pruner(directory / "wtb.db")
    gone: set[str] = set()
    try:
        for kind, which, how in acts:
            ids = store.batch_ids()
            chosen = ids[which % len(ids)] if ids else None
            if kind == Act.SUBMIT:
                store.submit(cases=how + 1, project="pq"[how % 2])
            elif kind == Act.RETRY and chosen is not None:
                try:
                    store.renew(chosen)
                except Exception as error:
                    assert type(error).__name__ == "NotRetryable"
            elif kind == Act.RUN:
                for number in range(which):
                    assignment = store.claim()
                    if assignment is not None:
                        store.finish(assignment, fail() if (number + how) % 3 == 0 else succeed())
                store.settle()
            elif kind == Act.CANCEL and chosen is not None:
                store.cancel(chosen)
                store.settle()
            elif kind == Act.PRUNE:
                before = {b: store.snapshot(b) for b in ids}
                removed = pruner(before_ms=store.now - how * 1_000, keep_last=which % 3)
                gone.update(removed)
                for batch_id in removed:
                    assert before[batch_id][0].status in ALL
                    assert set(count_rows(store, batch_id).values()) == {0}
                for batch_id in set(ids) - set(removed):
                    assert store.snapshot(batch_id) == before[batch_id]
            store.now += 500
            check_store(store)
            for batch_id in store.batch_ids():
                for row in store.executions(batch_id):
                    store.read(lambda c, b=batch_id, n=row.number: views.read_origin(c, f"{b}-{n}"))
        assert not gone & set(store.batch_ids())
    finally:
        pruner.close()
        store.close()


def test_batches_run_and_are_submitted_while_others_are_removed(store, prune, monkeypatch):
    """Two threads write; each transaction of the pruner is one of many small ones."""
    monkeypatch.setattr(pruning, "CHUNK_ROWS", 5)
    old = [store.submit(cases=10) for _ in range(5)]
    for batch_id in old:
        store.drain(batch_id)
    before_ms = store.now
    removed, stop = [], threading.Event()

    def work():
        while not stop.is_set():
            removed.extend(prune(before_ms=before_ms))

    thread = threading.Thread(target=work)
    thread.start()
    new = [store.submit(cases=10) for _ in range(3)]
    for batch_id in new:
        store.drain(batch_id)
    stop.set()
    thread.join()

    assert sorted(removed) == sorted(old)
    assert store.batch_ids() == new
    assert {row.stream for row in store.select("SELECT DISTINCT stream FROM events")} >= set(new)
    assert not {row.batch_id for row in store.select("SELECT batch_id FROM executions")} - set(new)


def test_turns_exclude_each_other(tmp_path):
    path = tmp_path / "any.db"
    order = []
    inside, leave = threading.Event(), threading.Event()

    def first():
        with WriteTurn(path).take():
            inside.set()
            leave.wait(20)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(20)
    second = threading.Thread(target=lambda: take(WriteTurn(path), order))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    leave.set()
    thread.join()
    second.join()

    assert order == ["first", "second"]
    with WriteTurn(None).take():
        pass


def take(turn, order):
    with turn.take():
        order.append("second")
