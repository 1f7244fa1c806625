"""The autoscaling policy: grow with the calls, shrink by what is idle."""

import time
from types import SimpleNamespace

import pytest
from ray.serve.config import AutoscalingPolicy

from deployments import pool_policy
from deployments.pool_policy import FollowLoad

SLOTS = 4


def make_context(calls: float, target: int, replicas=(), age_s: float = 0.0):
    """Replicas from the oldest to the newest, each (name, attempts held, node, on the head)."""
    now = time.time()

    def series(column: int):
        return {
            replica[0]: [SimpleNamespace(timestamp=now - age_s, value=float(replica[column]))]
            for replica in replicas
            if replica[column] is not None
        }

    return SimpleNamespace(
        total_num_requests=calls,
        target_num_replicas=target,
        running_replicas=[replica[0] for replica in replicas],
        raw_metrics={"held": series(1), "node": series(2), "on_head": series(3)},
        current_time=now,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: SLOTS),
    )


def on_head(*held):
    return [(f"r{number}", count, 7, 1) for number, count in enumerate(held)]


def on_nodes(**nodes):
    """Per node what its replicas hold, the oldest first; the node `head` is the head node."""
    return [
        (f"{name}-{number}", count, index, name == "head")
        for index, (name, held) in enumerate(nodes.items())
        for number, count in enumerate(held)
    ]


@pytest.mark.parametrize(("calls", "wanted"), [(13, 4), (8, 2), (9, 3), (30, 8)])
def test_the_pool_grows_with_the_calls_at_once(calls, wanted):
    assert FollowLoad(60)(make_context(calls, 2, on_head(1, 1))) == (wanted, {})


@pytest.mark.parametrize(
    ("replicas", "calls", "wanted"),
    [
        (on_head(0, 0, 0), 0, 0),
        (on_head(1, 0, 0), 1, 1),
        (on_head(0, 1, 0), 1, 2),
        (on_head(0, 0, 1), 1, 3),
        (on_head(2, 0, 0), 5, 2),
        (on_nodes(head=[0], a=[0], b=[0]), 0, 0),
        (on_nodes(head=[1], a=[0], b=[0]), 1, 1),
        (on_nodes(head=[0], a=[1], b=[0]), 1, 3),
        (on_nodes(a=[1, 0], b=[1, 0]), 2, 3),
        (on_nodes(a=[1, 0, 0], b=[1, 0, 0, 0]), 2, 5),
        (on_nodes(a=[0, 0], b=[1, 0]), 1, 3),
        (on_nodes(head=[1, 0], a=[0, 0]), 1, 1),
    ],
)
def test_it_shrinks_by_what_is_idle_wherever_serve_begins(replicas, calls, wanted):
    assert FollowLoad(0)(make_context(calls, len(replicas), replicas)) == (wanted, {})


def test_replicas_that_do_not_run_yet_are_stopped_first():
    assert FollowLoad(0)(make_context(2, 4, on_head(1, 1)))[0] == 2


def test_a_replica_that_says_nothing_is_taken_for_busy():
    silent = [("r0", 0, 7, 1), ("r1", None, None, None)]
    assert FollowLoad(0)(make_context(0, 2, silent))[0] == 2
    assert FollowLoad(0)(make_context(0, 2, on_head(0, 0), age_s=60))[0] == 2


def test_it_shrinks_only_after_a_while_without_need(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pool_policy.time, "monotonic", lambda: now[0])
    policy = FollowLoad(60)

    def decide(calls):
        return policy(make_context(calls, 3, on_head(0, 0, 0)))[0]

    assert decide(1) == 3
    now[0] += 59
    assert decide(1) == 3
    assert decide(12) == 3
    now[0] += 59
    assert decide(1) == 3
    now[0] += 60
    assert decide(1) == 1


def test_serve_makes_the_policy_from_its_name_and_its_arguments():
    policy = AutoscalingPolicy(
        policy_function="deployments.pool_policy:FollowLoad", policy_kwargs={"shrink_after_s": 5.0}
    )
    made = policy.get_policy()(**policy.policy_kwargs)
    assert made(make_context(5, 1)) == (2, {})


def test_what_a_replica_tells_is_numbers(monkeypatch):
    monkeypatch.setattr(pool_policy, "_find_place", lambda: {"node": 5.0, "on_head": 1.0})
    assert pool_policy.describe_load(3) == {"held": 3.0, "node": 5.0, "on_head": 1.0}
