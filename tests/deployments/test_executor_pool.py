"""What the ingress says of the executor pool."""

import asyncio

import pytest
from fakes import FakeHandle

from deployments import schemas
from deployments.executor_pool import ExecutorPool
from deployments.pool_watcher import PoolLimits, Replica

REPLICA = {
    "replica_id": "r1",
    "actor_id": "a1",
    "status": "live",
    "running": 3,
    "restart_count": 1,
    "initialized_at": "2026-01-01T00:00:00.000Z",
    "isolation": {"workspace": "overlay", "confinement": "A", "missed": []},
}
KNOWN = {
    "replicas": [REPLICA, REPLICA | {"replica_id": "r2", "status": "draining", "running": 1}],
    "standing": {"executor_queue": None, "admission": None},
    "refused_results": 2,
    "unfinished_executions": 70,
    "claimable_executions": 9,
}
SINCE = "2026-01-01T00:01:00.000Z"


def make_pool(known, *, min_replicas=1):
    async def get_pool():
        return dict(known)

    limits = PoolLimits(slots=4, min_replicas=min_replicas, max_replicas=2, max_queued=6)
    return ExecutorPool(FakeHandle(get_pool=get_pool), FakeHandle(), "wtb", limits, 100)


def describe(known):
    async def main():
        pool = make_pool(known)
        pool._watcher.replicas = [Replica("r1", "a1", "RUNNING"), Replica("r2", "a2", "STOPPING")]
        pool._dispatcher._outstanding = {object() for _ in range(7)}
        pool._dispatcher._held = (4, 5)
        return await pool.describe()

    answer = asyncio.run(main())
    schemas.Pool.model_validate(answer)
    return answer


def test_it_tells_who_runs_what_and_what_waits():
    answer = describe(KNOWN)

    assert [(r["status"], r["running"], r["slots"]) for r in answer["replicas"]] == [
        ("live", 3, 4),
        ("draining", 1, 4),
    ]
    assert (answer["slots"], answer["running_executions"]) == (4, 4)
    assert answer["permits"] == {
        "outstanding": 7,
        "queued": 3,
        "most_outstanding": 0,
        "window": 10,
    }
    assert answer["backpressure"] is False
    assert answer["pressure"] == {
        "executor_queue": {"applied": False, "since": None, "queued": 3, "limit": 6, "held": 5},
        "admission": {"applied": False, "since": None, "queued": 70, "limit": 100, "held": 0},
    }


def test_it_tells_since_when_either_level_of_backpressure_is_applied():
    applied = {"level": "x", "queued": 6, "limit": 6, "held": 50, "occurred_at": SINCE}
    answer = describe(KNOWN | {"standing": {"executor_queue": applied, "admission": applied}})

    assert answer["backpressure"] is True
    assert answer["pressure"] == {
        "executor_queue": {"applied": True, "since": SINCE, "queued": 3, "limit": 6, "held": 5},
        "admission": {"applied": True, "since": SINCE, "queued": 70, "limit": 100, "held": 50},
    }


@pytest.mark.parametrize(
    ("replicas", "min_replicas", "problems"),
    [
        ([REPLICA], 1, []),
        ([], 1, ["no executor replica is ready yet"]),
        ([REPLICA | {"status": "draining"}], 1, ["no executor replica is ready yet"]),
        ([], 0, []),
    ],
)
def test_it_is_ready_with_a_live_replica_or_when_it_may_have_none(replicas, min_replicas, problems):
    async def main():
        pool = make_pool(KNOWN | {"replicas": replicas}, min_replicas=min_replicas)
        return await pool.find_problems()

    assert asyncio.run(main()) == problems
