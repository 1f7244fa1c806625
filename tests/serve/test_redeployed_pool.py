"""`args` that change in the middle of a batch: every deployment is replaced, nothing is lost."""

from collections import Counter

from conftest import wait_until
from pools import deploy, patient
from ray import serve

STEPS = 24
EXECUTIONS = 6


def test_args_that_change_in_the_middle_of_a_batch_lose_nothing(ray_cluster, tmp_path) -> None:
    serve.start(proxy_location="HeadOnly")
    options = {"min_replicas": 2, "max_replicas": 2, "max_queued": 8}
    pool = deploy("changing", tmp_path, slots=2, **options)
    try:
        before = pool.running()
        with pool.bench() as bench:
            batch_id = bench.submit(patient(EXECUTIONS, STEPS, 0.5))
            wait_until(lambda: pool.ask("get_batch", batch_id)["counts"]["running"] == 4)
            deploy("changing", tmp_path, slots=3, **options)
            wait_until(lambda: pool.ask("get_batch", batch_id)["status"] == "completed", 120)
        check(pool, batch_id, before)
    finally:
        serve.delete("changing")


def check(pool, batch_id: str, before: list[str]) -> None:
    batch = pool.ask("get_batch", batch_id)
    assert batch["counts"]["succeeded"] == EXECUTIONS
    events = pool.ask("read_events", batch_id, 0, 1_000, 0)["items"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    ended = Counter(
        event["payload"]["execution_id"]
        for event in events
        if event["type"] == "ray_variant_execution_completed"
    )
    assert set(ended.values()) == {1}
    assert len(ended) == EXECUTIONS

    handed_back = 0
    for item in pool.ask("list_executions", batch_id, None, None, None, "output")["items"]:
        assert item["output"]["done"] == STEPS
        *earlier, last = pool.ask("get_execution", item["execution_id"])["attempts"]
        for attempt in earlier:
            assert attempt["failure"]["reason"] == "drained", attempt["failure"]
            assert attempt["replica_id"] in before
        handed_back += len(earlier)
        if earlier:
            assert last["resumed_from"] is not None
        runs = sum(
            len(pool.ask("list_nodes", item["execution_id"], attempt["attempt"])["items"])
            for attempt in (*earlier, last)
        )
        assert STEPS <= runs <= STEPS + len(earlier), "done steps were done again"
    assert handed_back >= 4, "what ran was handed back"
    assert pool.events("actor_failed") == []
