"""Crash points of docs/protocol.md at which Serve and Ray route, notice a death and replace.

The tests are named by the rows' numbers; the others are in tests/deployments/test_crash_points.py.
"""

import contextlib
import os
import signal
from collections.abc import Iterator

import httpx
import pytest
import ray

from deployments.pool_watcher import CONTROLLER, NAMESPACE
from tests.deployments.crash_bench import Stage, tell_story, until
from wtb_core.testbench import TestBench

ALL = ["a", "b", "c", "score"]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with contextlib.closing(Stage()) as stage:
        stage.hold("b")
        yield stage


def submit(bench: TestBench, stage: Stage) -> str:
    """A batch of one execution, which waits in the node `b`."""
    case = {"id": "c", "input": {"stage": stage.port}}
    spec = {"project": "staged", "variants": [{"name": "v"}], "cases": [case]}
    batch_id = bench.submit(spec | {"retry": {"backoff": 0}})
    stage.wait_for("b")
    return batch_id


def find_replicas(deployment: str) -> dict[str, int]:
    """The processes of a deployment's replicas by the replicas' ids."""
    controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    details = ray.get(controller.get_serve_instance_details.remote())
    found = details["applications"]["wtb"]["deployments"][deployment]["replicas"]
    return {replica["replica_id"].rpartition("#")[2]: replica["pid"] for replica in found}


def kill(deployment: str, replica_id: str | None = None) -> None:
    """Kill one of a deployment's replicas: the only one, where none is named."""
    replicas = find_replicas(deployment)
    name = next(iter(replicas)) if replica_id is None else replica_id.rpartition("#")[2]
    os.kill(replicas[name], signal.SIGKILL)


def is_ready(service) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{service.url}/readyz").status_code == 200
    return False


@pytest.mark.parametrize("deployment", ["BatchIngress", "EventCollector"])
def test_04_and_13_the_ingress_or_the_collector_dies_while_an_execution_runs(
    service, bench: TestBench, stage: Stage, deployment: str
) -> None:
    batch_id = submit(bench, stage)

    kill(deployment)

    stage.release("b")
    until(lambda: is_ready(service), "the service is not ready again")
    events = list(bench.events(batch_id))
    assert tell_story(events) == ["started", "completed"]
    assert stage.told == ALL


def test_08_a_replica_dies_in_user_code(service, bench: TestBench, stage: Stage) -> None:
    batch_id = submit(bench, stage)
    started = next(e for e in bench.events(batch_id) if e["type"].endswith("execution_started"))

    kill("VariantExecutor", started["payload"]["replica_id"])

    stage.release("b")
    events = list(bench.events(batch_id))
    assert tell_story(events) == ["started", "lost", "resumed", "completed"]
    assert stage.told == ["a", "b", "b", "c", "score"]
    kinds = [event["type"] for event in events]
    assert kinds.index("ray_actor_failed") < kinds.index("ray_variant_execution_failed")
