"""A real executor pool that grows, shrinks, and loses replicas."""

import time

import pytest
from conftest import wait_until
from pools import deploy, patient
from ray import serve

SLOTS = 2


@pytest.fixture(scope="module")
def elastic(ray_cluster, tmp_path_factory):
    serve.start(proxy_location="HeadOnly")
    yield deploy(
        "elastic",
        tmp_path_factory.mktemp("elastic"),
        min_replicas=1,
        max_replicas=3,
        slots=SLOTS,
        max_queued=4,
        shrink_after_s=1,
    )
    serve.delete("elastic")


def test_replicas_follow_the_load_and_long_executions_survive_it(elastic) -> None:
    (oldest,) = elastic.running()
    with elastic.bench() as bench:
        long = bench.submit(patient(1, 80, 0.5))
        wait_until(lambda: elastic.ask("get_batch", long)["counts"]["running"] == 1)
        short = bench.submit(patient(16, 1, 1.0))
        wait_until(lambda: len(elastic.running()) == 3)
        wait_until(lambda: elastic.ask("get_batch", short)["status"] == "completed")
        wait_until(lambda: elastic.running() == [oldest], 30)
        counts = elastic.ask("get_batch", long)["counts"]
        assert (counts["running"], counts["succeeded"]) == (1, 0), "it shrank only in calm"
        wait_until(lambda: elastic.ask("get_batch", long)["status"] == "completed")
    (execution,) = elastic.ask("list_executions", long)["items"]
    assert (execution["status"], execution["attempt"]) == ("succeeded", 1)
    assert elastic.events("actor_failed") == []
    (replica,) = elastic.ask("get_pool")["replicas"]
    assert (replica["replica_id"], replica["status"]) == (oldest, "live")


def test_a_replica_that_dies_idle_is_told_of_and_replaced(elastic) -> None:
    before = len(elastic.events("actor_failed"))
    wait_until(lambda: len(elastic.running()) == 1)
    (replica,) = elastic.ask("get_pool")["replicas"]
    elastic.kill(replica["replica_id"])
    wait_until(lambda: len(elastic.events("actor_failed")) > before, 15)
    failed = elastic.events("actor_failed")[-1]["payload"]
    assert failed["actor_id"] == replica["actor_id"]
    assert (failed["error_type"], failed["execution_ids"]) == ("ActorDiedError", [])
    wait_until(
        lambda: any(
            event["payload"]["replaces"] == replica["replica_id"]
            for event in elastic.events("actor_restarted")
        )
    )


def test_a_replica_that_dies_at_work_is_told_of_at_once_with_what_it_held(elastic) -> None:
    before = len(elastic.events("actor_failed"))
    wait_until(lambda: len(elastic.running()) == 1)
    with elastic.bench() as bench:
        batch_id = bench.submit(patient(1, 20, 0.2))
        wait_until(lambda: elastic.ask("get_batch", batch_id)["counts"]["running"] == 1)
        (replica,) = [r for r in elastic.ask("get_pool")["replicas"] if r["running"]]
        killed_at = time.monotonic()
        elastic.kill(replica["replica_id"])
        wait_until(lambda: len(elastic.events("actor_failed")) > before, 15)
        told_after_s = time.monotonic() - killed_at
        failed = elastic.events("actor_failed")[-1]["payload"]
        assert failed["actor_id"] == replica["actor_id"]
        assert failed["execution_ids"] == [f"{batch_id}-0"]
        assert told_after_s < 5, "not by its lease, which is 15 s"
        wait_until(lambda: elastic.ask("get_batch", batch_id)["status"] == "completed")
    assert elastic.ask("get_batch", batch_id)["counts"]["succeeded"] == 1
