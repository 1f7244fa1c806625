import asyncio
import itertools
import sqlite3
from pathlib import Path

import pytest

from tests.gates import Gate
from wtb_core.checkpoint_store import CheckpointSession
from wtb_core.errors import InvalidSpec, NotFound, NotRetryable, Unavailable
from wtb_core.events import parse_event
from wtb_core.ids import new_event_id
from wtb_core.report import BatchFold
from wtb_core.sequential import LOCAL, BatchTestRunner
from wtb_core.store import claims
from wtb_core.store.records import Claimant
from wtb_core.testbench import BatchResult, TestBench

PROJECTS = Path(__file__).parents[1] / "projects"
PLAIN = {
    "project": "trivial",
    "variants": [{"name": "plain"}],
    "cases": [{"input": {"value": 1}, "reference": 3}],
}
COMPARED = {
    "project": "trivial",
    "name": "compared",
    "variants": [
        {"name": "plain"},
        {"name": "negated", "nodes": {"second": "negate"}},
        {"name": "failing", "nodes": {"second": "fail"}},
    ],
    "cases": [
        {"id": "one", "input": {"value": 1}, "reference": 3},
        {"id": "two", "input": {"value": 2}, "reference": -4},
        {"id": "three", "input": {"value": 3}, "reference": 7},
    ],
}


def open_bench(directory) -> TestBench:
    return TestBench.local(directory, root=PROJECTS, projects=["trivial/project.yaml"])


def open_runner(directory) -> BatchTestRunner:
    return BatchTestRunner(directory, PROJECTS, ["trivial/project.yaml"])


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with open_bench(tmp_path_factory.mktemp("bench") / "data") as bench:
        yield bench


@pytest.fixture(scope="module")
def compared(bench) -> tuple[BatchResult, list]:
    """A batch of three variants on three cases, run once, with the events as they came."""
    seen = []
    return bench.run_batch(COMPARED, seen.append), seen


@pytest.fixture
def gate():
    with Gate() as gate:
        yield gate


def gate_spec(gate):
    """A batch of two executions, the first of which waits at the gate."""
    return {
        "project": "trivial",
        "variants": [{"name": "gated", "graph": "gated"}],
        "cases": [
            {"input": {"value": 1, "gate": gate.port}},
            {"input": {"value": 2, "gate": gate.port}},
        ],
    }


def names(events, execution_id):
    return [
        event["type"].removeprefix("ray_variant_execution_")
        for event in events
        if event["payload"].get("execution_id") == execution_id
        and event["type"].startswith("ray_variant_execution_")
    ]


def test_a_batch_runs_to_its_end_and_every_number_is_what_the_graphs_made(compared):
    result, _ = compared

    assert result.batch["status"] == "completed"
    assert result.batch["name"] == "compared"
    assert {k: v for k, v in result.batch["counts"].items() if v} == {
        "succeeded": 6,
        "failed": 3,
        "total": 9,
    }
    outputs = {(e["variant"], e["case_id"]): e["output"] for e in result.executions}
    assert outputs == {
        ("plain", "one"): {"value": 3},
        ("plain", "two"): {"value": 5},
        ("plain", "three"): {"value": 7},
        ("negated", "one"): {"value": -2},
        ("negated", "two"): {"value": -4},
        ("negated", "three"): {"value": -6},
        ("failing", "one"): None,
        ("failing", "two"): None,
        ("failing", "three"): None,
    }
    assert not result.succeeded


def test_the_comparison_says_which_variant_is_better(compared):
    result, _ = compared

    rows = {row["variant"]: row for row in result.comparison["variants"]}
    third = pytest.approx(1 / 3)
    assert rows["plain"]["scores"] == {
        "equals_reference": {"mean": pytest.approx(2 / 3), "n": 3},
        "size": {"mean": 5.0, "n": 3},
    }
    assert rows["negated"]["overall_score"] == {"mean": third, "n": 3}
    assert rows["failing"]["overall_score"] == {"mean": 0.0, "n": 3}
    assert rows["failing"]["failed"] == {"error": 3}
    assert result.comparison["best_variant"] == "plain"
    assert result.comparison["best_score"] == pytest.approx(2 / 3)
    assert result.comparison["baseline"] == "plain"
    assert "| plain | 3 | 3 | 0 |" in result.render()


def test_a_failure_tells_what_the_users_code_said(compared):
    result, _ = compared

    failure = next(e["failure"] for e in result.executions if e["variant"] == "failing")
    assert failure["kind"] == "error"
    assert (failure["error_type"], failure["message"]) == ("ValueError", "no luck with 2")
    assert failure["node"] == "second"


def test_events_come_numbered_and_their_fold_is_the_batch(bench, compared):
    result, seen = compared

    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert list(bench.events(result.batch_id)) == seen
    assert list(bench.events(result.batch_id, after=5)) == seen[5:]
    fold = BatchFold()
    for event in seen:
        parse_event(event)
        fold.feed(event)
    assert (fold.status, fold.counts) == (result.batch["status"], result.batch["counts"])
    assert fold.comparison() == {
        key: value for key, value in result.comparison.items() if key not in {"batch_id", "status"}
    }
    assert seen[0]["type"] == "ray_batch_test_started"
    assert seen[-1]["type"] == "ray_batch_test_completed"


def test_each_execution_starts_once_and_ends_once(compared):
    result, seen = compared

    for execution in result.executions:
        end = "failed" if execution["variant"] == "failing" else "completed"
        assert names(seen, execution["execution_id"]) == ["started", end]
    starts = [
        event["payload"]["execution_id"]
        for event in seen
        if event["type"] == "ray_variant_execution_started"
    ]
    assert starts == [f"{result.batch_id}-{i}" for i in range(9)]


def test_the_same_key_runs_a_batch_once(bench):
    first = bench.submit(PLAIN, "once")
    events = list(bench.events(first))

    assert bench.submit(PLAIN, "once") == first
    assert list(bench.events(first)) == events
    assert bench.read(first).succeeded


def test_a_spec_with_problems_runs_nothing(bench):
    with pytest.raises(InvalidSpec) as caught:
        bench.run_batch({**PLAIN, "evaluators": ["no"], "colour": "red"})

    assert [problem.path for problem in caught.value.problems] == ["colour", "evaluators[0]"]


def test_an_unknown_batch_is_not_found(bench):
    for ask in (bench.batch, bench.comparison, bench.cancel):
        with pytest.raises(NotFound):
            ask("b-unknown")
    with pytest.raises(NotFound):
        list(bench.events("b-unknown"))


def test_cancelling_kills_what_runs_and_starts_nothing_more(bench, gate):
    batch_id = bench.submit(gate_spec(gate))
    events = bench.events(batch_id)
    seen = list(itertools.takewhile(lambda e: not e["type"].endswith("execution_started"), events))

    assert bench.cancel(batch_id, "enough") is True
    assert bench.cancel(batch_id) is False
    seen += events

    assert seen[-1]["type"] == "ray_batch_test_cancelled"
    assert (seen[-1]["payload"]["reason"], seen[-1]["payload"]["cancelled_by"]) == (
        "enough",
        "user",
    )
    batch = bench.batch(batch_id)
    assert (batch["status"], batch["counts"]["cancelled"]) == ("cancelled", 2)
    assert bench.cancel(batch_id) is False


def test_a_batch_waits_for_the_one_before_it(bench, gate):
    first, second = bench.submit(gate_spec(gate)), bench.submit(PLAIN)
    next(bench.events(first))
    assert bench.batch(second)["status"] == "pending"

    gate.open()

    ended = list(bench.events(second))[-1]
    assert ended["type"] == "ray_batch_test_completed"
    assert bench.batch(first)["finished_at"] <= bench.batch(second)["started_at"]


def test_a_data_directory_has_one_runner_at_a_time(tmp_path):
    with open_bench(tmp_path / "data"), pytest.raises(Unavailable, match="another runner uses"):
        open_bench(tmp_path / "data")

    open_bench(tmp_path / "data").close()


def test_what_an_interrupted_runner_left_is_lost_and_run_again(tmp_path):
    async def begin():
        runner = open_runner(tmp_path / "data")
        receipt = await runner.submit({**PLAIN, "retry": {"backoff": 0}})
        # The runner dies between this claim and its result.
        await runner._writer.write(
            lambda c: claims.claim(runner._ledger, c, Claimant(new_event_id(), LOCAL, LOCAL))
        )
        await runner.close()
        return receipt.batch_id

    async def go_on(batch_id):
        runner = open_runner(tmp_path / "data")
        await runner.run(batch_id)
        batch, events = runner.read_batch(batch_id), list(runner.follow(batch_id, 0))
        await runner.close()
        return batch, events

    batch_id = asyncio.run(begin())
    batch, events = asyncio.run(go_on(batch_id))

    assert names(events, f"{batch_id}-0") == ["started", "failed", "started", "completed"]
    lost = next(e["payload"] for e in events if e["type"] == "ray_variant_execution_failed")
    assert (lost["kind"], lost["will_retry"], lost["attempt"]) == ("lost", True, 1)
    assert (batch["status"], batch["counts"]["succeeded"]) == ("completed", 1)


def test_a_runner_goes_on_from_the_checkpoints_of_one_that_died(tmp_path, monkeypatch):
    handle, roots = CheckpointSession.handle, []

    async def die(session, header, blobs):
        answer = await handle(session, header, blobs)
        if header["op"] == "put" and not header["ns"]:
            roots.append(header["id"])
            if len(roots) == 3:  # the input, the start, the first node
                raise RuntimeError("the runner dies")
        return answer

    monkeypatch.setattr(CheckpointSession, "handle", die)
    with open_bench(tmp_path / "data") as bench:
        batch_id = bench.submit({**PLAIN, "retry": {"backoff": 0}})
        with pytest.raises(RuntimeError, match="the runner dies"):
            list(bench.events(batch_id))
    monkeypatch.undo()

    with open_bench(tmp_path / "data") as bench:
        events = list(bench.events(batch_id))
        [execution] = bench.read(batch_id).executions
        with sqlite3.connect(tmp_path / "data" / "checkpoints.db") as db:
            assert db.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)

    started = [e["payload"] for e in events if e["type"] == "ray_variant_execution_started"]
    assert [each["resumed_from"] for each in started] == [None, roots[2]]
    assert (execution["status"], execution["overall_score"]) == ("succeeded", 1.0)
    assert execution["node_count"] == 1


def test_a_run_that_breaks_raises_where_it_is_watched_instead_of_waiting(tmp_path, monkeypatch):
    async def break_down(_runner, _assignment):
        raise OSError("no space left")

    monkeypatch.setattr(BatchTestRunner, "_carry_out", break_down)
    with open_bench(tmp_path / "data") as bench:
        batch_id = bench.submit(PLAIN)
        with pytest.raises(OSError, match="no space left"):
            list(bench.events(batch_id))


def test_a_batch_that_outlives_its_timeout_is_cancelled(bench, gate):
    spec = gate_spec(gate)

    result = bench.run_batch({**spec, "limits": {"batch_timeout": "1s"}})

    assert result.batch["status"] == "cancelled"
    assert result.batch["counts"]["cancelled"] == 2
    ended = list(bench.events(result.batch_id))[-1]["payload"]
    assert ended["cancelled_by"] == "deadline"


def test_a_retry_takes_over_what_succeeded_and_has_its_logs(tmp_path):
    with open_bench(tmp_path) as bench:
        first = bench.run_batch(COMPARED)
        again = bench.read(follow_to_the_end(bench, bench.retry(first.batch_id)))

        assert again.batch["counts"] == first.batch["counts"]
        taken = [item for item in again.executions if item["reused_from"]]
        assert [item["reused_from"] for item in taken] == [
            item["execution_id"] for item in first.executions if item["status"] == "succeeded"
        ]
        assert (
            again.comparison["variants"][0]["scores"] == first.comparison["variants"][0]["scores"]
        )
        origin, copy = taken[0]["reused_from"], taken[0]["execution_id"]
        assert bench.log(copy) == bench.log(origin)
        assert bench.execution(copy)["output"] == bench.execution(origin)["output"]
        with pytest.raises(NotRetryable):
            bench.retry(bench.run_batch(PLAIN).batch_id)


def follow_to_the_end(bench, batch_id):
    for _ in bench.events(batch_id):
        pass
    return batch_id


def test_a_running_execution_is_cancelled_alone(tmp_path, gate):
    opened = Gate()
    opened.open()
    case = {"id": "gated", "input": {"value": 1, "gate": gate.port}}
    spec = PLAIN | {
        "variants": [{"name": "plain", "graph": "gated"}],
        "cases": [case, case | {"id": "open", "input": {"value": 1, "gate": opened.port}}],
    }
    with open_bench(tmp_path / "data") as bench:
        batch_id = bench.submit(spec)
        first = f"{batch_id}-0"
        gate.wait_until_reached()
        assert bench.cancel_execution(first, "stuck")
        follow_to_the_end(bench, batch_id)

        assert bench.batch(batch_id)["counts"]["succeeded"] == 1
        assert bench.execution(first)["status"] == "cancelled"
        assert not bench.cancel_execution(first)


def test_batches_are_listed_a_page_at_a_time(tmp_path):
    with open_bench(tmp_path) as bench:
        ids = [bench.submit(PLAIN | {"labels": {"n": str(n)}}) for n in range(3)]
        page = bench.batches(limit=2)
        rest = bench.batches(limit=2, cursor=page["next_cursor"])

        assert [item["batch_id"] for item in page["items"] + rest["items"]] == ids[::-1]
        assert rest["next_cursor"] is None
        assert [b["batch_id"] for b in bench.batches(label="n=1")["items"]] == [ids[1]]


def test_a_dry_run_shows_the_plan(tmp_path):
    with open_bench(tmp_path) as bench:
        plan = bench.expand(COMPARED)

        assert (plan["executions"], plan["cases"], plan["baseline"]) == (9, 3, "plain")
        assert bench.batches()["items"] == []
