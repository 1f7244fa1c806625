"""Backpressure of a real executor queue: one replica of four slots, a queue of four."""

import urllib.request

import pytest
import ray
from conftest import wait_until
from pools import deploy, patient, trivial
from ray import serve

from deployments import metrics
from deployments.metrics import Metric

SLOTS = QUEUE = 4
PRESSURE = ("backpressure_applied", "backpressure_released")


@pytest.fixture(scope="module")
def narrow(ray_cluster, tmp_path_factory):
    serve.start(proxy_location="HeadOnly")
    yield deploy(
        "narrow",
        tmp_path_factory.mktemp("narrow"),
        min_replicas=1,
        max_replicas=1,
        slots=SLOTS,
        max_queued=QUEUE,
    )
    serve.delete("narrow")


def check_alternation(pool) -> list[dict]:
    said = pool.events(*PRESSURE)
    kinds = [event["type"] for event in said]
    expected = ["ray_backpressure_applied", "ray_backpressure_released"] * len(kinds)
    assert kinds == expected[: len(kinds)]
    return said


def test_a_batch_larger_than_the_window_is_one_stretch_of_backpressure(narrow) -> None:
    before = len(narrow.events(*PRESSURE))
    with narrow.bench() as bench:
        assert bench.run_batch(trivial(60)).succeeded
    wait_until(lambda: not narrow.ask("get_pool")["backpressure"], 10)

    applied, released = check_alternation(narrow)[before:]
    numbers = applied["payload"]
    assert numbers["level"] == "executor_queue"
    assert numbers["limit"] == QUEUE <= numbers["queued"]
    assert 0 < numbers["held"] <= 60 - SLOTS
    assert released["payload"]["duration_ms"] > 0
    permits = narrow.ask("get_pool")["permits"]
    assert SLOTS < permits["most_outstanding"] <= SLOTS + QUEUE + 2
    assert permits["outstanding"] == 0


def test_the_pool_says_what_runs_and_what_waits_while_it_is_so(narrow) -> None:
    with narrow.bench() as bench:
        batch_id = bench.submit(patient(20, 40, 0.1))

        def is_full() -> bool:
            pool = narrow.ask("get_pool")
            return pool["backpressure"] and pool["running_executions"] == SLOTS

        wait_until(is_full, 30)
        pool = narrow.ask("get_pool")
        (replica,) = pool["replicas"]
        assert (replica["status"], replica["running"], replica["slots"]) == ("live", SLOTS, SLOTS)
        assert pool["permits"]["window"] == SLOTS + QUEUE
        level = pool["pressure"]["executor_queue"]
        assert level["applied"]
        assert (level["limit"], level["since"] is None) == (QUEUE, False)
        assert 0 < level["held"] <= 20 - SLOTS
        bench.cancel(batch_id)
    wait_until(lambda: narrow.ask("get_pool")["unfinished_executions"] == 0)


def test_the_successor_of_a_killed_ingress_releases_and_goes_on(narrow) -> None:
    with narrow.bench() as bench:
        batch_id = bench.submit(patient(24, 5, 0.1))
        wait_until(lambda: narrow.ask("get_pool")["backpressure"], 30)
        (ingress,) = narrow.find_actors("BatchIngress")
        narrow.kill(ingress)
        wait_until(lambda: narrow.find_actors("BatchIngress") not in ([], [ingress]), 30)
        wait_until(lambda: narrow.ask("get_batch", batch_id)["status"] == "completed")
        counts = narrow.ask("get_batch", batch_id)["counts"]
    assert counts["succeeded"] == 24
    wait_until(lambda: not narrow.ask("get_pool")["backpressure"], 10)
    check_alternation(narrow)


def scrape() -> str:
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return answer.read().decode()


COUNTED = {
    metric.name
    for metric in vars(metrics).values()
    if isinstance(metric, Metric)
    and metric not in {metrics.RESUMED, metrics.HANDED_BACK, metrics.REFUSED_RESULTS}
}


def test_prometheus_finds_what_was_counted(narrow) -> None:
    text = ""

    def read(name: str, *labels: str) -> float:
        values = [
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.startswith(f"ray_{name}{{")
            and 'application="narrow"' in line
            and all(label in line for label in labels)
        ]
        return sum(values)

    def is_complete() -> bool:
        nonlocal text
        text = scrape()
        ended = read("wtb_executions_ended_total", 'status="succeeded"', 'kind="none"')
        return ended >= 60 + 24 and all(f"ray_{name}" in text for name in COUNTED)

    wait_until(is_complete)
    assert read("wtb_attempt_duration_seconds_count", 'status="succeeded"') >= 60 + 24
    assert read("wtb_queue_wait_seconds_count") >= 60
    started = read("wtb_events_appended_total", 'type="ray_variant_execution_started"')
    assert started >= 60 + 24
    assert read("wtb_append_seconds_count") > 0
    assert read("wtb_backpressure_seconds_total", 'level="executor_queue"') > 0
    assert read("wtb_slots", 'deployment="BatchIngress"') >= SLOTS
    assert read("wtb_permits_rejected_total") > 0
